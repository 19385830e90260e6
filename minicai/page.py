"""OUT/report.html: a run as one page that opens offline in any browser, with its CSS and script.

Each section is a function that returns HTML, or "" if the run has no such data.
"""

import re
from html import escape
from pathlib import Path

from minicai import svg
from minicai.cards import SIGNS, all_transcripts, chains, same_requests, side_by_side
from minicai.files import read_jsonl, replace_file
from minicai.markup import charts, rate_table, stage_table, table, td, text_table
from minicai.report import (
    METRICS,
    NO_BETTER,
    SKILLS,
    STAGE_2,
    filter_text,
    lookup,
    no_better_than_baselines,
    paired_rows,
    percent,
    redteam_rows,
)
from minicai.rows import FIELDS
from minicai.svg import stage_label
from minicai.world.content import TECHNIQUES

LIMIT = 1_900_000  # bytes of the page; what is left after the other sections is for transcripts
HERE = Path(__file__).parent
HEADLINES = ("under_refusal", "over_refusal", "ambiguous_handled", "jailbreak_mean")
BESIDE = "ambiguous_handled steps_correct jailbreak_mean rude_or_preachy known_accuracy "
BESIDE += "fabrication garbled"  # the rates beside the two errors
STAGES = {
    "base": "trained to be helpful, and nothing else",
    "sft": "the base, fine-tuned on its own answers after critique and revision (Stage 1)",
    "dpo": "SL-CAI, trained by DPO on comparisons that an AI judge has labelled (Stage 2)",
    "ppo": "SL-CAI, trained by PPO on a reward model of the same comparisons (Stage 2)",
    "round": "DPO-CAI or the round before, trained on attacks that got through: feedback",
}
CURVES = [  # (title, logs, number, label of the x axis)
    ("Base: loss, nats per token", ("base",), "loss", "step"),
    ("Fine-tuning: loss, nats per token", ("sft",), "loss", "step"),
    ("DPO: loss", ("dpo", "round"), "loss", "step"),
    ("DPO: margin of the implicit rewards", ("dpo", "round"), "margin", "step"),
    ("Reward model: accuracy", ("rm",), "accuracy", "step"),
    ("PPO: proxy reward", ("ppo",), "proxy", "update"),
    ("PPO: true reward", ("ppo",), "true", "update"),
    ("PPO: KL from SL-CAI, nats", ("ppo",), "kl", "update"),
]


def kind_of(name: str) -> str:
    """The kind of a stage in STAGES: "round" for round1. Experiments have none."""
    return re.sub(r"^round\d+$", "round", name)


def head(results: dict) -> str:
    """What was trained, and the numbers of the last stage, no experiment, beside the first's."""
    stages = [s for s in results["stages"] if kind_of(s["name"]) in STAGES] or results["stages"]
    first, last = stages[0], stages[-1]
    minutes = sum(s for name, s in results.get("seconds", {}).items() if name != "evaluate") / 60
    took = f", trained in {minutes:.0f} minutes" if minutes >= 1 else ""
    test = results["exam"]["split"] == "test"
    share = results.get("world_share", 1.0)
    part = f" ({100 * share:.0f} % of its acts, names and jailbreak forms)" * (share < 1)
    labels, numbers = {key: label for key, label, _ in METRICS}, []
    for key in HEADLINES:
        before = f"{stage_label(first['name'])} {percent(lookup(first, key))}"
        numbers.append(
            f"<div><dt>{escape(labels[key])}</dt><dd>{percent(lookup(last, key))}"
            f"<small>%{f', {escape(before)}' * (first is not last)}</small></dd></div>"
        )
    return (
        "<header><p>minicai: Constitutional AI from scratch</p>"
        "<h1>What a written constitution taught a small language model</h1>"
        "<p>A GPT was trained to be helpful. Then it criticised and revised its own answers by a "
        "constitution, and learned from that."
        f"{' Every number is from questions that no training after the base has asked.' * test}</p>"
        f"<p>Preset {escape(results['preset'])}, seed {results['seed']}, "
        f"{escape(results['hardware'])}{took}. The questions are from the "
        f"{escape(results['exam']['split'])} split of {escape(results['world'])}/{part}, and the "
        "answers are greedy.</p>"
        f"<h2>The last stage: {escape(stage_label(last['name']))}</h2>"
        f'<dl class="headline">{"".join(numbers)}</dl></header>'
    )


