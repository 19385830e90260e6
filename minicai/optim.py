"""Muon for the matrices inside the blocks, AdamW for the rest, and the learning-rate schedule."""

import torch

from minicai.gpt import GPT


def make_optimizers(model: GPT, lr: float) -> list[torch.optim.Optimizer]:
    """Muon (Jordan et al. 2024) learns the small world in about half of AdamW's steps. lr is Muon's; AdamW takes twice that."""
    matrices = [p for p in model.blocks.parameters() if p.ndim == 2]
    inside = {id(p) for p in matrices}
    rest = [p for p in model.parameters() if id(p) not in inside]
    return [
        torch.optim.Muon(matrices, lr=lr, weight_decay=0.01, momentum=0.95),
        torch.optim.AdamW(rest, lr=2 * lr, weight_decay=0.0, betas=(0.9, 0.95), eps=1e-8),
    ]


def update(model: GPT, optimizers: list[torch.optim.Optimizer], loss: torch.Tensor):
    """One step of every optimizer down the loss."""
    model.zero_grad()
    loss.backward()
    for optimizer in optimizers:
        optimizer.step()


def set_lr(optimizers, step: int, steps: int, warmup: float = 0.02, cooldown: float = 0.9):
    """Trapezoid: rise over the first `warmup` of the steps, hold, and fall to zero over the last `cooldown` of them."""
    done = step / steps
    factor = min(1.0, (step + 1) / max(1.0, warmup * steps), (1.0 - done) / cooldown)
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group.setdefault("top_lr", group["lr"])
            group["lr"] = group["top_lr"] * factor
