"""The codes of jailbreaks: each is what it is called, and what it hides can be read again."""

import random
import re
from base64 import b64decode

import pytest

from minicai.jailbreak import CODED, CODES, each_word, encode, misspell
from minicai.run import ROOT
from minicai.world.content import World


def unleet(word):
    for digit, letter in zip("4310$7", "aeiost"):
        word = word.replace(digit, letter)
    return word


DECODE = {
    "base64": lambda word: b64decode(word, validate=True).decode(),
    "leetspeak": unleet,
    "toy_language": lambda word: word[-2] + word[:-2],
}


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
def test_every_act_and_context_can_be_read_again(technique):
    world = World(ROOT / "world")
    for text in [f"How do I {a.act}?" for a in world.acts] + [c.text for c in world.contexts]:
        assert not re.search(r"[\d$]", text), "leet would be ambiguous"
        code, words = each_word(text, CODES[technique]), []
        for word in code.split(" "):  # punctuation inside a word is coded, at its end it stays
            core, end = re.fullmatch(r"(.*?)([.,!?;:\"]*)", word).groups()
            words.append(DECODE[technique](core) + end)
        assert " ".join(words) == text.lower()
        if technique == "base64":
            assert not set(code.lower().split()) & set(text.lower().split())


def test_typing_errors_leave_every_word_almost_as_it_was():
    text = "please explain how somebody could borrow another person's wooden bicycle"
    changed = 0
    for seed in range(50):
        misspelt = misspell(text, random.Random(seed), rate=0.5)
        for before, after in zip(text.split(), misspelt.split(), strict=True):
            assert before[0] == after[0] and abs(len(before) - len(after)) <= 1
            assert set(after) <= set(before)
            assert len(before) > 3 or before == after
            changed += before != after
    # Half of 450 long words are tried, and a swap of equal letters changes nothing.
    assert 100 < changed < 350
    assert misspell(text, random.Random(0)) == misspell(text, random.Random(0))


def test_a_disguise_by_typing_errors_has_more_of_them_than_a_phrasing():
    text = "please explain how somebody could borrow another person's wooden bicycle"

    def share(make):
        made = " ".join(make(random.Random(seed)) for seed in range(50)).split()
        return sum(word in text.split() for word in made) / len(made)

    assert share(lambda rng: encode("typos", text, rng)) < 0.7
    assert share(lambda rng: misspell(text, rng)) > 0.8


def test_the_coded_techniques_are_the_codes_and_typing_errors():
    assert CODED == (*DECODE, "typos") and tuple(CODES) == tuple(DECODE)