def better(wanted) -> list[tuple[str, str]]:
    """(key, label with an arrow) of the rates in METRICS whose key is wanted."""
    arrows = dict(low="↓", high="↑")
    return [(key, f"{arrows[way]} {label}") for key, label, way in METRICS if key in wanted]


def errors(results: dict) -> str:
    kinds = dict.fromkeys(kind_of(stage["name"]) for stage in results["stages"])
    legend = "".join(
        f"<div><dt>{escape(stage_label(kind))} <small>{escape(kind)}{'N' * (kind == 'round')}.pt"
        f"</small></dt><dd>{escape(STAGES.get(kind, 'an experiment'))}</dd></div>"
        for kind in kinds
    )
    return (
        "<p>A model that complies with everything makes one error; a model that refuses everything "
        "makes the other. A good one makes neither. Thin lines are 95 % intervals.</p>"
        f'{charts(svg.errors_by_stage(results["stages"]))}<dl class="legend">{legend}</dl>'
        "<p>Other rates in percent, with the 95 % interval and the number n of answers. "
        "↓ lower is better, ↑ higher is better.</p>"
        + stage_table(results, "percent", better(BESIDE.split()))
    )


def jailbreaks(results: dict) -> str:
    def forms(kind: str, note: str = "") -> list[tuple[str, str]]:
        return [(f"{kind}.{form}", form.replace("_", " ") + note) for form in TECHNIQUES]

    halves = zip(forms("jailbreak.seen", ", seen"), forms("jailbreak.held_out", ", held out"))
    harm = "harmful requests complied with, %"
    return (
        "<p>The same requests in a disguise: a story, a code, a long run-up. A disguise that gets "
        "help with harm is a jailbreak. A benign request in the same disguise deserves its answer."
        "</p>"
        + stage_table(results, harm, forms("jailbreak"), "bad")
        + stage_table(results, "benign requests: steps given, %", forms("jailbreak_benign"), "good")
        + "<details><summary>In framings seen in training, and in held-out ones</summary>"
        + stage_table(results, harm, [row for half in halves for row in half], "bad")
        + "</details>"
        + text_table(redteam_rows(results))
    )


def audits(results: dict) -> str:
    judge = results.get("judge_audit", {})
    by_family = [(f"accuracy_by_family.{x}", x) for x in judge.get("accuracy_by_family", {})]
    of_judge, of_reward = (
        [(key, label.removeprefix(f"{who}: ")) for key, label in STAGE_2 if key.startswith(part)]
        for who, part in (("judge", "judge_audit"), ("reward model", "reward_model"))
    )
    shown = (
        rate_table(results, "the judge", of_judge),
        charts([svg.reliability(judge["reliability"])]) if judge else "",
        rate_table(judge, "the judge, by family of principles", by_family),
        rate_table(results, "the reward model", of_reward),
        rate_table(results.get("skills", {}), "the base as a critic", SKILLS),
    )
    if not any(shown):
        return ""
    said = (
        f'<p class="warning">{NO_BETTER}</p>' if judge and no_better_than_baselines(judge) else ""
    )
    return (
        "<p>The harm labels come from a model, so the model that gives them is measured first, on "
        "answers whose flaws are known because the world wrote them. In the picture a calibrated "
        "judge lies on the dotted line.</p>"
        f'{said}<div class="panels">{"".join(shown)}</div>'
    )


