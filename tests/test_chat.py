"""A conversation with a checkpoint: what it reads, what it remembers, and the guard's log."""

import os
import re
import subprocess
import sys

import pytest

import chat
from minicai.files import UserError, read_jsonl
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
    options = ["--out", out, "--helpful-refusals", "--guard", "1e-12"]
    shown = talk(["How do I bake bread?", "/quit"], *options)
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


def test_an_answer_that_came_to_no_end_is_not_remembered(talk, copy, monkeypatch):
    read, said = [], iter([None, "Yes."])

    def reply(self, turns, seed):
        read.append(list(turns))
        return next(said)

    monkeypatch.setattr(chat.Chat, "reply", reply)
    shown = talk(["one", "two", "/quit"], "--out", copy("base.pt"))
    assert read == [["one"], ["two"]] and "base> ..." in shown


def test_the_critique_is_by_a_principle_of_the_family(talk, copy, monkeypatch, call):
    families, out = [], copy("base.pt")
    monkeypatch.setattr(chat.Chat, "reply", lambda *_: "Yes.")

    def criticise(base, tokenizer, turns, texts, wordings):
        families.append(wordings[0].family)
        return ["Fine."], texts

    monkeypatch.setattr(chat, "critique_and_revise", criticise)
    talk(["one", "two", "three", "/quit"], "--out", out, "--show-critique", "respect")
    assert families == ["respect"] * 3
    with pytest.raises(UserError, match="no seen wording of kindness"):
        call(chat.chat, "--out", out, "--show-critique", "kindness")


ASKED = ["How do I bake bread?", "And then?", "/new", "Who are you?", "/quit"]


def answers(shown: str, name: str) -> list[str]:
    """What one stage said, with each run of blanks as one."""
    blocks = re.split(r"^(?=\S)", shown, flags=re.M)
    said = [block for block in blocks if block.startswith(f"{name}> ")]
    return [" ".join(block.removeprefix(f"{name}> ").split()) for block in said]


@pytest.mark.parametrize("options", [(), ("--temperature", 1, "--seed", 5)])
def test_every_stage_answers_as_it_does_alone(talk, copy, monkeypatch, options):
    out = copy("base.pt", "sft.pt", "dpo.pt", "round1.pt")
    monkeypatch.setenv("COLUMNS", "70")
    together = talk(ASKED, "--out", out, "--stages", *options)
    labels = {"base": "base", "sft": "SL-CAI", "dpo": "DPO-CAI", "round1": "round 1"}
    for stem, label in labels.items():
        alone = talk(ASKED, "--out", out, "--checkpoint", out / f"{stem}.pt", *options)
        found = answers(together, label)
        assert found == answers(alone, stem) and len(found) == 3 and all(found), stem
        assert f"{label} is {out / stem}.pt" in together
    order = re.findall(r"^(base|SL-CAI|DPO-CAI|round 1)>", together, re.M)
    assert order == [*labels.values()] * 3
    assert "RL-CAI" not in together
    lines = together.splitlines()[1:]
    assert max(map(len, lines)) < 70 and {line[:9] for line in lines} >= {"base>    ", "SL-CAI>  "}


def test_each_stage_of_a_conversation_reads_its_own_answers(talk, copy, monkeypatch):
    read = {}

    def reply(self, turns, seed):
        read.setdefault(self.path.stem, []).append([*turns, seed])
        return f"{self.path.stem} says {len(turns)}."

    monkeypatch.setattr(chat.Chat, "reply", reply)
    talk(["one", "two", "/new", "three", "/quit"], "--out", copy("base.pt", "sft.pt"), "--stages")
    assert read == {
        stem: [["one", 1], ["one", f"{stem} says 1.", "two", 2], ["three", 3]]
        for stem in ("base", "sft")
    }


def test_the_reward_model_scores_the_answer_of_every_stage(talk, copy):
    out = copy("base.pt", "sft.pt", "rm.pt")
    shown = talk(["How do I bake bread?", "/quit"], "--out", out, "--stages", "--show-reward")
    assert len(re.findall(r"reward> [+-]\d+\.\d\d\n", shown)) == 2


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
