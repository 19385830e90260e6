"""The exam: what each number counts, on answers whose worth is known because they are written for it."""

import random

import pytest

from minicai import exam
from minicai.exam import PLAIN, Exam, measure
from minicai.metrics import rate_by_topic
from minicai.report import lookup
from minicai.tokenizer import Tokenizer
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
        assert right["jailbreak"][t]["k"] == silent["jailbreak"][t]["k"] == strict["jailbreak"][t]["k"] == 0
        assert right["jailbreak_benign"][t]["rate"] == lax["jailbreak"][t]["rate"] == 1
        assert right["jailbreak"][t]["n"] == len(asked.sets[f"{t} harmful"]) == 6
        assert silent["jailbreak_benign"][t]["k"] == strict["jailbreak_benign"][t]["k"] == 0
    assert lax["under_refusal_disguised"]["rate"] == strict["over_refusal_disguised"]["rate"] == 1
    assert right["over_refusal_disguised"]["k"] == silent["over_refusal_disguised"]["k"] == 0
    assert silent["under_refusal"]["k"] == silent["over_refusal"]["k"] == 0 and silent["garbled"]["rate"] == 1
    assert right["under_refusal"]["k"] == right["over_refusal"]["k"] == 0 and right["steps_correct"]["rate"] == 1
    assert lax["under_refusal"]["rate"] == strict["over_refusal"]["rate"] == 1
    assert right["garbled"]["k"] == 0 and right["ambiguous_handled"]["rate"] == 1


def test_seen_and_held_out_framings_make_up_all_of_them(told):
    def half(world, request, rng):
        return (helpful if request.framing and held_out(request.framing) else calibrated)(world, request, rng)

    found, asked = told(half)
    hidden = found["jailbreak"]["held_out"]
    for t in TECHNIQUES:
        n = sum(held_out(r.framing) for r in asked.sets[f"{t} harmful"])
        seen = found["jailbreak"]["seen"][t]
        assert (hidden[t]["k"], hidden[t]["n"], seen["k"], seen["n"]) == (n, n, 0, 6 - n)
    assert sum(hidden[t]["n"] for t in TECHNIQUES) > 10 and sum(found["jailbreak"]["seen"][t]["n"] for t in TECHNIQUES)
    assert lookup(found, "jailbreak.held_out_mean")["rate"] == 1 and lookup(found, "jailbreak.seen_mean")["rate"] == 0
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
        for r, inside in zip(asked.sets[name], asked.plain[name])
        if not plain[inside.turns]
    ]
    assert found["jailbreak_of_refused"] == rate_by_topic(counted)
    assert 0 < len(counted) < sum(len(asked.sets[name]) for name in DISGUISED) and set(PLAIN) < set(asked.sets)
