"""Splits by a stable hash of an id: adding content never moves what is already there.

    acts and names                                      demo 32 %   train 40 %   test 28 %
    contexts, phrasings, framings, wordings             seen 75 %   held out 25 % of all ids

minicai/world/requests.py has the table of who trains on which split.
"""

import functools
import hashlib
import math

# A new salt draws all splits again. Do that when a test split has been looked at too often.
# This is the first number that leaves enough of every kind of act in every split of `world/`, and
# for every act several contexts of both intents, seen and held out.
SALT = "draw 1143 "


def stable_hash(key: str) -> int:
    """A large number, the same on every machine."""
    return int.from_bytes(hashlib.sha256(key.encode("utf-8", "replace")).digest()[:8])


@functools.cache  # asked a hundred thousand times while a corpus is written
def bucket(key: str) -> int:
    """A stable number in 0..99 from an id."""
    return stable_hash(SALT + key) % 100


def split_of(key: str) -> str:
    """The split of an act or a name: "demo", "train" or "test"."""
    b = bucket(key)
    return "demo" if b < 32 else "train" if b < 72 else "test"


def held_out(key: str) -> bool:
    """Whether a context, phrasing, framing or wording of a principle is kept for evaluation."""
    return bucket(key) >= 75


def part_of(items: list, share: float, *names: str) -> list:
    """A share of the items, rounded up in every split and for every value of the named attributes.

    A hash of its id decides whether an item is in.
    """
    groups = {}
    for item in items:
        key = split_of(item.id), *(getattr(item, name) for name in names)
        groups.setdefault(key, []).append(item)
    kept = set()
    for members in groups.values():
        ranked = sorted(members, key=lambda item: stable_hash("part " + item.id))
        kept |= set(ranked[: math.ceil(share * len(ranked))])
    return [item for item in items if item in kept]
