"""Where the time of a PPO update goes: rollout, scoring, learning; and what sharing one pass saves.

    python -m bench.ppo --out out/cpu                # after train_rm.py

Runs train_ppo.py itself for a few updates with a clock around its three parts. Scoring takes one pass each of policy (log-probabilities
and values together), reference and reward model over every answer; the last line sets that against a pass for each number.
"""

import argparse
import sys
import time
from collections import Counter
from pathlib import Path

import torch

import train_ppo
from minicai import common


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--out", type=Path, default=Path("out/cpu"))
    p.add_argument("--preset", default="cpu")
    p.add_argument("--updates", type=int, default=4)
    args = p.parse_args()
    seconds, separate = Counter(), 0.0

    def clocked(name, function):
        def inner(*a, **k):
            began = time.perf_counter()
            result = function(*a, **k)
            seconds[name] += time.perf_counter() - began
            return result

        return inner

    score = clocked("scoring", train_ppo.score)

    def score_both_ways(actor, reference, reward, prompts, completions, beta, options, pad):
        nonlocal separate
        batch = score(actor, reference, reward, prompts, completions, beta, options, pad)
        lengths = torch.tensor([len(p) + len(c.ids) for p, c in zip(prompts, completions)])
        began = time.perf_counter()
        with torch.no_grad(), train_ppo.autocast(options.device):
            ids = batch["ids"]
            train_ppo.token_logps(actor(ids)[0], ids)  # log-probabilities
            actor(ids)[1]  # values, in a pass of their own
            train_ppo.token_logps(reference(ids[:, :-1]), ids)
            reward(ids, lengths.to(ids.device))
        separate += time.perf_counter() - began
        return batch

    train_ppo.generate = clocked("rollout", train_ppo.generate)
    train_ppo.climb = clocked("learning", train_ppo.climb)
    train_ppo.score = score_both_ways
    train_ppo.answer = lambda *a, **k: [""] * len(train_ppo.SHOWN)
    sys.argv = [
        "train_ppo.py",
        "--preset",
        args.preset,
        "--out",
        str(args.out),
        "--updates",
        str(args.updates),
        "--name",
        "bench",
    ]
    train_ppo.train()
    (args.out / "ppo-bench.pt").unlink()
    (args.out / "train_ppo-bench.jsonl").unlink()
    total = sum(seconds.values())
    for name, spent in seconds.items():
        print(f"{name:9} {spent / args.updates:6.2f} s an update, {spent / total:.0%}")
    print(f"scoring with a pass for each number: {separate / seconds['scoring']:.2f} times as long")


if __name__ == "__main__":
    common.main(main)
