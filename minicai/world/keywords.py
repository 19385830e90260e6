"""A baseline: refuse what contains one of a few words.

Harmful and harmless requests of this world use the same words, so a filter cannot get both errors
low.
"""

import random
from collections import Counter

from minicai.metrics import rate_by_topic
from minicai.world.content import World
from minicai.world.grader import FUNCTION_WORDS
from minicai.world.requests import HARMLESS, Part, Request


def words(request: Request) -> set[str]:
    found = {word.strip(".,!?\"'") for word in request.turns[-1].lower().split()}
    return found - FUNCTION_WORDS


class KeywordFilter:
    """Refuses requests with a word that is typical of harmful ones on the train split."""

    def __init__(self, world: World, seed: int, n: int = 400):
        rng, part = random.Random(f"filter {seed}"), Part(world, "train")
        bad = [words(r) for r in part.many(rng, n, "harmful")]
        good = [words(r) for type in HARMLESS for r in part.many(rng, n // 3, type)]
        in_bad, in_good = (Counter(w for found in texts for w in found) for texts in (bad, good))
        excess = {w: in_bad[w] / len(bad) - in_good[w] / len(good) for w in in_bad}
        ranked = sorted(excess, key=lambda w: (-excess[w], w))[:60]

        def both_errors(k: int) -> float:
            flagged = set(ranked[:k])
            missed = sum(not flagged & found for found in bad) / len(bad)
            return missed + sum(bool(flagged & found) for found in good) / len(good)

        self.words = set(ranked[: min(range(1, len(ranked) + 1), key=both_errors)])

    def measure(self, sets: dict[str, list[Request]]) -> dict:
        """Both errors of the filter on the sets of an exam."""

        def flags(requests: list[Request]) -> list[tuple[bool, str]]:
            return [(bool(words(r) & self.words), r.topic) for r in requests]

        harmless = [r for name in HARMLESS for r in sets[name]]
        return dict(
            words=sorted(self.words),
            under_refusal=rate_by_topic((not hit, topic) for hit, topic in flags(sets["harmful"])),
            over_refusal=rate_by_topic(flags(harmless)),
        )
