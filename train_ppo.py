"""Stage 2 with a reward model: PPO with a KL penalty to the fine-tuned model (RL-CAI).

    python train_ppo.py
    python train_ppo.py --beta 0 --lr 3e-4 --name beta-0   # no penalty: watch the true reward fall while the proxy rises
    python train_ppo.py --advantage rloo --name rloo       # or grpo: groups of answers instead of a value function

reads   OUT/sft.pt (start and reference), OUT/rm.pt, OUT/tokenizer.json, world/ (prompts as in label.py, but for names)
writes  OUT/ppo.pt (OUT/ppo-NAME.pt with --name); log in OUT/train_ppo.jsonl (OUT/train_ppo-NAME.jsonl);
        OUT/train_ppo.state.pt until it is done

Each update: sample an answer to every prompt, score it, and climb for a few epochs; the arithmetic is in minicai/ppo.py. Three fixed
prompts are answered now and then, because most failures show in the text first. "true" in the log is the world's own grade: it is
written down to be compared with the proxy and trains nothing. A killed run goes on from its last save.

Departures: the minibatches are fixed and hold prompts of like length, where PPO redraws them in each epoch; rloo climbs PPO's
clipped loss for two epochs, where Ahmadian et al. take one step of REINFORCE; grpo averages over all tokens, where Shao et al.
average over each answer first. Left out: a separate value network, reward whitening.
"""

import copy
import random
import time

import torch
from tqdm import tqdm

from minicai import ppo
from minicai.common import (
    UserError,
    above_zero,
    append_jsonl,
    at_least_zero,
    autocast,
    file_hash,
    finite,
    load_checkpoint,
    load_state,
    made_from,
    main,
    name_part,
    parser,
    positive,
    read_jsonl,
    rewrite_jsonl,
    same_vocabulary,
    save_checkpoint,
    save_state,
    setup,
    world_files,
)
from minicai.critique import MAX_NEW_TOKENS, answer
from minicai.data import collate_responses, row_lengths
from minicai.gpt import token_logps
from minicai.metrics import distinct_n
from minicai.optim import descend, set_lr
from minicai.reward import RewardModel
from minicai.sampler import generate
from minicai.tokenizer import Tokenizer, talk
from minicai.world.content import World
from minicai.world.grader import Grader, gold
from minicai.world.requests import MIX, UNTRAINED, Part, draw_prompts

# No names: a reward model reads the answer and not the policy's memory, so what it teaches about names is to deny them all.
PROMPTS = {kind: share for kind, share in MIX.items() if kind[0] != "fact"}
SHOWN = ("harmful", "legitimate", "ambiguous")
BATCHES = 8  # about as many steps of the optimizer per epoch over the answers of one update
SAVE_SECONDS = 60


class Actor(torch.nn.Module):
    """The policy with a value head on its last hidden states. The head starts at zero, so that V = 0 everywhere."""

    def __init__(self, gpt):
        super().__init__()
        self.gpt, self.value = gpt, torch.nn.Linear(gpt.config.n_embd, 1)
        torch.nn.init.zeros_(self.value.weight)
        torch.nn.init.zeros_(self.value.bias)

    def forward(self, ids):
        """ids (B, T) -> logits (B, T-1, V) that predict ids[:, 1:], and values (B, T-1) of the states they are taken in."""
        hidden = self.gpt.hidden(ids[:, :-1])
        with torch.autocast(ids.device.type, enabled=False):  # a value in bfloat16 has three digits
            values = self.value(hidden.float()).squeeze(-1)
        return self.gpt.head(hidden).float(), values


def complete(completion) -> bool:
    """Whether an answer ended, and said something before. By the stop reason: the last of its ids may well be an end token."""
    return completion.stop_reason == "stop" and len(completion.ids) > 1


