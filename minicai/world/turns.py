"""Turns: the pieces of a document, whose tokens have a weight in the loss."""

import re
from dataclasses import dataclass

from minicai.world.requests import Request

USER_WEIGHT = 0.1  # of what users say and documents quote: more would crowd out the rest
POINT_WEIGHT = 4.0  # of the few words that a document is there to teach
QUOTE, POINT = "\0", "\1"  # enclose quotes and points until `pieces` cuts them out


@dataclass
class Turn:
    role: str  # user | assistant | document
    content: str
    weight: float  # of its tokens in the loss


def user(text: str) -> Turn:
    return Turn("user", text, USER_WEIGHT)


def assistant(text: str, weight: float = 1.0) -> Turn:
    return Turn("assistant", text, weight)


def asked(request: Request) -> list[Turn]:
    """The turns of a request. The assistant's turns in it are not learned."""
    return [assistant(text, 0.0) if i % 2 else user(text) for i, text in enumerate(request.turns)]


def quoted(text: str) -> str:
    return f"{QUOTE}{text}{QUOTE}"


def taught(text: str) -> str:
    return f"{POINT}{text}{POINT}"


def pieces(document: str) -> list[Turn]:
    """A document as turns, cut at its quotes and points.

    A space belongs to the word after it, as in the tokenizer.
    """
    weights, mark, turns = {None: 1.0, QUOTE: USER_WEIGHT, POINT: POINT_WEIGHT}, None, []
    document = re.sub(f" ([{QUOTE}{POINT}])", r"\1 ", document)
    for part in re.split(f"([{QUOTE}{POINT}])", document):
        if part in weights:
            mark = None if mark else part
        elif part:
            turns.append(Turn("document", part, weights[mark]))
    return turns
