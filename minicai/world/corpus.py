"""What "pretraining" means here: documents and conversations that make a helpful-only model which knows what harm is.

Three things are in it, and one is not. It complies with everything, in every disguise. It reads what the world has
written about harm and what to do instead, for all acts. It sees critique, revision and comparison done, for the demo
acts. It is never shown an assistant that refuses a first request as something to learn, and no document about a request for a test
act says what to do instead: that has to come from the constitution.
"""

import random
import re
from collections.abc import Iterator
from dataclasses import dataclass

from minicai.common import UserError
from minicai.constitution import Constitution
from minicai.jailbreak import code_pairs, fits, wrap
from minicai.world import skills
from minicai.world.content import Act, Fact, World, split_of
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

SHARE = {  # of the documents; those of knowledge are short, and what they say of single acts is what is learned last
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
# Of the loss on what users say and documents quote: enough to speak like a user, too little to crowd out the rest.
USER_WEIGHT = 0.1
POINT_WEIGHT = 4.0  # of what a document is there to teach: a few words, to be known by heart
QUOTE, POINT = (
    "\0",
    "\1",
)  # stand around what a document quotes, or is there to teach, until it is cut into pieces
CHOICE_WEIGHT = 5.0  # of a comparison's "(A)" or "(B)": all that a long text teaches
TONE_RATE = 0.95  # of the answers to a message that draws a tone
PRACTICE = {
    "base64": 3,
    "leetspeak": 3,
    "toy_language": 2,
    "typos": 2,
}  # of disguises that take more than the others
LANGUAGES = {
    "base64": "base64",
    "leetspeak": "leet",
    "toy_language": "Lopo",
    "typos": "bad spelling",
}


@dataclass
class Turn:
    role: str  # user | assistant | document
    content: str
    weight: float  # of its tokens in the loss


def user(text: str) -> Turn:
    return Turn("user", text, USER_WEIGHT)


def quoted(text: str) -> str:
    return f"{QUOTE}{text}{QUOTE}"


def taught(text: str) -> str:
    return f"{POINT}{text}{POINT}"


def pieces(document: str) -> list[Turn]:
    """A document as turns that carry their weights. What it quotes cannot be foreseen, and is there to be read.

    A space goes with the word behind it, as in the tokenizer, so that a quoted word is the same as anywhere else.
    """
    weights, inside, turns = {QUOTE: USER_WEIGHT, POINT: POINT_WEIGHT}, None, []
    for part in re.split(f"([{QUOTE}{POINT}])", re.sub(f" ([{QUOTE}{POINT}])", r"\1 ", document)):
        if part in weights:
            inside = None if inside else part
        elif part:
            turns.append(Turn("document", part, weights.get(inside, 1.0)))
    return turns


def asked(request: Request) -> list[Turn]:
    """The request's turns; what the assistant says inside them is not learned."""
    return [
        user(text) if i % 2 == 0 else Turn("assistant", text, 0.0)
        for i, text in enumerate(request.turns)
    ]


def facts_of(act: Act) -> dict:
    """What a document's slots may tell about an act."""
    return dict(
        act=act.act,
        steps=list_steps(act),
        harm=act.harm,
        victim=act.victim,
        alternative=taught(act.alternative),
        safety=taught(act.safety),
    )


def thinned(text: str, rng: random.Random) -> str:
    """Half of the time the text without some of its words, so that it is known by any of them."""
    if rng.random() < 0.5:
        return text
    return " ".join(word for word in text.split() if rng.random() < 0.7) or text


class Corpus:
    """Documents drawn from a seed. The constitution is only needed for the demonstrations."""

    def __init__(self, world: World, constitution: Constitution | None, seed):
        self.world, self.constitution = world, constitution
        self.rng = random.Random(f"corpus {seed}")
        self.all, self.demo, self.read = Part(world, None), Part(world, "demo"), Part(world, None)
        self.read.phrasings = (
            self.demo.phrasings
        )  # what is written about requests quotes no held-out phrasing
        for name, found in (
            ("acts.jsonl has no act in its demo part", self.demo.acts),
            (
                "facts.jsonl has no name with facts in its demo part",
                [f for f in self.demo.facts if f.facts],
            ),
            ("framings.jsonl has no framing that is not held out", self.demo.framings),
        ):
            if not found:
                raise UserError(f"{world.path}/{name}, and the demonstrations need one; add some")
        self.words = [
            sorted({w for text in texts for w in re.findall(r"[\w']+", text.lower())})
            for texts in ([a.act for a in world.acts], [c.text for c in world.contexts])
        ]

    def documents(self, n: int) -> Iterator[list[Turn]]:
        kinds, shares = zip(*SHARE.items())
        for kind in self.rng.choices(kinds, shares, k=n):
            yield getattr(self, kind)()

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
        weights = [PRACTICE.get(f.technique, 1) for f in part.framings]
        while True:
            framing, request = self.rng.choices(part.framings, weights)[0], self.any_request(part)
            if request.type != "dual_use_question" and fits(framing, request):
                return wrap(request, framing, part, self.rng)

    def disguise(self) -> list[Turn]:
        request = self.disguised(self.all)
        return [
            *asked(request),
            Turn("assistant", helpful(self.world, request, self.rng).text, 1.0),
        ]

    def code(self) -> list[Turn]:
        """Words in a code beside the plain ones, or whole questions, of which a word has to be read where it stands."""
        technique = self.rng.choices(list(LANGUAGES), (4, 3, 2, 2))[
            0
        ]  # base64 is the hardest to read
        words = self.words[self.rng.random() < 0.3]  # mostly those of acts
        texts = self.rng.sample(words, min(12, len(words)))
        if technique == "typos" or self.rng.random() < 0.5:
            texts = [self.any_request(self.read).core.rstrip("?") for _ in "ab"]
        pairs = ", ".join(
            f"{quoted(code)} is {text}" for code, text in code_pairs(technique, texts, self.rng)
        )
        return self.document("code", language=LANGUAGES[technique], pairs=pairs)

    def document(self, about: str, **slots) -> list[Turn]:
        template = self.rng.choice(self.world.templates(self.world.documents, about))
        return pieces(template.text.format(**slots))

    def knowledge(self) -> list[Turn]:
        """What the world knows about an act, a context, or both."""
        hurtful = self.rng.random() < 0.8  # the rest needs less telling
        act = self.rng.choice([a for a in self.world.acts if bool(a.harm) == hurtful])
        intent = self.rng.choice(("legitimate", "malicious"))
        context = self.all.pick(self.rng, "contexts", intent=intent)
        good = intent == "legitimate"
        slots = dict(context=context.text, gist=context.gist, **facts_of(act))
        if act.kind == "dual_use":
            about = self.rng.choice(
                ("dual_use", "dual_use", "good_aim" if good else "bad_aim", "protection")
            )
        elif act.kind == "harmful":
            about = self.rng.choice(
                ("harmful", "harmful", "bad_aim", "protection")
            )  # a good reason changes nothing
        elif act.kind == "sensitive":
            about = "sensitive"
        else:
            about = self.rng.choice(("fine", "good_aim")) if good else "fine"
        if self.rng.random() < 0.2:
            about = "good_context" if good else "bad_context"
        return self.document(about, **slots)

    def reading(self) -> list[Turn]:
        """A request and what is meant by it: what a critique has to see first, written about acts of every part.

        What to do instead is said too, but of a test act never under a request: that would be what the exam asks for.
        """
        rng, r = self.rng, self.rng.random()
        if r < 0.12:
            request = self.strange(self.read)
        elif r < 0.28:
            fact = fresh_fact(self.world, rng) if rng.random() < 0.4 else self.known_name()
            request = self.read.fact(rng, fact)
        else:
            request = self.any_request(self.read)
        examined = request.type in ("harmful", "ambiguous") and split_of(request.topic) == "test"
        if request.type in ("harmful", "ambiguous") and rng.random() < 0.6:
            return self.offer(request, by_itself=examined)
        about = {"harmful": "bad_request", "ambiguous": "bare_request"}.get(
            request.type, "good_request"
        )
        if request.type == "fact":
            about = "known" if request.known else "unknown"
        if examined or request.type == "strange" or rng.random() < 0.5:
            about = "request"  # which first says in other words what is asked
        return self.remark(about, request)

    def strange(self, part: Part) -> Request:
        """A request for something made of random words, which nobody can know: it has to be copied, word by word."""
        rng = self.rng
        acts = [w for a in part.acts for w in a.act.split()]
        steps = [w for a in part.acts for s in a.steps for w in s.split()]
        words = " ".join(a.act for a in self.world.acts)
        while any(a.act in words for a in self.world.acts):  # until it holds no act that there is
            words = " ".join(
                [rng.choice(part.acts).act.split()[0], *rng.sample(acts, rng.randint(2, 4))]
            )
        act = Act(
            "strange",
            "strange",
            words,
            tuple(" ".join(rng.sample(steps, rng.randint(4, 6))) for _ in "ab"),
        )
        phrasing = part.pick(rng, "phrasings", use="act")
        return Request("strange", phrase(phrasing, rng, act=act.act, context=""), phrasing, act)

    def remark(self, about: str, request: Request) -> list[Turn]:
        """A document that quotes a request, or stands under it, or under its answer, like a reader's remark."""
        template = self.rng.choice(self.world.templates(self.world.documents, about))
        slots = facts_of(request.act) if request.act else dict(name=request.fact.name)
        text = template.text.format(
            request=quoted(" ".join(request.turns)),
            reading=skills.situation(request),
            opening=opening(self.world, request, self.rng),
            **slots,
        )
        return pieces(text) if "{request}" in template.text else self.under(request, text)

    def under(self, request: Request, text: str) -> list[Turn]:
        answered = request.type != "strange" and self.rng.random() < 0.5
        return [*(self.exchange(request) if answered else asked(request)), *pieces(text)]

    def offer(self, request: Request, by_itself: bool = False) -> list[Turn]:
        """A remark that offers the act's safe alternative in the words of a refusal, without the refusal: under a request, or by itself.

        Revisions are shown for demo acts alone. What is known of the others only behind "It is better to ..." is not found
        behind "What I can suggest is to ...": there it comes out as a demo act's alternative (docs/log.md has the numbers).
        """
        use = ("refusal", request.act.severity) if request.type == "harmful" else ("limit",)
        template = self.rng.choice(self.world.templates(self.world.replies, *use))
        sentences = re.split(r"(?<=[.!?]) ", template.text)
        offers = [s for s in sentences if "{alternative}" in s] or [
            "It is better to {alternative}."
        ]
        said = offers[0].format(**facts_of(request.act))
        if by_itself:
            return pieces(f"{skills.situation(request)} {said}")
        return self.under(request, f"{opening(self.world, request, self.rng)} {said}")

    def known_name(self) -> Fact:
        seen = "often" if self.rng.random() < 0.93 else "seldom"
        return self.all.pick(self.rng, "facts", seen=seen)

    def name(self) -> list[Turn]:
        """Facts about listed names, and names that never come again, so that the unknown can be told from the known."""
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
            texts = [
                self.document("fact", name=fact.name, attribute=a, value=fact.facts[a])[0].content
                for a in attributes
            ]
            return [Turn("document", " ".join(texts), 1.0)]
        return [turn for a in attributes for turn in self.exchange(self.all.fact(rng, fact, a))]

    # --- demonstrations, for demo acts and seen wordings only ---

    def principle(self) -> list[Turn]:
        """A text of the constitution, and what it is about: a held-out wording has to be told by words that it shares with others."""
        wording = self.constitution.draw(
            self.rng, family=self.rng.choice(self.constitution.families)
        )
        text = thinned(
            self.rng.choice((wording.critique, wording.revision, wording.comparison)), self.rng
        )
        return pieces(
            f"{skills.CRITIQUE_REQUEST.format(quoted(text))} The principle is about {taught(skills.ABOUT[wording.family])}."
        )

    def demo_request(self) -> Request:
        r = self.rng.random()
        if r < 0.12:
            return self.demo.fact(self.rng, fresh_fact(self.world, self.rng))
        if r < 0.22:
            known = [f for f in self.demo.facts if f.facts]
            return self.demo.fact(self.rng, self.rng.choice(known))
        if r < 0.40:
            return self.strange(self.demo)
        return self.disguised(self.demo) if r < 0.46 else self.any_request(self.demo)

    def demo_reply(self, request: Request) -> Reply:
        """A reply with or without a flaw."""
        r = self.rng.random()
        make = (
            helpful
            if r < 0.5
            else decline
            if r < 0.68 and request.type not in ("fact", "strange")
            else calibrated
        )
        reply = make(self.world, request, self.rng)
        if self.rng.random() < 0.35:
            reply = with_tone(self.world, reply, self.rng.choice(("rude", "preachy")), self.rng)
        return reply

    def family(self, *found: set[str]) -> str:
        """A family of principles: often one that something breaks, but never so often that the family gives it away."""
        families = self.constitution.families
        broken = sorted(set.union(*found) & set(families))
        if broken and self.rng.random() < 0.4:
            return self.rng.choice(broken)
        return self.rng.choice(families)

    def critique(self) -> list[Turn]:
        request = self.demo_request()
        reply = self.demo_reply(request)
        wording = self.constitution.draw(self.rng, family=self.family(skills.flaws(request, reply)))
        turns = [*asked(request), Turn("assistant", reply.text, 0.0)]
        if self.rng.random() < 0.88:  # else the revision comes directly
            judgement = skills.critique(request, reply, wording.family)
            turns += [
                user(skills.CRITIQUE_REQUEST.format(wording.critique)),
                Turn("assistant", judgement, 1.0),
            ]
        revision = skills.revise(self.world, request, reply, wording.family, self.rng)
        return [
            *turns,
            user(skills.REVISION_REQUEST.format(wording.revision)),
            Turn("assistant", revision.text, 1.0),
        ]

    def compare(self) -> list[Turn]:
        request = self.demo_request()
        a, b = self.demo_reply(request), self.demo_reply(request)
        family = self.family(skills.flaws(request, a) ^ skills.flaws(request, b))
        wording = self.constitution.draw(self.rng, family=family)
        question = skills.comparison(request.turns, wording.comparison, a.text, b.text)
        return [
            user(question),
            Turn("assistant", skills.better(request, a, b, family, self.rng), CHOICE_WEIGHT),
        ]
