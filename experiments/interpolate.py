"""Where to set the balance of the two errors: at a stage, between two, or behind a guard?

    python -m experiments.interpolate
    python -m experiments.interpolate --again --cost-under 3

After pipeline.py; run experiments/guard.py first if guards are to be compared. Two minutes a stage
on 2 cores. Every fourth question of the exam is put to models between the base and each stage. The
weights (1 - alpha) base + alpha stage make a usable model (Wortsman et al. 2021, arXiv 2109.01903).
Then the cheapest of all measured points is chosen:

    cost = cost_under x under-refusal + cost_over x over-refusal

Each error is the mean of its rates on plain and on disguised requests. A person has to say what
each error costs. The best of many points on one set of questions is a little lucky: measure it
again on others before use. Writes OUT/interpolate.json and OUT/tradeoff.svg.

Answer so far (first edition, full preset, seed 0): asked plainly every trained stage has both
errors below 1 %, so the disguises decide. At equal costs one feedback round is the cheapest stage:
it lets 1 % of disguised harm through and refuses 5 % of disguised benign requests. Half of the way
from the base to DPO-CAI still helps with 72 % of plain harmful requests, three quarters with 1 %.
"""

import copy
import math
from pathlib import Path

from tqdm import tqdm

from minicai.answer import answer
from minicai.exam import BENIGN, ERRORS, HARMFUL, Exam
from minicai.files import UserError, load_like, load_policy, read_json, stages, write_json
from minicai.gpt import GPT
from minicai.metrics import rate_by_topic
from minicai.report import aligned, interval, percent
from minicai.run import at_least_zero, main, parser, positive, setup
from minicai.svg import Chart, stage_label, write_svg
from minicai.world.content import World
from minicai.world.grader import Grader
from minicai.world.requests import PLAIN

ALPHAS = (0.0, 0.25, 0.5, 0.75, 0.9, 1.0, 1.25)
KINDS = {"": "asked plainly", "_disguised": "in the jailbreak forms"}
TICKS = (0, 1, 5, 10, 20, 40, 60, 80, 100)  # wide where the rates are small


def blend(base: GPT, model: GPT, alpha: float) -> GPT:
    """A model with the weights (1 - alpha) base + alpha model."""
    blended, other = copy.deepcopy(base), model.state_dict()
    mixed = {key: (1 - alpha) * w + alpha * other[key] for key, w in base.state_dict().items()}
    blended.load_state_dict(mixed)
    return blended


def errors(model: GPT, tokenizer, asked: list[tuple], grader: Grader) -> dict:
    """The rates in ERRORS of the model's answers to the (set, request) pairs in `asked`."""
    texts, graded = answer(model, tokenizer, [list(r.turns) for _, r in asked]), []
    for (name, request), text in zip(asked, texts):
        graded.append((name, grader.grade(request, text or "").outcome, request.topic))
    return {
        key: rate_by_topic((found == outcome, topic) for s, found, topic in graded if s in sets)
        for key, (sets, outcome) in ERRORS.items()
    }


def name_points(lines: dict, guards: dict) -> dict[str, dict]:
    """Every measured point by its name: stages, blends, and stages behind a guard."""
    points = {}
    for stage, line in lines.items():
        for q in line:
            ends = {0: "base", 1: stage}
            points[ends.get(q["alpha"], f"base to {stage}, alpha {q['alpha']:g}")] = q
    for stage, guard in guards.items():
        for q in guard["points"]:
            points[f"{stage} behind a guard ({q['layer']}, {q['threshold']:g})"] = q
    return points


def cost(point: dict, cost_under: float, cost_over: float) -> float:
    """The cost of a point in percent, as if every second request came in disguise."""
    total = 0.0
    for side, weight in (("under_refusal", cost_under), ("over_refusal", cost_over)):
        rates = [point[side + kind]["rate"] for kind in KINDS]
        rates = [rate for rate in rates if rate is not None]
        total += 100 * weight * sum(rates) / max(1, len(rates))
    return total


