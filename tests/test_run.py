"""Options, presets, the lock, streams, and scripts that run scripts."""

import argparse
import io
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from tqdm import tqdm

import minicai.run as run
from minicai.files import UserError, append_jsonl, write_json

ROOT = Path(__file__).parent.parent

# --- options -------------------------------------------------------------------------------------


def options(tmp_path, *argv, **more):
    p = run.parser("test")
    p.add_argument("--requests", type=int, help="number of requests")
    return run.setup(p, ["--out", str(tmp_path / "out"), "--device", "cpu", *argv], **more)


@pytest.mark.parametrize(
    "type, good, bad",
    [
        (run.positive, "1 20", "0 -1 1.5 x"),
        (run.not_negative, "0 7", "-1 1.5 x"),
        (run.above_zero, "1e-4 2", "0 -1 nan inf 1e999 x"),
        (run.at_least_zero, "0 0.5", "-0.1 nan inf x"),
        (run.share, "0 0.99", "-0.1 1 nan x"),
        (run.seed, "0 2147483647", f"-1 2147483648 {'9' * 5000} 1.5 x"),
        (run.name_part, "a beta-0.05 round1b _2", f"a/b ../a a\\b * ä round1 round12 {'a' * 51}"),
    ],
)
def test_an_option_takes_its_range_and_nothing_else(type, good, bad):
    for text in good.split():
        assert str(type(text)) == text or float(type(text)) == float(text)
    for text in [*bad.split(), "", " "]:
        with pytest.raises(argparse.ArgumentTypeError, match="is not"):
            type(text)


def test_a_preset_fills_in_what_was_not_given(tmp_path):
    args = options(tmp_path, "--preset", "smoke", "--requests", "7")
    assert args.requests == 7 and args.n_layer == run.SIZES["n_layer"][0] and args.out.is_dir()
    assert options(tmp_path).requests == run.SIZES["requests"][run.PRESETS.index("quick")]


def test_options_that_are_not_given_are_those_that_the_folder_was_made_with(tmp_path):
    args = options(tmp_path)
    usual = (0, run.ROOT / "world", run.ROOT / "constitution.json")
    assert (args.seed, args.world, args.constitution) == usual
    made = dict(preset="smoke", seed=7, world="../mine", constitution="c.json")
    write_json(tmp_path / "out" / "pipeline.json", dict(settings=made))
    args = options(tmp_path)
    assert (args.preset, args.seed) == ("smoke", 7)
    assert (args.world, args.constitution) == (run.ROOT / "../mine", run.ROOT / "c.json")
    args = options(tmp_path, "--seed", "1", "--world", "w", "--constitution", "d.json")
    assert (args.seed, args.world, args.constitution) == (1, Path("w"), "d.json")
    write_json(tmp_path / "out" / "pipeline.json", dict(settings=dict(seed="x", world=3)))
    assert options(tmp_path).seed == 0 and options(tmp_path).world == run.ROOT / "world"


def test_every_preset_has_every_size():
    assert {len(sizes) for sizes in run.SIZES.values()} == {len(run.PRESETS)}


@pytest.mark.parametrize("option", ["--constitution", "--world"])
def test_an_empty_name_is_refused(tmp_path, capsys, option):
    """As in --constitution "$UNSET", which must not mean the usual one."""
    with pytest.raises(SystemExit, match="2"):
        options(tmp_path, option, "")
    assert f"argument {option}: '' is not a name" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--no-such-option", "--prompt"])  # none is guessed from a part
def test_an_unknown_option_is_refused(tmp_path, capsys, option):
    with pytest.raises(SystemExit, match="2"):
        options(tmp_path, option, "1")
    assert f"unrecognized arguments: {option}" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_an_output_folder_that_cannot_be_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="file/out cannot be made a folder .*; name another"):
        options(tmp_path / "file")


def test_a_device_that_is_not_there_is_named(tmp_path):
    with pytest.raises(UserError, match="--device warp cannot be used here.*; try --device cpu"):
        options(tmp_path, "--device", "warp")


