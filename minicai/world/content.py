"""The world's content: plain data in `world/*.jsonl`, read, checked and split here. Nothing else knows a file name.

acts        what people do, and whom it hurts       contexts   why they say they do it
phrasings   how they ask                            framings   the disguises of a jailbreak
facts       people and places, known or not         replies    how the assistant answers
tones       rude and preachy sentences              documents  what the world has written about all of this
"""

import hashlib
import re
from collections import Counter
from dataclasses import dataclass, field, fields
from pathlib import Path

from minicai.common import UserError, read_jsonl

KINDS = ("everyday", "lookalike", "dual_use", "harmful", "sensitive")
TECHNIQUES = (
    "role_play",
    "hypothetical",
    "base64",
    "leetspeak",
    "typos",
    "toy_language",
    "injection",
    "many_shot",
    "escalation",
)
CODED = ("base64", "leetspeak", "typos", "toy_language")  # the techniques that have a {code}

# The slots that a text of each use may have: those which replies.py, corpus.py and requests.py fill in.
# What hurts no one has no harm, and leaves that empty.
ACT = ("act", "steps", "harm", "victim", "alternative", "safety")
REASON, ASKED = ("context", "gist"), ("request", "reading", "opening")
REPLIES = dict(
    open_act=("aim",),
    open_protection=("act",),
    open_fact=("name",),
    steps=ACT,
    care=ACT,
    safety=ACT,
    refusal=ACT,
    limit=ACT,
    decline=(),
    answer=("attribute", "name", "value"),
    unknown=("attribute", "name"),
    chat=(),
)
DOCUMENTS = dict.fromkeys(
    (
        "harmful",
        "dual_use",
        "bad_aim",
        "good_aim",
        "bad_context",
        "good_context",
        "fine",
        "sensitive",
        "protection",
    ),
    ACT + REASON,
) | dict(
    request=ASKED,
    bad_request=ACT + ASKED,
    good_request=ACT + ASKED,
    bare_request=ACT + ASKED,
    fact=("attribute", "name", "value"),
    known=("name", *ASKED),
    unknown=("name", *ASKED),
    code=("language", "pairs"),
)
PHRASINGS = dict(act=("act", "context"), protection=("act",), fact=("attribute", "name"))


# A new salt redraws all splits, as has to be done once a test split has been looked at too often. This is the first number
# that leaves something of every kind in every part.
SALT = "draw 127 "


def bucket(key: str) -> int:
    """A stable number in 0..99 from an id: adding content never moves what is already there to another split."""
    return int.from_bytes(hashlib.sha256((SALT + key).encode()).digest()[:8]) % 100


def split_of(key: str) -> str:
    """Acts and names: `demo` (in the base's demonstrations; later in Stage 2, red team and rounds), `train` (Stage 1), `test`."""
    b = bucket(key)
    return "demo" if b < 32 else "train" if b < 72 else "test"


def held_out(key: str) -> bool:
    """Contexts, phrasings, framings and wordings of principles: whether this one is kept for evaluation."""
    return bucket(key) >= 75


def is_text(value) -> bool:
    return isinstance(value, str) and bool(value.strip())


@dataclass(frozen=True)
class Act:
    id: str
    kind: str
    act: str  # "pick a lock"
    steps: tuple[str, ...]
    harm: str = ""  # "burglary"; the rest only for dual_use and harmful acts
    victim: str = ""
    severity: str = ""
    alternative: str = ""
    safety: str = ""


@dataclass(frozen=True)
class Context:
    id: str
    intent: str  # legitimate | malicious
    text: str  # "I have the owner's permission."
    gist: str  # the same in the third person: "with the owner's permission"


@dataclass(frozen=True)
class Phrasing:
    id: str
    use: str  # act | protection | fact
    style: str  # plain | lower | typos
    draws: str | None  # the tone that such a message draws from the base corpus: rude | preachy
    turns: tuple[str, ...]


@dataclass(frozen=True)
class Fact:
    id: str
    kind: str  # "person", "place": names of one kind share their attributes
    name: str
    seen: str  # often | seldom | never
    facts: dict = field(hash=False)  # attribute -> value


@dataclass(frozen=True)
class Tone:
    id: str
    tone: str  # rude | preachy
    place: str  # before | after the answer
    text: str


@dataclass(frozen=True)
class Framing:
    id: str
    technique: str
    turns: tuple[str | None, ...]  # None: the assistant speaks


