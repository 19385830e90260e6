"""Rates with intervals, paired comparisons, calibration, and the diversity of texts."""

import math
from collections import Counter

import numpy as np


def wilson(k: float, n: float, z: float = 1.959964) -> tuple[float, float]:
    """Wilson's 95 % interval of the proportion k / n (Wilson 1927). (0, 1) if n is 0."""
    if n == 0:
        return 0.0, 1.0
    p, zz = k / n, z * z / n
    centre, half = p + zz / 2, z * math.sqrt(p * (1 - p) / n + zz / (4 * n))
    return max(0.0, (centre - half) / (1 + zz)), min(1.0, (centre + half) / (1 + zz))


def design_effect(hits: list[bool], topics: list) -> float:
    """The variance of a rate relative to that of independent questions (Kish 1965).

    Questions about one topic get similar answers, so they count for less than their number. The
    variance is estimated from the sums over topics (the linearised ratio estimator, Cochran 1977,
    eq. 9A.8). The result is at least 1. It is 1 if all outcomes are equal or there is only one
    topic, because there is no spread to estimate it from.
    """
    p, n, excess = sum(hits) / len(hits), len(hits), Counter()
    for hit, topic in zip(hits, topics, strict=True):
        excess[topic] += hit - p
    if len(excess) < 2 or p in (0, 1):
        return 1.0
    variance = sum(e * e for e in excess.values()) * len(excess) / (len(excess) - 1)
    return max(1.0, variance / (n * p * (1 - p)))


def rate(hits, topics=None) -> dict:
    """{"rate", "k", "n", "lo", "hi"} of truth values. The rate is None if there are none.

    `topics` holds what each question is about (an act, a name). With it, n is divided by the design
    effect before the interval is computed, and the result says how many "topics" there are.
    """
    hits = [bool(hit) for hit in hits]
    k, n = sum(hits), len(hits)
    topics = None if topics is None else list(topics)
    effect = design_effect(hits, topics) if topics else 1.0
    lo, hi = wilson(k / effect, n / effect)
    found = dict(rate=round(k / n, 4) if n else None, k=k, n=n, lo=round(lo, 4), hi=round(hi, 4))
    return found if topics is None else found | dict(topics=len(set(topics)))


def rate_by_topic(pairs) -> dict:
    """`rate` of (hit, topic) pairs."""
    pairs = list(pairs)
    return rate([hit for hit, _ in pairs], [topic for _, topic in pairs])


def paired_test(before: list[bool], after: list[bool], topics=None) -> float:
    """Exact two-sided p-value of a difference between paired outcomes. Only changed pairs count.

    A permutation test: if the difference is chance, each topic could as well have changed the other
    way, all its pairs together. Without topics every pair is its own topic, and this is McNemar's
    exact test (1947).
    """
    change = Counter()
    for b, a, topic in zip(before, after, topics or range(len(before)), strict=True):
        change[topic] += int(a) - int(b)
    steps = [abs(c) for c in change.values() if c]
    total = sum(steps)
    chance = np.zeros(2 * total + 1)  # the probability of each sum from -total to total
    chance[total] = 1.0
    for step in steps:
        chance = (np.roll(chance, step) + np.roll(chance, -step)) / 2
    far = np.abs(np.arange(-total, total + 1)) >= abs(sum(change.values()))
    return min(1.0, float(chance[far].sum()))


def length_alone(longer: list[bool], groups: list) -> list[bool]:
    """Whether the length-only baseline is right about each pair of answers.

    `longer` says whether the longer answer is the better one. In each group (a family of
    principles, a type of request) the baseline always picks the longer answer, or always the
    shorter one, whichever is right more often.
    """
    picks_longer = {}
    for group in set(groups):
        inside = [x for x, g in zip(longer, groups) if g == group]
        picks_longer[group] = 2 * sum(inside) >= len(inside)
    return [x == picks_longer[group] for x, group in zip(longer, groups, strict=True)]


def ece(confidence, correct, bins: int = 10) -> float | None:
    """Expected calibration error (Guo et al. 2017, eq. 3).

    The mean of |confidence - accuracy| over bins of confidence, weighted by their share of answers.
    None if there are none.
    """
    confidence, correct = np.asarray(confidence, float), np.asarray(correct, float)
    if len(confidence) == 0:
        return None
    which = np.digitize(confidence, np.linspace(0, 1, bins + 1)[1:-1], right=True)
    gaps = 0.0
    for b in set(which):
        inside = which == b
        gaps += abs(confidence[inside].mean() - correct[inside].mean()) * inside.sum()
    return float(gaps / len(confidence))


def boilerplate(answers: list[str], n: int = 4, share: float = 0.25) -> float:
    """The share of answers that contain a common n-gram: one that is in `share` of all answers."""
    grams = [set(ngrams(answer, n)) for answer in answers]
    counts = Counter(gram for found in grams for gram in found)
    common = {gram for gram, count in counts.items() if count >= share * len(answers)}
    return float(np.mean([bool(found & common) for found in grams])) if grams else 0.0


# --- diversity of a set of texts, counted in words ----------------------------------------------


def ngrams(text: str, n: int) -> Counter:
    words = text.lower().split()
    return Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))


def distinct_n(texts: list[str], n: int) -> float:
    """Number of different n-grams / number of n-grams, after Li et al. 2015 (arXiv 1510.03055), who
    divide by the number of words. 1: no n-gram is repeated."""
    counts = sum((ngrams(text, n) for text in texts), Counter())
    return len(counts) / counts.total() if counts else 0.0


def self_bleu(texts: list[str], n: int = 4) -> float:
    """Mean BLEU of each text, with the others as references (Zhu et al. 2018, arXiv 1802.01886).

    1: all texts are the same. BLEU is that of Papineni et al. 2002 with n-grams up to n, without
    smoothing: 0 if a text shares no n-gram with the others, or has fewer than n words.
    """
    if len(texts) < 2:
        return 0.0
    lengths = [len(text.split()) for text in texts]
    logs = np.zeros(len(texts))  # the sum of the log precisions of each text
    for size in range(1, n + 1):
        counts, top = [ngrams(text, size) for text in texts], {}
        for found in counts:  # the two highest counts of each n-gram: one is from another text
            for gram, k in found.items():
                top[gram] = sorted((*top.get(gram, (0,)), k))[-2:]
        for i, found in enumerate(counts):
            shared = 0
            for gram, k in found.items():
                second, first = top[gram]
                shared += min(k, second if k == first else first)
            logs[i] += math.log(shared / found.total()) if shared else -math.inf
    scores = []
    for i, (length, log) in enumerate(zip(lengths, logs)):
        others = lengths[:i] + lengths[i + 1 :]
        nearest = min(others, key=lambda other: (abs(other - length), other))
        scores.append(math.exp(log / n + min(0.0, 1 - nearest / length)) if length else 0.0)
    return float(np.mean(scores))
