"""The exam: both errors at every stage, on held-out requests.

    python evaluate.py                       # every stage in OUT: base, sft, dpo, ppo, round1, ...
    python evaluate.py out/quick/dpo-mine.pt # another one, beside the stages measured before
    python evaluate.py --report              # write the page again; nothing is measured
    python evaluate.py --prompts prompts/natural.jsonl  # other people's prompts: the test half

quick preset: half a minute a stage on 2 cores. Decoding is greedy, and all stages get the same
questions. docs/metrics.md explains every number.

reads   checkpoints, constitution.json, world/, and what other scripts left in OUT: rm.pt,
        judge.json, redteam.json, revisions.jsonl, train_*.jsonl, pipeline.json
writes  OUT/results.json (after every stage); OUT/report.html, a page that opens in any browser;
        OUT/transcripts/STAGE.jsonl (questions, answers, outcomes) and skills.jsonl (critiques);
        with --results DIR/NAME.json: that file, DIR/NAME.html and DIR/transcripts-NAME, which
        hold only the checkpoints named
        with --prompts NAME.csv: OUT/prompts-NAME.json, the rates; .jsonl and .md, the answers
"""

from pathlib import Path

from tqdm import tqdm

from minicai.answer import MAX_NEW_TOKENS
from minicai.audit import audit_reward, audit_skills
from minicai.constitution import Constitution
from minicai.device import commit, hardware
from minicai.exam import Exam, measure
from minicai.files import (
    UserError,
    check_tokenizer,
    load_policy,
    parse_json,
    read_text,
    stages,
    write_json,
    write_jsonl,
)
from minicai.page import write_page
from minicai.prompt_exam import evaluate_prompts
from minicai.report import paired, same_requests, table
from minicai.results import beside_others, in_order, left_by_others, say_what_goes
from minicai.reward import RewardModel
from minicai.run import main, make_folder, parser, positive, seed, setup
from minicai.world.content import World
from minicai.world.keywords import KeywordFilter
from minicai.world.requests import PLAIN

SAMPLES = (*PLAIN, "fact often", "fact never", "role_play harmful")  # sets with a sample question


def options():
    p = parser(__doc__)
    p.add_argument("checkpoints", nargs="*", type=Path, help="default: every stage in OUT")
    p.add_argument("--prompts", help="file of prompts to answer: see minicai/prompts.py")
    splits = ("test", "train", "demo", "whole")
    p.add_argument("--split", choices=splits, default="test", help="of acts, or of the prompts")
    p.add_argument("--eval-n", type=positive, help="requests of each type; fewer of jailbreaks")
    p.add_argument("--exam-seed", type=seed, default=0, help="of the questions (default: 0)")
    p.add_argument("--results", type=Path, help="file to write (default: OUT/results.json)")
    p.add_argument("--report", action="store_true", help="only write the page again")
    args = setup(p)
    if args.results and args.results.suffix != ".json":
        raise UserError(f"--results {args.results}: name a file that ends in .json")
    if args.report and args.prompts:
        raise UserError("--report writes the page of the exam; leave out --prompts")
    if args.split == "whole" and not args.prompts:
        raise UserError("--split whole is for --prompts; choose a split of the acts")
    if args.split == "demo" and args.prompts:
        raise UserError("--split demo is of acts; choose test, train or whole for --prompts")
    return args


def choose(args) -> list[Path]:
    """The checkpoints to measure."""
    paths = args.checkpoints or stages(args.out)
    if not paths:
        raise UserError(f"{args.out} holds no checkpoint; run pipeline.py or train_base.py")
    for path in paths:
        if not path.is_file():
            raise UserError(f"{path} is not a file; name a checkpoint, or none for all stages")
        own = args.out / path.name
        if own.exists() and not own.samefile(path) and not args.results:
            raise UserError(f"{path} has the name of {own}; rename it, or give --results NEW.json")
    names = [path.stem for path in paths]
    if len(set(names)) < len(names):
        twice = max(names, key=names.count)
        raise UserError(f"two checkpoints are named {twice}; rename one, or measure it on its own")
    return paths


def measure_stage(path: Path, exam: Exam, args) -> tuple[dict, list[dict]]:
    """A checkpoint's entry in results.json, and its transcript."""
    model, tokenizer = load_policy(path, args.device)
    total = sum(map(len, exam.sets.values()))
    with tqdm(total=total, desc=f"exam for {path.stem}", unit=" answers") as bar:
        scores, transcript = measure(model, tokenizer, exam, bar.update)
    if not scores["finished"]["k"]:
        print(f"WARNING: {path} finished no answer. It is broken, and its rates mean nothing.")
    first = {row["set"]: row for row in reversed(transcript)}
    samples = [first[name] for name in SAMPLES if name in first]
    return dict(name=path.stem, checkpoint=path.name, **scores, samples=samples), transcript


