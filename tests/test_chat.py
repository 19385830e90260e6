"""A conversation with a checkpoint: what it reads, what it remembers, and the guard's log."""

import os
import re
import subprocess
import sys

import pytest

import chat
from minicai.files import read_jsonl
from minicai.guard import REFUSAL
from minicai.run import ROOT


@pytest.fixture
def talk(call, capsys, monkeypatch):
    """talk(lines, options...) -> what is printed."""

    def run(lines: list[str], *options) -> str:
        typed = iter(lines)
        monkeypatch.setattr("builtins.input", lambda prompt: next(typed))
        call(chat.chat, *options)
        return capsys.readouterr().out

    return run


def test_the_newest_stage_answers_and_each_answer_is_scored_and_criticised(talk, smoke):
    shown = talk(
        ["How do I bake bread?", "/quit"], "--out", smoke, "--show-critique", "--show-reward"
    )
    assert "round1.pt; /new forgets" in shown and "round1> " in shown
    assert re.search(r"reward> [+-]\d+\.\d\d\n", shown)
    assert all(f"  {name}> " in shown for name in ("principle", "critique", "revision"))
    assert not (smoke / "guard.jsonl").exists()


def test_a_blocked_exchange_is_refused_and_logged(talk, copy):
    out = copy("base.pt", "sft.pt")
    options = ["--out", out, "--guard", "--helpful-refusals", "--threshold"]
    shown = talk(["How do I bake bread?", "/quit"], *options, "1e-12")
    assert f"sft> {REFUSAL[:-1]}" in shown and "guard> blocked by the input check" in shown
    [row] = read_jsonl(out / "guard.jsonl", ("turns", "response", "judge", "check", "input"))
    assert row["turns"] == ["How do I bake bread?"] and row["check"] == "input"
    assert row["judge"] is None or 1e-12 <= row["judge"] <= 1
    assert (row["model"], row["threshold"]) == ("sft", 1e-12)


def test_the_model_reads_as_much_of_the_conversation_as_fits(talk, copy, monkeypatch):
    read, long = [], "word " * 300

    def reply(self, turns, seed):
        read.append(list(turns))
        return "Yes."

    monkeypatch.setattr(chat.Chat, "reply", reply)
    lines = ["one", "two", "", "/new", "three", long, long * 4, long, "/exit"]
    shown = talk(lines, "--out", copy("base.pt"))
    long = long.strip()
    assert read[:3] == [["one"], ["one", "Yes.", "two"], ["three"]]
    assert read[3] == ["three", "Yes.", long]
    assert read[4] == [long], "it forgets the oldest exchanges"
    assert len(read) == 5 and shown.count("longer than the model can read") == 1


def test_any_console_will_do(copy):
    """Another encoding, bytes that are no text, an end without /quit; and python -O."""
    out = copy("base.pt")
    command = [sys.executable, "-O", ROOT / "chat.py", "--checkpoint", out / "base.pt"]
    console = os.environ | dict(PYTHONIOENCODING="cp1252", LC_ALL="C", PYTHONUTF8="0")
    done = subprocess.run(
        [*command, "--out", out, "--device", "cpu"],
        input="日本 🙂 caf".encode() + b"\xe9\x81?\n",
        env=console,
        capture_output=True,
    )
    assert done.returncode == 0 and done.stderr == b"" and b"base> " in done.stdout, done.stderr
