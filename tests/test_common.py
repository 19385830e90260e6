"""What all scripts share: files survive a kill, and bad input is answered with one sentence."""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from minicai.common import (
    PRESETS,
    UserError,
    above_zero,
    append_jsonl,
    at_least_zero,
    begin_log,
    file_hash,
    finite,
    load_checkpoint,
    load_state,
    main,
    name_part,
    newest_stage,
    parser,
    positive,
    read_json,
    read_jsonl,
    rounds,
    save_checkpoint,
    save_state,
    seed,
    setup,
    share,
    write_json,
)
from minicai.constitution import Constitution
from minicai.gpt import GPT, GPTConfig

ROOT = Path(__file__).parent.parent


def tiny():
    torch.manual_seed(0)
    return GPT(
        GPTConfig(
            vocab_size=20, n_layer=1, n_head=2, n_kv_head=1, n_embd=8, n_hidden=12, block_size=16
        )
    )


# --- JSON lines ---


def test_rows_come_back_as_they_were_written(tmp_path):
    rows = [
        dict(id=1, text="Grüße\n\u2028\x85\x0c🙂"),
        dict(id=2, nested=[{"a": None}]),
    ]  # some of these end a line elsewhere
    append_jsonl(tmp_path / "x.jsonl", rows[:1])
    append_jsonl(tmp_path / "x.jsonl", rows[1:])
    assert read_jsonl(tmp_path / "x.jsonl", required=("id",)) == rows


@pytest.mark.parametrize(
    "text, number",
    [('{"id": 1}\n{"id": \n', 2), ('{"id": 1}\n\n\n[3]\n', 2), ('{"id": 1}\n{"name": 2}\n', 2)],
)
def test_a_bad_line_is_named_by_its_number(tmp_path, text, number):
    (tmp_path / "x.jsonl").write_text(text)
    with pytest.raises(UserError, match=rf"x.jsonl:{number} "):
        read_jsonl(tmp_path / "x.jsonl", required=("id",))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match="gone.jsonl does not exist"):
        read_jsonl(tmp_path / "gone.jsonl")


def test_a_field_that_does_not_fit_is_named_with_its_line(tmp_path):
    append_jsonl(tmp_path / "x.jsonl", [dict(id=1), dict(id=2, p=0.5), dict(id=3, p="high")])
    with pytest.raises(UserError, match="x.jsonl:3: the field 'p' is not a number; fix"):
        read_jsonl(tmp_path / "x.jsonl", fields={"p": (lambda p: type(p) is float, "a number")})


@pytest.mark.parametrize(
    "reader", [read_jsonl, lambda path: read_json(path, {}), Constitution, file_hash]
)
def test_a_folder_is_no_file(tmp_path, reader):
    with pytest.raises(UserError, match="is not a file that can be read"):
        reader(tmp_path)


@pytest.mark.parametrize("reader", [read_jsonl, lambda path: read_json(path, {}), Constitution])
def test_bytes_that_are_no_text_are_named(tmp_path, reader):
    (tmp_path / "x").write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match="x is not UTF-8 text"):
        reader(tmp_path / "x")


PRINCIPLE = dict(
    id="a", family="honesty", wordings=[dict(critique="x", revision="y", comparison="z")]
)


@pytest.mark.parametrize(
    "principles, said",
    [
        (5, "no list 'principles'"),
        ("ab", "no list 'principles'"),
        ([5], "something else than texts"),
        ([PRINCIPLE | dict(wordings=5)], "something else than texts"),
        (
            [PRINCIPLE | dict(wordings=[dict(critique=1, revision="y", comparison="z")])],
            "something else than texts",
        ),
    ],
)
def test_a_constitution_of_another_shape_is_refused(tmp_path, principles, said):
    write_json(tmp_path / "c.json", dict(principles=principles))
    with pytest.raises(UserError, match=f"c.json.* {said}"):
        Constitution(tmp_path / "c.json")


