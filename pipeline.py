"""The whole of it, in order: each line below is a command you can run yourself.

    python pipeline.py                       # CPU preset: 40 to 75 minutes on one core with bf16, 90 to 120 on 2 without
    python pipeline.py --rounds 2            # and two rounds of red-teaming and feedback
    python pipeline.py --preset smoke        # a minute or two, to see that everything runs

It prints every command before it runs it, skips what is done (OUT/pipeline.json remembers), and stops at the first failure;
run it again to go on. It ends with the table of results and with transcripts. --preset, --out, --seed, --device and --world
are passed on to every step, --constitution to those that read it.
"""

import os
import random
import shlex
import subprocess
import sys
import time
from pathlib import Path

from minicai.common import UserError, main, parser, read_json, setup, world_hash, write_json
from minicai.constitution import Constitution
from minicai.exam import Exam
from minicai.judge import known_pairs
from minicai.world.content import World
from minicai.world.corpus import Corpus
from minicai.world.requests import MIX, UNTRAINED, Part, fresh_fact

STEPS = [  # name, its own options, what it leaves behind; the command is the name's first word
    ("train_base", (), "base.pt"),
    ("revise", (), "revisions.jsonl"),
    ("train_sft", (), "sft.pt"),
    ("label", (), "preferences.jsonl"),
    ("train_dpo", (), "dpo.pt"),
    ("train_rm", (), "rm.pt"),
    ("train_ppo", (), "ppo.pt"),
]
CONSTITUTIONAL = (
    "train_base",
    "revise",
    "label",
    "redteam",
    "evaluate",
)  # commands that read the constitution


def round_steps(rounds: int, out: Path) -> list[tuple]:
    """Each round attacks the last stage, lets the base revise what got through, and trains on that too, as Stages 1 and 2 do:
    on the revisions, then on preferences between them and what they revise. Then a last attack."""
    steps, target = [], "dpo.pt"
    for n in range(1, rounds + 1):
        steps += [
            (
                f"redteam {n}",
                ("--mode", "templates", "--target", str(out / target)),
                "redteam.jsonl",
            ),
            (f"revise {n}", ("--round", str(n)), f"revisions-round{n}.jsonl"),
            (f"train_sft {n}", ("--round", str(n)), f"sft-round{n}.pt"),
            (f"label {n}", ("--round", str(n)), f"preferences-round{n}.jsonl"),
            (f"train_dpo {n}", ("--round", str(n)), target := f"round{n}.pt"),
        ]
    attack = ("--mode", "templates", "--target", str(out / target))
    return steps + [(f"redteam {rounds + 1}", attack, "redteam.jsonl")] * bool(rounds)


def run(name: str, args, *own) -> float:
    """Run one script with its own options and the shared ones, and return its seconds. Raises UserError when it fails."""
    script = f"{name}.py"
    options = [
        *map(str, own),
        "--preset",
        args.preset,
        "--out",
        str(args.out),
        "--seed",
        str(args.seed),
        "--device",
        args.device,
        "--world",
        str(args.world),
    ]
    if name in CONSTITUTIONAL:
        options += ["--constitution", args.constitution]
    command = [sys.executable, str(Path(__file__).with_name(script)), *options]
    print(f"\n$ python {script} {shlex.join(options)}", flush=True)
    began = time.time()
    # Threads that wait for one another spin a little and then sleep: spinning on is ruinous when the machine is busy.
    code = subprocess.run(command, env={"GOMP_SPINCOUNT": "3000"} | os.environ).returncode
    if code:
        raise UserError(
            f"{script} stopped with exit code {code}; fix what it says above and run this again"
        )
    return time.time() - began


def check(world: World, constitution: Constitution, args):
    """Draw one of everything that a step will draw, so that what is lacking is said before the first hour of work."""
    rng = random.Random(0)
    Corpus(world, constitution, 0), Exam(world, 1, 0), known_pairs(world, constitution, 1, 0)
    for part in (Part(world, "train"), Part(world, UNTRAINED), Part(world, "test")):
        for type, kind in MIX:
            part.fact(rng, fresh_fact(world, rng)) if kind == "never" else part.draw(
                rng, type, kind
            )
    if args.rounds and "harmlessness" not in constitution.families:
        raise UserError(
            f"{args.constitution} has no principle of the family harmlessness, and the judge of attacks needs one; "
            "add it, or leave out --rounds"
        )


def pipeline():
    p = parser(__doc__)
    p.add_argument("--constitution", default="constitution.json", help="file with the principles")
    p.add_argument(
        "--rounds",
        type=int,
        default=0,
        choices=range(10),
        help="of red-teaming and feedback (default: 0)",
    )
    args = setup(p)
    record, settings = args.out / "pipeline.json", args.out / "settings.json"
    check(World(args.world), Constitution(args.constitution), args)
    made_by = dict(preset=args.preset, seed=args.seed, world=world_hash(args))
    if read_json(record, {}) and read_json(settings, made_by) != made_by:
        raise UserError(
            f"{settings} is of a run with another preset, seed, world or constitution; use another --out"
        )
    write_json(settings, made_by)
    seconds = read_json(record, {})
    steps = STEPS + round_steps(args.rounds, args.out)
    order = [name for name, _, _ in steps]
    for name, own, artifact in steps:
        if name in seconds and (args.out / artifact).exists():
            print(f"{name}: done before, in {seconds[name] / 60:.1f} minutes")
            continue
        # What comes after a step that runs again, rounds that are not asked for this time too, is no longer done, and goes: a
        # step refuses to go on with rows that were made from something else. Attacks are a log, and stay.
        kept = {*order[: order.index(name)], "evaluate"}
        for later, _, stale in STEPS + round_steps(9, args.out):
            if later in seconds and later not in (*kept, name) and stale != "redteam.jsonl":
                (args.out / stale).unlink(missing_ok=True)
        seconds = {done: s for done, s in seconds.items() if done in kept}
        write_json(
            record, seconds
        )  # before the step: half of its rows, after a kill, must not look like all of them
        seconds[name] = round(run(name.split()[0], args, *own), 1)
        write_json(record, seconds)
    took = run("evaluate", args)
    seconds.setdefault(
        "evaluate", round(took, 1)
    )  # a second run measures nothing again and would look fast
    write_json(record, seconds)
    minutes = ", ".join(f"{name} {s / 60:.1f}" for name, s in seconds.items())
    print(f"minutes: {minutes}; together {sum(seconds.values()) / 60:.1f}")


if __name__ == "__main__":
    main(pipeline)
