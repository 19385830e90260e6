"""Files survive a kill, checkpoints stand alone, and bad ones end in one sentence."""

import math
import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from minicai import files
from minicai.constitution import Constitution
from minicai.files import (
    UserError,
    append_jsonl,
    load_policy,
    read_json,
    read_jsonl,
    write_jsonl,
    write_text,
)
from minicai.gpt import GPT, GPTConfig
from minicai.reward import RewardModel
from minicai.tokenizer import Tokenizer

TOKENIZER = Tokenizer.train(["some text to learn from"], 280)


def tiny() -> GPT:
    torch.manual_seed(0)
    return GPT(GPTConfig(TOKENIZER.vocab_size, 1, 2, 1, 8, 12, 16))


def save(path, model=None, **extra):
    options = SimpleNamespace(seed=3, out=Path("out"), name=None)
    files.save_checkpoint(path, model or tiny(), TOKENIZER, options, **extra)


# --- JSON ----------------------------------------------------------------------------------------


def test_rows_come_back_as_they_were_written(tmp_path):
    # Some of these characters end a line elsewhere.
    rows = [dict(id=1, text="Grüße\n\u2028\x85\x0c🙂"), dict(id=2, nested=[{"a": None}])]
    for write in (append_jsonl, write_jsonl):
        write(tmp_path / "x.jsonl", rows)
        assert read_jsonl(tmp_path / "x.jsonl", required=("id",)) == rows


@pytest.mark.parametrize(
    "content, rows",
    [
        (b'\xef\xbb\xbf{"id": 1}\r\n{"id": 2}\r\n', [dict(id=1), dict(id=2)]),
        (b'{"id": 1}\n{"id": 2}', [dict(id=1), dict(id=2)]),
        (b'{"id": "\\ud83d"}\n', [dict(id="?")]),
        (b"", []),
    ],
    ids=("BOM, CRLF", "no last newline", "surrogate", "empty"),
)
def test_files_of_other_editors_are_read_and_written_back(tmp_path, content, rows):
    (tmp_path / "x.jsonl").write_bytes(content)
    found = read_jsonl(tmp_path / "x.jsonl")
    for write in (write_jsonl, append_jsonl):
        write(tmp_path / write.__name__, found)
        assert read_jsonl(tmp_path / write.__name__) == rows


@pytest.mark.parametrize(
    "line, words",
    [
        ('{"id": ', "is not valid JSON"),
        ("", "is not valid JSON"),
        ("[3]", "is not a JSON object"),
        ('{"name": 2}', "has no field 'id'"),
        ('{"id": NaN}', "is not valid JSON .NaN is no number"),
        ('{"id": -Infinity}', "is not valid JSON"),
        ('{"id": 1e400}', "is not valid JSON .1e400 is no number"),
        (f'{{"id": {"9" * 5000}}}', "is not valid JSON"),
        (f'{{"id": {"[" * 20_000}{"]" * 20_000}}}', "is not valid JSON"),
        ('{"id": 1, "p": "high"}', ": the field 'p' is not a number; fix"),
    ],
    ids=range(10),
)
def test_a_bad_line_is_named_by_its_number(tmp_path, line, words):
    (tmp_path / "x.jsonl").write_text('{"id": 1, "p": 0.5}\n' + line + "\n")
    with pytest.raises(UserError, match=f"x.jsonl:2 ?{words}"):
        read_jsonl(tmp_path / "x.jsonl", ("id",), {"p": (lambda p: p == 0.5, "a number")})


@pytest.mark.parametrize("reader", [read_jsonl, lambda path: read_json(path, {}), Constitution])
def test_what_is_no_text_file_is_named(tmp_path, reader):
    (tmp_path / "x").write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match="x is not UTF-8 text"):
        reader(tmp_path / "x")
    with pytest.raises(UserError, match="cannot be read"):
        reader(tmp_path)  # a folder


