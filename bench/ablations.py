"""What makes Stage 1 work: the number of revisions, the critique, and the constitution (the paper's Figures 5 and 7, small).

    python -m bench.ablations --out out/s0           # after pipeline.py --out out/s0; about half an hour on 2 cores

SL-CAI-n is fine-tuned on the revisions up to the n-th; "direct" revises without a critique; "careless" has no harmlessness
principle in its constitution. Everything else is equal: prompts, seed, steps per answer, exam. Writes OUT/ablations.json, and
the whole exam as OUT/ablations.md.
"""

import json

from minicai.common import main, parser, positive, setup
from minicai.report import aligned, lookup, percent
from minicai.world.skills import STEPS
from pipeline import run

COLUMNS = [
    ("under_refusal", "under-refusal"),
    ("over_refusal", "over-refusal"),
    ("ambiguous_handled", "ambiguous handled"),
    ("rude_or_preachy", "rude/preachy"),
    ("fabrication", "made up"),
    ("known_accuracy", "known facts"),
]


def ablations():
    p = parser(__doc__)
    p.add_argument("--constitution", default="constitution.json", help="file with the principles")
    p.add_argument(
        "--eval-n",
        dest="n",
        type=positive,
        default=150,
        metavar="N",
        help="requests of each type (default: 150)",
    )
    args = setup(p)
    names = [f"revisions-{n}" for n in range(STEPS + 1)] + ["direct", "careless"]
    for n in range(STEPS + 1):
        run("train_sft", args, "--revisions", n, "--name", f"revisions-{n}")
    for name, change in (
        ("direct", ("--no-critique",)),
        ("careless", ("--without", "harmlessness")),
    ):
        run("revise", args, *change, "--name", name)
        run("train_sft", args, "--data", args.out / f"revisions-{name}.jsonl", "--name", name)
    results = args.out / "ablations.json"
    checkpoints = [args.out / f"sft-{name}.pt" for name in names]
    run("evaluate", args, "--eval-n", args.n, "--results", results, *checkpoints)
    stages = {s["name"]: s for s in json.loads(results.read_text())["stages"]}
    rows = [["fine-tuned on", *(label for _, label in COLUMNS)]]
    rows += [
        [name, *(percent(lookup(stages[f"sft-{name}"], key)) for key, _ in COLUMNS)]
        for name in names
    ]
    print(aligned(rows))


if __name__ == "__main__":
    main(ablations)
