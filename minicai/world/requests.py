"""What people ask: a request is an act (or a fact), perhaps a context, and a phrasing. Its type fixes what is right.

type                built from                                       a calibrated assistant
harmful             harmful act; dual-use act + malicious context    refuses, briefly, and offers another way
legitimate          everyday, lookalike; dual-use + good context     gives the steps
dual_use_question   "how do I protect myself from ..."               gives the safety advice
ambiguous           dual-use act without a context                   helps with the safe part, gives no steps
sensitive           sensitive act                                    gives the steps, with care
fact                attribute of a name                              answers what is known, says what is not
"""

import random
from collections import Counter
from dataclasses import dataclass

from minicai.common import UserError
from minicai.world.content import Act, Context, Fact, Phrasing, World, held_out, split_of

# Stage 1 knows its answers about train acts by heart: two samples hardly differ, and attacks hardly get through. Stage 2 and the
# feedback rounds learn from answers about acts on which it has trained nothing, and which are no test acts either: those of
# the base's demonstrations, of which the base has seen critiques and revisions but which no stage after it was trained on.
UNTRAINED = "demo"
# What the trainings ask: shares of each type of request and kind of act or name.
MIX = {  # dual-use acts stand on both sides equally often
    ("harmful", "harmful"): 0.16,
    ("harmful", "dual_use"): 0.14,
    ("ambiguous", None): 0.12,
    ("legitimate", "dual_use"): 0.14,
    ("legitimate", "everyday"): 0.09,
    ("legitimate", "lookalike"): 0.07,
    ("dual_use_question", None): 0.05,
    ("sensitive", None): 0.05,
    ("fact", "often"): 0.06,
    ("fact", "never"): 0.12,
}
HELPFUL = {  # of what is harmless
    ("legitimate", "dual_use"): 0.28,
    ("legitimate", "everyday"): 0.20,
    ("legitimate", "lookalike"): 0.14,
    ("dual_use_question", None): 0.10,
    ("sensitive", None): 0.12,
    ("fact", "often"): 0.16,
}
PLAIN = (
    "harmful",
    "legitimate",
    "dual_use_question",
    "ambiguous",
    "sensitive",
)  # what is asked about acts
TYPES = (*PLAIN, "fact")


@dataclass(frozen=True)
class Request:
    type: str
    turns: tuple[str, ...]  # user, assistant, ..., user
    phrasing: Phrasing
    act: Act | None = None
    context: Context | None = None
    fact: Fact | None = None
    attribute: str | None = None
    technique: str | None = None  # of the jailbreak it is wrapped in
    framing: str | None = None
    inside: tuple[str, ...] = ()  # the same request without the jailbreak

    @property
    def plain(self) -> tuple[str, ...]:
        """What is asked, without a disguise."""
        return self.inside or self.turns

    @property
    def id(self) -> str:
        """Everything the request is made of, so that equal ids mean equal requests (typing errors apart)."""
        parts = (
            self.topic,
            self.context and self.context.id,
            self.attribute,
            self.phrasing.id,
            self.framing,
        )
        return "/".join(str(p) for p in (self.type, *parts) if p)

    @property
    def topic(self) -> str:
        """What it is about: requests about one act or one name get like answers, and statistics has to know it."""
        return (self.act or self.fact).id

    @property
    def known(self) -> bool:
        """Of a fact request: whether the corpus tells the answer."""
        return self.attribute in self.fact.facts

    @property
    def core(self) -> str:
        """The bare question, for disguises that encode it."""
        return squeeze(f"{self.context.text if self.context else ''} How do I {self.act.act}?")


def squeeze(text: str) -> str:
    return " ".join(text.split())


def misspell(text: str, rng: random.Random, rate: float = 0.15) -> str:
    """Swap two letters, or drop or double one, inside a share of the longer words."""
    words = text.split(" ")
    for i, word in enumerate(words):
        if len(word) > 3 and word.isalpha() and rng.random() < rate:
            at = rng.randrange(1, len(word) - 1)
            before, letter, after = word[:at], word[at], word[at + 1 :]
            words[i] = before + rng.choice(
                (after[0] + letter + after[1:], after, letter + letter + after)
            )
    return " ".join(words)


def capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def phrase(phrasing: Phrasing, rng: random.Random, **slots) -> tuple[str, ...]:
    """Fill the slots of every turn; a slot that opens the turn gets a capital."""
    turns = []
    for i, turn in enumerate(phrasing.turns):
        text = squeeze(turn.format(**slots))
        if i % 2 == 0:
            if phrasing.style == "lower":
                text = text.lower()
            elif turn.startswith("{act}"):
                text = capital(text)
            if phrasing.style == "typos":
                text = misspell(text, rng)
        turns.append(text)
    return tuple(turns)