def test_a_line_that_a_kill_left_unfinished_is_cut_off(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text('{"id": 1}\n{"id": 2, "te')
    append_jsonl(path, [dict(id=2), dict(id=3)])
    assert [row["id"] for row in read_jsonl(path)] == [1, 2, 3]


def test_a_last_row_without_a_newline_is_kept(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text('{"id": 1}\n{"id": 2}')
    append_jsonl(path, [dict(id=3)])
    assert path.read_text() == '{"id": 1}\n{"id": 2}\n{"id": 3}\n'


def test_appending_nothing_loses_nothing(tmp_path):
    append_jsonl(tmp_path / "x.jsonl", [dict(id=1)])
    append_jsonl(tmp_path / "x.jsonl", [])
    assert read_jsonl(tmp_path / "x.jsonl") == [dict(id=1)]


def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "x.json"
    write_json(path, dict(a=1))
    with pytest.raises(TypeError):
        write_json(path, dict(a=object()))

    def half(self, text, **_):
        self.write_bytes(text[: len(text) // 2].encode())
        if self == path or fails:
            raise OSError("disk full")
        self.write_bytes(text.encode())

    monkeypatch.setattr(Path, "write_text", half)
    fails, new = True, dict(a=2, b=list(range(100)))
    with pytest.raises(OSError):
        write_json(path, new)
    assert json.loads(path.read_text()) == dict(a=1)
    fails = False
    write_json(path, new)  # the file itself is never opened for writing
    assert json.loads(path.read_text()) == new


# --- checkpoints ---


def test_a_checkpoint_comes_back_bit_for_bit(tmp_path):
    model = tiny()
    save_checkpoint(tmp_path / "a.pt", model, "policy", step=3, optimizer={"state": torch.ones(2)})
    loaded, extra = load_checkpoint(tmp_path / "a.pt")
    assert loaded.config == model.config and not loaded.training
    assert all(
        torch.equal(a, b)
        for a, b in zip(model.state_dict().values(), loaded.state_dict().values(), strict=True)
    )
    assert extra["step"] == 3 and torch.equal(extra["optimizer"]["state"], torch.ones(2))
    assert not list(tmp_path.glob("*.tmp"))


def test_a_checkpoint_that_fails_to_be_written_leaves_the_old_one(tmp_path, monkeypatch):
    save_checkpoint(tmp_path / "a.pt", tiny(), "policy", step=1)

    def half(value, path):
        Path(path).write_bytes(b"PK\x03\x04 half of it")
        raise OSError("disk full")

    monkeypatch.setattr(torch, "save", half)
    with pytest.raises(OSError):
        save_checkpoint(tmp_path / "a.pt", tiny(), "policy", step=2)
    assert load_checkpoint(tmp_path / "a.pt")[1]["step"] == 1


def test_a_full_disk_is_one_sentence_and_leaves_no_half_of_a_checkpoint(tmp_path, monkeypatch):
    def full(value, path):
        Path(path).write_bytes(b"PK\x03\x04 half of it")
        raise RuntimeError(
            "[enforce fail at inline_container.cc:672] . unexpected pos 128 vs 22\nframe #0: c10"
        )

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(
        UserError, match="a.pt cannot be written .*unexpected pos 128 vs 22.*make room"
    ):
        save_checkpoint(tmp_path / "a.pt", tiny(), "policy")
    assert not list(tmp_path.iterdir())


def test_a_log_keeps_the_runs_of_other_names_and_begins_its_own_anew(tmp_path):
    path = tmp_path / "log.jsonl"
    begin_log(path, "a")
    assert read_jsonl(path) == []
    append_jsonl(path, [dict(name="a", step=1), dict(name="b", step=1), dict(name="a", step=2)])
    begin_log(path, "a")
    assert read_jsonl(path) == [dict(name="b", step=1)]


def broken(**changes):
    """A checkpoint with some of its entries replaced, or left out where the value is None."""
    model = tiny()
    value = dict(kind="policy", config=vars(model.config), model=model.state_dict()) | changes
    return {k: v for k, v in value.items() if v is not None}


def short_state():
    return dict(list(tiny().state_dict().items())[1:])


@pytest.mark.parametrize(
    "value",
    [
        broken(kind=None),
        broken(kind="reward"),
        broken(model=short_state()),
        broken(model=None),
        broken(config=None),
        broken(config=dict(vocab_size=20)),
        broken(model=tiny().state_dict() | {"more": torch.ones(1)}),
        [1, 2],
        "text",
    ],
    ids=[
        "no kind",
        "another kind",
        "a weight missing",
        "no weights",
        "no config",
        "half a config",
        "a weight too much",
        "a list",
        "text",
    ],
)
def test_a_file_that_is_no_such_checkpoint_is_refused_with_its_name(tmp_path, value):
    torch.save(value, tmp_path / "bad.pt")
    with pytest.raises(UserError, match="bad.pt"):
        load_checkpoint(tmp_path / "bad.pt")


@pytest.mark.parametrize("content", [b"", b"garbage", b"PK\x03\x04 cut off"])
def test_garbage_is_no_checkpoint(tmp_path, content):
    (tmp_path / "bad.pt").write_bytes(content)
    with pytest.raises(UserError, match="bad.pt is not a checkpoint"):
        load_checkpoint(tmp_path / "bad.pt")


def test_a_missing_checkpoint_is_named(tmp_path):
    with pytest.raises(UserError, match="gone.pt does not exist"):
        load_checkpoint(tmp_path / "gone.pt")


def test_a_checkpoint_cannot_run_code(tmp_path):
    class Evil:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "ran",))

    torch.save(dict(kind="policy", config=Evil()), tmp_path / "bad.pt")
    with pytest.raises(UserError):
        load_checkpoint(tmp_path / "bad.pt")
    assert not (tmp_path / "ran").exists()


def trained():
    """A model and its optimizer after a step."""
    model = tiny()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    model(torch.tensor([[1, 2, 3]])).sum().backward()
    optimizer.step()
    return model, optimizer


def test_an_unfinished_training_goes_on_from_what_it_saved(tmp_path):
    (model, optimizer), fresh = trained(), tiny()
    again = torch.optim.AdamW(fresh.parameters(), lr=0.1)
    save_state(tmp_path / "x.state.pt", model, [optimizer], dict(seed=1), step=7)
    assert load_state(tmp_path / "x.state.pt", fresh, [again], dict(seed=1))["step"] == 7
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), fresh.parameters()))
    assert torch.equal(
        optimizer.state_dict()["state"][0]["exp_avg"], again.state_dict()["state"][0]["exp_avg"]
    )
    with pytest.raises(UserError, match="x.state.pt is of a run with other settings"):
        load_state(tmp_path / "x.state.pt", fresh, [again], dict(seed=2))


