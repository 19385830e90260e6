"""The time of an update of train_ppo.py, against TRL's GRPOTrainer.

    python -m bench.ppo [--out OUT] [--runs 3]   # after train_rm.py: a minute; nothing is written

TRL 1.16.0 has no PPO trainer. Its GRPOTrainer with the loss "bnpo" does the same as train_ppo.py
with --advantage grpo. It gets the same weights, prompts and reward model, as many answers, and as
many minibatches and epochs. An update leads from prompts to new weights, in three parts:

rollout    the policy answers the prompts
scoring    log-probabilities of policy and reference, the reward model's scores, advantages
learning   the optimizer's steps on the clipped loss

Not compared: gae, which TRL lacks, and the answers themselves. Each side samples its own, so their
lengths differ a little: see the row "tokens". TRL shuffles the answers and pads all to one length,
where train_ppo.py keeps prompts of similar length together. TRL's metrics are timed, and the rest
of its loop is not. Neither are the logs of train_ppo.py.

First, one step's gradients of both sides on the same answers and advantages have to agree to 1e-4
of their norm. There the weights are in float64, the log-probabilities in float32, and the policy
has moved since it answered, so that some ratios are clipped. The times are under autocast where the
machine has bfloat16. All runs start from the same weights, and the best one counts. Without TRL
only our own times are shown.
"""

import copy
from importlib.util import find_spec

import torch

import train_ppo
from bench.ppo_trl import gradient_distance, trl_update
from bench.shared import BETA, PPO_ADAMW, Clock, conditions
from minicai.files import UserError, load_policy
from minicai.reward import RewardModel
from minicai.rollout import Actor, add_advantages, score_answers
from minicai.run import main, parser, positive, setup
from minicai.world.content import World
from minicai.world.requests import STAGE2_SPLIT, Part

PARTS = ("rollout", "scoring", "learning")


def our_update(gpt, tokenizer, reward, part, kind: str, args) -> tuple[Clock, int, list]:
    """The seconds of an update, the tokens of its answers, and its prompts."""
    clock, actor = Clock(args.device), Actor(copy.deepcopy(gpt)).to(args.device)
    optimizer = torch.optim.AdamW(actor.parameters(), lr=args.ppo_lr, **PPO_ADAMW)
    group, size = train_ppo.sizes(kind, args.ppo_episodes)
    drawn = actor.gpt, tokenizer, part, args.ppo_episodes, group, args.seed, 0
    _, prompts, completions = clock("rollout", train_ppo.rollout, *drawn)
    batches = []
    for i in range(0, len(prompts), size):
        answers = prompts[i : i + size], completions[i : i + size]
        inputs = actor, gpt, reward, *answers, tokenizer.pad, train_ppo.END_PENALTY
        batches.append(clock("scoring", score_answers, *inputs))
    clock("scoring", add_advantages, batches, kind, BETA, group)
    for b in batches * train_ppo.EPOCHS:
        clock("learning", train_ppo.ppo_step, actor, optimizer, b, kind, BETA)
    return clock, sum(len(c.ids) for c in completions), prompts


def show(best: dict[str, tuple[Clock, int]]):
    """Print seconds by part and side, with their ratios to our grpo, and tokens."""
    print(f"{'seconds':9}" + "".join(f"{side:>15}" for side in best))
    for row in (*PARTS, "sum"):
        parts = PARTS if row == "sum" else (row,)
        seconds = {side: sum(clock[part] for part in parts) for side, (clock, _) in best.items()}
        cells = [f"{s:.2f} ({s / seconds['grpo']:.2f})" for s in seconds.values()]
        print(f"{row:9}" + "".join(f"{cell:>15}" for cell in cells))
    print(f"{'tokens':9}" + "".join(f"{tokens:>15,}" for _, tokens in best.values()))


def bench():
    p = parser(__doc__)
    p.add_argument("--runs", type=positive, default=3, help="the best one counts (default: 3)")
    args = setup(p, writes=False)
    gpt, tokenizer = load_policy(args.out / "sft.pt", args.device)
    reward, _, _ = RewardModel.load(args.out / "rm.pt", args.device)
    models = gpt, tokenizer, reward
    part, has_trl = Part(World.of(args), STAGE2_SPLIT), find_spec("trl")
    if has_trl:
        distance, name = gradient_distance(*models, part, args)
        if not distance < 1e-4:
            raise UserError(f"the gradients of {name} differ by {distance:.1e}; one is wrong")
        print(f"the gradients differ by {distance:.1e} of their norm at most")
    best = {}
    for _ in range(args.runs):
        run = {}
        for kind in "gae", "grpo":
            clock, tokens, prompts = our_update(*models, part, kind, args)
            run[kind] = clock, tokens
        if has_trl:
            run["TRL's grpo"] = trl_update(*models, prompts, args)
        for side, found in run.items():
            best[side] = min(found, best.get(side, found), key=lambda pair: pair[0].total())
    print(conditions(args.device))
    show(best)


if __name__ == "__main__":
    main(bench)
