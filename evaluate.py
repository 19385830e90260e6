"""The two-sided evaluation: harm that gets through and help that is denied, for every stage, on held-out requests.

    python evaluate.py                     # the checkpoint of every stage in OUT: base.pt, sft.pt, dpo.pt, ppo.pt, round1.pt, ...
    python evaluate.py out/cpu/sft-1.pt    # only these
    python evaluate.py --guard --helpful-refusals --interpolate    # and what goes around a model, on a quarter of the questions
    python evaluate.py --report --cost-over 3                      # nothing is measured: the report again, from results.json

reads   checkpoints, OUT/tokenizer.json, constitution.json, world/
writes  OUT/results.json, OUT/report.md with pictures where matplotlib is installed, OUT/transcripts/STAGE.jsonl (every
        question with its answer and outcome; skills.jsonl those about critiques), guard-STAGE.jsonl and refusals-STAGE.jsonl

Decoding is greedy. Rates have Wilson 95 % intervals, wider where many questions are about one act. A stage already in
results.json is not measured again unless its checkpoint changed. Results of another exam, world or constitution are not
mixed with these: name another file with --results.
"""

import random
import subprocess
from pathlib import Path

from tqdm import tqdm

from minicai.common import (
    UserError,
    append_jsonl,
    at_least_zero,
    file_hash,
    hardware,
    load_checkpoint,
    main,
    make_folder,
    parser,
    positive,
    read_json,
    read_jsonl,
    rounds,
    seed,
    setup,
    world_hash,
    write_json,
)
from minicai.constitution import Constitution, Wording
from minicai.data import FIELDS
from minicai.exam import DECODING, Exam, KeywordFilter, audit_reward, audit_skills, measure
from minicai.guard import every_fourth, guard_rows, measure_refusals, sweep
from minicai.report import same_requests, table, with_requests, write_report
from minicai.reward import RewardModel
from minicai.tokenizer import Tokenizer
from minicai.tradeoff import interpolate, on_every_fourth, paired
from minicai.world.content import World
from minicai.world.grader import Grader
from minicai.world.requests import PLAIN, TYPES

STAGES = ("base", "sft", "dpo", "ppo")  # and round1, round2, ...
SAMPLES = (
    *PLAIN,
    "fact often",
    "fact never",
    "role_play harmful",
)  # one question of each is kept in results.json


def find_checkpoints(out: Path) -> list[Path]:
    return [path for name in STAGES if (path := out / f"{name}.pt").exists()] + rounds(out)


def gone(name: str, out: Path) -> bool:
    """Whether this is a stage of the pipeline whose checkpoint OUT no longer holds: what was measured of it tells of another run."""
    return (name in STAGES or name.removeprefix("round").isdigit()) and not (
        out / f"{name}.pt"
    ).exists()


def still_there(name: str, fingerprint: str, out: Path) -> bool:
    """Whether the model that was measured or attacked is the one that OUT holds by this name, or is none of OUT's."""
    path = out / f"{name}.pt"
    return not gone(name, out) and (not path.exists() or file_hash(path) == fingerprint)


def commit() -> str:
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--dirty"],
            capture_output=True,
            text=True,
            cwd=Path(__file__).parent,
        )
    except OSError:
        return "unknown"
    return done.stdout.strip() or "unknown"


def options():
    p = parser(__doc__)
    p.add_argument(
        "checkpoints", nargs="*", type=Path, help="default: the checkpoint of every stage in OUT"
    )
    p.add_argument("--constitution", default="constitution.json", help="file with the principles")
    p.add_argument(
        "--split",
        choices=("test", "train", "demo"),
        default="test",
        help="part of the world (default: test)",
    )
    p.add_argument(
        "--eval-n",
        type=positive,
        help="requests of each type; half as many of each kind of name, a quarter in each disguise",
    )
    p.add_argument(
        "--exam-seed",
        type=seed,
        default=0,
        help="seed of the questions, the same for every model (default: 0)",
    )
    p.add_argument("--results", type=Path, help="where to write (default: OUT/results.json)")
    p.add_argument(
        "--guard",
        action="store_true",
        help="also sweep the thresholds of a guard around each checkpoint",
    )
    p.add_argument(
        "--helpful-refusals",
        action="store_true",
        help="also measure the transform that makes refusals helpful",
    )
    p.add_argument(
        "--interpolate",
        action="store_true",
        help="also measure weights between OUT/base.pt and each checkpoint",
    )
    p.add_argument(
        "--report", action="store_true", help="only write the report again, from the results"
    )
    p.add_argument(
        "--cost-under",
        type=at_least_zero,
        default=1,
        help="cost of a harmful request complied with (default: 1)",
    )
    p.add_argument(
        "--cost-over",
        type=at_least_zero,
        default=1,
        help="cost of a harmless request refused (default: 1)",
    )
    args = setup(p)
    folders = {path.parent for path in args.checkpoints}
    if args.results and len(folders) == 1:
        [args.out] = folders  # its judge, reward model and base belong to them
    return args


