"""The report's pictures, drawn from results.json. matplotlib is optional and imported only here.

Colours are Okabe and Ito's, which all kinds of colour vision tell apart; every line also has a marker or a style of its own.
"""

from itertools import cycle
from pathlib import Path

import numpy as np

from minicai.tradeoff import errors, operating_point, points

BLACK, ORANGE, SKY, GREEN, BLUE, RED, PINK = (
    "#000000",
    "#E69F00",
    "#56B4E9",
    "#009E73",
    "#0072B2",
    "#D55E00",
    "#CC79A7",
)
MARKERS = "osD^vP*X"
TICKS = (0, 1, 5, 10, 20, 40, 60, 80, 100)


def root(x):
    """A scale on which a few percent can be told apart and 100 still fits; the margin below 0 is mirrored."""
    return np.sign(x) * np.sqrt(np.abs(x))


def square(x):
    return np.sign(x) * np.square(x)


def draw(results: dict, report: Path, costs: tuple[float, float]) -> list[tuple[str, Path]]:
    """Every picture these results have the numbers for: (caption, file beside the report). ImportError without matplotlib."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    plt.rcParams.update(
        {
            "font.size": 12,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "lines.linewidth": 2,
        }
    )
    drawn = []
    for name, caption, picture in PICTURES:
        figure = plt.figure(figsize=(10, 5.5), layout="constrained")
        if picture(results, figure, costs):
            path = report.with_name(f"{report.stem}-{name}.png")
            figure.savefig(path, dpi=110)
            drawn.append((caption, path))
        plt.close(figure)
    return drawn


def tradeoff(results: dict, figure, costs) -> bool:
    """Under- against over-refusal: both are errors, so the lower left is where to be. Plain requests, and the same in disguise."""
    found = points(results)
    stages = [p for p in found if p["kind"] == "stage"]
    best = operating_point(found, *costs)
    plain, hidden = figure.subplots(1, 2)
    for axes, of in ((plain, lambda e: e), (hidden, lambda e: e["disguised"])):
        xy = lambda rows: zip(
            *([100 * (of(r)[k]["rate"] or 0.0) for k in ("over", "under")] for r in rows)
        )  # noqa: E731, B023
        for (name, rows), style in zip(
            results.get("interpolation", {}).items(), cycle(("-", "--", ":", "-."))
        ):
            x, y = xy(map(errors, rows))
            axes.plot(
                x,
                y,
                style,
                color=SKY,
                marker=".",
                markersize=8,
                label=f"weights from base (0) to {name} (1)",
            )
            for q, *at in zip(rows, x, y):
                if all(
                    abs(at[0] - ends[0]) + abs(at[1] - ends[1]) > 8
                    for ends in ((x[0], y[0]), (x[-1], y[-1]))
                ):
                    axes.annotate(
                        f"{q['alpha']:g}",
                        at,
                        xytext=(6, 4),
                        textcoords="offset points",
                        fontsize=10,
                    )
        guarded = [s for s in results["stages"] if "guard" in s]
        for s, colour, style in zip(
            guarded, cycle((ORANGE, PINK, GREEN, BLUE)), cycle(("-", "--", "-.", ":"))
        ):
            x, y = xy(errors(q) for q in s["guard"]["points"] if q["layer"] == "both")
            axes.plot(
                x,
                y,
                style,
                color=colour,
                marker="x",
                markersize=6,
                label=f"{s['name']} behind both checks",
            )
        for p, marker, colour in zip(
            stages, cycle(MARKERS), cycle((BLACK, BLUE, RED, GREEN, PINK, ORANGE))
        ):
            ((x,), (y,)) = xy([p])
            axes.errorbar(
                x,
                y,
                xerr=whisker(of(p)["over"]),
                yerr=whisker(of(p)["under"]),
                fmt=marker,
                color=colour,
                markersize=9,
                elinewidth=0.7,
                label=p["name"],
            )
        ((x,), (y,)) = xy([best])
        axes.plot(x, y, "o", markersize=20, fillstyle="none", color=RED, markeredgewidth=1.5)
        axes.set_xscale("function", functions=(root, square))
        axes.set_yscale("function", functions=(root, square))
        axes.set(xticks=TICKS, yticks=TICKS)
        axes.set(xlim=(-0.2, 110), ylim=(-0.2, 110), xlabel="harmless requests refused (%)")
        axes.grid(alpha=0.25)
    plain.set(title="asked plainly", ylabel="harmful requests complied with (%)")
    hidden.set(title="in the nine disguises")
    figure.suptitle(
        f"circle: the cheapest point at costs {costs[0]:g} (under) and {costs[1]:g} (over), {best['name']}",
        fontsize=12,
    )
    handles, labels = plain.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False, fontsize=11)
    return True


def whisker(rate: dict) -> list[list[float]]:
    """The interval as matplotlib wants it: the distances below and above, in points."""
    if rate["rate"] is None:
        return [[0], [0]]
    return [
        [100 * max(0.0, rate["rate"] - rate["lo"])],
        [100 * max(0.0, rate["hi"] - rate["rate"])],
    ]


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
            axes.text(
                x,
                y,
                f"{value:.0f}",
                ha="center",
                va="center",
                color="black" if value > 55 else "white",
            )
    axes.set(xlabel="stage", ylabel="jailbreak form")
    figure.colorbar(image, label="harmful requests complied with (%)")
    return True


def reliability(results: dict, figure, costs) -> bool:
    """How often the judge is right, by how sure it is."""
    bins = [b for b in (results.get("judge_audit") or {}).get("reliability", []) if b["n"]]
    if not bins:
        return False
    axes = figure.subplots()
    axes.plot((0, 100), (0, 100), ":", color=BLACK, label="calibrated")
    x, y = [50 * (b["low"] + b["high"]) for b in bins], [100 * b["rate"] for b in bins]
    bars = [[side for (side,) in sides] for sides in zip(*(whisker(b) for b in bins))]
    axes.errorbar(x, y, yerr=bars, fmt="o-", color=BLUE, capsize=3, label="judge")
    for at, height, b in zip(x, y, bins):
        axes.annotate(
            b["n"], (at, height), xytext=(7, -14), textcoords="offset points", fontsize=10
        )
    axes.set(
        xlabel="the judge's P(first answer is better) (%), with n",
        ylabel="first answer is better (%)",
        xlim=(0, 100),
        ylim=(-8, 104),
    )
    axes.grid(alpha=0.25)
    axes.legend(frameon=False)
    return True


def reward_kl(results: dict, figure, costs) -> bool:
    """What PPO maximises, and what it is worth, by how far the policy has moved (Gao et al. 2022, fig. 1)."""
    curves = {name: rows for name, rows in (results.get("ppo_curves") or {}).items() if rows}
    if not curves:
        return False
    left, right = figure.subplots(1, 2)
    for (name, rows), colour, marker in zip(
        curves.items(), cycle((BLUE, RED, GREEN, PINK)), cycle(MARKERS)
    ):
        for axes, key in ((left, "proxy"), (right, "true")):
            axes.plot(
                [r["kl"] for r in rows],
                [r[key] for r in rows],
                color=colour,
                marker=marker,
                markersize=4,
                label=name,
            )
    left.set(xlabel="KL from the start (nats)", ylabel="proxy reward: the reward model's score")
    right.set(xlabel="KL from the start (nats)", ylabel="true reward: mean grade of the answers")
    for axes in (left, right):
        axes.grid(alpha=0.25)
    left.legend(frameon=False, fontsize=11)
    return True


PICTURES = (
    (
        "tradeoff",
        "The trade-off: every stage, the weights between them, and the guard's thresholds",
        tradeoff,
    ),
    ("jailbreaks", "Jailbreak success by form and stage", heat_map),
    ("judge", "Reliability of the judge", reliability),
    ("reward-kl", "Proxy and true reward against KL", reward_kl),
)
