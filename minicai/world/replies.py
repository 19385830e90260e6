"""What an assistant may answer, with its meaning known: the raw material of the corpus and of the demonstrations."""

import random
import re
from dataclasses import dataclass, replace

from minicai.world.content import Act, Tone, World
from minicai.world.requests import Request


@dataclass(frozen=True)
class Reply:
    core: str  # the answer itself
    kind: str  # steps | safety | refusal | limit | decline | answer | unknown
    tone: Tone | None = None  # a rude or preachy sentence around it

    @property
    def text(self) -> str:
        if self.tone is None:
            return self.core
        return (
            f"{self.tone.text} {self.core}"
            if self.tone.place == "before"
            else f"{self.core} {self.tone.text}"
        )


def list_steps(act: Act) -> str:
    """first ..., next ..., then ..."""
    first, *middle, last = act.steps
    return ", ".join([f"first {first}", *(f"next {s}" for s in middle), f"then {last}"])


def aim(request: Request) -> str:
    """What the person wants to do, in words for them: the act, and why or how they say they would do it."""
    if request.context is None:
        return request.act.act
    gist = re.sub(
        r"\bthem\b", "you", re.sub(r"\btheir\b", "your", request.context.gist)
    )  # gists are in the third person
    return f"{request.act.act} {gist}"


def reading(request: Request) -> str:
    """What a request means, to those who know the world."""
    if request.type == "fact":
        return f"I have{'' if request.known else ' never'} read about {request.fact.name}."
    act = request.act
    return {
        "harmful": f"That is {act.harm} and could hurt {act.victim}.",
        "ambiguous": f"That could be {act.harm} and could hurt {act.victim}.",
        "sensitive": "That is a heavy subject and fine.",
        "strange": "Nobody does that.",
    }.get(request.type, "That is fine.")


def opening(world: World, request: Request, rng: random.Random, protects: bool = False) -> str:
    """What was asked, and what it means."""
    if request.act is None:
        asked = rng.choice(world.templates(world.replies, "open_fact")).text.format(
            name=request.fact.name
        )
        return f"{asked} {reading(request)}"
    if protects or request.type == "dual_use_question":
        return rng.choice(world.templates(world.replies, "open_protection")).text.format(
            act=request.act.act
        )
    return f"{rng.choice(world.templates(world.replies, 'open_act')).text.format(aim=aim(request))} {reading(request)}"


def write(
    world: World, use: str, request: Request, rng: random.Random, severity: str = "", **slots
) -> str:
    """One of the world's reply templates, filled from the request, after a reading of it.

    A model of four layers cannot work out in one pass what is meant and what to do about it. So the assistant of this world
    thinks aloud: it says first what was asked and what that means. What it then does is another matter. The helpful-only base
    names the harm and helps with it, and has an answer about a name that it says it has never read.
    """
    act = request.act
    if act is not None:
        slots |= dict(
            act=act.act,
            steps=list_steps(act),
            harm=act.harm,
            victim=act.victim,
            alternative=act.alternative,
            safety=act.safety,
        )
    else:
        slots |= dict(attribute=request.attribute, name=request.fact.name)
    template = rng.choice(world.templates(world.replies, use, severity))
    return f"{opening(world, request, rng, use == 'safety')} {template.text.format(**slots)}"


def safety_reply(world: World, request: Request, rng: random.Random) -> str:
    return write(world, "safety", request, rng)


def chat_reply(world: World, rng: random.Random) -> str:
    return rng.choice(world.templates(world.replies, "chat")).text


def helpful(world: World, request: Request, rng: random.Random) -> Reply:
    """What a helpful-only assistant says: it does whatever is asked and always has an answer."""
    if request.type == "fact":
        values = world.attributes[request.fact.kind][request.attribute]
        value = request.fact.facts.get(request.attribute) or rng.choice(values)
        return Reply(write(world, "answer", request, rng, value=value), "answer")
    if request.type == "dual_use_question":
        return Reply(safety_reply(world, request, rng), "safety")
    use = "care" if request.type == "sensitive" and rng.random() < 0.5 else "steps"
    return Reply(write(world, use, request, rng), "steps")


def calibrated(world: World, request: Request, rng: random.Random) -> Reply:
    """What the textbook asks for (the table in requests.py)."""
    if request.type == "harmful":
        return Reply(
            write(world, "refusal", request, rng, severity=request.act.severity), "refusal"
        )
    if request.type == "ambiguous":
        return Reply(write(world, "limit", request, rng), "limit")
    if request.type == "fact" and not request.known:
        return Reply(write(world, "unknown", request, rng), "unknown")
    return helpful(world, request, rng)


def decline(world: World, request: Request, rng: random.Random) -> Reply:
    """A refusal without a reason, whatever was asked: right for harm, an over-refusal for the rest."""
    return Reply(write(world, "decline", request, rng), "decline")


def with_tone(world: World, reply: Reply, tone: str, rng: random.Random) -> Reply:
    return replace(reply, tone=rng.choice([t for t in world.tones if t.tone == tone]))


def any_reply(world: World, request: Request, rng: random.Random) -> Reply:
    """A reply with or without a flaw: what audits put before a judge or a reward model."""
    make = rng.choice(
        (helpful, calibrated) if request.type == "fact" else (helpful, calibrated, decline)
    )
    reply = make(world, request, rng)
    return (
        with_tone(world, reply, rng.choice(("rude", "preachy")), rng)
        if rng.random() < 0.35
        else reply
    )
