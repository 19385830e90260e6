"""The pretraining corpus: it makes a helpful-only model that knows what harm is.

The assistant of the corpus complies with everything, in every disguise. Documents say what each act
is, whom it hurts and what to do instead. Critiques, revisions and comparisons are demonstrated for
demo acts and seen wordings only.

Two things are left out, because the constitution has to teach them: no training target refuses a first
request, and no document under a request for a test act says what to do instead.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from random import Random

from minicai.constitution import Constitution
from minicai.critique import CRITIQUE_REQUEST, REVISION_REQUEST, comparison_prompt
from minicai.files import UserError
from minicai.splits import held_out, split_of
from minicai.world import skills
from minicai.world.content import Act, Fact, World
from minicai.world.disguises import code_pairs, fits, wrap
from minicai.world.replies import (
    Reply,
    calibrated,
    decline,
    helpful,
    list_steps,
    opening,
    with_tone,
)
from minicai.world.requests import PLAIN, Part, Request, fresh_fact, phrase

SHARE = {  # kind of document (a method of Corpus) -> share of the documents
    "dialogue": 0.11,
    "disguise": 0.11,
    "code": 0.11,
    "knowledge": 0.14,
    "reading": 0.19,
    "name": 0.10,
    "principle": 0.04,
    "critique": 0.18,
    "compare": 0.02,
}
# Loss weights of tokens. All others have 1, and the assistant's turns in a request have 0.
USER_WEIGHT = 0.1  # what users say and documents quote: more would crowd out the rest
POINT_WEIGHT = 4.0  # the few words that a document is there to teach
CHOICE_WEIGHT = 5.0  # "(A)" or "(B)" after a comparison: all that a long text teaches
QUOTE, POINT = "\0", "\1"  # stand around quotes and points until `pieces` cuts them out
TONE_RATE = 0.95  # of the answers to a phrasing that draws a tone
PRACTICE = {"base64": 3, "leetspeak": 3, "toy_language": 2, "typos": 2}  # framing -> weight, else 1
LANGUAGES = {
    "base64": "base64",
    "leetspeak": "leet",
    "toy_language": "Lopo",
    "typos": "bad spelling",
}
LANGUAGE_WEIGHTS = (4, 3, 2, 2)  # base64 is the hardest to read


@dataclass
class Turn:
    role: str  # user | assistant | document
    content: str
    weight: float  # of its tokens in the loss


def user(text: str) -> Turn:
    return Turn("user", text, USER_WEIGHT)


def asked(request: Request) -> list[Turn]:
    """The turns of a request. Those of the assistant are not learned."""
    return [Turn("assistant", t, 0.0) if i % 2 else user(t) for i, t in enumerate(request.turns)]


def quoted(text: str) -> str:
    return f"{QUOTE}{text}{QUOTE}"


def taught(text: str) -> str:
    return f"{POINT}{text}{POINT}"


def pieces(document: str) -> list[Turn]:
    """A document as turns with weights, cut at its quotes and points.

    A space belongs to the word after it, as in the tokenizer.
    """
    weights, mark, turns = {QUOTE: USER_WEIGHT, POINT: POINT_WEIGHT, None: 1.0}, None, []
    document = re.sub(f" ([{QUOTE}{POINT}])", r"\1 ", document)
    for part in re.split(f"([{QUOTE}{POINT}])", document):
        if part in weights:
            mark = None if mark else part
        elif part:
            turns.append(Turn("document", part, weights[mark]))
    return turns


def facts_of(act: Act) -> dict:
    """The slots of a document about an act."""
    points = dict(alternative=taught(act.alternative), safety=taught(act.safety))
    return dict(act=act.act, steps=list_steps(act), harm=act.harm, victim=act.victim) | points


def thinned(text: str, rng: Random) -> str:
    """The text, half of the time without some of its words, so that any of them are enough to know it."""
    if rng.random() < 0.5:
        return text
    return " ".join(word for word in text.split() if rng.random() < 0.7) or text


class Corpus:
    """Documents drawn from a seed. Only the demonstrations need the constitution."""

    def __init__(self, world: World, constitution: Constitution | None, seed):
        self.world, self.constitution = world, constitution
        self.rng = Random(f"corpus {seed}")
        self.all, self.demo = Part(world, None), Part(world, "demo")
        # Documents about requests quote no held-out phrasing.
        hidden = {phrasing for phrasing in world.phrasings if held_out(phrasing.id)}
        self.read = Part(world, None, without=hidden)
        self.known_demo_names = [fact for fact in self.demo.facts if fact.facts]
        for what, found in (
            ("acts.jsonl has no act in its demo part", self.demo.acts),
            ("facts.jsonl has no name with facts in its demo part", self.known_demo_names),
            ("framings.jsonl has no framing that is not held out", self.demo.framings),
        ):
            if not found:
                raise UserError(f"{world.path}/{what}, which the demonstrations need; add some")
        self.words = [
            sorted({word for text in texts for word in re.findall(r"[\w']+", text.lower())})
            for texts in ([a.act for a in world.acts], [c.text for c in world.contexts])
        ]

    def documents(self, n: int) -> Iterator[list[Turn]]:
        for kind in self.rng.choices(list(SHARE), SHARE.values(), k=n):
            yield getattr(self, kind)()

    # --- chats: the assistant complies -----------------------------------------------------------

    def exchange(self, request: Request) -> list[Turn]:
        reply = helpful(self.world, request, self.rng)
        if request.phrasing.draws and self.rng.random() < TONE_RATE:
            reply = with_tone(self.world, reply, request.phrasing.draws, self.rng)
        return [*asked(request), Turn("assistant", reply.text, 1.0)]

    def any_request(self, part: Part) -> Request:
        return part.draw(self.rng, self.rng.choices(PLAIN, (28, 32, 20, 12, 8))[0])

    def dialogue(self) -> list[Turn]:
        turns = self.exchange(self.any_request(self.all))
        if self.rng.random() < 0.15:  # the person goes on with something else
            turns += self.exchange(self.any_request(self.all))
        return turns

    def disguised(self, part: Part) -> Request:
        weights = [PRACTICE.get(framing.technique, 1) for framing in part.framings]
        while True:
            framing = self.rng.choices(part.framings, weights)[0]
            request = self.any_request(part)
            if request.type != "dual_use_question" and fits(framing, request):
                return wrap(request, framing, part, self.rng)

    def disguise(self) -> list[Turn]:
        request = self.disguised(self.all)
        return [
            *asked(request),
            Turn("assistant", helpful(self.world, request, self.rng).text, 1.0),
        ]

    # --- documents -------------------------------------------------------------------------------

    def document(self, about: str, **slots) -> list[Turn]:
        template = self.rng.choice(self.world.templates(self.world.documents, about))
        return pieces(template.text.format(**slots))

    def code(self) -> list[Turn]:
        """Encoded words or questions, each with its plain text."""
        technique = self.rng.choices(list(LANGUAGES), LANGUAGE_WEIGHTS)[0]
        words = self.words[self.rng.random() < 0.3]  # of acts, or less often of contexts
        texts = self.rng.sample(words, min(12, len(words)))
        if technique == "typos" or self.rng.random() < 0.5:
            texts = [self.any_request(self.read).core.rstrip("?") for _ in range(2)]
        pairs = [
            f"{quoted(code)} is {text}" for code, text in code_pairs(technique, texts, self.rng)
        ]
        return self.document("code", language=LANGUAGES[technique], pairs=", ".join(pairs))

    def knowledge(self) -> list[Turn]:
        """What the world knows about an act, a context, or both."""
        hurts = self.rng.random() < 0.8  # harmless acts need fewer documents
        act = self.rng.choice([a for a in self.world.acts if bool(a.harm) == hurts])
        intent = self.rng.choice(("legitimate", "malicious"))
        context = self.all.pick(self.rng, "contexts", intent=intent)
        good = intent == "legitimate"
        if act.kind == "dual_use":
            aim = "good_aim" if good else "bad_aim"
            about = self.rng.choice(("dual_use", "dual_use", aim, "protection"))
        elif act.kind == "harmful":  # a good reason changes nothing
            about = self.rng.choice(("harmful", "harmful", "bad_aim", "protection"))
        elif act.kind == "sensitive":
            about = "sensitive"
        else:
            about = self.rng.choice(("fine", "good_aim")) if good else "fine"
        if self.rng.random() < 0.2:
            about = "good_context" if good else "bad_context"
        return self.document(about, context=context.text, gist=context.gist, **facts_of(act))

    def reading(self) -> list[Turn]:
        """A request and what it means, about acts of all splits: what a critique must see first.

        For requests about other than test acts it may also say what to do instead.
        """
        rng, r = self.rng, self.rng.random()
        if r < 0.12:
            request = self.strange(self.read)
        elif r < 0.28:
            fact = fresh_fact(self.world, rng) if rng.random() < 0.4 else self.known_name()
            request = self.read.fact(rng, fact)
        else:
            request = self.any_request(self.read)
        bad = request.type in ("harmful", "ambiguous")
        tested = bad and split_of(request.topic) == "test"
        if bad and rng.random() < 0.6:
            return self.offer(request, by_itself=tested)
        about = {"harmful": "bad_request", "ambiguous": "bare_request"}.get(
            request.type, "good_request"
        )
        if request.type == "fact":
            about = "known" if request.known else "unknown"
        if tested or request.type == "strange" or rng.random() < 0.5:
            about = "request"  # says in other words what is asked
        return self.remark(about, request)

    def strange(self, part: Part) -> Request:
        """A request about an act of random words. A model can only copy them word by word."""
        rng = self.rng
        act_words = [w for a in part.acts for w in a.act.split()]
        step_words = [w for a in part.acts for step in a.steps for w in step.split()]
        words = " ".join(a.act for a in self.world.acts)
        while any(a.act in words for a in self.world.acts):  # until it holds no real act
            first = rng.choice(part.acts).act.split()[0]
            words = " ".join([first, *rng.sample(act_words, rng.randint(2, 4))])
        steps = tuple(" ".join(rng.sample(step_words, rng.randint(4, 6))) for _ in range(2))
        act = Act("strange", "strange", words, steps)
        phrasing = part.pick(rng, "phrasings", use="act")
        return Request("strange", phrase(phrasing, rng, act=words, context=""), phrasing, act)

    def remark(self, about: str, request: Request) -> list[Turn]:
        """A document about a request, which it quotes or comes after."""
        template = self.rng.choice(self.world.templates(self.world.documents, about))
        slots = facts_of(request.act) if request.act else dict(name=request.fact.name)
        text = template.text.format(
            request=quoted(" ".join(request.turns)),
            reading=skills.situation(request),
            opening=opening(self.world, request, self.rng),
            **slots,
        )
        return pieces(text) if "{request}" in template.text else self.after(request, text)

    def after(self, request: Request, text: str) -> list[Turn]:
        """A document after a request, half of the time with its answer between them."""
        answered = request.type != "strange" and self.rng.random() < 0.5
        return [*(self.exchange(request) if answered else asked(request)), *pieces(text)]

    def offer(self, request: Request, by_itself: bool = False) -> list[Turn]:
        """A remark that offers the safe alternative as a refusal would, but refuses nothing.

        Revisions are demonstrated for demo acts only. Without these remarks the model cannot recall
        the alternative of another act behind the words of a refusal, and names that of a demo act.
        """
        use = ("refusal", request.act.severity) if request.type == "harmful" else ("limit",)
        template = self.rng.choice(self.world.templates(self.world.replies, *use))
        offers = [s for s in re.split(r"(?<=[.!?]) ", template.text) if "{alternative}" in s]
        offered = (offers or ["It is better to {alternative}."])[0].format(**facts_of(request.act))
        if by_itself:
            return pieces(f"{skills.situation(request)} {offered}")
        return self.after(request, f"{opening(self.world, request, self.rng)} {offered}")

    def known_name(self) -> Fact:
        seen = "often" if self.rng.random() < 0.93 else "seldom"
        return self.all.pick(self.rng, "facts", seen=seen)

    def name(self) -> list[Turn]:
        """A listed name with its facts, or a new one, to teach the difference between the two."""
        rng = self.rng
        if rng.random() < 0.45:
            fact = fresh_fact(self.world, rng)
            if rng.random() < 0.6:
                return self.remark("unknown", self.read.fact(rng, fact))
            return self.exchange(self.all.fact(rng, fact))
        fact = self.known_name()
        if rng.random() < 0.4:
            return self.remark("known", self.read.fact(rng, fact))
        attributes = rng.sample(list(fact.facts), len(fact.facts))
        if rng.random() < 0.4:
            texts = []
            for a in attributes:
                [turn] = self.document("fact", name=fact.name, attribute=a, value=fact.facts[a])
                texts.append(turn.content)
            return [Turn("document", " ".join(texts), 1.0)]
        return [turn for a in attributes for turn in self.exchange(self.all.fact(rng, fact, a))]

    # --- demonstrations: demo acts and seen wordings only ----------------------------------------

    def principle(self) -> list[Turn]:
        """A text of the constitution and what it is about. Held-out wordings share words with it."""
        wording = self.constitution.draw(
            self.rng, family=self.rng.choice(self.constitution.families)
        )
        text = self.rng.choice((wording.critique, wording.revision, wording.comparison))
        request = CRITIQUE_REQUEST.format(quoted(thinned(text, self.rng)))
        return pieces(f"{request} The principle is about {taught(skills.ABOUT[wording.family])}.")

    def demo_request(self) -> Request:
        r = self.rng.random()
        if r < 0.12:
            return self.demo.fact(self.rng, fresh_fact(self.world, self.rng))
        if r < 0.22:
            return self.demo.fact(self.rng, self.rng.choice(self.known_demo_names))
        if r < 0.40:
            return self.strange(self.demo)
        return self.disguised(self.demo) if r < 0.46 else self.any_request(self.demo)

    def demo_reply(self, request: Request) -> Reply:
        """A reply with or without a flaw."""
        r, make = self.rng.random(), calibrated
        if r < 0.5:
            make = helpful
        elif r < 0.68 and request.type not in ("fact", "strange"):
            make = decline
        reply = make(self.world, request, self.rng)
        if self.rng.random() < 0.35:
            reply = with_tone(self.world, reply, self.rng.choice(("rude", "preachy")), self.rng)
        return reply

    def family(self, broken: set[str]) -> str:
        """A family of principles: often a broken one, but not so often that it gives the flaw away."""
        families = self.constitution.families
        found = sorted(broken & set(families))
        if found and self.rng.random() < 0.4:
            return self.rng.choice(found)
        return self.rng.choice(families)

    def critique(self) -> list[Turn]:
        request = self.demo_request()
        reply = self.demo_reply(request)
        wording = self.constitution.draw(self.rng, family=self.family(skills.flaws(request, reply)))
        turns = [*asked(request), Turn("assistant", reply.text, 0.0)]
        if self.rng.random() < 0.88:  # else the revision comes directly
            critique = skills.critique(request, reply, wording.family)
            turns += [
                user(CRITIQUE_REQUEST.format(wording.critique)),
                Turn("assistant", critique, 1.0),
            ]
        revision = skills.revise(self.world, request, reply, wording.family, self.rng)
        turns += [
            user(REVISION_REQUEST.format(wording.revision)),
            Turn("assistant", revision.text, 1.0),
        ]
        return turns

    def compare(self) -> list[Turn]:
        request = self.demo_request()
        a, b = self.demo_reply(request), self.demo_reply(request)
        family = self.family(skills.flaws(request, a) ^ skills.flaws(request, b))
        wording = self.constitution.draw(self.rng, family=family)
        question = comparison_prompt(request.turns, wording.comparison, a.text, b.text)
        choice = skills.better(request, a, b, family, self.rng)
        return [user(question), Turn("assistant", choice, CHOICE_WEIGHT)]
