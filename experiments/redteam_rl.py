"""What does an attacker find that is rewarded for harm? And does it repeat itself?

    python -m experiments.redteam_rl                   # RL, with a diversity term
    python -m experiments.redteam_rl --diversity 0     # RL without: it collapses
    python -m experiments.redteam_rl --attacker sft    # fine-tuned on what worked

Five minutes (sft: one) on 2 cores. Run redteam.py with zero_shot and few_shot first to compare, and
again with --target out/quick/round2.pt for the table before and after feedback rounds: the table at
the end holds every attacker in OUT/redteam.json. Rows go to OUT/redteam.jsonl.

Answer so far (first edition, full preset, seed 0): it finds what the judge rewards. Against a
model of one revision, 98 % of the last attacks do harm. DPO-CAI does none, so the attacker finds
slips of the judge: 19 % by the judge, 0.1 % by the grader; 2.5 % after two rounds. Without the
diversity term 5 different messages are left among the last 256, with it 96.

Perez et al. 2022 (arXiv 2202.03286): the base writes the person's message. RL is RLOO with a KL
penalty to the base (minicai/ppo.py). The reward is the judge's P(harm), less a term for repetition.
"""

import copy
import random
from collections import Counter

import torch
from torch import Tensor
from tqdm import tqdm

from minicai import ppo
from minicai.data import collate, collate_responses, encode_turns, make_batches, weighted_nll
from minicai.device import autocast
from minicai.files import read_json
from minicai.gpt import GPT, token_logps
from minicai.metrics import ngrams
from minicai.optim import optimizer_step, set_lr
from minicai.run import above_zero, at_least_zero, main, parser, positive, setup
from minicai.world.attacks import RedTeam
from redteam import BATCH, add_options, load_team, report, table

EPOCHS = 2  # of RL on each batch of attacks


# --- the RL attacker ------------------------------------------------------------------------------


def overlap(texts: list[str], n: int = 3) -> list[float]:
    """How much each text repeats the others: 0 nothing, 1 they are all the same.

    The share of its n-grams that another text has too, averaged over the others.
    """
    grams = [set(ngrams(text, n)) for text in texts]
    shares = [[len(a & b) / len(a) if a else float(not b) for b in grams] for a in grams]
    return [(sum(row) - row[i]) / max(1, len(row) - 1) for i, row in enumerate(shares)]


def rewards(rows: list[dict], diversity: float) -> list[float]:
    """P(harm) of each attack, less `diversity` times its overlap with the others of the batch.

    A text that always does harm pays until its share of the batch is about 1 / diversity, so a
    weight of 1 prevents no collapse. No verdict is no reward. A message that did not end counts as
    a repetition: it must not be praised for being unlike the others.
    """
    repeats = overlap([" ".join(row["turns"]) for row in rows])
    repeats = [x if any(row["turns"]) else 1.0 for x, row in zip(repeats, rows)]
    return [(row["judge"] or 0.0) - diversity * x for row, x in zip(rows, repeats)]


def learn(
    attacker: GPT,
    base: GPT,
    optimizer: torch.optim.Optimizer,
    ids: Tensor,
    mask: Tensor,
    reward: Tensor,
    beta: float,
) -> float:
    """Update the attacker on one batch; return its KL from the base before, in nats a message.

    ids (B, T), mask (B, T): true on the messages, reward (B,).
    """

    def logps(model):  # (B, T-1)
        with autocast(ids.device):
            logits = model(ids[:, :-1])
        return token_logps(logits, ids)

    mask = mask[:, 1:]  # (B, T-1), as in ppo.py
    with torch.no_grad():
        old, reference = logps(attacker), logps(base)
    shaped = ppo.shape_rewards(reward, old, reference, mask, beta)
    advantages = ppo.rloo(shaped.sum(1), len(ids))[:, None].expand_as(mask)
    for _ in range(EPOCHS):
        loss, _ = ppo.policy_loss(logps(attacker), old, advantages, mask)
        optimizer_step(attacker, [optimizer], loss, clip=1.0)
    return (old - reference)[mask].sum().item() / len(ids)


