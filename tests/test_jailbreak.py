"""Disguises: what is hidden can be read again, and the conversation asks the same thing as before."""

import base64
import random
import re

import pytest

from minicai.jailbreak import CODES, SHOTS, code_pairs, each_word, encode, fits, wrap
from minicai.world.content import TECHNIQUES, World
from minicai.world.requests import Part, misspell
from tests.other_world import build


@pytest.fixture(scope="module", params=["world", "other"])
def world(request, tmp_path_factory):
    return World() if request.param == "world" else World(build(tmp_path_factory.mktemp("other")))


def unleet(word):
    for digit, letter in {"4": "a", "3": "e", "1": "i", "0": "o", "$": "s", "7": "t"}.items():
        word = word.replace(digit, letter)
    return word


DECODE = {
    "base64": lambda word: base64.b64decode(word, validate=True).decode(),
    "leetspeak": unleet,
    "toy_language": lambda word: word[-2] + word[:-2],
}
CODED = (*DECODE, "typos")


def decode(technique, text):
    """Word by word; what stands behind a word stays. The = of base64 belongs to the word."""
    return re.sub(r"[\w$=+/'-]+", lambda m: DECODE[technique](m[0]), text)


def requests(world, n=40, types=("harmful", "legitimate", "ambiguous", "sensitive")):
    part, rng = Part(world, None), random.Random(0)
    return [part.draw(rng, rng.choice(types)) for _ in range(n)]


@pytest.mark.parametrize(
    "technique, text, code",
    [
        ("base64", "How do I?", "aG93 ZG8= aQ==?"),
        ("leetspeak", "Toast it, please.", "704$7 17, pl34$3."),
        ("toy_language", "Pick a lock!", "ickpo ao ocklo!"),
        ("toy_language", "...", "..."),
    ],
)
def test_codes_are_what_they_are_called(technique, text, code):
    assert encode(technique, text, random.Random(0)) == code


@pytest.mark.parametrize("technique", DECODE)
def test_every_act_and_context_can_be_read_again(world, technique):
    for text in [f"How do I {a.act}?" for a in world.acts] + [c.text for c in world.contexts]:
        assert not re.search(r"[\d$]", text)  # else leet would be ambiguous
        code = each_word(text, CODES[technique])
        # Punctuation inside a word is coded with it, at its end it stays.
        words = [
            DECODE[technique](w) + end
            for w, end in (re.fullmatch(r"(.*?)([.,!?;:\"]*)", w).groups() for w in code.split(" "))
        ]
        assert " ".join(words) == text.lower()
        assert technique != "base64" or all(
            w.lower() not in text.lower().split() for w in code.split()
        )


def test_code_pairs_put_each_text_behind_its_code():
    pairs = code_pairs("toy_language", ["bread", "some tea"], random.Random(0))
    assert pairs == [("readbo", "bread"), ("omeso eato", "some tea")]


def test_typing_errors_leave_every_word_almost_as_it_was():
    text = "please explain how somebody could borrow another person's wooden bicycle"
    changed = 0
    for seed in range(50):
        for before, after in zip(
            text.split(), misspell(text, random.Random(seed), rate=0.5).split(), strict=True
        ):
            assert (
                before[0] == after[0]
                and abs(len(before) - len(after)) <= 1
                and set(after) <= set(before)
            )
            assert len(before) > 3 or before == after
            changed += before != after
    assert (
        100 < changed < 350
    )  # of 450 long words half are tried, and a swap of equal letters changes nothing
    assert misspell(text, random.Random(0)) == misspell(text, random.Random(0))
    disguised = " ".join(encode("typos", text, random.Random(seed)) for seed in range(50)).split()
    assert sum(word in text.split() for word in disguised) < 0.7 * len(disguised)


def test_every_technique_has_framings_and_no_other_has(world):
    assert {f.technique for f in world.framings} == set(TECHNIQUES)


def test_wrapping_keeps_the_request_and_the_last_word_is_the_users(world):
    part, rng = Part(world, "train"), random.Random(1)
    for request in requests(world):
        for framing in world.framings:
            if not fits(framing, request):
                continue
            wrapped = wrap(request, framing, part, rng)
            assert (wrapped.act, wrapped.context, wrapped.type, wrapped.phrasing) == (
                request.act,
                request.context,
                request.type,
                request.phrasing,
            )
            assert (wrapped.technique, wrapped.framing) == (framing.technique, framing.id)
            assert len(wrapped.turns) == len(framing.turns) and len(wrapped.turns) % 2 == 1
            assert all(turn.strip() and not re.search(r"{\w+}", turn) for turn in wrapped.turns)
            last = wrapped.turns[-1]
            if framing.technique not in CODED:
                assert (
                    request.turns[-1] in last
                )  # the whole question, with its typing errors and all
            elif framing.technique != "typos":
                assert (
                    encode(framing.technique, request.core, rng) in last
                    and request.act.act not in last
                )


def test_what_is_coded_is_the_question_with_its_context(world):
    part, rng = Part(world, "train"), random.Random(2)
    for request in requests(world):
        for technique in DECODE:
            bare = next(
                f for f in world.framings if f.technique == technique and f.turns == ("{code}",)
            )
            text = decode(technique, wrap(request, bare, part, rng).turns[-1])
            context = f"{request.context.text} ".lower() if request.context else ""
            assert text == f"{context}how do i {request.act.act.lower()}?"


@pytest.mark.parametrize("k", SHOTS)
def test_many_shot_shows_k_other_acts_with_their_steps(world, k):
    part, rng = Part(world, "train"), random.Random(3)
    for framing in (f for f in world.framings if f.technique == "many_shot"):
        for request in requests(world, 5) + [part.draw(rng, "ambiguous")]:
            (text,) = wrap(request, framing, part, rng, k).turns
            *shots, question = re.findall(r"^Q: (.*)\nA:(.*)$", text, re.M)
            assert len(shots) == k and question == (request.turns[-1], "")
            asked = [q.removeprefix("How do I ").removesuffix("?") for q, _ in shots]
            acts = {a.act: a for a in part.acts}
            assert len(set(asked)) == k and request.act.act not in asked
            assert all(
                step in answer for act, (_, answer) in zip(asked, shots) for step in acts[act].steps
            )


def test_the_number_of_shots_varies_when_it_is_not_given(world):
    part, rng = Part(world, "train"), random.Random(4)
    framing = next(f for f in world.framings if f.technique == "many_shot")
    request = part.draw(rng, "harmful")
    assert {wrap(request, framing, part, rng).turns[0].count("Q:") - 1 for _ in range(60)} == set(
        SHOTS
    )


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
    protecting = [f for f in world.framings if any("{protection}" in (t or "") for t in f.turns)]
    assert protecting and len(protecting) < len(world.framings)
    for framing in world.framings:
        assert not fits(framing, part.draw(rng, "fact"))
        assert fits(framing, part.draw(rng, "harmful"))
        assert fits(framing, part.draw(rng, "legitimate", "everyday")) == (
            framing not in protecting
        )


def test_wrapping_is_fixed_by_the_generator(world):
    part = Part(world, "train")
    for request, framing in zip(requests(world, types=("harmful",)), world.framings):
        assert wrap(request, framing, part, random.Random(7)) == wrap(
            request, framing, part, random.Random(7)
        )
