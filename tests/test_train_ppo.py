"""The loop around PPO: what of an answer is scored, where, and by whose values."""

import copy
import random
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch

import train_ppo
from minicai import ppo
from minicai.gpt import GPT, GPTConfig, token_logps
from minicai.reward import RewardModel
from minicai.sampler import Completion
from minicai.tokenizer import Tokenizer, talk
from minicai.world.content import World
from minicai.world.requests import Part

PAD = 31


def tiny(seed):
    torch.manual_seed(seed)
    model = GPT(GPTConfig(32, 1, 2, 2, 16, 32, 40))
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.3)
    return model.eval()


def test_each_answer_is_scored_alone_at_its_end_and_one_without_an_end_gets_the_penalty(
    monkeypatch,
):
    monkeypatch.setattr(train_ppo, "autocast", lambda device: nullcontext())
    policy, reference, reward = tiny(0), tiny(1), RewardModel(tiny(2))
    end, said = 30, [7, 8, 9]
    prompts = [[1, 2], [3, 4, 5, 6, 1, 2, 3], [1, 2], [1, 2], [1, 2, 3]]
    done = [
        ([*said, end], "stop"),
        ([*said * 3, end], "stop"),
        ([*said, end], "length"),
        ([end], "stop"),
        (said, "length"),
    ]
    done = [Completion(ids, [0.0] * len(ids), why) for ids, why in done]
    args = SimpleNamespace(device="cpu", advantage="gae", group=1, end_penalty=-7.0)
    actor = train_ppo.Actor(policy)
    torch.nn.init.normal_(actor.value.weight)
    batch = train_ppo.score(actor, reference, reward, prompts, done, 0.1, args, PAD)
    assert (
        batch["mask"].sum(1).tolist() == [len(c.ids) for c in done]
        and batch["scores"][2:].tolist() == [-7.0] * 3
    )
    for i, (prompt, c) in enumerate(zip(prompts, done)):
        ids = torch.tensor([prompt + c.ids])
        with torch.no_grad():
            r = (token_logps(policy(ids[:, :-1]), ids) - token_logps(reference(ids[:, :-1]), ids))[
                0, len(prompt) - 1 :
            ]
            if i < 2:
                alone = reward(ids, torch.tensor([ids.shape[1]])).item()
                assert batch["scores"][i].item() == pytest.approx(alone, abs=1e-5)
            values = actor(ids)[1][0, len(prompt) - 1 :]
        assert batch["kl"][i].item() == pytest.approx(r.sum().item(), abs=1e-4)
        # gamma = 1: the returns of the last action are its reward alone
        last = batch["scores"][i].item() - 0.1 * r[-1].item()
        at = batch["mask"][i].nonzero().flatten()
        assert batch["returns"][i, at[-1]].item() == pytest.approx(last, abs=1e-4)
        torch.testing.assert_close(batch["values"][i, at], values, atol=1e-4, rtol=0)
    assert batch["advantages"][~batch["mask"]].eq(0).all()


def test_a_value_is_zero_at_first_and_then_of_its_own_state():
    actor = train_ppo.Actor(tiny(0))
    ids = torch.randint(0, 32, (2, 9), generator=torch.Generator().manual_seed(0))
    other = ids.clone()
    other[:, 5:] = (other[:, 5:] + 1) % 32
    with torch.no_grad():
        assert (actor(ids)[1] == 0).all()
        torch.nn.init.normal_(actor.value.weight)
        a, b = actor(ids)[1], actor(other)[1]
        with torch.autocast("cpu", torch.bfloat16):
            assert actor(ids)[1].dtype == torch.float32
    assert a.shape == (2, 8) and torch.equal(a[:, :5], b[:, :5]) and (a[:, 5:] != b[:, 5:]).all()