@pytest.mark.parametrize(
    "value",
    [
        {},
        [1],
        dict(made_by=1),
        dict(made_by=1, model=short_state(), optimizers=[]),
        dict(made_by=1, model=tiny().state_dict(), optimizers=[]),
        dict(made_by=1, model=tiny().state_dict(), optimizers=[{}]),
    ],
    ids=[
        "nothing",
        "a list",
        "no weights",
        "a weight missing",
        "no optimizer",
        "half an optimizer",
    ],
)
def test_a_damaged_state_is_refused_with_its_name(tmp_path, value):
    torch.save(value, tmp_path / "x.state.pt")
    with pytest.raises(UserError, match="x.state.pt is not the state of such a run"):
        load_state(tmp_path / "x.state.pt", *(lambda m, o: (m, [o]))(*trained()), 1)
    (tmp_path / "x.state.pt").write_bytes(b"PK\x03\x04 cut off")
    with pytest.raises(UserError, match="x.state.pt is not the state of such a run"):
        load_state(tmp_path / "x.state.pt", *(lambda m, o: (m, [o]))(*trained()), 1)


def test_the_newest_stage_is_the_last_round_or_what_it_began_with(tmp_path):
    assert newest_stage(tmp_path) == tmp_path / "base.pt"
    found = []
    for name in ("base", "sft", "ppo", "dpo", "round2", "round10"):
        (tmp_path / f"{name}.pt").touch()
        found.append(newest_stage(tmp_path).stem)
    assert found == ["base", "sft", "sft", "dpo", "round2", "round10"]
    (tmp_path / "round10-old.pt").touch()  # a copy somebody keeps is no round
    assert newest_stage(tmp_path).stem == "round10" and [p.stem for p in rounds(tmp_path)] == [
        "round2",
        "round10",
    ]


