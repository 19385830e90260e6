"""From conversations to batches: ids, weights or masks, padding on the right.

B batch, T time. Widths are rounded up (`padded`); what stands in a pad never matters, because
attention is causal and every mask and weight is 0 there.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from minicai.device import autocast
from minicai.files import UserError, read_jsonl
from minicai.gpt import GPT
from minicai.tokenizer import Tokenizer, talk


@dataclass
class Example:
    ids: np.ndarray  # (T,)
    weights: np.ndarray  # (T,), in the loss, of predicting each id from those before it


def encode_turns(tokenizer: Tokenizer, turns: list[tuple[str, str, float]]) -> Example:
    """Turns of (role, text, weight) as ids. The weight holds for the text and its end token.

    The id of a role has weight 0. The role "document" is plain text without such an id; several
    documents in a row are pieces of one document with one end token.
    """
    ids, weights = [], []
    for (role, text, weight), (following, _, _) in zip(turns, [*turns[1:], ("", "", 0.0)]):
        encoded = tokenizer.encode(text)
        if role != "document" or following != "document":
            encoded.append(tokenizer.end)
        if role != "document":
            ids.append(getattr(tokenizer, role))
            weights.append(0.0)
        ids += encoded
        weights += [weight] * len(encoded)
    weights[0] = 0.0  # nothing comes before the first id
    return Example(np.array(ids, dtype=np.int32), np.array(weights, dtype=np.float32))


def padded(length: int) -> int:
    """The width of a batch: one more than a multiple of 16, since a model's input is one shorter.

    CPU libraries build and keep a kernel for every new shape, which costs time and gigabytes.
    """
    return -(-(length - 1) // 16) * 16 + 1


def fill(items, width, limit: int) -> list[list]:
    """Items sorted by width, in batches of at most `limit` ids, or of one wider item."""
    batches = [[]]
    for item in items:
        if batches[-1] and (len(batches[-1]) + 1) * width(item) > limit:
            batches.append([])
        batches[-1].append(item)
    return batches if batches[0] else []


def make_batches(
    examples: list[Example], batch_tokens: int, rng: random.Random, pool: int = 4096
) -> Iterator[list[Example]]:
    """One epoch in random order: batches of similar lengths, at most `batch_tokens` ids with pads.

    Lengths are sorted only within random pools, so that batches differ from epoch to epoch.
    """
    order = list(range(len(examples)))
    rng.shuffle(order)
    for start in range(0, len(order), pool):
        chosen = [examples[i] for i in order[start : start + pool]]
        chosen.sort(key=lambda e: len(e.ids))
        batches = fill(chosen, lambda e: padded(len(e.ids)), batch_tokens)
        rng.shuffle(batches)
        yield from batches


def collate(batch: list[Example], pad: int, device) -> tuple[Tensor, Tensor]:
    """ids (B, T) and weights (B, T)."""
    width = padded(max(len(e.ids) for e in batch))
    ids = np.full((len(batch), width), pad, dtype=np.int64)
    weights = np.zeros((len(batch), width), dtype=np.float32)
    for row, e in enumerate(batch):
        ids[row, : len(e.ids)] = e.ids
        weights[row, : len(e.ids)] = e.weights
    return torch.from_numpy(ids).to(device), torch.from_numpy(weights).to(device)


def weighted_nll(model: GPT, ids: Tensor, weights: Tensor) -> Tensor:
    """Mean cross-entropy of the ids by weight: sum(w * nll) / sum(w). ids, weights (B, T)."""
    with autocast(ids.device):
        logits = model(ids[:, :-1])  # (B, T-1, V)
    nll = F.cross_entropy(logits.float().flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
    w = weights[:, 1:].flatten()
    return (nll * w).sum() / w.sum()


# --- chains and comparisons -----------------------------------------------------------------------


def is_text(value) -> bool:
    return isinstance(value, str)


def is_maybe_text(value) -> bool:
    return value is None or isinstance(value, str)


def list_of(fits, lengths=lambda n: True):
    """A test for a list whose entries fit, and whose length fits."""
    return lambda value: isinstance(value, list) and lengths(len(value)) and all(map(fits, value))


TURNS = (
    list_of(is_text, lambda n: n % 2 == 1),
    "a list of an odd number of texts, the person's last",
)
FIELDS = {  # of rows that training reads: (test, words), see files.read_jsonl
    "id": (lambda value: isinstance(value, int | str), "a number or a text"),
    "turns": TURNS,
    "plain": TURNS,
    "responses": (list_of(is_text), "a list of texts"),
    "principles": (list_of(is_text), "a list of texts"),
    "critiques": (list_of(is_maybe_text), "a list of texts"),
    "response": (is_maybe_text, "a text"),
    "a": (is_text, "a text"),
    "b": (is_text, "a text"),
    "by": (list_of(is_text, lambda n: n == 2), "a list of two texts"),
    "kind": (lambda value: value in ("ai", "human"), "'ai' or 'human'"),
    "p": (lambda value: type(value) in (int, float) and 0 <= value <= 1, "a number from 0 to 1"),
}


def read_chains(path) -> list[dict]:
    """The critique-revision chains that revise.py wrote. Raises UserError when there are none."""
    rows = read_jsonl(path, required=("id", "turns", "responses"), fields=FIELDS)
    seen = set()
    for number, row in enumerate(rows, 1):
        if row["id"] in seen:
            raise UserError(
                f"{path}:{number} has the id {row['id']} of an earlier line; delete one"
            )
        seen.add(row["id"])
    rows = [row for row in rows if row["responses"]]
    if not rows:
        raise UserError(f"{path} holds no chain; run revise.py")
    return rows


@dataclass
class Pair:
    """Two answers to one prompt as ids, and the label."""

    index: int  # its place in the list of all pairs
    prompt: int  # how many ids the prompt has
    chosen: list[int]  # prompt and answer
    rejected: list[int]
    p: float  # probability that the chosen answer is the better one, 0.5 to 1
    by_policy: tuple[bool, bool]  # whether the policy wrote the chosen, the rejected answer


TIE = 0.05  # a judge whose probability is this close to 0.5 sees no difference
FEW = 20  # with fewer decided comparisons ties are kept


def tied(p: float) -> bool:
    return abs(p - 0.5) < TIE


def choose_rows(rows: list[dict], helpful_fraction: float, rng: random.Random) -> list[dict]:
    """The rows that are trained on. At most `helpful_fraction` of them compare helpfulness.

    Ties are left out: in most pairs neither answer breaks the principle, and they would outnumber
    the rest.
    """
    ai, human = ([row for row in rows if row["kind"] == kind] for kind in ("ai", "human"))
    decided = [row for row in ai if not tied(row["p"])]
    if len(decided) < FEW and len(decided) < len(ai):
        print(f"the judge decided only {len(decided)} of {len(ai)} comparisons; ties are kept")
        decided = ai
    wanted = round(len(decided) * helpful_fraction / (1 - helpful_fraction))
    return decided + rng.sample(human, min(wanted, len(human)))


def encode_pairs(tokenizer: Tokenizer, rows: list[dict], block_size: int) -> list[Pair]:
    """Comparisons as ids. The likelier answer is the chosen one.

    Equal answers are left out, and pairs that do not fit the context.
    """
    pairs, too_long = [], 0
    for row in rows:
        prompt = tokenizer.prompt(talk(*row["turns"]))
        a, b = ([*prompt, *tokenizer.encode(row[key]), tokenizer.end] for key in "ab")
        if max(len(a), len(b)) > block_size:
            too_long += 1
        elif a != b:
            by = tuple(name == "policy" for name in row.get("by", ("policy", "policy")))
            a_wins = row["p"] >= 0.5
            chosen, rejected, by = (a, b, by) if a_wins else (b, a, by[::-1])
            p = max(row["p"], 1 - row["p"])
            pairs.append(Pair(len(pairs), len(prompt), chosen, rejected, p, by))
    if too_long:
        print(f"{too_long} comparisons do not fit the context of {block_size} ids and are left out")
    return pairs


def read_pairs(
    paths: list, tokenizer: Tokenizer, helpful_fraction: float, block_size: int, rng: random.Random
) -> list[Pair]:
    """The comparisons of several files. Raises UserError when there are none to train on."""
    required = ("id", "kind", "turns", "a", "b", "p")
    rows = [row for path in paths for row in read_jsonl(path, required, FIELDS)]
    pairs = encode_pairs(tokenizer, choose_rows(rows, helpful_fraction, rng), block_size)
    if not pairs:
        raise UserError(
            f"{paths[0]} holds no comparison to train on ({len(rows)} rows: answers are equal, too "
            "long, or left out by --helpful-fraction); run label.py again"
        )
    return pairs


def pair_batches(pairs: list[Pair], batch_tokens: int, rng: random.Random) -> list[list[Pair]]:
    """One epoch in random order, in batches of pairs of similar length."""

    def width(pair: Pair) -> int:
        return 2 * padded(max(len(pair.chosen), len(pair.rejected)))

    batches = fill(sorted(rng.sample(pairs, len(pairs)), key=width), width, batch_tokens)
    rng.shuffle(batches)
    return batches


def collate_responses(
    rows: list[list[int]], prompts: list[int], pad: int, device
) -> tuple[Tensor, Tensor]:
    """ids (B, T), and mask (B, T): true on each row's ids after its first `prompts` ones."""
    width = padded(max(map(len, rows)))
    ids = torch.full((len(rows), width), pad)
    mask = torch.zeros(len(rows), width, dtype=torch.bool)
    for i, (row, prompt) in enumerate(zip(rows, prompts)):
        ids[i, : len(row)] = torch.tensor(row)
        mask[i, prompt : len(row)] = True
    return ids.to(device), mask.to(device)


def collate_pairs(batch: list[Pair], pad: int, device) -> tuple[Tensor, Tensor]:
    """ids and mask (2B, T): the B chosen answers first, then the rejected ones."""
    rows = [pair.chosen for pair in batch] + [pair.rejected for pair in batch]
    return collate_responses(rows, [pair.prompt for pair in batch] * 2, pad, device)


def row_lengths(mask: Tensor) -> Tensor:
    """mask (B, T), true on the responses -> (B,): the length of each row without its pads."""
    return (torch.arange(mask.shape[1], device=mask.device) * mask).max(1).values + 1
