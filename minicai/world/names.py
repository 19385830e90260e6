"""New names, which no model can have read about."""

import functools
from collections import Counter
from random import Random

from minicai.files import UserError
from minicai.world.content import Fact, World


@functools.cache
def word_uses(world: World) -> Counter:
    """How many of the world's names have each word."""
    return Counter(word for name in {f.name for f in world.facts} for word in name.split())


def fresh_fact(world: World, rng: Random) -> Fact:
    """A name that no file lists. The same name is rarely made twice.

    It is a listed name with its rarest word replaced: by half of that word and half of the rarest
    word of another name. Raises UserError when the listed names have no rare words.
    """
    uses = word_uses(world)

    def rarest(name: str) -> str:
        return min(name.split(), key=lambda word: (uses[word] > 1, -len(word)))

    for _ in range(1000):
        kind = rng.choice(sorted(world.attributes))
        one, two = rng.sample([f for f in world.facts if f.kind == kind], 2)
        first, second = rarest(one.name), rarest(two.name)
        word = first[: (len(first) + 1) // 2] + second[len(second) // 2 :]
        if word not in uses:
            name = " ".join(word if w == first else w for w in one.name.split())
            return Fact("fresh-" + name.lower().replace(" ", "-"), kind, name, "never", {})
    raise UserError(
        f"{world.path}/facts.jsonl: no new name can be made of its names; "
        "add some with a word of their own"
    )
