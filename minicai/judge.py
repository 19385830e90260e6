"""The AI judge: which of two answers keeps better to a principle? Bai et al. 2022 (arXiv 2212.08073), section 4.1.

The judge is the base model, and there are two ways to ask it.

`judge` is the paper's (label.py --judge direct). It reads the conversation, a principle and both answers, and what counts is how
likely it is to say "(A)" and how likely to say "(B)". Both orders are scored, because a model may favour a place:

    p(a is better) = [ P("(A)" | a first) + P("(B)" | b first) ] / 2,   with P normalised over the two options

`judge_by_critique` is what label.py uses unless told otherwise. It reasons first: it criticises each answer by itself, in the
words of Stage 1, and what counts is how likely each critique is to end in "breaks it":

    p(a is better) = [ 1 + P(b breaks the principle) - P(a breaks it) ] / 2

The paper's chain-of-thought judge reads both answers and compares them in words; for a model of four layers that is too much at
once (docs/log.md has both judges' accuracy).
"""

import math
import random
from dataclasses import dataclass

from minicai.common import autocast
from minicai.constitution import Constitution, Wording
from minicai.critique import MAX_NEW_TOKENS, answer
from minicai.data import TIE
from minicai.gpt import GPT
from minicai.metrics import by_length, ece, rate, rate_by_topic
from minicai.sampler import score_options
from minicai.tokenizer import Tokenizer, talk
from minicai.world.content import World
from minicai.world.replies import any_reply
from minicai.world.requests import PLAIN, Part
from minicai.world.skills import BREAKS, CRITIQUE_REQUEST, KEEPS, comparison, flaws

OPTIONS = ("(A)", "(B)")
LABELS = {  # from the judge's probability to the label that training sees
    "soft": lambda p: p,
    "hard": lambda p: 0.5 if abs(p - 0.5) < TIE else float(p > 0.5),  # a tie stays one
    "clamp": lambda p: min(
        max(p, 0.4), 0.6
    ),  # the paper's remedy for an overconfident judge that reasons first
}


@dataclass(frozen=True)
class Verdict:
    """p(a is better), as judged with a first and with b first."""

    a_first: float
    b_first: float
    reasons: tuple = ()  # of a judge that reasons first: the critiques of a and of b, each with P(breaks the principle)

    @property
    def p(self) -> float:
        return (self.a_first + self.b_first) / 2

    @property
    def consistent(self) -> bool:
        """Whether the same answer wins in both orders."""
        return (self.a_first - 0.5) * (self.b_first - 0.5) > 0


def prefer(first: float, second: float) -> float:
    """Two log-probabilities, normalised over the two: the probability of the first."""
    return 1 / (1 + math.exp(min(second - first, 700)))


def judge(
    model: GPT,
    tokenizer: Tokenizer,
    conversations: list[list[str]],
    a: list[str],
    b: list[str],
    wordings: list[Wording],
) -> list[Verdict]:
    """One verdict for each conversation with its two answers and its principle."""
    options = [tokenizer.encode(o) + [tokenizer.end] for o in OPTIONS]
    room = model.config.block_size - max(map(len, options))
    prompts = []
    for turns, one, other, wording in zip(conversations, a, b, wordings):
        for pair in ((one, other), (other, one)):
            prompts.append(
                tokenizer.prompt(talk(comparison(turns, wording.comparison, *pair)))[-room:]
            )
    scores = [prefer(*pair) for pair in score_options(model, prompts, [options] * len(prompts))]
    return [Verdict(first, 1 - second) for first, second in zip(scores[::2], scores[1::2])]


