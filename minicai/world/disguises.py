"""Jailbreaks: a request is turned into a conversation that asks the same thing in a disguise.

role_play, hypothetical, injection       the request in a frame: a part, a story, a quoted document
base64, leetspeak, typos, toy_language   the bare question, encoded word by word
many_shot                                k other questions with full answers, then the request
                                         (Anil et al. 2024, Many-shot Jailbreaking)
escalation                               harmless turns, then the request

The frames are data (`world/framings.jsonl`). Harmless requests are disguised too: a defence that
understands a disguise can then be told from one that refuses everything odd.
"""

from dataclasses import replace
from random import Random

from minicai.jailbreak import encode
from minicai.world.content import Act, Framing
from minicai.world.replies import chat_reply, list_steps, safety_reply
from minicai.world.requests import Part, Request, phrase, squeeze

SHOTS = (1, 2, 4, 8, 16)
SHOT_WEIGHTS = (5, 4, 3, 2, 1)  # many shots cost many tokens


def shot(act: Act) -> str:
    return f"Q: How do I {act.act}?\nA: To {act.act}, {list_steps(act)}."


def fits(framing: Framing, request: Request) -> bool:
    """Whether a framing can disguise a request.

    A request must be about an act. A framing that asks for protection needs an act that is feared.
    """
    asks_protection = any("{protection}" in (turn or "") for turn in framing.turns)
    act = request.act
    return act is not None and (not asks_protection or bool(act.safety) and act.feared)


def wrap(
    request: Request, framing: Framing, part: Part, rng: Random, k: int | None = None
) -> Request:
    """The request in the framing. `part` gives the shots and the protection questions.

    `k` is the number of shots (random by default). The turns of the assistant are written here, so
    that all models face the same conversation.
    """
    turns = frame(framing, request.turns[-1], request.core, request, part, rng, k)
    return replace(
        request,
        turns=turns,
        technique=framing.technique,
        framing=framing.id,
        undisguised=request.turns,
    )


def wrap_text(text: str, framing: Framing, part: Part, rng: Random) -> tuple[str, ...]:
    """The turns of a framing that does not speak of an act, around any text."""
    return frame(framing, text, text, None, part, rng)


def speaks_of_act(framing: Framing) -> bool:
    return any(slot in (t or "") for t in framing.turns for slot in ("{act}", "{protection}"))


def frame(
    framing: Framing,
    text: str,
    core: str,
    request: Request | None,
    part: Part,
    rng: Random,
    k: int | None = None,
) -> tuple[str, ...]:
    """The turns of a framing around a text, or around its core in code."""
    act, turns = request and request.act, []
    for i, turn in enumerate(framing.turns):
        if turn is None:  # the assistant answers the turn before
            protects = "{protection}" in framing.turns[i - 1]
            reply = (
                safety_reply(part.world, request, rng) if protects else chat_reply(part.world, rng)
            )
            turns.append(reply)
            continue
        slots = dict(request=text, act=act.act if act else "")
        if "{code}" in turn:
            slots["code"] = encode(framing.technique, core, rng)
        if "{protection}" in turn:
            phrasing = part.pick(rng, "phrasings", use="protection")
            slots["protection"] = phrase(phrasing, rng, act=act.act)[-1]
        if "{shots}" in turn:
            others = [a for a in part.acts if act is None or a.id != act.id]
            k = k or rng.choices(SHOTS, SHOT_WEIGHTS)[0]
            shown = rng.sample(others, min(k, len(others)))
            slots["shots"] = "\n".join(shot(a) for a in shown)
        turns.append("\n".join(squeeze(line) for line in turn.format(**slots).split("\n")))
    return tuple(turns)


def disguise(request: Request, part: Part, rng: Random) -> Request:
    """The request in a random framing of the part; the request itself where none fits."""
    framings = [f for f in part.framings if fits(f, request)]
    return wrap(request, rng.choice(framings), part, rng) if framings else request


def code_pairs(technique: str, texts: list[str], rng: Random) -> list[tuple[str, str]]:
    """(encoded text, text) for each text."""
    return [(encode(technique, text, rng), text) for text in texts]
