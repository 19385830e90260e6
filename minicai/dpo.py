"""Direct preference optimisation and its siblings: pure functions of log-probabilities, and a dictionary of them.

    loss, stats = LOSSES["dpo"](chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps, beta, p)

chosen_logps, rejected_logps          (B,) log pi(response | prompt), summed over the response's tokens, its end token
                                      included; for the losses in PER_TOKEN averaged over them
ref_chosen_logps, ref_rejected_logps  (B,) the same under the frozen reference model
p                                     float or (B,): the probability that "chosen" is the better one. A soft label, as an AI
                                      judge gives it, trains on both orders: p * loss(chosen, rejected) + (1-p) * loss(rejected, chosen)

Why a loss on a policy can do without a reward model: the policy that is best under a reward r and a KL penalty beta is
pi(y|x) ~ ref(y|x) exp(r(x, y) / beta). Turned around, a policy is the optimum for the reward beta log(pi/ref), up to a constant that
cancels between two answers: its implicit reward. Put into Bradley-Terry's loss (reward.py) that is DPO.

Every loss is averaged over pairs. The betas below are mere defaults; train_dpo.py passes 1 unless told otherwise, but to those
in PER_TOKEN. To try your own, write one function here and add one line to LOSSES.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from minicai.gpt import GPT, token_logps


def both_orders(loss, p, margin: Tensor) -> Tensor:
    """Mean over pairs of p * loss(margin) + (1-p) * loss(-margin): swapping the answers negates the margin."""
    return (p * loss(margin) + (1 - p) * loss(-margin)).mean()


def stats(chosen_rewards: Tensor, rejected_rewards: Tensor, p) -> dict[str, Tensor]:
    """Implicit rewards, their margin, and how often the answer that p prefers has the greater one (a tie counts half).

    Raises ValueError for labels that are neither one number nor one for each pair: they would broadcast to other pairs.
    """
    margin, p = (chosen_rewards - rejected_rewards).detach(), torch.as_tensor(p)
    if p.shape not in ((), margin.shape):
        raise ValueError(
            f"labels of shape {tuple(p.shape)} do not fit answers of shape {tuple(margin.shape)}"
        )
    right = (torch.sign(margin) * torch.sign(p - 0.5) + 1) / 2
    return dict(
        chosen_reward=chosen_rewards.detach().mean(),
        rejected_reward=rejected_rewards.detach().mean(),
        margin=margin.mean(),
        accuracy=right.mean(),
    )


def dpo_loss(chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps, beta=0.1, p=1.0):
    """-log sigmoid(beta * h), where h = (log-ratio of chosen) - (log-ratio of rejected). Rafailov et al. 2023, eq. 7."""
    chosen, rejected = (
        beta * (chosen_logps - ref_chosen_logps),
        beta * (rejected_logps - ref_rejected_logps),
    )
    return both_orders(lambda m: -F.logsigmoid(m), p, chosen - rejected), stats(chosen, rejected, p)


def cdpo_loss(
    chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps, beta=0.1, p=1.0, eps=0.1
):
    """DPO that takes every label to be wrong with probability eps. Mitchell 2023, "A note on DPO with noisy preferences"."""
    return dpo_loss(
        chosen_logps,
        rejected_logps,
        ref_chosen_logps,
        ref_rejected_logps,
        beta,
        p * (1 - eps) + (1 - p) * eps,
    )


def dpop_loss(
    chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps, beta=0.1, p=1.0, weight=5.0
):
    """DPO whose margin pays for every nat that the better answer loses. DPO-Positive, Pal et al. 2024 (arXiv 2402.13228).

    DPO's margin also grows when both answers become less likely, the worse one faster; the probability they lose goes to
    answers that nobody has compared.
    """
    chosen, rejected = (
        beta * (chosen_logps - ref_chosen_logps),
        beta * (rejected_logps - ref_rejected_logps),
    )
    margin, lost = chosen - rejected, lambda reward: weight * F.relu(-reward)
    loss = -(
        p * F.logsigmoid(margin - lost(chosen)) + (1 - p) * F.logsigmoid(-margin - lost(rejected))
    )
    return loss.mean(), stats(chosen, rejected, p)


def ipo_loss(chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps, beta=0.1, p=1.0):
    """(h - 1/(2 beta))^2: regress the margin to a finite target. Azar et al. 2023 (arXiv 2310.12036), eq. 17.

    Departure, as in TRL: h is of mean log-probabilities where the paper's are sums, so the target is in nats per token.
    """
    chosen, rejected = chosen_logps - ref_chosen_logps, rejected_logps - ref_rejected_logps
    return both_orders(lambda h: (h - 1 / (2 * beta)) ** 2, p, chosen - rejected), stats(
        beta * chosen, beta * rejected, p
    )


def hinge_loss(chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps, beta=0.1, p=1.0):
    """max(0, 1 - beta * h). SLiC-HF's calibration loss (Zhao et al. 2023) on DPO's margin, as in Liu et al. 2023 (RSO)."""
    chosen, rejected = (
        beta * (chosen_logps - ref_chosen_logps),
        beta * (rejected_logps - ref_rejected_logps),
    )
    return both_orders(lambda m: F.relu(1 - m), p, chosen - rejected), stats(chosen, rejected, p)


def simpo_loss(
    chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps, beta=2.0, p=1.0, gamma=0.5
):
    """-log sigmoid(beta * (difference of mean log-probabilities) - gamma), without a reference. Meng et al. 2024, eq. 6."""
    chosen, rejected = beta * chosen_logps, beta * rejected_logps
    return both_orders(lambda m: -F.logsigmoid(m - gamma), p, chosen - rejected), stats(
        chosen, rejected, p
    )


def orpo_loss(chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps, beta=0.1, p=1.0):
    """NLL of the better answer, and beta times -log sigmoid of the log odds ratio; no reference. Hong et al. 2024, eq. 6-7."""

    def log_odds(logps):  # log p / (1 - p) of the mean log-probability
        return logps - torch.log(-torch.expm1(logps.clamp(max=-1e-6)))

    chosen, rejected = log_odds(chosen_logps), log_odds(rejected_logps)
    nll = -(p * chosen_logps + (1 - p) * rejected_logps).mean()
    loss = nll + beta * both_orders(lambda m: -F.logsigmoid(m), p, chosen - rejected)
    return loss, stats(beta * chosen, beta * rejected, p)


def kto_loss(chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps, beta=0.1, p=1.0):
    """Each answer by itself, better or worse than a reference point z. Ethayarajh et al. 2024 (arXiv 2402.01306), eq. 8.

    Departure: z, the KL from the reference, is estimated on the batch's own answers; the paper takes mismatched ones.
    """
    chosen, rejected = (
        beta * (chosen_logps - ref_chosen_logps),
        beta * (rejected_logps - ref_rejected_logps),
    )
    z = torch.cat([chosen, rejected]).mean().detach().clamp(min=0)
    good, bad = (lambda r: 1 - torch.sigmoid(r - z)), (lambda r: 1 - torch.sigmoid(z - r))
    loss = p * (good(chosen) + bad(rejected)) + (1 - p) * (good(rejected) + bad(chosen))
    return loss.mean() / 2, stats(chosen, rejected, p)


LOSSES = {
    "dpo": dpo_loss,
    "cdpo": cdpo_loss,
    "dpop": dpop_loss,
    "ipo": ipo_loss,
    "hinge": hinge_loss,
    "simpo": simpo_loss,
    "kto": kto_loss,
    "orpo": orpo_loss,
}
PER_TOKEN = {"ipo", "simpo", "orpo"}  # these take mean log-probabilities


def response_logps(model: GPT, ids: Tensor, mask: Tensor, per_token: bool = False) -> Tensor:
    """log pi of the masked ids given all before them, summed (or averaged) per row: ids (B, T), mask (B, T) -> (B,).

    The mask is true on the response's ids, its end token included; prompt and pads count for nothing. Float32.
    """
    logps = token_logps(model(ids[:, :-1]), ids)  # (B, T-1)
    inside = mask[:, 1:].bool()
    total = logps.masked_fill(~inside, 0.0).sum(-1)
    return (
        total / inside.sum(-1).clamp(min=1) if per_token else total
    )  # an empty response has 0, not NaN
