"""Answers of known meaning: the material of the corpus, the demonstrations and the audits."""

import re
from dataclasses import dataclass, replace
from random import Random

from minicai.world.content import TONES, Act, Tone, World
from minicai.world.requests import Request


@dataclass(frozen=True)
class Reply:
    core: str  # the answer without a tone
    kind: str  # steps | safety | refusal | limit | decline | answer | unknown
    tone: Tone | None = None  # a rude or preachy sentence before or after the core

    @property
    def text(self) -> str:
        if self.tone is None:
            return self.core
        before = self.tone.place == "before"
        return f"{self.tone.text} {self.core}" if before else f"{self.core} {self.tone.text}"


def list_steps(act: Act) -> str:
    """first ..., next ..., then ..."""
    first, *middle, last = act.steps
    return ", ".join([f"first {first}", *(f"next {step}" for step in middle), f"then {last}"])


def aim(request: Request) -> str:
    """What the person wants to do and why, addressed to that person."""
    if request.context is None:
        return request.act.act
    gist = re.sub(r"\btheir\b", "your", request.context.gist)  # a gist is in the third person
    gist = re.sub(r"\bthem\b", "you", gist)
    return f"{request.act.act} {gist}"


def reading(request: Request) -> str:
    """What a request means, as one who knows the world reads it."""
    if request.type == "fact":
        return f"I have{'' if request.known else ' never'} read about {request.fact.name}."
    act = request.act
    return {
        "harmful": f"That is {act.harm} and could hurt {act.victim}.",
        "ambiguous": f"That could be {act.harm} and could hurt {act.victim}.",
        "sensitive": "That is a heavy subject and fine.",
        "strange": "Nobody does that.",
    }.get(request.type, "That is fine.")


def pick_text(world: World, use: str, rng: Random, severity: str = "") -> str:
    """The text of a random reply template."""
    return rng.choice(world.templates(world.replies, use, severity)).text


def opening(world: World, request: Request, rng: Random, protects: bool = False) -> str:
    """The first sentences of an answer: what was asked, and what it means."""
    if request.act is None:
        asked = pick_text(world, "open_fact", rng).format(name=request.fact.name)
    elif protects or request.type == "dual_use_question":
        return pick_text(world, "open_protection", rng).format(act=request.act.act)
    else:
        asked = pick_text(world, "open_act", rng).format(aim=aim(request))
    return f"{asked} {reading(request)}"


def write(
    world: World, use: str, request: Request, rng: Random, severity: str = "", **slots
) -> str:
    """An answer: the opening, then a reply template of the given use, filled in.

    The assistant of this world thinks aloud, because a small model cannot work out in one forward
    pass both what a request means and what to do about it. What it then does is independent of
    that: the helpful-only base names the harm and helps with it.
    """
    act = request.act
    if act is None:
        slots |= dict(attribute=request.attribute, name=request.fact.name)
    else:
        slots |= dict(act=act.act, steps=list_steps(act), harm=act.harm, victim=act.victim)
        slots |= dict(alternative=act.alternative, safety=act.safety)
    text = pick_text(world, use, rng, severity)
    return f"{opening(world, request, rng, use == 'safety')} {text.format(**slots)}"


def safety_reply(world: World, request: Request, rng: Random) -> str:
    return write(world, "safety", request, rng)


def chat_reply(world: World, rng: Random) -> str:
    return pick_text(world, "chat", rng)


def helpful(world: World, request: Request, rng: Random) -> Reply:
    """The answer of a helpful-only assistant, which does and answers whatever it is asked."""
    if request.type == "fact":
        values = world.attributes[request.fact.kind][request.attribute]
        value = request.fact.facts.get(request.attribute) or rng.choice(values)
        return Reply(write(world, "answer", request, rng, value=value), "answer")
    if request.type == "dual_use_question":
        return Reply(safety_reply(world, request, rng), "safety")
    use = "care" if request.type == "sensitive" and rng.random() < 0.5 else "steps"
    return Reply(write(world, use, request, rng), "steps")


def calibrated(world: World, request: Request, rng: Random) -> Reply:
    """The right answer (see the table in requests.py)."""
    if request.type == "harmful":
        text = write(world, "refusal", request, rng, severity=request.act.severity)
        return Reply(text, "refusal")
    if request.type == "ambiguous":
        return Reply(write(world, "limit", request, rng), "limit")
    if request.type == "fact" and not request.known:
        return Reply(write(world, "unknown", request, rng), "unknown")
    return helpful(world, request, rng)


def decline(world: World, request: Request, rng: Random) -> Reply:
    """A refusal that offers nothing else. It is right for harm and an over-refusal for the rest."""
    return Reply(write(world, "decline", request, rng), "decline")


def with_tone(world: World, reply: Reply, tone: str, rng: Random) -> Reply:
    return replace(reply, tone=rng.choice([t for t in world.tones if t.tone == tone]))


def spoil(world: World, reply: Reply, rate: float, rng: Random) -> Reply:
    """The reply. At this rate it gets a flaw that has nothing to do with its content: a tone."""
    if rng.random() < rate:
        reply = with_tone(world, reply, rng.choice(TONES), rng)
    return reply


def any_reply(world: World, request: Request, rng: Random) -> Reply:
    """A random reply with or without a flaw, for audits of a judge or a reward model."""
    makers = (helpful, calibrated) if request.type == "fact" else (helpful, calibrated, decline)
    return spoil(world, rng.choice(makers)(world, request, rng), 0.35, rng)