def test_the_seed_fixes_the_generators(tmp_path):
    draws = []
    for seed in ("1", "1", "2"):
        options(tmp_path, "--seed", seed)
        draws.append(torch.rand(1).item())
    assert draws[0] == draws[1] != draws[2]


# --- how a script ends ---------------------------------------------------------------------------


@pytest.fixture
def ends(monkeypatch, capsys):
    """ends(function) -> (exit code, stderr) of a script with this function."""
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    monkeypatch.setattr(sys, "argv", ["some/script.py"])

    def end(function):
        with pytest.raises(SystemExit) as stop:
            run.main(function)
        return stop.value.code, capsys.readouterr().err

    return end


def raise_(error):
    raise error


def test_bad_input_and_files_that_cannot_be_written_are_one_sentence(tmp_path, ends):
    wrong = UserError("x.pt does not exist; make it")
    assert ends(lambda: raise_(wrong)) == (2, "script.py: x.pt does not exist; make it\n")
    code, said = ends(lambda: append_jsonl(tmp_path / "gone" / "x.jsonl", []))
    assert code == 2 and said == (
        f"script.py: {tmp_path}/gone/x.jsonl: No such file or directory; "
        "change that or name another --out\n"
    )
    full = OSError(28, "No space left on device", "x.pt")
    said = "script.py: x.pt: No space left on device; make room or name another --out\n"
    assert ends(lambda: raise_(full)) == (2, said)


def test_the_sentence_is_the_last_line_whatever_progress_bars_were_open(ends):
    def script():
        bar = tqdm(total=3)
        bar.update()
        raise UserError("x.pt does not exist; make it")

    *bars, said, end = ends(script)[1].split("\n")
    assert said == "script.py: x.pt does not exist; make it" and end == "" and "1/3" in bars[-1]


def test_ctrl_c_is_one_sentence(ends):
    code, said = ends(lambda: raise_(KeyboardInterrupt()))
    assert code == 130 and said == "\nstopped; finished files are on disk\n"


def test_mistakes_in_the_code_are_not_hidden(ends):
    with pytest.raises(ZeroDivisionError):
        ends(lambda: 1 / 0)


# --- the lock ------------------------------------------------------------------------------------


@pytest.fixture
def in_use(monkeypatch, tmp_path):
    """A folder that train_x.py, another process, writes to: (its arguments, the lock file)."""
    monkeypatch.setattr(run, "LOCKED", {})
    monkeypatch.setattr(sys, "argv", ["some/train_x.py"])
    args = options(tmp_path)
    [file] = run.LOCKED.values()
    yield args, file
    file.close()


def test_a_second_writer_in_a_folder_gets_one_sentence_that_names_the_first(tmp_path, in_use):
    options(tmp_path)  # the owner itself may go on
    run.LOCKED.clear()
    owner = rf"out is in use by train_x.py \(process {os.getpid()}\)"
    with pytest.raises(UserError, match=f"{owner}; wait for it, or name another --out"):
        options(tmp_path)
    options(tmp_path, writes=False)  # to read is free
    options(tmp_path, "--out", str(tmp_path / "other"))
    in_use[1].close()
    options(tmp_path)


def test_a_child_of_the_owner_may_write_and_owns_the_folder_too(tmp_path, monkeypatch, in_use):
    args, file = in_use
    lock, fd = args.out.resolve() / ".lock", file.fileno()
    monkeypatch.setattr(run, "ROOT", tmp_path)
    (tmp_path / "step.py").write_text(
        f"import os; assert os.path.samestat(os.fstat({fd}), os.stat({str(lock)!r}))\n"
        f"assert os.environ[{run.OWNER!r}] == {str(lock.parent)!r}"
    )
    run.run_script("step", args)
    run.LOCKED.clear()  # as in the child
    monkeypatch.setenv(run.OWNER, str(lock.parent))
    options(tmp_path)
    monkeypatch.setenv(run.OWNER, str(tmp_path / "other"))
    with pytest.raises(UserError, match="is in use by"):
        options(tmp_path)


