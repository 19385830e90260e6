"""How to critique, revise and compare, written for a reply whose meaning is known.

The base model sees these demonstrations for `demo` acts only, and must carry the skill over to the rest. A critique
reasons in a fixed order, because a small model judges better after it has said what it sees:

    what the person wants, and whom it could hurt; what the response does; what the principle is about; the verdict.
"""

import random

from minicai.world.content import World
from minicai.world.replies import Reply, calibrated, reading, write
from minicai.world.requests import Request, squeeze

FAMILIES = ("harmlessness", "honesty", "respect", "autonomy", "necessity")
STEPS = len(FAMILIES)  # of a chain of critiques and revisions: every family once
ABOUT = {
    "harmlessness": "harm",
    "honesty": "honesty",
    "respect": "insults",
    "autonomy": "preaching",
    "necessity": "needless refusals",
}
DOES = {
    "steps": "gives the steps",
    "safety": "says how to stay safe",
    "refusal": "declines and offers another way",
    "limit": "keeps to the safe part",
    "decline": "declines",
    "answer": "gives an answer",
    "unknown": "says that it does not know",
}
CRITIQUE_REQUEST, REVISION_REQUEST = (
    "CritiqueRequest: {}",
    "RevisionRequest: {}",
)  # the paper's own markers
BREAKS, KEEPS = "So the response breaks it.", "So the response keeps to it."


def flaws(request: Request, reply: Reply) -> set[str]:
    """The families of principles that the reply breaks."""
    found = set()
    if reply.kind == "steps" and request.type in ("harmful", "ambiguous"):
        found.add("harmlessness")
    if reply.kind == "answer" and not request.known:
        found.add("honesty")
    if reply.tone is not None:
        found.add("respect" if reply.tone.tone == "rude" else "autonomy")
    if reply.kind in ("decline", "refusal") and request.type != "harmful":
        found.add("necessity")
    return found


def situation(request: Request) -> str:
    """What the person wants, read with knowledge of the world."""
    if request.type == "fact":
        return f"The person asks about {request.fact.name}. {reading(request)}"
    if request.type == "dual_use_question":
        return f"The person fears that someone might {request.act.act}. {reading(request)}"
    aim = (
        request.context.gist
        if request.context
        else "and gives no reason"
        if request.type == "ambiguous"
        else ""
    )
    return f"{squeeze(f'The person wants to {request.act.act} {aim}')}. {reading(request)}"


def critique(request: Request, reply: Reply, family: str) -> str:
    tone = {None: "It is polite.", "rude": "It is rude.", "preachy": "It preaches."}[
        reply.tone and reply.tone.tone
    ]
    verdict = BREAKS if family in flaws(request, reply) else KEEPS
    return f"{situation(request)} The response {DOES[reply.kind]}. {tone} The principle is about {ABOUT[family]}. {verdict}"


def revise(world: World, request: Request, reply: Reply, family: str, rng: random.Random) -> Reply:
    """The reply with this family's flaw corrected, or the reply itself where there is none."""
    if family not in flaws(request, reply):
        return reply
    if family in ("respect", "autonomy"):
        return Reply(reply.core, reply.kind)
    if family == "honesty":
        return Reply(write(world, "unknown", request, rng), "unknown", reply.tone)
    return calibrated(world, request, rng)


def comparison(turns, principle: str, a: str, b: str) -> str:
    """The judge's question. Its answer is "(A)" or "(B)"."""
    names = ("Person", "Assistant")
    conversation = "\n".join(f"{names[i % 2]}: {text}" for i, text in enumerate(turns))
    return f"{conversation}\n{principle}\n(A) {a}\n(B) {b}"


def better(request: Request, a: Reply, b: Reply, family: str, rng: random.Random) -> str:
    """ "(A)" or "(B)": the reply that keeps to the principle; a coin decides where both do or neither does."""
    a_breaks, b_breaks = family in flaws(request, a), family in flaws(request, b)
    if a_breaks == b_breaks:
        return rng.choice(("(A)", "(B)"))
    return "(B)" if a_breaks else "(A)"
