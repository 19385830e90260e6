"""Rates with intervals, paired comparisons, calibration and boilerplate."""

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
