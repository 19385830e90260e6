"""Soft, hard and clamped labels: what the reward model makes of the same judgements.

    python -m bench.labels --out out/s0              # after pipeline.py; ten minutes on 2 cores

The judge's probabilities in preferences.jsonl are rewritten as label.py --label would have written them, and a reward model is trained
on each; everything else is equal. Accuracy and calibration on held-out acts, on answers that the world writes. Writes
OUT/preferences-LABEL.jsonl and OUT/rm-LABEL.pt.
"""

from minicai.common import (
    UserError,
    load_checkpoint,
    main,
    parser,
    positive,
    read_jsonl,
    rewrite_jsonl,
    setup,
)
from minicai.exam import Exam, audit_reward
from minicai.judge import LABELS
from minicai.report import aligned, interval
from minicai.reward import RewardModel
from minicai.tokenizer import Tokenizer
from minicai.world.content import World
from pipeline import run


def labels():
    p = parser(__doc__)
    p.add_argument(
        "--eval-n",
        dest="n",
        type=positive,
        default=300,
        metavar="N",
        help="requests of each type (default: 300)",
    )
    args = setup(p)
    path = args.out / "preferences.jsonl"
    judged = read_jsonl(path, required=("kind", "p", "made_by"))
    if not judged or judged[0]["made_by"]["label"] != "soft":
        raise UserError(f"{path} holds no soft labels; run label.py without --label")
    tokenizer, exam = (
        Tokenizer.load(args.out / "tokenizer.json"),
        Exam(World(args.world), args.n, 0),
    )
    policy, _ = load_checkpoint(args.out / "sft.pt", device=args.device)
    rows = [
        ["percent", "right on held-out acts", "calibration error", "right on two samples of SL-CAI"]
    ]
    for name, label in LABELS.items():
        data = args.out / f"preferences-{name}.jsonl"
        rewrite_jsonl(
            data, [row | dict(p=label(row["p"])) if row["kind"] == "ai" else row for row in judged]
        )
        run("train_rm", args, "--data", data, "--name", name)
        reward, _ = RewardModel.load(args.out / f"rm-{name}.pt", args.device)
        audit = audit_reward(policy, reward, tokenizer, exam, args.n, 0)
        rows.append(
            [
                name,
                interval(audit["accuracy"]),
                f"{100 * audit['ece']:.1f}",
                interval(audit["own_accuracy"]),
            ]
        )
    print(aligned(rows))


if __name__ == "__main__":
    main(labels)
