"""Rows of the JSON-lines files that trainings read: what they must look like, and which are used.

A chain (revisions.jsonl) holds an answer and its revisions. A comparison (preferences.jsonl) holds
two answers a and b, and p, the probability that a is the better one. Rows made from other people's
files may have a `system` message too (minicai/preferences.py).
"""

import random

from minicai.files import UserError, read_jsonl


def is_text(value) -> bool:
    return isinstance(value, str)


def is_maybe_text(value) -> bool:
    return value is None or isinstance(value, str)


def is_probability(value) -> bool:
    return type(value) in (int, float) and 0 <= value <= 1


def list_of(fits, lengths=lambda n: True):
    """A test for a list whose entries fit, and whose length fits."""
    return lambda value: isinstance(value, list) and lengths(len(value)) and all(map(fits, value))


TURNS = (
    list_of(is_text, lambda n: n % 2 == 1),
    "a list of an odd number of texts, the person's last",
)
JUDGED = list_of(
    lambda pair: (
        isinstance(pair, list)
        and len(pair) == 2
        and is_maybe_text(pair[0])
        and is_probability(pair[1])
    )
)
FIELDS = {  # of rows that training reads: (test, words), see files.check_row
    "id": (lambda value: isinstance(value, int | str), "a number or a text"),
    "turns": TURNS,
    "plain": TURNS,
    "system": (is_text, "a text"),
    "responses": (list_of(is_text), "a list of texts"),
    "principles": (list_of(is_text), "a list of texts"),
    "critiques": (list_of(is_maybe_text), "a list of texts"),
    "response": (is_maybe_text, "a text"),
    "a": (is_text, "a text"),
    "b": (is_text, "a text"),
    "by": (list_of(is_text, lambda n: n == 2), "a list of two texts"),
    "kind": (lambda value: value in ("ai", "human"), "'ai' or 'human'"),
    "p": (is_probability, "a number from 0 to 1"),
    "a_first": (is_probability, "a number from 0 to 1"),
    "b_first": (is_probability, "a number from 0 to 1"),
    "reasons": (JUDGED, "a list of pairs of a critique and a number from 0 to 1"),
    "type": (is_maybe_text, "a text"),
    "split": (is_maybe_text, "a text"),
    "request": (is_maybe_text, "a text"),
    "principle": (is_maybe_text, "a text"),
    "judge": (lambda value: value is None or is_probability(value), "a number from 0 to 1"),
    "success": (lambda value: isinstance(value, bool), "true or false"),
    "trainable": (lambda value: isinstance(value, bool), "true or false"),
}


def read_chains(path, required=()) -> list[dict]:
    """The critique-revision chains that revise.py wrote. Raises UserError when there are none."""
    rows = read_jsonl(path, required=("id", "turns", "responses", *required), fields=FIELDS)
    seen = set()
    for number, row in enumerate(rows, 1):
        if row["id"] in seen:
            raise UserError(
                f"{path}:{number} has the id {row['id']} of an earlier line; delete one"
            )
        seen.add(row["id"])
        steps = {len(row[key]) for key in ("principles", "critiques") if key in row}
        if row["responses"] and steps - {len(row["responses"]) - 1}:
            raise UserError(f"{path}:{number} has other numbers of steps and responses; delete it")
    rows = [row for row in rows if row["responses"]]
    if not rows:
        raise UserError(f"{path} holds no chain; run revise.py")
    return rows


TIE = 0.05  # a judge whose probability is this close to 0.5 sees no difference
FEW = 20  # with fewer decided comparisons ties are kept


def tied(p: float) -> bool:
    return abs(p - 0.5) < TIE


def choose_rows(rows: list[dict], helpful_fraction: float, rng: random.Random) -> list[dict]:
    """The rows that are trained on. At most `helpful_fraction` of them compare helpfulness.

    Ties are left out: in most pairs neither answer breaks the principle, and ties would outnumber
    the rest. With fewer than FEW decided comparisons they are kept, and a sentence says so.
    """
    ai, human = ([row for row in rows if row["kind"] == kind] for kind in ("ai", "human"))
    decided = [row for row in ai if not tied(row["p"])]
    if len(decided) < FEW and len(decided) < len(ai):
        print(f"the judge decided only {len(decided)} of {len(ai)} comparisons; ties are kept")
        decided = ai
    wanted = round(len(decided) * helpful_fraction / (1 - helpful_fraction))
    return decided + rng.sample(human, min(wanted, len(human)))