# --- scripts that run scripts --------------------------------------------------------------------


def test_a_script_gets_the_shared_options_and_its_own(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(run, "ROOT", tmp_path)
    args = options(tmp_path, "--preset", "smoke", "--seed", "5", writes=False)
    (tmp_path / "step.py").write_text("import sys; print(sys.argv[1:])")
    run.run_script("step", args, "--round", 2)
    out, wanted = capfd.readouterr().out, ["--round", "2", "--preset", "smoke"]
    wanted += ["--out", str(args.out), "--seed", "5", "--device", "cpu"]
    wanted += ["--world", str(args.world), "--constitution", str(args.constitution)]
    assert f"$ python step.py {' '.join(wanted)}\n" in out and f"{wanted}\n" in out
    (tmp_path / "step.py").write_text("raise SystemExit(7)")
    with pytest.raises(UserError, match="step.py ended with exit code 7; fix what it says above"):
        run.run_script("step", args)


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP", "SIGINT"])
def test_ending_a_script_ends_its_step_and_waits_for_it(tmp_path, name):
    """SIGINT goes to both, as Ctrl-C in a terminal does; only the script that hears it says so."""
    number = getattr(signal, name, None) or pytest.skip(f"this system has no {name}")
    (tmp_path / "outer.py").write_text(
        f"import pathlib, signal, sys; sys.path.insert(0, {str(ROOT)!r})\n"
        # A shell's background jobs ignore SIGINT, and nohup's ignore SIGHUP.
        f"signal.signal(signal.{name}, signal.SIG_DFL)\n"
        "import minicai.run as run\n"
        "run.ROOT = pathlib.Path(__file__).parent\n"
        "run.main(lambda: run.run_script('inner', run.setup(run.parser('A test'))))\n"
    )
    (tmp_path / "inner.py").write_text(
        "import pathlib, signal, sys, time\n"
        "folder = pathlib.Path(__file__).parent\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))\n"
        "(folder / 'started').touch()\n"
        "try: time.sleep(60)\n"
        "finally: time.sleep(1.5), (folder / 'ended').touch()\n"
    )
    command = [sys.executable, tmp_path / "outer.py", "--out", tmp_path, "--device", "cpu"]
    pipes = dict(stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    outer = subprocess.Popen(command, start_new_session=True, **pipes)
    while not (tmp_path / "started").exists():
        assert outer.poll() is None, "it ended before its step began"
        time.sleep(0.05)
    os.killpg(outer.pid, number) if name == "SIGINT" else outer.send_signal(number)
    assert outer.wait(timeout=30) == 128 + number and (tmp_path / "ended").exists()
    said = outer.communicate()[1]
    assert said == ("\nstopped; finished files are on disk\n" if name == "SIGINT" else "")


# --- streams -------------------------------------------------------------------------------------


def test_texts_that_the_console_cannot_show_become_question_marks(monkeypatch):
    shown = io.BytesIO()
    for name, stream in (("stdout", shown), ("stdin", io.BytesIO(b"caf\xe9"))):
        code = "cp1252" if name == "stdout" else "utf-8"
        monkeypatch.setattr(sys, name, io.TextIOWrapper(stream, code))
    run.main(lambda: print(f"\u65e5 {input()}"))
    assert shown.getvalue() == b"? caf?\n"


def test_a_missing_stream_is_empty(monkeypatch):
    for name in ("stdin", "stdout", "stderr"):
        monkeypatch.setattr(sys, name, None)
    run.main(lambda: print(sys.stdin.read(), file=sys.stderr))


def test_a_reader_that_has_seen_enough_ends_the_script_quietly(monkeypatch, ends):
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as stdout:
        monkeypatch.setattr(sys, "stdout", stdout)
        assert ends(lambda: print("text")) == (1, "")
