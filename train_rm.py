"""Stage 2: a Bradley-Terry reward model on the labels in preferences.jsonl.

    python train_rm.py
    python train_rm.py --helpful-fraction 0 --name harmless-only

reads   OUT/sft.pt (start), OUT/tokenizer.json, OUT/preferences.jsonl
writes  OUT/rm.pt (OUT/rm-NAME.pt with --name); log in OUT/train_rm.jsonl

One tenth of the prompts is held back to report accuracy and calibration. At the end all scores are shifted so that the
fine-tuned model's own answers, where they are compared, average 0. Few epochs: reward models overfit sooner than their accuracy shows. It is short, so a
killed run starts again. Bai et al. 2022, section 4; Stiennon et al. 2020 for the head.
"""

import random

import torch
from tqdm import tqdm

from minicai.common import (
    UserError,
    above_zero,
    append_jsonl,
    autocast,
    begin_log,
    file_hash,
    load_checkpoint,
    made_from,
    main,
    marks_of,
    name_part,
    parser,
    positive,
    read_jsonl,
    setup,
    share,
)
from minicai.data import FIELDS, Pair, collate_pairs, pair_batches, read_pairs, row_lengths
from minicai.metrics import ece
from minicai.optim import descend, set_lr
from minicai.reward import RewardModel, bradley_terry_loss
from minicai.tokenizer import Tokenizer


def hold_back(pairs: list[Pair], rng: random.Random) -> tuple[list[Pair], list[Pair]]:
    """The comparisons of a tenth of the prompts, and the others. By prompt, since the same two answers are judged more than once."""
    prompts = sorted({tuple(pair.chosen[: pair.prompt]) for pair in pairs})
    drawn = set(rng.sample(prompts, len(prompts) // 10))
    held, rest = [], []
    for pair in pairs:
        (held if tuple(pair.chosen[: pair.prompt]) in drawn else rest).append(pair)
    return held, rest


def train():
    p = parser(__doc__)
    p.add_argument("--data", help="comparisons (default: OUT/preferences.jsonl)")
    p.add_argument(
        "--helpful-fraction",
        type=share,
        default=1 / 3,
        help="at most this share of helpfulness comparisons (default: a third)",
    )
    p.add_argument("--epochs", dest="rm_epochs", type=positive, help="passes over the data")
    p.add_argument("--lr", dest="rm_lr", type=above_zero, help="peak learning rate of AdamW")
    p.add_argument("--name", type=name_part, help="write OUT/rm-NAME.pt, beside the main file")
    args = setup(p)
    path = args.data or args.out / "preferences.jsonl"
    if not args.data:
        made_from(
            path,
            marks_of(read_jsonl(path, fields=FIELDS), "policy"),
            args.out / "sft.pt",
            "run label.py again, or name it with --data if that is meant",
        )
    tokenizer = Tokenizer.load(args.out / "tokenizer.json")
    gpt, _ = load_checkpoint(args.out / "sft.pt", device=args.device)
    model, rng = RewardModel(gpt).to(args.device), random.Random(f"rm {args.seed}")
    pairs = read_pairs([path], tokenizer, args.helpful_fraction, gpt.config.block_size, rng)
    held, pairs = hold_back(pairs, rng)
    if not held:
        raise UserError(
            f"{path} holds comparisons of fewer than ten prompts; run label.py with more --comparisons"
        )

    def scores(batch):
        """(chosen, rejected), each (B,), from one pass over both."""
        ids, mask = collate_pairs(batch, tokenizer.pad, args.device)
        with autocast(args.device):
            return model(ids, row_lengths(mask)).chunk(2)

    batches = [
        b for _ in range(args.rm_epochs) for b in pair_batches(pairs, args.batch_tokens, rng)
    ]
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=args.rm_lr, betas=(0.9, 0.95), weight_decay=0.0
    )
    name = f"rm-{args.name}" if args.name else "rm"
    log, bar = args.out / "train_rm.jsonl", tqdm(batches, desc="train rm", unit=" steps")
    begin_log(log, name)
    tokens = 0
    for step, batch in enumerate(bar):
        set_lr([optimizer], step, len(batches), warmup=0.1, cooldown=0.9)
        loss = bradley_terry_loss(
            *scores(batch), torch.tensor([pair.p for pair in batch], device=args.device)
        )
        descend(model, [optimizer], loss, clip=1.0)
        append_jsonl(log, [dict(name=name, step=step + 1, loss=round(loss.item(), 4))])
        tokens += sum(len(pair.chosen) + len(pair.rejected) for pair in batch)
        bar.set_postfix_str(
            f"loss {loss.item():.3f}, {tokens / bar.format_dict['elapsed']:,.0f} tokens/s"
        )

    with torch.no_grad():
        margins = torch.cat(
            [a - b for a, b in map(scores, pair_batches(held, 4 * args.batch_tokens, rng))]
        )
        own = []
        for batch in pair_batches(
            rng.sample(pairs, min(500, len(pairs))), 4 * args.batch_tokens, rng
        ):
            by_policy = torch.tensor([pair.own for pair in batch], device=args.device)  # (B, 2)
            own.append(torch.stack(scores(batch), 1)[by_policy])
        own = torch.cat(own)
        if len(own):
            model.shift(-own.mean())
        else:
            print(
                f"{path} compares no answers of the fine-tuned model, so the scores are not shifted"
            )
    right, sure = (margins > 0).tolist(), torch.sigmoid(margins.abs()).tolist()
    held_out = dict(accuracy=sum(right) / len(right), n=len(right), ece=ece(sure, right))
    out = args.out / f"{name}.pt"
    made_by = dict(
        sft=file_hash(args.out / "sft.pt"),
        data=file_hash(path),
        helpful_fraction=args.helpful_fraction,
        epochs=args.rm_epochs,
        lr=args.rm_lr,
        seed=args.seed,
    )
    model.save(out, made_by=made_by, held_out=held_out)
    print(
        f"{out}: {len(pairs)} comparisons; on {len(held)} held back it agrees with the labels in {held_out['accuracy']:.1%} (ECE {held_out['ece']:.3f})"
    )


if __name__ == "__main__":
    main(train)
