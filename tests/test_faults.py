"""Faults that users of such code have reported, and that no other file tests."""

import json
import os
import shutil
import threading
from types import SimpleNamespace

import pytest
import torch

import chat
import evaluate
import redteam
import train_dpo
import train_rm
import train_sft
from minicai.exam import Exam
from minicai.files import (
    UserError,
    append_jsonl,
    load_policy,
    read_jsonl,
    save_checkpoint,
    write_jsonl,
)
from minicai.gpt import GPT, GPTConfig
from minicai.rows import read_chains
from minicai.tokenizer import Tokenizer
from minicai.world.content import World


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
