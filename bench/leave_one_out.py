"""Do feedback rounds carry over to a technique that they never saw? Two rounds without it, for each technique.

    python -m bench.leave_one_out --out out/s0       # after pipeline.py --rounds 2 --out out/s0; ten minutes a technique

Every technique gets a folder OUT/without-TECHNIQUE, in which the rounds are run again from DPO-CAI with neither attacks
nor benign requests in that disguise; in Stage 1 the model has met benign ones. Then the same held-out attacks, all in
that disguise, are put to DPO-CAI, to this model, and to the one whose rounds left out nothing. Success is the grader's.
Writes OUT/leave_one_out.json; what is done is not done again, unless DPO-CAI has changed.
"""

import shutil
from argparse import Namespace

from minicai.common import file_hash, main, parser, positive, read_json, setup, write_json
from minicai.report import aligned, interval
from minicai.world.content import TECHNIQUES
from pipeline import run

SHARED = (
    "base.pt",
    "sft.pt",
    "tokenizer.json",
    "revisions.jsonl",
    "helpful.jsonl",
    "preferences.jsonl",
    "dpo.pt",
)


def rounds_without(technique: str, args):
    """The last checkpoint of feedback rounds that start from DPO-CAI and leave a technique out."""
    folder, mark = (
        args.out / f"without-{technique}",
        dict(seed=args.seed, **{n: file_hash(args.out / n) for n in SHARED}),
    )
    if read_json(folder / "made_from.json", {}) != mark:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        for name in SHARED:
            (folder / name).symlink_to((args.out / name).resolve())
        write_json(folder / "made_from.json", mark)
    inside, target = Namespace(**vars(args) | dict(out=folder)), folder / "dpo.pt"
    for n in range(1, args.rounds + 1):
        trained = folder / f"round{n}.pt"
        if not trained.exists():
            run(
                "redteam",
                inside,
                "--mode",
                "templates",
                "--target",
                target,
                "--leave-out",
                technique,
            )
            for script, left_out in (
                ("revise", True),
                ("train_sft", True),
                ("label", False),
                ("train_dpo", False),
            ):
                run(script, inside, "--round", n, *(("--leave-out", technique) if left_out else ()))
        target = trained
    return target


def leave_one_out():
    p = parser(__doc__)
    p.add_argument("--constitution", default="constitution.json", help="file with the principles")
    p.add_argument("--rounds", type=positive, default=2, help="of feedback (default: 2)")
    p.add_argument(
        "--attempts",
        dest="tries",
        type=positive,
        default=150,
        metavar="N",
        help="held-out attacks on each model in each disguise (default: 150)",
    )
    p.add_argument(
        "--techniques", nargs="+", choices=TECHNIQUES, default=TECHNIQUES, help="default: all"
    )
    args = setup(p)
    path, found = args.out / "leave_one_out.json", {}
    for technique in args.techniques:
        models = dict(
            before=args.out / "dpo.pt",
            without=rounds_without(technique, args),
            all=args.out / f"round{args.rounds}.pt",
        )
        others, found[technique] = [t for t in TECHNIQUES if t != technique], {}
        for name, attacked in models.items():
            inside = Namespace(**vars(args) | dict(out=args.out / f"without-{technique}"))
            run(
                "redteam",
                inside,
                "--mode",
                "templates",
                "--split",
                "test",
                "--attempts",
                args.tries,
                "--target",
                attacked,
                "--leave-out",
                *others,
            )
            key = f"templates leave_out={','.join(others)}/{attacked.stem}/test"
            found[technique][name] = read_json(inside.out / "redteam.json", {})[key]["grader"]
        write_json(path, read_json(path, {}) | found)
    said = f"{args.rounds} round{'s' * (args.rounds > 1)}"
    rows = [
        ["percent of attacks that get through", "DPO-CAI", f"{said} without it", f"{said} with all"]
    ]
    rows += [[technique, *map(interval, rates.values())] for technique, rates in found.items()]
    print(aligned(rows))


if __name__ == "__main__":
    main(leave_one_out)
