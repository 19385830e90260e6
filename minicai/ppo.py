"""Proximal policy optimisation for a language model, as pure functions of tensors. train_ppo.py is the loop around them.

The policy answers prompts; a reward model scores each whole answer; a KL penalty keeps the policy near its reference.
One answer is one episode and each of its tokens an action. Everything is aligned to the token that is predicted:

    ids        p0   p1   p2   a0   a1   END  pad        p prompt, a answer: three actions here
    position   0    1    2    3    4    5    6
    logits[t] predicts ids[t+1], so all arrays below have T-1 columns, column t being about ids[t+1]:
    column     0    1    2    3    4    5
    about      p1   p2   a0   a1   END  pad
    mask       .    .    x    x    x    .               the end token is an action
    logps                a0   a1   END                  log pi(a | before it), in float32
    values               V    V    V                    read at the position before the action, so before it is known
    rewards              -b k -b k -b k + score         b: beta, k: the KL term; the score comes with the last action

A run of the mask is one answer; masks are true or nonzero there. Nothing outside the mask counts, whatever it holds.
Schulman et al. 2017 (arXiv 1707.06347), Ziegler et al. 2019 (1909.08593), and Huang et al. 2024 (2403.17031) for what
matters in practice.
"""

import torch
from torch import Tensor


def inside(x: Tensor, mask: Tensor) -> Tensor:
    """x where the mask is true, and exact zeros elsewhere, whatever stood there (0 * nan would be nan)."""
    return x.masked_fill(~mask.bool(), 0.0)


def masked_mean(x: Tensor, mask: Tensor) -> Tensor:
    """Mean over all masked entries of the batch: every token weighs the same, whatever the length of its answer."""
    return inside(x, mask).sum() / mask.bool().sum()


def whiten(x: Tensor, mask: Tensor, shift: bool = True) -> Tensor:
    """Scale to variance 1 and (with shift) mean 0 over the masked entries; 0 outside. One entry alone keeps its scale."""
    x, mean, n = inside(x, mask), masked_mean(x, mask), mask.bool().sum()
    variance = inside((x - mean) ** 2, mask).sum() / (n - 1).clamp(min=1)
    scale = torch.where(variance > 0, (variance + 1e-8).rsqrt(), 1.0)
    return inside((x - mean) * scale + (0.0 if shift else mean), mask)


# --- KL divergence from the reference ---------------------------------------------------------------------------------


