"""One line of a world file, parsed into a dataclass and checked against the types of its fields.

Errors are ValueErrors. Each is the end of a sentence: content.py puts the file and the line first.
"""

import json
import re
from dataclasses import MISSING, fields
from typing import Literal, get_args, get_origin


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
