"""A pretrained model's own voice: how it answers before training. Training keeps it.

The model answers general questions (prompts/general.txt) and the world's everyday, look-alike and
sensitive requests. Most answers become documents of the corpus. The others are of the test splits
and are never trained on; the loss on them, before and after, says how much of the voice is left.
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
from minicai.world.content import World
from minicai.world.requests import Part, draw_prompts

QUESTIONS = ROOT / "prompts" / "general.txt"
GENERAL = 0.5  # share of the answers that are to general questions
MIX = {("legitimate", "everyday"): 0.4, ("legitimate", "lookalike"): 0.3, ("sensitive", None): 0.3}
TEMPERATURE = 0.7


def questions(world: World, split: str, n: int, seed: int) -> list[list[str]]:
    """n conversations of one message each, of the train or the test split. Some come twice."""
    rng, n_general = random.Random(f"voice {split} {seed}"), round(GENERAL * n)
    general = rng.choices(prompts_of(QUESTIONS, split), k=n_general)
    asked = general + draw_prompts(Part(world, split), n - n_general, rng, MIX)
    return [list(request.turns) for request in asked]


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