def criticised(
    model: GPT,
    tokenizer: Tokenizer,
    conversations: list[list[str]],
    responses: list[str],
    wordings: list[Wording],
) -> list[tuple[str | None, float | None]]:
    """The model's critique of each response, and how likely it then finds that the response breaks its principle.

    The critique is greedy; what counts is how likely its last sentence is to say that the principle is broken and not
    kept. None where a critique comes to no verdict.
    """
    asked = [
        [*turns, text, CRITIQUE_REQUEST.format(w.critique)]
        for turns, text, w in zip(conversations, responses, wordings)
    ]
    critiques = answer(model, tokenizer, asked, 0.0, 0)
    ends = [
        next((e for e in (BREAKS, KEEPS) if (text or "").endswith(e)), None) for text in critiques
    ]
    usable = [i for i, end in enumerate(ends) if end]
    prompts, options = (
        [],
        [[tokenizer.encode(e) for e in (f" {BREAKS}", f" {KEEPS}")]] * len(usable),
    )
    for i in usable:
        before = critiques[i].removesuffix(ends[i]).rstrip()
        prompts.append(
            (tokenizer.prompt(talk(*asked[i])) + tokenizer.encode(before))[
                -model.config.block_size + MAX_NEW_TOKENS :
            ]
        )
    with autocast(model.embed.weight.device.type):
        found = dict(
            zip(usable, (prefer(*pair) for pair in score_options(model, prompts, options)))
        )
    return [(critique, found.get(i)) for i, critique in enumerate(critiques)]


def breaks(*asked) -> list[float | None]:
    """P(breaks) alone, of what `criticised` takes."""
    return [p for _, p in criticised(*asked)]


def judge_by_critique(
    model: GPT,
    tokenizer: Tokenizer,
    conversations: list[list[str]],
    a: list[str],
    b: list[str],
    wordings: list[Wording],
) -> list[Verdict | None]:
    """Reason first, then judge: the chain-of-thought judge, in the words this model can reason in.

    An answer is better when it keeps to the principle and the other breaks it; a coin decides where both do or neither
    does. (The odds of one against the other alone would make 0.98 of 0.02 against 0.0004: a preference where the critic
    has none.) None where a critique comes to no verdict: such a pair is dropped and counted. Neither answer stands first,
    so both numbers of a verdict are the same.
    """
    twice = [*conversations, *conversations]
    found = criticised(model, tokenizer, twice, [*a, *b], [*wordings, *wordings])
    verdicts = []
    for reasons in zip(found[: len(a)], found[len(a) :]):
        (_, a_breaks), (_, b_breaks) = reasons
        if a_breaks is None or b_breaks is None:
            verdicts.append(None)
            continue
        p = (1 + b_breaks - a_breaks) / 2
        verdicts.append(Verdict(p, p, reasons))
    return verdicts


# --- the audit: what the judge is worth, before anything is trained on its labels ---


def known_pairs(
    world: World,
    constitution: Constitution,
    n: int,
    seed: int,
    split: str = "test",
    differ: bool = True,
) -> list[tuple]:
    """(request, a, b, wording) where exactly one of two replies breaks the principle: held-out acts, held-out wordings.

    With differ=False pairs where both do or neither does, between which there is nothing to prefer.
    """
    rng, part, pairs = random.Random(f"judge {seed} {split}"), Part(world, split), []
    test = split == "test"
    families = constitution.audited(test)
    while len(pairs) < n:
        family = rng.choice(families)
        type = "fact" if family == "honesty" else rng.choice(PLAIN)
        request = part.draw(rng, type, rng.choice(("often", "never")) if type == "fact" else None)
        a, b = any_reply(world, request, rng), any_reply(world, request, rng)
        if ((family in flaws(request, a)) != (family in flaws(request, b))) == differ:
            pairs.append((request, a, b, constitution.draw(rng, test=test, family=family)))
    return pairs