def test_a_missing_file_is_named_or_means_the_default(tmp_path):
    with pytest.raises(UserError, match="gone.jsonl does not exist; run the step that writes it"):
        read_jsonl(tmp_path / "gone.jsonl")
    assert read_json(tmp_path / "gone.json", dict(a=1)) == dict(a=1)
    (tmp_path / "list.json").write_text("[1]")
    with pytest.raises(UserError, match="list.json is not a JSON object"):
        read_json(tmp_path / "list.json", {})


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_json_never_holds_a_number_that_is_not_finite(tmp_path, number):
    for write in (files.write_json, write_jsonl, append_jsonl):
        (tmp_path / "x").write_text("{}\n")
        with pytest.raises(ValueError):
            write(tmp_path / "x", [dict(a=1), dict(a=[number])])
        assert (tmp_path / "x").read_text() == "{}\n"


def test_half_a_line_that_a_killed_process_left_is_cut_off(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text('{"id": 1}\n{"id": 2, "te')
    append_jsonl(path, [dict(id=2), dict(id=3)])
    append_jsonl(path, [])
    assert [row["id"] for row in read_jsonl(path)] == [1, 2, 3]


def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    path, write_bytes = tmp_path / "x", Path.write_bytes

    def full(self, data):
        write_bytes(self, data[: len(data) // 2])
        raise OSError("disk full")

    for write in (files.write_json, write_jsonl):
        write(path, [dict(a=1)])
        old = path.read_bytes()
        with monkeypatch.context() as patch, pytest.raises(OSError, match="disk full"):
            patch.setattr(Path, "write_bytes", full)
            write(path, [dict(a=2)])
        assert path.read_bytes() == old
        write(path, [dict(a=2)])
        assert path.read_bytes() != old and list(tmp_path.iterdir()) == [path]


def test_a_newer_source_is_one_sentence_and_no_more(tmp_path, capsys):
    made, old, new = (tmp_path / name for name in ("made.jsonl", "old.pt", "new.pt"))
    for path, time in ((made, 2), (old, 1), (new, 3)):
        path.touch()
        os.utime(path, (time, time))
    files.warn_if_newer(made, old, tmp_path / "gone.pt", remedy="run it again")
    files.warn_if_newer(tmp_path / "gone.jsonl", old, remedy="run it again")
    assert capsys.readouterr().err == ""
    files.warn_if_newer(made, old, new, remedy="run revise.py again")
    assert capsys.readouterr().err == (
        f"{made} may be out of date: new.pt, from which it was made, is newer; "
        "run revise.py again if that was not meant\n"
    )


# --- checkpoints ---------------------------------------------------------------------------------


def test_a_checkpoint_comes_back_bit_for_bit_in_any_folder(tmp_path):
    model = tiny()
    (tmp_path / "there").mkdir()
    save(tmp_path / "a.pt", model, step=3, optimizer={"state": torch.ones(2)})
    moved = (tmp_path / "a.pt").rename(tmp_path / "there" / "b.pt")
    loaded, tokenizer, extra = files.load_checkpoint(moved)
    assert loaded.config == model.config and not loaded.training
    pairs = zip(model.state_dict().values(), loaded.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    assert tokenizer.to_json() == TOKENIZER.to_json()
    assert extra["step"] == 3 and torch.equal(extra["optimizer"]["state"], torch.ones(2))
    assert extra["options"] == dict(seed=3, out="out", name=None)


def test_a_full_disk_is_one_sentence_and_leaves_the_old_checkpoint(tmp_path, monkeypatch):
    save(tmp_path / "a.pt", step=1)

    def full(value, path):
        Path(path).write_bytes(b"PK\x03\x04 half of it")
        raise RuntimeError("[enforce fail] . unexpected pos 128 vs 22\nframe #0: c10")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(UserError, match="a.pt cannot be written .*pos 128 vs 22.*make room"):
        save(tmp_path / "a.pt", step=2)
    assert files.load_checkpoint(tmp_path / "a.pt")[2]["step"] == 1
    assert [path.name for path in tmp_path.iterdir()] == ["a.pt"]


@pytest.mark.parametrize("kind", ["policy", "reward"])
@pytest.mark.parametrize("number", [math.nan, math.inf])
def test_weights_that_are_not_finite_are_neither_saved_nor_loaded(tmp_path, kind, number):
    path, model, options = tmp_path / "a.pt", RewardModel(tiny()), SimpleNamespace()

    def write():
        if kind == "policy":
            save(path, model.gpt)
        else:
            model.save(path, TOKENIZER, options)

    write()
    old = path.read_bytes()
    place = model.gpt.embed.weight if kind == "policy" else model.score.bias
    place.data.view(-1)[0] = number
    with pytest.raises(UserError, match="a.pt is not written: its weights are not finite; lower"):
        write()
    assert path.read_bytes() == old
    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setattr(torch.Tensor, "isfinite", lambda self: torch.ones(1, dtype=torch.bool))
        write()
    with pytest.raises(UserError, match="a.pt holds weights that are not finite; train it again"):
        load_policy(path) if kind == "policy" else RewardModel.load(path)


WEIGHTS = tiny().state_dict()
BROKEN = [
    *(dict(kind=kind) for kind in (None, "reward")),
    *(dict(config=config) for config in (None, dict(vocab_size=20))),
    *(dict(tokenizer=text) for text in (None, "{}")),
    dict(model=None),
    dict(model=dict([*WEIGHTS.items()][1:])),
    dict(model=WEIGHTS | {"more": torch.ones(1)}),
    *([1, 2], "text", b"", b"garbage", b"PK\x03\x04 cut off"),
]


@pytest.mark.parametrize("value", BROKEN, ids=range(len(BROKEN)))
def test_a_file_that_is_no_such_checkpoint_is_refused_with_its_name(tmp_path, value):
    if isinstance(value, bytes):
        (tmp_path / "bad.pt").write_bytes(value)
    else:
        if isinstance(value, dict):
            whole = dict(kind="policy", config=vars(tiny().config), model=WEIGHTS)
            whole |= dict(tokenizer=TOKENIZER.to_json()) | value
            value = {key: part for key, part in whole.items() if part is not None}
        torch.save(value, tmp_path / "bad.pt")
    with pytest.raises(UserError, match="bad.pt (is not a checkpoint|holds a|does not fit)"):
        load_policy(tmp_path / "bad.pt")


def test_a_checkpoint_cannot_run_code(tmp_path):
    class Evil:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "ran",))

    torch.save(dict(kind="policy", config=Evil()), tmp_path / "bad.pt")
    with pytest.raises(UserError):
        files.load_state(tmp_path / "bad.pt")
    assert not (tmp_path / "ran").exists()


def test_the_stages_are_in_the_order_of_the_pipeline(tmp_path):
    assert files.newest_stage(tmp_path) == tmp_path / "base.pt" and files.stages(tmp_path) == []
    newest = []
    for name in ("base", "sft", "ppo", "dpo", "round10", "round2"):
        (tmp_path / f"{name}.pt").touch()
        newest.append(files.newest_stage(tmp_path).stem)
    assert newest == ["base", "sft", "sft", "dpo", "round10", "round10"]
    for other in ("round10-old.pt", "round².pt", "._round11.pt"):  # copies are no rounds
        (tmp_path / other).touch()
    names = [path.stem for path in files.stages(tmp_path)]
    assert names == ["base", "sft", "dpo", "ppo", "round2", "round10"]
    before = [files.stage_before(tmp_path, n).stem for n in (1, 2, 11)]
    assert before == ["dpo", "round1", "round10"]


def test_half_a_surrogate_pair_in_a_text_is_written_as_a_question_mark(tmp_path):
    write_text(tmp_path / "page.html", "caf\u00e9 \ud83d")
    assert (tmp_path / "page.html").read_bytes() == "caf\u00e9 ?\n".encode()
