"""Stage 2: a Bradley-Terry reward model on the labels in preferences.jsonl.

    python train_rm.py                                             # quick preset: about a minute
    python train_rm.py --helpful-fraction 0 --name harmless-only   # without the person's labels
    python train_rm.py --data out/hh.jsonl.gz --name hh            # files of HH-RLHF, or of TRL

reads   OUT/sft.pt (start), OUT/preferences.jsonl; minicai/preferences.py has the formats
writes  OUT/rm.pt (OUT/rm-NAME.pt); log in OUT/train_rm.jsonl

The comparisons of one prompt in ten are held back, to report accuracy and calibration. At the end
all scores are shifted so that SL-CAI's own answers average 0. (Other people's files have none, and
there is no shift.) Few epochs: reward models overfit sooner than their accuracy shows. Bai et al.
2022, section 4.1; Stiennon et al. 2020 for the head.
"""

import random

import torch

from minicai.data import Pair, collate_pairs, pair_batches, read_pairs, row_lengths
from minicai.files import UserError, load_policy, warn_if_newer
from minicai.log import TrainingLog
from minicai.metrics import ece
from minicai.optim import optimizer_step, set_lr
from minicai.reward import RewardModel, bradley_terry_loss
from minicai.run import above_zero, artifact, main, name_part, parser, setup, share


def hold_back(pairs: list[Pair], rng: random.Random) -> tuple[list[Pair], list[Pair]]:
    """(held back, rest): by prompt, because the same two answers are compared more than once."""
    prompts = sorted({tuple(pair.chosen[: pair.prompt]) for pair in pairs})
    drawn = set(rng.sample(prompts, len(prompts) // 10))
    held, rest = [], []
    for pair in pairs:
        (held if tuple(pair.chosen[: pair.prompt]) in drawn else rest).append(pair)
    return held, rest


def pair_scores(model: RewardModel, batch: list[Pair], pad: int) -> torch.Tensor:
    """Scores of the chosen and the rejected answers, (2, B), from one pass over both."""
    ids, mask = collate_pairs(batch, pad, model.score.weight.device)
    return model(ids, row_lengths(mask)).view(2, -1)


@torch.no_grad()
def agreement(model: RewardModel, batches: list[list[Pair]], pad: int) -> dict:
    """How often the model prefers the chosen answer, and its calibration error."""
    scores = torch.cat([pair_scores(model, batch, pad) for batch in batches], dim=1)
    margins = scores[0] - scores[1]
    right, sure = (margins > 0).tolist(), torch.sigmoid(margins.abs()).tolist()
    return dict(accuracy=sum(right) / len(right), n=len(right), ece=ece(sure, right))


@torch.no_grad()
def mean_of_policy(model: RewardModel, batches: list[list[Pair]], pad: int) -> float:
    """The mean score of the answers that the policy wrote; 0 where there are none."""
    scores = []
    for batch in batches:
        mine = torch.tensor([pair.by_policy for pair in batch]).T  # (2, B)
        scores.append(pair_scores(model, batch, pad)[mine.to(model.score.weight.device)])
    scores = torch.cat(scores)
    return scores.mean().item() if len(scores) else 0.0


def options():
    p = parser(__doc__)
    add = p.add_argument
    add("--data", help="comparisons (default: OUT/preferences.jsonl)")
    add("--helpful-fraction", type=share, default=1 / 3, help="the person's share, at most (1/3)")
    add("--lr", dest="rm_lr", type=above_zero, help="peak learning rate of AdamW")
    add("--name", type=name_part, help="write OUT/rm-NAME.pt instead of OUT/rm.pt")
    return setup(p)


def train():
    args = options()
    path, name = args.data or args.out / "preferences.jsonl", artifact("rm", args)
    if not args.data:
        warn_if_newer(path, args.out / "sft.pt", remedy="run label.py again")
    gpt, tokenizer = load_policy(args.out / "sft.pt", args.device)
    model, rng = RewardModel(gpt).to(args.device), random.Random(f"rm {args.seed}")
    pairs = read_pairs([path], tokenizer, args.helpful_fraction, gpt.config.block_size, rng)
    held, pairs = hold_back(pairs, rng)
    if not held:
        raise UserError(f"{path} compares answers to fewer than ten prompts; add more")

    batches = [
        b for _ in range(args.rm_epochs) for b in pair_batches(pairs, args.batch_tokens, rng)
    ]
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=args.rm_lr, betas=(0.9, 0.95), weight_decay=0.0
    )
    log = TrainingLog(args.out / f"train_{name}.jsonl", len(batches))
    for step, batch in enumerate(batches):
        set_lr([optimizer], step, len(batches), warmup=0.1, cooldown=0.9)
        chosen, rejected = pair_scores(model, batch, tokenizer.pad)
        p = torch.tensor([pair.p for pair in batch], device=args.device)
        loss = bradley_terry_loss(chosen, rejected, p)
        optimizer_step(model, [optimizer], loss, clip=1.0)
        right = (torch.sign(chosen - rejected) * torch.sign(p - 0.5) + 1) / 2  # a tie counts half
        tokens = sum(len(pair.chosen) + len(pair.rejected) for pair in batch)
        log.write(tokens, loss=loss, accuracy=right.mean())

    pad, wide = tokenizer.pad, 4 * args.batch_tokens
    held_out = agreement(model, pair_batches(held, wide, rng), pad)
    some = rng.sample(pairs, min(500, len(pairs)))
    model.shift(-mean_of_policy(model, pair_batches(some, wide, rng), pad))
    model.save(args.out / f"{name}.pt", tokenizer, args, held_out=held_out)
    print(
        f"{args.out / name}.pt: {len(pairs)} comparisons; agrees with {held_out['accuracy']:.1%} of"
    )
    print(f"  {held_out['n']} held-back labels (calibration error {held_out['ece']:.3f})")


if __name__ == "__main__":
    main(train)
