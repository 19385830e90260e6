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

from minicai.common import UserError, read_jsonl
from minicai.gpt import GPT
from minicai.tokenizer import Tokenizer, talk


@dataclass
class Example:
    ids: np.ndarray  # (T,)
    weights: np.ndarray  # (T,), of predicting each id from those before it


def encode_turns(tokenizer: Tokenizer, turns: list[tuple[str, str, float]]) -> Example:
    """Turns of (role, text, weight). The weight holds for the text and its end token; nobody has to predict a role.

    The role "document" is plain text without a role's id. Several in a row are pieces of one document, with one end token.
    """
    ids, weights = [], []
    for (role, text, weight), (after, _, _) in zip(turns, [*turns[1:], ("", "", 0.0)]):
        said = tokenizer.encode(text)
        if role != "document" or after != "document":
            said.append(tokenizer.end)
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


def fill(items, width, limit: int) -> list[list]:
    """Items in order of their width, in batches of at most `limit` ids, pads included, or a single one that is wider."""
    batches = [[]]
    for item in items:
        if batches[-1] and (len(batches[-1]) + 1) * width(item) > limit:
            batches.append([])
        batches[-1].append(item)
    return batches if batches[0] else []


def make_batches(
    examples: list[Example], batch_tokens: int, rng: random.Random, pool: int = 4096
) -> Iterator[list[Example]]:
    """One epoch in random order, in batches of examples of like length: at most batch_tokens ids, pads included, or a single one that is longer.

    Lengths are sorted only within pools of random examples, so that which examples meet still changes by seed and epoch.
    """
    order = list(range(len(examples)))
    rng.shuffle(order)
    for start in range(0, len(order), pool):
        chosen = sorted(
            (examples[i] for i in order[start : start + pool]), key=lambda e: len(e.ids)
        )
        batches = fill(chosen, lambda e: padded(len(e.ids)), batch_tokens)
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


# --- responses and comparisons ----------------------------------------------------------------------------------------


def texts(value) -> bool:
    return isinstance(value, list) and all(isinstance(text, str) for text in value)


TEXT = (lambda value: isinstance(value, str), "a text")
TURNS = (
    lambda value: texts(value) and len(value) % 2 == 1,
    "a list of an odd number of texts, the person's last",
)
FIELDS = {  # of rows that are trained on: what fits, and how that is said
    "turns": TURNS,
    "plain": TURNS,
    "responses": (texts, "a list of texts"),
    "principles": (texts, "a list of texts"),
    "critiques": (
        lambda value: (
            isinstance(value, list) and all(text is None or isinstance(text, str) for text in value)
        ),
        "a list of texts",
    ),
    "made_by": (lambda value: isinstance(value, dict), "an object"),
    "principle": TEXT,
    "type": TEXT,
    "response": TEXT,
    "a": TEXT,
    "b": TEXT,
    "by": (lambda value: texts(value) and len(value) == 2, "a list of two texts"),
    "kind": (lambda value: value in ("ai", "human"), "'ai' or 'human'"),
    "p": (
        lambda value: type(value) in (int, float) and 0 <= value <= 1,
        "a probability from 0 to 1",
    ),
}


def read_chains(path) -> list[dict]:
    rows = [
        row
        for row in read_jsonl(path, required=("turns", "responses"), fields=FIELDS)
        if row["responses"]
    ]
    if not rows:
        raise UserError(f"{path} is empty; run revise.py")
    return rows


@dataclass
class Pair:
    number: int  # its place in the list, to find what was computed for it before
    prompt: int  # how many ids the two share
    chosen: list[int]
    rejected: list[int]
    p: float  # the probability that the chosen answer is the better one, 0.5 to 1
    own: tuple[bool, bool]  # whether the policy wrote the chosen one, the rejected one


TIE = 0.05  # a probability this close to a coin says that the judge has seen no difference


def tied(row: dict) -> bool:
    return abs(row["p"] - 0.5) < TIE


