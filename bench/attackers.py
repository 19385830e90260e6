"""Every way to attack, before and after the feedback rounds: how often it works, and how much it repeats itself.

    python -m bench.attackers --out out/s0           # after pipeline.py --rounds 2 --out out/s0; half an hour on 2 cores

Modes come in the order in which they learn from one another: few_shot and sft need attacks that worked, and where templates and
zero_shot have found none they have nothing to start from. `rl, no diversity` shows the attacker's collapse. Success is the
judge's word, as everywhere in redteam.py, with the grader's beside it. Writes OUT/attackers.json;
attacks that OUT/redteam.jsonl holds already are not made again.
"""

from minicai.common import (
    UserError,
    file_hash,
    main,
    parser,
    read_json,
    read_jsonl,
    setup,
    write_json,
)
from minicai.report import aligned, interval
from minicai.world.requests import UNTRAINED
from pipeline import run

MODES = {  # name in the table: options of redteam.py
    "templates": ("--mode", "templates"),
    "zero_shot": ("--mode", "zero_shot"),
    "few_shot": ("--mode", "few_shot"),
    "sft": ("--mode", "sft"),
    "rl": ("--mode", "rl"),
    "rl, no diversity": ("--mode", "rl", "--diversity", "0"),
    "gcg": (
        "--mode",
        "gcg",
        "--attempts",
        "12",
        "--split",
        "test",
    ),  # the same requests before and after
}


def attackers():
    p = parser(__doc__)
    p.add_argument("--constitution", default="constitution.json", help="file with the principles")
    p.add_argument(
        "--targets",
        nargs="+",
        default=["dpo", "round2"],
        help="checkpoints in OUT (default: dpo round2)",
    )
    p.add_argument("--modes", nargs="+", choices=MODES, default=list(MODES), help="default: all")
    args = setup(p)
    for name in ("tokenizer.json", "base.pt", *(f"{target}.pt" for target in args.targets)):
        if not (args.out / name).exists():
            raise UserError(
                f"{args.out / name} does not exist; run pipeline.py, or name other --targets"
            )
    found = {}
    for target in args.targets:
        path = args.out / f"{target}.pt"
        for name in args.modes:
            mode, log = MODES[name][1], args.out / "redteam.jsonl"
            rows = read_jsonl(log) if log.exists() else []
            taught = any(
                r["trainable"] and r["target"] == file_hash(path) and len(r["turns"]) == 1
                for r in rows
            )
            found[f"{name} against {target}"] = None
            if mode in ("few_shot", "sft") and not taught:
                continue
            run("redteam", args, "--target", path, *MODES[name])
            split = "test" if mode == "gcg" else UNTRAINED
            key = f"{mode}{' diversity=0.0' * ('--diversity' in MODES[name])}/{target}/{split}"
            found[f"{name} against {target}"] = read_json(args.out / "redteam.json", {})[key]
            write_json(args.out / "attackers.json", found)
    rows = [["percent", "by the judge", "by the grader", "they agree", "distinct-2", "self-BLEU"]]
    for name, s in found.items():
        rows.append(
            [name, "nothing to learn from", *[""] * 4]
            if s is None
            else [
                name,
                *(interval(s[k]) for k in ("judge", "grader", "agreement")),
                *(f"{100 * s[k]:.1f}" for k in ("distinct_2", "self_bleu")),
            ]
        )
    print(aligned(rows))


if __name__ == "__main__":
    main(attackers)
