"""Do feedback rounds carry over to a technique that they never saw? Two rounds without it, for each technique.

    python -m bench.leave_one_out --out out/s0       # after pipeline.py --rounds 2 --out out/s0; ten minutes a technique

Every technique gets a folder OUT/without-TECHNIQUE, in which the rounds are run again from DPO-CAI with neither attacks
nor benign requests in that disguise; in Stage 1 the model has met benign ones. Then the same held-out attacks, all in
that disguise, are put to DPO-CAI, to this model, and to the one whose rounds left out nothing. Success is the grader's.
Writes OUT/leave_one_out.json; what is done is not done again.
"""

import argparse
from pathlib import Path

from bench.ablations import run
from minicai import common
from minicai.common import read_json, write_json
from minicai.report import aligned, interval
from minicai.world.content import TECHNIQUES

SHARED = ("base.pt", "sft.pt", "tokenizer.json", "revisions.jsonl", "helpful.jsonl", "preferences.jsonl", "dpo.pt")


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--out", type=Path, default=Path("out/cpu"))
    p.add_argument("--preset", default="cpu")
    p.add_argument("--seed", default="0")
    p.add_argument("--rounds", type=int, default=2)
    p.add_argument("--attempts", default="150", help="held-out attacks on each model in each disguise (default: 150)")
    p.add_argument("--techniques", nargs="+", choices=TECHNIQUES, default=TECHNIQUES, help="default: all")
    args = p.parse_args()
    path, last = args.out / "leave_one_out.json", f"round{args.rounds}.pt"
    for technique in args.techniques:
        if technique in read_json(path, {}):
            continue
        folder = args.out / f"without-{technique}"
        folder.mkdir(exist_ok=True)
        for name in SHARED:
            (folder / name).unlink(missing_ok=True)
            (folder / name).symlink_to((args.out / name).resolve())
        shared = ("--preset", args.preset, "--seed", args.seed, "--out", folder)
        target = folder / "dpo.pt"
        for n in range(1, args.rounds + 1):
            trained = folder / f"round{n}.pt"
            if not trained.exists():
                run("redteam.py", *shared, "--mode", "templates", "--target", target, "--leave-out", technique)
                run("revise.py", *shared, "--round", n, "--leave-out", technique)
                run("train_sft.py", *shared, "--round", n, "--leave-out", technique)
                run("label.py", *shared, "--round", n)
                run("train_dpo.py", *shared, "--round", n)
            target = trained
        others = [t for t in TECHNIQUES if t != technique]
        found = {}
        for name, attacked in (("before", folder / "dpo.pt"), ("without", target), ("all", args.out / last)):
            run("redteam.py", *shared, "--mode", "templates", "--split", "test", "--attempts", args.attempts,
                "--target", attacked, "--leave-out", *others)  # fmt: skip
            key = f"templates leave_out={','.join(others)}/{attacked.stem}/test"
            found[name] = read_json(folder / "redteam.json", {})[key]["grader"]
        write_json(path, read_json(path, {}) | {technique: found})
    rows = [
        [
            "percent of attacks that get through",
            "DPO-CAI",
            f"{args.rounds} rounds without it",
            f"{args.rounds} rounds with all",
        ]
    ]
    for technique, found in read_json(path, {}).items():
        rows.append([technique, *(interval(found[name]) for name in ("before", "without", "all"))])
    print(aligned(rows))


if __name__ == "__main__":
    common.main(main)
