"""Files: text, JSON lines, and checkpoints that carry their tokenizer.

Whole files are written under a temporary name and renamed, so a killed process leaves the old
file or the new one. Logs are appended line by line.
"""

import json
import math
import os
import re
import sys
from dataclasses import asdict
from pathlib import Path

import torch

from minicai.gpt import GPT, GPTConfig
from minicai.tokenizer import Tokenizer


class UserError(Exception):
    """Bad input. The message is one sentence that names the file, the line and the remedy."""


def read_bytes(path) -> bytes:
    try:
        return Path(path).read_bytes()
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; run the step that writes it, or name another file")
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); name another file")


def as_text(data: bytes, path) -> str:
    """UTF-8, with or without a byte order mark, as text. `path` is where it came from."""
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise UserError(f"{path} is not UTF-8 text; save it as UTF-8 or name another file")


def read_text(path) -> str:
    """The text of a UTF-8 file, with or without a byte order mark."""
    return as_text(read_bytes(path), path)


def parse_json(text: str, where: str):
    """Raises UserError for what is no JSON, NaN and Infinity included."""

    def number(digits: str) -> float:
        if not math.isfinite(float(digits)):
            raise ValueError(f"{digits} is no number")
        return float(digits)

    try:
        return json.loads(text, parse_float=number, parse_constant=number)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where} is not valid JSON ({error}); fix or delete it")


def read_jsonl(path, required=(), fields=None) -> list[dict]:
    """Rows of a JSON-lines file. Raises UserError for a missing file or a malformed line."""
    text = read_text(path)
    lines = text.removesuffix("\n").split("\n") if text else []  # splitlines cuts at U+2028 too
    places = [(f"{path}:{number}", line) for number, line in enumerate(lines, 1)]
    return [check_row(where, parse_json(line, where), required, fields) for where, line in places]


def check_row(where: str, row, required=(), fields=None) -> dict:
    """The row. Raises UserError when a field is missing or wrong.

    `fields` maps a field to (test, words): where a row has the field, its value must pass the test.
    """
    if not isinstance(row, dict):
        raise UserError(f"{where} is not a JSON object; fix or delete the line")
    for field in required:
        if field not in row:
            raise UserError(f"{where} has no field {field!r}; add it or delete the line")
    for field, (fits, wanted) in (fields or {}).items():
        if field in row and not fits(row[field]):
            raise UserError(f"{where}: the field {field!r} is not {wanted}; fix it")
    return row


def as_json(value, indent=None) -> bytes:
    text = json.dumps(value, indent=indent, ensure_ascii=False, allow_nan=False)
    return f"{text}\n".encode("utf-8", "replace")  # half a surrogate pair becomes a question mark


def replace_file(path, data: bytes):
    temporary = Path(f"{path}.tmp")
    temporary.write_bytes(data)
    os.replace(temporary, path)


def write_text(path, text: str):
    replace_file(path, f"{text}\n".encode("utf-8", "replace"))


def write_jsonl(path, rows):
    replace_file(path, b"".join(map(as_json, rows)))


def append_jsonl(path, rows):
    """Append to a log. Half a row that a killed process left at the end is cut off first."""
    with open(path, "a+b") as f:
        start = f.seek(0, os.SEEK_END)
        while start and (f.seek(start - 1), f.read(1))[1] != b"\n":
            start -= 1
        f.seek(start)
        try:
            json.loads(f.read() or "0")
            f.write(b"\n" if f.tell() > start else b"")  # a whole row that lacked its newline
        except ValueError:
            f.truncate(start)
        f.write(b"".join(map(as_json, rows)))


def write_json(path, value):
    replace_file(path, as_json(value, indent=1))


def read_json(path, default: dict) -> dict:
    """The JSON object in a file; the default where there is no file."""
    if not Path(path).exists():
        return default
    value = parse_json(read_text(path), str(path))
    if not isinstance(value, dict):
        raise UserError(f"{path} is not a JSON object; delete it")
    return value


def warn_if_newer(path, *sources, remedy: str):
    """One sentence on stderr when a source is newer than the file made from it. Times only warn."""
    for source in map(Path, sources):
        if source.exists() and Path(path).exists():
            if source.stat().st_mtime > Path(path).stat().st_mtime:
                print(
                    f"{path} may be out of date: {source.name}, from which it was made, is newer; "
                    f"{remedy} if that was not meant",
                    file=sys.stderr,
                )


# --- checkpoints ---------------------------------------------------------------------------------


