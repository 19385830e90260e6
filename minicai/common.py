"""What every script shares: presets, device, errors that are one sentence, JSON lines, and checkpoints."""

import argparse
import hashlib
import json
import math
import os
import platform
import random
import re
import sys
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path

import torch

from minicai.gpt import GPT, GPTConfig

# Sizes of everything, by preset; a script's own options override single entries. Tokens count padding and prompt alike.
PRESETS = {
    "smoke": dict(
        n_layer=2,
        n_head=1,
        n_embd=64,
        n_hidden=160,
        vocab_size=1024,
        documents=2000,
        batch_tokens=1024,
        base_lr=0.015,
        prompts=48,
        sft_epochs=1,
        sft_lr=1e-3,
        eval_n=8,
        comparisons=24,
        dpo_epochs=1,
        dpo_lr=3e-4,
        rm_epochs=1,
        rm_lr=3e-4,
        ppo_updates=2,
        ppo_episodes=16,
        ppo_lr=3e-5,
        attempts=36,
    ),
    "cpu": dict(
        n_layer=4,
        n_head=4,
        n_embd=256,
        n_hidden=704,
        vocab_size=2048,
        documents=80_000,
        batch_tokens=2048,
        base_lr=0.015,
        prompts=1200,
        sft_epochs=3,
        sft_lr=1e-3,
        eval_n=300,
        comparisons=1000,
        dpo_epochs=1,
        dpo_lr=1e-4,
        rm_epochs=4,
        rm_lr=1e-3,
        ppo_updates=12,
        ppo_episodes=256,
        ppo_lr=1e-4,
        attempts=270,
    ),
    "gpu": dict(
        n_layer=12,
        n_head=8,
        n_embd=512,
        n_hidden=1408,
        vocab_size=2048,
        documents=160_000,
        batch_tokens=16384,
        base_lr=0.02,
        prompts=2400,
        sft_epochs=4,
        sft_lr=5e-4,
        eval_n=400,
        comparisons=2000,
        dpo_epochs=1,
        dpo_lr=5e-5,
        rm_epochs=4,
        rm_lr=5e-4,
        ppo_updates=40,
        ppo_episodes=512,
        ppo_lr=5e-5,
        attempts=540,
    ),
}
BLOCK_SIZE = 1024


class UserError(Exception):
    """Bad input. Its message is one sentence that names the file (and line) and the remedy."""


def main(script):
    """Run a script's function; bad input ends in one sentence on stderr and exit code 2, without a traceback."""
    try:
        script()
        sys.stdout.flush()
    except UserError as error:
        print(f"{Path(sys.argv[0]).name}: {error}", file=sys.stderr)
        sys.exit(2)
    except BrokenPipeError:  # whoever reads the output, say `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        print(
            f"{Path(sys.argv[0]).name}: {where}{error.strerror}; make room or name another --out",
            file=sys.stderr,
        )
        sys.exit(2)
    except KeyboardInterrupt:
        print("\nstopped; what was finished is on disk", file=sys.stderr)
        sys.exit(130)


