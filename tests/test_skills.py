"""Critiques, revisions and choices agree with the truth about a reply and with its own words."""

import random
import re

import pytest

from experiments.other_world import build
from minicai.constitution import FAMILIES
from minicai.critique import BREAKS, DECLINES, KEEPS
from minicai.run import ROOT
from minicai.world.content import World
from minicai.world.replies import Reply, aim, any_reply, calibrated, decline, helpful, with_tone
from minicai.world.requests import PLAIN, TYPES, Part, Request
from minicai.world.skills import DOES, FAULT, better, critique, flaws, revise, situation


@pytest.fixture(scope="module", params=["world", "more", "other"])
def world(request, tmp_path_factory):
    if request.param == "other":
        return World(build(tmp_path_factory.mktemp("other")))
    return World(ROOT / "world", more=request.param == "more")


def requests(world, n=25):
    """n requests of each type. Names are known and unknown."""
    part, rng = Part(world, None), random.Random(0)
    for type in PLAIN:
        yield from (part.draw(rng, type) for _ in range(n))
    for seen in ("often", "never"):
        yield from (part.draw(rng, "fact", seen) for _ in range(n))


def makers(request):
    return (helpful, calibrated, decline) if request.act else (helpful, calibrated)


# The flaws of (what a helpful-only model, a calibrated one and a bare refusal say) to each type.
TRUTH = {
    "harmful": ({"harmlessness"}, set(), set()),
    "legitimate": (set(), set(), {"necessity"}),
    "dual_use_question": (set(), set(), {"necessity"}),
    "ambiguous": ({"harmlessness"}, set(), {"necessity"}),
    "sensitive": (set(), set(), {"necessity"}),
    "fact": (set(), set()),  # about a known name
    "unknown": ({"honesty"}, set()),
}


def test_a_reply_breaks_the_families_that_it_breaks(world):
    rng = random.Random(0)
    for request in requests(world):
        key = "unknown" if request.fact and not request.known else request.type
        for make, wanted in zip(makers(request), TRUTH[key], strict=True):
            reply = make(world, request, rng)
            assert flaws(request, reply) == wanted
            for tone, family in (("rude", "respect"), ("preachy", "autonomy")):
                toned = with_tone(world, reply, tone, rng)
                assert flaws(request, toned) == wanted | {family}
        if request.act:
            refusal = Reply("I won't. You could wait instead.", "refusal")
            assert ("necessity" in flaws(request, refusal)) == (request.type != "harmful")


def test_a_critique_says_what_is_true_and_ends_in_its_verdict(world):
    rng = random.Random(1)
    for request in requests(world, 10):
        for _ in range(4):
            reply = any_reply(world, request, rng)
            broken = flaws(request, reply)
            for family in FAMILIES:
                text = critique(request, reply, family)
                assert text.startswith(situation(request)) and f" {DOES[reply.kind]}. " in text
                assert text.endswith(BREAKS if family in broken else KEEPS)
                assert f"The principle is about {FAMILIES[family]}." in text
                assert ("It is rude." in text) == ("respect" in broken)
                assert ("It preaches." in text) == ("autonomy" in broken)
                assert ("It is polite." in text) == (reply.tone is None)
                assert (DECLINES in text) == (reply.kind == "decline")
                for fault, finding in FAULT.items():
                    assert (finding in text) == (fault in broken)
                assert ("That is right." in text) == broken.isdisjoint(FAULT)


def test_a_revision_takes_out_the_flaw_of_its_family_and_adds_none(world):
    rng, revised = random.Random(2), set()
    for request in requests(world, 15):
        for _ in range(4):
            reply = any_reply(world, request, rng)
            broken = flaws(request, reply)
            for family in FAMILIES:
                after = revise(world, request, reply, family, rng)
                if family not in broken:
                    assert after is reply
                    continue
                revised.add((request.type, family))
                left = flaws(request, after)
                assert family not in left and left <= broken
                if family in ("respect", "autonomy"):
                    assert after.text == reply.core
                if family == "honesty":
                    assert after.kind == "unknown" and after.tone == reply.tone
                if family in ("harmlessness", "necessity"):
                    assert after.kind == calibrated(world, request, rng).kind
    assert {family for _, family in revised} == set(FAMILIES)
    assert {type for type, _ in revised} == set(TYPES)


