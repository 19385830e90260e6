"""The reward model: a GPT with one number at the end, trained on which of two answers was preferred.

    score = model(ids, lengths)                            # (B,)
    loss  = bradley_terry_loss(score_chosen, score_rejected, p)

Bradley and Terry 1952: P(a preferred to b) = sigmoid(r(a) - r(b)). Bai et al. 2022, section 4: the labels of the AI judge are
probabilities, and the loss takes them as they are.
"""

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from minicai.common import load_checkpoint, save_checkpoint
from minicai.gpt import GPT


class RewardModel(nn.Module):
    def __init__(self, gpt: GPT):
        super().__init__()
        self.gpt = gpt
        self.score = nn.Linear(gpt.config.n_embd, 1)
        nn.init.normal_(
            self.score.weight, std=(gpt.config.n_embd + 1) ** -0.5
        )  # Stiennon et al. 2020
        nn.init.zeros_(self.score.bias)

    def forward(self, ids: Tensor, lengths: Tensor) -> Tensor:
        """ids (B, T), padded on the right, lengths (B,) -> scores (B,), read at each row's last real token."""
        hidden = self.gpt.hidden(
            ids[:, : self.gpt.config.block_size]
        )  # the last pads may not fit the context
        last = hidden[
            torch.arange(len(ids), device=ids.device), lengths - 1
        ]  # by length, never by comparing ids
        # In bfloat16, scores that differ by a percent would be ties.
        with torch.autocast(ids.device.type, enabled=False):
            return self.score(last.float()).squeeze(-1)

    def shift(self, amount: float):
        """Add a constant to every score: a preference does not change, a penalty for no answer becomes meaningful."""
        with torch.no_grad():
            self.score.bias += amount

    def save(self, path, **extra):
        save_checkpoint(path, self.gpt, "reward", score=self.score.state_dict(), **extra)

    @classmethod
    def load(cls, path, device="cpu") -> tuple["RewardModel", dict]:
        """In eval mode, and everything else that was saved. Raises UserError when the file holds something else."""
        gpt, extra = load_checkpoint(path, "reward", device)
        model = cls(gpt).to(device)
        model.score.load_state_dict(extra.pop("score"), strict=True)
        return model.eval(), extra


def bradley_terry_loss(chosen: Tensor, rejected: Tensor, p: float | Tensor = 1.0) -> Tensor:
    """-p log sigmoid(d) - (1-p) log sigmoid(-d), d = chosen - rejected, mean over pairs; scores (B,), p a number or (B,).

    p is the probability that "chosen" is the better one. The gradient with respect to d is sigmoid(d) - p.
    Raises ValueError for shapes that do not belong together, (B, 1) with (B,) for one.
    """
    if chosen.shape != rejected.shape or torch.as_tensor(p).shape not in ((), chosen.shape):
        raise ValueError(
            "chosen, rejected and p differ in shape; scores are (B,), p is (B,) or a number"
        )
    d = chosen - rejected
    return -(p * F.logsigmoid(d) + (1 - p) * F.logsigmoid(-d)).mean()
