"""Muon for the matrices inside the blocks, AdamW for the rest, and the learning-rate schedule."""

import torch
from torch import Tensor

from minicai.common import fast_dtype
from minicai.gpt import GPT


def orthogonalize(x: Tensor, steps: int = 5) -> Tensor:
    """About U V^T of x = U S V^T, x (R, C): five Newton-Schulz steps push the singular values to between 0.7 and 1.2, the
    smallest less far.

    Jordan et al. 2024, https://kellerjordan.github.io/posts/muon, whose three numbers these are.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    wide = x.to(fast_dtype(x.device.type))
    if x.shape[0] > x.shape[1]:
        wide = wide.T  # the products below are as large as its shorter side
    wide = wide / wide.norm().clamp(min=1e-7)
    for _ in range(steps):
        gram = wide @ wide.T
        wide = torch.addmm(wide, torch.addmm(gram, gram, gram, beta=b, alpha=c), wide, beta=a)
    return (wide.T if x.shape[0] > x.shape[1] else wide).to(x.dtype)


class Muon(torch.optim.Optimizer):
    """Momentum, orthogonalized, with decoupled weight decay: the steps of torch.optim.Muon, which computes in bfloat16 wherever it
    runs. On a CPU that has to emulate it, that took more than half of a training step."""

    def __init__(self, params, lr: float, weight_decay: float = 0.01, momentum: float = 0.95):
        super().__init__(params, dict(lr=lr, weight_decay=weight_decay, momentum=momentum))

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            lr, momentum = group["lr"], group["momentum"]
            for p in group["params"]:
                state = self.state[p]
                if not state:
                    state["momentum_buffer"] = torch.zeros_like(p)
                average = state["momentum_buffer"]
                average.lerp_(p.grad, 1 - momentum)
                change = orthogonalize(
                    p.grad.lerp(average, momentum)
                )  # Nesterov: a step further along the average
                p.mul_(1 - lr * group["weight_decay"])
                p.sub_(change, alpha=lr * max(1, p.shape[0] / p.shape[1]) ** 0.5)


def make_optimizers(model: GPT, lr: float) -> list[torch.optim.Optimizer]:
    """Muon learns the small world in about half of AdamW's steps. lr is Muon's. AdamW takes six times that for embeddings, each
    of which few batches move, twice that for norms, and half of it for a head of its own, which every token moves."""
    matrices = [p for p in model.blocks.parameters() if p.ndim == 2]
    norms = [p for p in model.parameters() if p.ndim == 1]
    head = [] if model.config.tie_embeddings else [model.head.weight]
    groups = [([model.embed.weight], 6 * lr), (norms, 2 * lr), (head, lr / 2)]
    adamw = torch.optim.AdamW(
        [dict(params=params, lr=rate) for params, rate in groups],
        weight_decay=0.0,
        betas=(0.9, 0.95),
        eps=1e-8,
    )
    return [Muon(matrices, lr=lr), adamw]


def descend(
    model: torch.nn.Module,
    optimizers: list[torch.optim.Optimizer],
    loss: Tensor,
    clip: float | None = None,
):
    """One step of every optimizer down the loss; with `clip` the gradient, of all parameters together, is at most that long."""
    model.zero_grad()
    loss.backward()
    if clip:
        torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
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
