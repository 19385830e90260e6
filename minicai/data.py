"""From conversations to batches: ids, weights or masks, padding on the right.

B batch, T time. Widths are rounded up (`padded`). The content of a pad never matters, because
attention is causal and every mask and weight is 0 there.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import cycle

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from minicai.device import autocast
from minicai.files import UserError
from minicai.gpt import GPT
from minicai.preferences import read_preferences
from minicai.rows import choose_rows
from minicai.tokenizer import Tokenizer, talk


@dataclass
class Example:
    ids: np.ndarray  # (T,)
    weights: np.ndarray  # (T,), in the loss: of predicting each id from those before it


def encode_turns(tokenizer: Tokenizer, turns: list[tuple[str, str, float]]) -> Example:
    """Turns of (role, text, weight) as ids. The weight holds for the text and its end token.

    The rest of the chat format has weight 0. The role "document" is plain text without a format;
    several documents in a row are pieces of one document with one end token.
    """
    ids = tokenizer.start(turns[0][0])
    weights = [0.0] * len(ids)
    for (role, text, weight), (following, _, _) in zip(turns, [*turns[1:], ("", "", 0.0)]):
        opening = [] if role == "document" else tokenizer.opening[role]
        ended = role != "document" or following != "document"
        encoded = tokenizer.encode(text) + [tokenizer.end] * ended
        closing = tokenizer.closing * ended
        ids += opening + encoded + closing
        weights += [0.0] * len(opening) + [weight] * len(encoded) + [0.0] * len(closing)
    weights[0] = 0.0  # nothing comes before the first id
    return Example(np.array(ids, dtype=np.int32), np.array(weights, dtype=np.float32))


def encode_answer(tokenizer: Tokenizer, turns: list[str], response: str) -> Example:
    """A conversation in which only the final answer is learned."""
    roles = cycle(("user", "assistant"))
    read = [(role, text, 0.0) for role, text in zip(roles, turns)]
    return encode_turns(tokenizer, [*read, ("assistant", response, 1.0)])


def encode_chats(
    tokenizer: Tokenizer, data: list[tuple], share: float, limit: int, rng: random.Random
) -> list[Example]:
    """Each (turns, response), and a share of them again after another conversation.

    A chat of more than `limit` ids is left out.
    """
    examples = [encode_answer(tokenizer, turns, response) for turns, response in data]
    for turns, response in rng.sample(data, round(share * len(data))):
        before, answered = rng.choice(data)
        chat = encode_answer(tokenizer, [*before, answered, *turns], response)
        if before != turns and len(chat.ids) <= limit:
            examples.append(chat)
    return examples


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
    """Mean cross-entropy of the ids by weight: sum(w * nll) / sum(w). ids, weights (B, T).

    The head, a fifth of a small model's work, reads only positions that have a weight.
    """
    w, targets = weights[:, 1:].flatten(), ids[:, 1:].flatten()
    n = min(len(w), padded(int((w > 0).sum())))
    kept = w.topk(n).indices  # all positions with a weight, and a few without
    with autocast(ids.device):
        hidden = model.hidden(ids[:, :-1]).flatten(0, 1)  # (B (T-1), C)
        logits = model.head(hidden[kept])  # (n, V)
    nll = F.cross_entropy(logits.float(), targets[kept], reduction="none")
    return (nll * w[kept]).sum() / w.sum()


# --- comparisons ---------------------------------------------------------------------------------


@dataclass
class Pair:
    """Two answers to one prompt as ids, and the label."""

    index: int  # its place in the list of all pairs
    prompt: int  # how many ids the prompt has
    chosen: list[int]  # prompt and answer
    rejected: list[int]
    p: float  # probability that the chosen answer is the better one, 0.5 to 1
    by_policy: tuple[bool, bool]  # whether the policy wrote the chosen, the rejected answer


def encode_pairs(tokenizer: Tokenizer, rows: list[dict], block_size: int) -> list[Pair]:
    """Comparisons as ids. The likelier answer is the chosen one.

    Equal answers are left out, and pairs that do not fit the context.
    """
    pairs, too_long = [], 0
    for row in rows:
        prompt = tokenizer.prompt(talk(*row["turns"], system=row.get("system", "")))
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
    rows = [row for path in paths for row in read_preferences(path)]
    pairs = encode_pairs(tokenizer, choose_rows(rows, helpful_fraction, rng), block_size)
    if not pairs:
        raise UserError(
            f"{paths[0]} holds no comparison to train on ({len(rows)} rows: answers are equal, too "
            "long, or left out by --helpful-fraction); add comparisons, or name another file"
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
