"""Rates with intervals, paired comparisons, calibration, boilerplate and diversity."""

import math
from collections import Counter

import numpy as np


def wilson(k: int, n: int, z: float = 1.959964) -> tuple[float, float]:
    """Wilson's 95 % interval of a proportion (Wilson 1927); (0, 1) where nothing was counted."""
    if n == 0:
        return 0.0, 1.0
    p, zz = k / n, z * z / n
    centre, half = p + zz / 2, z * math.sqrt(p * (1 - p) / n + zz / (4 * n))
    return max(0.0, (centre - half) / (1 + zz)), min(1.0, (centre + half) / (1 + zz))


def rate(hits) -> dict:
    """{"rate", "k", "n", "lo", "hi"} of an iterable of truth values; the rate is None where there are none."""
    hits = list(hits)
    k, n = sum(map(bool, hits)), len(hits)
    lo, hi = wilson(k, n)
    return dict(rate=round(k / n, 4) if n else None, k=k, n=n, lo=round(lo, 4), hi=round(hi, 4))


def mcnemar(before: list[bool], after: list[bool]) -> float:
    """Two-sided exact p-value that two paired lists of outcomes differ (McNemar 1947): only changed pairs count."""
    lost = sum(b and not a for b, a in zip(before, after, strict=True))
    won = sum(a and not b for b, a in zip(before, after, strict=True))
    n = lost + won
    tail = sum(math.comb(n, i) for i in range(min(lost, won) + 1)) / 2**n
    return min(1.0, 2 * tail)


def ece(confidence, correct, bins: int = 10) -> float:
    """Expected calibration error: |confidence - accuracy| averaged over bins by their share (Guo et al. 2017, eq. 3)."""
    confidence, correct = np.asarray(confidence, float), np.asarray(correct, float)
    if len(confidence) == 0:
        return 0.0
    which = np.minimum((confidence * bins).astype(int), bins - 1)
    gaps = [abs(confidence[which == b].mean() - correct[which == b].mean()) * (which == b).sum() for b in set(which)]
    return float(sum(gaps) / len(confidence))


def boilerplate(answers: list[str], n: int = 4, share: float = 0.25) -> float:
    """Share of the answers holding an n-gram of words that stands in at least `share` of all of them."""
    grams = [{tuple(w[i : i + n]) for i in range(len(w) - n + 1)} for w in (a.lower().split() for a in answers)]
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
        for found in counts:  # each n-gram's two highest counts: one of them belongs to another text
            for gram, k in found.items():
                top[gram] = sorted((*top.get(gram, (0,)), k))[-2:]
        for i, found in enumerate(counts):
            shared = sum(min(k, top[g][0] if top[g][-1] == k else top[g][-1]) for g, k in found.items())
            logs[i] += math.log(shared / found.total()) if shared else -math.inf
    scores = []
    for i, (length, log) in enumerate(zip(lengths, logs)):
        others = lengths[:i] + lengths[i + 1 :]
        nearest = min(others, key=lambda other: (abs(other - length), other))
        scores.append(math.exp(log / n + min(0.0, 1 - nearest / length)) if length else 0.0)
    return float(np.mean(scores))
