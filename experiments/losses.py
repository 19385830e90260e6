"""What does each preference loss do with the same labels, and how far does it move the model?

    python -m experiments.losses

After pipeline.py. Two minutes for each loss and seed on 2 cores, most of them for the exam, which
has a third of its usual questions. Only the loss and its default beta differ. Losses differ in
scale, so a fair comparison would tune beta and learning rate for each. Writes OUT/dpo-LOSS-SEED.pt,
and the whole exam in OUT/losses.json.

    KL       nats per answer between the trained model and SL-CAI, on the trained model's samples
    margin   the loss's own, mean over the last twentieth of the steps

Answer so far (first edition, full preset, seed 0): all eight leave both errors at 0 % on
plain requests. They differ in distance: dpo moves 0.1 nats, ipo 4.6 and simpo 2.2, and these two
garble 14 and 11 % of their answers.
"""

import argparse
import random

import torch

from minicai.answer import encode_prompt, sample
from minicai.data import collate_responses
from minicai.dpo import LOSSES, response_logps
from minicai.files import load_policy, read_json, read_jsonl
from minicai.gpt import GPT
from minicai.report import aligned
from minicai.run import main, parser, run_script, seed, setup
from minicai.tokenizer import Tokenizer
from minicai.world.content import World
from minicai.world.requests import Part, draw_prompts

SAMPLES, BATCH = 200, 20


@torch.no_grad()
def kl_from(reference: GPT, policy: GPT, tokenizer: Tokenizer, conversations) -> float:
    """KL(policy || reference) in nats per answer, by k1: log policy - log reference of samples."""
    block_size, device = policy.config.block_size, policy.embed.weight.device
    prompts = [encode_prompt(tokenizer, turns, block_size) for turns in conversations]
    answers = sample(policy, tokenizer, prompts, temperature=1.0)
    rows, total = [prompt + c.ids for prompt, c in zip(prompts, answers)], 0.0
    for i in range(0, len(rows), BATCH):
        lengths = [len(prompt) for prompt in prompts[i : i + BATCH]]
        ids, mask = collate_responses(rows[i : i + BATCH], lengths, tokenizer.pad, device)
        k1 = response_logps(policy, ids, mask) - response_logps(reference, ids, mask)
        total += k1.sum().item()
    return total / len(rows)


def losses():
    p = parser(__doc__)
    p.add_argument("--losses", nargs="+", choices=LOSSES, default=list(LOSSES), help="default: all")
    p.add_argument("--seeds", nargs="+", type=seed, default=[0, 1, 2], help="default: 0 1 2")
    args = setup(p)

    seconds = {}  # of each training, by the name of its checkpoint
    for loss in args.losses:
        for number in args.seeds:
            name, seeded = f"{loss}-{number}", argparse.Namespace(**vars(args) | dict(seed=number))
            took = run_script("train_dpo", seeded, "--loss", loss, "--name", name)
            seconds[f"dpo-{name}"] = took
    results, paths = args.out / "losses.json", [args.out / f"{name}.pt" for name in seconds]
    third = max(1, args.eval_n // 3)
    run_script("evaluate", args, *paths, "--eval-n", third, "--results", results)
    stages = {stage["name"]: stage for stage in read_json(results, {})["stages"]}

    reference, tokenizer = load_policy(args.out / "sft.pt", args.device)
    requests = draw_prompts(
        Part(World(args.world, args.world_share), "train"), SAMPLES, random.Random("kl")
    )
    conversations = [list(request.turns) for request in requests]
    rows = [["mean (range)", "under-refusal", "over-refusal", "KL", "margin", "seconds"]]
    for loss in args.losses:
        measured = []
        for name in (f"dpo-{loss}-{number}" for number in args.seeds):
            errors = [100 * stages[name][f"{side}_refusal"]["rate"] for side in ("under", "over")]
            policy, _ = load_policy(args.out / f"{name}.pt", args.device)
            kl = kl_from(reference, policy, tokenizer, conversations)
            margins = [row["margin"] for row in read_jsonl(args.out / f"train_{name}.jsonl")]
            last = margins[-max(1, len(margins) // 20) :]
            measured.append((*errors, kl, sum(last) / len(last), seconds[name]))
        columns = zip(*measured)
        rows.append(
            [loss, *(f"{sum(c) / len(c):.1f} ({min(c):.1f}-{max(c):.1f})" for c in columns)]
        )
    print(f"\n{aligned(rows)}")


if __name__ == "__main__":
    main(losses)
