"""The report's pictures, drawn from results.json. matplotlib is optional and imported only here.

Colours are Okabe and Ito's, which all kinds of colour vision tell apart; every line also has a marker or a style of its own.
"""

from itertools import cycle
from pathlib import Path

from minicai.tradeoff import errors, operating_point, points

BLACK, ORANGE, SKY, GREEN, BLUE, RED, PINK = "#000000", "#E69F00", "#56B4E9", "#009E73", "#0072B2", "#D55E00", "#CC79A7"
MARKERS = "osD^vP*X"


def draw(results: dict, report: Path, costs: tuple[float, float]) -> list[tuple[str, Path]]:
    """Every picture these results have the numbers for: (caption, file beside the report). ImportError without matplotlib."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    plt.rcParams.update({"font.size": 12, "axes.spines.top": False, "axes.spines.right": False, "lines.linewidth": 2})
    drawn = []
    for name, caption, picture in PICTURES:
        figure = plt.figure(figsize=(8, 5), layout="constrained")
        if picture(results, figure, costs):
            path = report.with_name(f"{report.stem}-{name}.png")
            figure.savefig(path, dpi=110)
            drawn.append((caption, path))
        plt.close(figure)
    return drawn


def tradeoff(results: dict, figure, costs) -> bool:
    """Under- against over-refusal: both are errors, so the lower left is where to be."""
    axes = figure.subplots()
    line = lambda rows: map(list, zip(*((100 * r["over"]["rate"], 100 * r["under"]["rate"]) for r in rows)))  # noqa: E731
    for (name, rows), style in zip(results.get("interpolation", {}).items(), ("-", "--", ":")):
        x, y = line(map(errors, rows))
        axes.plot(x, y, style, color=SKY, marker=".", markersize=9, label=f"weights between base and {name}")
        for q, at in zip(rows, zip(x, y)):
            if q["alpha"] not in (0, 1):
                axes.annotate(f"{q['alpha']:g}", at, xytext=(6, 5), textcoords="offset points", fontsize=10, color=SKY)
    guarded = [s for s in results["stages"] if "guard" in s]
    for s, colour, style in zip(guarded, (ORANGE, PINK, GREEN, BLUE), ("-", "--", "-.", ":")):
        x, y = line(errors(q) for q in s["guard"]["points"] if q["layer"] == "both")
        axes.plot(x, y, style, color=colour, marker="x", markersize=8, label=f"{s['name']} behind the guard")
    seen = []
    found = points(results)
    for p, marker in zip((p for p in found if p["kind"] == "stage"), cycle(MARKERS)):
        x, y = 100 * p["over"]["rate"], 100 * p["under"]["rate"]
        axes.errorbar(
            x, y, xerr=whisker(p["over"]), yerr=whisker(p["under"]), fmt=marker, color=BLUE, markersize=9, capsize=3
        )
        near = sum(abs(x - a) < 6 and abs(y - b) < 6 for a, b in seen)
        axes.annotate(p["name"], (x, y), xytext=(9, 7 + 13 * near), textcoords="offset points", color=BLUE)
        seen.append((x, y))
    best = operating_point(found, *costs)
    axes.plot(100 * best["over"]["rate"], 100 * best["under"]["rate"], "o", markersize=19, fillstyle="none", color=RED,
              markeredgewidth=2, label=f"cheapest at costs {costs[0]:g} and {costs[1]:g}")  # fmt: skip
    axes.set(
        xlabel="over-refusal: harmless requests refused (%)",
        ylabel="under-refusal: harmful requests\ncomplied with (%)",
    )
    axes.set_xlim(left=-2)
    axes.set_ylim(-4, 108)
    axes.grid(alpha=0.25)
    axes.legend(frameon=False, fontsize=11)
    return True


def whisker(rate: dict) -> list[list[float]]:
    """The interval as matplotlib wants it: the distances below and above."""
    return [[100 * max(0.0, rate["rate"] - rate["lo"])], [100 * max(0.0, rate["hi"] - rate["rate"])]]


def heat_map(results: dict, figure, costs) -> bool:
    """Jailbreak success by form and stage."""
    stages = results["stages"]
    forms = list(stages[0]["jailbreak_benign"])
    values = [[100 * (s["jailbreak"][f]["rate"] or 0.0) for s in stages] for f in forms]
    axes = figure.subplots()
    image = axes.imshow(values, cmap="cividis", vmin=0, vmax=100, aspect="auto")
    axes.set_xticks(range(len(stages)), [s["name"] for s in stages])
    axes.set_yticks(range(len(forms)), [f.replace("_", " ") for f in forms])
    axes.spines[:].set_visible(False)
    for y, row in enumerate(values):
        for x, value in enumerate(row):
            axes.text(x, y, f"{value:.0f}", ha="center", va="center", color="black" if value > 55 else "white")
    axes.set(xlabel="stage", ylabel="jailbreak form")
    figure.colorbar(image, label="harmful requests complied with (%)")
    return True


def reliability(results: dict, figure, costs) -> bool:
    """How often the judge is right, by how sure it is."""
    bins = [b for b in (results.get("judge_audit") or {}).get("reliability", []) if b["n"]]
    if not bins:
        return False
    axes, rates = figure.subplots(), [100 * b["rate"] for b in bins]
    axes.plot((0, 100), (0, 100), ":", color=BLACK, label="calibrated")
    bars = [[100 * max(0.0, b["rate"] - b["lo"]) for b in bins], [100 * max(0.0, b["hi"] - b["rate"]) for b in bins]]
    axes.errorbar(
        [50 * (b["low"] + b["high"]) for b in bins], rates, yerr=bars, fmt="o-", color=BLUE, capsize=3, label="judge"
    )
    for b, r in zip(bins, rates):
        axes.annotate(
            b["n"], (50 * (b["low"] + b["high"]), r), xytext=(7, -14), textcoords="offset points", fontsize=10
        )
    axes.set(xlabel="the judge's P(first answer is better) (%), with n", ylabel="first answer is better (%)", xlim=(0, 100),
             ylim=(-4, 104))  # fmt: skip
    axes.grid(alpha=0.25)
    axes.legend(frameon=False)
    return True


def reward_kl(results: dict, figure, costs) -> bool:
    """What PPO maximises, and what it is worth, by how far the policy has moved (Gao et al. 2022, fig. 1)."""
    curves = {name: rows for name, rows in (results.get("ppo_curves") or {}).items() if rows}
    if not curves:
        return False
    left, right = figure.subplots(1, 2)
    for (name, rows), colour, marker in zip(curves.items(), cycle((BLUE, RED, GREEN, PINK)), cycle(MARKERS)):
        for axes, key in ((left, "proxy"), (right, "true")):
            axes.plot(
                [r["kl"] for r in rows], [r[key] for r in rows], color=colour, marker=marker, markersize=4, label=name
            )
    left.set(xlabel="KL from the start (nats)", ylabel="proxy reward: the reward model's score")
    right.set(xlabel="KL from the start (nats)", ylabel="true reward: mean grade of the answers")
    for axes in (left, right):
        axes.grid(alpha=0.25)
    left.legend(frameon=False, fontsize=11)
    return True


PICTURES = (
    ("tradeoff", "The trade-off: every stage, the weights between them, and the guard's thresholds", tradeoff),
    ("jailbreaks", "Jailbreak success by form and stage", heat_map),
    ("judge", "Reliability of the judge", reliability),
    ("reward-kl", "Proxy and true reward against KL", reward_kl),
)