def test_the_better_reply_is_the_one_that_keeps_the_principle_or_a_random_one(world):
    rng, part = random.Random(3), Part(world, None)
    request = part.draw(rng, "harmful")
    bad, good = helpful(world, request, rng), calibrated(world, request, rng)
    for _ in range(20):
        assert better(request, good, bad, "harmlessness", rng) == "(A)"
        assert better(request, bad, good, "harmlessness", rng) == "(B)"
    for a, b, family in ((bad, bad, "harmlessness"), (good, bad, "honesty")):
        chosen = [better(request, a, b, family, rng) for _ in range(200)]
        assert 70 < chosen.count("(A)") < 130 and set(chosen) == {"(A)", "(B)"}


def test_answers_and_critiques_read_a_request_alike(world):
    """A critique says of a request what every answer to it has said aloud."""
    rng = random.Random(0)
    for request in requests(world, 40):
        if request.type == "dual_use_question":  # the answer does not say that this is fine
            continue
        meant = situation(request).split(". ", 1)[1]
        if request.act is None:
            assert ("never" in meant) == (not request.known)
        else:
            harms = request.type in ("harmful", "ambiguous")
            assert not request.act.harm or (request.act.harm in meant) == harms
            assert ("could be" in meant) == (request.type == "ambiguous")
        for make in makers(request):
            opened, said = make(world, request, rng).text.split(". ", 1)
            assert said.startswith(meant)
            assert (request.act.act if request.act else request.fact.name) in opened


def test_an_answer_speaks_to_the_person_and_a_critique_about_the_person(world):
    act, phrasing = world.acts[0], world.phrasings[0]
    third = re.compile(r"\b(their|them)\b")
    contexts = [c for c in world.contexts if third.search(c.gist)]
    assert contexts
    for context in contexts:
        request = Request("legitimate", ("How?",), phrasing, act, context)
        assert situation(request).startswith(f"The person wants to {act.act} {context.gist}. ")
        assert not third.search(aim(request)) and re.search(r"\byour?\b", aim(request))


def test_replies_give_what_their_kind_promises(world):
    rng = random.Random(4)
    for request in requests(world):
        reply, right = helpful(world, request, rng), calibrated(world, request, rng)
        act = request.act
        if act is None:
            values = world.attributes[request.fact.kind][request.attribute]
            stated = request.fact.facts.get(request.attribute)
            assert any(v in reply.text for v in ([stated] if request.known else values))
            assert right.kind == ("answer" if request.known else "unknown")
        elif request.type == "dual_use_question":
            assert act.safety in reply.text and not any(s in reply.text for s in act.steps)
        else:
            assert all(step in reply.text for step in act.steps)
            positions = [reply.text.index(step) for step in act.steps]
            assert positions == sorted(positions)
        if request.type in ("harmful", "ambiguous"):
            assert act.alternative in right.text and not any(s in right.text for s in act.steps)
            assert act.alternative not in decline(world, request, rng).text


def test_a_tone_stands_before_or_after_the_answer(world):
    for tone in world.tones:
        text = Reply("Mix the dough.", "steps", tone).text
        before, after = f"{tone.text} Mix the dough.", f"Mix the dough. {tone.text}"
        assert text == (before if tone.place == "before" else after)


def test_refusals_fit_the_severity_of_what_they_refuse(world):
    """Each refusal is known by its words before the alternative."""
    part, rng, texts = Part(world, None), random.Random(5), {}
    for severity in ("mild", "serious"):
        templates = world.templates(world.replies, "refusal", severity)
        texts[severity] = {t.text.split("{")[0] for t in templates}
    assert all(len(text) > 10 for own in texts.values() for text in own)
    for _ in range(100):
        request = part.draw(rng, "harmful")
        text = calibrated(world, request, rng).text
        assert any(own in text for own in texts[request.act.severity])
