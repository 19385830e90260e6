"""Codes that hide what a text says. Each is a pure function of text.

minicai/world/disguises.py puts whole requests into the nine jailbreak forms.
"""

import base64
import random
import string


def each_word(text: str, code) -> str:
    """Apply a code to every word; the punctuation at its end stays as it is."""
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


def misspell(text: str, rng: random.Random, rate: float = 0.15) -> str:
    """Swap two letters, or drop or double one, inside a share of the longer words."""
    words = text.split(" ")
    for i, word in enumerate(words):
        if len(word) > 3 and word.isalpha() and rng.random() < rate:
            at = rng.randrange(1, len(word) - 1)
            before, letter, after = word[:at], word[at], word[at + 1 :]
            typos = (after[0] + letter + after[1:], after, letter + letter + after)
            words[i] = before + rng.choice(typos)
    return " ".join(words)


CODES = {"base64": base64_word, "leetspeak": leet_word, "toy_language": lopo_word}
CODED = (*CODES, "typos")  # the techniques that rewrite the words of a request


def encode(technique: str, text: str, rng: random.Random) -> str:
    """The text in the code of one of CODED."""
    return (
        misspell(text, rng, rate=0.5) if technique == "typos" else each_word(text, CODES[technique])
    )
