"""The shape of the code: who may import whom, how long things may be, how they are described."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SCRIPTS = sorted(ROOT.glob("*.py"))
PACKAGE = sorted((ROOT / "minicai").rglob("*.py"))
EXPERIMENTS = sorted((ROOT / "experiments").glob("[a-z]*.py"))
LAYERS = [  # of minicai. Imports stay in a layer or go up this list.
    "gpt tokenizer device splits metrics svg jailbreak console",
    "files sampler tables chat_template",
    "run log optim rows data answer refusal prompts preferences pretrained hf_folder gguf_file",
    "dpo reward ppo rollout",
    "constitution critique judge guard transcript",
    "world",
    "exam audit report prompt_exam results markup cards page",
]
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names.split()}


def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def imports(path: Path) -> set[str]:
    """Full names of the modules that a file imports, at its head or within a function."""
    found = set()
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def layer(module: str) -> str | None:
    """The part of minicai that a module belongs to."""
    parts = module.split(".")
    return parts[1] if parts[0] == "minicai" and len(parts) > 1 else None


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("path", PACKAGE, ids=name)
def test_imports_go_down(path):
    mine = layer(name(path).removesuffix(".py").replace("/", "."))
    above = {path.stem for path in SCRIPTS} | {"experiments", "tests"}
    for module in imports(path):
        assert module.split(".")[0] not in above, f"the package imports {module}"
        if layer(module) and mine != "__init__":
            assert {mine, layer(module)} <= RANK.keys(), "a new file needs a place in LAYERS"
            assert RANK[layer(module)] <= RANK[mine], f"{mine} may not import {module}"


def test_only_one_file_holds_the_prompt_formats_of_the_method():
    markers = ("CritiqueRequest", "RevisionRequest", "So the response ", "The response declines")
    for path in PACKAGE + SCRIPTS + EXPERIMENTS:
        nodes = list(ast.walk(tree(path)))
        described = [n.value for n in nodes if isinstance(n, ast.Expr)]  # docstrings
        texts = [n for n in nodes if isinstance(n, ast.Constant) and n not in described]
        found = [n.value for n in texts if any(marker in str(n.value) for marker in markers)]
        assert bool(found) == (path.name == "critique.py"), f"{name(path)}: {found}"


@pytest.mark.parametrize(
    "path, limit",
    [*((p, 195) for p in SCRIPTS + EXPERIMENTS), *((p, 250) for p in PACKAGE)],
    ids=lambda value: name(value) if isinstance(value, Path) else "",
)
def test_nothing_is_too_long(path, limit):
    text = path.read_text(encoding="utf-8")
    lines = text.splitlines()
    assert len(lines) <= limit, f"{name(path)} has {len(lines)} lines, {limit} is the limit"
    assert max(map(len, lines), default=0) <= 100
    assert not re.search("fmt: (skip|off)", text)
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.FunctionDef):
            length = node.end_lineno - node.lineno + 1
            assert length <= 60, f"{name(path)}: {node.name} has {length} lines, 60 is the limit"


@pytest.mark.parametrize("path", SCRIPTS, ids=name)
def test_a_script_opens_with_its_commands_and_files(path):
    text = ast.get_docstring(tree(path))
    assert re.search(rf"^    python {path.name}( |$)", text, re.M), "no command"
    assert path.name == "pipeline.py" or re.search(r"^(reads|writes) +\S", text, re.M), "no files"
    *_, guard = [n for n in tree(path).body if isinstance(n, ast.If) and "__main__" in ast.dump(n)]
    assert ast.unparse(guard.body[0]).startswith("main(")


@pytest.mark.parametrize("path", EXPERIMENTS, ids=name)
def test_an_experiment_opens_with_its_command(path):
    assert f"python -m experiments.{path.stem}" in ast.get_docstring(tree(path))


def test_there_are_at_most_69_options():
    options = {
        (path.stem, node.args[0].value)
        for path in SCRIPTS
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Call)
        and ast.unparse(node.func).rpartition(".")[2] in ("add", "add_argument")
        and node.args
        and isinstance(node.args[0], ast.Constant)
    }
    assert 40 < len(options) <= 69, sorted(options)