def draw(lines: dict, guards: dict, best: dict, path: Path):
    """Over-refusal to the right, under-refusal upwards: the lower left corner is best."""
    curves = {f"base to {stage_label(stage)}": line for stage, line in lines.items()}
    for stage in (stage for stage in lines if stage in guards):
        points = [q for q in guards[stage]["points"] if q["layer"] == "both"]
        curves[f"{stage_label(stage)} behind both checks"] = points
    charts = []
    for kind, title in KINDS.items():

        def xy(q: dict, key: str = "rate", kind=kind) -> list[float]:
            return [100 * (q[f"{side}_refusal{kind}"][key] or 0) for side in ("over", "under")]

        label = "harmless requests refused, %"
        size = dict(legend=curves, width=440, height=460, warp=math.sqrt)
        chart = Chart(f"Harmful requests helped, %: {title}", TICKS, TICKS, label, **size)
        for i, points in enumerate(curves.values()):
            chart.line(map(xy, points), i, dots=True)
            for q in (q for q in points if q.get("alpha") == 1):  # the stage: its intervals
                (x, y), (left, low), (right, high) = xy(q), xy(q, "lo"), xy(q, "hi")
                chart.whisker((left, y), (right, y))
                chart.whisker((x, low), (x, high))
        chart.ring(*xy(best))
        charts.append(chart)
    write_svg(path, charts)


def measure(args) -> dict[str, list[dict]]:
    """The errors at every alpha, by stage. Prints a table of each."""
    base, tokenizer = load_policy(args.out / "base.pt", args.device)
    exam, grader = (
        Exam(World.of(args), args.eval_n, 0),
        Grader(World.of(args)),
    )
    asked = [(name, r) for name in (*PLAIN, *HARMFUL, *BENIGN) for r in exam.sets[name][::4]]
    paths, lines = args.checkpoints or [p for p in stages(args.out) if p.stem != "base"], {}
    if not paths:
        raise UserError(f"{args.out} holds no stage but the base; run pipeline.py")
    for path in paths:
        model, lines[path.stem] = load_like(path, tokenizer, args.device), []
        rows = [[f"alpha, base to {path.stem}", *(key.replace("_", " ") for key in ERRORS)]]
        for alpha in tqdm(ALPHAS, desc=path.stem, unit=" models"):
            found = errors(blend(base, model, alpha), tokenizer, asked, grader)
            lines[path.stem].append(dict(alpha=alpha, **found))
            rows.append([f"{alpha:g}", *map(interval, found.values())])
        print(f"\n{aligned(rows)}")
    return lines


def interpolate():
    p = parser(__doc__)
    p.add_argument("checkpoints", nargs="*", type=Path, help="default: all stages in OUT")
    p.add_argument("--eval-n", type=positive, help="requests of each type in the exam")
    p.add_argument("--cost-under", type=at_least_zero, default=1, help="of help with harm")
    p.add_argument("--cost-over", type=at_least_zero, default=1, help="of a needless refusal")
    p.add_argument("--again", action="store_true", help="choose anew; nothing is measured")
    args = setup(p)
    kept = read_json(args.out / "interpolate.json", {}) if args.again else {}
    lines, guards = kept.get("lines") or measure(args), read_json(args.out / "guard.json", {})
    for name in lines.keys() & guards.keys():
        if guards[name]["points"][0]["over_refusal"]["n"] != lines[name][0]["over_refusal"]["n"]:
            raise UserError(f"{args.out}/guard.json is of another --eval-n; run it with this one")
    points, costs = name_points(lines, guards), (args.cost_under, args.cost_over)
    stage_names = ["base", *lines]
    price = {name: cost(point, *costs) for name, point in points.items()}
    order = sorted(points, key=lambda name: (price[name], name not in stage_names))
    best, best_stage = order[0], next(name for name in order if name in stage_names)

    keys = [side + kind for kind in KINDS for side in ("under_refusal", "over_refusal")]
    rows = [["point", "cost", *(key.replace("_", " ") for key in keys)]]
    for name in [*order[:3], *(name for name in order[3:] if name in stage_names)]:
        rows.append([name, f"{price[name]:.1f}", *(interval(points[name][key]) for key in keys)])
    print(f"\n{aligned(rows)}")
    print(
        f"\nAt costs {costs[0]:g} (under) and {costs[1]:g} (over), the cheapest of {len(points)} "
        f"points is {best} ({price[best]:.1f}). The cheapest stage is {best_stage} "
        f"({price[best_stage]:.1f})."
    )
    if "ambiguous_handled" in points[best]:
        handled = percent(points[best]["ambiguous_handled"])
        print(
            f"A guard takes time too, and behind it {handled} % of ambiguous requests are handled."
        )
    write_json(args.out / "interpolate.json", dict(costs=costs, choice=best, lines=lines))
    draw(lines, guards, points[best], args.out / "tradeoff.svg")
    print(f"{args.out}/tradeoff.svg: the trade-off, with the cheapest point circled")


if __name__ == "__main__":
    main(interpolate)
