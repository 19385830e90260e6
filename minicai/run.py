"""Plumbing that every script shares: options, presets, the lock.

Nothing here is about Constitutional AI. A script reads as

    args = setup(parser(__doc__))
    model, tokenizer = load_policy(args.out / "base.pt", args.device)
    ...
    save_checkpoint(args.out / "sft.pt", model, tokenizer, options=args)
"""

import argparse
import errno
import math
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import torch

from minicai.console import catch_signals, prepare_streams
from minicai.files import UserError, read_json

try:
    import fcntl
except ImportError:  # Windows has no such locks, and goes without
    fcntl = None

PRESETS = ("smoke", "quick", "full", "real")
SIZES = {  # by preset; tokens count padding and prompts too; a pretrained model has its own shape
    "world_share": (1.0, 0.45, 1.0, 0.5),
    "more_acts": (False, False, False, True),
    "n_layer": (2, 4, 4, 0),
    "n_head": (1, 5, 4, 0),
    "n_embd": (64, 160, 256, 0),
    "n_hidden": (160, 432, 704, 0),
    "vocab_size": (1024, 2048, 2048, 0),
    "documents": (2000, 24_000, 80_000, 8000),
    "batch_tokens": (1024, 2048, 2048, 2048),
    "base_lr": (0.015, 0.02, 0.015, 3e-4),
    "requests": (48, 250, 1200, 200),
    "sft_epochs": (1, 3, 3, 2),
    "sft_lr": (1e-3, 1e-3, 1e-3, 1e-4),
    "comparisons": (24, 500, 1000, 100),
    "dpo_lr": (3e-4, 3e-4, 1e-4, 5e-6),
    "rm_epochs": (1, 3, 4, 2),
    "rm_lr": (3e-4, 1e-3, 1e-3, 1e-4),
    "ppo_updates": (2, 10, 12, 6),
    "ppo_episodes": (16, 128, 256, 64),
    "ppo_lr": (3e-5, 1e-4, 1e-4, 1e-5),
    "attempts": (36, 135, 270, 60),
    "eval_n": (8, 100, 300, 40),
}
BLOCK_SIZE = 1024
ROOT = Path(__file__).resolve().parent.parent


def main(script):
    """Run a script's function. Bad input ends in one sentence on stderr and exit code 2."""
    prepare_streams()
    catch_signals()
    try:
        script()
        return sys.stdout.flush()
    except (UserError, FloatingPointError) as error:
        said = str(error)
    except BrokenPipeError:  # the reader of the output, `head` for example, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        remedy = "make room" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "change that"
        said = f"{where}{error.strerror}; {remedy} or name another --out"
    except KeyboardInterrupt:
        print("\nstopped; finished files are on disk", file=sys.stderr)
        sys.exit(130)
    # Here the error is gone, and with it the progress bars of the functions that it came from.
    print(f"{Path(sys.argv[0]).name}: {said}", file=sys.stderr)
    sys.exit(2)


# --- options ----------------------------------------------------------------------------------


def parser(description: str) -> argparse.ArgumentParser:
    """The options that every script has."""
    raw = argparse.RawDescriptionHelpFormatter
    p = argparse.ArgumentParser(description=description, formatter_class=raw, allow_abbrev=False)
    p.register("type", None, named)
    p.register("type", Path, lambda text: Path(named(text)))
    p.add_argument("--preset", choices=PRESETS, help="sizes (default: that of OUT, else quick)")
    p.add_argument("--out", type=Path, help="folder for all results (default: out/PRESET)")
    p.add_argument("--seed", type=seed, help="of everything random (default: that of OUT, else 0)")
    p.add_argument("--device", help="cuda, mps or cpu (default: the first that is there)")
    p.add_argument("--world", type=Path, help="folder (default: that of OUT, else world)")
    p.add_argument("--constitution", help="principles (default: as OUT, else constitution.json)")
    return p


def setup(p: argparse.ArgumentParser, argv=None, writes: bool = True) -> argparse.Namespace:
    """Parse the options, fill in the sizes, and make and lock OUT. Who only looks needs no lock."""
    for action in (action for action in p._actions if action.dest in SIZES):
        size = SIZES[action.dest][PRESETS.index("quick")]
        action.help = f"{action.help} (default: the preset's; {size:,} for quick)"
        action.metavar = "N"
    args = p.parse_args(argv)
    as_before(args)
    for name, values in SIZES.items():
        if getattr(args, name, None) is None:
            setattr(args, name, values[PRESETS.index(args.preset)])
    args.device = pick_device(args.device)
    if writes and {getattr(args, name, None) for name in ("show", "explain")} == {None}:
        make_folder(args.out)
        lock(args.out)
    torch.manual_seed(args.seed)
    return args


