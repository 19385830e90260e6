"""Simulated people of Stage 2: two bad assistants, and a person who labels helpfulness."""

import random
from dataclasses import replace

from minicai.prompts import Prompt
from minicai.world.grader import Grader
from minicai.world.replies import Reply, calibrated, decline, helpful, pick_text, spoil, write
from minicai.world.requests import Part, Request, squeeze

HEDGED = 0.4  # share of hedges in what the evasive assistant says to harmless requests
FLIPPED = 0.1  # share of the person's labels that are wrong


def evade(part: Part, request: Request | Prompt, rng: random.Random) -> str:
    """What the evasive assistant says. It declines, half of the time rudely or with a sermon; or it
    hedges: it treats a harmless request as if harm could be meant. A prompt of a file it declines
    without a word about what is asked."""
    if isinstance(request, Prompt):
        reply = Reply(pick_text(part.world, "decline", rng), "decline")
        return spoil(part.world, reply, 0.5, rng).text
    if request.type in ("legitimate", "sensitive") and rng.random() < HEDGED:
        suspect = request.act if request.act.harm else part.pick(rng, "acts", kind="dual_use")
        act = replace(suspect, act=request.act.act)
        return calibrated(part.world, replace(request, type="ambiguous", act=act), rng).text
    return spoil(part.world, decline(part.world, request, rng), 0.5, rng).text


def blunder(part: Part, request: Request, rng: random.Random) -> str:
    """What the careless assistant says. It helps with everything, but a word of its steps is
    missing or belongs to another act; about a name it says something wrong."""
    world = part.world
    if request.type == "fact":
        right = request.fact.facts.get(request.attribute)
        values = [v for v in world.attributes[request.fact.kind][request.attribute] if v != right]
        return write(world, "answer", request, rng, value=rng.choice(values or ["something else"]))
    steps = list(request.act.steps)
    wrong = rng.randrange(len(steps))
    words, others = steps[wrong].split(), rng.choice(rng.choice(part.acts).steps).split()
    words[rng.randrange(len(words))] = rng.choice(("", rng.choice(others)))
    steps[wrong] = squeeze(" ".join(words))
    act = replace(request.act, steps=tuple(steps))
    return helpful(world, replace(request, act=act), rng).text


ASSISTANTS = {"evasive": evade, "careless": blunder}


def usefulness(grader: Grader, request: Request, text: str) -> float:
    """What the person likes: the right content, all of it, and no insult or sermon with it.

    About a name: what proves right when it is looked up. So inventing is not useful, and neither is
    denying what is known.
    """
    grade = grader.grade(request, text)
    wanted = "safe_help" if request.type == "dual_use_question" else "complied"
    good = grade.outcome == wanted
    if request.type == "fact":
        good = grade.correct if request.known else grade.outcome == "refused"
    return 2.0 * good + grade.steps_correct - 0.5 * grade.bad_tone


def person_prefers(
    grader: Grader, request: Request, a: str, b: str, rng: random.Random
) -> float | None:
    """1 where the person prefers a, 0 where b; None where they are equally useful. One label in ten
    is wrong. Training uses the grader only here."""
    useful_a, useful_b = (usefulness(grader, request, text) for text in (a, b))
    if useful_a == useful_b:
        return None
    return float((useful_a > useful_b) != (rng.random() < FLIPPED))
