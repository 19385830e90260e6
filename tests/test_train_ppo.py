"""The loop around PPO: its rollouts, its steps, and a whole training of a tiny model."""

import copy
import json
from argparse import Namespace

import pytest
import torch

import minicai.answer
import train_ppo
from minicai import device, ppo
from minicai.files import UserError, load_policy, save_checkpoint
from minicai.gpt import GPT, GPTConfig, token_logps
from minicai.reward import RewardModel
from minicai.rollout import Actor
from minicai.sampler import Completion
from minicai.tokenizer import Tokenizer, talk
from minicai.world.content import World
from minicai.world.requests import Part

TOKENIZER = Tokenizer.train(["How do I do this? You could ask someone."] * 20, 300)


@pytest.fixture(autouse=True)
def float32(monkeypatch):
    """No autocast, on any machine."""
    monkeypatch.setattr(device, "fast_dtype", lambda device: torch.float32)


@pytest.fixture(scope="module")
def world():
    return World("world")


def tiny(seed, vocab_size=32, block_size=40):
    torch.manual_seed(seed)
    model = GPT(GPTConfig(vocab_size, 1, 2, 2, 16, 32, block_size))
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.3)
    return model.eval()


# --- rollouts ---


@pytest.fixture
def asked(monkeypatch):
    """The prompts and settings that reach the sampler, which answers nothing."""
    calls = []

    def sample(gpt, tokenizer, prompts, temperature, seed):
        calls.append((prompts, temperature, seed))
        return [Completion([tokenizer.end], [0.0], "stop") for _ in prompts]

    monkeypatch.setattr(train_ppo, "sample", sample)
    return calls


def test_answers_to_one_prompt_are_neighbours_and_every_update_asks_anew(world, asked):
    gpt, part = tiny(0, block_size=1024), Part(world, "demo")
    both = [train_ppo.rollout(gpt, TOKENIZER, part, 24, 3, 5, update) for update in (0, 1)]
    for (requests, prompts, completions), (sampled, temperature, _) in zip(both, asked):
        assert len(requests) == len(prompts) == len(completions) == 24 and sampled == prompts
        assert temperature == 1.0
        assert all(len(set(requests[i : i + 3])) == 1 for i in range(0, 24, 3))
        assert prompts == [TOKENIZER.prompt(talk(*r.turns)) for r in requests]
        assert not any(request.type == "fact" for request in requests)
        lengths = [sum(map(len, request.turns)) for request in requests]
        assert lengths == sorted(lengths)
    assert both[0][1] != both[1][1] and asked[0][2] != asked[1][2]
    again = train_ppo.rollout(gpt, TOKENIZER, part, 24, 3, 5, 0)
    assert again[1] == both[0][1] and asked[2] == asked[0]
    train_ppo.rollout(gpt, TOKENIZER, part, 24, 3, 6, 0)
    assert asked[3][0] != asked[0][0] and asked[3][2] != asked[0][2]


def test_a_prompt_too_long_to_answer_loses_its_oldest_words(world, asked):
    gpt = tiny(0, block_size=minicai.answer.MAX_NEW_TOKENS + 20)
    requests, prompts, _ = train_ppo.rollout(gpt, TOKENIZER, Part(world, "demo"), 4, 1, 0, 0)
    whole = [TOKENIZER.prompt(talk(*r.turns)) for r in requests]
    assert max(map(len, whole)) > 20 and prompts == [ids[-20:] for ids in whole]


# --- steps ---


def answers(seed=0):
    """ids (2, 9), and mask (2, 8) of two answers."""
    ids = torch.randint(0, 32, (2, 9), generator=torch.Generator().manual_seed(seed))
    mask = torch.zeros(2, 8, dtype=torch.bool)
    mask[0, 3:6] = mask[1, 3:8] = True
    return ids, mask


def test_a_step_raises_what_did_well_and_brings_values_nearer(monkeypatch):
    monkeypatch.setattr(train_ppo, "VALUE_COEF", 1.0)
    actor, (ids, mask) = Actor(tiny(0)), answers()
    sign, zero = torch.tensor([[1.0], [-1.0]]).expand(2, 8), torch.zeros(2, 8)

    @torch.no_grad()
    def measure(model):
        """Log-probabilities, value error, entropy."""
        logits, values = model(ids)
        error = ppo.value_loss(values, zero, sign, mask, 9.0)
        return token_logps(logits, ids), error, ppo.entropy(logits, mask)

    def change(advantages, returns, kind="gae"):
        """What one step changes of these."""
        model, before = copy.deepcopy(actor), measure(actor)
        b = dict(ids=ids, mask=mask, logps=before[0], values=zero)
        b |= dict(advantages=advantages, returns=returns)
        sgd = torch.optim.SGD(model.parameters(), lr=0.01)
        stats = train_ppo.ppo_step(model, sgd, b, kind, beta=0.0)
        assert stats["ratio"] == 1 and stats["entropy"] == before[2]
        return [new - old for new, old in zip(measure(model), before)]

    assert (change(sign, zero)[0] * sign * mask).sum(1).gt(0).all()
    assert change(zero, sign)[1] < 0
    assert change(zero, sign, "rloo")[1] == 0  # values are not trained
    assert change(zero, zero)[2] == 0
    monkeypatch.setattr(train_ppo, "ENTROPY_COEF", 1.0)
    assert change(zero, zero)[2] > 0


