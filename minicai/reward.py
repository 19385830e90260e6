"""The reward model: a GPT with one number at the end, trained on which answer was preferred.

    score = model(ids, lengths)                                   # (B,)
    loss  = bradley_terry_loss(score_chosen, score_rejected, p)

Bradley and Terry 1952: P(a preferred to b) = sigmoid(r(a) - r(b)). The labels of the AI judge are
probabilities, and the loss takes them as they are (Bai et al. 2022, section 4.1).
"""

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from minicai.device import autocast
from minicai.files import UserError, load_checkpoint, save_checkpoint
from minicai.gpt import GPT
from minicai.tokenizer import Tokenizer


class RewardModel(nn.Module):
    def __init__(self, gpt: GPT):
        super().__init__()
        self.gpt, width = gpt, gpt.config.n_embd
        self.score = nn.Linear(width, 1)
        nn.init.normal_(self.score.weight, std=(width + 1) ** -0.5)  # Stiennon et al. 2020
        nn.init.zeros_(self.score.bias)

    def forward(self, ids: Tensor, lengths: Tensor) -> Tensor:
        """ids (B, T) padded on the right, lengths (B,) -> scores (B,), read at the last token."""
        with autocast(ids.device):
            hidden = self.gpt.hidden(ids[:, : self.gpt.config.block_size])  # pads may go beyond
        # By length: an id that looks like a pad or an end may also stand inside an answer.
        last = hidden[torch.arange(len(ids), device=ids.device), lengths - 1]
        # In float32: in bfloat16, scores that differ by a percent would be equal.
        return F.linear(last.float(), self.score.weight, self.score.bias).squeeze(-1)

    @torch.no_grad()
    def shift(self, amount: float):
        """Add a constant to every score. Preferences stay, and a fixed penalty gets a meaning."""
        self.score.bias += amount

    def save(self, path, tokenizer: Tokenizer, options, **extra):
        score = self.score.state_dict()
        save_checkpoint(path, self.gpt, tokenizer, options, kind="reward", score=score, **extra)

    @classmethod
    def load(cls, path, device="cpu") -> tuple["RewardModel", Tokenizer, dict]:
        """In eval mode, with its tokenizer and everything else that was saved."""
        gpt, tokenizer, extra = load_checkpoint(path, "reward", device)
        model = cls(gpt)
        try:
            model.score.load_state_dict(extra.pop("score"), strict=True)
        except (AttributeError, KeyError, RuntimeError, TypeError):
            raise UserError(f"{path} has no head that gives a score; train it again")
        return model.to(device).eval(), tokenizer, extra


def bradley_terry_loss(chosen: Tensor, rejected: Tensor, p: float | Tensor = 1.0) -> Tensor:
    """-p log sigmoid(d) - (1-p) log sigmoid(-d), d = chosen - rejected, mean over pairs.

    Scores are (B,). p, a number or (B,), is the probability that "chosen" is the better answer. The
    gradient with respect to d is sigmoid(d) - p. Raises ValueError for shapes that do not fit, for
    example (B, 1) with (B,).
    """
    if chosen.shape != rejected.shape or torch.as_tensor(p).shape not in ((), chosen.shape):
        raise ValueError("scores must be (B,) both, and p a number or (B,)")
    d = chosen - rejected
    return -(p * F.logsigmoid(d) + (1 - p) * F.logsigmoid(-d)).mean()