def as_before(args: argparse.Namespace):
    """Options that are not given: those that pipeline.py made OUT with, else the usual ones."""
    preset = args.preset or (getattr(args, "init", None) and "real")
    args.out = args.out or Path("out") / (preset or "quick")
    made = read_json(args.out / "pipeline.json", {}).get("settings")
    made = made if isinstance(made, dict) else {}
    args.preset = made.get("preset", preset or "quick")
    if args.preset not in PRESETS or preset not in (None, args.preset):
        made_with = f"{args.out} was made with --preset {args.preset}"
        raise UserError(f"{made_with}; give that, or name another --out")
    for name, usual in dict(seed=0, world="world", constitution="constitution.json").items():
        if getattr(args, name) is None:
            value = made[name] if type(made.get(name)) is type(usual) else usual
            setattr(args, name, value if name == "seed" else ROOT / value)


def pick_device(name: str | None) -> str:
    if name is None:
        mps = torch.backends.mps.is_available()
        name = "cuda" if torch.cuda.is_available() else "mps" if mps else "cpu"
    try:
        torch.zeros(1, device=name)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"--device {name} cannot be used here: {reason}; try --device cpu")
    if name.startswith("cuda"):
        torch.set_float32_matmul_precision("high")
    return name


def make_folder(path: Path):
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{path} cannot be made a folder ({error.strerror}); name another")


def artifact(kind: str, args: argparse.Namespace) -> str:
    """The stem of the file that a script writes: KIND, KIND-NAME, or KIND-roundN."""
    n = getattr(args, "round", None)
    for option in ("name", "prompts"):
        if n and getattr(args, option, None):
            raise UserError(f"--{option} and --round exclude each other: a round has its own")
    suffix = f"round{n}" if n else args.name
    return f"{kind}-{suffix}" if suffix else kind


def option_type(convert, fits, wanted: str):
    """A type for argparse: the converted text if it fits. NaN fits no range."""

    def parse(text: str):
        try:
            value = convert(text)
            if fits(value):
                return value
        except ValueError:
            pass
        raise argparse.ArgumentTypeError(f"{text!r} is not {wanted}")

    return parse


positive = option_type(int, lambda x: x >= 1, "a whole number from 1 on")
not_negative = option_type(int, lambda x: x >= 0, "a whole number from 0 on")
above_zero = option_type(float, lambda x: 0 < x <= 1e30, "a number above 0, at most 1e30")
at_least_zero = option_type(float, lambda x: 0 <= x < math.inf, "a number from 0 on")
share = option_type(float, lambda x: 0 <= x < 1, "a share from 0 to below 1")
named = option_type(str, bool, "a name")  # no name may be empty, as "$UNSET" is
seed = option_type(int, lambda x: 0 <= x < 2**31, f"a whole number from 0 to {2**31 - 1}")
name_part = option_type(
    str,
    re.compile(r"(?!round\d+$)[\w.-]{1,50}", re.ASCII).fullmatch,
    "1 to 50 letters, digits, '.', '_' and '-' (and not round1, which names a feedback round)",
)


# --- one owner of an output folder, and scripts that run scripts --------------------------------

LOCKED = {}  # folder -> open lock file
OWNER = "MINICAI_LOCKED"  # tells a script that the script which started it owns this folder


def lock(folder: Path):
    """Own `folder` until this process ends. Raises UserError when another process owns it."""
    folder = folder.resolve()
    if fcntl is None or folder in LOCKED or os.environ.get(OWNER) == str(folder):
        return
    file = open(folder / ".lock", "a+")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        owner = file.read().strip() or "another process"
        raise UserError(f"{folder} is in use by {owner}; wait for it, or name another --out")
    except OSError:  # a file system without locks
        return
    file.truncate(0)
    print(f"{Path(sys.argv[0]).name} (process {os.getpid()})", file=file, flush=True)
    LOCKED[folder] = file


def run_script(name: str, args, *own) -> float:
    """Run NAME.py with the shared options and its `own`; return its seconds.

    The script is stopped when this process is. Raises UserError when the script fails.
    """
    shared = ("preset", "out", "seed", "device", "world", "constitution")
    given = (x for key in shared for x in (f"--{key}", getattr(args, key)))
    options = list(map(str, (*own, *given)))
    print(f"\n$ python {name}.py {shlex.join(options)}", flush=True)
    began, folder = time.time(), Path(args.out).resolve()
    owned = [LOCKED[folder].fileno()] if folder in LOCKED else []  # the child holds the lock too
    # Idle threads that spin for long are ruinous when the machine is busy.
    env = {"GOMP_SPINCOUNT": "3000"} | os.environ | ({OWNER: str(folder)} if owned else {})
    command = [sys.executable, str(ROOT / f"{name}.py"), *options]
    # The step ignores Ctrl-C, even while it imports torch. This process hears it and ends the step.
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
    child = subprocess.Popen(command, env=env, pass_fds=owned)
    signal.signal(signal.SIGINT, handler)
    try:
        code = child.wait()
    except BaseException:
        child.terminate()
        child.wait()
        raise
    if code:
        raise UserError(f"{name}.py ended with exit code {code}; fix what it says above, run again")
    return time.time() - began