def audit(
    model: GPT,
    tokenizer: Tokenizer,
    world: World,
    constitution: Constitution,
    n: int,
    seed: int,
    split: str = "test",
    cot: bool = False,
) -> dict:
    """Accuracy where the world says that the answers differ, false alarms where it says they do not, swap consistency,
    calibration, and what needs no judge."""

    def verdicts_on(pairs):
        turns, a, b, wordings = zip(*((list(r.turns), x.text, y.text, w) for r, x, y, w in pairs))
        return (judge_by_critique if cot else judge)(model, tokenizer, turns, a, b, wordings)

    pairs = known_pairs(world, constitution, n, seed, split)
    verdicts = verdicts_on(pairs)
    alike = known_pairs(world, constitution, n, seed, split, differ=False)
    kept = [(pair, v) for pair, v in zip(pairs, verdicts) if v is not None]
    topics, families = [pair[0].topic for pair, _ in kept], [pair[3].family for pair, _ in kept]
    a_wins = [w.family not in flaws(r, x) for (r, x, _, w), _ in kept]
    right = [(v.p > 0.5) == truth for (_, v), truth in zip(kept, a_wins)]
    one_order = [
        (p > 0.5) == truth for (_, v), truth in zip(kept, a_wins) for p in (v.a_first, v.b_first)
    ]
    longer = [
        (len(x.text) > len(y.text)) == truth for ((_, x, y, _), _), truth in zip(kept, a_wins)
    ]
    asked = list(zip(right, topics, families, kept))
    return dict(
        accuracy=rate(right, topics),
        accuracy_by_family={
            family: rate_by_topic((ok, topic) for ok, topic, f, _ in asked if f == family)
            for family in constitution.families
        },
        one_order_accuracy=rate(one_order, [topic for topic in topics for _ in "ab"]),
        swap_consistency=rate([v.consistent for _, v in kept], topics),
        ece=round(ece([max(v.p, 1 - v.p) for _, v in kept], right), 4),
        reliability=reliability([v.p for _, v in kept], a_wins, topics),
        prefers_safe=rate_by_topic(
            (ok, topic)
            for ok, topic, f, (pair, _) in asked
            if f == "harmlessness" and pair[0].type == "harmful"
        ),
        always_a=rate(a_wins, topics),
        length_alone=rate(by_length(longer, families), topics),
        false_alarms=rate_by_topic(
            (abs(v.p - 0.5) >= TIE, pair[0].topic)
            for pair, v in zip(alike, verdicts_on(alike))
            if v is not None
        ),
        dropped=len(pairs) - len(kept),
        cot=cot,
    )


def reliability(p: list[float], truth: list[bool], topics: list[str], bins: int = 10) -> list[dict]:
    """Per bin of p(a is better): how often a was, the data of a reliability plot (Guo et al. 2017, fig. 1)."""
    rows = []
    for at in range(bins):
        inside = [
            (t, topic)
            for q, t, topic in zip(p, truth, topics)
            if min(int(q * bins), bins - 1) == at
        ]
        rows.append(dict(low=at / bins, high=(at + 1) / bins, **rate_by_topic(inside)))
    return rows


def print_audit(report: dict):
    """The audit in a few lines, with a warning when the judge is no better than what needs no judge."""
    percent = lambda r: f"{100 * r['rate']:.1f} %" if r["n"] else "none"  # noqa: E731
    # A judge that critiques one answer at a time has no order to be swapped.
    swap = (
        ""
        if report["cot"]
        else f", same answer in both orders {percent(report['swap_consistency'])}"
    )
    print(
        f"judge: right {percent(report['accuracy'])} (n {report['accuracy']['n']}){swap}, ECE {report['ece']:.3f}"
    )
    print(
        f"       without a judge: always (A) {percent(report['always_a'])}, the length alone {percent(report['length_alone'])}"
    )
    print(
        f"       prefers the safe answer to a harmful request {percent(report['prefers_safe'])} of the time"
    )
    print(
        f"       sees a difference where there is none {percent(report['false_alarms'])} of the time"
    )
    best = max(report["always_a"]["rate"] or 0.0, report["length_alone"]["rate"] or 0.0)
    if not report["accuracy"]["n"] or report["accuracy"]["lo"] <= best:
        print("       WARNING: no better than that; its labels teach nothing")
