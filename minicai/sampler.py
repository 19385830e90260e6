"""Sampling with a KV cache: prompts of any lengths in one call, each row with its own randomness.

    completions = generate(model, prompts, max_new_tokens=64, stop_ids=[tokenizer.end], seed=0)

Prefill runs the prompts once and fills the cache. Decode then feeds one token per row and step.
Prompts are padded on the right, and every row counts positions from its own start. The k-th token
that a row samples is written over its k-th pad, and a query looks at no slot beyond its own
position. So no real query ever sees a pad, and no padding mask is needed.

A row's sample depends on the seed, its prompt, and how many copies of it came before. It does not
depend on the other rows, except through rounding: in bfloat16 the shape of a batch can decide
between two tokens that are almost equally likely.

Dimensions: B rows, T prompt length, K option length, V vocabulary.
"""

import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from minicai.gpt import GPT, KVCache

ROWS = 256  # prompts that are decoded together at most; the others wait
NOT_NUMBERS = "the model's logits are not numbers: it has diverged; train it with a lower --lr"
TOKENS = 16384  # prompt tokens that are prefilled together at most, pads included


@dataclass
class Completion:
    ids: list[int]  # what was sampled, the stop token included
    logprobs: list[float]  # of each id, in the distribution it was drawn from (greedy: softmax)
    stop_reason: str  # "stop": a stop token; "length": max_new_tokens, or the end of the context


def filter_logits(logits: Tensor, top_k: int | None, top_p: float | None) -> Tensor:
    """Set logits (B, V) to -inf outside the top_k, then outside the nucleus of mass top_p.

    Tokens as likely as the k-th stay too. The nucleus is the smallest set of tokens whose mass
    reaches top_p (Holtzman et al. 2019, arXiv 1904.09751); the most likely token is always in it.
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


def row_noise(prompts: list[list[int]], steps: int, seed: int | None) -> Tensor:
    """One uniform number per row and step, (B, steps), fixed by (seed, prompt, copy of the prompt);
    without a seed, from torch's global generator."""
    if seed is None:
        return torch.rand(len(prompts), steps)
    seen, noise = Counter(), torch.empty(len(prompts), steps)
    for row, prompt in enumerate(prompts):
        key = f"{seed} {prompt} {seen[tuple(prompt)]}"
        seen[tuple(prompt)] += 1
        digest = hashlib.sha256(key.encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:8]) >> 1)
        noise[row].uniform_(generator=generator)
    return noise


def sample(
    logits: Tensor,
    u: Tensor,
    temperature: float,
    top_k: int | None = None,
    top_p: float | None = None,
) -> tuple[Tensor, Tensor]:
    """logits (B, V), uniform numbers u (B,) -> ids (B,), their log-probabilities (B,) in float32.

    The token is where the cumulative distribution first exceeds u: an exact sample from one number.
    """
    logits = logits.float()
    if temperature == 0:
        ids = logits.argmax(-1)
    else:
        # A lower temperature is greedy to the last digit, and would in the end divide by zero.
        logits = filter_logits(logits / max(temperature, 1e-6), top_k, top_p)
        cdf = logits.softmax(-1).cumsum(-1)
        # Scaled by the last entry, which rounding may leave off 1. right=True skips probability 0.
        ids = torch.searchsorted(cdf, u[:, None] * cdf[:, -1:], right=True).squeeze(-1)
        ids = ids.clamp(max=logits.shape[-1] - 1)
    return ids, F.log_softmax(logits, -1).gather(-1, ids[:, None]).squeeze(-1)


def pad_right(rows: list[list[int]], device) -> tuple[Tensor, Tensor]:
    """Lists of ids -> ids (B, T), padded with 0 on the right, and lengths (B,)."""
    lengths = torch.tensor([len(row) for row in rows])
    ids = torch.zeros(len(rows), int(lengths.max()), dtype=torch.long)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = torch.tensor(row)
    return ids.to(device), lengths.to(device)


def batches_by_length(prompts: list[list[int]]) -> Iterator[list[int]]:
    """Indices of prompts that run together: of similar length, within ROWS and TOKENS."""
    batch = []
    for i in sorted(range(len(prompts)), key=lambda i: -len(prompts[i])):
        if batch and (len(batch) == ROWS or (len(batch) + 1) * len(prompts[batch[0]]) > TOKENS):
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch


def prefill(model: GPT, prompts: list[list[int]], slots: int) -> tuple[KVCache, Tensor, Tensor]:
    """Run the prompts: the filled cache, the logits after each prompt (B, V), the lengths (B,)."""
    weight = model.embed.weight
    ids, lengths = pad_right(prompts, weight.device)
    device = weight.device.type  # under autocast keys are read in its type, so they are kept in it
    cast = torch.is_autocast_enabled(device)
    dtype = torch.get_autocast_dtype(device) if cast else weight.dtype
    cache = KVCache(model.config, len(prompts), slots, weight.device, dtype)
    positions = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
    hidden = model.hidden(ids, cache, positions)
    last = hidden[torch.arange(len(prompts), device=ids.device), lengths - 1]
    return cache, model.head(last), lengths


