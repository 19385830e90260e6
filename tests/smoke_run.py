"""Run `pipeline.py --preset smoke --rounds 1 --out OUT` in one process.

    python tests/smoke_run.py OUT

The steps run as `python STEP.py` would run them, but one after the other in this process, because
each import of torch takes seconds. What they print goes to OUT/stdout.txt.
"""

import runpy
import signal
import sys
from contextlib import redirect_stdout
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import minicai.run  # noqa: E402


def as_main(name: str, *options):
    sys.argv = [f"{name}.py", *map(str, options)]
    runpy.run_path(str(ROOT / f"{name}.py"), run_name="__main__")


def run_script(name: str, args, *own) -> float:
    """In place of minicai.run.run_script: no process of its own."""
    shared = ("preset", "out", "seed", "device", "world", "constitution")
    options = [*own, *(x for key in shared for x in (f"--{key}", getattr(args, key)))]
    print(f"$ python {name}.py")
    as_main(name, *options)
    return 1.0


if __name__ == "__main__":
    torch.set_num_threads(1)
    out = Path(sys.argv[1])
    minicai.run.run_script = run_script
    signal.signal = lambda *_: None
    with open(out / "stdout.txt", "w") as stdout, redirect_stdout(stdout):
        as_main("pipeline", "--preset", "smoke", "--device", "cpu", "--rounds", 1, "--out", out)
