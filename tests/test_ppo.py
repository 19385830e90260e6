"""PPO's parts: GAE against its double sum, KL by enumeration, losses by hand, poison in masks."""

import inspect
import math

import numpy as np
import pytest
import torch

from minicai import ppo


def batch(seed=0, B=4, T=9):
    """Answers of several lengths at several places: one is a single token, one ends at the end."""
    g = torch.Generator().manual_seed(seed)
    mask = torch.zeros(B, T, dtype=torch.bool)
    for row, (start, end) in enumerate([(2, 6), (0, 5), (4, 5), (3, 9)]):
        mask[row, start:end] = True
    return mask, [torch.randn(B, T, generator=g, dtype=torch.float64) for _ in range(3)]


@pytest.mark.parametrize("gamma, lam", [(1.0, 0.95), (0.9, 0.5), (1.0, 0.0), (1.0, 1.0)])
def test_gae_is_its_definition(gamma, lam):
    mask, (rewards, values, _) = batch()
    advantages, returns = ppo.gae(rewards, values, mask, gamma, lam)
    for row in range(len(mask)):
        steps = mask[row].nonzero().flatten().tolist()
        r, v = rewards[row, steps].tolist(), values[row, steps].tolist() + [0.0]
        deltas = [r[t] + gamma * v[t + 1] - v[t] for t in range(len(r))]
        for t, column in enumerate(steps):
            expected = sum((gamma * lam) ** k * deltas[t + k] for k in range(len(r) - t))
            assert advantages[row, column].item() == pytest.approx(expected)
            assert returns[row, column].item() == pytest.approx(expected + v[t])
    assert (advantages[~mask] == 0).all() and (returns[~mask] == 0).all()


def test_without_discount_an_advantage_is_the_rest_of_the_reward_minus_the_value():
    mask, (rewards, values, _) = batch(1)
    advantages, returns = ppo.gae(rewards, values, mask, 1.0, 1.0)
    left = (rewards * mask).flip(1).cumsum(1).flip(1)
    torch.testing.assert_close(advantages[mask], (left - values)[mask])
    torch.testing.assert_close(returns[mask], left[mask])


@pytest.mark.parametrize("poison", [1e3, float("nan"), float("inf")])
def test_nothing_outside_the_mask_counts(poison):
    mask, (a, b, c) = batch(2)

    def everything(fill):
        x, y, z = (t.masked_fill(~mask, fill).requires_grad_() for t in (a, b, c))
        advantages, returns = ppo.gae(x, y, mask)
        loss, stats = ppo.policy_loss(x, y, ppo.whiten(advantages, mask).detach(), mask)
        total = loss + ppo.value_loss(z, y, returns.detach(), mask)
        grads = list(torch.autograd.grad(total, (x, z), retain_graph=True))
        shaped = ppo.shape_rewards(torch.arange(4.0), x, y, mask, 0.1)
        poisoned = advantages.masked_fill(~mask, fill)
        total = total + ppo.policy_loss(x, y, poisoned.detach(), mask)[0]
        total = total + ppo.value_loss(z, y, returns.detach().masked_fill(~mask, fill), mask)
        grads += torch.autograd.grad(total, (x, z))
        others = [
            ppo.masked_mean(x, mask),
            ppo.whiten(x, mask),
            ppo.explained_variance(y, z, mask),
            shaped,
        ]
        return [total, *grads, advantages, returns, *others, *stats.values()]

    for clean, dirty in zip(everything(0.0), everything(poison)):
        assert torch.equal(clean, dirty)


def test_garbage_outside_the_mask_reaches_no_gradient_of_the_entropy():
    mask, _ = batch()
    logits = torch.randn(*mask.shape, 5).masked_fill(~mask[..., None], float("nan"))
    ppo.entropy(logits.requires_grad_(), mask).backward()
    assert (logits.grad[~mask] == 0).all() and logits.grad[mask].isfinite().all()
    assert logits.grad[mask].abs().sum() > 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.long, torch.uint8])
def test_a_mask_may_be_of_any_dtype(dtype):
    mask, (x, y, z) = batch(4)

    def everything(m):
        loss, stats = ppo.policy_loss(x, y, z, m)
        return [
            *ppo.gae(x, y, m),
            loss,
            *stats.values(),
            ppo.masked_mean(x, m),
            ppo.whiten(x, m),
            ppo.value_loss(x, y, z, m),
            ppo.explained_variance(x, y, m),
            ppo.shape_rewards(torch.arange(4.0), x, y, m, 0.1),
            ppo.entropy(torch.stack([x, y, z], -1), m),
        ]

    for one, other in zip(everything(mask), everything(mask.to(dtype))):
        torch.testing.assert_close(one, other)


