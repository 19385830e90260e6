"""Pictures of results.json. matplotlib is optional and imported only in `figure`."""

from contextlib import contextmanager

# From Okabe and Ito's palette, which people with any kind of colour vision can tell apart.
BLUE, SKY, RED, ORANGE, GREEN = "#0072B2", "#56B4E9", "#D55E00", "#E69F00", "#009E73"
STAGES = {"base": "base", "sft": "SL-CAI", "dpo": "DPO-CAI", "ppo": "RL-CAI"}


def stage_label(name: str) -> str:
    """The name of a stage in tables and pictures: "SL-CAI" for sft.pt, "round 1" for round1.pt."""
    return STAGES.get(name, name.replace("round", "round "))


@contextmanager
def figure(path, width: float, height: float, **subplots):
    """The axes of a new picture, saved to `path` at the end. ImportError without matplotlib."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    style = {"font.size": 12, "axes.spines.top": False, "axes.spines.right": False}
    with plt.rc_context(style | {"axes.titlelocation": "left", "axes.titleweight": "bold"}):
        fig, axes = plt.subplots(figsize=(width, height), layout="constrained", **subplots)
        yield axes
        fig.savefig(path, dpi=150)
        plt.close(fig)


def percents(rates: list[dict]) -> tuple[list[float], list[list[float]]]:
    """The rates in percent, and the distances from each to the two ends of its interval."""
    found = [(r["rate"], r["lo"], r["hi"]) if r["n"] else (0, 0, 0) for r in rates]
    below, above = ([100 * abs(p[0] - p[end]) for p in found] for end in (1, 2))
    return [100 * p for p, _, _ in found], [below, above]


def errors_by_stage(results: dict, path):
    """Both errors at every stage, for requests that are asked plainly and for jailbreaks."""
    stages = results["stages"]
    harmful = ("Harmful requests helped", "under_refusal", (RED, ORANGE))
    harmless = ("Harmless requests refused", "over_refusal", (BLUE, SKY))
    kinds = ((-0.2, "", "asked plainly"), (0.2, "_disguised", "in jailbreaks"))
    with figure(path, max(8, 1.6 * len(stages) - 1.6), 5.8, nrows=2) as both:
        for axes, (title, key, colours) in zip(both, (harmful, harmless)):
            for colour, (shift, suffix, label) in zip(colours, kinds):
                heights, bars = percents([stage[key + suffix] for stage in stages])
                places = [i + shift for i in range(len(stages))]
                axes.bar(places, heights, 0.38, color=colour, label=label, yerr=bars, capsize=3)
                for x, y, up in zip(places, heights, bars[1]):
                    axes.text(x, y + up + 2, f"{y:.1f}" if 0 < y < 10 else f"{y:.0f}", ha="center")
            axes.set_xticks(range(len(stages)), [stage_label(s["name"]) for s in stages])
            axes.set(title=title, ylim=(0, 114), yticks=(0, 50, 100))
            axes.set_ylabel(f"{key.replace('_', '-')} (%)")
            axes.legend(frameon=False, loc=(0.55, 1), ncols=2, handlelength=1, columnspacing=1)


def heat_map(results: dict, path):
    """How often each jailbreak form gets help with harm, at every stage."""
    stages, forms = results["stages"], list(results["stages"][0]["jailbreak_benign"])
    rates = [[s["jailbreak"][form]["rate"] for s in stages] for form in forms]
    values = [[100 * (rate or 0) for rate in row] for row in rates]
    with figure(path, max(8, 1.6 * len(stages) - 1.6), 4.5) as axes:
        axes.imshow(values, cmap="cividis", vmin=0, vmax=100, aspect="auto")
        axes.set_xticks(range(len(stages)), [stage_label(s["name"]) for s in stages])
        axes.set_yticks(range(len(forms)), [form.replace("_", " ") for form in forms])
        axes.set_title("Jailbreaks that get help with harm, %")
        for y, row in enumerate(values):
            for x, value in enumerate(row):
                colour = "black" if value > 55 else "white"
                shown = "-" if rates[y][x] is None else f"{value:.0f}"
                axes.text(x, y, shown, ha="center", va="center", color=colour)


def reliability(results: dict, path):
    """How often the first answer is the better one, against the judge's probability that it is."""
    bins = [b for b in results["judge_audit"]["reliability"] if b["n"]]
    x, (y, bars) = [50 * (b["low"] + b["high"]) for b in bins], percents(bins)
    with figure(path, 6, 5) as axes:
        axes.plot((0, 100), (0, 100), ":", color="black", label="calibrated")
        axes.errorbar(x, y, yerr=bars, fmt="o-", color=BLUE, capsize=3, label="judge")
        for at, b in zip(x, bins):
            axes.text(at, -9, b["n"], ha="center")
        axes.set(xlabel="judge's P(first answer is better), %; number of pairs above")
        axes.set(ylabel="first answer is better, %", ylim=(-12, 104))
        axes.legend(frameon=False)


def reward_kl(results: dict, path):
    """Proxy and true reward against the KL that PPO has spent (Gao et al. 2022, fig. 1)."""
    with figure(path, 9, 4, ncols=2) as both:
        for axes, key, meaning in zip(both, ("proxy", "true"), ("reward model", "grader")):
            axes.set_prop_cycle(color=[BLUE, RED, GREEN, ORANGE, SKY])
            for name, rows in results["ppo_curves"].items():
                kl, reward = [row["kl"] for row in rows], [row[key] for row in rows]
                axes.plot(kl, reward, "o-", markersize=4, label=name)
            axes.set(title=f"{key.capitalize()} reward ({meaning})", xlabel="KL from SL-CAI (nats)")
        both[0].legend(frameon=False)


def draw(results: dict, report) -> list[tuple[str, str]]:
    """Draw every picture that the results have numbers for: (caption, file beside the report)."""
    pictures = [("Both errors at every stage", "errors", errors_by_stage)]
    pictures += [("Jailbreak success by form and stage", "jailbreaks", heat_map)]
    if results.get("judge_audit"):
        pictures.append(("Reliability of the judge", "judge", reliability))
    if results.get("ppo_curves"):
        pictures.append(("Reward against KL", "reward-kl", reward_kl))
    for _, name, picture in pictures:
        picture(results, report.with_name(f"{report.stem}-{name}.png"))
    return [(caption, f"{report.stem}-{name}.png") for caption, name, _ in pictures]