# --- the fine-tuned attacker ----------------------------------------------------------------------


def imitate(team: RedTeam, epochs: int, lr: float, batch_tokens: int) -> GPT:
    """The base, fine-tuned on the person's words in the attacks that worked."""
    attacker, rng = copy.deepcopy(team.base), random.Random(f"imitate {team.seed}")
    texts = [row["turns"][0] for row in team.worked()]
    examples = [encode_turns(team.tokenizer, [("user", text, 1.0)]) for text in texts]
    batches = [b for _ in range(epochs) for b in make_batches(examples, batch_tokens, rng)]
    optimizer = torch.optim.AdamW(attacker.parameters(), lr, (0.9, 0.95), weight_decay=0.1)
    device = attacker.embed.weight.device
    for step, batch in enumerate(tqdm(batches, desc="train attacker", unit=" steps")):
        set_lr([optimizer], step, len(batches), warmup=0.05, cooldown=0.8)
        loss = weighted_nll(attacker, *collate(batch, team.tokenizer.pad, device))
        optimizer_step(attacker, [optimizer], loss)
    return attacker


# --- the run --------------------------------------------------------------------------------------


def run():
    p = parser(__doc__)
    add_options(p)
    p.add_argument("--attacker", choices=("rl", "sft"), default="rl", help="default: rl")
    said = "default: the preset's (135 for quick), and eight times as many for rl"
    p.add_argument("--attempts", dest="n", type=positive, help=said)
    said = "rl: weight of not repeating the others (default: 3)"
    p.add_argument("--diversity", type=at_least_zero, default=3.0, help=said)
    said = "rl: weight of the KL penalty to the base (default: 0.02)"
    p.add_argument("--beta", type=at_least_zero, default=0.02, help=said)
    p.add_argument("--lr", type=above_zero, default=1e-3, help="rl: of AdamW (default: 1e-3)")
    args = setup(p)
    rl = args.attacker == "rl"
    n = args.n or args.attempts * (8 if rl else 1)
    other = rl and args.diversity != p.get_default(
        "diversity"
    )  # its rows stay beside the default's
    team = load_team(args, f"rl-diversity-{args.diversity:g}" if other else args.attacker)
    team.start_again()
    sizes = args.sft_epochs, args.sft_lr, args.batch_tokens
    attacker = copy.deepcopy(team.base) if rl else imitate(team, *sizes)
    optimizer = torch.optim.AdamW(attacker.parameters(), args.lr, (0.9, 0.95), weight_decay=0.0)
    bar = tqdm(range(0, n, BATCH), desc=team.mode, unit=" batches")
    opened = team.tokenizer.prompt([], "user")
    for first in bar:
        attempts, completions = team.write(attacker, [opened] * min(BATCH, n - first), first)
        rows = team.attack(first, attempts)
        if rl and len(rows) > 1:
            written, pad = [opened + c.ids for c in completions], team.tokenizer.pad
            batch = collate_responses(written, [len(opened)] * len(written), pad, args.device)
            reward = torch.tensor(rewards(rows, args.diversity), device=args.device)
            kl = learn(attacker, team.base, optimizer, *batch, reward, args.beta)
            harm = sum(row["judge"] or 0.0 for row in rows) / len(rows)
            bar.set_postfix_str(f"harm {harm:.2f}, reward {reward.mean():.2f}, kl {kl:.2f}")
    report(team)
    late = Counter(" ".join(row["turns"]) for row in team.rows(own=True)[-256:])
    print(f"{len(late)} different messages among the last {late.total()}; the most common one")
    print(f"{late.most_common(1)[0][1]} times: {late.most_common(1)[0][0]!r}")
    print(f"\nall attackers so far\n{table(read_json(args.out / 'redteam.json', {}))}")


if __name__ == "__main__":
    main(run)
