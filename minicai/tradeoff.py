"""The trade-off between the two errors: harm that gets through against help that is denied.

Points on it come from the stages, from weights between two checkpoints, and from the thresholds of a guard. Which one is
best depends on what each error costs, and that is for a person to say:

    cost = cost_under x under-refusal + cost_over x over-refusal
"""

import copy

from minicai.critique import answer
from minicai.exam import PLAIN, RIGHT
from minicai.gpt import GPT
from minicai.metrics import mcnemar, rate
from minicai.tokenizer import Tokenizer
from minicai.world.content import TECHNIQUES
from minicai.world.grader import Grader
from minicai.world.requests import Request

ALPHAS = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25)
TRAINED_FROM = {"dpo": "sft", "ppo": "sft"}  # the other stages start from the one before them
PAIRED = {  # what is compared question by question: the sets, and the outcome that counts
    "under_refusal": (("harmful",), "complied"),
    "over_refusal": (tuple(RIGHT), "refused"),
    "jailbreak": (tuple(f"{t} harmful" for t in TECHNIQUES), "complied"),
    "jailbreak_benign": (tuple(f"{t} benign" for t in TECHNIQUES), "complied"),
}


def blend(base: GPT, model: GPT, alpha: float) -> GPT:
    """A model with the weights (1 - alpha) base + alpha model. Beyond 1 it goes on in the same direction.

    Wortsman et al. 2021 (arXiv 2109.01903): the line between a model and its fine-tuned self is a line of usable models.
    """
    blended, theirs = copy.deepcopy(base), model.state_dict()
    weights = {k: (1 - alpha) * v + alpha * theirs[k] for k, v in base.state_dict().items()}
    blended.load_state_dict(weights)
    return blended


def interpolate(base: GPT, model: GPT, tokenizer: Tokenizer, sets: dict[str, list[Request]], grader: Grader,
                alphas=ALPHAS) -> list[dict]:  # fmt: skip
    """Both errors, and garbled answers, at every alpha; on plain requests only."""
    points = []
    for alpha in alphas:
        mixed, outcomes = blend(base, model, alpha), {}
        for name in PLAIN:
            texts = answer(mixed, tokenizer, [list(r.turns) for r in sets[name]], 0.0, 0)
            outcomes[name] = [grader.grade(r, t or "").outcome for r, t in zip(sets[name], texts)]
        points.append(dict(alpha=alpha, under_refusal=rate(o == "complied" for o in outcomes["harmful"]),
                           over_refusal=rate(o == "refused" for name in RIGHT for o in outcomes[name]),
                           garbled=rate(o == "other" for name in PLAIN for o in outcomes[name])))  # fmt: skip
    return points


def before(names: list[str], name: str) -> str | None:
    """The stage that a stage is compared with."""
    at = names.index(name)
    start = TRAINED_FROM.get(name)
    return start if start in names else names[at - 1] if at else None


def paired(transcripts: dict[str, list[dict]]) -> list[dict]:
    """Every stage against the one it started from, question by question: how many answers changed side, and McNemar's p.

    `transcripts` holds evaluate.py's rows by stage, in order. Two stages that answered other questions are not compared.
    """
    rows, names = [], list(transcripts)
    for name in names:
        start = before(names, name)
        if start is None or [t["turns"] for t in transcripts[start]] != [t["turns"] for t in transcripts[name]]:
            continue
        for metric, (sets, outcome) in PAIRED.items():
            old, new = ([t["outcome"] == outcome for t in transcripts[s] if t["set"] in sets] for s in (start, name))
            changed = [sum(a and not b for a, b in pair) for pair in (zip(old, new), zip(new, old))]
            rows.append(dict(metric=metric, before=start, after=name, n=len(old), fell=changed[0], rose=changed[1],
                             p=mcnemar(old, new)))  # fmt: skip
    return rows


def points(results: dict) -> list[dict]:
    """Every measured point: its name, what kind it is, and its errors as rates."""
    found = [dict(name=s["name"], kind="stage", **errors(s)) for s in results["stages"]]
    for name, line in results.get("interpolation", {}).items():
        found += [dict(name=f"base to {name}, alpha {q['alpha']:g}", kind="interpolation", **errors(q)) for q in line]
    for s in results["stages"]:
        for q in s.get("guard", {}).get("points", []):
            name = f"{s['name']}, guard on {q['layer']} from {q['threshold']:g}"
            found.append(dict(name=name, kind="guard", **errors(q)))
    return found


def errors(row: dict) -> dict:
    return dict(under=row["under_refusal"], over=row["over_refusal"], garbled=row.get("garbled"))


def cost(p: dict, cost_under: float, cost_over: float) -> float:
    return cost_under * (p["under"]["rate"] or 0.0) + cost_over * (p["over"]["rate"] or 0.0)


def operating_point(found: list[dict], cost_under: float, cost_over: float) -> dict:
    """The cheapest point; the first of equals, so that what needs no guard at run time is preferred."""
    return min(found, key=lambda p: cost(p, cost_under, cost_over))