def evaluate():
    args = options()
    results_path = args.results or args.out / "results.json"
    named = results_path.stem != "results"
    report = results_path.with_name(f"{results_path.stem}.md" if named else "report.md")
    logs = results_path.with_name(f"transcripts-{results_path.stem}" if named else "transcripts")
    costs = args.cost_under, args.cost_over
    if args.report:
        return report_again(results_path, report, costs)
    paths = choose(args)
    names = [path.stem for path in paths]
    make_folder(results_path.parent)
    world, constitution = World(args.world), Constitution(args.constitution)
    guard_wording(args, constitution)  # what the constitution lacks is said before the first exam
    if "base" in names:
        constitution.audited(test=True)
    exam = Exam(world, args.eval_n, args.exam_seed, args.split)

    mark = dict(split=args.split, n=args.eval_n, seed=args.exam_seed, content=world_hash(args))
    results = read_json(results_path, {})
    if results.get("stages") and results.get("exam") != mark:
        raise UserError(
            f"{results_path} holds results of another exam ({results.get('exam')}); delete it, or name another with --results"
        )
    results = dict(schema=1, stages=[]) | results | dict(commit=commit())
    made = dict(seed=args.seed, preset=args.preset) | read_json(
        args.out / "settings.json", {}
    )  # the pipeline's own
    results |= dict(
        world=str(args.world),
        seed=made["seed"],
        preset=made["preset"],
        exam=mark,
        decoding=DECODING,
    )
    for stage in [s for s in results["stages"] if s["name"] not in names]:
        if not still_there(stage["name"], stage["hash"], args.out):
            print(
                f"{stage['name']}: what was measured was another checkpoint, and is left out; name it to measure it again"
            )
            results["stages"].remove(stage)
            if stage["name"] == "base":
                forget_base(results)
    stages = {stage["name"]: stage for stage in results["stages"]}
    for name in results.get("interpolation", {}).keys() - stages.keys():
        results["interpolation"].pop(name)
    order = [
        path.stem for path in find_checkpoints(args.out)
    ]  # in the report, whatever is measured first
    for path in paths:
        name = path.stem
        if stages.get(name, {}).get("hash") == file_hash(path):
            continue
        stages[name], skills = measure_stage(args, path, exam, constitution, logs)
        results["stages"] = sorted(
            stages.values(),
            key=lambda s: order.index(s["name"]) if s["name"] in order else len(order),
        )
        results.get("interpolation", {}).pop(name, None)  # of the checkpoint that was there before
        if name == "base":
            forget_base(results)
            results["skills"] = skills
        write_json(results_path, results)

    add_stage_2(results, args, exam)
    if args.guard or args.helpful_refusals or args.interpolate:
        around(args, paths, exam, constitution, results, stages, logs, results_path)
    add_the_rest(results, args, constitution, stages, logs)
    results["keyword_filter"] = KeywordFilter(world, args.exam_seed).measure(exam)
    write_json(results_path, results)
    write_report(results, report, costs)
    print(f"{table(results)}\n\n{same_requests(results)}\n")
    print(f"{results_path}, {report}; greedy decoding, {args.split} split, n and intervals in both")


def report_again(results_path: Path, report: Path, costs: tuple[float, float]):
    results = read_json(results_path, {})
    if not results.get("stages"):
        raise UserError(f"{results_path} holds no results; run evaluate.py without --report")
    try:
        write_report(results, report, costs)
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{results_path} is not whole ({type(error).__name__}: {error}), or was written by another version; delete it and run "
            "evaluate.py again"
        )
    print(report)


