"""Soft, hard and clamped labels: what the reward model makes of the same judgements.

    python -m bench.labels out/s0 out/s1 out/s2      # after pipeline.py into each; a minute for each folder on 2 cores

The judge's probabilities in preferences.jsonl are rewritten as label.py --label would have written them, and a reward model is trained
on each; everything else is equal. Accuracy and calibration on held-out acts, on answers that the world writes. Writes
OUT/preferences-LABEL.jsonl and OUT/rm-LABEL.pt into each folder.
"""

import argparse
from pathlib import Path

from bench.ablations import run
from minicai import common
from minicai.common import load_checkpoint, read_json, read_jsonl, rewrite_jsonl
from minicai.exam import Exam, audit_reward
from minicai.judge import LABELS
from minicai.report import aligned
from minicai.reward import RewardModel
from minicai.tokenizer import Tokenizer
from minicai.world.content import World


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("outs", nargs="+", type=Path, metavar="OUT")
    p.add_argument("--eval-n", type=int, default=300, help="requests of each type (default: 300)")
    args = p.parse_args()
    found = {name: [] for name in LABELS}
    for out in args.outs:
        settings, rows = read_json(out / "settings.json", {}), read_jsonl(out / "preferences.jsonl")
        if rows[0]["made_by"]["label"] != "soft":
            raise SystemExit(
                f"{out}/preferences.jsonl holds {rows[0]['made_by']['label']} labels; run label.py without --label"
            )
        tokenizer, exam = Tokenizer.load(out / "tokenizer.json"), Exam(World("world"), args.eval_n, 0)
        policy, _ = load_checkpoint(out / "sft.pt")
        for name, label in LABELS.items():
            data = out / f"preferences-{name}.jsonl"
            rewrite_jsonl(data, [row | dict(p=label(row["p"])) if row["kind"] == "ai" else row for row in rows])
            run("train_rm.py", "--preset", settings.get("preset", "cpu"), "--seed", settings.get("seed", 0), "--device", "cpu", "--out", out, "--data", data,
                "--name", name)  # fmt: skip
            reward, _ = RewardModel.load(out / f"rm-{name}.pt")
            found[name].append(audit_reward(policy, reward, tokenizer, exam, args.eval_n, 0))
    rows = [["labels", "right on held-out acts, %", "calibration error, %", "right on two samples of SL-CAI, %"]]
    for name, audits in found.items():
        columns = (
            [a["accuracy"]["rate"] for a in audits],
            [a["ece"] for a in audits],
            [a["own_accuracy"]["rate"] for a in audits],
        )
        rows.append([name, *(f"{100 * sum(c) / len(c):.1f} ({100 * min(c):.1f}-{100 * max(c):.1f})" for c in columns)])
    print(aligned(rows))


if __name__ == "__main__":
    common.main(main)
