"""The log of a training: a progress bar on the screen, JSON lines in a file."""

import math
from pathlib import Path

import torch
from tqdm import tqdm

from minicai.files import UserError, append_jsonl, read_jsonl, write_jsonl

DRAWN = ("loss", "accuracy", "margin", "proxy", "true", "kl")  # numbers of a log on the page


class TrainingLog:
    """A progress bar, and a JSON-lines file with one row for every `every` steps.

    A row holds the means of its steps' numbers. With `start`, a training goes on after that step.
    """

    def __init__(self, path, total: int, unit="steps", every: int = 1, start: int = 0):
        self.path, self.every, self.rows, self.tokens = Path(path), every, [], 0
        kept = read_jsonl(path, required=("step",)) if start and self.path.exists() else []
        write_jsonl(path, [row for row in kept if row["step"] <= start])
        self.bar = tqdm(total=total, initial=start, desc=self.path.stem, unit=f" {unit}")

    def write(self, tokens: int = 0, **numbers):
        """Add a step: its numbers (floats or tensors), and the tokens it trained on.

        Raises UserError for a number that is not finite.
        """
        self.rows.append({k: torch.as_tensor(v).detach() for k, v in numbers.items()})
        self.tokens += tokens
        self.bar.update()
        step = self.bar.n
        if step % self.every and step < self.bar.total:
            return
        means = {k: torch.stack([row[k] for row in self.rows]).mean().item() for k in numbers}
        self.rows = []
        for key, value in means.items():
            if not math.isfinite(value):
                raise UserError(f"{self.bar.desc}: {key} is {value} at step {step}; lower --lr")
        append_jsonl(self.path, [dict(step=step, **{k: round(v, 4) for k, v in means.items()})])
        shown = [f"{k} {v:.3f}" for k, v in list(means.items())[:3]]
        if self.tokens:
            shown.append(f"{self.tokens / self.bar.format_dict['elapsed']:,.0f} tokens/s")
        self.bar.set_postfix_str(", ".join(shown))
        if step == self.bar.total:
            self.bar.close()


def curves(folder: Path, points: int = 40) -> dict[str, list[dict]]:
    """The training logs in a folder, by name. A long one is averaged to at most so many rows."""
    found = {}
    for path in sorted(folder.glob("train_*.jsonl"), key=lambda path: path.stem):
        rows, means = read_jsonl(path, ("step",)), []
        keys = [k for k in DRAWN if all(isinstance(row.get(k), int | float) for row in rows)]
        width = -(-len(rows) // points)
        for part in (rows[i : i + width] for i in range(0, len(rows), width or 1)):
            mean = {key: round(sum(row[key] for row in part) / len(part), 4) for key in keys}
            means.append(dict(step=part[-1]["step"]) | mean)
        if means:
            found[path.stem.removeprefix("train_")] = means
    return found
