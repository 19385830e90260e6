"""Losses against their formulas, gradients against finite differences, masks against poison."""

import inspect
import math

import pytest
import torch

from minicai import device
from minicai.dpo import (
    LOSSES,
    PER_TOKEN,
    cdpo_loss,
    dpo_loss,
    ipo_loss,
    kto_loss,
    orpo_loss,
    response_logps,
    simpo_loss,
)
from minicai.gpt import GPT, GPTConfig


@pytest.fixture(autouse=True)
def float32(monkeypatch):
    """No autocast, on any machine."""
    monkeypatch.setattr(device, "fast_dtype", lambda device: torch.float32)


def logps(n=5, seed=0, scale=4.0):
    g = torch.Generator().manual_seed(seed)
    return [-(scale * torch.rand(n, generator=g, dtype=torch.float64) + 0.1) for _ in range(4)]


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("p", [1.0, 0.3, "each"])
def test_gradients_agree_with_finite_differences(name, p):
    chosen, rejected, *refs = logps()
    chosen.requires_grad_(), rejected.requires_grad_()
    p = torch.linspace(0, 1, 5, dtype=torch.float64) if p == "each" else p
    if name == "kto":  # its reference point has no gradient: here it is cut at 0 and cannot move
        refs = [0 * r for r in refs]
    assert torch.autograd.gradcheck(
        lambda c, r: LOSSES[name](c, r, *refs, beta=0.3, p=p)[0], (chosen, rejected)
    )


@pytest.mark.parametrize("name", LOSSES)
def test_the_loss_pulls_the_chosen_answer_up_and_the_rejected_one_down(name):
    chosen, rejected, *refs = logps(seed=1, scale=0.5)
    chosen.requires_grad_(), rejected.requires_grad_()
    LOSSES[name](chosen, rejected, *refs, beta=0.3, p=1.0)[0].backward()
    assert (chosen.grad < 0).all() and (rejected.grad > 0).all()


@pytest.mark.parametrize("name", [n for n in LOSSES if n != "cdpo"])
def test_swapping_the_answers_swaps_the_label(name):
    c, r, rc, rr = logps(seed=2)
    p = torch.tensor([0.0, 0.2, 0.5, 0.9, 1.0], dtype=torch.float64)
    one, other = LOSSES[name](c, r, rc, rr, p=p)[0], LOSSES[name](r, c, rr, rc, p=1 - p)[0]
    torch.testing.assert_close(one, other)


@pytest.mark.parametrize("name", LOSSES)
def test_a_soft_label_is_the_mean_of_the_two_orders(name):
    c, r, rc, rr = logps(seed=3)
    one, other, mixed = (LOSSES[name](c, r, rc, rr, p=p)[0] for p in (1.0, 0.0, 0.7))
    torch.testing.assert_close(mixed, 0.7 * one + 0.3 * other)


@pytest.mark.parametrize(
    "name, value",
    [
        ("dpo", math.log(2)),
        ("cdpo", math.log(2)),
        ("dpop", math.log(2)),
        ("hinge", 1.0),
        ("ipo", 25.0),
        ("kto", 0.5),
    ],
)
def test_the_value_where_policy_and_reference_agree(name, value):
    c, r, _, _ = logps()
    for p in (1.0, 0.5, 0.0):
        loss, stats = LOSSES[name](c, r, c, r, beta=0.1, p=p)
        assert loss.item() == pytest.approx(value, abs=1e-12)
        assert stats["margin"] == 0 and stats["accuracy"] == 0.5


def test_dpo_by_hand():
    c, r, rc, rr = logps(n=1, seed=4)
    h = (c - rc - r + rr).item()
    for p in (1.0, 0.25):
        expected = -p * math.log(sigmoid(0.3 * h)) - (1 - p) * math.log(sigmoid(-0.3 * h))
        assert dpo_loss(c, r, rc, rr, beta=0.3, p=p)[0].item() == pytest.approx(expected)


