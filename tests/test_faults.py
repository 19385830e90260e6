"""Faults that users of such code have reported, and that no other file tests."""

import io
import json
import os
import shutil
import signal
import sys
import threading
from collections import Counter
from types import SimpleNamespace

import pytest
import torch

import chat
import evaluate
import label
import minicai.files
import minicai.run
import pipeline
import redteam
import revise
import train_base
import train_dpo
import train_ppo
import train_rm
import train_sft
from minicai.exam import Exam
from minicai.files import (
    UserError,
    append_jsonl,
    load_policy,
    read_json,
    read_jsonl,
    save_checkpoint,
    write_json,
    write_jsonl,
)
from minicai.gpt import GPT, GPTConfig
from minicai.reward import RewardModel
from minicai.rows import read_chains
from minicai.run import ROOT, fcntl
from minicai.tokenizer import Tokenizer
from minicai.world.content import World

TRAININGS = [s.train for s in (train_base, train_sft, train_dpo, train_rm, train_ppo)]

# --- inputs are read once, at the start -----------------------------------------------------------


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
@pytest.mark.parametrize(
    "script, data",
    [(train_dpo, "preferences"), (train_rm, "preferences"), (train_sft, "revisions")],
)
def test_data_may_come_from_a_pipe_which_can_be_read_only_once(copy, call, script, data):
    out = copy("base.pt", "sft.pt", f"{data}.jsonl")
    text, pipe = (out / f"{data}.jsonl").read_bytes(), out / "pipe"
    (out / f"{data}.jsonl").unlink()
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_bytes, args=(text,), daemon=True)
    writer.start()
    call(script.train, "--out", out, "--data", pipe, "--name", "piped")
    writer.join(timeout=10)
    assert list(out.glob("*-piped.pt"))


@pytest.mark.parametrize("script", TRAININGS, ids=lambda script: script.__module__)
def test_a_training_whose_inputs_go_after_its_start_ends_well(
    copy, call, monkeypatch, tmp_path, script
):
    """`sft.pt` may be replaced while train_rm.py runs, `--data` be deleted, the world be edited."""
    out, world, constitution = copy(), tmp_path / "world", tmp_path / "constitution.json"
    shutil.copytree(ROOT / "world", world)
    shutil.copy2(ROOT / "constitution.json", constitution)
    monkeypatch.setitem(minicai.run.SIZES, "documents", (60,) * 3)
    monkeypatch.setitem(minicai.run.SIZES, "ppo_updates", (1,) * 3)
    module, read = sys.modules[script.__module__], Counter()

    def counted(function):
        def reading(path, **more):
            read[str(path)] += 1
            return function(path, **more)

        return reading

    def all_gone(*given, **more):
        monkeypatch.undo()
        shutil.rmtree(world)
        constitution.unlink()
        for path in out.iterdir():
            if not path.name.startswith("train_"):
                path.unlink()
        optimizer_step(*given, **more)

    optimizer_step = module.optimizer_step
    monkeypatch.setattr(torch, "load", counted(torch.load))
    monkeypatch.setattr(minicai.files, "read_text", counted(minicai.files.read_text))
    monkeypatch.setattr(module, "optimizer_step", all_gone)
    few = ("--helpful-fraction", 0.1) if script is train_sft.train else ()
    call(script, "--out", out, "--world", world, "--constitution", constitution, *few)
    assert (out / f"{module.__name__.removeprefix('train_')}.pt").exists()
    twice = [path for path, times in read.items() if path.startswith(str(out)) and times > 1]
    assert read and not twice


# --- one owner of a folder ------------------------------------------------------------------------

WRITERS = [*TRAININGS, revise.revise, label.label, redteam.redteam, evaluate.evaluate]


@pytest.mark.skipif(fcntl is None, reason="this system has no file locks")
@pytest.mark.parametrize("script", [*WRITERS, pipeline.pipeline], ids=lambda s: s.__module__)
def test_no_script_writes_where_another_process_does(tmp_path, refuses, script):
    with open(tmp_path / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        lock.write("another.py (process 7)")
        lock.flush()
        mode = ("--mode", "templates") if script is redteam.redteam else ()
        said = refuses(script, "--out", tmp_path, *mode)
    assert "is in use by another.py (process 7); wait for it, or name another --out" in said
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]


@pytest.mark.skipif(fcntl is None, reason="this system has no file locks")
@pytest.mark.parametrize("script, option", [(revise.revise, "--show"), (label.label, "--explain")])
def test_who_only_looks_may_do_so_meanwhile(tmp_path, refuses, script, option):
    with open(tmp_path / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        said = refuses(script, "--out", tmp_path, option, "1")
    assert "does not exist" in said and "in use" not in said


# --- models ---------------------------------------------------------------------------------------


def tiny():
    config = GPTConfig(300, n_layer=1, n_head=1, n_kv_head=1, n_embd=8, n_hidden=8, block_size=200)
    return GPT(config), Tokenizer.train(["some words to learn from"], 300)


def test_a_compiled_model_is_saved_and_loads_again(tmp_path):
    model, tokenizer = tiny()
    save_checkpoint(tmp_path / "a.pt", torch.compile(model), tokenizer, SimpleNamespace())
    again, _ = load_policy(tmp_path / "a.pt")
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters()))


