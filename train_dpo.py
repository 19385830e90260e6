"""Stage 2 without a reward model: DPO, or a sibling of it, on preferences.jsonl (DPO-CAI).

    python train_dpo.py                                            # quick preset: half a minute
    python train_dpo.py --loss ipo                                 # any loss of minicai/dpo.py
    python train_dpo.py --helpful-fraction 0 --name harmless-only  # without the person's labels
    python train_dpo.py --data out/hh.jsonl.gz --name hh           # files of HH-RLHF, or of TRL
    python train_dpo.py --round 1       # feedback: from OUT/sft-round1.pt, with its comparisons too

reads   OUT/sft.pt (start and reference), OUT/preferences.jsonl; for a round OUT/sft-roundN.pt and
        OUT/preferences-roundN.jsonl of all rounds so far. minicai/preferences.py has the formats
writes  OUT/dpo.pt (OUT/dpo-NAME.pt, OUT/roundN.pt); log in OUT/train_dpo.jsonl

Rafailov et al. 2023 (arXiv 2305.18290). Left out: weight decay, several learning rates.
"""

import math
import random

import torch
from tqdm import tqdm

from minicai.data import Pair, collate_pairs, pair_batches, read_pairs
from minicai.dpo import LOSSES, PER_TOKEN, response_logps
from minicai.files import load_policy, save_checkpoint, warn_if_newer
from minicai.gpt import GPT
from minicai.log import TrainingLog
from minicai.optim import optimizer_step, set_lr
from minicai.run import above_zero, artifact, main, name_part, parser, positive, setup, share


def pair_logps(policy: GPT, batch: list[Pair], pad: int, per_token: bool) -> torch.Tensor:
    """log pi of the chosen and the rejected answers, (2, B), from one pass over both."""
    ids, mask = collate_pairs(batch, pad, policy.embed.weight.device)
    return response_logps(policy, ids, mask, per_token).view(2, -1)


@torch.no_grad()
def reference_logps(policy: GPT, pairs: list[Pair], tokens: int, pad: int, per_token: bool):
    """log pi of both answers of all pairs under the reference, (2, N). Call it before the first
    step: then the policy still is the reference."""
    reference = torch.zeros(2, len(pairs), device=policy.embed.weight.device)
    batches = pair_batches(pairs, tokens, random.Random(0))
    for batch in tqdm(batches, desc="reference", unit=" batches"):
        indices = [pair.index for pair in batch]
        reference[:, indices] = pair_logps(policy, batch, pad, per_token)
    return reference


def options():
    p = parser(__doc__)
    add = p.add_argument
    add("--loss", choices=LOSSES, default="dpo", help="of minicai/dpo.py (default: dpo)")
    add("--beta", type=above_zero, help="of the loss (default: the one in its signature)")
    add("--data", help="comparisons (default: OUT/preferences.jsonl)")
    add("--helpful-fraction", type=share, default=1 / 3, help="the person's share, at most (1/3)")
    add("--epochs", type=positive, default=1, help="passes over the data (default: 1)")
    add("--lr", dest="dpo_lr", type=above_zero, help="peak learning rate of AdamW")
    add("--name", type=name_part, help="write OUT/dpo-NAME.pt (default: the loss, if not dpo)")
    add("--round", type=positive, help="the preference half of this feedback round")
    args = setup(p)
    if args.loss != "dpo" and not args.round:
        args.name = args.name or args.loss
    name = artifact("dpo", args)
    return args, f"round{args.round}" if args.round else name


def train():
    args, name = options()
    start = args.out / (f"sft-round{args.round}.pt" if args.round else "sft.pt")
    files = [args.data or args.out / "preferences.jsonl"]
    files += [args.out / f"preferences-round{n}.jsonl" for n in range(1, (args.round or 0) + 1)]
    if args.round or not args.data:
        warn_if_newer(files[-1], start, remedy="run label.py again")
    policy, tokenizer = load_policy(start, args.device)
    block_size, rng = policy.config.block_size, random.Random(f"dpo {args.seed}")
    pairs = read_pairs(files, tokenizer, args.helpful_fraction, block_size, rng)
    loss_function, per_token = LOSSES[args.loss], args.loss in PER_TOKEN
    beta = {} if args.beta is None else dict(beta=args.beta)

    reference = reference_logps(policy, pairs, 4 * args.batch_tokens, tokenizer.pad, per_token)
    rng = random.Random(f"dpo batches {args.seed}")
    batches = [b for _ in range(args.epochs) for b in pair_batches(pairs, args.batch_tokens, rng)]
    optimizer = torch.optim.AdamW(
        policy.parameters(), lr=args.dpo_lr, betas=(0.9, 0.95), weight_decay=0.0
    )
    log = TrainingLog(args.out / f"train_{name}.jsonl", len(batches))
    for step, batch in enumerate(batches):
        set_lr([optimizer], step, len(batches), warmup=0.1, cooldown=0.9)
        chosen, rejected = pair_logps(policy, batch, tokenizer.pad, per_token)
        ref_chosen, ref_rejected = reference[:, [pair.index for pair in batch]]
        p = torch.tensor([pair.p for pair in batch], device=args.device)
        loss, stats = loss_function(chosen, rejected, ref_chosen, ref_rejected, p=p, **beta)
        if step == 0 and args.loss == "dpo":  # the policy is its reference, up to rounding
            assert abs(loss.item() - math.log(2)) < 0.1, (
                f"the first loss is {loss.item()}, not ln 2"
            )
        optimizer_step(policy, [optimizer], loss, clip=1.0)
        logps = dict(chosen_logps=chosen.mean(), rejected_logps=rejected.mean())
        tokens = sum(len(pair.chosen) + len(pair.rejected) for pair in batch)
        log.write(tokens, loss=loss, **stats, **logps)
    save_checkpoint(args.out / f"{name}.pt", policy, tokenizer, args)
    print(f"{args.out / name}.pt: {len(pairs)} comparisons, {len(batches)} steps")


if __name__ == "__main__":
    main(train)
