"""Stage 2 with a reward model: PPO with a KL penalty to the fine-tuned model (RL-CAI).

    python train_ppo.py                                    # quick preset: about a minute
    python train_ppo.py --beta 0 --lr 3e-4 --name beta-0   # no penalty: the true reward falls while
                                                           # the proxy rises
    python train_ppo.py --advantage rloo --name rloo       # or grpo: groups of answers, no values

reads   OUT/sft.pt (start and reference), OUT/rm.pt, world/
writes  OUT/ppo.pt (OUT/ppo-NAME.pt); log in OUT/train_ppo.jsonl (OUT/train_ppo-NAME.jsonl)

An update has four steps:
  1. rollout     the policy answers prompts
  2. scoring     log-probabilities, values, and the reward model's score of every answer
  3. advantages  was an action better than expected? (gae, rloo or grpo)
  4. ppo_step    a few epochs on the clipped loss
The arithmetic is in minicai/ppo.py. Three fixed prompts are answered now and then, because most
failures show in the text first. "true" in the log is the world's grade of the answers: it is there
to be compared with "proxy", the reward model's score, and trains nothing.

Departures: minibatches are fixed and hold prompts of similar length. rloo takes PPO's clipped loss
for two epochs, where Ahmadian et al. take one step of REINFORCE. grpo averages over all tokens,
where Shao et al. first average over each answer. Left out: a separate value network, reward
whitening.
"""

import copy
import random

import torch
from tqdm import tqdm

from minicai import ppo
from minicai.answer import answer, encode_prompt, sample
from minicai.files import check_tokenizer, load_policy, save_checkpoint, warn_if_newer
from minicai.gpt import token_logps
from minicai.log import TrainingLog
from minicai.metrics import distinct_n
from minicai.optim import optimizer_step, set_lr
from minicai.reward import RewardModel
from minicai.rollout import Actor, add_advantages, complete, score_answers, summarise
from minicai.run import (
    above_zero,
    artifact,
    at_least_zero,
    main,
    name_part,
    parser,
    positive,
    setup,
)
from minicai.world.content import World
from minicai.world.grader import Grader, gold
from minicai.world.requests import MIX, STAGE2_SPLIT, Part, draw_prompts

# --- change me ------------------------------------------------------------------------------------
GROUP = 4  # answers per prompt with rloo and grpo
EPOCHS = 2  # passes over the answers of an update
MINIBATCHES = 8  # optimizer steps per epoch, or fewer where groups would not fit
CLIP = 0.2  # of ratios and of values
VALUE_COEF = 0.1  # weight of the value loss
ENTROPY_COEF = 0.0  # weight of an entropy bonus
END_PENALTY = -5.0  # score of an answer that did not end, or is empty: below that of others
TARGET_KL = None  # nats per answer: beta adapts until answers stay this near (None: beta is fixed)
# No names: the reward model cannot know what the policy has read, and would teach it to deny all.
PROMPTS = {kind: share for kind, share in MIX.items() if kind[0] != "fact"}
SHOWN = ("harmful", "legitimate", "ambiguous")  # one of each is answered now and then
# --------------------------------------------------------------------------------------------------


