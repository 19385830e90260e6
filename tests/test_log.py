"""The log of a training: means over all its steps, and an end to a training that diverges."""

import math

import pytest
import torch

from minicai.files import UserError, append_jsonl, read_jsonl
from minicai.log import TrainingLog, curves


def test_a_row_holds_the_means_of_its_steps(tmp_path, capsys):
    log = TrainingLog(tmp_path / "train_x.jsonl", total=5, every=2)
    for step in range(5):
        log.write(tokens=10, loss=torch.tensor(float(step), requires_grad=True), other=2.0 * step)
    assert read_jsonl(log.path) == [
        dict(step=2, loss=0.5, other=1.0),
        dict(step=4, loss=2.5, other=5.0),
        dict(step=5, loss=4.0, other=8.0),  # the last step ends a row, full or not
    ]
    shown = capsys.readouterr().err
    assert "train_x" in shown and "loss 4.000" in shown and "tokens/s" in shown and "5/5" in shown


def test_a_log_begins_anew_or_goes_on_after_the_saved_step(tmp_path):
    path = tmp_path / "train_x.jsonl"
    append_jsonl(path, [dict(step=step, loss=9.0) for step in (1, 2, 3)])
    TrainingLog(path, total=3, start=2).write(loss=1.0)
    assert [(row["step"], row["loss"]) for row in read_jsonl(path)] == [(1, 9), (2, 9), (3, 1)]
    TrainingLog(path, total=3).write(loss=1.0)
    assert [row["step"] for row in read_jsonl(path)] == [1]
    path.unlink()
    TrainingLog(path, total=3, start=2).write(loss=1.0)  # killed before its first row
    assert [row["step"] for row in read_jsonl(path)] == [3]


@pytest.mark.parametrize("number", [math.nan, math.inf])
def test_a_number_that_is_not_finite_stops_the_training_with_its_step(tmp_path, number):
    log = TrainingLog(tmp_path / "train_x.jsonl", total=3)
    log.write(loss=1.0, kl=0.0)
    with pytest.raises(UserError, match=rf"train_x: kl is {number} at step 2; lower --lr"):
        log.write(loss=1.0, kl=torch.tensor(number))
    assert read_jsonl(log.path) == [dict(step=1, loss=1.0, kl=0.0)]


def test_the_curves_of_a_folder_are_its_logs_with_the_long_ones_averaged(tmp_path):
    append_jsonl(tmp_path / "train_a-b.jsonl", [dict(step=i, loss=i, kl=0.5) for i in (1, 2, 3)])
    long = [dict(step=5 * i, loss=float(i % 3), lr=1.0) for i in range(1, 241)]
    append_jsonl(tmp_path / "train_base.jsonl", long)
    (tmp_path / "train_none.jsonl").touch()
    found = curves(tmp_path)
    assert list(found) == ["a-b", "base"]
    assert found["a-b"] == [dict(step=i, loss=i, kl=0.5) for i in (1, 2, 3)]
    assert found["base"] == [dict(step=30 * i, loss=1.0) for i in range(1, 41)]
    assert len(curves(tmp_path, points=70)["base"]) == 60  # of 4 rows each


def test_a_number_that_not_every_row_has_is_no_curve(tmp_path):
    append_jsonl(tmp_path / "train_x.jsonl", [dict(step=1, loss="1", kl=0), dict(step=2, kl=1)])
    assert curves(tmp_path) == dict(x=[dict(step=1, kl=0), dict(step=2, kl=1)])
