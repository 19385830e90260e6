"""Should the reward model see the judge's probabilities, or a rounded or clamped form of them?

    python -m experiments.labels

After pipeline.py. Ten minutes on 2 cores. The judge's probabilities in OUT/preferences.jsonl are
rewritten as label.py --label would have written them, and a reward model is trained on each file.
Writes OUT/preferences-LABEL.jsonl and OUT/rm-LABEL.pt.

    soft     the probability itself
    hard     0 or 1, and 0.5 for a tie
    clamp    kept within 0.4 and 0.6, the paper's remedy for an overconfident judge

Answer so far (first edition, full preset, seed 0): soft. Accuracy on held-out acts is 90.7 %
with soft labels, 87.0 with hard and 71.8 with clamped ones. The judge is right nine times in ten,
so clamping takes away certainty that was deserved. In an earlier run soft and hard were equal.
"""

from minicai.audit import audit_reward
from minicai.exam import Exam
from minicai.files import load_policy, read_jsonl, write_jsonl
from minicai.judge import LABELS
from minicai.report import aligned, interval
from minicai.reward import RewardModel
from minicai.run import main, parser, positive, run_script, setup
from minicai.world.content import World


def labels():
    p = parser(__doc__)
    p.add_argument("--eval-n", type=positive, help="requests of each type")
    args = setup(p)
    judged = read_jsonl(args.out / "preferences.jsonl", required=("kind", "p"))
    policy, tokenizer = load_policy(args.out / "sft.pt", args.device)
    exam = Exam(World.of(args), args.eval_n, seed=0)

    rows = [["percent", "right on held-out acts", "calibration error", "right on own samples"]]
    for name, label in LABELS.items():
        data = args.out / f"preferences-{name}.jsonl"
        relabelled = [
            row | dict(p=label(row["p"])) if row["kind"] == "ai" else row for row in judged
        ]
        write_jsonl(data, relabelled)
        run_script("train_rm", args, "--data", data, "--name", name)
        reward, _, _ = RewardModel.load(args.out / f"rm-{name}.pt", args.device)
        audit = audit_reward(policy, reward, tokenizer, exam, args.eval_n, seed=0)
        rates = interval(audit["accuracy"]), interval(audit["own_accuracy"])
        rows.append([name, rates[0], f"{100 * audit['ece']:.1f}", rates[1]])
    print(f"\n{aligned(rows)}")


if __name__ == "__main__":
    main(labels)