def test_a_step_raises_what_did_well_and_brings_values_nearer(monkeypatch):
    monkeypatch.setattr(train_ppo, "autocast", lambda device: nullcontext())
    args = SimpleNamespace(
        device="cpu", advantage="gae", clip=0.2, value_coef=1.0, entropy_coef=0.0
    )
    torch.manual_seed(0)
    actor, ids, mask = (
        train_ppo.Actor(tiny(0)),
        torch.randint(0, 32, (2, 9)),
        torch.zeros(2, 8, dtype=torch.bool),
    )
    mask[0, 3:6] = mask[1, 3:8] = True
    sign, zero = torch.tensor([[1.0], [-1.0]]).expand(2, 8), torch.zeros(2, 8)

    def measure(model):
        with torch.no_grad():
            logits, values = model(ids)
            return (
                token_logps(logits, ids),
                ppo.value_loss(values, zero, sign, mask, 9.0),
                ppo.entropy(logits, mask),
            )

    def change(advantages, returns):
        """What one step changes: log-probabilities, value error, entropy."""
        model, before = copy.deepcopy(actor), measure(actor)
        learned = dict(
            ids=ids, mask=mask, logps=before[0], values=zero, advantages=advantages, returns=returns
        )
        train_ppo.climb(model, torch.optim.SGD(model.parameters(), lr=0.01), learned, 0.0, args)
        return [new - old for new, old in zip(measure(model), before)]

    assert (change(sign, zero)[0] * sign * mask).sum(1).gt(0).all()
    assert change(zero, sign)[1] < 0
    args.entropy_coef = 1.0
    assert change(zero, zero)[2] > 0


def test_the_loss_of_grpo_holds_beta_times_the_mean_of_k3(monkeypatch):
    monkeypatch.setattr(train_ppo, "autocast", lambda device: nullcontext())
    args = SimpleNamespace(device="cpu", advantage="grpo", clip=0.2, entropy_coef=0.0)
    actor, reference, beta = train_ppo.Actor(tiny(0)), tiny(1), 0.7
    ids = torch.randint(0, 32, (2, 9), generator=torch.Generator().manual_seed(0))
    mask = torch.zeros(2, 8, dtype=torch.bool)
    mask[0, 3:6] = mask[1, 3:8] = True
    logps = token_logps(actor(ids)[0], ids)
    with torch.no_grad():
        ref_logps = token_logps(reference(ids[:, :-1]), ids)
    r = (logps - ref_logps)[mask]
    wanted = torch.autograd.grad(
        beta * (torch.exp(-r) - 1 + r).mean(), list(actor.gpt.parameters())
    )
    learned = dict(
        ids=ids, mask=mask, logps=logps.detach(), ref_logps=ref_logps, advantages=torch.zeros(2, 8)
    )
    train_ppo.climb(actor, torch.optim.SGD(actor.parameters(), lr=0.0), learned, beta, args)
    found = [p.grad for p in actor.gpt.parameters()]
    length = torch.sqrt(sum((g**2).sum() for g in wanted)).clamp(
        min=1.0
    )  # gradients are clipped to 1
    assert length > 0.05
    for g, w in zip(found, wanted):
        torch.testing.assert_close(g, w / length, atol=1e-5, rtol=1e-4)


def test_a_prompt_too_long_to_answer_loses_its_oldest_words(monkeypatch):
    world = World("world")
    part, tokenizer, seen = Part(world, "demo"), Tokenizer.train(["a word"] * 20, 300), []
    requests = [part.draw(random.Random(i), "legitimate") for i in range(3)]
    monkeypatch.setattr(train_ppo, "autocast", lambda device: nullcontext())
    monkeypatch.setattr(train_ppo, "draw_prompts", lambda *a: list(requests))
    monkeypatch.setattr(train_ppo, "generate", lambda gpt, prompts, *a, **k: seen.append(prompts))
    gpt = SimpleNamespace(config=SimpleNamespace(block_size=train_ppo.MAX_NEW_TOKENS + 20))
    args = SimpleNamespace(device="cpu", seed=0, ppo_episodes=3, group=1)
    asked, prompts, _ = train_ppo.roll_out(gpt, tokenizer, part, args, 0)
    whole = [tokenizer.prompt(talk(*r.turns)) for r in asked]
    assert max(map(len, whole)) > 20 and seen[0] == prompts == [ids[-20:] for ids in whole]
