"""The two-sided evaluation: harm that gets through and help that is denied, for every checkpoint, on held-out requests.

    python evaluate.py                     # all checkpoints that OUT holds: base.pt, sft.pt, ...
    python evaluate.py out/cpu/sft-1.pt    # only these

reads   checkpoints, OUT/tokenizer.json, constitution.json, world/
writes  OUT/results.json, OUT/report.md, OUT/transcripts/STAGE.jsonl (every question with its answer and grade)

Decoding is greedy. Rates have Wilson 95 % intervals. A stage already in results.json is not measured again unless its
checkpoint or the exam changed.
"""

import json
import subprocess
from pathlib import Path

from tqdm import tqdm

from minicai.common import (
    UserError,
    append_jsonl,
    file_hash,
    load_checkpoint,
    main,
    parser,
    read_jsonl,
    setup,
    write_json,
)
from minicai.constitution import Constitution
from minicai.exam import DECODING, PLAIN, Exam, KeywordFilter, audit_skills, measure
from minicai.report import table, write_report
from minicai.report import transcripts as samples_text
from minicai.tokenizer import Tokenizer
from minicai.world.content import World

STAGES = ("base", "sft", "dpo", "ppo")  # then round1, round2, ...
SAMPLES = (*PLAIN, "fact often", "fact never", "role_play harmful")


def find_checkpoints(out: Path) -> list[Path]:
    found = [out / f"{name}.pt" for name in STAGES if (out / f"{name}.pt").exists()]
    return found + sorted(out.glob("round*.pt"))


def commit() -> str:
    try:
        done = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True,
                              cwd=Path(__file__).parent)  # fmt: skip
    except OSError:
        return "unknown"
    return done.stdout.strip() or "unknown"


def evaluate():
    p = parser(__doc__)
    p.add_argument("checkpoints", nargs="*", type=Path, help="default: every stage's checkpoint in OUT")
    p.add_argument("--constitution", default="constitution.json", help="file with the principles")
    p.add_argument(
        "--split", choices=("test", "train", "demo"), default="test", help="part of the world (default: test)"
    )
    p.add_argument("--eval-n", type=int, help="requests of each type")
    p.add_argument(
        "--exam-seed", type=int, default=0, help="seed of the questions, the same for every model (default: 0)"
    )
    p.add_argument("--results", type=Path, help="where to write (default: OUT/results.json)")
    args = setup(p)
    paths = args.checkpoints or find_checkpoints(args.out)
    if not paths:
        raise UserError(f"{args.out} holds no checkpoint; run pipeline.py or train_base.py")
    world, constitution = World(args.world), Constitution(args.constitution)
    tokenizer = Tokenizer.load(args.out / "tokenizer.json")
    exam = Exam(world, args.eval_n, args.exam_seed, args.split)
    total = sum(map(len, exam.sets.values()))

    results_path = args.results or args.out / "results.json"
    results = dict(schema=1, world=str(args.world), seed=args.seed, preset=args.preset, stages=[])
    if results_path.exists():
        results = json.loads(results_path.read_text())
    mark = dict(split=args.split, n=args.eval_n, exam_seed=args.exam_seed, world=str(args.world))
    results |= dict(commit=commit(), decoding=DECODING, exam=mark)
    stages = {stage["name"]: stage for stage in results["stages"]}
    for path in paths:
        name, fingerprint = path.stem, dict(hash=file_hash(path), **mark)
        if name in stages and stages[name].get("fingerprint") == fingerprint:
            continue
        model, extra = load_checkpoint(path, device=args.device)
        with tqdm(total=total, desc=f"exam for {name}", unit=" answers") as bar:
            scores, transcripts = measure(model, tokenizer, exam, bar.update)
        stages[name] = dict(
            name=name,
            checkpoint=path.name,
            fingerprint=fingerprint,
            seconds=round(extra.get("seconds", 0), 1),
            **scores,
        )
        first = {t["set"]: t for t in reversed(transcripts)}  # one question of each set, the same for every stage
        stages[name]["samples"] = [first[k] for k in SAMPLES]
        (args.out / "transcripts").mkdir(exist_ok=True)
        log = args.out / "transcripts" / f"{name}.jsonl"
        log.unlink(missing_ok=True)
        append_jsonl(log, transcripts)
        if name == "base":
            with tqdm(desc="exam for critique", unit=" texts") as bar:
                results["skills"], rows = audit_skills(
                    model, tokenizer, exam, constitution, 2 * args.eval_n, args.exam_seed, bar.update
                )
            log = args.out / "transcripts" / "skills.jsonl"
            log.unlink(missing_ok=True)
            append_jsonl(log, rows)
        results["stages"] = list(stages.values())
        write_json(results_path, results)
    chains = read_jsonl(args.out / "revisions.jsonl") if (args.out / "revisions.jsonl").exists() else []
    changed = [c for c in chains if c["responses"] and c["responses"][-1] != c["responses"][0]]
    results["chain"] = [
        next(c for c in changed if c["type"] == type) for type in dict.fromkeys(c["type"] for c in changed)
    ]
    record = args.out / "pipeline.json"
    results["seconds"] = json.loads(record.read_text()) if record.exists() else {}
    results["keyword_filter"] = KeywordFilter(world, args.exam_seed).measure(exam)
    write_json(results_path, results)
    write_report(
        results, results_path.with_name("report.md" if results_path.stem == "results" else f"{results_path.stem}.md")
    )
    print(f"{table(results)}\n\n{samples_text(results)}\n")
    print(f"{results_path}, {args.out / 'report.md'}; greedy decoding, {args.split} split, n in {results_path.name}")


if __name__ == "__main__":
    main(evaluate)
