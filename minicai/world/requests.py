"""What people ask. The type of a request decides which answer is right.

type                built from                                    a calibrated assistant
harmful             harmful act; dual-use act, malicious context  refuses and offers another way
legitimate          everyday, lookalike; dual-use, good context   gives the steps
dual_use_question   "how do I protect myself from ..."            gives the safety advice
ambiguous           dual-use act without a context                gives the safe part, no steps
sensitive           sensitive act                                 gives the steps, with care
fact                attribute of a name                           answers or says it does not know

GLOSSARY
act           what a person wants to do ("pick a lock"), with its steps and the harm it can cause
context       the reason that a person gives; it decides whether a dual-use act is harmful
about         what an act touches ("home") and a context may be said of; a pair shares a word
request type  one of the six rows of the table above
phrasing      a template for a question: plain, lower case or misspelled
framing       a template for a jailbreak; it disguises a request
wording       one version of a principle. "Wordings" in the grid: also contexts, phrasings, framings
principle     a rule of the constitution
family        the principles about one flaw: harmlessness, honesty, respect, autonomy, necessity
topic         the act or name that a request is about; the unit of all statistics
split         a part of the world: acts and names are demo, train or test; wordings seen or held out

GRID         what is asked                   acts and names       wordings
train_base   helpful-only chats              all                  all
             documents                       all                  all but held-out phrasings
             critiques, revisions, choices   demo                 seen
revise, train_sft                            train                seen
train_sft    replayed documents              all                  all but held-out phrasings
label, train_rm, train_dpo, train_ppo        demo                 seen
redteam      templates                       demo (or --split)    seen (held out with test)
             other modes                     any                  any
revise --round                               demo                 seen; and successful attacks
                                             without a test topic or a held-out wording
evaluate, audits                             test (or --split)    held out; framings: half seen

Stage 2 asks about demo acts because Stage 1 has not trained on them. Two answers to a request that
Stage 1 has trained on are nearly equal, which leaves nothing to compare.
"""

from collections.abc import Collection
from dataclasses import dataclass
from random import Random

from minicai.files import UserError
from minicai.jailbreak import misspell
from minicai.prompts import NATURAL, draw_from, prompts_of
from minicai.splits import held_out, split_of
from minicai.world.content import Act, Context, Fact, Phrasing, World
from minicai.world.names import fresh_fact

STAGE2_SPLIT = "demo"
PLAIN = ("harmful", "legitimate", "dual_use_question", "ambiguous", "sensitive")  # about acts
TYPES = (*PLAIN, "fact")
HARMLESS = ("legitimate", "dual_use_question", "sensitive")  # a refusal of these is an over-refusal
# What the trainings ask: shares of request types and kinds of act (or how often a name was seen).
MIX = {
    ("harmful", "harmful"): 0.16,
    ("harmful", "dual_use"): 0.14,  # dual-use acts are as often harmful as legitimate
    ("ambiguous", None): 0.12,
    ("legitimate", "dual_use"): 0.14,
    ("legitimate", "everyday"): 0.09,
    ("legitimate", "lookalike"): 0.07,
    ("dual_use_question", None): 0.05,
    ("sensitive", None): 0.05,
    ("fact", "often"): 0.06,
    ("fact", "never"): 0.12,
}
HELPFUL = {  # the same for harmless requests only
    ("legitimate", "dual_use"): 0.28,
    ("legitimate", "everyday"): 0.20,
    ("legitimate", "lookalike"): 0.14,
    ("dual_use_question", None): 0.10,
    ("sensitive", None): 0.12,
    ("fact", "often"): 0.16,
}


@dataclass(frozen=True)
class Request:
    type: str
    turns: tuple[str, ...]  # user, assistant, ..., user
    phrasing: Phrasing
    act: Act | None = None
    context: Context | None = None
    fact: Fact | None = None
    attribute: str | None = None  # of the fact
    technique: str | None = None  # of the jailbreak that disguises the request
    framing: str | None = None  # id of its framing
    undisguised: tuple[str, ...] = ()  # the turns before they were disguised

    @property
    def plain(self) -> tuple[str, ...]:
        """The turns without a disguise."""
        return self.undisguised or self.turns

    @property
    def id(self) -> str:
        """All parts of the request. Requests with equal ids differ in spelling at most."""
        context = self.context and self.context.id
        parts = (self.type, self.topic, context, self.attribute, self.phrasing.id, self.framing)
        return "/".join(str(part) for part in parts if part)

    @property
    def topic(self) -> str:
        return (self.act or self.fact).id

    @property
    def known(self) -> bool:
        """For a fact request: whether the corpus states the answer."""
        return self.attribute in self.fact.facts

    def row(self) -> dict:
        """What a chain or a comparison says about the request."""
        return dict(type=self.type, request=self.id, turns=[*self.turns], plain=[*self.plain])

    @property
    def core(self) -> str:
        """The bare question, which disguises encode."""
        return squeeze(f"{self.context.text if self.context else ''} How do I {self.act.act}?")


def squeeze(text: str) -> str:
    return " ".join(text.split())


def phrase(phrasing: Phrasing, rng: Random, **slots) -> tuple[str, ...]:
    """The turns of a phrasing with its slots filled in."""
    turns = []
    for i, turn in enumerate(phrasing.turns):
        text = squeeze(turn.format(**slots))
        if i % 2 == 0:  # a turn of the user
            if phrasing.style == "lower":
                text = text.lower()
            elif turn.startswith("{act}"):
                text = text[:1].upper() + text[1:]
            if phrasing.style == "typos":
                text = misspell(text, rng)
        turns.append(text)
    return tuple(turns)


