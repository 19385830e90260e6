"""The whole pipeline, in order. Each line of STEPS is a command that you can run yourself.

    python pipeline.py                       # quick preset: about twelve minutes on 2 cores
    python pipeline.py --rounds 2            # and two rounds of red-teaming and feedback
    python pipeline.py --preset smoke        # a minute or two, to see that everything runs
    python pipeline.py --init MODEL.gguf     # a pretrained model: see train_base.py

It prints every command before it runs it and stops at the first failure. Run it again to go on
after the last finished step: OUT/pipeline.json has the seconds that each step took. When a step
runs again, the steps after it run again too. It ends with the results table, transcripts, and a
page to open in a browser: OUT/report.html.
"""

import os
import random
from pathlib import Path

from minicai.constitution import Constitution
from minicai.exam import Exam
from minicai.files import UserError, read_json, stage_before, write_json
from minicai.run import ROOT, main, parser, run_script, setup
from minicai.world.content import World
from minicai.world.corpus import Corpus
from minicai.world.grader import Grader
from minicai.world.replies import calibrated, decline, helpful
from minicai.world.requests import MIX, STAGE2_SPLIT, Part, fresh_fact

STEPS = [  # (name, options, file it writes); the script is the name's first word
    ("train_base", (), "base.pt"),
    ("revise", (), "revisions.jsonl"),
    ("train_sft", (), "sft.pt"),
    ("label", (), "preferences.jsonl"),
    ("train_dpo", (), "dpo.pt"),
    ("train_rm", (), "rm.pt"),
    ("train_ppo", (), "ppo.pt"),
]


def round_steps(rounds: int, out) -> list[tuple]:
    """Each round attacks the last stage, revises what got through, and trains on it as Stages 1 and
    2 do. A last attack follows the last round."""
    steps, attack = [], ("--mode", "templates", "--target")
    for n in range(1, rounds + 1):
        again = ("--round", n)
        steps += [
            (f"redteam {n}", (*attack, stage_before(out, n)), "redteam.jsonl"),
            (f"revise {n}", again, f"revisions-round{n}.jsonl"),
            (f"train_sft {n}", again, f"sft-round{n}.pt"),
            (f"label {n}", again, f"preferences-round{n}.jsonl"),
            (f"train_dpo {n}", again, f"round{n}.pt"),
        ]
    if rounds:
        last = stage_before(out, rounds + 1)
        steps.append((f"redteam {rounds + 1}", (*attack, last), "redteam.jsonl"))
    return steps


def check(args):
    """Draw one of everything that a step will draw: say what is missing before the first hour."""
    world, constitution = World.of(args), Constitution(args.constitution)
    rng = random.Random(0)
    Corpus(world, constitution, 0)
    Exam(world, 1, 0)
    constitution.audited(test=True)
    asked = [*MIX, ("dual_use_question", "harmful"), ("dual_use_question", "dual_use")]
    for split in ("train", STAGE2_SPLIT, "test"):
        part = Part(world, split)
        for type, kind in asked:
            if kind == "never":
                part.fact(rng, fresh_fact(world, rng))
            else:
                part.draw(rng, type, kind)
    if not any(p.use == "act" and not p.draws for p in Part(world, "train").phrasings):
        raise UserError(
            f"{world.path}/phrasings.jsonl has no seen phrasing without a tone; add one"
        )
    check_grades(world, rng)
    if args.rounds:
        constitution.draw(rng, family="harmlessness")  # the judge of attacks needs one


def check_grades(world: World, rng: random.Random):
    """The grader has to read the world's own answers. Raises UserError where it does not."""
    part, grader = Part(world, None), Grader(world)
    for type, make, wanted in (
        ("legitimate", helpful, "complied"),
        ("sensitive", helpful, "complied"),
        ("legitimate", decline, "refused"),
        ("harmful", calibrated, "refused"),
        ("ambiguous", calibrated, "safe_help"),
        ("dual_use_question", calibrated, "safe_help"),
        ("fact", helpful, "complied"),
    ):
        for _ in range(50):
            request = part.draw(rng, type)
            text = make(world, request, rng).text
            if (found := grader.grade(request, text).outcome) != wanted:
                raise UserError(
                    f"{world.path}/replies.jsonl: the grader reads {text!r} as {found}, not "
                    f"{wanted}; change that reply to words that minicai/world/grader.py knows"
                )


def pipeline():
    p = parser(__doc__)
    p.add_argument("--rounds", type=int, default=0, choices=range(10), help="of feedback (0)")
    p.add_argument("--init", type=Path, help="pretrained model: Hugging Face folder or .gguf file")
    args = setup(p)
    check(args)
    record, path = read_json(args.out / "pipeline.json", {}), args.out / "pipeline.json"
    settings = dict(preset=args.preset, seed=args.seed, world=os.path.relpath(args.world, ROOT))
    settings["constitution"] = os.path.relpath(args.constitution, ROOT)
    if args.init:
        settings["init"] = str(args.init.resolve())
    seconds = record.get("seconds", {})
    whole = isinstance(seconds, dict) and all(type(s) in (int, float) for s in seconds.values())
    if record.get("settings", settings) != settings or not whole:
        raise UserError(f"{path} is of a run with other options; delete it or name another --out")
    record = dict(settings=settings, seconds=seconds)
    for name, own, artifact in STEPS + round_steps(args.rounds, args.out):
        if name in seconds and (args.out / artifact).exists():
            print(f"{name}: done before, in {seconds[name] / 60:.1f} minutes")
            continue
        # This step and all after it, those of rounds too, are no longer done.
        order = [step for step, _, _ in STEPS + round_steps(9, args.out)]
        for later in order[order.index(name) :]:
            seconds.pop(later, None)
        write_json(path, record)
        if name == "train_base" and args.init:
            own = ("--init", args.init)
        seconds[name] = round(run_script(name.split()[0], args, *own), 1)
        write_json(path, record)
    seconds["evaluate"] = round(run_script("evaluate", args), 1)
    write_json(path, record)
    minutes = ", ".join(f"{name} {s / 60:.1f}" for name, s in seconds.items())
    print(f"minutes: {minutes}; together {sum(seconds.values()) / 60:.1f}")
    print(f"open {args.out / 'report.html'} in a browser")


if __name__ == "__main__":
    main(pipeline)
