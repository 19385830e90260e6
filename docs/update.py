"""Write the numbers, transcripts and pictures of finished runs into README.md and docs/.

    python docs/update.py out/q0 out/q1 out/q2   # keep these runs, one folder a seed, and write
    python docs/update.py                        # write again, from all runs in docs/runs

reads   OUT/results.json of each folder, after pipeline.py; docs/aims.jsonl, set before the runs
writes  docs/runs/PRESET-SEED.jsonl; docs/errors.svg and docs/reward-kl.svg; the text between
        <!-- NAME: ... --> and <!-- end of NAME --> in README.md and docs/*.md
"""

import re
import sys
from pathlib import Path
from subprocess import check_output

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))


from minicai.exam import ERRORS
from minicai.files import UserError, parse_json, read_jsonl, read_text, write_jsonl
from minicai.report import METRICS, SKILLS, STAGE_2, lookup, markdown, samples_text
from minicai.run import ROOT, main
from minicai.svg import errors_by_stage, reward_kl, stage_label, write_svg
from minicai.world.content import TECHNIQUES

DOCS = ROOT / "docs"
KEPT = "preset seed commit hardware skills judge_audit reward_model ppo_curves"
IN_README = "under_refusal over_refusal ambiguous_handled steps_correct jailbreak_mean".split()
OMITTED = "hedged names_harm consistency jailbreak.seen_mean jailbreak_of_refused"
OF_STAGE = {key: label for key, label, _ in METRICS if key not in OMITTED.split()}
FORMS = {f"jailbreak.{form}": form.replace("_", " ") for form in TECHNIQUES[:5]}  # of quick
OF_RUN = {f"skills.{key}": f"critic: {label}" for key, label in SKILLS} | dict(STAGE_2)
LABELS = OF_STAGE | FORMS | OF_RUN


def keep(folder: Path):
    """Write what is shown of a run to docs/runs: a row for the run, then one for each stage."""
    run = parse_json(read_text(folder / "results.json"), f"{folder}/results.json")
    for stage in run["stages"]:
        stage["samples"] = [s for s in stage["samples"] if s["set"] in ("harmful", "legitimate")]
    head = dict(name="measured") | {key: run[key] for key in KEPT.split()}
    write_jsonl(DOCS / "runs" / f"{run['preset']}-{run['seed']}.jsonl", [head, *run["stages"]])


def pool(runs: list[dict], stage: str, key: str) -> dict:
    """The mean over the seeds as a rate, with their range as its interval; text: 96 (93-99)."""
    found = [lookup(run[stage], key) for run in runs]
    n, seeds = found[0].get("n", ""), [x["rate"] for x in found if x["rate"] is not None]
    if not seeds:
        return dict(n=n, seeds=[], text="-")
    rate = dict(rate=sum(seeds) / len(seeds), lo=min(seeds), hi=max(seeds))
    mean, lo, hi = (f"{100 * x:.1f}" for x in rate.values())
    return rate | dict(n=n, seeds=seeds, text=mean if lo == hi else f"{mean} ({lo}-{hi})")


def table(runs: list[dict], stages: list[str], keys) -> str:
    """A row for each key, a column for each stage; n is the number of questions in one seed."""
    mean = f", mean of {len(runs)} seeds (range)" if len(runs) > 1 else ""
    rows = [[f"percent{mean}", *map(stage_label, stages), "n"]]
    for key in keys:
        rates = [pool(runs, stage, key) for stage in stages]
        rows.append([LABELS[key], *(rate["text"] for rate in rates), str(rates[-1]["n"])])
    return markdown(rows)


def missed_aims(runs: list[dict]) -> str:
    """The aims that a seed missed, the worst first, and how many others there are."""
    aims, rows = read_jsonl(DOCS / "aims.jsonl"), []
    for stage, key, low, high in map(dict.values, aims):
        rate = pool(runs, stage, key)
        reached = sum(low <= 100 * seed <= high for seed in rate["seeds"])
        if reached < len(runs):
            label = f"{stage_label(stage)}: {LABELS[key]}".removeprefix("measured: ")
            aim = f"at most {high}" if low <= 0 else f"at least {low}"
            rows.append([label, aim, rate["text"], f"{reached} of {len(runs)}"])
    text = markdown([["percent", "aim", "measured", "reached"], *sorted(rows, key=lambda r: r[-1])])
    return f"{text}\n\nThe other {len(aims) - len(rows)} aims were reached in every seed."


def replace(name: str, path: str, text: str):
    """Put a text between the markers of this name in a file of the repository."""
    markers = re.compile(rf"(<!-- {name}:.*?-->\n).*?(<!-- end of {name} -->)", re.S)
    new, n = markers.subn(lambda found: f"{found[1]}\n{text}\n\n{found[2]}", read_text(ROOT / path))
    if not n:
        raise UserError(f"{path} has no marker {name!r}; add <!-- {name}: --> and its end")
    (ROOT / path).write_text(new, encoding="utf-8")


def kept(preset: str) -> list[dict]:
    """The runs of a preset: for each its rows by name, "measured" first and then the stages."""
    paths = sorted(DOCS.glob(f"runs/{preset}-*.jsonl"))
    return [{row["name"]: row for row in read_jsonl(path)} for path in paths]


def update():
    for folder in map(Path, sys.argv[1:]):
        keep(folder)
    runs, full = kept("quick"), kept("full")
    first, [_, *stages] = runs[0], runs[0]
    replace("results", "README.md", table(runs, stages, IN_README))
    replace("transcript", "README.md", samples_text(dict(stages=[first["base"], first["dpo"]])))
    replace("stages", "docs/results.md", table(runs, stages, OF_STAGE))
    replace("forms", "docs/results.md", table(runs, stages, FORMS))
    replace("audits", "docs/results.md", table(runs, ["measured"], OF_RUN))
    replace("aims", "docs/results.md", missed_aims(runs))
    [_, *of_full] = full[0]
    shown = list(dict.fromkeys(of_full[:4] + of_full[-1:]))  # without rounds before the last
    replace("full", "docs/results.md", table(full, shown, OF_STAGE))
    printed = check_output([sys.executable, "-m", "experiments.ppo_by_hand"], cwd=ROOT, text=True)
    replace("ppo_by_hand", "docs/exercises.md", f"```\n{printed.strip()}\n```")
    pooled = [dict(name=s, **{key: pool(runs, s, key) for key in ERRORS}) for s in stages]
    write_svg(DOCS / "errors.svg", errors_by_stage(pooled))
    write_svg(DOCS / "reward-kl.svg", reward_kl(first["measured"]["ppo_curves"]))


if __name__ == "__main__":
    main(update)