def test_gae_keeps_the_precision_of_its_rewards():
    mask = torch.ones(1, 2, dtype=torch.bool)
    rewards, values = torch.tensor([[0.0, 0.5]]), torch.zeros(1, 2, dtype=torch.long)
    advantages, _ = ppo.gae(rewards, values, mask, lam=1.0)
    assert advantages.tolist() == [[0.5, 0.5]]


def test_whitening_is_numpys_over_the_masked_entries():
    mask, (x, _, _) = batch(3)
    inside = x[mask].numpy()
    expected = (inside - inside.mean()) / inside.std(ddof=1)
    np.testing.assert_allclose(ppo.whiten(x, mask)[mask].numpy(), expected, atol=1e-6)
    scaled = ppo.whiten(x, mask, shift=False)
    np.testing.assert_allclose(scaled[mask].numpy(), expected + inside.mean(), atol=1e-6)
    one = torch.zeros(1, 3, dtype=torch.bool)
    one[0, 1] = True
    assert ppo.whiten(torch.tensor([[7.0, 5.0, 9.0]]), one).isfinite().all()


def test_a_constant_advantage_of_one_answer_survives_whitening():
    mask = torch.ones(2, 3, dtype=torch.bool)
    white = ppo.whiten(torch.tensor([[1.0, 1.0, 1.0], [-1.0, -1.0, -1.0]]), mask)
    assert (white[0] > 0.5).all() and (white[1] < -0.5).all()


# --- KL ---


def distributions():
    g = torch.Generator().manual_seed(0)
    policy, reference = (torch.randn(6, generator=g, dtype=torch.float64) for _ in range(2))
    return policy.requires_grad_(), reference.log_softmax(0)


def test_k1_and_k3_are_unbiased_and_k2_is_not():
    logits, ref = distributions()
    logp = logits.log_softmax(0).detach()
    kl = (logp.exp() * (logp - ref)).sum()
    means = [(logp.exp() * k).sum() for k in ppo.kl_estimates(logp, ref)]
    torch.testing.assert_close(means[0], kl)
    torch.testing.assert_close(means[2], kl)
    assert abs(means[1] - kl) > 1e-3
    g = torch.Generator().manual_seed(1)
    samples = torch.multinomial(logp.exp(), 200_000, replacement=True, generator=g)
    for k in (0, 2):
        values = ppo.kl_estimates(logp[samples], ref[samples])[k]
        assert abs(values.mean() - kl) < 4 * values.std() / math.sqrt(len(samples))


def test_the_gradients_of_the_estimators_are_those_documented():
    logits, ref = distributions()

    def grad(value):
        return torch.autograd.grad(value, logits, retain_graph=True)[0]

    def logp():
        return logits.log_softmax(0)

    reverse = grad((logp().exp() * (logp() - ref)).sum())  # KL(policy || reference)
    forward = grad((ref.exp() * (ref - logp())).sum())  # KL(reference || policy)
    weights = logp().exp().detach()
    as_loss = [grad((weights * k).sum()) for k in ppo.kl_estimates(logp(), ref)]
    torch.testing.assert_close(as_loss[0], torch.zeros_like(reverse))
    torch.testing.assert_close(as_loss[1], reverse)
    torch.testing.assert_close(as_loss[2], forward)
    k1 = (logp() - ref).detach()  # as a reward, in the score-function estimator
    torch.testing.assert_close(grad((weights * k1 * logp()).sum()), reverse)


def test_k3_of_a_small_step_keeps_its_digits():
    r = torch.tensor([1e-4, -1e-4])  # in float32 exp(-r) - 1 + r would be rounding alone
    assert ppo.kl_estimates(r, 0 * r)[2].tolist() == pytest.approx([5e-9] * 2, rel=1e-2)


def test_defaults_are_those_of_the_papers():
    def default(function, name):
        return inspect.signature(function).parameters[name].default

    assert default(ppo.gae, "gamma") == 1.0 and default(ppo.gae, "lam") == 0.95
    assert default(ppo.policy_loss, "clip") == default(ppo.value_loss, "clip") == 0.2


def test_k3_is_never_negative_and_stays_finite():
    r = torch.linspace(-200, 200, 1001)
    k3 = ppo.kl_estimates(r, torch.zeros_like(r))[2]
    assert (k3 >= 0).all() and k3.isfinite().all()