def kl_estimates(logps: Tensor, ref_logps: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """k1, k2, k3 of each sampled token (Schulman 2020, "Approximating KL divergence"), in nats, of KL(policy || reference).

    k1 = r and k3 = exp(-r) - 1 + r are unbiased for r = log pi - log ref; k2 = r^2 / 2 is not. k3 never is negative.
    As a reward, k1 has the right policy gradient; as a loss that is differentiated, k1 has none in expectation, k2 has
    the gradient of KL(policy || reference), and k3 that of KL(reference || policy). In k3, r is at least -10: exp(-r) overflows.
    """
    r = logps - ref_logps
    cut = r.clamp(min=-10)
    return r, r**2 / 2, torch.expm1(-cut) + cut


def shape_rewards(
    scores: Tensor, logps: Tensor, ref_logps: Tensor, mask: Tensor, beta: float
) -> Tensor:
    """scores (B,) -> rewards (B, T-1): -beta * k1 at every action, and the score added to the last one of the row."""
    rewards = inside(-beta * kl_estimates(logps, ref_logps)[0], mask)
    columns = torch.arange(mask.shape[1], device=mask.device)
    last = (
        columns.masked_fill(~mask.bool(), -1).max(dim=1).values
    )  # by the mask, never by comparing ids
    return rewards + scores[:, None] * (columns == last[:, None])


class AdaptiveKL:
    """A controller of beta that steers the KL of an answer to `target` nats. Ziegler et al. 2019, section 2.2.

    Departure: a gain of 1, where the paper has 0.1 and hundreds of updates; here a run has a dozen.
    """

    def __init__(self, beta: float, target: float, gain: float = 1.0):
        self.beta, self.target, self.gain = beta, target, gain

    def update(self, kl: float):
        error = min(max(kl / self.target - 1, -0.2), 0.2)
        self.beta *= 1 + self.gain * error


# --- advantages -------------------------------------------------------------------------------------------------------


def gae(
    rewards: Tensor, values: Tensor, mask: Tensor, gamma: float = 1.0, lam: float = 0.95
) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimation (Schulman et al. 2015, arXiv 1506.02438, eq. 16): (advantages, returns), both 0 outside.

    A_t = sum_l (gamma lam)^l d_{t+l}, d_t = r_t + gamma V_{t+1} - V_t, and V is 0 after the end. returns = A + V.
    """
    rewards, values, mask = inside(rewards, mask), inside(values, mask), mask.bool()
    columns, following, next_value = [], 0.0, 0.0
    for t in reversed(range(mask.shape[1])):
        delta = rewards[:, t] + gamma * next_value - values[:, t]
        following, next_value = (delta + gamma * lam * following) * mask[:, t], values[:, t]
        columns.append(following)
    advantages = torch.stack(columns[::-1], dim=1)
    return advantages, inside(advantages + values, mask)


def rloo(returns: Tensor, group: int) -> Tensor:
    """returns (B,), `group` answers to the same prompt in a row -> advantages (B,): each against the mean of the others.

    REINFORCE with a leave-one-out baseline (Kool et al. 2019; Ahmadian et al. 2024, arXiv 2402.14740). Raises ValueError
    for a group of one.
    """
    grouped = _grouped(returns, group)
    others = (grouped.sum(1, keepdim=True) - grouped) / (group - 1)
    return (grouped - others).flatten()


def grpo(scores: Tensor, group: int) -> Tensor:
    """As rloo, but against the group's mean and in units of its standard deviation. Shao et al. 2024 (arXiv 2402.03300).

    The scores hold no KL penalty, whose weight the division would change from group to group; it is added to the loss, as k3.
    """
    grouped = _grouped(scores, group)
    return (
        (grouped - grouped.mean(1, keepdim=True)) / (grouped.std(1, keepdim=True) + 1e-4)
    ).flatten()


def _grouped(returns, group):
    if group < 2 or len(returns) % group:
        raise ValueError(
            f"{len(returns)} answers do not make groups of {group}; a group needs two or more"
        )
    return returns.view(-1, group)


# --- losses -----------------------------------------------------------------------------------------------------------


def policy_loss(
    logps: Tensor, old_logps: Tensor, advantages: Tensor, mask: Tensor, clip: float = 0.2
):
    """-min(ratio * A, clip(ratio, 1-clip, 1+clip) * A), mean over masked tokens. Schulman et al. 2017, eq. 7.

    Returns (loss, stats): clip_fraction, the share of tokens whose gradient the clipping takes away; approx_kl of the
    old policy from the new, by k3; ratio, its mean.
    """
    log_ratio = inside(logps - old_logps, mask)
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
    """Half the squared error, the greater of the plain and of the one whose step from old_values is clipped."""
    values, old_values, returns = (inside(x, mask) for x in (values, old_values, returns))
    near = old_values + (values - old_values).clamp(-clip, clip)
    return 0.5 * masked_mean(torch.max((values - returns) ** 2, (near - returns) ** 2), mask)


def entropy(logits: Tensor, mask: Tensor) -> Tensor:
    """Mean entropy in nats of the masked positions' distributions; logits (B, T-1, V)."""
    logp = inside(logits.float(), mask[..., None]).log_softmax(
        -1
    )  # before, or a NaN outside would reach the gradient
    return masked_mean(-(logp.exp() * logp).sum(-1), mask)


def explained_variance(values: Tensor, returns: Tensor, mask: Tensor) -> Tensor:
    """1 - Var(returns - values) / Var(returns) over the masked tokens: 1 is perfect, 0 no better than a constant."""
    mask = mask.bool()
    return 1 - (returns - values)[mask].var() / returns[mask].var().clamp(min=1e-8)