class Part:
    """The part of a world that one purpose may use. Requests are drawn from it.

    With split "demo" or "train" it has the acts and names of that split and the seen wordings, with
    "test" the test acts and names and the held-out wordings, with None everything. `without` holds
    items (acts, phrasings, framings, ...) to leave out; `evenly` draws rare contexts more often.
    """

    def __init__(self, world: World, split: str | None, without: Collection = (), evenly=False):
        def topics(items: list) -> list:
            return [x for x in items if split in (None, split_of(x.id)) and x not in without]

        def wordings(items: list) -> list:
            allowed = (False, True) if split is None else (split == "test",)
            return [x for x in items if held_out(x.id) in allowed and x not in without]

        self.world, self.split = world, split
        self._found = {}  # what pick has looked up before
        self.acts, self.facts = topics(world.acts), topics(world.facts)
        self.contexts = wordings(world.contexts)
        self.phrasings = wordings(world.phrasings)
        self.framings = wordings(world.framings)
        self.reasons = {a.id: [c for c in self.contexts if c.fits(a)] for a in self.acts}
        power = -0.5 if evenly else 0.0  # of the number of acts that a context fits
        self.weights = {c.id: max(1, sum(map(c.fits, self.acts))) ** power for c in self.contexts}

    def pick(self, rng: Random, items: str, **wanted):
        """A random item with the wanted attributes, as in pick(rng, "acts", kind="harmful").

        `items` names one of the part's lists. None fits any value. Raises UserError if none fits.
        """
        key = (items, *wanted.items())
        if key not in self._found:
            self._found[key] = [
                item
                for item in getattr(self, items)
                if all(value in (None, getattr(item, name)) for name, value in wanted.items())
            ]
        if not self._found[key]:
            path, part = f"{self.world.path}/{items}.jsonl", self.split or "whole"
            which = "".join(f" with {name} {v!r}" for name, v in wanted.items() if v is not None)
            raise UserError(f"{path} has no line{which} in its {part} part; add some")
        return rng.choice(self._found[key])

    def reason(self, rng: Random, act: Act, intent: str | None = None) -> Context | None:
        """A random context that fits the act. Acts that hurt no one may have none."""
        found = [c for c in self.reasons[act.id] if intent in (None, c.intent)]
        return rng.choices(found, [self.weights[c.id] for c in found])[0] if found else None

    def draw(self, rng: Random, type: str, kind: str | None = None) -> Request:
        """A random request of one type.

        `kind` narrows the kind of the act, or for a fact how often its name was seen.
        """
        if type == "fact":
            return self.fact(rng, self.pick(rng, "facts", seen=kind))
        kinds = {
            "harmful": ("harmful", "dual_use"),
            "legitimate": ("everyday", "lookalike", "dual_use"),
            "dual_use_question": ("harmful", "dual_use"),
            "ambiguous": ("dual_use",),
            "sensitive": ("sensitive",),
        }[type]
        asked = type == "dual_use_question" or None
        act = self.pick(rng, "acts", kind=kind or rng.choice(kinds), feared=asked)
        context = None
        if act.kind == "dual_use" and type in ("harmful", "legitimate"):
            context = self.reason(rng, act, "malicious" if type == "harmful" else "legitimate")
        elif type == "harmful" and rng.random() < 0.5:  # no reason makes a harmful act harmless
            context = self.reason(rng, act)
        elif act.kind in ("everyday", "lookalike") and rng.random() < 0.3:
            context = self.reason(rng, act, "legitimate")
        phrasing = self.pick(rng, "phrasings", use="protection" if asked else "act")
        turns = phrase(phrasing, rng, act=act.act, context=context.text if context else "")
        return Request(type, turns, phrasing, act, context)

    def fact(self, rng: Random, fact: Fact, attribute: str | None = None) -> Request:
        """A question about a name."""
        attribute = attribute or rng.choice(list(fact.facts or self.world.attributes[fact.kind]))
        phrasing = self.pick(rng, "phrasings", use="fact")
        turns = phrase(phrasing, rng, attribute=attribute, name=fact.name)
        return Request("fact", turns, phrasing, fact=fact, attribute=attribute)

    def many(self, rng: Random, n: int, type: str, kind: str | None = None) -> list[Request]:
        """Up to n different requests; fewer where the world does not hold so many."""
        found = {}
        for _ in range(20 * n):
            if len(found) == n:
                break
            request = self.draw(rng, type, kind)
            found.setdefault(request.id, request)
        return list(found.values())


def draw_prompts(part: Part, n: int, rng: Random, mix=MIX, file=None, natural=False) -> list:
    """n requests in the shares of `mix`, with `natural` also prompts/natural.jsonl; or up to n
    prompts of a file. Prompts are of the train half. Names never seen are made up afresh, because
    the few listed ones would be learned by heart."""
    if file:
        return draw_from(file, n, rng)
    drawn = [
        part.fact(rng, fresh_fact(part.world, rng))
        if kind == "never"
        else part.draw(rng, type, kind)
        for type, kind in rng.choices(list(mix), mix.values(), k=n)
    ]
    return drawn + (prompts_of(NATURAL, "train") if natural else [])
