"""Sampling with a KV cache: ragged prompts in one call, the randomness of each row its own.

    completions = generate(model, prompts, max_new_tokens=64, temperature=1.0, stop_ids=[tokenizer.end], seed=0)

Prefill runs the prompts once and fills the cache; decode then feeds one token per row and step. Prompts are padded on the
right and every row counts positions from its own start, so a pad's slot is overwritten by the first sampled token
before anything can attend to it: there is no padding mask to get wrong. Finished rows leave the batch, by the quarter.

A row's sample depends only on the seed, its prompt and how many copies of the prompt came before it, up to rounding, which depends
on the shape of the batch: in bfloat16 it may turn a close choice between two tokens, in float32 hardly ever.

Dimensions: B rows, T prompt length, V vocabulary.
"""

import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from minicai.gpt import GPT, KVCache

ROWS = 256  # prompts decoded together at most; the rest wait
TOKENS = 16384  # and prompt tokens prefilled together at most, pads included


@dataclass
class Completion:
    ids: list[int]  # what was sampled, the stop token included
    logprobs: list[
        float
    ]  # of each id, under the distribution it was sampled from (of the plain softmax when greedy)
    stop_reason: str  # "stop": a stop token ended it; "length": it ran into max_new_tokens or the end of the context


def filter_logits(logits: Tensor, top_k: int | None, top_p: float | None) -> Tensor:
    """Set to -inf all but the top_k most likely tokens (and those as likely as the last of them), then all but the smallest set whose mass reaches top_p.

    logits (B, V). Nucleus sampling: Holtzman et al. 2019, arXiv 1904.09751. The most likely token always stays.
    """
    if top_k is not None and top_k < logits.shape[-1]:
        kth = logits.topk(top_k, dim=-1).values[:, -1:]
        logits = logits.masked_fill(logits < kth, -torch.inf)
    if top_p is not None and top_p < 1.0:
        ordered, order = logits.sort(dim=-1, descending=True)
        p = ordered.softmax(-1)
        beyond = p.cumsum(-1) - p >= top_p  # the mass before this token already reaches top_p
        logits = logits.masked_fill(beyond.scatter(-1, order, beyond), -torch.inf)
    return logits


def row_noise(prompts: list[list[int]], length: int, seed: int | None) -> Tensor:
    """One uniform number per row and step, (rows, length), fixed by (seed, prompt, how often the prompt occurred before).

    So a prompt's samples depend neither on its neighbours nor on the order, and a prompt listed twice gets two samples.
    """
    if seed is None:
        return torch.rand(len(prompts), length)
    seen, noise = Counter(), torch.empty(len(prompts), length)
    for row, prompt in enumerate(prompts):
        key = f"{seed} {prompt} {seen[tuple(prompt)]}"
        seen[tuple(prompt)] += 1
        digest = hashlib.sha256(key.encode()).digest()
        noise[row].uniform_(
            generator=torch.Generator().manual_seed(int.from_bytes(digest[:8]) >> 1)
        )
    return noise


def sample(logits: Tensor, u: Tensor, temperature: float, top_k: int | None, top_p: float | None):
    """logits (B, V) and uniform numbers u (B,) -> ids (B,) and their log-probabilities (B,), in float32.

    The token is where the cumulative distribution first exceeds u, which is an exact sample and needs one number a row.
    """
    logits = logits.float()
    if temperature == 0:
        ids = logits.argmax(-1)
    else:
        # Colder than this is greedy to the last digit, and in the end divides by zero.
        logits = filter_logits(logits / max(temperature, 1e-6), top_k, top_p)
        cdf = logits.softmax(-1).cumsum(-1)
        # Scaled by the last entry, because rounding leaves it beside 1; right=True passes over tokens of probability 0.
        ids = torch.searchsorted(cdf, (u[:, None] * cdf[:, -1:]), right=True).squeeze(-1)
        ids = ids.clamp(max=logits.shape[-1] - 1)
    return ids, F.log_softmax(logits, -1).gather(-1, ids[:, None]).squeeze(-1)


def pad_right(rows: list[list[int]], device) -> tuple[Tensor, Tensor]:
    """Ragged id lists -> ids (B, T) padded with 0 on the right, and lengths (B,). What a pad holds never matters."""
    lengths = torch.tensor([len(row) for row in rows])
    ids = torch.zeros(len(rows), int(lengths.max()), dtype=torch.long)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = torch.tensor(row)
    return ids.to(device), lengths.to(device)


def batches_by_length(prompts: list[list[int]]) -> Iterator[list[int]]:
    """Numbers of prompts that run together: of like length, longest first, within ROWS and TOKENS."""
    chunk = []
    for i in sorted(range(len(prompts)), key=lambda i: -len(prompts[i])):
        if chunk and (len(chunk) == ROWS or (len(chunk) + 1) * len(prompts[chunk[0]]) > TOKENS):
            yield chunk
            chunk = []
        chunk.append(i)
    if chunk:
        yield chunk


def prefill(model: GPT, prompts: list[list[int]], slots: int) -> tuple[KVCache, Tensor, Tensor]:
    """Run the prompts once: the filled cache, the logits after each row's last token (B, V), and the lengths (B,)."""
    weight = model.embed.weight
    ids, lengths = pad_right(prompts, weight.device)
    device = weight.device.type  # under autocast keys are read in its type, so they are kept in it
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
    cache = KVCache(model.config, len(prompts), slots, weight.device, dtype)
    positions = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
    hidden = model.hidden(ids, cache, positions)
    last = hidden[
        torch.arange(len(prompts), device=ids.device), lengths - 1
    ]  # by length, never by comparing ids
    return cache, model.head(last), lengths