def test_k3_pulls_a_policy_back_however_far_above_its_reference_it_is():
    r = torch.tensor([-9.0, -1.0, 0.0, 1.0, 9.9, 10.1, 40.0], dtype=torch.float64)
    r.requires_grad_()
    ppo.kl_estimates(r, torch.zeros_like(r))[2].sum().backward()
    torch.testing.assert_close(r.grad, 1 - torch.exp(-r.detach()))


def test_the_score_comes_with_the_last_action_and_the_penalty_with_every_one():
    mask, (logps, ref, _) = batch(4)
    scores = torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=torch.float64)
    rewards = ppo.shape_rewards(scores, logps, ref, mask, 0.0)
    assert [(row.nonzero().flatten().tolist()) for row in rewards] == [[5], [4], [4], [8]]
    assert rewards.sum(1).tolist() == scores.tolist()
    penalised = ppo.shape_rewards(scores, logps, ref, mask, 0.5)
    torch.testing.assert_close((penalised - rewards)[mask], -0.5 * (logps - ref)[mask])
    assert (penalised[~mask] == 0).all()


def test_the_controller_pushes_beta_toward_the_target():
    control = ppo.AdaptiveKL(0.1, target=6.0, gain=0.5)
    control.update(12.0)  # error is cut at 0.2
    assert control.beta == pytest.approx(0.1 * (1 + 0.2 * 0.5))
    control.update(5.4)
    assert control.beta == pytest.approx(0.1 * 1.1 * (1 - 0.1 * 0.5))


# --- losses ---


def test_at_the_old_policy_the_ratio_is_one_and_the_loss_is_minus_the_mean_advantage():
    mask, (logps, advantages, _) = batch(5)
    loss, stats = ppo.policy_loss(logps, logps, advantages, mask)
    assert stats["ratio"] == 1 and stats["clip_fraction"] == 0 and stats["approx_kl"] == 0
    torch.testing.assert_close(loss, -advantages[mask].mean())


@pytest.mark.parametrize(
    "ratio, advantage, loss, gradient",
    [
        (1.1, 1.0, -1.1, True),
        (1.5, 1.0, -1.2, False),
        (1.5, -1.0, 1.5, True),
        (0.5, -1.0, 0.8, False),
        (0.5, 1.0, -0.5, True),
    ],
)
def test_clipping_only_stops_what_would_go_too_far(ratio, advantage, loss, gradient):
    mask = torch.ones(1, 1, dtype=torch.bool)
    logps = torch.tensor([[math.log(ratio)]], requires_grad=True)
    advantages = torch.tensor([[advantage]])
    got, stats = ppo.policy_loss(logps, torch.zeros(1, 1), advantages, mask, clip=0.2)
    got.backward()
    assert got.item() == pytest.approx(loss, rel=1e-5)
    assert (logps.grad.abs().item() > 0) == gradient != stats["clip_fraction"].item()
    assert stats["ratio"].item() == pytest.approx(ratio)


def test_a_ratio_beyond_all_numbers_is_clipped_and_has_no_gradient():
    logps, one = torch.zeros(1, 1, requires_grad=True), torch.ones(1, 1)
    loss, _ = ppo.policy_loss(logps, -1000 * one, one, one, clip=0.2)
    loss.backward()
    assert loss.item() == pytest.approx(-1.2) and logps.grad.item() == 0


def test_approx_kl_is_the_divergence_of_the_old_policy_from_the_new_one():
    new, old = distributions()
    new, samples = new.log_softmax(0).detach(), torch.arange(6)
    each = [
        ppo.policy_loss(new[i, None, None], old[i, None, None], torch.zeros(1, 1), torch.ones(1, 1))
        for i in samples
    ]
    found = sum(p * stats["approx_kl"] for p, (_, stats) in zip(old.exp(), each))
    torch.testing.assert_close(found, (old.exp() * (old - new)).sum())


def test_losses_have_the_gradients_of_finite_differences():
    mask, (logps, old, advantages) = batch(6)
    logps, old = 0.1 * logps, 0.1 * old
    logps.requires_grad_()
    for loss in (lambda *x: ppo.policy_loss(*x)[0], ppo.value_loss):
        assert torch.autograd.gradcheck(loss, (logps, old, advantages, mask))


