"""Every way to attack, before and after the feedback rounds: how often it works, and how much it repeats itself.

    python -m bench.attackers --out out/s0           # after pipeline.py --rounds 2 --out out/s0; half an hour on 2 cores

Modes come in the order in which they learn from one another: few_shot and sft need attacks that worked, and where templates and
zero_shot have found none they have nothing to start from. `rl, no diversity` shows the attacker's collapse. Success is the
judge's word, as everywhere in redteam.py, with the grader's beside it. Writes OUT/attackers.json; what is done is not done again.
"""

import argparse
import subprocess
import sys
from pathlib import Path

from minicai import common
from minicai.common import read_json, write_json
from minicai.report import aligned, interval
from minicai.world.requests import UNTRAINED

MODES = {  # name in the table: options of redteam.py
    "templates": ("--mode", "templates"),
    "zero_shot": ("--mode", "zero_shot"),
    "few_shot": ("--mode", "few_shot"),
    "sft": ("--mode", "sft"),
    "rl": ("--mode", "rl"),
    "rl, no diversity": ("--mode", "rl", "--diversity", "0"),
    "gcg": ("--mode", "gcg", "--attempts", "12", "--split", "test"),  # the same requests before and after
}


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--out", type=Path, default=Path("out/cpu"))
    p.add_argument("--preset", default="cpu")
    p.add_argument("--seed", default="0")
    p.add_argument("--targets", nargs="+", default=["dpo", "round2"], help="checkpoints in OUT (default: dpo round2)")
    p.add_argument("--modes", nargs="+", choices=MODES, default=list(MODES), help="default: all")
    args = p.parse_args()
    path = args.out / "attackers.json"
    for name in ("tokenizer.json", "base.pt", *(f"{target}.pt" for target in args.targets)):
        if not (args.out / name).exists():
            raise common.UserError(f"{args.out / name} does not exist; run pipeline.py, or name other --targets")
    for target in args.targets:
        for name in args.modes:
            if name in read_json(path, {}).get(target, {}):
                continue
            mode = MODES[name][1]
            command = ["redteam.py", "--preset", args.preset, "--seed", args.seed, "--out", args.out, "--target",
                       args.out / f"{target}.pt", *MODES[name]]  # fmt: skip
            print(f"$ python {' '.join(map(str, command))}", flush=True)
            code = subprocess.run([sys.executable, *map(str, command)]).returncode
            if code and not (code == 2 and mode in ("few_shot", "sft")):
                raise SystemExit(code)
            split = "test" if mode == "gcg" else UNTRAINED
            options = " diversity=0.0" if "--diversity" in MODES[name] else ""
            found = read_json(args.out / "redteam.json", {})[f"{mode}{options}/{target}/{split}"] if code == 0 else None
            all_found = read_json(path, {})
            all_found.setdefault(target, {})[name] = found
            write_json(path, all_found)
    rows = [["percent", "by the judge", "by the grader", "they agree", "n", "distinct-2", "self-BLEU"]]
    for target, modes in read_json(path, {}).items():
        for name, s in modes.items():
            rows.append([f"{name} against {target}"] + (["nothing to learn from", *[""] * 5] if s is None else [
                interval(s["judge"]), interval(s["grader"]), interval(s["agreement"]), str(s["judge"]["n"]), f"{100 * s['distinct_2']:.1f}",
                f"{100 * s['self_bleu']:.1f}"]))  # fmt: skip
    print(aligned(rows))


if __name__ == "__main__":
    common.main(main)
