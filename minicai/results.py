"""What goes into results.json beside the stages that are measured now."""

import math
import re
from pathlib import Path

from minicai.constitution import Constitution
from minicai.files import UserError, read_json, read_jsonl, warn_if_newer
from minicai.log import curves
from minicai.rows import read_chains
from minicai.transcript import with_requests
from minicai.world.requests import TYPES

ORDER = ("base", "sft", "dpo", "ppo")


def left_by_others(out: Path, constitution: Constitution) -> dict:
    """What the judge's audit, the red team, PPO, the pipeline and Stage 1 have written to OUT."""
    warn_if_newer(out / "judge.json", out / "base.pt", remedy="run label.py again")
    warn_if_newer(out / "rm.pt", out / "preferences.jsonl", remedy="run train_rm.py again")
    found = dict(redteam=read_json(out / "redteam.json", {}))
    found["seconds"] = read_json(out / "pipeline.json", {}).get("seconds", {})
    found |= dict(judge_audit=judged) if (judged := read_json(out / "judge.json", {})) else {}
    keys, rewards = ("kl", "proxy", "true"), {}
    for log in sorted(out.glob("train_ppo*.jsonl"), key=lambda path: path.stem):
        if rows := [{key: row[key] for key in keys} for row in read_jsonl(log, keys)]:
            rewards[log.stem.removeprefix("train_")] = rows
    path, needed = out / "revisions.jsonl", ("type", "principles", "critiques")
    chains = read_chains(path, needed) if path.exists() else []
    revised = {c["type"]: c for c in reversed(chains) if c["responses"][:1] != c["responses"][-1:]}
    chain = [with_requests(revised[type], constitution) for type in TYPES if type in revised]
    files = [read_json(path, {}) for path in sorted(out.glob("prompts-*.json"))]
    found |= dict(prompt_files=files) if files else {}
    return found | dict(training=curves(out), ppo_curves=rewards, chain=chain)


def in_order(measured: list[dict]) -> list[dict]:
    """Stages in the order of the pipeline, and experiments after them."""

    def place(stage: dict) -> float:
        name = stage["name"]
        if round := re.fullmatch(r"round(\d+)", name):
            return len(ORDER) + int(round[1])
        return ORDER.index(name) if name in ORDER else math.inf

    return sorted(measured, key=place)


def say_what_goes(path, names: list[str]):
    """Say which experiments that were measured before are not among `names` and leave `path`."""
    stages = read_json(path, {}).get("stages")
    before = [s.get("name") for s in stages if isinstance(s, dict)] if type(stages) is list else []
    if gone := [str(name) for name in before if name not in names]:
        print(
            f"{path} will no longer hold {', '.join(gone)}; to add one again, name its checkpoint"
        )


def beside_others(path, logs, results: dict, names: list[str]) -> tuple[dict, dict]:
    """New results with the stages measured before in `path`, and the transcripts of those stages.

    Stages of the given names are left out: they are measured again. Raises UserError where `path`
    is of another exam.
    """
    before, transcripts = read_json(path, {}), {}
    same = ("preset", "world", "exam", "decoding")
    if before and any(before.get(key) != results[key] for key in same):
        raise UserError(f"{path} is of another exam; give the same options, or --results NEW.json")
    try:
        kept = [stage for stage in before.get("stages", []) if stage["name"] not in names]
    except (KeyError, TypeError) as error:
        raise UserError(f"{path} is not whole ({error}); run evaluate.py without a checkpoint")
    for stage in kept:
        needed = ("set", "topic", "outcome", "turns", "answer")
        transcripts[stage["name"]] = read_jsonl(logs / f"{stage['name']}.jsonl", needed)
    audits = {key: before[key] for key in ("skills", "reward_model") if key in before}
    return results | audits | dict(stages=kept), transcripts
