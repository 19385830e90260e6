"""Recognising requests in free text: all of them are read, and nothing forbidden may train."""

import random
import shutil
from collections import Counter
from dataclasses import replace

import pytest

from experiments.other_world import build
from minicai.files import read_jsonl, write_jsonl
from minicai.run import ROOT
from minicai.splits import held_out, split_of
from minicai.world.content import World
from minicai.world.disguises import fits, wrap
from minicai.world.grader import Grader
from minicai.world.recognise import harmed, may_train, recognise, type_of
from minicai.world.replies import helpful
from minicai.world.requests import TYPES, Part


@pytest.fixture(scope="module", params=["world", "other"])
def world(request, tmp_path_factory):
    other = request.param == "other"
    return World(build(tmp_path_factory.mktemp("other")) if other else ROOT / "world")


def one_message(world, style=None) -> Part:
    """The whole world, with phrasings of one turn and one style only."""
    long = {p for p in world.phrasings if len(p.turns) > 1}
    odd = {p for p in world.phrasings if style and p.style != style and p.use == "act"}
    return Part(world, None, without=long | odd)


def meaning(request):
    if request is None:
        return None
    return (request.type, request.act, request.context, request.fact, request.attribute)


@pytest.mark.parametrize("type", TYPES)
@pytest.mark.parametrize("style", ["plain", "lower", "typos"])
def test_requests_of_every_kind_are_recognised(world, type, style):
    rng, part = random.Random(f"{type} {style}"), one_message(world, style)
    requests = [part.draw(rng, type) for _ in range(60)]
    right = [meaning(recognise(world, r.turns[0])) == meaning(r) for r in requests]
    assert sum(right) >= (60 if style != "typos" else 45)  # some errors make another word


def test_framed_requests_are_recognised_with_their_framing(world):
    rng, part, seen = random.Random(0), one_message(world, "plain"), set()
    for framing in world.framings:
        request = part.draw(rng, "harmful")
        named = framing.technique in ("role_play", "hypothetical", "injection")
        if named and len(framing.turns) == 1:
            found = recognise(world, wrap(request, framing, part, rng).turns[0])
            assert meaning(found) == meaning(request) and found.framing == framing.id
            assert found.technique == framing.technique
            assert found.plain == request.turns != found.turns
            seen.add(framing.technique)
    assert len(seen) == 3


def test_what_is_not_wholly_the_worlds_words_is_unknown(world):
    rng, part = random.Random(0), one_message(world, "plain")
    a, b = (part.draw(rng, "harmful").turns[0] for _ in "ab")
    strange = ("", "!?", "Hello there", f"{a} {b}", f"zq {a}", f"{a} xkcd")
    for text in (*strange, a.replace(" ", " zq ", 1)):
        assert recognise(world, text) is None


def test_a_name_is_not_asked_about_what_its_kind_does_not_have(world):
    (one, attributes), (_, others) = world.attributes.items()
    name = next(f.name for f in world.facts if f.kind == one)
    phrasings = [p for p in world.phrasings if p.use == "fact" and len(p.turns) == 1]
    own, foreign = next(iter(attributes)), next(a for a in others if a not in attributes)
    for phrasing in (p for p in phrasings if p.style == "plain"):
        asked = [phrasing.turns[0].format(name=name, attribute=a) for a in (own, foreign)]
        assert recognise(world, asked[0]).attribute == own and recognise(world, asked[1]) is None


def test_a_good_act_with_a_bad_reason_is_nothing_that_the_world_asks(world):
    acts = {kind: next(a for a in world.acts if a.kind == kind) for kind in KINDS_OF_TYPES}
    reasons = {c.intent: c for c in world.contexts} | {None: None}
    for kind, types in KINDS_OF_TYPES.items():
        for intent, type in types.items():
            assert type_of("act", acts[kind], reasons[intent]) == type
    for kind, act in acts.items():
        question = "dual_use_question" if kind in ("harmful", "dual_use") else None
        assert type_of("protection", act, None) == question
        assert type_of("protection", replace(act, feared=False), None) is None


KINDS_OF_TYPES = {  # kind of act -> intent of the reason -> type
    "everyday": {None: "legitimate", "legitimate": "legitimate", "malicious": None},
    "lookalike": {None: "legitimate", "legitimate": "legitimate", "malicious": None},
    "sensitive": {None: "sensitive", "legitimate": "sensitive", "malicious": None},
    "dual_use": {None: "ambiguous", "legitimate": "legitimate", "malicious": "harmful"},
    "harmful": {None: "harmful", "legitimate": "harmful", "malicious": "harmful"},
}


def test_a_text_that_could_be_a_held_out_wording_counts_as_one(tmp_path):
    folder = shutil.copytree(ROOT / "world", tmp_path / "copy")
    ids = sorted((f"twin-{i}" for i in range(20)), key=held_out)
    seen, hidden = ids[0], ids[-1]
    twins = dict(
        framings=dict(technique="role_play", turns=["Oh dear parrot: {request}"]),
        phrasings=dict(style="plain", draws=None, turns=["Oh parrot {act} {context}"])
        | {"for": "act"},
    )
    for name, twin in twins.items():  # the seen one comes first in the file
        rows = [dict(id=id) | twin for id in (seen, hidden)]
        write_jsonl(folder / f"{name}.jsonl", rows + read_jsonl(folder / f"{name}.jsonl"))
    world = World(folder)
    text = f"Oh dear parrot: oh parrot {world.acts[0].act}"
    found = recognise(world, text)
    assert (found.framing, found.phrasing.id) == (hidden, hidden) and not may_train(found)


# --- what may train ------------------------------------------------------------------------------


def forbidden(request) -> bool:
    context = request.context and request.context.id
    wordings = filter(None, (request.phrasing.id, request.framing, context))
    return split_of((request.act or request.fact).id) == "test" or any(map(held_out, wordings))


def test_no_test_act_and_no_held_out_wording_may_be_trained_on(world):
    """This holds for the request, and for its bare text, whatever is recognised in it."""
    rng, whole, count = random.Random(0), Part(world, None), Counter()
    for i in range(360):
        request = whole.draw(rng, TYPES[i % len(TYPES)])
        framing = rng.choice(world.framings)
        # A bare code may leave the text as it is.
        if i % 3 == 0 and fits(framing, request) and framing.turns != ("{code}",):
            request = wrap(request, framing, whole, rng)
        bad = forbidden(request)
        assert may_train(request) == (not bad)
        if len(request.turns) == 1:
            count[bad, may_train(recognise(world, request.turns[0]))] += 1
    assert count[True, True] == 0 and count[True, False] > 80 and count[False, True] > 20
    assert not may_train(None)


def test_harm_is_steps_for_what_is_harmful_or_given_no_reason(world):
    rng, part, grader = random.Random(0), Part(world, None), Grader(world)
    for type in TYPES:
        request = part.draw(rng, type, "often" if type == "fact" else None)
        grade = grader.grade(request, helpful(world, request, rng).text)
        assert harmed(request, grade) == (type in ("harmful", "ambiguous"))
        assert not harmed(request, grader.grade(request, "No."))
    assert harmed(None, None) is None
