"""What does each preference loss do with the same labels, and how far does it move the model?

    python -m experiments.losses

After pipeline.py. SL-CAI leaves little to repair. So Stage 1 here ends after one revision, and its
answers are labelled again, in OUT/losses. Then every loss gets the beta and the learning rate of
GRID that serve it best: six trainings each, measured on the train split, kept in tuned.json. Last,
each is trained with these on three seeds and takes the exam. Half a minute for each training and
its exam. Writes OUT/losses/dpo-LOSS-SEED.pt, and the whole exam in OUT/losses/losses.json.

    KL                 nats per answer from SL-CAI-1, on the trained model's samples
    chosen, rejected   by how many nats the log-probability of the preferred and of the other
                       answers of PAIRS comparisons has changed

Answer so far (quick preset, seed 0): under-refusal falls from 77 % to 1 to 17 with seven losses, to
58 with dpop. kto also handles 90 % of the ambiguous requests, ipo only 28. See docs/results.md.
"""

import argparse
import inspect
import random
import shutil

import torch

from minicai.answer import encode_prompt, sample
from minicai.data import collate_responses, read_pairs
from minicai.dpo import LOSSES, response_logps
from minicai.files import UserError, load_policy, read_json, warn_if_newer, write_json
from minicai.gpt import GPT
from minicai.report import aligned
from minicai.run import main, make_folder, parser, run_script, seed, setup
from minicai.tokenizer import Tokenizer
from minicai.world.content import World
from minicai.world.requests import Part, draw_prompts
from train_dpo import reference_logps

SAMPLES, PAIRS, BATCH = 200, 300, 20
# Factors of the default beta and of the preset's learning rate. Losses differ in scale.
GRID = [(beta, lr) for beta in (0.25, 1, 4) for lr in (1, 3)]
BAD = ("under_refusal", "over_refusal", "rude_or_preachy")
GOOD = ("ambiguous_handled", "steps_correct")


def mistakes(stage: dict) -> float:
    """Five errors of a stage in percent, summed."""
    errors = [stage[key]["rate"] for key in BAD] + [1 - stage[key]["rate"] for key in GOOD]
    return 100 * sum(errors)


def weak_stage_1(args) -> argparse.Namespace:
    """Fine-tune on the first revisions alone and label that model's answers, in OUT/losses."""
    inside = argparse.Namespace(**vars(args) | dict(out=args.out / "losses"))
    make_folder(inside.out)
    labels = inside.out / "preferences.jsonl"
    if labels.exists():
        warn_if_newer(labels, args.out / "revisions.jsonl", remedy=f"remove {inside.out}")
        return inside
    for name in ("base.pt", "revisions.jsonl"):
        if not (args.out / name).exists():
            raise UserError(f"{args.out / name} does not exist; run pipeline.py first")
        shutil.copy2(args.out / name, inside.out / name)
    run_script("train_sft", inside, "--revisions", 1)
    run_script("label", inside)
    return inside


def tune(args, loss: str) -> dict:
    """The beta and learning rate of GRID with the fewest mistakes on the train split."""
    beta = inspect.signature(LOSSES[loss]).parameters["beta"].default
    settings = {
        f"dpo-{loss}-tune{i}": dict(beta=beta * factor, lr=args.dpo_lr * faster)
        for i, (factor, faster) in enumerate(GRID)
    }
    for name, s in settings.items():
        own = ("--beta", s["beta"], "--lr", s["lr"], "--name", name.removeprefix("dpo-"))
        run_script("train_dpo", args, "--loss", loss, *own)
    results, paths = args.out / "tune.json", [args.out / f"{name}.pt" for name in settings]
    size = ("--split", "train", "--eval-n", max(1, args.eval_n // 2))
    run_script("evaluate", args, *paths, *size, "--results", results)
    for stage in read_json(results, {})["stages"]:
        settings[stage["name"]]["mistakes"] = round(mistakes(stage), 1)
    for path in paths:
        path.unlink()
    print("\n".join(f"{name}: {found}" for name, found in settings.items()))
    return min(settings.values(), key=lambda s: s["mistakes"])


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


def cell(values) -> str:
    return f"{sum(values) / len(values):.1f} ({min(values):.1f}-{max(values):.1f})"


def losses():
    p = parser(__doc__)
    p.add_argument("--losses", nargs="+", choices=LOSSES, default=list(LOSSES), help="default: all")
    p.add_argument("--seeds", nargs="+", type=seed, default=[0, 1, 2], help="default: 0 1 2")
    args = weak_stage_1(setup(p))

    tuned = read_json(args.out / "tuned.json", {})
    for loss in args.losses:
        if loss not in tuned:
            tuned[loss] = tune(args, loss)
            write_json(args.out / "tuned.json", tuned)
    names = [f"{loss}-{number}" for loss in args.losses for number in args.seeds]
    for loss in args.losses:
        own = ("--loss", loss, "--beta", tuned[loss]["beta"], "--lr", tuned[loss]["lr"])
        for number in args.seeds:
            seeded = argparse.Namespace(**vars(args) | dict(seed=number))
            run_script("train_dpo", seeded, *own, "--name", f"{loss}-{number}")
    results = args.out / "losses.json"
    paths = [args.out / "sft.pt", *(args.out / f"dpo-{name}.pt" for name in names)]
    run_script("evaluate", args, *paths, "--results", results)
    stages = {stage["name"]: stage for stage in read_json(results, {})["stages"]}

    reference, tokenizer = load_policy(args.out / "sft.pt", args.device)
    part = Part(World.of(args), "train")
    conversations = [list(r.turns) for r in draw_prompts(part, SAMPLES, random.Random("kl"))]
    block_size, files = reference.config.block_size, [args.out / "preferences.jsonl"]
    pairs = read_pairs(files, tokenizer, 1 / 3, block_size, random.Random(0))[:PAIRS]

    def pair_logps(policy: GPT) -> torch.Tensor:
        return reference_logps(policy, pairs, 4 * args.batch_tokens, tokenizer.pad, False)  # (2, N)

    start = pair_logps(reference)
    before = [f"{100 * stages['sft'][key]['rate']:.1f}" for key in (*BAD, *GOOD)]
    rows = [["mean (range)", "beta", "lr", *BAD, *GOOD, "KL", "chosen", "rejected"]]
    rows.append(["SL-CAI-1", "-", "-", *before, "0.0", "-", "-"])
    for loss in args.losses:
        measured = []
        for name in (f"dpo-{loss}-{number}" for number in args.seeds):
            policy, _ = load_policy(args.out / f"{name}.pt", args.device)
            kl = kl_from(reference, policy, tokenizer, conversations)
            moved = (pair_logps(policy) - start).mean(1).tolist()
            rates = [100 * stages[name][key]["rate"] for key in (*BAD, *GOOD)]
            measured.append((*rates, kl, *moved))
        settings = [f"{tuned[loss][key]:g}" for key in ("beta", "lr")]
        rows.append([loss, *settings, *map(cell, zip(*measured))])
    print(f"\n{aligned(rows)}")


if __name__ == "__main__":
    main(losses)