def parser(description: str) -> argparse.ArgumentParser:
    """The options every script has."""
    p = argparse.ArgumentParser(
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    p.add_argument(
        "--preset",
        choices=PRESETS,
        help="sizes of everything (default: gpu where CUDA is available, else cpu)",
    )
    p.add_argument("--out", type=Path, help="folder for all results (default: out/PRESET)")
    p.add_argument("--seed", type=seed, default=0, help="seed of everything random (default: 0)")
    p.add_argument("--device", help="cuda, mps or cpu (default: the first of these that is there)")
    p.add_argument(
        "--world",
        type=Path,
        default=Path("world"),
        help="folder with the world's content (default: world)",
    )
    return p


def setup(p: argparse.ArgumentParser, argv=None) -> argparse.Namespace:
    """Parse the options; fill in the preset's sizes, the output folder and the device; seed the generators."""
    for action in p._actions:
        if action.dest in PRESETS["cpu"]:
            size = PRESETS["cpu"][action.dest]
            action.help = f"{action.help or ''} (default: the preset's; {size:,} for cpu)"
            action.metavar = "N"
    args = p.parse_args(argv)
    args.preset = args.preset or ("gpu" if torch.cuda.is_available() else "cpu")
    args.out = args.out or Path("out") / args.preset
    if args.device is None:
        args.device = (
            "cuda"
            if torch.cuda.is_available()
            else "mps"
            if torch.backends.mps.is_available()
            else "cpu"
        )
    try:
        torch.zeros(1, device=args.device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(
            f"--device {args.device} cannot be used here: {str(error).splitlines()[0]}; try --device cpu"
        )
    for name, value in PRESETS[args.preset].items():
        if getattr(args, name, None) is None:
            setattr(args, name, value)
    make_folder(args.out)
    random.seed(args.seed)
    torch.manual_seed(args.seed)
    if args.device.startswith("cuda"):
        torch.set_float32_matmul_precision("high")
    return args


def make_folder(path: Path):
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{path} cannot be made a folder ({error.strerror}); name another")


def option_type(convert, fits, wanted: str):
    """A type for argparse: the converted text, where it fits. NaN fits no range."""

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
above_zero = option_type(float, lambda x: 0 < x < math.inf, "a number above 0")
at_least_zero = option_type(float, lambda x: 0 <= x < math.inf, "a number from 0 on")
share = option_type(float, lambda x: 0 <= x < 1, "a share from 0 to below 1")
finite = option_type(float, math.isfinite, "a finite number")
seed = option_type(int, lambda x: 0 <= x < 2**31, f"a whole number from 0 to {2**31 - 1}")
name_part = option_type(
    str,
    re.compile(r"(?!round\d+$)[\w.-]{1,50}").fullmatch,
    "a part of a file name: 1 to 50 letters, digits, '.', '_' and '-', and not 'round1', which a feedback round writes",
)


def fast_dtype(device: str) -> torch.dtype:
    """bfloat16 where it is faster than float32: on CUDA, and on CPUs with bfloat16 instructions."""
    native = any(flag in cpu_info("flags").split() for flag in ("avx512_bf16", "amx_bf16"))
    return (
        torch.bfloat16 if device.startswith("cuda") or device == "cpu" and native else torch.float32
    )


def autocast(device: str):
    """Matrix products in bfloat16 where that is faster."""
    return torch.autocast(
        device.split(":")[0], torch.bfloat16, enabled=fast_dtype(device) == torch.bfloat16
    )


@lru_cache
def cpu_info(key: str) -> str:
    """A line of Linux's description of the processor; empty elsewhere."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(key)), "")


def hardware(device: str) -> str:
    """What the numbers were measured on, in words."""
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    return f"{cpu_info('model name') or platform.machine()}, {os.cpu_count()} cores"


# --- files ------------------------------------------------------------------------------------------------------------


def read_bytes(path) -> bytes:
    """Raises UserError where there is no file to read."""
    try:
        return Path(path).read_bytes()
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; run the step that writes it, or name another file")
    except OSError as error:
        raise UserError(f"{path} is not a file that can be read ({error.strerror}); name another")


def read_text(path) -> str:
    try:
        return read_bytes(path).decode()
    except UnicodeDecodeError:
        raise UserError(f"{path} is not UTF-8 text; save it as UTF-8 or name another file")


def read_jsonl(path, required=(), fields=None) -> list[dict]:
    """Rows of a JSON-lines file. Raises UserError for a missing file, a malformed line, or a field that is missing or wrong.

    `fields` says of a field, where a row has it, which values fit, and in which words that is said: (function, words).
    """
    rows = []
    text = read_text(path)
    lines = (
        text.removesuffix("\n").split("\n") if text else []
    )  # splitlines would cut at U+2028 too
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise UserError(
                f"{path}:{number} is not valid JSON ({error.msg}); fix or delete the line"
            )
        if not isinstance(row, dict):
            raise UserError(f"{path}:{number} is not a JSON object; fix or delete the line")
        for field in required:
            if field not in row:
                raise UserError(
                    f"{path}:{number} has no field {field!r}; add it or delete the line"
                )
        for field, (fits, wanted) in (fields or {}).items():
            if field in row and not fits(row[field]):
                raise UserError(
                    f"{path}:{number}: the field {field!r} is not {wanted}; fix or delete the line"
                )
        rows.append(row)
    return rows


def append_jsonl(path, rows):
    """Append rows. A last line without its newline is completed where it is a row, and cut off where a killed run left half of one."""
    with open(path, "a+b") as f:
        start = f.seek(0, os.SEEK_END)
        while start and (f.seek(start - 1), f.read(1))[1] != b"\n":
            start -= 1
        f.seek(start)
        if tail := f.read():
            try:
                json.loads(tail)
                f.write(b"\n")
            except ValueError:
                f.truncate(start)
        f.write("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode())


def rewrite_jsonl(path, rows):
    """Replace the file as a whole, so that a killed run leaves the old one or the new one."""
    temporary = Path(f"{path}.tmp")
    temporary.unlink(missing_ok=True)
    append_jsonl(temporary, rows)
    os.replace(temporary, path)


def begin_log(path, name: str):
    """Drop what an earlier run of this name has logged."""
    append_jsonl(path, [])  # it may not exist yet
    rewrite_jsonl(
        path, [row for row in read_jsonl(path, required=("name",)) if row["name"] != name]
    )


def read_json(path, default: dict) -> dict:
    """The JSON object in a file, or the default where there is no file. Raises UserError when it is something else."""
    if not Path(path).exists():
        return default
    try:
        value = json.loads(read_text(path))
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON ({error}); delete it")
    if not isinstance(value, dict):
        raise UserError(f"{path} is not a JSON object; delete it")
    return value


def write_json(path, value):
    """Write to a temporary file and rename, so that a killed run leaves the old file or the new one, never half of one."""
    temporary = Path(f"{path}.tmp")
    temporary.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(temporary, path)


# --- checkpoints ------------------------------------------------------------------------------------------------------


def save(path, **value):
    """Write to a temporary file and rename. Raises UserError when it cannot be written."""
    temporary = Path(f"{path}.tmp")
    try:
        torch.save(value, temporary)
    except RuntimeError as error:  # torch's own for a full disk and a folder that is not there
        temporary.unlink(missing_ok=True)
        raise UserError(
            f"{path} cannot be written ({str(error).splitlines()[0]}); make room or name another --out"
        )
    os.replace(temporary, path)


def save_checkpoint(path, model: GPT, kind: str, **extra):
    """`kind` is what the weights are ("policy", "reward"); `extra` holds plain values or state dicts, and no time
    or date: the same run writes the same file, and its mark (`file_hash`) is what later steps are seeded and known by.

    The mark of the folder's tokenizer is saved with it, where there is one: under another one its ids are other words.
    """
    save(
        path,
        kind=kind,
        config=asdict(model.config),
        model=model.state_dict(),
        tokenizer=tokenizer_of(path),
        **extra,
    )


def tokenizer_of(checkpoint) -> str | None:
    """The mark of the tokenizer in a checkpoint's folder."""
    path = Path(checkpoint).with_name("tokenizer.json")
    return file_hash(path) if path.exists() else None


def load_checkpoint(path, kind: str = "policy", device="cpu") -> tuple[GPT, dict]:
    """The model in eval mode, and everything else that was saved. Raises UserError when it is not such a checkpoint."""
    path = Path(path)
    if not path.exists():
        raise UserError(
            f"{path} does not exist; run the step that writes it, or name another checkpoint"
        )
    try:
        value = torch.load(path, map_location="cpu", weights_only=True)
        found = value["kind"]
    except Exception as error:
        raise UserError(
            f"{path} is not a checkpoint of this project ({type(error).__name__}); name a .pt file it wrote"
        )
    if found != kind:
        raise UserError(
            f"{path} holds a {found!r} model and this needs a {kind!r} one; name another checkpoint"
        )
    trained, here = value.pop("tokenizer", None), tokenizer_of(path)
    if trained and here and trained != here:
        raise UserError(
            f"{path} was trained with another tokenizer than the one beside it; train it again, or bring back its own"
        )
    try:
        model = GPT(GPTConfig(**value.pop("config")))
        model.load_state_dict(value.pop("model"), strict=True)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise UserError(
            f"{path} does not fit this version of the code ({str(error).splitlines()[-1].strip()}); train it again"
        )
    return model.to(device).eval(), value


def save_state(path, model: torch.nn.Module, optimizers, made_by: dict, **progress):
    """What a training that is not done goes on from."""
    save(
        path,
        model=model.state_dict(),
        optimizers=[o.state_dict() for o in optimizers],
        made_by=made_by,
        **progress,
    )


def load_state(path, model: torch.nn.Module, optimizers, made_by: dict) -> dict:
    """Set model and optimizers to what was saved, and return it. Raises UserError when it is damaged or of another run."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        if state["made_by"] == made_by:
            model.load_state_dict(state["model"])
            for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
                optimizer.load_state_dict(saved)
            return state
    except Exception as error:
        raise UserError(
            f"{path} is not the state of such a run ({type(error).__name__}); delete it to begin again"
        )
    raise UserError(
        f"{path} is of a run with other settings ({state['made_by']}); delete it or use another --out"
    )


def file_hash(*paths) -> str:
    """First 12 hexadecimal digits of the SHA-256 of files: the lineage mark of a checkpoint, a world, a constitution."""
    digest = hashlib.sha256()
    for path in paths:
        digest.update(read_bytes(path))
    return digest.hexdigest()[:12]


def made_from(path, marks: set, checkpoint, remedy: str):
    """Raises UserError where a file's lineage marks are not all of this checkpoint: a step between the two has to run again."""
    if marks - {None, file_hash(checkpoint)}:
        raise UserError(f"{path} was made from another {checkpoint} than is there now; {remedy}")


def marks_of(rows: list[dict], key: str) -> set:
    """The lineage marks that rows carry under `key`; None of those that carry none."""
    return {row.get("made_by", {}).get(key) for row in rows}


def rounds(out: Path) -> list[Path]:
    """The checkpoints of the feedback rounds, in order."""
    numbers = {path: path.stem.removeprefix("round") for path in out.glob("round*.pt")}
    return sorted(
        (path for path, n in numbers.items() if n.isdigit()), key=lambda path: int(numbers[path])
    )


def newest_stage(out: Path) -> Path:
    """The last feedback round, or the first there is of DPO-CAI, SL-CAI and the base (whose path is given where there is none)."""
    stages = [*reversed(rounds(out)), *(out / f"{name}.pt" for name in ("dpo", "sft", "base"))]
    return next((path for path in stages if path.exists()), stages[-1])


def same_vocabulary(checkpoint: Path, model: GPT, vocab_size: int, out: Path):
    """Raises UserError for a model of another tokenizer than OUT's: its ids would mean other words."""
    theirs, ours = Path(checkpoint).with_name("tokenizer.json"), out / "tokenizer.json"
    if (
        model.config.vocab_size != vocab_size
        or theirs.exists()
        and file_hash(theirs) != file_hash(ours)
    ):
        raise UserError(
            f"{checkpoint} has another vocabulary than {ours}; name its own folder with --out"
        )


def stage_before(out: Path, n: int) -> Path:
    """The checkpoint that feedback round n attacks and trains further."""
    return out / ("dpo.pt" if n == 1 else f"round{n - 1}.pt")


def world_files(world: Path) -> list[Path]:
    return sorted(world.glob("*.jsonl"))


def world_hash(args) -> str:
    """The lineage mark of a world directory together with the constitution."""
    return file_hash(*world_files(args.world), args.constitution)
