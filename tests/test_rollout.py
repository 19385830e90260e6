"""What PPO learns from: where an answer is scored, by whose values, and what its advantages are."""

import pytest
import torch

from minicai import device, ppo
from minicai.gpt import GPT, GPTConfig, token_logps
from minicai.reward import RewardModel
from minicai.rollout import Actor, add_advantages, complete, score_answers, summarise
from minicai.sampler import Completion, generate

PAD, END = 31, 30


@pytest.fixture(autouse=True)
def float32(monkeypatch):
    """No autocast, on any machine."""
    monkeypatch.setattr(device, "fast_dtype", lambda device: torch.float32)


def tiny(seed):
    torch.manual_seed(seed)
    model = GPT(GPTConfig(32, 1, 2, 2, 16, 32, 40))
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.3)
    return model.eval()


def actor_with_values(seed=0) -> Actor:
    actor = Actor(tiny(seed))
    torch.nn.init.normal_(actor.value.weight)
    return actor


def test_a_value_is_zero_at_first_and_then_of_its_own_state():
    actor = Actor(tiny(0))
    ids = torch.randint(0, 32, (2, 9), generator=torch.Generator().manual_seed(0))
    other = ids.clone()
    other[:, 5:] = (other[:, 5:] + 1) % 32
    with torch.no_grad():
        assert (actor(ids)[1] == 0).all()
        torch.nn.init.normal_(actor.value.weight)
        a, b = actor(ids)[1], actor(other)[1]
        assert torch.equal(actor(ids)[0], actor.gpt(ids[:, :-1]))
    assert a.shape == (2, 8) and torch.equal(a[:, :5], b[:, :5]) and (a[:, 5:] != b[:, 5:]).all()


def test_the_model_runs_under_autocast_and_values_and_logits_are_float32(monkeypatch):
    monkeypatch.setattr(device, "fast_dtype", lambda device: torch.bfloat16)
    actor, seen = actor_with_values(), []
    actor.gpt.head.register_forward_hook(lambda module, inputs, logits: seen.append(logits))
    logits, values = actor(torch.randint(0, 32, (2, 9)))
    assert seen[0].dtype == torch.bfloat16 and logits.dtype == values.dtype == torch.float32
    assert (values != values.bfloat16().float()).any()


@pytest.mark.parametrize(
    "ids, reason, whole",
    [([7, END], "stop", True), ([END], "stop", False), ([7, END], "length", False)],
)
def test_an_answer_is_complete_if_it_has_text_and_stopped(ids, reason, whole):
    assert complete(Completion(ids, [0.0] * len(ids), reason)) == whole


def test_each_answer_is_scored_alone_at_its_end_and_one_without_an_end_gets_the_penalty():
    reference, reward, actor = tiny(1), RewardModel(tiny(2)), actor_with_values()
    text = [7, 8, 9]
    prompts = [[1, 2], [3, 4, 5, 6, 1, 2, 3], [1, 2], [1, 2], [1, 2, 3]]
    done = [
        Completion(ids, [(-1.0) ** i * 50 for i in range(len(ids))], reason)
        for ids, reason in [
            ([*text, END], "stop"),
            ([*text * 3, END], "stop"),
            ([*text, END], "length"),
            ([END], "stop"),
            (text, "length"),
        ]
    ]
    b = score_answers(actor, reference, reward, prompts, done, PAD, end_penalty=-7.0)
    assert b["mask"].sum(1).tolist() == [len(c.ids) for c in done]
    assert b["scores"][2:].tolist() == [-7.0] * 3
    for i, (prompt, c) in enumerate(zip(prompts, done)):
        ids = torch.tensor([prompt + c.ids])
        assert b["ids"][i, : ids.shape[1]].tolist() == ids[0].tolist()
        assert (b["ids"][i, ids.shape[1] :] == PAD).all()
        answer = slice(len(prompt) - 1, ids.shape[1] - 1)  # the columns about its ids
        assert b["mask"][i].nonzero().flatten().tolist() == list(range(answer.start, answer.stop))
        with torch.no_grad():
            expected = dict(
                logps=token_logps(actor.gpt(ids[:, :-1]), ids),
                ref_logps=token_logps(reference(ids[:, :-1]), ids),
                values=actor(ids)[1],
            )
            if i < 2:
                alone = reward(ids, torch.tensor([ids.shape[1]])).item()
                assert b["scores"][i].item() == pytest.approx(alone, abs=1e-5)
        for key, value in expected.items():
            torch.testing.assert_close(b[key][i, answer], value[0, answer], atol=1e-4, rtol=0)
    recorded = torch.tensor([x for c in done for x in c.logprobs])
    distance = (recorded - b["logps"][b["mask"]]).abs().mean()
    assert b["mismatch"].item() == pytest.approx(distance.item())
    assert not any(value.requires_grad for value in b.values())