def test_the_gradient_of_soft_dpo_is_sigmoid_minus_p():
    c, r, rc, rr = logps(seed=5)
    c.requires_grad_()
    p = torch.tensor([0.0, 0.3, 0.5, 0.8, 1.0], dtype=torch.float64)
    dpo_loss(c, r, rc, rr, beta=0.2, p=p)[0].backward()
    expected = 0.2 * (torch.sigmoid(0.2 * (c - rc - r + rr)) - p) / 5
    torch.testing.assert_close(c.grad, expected.detach())


def test_cdpo_is_dpo_with_labels_that_may_be_wrong():
    four = logps(seed=6)
    for p in (1.0, 0.3, 0.0):
        for eps in (0.1, 0.2):
            expected = dpo_loss(*four, p=p * (1 - eps) + (1 - p) * eps)[0]
            torch.testing.assert_close(cdpo_loss(*four, p=p, eps=eps)[0], expected)
        torch.testing.assert_close(cdpo_loss(*four, p=p)[0], cdpo_loss(*four, p=p, eps=0.1)[0])


def test_dpop_is_dpo_that_pays_for_what_the_better_answer_loses():
    def by_hand(c, r, rc, rr, beta, weight):
        return -math.log(sigmoid(beta * ((c - rc) - (r - rr) - weight * max(0.0, rc - c))))

    four = logps(seed=10)
    each = [by_hand(*(x.item() for x in one), 0.3, 2.0) for one in zip(*four)]
    swapped = [
        by_hand(r.item(), c.item(), rr.item(), rc.item(), 0.3, 2.0) for c, r, rc, rr in zip(*four)
    ]
    expected = sum(0.8 * a + 0.2 * b for a, b in zip(each, swapped)) / 5
    assert LOSSES["dpop"](*four, beta=0.3, p=0.8, weight=2.0)[0].item() == pytest.approx(expected)
    c, r, rc, rr = four
    nothing_lost = [LOSSES[name](rc + 1, r, rc, rr)[0] for name in ("dpo", "dpop")]
    torch.testing.assert_close(*nothing_lost)
    falls = [LOSSES[name](rc - 2, rr - 3, rc, rr)[0].item() for name in ("dpo", "dpop")]
    assert falls[0] < math.log(2) < falls[1]  # DPO is content where both fall


def test_ipo_is_the_squared_distance_to_its_target():
    _, r, rc, rr = logps(seed=7)
    for off in (0.0, 0.5, -2.0):
        c = r - rr + rc + 1 / (2 * 0.4) + off
        assert ipo_loss(c, r, rc, rr, beta=0.4)[0].item() == pytest.approx(off**2)


def test_hinge_is_zero_from_a_margin_of_one_on():
    c, zero = torch.tensor([-3.0, 0.0, 1.0, 2.0, 5.0]), torch.zeros(5)
    for margin, value in zip(c, (2.5, 1.0, 0.5, 0.0, 0.0)):
        four = margin[None], zero[:1], zero[:1], zero[:1]
        assert LOSSES["hinge"](*four, beta=0.5)[0].item() == pytest.approx(value)


def test_simpo_and_orpo_need_no_reference():
    c, r, rc, rr = logps(seed=8)
    for loss in (simpo_loss, orpo_loss):
        assert loss(c, r, rc, rr)[0] == loss(c, r, rr, c)[0]
    expected = sum(-math.log(sigmoid(3 * (a - b) - 0.5)) for a, b in zip(c, r)) / len(c)
    assert simpo_loss(c, r, rc, rr, beta=3.0)[0].item() == pytest.approx(expected)


def test_orpo_by_hand():
    c, r = (torch.tensor([x], dtype=torch.float64) for x in (-0.5, -1.5))
    odds = [math.exp(x) / (1 - math.exp(x)) for x in (-0.5, -1.5)]
    expected = 0.5 - 0.2 * math.log(sigmoid(math.log(odds[0] / odds[1])))
    assert orpo_loss(c, r, c, r, beta=0.2)[0].item() == pytest.approx(expected)


def test_kto_by_hand():
    c, r, rc, rr = logps(n=3, seed=9)
    a, b = (0.1 * (c - rc)).tolist(), (0.1 * (r - rr)).tolist()
    z = max(0.0, sum(a + b) / 6)
    expected = sum((1 - sigmoid(x - z)) + (1 - sigmoid(z - y)) for x, y in zip(a, b)) / 6
    assert kto_loss(c, r, rc, rr, beta=0.1)[0].item() == pytest.approx(expected)