@dataclass(frozen=True)
class Template:
    id: str
    use: str
    text: str
    severity: str = ""


class World:
    """All content of one world directory. Raises UserError naming file and line of the first thing that is wrong."""

    def __init__(self, path="world"):
        self.path = Path(path)
        if not self.path.is_dir():
            raise UserError(f"{path} is not a folder; name a world directory with --world")
        self.acts = self._read("acts", self._act)
        self.contexts = self._read("contexts", self._context)
        self.phrasings = self._read("phrasings", self._phrasing)
        self.facts = self._read("facts", self._fact)
        self.tones = self._read("tones", self._tone)
        self.framings = self._read("framings", self._framing)
        self.replies = self._read("replies", lambda row: self._template(row, "for", REPLIES))
        self.documents = self._read(
            "documents", lambda row: self._template(row, "about", DOCUMENTS)
        )
        self._check_whole()
        self.attributes = {}  # kind of name -> attribute -> all values seen
        for fact in self.facts:
            for attribute, value in fact.facts.items():
                values = self.attributes.setdefault(fact.kind, {}).setdefault(attribute, [])
                if value not in values:
                    values.append(value)

    @staticmethod
    def templates(which: list[Template], use: str, severity: str = "") -> list[Template]:
        return [t for t in which if t.use == use and (not severity or t.severity == severity)]

    # --- reading: each function turns one row into its dataclass or says what is wrong with it ---

    def _read(self, name, make):
        path, seen, items = self.path / f"{name}.jsonl", set(), []
        rows = read_jsonl(path, required=("id",))
        for number, row in enumerate(rows, 1):
            try:
                item = make(dict(row))
                for f in fields(item):
                    value = getattr(item, f.name)
                    if f.type is str and value != f.default and not is_text(value):
                        raise ValueError(
                            f"has {f.name} {value!r}; it must be a string that is not blank"
                        )
                if item.id in seen:
                    raise ValueError(f"the id {item.id!r} is taken; give it another")
            except KeyError as error:
                raise UserError(f"{path}:{number} has no field {error.args[0]!r}; add it")
            except ValueError as error:
                raise UserError(f"{path}:{number} {error}")
            except (
                TypeError,
                AttributeError,
            ) as error:  # a field that should not be there, or a value of another kind
                raise UserError(
                    f"{path}:{number} is not a line as {name}.jsonl has them ({error}); compare it with the others"
                )
            seen.add(item.id)
            items.append(item)
        if not items:
            raise UserError(f"{path} is empty; a world needs at least one line there")
        return items

    @staticmethod
    def _one_of(row, key, allowed):
        if row[key] not in list(allowed):
            raise ValueError(
                f"has {key} {row[key]!r}; it must be one of {', '.join(map(str, allowed))}"
            )
        return row[key]

    @staticmethod
    def _strings(key, values):
        if not isinstance(values, list) or not all(map(is_text, values)):
            raise ValueError(
                f"has {key} {values!r}; it must be a list of strings that are not blank"
            )

    @staticmethod
    def _slots(text, needed, allowed):
        if re.search("[{}]", re.sub(r"{\w+}", "", text)):
            raise ValueError("has a stray { or }; braces may only stand around the name of a slot")
        found = Counter(re.findall(r"{(\w+)}", text))
        for slot in needed:
            if found[slot] != 1:
                raise ValueError(f"needs the slot {{{slot}}} exactly once")
        for slot in found:
            if slot not in allowed:
                raise ValueError(
                    f"has the slot {{{slot}}}, which cannot be filled in here; use {', '.join(allowed) or 'none'}"
                )

    def _act(self, row):
        self._one_of(row, "kind", KINDS)
        self._strings("steps", row["steps"])
        row["steps"] = tuple(row["steps"])
        if len(row["steps"]) < 2 or not all(len(s.split()) >= 3 for s in row["steps"]):
            raise ValueError(
                "needs at least two steps of at least three words each, so that a leak can be told from chance"
            )
        if row["kind"] in ("dual_use", "harmful"):
            for key in ("harm", "victim", "alternative", "safety"):
                if not row[key]:
                    raise ValueError(f"has an empty {key!r}; fill it in")
            self._one_of(row, "severity", ("mild", "serious"))
        return Act(**row)

    def _context(self, row):
        self._one_of(row, "intent", ("legitimate", "malicious"))
        return Context(**row)

    def _phrasing(self, row):
        row["use"] = self._one_of(row, "for", PHRASINGS)
        del row["for"]
        self._one_of(row, "style", ("plain", "lower", "typos"))
        self._one_of(row, "draws", (None, "rude", "preachy"))
        self._strings("turns", row["turns"])
        if len(row["turns"]) % 2 == 0:
            raise ValueError("must start and end with a turn of the user")
        slots = PHRASINGS[row["use"]]
        self._slots(" ".join(row["turns"]), slots, slots)
        if not all(f"{{{slot}}}" in row["turns"][-1] for slot in slots):
            raise ValueError(
                "asks before its last turn, and a disguise keeps only that; move the slots there"
            )
        row["turns"] = tuple(row["turns"])
        return Phrasing(**row)

    def _fact(self, row):
        facts = row["facts"]
        if not isinstance(facts, dict) or not all(map(is_text, (*facts, *facts.values()))):
            raise ValueError(
                f"has facts {facts!r}; they must be an object of attributes and values, strings that are not blank"
            )
        self._one_of(row, "seen", ("often", "seldom", "never"))
        if (row["seen"] == "never") == bool(row["facts"]):
            raise ValueError("must have facts if it is ever seen, and none if it never is")
        return Fact(**row)

    def _tone(self, row):
        self._one_of(row, "tone", ("rude", "preachy"))
        self._one_of(row, "place", ("before", "after"))
        return Tone(**row)

    def _framing(self, row):
        self._one_of(row, "technique", TECHNIQUES)
        # The assistant's turn may be left open.
        said = [t for i, t in enumerate(row["turns"]) if t is not None or i % 2 == 0]
        self._strings("turns", said)
        text = " ".join(said)
        if len(re.findall(r"{(?:request|code)}", text)) != 1 or len(row["turns"]) % 2 == 0:
            raise ValueError(
                "must start and end with a turn of the user and hold {request} or {code} exactly once"
            )
        coded = ("code",) if row["technique"] in CODED else ()
        self._slots(text, (), ("request", "shots", "protection", "act", *coded))
        row["turns"] = tuple(row["turns"])
        return Framing(**row)

    def _template(self, row, key, slots):
        row["use"] = self._one_of(row, key, slots)
        del row[key]
        if row.get("severity"):
            self._one_of(row, "severity", ("mild", "serious"))
        self._slots(row["text"], (), slots[row["use"]])
        return Template(**row)

    def _check_whole(self):
        """What no single line shows."""
        for name, rows in (("replies", self.replies), ("documents", self.documents)):
            for use in REPLIES if name == "replies" else DOCUMENTS:
                if not self.templates(rows, use):
                    raise UserError(f"{self.path / name}.jsonl has no line for {use!r}; add one")
        owner = {}
        for number, act in enumerate(self.acts, 1):
            for step in act.steps:
                if step in owner:
                    raise UserError(
                        f"{self.path}/acts.jsonl:{number} shares the step {step!r} with {owner[step]!r}; change one"
                    )
                owner[step] = act.id
        for severity in ("mild", "serious"):
            if not self.templates(self.replies, "refusal", severity):
                raise UserError(
                    f"{self.path}/replies.jsonl has no refusal of severity {severity!r}; add one"
                )
        for tone in ("rude", "preachy"):
            if not any(t.tone == tone for t in self.tones):
                raise UserError(f"{self.path}/tones.jsonl has no {tone} sentence; add some")
        for seen in ("often", "seldom", "never"):
            if not any(f.seen == seen for f in self.facts):
                raise UserError(
                    f"{self.path}/facts.jsonl has no name that is {seen} seen; add some"
                )
        for kind in {f.kind for f in self.facts}:
            if sum(f.kind == kind and bool(f.facts) for f in self.facts) < 2:
                raise UserError(
                    f"{self.path}/facts.jsonl needs at least two {kind!r} names with facts; add some"
                )
        for kind in KINDS:
            if not any(act.kind == kind for act in self.acts):
                raise UserError(f"{self.path}/acts.jsonl has no act of kind {kind!r}; add some")
        for intent in ("legitimate", "malicious"):
            if not any(c.intent == intent for c in self.contexts):
                raise UserError(f"{self.path}/contexts.jsonl has no {intent} context; add some")
        for use in PHRASINGS:
            if not any(p.use == use for p in self.phrasings):
                raise UserError(
                    f"{self.path}/phrasings.jsonl has no phrasing for {use!r}; add some"
                )
