"""What the tests share: one smoke run of the whole pipeline, and ways to run a script."""

import shutil
import signal
import subprocess
import sys
import tempfile
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


def pytest_collection_modifyitems(items):
    """Tests that need the smoke run come last: it runs beside the others, on a second core."""
    items.sort(key=lambda item: "smoke" in getattr(item, "fixturenames", ()))


def pytest_collection_finish(session):
    if any("smoke" in getattr(item, "fixturenames", ()) for item in session.items):
        out = Path(tempfile.mkdtemp(prefix="smoke-"))
        command = [sys.executable, str(ROOT / "tests" / "smoke_run.py"), str(out)]
        with open(out / "stderr.txt", "w") as stderr:
            session.config.smoke = out, subprocess.Popen(command, stderr=stderr)


def pytest_unconfigure(config):
    if hasattr(config, "smoke"):
        out, process = config.smoke
        process.kill()
        process.wait()
        shutil.rmtree(out, ignore_errors=True)


@pytest.fixture(scope="session")
def smoke(request) -> Path:
    """OUT of `pipeline.py --preset smoke --rounds 1`, and what it printed in stdout.txt.

    All tests share it, so none may write there: see `copy`.
    """
    out, process = request.config.smoke
    assert process.wait() == 0, (out / "stderr.txt").read_text()[-2000:]
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
