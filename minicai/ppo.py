"""Proximal policy optimisation for a language model, as pure functions. train_ppo.py is the loop.

The policy answers prompts. A reward model scores each whole answer. A KL penalty keeps the policy
near its reference. One answer is one episode, and each of its tokens is an action. All arrays are
aligned to the token that is predicted:

    ids        p0   p1   p2   a0   a1   END  pad        p prompt, a answer: three actions here
    position   0    1    2    3    4    5    6
    logits[t] predicts ids[t+1], so all arrays below have T-1 columns; column t is about ids[t+1]:
    column     0    1    2    3    4    5
    about      p1   p2   a0   a1   END  pad
    mask       .    .    x    x    x    .               the end token is an action
    logps                a0   a1   END                  log pi(a | before it), in float32
    values               V    V    V                    of the state before the action is taken
    rewards              -b k -b k -b k + score         b: beta, k: the KL term; score at the end

Masks are true on the actions. Nothing outside the mask counts, whatever it holds.
`python -m experiments.ppo_by_hand` prints one answer with all its columns in numbers.
Schulman et al. 2017 (arXiv 1707.06347), Ziegler et al. 2019 (1909.08593), and Huang et al. 2024
(2403.17031) for what matters in practice.
"""

import torch
from torch import Tensor


def inside(x: Tensor, mask: Tensor) -> Tensor:
    """x where the mask is true and exact zeros elsewhere, even for NaN (0 * nan would be nan)."""
    return x.masked_fill(~mask.bool(), 0.0)


def masked_mean(x: Tensor, mask: Tensor) -> Tensor:
    """Mean over all masked entries: every token weighs the same, however long its answer is."""
    return inside(x, mask).sum() / mask.bool().sum()


def whiten(x: Tensor, mask: Tensor, shift: bool = True) -> Tensor:
    """Scale to variance 1, and with `shift` to mean 0, over the masked entries; 0 outside.

    Entries without variance keep their scale.
    """
    x, mean, n = inside(x, mask), masked_mean(x, mask), mask.bool().sum()
    variance = inside((x - mean) ** 2, mask).sum() / (n - 1).clamp(min=1)
    scale = torch.where(variance > 0, (variance + 1e-8).rsqrt(), 1.0)
    return inside((x - mean) * scale + (0.0 if shift else mean), mask)


# --- KL divergence from the reference -------------------------------------------------------------