class Part:
    """The part of a world that one purpose may use, and requests drawn from it.

    split None   everything: the corpus of the base model
    "demo"       demo acts and names, wordings that are not held out: demonstrations of critique, revision, comparison;
                 later Stage 2, the red team and the feedback rounds
    "train"      train acts and names, wordings that are not held out: prompts of Stage 1
    "test"       test acts and names, held-out wordings only: evaluation
    """

    def __init__(self, world: World, split: str | None):
        self.world, self.split = world, split

        def mine(items):
            return [x for x in items if split is None or split_of(x.id) == split]

        def wordings(items):
            return [x for x in items if split is None or held_out(x.id) == (split == "test")]

        self.acts = mine(world.acts)
        self.facts = mine(world.facts)
        self.contexts = wordings(world.contexts)
        self.phrasings = wordings(world.phrasings)
        self.framings = wordings(world.framings)

    def pick(self, rng, what: str, **having):
        """A random one of the part's acts, facts, contexts, phrasings or framings that has these attributes.

        Raises UserError when there is none.
        """
        having = {k: v for k, v in having.items() if v is not None}
        found = [
            x for x in getattr(self, what) if all(getattr(x, k) == v for k, v in having.items())
        ]
        if not found:
            wanted = "".join(f" with {k} {v!r}" for k, v in having.items())
            raise UserError(
                f"{self.world.path}/{what}.jsonl has no line{wanted} in its {self.split or 'whole'} part; add some"
            )
        return rng.choice(found)

    def draw(self, rng: random.Random, type: str, kind: str | None = None) -> Request:
        """A request of one type. `kind` narrows the act's kind, or says how often the name of a fact was seen."""
        if type == "fact":
            return self.fact(rng, self.pick(rng, "facts", seen=kind))
        kinds = {
            "harmful": ("harmful", "dual_use"),
            "legitimate": ("everyday", "lookalike", "dual_use"),
            "dual_use_question": ("harmful", "dual_use"),
            "ambiguous": ("dual_use",),
            "sensitive": ("sensitive",),
        }[type]
        act = self.pick(rng, "acts", kind=kind or rng.choice(kinds))
        if type == "dual_use_question":
            phrasing = self.pick(rng, "phrasings", use="protection")
            return Request(type, phrase(phrasing, rng, act=act.act), phrasing, act)
        context = None
        if act.kind == "dual_use" and type != "ambiguous":
            context = self.pick(
                rng, "contexts", intent="malicious" if type == "harmful" else "legitimate"
            )
        elif act.kind == "harmful" and rng.random() < 0.5:  # an innocent excuse changes nothing
            context = self.pick(rng, "contexts")
        elif act.kind in ("everyday", "lookalike") and rng.random() < 0.3:
            context = self.pick(rng, "contexts", intent="legitimate")
        phrasing = self.pick(rng, "phrasings", use="act")
        turns = phrase(phrasing, rng, act=act.act, context=context.text if context else "")
        return Request(type, turns, phrasing, act, context)

    def fact(self, rng: random.Random, fact: Fact, attribute: str | None = None) -> Request:
        attribute = attribute or rng.choice(list(fact.facts or self.world.attributes[fact.kind]))
        phrasing = self.pick(rng, "phrasings", use="fact")
        return Request(
            "fact",
            phrase(phrasing, rng, attribute=attribute, name=fact.name),
            phrasing,
            fact=fact,
            attribute=attribute,
        )

    def many(self, rng: random.Random, n: int, type: str, kind: str | None = None) -> list[Request]:
        """Up to n different requests: fewer where the world does not hold so many."""
        found = {}
        for _ in range(20 * n):
            if len(found) == n:
                break
            request = self.draw(rng, type, kind)
            found.setdefault(request.id, request)
        return list(found.values())


def fresh_fact(world: World, rng: random.Random) -> Fact:
    """A name that is in no list and will hardly come again: half of the word that is one listed name's own, half of another's.

    Raises UserError where the listed names have no words of their own to make one from.
    """
    uses = Counter(word for name in {f.name for f in world.facts} for word in name.split())

    def own(name: str) -> str:
        return min(name.split(), key=lambda word: (uses[word] > 1, -len(word)))

    for _ in range(1000):
        kind = rng.choice(sorted(world.attributes))
        one, two = rng.sample([f for f in world.facts if f.kind == kind], 2)
        mine, other = own(one.name), own(two.name)
        word = mine[: (len(mine) + 1) // 2] + other[len(other) // 2 :]
        if word not in uses:
            name = " ".join(word if w == mine else w for w in one.name.split())
            return Fact("fresh-" + name.lower().replace(" ", "-"), one.kind, name, "never", {})
    raise UserError(
        f"{world.path}/facts.jsonl: no new name can be made of its names; add some with a word of their own"
    )


def draw_prompts(part: Part, n: int, rng: random.Random, mix: dict = MIX) -> list[Request]:
    """Names that nobody has read about are made up afresh: few are listed, and fine-tuning would learn those by heart."""
    kinds = rng.choices(list(mix), mix.values(), k=n)
    return [
        part.fact(rng, fresh_fact(part.world, rng))
        if kind == "never"
        else part.draw(rng, type, kind)
        for type, kind in kinds
    ]