def test_extreme_margins_stay_finite():
    big = torch.tensor([-2000.0, -0.01, 0.0])  # 0: the model is certain of the answer
    for name, loss in LOSSES.items():
        a, b = big.clone().requires_grad_(), big.flip(0).clone().requires_grad_()
        value, _ = loss(a, b, torch.zeros(3), torch.zeros(3))
        value.backward()
        assert value.isfinite() and a.grad.isfinite().all() and b.grad.isfinite().all(), name


@pytest.mark.parametrize("name", LOSSES)
def test_a_label_for_each_pair_or_one_for_all(name):
    with pytest.raises(ValueError, match="shape"):
        LOSSES[name](*(-torch.rand(4) for _ in range(4)), 0.1, torch.rand(4, 1))
    logps = [-torch.rand(4) for _ in range(4)]
    assert LOSSES[name](*logps, 0.1, True)[0] == LOSSES[name](*logps, 0.1, 1.0)[0]


@pytest.mark.parametrize("name", LOSSES)
def test_log_probabilities_that_would_broadcast_are_refused(name):
    error, words = (RuntimeError, "dimensions") if name == "kto" else (ValueError, "shape")
    with pytest.raises(error, match=words):
        LOSSES[name](-torch.rand(4, 1), *(-torch.rand(4) for _ in range(3)))


def test_stats_say_who_wins():
    zero = torch.zeros(4)
    chosen, rejected = torch.tensor([1.0, 1.0, -1.0, 0.0]), torch.tensor([0.0, 2.0, -3.0, 0.0])
    p = torch.tensor([1.0, 1.0, 0.0, 1.0])
    stats = dpo_loss(chosen, rejected, zero, zero, beta=0.5, p=p)[1]
    assert stats["accuracy"] == pytest.approx((1 + 0 + 0 + 0.5) / 4)
    assert stats["chosen_reward"] == pytest.approx(0.125) and stats["margin"] == pytest.approx(0.25)
    assert stats["rejected_reward"] == pytest.approx(-0.125)


@pytest.mark.parametrize("name", LOSSES)
def test_the_rewards_are_scaled_by_beta(name):
    c, r, rc, rr = logps(seed=11)
    stats = LOSSES[name](c, r, rc, rr, beta=0.3)[1]
    if name in ("simpo", "orpo"):
        rc, rr = 0 * rc, 0 * rr
    if name == "orpo":  # its reward is the log odds
        c, r = (torch.log(x.exp() / (1 - x.exp())) for x in (c, r))
    for key, value in (("chosen_reward", c - rc), ("rejected_reward", r - rr)):
        assert stats[key].item() == pytest.approx(0.3 * value.mean().item()), key


def test_all_losses_share_one_signature():
    signatures = {name: inspect.signature(f).parameters for name, f in LOSSES.items()}
    assert all(list(s)[:6] == list(signatures["dpo"]) for s in signatures.values())
    assert all(s["p"].default == 1.0 for s in signatures.values())
    betas = {name: s["beta"].default for name, s in signatures.items()}
    others = dict(ipo=0.1, simpo=2.0, orpo=0.1)  # they take means, so their scale is another
    assert betas == {name: others.get(name, 1.0) for name in LOSSES} and PER_TOKEN == set(others)


def test_the_reference_point_of_kto_is_not_learned():
    """Its gradient is that of the loss with z held where it is, here above 0."""
    chosen = torch.tensor([1.0, 2.0], dtype=torch.float64, requires_grad=True)
    rejected = torch.tensor([0.5, 3.0], dtype=torch.float64, requires_grad=True)
    zero, z = torch.zeros(2, dtype=torch.float64), 0.3 * (1.0 + 2.0 + 0.5 + 3.0) / 4
    better, worse = torch.sigmoid(0.3 * chosen - z), torch.sigmoid(z - 0.3 * rejected)
    held = ((1 - better) + (1 - worse)).mean() / 2
    loss = LOSSES["kto"](chosen, rejected, zero, zero, beta=0.3)[0]
    torch.testing.assert_close(loss, held)
    for a, b in zip(*(torch.autograd.grad(x, (chosen, rejected)) for x in (loss, held))):
        torch.testing.assert_close(a, b)


