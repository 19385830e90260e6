"""Direct preference optimisation and its siblings: pure functions, and a dictionary of them.

    loss, stats = LOSSES["dpo"](chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps)

chosen_logps, rejected_logps  (B,)  log pi(response | prompt), summed over the response's tokens,
                                    end token included; averaged for the losses in PER_TOKEN
ref_chosen_logps, ...         (B,)  the same under the frozen reference model
beta                         float  strength of the implicit KL penalty, or the scale of the loss
p                    float or (B,)  probability that "chosen" is the better answer. The AI judge
                                    gives such soft labels. They train on both orders:
                                    p * loss(chosen, rejected) + (1-p) * loss(rejected, chosen)

Why no reward model is needed: the policy that maximises a reward r under a KL penalty beta is
pi(y|x) ~ ref(y|x) exp(r(x, y) / beta). So every policy is the best one for the reward
beta * log(pi / ref), up to a constant that cancels between two answers to one prompt. This is its
implicit reward. DPO puts it into the Bradley-Terry loss (reward.py).

All losses are means over pairs. To add a loss, write one function and add one line to LOSSES.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from minicai.device import autocast
from minicai.gpt import GPT, token_logps


def both_orders(loss, p, margin: Tensor) -> Tensor:
    """Mean of p * loss(margin) + (1-p) * loss(-margin): to swap the answers negates the margin."""
    return (p * loss(margin) + (1 - p) * loss(-margin)).mean()


def stats(chosen_rewards: Tensor, rejected_rewards: Tensor, p) -> dict[str, Tensor]:
    """Means of the rewards and of their margin. accuracy: how often the answer that p prefers has
    the greater reward (a tie counts half).

    Raises ValueError for shapes that would broadcast: log-probabilities that are not one number per
    answer, labels that are neither one number nor one per pair.
    """
    margin = (chosen_rewards - rejected_rewards).detach()
    p = torch.as_tensor(p, dtype=margin.dtype)
    if margin.ndim > 1:
        found = tuple(margin.shape)
        raise ValueError(f"log-probabilities come out as {found}; all four have the shape (B,)")
    if p.shape not in ((), margin.shape):
        found, wanted = tuple(p.shape), tuple(margin.shape)
        raise ValueError(f"labels of shape {found} do not fit answers of shape {wanted}")
    right = (torch.sign(margin) * torch.sign(p - 0.5) + 1) / 2
    return dict(
        accuracy=right.mean(),
        margin=margin.mean(),
        chosen_reward=chosen_rewards.detach().mean(),
        rejected_reward=rejected_rewards.detach().mean(),
    )


def dpo_loss(chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps, beta=1.0, p=1.0):
    """-log sigmoid(beta * h), h = log-ratio of chosen - log-ratio of rejected.

    Rafailov et al. 2023 (arXiv 2305.18290), eq. 7.
    """
    chosen, rejected = chosen_logps - ref_chosen_logps, rejected_logps - ref_rejected_logps
    loss = both_orders(lambda h: -F.logsigmoid(beta * h), p, chosen - rejected)
    return loss, stats(beta * chosen, beta * rejected, p)


def cdpo_loss(
    chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps, beta=1.0, p=1.0, eps=0.1
):
    """DPO where every label is wrong with probability eps.

    Mitchell 2023, "A note on DPO with noisy preferences".
    """
    p = p * (1 - eps) + (1 - p) * eps
    return dpo_loss(chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps, beta, p)


def dpop_loss(
    chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps, beta=1.0, p=1.0, weight=5.0
):
    """DPO with a margin that shrinks for every nat that the better answer loses.

    DPO-Positive, Pal et al. 2024 (arXiv 2402.13228). DPO's margin also grows when both answers
    become less likely, the worse one faster. The probability that they lose goes to answers that
    nobody has compared.
    """
    chosen, rejected = chosen_logps - ref_chosen_logps, rejected_logps - ref_rejected_logps
    h, lost_chosen, lost_rejected = chosen - rejected, F.relu(-chosen), F.relu(-rejected)
    loss = p * F.logsigmoid(beta * (h - weight * lost_chosen))
    loss = loss + (1 - p) * F.logsigmoid(beta * (-h - weight * lost_rejected))
    return -loss.mean(), stats(beta * chosen, beta * rejected, p)


def ipo_loss(chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps, beta=0.1, p=1.0):
    """(h - 1/(2 beta))^2: regress h to a finite target.

    Azar et al. 2023 (arXiv 2310.12036), eq. 17. Departure, as in TRL: h is of mean
    log-probabilities, where the paper's are sums. So the target is in nats per token.
    """
    chosen, rejected = chosen_logps - ref_chosen_logps, rejected_logps - ref_rejected_logps
    loss = both_orders(lambda h: (h - 1 / (2 * beta)) ** 2, p, chosen - rejected)
    return loss, stats(beta * chosen, beta * rejected, p)


def hinge_loss(chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps, beta=1.0, p=1.0):
    """max(0, 1 - beta * h).

    SLiC-HF's loss (Zhao et al. 2023, arXiv 2305.10425) on DPO's margin, as in RSO (Liu et al. 2023,
    arXiv 2309.06657).
    """
    chosen, rejected = chosen_logps - ref_chosen_logps, rejected_logps - ref_rejected_logps
    loss = both_orders(lambda h: F.relu(1 - beta * h), p, chosen - rejected)
    return loss, stats(beta * chosen, beta * rejected, p)


def simpo_loss(
    chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps, beta=2.0, p=1.0, gamma=0.5
):
    """-log sigmoid(beta * (difference of mean log-probabilities) - gamma), without a reference.

    Meng et al. 2024 (arXiv 2405.14734), eq. 6.
    """
    loss = both_orders(lambda d: -F.logsigmoid(beta * d - gamma), p, chosen_logps - rejected_logps)
    return loss, stats(beta * chosen_logps, beta * rejected_logps, p)


def orpo_loss(chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps, beta=0.1, p=1.0):
    """NLL of the better answer + beta * (-log sigmoid of the log odds ratio), without a reference.

    Hong et al. 2024 (arXiv 2403.07691), eq. 6 and 7.
    """

    def log_odds(logps):  # log p / (1 - p) of the mean log-probability
        return logps - torch.log(-torch.expm1(logps.clamp(max=-1e-6)))

    chosen, rejected = log_odds(chosen_logps), log_odds(rejected_logps)
    nll = -(p * chosen_logps + (1 - p) * rejected_logps).mean()
    loss = nll + beta * both_orders(lambda d: -F.logsigmoid(d), p, chosen - rejected)
    return loss, stats(beta * chosen, beta * rejected, p)


def kto_loss(chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps, beta=1.0, p=1.0):
    """Each answer alone, better or worse than a reference point z.

    Ethayarajh et al. 2024 (arXiv 2402.01306), eq. 8. Departure: z, the KL from the reference, is
    estimated on the batch's own answers; the paper takes mismatched ones.
    """
    chosen, rejected = chosen_logps - ref_chosen_logps, rejected_logps - ref_rejected_logps
    chosen, rejected = beta * chosen, beta * rejected
    z = torch.cat([chosen, rejected]).mean().detach().clamp(min=0)
    as_chosen = (1 - torch.sigmoid(chosen - z)) + (1 - torch.sigmoid(z - rejected))
    swapped = (1 - torch.sigmoid(rejected - z)) + (1 - torch.sigmoid(z - chosen))
    loss = p * as_chosen + (1 - p) * swapped
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
PER_TOKEN = {"ipo", "simpo", "orpo"}  # these, and copies of them, take mean log-probabilities


def response_logps(model: GPT, ids: Tensor, mask: Tensor, per_token: bool = False) -> Tensor:
    """log pi of the masked ids, summed over each row, or averaged: (B,), in float32.

    ids (B, T), mask (B, T): true on the response's ids, the end token included. Prompt and pads
    count for nothing.
    """
    with autocast(ids.device):
        logits = model(ids[:, :-1])
    logps, mask = token_logps(logits, ids), mask[:, 1:].bool()  # (B, T-1)
    total = logps.masked_fill(~mask, 0.0).sum(-1)
    return total / mask.sum(-1).clamp(min=1) if per_token else total  # an empty response gives 0