def test_sampler_and_scorer_agree_about_log_probabilities():
    actor, prompts = actor_with_values(), [[1, 2], [3, 4, 5, 6, 1, 2, 3], [1]]
    done = generate(actor.gpt, prompts, 12, stop_ids=[END], seed=0)
    assert len({len(c.ids) for c in done}) > 1
    b = score_answers(actor, tiny(1), RewardModel(tiny(2)), prompts, done, PAD, -1.0)
    assert b["mismatch"] < 1e-5
    recorded = torch.tensor([x for c in done for x in c.logprobs])
    torch.testing.assert_close(b["logps"][b["mask"]], recorded, atol=1e-4, rtol=0)


def scored(seed, lengths=(2, 4, 1, 3)) -> dict:
    """A batch of answers as `score_answers` makes it, of random numbers."""
    g = torch.Generator().manual_seed(seed)
    mask = torch.zeros(len(lengths), 8, dtype=torch.bool)
    for row, length in enumerate(lengths):
        mask[row, 2 : 2 + length] = True
    columns = {k: torch.randn(mask.shape, generator=g) for k in ("logps", "ref_logps", "values")}
    return dict(mask=mask, scores=torch.randn(len(lengths), generator=g), **columns)


@pytest.mark.parametrize("kind", ["gae", "rloo", "grpo"])
def test_advantages_are_of_shaped_rewards_and_whitened_only_with_gae(kind):
    batches, expected = [scored(0), scored(1, (5, 1, 2, 2))], []
    for b in batches:
        rewards = ppo.shape_rewards(b["scores"], b["logps"], b["ref_logps"], b["mask"], 0.3)
        rest = b["scores"], b["values"], b["mask"], 2
        expected.append(ppo.advantages(kind, rewards, *rest))
    add_advantages(batches, kind, beta=0.3, group=2)
    raw = torch.cat([a[b["mask"]] for b, (a, _) in zip(batches, expected)])
    found = torch.cat([b["advantages"][b["mask"]] for b in batches])
    wanted = (raw - raw.mean()) / raw.std() if kind == "gae" else raw  # over both batches
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)
    for b, (_, returns) in zip(batches, expected):
        assert (b["advantages"][~b["mask"]] == 0).all()
        assert kind != "gae" or torch.equal(b["returns"], returns)


def test_the_penalty_weighs_with_gae_and_rloo_and_not_with_grpo():
    for kind in ("gae", "rloo", "grpo"):
        one, other = scored(0), scored(0)
        add_advantages([one], kind, beta=0.0, group=2)
        add_advantages([other], kind, beta=1.0, group=2)
        assert torch.equal(one["advantages"], other["advantages"]) == (kind == "grpo")


def test_an_update_is_summed_up_over_its_answers():
    lengths = [(2, 4, 1, 3), (5, 1, 2, 2)]
    batches = [scored(0, lengths[0]), scored(1, lengths[1])]
    for b, mismatch in zip(batches, (0.25, 0.125)):
        b["mismatch"] = torch.tensor(mismatch)
        b["returns"] = ppo.inside(torch.randn(b["mask"].shape), b["mask"])
        for key in ("logps", "ref_logps", "values"):  # nothing outside the mask counts
            b[key] = b[key].masked_fill(~b["mask"], float("nan"))
    done = [Completion([7] * n, [0.0] * n, "stop") for row in lengths for n in row]
    done[0] = Completion([7] * 2, [0.0] * 2, "length")
    row = summarise(batches, done, with_values=True)

    r = [(b["logps"] - b["ref_logps"])[i, b["mask"][i]] for b in batches for i in range(4)]
    assert row["kl"] == pytest.approx(sum(x.sum().item() for x in r) / 8, rel=1e-5)
    assert row["k3"] == pytest.approx(sum((x.neg().exp() - 1 + x).sum().item() for x in r) / 8)
    assert row["proxy"] == pytest.approx(torch.cat([b["scores"] for b in batches]).mean().item())
    assert row["mismatch"] == 0.25 and row["length"] == 20 / 8
    assert row["unfinished"] == 3 / 8  # one hit the limit; two are an end token alone
    values, returns = (torch.cat([b[k][b["mask"]] for b in batches]) for k in ("values", "returns"))
    explained = 1 - (returns - values).var() / returns.var()
    assert row["explained_variance"] == pytest.approx(explained.item(), rel=1e-4)
    assert "explained_variance" not in summarise(batches, done, with_values=False)
