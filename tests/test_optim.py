"""Muon against PyTorch's own and the SVD, the step against plain descent, and the schedule."""

import pytest
import torch

from minicai import optim
from minicai.files import UserError
from minicai.gpt import GPT, GPTConfig
from minicai.optim import Muon, make_optimizers, optimizer_step, orthogonalize, set_lr

SHAPES = [(24, 24), (16, 40), (40, 16)]


@pytest.mark.parametrize("shape", SHAPES)
def test_orthogonalize_keeps_the_singular_vectors_and_levels_the_values(shape, monkeypatch):
    monkeypatch.setattr(optim, "fast_dtype", lambda device: torch.float32)
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(0))
    u, s, vt = torch.linalg.svd(x, full_matrices=False)
    leveled = u.T @ orthogonalize(x) @ vt.T
    assert leveled.diagonal().min() > 0.3  # the smallest started at about 0.003 of the norm
    assert leveled.diagonal()[s > 0.05 * x.norm()].min() > 0.65 and leveled.diagonal().max() < 1.25
    assert (leveled - leveled.diagonal().diag()).abs().max() < 1e-4
    torch.testing.assert_close(orthogonalize(1000 * x), orthogonalize(x), rtol=1e-4, atol=1e-4)


def test_muon_steps_as_pytorch_does(monkeypatch):
    # PyTorch's computes in bfloat16 everywhere.
    monkeypatch.setattr(optim, "fast_dtype", lambda device: torch.bfloat16)
    generator = torch.Generator().manual_seed(1)
    ours = [torch.nn.Parameter(torch.randn(*shape, generator=generator)) for shape in SHAPES]
    theirs = [torch.nn.Parameter(p.detach().clone()) for p in ours]
    options = dict(lr=0.1, weight_decay=0.3, momentum=0.9)
    optimizers = Muon(ours, **options), torch.optim.Muon(theirs, **options)
    for _ in range(4):
        for one, other in zip(ours, theirs):
            one.grad = torch.randn(one.shape, generator=generator)
            other.grad = one.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
    for one, other in zip(ours, theirs):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("tied", [True, False])
def test_every_parameter_is_trained_once_and_at_its_own_rate(tied):
    model = GPT(GPTConfig(50, 2, 2, 1, 16, 24, 32, tie_embeddings=tied))
    muon, adamw = make_optimizers(model, lr=0.1)
    groups = muon.param_groups + adamw.param_groups
    trained = [(id(p), group["lr"]) for group in groups for p in group["params"]]
    rates = dict(trained)
    assert len(trained) == len(rates) and set(rates) == {id(p) for p in model.parameters()}
    for name, p in model.named_parameters():
        wanted = {"embed.weight": 0.6, "head.weight": 0.05}.get(name, 0.1 if p.ndim == 2 else 0.2)
        assert rates[id(p)] == pytest.approx(wanted), name
    assert isinstance(muon, Muon) and muon.defaults["momentum"] == 0.95
    assert all(p.ndim == 2 for p in muon.param_groups[0]["params"])
    assert isinstance(adamw, torch.optim.AdamW) and adamw.defaults["betas"] == (0.9, 0.95)
    assert all(group["weight_decay"] == 0 for group in adamw.param_groups)


def test_the_learning_rate_rises_holds_and_falls_to_zero():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=2.0)
    rates = []
    for step in range(100):
        set_lr([optimizer], step, 100, warmup=0.1, cooldown=0.5)
        rates.append(optimizer.param_groups[0]["lr"])
    assert rates[:10] == pytest.approx([0.2 * (i + 1) for i in range(10)])
    assert rates[10:50] == [2.0] * 40
    assert rates[50:] == pytest.approx([2.0 * (100 - i) / 50 for i in range(50, 100)])


@pytest.mark.parametrize("clip", [None, 1.0, 1e9])
def test_a_step_down_the_loss_forgets_old_gradients_and_shortens_long_ones(clip):
    x, y = torch.randn(5, 4), torch.randn(5, 3)
    models = [torch.nn.Linear(4, 3) for _ in "ab"]
    models[1].load_state_dict(models[0].state_dict())
    sgd = torch.optim.SGD(models[0].parameters(), lr=0.1)
    for p in models[0].parameters():
        p.grad = torch.ones_like(p)  # left over from something else
    for _ in range(3):
        losses = [50 * (model(x) - y).square().mean() for model in models]
        optimizer_step(models[0], [sgd], losses[0], clip)
        gradients = torch.autograd.grad(losses[1], list(models[1].parameters()))
        length = torch.cat([g.flatten() for g in gradients]).norm()
        assert length > 1
        for p, g in zip(models[1].parameters(), gradients):
            p.data -= 0.1 * g * (min(1.0, clip / length) if clip else 1.0)
    for p, q in zip(models[0].parameters(), models[1].parameters()):
        torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_loss_that_is_not_finite_ends_the_training_before_the_step(bad):
    model = torch.nn.Linear(4, 3)
    before = [p.clone() for p in model.parameters()]
    sgd = torch.optim.SGD(model.parameters(), lr=0.1)
    set_lr([sgd], 6, 100)
    with pytest.raises(UserError, match=f"the loss is {bad} at step 7: .* lower --lr"):
        optimizer_step(model, [sgd], model(torch.ones(4)).sum() + bad)
    assert all(map(torch.equal, model.parameters(), before))


def test_a_clipped_gradient_that_is_not_finite_ends_the_training_before_the_step():
    model = torch.nn.Linear(1, 1)
    before = [p.clone() for p in model.parameters()]
    loss = (model(torch.ones(1)) * 0).sqrt().sum()  # 0, and its gradient is 0 * inf
    with pytest.raises(UserError, match="the gradient is not finite at step unknown: .*lower --lr"):
        optimizer_step(model, [torch.optim.SGD(model.parameters(), lr=1.0)], loss, clip=1.0)
    assert all(torch.equal(p, old) for p, old in zip(model.parameters(), before))