def test_a_model_that_finishes_no_answer_is_called_broken(tmp_path, capsys):
    model, tokenizer = tiny()  # untrained, it never says the end token
    with torch.no_grad():
        model.embed.weight[tokenizer.end] = 0
        model.norm.weight.fill_(-1)
    save_checkpoint(tmp_path / "a.pt", model, tokenizer, SimpleNamespace())
    exam = Exam(World(), 1, 0)
    exam.sets = {name: requests[:1] for name, requests in exam.sets.items()}
    args = SimpleNamespace(device="cpu")
    stage, _ = evaluate.measure_stage(tmp_path / "a.pt", exam, args)
    assert stage["finished"]["k"] == 0 and "It is broken" in capsys.readouterr().out


@pytest.mark.parametrize("script", [revise, label])
def test_a_step_whose_model_finishes_no_answer_is_an_error(copy, refuses, monkeypatch, script):
    def silent(model, tokenizer, conversations, *_):
        return [None] * len(conversations)

    out = copy("base.pt", "sft.pt")
    monkeypatch.setattr(script, "answer", silent)
    monkeypatch.setattr(label, "audit_judge", lambda *_, **__: {})
    monkeypatch.setattr(label, "print_audit", lambda report: None)
    said = refuses(getattr(script, script.__name__), "--out", out)
    assert "base.pt trained?" in said or "sft.pt trained?" in said
    assert not list(out.glob("revisions*")) and not list(out.glob("preferences*"))


def test_the_models_beside_a_moved_checkpoint_may_be_in_out(
    copy, call, refuses, monkeypatch, capsys
):
    out = copy("base.pt", "sft.pt", "rm.pt")
    elsewhere = out.parent / "elsewhere"
    elsewhere.mkdir()
    (out / "sft.pt").rename(elsewhere / "sft.pt")
    options = ("--checkpoint", elsewhere / "sft.pt", "--out", out, "--show-reward")

    def typing(*lines):
        rest = iter(lines)
        monkeypatch.setattr("builtins.input", lambda prompt: next(rest))

    typing("Hello", "/quit")
    call(chat.chat, *options, "--show-critique")
    shown = capsys.readouterr().out
    assert "reward> " in shown and "revision> " in shown
    (out / "base.pt").unlink()
    said = refuses(chat.chat, *options, "--show-critique")
    assert f"{out / 'base.pt'} does not exist" in said
    model, tokenizer = tiny()
    RewardModel(model).save(out / "rm.pt", tokenizer, SimpleNamespace())
    assert "rm.pt has another tokenizer than the others" in refuses(chat.chat, *options)


# --- files ----------------------------------------------------------------------------------------


