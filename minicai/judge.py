"""The AI judge: which of two answers keeps better to a principle? Bai et al. 2022, section 4.1.

The judge is the base model. There are two ways to ask it.

`judge_directly` is the paper's first judge. It reads the conversation, a principle and both
answers, and says "(A)" or "(B)". Both orders are scored, because a model may favour a place:

    p(a is better) = [ P("(A)" | a first) + P("(B)" | b first) ] / 2,  P normalised over the two

`judge_by_critique` reasons first, like the paper's chain-of-thought judge. It critiques each answer
alone, in the words of Stage 1. P(breaks) is how likely the critique is to end in BREAKS, not KEEPS:

    p(a is better) = [ 1 + P(b breaks the principle) - P(a breaks it) ] / 2

A model of four layers can reason about one answer at a time, so this judge is the default.

All functions below take a GPT, its Tokenizer, and lists with one entry a case: conversations, the
answers a and b or one response, and the Wording of a principle. `shots` are turns of demonstrations
(minicai/world/few_shot.py), which stand before every conversation.
"""

import math
from dataclasses import dataclass

from minicai.answer import MAX_NEW_TOKENS, answer, fit, option_scores
from minicai.critique import BREAKS, CRITIQUE_REQUEST, KEEPS, OPTIONS, comparison_prompt
from minicai.rows import tied
from minicai.tokenizer import talk

LABELS = {  # from the judge's probability to the label that training sees
    "soft": lambda p: p,
    "hard": lambda p: 0.5 if tied(p) else float(p > 0.5),
    "clamp": lambda p: min(max(p, 0.4), 0.6),  # the paper's remedy for an overconfident judge
}
STEPS = 4  # in judging a pair: two critiques, and P(breaks) of each


@dataclass(frozen=True)
class Verdict:
    """p(a is better), as judged with a first and with b first."""

    a_first: float
    b_first: float
    reasons: tuple = ()  # of judge_by_critique: (critique, P(breaks)) of a and of b

    @property
    def p(self) -> float:
        return (self.a_first + self.b_first) / 2

    @property
    def consistent(self) -> bool:
        """Whether the same answer wins in both orders."""
        return (self.a_first - 0.5) * (self.b_first - 0.5) > 0


def normalise(first: float, second: float) -> float:
    """The probability of the first of two options, from their log-probabilities."""
    return 1 / (1 + math.exp(min(second - first, 700)))


def judge_directly(
    model, tokenizer, conversations, a, b, wordings, progress=None, shots=()
) -> list[Verdict]:
    """One verdict for each conversation, its two answers and a principle.

    `progress` is called with the number of steps that are done. A pair has STEPS.
    """
    options = [[*tokenizer.encode(option), tokenizer.end] for option in OPTIONS]
    room = model.config.block_size - max(map(len, options))
    prompts = []
    for turns, one, other, wording in zip(conversations, a, b, wordings):
        for pair in ((one, other), (other, one)):
            question = comparison_prompt(turns, wording.comparison, *pair)
            prompts.append(fit(tokenizer.prompt(talk(*shots, question)), room))
    scores = option_scores(model, prompts, [options] * len(prompts))
    if progress:
        progress(STEPS * len(conversations))
    p_first = [normalise(*pair) for pair in scores]
    return [Verdict(x, 1 - y) for x, y in zip(p_first[::2], p_first[1::2])]


def critiques_with_p(
    model, tokenizer, conversations, responses, wordings, progress=None, shots=()
) -> list[tuple[str | None, float | None]]:
    """The model's greedy critique of each response, and P(it ends in BREAKS, not in KEEPS).

    P is None where the critique comes to no verdict.
    """
    dialogues = [
        [*shots, *turns, response, CRITIQUE_REQUEST.format(wording.critique)]
        for turns, response, wording in zip(conversations, responses, wordings)
    ]
    critiques = answer(model, tokenizer, dialogues, progress=progress)
    prompts, decided = [], []
    for i, text in enumerate(critiques):
        end = next((end for end in (BREAKS, KEEPS) if (text or "").endswith(end)), None)
        if end:
            reasons = tokenizer.encode(text.removesuffix(end).rstrip())
            prompt = tokenizer.prompt(talk(*dialogues[i])) + reasons
            prompts.append(fit(prompt, model.config.block_size - MAX_NEW_TOKENS))
            decided.append(i)
    options = [tokenizer.encode(f" {BREAKS}"), tokenizer.encode(f" {KEEPS}")]
    scores = option_scores(model, prompts, [options] * len(prompts), progress)
    if progress:
        progress(len(critiques) - len(prompts))
    p = dict(zip(decided, (normalise(*pair) for pair in scores)))
    return [(text, p.get(i)) for i, text in enumerate(critiques)]


def p_breaks(model, tokenizer, conversations, responses, wordings) -> list[float | None]:
    """P(the response breaks the principle). None without a response, or without a verdict on it."""
    given = [i for i, text in enumerate(responses) if text]
    kept = ([column[i] for i in given] for column in (conversations, responses, wordings))
    found = dict(zip(given, (p for _, p in critiques_with_p(model, tokenizer, *kept))))
    return [found.get(i) for i in range(len(responses))]


def judge_by_critique(
    model, tokenizer, conversations, a, b, wordings, progress=None, shots=()
) -> list[Verdict | None]:
    """One verdict for each pair. None where a critique comes to no verdict: drop and count those.

    The difference of the two probabilities is used and not their odds: 0.02 against 0.0004 is a
    tie, because the judge finds no fault with either answer. Neither answer stands first, so both
    numbers of a verdict are equal.
    """
    both = [*conversations, *conversations], [*a, *b], [*wordings, *wordings]
    found = critiques_with_p(model, tokenizer, *both, progress, shots)
    verdicts = []
    for reasons in zip(found[: len(a)], found[len(a) :]):
        (_, a_breaks), (_, b_breaks) = reasons
        if a_breaks is None or b_breaks is None:
            verdicts.append(None)
        else:
            p = (1 + b_breaks - a_breaks) / 2
            verdicts.append(Verdict(p, p, reasons))
    return verdicts


JUDGES = {"critique": judge_by_critique, "direct": judge_directly}
