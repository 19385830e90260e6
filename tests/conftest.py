"""What the tests share: one smoke run of the whole pipeline, and ways to run a script."""

import runpy
import shutil
import signal
import sys
from contextlib import redirect_stdout
from pathlib import Path

import pytest
import torch

import minicai.run

ROOT = Path(__file__).parent.parent
torch.set_num_threads(1)  # the tests' models are so small that a second thread only waits


def release_locks():
    """Let other processes write to the folders that this one has written to."""
    for file in minicai.run.LOCKED.values():
        file.close()
    minicai.run.LOCKED.clear()


@pytest.fixture(scope="session")
def smoke(tmp_path_factory) -> Path:
    """OUT of `pipeline.py --preset smoke --rounds 1`, and what it printed in stdout.txt.

    All tests share it, so none may write there: see `copy`. Its steps run in this process, as
    `python STEP.py` would run them, because each import of torch takes seconds.
    """
    out = tmp_path_factory.mktemp("smoke")

    def run_script(name: str, args, *own) -> float:
        shared = ("preset", "out", "seed", "device", "world", "constitution")
        options = [*own, *(x for key in shared for x in (f"--{key}", getattr(args, key)))]
        print(f"$ python {name}.py")
        as_main(name, *options)
        return 1.0

    def as_main(name: str, *options):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", [f"{name}.py", *map(str, options)])
            runpy.run_path(str(ROOT / f"{name}.py"), run_name="__main__")

    with pytest.MonkeyPatch.context() as patch, open(out / "stdout.txt", "w") as stdout:
        patch.setattr(minicai.run, "run_script", run_script)
        patch.setattr(signal, "signal", lambda *_: None)
        with redirect_stdout(stdout):
            as_main("pipeline", "--preset", "smoke", "--device", "cpu", "--rounds", 1, "--out", out)
    release_locks()
    return out


@pytest.fixture
def copy(smoke, tmp_path):
    """copy(names...) -> a folder with these files of the smoke run, or with all."""

    def make(*names) -> Path:
        folder = tmp_path / "copy"
        folder.mkdir()
        for name in names or [path.name for path in smoke.iterdir() if path.is_file()]:
            shutil.copy2(smoke / name, folder / name)
        return folder

    return make


@pytest.fixture
def call(monkeypatch):
    """call(script.function, options...): run it in this process with the smoke preset."""

    def run(function, *options):
        common = ["--preset", "smoke", "--device", "cpu"]
        monkeypatch.setattr(sys, "argv", [f"{function.__module__}.py", *common, *map(str, options)])
        try:
            function()
        finally:
            release_locks()

    return run


@pytest.fixture
def refuses(call, capsys, monkeypatch):
    """refuses(script.function, options...) -> the sentence on stderr, after exit code 2."""
    monkeypatch.setattr(signal, "signal", lambda *_: None)

    def run(function, *options) -> str:
        def main():
            minicai.run.main(function)

        main.__module__ = function.__module__
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            call(main, *options)
        said = capsys.readouterr().err
        assert stop.value.code == 2 and "Traceback" not in said
        return said.splitlines()[-1]

    return run
