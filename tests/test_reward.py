"""The reward model: what it reads, and its soft-label Bradley-Terry loss."""

import math
from argparse import Namespace

import pytest
import torch

from minicai import device
from minicai.files import UserError, load_policy, save_checkpoint
from minicai.gpt import GPT, GPTConfig
from minicai.reward import RewardModel, bradley_terry_loss
from minicai.tokenizer import Tokenizer

CONFIG = GPTConfig(32, 2, 2, 2, 16, 32, 32)


@pytest.fixture(autouse=True)
def float32(monkeypatch):
    """No autocast, on any machine."""
    monkeypatch.setattr(device, "fast_dtype", lambda device: torch.float32)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return RewardModel(GPT(CONFIG)).eval()


@pytest.mark.parametrize("score", [None, 5, {}, dict(weight=torch.ones(1, 3), bias=torch.ones(1))])
def test_a_reward_model_without_its_head_is_refused(tmp_path, model, score):
    tokenizer = Tokenizer.train(["some text"], 270)
    extra = {} if score is None else dict(score=score)
    save_checkpoint(tmp_path / "rm.pt", model.gpt, tokenizer, Namespace(), kind="reward", **extra)
    with pytest.raises(UserError, match="rm.pt has no head that gives a score; train it again"):
        RewardModel.load(tmp_path / "rm.pt")


def test_the_head_starts_as_in_stiennon():
    torch.manual_seed(0)
    score = RewardModel(GPT(GPTConfig(32, 1, 2, 2, 1024, 32, 8))).score
    assert score.bias.item() == 0
    assert score.weight.std().item() == pytest.approx(1025**-0.5, rel=0.1)


def test_the_loss_is_ln_2_at_equal_scores_and_falls_with_the_margin():
    zero = torch.zeros(3)
    for p in (1.0, 0.5, 0.0):
        assert bradley_terry_loss(zero, zero, p).item() == pytest.approx(math.log(2))
    expected = -math.log(1 / (1 + math.exp(-2)))
    assert bradley_terry_loss(zero + 2, zero).item() == pytest.approx(expected, rel=1e-5)
    assert bradley_terry_loss(zero + 200, zero).item() == pytest.approx(0)
    assert bradley_terry_loss(zero, zero + 200).item() == pytest.approx(200)


def test_its_gradient_is_sigmoid_minus_p_and_its_minimum_the_labels_logit():
    d = torch.linspace(-3, 3, 7, dtype=torch.float64, requires_grad=True)
    p = torch.tensor([0, 0.1, 0.3, 0.5, 0.7, 0.9, 1.0], dtype=torch.float64)
    (7 * bradley_terry_loss(d, torch.zeros_like(d), p)).backward()
    torch.testing.assert_close(d.grad, torch.sigmoid(d.detach()) - p)
    logit = torch.logit(p[1:-1]).requires_grad_()
    bradley_terry_loss(logit, torch.zeros_like(logit), p[1:-1]).backward()
    assert logit.grad.abs().max() < 1e-12


@pytest.mark.parametrize(
    "shapes", [((4, 1), (4, 1), (4,)), ((4, 1), (4,), ()), ((4,), (4,), (4, 1)), ((4,), (4,), (3,))]
)
def test_shapes_that_would_broadcast_to_other_pairs_are_refused(shapes):
    with pytest.raises(ValueError, match="scores must be"):
        bradley_terry_loss(*map(torch.rand, shapes))


def test_finite_differences_and_swapping():
    g = torch.Generator().manual_seed(0)
    a, b, p = (torch.rand(5, generator=g, dtype=torch.float64) for _ in range(3))
    assert torch.autograd.gradcheck(
        lambda x, y: bradley_terry_loss(x, y, p), (a.requires_grad_(), b.requires_grad_())
    )
    torch.testing.assert_close(bradley_terry_loss(a, b, p), bradley_terry_loss(b, a, 1 - p))


def test_the_score_is_read_at_the_last_real_token_whatever_stands_behind(model):
    ids = torch.randint(0, 32, (3, 8), generator=torch.Generator().manual_seed(1))
    lengths = torch.tensor([8, 5, 1])
    scores = model(ids, lengths)
    other = ids.clone()
    other[1, 5:], other[2, 1:] = 31, 7
    assert torch.equal(scores, model(other, lengths))
    for row, n in enumerate(lengths.tolist()):  # alone, without pads
        hidden = model.gpt.hidden(ids[row : row + 1, :n])[0, -1]
        torch.testing.assert_close(scores[row], model.score(hidden)[0], atol=1e-5, rtol=1e-5)


def test_under_autocast_scores_that_differ_by_less_than_bfloat16_can_hold_are_no_ties(
    model, monkeypatch
):
    """bfloat16 has 8 bits: around 4 its numbers are 1/32 apart."""
    monkeypatch.setattr(device, "fast_dtype", lambda device: torch.bfloat16)
    seen, ids = [], torch.randint(0, 32, (64, 8), generator=torch.Generator().manual_seed(0))
    model.gpt.blocks[1].mlp.down.register_forward_hook(lambda *call: seen.append(call[-1].dtype))
    model.shift(4.0)
    scores = model(ids, torch.full((64,), 8))
    assert seen == [torch.bfloat16] and scores.dtype == torch.float32
    assert len(set(scores.tolist())) == 64


def test_pads_that_do_not_fit_the_context_do_no_harm(model):
    size = model.gpt.config.block_size
    ids = torch.randint(0, 32, (2, size + 9), generator=torch.Generator().manual_seed(2))
    lengths = torch.tensor([size, 3])
    assert torch.equal(model(ids, lengths), model(ids[:, :size], lengths))


def test_a_shift_changes_every_score_by_as_much(model):
    ids, lengths = torch.ones(2, 4, dtype=torch.long), torch.tensor([4, 2])
    before = model(ids, lengths)
    model.shift(-1.5)
    torch.testing.assert_close(model(ids, lengths), before - 1.5)


def test_it_comes_back_from_disk_as_it_was_and_is_no_policy(model, tmp_path):
    path, tokenizer = tmp_path / "rm.pt", Tokenizer.train(["a word"], 270)
    model.save(path, tokenizer, Namespace(seed=3), note=4)
    again, its_tokenizer, extra = RewardModel.load(path)
    ids, lengths = torch.randint(0, 32, (2, 6)), torch.tensor([6, 3])
    assert torch.equal(model(ids, lengths), again(ids, lengths)) and not again.training
    assert its_tokenizer.to_json() == tokenizer.to_json()
    assert extra["note"] == 4 and extra["options"] == dict(seed=3)
    with pytest.raises(UserError, match="rm.pt holds a 'reward' model"):
        load_policy(path)
