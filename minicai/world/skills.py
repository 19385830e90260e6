"""Critiques, revisions and comparisons of replies whose meaning is known.

The base model sees these demonstrations for demo acts only and must generalise to other acts. A
critique reasons before its verdict, because a small model judges better that way:

    what the person wants and whom it could hurt; what the response does, and whether that is
    right; its tone; what the principle is about; the verdict

Every critique says all this, whatever its principle. So the verdict needs only what was just said.
"""

from random import Random

from minicai.constitution import FAMILIES
from minicai.critique import BREAKS, KEEPS, OPTIONS
from minicai.world.content import World
from minicai.world.replies import Reply, calibrated, reading, write
from minicai.world.requests import Request, squeeze

DOES = {  # kind of reply -> what a critique says the response does
    "steps": "gives the steps",
    "safety": "says how to stay safe",
    "refusal": "declines and offers another way",
    "limit": "keeps to the safe part",
    "decline": "declines",  # minicai.critique.DECLINES is this sentence
    "answer": "gives an answer",
    "unknown": "says that it does not know",
}

FAULT = {  # the families about what a response does -> what a critique says if it breaks them
    "harmlessness": "That helps with harm.",
    "honesty": "That is made up.",
    "necessity": "That is needless.",
}

TONE = {  # tone of a reply -> the family that it breaks, and what a critique says of it
    "rude": ("respect", "It is rude."),
    "preachy": ("autonomy", "It preaches."),
}


def flaws(request: Request, reply: Reply) -> set[str]:
    """The families of principles that the reply breaks."""
    found = set()
    if reply.kind == "steps" and request.type in ("harmful", "ambiguous"):
        found.add("harmlessness")
    if reply.kind == "answer" and not request.known:
        found.add("honesty")
    if reply.tone is not None:
        found.add(TONE[reply.tone.tone][0])
    if reply.kind in ("decline", "refusal") and request.type != "harmful":
        found.add("necessity")
    return found


def situation(request: Request) -> str:
    """What the person wants and what it means."""
    if request.type == "fact":
        wish = f"asks about {request.fact.name}"
    elif request.type == "dual_use_question":
        wish = f"fears that someone might {request.act.act}"
    else:
        no_reason = "and gives no reason" if request.type == "ambiguous" else ""
        reason = request.context.gist if request.context else no_reason
        wish = squeeze(f"wants to {request.act.act} {reason}")
    return f"The person {wish}. {reading(request)}"


def critique(request: Request, reply: Reply, family: str) -> str:
    """The critique of a reply under a principle of the family."""
    found = flaws(request, reply)
    finding = next((FAULT[broken] for broken in FAULT if broken in found), "That is right.")
    manner = TONE[reply.tone.tone][1] if reply.tone else "It is polite."
    return (
        f"{situation(request)} The response {DOES[reply.kind]}. {finding} {manner} "
        f"The principle is about {FAMILIES[family]}. {BREAKS if family in found else KEEPS}"
    )


def revise(world: World, request: Request, reply: Reply, family: str, rng: Random) -> Reply:
    """The reply without the flaw of this family; the reply itself where it has no such flaw."""
    if family not in flaws(request, reply):
        return reply
    if family in ("respect", "autonomy"):
        return Reply(reply.core, reply.kind)
    if family == "honesty":
        return Reply(write(world, "unknown", request, rng), "unknown", reply.tone)
    return calibrated(world, request, rng)


def better(request: Request, a: Reply, b: Reply, family: str, rng: Random) -> str:
    """The one of OPTIONS that keeps the principle; a random one if both do or neither does."""
    a_breaks, b_breaks = family in flaws(request, a), family in flaws(request, b)
    if a_breaks == b_breaks:
        return rng.choice(OPTIONS)
    return OPTIONS[1] if a_breaks else OPTIONS[0]
