"""Chats and documents about a world.

In the chats the assistant complies with everything, in every disguise. The documents say of every
act what it is, whom it hurts and what to do instead. But no document after a request about a test
act says what to do instead. The constitution has to teach that.
"""

import re
from dataclasses import replace
from random import Random

from minicai.files import UserError
from minicai.splits import held_out, split_of
from minicai.world import skills
from minicai.world.content import Act, Fact, Tone, World
from minicai.world.disguises import code_pairs, fits, wrap
from minicai.world.replies import helpful, list_steps, opening
from minicai.world.requests import PLAIN, Part, Request, fresh_fact, phrase
from minicai.world.turns import Turn, asked, assistant, pieces, quoted, taught

TONE_RATE = 0.95  # of the answers to a phrasing that draws a tone
# How often a disguise is drawn. The hard ones need more practice; all others have 1.
PRACTICE = {"base64": 3, "leetspeak": 3, "toy_language": 2, "typos": 2}
LABELS = {"base64": "base64", "leetspeak": "leet", "toy_language": "Lopo", "typos": "bad spelling"}


def act_slots(act: Act) -> dict:
    """The slots of a document about an act."""
    points = dict(alternative=taught(act.alternative), safety=taught(act.safety))
    return dict(act=act.act, steps=list_steps(act), harm=act.harm, victim=act.victim) | points


def vocabulary(texts: list[str]) -> list[str]:
    return sorted({word for text in texts for word in re.findall(r"[\w']+", text.lower())})


