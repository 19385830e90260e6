"""Muon for the matrices inside the blocks, AdamW for the rest, the step, and the schedule."""

import torch
from torch import Tensor

from minicai.device import fast_dtype
from minicai.files import UserError
from minicai.gpt import GPT


def orthogonalize(x: Tensor, steps: int = 5) -> Tensor:
    """About U V^T of x = U S V^T, x (R, C).

    Newton-Schulz steps bring the singular values to between 0.7 and 1.2, the smallest less so.
    Jordan et al. 2024 (https://kellerjordan.github.io/posts/muon), who chose the three numbers.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    tall = x.shape[0] > x.shape[1]
    y = x.to(fast_dtype(x.device))
    y = y.T if tall else y  # the products below are as large as the shorter side
    y = y / y.norm().clamp(min=1e-7)
    for _ in range(steps):
        gram = y @ y.T
        y = torch.addmm(y, torch.addmm(gram, gram, gram, beta=b, alpha=c), y, beta=a)
    return (y.T if tall else y).to(x.dtype)


class Muon(torch.optim.Optimizer):
    """Orthogonalized momentum with decoupled weight decay, as in torch.optim.Muon.

    PyTorch's computes in bfloat16 everywhere. A CPU without bfloat16 has to emulate it, which took
    more than half of a training step; here such a CPU computes in float32.
    """

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
                update = orthogonalize(p.grad.lerp(average, momentum))  # Nesterov momentum
                p.mul_(1 - lr * group["weight_decay"])
                p.sub_(update, alpha=lr * max(1, p.shape[0] / p.shape[1]) ** 0.5)


def make_optimizers(model: GPT, lr: float) -> list[torch.optim.Optimizer]:
    """Muon at `lr`, and AdamW: embeddings at 6 lr (a row is updated rarely), norms at 2 lr, a
    separate output head at lr / 2. Muon needs about half of AdamW's steps here."""
    matrices = [p for p in model.blocks.parameters() if p.ndim == 2]
    norms = [p for p in model.parameters() if p.ndim == 1]
    head = [] if model.config.tie_embeddings else [model.head.weight]
    groups = [
        dict(params=[model.embed.weight], lr=6 * lr),
        dict(params=norms, lr=2 * lr),
        dict(params=head, lr=lr / 2),
    ]
    adamw = torch.optim.AdamW(groups, weight_decay=0.0, betas=(0.9, 0.95), eps=1e-8)
    return [Muon(matrices, lr=lr), adamw]


def optimizer_step(
    model: torch.nn.Module,
    optimizers: list[torch.optim.Optimizer],
    loss: Tensor,
    clip: float | None = None,
):
    """One step of every optimizer down the loss.

    With `clip` the gradient of all parameters together is scaled down to a norm of at most that.
    The base and fine-tuning run without it. Muon and AdamW divide their steps by the size of recent
    gradients, so a long gradient makes no long step. Raises UserError, before the step, for a loss
    or a clipped gradient that is not finite.
    """
    at = optimizers[0].param_groups[0].get("step", "unknown")  # see set_lr
    remedy = f"at step {at}: the training has diverged; lower --lr (or a large --beta)"
    if not loss.isfinite():
        raise UserError(f"the loss is {loss.item()} {remedy}")
    model.zero_grad()
    loss.backward()
    if clip and not torch.nn.utils.clip_grad_norm_(model.parameters(), clip).isfinite():
        raise UserError(f"the gradient is not finite {remedy}")
    for optimizer in optimizers:
        optimizer.step()


def set_lr(optimizers, step: int, steps: int, warmup: float = 0.02, cooldown: float = 0.9):
    """Trapezoid: rise over the first `warmup` of the steps, hold, fall to zero over the last
    `cooldown` of them."""
    done = step / steps
    factor = min(1.0, (step + 1) / max(1.0, warmup * steps), (1.0 - done) / cooldown)
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group.setdefault("top_lr", group["lr"])
            group["lr"], group["step"] = group["top_lr"] * factor, step + 1
