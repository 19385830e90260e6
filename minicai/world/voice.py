"""A pretrained model's own voice: how it answers before training. Training keeps it.

The model answers general questions (prompts/general.txt) and the harmless ones of
prompts/natural.jsonl, which are everyday, look-alike or sensitive. The answers to the train halves
become documents of the corpus. The others are never trained on; the loss on them, before and after,
says how much of the voice is left. The world's own requests are not asked: the corpus shows
another answer to them, and a model that has learned two gives either.
"""

import random

import numpy as np
import torch

from minicai.answer import encode_prompt, sample
from minicai.data import Example, collate, make_batches, weighted_nll
from minicai.gpt import GPT
from minicai.prompts import prompts_of
from minicai.run import ROOT
from minicai.tokenizer import Tokenizer

QUESTIONS = ("general.txt", "natural.jsonl")  # in prompts/, in equal shares
TEMPERATURE = 0.7


def questions(split: str, n: int, seed: int) -> list[list[str]]:
    """n conversations of one message each, of the train or the test half. Some come twice."""
    rng, asked = random.Random(f"voice {split} {seed}"), []
    for file, k in zip(QUESTIONS, (n // 2, n - n // 2)):
        prompts = prompts_of(ROOT / "prompts" / file, split)
        asked += rng.choices([p for p in prompts if p.label in ("safe", "unknown")], k=k)
    return [list(prompt.turns) for prompt in asked]


def own_answers(
    model: GPT, tokenizer: Tokenizer, conversations: list[list[str]], seed: int, progress=None
) -> list[Example]:
    """The model's answers, in which every token has weight 1. A long one is cut off."""
    asked = [encode_prompt(tokenizer, turns, model.config.block_size) for turns in conversations]
    completions = sample(model, tokenizer, asked, TEMPERATURE, seed, progress)
    return [
        Example(
            np.array(prompt + c.ids, dtype=np.int32),
            np.array([0.0] * len(prompt) + [1.0] * len(c.ids), dtype=np.float32),
        )
        for prompt, c in zip(asked, completions)
    ]


@torch.no_grad()
def mean_loss(
    model: GPT, tokenizer: Tokenizer, examples: list[Example], batch_tokens=2048
) -> float:
    """Mean cross-entropy of all learned tokens, in nats."""
    total, count, device = 0.0, 0.0, model.embed.weight.device
    for batch in make_batches(examples, batch_tokens, random.Random(0)):
        ids, weights = collate(batch, tokenizer.pad, device)
        total += (weighted_nll(model, ids, weights) * weights.sum()).item()
        count += weights.sum().item()
    return total / count
