"""What makes Stage 1 work: the number of revisions, the critique, and the constitution (the paper's Figures 5 and 7, small).

    python -m bench.ablations --out out/s0           # after pipeline.py --out out/s0; about half an hour on 2 cores

SL-CAI-n is fine-tuned on the revisions up to the n-th; "direct" revises without a critique; "careless" has no harmlessness
principle in its constitution. Everything else is equal: prompts, seed, steps per answer, exam. Writes OUT/ablations.json.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

from minicai import common
from minicai.report import aligned, lookup, percent
from minicai.world.skills import STEPS

COLUMNS = [("under_refusal", "under-refusal"), ("over_refusal", "over-refusal"), ("ambiguous_handled", "ambiguous handled"),
           ("rude_or_preachy", "rude/preachy"), ("fabrication", "made up"), ("known_accuracy", "known facts")]  # fmt: skip


def run(script, *options):
    """Run one of the project's scripts; where it stops, so does the bench, with its exit code and its one sentence."""
    print(f"$ python {script} {' '.join(map(str, options))}", flush=True)
    code = subprocess.run([sys.executable, script, *map(str, options)]).returncode
    if code:
        raise SystemExit(code)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--out", type=Path, default=Path("out/cpu"))
    p.add_argument("--preset", default="cpu")
    p.add_argument("--seed", default="0")
    p.add_argument("--eval-n", default="150", help="requests of each type (default: 150)")
    args = p.parse_args()
    shared = ("--preset", args.preset, "--out", args.out, "--seed", args.seed)
    names = [f"revisions-{n}" for n in range(STEPS + 1)] + ["direct", "careless"]
    for n in range(STEPS + 1):
        run("train_sft.py", *shared, "--revisions", n, "--name", f"revisions-{n}")
    for name, change in (("direct", ("--no-critique",)), ("careless", ("--without", "harmlessness"))):
        run("revise.py", *shared, *change, "--name", name)
        run("train_sft.py", *shared, "--data", args.out / f"revisions-{name}.jsonl", "--name", name)
    results = args.out / "ablations.json"
    checkpoints = [args.out / f"sft-{name}.pt" for name in names]
    run("evaluate.py", *shared, "--eval-n", args.eval_n, "--results", results, *checkpoints)
    stages = {s["name"]: s for s in json.loads(results.read_text())["stages"]}
    rows = [["fine-tuned on", *(label for _, label in COLUMNS)]]
    rows += [[name, *(percent(lookup(stages[f"sft-{name}"], key)) for key, _ in COLUMNS)] for name in names]
    print(aligned(rows))


if __name__ == "__main__":
    common.main(main)
