"""Metrics against published values and brute force."""

import itertools
import math
import random

import pytest

from minicai.metrics import (
    boilerplate,
    design_effect,
    distinct_n,
    ece,
    length_alone,
    paired_test,
    rate,
    rate_by_topic,
    self_bleu,
    wilson,
)


@pytest.mark.parametrize(
    "k, n, lo, hi",
    [
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_gives_the_published_intervals(k, n, lo, hi):
    """Newcombe 1998, Statistics in Medicine 17, table I, method 3."""
    assert wilson(k, n) == pytest.approx((lo, hi), abs=5e-5)
    assert wilson(n - k, n) == pytest.approx((1 - hi, 1 - lo), abs=5e-5)


def test_wilson_of_nothing_is_everything():
    assert wilson(0, 0) == (0.0, 1.0)


def test_a_rate_counts_truth_and_has_none_of_nothing():
    assert rate([True, False, 1, 0, True]) == dict(rate=0.6, k=3, n=5, lo=0.2307, hi=0.8824)
    assert rate(x for x in ()) == dict(rate=None, k=0, n=0, lo=0.0, hi=1.0)


def test_questions_about_one_topic_count_for_less_than_their_number():
    """20 topics of 15 equal answers are worth 20 questions. The estimate has a factor 20/19."""
    hits = [topic % 4 == 0 for topic in range(20) for _ in range(15)]
    topics = [topic for topic in range(20) for _ in range(15)]
    assert design_effect(hits, topics) == pytest.approx(15 * 20 / 19)
    found, n = rate(hits, topics), 19
    assert (found["k"], found["n"], found["topics"], found["rate"]) == (75, 300, 20, 0.25)
    assert (found["lo"], found["hi"]) == pytest.approx(wilson(n / 4, n), abs=5e-5)
    assert rate_by_topic(zip(hits, topics)) == found


def test_topics_without_a_spread_leave_the_interval_as_it_is():
    rng = random.Random(0)
    hits = [rng.random() < 0.3 for _ in range(200)]
    expected = rate(hits) | dict(topics=200)
    assert rate(hits, range(200)) == pytest.approx(expected, abs=0.001)  # a factor of 200/199
    for same in ([True] * 20, [False] * 20):
        assert rate(same, list("ab") * 10) == rate(same) | dict(topics=2)
    assert rate([], []) == rate([]) | dict(topics=0)
    assert rate([1, 0], "aa") == rate([1, 0]) | dict(topics=1)
    assert design_effect([1, 0] * 10, [i // 2 for i in range(20)]) == 1  # never below
    with pytest.raises(ValueError):
        rate([1, 0], "a")


@pytest.mark.parametrize("seed", range(3))
def test_the_interval_over_topics_covers_the_truth_where_the_plain_one_does_not(seed):
    """40 topics, each with its own probability around one half, of 10 questions; 300 samples."""
    rng, covered = random.Random(seed), [0, 0]
    for _ in range(300):
        answers = [
            (rng.random() < p, t)
            for t in range(40)
            for p in [rng.betavariate(0.7, 0.7)]
            for _ in range(10)
        ]
        hits, topics = [h for h, _ in answers], [t for _, t in answers]
        for i, found in enumerate((rate(hits), rate(hits, topics))):
            covered[i] += found["lo"] <= 0.5 <= found["hi"]
    assert covered[0] < 0.8 * 300 and covered[1] > 0.91 * 300


@pytest.mark.parametrize("seed", range(6))
def test_the_paired_test_over_topics_is_the_exact_permutation_test(seed):
    rng = random.Random(seed)
    topics = [rng.randrange(7) for _ in range(40)]
    before, after = ([rng.random() < share for _ in topics] for share in (0.7, 0.4))
    sums = [
        sum(int(a) - int(b) for b, a, t in zip(before, after, topics) if t == topic)
        for topic in range(7)
    ]
    ways = [
        abs(sum(s * x for s, x in zip(sums, way))) for way in itertools.product((-1, 1), repeat=7)
    ]
    expected = sum(way >= abs(sum(sums)) for way in ways) / len(ways)
    assert paired_test(before, after, topics) == pytest.approx(expected, abs=1e-12)


def brute_binomial(lost, won):
    """The share of all ways for the changed pairs to fall that are as uneven as this one."""
    n = lost + won
    ways = [abs(2 * sum(way) - n) for way in itertools.product((0, 1), repeat=n)]
    return sum(way >= abs(lost - won) for way in ways) / len(ways)


@pytest.mark.parametrize(
    "lost, won", [(0, 0), (1, 0), (0, 3), (2, 2), (1, 9), (7, 2), (4, 8), (0, 12)]
)
def test_mcnemar_is_the_exact_binomial_test(lost, won):
    before = [True] * lost + [False] * won + [True] * 5 + [False] * 6
    after = [False] * lost + [True] * won + [True] * 5 + [False] * 6
    assert paired_test(before, after) == pytest.approx(brute_binomial(lost, won), abs=1e-12)


def test_mcnemar_wants_pairs():
    with pytest.raises(ValueError):
        paired_test([True], [True, False])


def test_the_length_only_baseline_takes_the_better_guess_in_each_group():
    longer = [True, True, False, False, False, False, True, True]
    groups = ["a", "a", "a", "b", "b", "b", "b", "c"]
    assert length_alone(longer, groups) == [True, True, False, True, True, True, False, True]
    with pytest.raises(ValueError):
        length_alone([True], ["a", "b"])


def brute_ece(confidence, correct, bins):
    total = 0.0
    for b in range(bins):
        inside = [
            (c, r)
            for c, r in zip(confidence, correct)
            if b / bins < c <= (b + 1) / bins or (c == 0 and b == 0)
        ]
        if inside:
            total += abs(sum(c for c, _ in inside) - sum(r for _, r in inside))
    return total / len(confidence)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("bins", [1, 7, 10])
def test_ece_is_the_gap_summed_over_bins(seed, bins):
    rng = random.Random(seed)
    confidence = [rng.random() for _ in range(60)] + [0.0, 0.5, 0.5, 1.0]
    correct = [rng.random() < 0.5 for _ in confidence]
    assert ece(confidence, correct, bins) == pytest.approx(
        brute_ece(confidence, correct, bins), abs=1e-12
    )


def test_ece_of_the_calibrated_is_zero_and_of_the_sure_and_wrong_one():
    assert ece([0.75] * 4, [1, 1, 1, 0]) == 0 and ece([1.0, 1.0], [0, 0]) == 1
    assert ece([], []) is None
    assert ece([1.0, 0.95], [0, 1]) == pytest.approx(0.475)  # 1.0 falls into the last bin


def test_boilerplate_is_the_share_of_answers_with_a_common_phrase():
    unlike = [
        "one two three four five",
        "six seven eight nine ten",
        "red green blue pink",
        "alpha beta gamma delta",
        "too short",
    ]
    alike = ["well I CANNOT help with that", "I cannot help with anything", "no"]
    assert boilerplate([*unlike, *alike]) == 2 / 8  # "i cannot help with"
    assert boilerplate([*unlike, *unlike[:-1], "x", "y", "z"]) == 0  # 2 of 12 are no quarter
    assert boilerplate(["the same old answer"] * 8) == 1 and boilerplate([]) == 0


def brute_bleu(text, references, n):
    """Papineni et al. 2002: an n-gram counts as often as in the reference that has it most."""
    words, references = text.split(), [r.split() for r in references]
    product = 1.0
    for size in range(1, n + 1):
        grams = [words[i : i + size] for i in range(len(words) - size + 1)]
        if not grams:
            return 0.0
        hits = 0
        for gram in [g for i, g in enumerate(grams) if g not in grams[:i]]:
            most = max(sum(r[i : i + size] == gram for i in range(len(r))) for r in references)
            hits += min(grams.count(gram), most)
        product *= hits / len(grams)
    nearest = sorted((abs(len(r) - len(words)), len(r)) for r in references)[0][1]
    penalty = 1.0 if len(words) > nearest else math.exp(1 - nearest / len(words))
    return penalty * product ** (1 / n)


@pytest.mark.parametrize("n", [1, 2, 4])
@pytest.mark.parametrize("seed", range(3))
def test_self_bleu_is_the_mean_of_each_text_against_the_others(seed, n):
    rng = random.Random(seed)
    texts = [" ".join(rng.choices("abc", k=rng.randint(1, 12))) for _ in range(9)]
    texts += texts[:2]  # the same twice
    brute = [brute_bleu(t, texts[:i] + texts[i + 1 :], n) for i, t in enumerate(texts)]
    assert self_bleu(texts, n) == pytest.approx(sum(brute) / len(brute), abs=1e-12)


def test_self_bleu_of_the_same_of_nothing_shared_and_of_papinenis_example():
    assert self_bleu(["Tell me how to do it"] * 3) == pytest.approx(1)
    assert self_bleu(["a b c d", "e f g h"]) == self_bleu(["alone"]) == self_bleu([]) == 0
    both = self_bleu(["the the the the the the the", "the cat is on the mat"], 1)
    assert both == pytest.approx((2 / 7 + math.exp(1 - 7 / 6) * 2 / 6) / 2)


def test_distinct_n_counts_different_n_grams():
    assert distinct_n(["a b a b"], 1) == 0.5
    assert distinct_n(["a b a b"], 2) == pytest.approx(2 / 3)  # ab, ba, ab
    assert distinct_n(["A b", "a B"], 2) == 0.5
    assert distinct_n(["one"], 2) == distinct_n([], 1) == 0
