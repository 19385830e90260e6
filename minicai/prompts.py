"""Other people's prompts, read from a file.

The file is CSV, TSV, JSON lines, a JSON list, or plain text with one prompt a line; plain or .gz.
Its columns say what it holds, and not its name:

    columns                    sets that have them               the prompt
    goal, behavior, category   JailbreakBench                    goal
    goal, target               AdvBench                          goal
    behavior,                  HarmBench                         contextstring, if any, and behavior
      semanticcategory
    forbidden_prompt           StrongREJECT                      forbidden_prompt
    transcript                 HH-RLHF, red-team attempts        the first message
    prompt                     XSTest, OR-Bench, TRL             prompt
    chosen, rejected           HH-RLHF, TRL                      all before the last answer
    messages                   TRL                               all before the last answer

The label says what is asked for: harmful, safe, ambiguous or unknown. The column `label` has it;
without one, AdvBench, HarmBench and StrongREJECT are harmful. The harmful and the benign files of
JailbreakBench and of OR-Bench have the same columns, so their label is unknown.

A stable hash of the words of a prompt splits train from test. The file, the order, system messages,
and the spelling in capitals, spaces and punctuation do not matter: a test prompt is a test prompt
in every file.

prompts/natural.jsonl has 240 prompts that were written for this project, as people type them. Types
are those of minicai/world/requests.py, with `everyday` apart.
"""

import re
import unicodedata
from dataclasses import dataclass
from pathlib import Path
from random import Random

from minicai.files import UserError
from minicai.splits import bucket
from minicai.tables import LeftOut, read_rows, usable

SETS = [  # (name, columns that it is known by, label of the whole set); the prompt's column first
    ("JailbreakBench", ("goal", "behavior", "category"), "unknown"),
    ("AdvBench", ("goal", "target"), "harmful"),
    ("HarmBench", ("behavior", "semanticcategory"), "harmful"),
    ("StrongREJECT", ("forbidden_prompt",), "harmful"),
    ("HH-RLHF", ("transcript",), "unknown"),
    ("XSTest", ("prompt",), "unknown"),
    ("HH-RLHF", ("chosen", "rejected"), "unknown"),
    ("TRL", ("messages",), "unknown"),
]
IDS = ("id", "index", "behaviorid")
CATEGORIES = ("type", "category", "semanticcategory")
NATURAL = Path(__file__).resolve().parent.parent / "prompts" / "natural.jsonl"  # our own
LABELS = ("harmful", "safe", "ambiguous", "unknown")
SYNONYMS = dict(unsafe="harmful", toxic="harmful", benign="safe", harmless="safe")
ROLES = {r: r for r in ("system", "user", "assistant")} | dict(
    developer="system", Human="user", Assistant="assistant"
)
HUMAN = re.compile(r"\s*Human:")  # a conversation of HH-RLHF begins so
LIST = re.compile(r"""\s*\[\s*\{\s*['"](?:role|content|from|value)['"]:""")  # a list in a CSV cell
SUFFIXES = r"(?:\.(?:csv|tsv|jsonl?|txt|gz))+$"


@dataclass(frozen=True)
class Prompt:
    id: str  # of the file, else the number of the row
    turns: tuple[str, ...]  # person, assistant, ..., person
    label: str  # one of LABELS
    split: str  # "train" or "test"
    category: str = ""  # the type or category in the file, if it has one

    def row(self) -> dict:
        """What a chain or a comparison says about the prompt. Its type is the label."""
        what = dict(split=self.split, type=self.label, request=self.id)
        return what | dict(turns=[*self.turns], plain=[*self.turns])


def read_prompts(path) -> list[Prompt]:
    """The prompts of a file, each conversation once. The file is read once, so pipes work.

    Rows with an empty prompt are left out and counted. Raises UserError for a file that cannot be
    read, for missing columns, for a bad row, and if no row has a prompt.
    """
    rows = read_rows(path, [columns for _, columns, _ in SETS])
    if not rows:
        raise UserError(f"{path} holds no prompt; name another file")
    column, known = find_set(path, rows[0][1])

    def prompt(number: int, where: str, row: dict) -> Prompt:
        turns, label = turns_of(where, row, column), label_of(where, row, known)
        id, category = first_of(row, IDS, number), first_of(row, CATEGORIES, "")
        split = prompt_split(turns_of(where, row, column, system=False))
        return Prompt(in_a_line(id), turns, label, split, in_a_line(category))

    found, prompts = usable(path, rows, prompt), {}
    for p in found:
        prompts.setdefault(p.turns, p)
    if again := len(found) - len(prompts):
        other = sum(p.label != prompts[p.turns].label for p in found)
        print(f"{path}: {again} prompts occur again, {other} with another label; the first counts")
    return list(prompts.values())


def prompts_of(path, split: str) -> list[Prompt]:
    """The prompts of a file that are in a split, or all with "whole". Raises UserError for none."""
    prompts = read_prompts(path)
    found = [p for p in prompts if split in (p.split, "whole")]
    if not found:
        raise UserError(f"{path} has {len(prompts)} prompts, none in the {split} split; add some")
    return found


def draw_from(path, n: int, rng: Random) -> list[Prompt]:
    """Up to n prompts of the train half of a file."""
    prompts = prompts_of(path, "train")
    drawn = rng.sample(prompts, min(n, len(prompts)))
    print(f"{path}: {len(drawn)} of {len(prompts)} prompts of its train half")
    return drawn


