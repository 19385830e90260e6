"""Between sampling and learning: the numbers that PPO needs about sampled answers."""

import torch
from torch import Tensor, nn

from minicai import ppo
from minicai.data import collate_responses, row_lengths
from minicai.device import autocast
from minicai.gpt import GPT, token_logps
from minicai.reward import RewardModel
from minicai.sampler import Completion


class Actor(nn.Module):
    """The policy with a value head on its last hidden states. At first every value is 0."""

    def __init__(self, gpt: GPT):
        super().__init__()
        self.gpt, self.value = gpt, nn.Linear(gpt.config.n_embd, 1)
        nn.init.zeros_(self.value.weight)
        nn.init.zeros_(self.value.bias)

    def forward(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """ids (B, T) -> logits (B, T-1, V) that predict ids[:, 1:], and values (B, T-1)."""
        with autocast(ids.device):
            hidden = self.gpt.hidden(ids[:, :-1])
            logits = self.gpt.head(hidden)
        values = self.value(hidden.float()).squeeze(-1)  # in float32: bfloat16 has three digits
        return logits.float(), values


def complete(completion: Completion) -> bool:
    """Whether an answer ended and has text. A cut-off answer may also have an end token as its last
    id, so the stop reason decides."""
    return completion.stop_reason == "stop" and len(completion.ids) > 1


@torch.no_grad()
def score_answers(
    actor: Actor,
    reference: GPT,
    reward: RewardModel,
    prompts: list[list[int]],
    completions: list[Completion],
    pad: int,
    end_penalty: float,
) -> dict[str, Tensor]:
    """One pass each of policy, reference and reward model over B answers.

    ids (B, T); mask, logps, ref_logps, values (B, T-1) as in ppo.py; scores (B,), `end_penalty` for
    an answer that is not complete; mismatch, the mean distance between the log-probabilities that
    the sampler recorded and those computed here.
    """
    rows = [prompt + c.ids for prompt, c in zip(prompts, completions)]
    device = actor.value.weight.device
    ids, mask = collate_responses(rows, [len(prompt) for prompt in prompts], pad, device)
    logits, values = actor(ids)
    logps = token_logps(logits, ids)
    with autocast(device):
        ref_logits = reference(ids[:, :-1])
    ended = torch.tensor([complete(c) for c in completions], device=device)
    scores = torch.where(ended, reward(ids, row_lengths(mask)), end_penalty)
    sampled = torch.tensor([x for c in completions for x in c.logprobs], device=device)
    mask = mask[:, 1:]  # column t is about ids[t+1]
    return dict(
        ids=ids,
        mask=mask,
        logps=logps,
        ref_logps=token_logps(ref_logits, ids),
        values=values,
        scores=scores,
        mismatch=(sampled - logps[mask]).abs().mean(),
    )


def add_advantages(batches: list[dict], kind: str, beta: float, group: int):
    """Add advantages and returns to every batch. GAE's are whitened over all batches together."""
    for b in batches:
        rewards = ppo.shape_rewards(b["scores"], b["logps"], b["ref_logps"], b["mask"], beta)
        b["advantages"], b["returns"] = ppo.advantages(
            kind, rewards, b["scores"], b["values"], b["mask"], group
        )
    if kind == "gae":
        every = torch.cat([b["advantages"][b["mask"]] for b in batches])  # of all actions
        white = ppo.whiten(every, torch.ones_like(every))
        for b in batches:
            n = int(b["mask"].sum())
            b["advantages"][b["mask"]], white = white[:n], white[n:]


def summarise(
    batches: list[dict], completions: list[Completion], with_values: bool
) -> dict[str, float]:
    """Means over the answers of an update; kl and k3 in nats per answer."""
    kls = [ppo.kl_estimates(b["logps"], b["ref_logps"]) for b in batches]

    def per_answer(i):
        sums = [ppo.inside(kl[i], b["mask"]).sum(1) for kl, b in zip(kls, batches)]
        return torch.cat(sums).mean().item()

    row = dict(
        proxy=torch.cat([b["scores"] for b in batches]).mean().item(),
        kl=per_answer(0),
        k3=per_answer(2),
        mismatch=max(b["mismatch"].item() for b in batches),
        length=sum(len(c.ids) for c in completions) / len(completions),
        unfinished=1 - sum(map(complete, completions)) / len(completions),
    )
    if with_values:
        values, returns = (
            torch.cat([b[k][b["mask"]] for b in batches]) for k in ("values", "returns")
        )
        everywhere = torch.ones_like(values)
        row["explained_variance"] = ppo.explained_variance(values, returns, everywhere).item()
    return row
