"""What the documents promise: their commands can be typed, and the files that they name exist."""

import argparse
import ast
import importlib
import re
import shlex
from functools import cache
from pathlib import Path

import pytest

from minicai.run import ROOT

SCRIPTS = {path.stem: path for path in ROOT.glob("*.py")}
EXPERIMENTS = {
    f"experiments.{path.stem}": path for path in (ROOT / "experiments").glob("[a-z]*.py")
}
BENCHES = {f"bench.{path.stem}": path for path in (ROOT / "bench").glob("*.py")}
OWN_COMMANDS = ("preferences", "pretrained", "refusal")
MODULES = {f"minicai.{name}": ROOT / f"minicai/{name}.py" for name in OWN_COMMANDS}
RUNNABLE = SCRIPTS | EXPERIMENTS | BENCHES | MODULES
CODE = [
    *(SCRIPTS | EXPERIMENTS | BENCHES).values(),
    *(ROOT / "minicai").rglob("*.py"),
    ROOT / "docs" / "update.py",
]
DOCUMENTS = [ROOT / "README.md", *(ROOT / "docs").glob("*.md"), ROOT / "experiments" / "README.md"]


class Stop(Exception):
    pass


@cache
def parser_of(module: str) -> argparse.ArgumentParser | None:
    """The parser of a script, an experiment or a benchmark. None if it takes no options."""

    def stop(parser, *_):
        raise Stop(parser)

    function = re.search(r"^    main\((\w+)\)$", RUNNABLE[module].read_text(), re.M)[1]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(argparse.ArgumentParser, "parse_args", stop)
        try:
            getattr(importlib.import_module(module), function)()
        except Stop as stopped:
            return stopped.args[0]


def docstring(path: Path) -> str:
    return ast.get_docstring(ast.parse(path.read_text())) or ""


def commands(path: Path) -> list[str]:
    """The commands that a document or the head of a module shows."""
    if path.suffix == ".py":
        found = re.findall(r"^    (python .*)$", docstring(path), re.M)
    else:
        text = path.read_text()
        blocks = re.findall(r"^```\n(.*?)^```", text, re.M | re.S)
        found = [line for block in blocks for line in block.splitlines()]
        spans = re.findall(r"`([^`]+)`", re.sub(r"^```.*?^```", "", text, flags=re.M | re.S))
        found += [" ".join(span.split()) for span in spans]
        if path.parent.name == "experiments":  # the table names the experiments alone
            found += [
                f"python -m experiments.{x}"
                for x in re.findall(r"^\| [\d, ]+ \| `(.*?)`", text, re.M)
            ]
    found = (re.sub(r"\s+#.*|[][]", "", text) for text in found)
    found = [text for text in found if text.startswith("python ")]
    return [text for text in found if not re.search(r"\.NAME|SCRIPT\.py|docs/update\.py", text)]


def parse(command: str):
    """Parse a command with the parser of what it runs. Raises SystemExit if that cannot be."""
    words = [re.sub(r"^N$", "1", word) for word in shlex.split(command)][1:]
    if words[:2] in (["-m", "pytest"], ["-m", "venv"]):
        return
    module = words[1] if words[0] == "-m" else words[0].removesuffix(".py")
    rest = words[2 if words[0] == "-m" else 1 :]
    assert module in RUNNABLE, f"{command}: there is no such file"
    if parser_of(module):
        parser_of(module).parse_args(rest)
    else:
        assert not rest, f"{command}: it takes no options"


@pytest.mark.parametrize("path", DOCUMENTS + CODE, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_command_can_be_typed(path, capsys):
    for command in commands(path):
        try:
            parse(command)
        except SystemExit:  # a loss or an advantage of your own has to be written first
            said = capsys.readouterr().err.splitlines()[-1]
            assert "invalid choice: 'mine'" in said, f"{command}: {said}"


def test_the_commands_are_found():
    assert len({command for path in DOCUMENTS + CODE for command in commands(path)}) > 90
    shown = {
        command.split()[2] for path in DOCUMENTS for command in commands(path) if " -m " in command
    }
    assert EXPERIMENTS.keys() <= shown, "an experiment that no document shows"


def test_every_option_that_is_named_with_its_script_exists():
    """In documents, docstrings, comments and messages."""
    texts = {path: path.read_text() for path in DOCUMENTS + CODE}
    count = 0
    for path, text in texts.items():
        for script, rest in re.findall(r"\b(\w+)\.py((?:\s+--[a-z][\w-]*(?: [\w./-]+)?)+)", text):
            for option in re.findall(r"--[\w-]+", rest) if script in SCRIPTS else ():
                count += 1
                known = parser_of(script)._option_string_actions
                assert option in known, f"{path}: {script}.py has no {option}"
    assert count > 100


def names_of_files(text: str) -> set[str]:
    """Files of the project that a text names. Results and files of your own are left out."""
    found = set(re.findall(r"(?<![\w/:.-])[\w./*-]+\.(?:py|md|txt|jsonl?|svg|css)\b", text))
    placeholders = re.compile(r"^(out|OUT|mine)\b|NAME|PRESET|SCRIPT|N\.|\.\.\.")
    found = {name for name in found if not placeholders.search(name)}
    return {name for name in found if "/" in name or name.endswith((".py", ".md", ".txt"))}


@pytest.mark.parametrize("path", DOCUMENTS + CODE, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_file_that_is_named_exists(path):
    text = path.read_text() if path.suffix == ".md" else docstring(path)
    for name in names_of_files(text):
        folders = (ROOT, path.parent, ROOT / "minicai", ROOT / "minicai" / "world")
        places = [folder / name for folder in folders]
        assert any(list(place.parent.glob(place.name)) for place in places), name


def test_the_files_are_found():
    assert len(set().union(*(names_of_files(path.read_text()) for path in DOCUMENTS))) > 50