def rollout(gpt, tokenizer, part, n: int, group: int, seed: int, update: int):
    """n answers, `group` to each prompt: (requests, prompts, completions at temperature 1)."""
    drawn = draw_prompts(part, n // group, random.Random(f"ppo {seed} {update}"), PROMPTS)
    requests = [request for request in drawn for _ in range(group)]
    requests.sort(key=lambda r: sum(map(len, r.turns)))  # stable, so groups stay together
    prompts = [encode_prompt(tokenizer, list(r.turns), gpt.config.block_size) for r in requests]
    return requests, prompts, sample(gpt, tokenizer, prompts, 1.0, seed * 1_000_003 + update)


def ppo_step(actor, optimizer, b: dict, kind: str, beta: float) -> dict[str, torch.Tensor]:
    """One optimizer step on one batch of answers."""
    logits, values = actor(b["ids"])
    logps, mask = token_logps(logits, b["ids"]), b["mask"]
    loss, stats = ppo.policy_loss(logps, b["logps"], b["advantages"], mask, CLIP)
    if kind == "gae":
        loss = loss + VALUE_COEF * ppo.value_loss(values, b["values"], b["returns"], mask, CLIP)
    if kind == "grpo":  # its KL penalty is in the loss, as k3
        loss = loss + beta * ppo.masked_mean(ppo.kl_estimates(logps, b["ref_logps"])[2], mask)
    with torch.set_grad_enabled(ENTROPY_COEF > 0):
        entropy = ppo.entropy(logits, mask)
    optimizer_step(actor, [optimizer], loss - ENTROPY_COEF * entropy, clip=1.0)
    return dict(entropy=entropy.detach(), **stats)


def options():
    p = parser(__doc__)
    add = p.add_argument
    add("--reward", help="reward model (default: OUT/rm.pt)")
    add("--advantage", choices=("gae", "rloo", "grpo"), default="gae", help="(default: gae)")
    add("--beta", type=at_least_zero, default=0.1, help="weight of the KL penalty (default: 0.1)")
    add("--updates", dest="ppo_updates", type=positive, help="rounds of sampling and learning")
    add("--lr", dest="ppo_lr", type=above_zero, help="peak learning rate of AdamW")
    add("--name", type=name_part, help="write OUT/ppo-NAME.pt instead of OUT/ppo.pt")
    return setup(p)


def load(args):
    """The policy, its tokenizer, and the reward model."""
    gpt, tokenizer = load_policy(args.out / "sft.pt", args.device)
    path = args.reward or args.out / "rm.pt"
    if not args.reward:
        warn_if_newer(path, args.out / "sft.pt", remedy="run train_rm.py again")
    reward, own, _ = RewardModel.load(path, args.device)
    check_tokenizer(path, own, tokenizer)
    return gpt, tokenizer, reward


def sizes(kind: str, episodes: int) -> tuple[int, int]:
    """Answers per prompt, and answers in a minibatch: whole groups."""
    group = 1 if kind == "gae" else GROUP
    return group, max(1, episodes // MINIBATCHES // group) * group


def show(update: int, gpt, tokenizer, part, seed: int):
    """Print the greedy answers to three fixed prompts."""
    rng = random.Random(f"shown {seed}")
    requests = [part.draw(rng, type) for type in SHOWN]
    texts = answer(gpt, tokenizer, [list(r.turns) for r in requests])
    for request, text in zip(requests, texts):
        tqdm.write(f"  [{update}] {request.turns[-1]}\n      {text}")


def true_reward(grader, tokenizer, requests, completions) -> dict[str, float]:
    """The world's mean grade of the answers, and their distinct bigrams. Only the log sees it."""
    texts = [tokenizer.decode(c.ids).strip() if complete(c) else "" for c in completions]
    grades = [gold(r, grader.grade(r, text)) for r, text in zip(requests, texts)]
    return dict(true=sum(grades) / len(grades), distinct_2=distinct_n(texts, 2))


def train():
    args = options()
    kind, name, world = args.advantage, artifact("ppo", args), World.of(args)
    gpt, tokenizer, reward = load(args)
    reference, actor = copy.deepcopy(gpt), Actor(gpt).to(args.device)
    optimizer = torch.optim.AdamW(
        actor.parameters(), lr=args.ppo_lr, betas=(0.9, 0.95), eps=1e-5, weight_decay=0.0
    )
    control = ppo.AdaptiveKL(args.beta, TARGET_KL or 1.0)
    part, grader = Part(world, STAGE2_SPLIT), Grader(world)
    group, size = sizes(kind, args.ppo_episodes)
    log = TrainingLog(args.out / f"train_{name}.jsonl", args.ppo_updates, unit="updates")

    for update in range(args.ppo_updates):
        if update % max(1, args.ppo_updates // 4) == 0:
            show(update, gpt, tokenizer, part, args.seed)
        set_lr([optimizer], update, args.ppo_updates, warmup=0.1, cooldown=0.5)

        requests, prompts, completions = rollout(
            gpt, tokenizer, part, args.ppo_episodes, group, args.seed, update
        )
        batches = []
        for i in range(0, len(prompts), size):
            answers = prompts[i : i + size], completions[i : i + size]
            scored = score_answers(actor, reference, reward, *answers, tokenizer.pad, END_PENALTY)
            batches.append(scored)
        add_advantages(batches, kind, control.beta, group)
        steps = []
        for epoch in range(EPOCHS):
            order = random.Random(f"{args.seed} {update} {epoch}").sample(batches, len(batches))
            steps += [ppo_step(actor, optimizer, b, kind, control.beta) for b in order]

        row = summarise(batches, completions, with_values=kind == "gae")
        if update == 0:  # theory says so, up to rounding
            assert abs(row["kl"]) < 0.05, "the policy is not its reference before the first update"
            assert row["mismatch"] < 0.02, "sampler and scorer disagree about log-probabilities"
            assert abs(steps[0]["ratio"] - 1) < 0.01, "the first ratio is not 1"
        means = {key: torch.stack([step[key] for step in steps]).mean() for key in steps[0]}
        row |= true_reward(grader, tokenizer, requests, completions)
        log.write(**row, beta=control.beta, **means)
        if TARGET_KL:
            control.update(row["kl"])
    save_checkpoint(args.out / f"{name}.pt", gpt, tokenizer, args)
    print(f"{args.out / name}.pt: {args.ppo_updates} updates of {args.ppo_episodes} answers")


if __name__ == "__main__":
    main(train)