def save_state(path, **value):
    """Save tensors and plain values to a whole file. Raises UserError when that fails."""
    temporary = Path(f"{path}.tmp")
    try:
        torch.save(value, temporary)
    except RuntimeError as error:  # torch's own error for a full disk
        temporary.unlink(missing_ok=True)
        reason = str(error).splitlines()[0]
        raise UserError(f"{path} cannot be written ({reason}); make room or name another --out")
    os.replace(temporary, path)


def load_state(path) -> dict:
    """What `save_state` saved. Raises UserError when the file holds something else."""
    if not Path(path).exists():
        raise UserError(f"{path} does not exist; run the step that writes it, or name another file")
    try:
        return dict(torch.load(path, map_location="cpu", weights_only=True))
    except Exception as error:
        said = "name a .pt file; python -m minicai.pretrained makes one of other models"
        raise UserError(f"{path} is not a checkpoint ({type(error).__name__}); {said}")


def finite(model: GPT, extra: dict) -> bool:
    """Whether all weights are numbers, those of heads in `extra` too."""
    heads = [t for value in extra.values() if isinstance(value, dict) for t in value.values()]
    tensors = [*model.parameters(), *(t for t in heads if isinstance(t, torch.Tensor))]
    return all(t.isfinite().all() for t in tensors)


def save_checkpoint(path, model: GPT, tokenizer: Tokenizer, options, kind="policy", **extra):
    """A self-contained checkpoint: weights, config, tokenizer, and the options it was made with.

    `kind` says what the weights are ("policy" or "reward"). Raises UserError for weights that are
    not finite, and keeps the old file.
    """
    model = getattr(model, "_orig_mod", model)  # inside what torch.compile made
    if not finite(model, extra):
        raise UserError(f"{path} is not written: its weights are not finite; lower --lr")
    made = {k: v if isinstance(v, int | float | None) else str(v) for k, v in vars(options).items()}
    weights = dict(config=asdict(model.config), model=model.state_dict())
    save_state(path, kind=kind, **weights, tokenizer=tokenizer.to_json(), options=made, **extra)


def load_checkpoint(path, kind="policy", device="cpu") -> tuple[GPT, Tokenizer, dict]:
    """The model in eval mode, its tokenizer, and everything else that was saved."""
    value = load_state(path)
    if value.get("kind") != kind:
        found = value.get("kind", "unknown")
        raise UserError(f"{path} holds a {found!r} model, not a {kind!r} one; name another")
    try:
        model = GPT(GPTConfig(**value.pop("config")))
        model.load_state_dict(value.pop("model"), strict=True)
        tokenizer = Tokenizer.from_json(value.pop("tokenizer"))
    except Exception as error:
        reason = str(error).splitlines()[-1].strip()
        raise UserError(f"{path} does not fit this version ({reason}); train it again")
    if not finite(model, value):
        raise UserError(f"{path} holds weights that are not finite; train it again")
    return model.to(device).eval(), tokenizer, value


def load_policy(path, device="cpu") -> tuple[GPT, Tokenizer]:
    """A language model in eval mode, and its tokenizer."""
    model, tokenizer, _ = load_checkpoint(path, "policy", device)
    return model, tokenizer


def load_like(path, tokenizer: Tokenizer, device="cpu") -> GPT:
    """A language model that is used with another one. Raises UserError for another tokenizer."""
    model, own = load_policy(path, device)
    check_tokenizer(path, own, tokenizer)
    return model


def check_tokenizer(path, own: Tokenizer, tokenizer: Tokenizer):
    """Raise UserError unless the tokenizer of `path` is the one of the other models."""
    if own.to_json() != tokenizer.to_json():
        raise UserError(f"{path} has another tokenizer than the others; train it or name another")


def rounds(out: Path) -> list[Path]:
    """The checkpoints of the feedback rounds, in order."""
    found = {path: re.fullmatch(r"round([0-9]{1,3})", path.stem) for path in out.glob("round*.pt")}
    return sorted((path for path, m in found.items() if m), key=lambda path: int(found[path][1]))


def stages(out: Path) -> list[Path]:
    """The checkpoints of the pipeline that exist, in its order."""
    paths = [out / f"{name}.pt" for name in ("base", "sft", "dpo", "ppo")]
    return [path for path in paths if path.exists()] + rounds(out)


def newest_stage(out: Path) -> Path:
    """The last feedback round; without one DPO-CAI, else SL-CAI, else the base."""
    preferred = [*reversed(rounds(out)), *(out / f"{name}.pt" for name in ("dpo", "sft", "base"))]
    return next((path for path in preferred if path.exists()), preferred[-1])


def stage_before(out: Path, n: int) -> Path:
    """The checkpoint that feedback round n attacks and trains further."""
    return out / ("dpo.pt" if n == 1 else f"round{n - 1}.pt")
