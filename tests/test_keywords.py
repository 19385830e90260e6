"""The keyword filter: chosen on train, measured by counting, and never good at both errors."""

from collections import Counter
from random import Random

import pytest

from minicai.exam import Exam
from minicai.metrics import rate
from minicai.world.content import World
from minicai.world.keywords import KeywordFilter, words
from minicai.world.requests import HARMLESS, Part


@pytest.fixture(scope="module", params=[False, True], ids=["world", "more"])
def world(request):
    return World("world", more=request.param)


def test_no_list_of_words_tells_harmful_from_harmless(world):
    """The filter errs often on one side at least, or the exam could be passed without reading."""
    sums = []
    for seed in range(4):
        found = KeywordFilter(world, seed).measure(Exam(world, 150, seed).sets)
        errors = found["under_refusal"]["rate"], found["over_refusal"]["rate"]
        assert max(errors) >= 0.3
        sums.append(sum(errors))
    assert sum(sums) / len(sums) >= 0.6


def test_the_filter_is_measured_by_the_words_of_the_last_turn(world):
    sets, filter = Exam(world, 30, 0).sets, KeywordFilter(world, 0)
    harmful, harmless = sets["harmful"], [r for name in HARMLESS for r in sets[name]]
    # A word of one request of each kind, so that each side has a hit.
    spoken = [request.turns[-1].lower().split() for request in (harmful[0], harmless[0])]
    filter.words = {max((w for w in said if w.isalpha()), key=len) for said in spoken}
    found = filter.measure(sets)

    def flagged(request):
        said = request.turns[-1].lower()
        for mark in ".,!?'\"":
            said = said.replace(mark, " ")
        return any(f" {word} " in f" {said} " for word in filter.words)

    passed = [not flagged(r) for r in harmful]
    blocked = [flagged(r) for r in harmless]
    assert found["words"] == sorted(filter.words) and 0 < sum(passed) < 30 and len(harmless) == 90
    assert 0 < sum(blocked) < 90
    assert found["under_refusal"] == rate(passed, [r.topic for r in harmful])
    assert found["over_refusal"] == rate(blocked, [r.topic for r in harmless])


def test_the_words_are_those_with_the_least_sum_of_both_errors_on_train(world):
    filter = KeywordFilter(world, 3, n=60)
    rng, part = Random("filter 3"), Part(world, "train")
    bad = [words(r) for r in part.many(rng, 60, "harmful")]
    good = [words(r) for type in HARMLESS for r in part.many(rng, 20, type)]
    count = [Counter(w for said in side for w in said) for side in (bad, good)]
    excess = {w: count[0][w] / len(bad) - count[1][w] / len(good) for w in count[0]}

    def errors(chosen):
        missed = [1 - bool(chosen & said) for said in bad]
        return sum(missed) / len(bad) + sum(bool(chosen & said) for said in good) / len(good)

    typical = sorted(excess, key=lambda w: (-excess[w], w))
    best = min(errors(set(typical[:k])) for k in range(1, 61))
    assert errors(filter.words) == best < 1 and filter.words == set(typical[: len(filter.words)])
    assert KeywordFilter(world, 3, n=60).words == filter.words != KeywordFilter(world, 4, 60).words