def choose(args) -> list[Path]:
    """The checkpoints to measure. Raises UserError where there is none, or where results could not tell them apart."""
    paths = args.checkpoints or find_checkpoints(args.out)
    others = {
        p.name for pattern in ("sft-*.pt", "dpo-*.pt", "ppo-*.pt") for p in args.out.glob(pattern)
    }
    others -= {f"sft-{path.name}" for path in rounds(args.out)}  # halfway through a round
    if others and not args.checkpoints:
        print(f"not measured unless you name them: {', '.join(sorted(others))}")
    if not paths:
        raise UserError(f"{args.out} holds no checkpoint; run pipeline.py or train_base.py")
    names = [path.stem for path in paths]
    if len(set(names)) < len(names):
        raise UserError(
            f"two checkpoints are named {max(names, key=names.count)}, and results are kept by name; rename one, or measure it "
            "with another --results"
        )
    if (args.guard or args.helpful_refusals or args.interpolate) and len(
        {path.parent.resolve() for path in paths}
    ) > 1:
        raise UserError(
            "--guard, --helpful-refusals and --interpolate take the base beside the checkpoints; name those of one folder"
        )
    for path in paths:
        if not path.is_file():
            raise UserError(
                f"{path} {'is not a file' if path.exists() else 'does not exist'}; name a checkpoint, or none to measure all"
            )
        if path.parent.resolve() != args.out.resolve() and not args.results:
            raise UserError(
                f"{path} is not in {args.out}, whose results it would be mixed with; give its folder as --out, or another file "
                "as --results"
            )
    return paths


def measure_stage(
    args, path: Path, exam: Exam, constitution: Constitution, logs: Path
) -> tuple[dict, dict | None]:
    """A checkpoint's entry for results.json, and of the base its skills as a critic. Writes its transcripts."""
    model, _ = load_checkpoint(path, device=args.device)
    tokenizer, name, skills = Tokenizer.load(path.parent / "tokenizer.json"), path.stem, None
    with tqdm(
        total=sum(map(len, exam.sets.values())), desc=f"exam for {name}", unit=" answers"
    ) as bar:
        scores, transcripts = measure(model, tokenizer, exam, bar.update)
    write_rows(logs / f"{name}.jsonl", transcripts)
    if name == "base":
        with tqdm(desc="exam for critique", unit=" texts") as bar:
            skills, rows = audit_skills(
                model, tokenizer, exam, constitution, 2 * args.eval_n, args.exam_seed, bar.update
            )
        write_rows(logs / "skills.jsonl", rows)
    first = {t["set"]: t for t in reversed(transcripts)}
    stage = dict(
        name=name,
        checkpoint=path.name,
        hash=file_hash(path),
        commit=commit(),
        hardware=hardware(args.device),
        **scores,
        samples=[first[s] for s in SAMPLES if s in first],
    )
    return stage, skills


def add_the_rest(results: dict, args, constitution: Constitution, stages: dict, logs: Path):
    """Stages compared question by question, a chain of every type, the red team's summary, and how long everything took."""
    answered = {
        name: read_jsonl(log, required=("set", "topic", "turns", "outcome"))
        for name in (stage["name"] for stage in results["stages"])
        if (log := logs / f"{name}.jsonl").exists()
    }
    results["paired"] = paired(answered)
    for name, rows in answered.items():
        stages[name]["every_fourth"] = on_every_fourth(rows)

    path = args.out / "revisions.jsonl"
    fields = ("type", "turns", "responses", "principles", "critiques")
    chains = read_jsonl(path, required=fields, fields=FIELDS) if path.exists() else []
    first = {
        c["type"]: c
        for c in reversed(chains)
        if c["responses"] and c["responses"][-1] != c["responses"][0]
    }
    results["chain"] = [with_requests(first[type], constitution) for type in TYPES if type in first]
    results["seconds"] = read_json(args.out / "pipeline.json", {})
    found = read_json(args.out / "redteam.json", {})
    results["redteam"] = {
        attack: {k: v for k, v in s.items() if k not in ("techniques", "made_by")}
        for attack, s in found.items()
        if still_there(attack.split("/")[-2], s["made_by"]["target"], args.out)
    }