def kl_estimates(logps: Tensor, ref_logps: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """k1, k2, k3 of each sampled token, in nats: estimates of KL(policy || reference).

    With r = log pi - log ref: k1 = r and k3 = exp(-r) - 1 + r are unbiased, k2 = r^2 / 2 is not. k3
    is never negative. As a reward, k1 gives the right policy gradient. As a differentiable loss, k1
    has no gradient in expectation, k2 has that of KL(policy || reference), and k3 that of
    KL(reference || policy). In k3, r is cut at -10, so that exp(-r) does not overflow.
    Schulman 2020, "Approximating KL divergence".
    """
    r = logps - ref_logps
    cut = r.clamp(min=-10)
    return r, r**2 / 2, torch.expm1(-cut) + cut


def shape_rewards(
    scores: Tensor, logps: Tensor, ref_logps: Tensor, mask: Tensor, beta: float
) -> Tensor:
    """scores (B,) -> rewards (B, T-1): -beta * k1 at every action, plus the score at the last."""
    rewards = inside(-beta * kl_estimates(logps, ref_logps)[0], mask)
    columns = torch.arange(mask.shape[1], device=mask.device)
    last = columns.masked_fill(~mask.bool(), -1).max(dim=1).values
    return rewards + scores[:, None] * (columns == last[:, None])


class AdaptiveKL:
    """A controller of beta that steers the KL of an answer to `target` nats.

    Ziegler et al. 2019, section 2.2. Departure: a gain of 1, where the paper has 0.1 and hundreds
    of updates; a run here has a dozen.
    """

    def __init__(self, beta: float, target: float, gain: float = 1.0):
        self.beta, self.target, self.gain = beta, target, gain

    def update(self, kl: float):
        error = min(max(kl / self.target - 1, -0.2), 0.2)
        self.beta *= 1 + self.gain * error


# --- advantages -----------------------------------------------------------------------------------


def gae(
    rewards: Tensor, values: Tensor, mask: Tensor, gamma: float = 1.0, lam: float = 0.95
) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimation: (advantages, returns), (B, T-1) each, 0 outside the mask.

    A_t = sum_l (gamma lam)^l d_{t+l},  d_t = r_t + gamma V_{t+1} - V_t,  V is 0 after the end.
    returns = A + V. A gap in the mask is an end. Schulman et al. 2015 (arXiv 1506.02438), eq. 16.
    """
    rewards, values, mask = inside(rewards, mask), inside(values, mask), mask.bool()
    columns, later, next_value = [], 0.0, 0.0
    for t in reversed(range(mask.shape[1])):
        delta = rewards[:, t] + gamma * next_value - values[:, t]
        later, next_value = (delta + gamma * lam * later) * mask[:, t], values[:, t]
        columns.append(later)
    advantages = torch.stack(columns[::-1], dim=1)
    return advantages, inside(advantages + values, mask)


def in_groups(x: Tensor, group: int) -> Tensor:
    """(B,) -> (B / group, group). Raises ValueError for groups of one, or that do not come out."""
    if group < 2 or len(x) % group:
        raise ValueError(f"{len(x)} answers do not make groups of {group}, two or more each")
    return x.view(-1, group)


def rloo(returns: Tensor, group: int) -> Tensor:
    """returns (B,), `group` answers to one prompt in a row -> advantages (B,).

    Each answer against the mean of the others: REINFORCE with a leave-one-out baseline. Kool et al.
    2019; Ahmadian et al. 2024 (arXiv 2402.14740).
    """
    grouped = in_groups(returns, group)
    others = (grouped.sum(1, keepdim=True) - grouped) / (group - 1)
    return (grouped - others).flatten()


def grpo(scores: Tensor, group: int) -> Tensor:
    """scores (B,) -> advantages (B,): against the group's mean, in units of its standard deviation.

    Shao et al. 2024 (arXiv 2402.03300). The scores hold no KL penalty: the division would change
    its weight from group to group. It is added to the loss, as k3.
    """
    grouped = in_groups(scores, group)
    spread = grouped.std(1, keepdim=True) + 1e-4
    return ((grouped - grouped.mean(1, keepdim=True)) / spread).flatten()


def advantages(
    kind: str, rewards: Tensor, scores: Tensor, values: Tensor, mask: Tensor, group: int
) -> tuple[Tensor, Tensor]:
    """(advantages, returns), (B, T-1) each, of "gae", "rloo" or "grpo".

    rloo and grpo give all tokens of an answer one advantage. They train no value function, and
    their returns are 0.
    """
    if kind == "gae":
        return gae(rewards, values, mask)
    whole = rloo(rewards.sum(1), group) if kind == "rloo" else grpo(scores, group)
    return inside(whole[:, None].expand_as(mask), mask), torch.zeros_like(rewards)


# --- losses ---------------------------------------------------------------------------------------


def policy_loss(
    logps: Tensor, old_logps: Tensor, advantages: Tensor, mask: Tensor, clip: float = 0.2
) -> tuple[Tensor, dict[str, Tensor]]:
    """-min(ratio * A, clip(ratio, 1-clip, 1+clip) * A), mean over tokens.

    Schulman et al. 2017, eq. 7. Stats: clip_fraction, the share of tokens whose gradient the
    clipping removes; ratio, its mean; approx_kl, KL(old policy || policy) by k3.
    """
    log_ratio = inside(logps - old_logps, mask).clamp(max=80)  # an infinite ratio has no gradient
    ratio = log_ratio.exp()
    free, clipped = ratio * advantages, ratio.clamp(1 - clip, 1 + clip) * advantages
    with torch.no_grad():
        stats = dict(
            clip_fraction=masked_mean((clipped < free).float(), mask),
            ratio=masked_mean(ratio, mask),
            approx_kl=masked_mean(torch.expm1(log_ratio) - log_ratio, mask),
        )
    return -masked_mean(torch.min(free, clipped), mask), stats


def value_loss(
    values: Tensor, old_values: Tensor, returns: Tensor, mask: Tensor, clip: float = 0.2
) -> Tensor:
    """Half the greater of two squared errors: of the values, and of the values clipped to within
    `clip` of the old ones."""
    values, old_values, returns = (inside(x, mask) for x in (values, old_values, returns))
    near = old_values + (values - old_values).clamp(-clip, clip)
    return 0.5 * masked_mean(torch.max((values - returns) ** 2, (near - returns) ** 2), mask)


def entropy(logits: Tensor, mask: Tensor) -> Tensor:
    """Mean entropy, in nats, of the masked positions' distributions; logits (B, T-1, V)."""
    logits = inside(logits.float(), mask[..., None])  # before, or a NaN would reach the gradient
    logp = logits.log_softmax(-1)
    return masked_mean(-(logp.exp() * logp).sum(-1), mask)


def explained_variance(values: Tensor, returns: Tensor, mask: Tensor) -> Tensor:
    """1 - Var(returns - values) / Var(returns). 1 is perfect; a constant gets 0."""
    mask = mask.bool()
    return 1 - (returns - values)[mask].var() / returns[mask].var().clamp(min=1e-8)
