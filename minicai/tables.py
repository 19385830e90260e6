"""Rows of a file in any usual format: CSV, TSV, JSON lines, a JSON list, lines of text; or .gz."""

import csv
import gzip
import io
import re
import zlib
from collections.abc import Callable, Collection
from pathlib import Path

from minicai.files import UserError, as_text, parse_json, read_bytes


def read_rows(path, heads: Collection[tuple[str, ...]]) -> list[tuple[str, dict]]:
    """(place in the file, value by column) of each row. Names of columns are in small letters.

    What the content looks like decides about the format. `heads` holds columns by which a table is
    known. A line of text, or a JSON string, is a row with the column "prompt". The file is read
    once, so pipes work. Raises UserError for what cannot be read.
    """
    text = unpacked(path).replace("\r\n", "\n").replace("\r", "\n")
    lines = [(f"{path}:{n}", line) for n, line in enumerate(text.split("\n"), 1) if line.strip()]
    start = text.lstrip()[:1]
    if start == "[":
        values = parse_json(text, str(path))
        rows = [(f"{path}, entry {n}", value) for n, value in enumerate(values, 1)]
    elif start == "{":
        rows = [(where, parse_json(line, where)) for where, line in lines]
    elif is_table(path, text, heads):
        rows = table_rows(path, text)
    elif all(
        re.fullmatch(r'\s*"(?:[^"\\]|\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4}))*"\s*', line)
        for _, line in lines
    ):
        rows = [(where, parse_json(line, where)) for where, line in lines]
    else:
        rows = lines
    found = []
    for where, row in rows:
        row = dict(prompt=row) if isinstance(row, str) else row
        if not isinstance(row, dict):
            raise UserError(f"{where} is neither an object nor a text; fix it or delete it")
        found.append((where, {key.strip().lower(): value for key, value in row.items()}))
    return found


class LeftOut(UserError):
    """A row that is well formed, but holds nothing to use."""


def usable(path, rows: list[tuple[str, dict]], convert: Callable) -> list:
    """convert(number, place, row) of each row, except those for which it raises LeftOut.

    It prints how many these are. Raises the first LeftOut if no row is usable.
    """
    found, left_out = [], []
    for number, (where, row) in enumerate(rows, 1):
        try:
            found.append(convert(number, where, row))
        except LeftOut as reason:
            left_out.append(reason)
    if left_out and not found:
        raise left_out[0]
    if left_out:
        print(f"{path}: {len(left_out)} of {len(rows)} rows are left out; the first: {left_out[0]}")
    return found


def unpacked(path) -> str:
    """The text of a file, plain or .gz."""
    data = read_bytes(path)
    if data[:2] == b"\x1f\x8b":
        try:
            data = gzip.decompress(data)
        except (EOFError, OSError, zlib.error) as error:
            raise UserError(f"{path} is not a whole .gz file ({error}); get it again")
    return as_text(data, path)


def cells(text: str, strict: bool):
    """A csv reader. Tabs separate the cells if the first line has one, else commas."""
    csv.field_size_limit(2**31 - 1)
    tab = "\t" in text.lstrip().partition("\n")[0]
    return csv.reader(io.StringIO(text), delimiter="\t" if tab else ",", strict=strict)


def is_table(path, text: str, heads: Collection[tuple[str, ...]]) -> bool:
    """Whether a text is a table, not plain lines.

    Its first line has the columns of one of `heads`, or looks like names of columns, or the file is
    named .csv or .tsv.
    """
    first = next((row for row in cells(text, strict=False) if any(row)), [])
    names = {cell.strip().lower() for cell in first}
    suffixes = {suffix.lower() for suffix in Path(path).suffixes}
    if any(names >= set(head) for head in heads) or {".csv", ".tsv"} & suffixes:
        return True
    return len(first) > 1 and all(re.fullmatch(r"[A-Za-z]\w*", cell) for cell in first)


def table_rows(path, text: str) -> list[tuple[str, dict]]:
    """The rows of a table below its head. Raises UserError for a row of another length."""
    reader, head, rows, line = cells(text, strict=True), None, [], 1
    try:
        for row in reader:
            where, line = f"{path}:{line}", reader.line_num + 1
            if not any(map(str.strip, row)):
                continue
            if head is None:
                head = row
                names = [cell.strip().lower() for cell in head]
                if twice := [name for name in names if name and names.count(name) > 1]:
                    raise UserError(f"{where} names the column {twice[0]!r} twice; rename one")
            elif len(row) != len(head):
                raise UserError(
                    f"{where} has {len(row)} cells and the head {len(head)}; fix it or delete it"
                )
            else:
                rows.append((where, dict(zip(head, row))))
    except csv.Error as error:
        raise UserError(f"{path}:{line} is not valid CSV ({error}); fix its quotes")
    return rows