@pytest.mark.parametrize(
    "value, old, target, clip, error",
    [
        (1.0, 0.0, 1.0, 0.2, 0.8),  # clipped to 0.2
        (1.0, 0.0, 1.0, 5.0, 0.0),
        (3.0, 2.0, 3.0, 0.2, 0.8),
        (1.0, 2.0, 1.0, 0.2, 0.8),
        (3.0, 2.0, 0.0, 0.2, 3.0),  # the plain error is the greater one
    ],
)
def test_value_loss_takes_the_worse_of_plain_and_clipped(value, old, target, clip, error):
    numbers = (torch.tensor([[x]]) for x in (value, old, target))
    loss = ppo.value_loss(*numbers, torch.ones(1, 1), clip)
    assert loss.item() == pytest.approx(0.5 * error**2)


def test_entropy_is_the_mean_over_the_masked_distributions():
    mask, _ = batch()
    assert ppo.entropy(torch.zeros(*mask.shape, 8), mask).item() == pytest.approx(math.log(8))
    logits = torch.randn(*mask.shape, 8, generator=torch.Generator().manual_seed(0))
    each = torch.distributions.Categorical(logits=logits[mask]).entropy()
    torch.testing.assert_close(ppo.entropy(logits, mask), each.mean())


def test_explained_variance_is_one_for_the_returns_and_zero_for_a_constant():
    mask, (returns, noise, _) = batch(7)
    assert ppo.explained_variance(returns, returns, mask) == 1
    for value in (0.0, 3.0):
        constant = torch.full_like(returns, value)
        assert ppo.explained_variance(constant, returns, mask).item() == pytest.approx(0)
    expected = 1 - noise[mask].var() / returns[mask].var()
    torch.testing.assert_close(ppo.explained_variance(returns - noise, returns, mask), expected)


# --- groups ---


def test_rloo_compares_with_the_others_and_grpo_with_the_group():
    returns = torch.tensor([1.0, 2.0, 6.0, 5.0, 5.0, 5.0])
    assert ppo.rloo(returns, 3).tolist() == pytest.approx([1 - 4, 2 - 3.5, 6 - 1.5, 0, 0, 0])
    group = np.array([1.0, 2.0, 6.0])
    expected = (group - 3) / group.std(ddof=1)
    assert ppo.grpo(returns, 3)[:3].numpy() == pytest.approx(expected, rel=1e-3)
    assert ppo.grpo(returns, 3)[3:].abs().sum() == 0
    for function in (ppo.rloo, ppo.grpo):
        for bad in (1, 4):
            with pytest.raises(ValueError, match=f"6 answers do not make groups of {bad}"):
                function(returns, bad)


def test_gae_is_one_of_three_kinds_of_advantages():
    mask, (rewards, values, _) = batch(9)
    found = ppo.advantages("gae", rewards, torch.full((4,), 9.0), values, mask, group=1)
    for a, b in zip(found, ppo.gae(rewards, values, mask)):
        assert torch.equal(a, b)


@pytest.mark.parametrize("kind", ["rloo", "grpo"])
def test_the_tokens_of_an_answer_share_the_advantage_of_its_group(kind):
    mask, (rewards, values, _) = batch(10)
    rewards, scores = rewards * mask, torch.tensor([1.0, 3.0, -2.0, 5.0], dtype=torch.float64)
    found, _ = ppo.advantages(kind, rewards, scores, values, mask, group=2)
    whole = ppo.rloo(rewards.sum(1), 2) if kind == "rloo" else ppo.grpo(scores, 2)
    assert whole.abs().min() > 0.1 and found.shape == mask.shape
    for row in range(4):
        assert (found[row, mask[row]] == whole[row]).all()
        assert (found[row, ~mask[row]] == 0).all()


def test_means_are_over_the_masked_entries_alone():
    """Zeros outside the mask are not enough: in a mean they would still be counted."""
    mask, (x, y, z) = batch(8)
    logits = torch.randn(*mask.shape, 5, generator=torch.Generator().manual_seed(0))

    def everything(x, y, z, logits, mask):
        loss, stats = ppo.policy_loss(x, y, z, mask)
        return [loss, *stats.values(), ppo.value_loss(x, y, z, mask), ppo.entropy(logits, mask)]

    alone = [t[mask][None] for t in (x, y, z, logits)]  # one row without a hole
    full = torch.ones(alone[0].shape, dtype=torch.bool)
    for a, b in zip(everything(x, y, z, logits, mask), everything(*alone, full)):
        torch.testing.assert_close(a, b)