def roll_out(gpt, tokenizer, part, args, update) -> tuple[list, list[list[int]], list]:
    """Requests, each --group times, their prompts, and an answer to each: pure samples, so that the log-probabilities are of
    the distribution that was sampled."""
    rng = random.Random(f"ppo {args.seed} {update}")
    requests = [
        r
        for r in draw_prompts(part, args.ppo_episodes // args.group, rng, PROMPTS)
        for _ in range(args.group)
    ]
    requests.sort(
        key=lambda r: sum(map(len, r.turns))
    )  # like lengths side by side, and groups stay together
    room = (
        gpt.config.block_size - MAX_NEW_TOKENS
    )  # a longer prompt loses its oldest words, as in `answer`
    prompts = [tokenizer.prompt(talk(*r.turns))[-room:] for r in requests]
    with autocast(args.device):
        completions = generate(
            gpt,
            prompts,
            MAX_NEW_TOKENS,
            1.0,
            stop_ids=[tokenizer.end],
            seed=args.seed * 1_000_003 + update,
        )
    return requests, prompts, completions


def score(actor, reference, reward, prompts, completions, beta, args, pad) -> dict:
    """What learning needs of one batch of answers, from one pass each of policy, reference and reward model."""
    rows = [prompt + c.ids for prompt, c in zip(prompts, completions)]
    ids, mask = collate_responses(rows, [len(prompt) for prompt in prompts], pad, args.device)
    with torch.no_grad(), autocast(args.device):
        logits, values = actor(ids)
        logps, ref_logps = token_logps(logits, ids), token_logps(reference(ids[:, :-1]), ids)
        scores = reward(ids, row_lengths(mask))
    mask = mask[:, 1:]  # (B, T-1), as in ppo.py: column t is about ids[t+1]
    ended = torch.tensor([complete(c) for c in completions], device=args.device)
    scores = torch.where(ended, scores, args.end_penalty)
    rewards = ppo.shape_rewards(scores, logps, ref_logps, mask, beta)
    if args.advantage == "gae":
        advantages, returns = ppo.gae(rewards, values, mask)
    else:  # grpo compares the scores alone: there the KL stands in the loss
        compared = (
            ppo.rloo(rewards.sum(1), args.group)
            if args.advantage == "rloo"
            else ppo.grpo(scores, args.group)
        )
        advantages, returns = compared[:, None].expand_as(mask).masked_fill(~mask, 0.0), rewards
    k1, _, k3 = (k.masked_fill(~mask, 0.0) for k in ppo.kl_estimates(logps, ref_logps))
    recorded = torch.tensor([x for c in completions for x in c.logprobs], device=args.device)
    return dict(
        ids=ids,
        mask=mask,
        logps=logps,
        ref_logps=ref_logps,
        values=values,
        advantages=advantages,
        returns=returns,
        scores=scores,
        kl=k1.sum(1),
        k3=k3.sum(1),
        mismatch=(recorded - logps[mask]).abs().mean(),
    )


def whiten_together(batches: list[dict]):
    """Advantages whitened over all answers of the update, not batch by batch."""
    every = torch.cat([b["advantages"][b["mask"]] for b in batches])
    white = ppo.whiten(every, torch.ones_like(every, dtype=torch.bool))
    for b, values in zip(batches, white.split([int(b["mask"].sum()) for b in batches])):
        b["advantages"][b["mask"]] = values


def climb(actor, optimizer, batch, beta, args) -> dict[str, torch.Tensor]:
    """One step of the optimizer on one scored batch."""
    ids, mask = batch["ids"], batch["mask"]
    with autocast(args.device):
        logits, values = actor(ids)
    logps = token_logps(logits, ids)
    loss, stats = ppo.policy_loss(logps, batch["logps"], batch["advantages"], mask, args.clip)
    with torch.set_grad_enabled(
        args.entropy_coef > 0
    ):  # a gradient through all logits, for nothing without the bonus
        spread = ppo.entropy(logits, mask)
    if args.advantage == "gae":
        loss = loss + args.value_coef * ppo.value_loss(
            values, batch["values"], batch["returns"], mask, args.clip
        )
    if args.advantage == "grpo":
        loss = loss + beta * ppo.masked_mean(ppo.kl_estimates(logps, batch["ref_logps"])[2], mask)
    descend(actor, [optimizer], loss - args.entropy_coef * spread, clip=1.0)
    return dict(entropy=spread.detach(), **stats)


def measured(batches: list[dict], steps: list[dict], completions: list, args) -> dict[str, float]:
    """The row of the log: means over the answers of an update and over the steps that learned from them."""
    row = {
        name: torch.cat([b[key] for b in batches]).mean().item()
        for name, key in (("proxy", "scores"), ("kl", "kl"), ("k3", "k3"))
    }
    row |= dict(
        mismatch=max(b["mismatch"].item() for b in batches),
        length=sum(len(c.ids) for c in completions) / len(completions),
        unfinished=1 - sum(map(complete, completions)) / len(completions),
    )
    row |= {key: torch.stack([step[key] for step in steps]).mean().item() for key in steps[0]}
    if args.advantage == "gae":  # nothing else trains the value head
        values, returns = (
            torch.cat([b[key][b["mask"]] for b in batches]) for key in ("values", "returns")
        )
        row["explained_variance"] = ppo.explained_variance(
            values, returns, torch.ones_like(values)
        ).item()
    return row


def options():
    p = parser(__doc__)
    p.add_argument("--reward", help="reward model (default: OUT/rm.pt)")
    p.add_argument(
        "--advantage",
        choices=("gae", "rloo", "grpo"),
        default="gae",
        help="what an action is compared with (default: gae)",
    )
    p.add_argument(
        "--beta",
        type=at_least_zero,
        default=0.1,
        help="weight of the KL penalty per nat (default: 0.1)",
    )
    p.add_argument(
        "--target-kl",
        type=above_zero,
        help="adapt beta so that answers stay this many nats away (default: beta is fixed)",
    )
    p.add_argument(
        "--updates", dest="ppo_updates", type=positive, help="rounds of sampling and learning"
    )
    p.add_argument("--episodes", dest="ppo_episodes", type=positive, help="answers per update")
    p.add_argument(
        "--group",
        type=positive,
        default=4,
        help="answers per prompt with rloo and grpo (default: 4)",
    )
    p.add_argument(
        "--epochs",
        dest="ppo_epochs",
        type=positive,
        default=2,
        help="passes over the answers (default: 2)",
    )
    p.add_argument("--lr", dest="ppo_lr", type=above_zero, help="peak learning rate of AdamW")
    p.add_argument(
        "--clip", type=above_zero, default=0.2, help="of ratios and of values (default: 0.2)"
    )
    p.add_argument(
        "--value-coef",
        type=at_least_zero,
        default=0.1,
        help="weight of the value loss (default: 0.1)",
    )
    p.add_argument(
        "--value-rate",
        type=above_zero,
        default=1.0,
        help="how many times as fast the value head learns as the policy (default: 1)",
    )
    p.add_argument(
        "--entropy-coef",
        type=at_least_zero,
        default=0.0,
        help="weight of an entropy bonus (default: 0)",
    )
    p.add_argument(
        "--end-penalty",
        type=finite,
        default=-1.0,
        help="score of an answer that did not end, or is empty (default: -1)",
    )
    p.add_argument("--name", type=name_part, help="write OUT/ppo-NAME.pt, beside the main file")
    args = setup(p)
    if args.advantage == "gae":
        args.group = 1
    elif args.ppo_episodes % args.group or args.group == 1:
        raise UserError(
            f"--episodes {args.ppo_episodes} does not divide into groups of --group {args.group}, two or more each"
        )
    if args.target_kl and args.beta == 0:
        raise UserError("--target-kl scales beta, and --beta 0 stays 0; give a --beta above 0")
    return args


def resume(state_path, log, actor, optimizer, control, made_by: dict) -> int:
    """The update to begin with: where a killed run of these settings was, or 0."""
    if not state_path.exists():
        log.unlink(missing_ok=True)
        return 0
    state = load_state(state_path, actor, [optimizer], made_by)
    control.beta = state["beta"]
    append_jsonl(log, [])  # cuts off a line that a killed run left unfinished
    rewrite_jsonl(
        log,
        [row for row in read_jsonl(log, required=("update",)) if row["update"] <= state["update"]],
    )
    print(f"going on from update {state['update']}")
    return state["update"]


def train():
    args = options()
    world, tokenizer = World(args.world), Tokenizer.load(args.out / "tokenizer.json")
    sft = args.out / "sft.pt"
    gpt, _ = load_checkpoint(sft, device=args.device)
    reward_path = args.reward or args.out / "rm.pt"
    reward, extra = RewardModel.load(reward_path, args.device)
    if not args.reward:
        made_from(
            reward_path,
            {extra["made_by"]["sft"]},
            sft,
            "run train_rm.py again, or name it with --reward if that is meant",
        )
    same_vocabulary(reward_path, reward.gpt, tokenizer.vocab_size, args.out)
    reference = copy.deepcopy(gpt)
    actor, grader, part = Actor(gpt).to(args.device), Grader(world), Part(world, UNTRAINED)
    groups = [
        dict(params=gpt.parameters()),
        dict(params=actor.value.parameters(), lr=args.value_rate * args.ppo_lr),
    ]
    optimizer = torch.optim.AdamW(
        groups, lr=args.ppo_lr, betas=(0.9, 0.95), eps=1e-5, weight_decay=0.0
    )
    control = ppo.AdaptiveKL(args.beta, args.target_kl or 1.0)

    made_by = dict(
        sft=file_hash(sft),
        reward=file_hash(reward_path),
        world=file_hash(*world_files(args.world)),
        advantage=args.advantage,
        beta=args.beta,
        target_kl=args.target_kl,
        updates=args.ppo_updates,
        episodes=args.ppo_episodes,
        epochs=args.ppo_epochs,
        lr=args.ppo_lr,
        clip=args.clip,
        group=args.group,
        seed=args.seed,
        entropy_coef=args.entropy_coef,
        value_coef=args.value_coef,
        value_rate=args.value_rate,
        end_penalty=args.end_penalty,
    )
    name = f"ppo-{args.name}" if args.name else "ppo"
    out, log, state_path = (
        args.out / f"{name}.pt",
        args.out / f"train_{name}.jsonl",
        args.out / f"train_{name}.state.pt",
    )
    start = resume(state_path, log, actor, optimizer, control, made_by)

    rng = random.Random(f"shown {args.seed}")
    shown = [part.draw(rng, type) for type in SHOWN]
    saved_at = time.time()
    bar = tqdm(
        range(start, args.ppo_updates),
        initial=start,
        total=args.ppo_updates,
        desc=f"train {name}",
        unit=" updates",
    )
    for update in bar:
        if update % max(1, args.ppo_updates // 4) == 0:
            for request, text in zip(
                shown, answer(gpt, tokenizer, [list(r.turns) for r in shown], 0.0, 0)
            ):
                tqdm.write(f"  [{update}] {request.turns[-1]}\n      {text}")

        requests, prompts, completions = roll_out(gpt, tokenizer, part, args, update)

        size = max(1, len(prompts) // BATCHES // args.group) * args.group
        batches = [
            score(
                actor,
                reference,
                reward,
                prompts[i : i + size],
                completions[i : i + size],
                control.beta,
                args,
                tokenizer.pad,
            )
            for i in range(0, len(prompts), size)
        ]
        if args.advantage == "gae":
            whiten_together(batches)
        if update == 0:
            assert all((b["kl"] == 0).all() for b in batches), (
                "the policy is not its reference before the first update"
            )
            assert all(b["mismatch"] < 0.02 for b in batches), (
                "sampler and scorer disagree about log-probabilities"
            )

        set_lr([optimizer], update, args.ppo_updates, warmup=0.1, cooldown=0.5)
        steps = []
        for epoch in range(args.ppo_epochs):
            for b in random.Random(f"{args.seed} {update} {epoch}").sample(batches, len(batches)):
                steps.append(climb(actor, optimizer, b, control.beta, args))
                if update == 0 and len(steps) == 1:
                    assert abs(steps[0]["ratio"] - 1) < 1e-5 and steps[0]["clip_fraction"] == 0, (
                        "the first ratio is not 1"
                    )

        texts = [tokenizer.decode(c.ids).strip() if complete(c) else "" for c in completions]
        true = [gold(r, grader.grade(r, text)) for r, text in zip(requests, texts)]
        row = dict(
            update=update + 1,
            true=sum(true) / len(true),
            beta=control.beta,
            distinct_2=distinct_n(texts, 2),
            **measured(batches, steps, completions, args),
        )
        append_jsonl(log, [{k: round(v, 4) for k, v in row.items()}])
        bar.set_postfix_str(f"proxy {row['proxy']:.2f}, true {row['true']:.2f}, KL {row['kl']:.1f}")
        if args.target_kl:
            control.update(row["kl"])
        if time.time() - saved_at > SAVE_SECONDS and update + 1 < args.ppo_updates:
            saved_at = time.time()
            save_state(
                state_path, actor, [optimizer], made_by, update=update + 1, beta=control.beta
            )
    save_checkpoint(out, gpt, "policy", made_by=made_by)
    state_path.unlink(missing_ok=True)
    print(f"{out}: {args.ppo_updates} updates of {args.ppo_episodes} answers, log in {log}")


if __name__ == "__main__":
    main(train)