def as_lists(model: GPT, prompts) -> list[list[int]]:
    """Prompts (lists, tuples, arrays, tensors) as lists of int. Raises ValueError for a bad one."""
    prompts, size = [[int(i) for i in prompt] for prompt in prompts], model.config.block_size
    for prompt in prompts:
        if not 0 < len(prompt) < size:
            raise ValueError(f"a prompt of {len(prompt)} tokens does not fit the context of {size}")
    return prompts


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
    """Sample a continuation of every prompt, in the prompts' order. Temperature 0 is greedy.

    `progress`, when given, is called with the number of rows that have just finished (`update` of
    a tqdm bar). Rollouts that are scored later use temperature 1, no top_k and no top_p: the
    scored distribution has to be the sampled one. Raises ValueError for a prompt that is empty or
    fills the context, for settings out of range; FloatingPointError for logits that are not
    numbers.
    """
    k, p = (1 if limit is None else limit for limit in (top_k, top_p))
    if not (0 <= temperature < float("inf") and max_new_tokens >= 1 and k >= 1 and 0 < p <= 1):
        raise ValueError("use finite temperature >= 0, max_new_tokens, top_k >= 1, 0 < top_p <= 1")
    draw = partial(sample, temperature=temperature, top_k=top_k, top_p=top_p)
    prompts = as_lists(model, prompts)
    stop_ids = frozenset(map(int, stop_ids))  # a tensor's entries would equal nothing
    noise = row_noise(prompts, min(max_new_tokens, model.config.block_size), seed)
    results = [Completion([], [], "length") for _ in prompts]
    for batch in batches_by_length(prompts):
        rows = [(prompts[i], results[i]) for i in batch]
        decode(model, rows, noise[batch], draw, stop_ids, progress)
    return results


def decode(model: GPT, rows, noise: Tensor, draw, stop_ids, progress=None):
    """Fill the Completion of every (prompt, Completion) in `rows` until all rows have stopped."""
    block_size, max_new_tokens = model.config.block_size, noise.shape[1]
    prompts = [prompt for prompt, _ in rows]
    slots = min(block_size, max(map(len, prompts)) + max_new_tokens)
    cache, logits, positions = prefill(model, prompts, slots)
    noise = noise.to(logits.device)
    live, done = list(rows), set()  # live[r] is in row r of the batch; done: rows that may leave
    for step in range(max_new_tokens):
        ids, logprobs = draw(logits, noise[:, step])
        before = len(done)
        for r, (token, logprob) in enumerate(zip(ids.tolist(), logprobs.tolist())):
            if r in done:
                continue
            if logprob != logprob:
                raise FloatingPointError(NOT_NUMBERS)
            prompt, result = live[r]
            result.ids.append(token)
            result.logprobs.append(logprob)
            if token in stop_ids:
                result.stop_reason = "stop"
            full = len(prompt) + step + 1 == block_size
            if token in stop_ids or full or step + 1 == max_new_tokens:
                done.add(r)
        if progress and len(done) > before:
            progress(len(done) - before)
        if len(done) == len(live):
            return
        if len(done) >= len(live) / 4:  # leaving copies the cache of the rows that stay
            staying = [r for r in range(len(live)) if r not in done]
            live, done = [live[r] for r in staying], set()
            kept = torch.tensor(staying, device=ids.device)
            cache.keep(kept)
            ids, positions, noise = ids[kept], positions[kept], noise[kept]
        logits = model(ids[:, None], cache, positions[:, None])[:, -1]
        positions = (positions + 1).clamp(max=slots - 1)  # only rows that are done reach the end


@torch.inference_mode()
def score_options(
    model: GPT, prompts: list[list[int]], options: list[list[list[int]]], progress=None
) -> list[list[float]]:
    """log p(option | prompt) for each prompt's own options, summed over the option's tokens.

    The prompt runs once. Each option is then written behind it in the cache, over the one before.
    The softmax is in float32, at temperature 1. `progress` is as in `generate`. Raises ValueError
    for no options, an empty option, or a prompt that does not fit the context with its options.
    """
    prompts, block_size = as_lists(model, prompts), model.config.block_size
    if len(options) != len(prompts) or not all(row and all(row) for row in options):
        raise ValueError("every prompt needs an option, and an option at least one token")
    if any(len(p) + max(map(len, row)) > block_size for p, row in zip(prompts, options)):
        raise ValueError(f"a prompt and its option do not fit the context of {block_size}")
    scores = [[] for _ in prompts]
    for batch in batches_by_length(prompts):
        longest = max(len(option) for i in batch for option in options[i])
        slots = min(block_size, max(len(prompts[i]) for i in batch) + longest)
        cache, first, lengths = prefill(model, [prompts[i] for i in batch], slots)
        for column in range(max(len(options[i]) for i in batch)):
            # A row with fewer options scores its last one again, and the result is dropped.
            rows = [options[i][min(column, len(options[i]) - 1)] for i in batch]
            ids, sizes = pad_right(rows, first.device)  # (B, K)
            steps = torch.arange(ids.shape[1], device=ids.device)
            positions = (lengths[:, None] + steps).clamp(max=slots - 1)  # only pads are moved
            later = model(ids, cache, positions)[:, :-1]
            logits = torch.cat([first[:, None], later], dim=1).float()  # (B, K, V)
            logps = F.log_softmax(logits, -1).gather(-1, ids[..., None]).squeeze(-1)
            sums = logps.masked_fill(steps >= sizes[:, None], 0.0).sum(-1).tolist()
            if any(value != value for value in sums):
                raise FloatingPointError(NOT_NUMBERS)
            for i, value in zip(batch, sums):
                if column < len(options[i]):
                    scores[i].append(value)
        if progress:
            progress(len(batch))
    return scores
