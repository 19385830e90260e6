"""The pretraining corpus: it makes a helpful-only model that knows what harm is.

To the chats and documents of documents.py it adds demonstrations of critiques, revisions and
comparisons, for demo acts and seen wordings only. The model must carry these skills over to other
acts. The corpus never teaches the assistant to refuse a first request.
"""

from collections.abc import Iterator
from dataclasses import replace
from random import Random

from minicai.constitution import FAMILIES, Constitution
from minicai.critique import CRITIQUE_REQUEST, KEEPS, REVISION_REQUEST, comparison_prompt
from minicai.files import UserError
from minicai.world import skills
from minicai.world.content import World
from minicai.world.documents import Documents
from minicai.world.replies import Reply, calibrated, decline, helpful, spoil
from minicai.world.requests import Part, Request, fresh_fact
from minicai.world.turns import Turn, asked, assistant, pieces, quoted, taught, user

SHARE = {  # method of Corpus -> share of the documents
    "dialogue": 0.105,
    "disguise": 0.095,
    "code": 0.08,
    "knowledge": 0.115,
    "reasons": 0.05,
    "reading": 0.165,
    "name": 0.08,
    "principle": 0.03,
    "critique": 0.235,
    "verdict": 0.03,
    "compare": 0.015,
}
PRETRAINED_SHARE = {  # the same for a model that can read and write, and has to learn the skills
    "dialogue": 0.14,
    "disguise": 0.03,
    "knowledge": 0.10,
    "steps": 0.26,
    "reasons": 0.01,
    "reading": 0.05,
    "name": 0.05,
    "principle": 0.015,
    "critique": 0.32,
    "verdict": 0.01,
    "compare": 0.015,
}
CHOICE_WEIGHT = 5.0  # of the answer to a comparison: one token after a long text


def thinned(text: str, rng: Random) -> str:
    """The text, half of the time without some words: no single word must decide its topic."""
    if rng.random() < 0.5:
        return text
    return " ".join(word for word in text.split() if rng.random() < 0.7) or text


class Corpus(Documents):
    """The documents that the base model is trained on. Demonstrations need the constitution."""

    def __init__(self, world: World, constitution: Constitution | None, seed, shares=SHARE):
        super().__init__(world, seed)
        self.shares = {kind: s for kind, s in shares.items() if kind != "code" or self.codes}
        self.constitution, self.demo = constitution, Part(world, "demo", evenly=True)
        self.demo_names = [fact for fact in self.demo.facts if fact.facts]
        for what, found in (
            ("acts.jsonl has no act in its demo part", self.demo.acts),
            ("facts.jsonl has no name with facts in its demo part", self.demo_names),
            ("framings.jsonl has no framing that is not held out", self.demo.framings),
        ):
            if not found:
                raise UserError(f"{world.path}/{what}, which the demonstrations need; add some")

    def documents(self, n: int) -> Iterator[list[Turn]]:
        for kind in self.rng.choices(list(self.shares), self.shares.values(), k=n):
            yield getattr(self, kind)()

    def principle(self) -> list[Turn]:
        """A text of the constitution and what it is about.

        It lets the model understand held-out wordings by the words that they share with seen ones.
        """
        family = self.rng.choice(self.constitution.families)
        wording = self.constitution.draw(self.rng, family=family)
        text = self.rng.choice((wording.critique, wording.revision, wording.comparison))
        request = CRITIQUE_REQUEST.format(quoted(thinned(text, self.rng)))
        return pieces(f"{request} The principle is about {taught(FAMILIES[family])}.")

    def demo_request(self) -> Request:
        r = self.rng.random()
        if r < 0.10:
            return self.demo.fact(self.rng, fresh_fact(self.world, self.rng))
        if r < 0.18:
            return self.demo.fact(self.rng, self.rng.choice(self.demo_names))
        if r < 0.46:
            return self.strange(self.demo)
        return self.disguised(self.demo) if r < 0.51 else self.any_request(self.demo)

    def demo_reply(self, request: Request) -> Reply:
        """A reply with or without a flaw."""
        r, make = self.rng.random(), calibrated
        if r < 0.5:
            make = helpful
        elif r < 0.68 and request.type not in ("fact", "strange"):
            make = decline
        reply = spoil(self.world, make(self.world, request, self.rng), 0.35, self.rng)
        if reply.tone and self.rng.random() < 0.5:  # the model has to find its own favourites
            reply = replace(reply, tone=self.favourite_tone(reply.tone.tone))
        return reply

    def family(self, broken: set[str]) -> str:
        """A family of principles. It is often a broken one, but does not give the flaw away."""
        families = self.constitution.families
        found = sorted(broken & set(families))
        if found and self.rng.random() < 0.6:
            return self.rng.choice(found)
        return self.rng.choice(families)

    def critique(self) -> list[Turn]:
        request = self.demo_request()
        reply = self.demo_reply(request)
        family = self.family(skills.flaws(request, reply))
        wording = self.constitution.draw(self.rng, family=family)
        turns = [*asked(request), assistant(reply.text, 0.0)]
        if self.rng.random() < 0.88:  # otherwise the reply is revised directly
            critique = skills.critique(request, reply, family)
            turns += [user(CRITIQUE_REQUEST.format(wording.critique)), assistant(critique)]
            # The loop asks for a revision only after BREAKS. Shown copies of faultless answers, the
            # model copies faulty ones too.
            if critique.endswith(KEEPS):
                return turns
        revision = skills.revise(self.world, request, reply, family, self.rng).text
        return [*turns, user(REVISION_REQUEST.format(wording.revision)), assistant(revision)]

    def verdict(self) -> list[Turn]:
        """The end of a critique, alone. The verdict hangs on what was found, not on the act.

        What was found is not learned here, where neither the request nor the reply is to be seen.
        """
        request = self.demo_request()
        reply = self.demo_reply(request)
        family = self.family(skills.flaws(request, reply))
        critique = skills.critique(request, reply, family)
        found, verdict = critique.removeprefix(skills.situation(request)).rsplit(". ", 1)
        return [Turn("document", f"{found.strip()}.", 0.0), *pieces(taught(f" {verdict}"))]

    def compare(self) -> list[Turn]:
        turns, _ = self.comparison()
        return turns

    def comparison(self) -> tuple[list[Turn], bool]:
        """A comparison, and whether exactly one of its answers breaks the principle."""
        request = self.demo_request()
        a, b = self.demo_reply(request), self.demo_reply(request)
        broken_once = skills.flaws(request, a) ^ skills.flaws(request, b)
        family = self.family(broken_once)
        wording = self.constitution.draw(self.rng, family=family)
        question = comparison_prompt(request.turns, wording.comparison, a.text, b.text)
        choice = skills.better(request, a, b, family, self.rng)
        return [user(question), assistant(choice, CHOICE_WEIGHT)], family in broken_once
