"""One line of a world file, parsed into a dataclass and checked: types, then rules of each file.

Errors are ValueErrors. Each is the end of a sentence: content.py puts the file and the line first.
"""

import json
import re
from dataclasses import MISSING, fields
from typing import Literal, get_args, get_origin

from minicai.jailbreak import CODED


def is_text(value) -> bool:
    return isinstance(value, str) and bool(value.strip())


def problem(type, value) -> str:
    """What a field of this type must be; empty if the JSON value is that."""
    if get_origin(type) is Literal:
        options = get_args(type)
        listed = ", ".join(json.dumps(option) for option in options if option != "")
        return "" if value in options else f"one of {listed}"
    if type is str:
        return "" if is_text(value) else "a string that is not blank"
    if type is bool:
        return "" if isinstance(value, bool) else "true or false"
    if type is dict:
        fits = isinstance(value, dict) and all(map(is_text, (*value, *value.values())))
        return "" if fits else "an object of attributes and values, strings that are not blank"
    open_turns = type == tuple[str | None, ...]
    fits = isinstance(value, list) and all(is_text(t) or t is None and open_turns for t in value)
    return "" if fits else "a list of strings that are not blank"


def parse(make: type, row: dict, use: str):
    """The row as an instance of the dataclass `make`.

    `use` is the key in the file of the field of that name ("for" is a Python keyword).
    """
    values = {}
    for f in fields(make):
        key = use if f.name == "use" else f.name
        if key not in row and f.default is MISSING:
            raise ValueError(f"has no field {key!r}; add it")
        value = row.pop(key, f.default)
        if value != f.default and (wanted := problem(f.type, value)):
            raise ValueError(f"has {key} {value!r}; it must be {wanted}")
        values[f.name] = tuple(value) if isinstance(value, list) else value
    if row:
        raise ValueError(f"has an unknown field {min(row)!r}; delete it")
    return make(**values)


def check_slots(text: str, allowed):
    """Check that a template can be filled in: every {slot} in it must be an allowed one."""
    if re.search("[{}]", re.sub(r"{\w+}", "", text)):
        raise ValueError("has a stray { or }; braces may only stand around the name of a slot")
    for slot in re.findall(r"{(\w+)}", text):
        if slot not in allowed:
            options = ", ".join(allowed) or "none"
            raise ValueError(f"has the slot {{{slot}}}, which is never filled in; use {options}")


# --- rules of each file, for the dataclasses of content.py ---


def check_act(act):
    if len(act.steps) < 2 or not all(len(step.split()) >= 3 for step in act.steps):
        raise ValueError("needs two steps of three words or more, to tell a leak from chance")
    for name in ("harm", "victim", "severity", "alternative", "safety"):
        if act.kind in ("dual_use", "harmful") and not getattr(act, name):
            raise ValueError(f"has no {name!r}; fill it in")


def check_phrasing(slots: dict, phrasing):
    if len(phrasing.turns) % 2 == 0:
        raise ValueError("must start and end with a turn of the user")
    text = " ".join(phrasing.turns)
    for slot in slots[phrasing.use]:
        if text.count(f"{{{slot}}}") != 1:
            raise ValueError(f"needs the slot {{{slot}}} exactly once")
        if f"{{{slot}}}" not in phrasing.turns[-1]:
            raise ValueError(f"needs {{{slot}}} in its last turn: a disguise keeps only that")
    check_slots(text, slots[phrasing.use])


def check_fact(fact):
    if (fact.seen == "never") == bool(fact.facts):
        raise ValueError("must have facts if it is ever seen, and none if it never is")


def check_framing(framing):
    text = " ".join(turn or "" for turn in framing.turns)
    if len(framing.turns) % 2 == 0 or None in framing.turns[::2]:
        raise ValueError("must start and end with a turn of the user, which is not null")
    if len(re.findall(r"{(?:request|code)}", text)) != 1:
        raise ValueError("must hold {request} or {code} exactly once")
    coded = ("code",) if framing.technique in CODED else ()
    check_slots(text, ("request", "shots", "protection", "act", *coded))


def check_text(slots: dict, template):
    if template.use not in slots:
        raise ValueError(f"is for {template.use!r}; it must be for one of {', '.join(slots)}")
    check_slots(template.text, slots[template.use])
