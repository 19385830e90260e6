"""Disguises: the conversation asks the same thing as before, and the user speaks last."""

import random
import re
from dataclasses import replace

import pytest

from experiments.other_world import build
from minicai.jailbreak import CODED, encode
from minicai.run import ROOT
from minicai.world.content import TECHNIQUES, World
from minicai.world.disguises import SHOTS, code_pairs, disguise, fits, wrap
from minicai.world.requests import Part
from tests.test_jailbreak import DECODE


@pytest.fixture(scope="module", params=["world", "other"])
def world(request, tmp_path_factory):
    other = request.param == "other"
    return World(build(tmp_path_factory.mktemp("other")) if other else ROOT / "world")


def requests(world, n=40, types=("harmful", "legitimate", "ambiguous", "sensitive")):
    part, rng = Part(world, None), random.Random(0)
    return [part.draw(rng, rng.choice(types)) for _ in range(n)]


def asks_protection(framing) -> bool:
    return any("{protection}" in (turn or "") for turn in framing.turns)


def test_every_technique_has_framings_and_no_other_has(world):
    assert {f.technique for f in world.framings} == set(TECHNIQUES)


def test_code_pairs_put_each_text_behind_its_code():
    pairs = code_pairs("toy_language", ["bread", "some tea"], random.Random(0))
    assert pairs == [("readbo", "bread"), ("omeso eato", "some tea")]


def test_wrapping_keeps_the_request_and_the_last_word_is_the_users(world):
    part, rng = Part(world, "train"), random.Random(1)
    for request in requests(world):
        for framing in (f for f in world.framings if fits(f, request)):
            wrapped = wrap(request, framing, part, rng)
            for name in ("act", "context", "type", "phrasing"):
                assert getattr(wrapped, name) == getattr(request, name)
            assert (wrapped.technique, wrapped.framing) == (framing.technique, framing.id)
            assert wrapped.plain == request.plain == request.turns
            assert len(wrapped.turns) == len(framing.turns) and len(wrapped.turns) % 2 == 1
            assert all(turn.strip() and not re.search(r"{\w+}", turn) for turn in wrapped.turns)
            last = wrapped.turns[-1]
            if framing.technique not in CODED:
                assert request.turns[-1] in last  # the whole question, typing errors and all
            elif framing.technique != "typos":
                assert encode(framing.technique, request.core, rng) in last
                assert request.act.act not in last


def test_what_is_coded_is_the_question_with_its_context(world):
    part, rng = Part(world, "train"), random.Random(2)
    for request in requests(world):
        for technique, decode in DECODE.items():
            framings = [f for f in world.framings if f.technique == technique]
            bare = next(f for f in framings if f.turns == ("{code}",))
            code = wrap(request, bare, part, rng).turns[-1]
            # The = of base64 belongs to the word. Other marks stay as they are.
            text = re.sub(r"[\w$=+/'-]+", lambda m, decode=decode: decode(m[0]), code)
            context = f"{request.context.text} ".lower() if request.context else ""
            assert text == f"{context}how do i {request.act.act.lower()}?"


@pytest.mark.parametrize("k", SHOTS)
def test_many_shot_shows_k_other_acts_with_their_steps(world, k):
    part, rng = Part(world, "train"), random.Random(3)
    acts = {a.act: a for a in part.acts}
    for framing in (f for f in world.framings if f.technique == "many_shot"):
        for request in requests(world, 5) + [part.draw(rng, "ambiguous")]:
            (text,) = wrap(request, framing, part, rng, k).turns
            *shots, question = re.findall(r"^Q: (.*)\nA:(.*)$", text, re.M)
            assert len(shots) == k and question == (request.turns[-1], "")
            asked = [q.removeprefix("How do I ").removesuffix("?") for q, _ in shots]
            assert len(set(asked)) == k and request.act.act not in asked
            for act, (_, answer) in zip(asked, shots):
                assert all(step in answer for step in acts[act].steps)


def test_the_number_of_shots_varies_when_it_is_not_given(world):
    part, rng = Part(world, "train"), random.Random(4)
    framing = next(f for f in world.framings if f.technique == "many_shot")
    request = part.draw(rng, "harmful")
    counts = {wrap(request, framing, part, rng).turns[0].count("Q:") - 1 for _ in range(60)}
    assert counts == set(SHOTS)


def test_escalation_asks_for_protection_first_and_gets_it(world):
    part, rng = Part(world, None), random.Random(5)
    framings = [f for f in world.framings if f.turns[0] == "{protection}"]
    assert framings
    for framing in framings:
        request = part.draw(rng, "harmful")
        wrapped = wrap(request, framing, part, rng)
        assert request.act.act.lower() in wrapped.turns[0].lower() or "typos" in wrapped.id
        assert request.act.safety in wrapped.turns[1]
        assert not any(step in turn for step in request.act.steps for turn in wrapped.turns)


def test_frames_fit_only_acts_and_protection_only_what_can_hurt(world):
    part, rng = Part(world, None), random.Random(6)
    protecting = [f for f in world.framings if asks_protection(f)]
    assert protecting and len(protecting) < len(world.framings)
    for framing in world.framings:
        assert not fits(framing, part.draw(rng, "fact"))
        harmful = part.draw(rng, "harmful")
        for feared in (True, False):
            request = replace(harmful, act=replace(harmful.act, feared=feared))
            assert fits(framing, request) == (feared or framing not in protecting)
        everyday = part.draw(rng, "legitimate", "everyday")
        assert fits(framing, everyday) == (framing not in protecting)


def test_a_random_disguise_is_one_of_the_parts_framings_and_a_name_has_none(world):
    part, rng, found = Part(world, "train"), random.Random(7), set()
    for _ in range(400):
        request = part.draw(rng, "legitimate", "everyday")
        wrapped = disguise(request, part, rng)
        assert wrapped.plain == request.turns
        found.add(wrapped.framing)
    assert found == {f.id for f in part.framings if not asks_protection(f)}
    name = part.draw(rng, "fact")
    assert disguise(name, part, rng) is name


def test_wrapping_is_fixed_by_the_generator(world):
    part = Part(world, "train")
    for request, framing in zip(requests(world, types=("harmful",)), world.framings):
        one, two = (wrap(request, framing, part, random.Random(7)) for _ in "ab")
        assert one == two