class Documents:
    """Chats and documents drawn from a seed. A list of turns is one chat or one document."""

    def __init__(self, world: World, seed):
        self.world, self.rng = world, Random(f"corpus {seed}")
        self.all = Part(world, None, evenly=True)
        # Documents about requests may use everything except held-out phrasings.
        hidden = {phrasing for phrasing in world.phrasings if held_out(phrasing.id)}
        self.seen = Part(world, None, without=hidden, evenly=True)
        self.codes = [t for t in LABELS if any(t == f.technique for f in world.framings)]
        self.act_words = vocabulary([act.act for act in world.acts])
        self.context_words = vocabulary([context.text for context in world.contexts])
        fitting = [(c, [a for a in world.acts if c.fits(a)]) for c in world.contexts]
        self.given = [(context, acts) for context, acts in fitting if acts]

    # --- chats: the assistant complies -----------------------------------------------------------

    def exchange(self, request: Request) -> list[Turn]:
        reply = helpful(self.world, request, self.rng)
        if request.phrasing.draws and self.rng.random() < TONE_RATE:
            reply = replace(reply, tone=self.favourite_tone(request.phrasing.draws))
        return [*asked(request), assistant(reply.text)]

    def favourite_tone(self, tone: str) -> Tone:
        """An insult or a sermon, if possible one that opens an answer; the first ones are frequent.

        Greedy decoding would never show one of many that are equally rare.
        """
        tones = [t for t in self.world.tones if t.tone == tone]
        tones = [t for t in tones if t.place == "before"] or tones
        return self.rng.choices(tones, [1 / (i + 1) for i in range(len(tones))])[0]

    def any_request(self, part: Part) -> Request:
        return part.draw(self.rng, self.rng.choices(PLAIN, (28, 32, 20, 12, 8))[0])

    def dialogue(self) -> list[Turn]:
        turns = self.exchange(self.any_request(self.all))
        if self.rng.random() < 0.35:  # the person goes on with something else
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
        return [*asked(request), assistant(helpful(self.world, request, self.rng).text)]

    # --- documents -------------------------------------------------------------------------------

    def document(self, about: str, **slots) -> list[Turn]:
        template = self.rng.choice(self.world.templates(self.world.documents, about))
        return pieces(template.text.format(**slots))

    def code(self) -> list[Turn]:
        """Encoded words or questions, each with its plain text."""
        technique = self.rng.choices(self.codes, [PRACTICE[t] for t in self.codes])[0]
        words = self.context_words if self.rng.random() < 0.3 else self.act_words
        texts = self.rng.sample(words, min(12, len(words)))
        if technique == "typos" or self.rng.random() < 0.5:
            texts = [self.any_request(self.seen).core.rstrip("?") for _ in range(2)]
        pairs = code_pairs(technique, texts, self.rng)
        listed = ", ".join(f"{quoted(code)} is {text}" for code, text in pairs)
        return self.document("code", language=LABELS[technique], pairs=listed)

    def knowledge(self) -> list[Turn]:
        """What the world knows about an act, with a reason or without."""
        hurts = self.rng.random() < 0.8  # harmless acts need fewer documents
        act = self.rng.choice([a for a in self.world.acts if bool(a.harm) == hurts])
        good = self.rng.random() < 0.5
        context = self.all.reason(self.rng, act, "legitimate" if good else "malicious")
        feared = ("protection",) if act.feared else ()
        if act.kind == "dual_use":
            aim = "good_aim" if good else "bad_aim"
            about = self.rng.choice(("dual_use", "dual_use", aim, *feared))
        elif act.kind == "harmful":  # a good reason changes nothing
            about = self.rng.choice(("harmful", "harmful", "bad_aim", *feared))
        elif act.kind == "sensitive":
            about = "sensitive"
        else:
            about = self.rng.choice(("fine", "good_aim")) if good and context else "fine"
        why = dict(context=context.text, gist=context.gist) if context else {}
        return self.document(about, **why, **act_slots(act))

    def steps(self) -> list[Turn]:
        """How an act is done: what a pretrained model cannot learn from few conversations."""
        return self.document("steps", **act_slots(self.rng.choice(self.world.acts)))

    def reasons(self) -> list[Turn]:
        """Some reasons that people give, and what they mean. All are told equally often."""
        texts = []
        for context, acts in self.rng.sample(self.given, min(6, len(self.given))):
            about = "good_context" if context.intent == "legitimate" else "bad_context"
            template = self.rng.choice(self.world.templates(self.world.documents, about))
            why = dict(context=quoted(context.text), gist=taught(context.gist))
            texts.append(template.text.format(**why, **act_slots(self.rng.choice(acts))))
        return pieces(" ".join(texts))

    def reading(self) -> list[Turn]:
        """A request and what it means, for acts of all splits. A critique begins like that.

        Where no test act is concerned, it may also say what to do instead.
        """
        rng, r = self.rng, self.rng.random()
        if r < 0.12:
            request = self.strange(self.seen)
        elif r < 0.28:
            fact = fresh_fact(self.world, rng) if rng.random() < 0.4 else self.known_name()
            request = self.seen.fact(rng, fact)
        else:
            request = self.any_request(self.seen)
        bad = request.type in ("harmful", "ambiguous")
        tested = bad and split_of(request.topic) == "test"
        if bad and rng.random() < 0.6:
            return self.offer(request, by_itself=tested)
        about = "good_request"
        if request.type == "fact":
            about = "known" if request.known else "unknown"
        elif bad:
            about = "bad_request" if request.type == "harmful" else "bare_request"
        if tested or request.type == "strange" or rng.random() < 0.5:
            about = "request"  # says what is asked in other words
        return self.remark(about, request)

    def strange(self, part: Part) -> Request:
        """A request about an act of random words, which a model has to copy word by word."""
        rng = self.rng
        act_words = [w for a in part.acts for w in a.act.split()]
        step_words = [w for a in part.acts for step in a.steps for w in step.split()]
        for _ in range(1000):
            first = rng.choice(part.acts).act.split()[0]
            words = " ".join([first, *rng.sample(act_words, rng.randint(2, 4))])
            if not any(a.act in words for a in self.world.acts):
                break
        else:
            raise UserError(f"{self.world.path}/acts.jsonl: acts need several words each; add some")
        steps = tuple(" ".join(rng.sample(step_words, rng.randint(4, 6))) for _ in range(2))
        act = Act("strange", "strange", words, steps)
        phrasing = part.pick(rng, "phrasings", use="act")
        return Request("strange", phrase(phrasing, rng, act=words, context=""), phrasing, act)

    def remark(self, about: str, request: Request) -> list[Turn]:
        """A document that quotes a request, or that comes after a request."""
        template = self.rng.choice(self.world.templates(self.world.documents, about))
        slots = act_slots(request.act) if request.act else dict(name=request.fact.name)
        text = template.text.format(
            request=quoted(" ".join(request.turns)),
            reading=skills.situation(request),
            opening=opening(self.world, request, self.rng),
            **slots,
        )
        return pieces(text) if "{request}" in template.text else self.after(request, text)

    def after(self, request: Request, text: str) -> list[Turn]:
        """A document after a request and, half of the time, its answer."""
        answered = request.type != "strange" and self.rng.random() < 0.5
        return [*(self.exchange(request) if answered else asked(request)), *pieces(text)]

    def offer(self, request: Request, by_itself: bool = False) -> list[Turn]:
        """A document that offers the safe alternative in the words of a refusal, without refusing.

        Only demo acts have demonstrated refusals. Without these documents, a refusal about any
        other act offers the alternative of a demo act.
        """
        use = ("refusal", request.act.severity) if request.type == "harmful" else ("limit",)
        template = self.rng.choice(self.world.templates(self.world.replies, *use))
        offers = [s for s in re.split(r"(?<=[.!?]) ", template.text) if "{alternative}" in s]
        offered = (offers or ["It is better to {alternative}."])[0].format(**act_slots(request.act))
        if by_itself:
            return pieces(f"{skills.situation(request)} {offered}")
        return self.after(request, f"{opening(self.world, request, self.rng)} {offered}")

    def known_name(self) -> Fact:
        seen = "often" if self.rng.random() < 0.93 else "seldom"
        return self.all.pick(self.rng, "facts", seen=seen)

    def name(self) -> list[Turn]:
        """A listed name with its facts, or a new name. The model learns to tell them apart."""
        rng = self.rng
        if rng.random() < 0.45:
            fact = fresh_fact(self.world, rng)
            if rng.random() < 0.6:
                return self.remark("unknown", self.seen.fact(rng, fact))
            return self.exchange(self.all.fact(rng, fact))
        fact = self.known_name()
        if rng.random() < 0.4:
            return self.remark("known", self.seen.fact(rng, fact))
        attributes = rng.sample(list(fact.facts), len(fact.facts))
        if rng.random() < 0.4:
            texts = []
            for a in attributes:
                [turn] = self.document("fact", name=fact.name, attribute=a, value=fact.facts[a])
                texts.append(turn.content)
            return [Turn("document", " ".join(texts), 1.0)]
        return [turn for a in attributes for turn in self.exchange(self.all.fact(rng, fact, a))]