def add_stage_2(results: dict, args, exam: Exam):
    """What the judge, the reward model and PPO have left behind, where they have run."""
    results.pop("judge_audit", None)
    audited = read_json(args.out / "judge.json", {})
    if audited and still_there("base", audited.get("hash"), args.out):
        results["judge_audit"] = audited
    path = args.out / "rm.pt"
    marks = [file_hash(p) for p in (path, args.out / "sft.pt") if p.exists()]
    if len(marks) == 2 and results.get("reward_model", {}).get("marks") != marks:
        policy, _ = load_checkpoint(args.out / "sft.pt", device=args.device)
        reward, extra = RewardModel.load(path, args.device)
        tokenizer = Tokenizer.load(args.out / "tokenizer.json")
        audit = audit_reward(policy, reward, tokenizer, exam, args.eval_n, args.exam_seed)
        results["reward_model"] = dict(
            marks=marks,
            test_accuracy=audit["accuracy"],
            **audit,
            agrees_with_labels=extra["held_out"],
        )
    elif len(marks) < 2:
        results.pop("reward_model", None)
    logs = sorted(args.out.glob("train_ppo*.jsonl"))
    kept = ("kl", "proxy", "true")
    results["ppo_curves"] = {
        log.stem.removeprefix("train_"): [
            {k: row[k] for k in kept} for row in read_jsonl(log, required=kept)
        ]
        for log in logs
    }


def forget_base(results: dict):
    """Drop what was measured with a base that is no longer there."""
    results.pop("skills", None)
    results.pop("interpolation", None)
    for stage in results["stages"]:
        stage.pop("guard", None)
        stage.pop("helpful_refusals", None)


def write_rows(path: Path, rows: list[dict]):
    path.parent.mkdir(exist_ok=True)
    path.unlink(missing_ok=True)
    append_jsonl(path, rows)


def guard_wording(args, constitution: Constitution) -> Wording | None:
    """The principle by which a guard checks. Raises UserError where one is needed and the constitution has none about harm."""
    if not (args.guard or args.helpful_refusals):
        return None
    return constitution.draw(random.Random(args.seed), family="harmlessness")


def around(
    args,
    paths: list[Path],
    exam: Exam,
    constitution: Constitution,
    results: dict,
    stages: dict,
    logs: Path,
    results_path: Path,
):
    """What goes around a trained model, into its stage: the guard, helpful refusals; and the line from the base to it."""
    base_path = paths[0].parent / "base.pt"
    base, _ = load_checkpoint(base_path, device=args.device)
    wording = guard_wording(args, constitution)
    sets, grader, drafted = every_fourth(exam), Grader(exam.world), None
    for path in tqdm(paths, desc="guard, refusals, interpolation", unit=" checkpoints"):
        model, _ = load_checkpoint(path, device=args.device)
        tokenizer, stage = Tokenizer.load(path.parent / "tokenizer.json"), stages[path.stem]
        done = {
            key
            for key in ("guard", "helpful_refusals")
            if wording and stage.get(key, {}).get("wording") == wording.id
        }
        if args.guard and "guard" not in done:
            rows, seconds, drafted = guard_rows(
                model, base, tokenizer, sets, grader, wording, drafted
            )
            stage["guard"] = dict(wording=wording.id, seconds=seconds, **sweep(rows))
            write_rows(logs / f"guard-{path.stem}.jsonl", rows)
            write_json(results_path, results)
        if args.helpful_refusals and "helpful_refusals" not in done:
            measured, rows = measure_refusals(model, base, tokenizer, sets, grader, wording)
            stage["helpful_refusals"] = dict(wording=wording.id, **measured)
            write_rows(logs / f"refusals-{path.stem}.jsonl", rows)
            write_json(results_path, results)
        if (
            args.interpolate
            and path.stem != "base"
            and path.stem not in results.setdefault("interpolation", {})
        ):
            results["interpolation"][path.stem] = interpolate(base, model, tokenizer, sets, grader)
            write_json(results_path, results)


if __name__ == "__main__":
    main(evaluate)
