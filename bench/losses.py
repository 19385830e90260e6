"""Every preference loss on the same labels: what each does to both errors, how far it goes, and how long it takes.

    python -m bench.losses --out out/cpu             # after pipeline.py; about a minute for each loss and seed on 2 cores

Everything but the loss and its beta, train_dpo's default for it, is equal: labels, learning rate, order of the batches.
KL is of the trained policy from the fine-tuned model, in nats per answer, on the policy's own samples for train
requests; the margin is the loss's own, over the last twentieth of the steps. Losses differ in scale, so a fair fight
would tune beta and the rate of each. Writes OUT/losses.json.
"""

import argparse
import json
import random
import time
from pathlib import Path

import torch

from bench.ablations import run
from minicai import common
from minicai.common import autocast, load_checkpoint, read_jsonl
from minicai.critique import MAX_NEW_TOKENS
from minicai.data import collate_responses
from minicai.dpo import LOSSES, response_logps
from minicai.report import aligned
from minicai.sampler import generate
from minicai.tokenizer import Tokenizer, talk
from minicai.world.content import World
from minicai.world.requests import Part, draw_prompts


@torch.no_grad()
def kl_from(reference, policy, tokenizer: Tokenizer, world: World, n: int = 200) -> float:
    """KL(policy, reference) per answer: the mean of log policy - log reference over samples of the policy (k1)."""
    requests = draw_prompts(Part(world, "train"), n, random.Random("kl"))
    prompts = [tokenizer.prompt(talk(*r.turns)) for r in requests]
    completions = generate(policy, prompts, MAX_NEW_TOKENS, stop_ids=[tokenizer.end], seed=0)
    total = 0.0
    for i in range(0, n, 20):
        rows = [p + c.ids for p, c in zip(prompts[i : i + 20], completions[i : i + 20])]
        ids, mask = collate_responses(rows, [len(p) for p in prompts[i : i + 20]], tokenizer.pad, "cpu")
        with autocast("cpu"):
            total += (response_logps(policy, ids, mask) - response_logps(reference, ids, mask)).sum().item()
    return total / n


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--out", type=Path, default=Path("out/cpu"))
    p.add_argument("--preset", default="cpu")
    p.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of the training (default: 0 1 2)")
    p.add_argument("--losses", nargs="+", choices=LOSSES, default=list(LOSSES), help="default: all")
    p.add_argument("--eval-n", default="150", help="requests of each type (default: 150)")
    args = p.parse_args()
    names = {(loss, seed): f"{loss}-{seed}" for loss in args.losses for seed in args.seeds}
    seconds = {}
    for (loss, seed), name in names.items():
        began = time.time()
        run(
            "train_dpo.py",
            "--preset",
            args.preset,
            "--out",
            args.out,
            "--device",
            "cpu",
            "--loss",
            loss,
            "--seed",
            seed,
            "--name",
            name,
        )
        seconds[name] = time.time() - began
    results = args.out / "losses.json"
    run("evaluate.py", "--preset", args.preset, "--out", args.out, "--device", "cpu", "--eval-n", args.eval_n, "--results", results,
        *(args.out / f"dpo-{name}.pt" for name in names.values()))  # fmt: skip
    stages = {s["name"]: s for s in json.loads(results.read_text())["stages"]}
    tokenizer, world = Tokenizer.load(args.out / "tokenizer.json"), World("world")
    reference, _ = load_checkpoint(args.out / "sft.pt")
    log = read_jsonl(args.out / "train_dpo.jsonl")
    rows = [["loss", "under-refusal", "over-refusal", "KL", "margin", "seconds"]]
    for loss in args.losses:
        measured = []
        for seed in args.seeds:
            name = names[loss, seed]
            policy, _ = load_checkpoint(args.out / f"dpo-{name}.pt")
            margins = [row["margin"] for row in log if row["name"] == f"dpo-{name}"]
            margins = margins[-max(1, len(margins) // 20) :]
            stage = stages[f"dpo-{name}"]
            measured.append((100 * stage["under_refusal"]["rate"], 100 * stage["over_refusal"]["rate"],
                             kl_from(reference, policy, tokenizer, world), sum(margins) / len(margins), seconds[name]))  # fmt: skip
        columns = list(zip(*measured))
        rows.append([loss, *(f"{sum(c) / len(c):.1f} ({min(c):.1f}-{max(c):.1f})" for c in columns)])
    print(aligned(rows))


if __name__ == "__main__":
    common.main(main)