def _check(model: GPT, prompts: list[list[int]]):
    for prompt in prompts:
        if not 0 < len(prompt) < model.config.block_size:
            raise ValueError(
                f"a prompt of {len(prompt)} tokens does not fit the context of {model.config.block_size}"
            )


@torch.inference_mode()
def generate(
    model: GPT,
    prompts: list[list[int]],
    max_new_tokens: int,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    stop_ids=(),
    seed: int | None = None,
    progress=None,
) -> list[Completion]:
    """Sample a continuation of every prompt, in the prompts' order. temperature 0 is greedy.

    `progress`, when given, is called with the number of rows that have just finished (a tqdm bar's `update`).
    Rollouts that are scored later use no top_k and no top_p, so that the policy can be compared with what was sampled.
    Raises ValueError for a prompt that is empty or fills the context, or for settings out of range.
    """
    if (
        not 0 <= temperature < float("inf")
        or (top_k is not None and top_k < 1)
        or (top_p is not None and not 0 < top_p <= 1)
    ):
        raise ValueError("temperature must be >= 0 and finite, top_k >= 1, and top_p in (0, 1]")
    if max_new_tokens < 1:
        raise ValueError("max_new_tokens must be >= 1")
    _check(model, prompts)
    stop_ids = frozenset(map(int, stop_ids))  # a tensor's entries would equal nothing
    noise = row_noise(prompts, max_new_tokens, seed)
    results = [Completion([], [], "length") for _ in prompts]
    for chunk in batches_by_length(prompts):
        decode(
            [prompts[i] for i in chunk],
            [results[i] for i in chunk],
            noise[chunk],
            model,
            temperature,
            top_k,
            top_p,
            stop_ids,
            progress,
        )
    return results


def decode(prompts, results, noise, model, temperature, top_k, top_p, stop_ids, progress):
    """Fill `results`, one Completion a prompt, until every row has stopped."""
    block_size, max_new_tokens = model.config.block_size, noise.shape[1]
    slots = min(block_size, max(map(len, prompts)) + max_new_tokens)
    cache, logits, positions = prefill(model, prompts, slots)
    noise = noise.to(logits.device)
    live, done = (
        list(range(len(prompts))),
        set(),
    )  # live[r]: the prompt of row r; done: rows that wait to leave
    for step in range(max_new_tokens):
        ids, logprobs = sample(logits, noise[:, step], temperature, top_k, top_p)
        before = len(done)
        for row, (token, logprob) in enumerate(zip(ids.tolist(), logprobs.tolist())):
            if row in done:
                continue
            result = results[live[row]]
            result.ids.append(token)
            result.logprobs.append(logprob)
            if token in stop_ids:
                result.stop_reason = "stop"
            if (
                token in stop_ids
                or step + 1 == max_new_tokens
                or len(prompts[live[row]]) + step + 1 == block_size
            ):
                done.add(row)
        if progress and len(done) > before:
            progress(len(done) - before)
        if len(done) == len(live):
            return
        if (
            len(done) >= len(live) / 4
        ):  # leaving copies the cache of those who stay: worth it for a quarter of the rows
            going = [row for row in range(len(live)) if row not in done]
            live, done = [live[row] for row in going], set()
            rows = torch.tensor(going, device=ids.device)
            cache.keep(rows)
            ids, positions, noise = ids[rows], positions[rows], noise[rows]
        logits = model(ids[:, None], cache, positions[:, None])[:, -1]
        positions = (positions + 1).clamp(
            max=slots - 1
        )  # only rows that are done can run into the end


@torch.inference_mode()
def score_options(
    model: GPT, prompts: list[list[int]], options: list[list[list[int]]]
) -> list[list[float]]:
    """log p(option | prompt), summed over the option's tokens, for each prompt's own list of options.

    The prompt runs once. Each option is then written behind it in the cache, over the one before. The softmax is in float32, at temperature 1.
    Raises ValueError for an empty option, a prompt without options, an empty prompt, or one that fills the context or
    does not fit it together with an option.
    """
    _check(model, prompts)
    if len(options) != len(prompts) or not all(row and all(row) for row in options):
        raise ValueError("every prompt needs an option, and an option at least one token")
    if any(
        len(prompt) + max(map(len, row)) > model.config.block_size
        for prompt, row in zip(prompts, options)
    ):
        raise ValueError(
            f"a prompt and its option do not fit the context of {model.config.block_size}"
        )
    scores = [[] for _ in prompts]
    for chunk in batches_by_length(prompts):
        longest = max(len(option) for i in chunk for option in options[i])
        room = min(model.config.block_size, max(len(prompts[i]) for i in chunk) + longest)
        cache, first, lengths = prefill(model, [prompts[i] for i in chunk], room)
        for column in range(max(len(options[i]) for i in chunk)):
            # A row that has fewer options than its neighbours rescores its last one, and the result is dropped.
            rows = [options[i][min(column, len(options[i]) - 1)] for i in chunk]
            ids, sizes = pad_right(rows, first.device)  # (B, K)
            positions = lengths[:, None] + torch.arange(ids.shape[1], device=ids.device)
            positions = positions.clamp(max=room - 1)  # only pads of a full row are moved
            logits = torch.cat(
                [first[:, None], model(ids, cache, positions)[:, :-1]], dim=1
            ).float()  # (B, K, V)
            logprobs = F.log_softmax(logits, -1).gather(-1, ids[..., None]).squeeze(-1)
            inside = torch.arange(ids.shape[1], device=ids.device) < sizes[:, None]
            sums = logprobs.masked_fill(~inside, 0.0).sum(-1).tolist()
            for i, value in zip(chunk, sums):
                if column < len(options[i]):
                    scores[i].append(value)
    return scores
