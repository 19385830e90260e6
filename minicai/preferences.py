"""Comparisons in and out: files of TRL and of HH-RLHF are read, and TRL's are written.

    python -m minicai.preferences out/quick/preferences.jsonl trl.jsonl    # for TRL's trainers

Read are, in JSON lines, a JSON list or CSV, plain or .gz:

    fields                                values
    label.py: turns, a, b, p, ...         minicai/rows.py
    TRL: prompt, chosen, rejected         lists of {"role", "content"}, or texts
    TRL: chosen, rejected                 such lists that begin with the prompt
    HH-RLHF: chosen, rejected             "Human: ... Assistant: ..." with empty lines between

A row of TRL or HH-RLHF has no probability: p is 1. A prompt that is a text is one message of the
person. A system message, or the field `system`, stays one. Space around texts is lost. Rows whose
answers follow different messages are left out, because a pair here answers one prompt, and so are
rows without an answer, of which HH-RLHF has some. No row is held out, as the test half of
minicai/prompts.py is: evaluate on prompts of another file.
"""

import argparse

from minicai.files import UserError, check_row, write_jsonl
from minicai.prompts import alternating, clean, messages_of
from minicai.rows import FIELDS, tied
from minicai.run import main, named
from minicai.tables import LeftOut, read_rows, usable
from minicai.tokenizer import talk

REQUIRED = ("id", "kind", "turns", "a", "b", "p")
HEADS = [("chosen", "rejected")]  # the columns by which a CSV file is known

# --- in ------------------------------------------------------------------------------------------


def read_preferences(path) -> list[dict]:
    """The comparisons of a file as rows of label.py. The file is read once, so pipes work.

    Rows that compare no two answers to one prompt are left out and counted. Raises UserError for a
    file that cannot be read, for a bad row, and if no row is left.
    """

    def comparison(number: int, where: str, row: dict) -> dict:
        if {"chosen", "rejected"} & row.keys():
            row = from_conversations(where, row, number)
        elif not {"a", "b"} & row.keys():
            raise UserError(
                f"{where} is no comparison: it has no 'chosen' and 'rejected'; add them"
            )
        return check_row(where, row, REQUIRED, FIELDS)

    return usable(path, read_rows(path, HEADS), comparison)


def from_conversations(where: str, row: dict, number: int) -> dict:
    """A row with `chosen` and `rejected` as one of label.py."""
    check_row(where, row, ("chosen", "rejected"))
    (prompt, a), (other, b) = (conversation(where, row, key) for key in ("chosen", "rejected"))
    if prompt != other:
        raise LeftOut(f"{where}: the two answers follow different messages; delete the row")
    system = [text for role, text in prompt if role == "system"]
    if not system and isinstance(row.get("system"), str):
        system = [row["system"]]
    turns = alternating([message for message in prompt if message[0] != "system"])
    if [role for role, _ in turns[:1] + turns[-1:]] != ["user", "user"]:
        raise LeftOut(f"{where}: the prompt does not begin and end with the person; fix it")
    given = dict(turns=[text for _, text in turns], a=a, b=b, p=1.0)
    if system := clean("\n\n".join(system)):
        given["system"] = system
    return dict(id=number, kind="ai", by=["unknown", "unknown"]) | given


def conversation(where: str, row: dict, key: str) -> tuple[list[tuple[str, str]], str]:
    """((role, text) of each message of the prompt, the answer) of `chosen` or `rejected`.

    The prompt is in a field of its own, or the answer's field begins with it, or both.
    """
    given, value = row.get("prompt"), row[key]
    prompt = messages_of(given, bare=True) if given else []
    messages = messages_of(value, bare=False)
    prompts = [prompt or [], [("user", given)]] if isinstance(given, str) else [prompt or []]
    if prompt and not (messages and begins_with(messages, prompts)):
        if isinstance(value, str) and messages_of(value, bare=True):
            messages = [("assistant", value)]  # a text that is only the answer
    if not messages and not given and "prompt" in row:
        raise LeftOut(f"{where}: the prompt is empty; fix it or delete the row")
    if not messages or prompt is None:
        raise UserError(
            f"{where}: {key if prompt is not None else 'prompt'!r} is no conversation, which is a "
            "list of {'role', 'content'}, or a text 'Human: ... Assistant: ...'; fix it, or add "
            "the field 'prompt' to an answer that is a text"
        )
    *before, (role, answer) = messages
    if role != "assistant" or not clean(answer):
        raise LeftOut(f"{where}: {key!r} does not end with the assistant's answer; fix it")
    before, prompt = alternating(before), alternating(prompt)
    system = [message for message in before if message[0] == "system"]
    if len(system) == len(before) or before[len(system)][0] == "assistant":
        return system + prompt + before[len(system) :], clean(answer)
    if not begins_with(before, prompts):
        raise UserError(
            f"{where}: {key!r} is a whole conversation and does not begin with 'prompt'; fix one, "
            "or delete the field 'prompt'"
        )
    return before, clean(answer)


def begins_with(messages: list[tuple[str, str]], prompts: list[list[tuple[str, str]]]) -> bool:
    """Whether the messages begin with one of the prompts, system messages apart."""
    spoken = [alternating([m for m in ms if m[0] != "system"]) for ms in (messages, *prompts)]
    return any(spoken[0][: len(prompt)] == prompt for prompt in spoken[1:])


# --- out -----------------------------------------------------------------------------------------


def to_conversations(row: dict) -> dict:
    """A row of label.py in TRL's conversational format. The likelier answer is the chosen one."""
    texts = (row["a"], row["b"]) if row["p"] >= 0.5 else (row["b"], row["a"])
    chosen, rejected = ([dict(role="assistant", content=text)] for text in texts)
    prompt = talk(*row["turns"], system=row.get("system", ""))
    return dict(prompt=prompt, chosen=chosen, rejected=rejected)


def export():
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("data", type=named, help="comparisons, for example OUT/preferences.jsonl")
    p.add_argument("file", type=named, help="where they are written in TRL's format")
    args = p.parse_args()
    rows = read_preferences(args.data)
    unequal = [row for row in rows if row["a"] != row["b"]]
    decided = [to_conversations(row) for row in unequal if not tied(row["p"])]
    if not decided:
        raise UserError(f"{args.data} holds no decided comparison of two answers; add some")
    write_jsonl(args.file, decided)
    left = (
        f"{len(unequal) - len(decided)} ties and {len(rows) - len(unequal)} pairs of equal answers"
    )
    print(f"{args.file}: {len(decided)} comparisons; {left} are left out")


if __name__ == "__main__":
    main(export)