def encode_pairs(
    tokenizer: Tokenizer,
    rows: list[dict],
    helpful_fraction: float,
    block_size: int,
    rng: random.Random,
) -> list[Pair]:
    """Rows of preferences.jsonl as ids; helpfulness comparisons make up at most `helpful_fraction`. The likelier answer is chosen.

    Ties are left out: most pairs break no principle or the same ones, and would drown the rest. Where there is hardly
    anything else (a judge that has learned nothing) they stay, and teach nothing.
    """
    ai, human = ([row for row in rows if row["kind"] == kind] for kind in ("ai", "human"))
    decided = [row for row in ai if not tied(row)]
    ai = decided if len(decided) >= 20 else ai
    wanted = round(len(ai) * helpful_fraction / (1 - helpful_fraction))
    pairs, long = [], 0
    for row in ai + rng.sample(human, min(wanted, len(human))):
        prompt = tokenizer.prompt(talk(*row["turns"]))
        a, b = ([*prompt, *tokenizer.encode(row[key]), tokenizer.end] for key in "ab")
        long += max(len(a), len(b)) > block_size
        if max(len(a), len(b)) <= block_size and a != b:
            first, own = (
                row["p"] >= 0.5,
                tuple(name == "policy" for name in row.get("by", ("policy", "policy"))),
            )
            pairs.append(
                Pair(
                    len(pairs),
                    len(prompt),
                    a if first else b,
                    b if first else a,
                    max(row["p"], 1 - row["p"]),
                    own if first else own[::-1],
                )
            )
    if long:
        print(f"{long} comparisons do not fit the context of {block_size} ids and are left out")
    return pairs


def read_pairs(
    paths: list, tokenizer: Tokenizer, helpful_fraction: float, block_size: int, rng: random.Random
) -> list[Pair]:
    """The comparisons of one file or more. Raises UserError when they hold none, or none that can be trained on."""
    rows = [
        row
        for path in paths
        for row in read_jsonl(path, required=("id", "kind", "turns", "a", "b", "p"), fields=FIELDS)
    ]
    if not rows:
        raise UserError(f"{paths[0]} holds no comparison; run label.py")
    pairs = encode_pairs(tokenizer, rows, helpful_fraction, block_size, rng)
    if not pairs:
        raise UserError(
            f"{paths[0]}: none of its {len(rows)} comparisons can be trained on: the answers are equal, do not fit the context of "
            f"{block_size} ids, or --helpful-fraction leaves them out; change it, or run label.py again"
        )
    return pairs


def pair_batches(pairs: list[Pair], batch_tokens: int, rng: random.Random) -> Iterator[list[Pair]]:
    """One epoch in random order, in batches of pairs of like length: at most batch_tokens ids, pads included, or a single longer one."""

    def width(pair: Pair) -> int:
        return 2 * padded(max(len(pair.chosen), len(pair.rejected)))

    batches = fill(sorted(rng.sample(pairs, len(pairs)), key=width), width, batch_tokens)
    rng.shuffle(batches)
    yield from batches


def collate_responses(
    rows: list[list[int]], prompts: list[int], pad: int, device
) -> tuple[Tensor, Tensor]:
    """ids (B, T), padded on the right, and mask (B, T): true behind each row's first `prompts` ids, its end token included."""
    width = padded(max(map(len, rows)))
    ids, mask = torch.full((len(rows), width), pad), torch.zeros(len(rows), width, dtype=torch.bool)
    for i, (row, prompt) in enumerate(zip(rows, prompts)):
        ids[i, : len(row)] = torch.tensor(row)
        mask[i, prompt : len(row)] = True
    return ids.to(device), mask.to(device)


def collate_pairs(batch: list[Pair], pad: int, device) -> tuple[Tensor, Tensor]:
    """ids and mask (2B, T), the B chosen answers first."""
    rows = [pair.chosen for pair in batch] + [pair.rejected for pair in batch]
    return collate_responses(rows, [pair.prompt for pair in batch] * 2, pad, device)


def row_lengths(mask: Tensor) -> Tensor:
    """(B, T), true on the responses -> (B,): where each row ends, since the response is its end."""
    return (torch.arange(mask.shape[1], device=mask.device) * mask).max(1).values + 1