# --- log-probabilities of responses ---


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    model = GPT(GPTConfig(32, 2, 2, 2, 16, 32, 32)).double().eval()
    # At the initial scale all tokens are about equally likely, which would hide mistakes.
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


def rows(prompts, responses, width, fill=0):
    ids = torch.full((len(prompts), width), fill)
    mask = torch.zeros(len(prompts), width, dtype=torch.bool)
    for i, (p, r) in enumerate(zip(prompts, responses)):
        ids[i, : len(p + r)] = torch.tensor(p + r)
        mask[i, len(p) : len(p + r)] = True
    return ids, mask


def test_response_logps_are_the_sum_over_the_response_alone(model):
    prompts, responses = [[1, 2, 3], [4]], [[5, 6], [7, 8, 9, 10]]
    got = response_logps(model, *rows(prompts, responses, 9))
    mean = response_logps(model, *rows(prompts, responses, 9), per_token=True)
    for i, (p, r) in enumerate(zip(prompts, responses)):
        logp = model(torch.tensor([p + r]))[0].log_softmax(-1)
        expected = sum(logp[len(p) + k - 1, token] for k, token in enumerate(r))
        torch.testing.assert_close(got[i], expected.float())
        torch.testing.assert_close(mean[i], (expected / len(r)).float())


class Fixed(torch.nn.Module):
    """A model whose logits are given, so that their gradient can be read."""

    def __init__(self, logits):
        super().__init__()
        self.logits = logits

    def forward(self, ids):
        return self.logits[:, : ids.shape[1]]


def test_only_the_logits_that_predict_the_response_have_a_gradient():
    ids, mask = rows([[1, 2, 3], [4]], [[5, 6], [7, 8, 9, 10]], 9)
    logits = torch.randn(2, 9, 32, generator=torch.Generator().manual_seed(0)).requires_grad_()
    response_logps(Fixed(logits), ids, mask).sum().backward()
    columns = [row.any(-1).nonzero().flatten().tolist() for row in logits.grad != 0]
    assert columns == [[2, 3], [0, 1, 2, 3]]  # one before each token of the response


def test_what_a_pad_holds_and_how_many_there_are_changes_nothing(model):
    prompts, responses = [[1, 2, 3], [4]], [[5, 6], [7, 8, 9, 10]]
    sizes = (12, 0), (12, 31), (5, 0)  # width, and what a pad holds
    a, b, c = (response_logps(model, *rows(prompts, responses, *size)) for size in sizes)
    assert torch.equal(a, b)
    torch.testing.assert_close(a, c, atol=1e-5, rtol=0)


def test_an_empty_response_has_no_log_probability_and_not_nan(model):
    ids = torch.ones(2, 6, dtype=torch.long)
    mask = torch.zeros(2, 6)  # of any dtype
    mask[0, 3:] = 1
    for per_token in (False, True):
        logps = response_logps(model, ids, mask, per_token)
        assert logps.isfinite().all() and logps[1] == 0 and logps[0] < 0


def test_the_model_runs_under_autocast_and_log_probabilities_are_taken_in_float32(monkeypatch):
    monkeypatch.setattr(device, "fast_dtype", lambda device: torch.bfloat16)
    model, seen = GPT(GPTConfig(32, 1, 2, 2, 16, 32, 32)), []
    model.head.register_forward_hook(lambda module, inputs, logits: seen.append(logits))
    ids, mask = rows([[1, 2, 3]], [[5, 6]], 5)
    total, (logits,) = response_logps(model, ids, mask), seen
    assert logits.dtype == torch.bfloat16 and total.dtype == torch.float32
    logp = logits.double().log_softmax(-1)[0]
    assert total.item() == pytest.approx((logp[2, 5] + logp[3, 6]).item(), abs=1e-5)
