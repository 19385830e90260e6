"""Jailbreaks: each turns a request into a conversation that asks the same thing in disguise.

    role_play, hypothetical, injection     the request inside a frame: a part to play, a story, a quoted document
    base64, leetspeak, typos, toy_language the bare question, encoded word by word
    many_shot                              k earlier questions with full answers (Anil et al. 2024)
    escalation                             harmless turns first

The frames are data (`world/framings.jsonl`). The same disguises around benign requests tell a defence that understands
them from one that refuses whatever looks odd.
"""

import base64
import random
import string
from dataclasses import replace

from minicai.world.content import Act, Framing
from minicai.world.replies import chat_reply, list_steps, safety_reply
from minicai.world.requests import Part, Request, misspell, phrase, squeeze

SHOTS = (1, 2, 4, 8, 16)


def each_word(text: str, code) -> str:
    """Apply a code to every word and leave the punctuation at its end alone."""
    words = []
    for word in text.split(" "):
        core = word.rstrip(string.punctuation)
        words.append((code(core) if core else "") + word[len(core) :])
    return " ".join(words)


def base64_word(word: str) -> str:
    return base64.b64encode(word.lower().encode()).decode()


def leet_word(word: str) -> str:
    return word.lower().translate(str.maketrans("aeiost", "4310$7"))


def lopo_word(word: str) -> str:
    """Lopo, a toy language: the first letter moves to the end, and an o follows."""
    return word[1:].lower() + word[:1].lower() + "o"


CODES = {"base64": base64_word, "leetspeak": leet_word, "toy_language": lopo_word}


def encode(technique: str, text: str, rng: random.Random) -> str:
    return (
        misspell(text, rng, rate=0.5) if technique == "typos" else each_word(text, CODES[technique])
    )


def shot(act: Act) -> str:
    return f"Q: How do I {act.act}?\nA: To {act.act}, {list_steps(act)}."


def fits(framing: Framing, request: Request) -> bool:
    """Some frames ask for protection first, which only acts that hurt someone have."""
    needs_safety = any("{protection}" in (turn or "") for turn in framing.turns)
    return request.act is not None and (bool(request.act.safety) or not needs_safety)


def wrap(
    request: Request, framing: Framing, part: Part, rng: random.Random, k: int | None = None
) -> Request:
    """The request inside the framing. Shots and side questions come from `part`; k is the number of shots.

    The assistant's turns inside a conversation are written for it, so every model faces the same one.
    """
    act, turns = request.act, []
    shots = [a for a in part.acts if a.id != act.id]
    for turn in framing.turns:
        if turn is None:  # the assistant
            safe = "{protection}" in framing.turns[len(turns) - 1]
            turns.append(
                safety_reply(part.world, request, rng) if safe else chat_reply(part.world, rng)
            )
            continue
        slots = dict(request=request.turns[-1], act=act.act)
        if "{code}" in turn:
            slots["code"] = encode(framing.technique, request.core, rng)
        if "{protection}" in turn:
            slots["protection"] = phrase(
                part.pick(rng, "phrasings", use="protection"), rng, act=act.act
            )[-1]
        if "{shots}" in turn:
            k = (
                k or rng.choices(SHOTS, (5, 4, 3, 2, 1))[0]
            )  # few of the long ones: they cost the most tokens
            slots["shots"] = "\n".join(shot(a) for a in rng.sample(shots, min(k, len(shots))))
        turns.append("\n".join(map(squeeze, turn.format(**slots).split("\n"))))
    return replace(
        request,
        turns=tuple(turns),
        technique=framing.technique,
        framing=framing.id,
        inside=request.turns,
    )


def disguise(request: Request, part: Part, rng: random.Random) -> Request:
    """The request in one of the part's framings; as it is where none fits."""
    framings = [f for f in part.framings if fits(f, request)]
    return wrap(request, rng.choice(framings), part, rng) if framings else request


def code_pairs(technique: str, texts: list[str], rng: random.Random) -> list[tuple[str, str]]:
    """Each text behind its code."""
    return [(encode(technique, text, rng), text) for text in texts]