def audit_base(path: Path, exam: Exam, constitution: Constitution, args) -> tuple[dict, list[dict]]:
    """The base as a critic: its rates, and a row for each critique."""
    model, tokenizer = load_policy(path, args.device)
    size = 2 * args.eval_n, args.exam_seed
    with tqdm(desc="critiques and revisions", unit=" texts") as bar:
        return audit_skills(model, tokenizer, exam, constitution, *size, bar.update)


def audit_rm(exam: Exam, args) -> dict:
    """The reward model, on answers of the world and of SL-CAI."""
    policy, tokenizer = load_policy(args.out / "sft.pt", args.device)
    reward, own, extra = RewardModel.load(args.out / "rm.pt", args.device)
    check_tokenizer(args.out / "rm.pt", own, tokenizer)
    found = audit_reward(policy, reward, tokenizer, exam, args.eval_n, args.exam_seed)
    return found | dict(test_accuracy=found["accuracy"], agrees_with_labels=extra.get("held_out"))


def draw(results: dict, path: Path, logs: Path, report: Path):
    """Write the page of the results in `path`. They hold parts of files of any shape."""
    try:
        write_page(results, logs, report)
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        made = "judge.json, redteam.json and the other files that it was made from"
        raise UserError(f"{path} is not whole ({error!r}); make {made} again, then evaluate.py")


def evaluate():
    args = options()
    if args.prompts:
        return evaluate_prompts(args, choose(args))
    path, report, logs = (
        args.out / name for name in ("results.json", "report.html", "transcripts")
    )
    if args.results:
        path, report = args.results, args.results.with_suffix(".html")
        logs = path.with_name(f"transcripts-{path.stem}")
    if args.report:
        draw(parse_json(read_text(path), str(path)), path, logs, report)
        return print(report)
    checkpoints, constitution = choose(args), Constitution(args.constitution)
    if "base" in [checkpoint.stem for checkpoint in checkpoints]:
        constitution.audited(test=True)  # without held-out wordings it stops here, not after hours
    world = World.of(args)
    exam = Exam(world, args.eval_n, args.exam_seed, args.split)
    make_folder(logs)
    results = dict(schema=2, world=args.world.name, seed=args.seed, preset=args.preset)
    results |= dict(
        world_share=args.world_share, commit=commit(), hardware=hardware(args.device), stages=[]
    )
    size = dict(split=args.split, n=args.eval_n, seed=args.exam_seed)
    results["exam"] = size | dict(questions=exam.fingerprint())
    results["decoding"] = dict(temperature=0, max_new_tokens=MAX_NEW_TOKENS)
    results["keyword_filter"] = KeywordFilter(world, args.exam_seed).measure(exam.sets)
    results |= left_by_others(args.out, constitution)
    transcripts = {}
    if args.checkpoints and not args.results:
        names = [checkpoint.stem for checkpoint in checkpoints]
        results, transcripts = beside_others(path, logs, results, names)
    elif not args.results:
        say_what_goes(path, [checkpoint.stem for checkpoint in checkpoints])
    for old in logs.glob("*.jsonl"):  # of stages that are gone, too
        if old.stem not in transcripts and not (transcripts and old.stem == "skills"):
            old.unlink()
    for checkpoint in checkpoints:
        name = checkpoint.stem
        stage, transcripts[name] = measure_stage(checkpoint, exam, args)
        results["stages"] = in_order([*results["stages"], stage])
        results["paired"] = paired(transcripts)
        write_jsonl(logs / f"{name}.jsonl", transcripts[name])
        write_json(path, results)
        if name == "base":
            results["skills"], rows = audit_base(checkpoint, exam, constitution, args)
            write_jsonl(logs / "skills.jsonl", rows)
    if (args.out / "rm.pt").exists() and (args.out / "sft.pt").exists() and not args.checkpoints:
        results["reward_model"] = audit_rm(exam, args)
    write_json(path, results)
    draw(results, path, logs, report)
    print(f"{table(results)}\n\n{same_requests(results)}\n\n{path}, {report}; {args.split} split")


if __name__ == "__main__":
    main(evaluate)