@pytest.mark.parametrize("kind, beta", [("grpo", 0.7), ("rloo", 0.7), ("gae", 0.7)])
def test_only_the_loss_of_grpo_holds_beta_times_the_mean_of_k3(kind, beta):
    actor, reference, (ids, mask) = Actor(tiny(0)), tiny(1), answers()
    logps = token_logps(actor(ids)[0], ids)
    with torch.no_grad():
        ref_logps = token_logps(reference(ids[:, :-1]), ids)
    r = (logps - ref_logps)[mask]
    k3 = (torch.exp(-r) - 1 + r).mean() * (beta if kind == "grpo" else 0.0)
    wanted = torch.autograd.grad(k3, list(actor.gpt.parameters()))
    zero = torch.zeros(2, 8)
    b = dict(ids=ids, mask=mask, logps=logps.detach(), ref_logps=ref_logps)
    b |= dict(advantages=zero, values=zero, returns=zero)
    train_ppo.ppo_step(actor, torch.optim.SGD(actor.parameters(), lr=0.0), b, kind, beta)
    length = torch.sqrt(sum((g**2).sum() for g in wanted)).clamp(min=1.0)  # clipped to 1
    assert (length > 0.05) if kind == "grpo" else (length == 1)
    for p, w in zip(actor.gpt.parameters(), wanted):
        torch.testing.assert_close(p.grad, w / length, atol=1e-5, rtol=1e-4)


def test_a_gradient_is_at_most_one_long():
    actor, (ids, mask) = Actor(tiny(0)), answers()
    with torch.no_grad():
        logps = token_logps(actor(ids)[0], ids)
    b = dict(ids=ids, mask=mask, logps=logps, advantages=torch.full((2, 8), 1e4))
    train_ppo.ppo_step(actor, torch.optim.SGD(actor.parameters(), lr=0.0), b, "rloo", 0.0)
    gradients = [p.grad.flatten() for p in actor.parameters() if p.grad is not None]
    assert torch.cat(gradients).norm().item() == pytest.approx(1, rel=1e-3)


# --- the training ---


@pytest.fixture
def train(world, monkeypatch, tmp_path):
    """A function that trains a tiny model: (options, the model before, calls that scored)."""
    monkeypatch.setattr(minicai.answer, "MAX_NEW_TOKENS", 64)  # so that some come to an end
    monkeypatch.setattr(train_ppo.World, "of", lambda args: world)
    settings = dict(out=tmp_path, device="cpu", seed=0, beta=0.2, name=None)
    settings |= dict(ppo_updates=3, ppo_episodes=16, ppo_lr=1e-2)

    def run(kind, **more):
        args = Namespace(**settings | dict(advantage=kind) | more)
        gpt = tiny(0, TOKENIZER.vocab_size, 600)
        before, calls = copy.deepcopy(gpt), []
        reward = RewardModel(tiny(2, TOKENIZER.vocab_size, 600))
        monkeypatch.setattr(train_ppo, "options", lambda: args)
        monkeypatch.setattr(train_ppo, "load", lambda args: (gpt, TOKENIZER, reward))
        score_answers = train_ppo.score_answers

        def spy(actor, reference, *rest):
            scored = score_answers(actor, reference, *rest)
            calls.append((actor, reference, rest, scored))
            return scored

        monkeypatch.setattr(train_ppo, "score_answers", spy)
        train_ppo.train()
        return args, before, calls

    return run


