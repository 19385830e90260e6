"""Do feedback rounds help against a jailbreak technique that they never saw?

    python -m experiments.leave_one_out --techniques many_shot role_play

After pipeline.py --rounds 2. Ten minutes for each technique on 2 cores. The rounds are run again
from DPO-CAI, in OUT/without-TECHNIQUE, in a world whose framings lack the technique. Then three
models meet the same held-out attacks, all in that technique: DPO-CAI, the rounds without it, and
the rounds that saw all. In Stage 1 all three have met benign requests in it. Success is the
grader's word. Adds to OUT/leave_one_out.json.

Answer so far (first edition, full preset, n 150): it depends on the technique. Leetspeak,
seed 0: 14 % get through DPO-CAI, 12 % after rounds without it, 16 % after rounds with it. Such
attacks are misread, and rounds do not teach reading. Many-shot, seed 1: 6.7 % before, 0.7 % after
rounds without it.
"""

import argparse
import shutil
from pathlib import Path

from minicai.files import UserError, read_json, read_jsonl, write_json, write_jsonl
from minicai.report import aligned, interval
from minicai.run import main, parser, positive, run_script, setup
from minicai.world.content import TECHNIQUES, World
from pipeline import round_steps

NEEDED = ("base.pt", "sft.pt", "dpo.pt", "revisions.jsonl", "preferences.jsonl")


def write_world(folder: Path, source: Path, techniques) -> Path:
    """Write a copy of a world whose framings are only those of `techniques`."""
    shutil.copytree(source, folder, dirs_exist_ok=True)
    framings = read_jsonl(source / "framings.jsonl", required=("technique",))
    kept = [row for row in framings if row["technique"] in techniques]
    write_jsonl(folder / "framings.jsonl", kept)
    return folder


def rounds_without(technique: str, args) -> Path:
    """Run the rounds in a folder of their own; the last checkpoint."""
    folder = args.out / f"without-{technique}"
    others = [t for t in TECHNIQUES if t != technique]
    world = write_world(folder / "world-without", args.world, others)
    for name in NEEDED:
        shutil.copy2(args.out / name, folder / name)
    inside = argparse.Namespace(**vars(args) | dict(out=folder, world=world))
    *steps, _ = round_steps(args.rounds, folder)  # the last one is an attack on the last round
    for name, options, _ in steps:
        run_script(name.split()[0], inside, *options)
    return folder / f"round{args.rounds}.pt"


def leave_one_out():
    p = parser(__doc__)
    p.add_argument("--techniques", nargs="+", choices=TECHNIQUES, help="default: all of the world")
    p.add_argument("--rounds", type=positive, default=2, help="of feedback (default: 2)")
    p.add_argument("--attacks", type=positive, default=150, help="on each model (default: 150)")
    args = setup(p)
    known = {framing.technique for framing in World.of(args).framings}
    techniques = args.techniques or [t for t in TECHNIQUES if t in known]
    for technique in set(techniques) - known:
        said = ", ".join(sorted(known))
        raise UserError(f"no framing of {args.world} is {technique} at this size; there are {said}")
    all_rounds = args.out / f"round{args.rounds}.pt"
    if not all_rounds.exists():
        raise UserError(f"{all_rounds} does not exist; run pipeline.py --rounds {args.rounds}")
    rows = [["percent of attacks that get through", "DPO-CAI", "rounds without it", "rounds"]]
    for technique in techniques:
        without = rounds_without(technique, args)
        folder = without.parent
        world = write_world(folder / "world-only", args.world, [technique])
        inside = argparse.Namespace(**vars(args) | dict(out=folder, world=world))
        targets = dict(before=args.out / "dpo.pt", without=without, all=all_rounds)
        found, test = {}, ("--mode", "templates", "--split", "test", "--attempts", args.attacks)
        for name, target in targets.items():
            run_script("redteam", inside, *test, "--target", target)
            summaries = read_json(folder / "redteam.json", {})
            found[name] = summaries[f"templates/{target.stem}/test"]["grader"]
        path = args.out / "leave_one_out.json"
        write_json(path, read_json(path, {}) | {technique: found})
        rows.append([technique, *map(interval, found.values())])
    print(f"\n{aligned(rows)}")


if __name__ == "__main__":
    main(leave_one_out)
