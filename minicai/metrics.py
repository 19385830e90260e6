"""Rates with intervals, paired comparisons, calibration, boilerplate and diversity."""

import math
from collections import Counter

import numpy as np


def wilson(k: float, n: float, z: float = 1.959964) -> tuple[float, float]:
    """Wilson's 95 % interval of a proportion (Wilson 1927); (0, 1) where nothing was counted."""
    if n == 0:
        return 0.0, 1.0
    p, zz = k / n, z * z / n
    centre, half = p + zz / 2, z * math.sqrt(p * (1 - p) / n + zz / (4 * n))
    return max(0.0, (centre - half) / (1 + zz)), min(1.0, (centre + half) / (1 + zz))


def design_effect(hits: list[bool], topics: list) -> float:
    """How many times as uncertain a rate is as if every question were about something else (Kish 1965), at least 1.

    Questions about one topic get like answers. The variance of the rate is estimated from the topics' sums (the
    linearised ratio estimator, Cochran 1977, eq. 9A.8) and divided by that of independent questions. Where all outcomes
    agree, or all topics are one, there is no spread to estimate it from, and it is 1.
    """
    p, n, excess = sum(hits) / len(hits), len(hits), Counter()
    for hit, topic in zip(hits, topics, strict=True):
        excess[topic] += hit - p
    if len(excess) < 2 or p in (0, 1):
        return 1.0
    variance = sum(e * e for e in excess.values()) * len(excess) / (len(excess) - 1)
    return max(1.0, variance / (n * p * (1 - p)))


def rate(hits, topics=None) -> dict:
    """{"rate", "k", "n", "lo", "hi"} of an iterable of truth values; the rate is None where there are none.

    `topics` names what each question is about (an act, a person), so that the interval counts like answers to the same
    thing for what they say, and adds their number to the result as "topics".
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
    """Two-sided exact p-value that two paired lists of outcomes differ: only changed pairs count.

    Without topics McNemar's test (1947): by chance each changed pair could as well have changed the other way. With a
    topic for each pair all pairs of a topic turn around together, as they may hang together (a permutation test).
    """
    change = Counter()
    for b, a, topic in zip(before, after, topics or range(len(before)), strict=True):
        change[topic] += int(a) - int(b)
    steps = [abs(c) for c in change.values() if c]
    total = sum(steps)
    chance = np.zeros(2 * total + 1)  # of each sum from -total to total
    chance[total] = 1.0
    for step in steps:
        chance = (np.roll(chance, step) + np.roll(chance, -step)) / 2
    far = np.abs(np.arange(-total, total + 1)) >= abs(sum(change.values()))
    return min(1.0, float(chance[far].sum()))


def by_length(longer: list[bool], groups: list) -> list[bool]:
    """Whether who reads nothing but lengths would be right about pairs of answers, of which `longer` says whether the longer
    one is better: in each group (say, a family of principles) he prefers the longer or the shorter one, whichever scores more."""
    wins = {
        g: 2 * sum(x for x, group in zip(longer, groups) if group == g) >= groups.count(g)
        for g in set(groups)
    }
    return [x == wins[g] for x, g in zip(longer, groups, strict=True)]


def ece(confidence, correct, bins: int = 10) -> float:
    """Expected calibration error: |confidence - accuracy| averaged over bins by their share (Guo et al. 2017, eq. 3)."""
    confidence, correct = np.asarray(confidence, float), np.asarray(correct, float)
    if len(confidence) == 0:
        return 0.0
    which = np.minimum((confidence * bins).astype(int), bins - 1)
    gaps = [
        abs(confidence[which == b].mean() - correct[which == b].mean()) * (which == b).sum()
        for b in set(which)
    ]
    return float(sum(gaps) / len(confidence))


def boilerplate(answers: list[str], n: int = 4, share: float = 0.25) -> float:
    """Share of the answers holding an n-gram of words that stands in at least `share` of all of them."""
    grams = [
        {tuple(w[i : i + n]) for i in range(len(w) - n + 1)}
        for w in (a.lower().split() for a in answers)
    ]
    counts = Counter(g for found in grams for g in found)
    common = {g for g, count in counts.items() if count >= share * len(answers)}
    return float(np.mean([bool(found & common) for found in grams])) if grams else 0.0


# --- diversity of a set of texts, in words ---


def ngrams(text: str, n: int) -> Counter:
    words = text.lower().split()
    return Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))


def distinct_n(texts: list[str], n: int) -> float:
    """Share of all n-grams of the texts that are different ones (Li et al. 2015, arXiv 1510.03055). 1: nothing comes twice."""
    counts = sum((ngrams(text, n) for text in texts), Counter())
    return len(counts) / counts.total() if counts else 0.0


def self_bleu(texts: list[str], n: int = 4) -> float:
    """Mean BLEU of each text with all others as references (Zhu et al. 2018, arXiv 1802.01886). 1: all are the same.

    BLEU as in Papineni et al. 2002, n-grams up to n, unsmoothed: 0 where no n-gram is shared.
    """
    if len(texts) < 2:
        return 0.0
    lengths = [len(text.split()) for text in texts]
    logs = np.zeros(len(texts))  # sum of the log precisions
    for size in range(1, n + 1):
        counts, top = [ngrams(text, size) for text in texts], {}
        for (
            found
        ) in counts:  # each n-gram's two highest counts: one of them belongs to another text
            for gram, k in found.items():
                top[gram] = sorted((*top.get(gram, (0,)), k))[-2:]
        for i, found in enumerate(counts):
            shared = sum(
                min(k, top[g][0] if top[g][-1] == k else top[g][-1]) for g, k in found.items()
            )
            logs[i] += math.log(shared / found.total()) if shared else -math.inf
    scores = []
    for i, (length, log) in enumerate(zip(lengths, logs)):
        others = lengths[:i] + lengths[i + 1 :]
        nearest = min(others, key=lambda other: (abs(other - length), other))
        scores.append(math.exp(log / n + min(0.0, 1 - nearest / length)) if length else 0.0)
    return float(np.mean(scores))
