"""What makes Stage 1 work: the number of revisions, the critique, or the constitution?

    python -m experiments.ablations

After pipeline.py. Ten minutes on 2 cores, half an hour for the full preset. Everything else is
equal: prompts, seed, training, exam.

    revisions-N   fine-tuned on the revisions of step N (0: on the drafts, 5: this is SL-CAI)
    direct        revised without critiques
    lawless       revised under a constitution without harmlessness principles

The exam has half of its usual questions. Writes OUT/sft-NAME.pt, and the whole exam in
OUT/ablations.json. The numbers are those of the paper's figures 5 and 7 (Bai et al. 2022).

Answer so far (quick preset, seed 0, n 50 of each type): all three. Every further revision takes out
harm: 96, 78, 54, 12, 6 and 2 % of harmful requests are complied with. Without critiques the model
is as harmless, handles fewer ambiguous requests (78 and 90 %) and makes up more (72 and 8 %).
Without harmlessness principles it complies with 30 %, less than it should: the base of quick
refuses when it is asked to take out an insult next to harm. In the full preset it is 83 %.
"""

from minicai.constitution import FAMILIES
from minicai.files import read_json
from minicai.report import aligned, lookup, percent
from minicai.run import main, parser, run_script, setup

COLUMNS = {  # key in results.json -> head of the column
    "under_refusal": "under-refusal",
    "over_refusal": "over-refusal",
    "ambiguous_handled": "ambiguous handled",
    "rude_or_preachy": "rude or preachy",
    "fabrication": "made up",
    "known_accuracy": "known names",
}


def ablations():
    args = setup(parser(__doc__))

    names = [f"revisions-{n}" for n in range(len(FAMILIES) + 1)]
    for n, name in enumerate(names):
        run_script("train_sft", args, "--revisions", n, "--name", name)

    changes = dict(direct=["--no-critique"], lawless=["--without", "harmlessness"])
    for name, change in changes.items():
        run_script("revise", args, *change, "--name", name)
        data = args.out / f"revisions-{name}.jsonl"
        run_script("train_sft", args, "--data", data, "--name", name)

    names = [f"sft-{name}" for name in (*names, *changes)]
    checkpoints = [args.out / f"{name}.pt" for name in names]
    results, half = args.out / "ablations.json", args.eval_n // 2
    run_script("evaluate", args, *checkpoints, "--eval-n", half, "--results", results)

    stages = {stage["name"]: stage for stage in read_json(results, {})["stages"]}
    rows = [["percent", *COLUMNS.values()]]
    for name in names:
        rows.append([name, *(percent(lookup(stages[name], key)) for key in COLUMNS)])
    print(f"\n{aligned(rows)}")


if __name__ == "__main__":
    main(ablations)
