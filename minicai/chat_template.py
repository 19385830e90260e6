"""Chat templates: programs in Jinja that write a conversation. They are read here, never run."""

import json
import re
from collections.abc import Iterator

from minicai.tokenizer import ChatFormat

UNREAD = {  # what a template may write that no ChatFormat can -> how one sees it there
    "a token before the first turn": "bos_token",
    "the date": "date_string|strftime_now",
    "a system text that it keeps elsewhere": r"""set \w*system\w* *= *['"]\w""",
    "thoughts before an answer": "<think>",
}


def unread(template: str, form: ChatFormat) -> list[str]:
    """What the template seems to write, and minicai does not. It is not run, so this is a guess."""
    signs = {what: sign for what, sign in UNREAD.items() if not (form.begin and "bos" in sign)}
    return [what for what, sign in signs.items() if re.search(sign, template)]


def system_text(template: str, form: ChatFormat) -> str:
    """The system text that a chat template writes where a conversation has none; "" without one.

    It is what stands first between the opening of a system turn and the end token, in the text of
    the template (Jinja) or in one of its strings.
    """
    turn = re.compile(f"{re.escape(form.open('system'))}(.+?){re.escape(form.end)}", re.DOTALL)
    return next((found[1] for found in map(turn.search, texts_of(template)) if found), "")


def texts_of(template: str) -> Iterator[str]:
    """What stands outside of the tags of a template, and every string in them, in order."""
    opener = re.compile(r"\{[{%#]")
    inside = re.compile(r"""[}%]\}|'(?:\\.|[^'\\])*+'|"(?:\\.|[^"\\])*+\"""", re.DOTALL)
    comment, start = re.compile(r"#\}"), 0
    while tag := opener.search(template, start):
        yield template[start : tag.start()]
        start = len(template)  # of a tag without an end
        parts = comment if tag[0] == "{#" else inside
        for part in parts.finditer(template, tag.end()):
            if part[0][0] not in "'\"":
                start = part.end()
                break
            yield unescaped(part[0][1:-1])
    yield template[start:]


def unescaped(text: str) -> str:
    """What a string of Jinja stands for."""
    return re.sub(r"\\(.)", lambda found: dict(n="\n", t="\t").get(found[1], found[1]), text)


def chat_template(form: ChatFormat, system: str) -> str:
    """The format in Jinja, the language of transformers."""

    def text(string: str) -> str:
        return json.dumps(string, ensure_ascii=False)

    before, after = form.opening.split("{role}")
    closing = form.end + form.closing
    lines = ["{{ " + text(form.begin) + " }}"]
    if system:
        turn = text(form.open("system") + system + closing)
        lines.append("{% if messages[0]['role'] != 'system' %}{{ " + turn + " }}{% endif %}")
    message = [text(before), "message['role']", text(after), "message['content']", text(closing)]
    lines.append("{% for message in messages %}{{ " + " + ".join(message) + " }}{% endfor %}")
    opening = text(form.open("assistant"))
    lines.append("{% if add_generation_prompt %}{{ " + opening + " }}{% endif %}")
    return "".join(lines)