def test_a_file_that_cannot_be_written_is_one_sentence(tmp_path, capsys):
    def script():
        append_jsonl(tmp_path / "gone" / "x.jsonl", [])

    with pytest.raises(SystemExit, match="2"):
        main(script)
    said = capsys.readouterr().err
    assert (
        "x.jsonl: No such file or directory; make room or name another --out" in said
        and said.count("\n") == 1
    )


def test_the_hash_of_a_file_follows_its_content(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    assert file_hash(tmp_path / "a") == "ba7816bf8f01"  # FIPS 180-2, appendix B.1


# --- options and errors of the scripts ---


def options(tmp_path, *argv):
    p = parser("test")
    p.add_argument("--prompts", type=int)
    return setup(p, ["--out", str(tmp_path / "out"), *argv])


@pytest.mark.parametrize(
    "type, good, bad",
    [
        (positive, "1 20", "0 -1 1.5 x"),
        (above_zero, "1e-4 2", "0 -1 nan inf 1e999 x"),
        (at_least_zero, "0 0.5", "-0.1 nan inf x"),
        (share, "0 0.99", "-0.1 1 nan x"),
        (finite, "-1 0 2.5", "nan inf -inf x"),
        (seed, "0 2147483647", "-1 2147483648 99999999999999999999999 1.5 x"),
        (name_part, "a beta-0.05 größe_2 round1b", "a/b ../a a\\b * round1 round12 " + 51 * "a"),
    ],
)
def test_an_option_takes_its_range_and_nothing_else(type, good, bad):
    for text in good.split():
        assert str(type(text)) == text or float(type(text)) == float(text)
    for text in [*bad.split(), "", " "]:
        with pytest.raises(argparse.ArgumentTypeError, match="is not a"):
            type(text)


def test_a_preset_fills_in_what_was_not_given(tmp_path):
    args = options(tmp_path, "--preset", "smoke", "--prompts", "7", "--device", "cpu")
    assert args.prompts == 7 and args.n_layer == PRESETS["smoke"]["n_layer"] and args.out.is_dir()


def test_presets_have_the_same_entries():
    assert len({frozenset(sizes) for sizes in PRESETS.values()}) == 1


def test_an_output_folder_that_cannot_be_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="file/out cannot be made a folder"):
        options(tmp_path / "file", "--device", "cpu")


def test_a_device_that_is_not_there_is_named(tmp_path):
    with pytest.raises(UserError, match="--device warp"):
        options(tmp_path, "--device", "warp")


def test_the_seed_fixes_the_generators(tmp_path):
    draws = []
    for text in ("1", "1", "2"):
        options(tmp_path, "--seed", text, "--device", "cpu")
        draws.append(torch.rand(1).item())
    assert draws[0] == draws[1] != draws[2]


def test_a_user_error_is_one_line_and_exit_code_2(capsys):
    def script():
        raise UserError("x.pt does not exist; make it")

    with pytest.raises(SystemExit) as stop:
        main(script)
    error = capsys.readouterr().err
    assert (
        stop.value.code == 2
        and error.count("\n") == 1
        and error.endswith(": x.pt does not exist; make it\n")
    )


def test_other_errors_are_not_hidden():
    with pytest.raises(ZeroDivisionError):
        main(lambda: 1 / 0)


@pytest.mark.parametrize(
    "script, argv, names",
    [("evaluate.py", (), "holds no checkpoint"), ("revise.py", ("--world", "NOWHERE"), "NOWHERE")],
)
def test_a_script_answers_bad_input_with_one_line_and_no_traceback(tmp_path, script, argv, names):
    done = subprocess.run(
        [sys.executable, script, "--out", tmp_path / "empty", "--device", "cpu", *argv],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert done.stderr.startswith(script) and names in done.stderr