@pytest.mark.parametrize("kind, size", [("gae", 2), ("rloo", 4), ("grpo", 4)])
def test_a_training_learns_from_its_answers_and_keeps_its_reference(train, monkeypatch, kind, size):
    made, steps, adamw, ppo_step = [], [], torch.optim.AdamW, train_ppo.ppo_step

    def optimizer(params, **settings):
        made.append(settings)
        return adamw(params, **settings)

    def step(actor, optimizer, b, kind, beta):
        steps.append((optimizer.param_groups[0]["lr"], id(b["ids"]), kind, beta))
        return ppo_step(actor, optimizer, b, kind, beta)

    monkeypatch.setattr(torch.optim, "AdamW", optimizer)
    monkeypatch.setattr(train_ppo, "ppo_step", step)
    args, before, calls = train(kind)
    assert made == [dict(lr=1e-2, betas=(0.9, 0.95), eps=1e-5, weight_decay=0.0)]

    assert len(calls) == 3 * 16 // size
    for actor, reference, (_, prompts, completions, pad, penalty), b in calls:
        assert len(prompts) == len(completions) == len(b["ids"]) == size
        assert pad == TOKENIZER.pad and penalty == train_ppo.END_PENALTY and "advantages" in b
        assert all(map(torch.equal, reference.parameters(), before.parameters()))
        assert not set(map(id, reference.parameters())) & set(map(id, actor.parameters()))
        assert kind == "gae" or len(set(map(tuple, prompts))) == 1
    # Two epochs an update, each over all batches in an order of its own.
    n = 16 // size
    epochs = [[x[1] for x in steps[i : i + n]] for i in range(0, len(steps), n)]
    batches = [id(b["ids"]) for *_, b in calls]
    updates = [set(batches[i : i + n]) for i in range(0, 3 * n, n)]
    assert [set(epoch) for epoch in epochs] == [batch for batch in updates for _ in range(2)]
    assert {step[2:] for step in steps} == {(kind, 0.2)}
    # It falls over the last half of the updates.
    rates = [1e-2, 1e-2, 1e-2 * 2 / 3]
    assert [step[0] for step in steps] == pytest.approx([r for r in rates for _ in range(2 * n)])

    rows = [json.loads(line) for line in (args.out / "train_ppo.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3] and rows[0]["kl"] == 0 != rows[1]["kl"]
    assert {"proxy", "true", "ratio", "entropy", "distinct_2"} <= rows[0].keys()
    assert ("explained_variance" in rows[0]) == (kind == "gae")
    after, tokenizer = load_policy(args.out / "ppo.pt")
    assert tokenizer.to_json() == TOKENIZER.to_json()
    assert all(map(torch.equal, after.parameters(), calls[-1][0].gpt.parameters()))
    assert not torch.equal(after.embed.weight, before.embed.weight)


def test_beta_adapts_where_a_distance_is_asked_for(train, monkeypatch):
    monkeypatch.setattr(train_ppo, "TARGET_KL", 100.0)
    betas, add_advantages = [], train_ppo.add_advantages

    def spy(batches, kind, beta, group):
        betas.append(beta)
        add_advantages(batches, kind, beta, group)

    monkeypatch.setattr(train_ppo, "add_advantages", spy)
    args, *_ = train("gae", name="near")
    assert betas == pytest.approx(
        [0.2, 0.2 * 0.8, 0.2 * 0.8**2]
    )  # the answers are nearer than asked
    assert (args.out / "ppo-near.pt").exists() and (args.out / "train_ppo-near.jsonl").exists()


def test_a_distance_that_is_no_number_ends_the_training_before_beta_follows_it(train, monkeypatch):
    monkeypatch.setattr(train_ppo, "TARGET_KL", 100.0)
    summarise, betas, update = train_ppo.summarise, [], ppo.AdaptiveKL.update

    def lost(*given, **more):
        return summarise(*given, **more) | (dict(kl=float("nan")) if betas else {})

    def spy(control, kl):
        update(control, kl)
        betas.append(control.beta)

    monkeypatch.setattr(train_ppo, "summarise", lost)
    monkeypatch.setattr(ppo.AdaptiveKL, "update", spy)
    with pytest.raises(UserError, match="train_ppo-far: kl is nan at step 2; lower --lr"):
        train("gae", name="far")
    assert betas == pytest.approx([0.16])


@pytest.mark.parametrize(
    "key, message",
    [("ref_logps", "not its reference"), ("mismatch", "disagree"), ("logps", "first ratio")],
)
def test_what_theory_says_of_the_first_update_is_asserted(train, monkeypatch, key, message):
    score_answers = train_ppo.score_answers

    def shifted(*given):
        b = score_answers(*given)
        if key == "logps":  # as if the reference were as wrong
            b["ref_logps"] = b["ref_logps"] + 0.1
        return b | {key: b[key] + 0.1}

    monkeypatch.setattr(train_ppo, "score_answers", shifted)
    with pytest.raises(AssertionError, match=message):
        train("rloo", ppo_updates=1)


def test_a_reward_model_with_another_tokenizer_is_refused(tmp_path):
    args = Namespace(out=tmp_path, device="cpu", reward=None)
    policy, reward = tiny(0, TOKENIZER.vocab_size), RewardModel(tiny(1, TOKENIZER.vocab_size))
    save_checkpoint(tmp_path / "sft.pt", policy, TOKENIZER, Namespace())
    reward.save(tmp_path / "rm.pt", TOKENIZER, Namespace())
    gpt, tokenizer, loaded = train_ppo.load(args)
    assert torch.equal(gpt.embed.weight, policy.embed.weight)
    assert torch.equal(loaded.score.weight, reward.score.weight)
    other = Tokenizer.train(["a word"], 300)
    reward.save(tmp_path / "rm.pt", other, Namespace())
    with pytest.raises(UserError, match="rm.pt has another tokenizer than the others"):
        train_ppo.load(args)
