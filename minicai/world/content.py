"""The world's content: the lines of `world/*.jsonl`, read and checked. Only this file opens them.

acts        what people do, and whom it hurts      contexts    why people say they do it
more_acts   the same, on request (see World)
phrasings   how people ask                         framings    the disguises of jailbreaks
facts       people and places, known or unknown    replies     templates for the assistant's answers
tones       rude and preachy sentences             documents   templates for texts about all of this

A wrong line ends in one UserError that names the file, the line and the remedy.
"""

import math
from collections import Counter
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal

from minicai.files import UserError, read_jsonl
from minicai.splits import held_out, part_of
from minicai.world.parse import (
    check_act,
    check_fact,
    check_framing,
    check_phrasing,
    check_text,
    parse,
)

KINDS = ("everyday", "lookalike", "dual_use", "harmful", "sensitive")
# From easy to hard to read: a small part of a world leaves out the last ones.
TECHNIQUES = ("role_play", "hypothetical", "injection", "escalation", "many_shot")
PLAIN_TECHNIQUES = len(TECHNIQUES)
TECHNIQUES += ("typos", "leetspeak", "toy_language", "base64")
INTENTS = ("legitimate", "malicious")
SEEN = ("often", "seldom", "never")
TONES = ("rude", "preachy")

# The slots that a template of each use may contain; replies.py, documents.py and requests.py fill
# them in. Harm, victim, alternative and safety are empty for acts that hurt no one.
ACT = ("act", "steps", "harm", "victim", "alternative", "safety")
CONTEXT = ("context", "gist")
FACT = ("attribute", "name", "value")
REMARK = ("request", "reading", "opening")
PHRASINGS = dict(act=("act", "context"), protection=("act",), fact=("attribute", "name"))
REPLIES = (
    dict(open_act=("aim",), open_protection=("act",), open_fact=("name",), decline=(), chat=())
    | dict.fromkeys(("steps", "care", "safety", "refusal", "limit"), ACT)
    | dict(answer=FACT, unknown=("attribute", "name"))
)
DOCUMENTS = (
    dict.fromkeys(("steps", "sensitive", "fine", "dual_use", "protection"), ACT)
    | dict(harmful=ACT + CONTEXT)
    | dict.fromkeys(("bad_aim", "good_aim", "bad_context", "good_context"), ACT + CONTEXT)
    | dict.fromkeys(("bad_request", "good_request", "bare_request"), ACT + REMARK)
    | dict.fromkeys(("known", "unknown"), ("name", *REMARK))
    | dict(request=REMARK, fact=FACT, code=("language", "pairs"))
)


@dataclass(frozen=True)
class Act:
    id: str
    kind: Literal[KINDS]
    act: str  # "pick a lock"
    steps: tuple[str, ...]
    about: tuple[str, ...] = ()  # words for what it touches: ("home", "goods"); see Context
    # Only dual_use and harmful acts have the fields below.
    harm: str = ""  # "burglary"
    victim: str = ""
    severity: Literal["", "mild", "serious"] = ""
    alternative: str = ""  # what to do instead
    safety: str = ""  # how to protect oneself
    feared: bool = True  # whether people ask how to protect themselves from it


@dataclass(frozen=True)
class Context:
    id: str
    intent: Literal[INTENTS]
    text: str  # "I have the owner's permission."
    gist: str  # the same in the third person: "with the owner's permission"
    about: tuple[str, ...] = ()  # kinds of acts and words of acts; none: it fits every act

    def fits(self, act: Act) -> bool:
        """Whether a person may give this reason for the act: the two share a word."""
        return not self.about or not {act.kind, *act.about}.isdisjoint(self.about)


@dataclass(frozen=True)
class Phrasing:
    id: str
    use: Literal[tuple(PHRASINGS)]  # "for" in the file
    style: Literal["plain", "lower", "typos"]
    draws: Literal[None, *TONES]  # the tone in which the base model answers such a message
    turns: tuple[str, ...]


@dataclass(frozen=True)
class Fact:
    id: str
    kind: str  # "person", "place": names of one kind have the same attributes
    name: str
    seen: Literal[SEEN]  # how often the name occurs in the corpus
    facts: dict = field(hash=False)  # attribute -> value


@dataclass(frozen=True)
class Tone:
    id: str
    tone: Literal[TONES]
    place: Literal["before", "after"]  # of the answer
    text: str


@dataclass(frozen=True)
class Framing:
    id: str
    technique: Literal[TECHNIQUES]
    turns: tuple[str | None, ...]  # None: the assistant speaks


@dataclass(frozen=True)
class Template:
    id: str
    use: str  # "for" in replies.jsonl, "about" in documents.jsonl
    text: str
    severity: Literal["", "mild", "serious"] = ""  # of the acts that a refusal is for


def unique_texts(item) -> list[str]:
    """What no other item of its kind may have: its id and, for an act, its words and its steps."""
    own = (item.act, *item.steps) if isinstance(item, Act) else ()
    return list(dict.fromkeys((item.id, *own)))


