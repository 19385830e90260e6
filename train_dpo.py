"""Stage 2 training without a reward model: DPO, or a sibling of it, on the labels in preferences.jsonl (DPO-CAI).

    python train_dpo.py
    python train_dpo.py --loss ipo --name ipo
    python train_dpo.py --helpful-fraction 0 --name harmless-only     # what the helpfulness half is worth
    python train_dpo.py --round 1                      # feedback: from OUT/sft-round1.pt, with the round's comparisons too

reads   OUT/sft.pt (start and reference), OUT/tokenizer.json, OUT/preferences.jsonl
writes  OUT/dpo.pt (OUT/dpo-NAME.pt with --name, OUT/roundN.pt); log in OUT/train_dpo.jsonl

The losses are in minicai/dpo.py. The reference's log-probabilities are computed once, before training. It is short, so a
killed run starts again. Rafailov et al. 2023 (arXiv 2305.18290). Left out: weight decay, several learning rates.
"""

import inspect
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
    save_checkpoint,
    setup,
    share,
    stage_before,
)
from minicai.data import FIELDS, collate_pairs, pair_batches, read_pairs
from minicai.dpo import LOSSES, PER_TOKEN, response_logps
from minicai.optim import descend, set_lr
from minicai.tokenizer import Tokenizer


def options():
    p = parser(__doc__)
    p.add_argument(
        "--loss", choices=LOSSES, default="dpo", help="which of minicai/dpo.py (default: dpo)"
    )
    p.add_argument(
        "--beta",
        type=above_zero,
        help="strength of the pull to the reference, or what the loss makes of it "
        "(default: 1; the loss function's own for ipo, simpo and orpo)",
    )
    p.add_argument("--data", help="comparisons (default: OUT/preferences.jsonl)")
    p.add_argument(
        "--helpful-fraction",
        type=share,
        default=1 / 3,
        help="at most this share of helpfulness comparisons (default: a third)",
    )
    p.add_argument("--epochs", dest="dpo_epochs", type=positive, help="passes over the data")
    p.add_argument("--lr", dest="dpo_lr", type=above_zero, help="peak learning rate of AdamW")
    p.add_argument("--name", type=name_part, help="write OUT/dpo-NAME.pt, beside the main file")
    p.add_argument("--round", type=positive, help="the preference half of this feedback round")
    args = setup(p)
    if args.round and args.name:
        raise UserError(
            "--name and --round exclude each other: a round's checkpoint has its own name"
        )
    return args


def train():
    args = options()
    start, name = args.out / "sft.pt", f"dpo-{args.name}" if args.name else "dpo"
    paths = [args.data or args.out / "preferences.jsonl"]
    if args.round:
        start, name = args.out / f"sft-round{args.round}.pt", f"round{args.round}"
        paths += [args.out / f"preferences-round{n}.jsonl" for n in range(1, args.round + 1)]
    if not args.data:
        made_from(
            paths[0],
            marks_of(read_jsonl(paths[0], fields=FIELDS), "policy"),
            args.out / "sft.pt",
            "run label.py again, or name it with --data if that is meant",
        )
    tokenizer = Tokenizer.load(args.out / "tokenizer.json")
    policy, extra = load_checkpoint(start, device=args.device)
    if args.round:
        before, again = (
            stage_before(args.out, args.round),
            f"run train_sft.py --round {args.round} again",
        )
        made_from(start, {extra.get("made_by", {}).get("start")}, before, again)
    pairs = read_pairs(
        paths,
        tokenizer,
        args.helpful_fraction,
        policy.config.block_size,
        random.Random(f"dpo {args.seed}"),
    )
    loss_function, per_token = LOSSES[args.loss], args.loss in PER_TOKEN
    if (
        args.beta is None
    ):  # where a loss takes means, on another scale than sums, beta is another thing too
        args.beta = (
            inspect.signature(loss_function).parameters["beta"].default if per_token else 1.0
        )

    def logps(batch):
        """(chosen, rejected), each (B,), from one pass over both."""
        ids, mask = collate_pairs(batch, tokenizer.pad, args.device)
        with autocast(args.device):
            return response_logps(policy, ids, mask, per_token).chunk(2)

    reference = torch.zeros(len(pairs), 2)
    with torch.no_grad():
        for batch in pair_batches(pairs, 4 * args.batch_tokens, random.Random(0)):
            reference[[pair.number for pair in batch]] = torch.stack(logps(batch), dim=1).cpu()

    rng = random.Random(f"dpo batches {args.seed}")
    batches = [
        b for _ in range(args.dpo_epochs) for b in pair_batches(pairs, args.batch_tokens, rng)
    ]
    optimizer = torch.optim.AdamW(
        policy.parameters(), lr=args.dpo_lr, betas=(0.9, 0.95), weight_decay=0.0
    )
    log, bar = args.out / "train_dpo.jsonl", tqdm(batches, desc=f"train {args.loss}", unit=" steps")
    begin_log(log, name)
    tokens = 0
    for step, batch in enumerate(bar):
        set_lr([optimizer], step, len(batches), warmup=0.1, cooldown=0.9)
        chosen, rejected = logps(batch)
        ref_chosen, ref_rejected = (
            reference[[pair.number for pair in batch]].to(args.device).unbind(1)
        )
        # Equal but for the rounding of batches of other shapes, which grows with the tokens that are summed.
        room = 0.02 if per_token else 0.5
        assert step or (chosen - ref_chosen).abs().mean() < room, (
            "the policy is not its reference before the first step"
        )
        label = torch.tensor([pair.p for pair in batch], device=args.device)
        loss, stats = loss_function(chosen, rejected, ref_chosen, ref_rejected, args.beta, label)
        descend(policy, [optimizer], loss, clip=1.0)
        row = dict(
            name=name,
            step=step + 1,
            loss=loss.item(),
            chosen_logps=chosen.mean().item(),
            rejected_logps=rejected.mean().item(),
            **{k: v.item() for k, v in stats.items()},
        )
        append_jsonl(log, [{k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()}])
        tokens += sum(len(pair.chosen) + len(pair.rejected) for pair in batch)
        speed = tokens / bar.format_dict["elapsed"]
        bar.set_postfix_str(
            f"loss {row['loss']:.3f}, accuracy {row['accuracy']:.2f}, {speed:,.0f} tokens/s"
        )
    out = args.out / f"{name}.pt"
    made_by = dict(
        start=file_hash(start),
        data=file_hash(*paths),
        loss=args.loss,
        beta=args.beta,
        helpful_fraction=args.helpful_fraction,
        epochs=args.dpo_epochs,
        lr=args.dpo_lr,
        seed=args.seed,
    )
    save_checkpoint(out, policy, "policy", made_by=made_by)
    print(f"{out}: {len(pairs)} comparisons, {len(batches)} steps")


if __name__ == "__main__":
    main(train)