def test_a_last_row_without_its_newline_is_kept_and_half_a_row_is_cut_off(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_text('{"id": 1}\n{"id": 2}')
    append_jsonl(path, [dict(id=3)])
    assert [row["id"] for row in read_jsonl(path)] == [1, 2, 3]
    path.write_text('{"id": 1}\n{"id": 2, "turns": ["Ho')
    append_jsonl(path, [dict(id=3)])
    assert [row["id"] for row in read_jsonl(path)] == [1, 3]


def test_an_id_that_comes_twice_is_refused_with_its_line(tmp_path):
    path = tmp_path / "revisions.jsonl"
    row = json.dumps(dict(id=7, turns=["Hello"], responses=["No"]))
    path.write_text(f"{row}\n{row}\n")
    with pytest.raises(UserError, match="revisions.jsonl:2 has the id 7 of an earlier line"):
        read_chains(path)


def test_a_chain_with_other_numbers_of_steps_and_responses_is_refused_with_its_line(tmp_path):
    path = tmp_path / "revisions.jsonl"
    row = dict(id=1, turns=["Hello"], responses=["No", "Yes"], principles=["a/0"], critiques=["b"])
    for field, value in (("responses", ["No"]), ("critiques", []), ("principles", ["a/0", "a/1"])):
        write_jsonl(path, [row, row | dict(id=2) | {field: value}])
        with pytest.raises(UserError, match="revisions.jsonl:2 has other numbers of steps"):
            read_chains(path)
    for field, value in (("type", [1]), ("trainable", "no"), ("judge", 2), ("reasons", "x")):
        write_jsonl(path, [row | {field: value}])
        with pytest.raises(UserError, match=f"revisions.jsonl:1: the field '{field}' is not"):
            read_chains(path)


def test_hidden_files_and_other_line_ends_in_a_world_are_no_matter(tmp_path):
    shutil.copytree(World().path, tmp_path / "world")
    (tmp_path / "world" / "._acts.jsonl").write_bytes(b"\x00\x05\x16")
    acts = tmp_path / "world" / "acts.jsonl"
    acts.write_bytes(b"\xef\xbb\xbf" + acts.read_bytes().replace(b"\n", b"\r\n"))
    assert World(tmp_path / "world").acts == World().acts


@pytest.mark.parametrize("end", [EOFError, KeyboardInterrupt])
def test_the_end_of_the_input_and_ctrl_c_leave_the_chat(copy, call, monkeypatch, capsys, end):
    lines = iter(["\ufeff/new", end()])

    def typed(prompt):
        line = next(lines)
        if isinstance(line, BaseException):
            raise line
        return line

    monkeypatch.setattr("builtins.input", typed)
    call(chat.chat, "--out", copy("base.pt"))
    assert capsys.readouterr().out.endswith("/quit leaves\n\n")


def test_an_attack_may_have_a_number_as_its_id(copy, call, capsys):
    out = copy("base.pt", "dpo.pt", "redteam.jsonl")
    rows = read_jsonl(out / "redteam.jsonl")
    write_jsonl(out / "redteam.jsonl", [row | dict(id=i) for i, row in enumerate(rows)])
    target = ("--mode", "templates", "--target", out / "dpo.pt", "--attempts", 4)
    call(redteam.redteam, "--out", out, *target)
    assert len(read_jsonl(out / "redteam.jsonl")) == len(rows) + 4


def test_a_learning_rate_that_no_float_holds_is_refused(refuses, smoke):
    said = refuses(train_dpo.train, "--out", smoke, "--lr", "1e38")
    assert "'1e38' is not a number above 0, at most 1e30" in said


# --- consoles and half characters -----------------------------------------------------------------


@pytest.fixture
def measured(monkeypatch, smoke):
    """An exam that is over at once: stages are those of the smoke run."""
    stages = {stage["name"]: stage for stage in read_json(smoke / "results.json", {})["stages"]}

    def measure_stage(path, exam, args):
        return stages[path.stem], read_jsonl(smoke / "transcripts" / f"{path.stem}.jsonl")

    monkeypatch.setattr(evaluate, "measure_stage", measure_stage)


COMMANDS = [
    (revise.revise, "--show 0"),
    (label.label, "--explain {id}"),
    (redteam.redteam, "--mode monitor --target {out}/dpo.pt"),
    (evaluate.evaluate, ""),
    (train_sft.train, "--helpful-fraction 0"),
    (train_rm.train, ""),
]


@pytest.mark.parametrize("script, options", COMMANDS, ids=[f"{s.__module__}" for s, _ in COMMANDS])
def test_no_text_and_no_console_costs_work_that_is_done(
    copy, call, monkeypatch, tmp_path, measured, script, options
):
    """Half of a surrogate pair in every text, and a console that shows few characters."""
    out = copy().rename(tmp_path / "Ωμέγα 文")
    for name in ("round1", "base", "rm") if script is evaluate.evaluate else ():
        (out / f"{name}.pt").unlink()  # the audits take long
    half = "\ud83d \u65e5"
    for name in ("revisions", "preferences", "redteam"):
        rows = read_jsonl(out / f"{name}.jsonl")
        for row in rows:
            row["turns"] = [f"{half} {text}" for text in row["turns"]]
            row |= {key: f"{row[key]} {half}" for key in ("a", "b") if key in row}
            if "responses" in row:
                row["responses"] = [f"{half} {text}" for text in row["responses"]]
        (out / f"{name}.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    (out / "guard.jsonl").write_text(json.dumps(dict(turns=[f"How? {half}"])) + "\n")
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), "cp1252"))
    monkeypatch.setattr(signal, "signal", lambda *_: None)

    def main():
        minicai.run.main(script)

    main.__module__ = script.__module__
    comparison = read_jsonl(out / "preferences.jsonl")[0]["id"]
    given = [word.format(out=out, id=comparison) for word in options.split()]
    call(main, "--out", out, *given)
    shown = sys.stdout.buffer.getvalue().decode("cp1252")
    assert "?" in shown and half not in shown


def test_what_other_scripts_left_has_any_shape_and_costs_no_result(copy, refuses, measured):
    out = copy("dpo.pt", "judge.json")
    write_json(out / "judge.json", read_json(out / "judge.json", {}) | dict(reliability=[5]))
    said = refuses(evaluate.evaluate, "--out", out)
    assert "results.json is not whole (" in said and "make judge.json, redteam.json and" in said
    assert [stage["name"] for stage in read_json(out / "results.json", {})["stages"]] == ["dpo"]