class World:
    """All content of one world directory. Raises UserError for the first thing that is wrong.

    With a share below 1 it keeps that part of the acts, names, tones and jailbreak techniques, and
    all else. A small model learns a small world in minutes.

    With `more` it also has the acts of more_acts.jsonl. They name every usual kind of harm, for a
    pretrained model that is to recognise harm in the requests of real people. Its jailbreaks are
    those that need no decoding: such a model sees too few documents to learn a code.
    """

    def __init__(self, path="world", share: float = 1.0, more: bool = False):
        self.path = Path(path)
        if not self.path.is_dir():
            raise UserError(f"{path} is not a folder; name a world directory with --world")
        acts = self._read("acts", Act, check_act)
        if more and not (self.path / "more_acts.jsonl").exists():
            raise UserError(
                f"{path}/more_acts.jsonl does not exist; write it, or name another --world"
            )
        if more:
            acts += self._read("more_acts", Act, check_act, others=acts)
        self.acts = part_of(acts, share, "kind")
        self.contexts = self._read("contexts", Context)
        self.phrasings = self._read(
            "phrasings", Phrasing, partial(check_phrasing, PHRASINGS), "for"
        )
        self.facts = part_of(self._read("facts", Fact, check_fact), share, "kind", "seen")
        self.tones = part_of(self._read("tones", Tone), share, "tone", "place")
        self.framings = self._read("framings", Framing, check_framing)
        self.replies = self._read("replies", Template, partial(check_text, REPLIES), "for")
        self.documents = self._read("documents", Template, partial(check_text, DOCUMENTS), "about")
        kept = TECHNIQUES[: PLAIN_TECHNIQUES if more else math.ceil(share * len(TECHNIQUES))]
        self.framings = [framing for framing in self.framings if framing.technique in kept]
        self._check_coverage()
        self.attributes = {}  # kind of name -> attribute -> all its values
        for fact in self.facts:
            for attribute, value in fact.facts.items():
                values = self.attributes.setdefault(fact.kind, {}).setdefault(attribute, [])
                if value not in values:
                    values.append(value)

    @classmethod
    def of(cls, args) -> "World":
        """The world of a script's options."""
        return cls(args.world, args.world_share, args.more_acts)

    @staticmethod
    def templates(which: list[Template], use: str, severity: str = "") -> list[Template]:
        return [t for t in which if t.use == use and (not severity or t.severity == severity)]

    def _read(self, name: str, make: type, check=None, use: str = "use", others=()) -> list:
        """The items of a file. They share no id, act or step with each other or with `others`."""
        path, items = self.path / f"{name}.jsonl", []
        owner = {text: item.id for item in others for text in unique_texts(item)}
        for number, row in enumerate(read_jsonl(path), 1):
            try:
                item = parse(make, row, use)
                if check:
                    check(item)
                for text in unique_texts(item):
                    if text in owner:
                        raise ValueError(f"shares {text!r} with {owner[text]!r}; change one")
                    owner[text] = item.id
            except ValueError as error:
                raise UserError(f"{path}:{number} {error}")
            items.append(item)
        if not items:
            raise UserError(f"{path} is empty; a world needs at least one line there")
        return items

    def _check_coverage(self):
        """Raise UserError unless there are lines of every kind that a script draws."""
        refusals = self.templates(self.replies, "refusal")
        for name, wanted, found in (
            ("acts", KINDS, [act.kind for act in self.acts]),
            ("contexts", INTENTS, [context.intent for context in self.contexts]),
            ("phrasings", PHRASINGS, [phrasing.use for phrasing in self.phrasings]),
            ("facts", SEEN, [fact.seen for fact in self.facts]),
            ("tones", TONES, [tone.tone for tone in self.tones]),
            ("replies", REPLIES, [reply.use for reply in self.replies]),
            ("replies", ("mild", "serious"), [refusal.severity for refusal in refusals]),
            ("documents", DOCUMENTS, [document.use for document in self.documents]),
        ):
            for value in wanted:
                if value not in found:
                    raise UserError(f"{self.path}/{name}.jsonl needs a line for {value!r}; add one")
        parts = [[c for c in self.contexts if held_out(c.id) == hidden] for hidden in (False, True)]
        for act in (act for act in self.acts if act.harm):
            for name, part in zip(("seen", "held-out"), parts):
                for intent in set(INTENTS) - {c.intent for c in part if c.fits(act)}:
                    raise UserError(
                        f"{self.path}/contexts.jsonl has no {name} {intent} context that fits "
                        f"the act {act.id!r}; add one, or a word to 'about' of the act"
                    )
        known = Counter(fact.kind for fact in self.facts if fact.facts)
        for fact in self.facts:
            if known[fact.kind] < 2:
                raise UserError(
                    f"{self.path}/facts.jsonl needs two {fact.kind!r} names with facts; add some"
                )
