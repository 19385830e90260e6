"""Where the time of a PPO update goes: rollout, scoring, learning; and what sharing one pass saves.

    python -m bench.ppo --out out/cpu                # after train_rm.py

Runs train_ppo.py itself for a few updates with a clock around its three parts. Scoring takes one pass each of policy (log-probabilities
and values together), reference and reward model over every answer; the last line sets that against a pass for each number.
"""

import sys
import time
from collections import Counter

import torch

import train_ppo
from minicai.common import main, parser, positive, setup


def bench():
    p = parser(__doc__)
    p.add_argument("--updates", type=positive, default=4, help="to take the time of (default: 4)")
    args = setup(p)
    seconds, separate = Counter(), 0.0
    wait = torch.cuda.synchronize if args.device.startswith("cuda") else lambda: None

    def now():
        wait()
        return time.perf_counter()

    def clocked(name, function):
        def inner(*a, **k):
            began = now()
            result = function(*a, **k)
            seconds[name] += now() - began
            return result

        return inner

    score = clocked("scoring", train_ppo.score)

    def score_both_ways(actor, reference, reward, prompts, completions, beta, options, pad):
        nonlocal separate
        batch = score(actor, reference, reward, prompts, completions, beta, options, pad)
        lengths = torch.tensor([len(p) + len(c.ids) for p, c in zip(prompts, completions)])
        began = now()
        with torch.no_grad(), train_ppo.autocast(options.device):
            ids = batch["ids"]
            train_ppo.token_logps(actor(ids)[0], ids)  # log-probabilities
            actor(ids)[1]  # values, in a pass of their own
            train_ppo.token_logps(reference(ids[:, :-1]), ids)
            reward(ids, lengths.to(ids.device))
        separate += now() - began
        return batch

    train_ppo.generate = clocked("rollout", train_ppo.generate)
    train_ppo.climb = clocked("learning", train_ppo.climb)
    train_ppo.score = score_both_ways
    train_ppo.answer = lambda *a, **k: [""] * len(train_ppo.SHOWN)
    (args.out / "train_ppo-bench.state.pt").unlink(missing_ok=True)
    shared = ("preset", "out", "seed", "device", "world")
    sys.argv = [
        "train_ppo.py",
        *(str(word) for name in shared for word in (f"--{name}", getattr(args, name))),
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
    main(bench)
