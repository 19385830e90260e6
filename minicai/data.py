"""From conversations to training batches: ids, a weight for every id, and batches of about equal size.

B batch, T time. The weight of an id is the weight of predicting it; pads and everything that is only read weigh 0.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from minicai.gpt import GPT
from minicai.tokenizer import Tokenizer


@dataclass
class Example:
    ids: np.ndarray  # (T,)
    weights: np.ndarray  # (T,), of predicting each id from those before it


def encode_turns(tokenizer: Tokenizer, turns: list[tuple[str, str, float]]) -> Example:
    """Turns of (role, text, weight). The weight holds for the text and its end token; nobody has to predict a role.

    The role "document" is plain text and an end token, without a role's id.
    """
    ids, weights = [], []
    for role, text, weight in turns:
        said = [*tokenizer.encode(text), tokenizer.end]
        if role != "document":
            ids.append(getattr(tokenizer, role))
            weights.append(0.0)
        ids += said
        weights += [weight] * len(said)
    weights[0] = 0.0  # nothing comes before the first id
    return Example(np.array(ids, dtype=np.int32), np.array(weights, dtype=np.float32))


def padded(length: int) -> int:
    """The width of a batch: its inputs, one fewer than its ids, come in multiples of 16.

    CPU libraries build and keep a kernel for every new shape; with widths of all kinds that costs time and gigabytes.
    """
    return -(-(length - 1) // 16) * 16 + 1


def make_batches(
    examples: list[Example], batch_tokens: int, rng: random.Random, pool: int = 4096
) -> Iterator[list[Example]]:
    """One epoch in random order, in batches of examples of like length: at most batch_tokens ids, pads included.

    Lengths are sorted only within pools of random examples, so that which examples meet still changes by seed and epoch.
    """
    order = list(range(len(examples)))
    rng.shuffle(order)
    for start in range(0, len(order), pool):
        batches, batch = [], []
        for i in sorted(order[start : start + pool], key=lambda i: len(examples[i].ids)):
            if batch and (len(batch) + 1) * padded(len(examples[i].ids)) > batch_tokens:
                batches.append(batch)
                batch = []
            batch.append(examples[i])
        batches.append(batch)
        rng.shuffle(batches)
        yield from batches


def collate(batch: list[Example], pad: int, device) -> tuple[Tensor, Tensor]:
    """ids (B, T) and weights (B, T), padded on the right."""
    width = padded(max(len(e.ids) for e in batch))
    ids = np.full((len(batch), width), pad, dtype=np.int64)
    weights = np.zeros((len(batch), width), dtype=np.float32)
    for row, e in enumerate(batch):
        ids[row, : len(e.ids)] = e.ids
        weights[row, : len(e.ids)] = e.weights
    return torch.from_numpy(ids).to(device), torch.from_numpy(weights).to(device)


def weighted_nll(model: GPT, ids: Tensor, weights: Tensor) -> Tensor:
    """Cross-entropy of each id given those before it, averaged by weight: sum(w * nll) / sum(w). ids, weights (B, T)."""
    logits = model(ids[:, :-1]).float()  # (B, T-1, V)
    nll = F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
    w = weights[:, 1:].flatten()
    return (nll * w).sum() / w.sum()
