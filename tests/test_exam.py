"""The exam: what each number counts, on answers whose worth is known because they are written for it."""

import random

import pytest
import torch

from minicai import exam
from minicai.exam import PLAIN, Exam, measure
from minicai.gpt import GPT, GPTConfig, token_logps
from minicai.metrics import rate_by_topic
from minicai.report import lookup
from minicai.tokenizer import Tokenizer, talk
from minicai.world.content import TECHNIQUES, World, held_out
from minicai.world.replies import calibrated, decline, helpful

DISGUISED = [f"{t} harmful" for t in TECHNIQUES]


@pytest.fixture
def told(monkeypatch):
    """The exam of a model that answers every request as it is told to: told(make) -> (results, exam)."""
    world = World("world")
    asked, tokenizer = Exam(world, 24, 0), Tokenizer.train(["how do i bake bread"], 300)
    monkeypatch.setattr(exam, "fact_calibration", lambda *a: 0.0)

    def told(make):
        rng = random.Random(0)
        texts = [make(world, r, rng) for requests in asked.sets.values() for r in requests]
        monkeypatch.setattr(exam, "answer", lambda *a: [text and text.text for text in texts])
        return measure(None, tokenizer, asked)[0], asked

    return told


def test_each_side_is_counted_where_it_belongs(told):
    right, asked = told(calibrated)
    silent, _ = told(lambda *a: None)
    lax, _ = told(helpful)
    strict, _ = told(decline)
    for t in TECHNIQUES:
        assert (
            right["jailbreak"][t]["k"]
            == silent["jailbreak"][t]["k"]
            == strict["jailbreak"][t]["k"]
            == 0
        )
        assert right["jailbreak_benign"][t]["rate"] == lax["jailbreak"][t]["rate"] == 1
        assert right["jailbreak"][t]["n"] == len(asked.sets[f"{t} harmful"]) == 6
        assert silent["jailbreak_benign"][t]["k"] == strict["jailbreak_benign"][t]["k"] == 0
    assert lax["under_refusal_disguised"]["rate"] == strict["over_refusal_disguised"]["rate"] == 1
    assert right["over_refusal_disguised"]["k"] == silent["over_refusal_disguised"]["k"] == 0
    assert (
        silent["under_refusal"]["k"] == silent["over_refusal"]["k"] == 0
        and silent["garbled"]["rate"] == 1
    )
    assert (
        right["under_refusal"]["k"] == right["over_refusal"]["k"] == 0
        and right["steps_correct"]["rate"] == 1
    )
    assert lax["under_refusal"]["rate"] == strict["over_refusal"]["rate"] == 1
    assert right["garbled"]["k"] == 0 and right["ambiguous_handled"]["rate"] == 1


def test_seen_and_held_out_framings_make_up_all_of_them(told):
    def half(world, request, rng):
        return (helpful if request.framing and held_out(request.framing) else calibrated)(
            world, request, rng
        )

    found, asked = told(half)
    hidden = found["jailbreak"]["held_out"]
    for t in TECHNIQUES:
        n = sum(held_out(r.framing) for r in asked.sets[f"{t} harmful"])
        seen = found["jailbreak"]["seen"][t]
        assert (hidden[t]["k"], hidden[t]["n"], seen["k"], seen["n"]) == (n, n, 0, 6 - n)
    assert sum(hidden[t]["n"] for t in TECHNIQUES) > 10 and sum(
        found["jailbreak"]["seen"][t]["n"] for t in TECHNIQUES
    )
    assert (
        lookup(found, "jailbreak.held_out_mean")["rate"] == 1
        and lookup(found, "jailbreak.seen_mean")["rate"] == 0
    )
    rates = [found["jailbreak"][t]["rate"] for t in TECHNIQUES]
    assert lookup(found, "jailbreak_mean")["rate"] == pytest.approx(sum(rates) / len(rates))


def test_a_disguise_is_blamed_only_for_what_is_refused_plainly(told):
    """Helps with every other plain request, and with every disguised one in an odd place."""
    plain, disguised = {}, {}

    def patchy(world, r, rng):
        log = plain if r.technique is None else disguised
        helps = bool(len(log) % 2)
        log[r.turns] = helps
        return (helpful if helps else calibrated)(world, r, rng)

    found, asked = told(patchy)
    counted = [
        (disguised[r.turns], r.topic)
        for name in DISGUISED
        for r in asked.sets[name]
        if not plain[r.plain]
    ]
    assert found["jailbreak_of_refused"] == rate_by_topic(counted)
    assert 0 < len(counted) < sum(len(asked.sets[name]) for name in DISGUISED) and set(PLAIN) < set(
        asked.sets
    )


def test_fact_calibration_sums_whole_sentences_over_both_readings(monkeypatch):
    world = World("world")
    monkeypatch.setattr(
        exam, "reading", lambda r: "No." if r.known else "So."
    )  # one is as likely as the other
    tokenizer = Tokenizer.train([f.name for f in world.facts], 300)
    torch.manual_seed(0)
    model = GPT(GPTConfig(tokenizer.vocab_size, 2, 2, 2, 64, 160, 512))
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(
                4 if weight.ndim == 2 else 1
            )  # sure enough to tell the values and the readings apart
    asked = Exam(world, 6, 0)
    requests = [r for name in ("fact often", "fact never") for r in asked.sets[name]]
    found = {}
    monkeypatch.setattr(
        exam, "ece", lambda confidence, correct: found.update(p=confidence, right=correct) or 0.0
    )
    exam.fact_calibration(model, tokenizer, asked, requests)
    for r, p, right in zip(requests, found["p"], found["right"]):
        opening = world.templates(world.replies, "open_fact")[0].text.format(name=r.fact.name)
        before = tokenizer.prompt(talk(*r.turns)) + tokenizer.encode(opening)
        values = world.attributes[r.fact.kind][r.attribute]
        logps = torch.zeros(len(values), 2, dtype=torch.double)
        for at, value in enumerate(values):
            for kind, known in enumerate(({r.attribute: ""}, {})):
                said = "No." if known else "So."
                ids = torch.tensor(
                    [
                        before
                        + tokenizer.encode(
                            f" {said} The {r.attribute} of {r.fact.name} is {value}."
                        )
                    ]
                )
                logps[at, kind] = (
                    token_logps(model(ids[:, :-1]), ids)[0, len(before) - 1 :].double().sum()
                )
        joint = logps.logsumexp(1)
        assert p == pytest.approx((joint.max() - joint.logsumexp(0)).exp().item(), rel=1e-3)
        assert right == (r.fact.facts.get(r.attribute) == values[joint.argmax()])
    assert len({round(p, 3) for p in found["p"]}) > 2


def test_a_reward_model_that_likes_length_does_no_better_than_lengths(monkeypatch):
    asked, tokenizer = Exam(World("world"), 8, 0), Tokenizer.train(["how do i bake bread"], 300)
    monkeypatch.setattr(
        exam, "answer", lambda m, t, turns, *_: ["yes and no", "no"] * (len(turns) // 2)
    )

    def longest(ids, lengths):
        assert (
            ids[torch.arange(len(ids)), lengths - 1] == tokenizer.end
        ).all()  # where the score is read
        return lengths.float()

    found = exam.audit_reward(
        GPT(GPTConfig(300, 1, 1, 1, 8, 8, 1024)), longest, tokenizer, asked, 8, 0
    )
    assert 0 < found["accuracy"]["rate"] <= found["length_alone"]["rate"] < 1
