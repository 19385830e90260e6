"""Every preference loss on the same labels: what each does to both errors, how far it goes, and how long it takes.

    python -m bench.losses --out out/cpu             # after pipeline.py; about a minute for each loss and seed on 2 cores

Everything but the loss and its beta, train_dpo's default for it, is equal: labels, learning rate, order of the batches.
KL is of the trained policy from the fine-tuned model, in nats per answer, on the policy's own samples for train
requests; the margin is the loss's own, over the last twentieth of the steps. Losses differ in scale, so a fair fight
would tune beta and the rate of each. Prints these; both errors and the rest of the exam
are in OUT/losses.md. Leaves a checkpoint OUT/dpo-LOSS-SEED.pt of each training.
"""

import json
import random
from argparse import Namespace

import torch

from minicai.common import autocast, load_checkpoint, main, parser, positive, read_jsonl, setup
from minicai.critique import MAX_NEW_TOKENS
from minicai.data import collate_responses
from minicai.dpo import LOSSES, response_logps
from minicai.report import aligned
from minicai.sampler import generate
from minicai.tokenizer import Tokenizer, talk
from minicai.world.content import World
from minicai.world.requests import Part, draw_prompts
from pipeline import run


@torch.no_grad()
def kl_from(reference, policy, tokenizer: Tokenizer, world: World, n: int = 200) -> float:
    """KL(policy, reference) per answer: the mean of log policy - log reference over samples of the policy (k1)."""
    device = policy.embed.weight.device.type
    requests = draw_prompts(Part(world, "train"), n, random.Random("kl"))
    prompts = [tokenizer.prompt(talk(*r.turns)) for r in requests]
    completions = generate(policy, prompts, MAX_NEW_TOKENS, stop_ids=[tokenizer.end], seed=0)
    total = 0.0
    for i in range(0, n, 20):
        rows = [p + c.ids for p, c in zip(prompts[i : i + 20], completions[i : i + 20])]
        ids, mask = collate_responses(
            rows, [len(p) for p in prompts[i : i + 20]], tokenizer.pad, device
        )
        with autocast(device):
            total += (
                (response_logps(policy, ids, mask) - response_logps(reference, ids, mask))
                .sum()
                .item()
            )
    return total / n


def losses():
    p = parser(__doc__)
    p.add_argument("--constitution", default="constitution.json", help="file with the principles")
    p.add_argument(
        "--seeds", type=int, nargs="+", default=[0, 1, 2], help="of the training (default: 0 1 2)"
    )
    p.add_argument("--losses", nargs="+", choices=LOSSES, default=list(LOSSES), help="default: all")
    p.add_argument(
        "--eval-n",
        dest="n",
        type=positive,
        default=150,
        metavar="N",
        help="requests of each type (default: 150)",
    )
    args = setup(p)
    names = {(loss, seed): f"{loss}-{seed}" for loss in args.losses for seed in args.seeds}
    seconds = {
        name: run(
            "train_dpo", Namespace(**vars(args) | dict(seed=seed)), "--loss", loss, "--name", name
        )
        for (loss, seed), name in names.items()
    }
    results = args.out / "losses.json"
    run(
        "evaluate",
        args,
        "--eval-n",
        args.n,
        "--results",
        results,
        *(args.out / f"dpo-{name}.pt" for name in names.values()),
    )
    stages = {s["name"]: s for s in json.loads(results.read_text())["stages"]}
    tokenizer, world = Tokenizer.load(args.out / "tokenizer.json"), World(args.world)
    reference, _ = load_checkpoint(args.out / "sft.pt", device=args.device)
    log = read_jsonl(args.out / "train_dpo.jsonl")
    rows = [["loss", "under-refusal", "over-refusal", "KL", "margin", "seconds"]]
    for loss in args.losses:
        measured = []
        for seed in args.seeds:
            name = names[loss, seed]
            policy, _ = load_checkpoint(args.out / f"dpo-{name}.pt", device=args.device)
            margins = [row["margin"] for row in log if row["name"] == f"dpo-{name}"]
            margins = margins[-max(1, len(margins) // 20) :]
            stage = stages[f"dpo-{name}"]
            measured.append(
                (
                    100 * stage["under_refusal"]["rate"],
                    100 * stage["over_refusal"]["rate"],
                    kl_from(reference, policy, tokenizer, world),
                    sum(margins) / len(margins),
                    seconds[name],
                )
            )
        columns = list(zip(*measured))
        rows.append(
            [loss, *(f"{sum(c) / len(c):.1f} ({min(c):.1f}-{max(c):.1f})" for c in columns)]
        )
    print(aligned(rows))


if __name__ == "__main__":
    main(losses)