def name_of(path) -> str:
    """The name of a file of prompts, for use in the names of other files."""
    name = Path(path).name
    return re.sub(r"[^\w-]", "_", re.sub(SUFFIXES, "", name, flags=re.IGNORECASE) or name)


def prompt_split(turns: tuple[str, ...]) -> str:
    """The half that a conversation is in. Any test message of the person makes it a test prompt."""
    test = any(bucket(f"asked {words(text)}") >= 50 for text in turns[::2])
    return "test" if test else "train"


def words(text: str) -> str:
    """The words of a text in small letters; the text itself if it has none."""
    plain = unicodedata.normalize("NFKC", text).casefold()
    return " ".join(re.findall(r"\w+", plain)) or text


# --- what a row holds ----------------------------------------------------------------------------


def find_set(path, row: dict) -> tuple[str, str]:
    """The column with the prompts, and the label of the whole set. `row` is the first one."""
    for _, columns, label in SETS:
        if set(columns) <= row.keys():
            return columns[0], label
    found = f"{path} has the columns {', '.join(row) or 'of none'}"
    for name, (first, *others), _ in SETS:
        if first in row:
            missing = " and ".join(column for column in others if column not in row)
            raise UserError(
                f"{found}, and lacks {missing} of {name}; add it, or rename {first} to prompt"
            )
    raise UserError(f"{found}, and none is named prompt; rename the one with the prompts")


def first_of(row: dict, names: tuple[str, ...], default) -> str:
    """The first of these columns that has a value."""
    values = [row[name] for name in names if row.get(name) not in (None, "")]
    return clean(str([*values, default][0]))


def label_of(where: str, row: dict, known: str) -> str:
    """The label in the row; without one, what the whole set is known to be."""
    label = first_of(row, ("label",), known).lower()
    label = SYNONYMS.get(label, label)
    if label not in LABELS:
        allowed = ", ".join((*LABELS, *SYNONYMS))
        raise UserError(f"{where}: the label {label!r} is none of {allowed}; change it")
    return label


def turns_of(where: str, row: dict, column: str, system=True) -> tuple[str, ...]:
    """The conversation in a column of the row, up to the last message of the person.

    With system=False it lacks the system messages.
    """
    if column not in row:
        raise UserError(f"{where} has no field {column!r}; add it or delete the row")
    if row[column] in (None, []):
        raise LeftOut(f"{where}: the field {column!r} is empty; fix it or delete the row")
    messages = messages_of(row[column], bare=column not in ("transcript", "chosen", "messages"))
    if messages is None:
        raise UserError(
            f"{where}: the field {column!r} is not a conversation, which is a text "
            "'Human: ... Assistant: ...' or a list of {'role', 'content'}; fix it"
        )
    if context := column == "behavior" and first_of(row, ("contextstring",), ""):
        messages.insert(0, ("user", f"{context}\n\n---"))  # as HarmBench asks it
    # A system message becomes a part of the person's first one, as in many chat formats.
    kept = [(role, text) for role, text in messages if system or role != "system"]
    turns = alternating([("user" if role == "system" else role, text) for role, text in kept])
    if not turns or turns[0][0] != "user":
        found = "is empty" if not turns else "does not begin with the person"
        raise LeftOut(f"{where}: the field {column!r} {found}; fix it or delete the row")
    texts = tuple(text for _, text in turns)
    if column == "transcript":
        return texts[:1]
    return texts if turns[-1][0] == "user" else texts[:-1]


def messages_of(value, bare: bool) -> list[tuple[str, str]] | None:
    """(role, text) of each message; None if the value is no conversation.

    A text is one in the style of HH-RLHF ("Human: ..." and "Assistant: ..." with empty lines
    between). With `bare`, another text is one message of the person, unless it spells a list.
    """
    if isinstance(value, str):
        value = value.replace("\r\n", "\n")
        for gap in ("\n\n",) if bare else ("\n\n", "\n"):  # some copies lack the empty lines
            parts = re.split(rf"(?:^|{gap})\s*(Human|Assistant):", value)[1:]
            if HUMAN.match(value) and "Assistant" in parts[::2]:
                return [(ROLES[name], text) for name, text in zip(parts[::2], parts[1::2])]
        if HUMAN.match(value) and (not bare or value.startswith("\n\n")):
            return [("user", HUMAN.sub("", value, count=1))]
        return [("user", value)] if bare and not LIST.match(value) else None
    try:
        found = [(ROLES[message["role"]], text_of(message["content"])) for message in value]
    except (KeyError, TypeError):
        return None
    return found if all(isinstance(text, str) for _, text in found) else None


def text_of(content):
    """The content of a message; of a list of parts, their texts."""
    return "\n\n".join(part["text"] for part in content) if isinstance(content, list) else content


def alternating(messages: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """The messages without empty ones. Messages of one speaker in a row become one."""
    turns = []
    for role, text in messages:
        text = clean(text)
        if turns and turns[-1][0] == role and text:
            turns[-1] = role, f"{turns[-1][1]}\n\n{text}"
        elif text:
            turns.append((role, text))
    return turns


def clean(text: str) -> str:
    """Without space around it. Half of a surrogate pair becomes a question mark."""
    return text.encode("utf-8", "replace").decode().strip()


def in_a_line(text: str) -> str:
    """Without line breaks and control characters."""
    return "".join(c for c in " ".join(text.split()) if c.isprintable())