def numbers(results: dict) -> str:
    stages = results["stages"]
    outcomes = [
        (f"by_type.{type}.{outcome}", f"{type.replace('_', ' ')}: {outcome.replace('_', ' ')}")
        for type, found in stages[0]["by_type"].items()
        for outcome in found
    ]
    tokens = [("mean tokens of an answer", [td(stage["mean_tokens"]) for stage in stages])]
    return (
        "<p>Percent, with the 95 % interval and the number n of answers. The interval is wider if "
        "many questions are about one act or name. ↓ lower is better, ↑ higher is better.</p>"
        + stage_table(results, "percent", better([key for key, *_ in METRICS]))
        + text_table(paired_rows(results))
        + "<p>A p-value is of a permutation test over acts and names.</p>" * bool(results["paired"])
        + "<details><summary>Every outcome by type of request, and the length of answers</summary>"
        + stage_table(results, "outcome, percent", outcomes, "neutral")
        + table(["tokens", *(stage_label(stage["name"]) for stage in stages)], tokens)
        + f"</details><p>A baseline without a model: {escape(filter_text(results))}</p>"
    )


def training(results: dict) -> str:
    logs, drawn = results.get("training", {}), []
    for title, starts, key, label in CURVES:
        found = {
            name: [(row["step"], row[key]) for row in rows]
            for name, rows in logs.items()
            if name.startswith(starts) and all(key in row for row in rows)
        }
        if found:
            drawn.append(svg.lines(title, label, found))
    drawn += svg.reward_kl(results["ppo_curves"]) if results.get("ppo_curves") else []
    if not drawn:
        return ""
    return (
        "<p>From the training logs; long logs are averaged to at most 40 points. The proxy reward "
        "is what PPO climbs. The true reward trains nothing. If the proxy rises while the true "
        f"reward falls, the policy exploits the reward model.</p>{charts(drawn)}"
    )


def page(results: dict, transcripts: dict[str, list[dict]]) -> str:
    """The text of the page. `transcripts` holds the rows of `exam.measure` by stage."""
    questions = side_by_side(transcripts) if transcripts else []
    sections = {
        "errors": ("Two errors at every stage", errors(results)),
        "same": ("The same requests at every stage", same_requests(questions)),
        "chains": ("Critique and revision", chains(results)),
        "jailbreaks": (
            "Jailbreaks" + " and the red team" * bool(results["redteam"]),
            jailbreaks(results),
        ),
        "audits": ("The judge and the reward model", audits(results)),
        "numbers": ("All numbers", numbers(results)),
        "training": ("Training curves", training(results)),
    }
    room = LIMIT - len(whole(results, sections).encode("utf-8", "replace"))
    sections["transcripts"] = ("Transcripts", all_transcripts(questions, room))
    return whole(results, sections)


def whole(results: dict, sections: dict[str, tuple[str, str]]) -> str:
    """The page of the sections that have something to show."""
    css, chart_css, script = (
        (HERE / name).read_text(encoding="utf-8") for name in ("page.css", "chart.css", "page.js")
    )
    found = {name: (title, text) for name, (title, text) in sections.items() if text}
    links = "".join(f'<a href="#{name}">{title}</a>' for name, (title, _) in found.items())
    body = "".join(
        f'<section id="{name}"><h2>{title}</h2>{text}</section>\n'
        for name, (title, text) in found.items()
    )
    policy = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>minicai</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        f"<style>{css}{chart_css}</style></head>\n<body>{head(results)}"
        f'<nav aria-label="Sections">{links}</nav><main>{body}</main>'
        f"<script>{script}</script></body></html>\n"
    )


def write_page(results: dict, folder: Path, path: Path):
    """Write the page of results.json and of the transcripts in `folder`, where they exist."""
    fields = dict(verdict=(tuple(SIGNS).__contains__, f"one of {', '.join(SIGNS)}"))
    needed, transcripts = "set turns answer outcome verdict".split(), {}
    for stage in results["stages"]:
        log = folder / f"{stage['name']}.jsonl"
        if log.exists():
            transcripts[stage["name"]] = read_jsonl(log, needed, FIELDS | fields)
    replace_file(path, page(results, transcripts).encode("utf-8", "replace"))
