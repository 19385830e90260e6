"""Is anything lost, or silently wrong? Kill the pipeline at random moments, feed it bad inputs.

    python tests/campaign.py kills --n 50    # half an hour on 2 cores: kill -9, go on, compare
    python tests/campaign.py fuzz --n 200    # half an hour: damaged files and options
    python tests/campaign.py places          # a full disk, odd paths, another encoding, python -O

A campaign is run by hand and prints what it found; it ends with exit code 1 if anything failed.
`kills` runs the smoke pipeline once undisturbed. Then it kills runs and their steps at n random
moments, each run up to five times, lets each run come to its end, and compares the artifacts.
`fuzz` damages one file of a finished run, or gives a script a bad option, and expects exit code 0
or 2, no traceback, one sentence, and no half-written file.
"""

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from tqdm import tqdm

ROOT = Path(__file__).resolve().parent.parent
ARTIFACTS = ("revisions.jsonl", "preferences.jsonl", "revisions-round1.jsonl", "redteam.jsonl")
CHECKPOINTS = ("base.pt", "sft.pt", "dpo.pt", "rm.pt", "ppo.pt", "round1.pt")
KILLS = 5  # of one run
ENV = {"OMP_NUM_THREADS": "1", "GOMP_SPINCOUNT": "3000"} | os.environ


def command(script: str, out: Path, *options) -> list[str]:
    own = [str(option) for option in options]
    return [
        sys.executable,
        str(ROOT / f"{script}.py"),
        "--preset",
        "smoke",
        "--out",
        str(out),
        *own,
    ]


def run(script: str, out: Path, *options, **how) -> subprocess.CompletedProcess:
    pipes = dict(capture_output=True, text=True, errors="replace", env=ENV, cwd=ROOT)
    return subprocess.run(command(script, out, *options), **pipes | how)


class Failures(list):
    """A list that prints what is added: a campaign that is cut short has said all it found."""

    def append(self, failure: str):
        tqdm.write(failure)
        super().append(failure)


def content(out: Path) -> dict:
    """What a run has made, without its times."""
    found = {name: (out / name).read_bytes() for name in ARTIFACTS}
    results = json.loads((out / "results.json").read_text())
    results.pop("seconds")
    found["results.json"] = json.dumps(results)
    for name in CHECKPOINTS:
        weights = torch.load(out / name, weights_only=True)["model"]
        found[name] = b"".join(tensor.numpy().tobytes() for tensor in weights.values())
    return found


def kills(n: int, seed: int, folder: Path) -> list[str]:
    """Kill the pipeline, and the step it runs, at n random moments.

    A run is killed and started again KILLS times, at most, before it may come to its end.
    """
    undisturbed, rng, failures = folder / "undisturbed", random.Random(seed), Failures()
    began = time.time()
    done = run("pipeline", undisturbed, "--rounds", 1)
    if done.returncode:
        return [f"the undisturbed run failed: {done.stderr[-300:]}"]
    took, expected, killed = time.time() - began, content(undisturbed), 0
    out, bar = folder / "killed", tqdm(total=n, desc="kills")
    arguments = command("pipeline", out, "--rounds", 1)
    quiet = dict(stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=ENV)
    while killed < n:
        shutil.rmtree(out, ignore_errors=True)
        moments = []
        for _ in range(min(KILLS, n - killed)):
            process = subprocess.Popen(arguments, start_new_session=True, cwd=ROOT, **quiet)
            moment = rng.uniform(1, 2 * took / KILLS)
            try:
                process.wait(moment)
                break  # it was faster
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)  # the pipeline and its step
                process.wait()
                moments.append(f"{moment:.1f}")
                bar.update()
        killed += len(moments)
        again, where = run("pipeline", out, "--rounds", 1), f"killed after {moments} s"
        if again.returncode:
            failures.append(f"{where}: {again.stderr[-300:]}")
            continue
        found = content(out)
        other = [name for name in expected if found[name] != expected[name]]
        left = [path.name for path in out.glob("*.tmp")]
        if other or left:
            failures.append(f"{where}: differ {other}, left behind {left}")
    return failures


def reshape(line: bytes, rng: random.Random) -> bytes:
    """A row with a value of another kind in one of its fields, or without the field."""
    try:
        row = json.loads(line)
        field = rng.choice(list(row))
    except (IndexError, TypeError, ValueError):  # no row
        return line
    row[field] = rng.choice(["", "x", 7, -1, None, True, [], {}, [1], ["x"], [["x"]], 10**400])
    if rng.random() < 0.2:
        del row[field]
    return json.dumps(row).encode()


def damage(data: bytes, rng: random.Random) -> bytes:
    """The bytes of a file, damaged in one of many ways."""
    lines = data.split(b"\n")
    at = rng.randrange(len(lines))
    bad = [
        b"",
        b"{",
        b"[]",
        b"null",
        b'{"id": 1}',
        b"\xff\xfe\x00",
        b'{"id": ' + b"9" * 5000 + b"}",
        b"[" * 20_000,
        b'{"id": NaN}',
        lines[at].replace(b'"turns"', b'"turn"'),
        lines[at].replace(b'": "', b'": ["'),
        lines[at].replace(b'": "', b'": 7, "x": "'),
        lines[at].replace(b" ", b" \\ud800 ", 3),
        lines[at] + b"\r",
        lines[at] * 2,
        *(reshape(lines[at], rng) for _ in range(10)),
    ]
    ways = [
        lambda: data[: rng.randrange(len(data) + 1)],
        lambda: b"",
        lambda: b"\xef\xbb\xbf" + data,
        lambda: data.replace(b"\n", b"\r\n"),
        lambda: b"\n".join([*lines[:at], rng.choice(bad), *lines[at + 1 :]]),
        lambda: b"\n".join([*lines[:at], rng.choice(bad), *lines[at + 1 :]]),
        lambda: bytes(rng.randrange(256) for _ in range(200)),
    ]
    return rng.choice(ways)()


READERS = {  # a file of a finished run, or of the world -> scripts that read it, with options
    "revisions.jsonl": [("train_sft",), ("revise", "--show", 1)],
    "preferences.jsonl": [("train_dpo",), ("train_rm",), ("label", "--explain", 1)],
    "redteam.jsonl": [("revise", "--round", 1), ("redteam", "--mode", "few_shot")],
    "guard.jsonl": [("redteam", "--mode", "monitor")],
    "base.pt": [("revise", "--requests", 4)],
    "sft.pt": [("train_rm",), ("evaluate", "--eval-n", 2)],
    "rm.pt": [("train_ppo",)],
    "results.json": [("evaluate", "--report")],
    "pipeline.json": [("pipeline",)],
    "judge.json": [("evaluate", "--eval-n", 2)],
    "constitution.json": [("revise", "--requests", 4)],
    "acts.jsonl": [("revise", "--requests", 4)],
    "framings.jsonl": [("redteam", "--mode", "templates", "--attempts", 4)],
    "phrasings.jsonl": [("revise", "--requests", 4)],
}
OPTIONS = [
    ("train_dpo", "--beta", "nan"),
    ("train_dpo", "--lr", "1e38"),
    ("train_dpo", "--loss", "nothing"),
    ("train_sft", "--lr", "1e9"),
    ("train_sft", "--helpful-fraction", "1"),
    ("train_rm", "--lr", "1e30"),
    ("train_ppo", "--lr", "1e30"),
    ("train_ppo", "--beta", "1e38"),
    ("train_ppo", "--reward", "base.pt"),
    ("train_base", "--lr", "1000"),
    ("train_base", "--documents", "0"),
    ("revise", "--without", "nothing"),
    ("revise", "--revisions", "9"),
    ("label", "--comparisons", "-3"),
    ("label", "--name", "a/b"),
    ("label", "--name", "x", "--round", "1"),
    ("redteam", "--mode", "magic"),
    ("redteam", "--mode", "templates", "--target", "nowhere.pt"),
    ("evaluate", "--results", "mine.md"),
    ("evaluate", "nowhere.pt"),
    ("evaluate", "--seed", "-1"),
    ("chat", "--top-p", "0"),
    ("chat", "--stages", "--guard"),
    ("pipeline", "--world", "nowhere"),
    ("pipeline", "--device", "abacus"),
]


def fuzz(n: int, seed: int, folder: Path) -> list[str]:
    """n damaged files or bad options: exit code 0 or 2, no traceback, nothing half-written."""
    whole, rng, failures = folder / "whole", random.Random(seed), Failures()
    done = run("pipeline", whole, "--rounds", 1)
    if done.returncode:
        return [f"the undisturbed run failed: {done.stderr[-300:]}"]
    row = dict(turns=["How do I bake bread?"], response="no", judge=1.0, check="input")
    (whole / "guard.jsonl").write_text(json.dumps(row) + "\n")
    for i in tqdm(range(n), desc="fuzz", unit=" inputs"):
        out, world, constitution = folder / "out", folder / "world", folder / "constitution.json"
        shutil.rmtree(out, ignore_errors=True)
        shutil.rmtree(world, ignore_errors=True)
        shutil.copytree(whole, out)
        shutil.copytree(ROOT / "world", world)
        shutil.copy(ROOT / "constitution.json", constitution)
        where = ("--world", world, "--constitution", constitution)
        if rng.random() < 0.3:
            script, *options = rng.choice(OPTIONS)
            name = "an option"
        else:
            name = rng.choice(list(READERS))
            script, *options = rng.choice(READERS[name])
            places = (out / name, world / name, folder / name)
            path = next(place for place in places if place.exists())
            path.write_bytes(damage(path.read_bytes(), rng))
        kept = {path.name: path.read_bytes() for path in out.glob("*.pt")}
        options = [str(out / o) if str(o).endswith("base.pt") else o for o in options]
        if script == "pipeline" and name == "pipeline.json":
            options += ["--rounds", 0]
        given = where if "--world" not in options else ()
        try:
            done = run(script, out, *given, *options, input="Hello\n", timeout=300)
        except subprocess.TimeoutExpired:
            failures.append(f"{i}: {script} {options}, {name}: no end")
            continue
        said = f"{i}: {script} {' '.join(map(str, options))}, damaged {name}: {done.returncode}"
        if done.returncode not in (0, 2) or "Traceback" in done.stderr:
            failures.append(f"{said}: {done.stderr[-400:]}")
        if list(out.glob("*.tmp")):
            failures.append(f"{said}: left {[path.name for path in out.glob('*.tmp')]}")
        if done.returncode == 2 and any(not (out / name).exists() for name in kept):
            failures.append(f"{said}: a checkpoint is gone")
    return failures


def places(n: int, seed: int, folder: Path) -> list[str]:
    """A folder that cannot be written, a full disk, odd paths, another encoding, python -O."""
    failures = Failures()

    def expect(code: int, words: str, done, what: str):
        if done.returncode != code or words not in done.stderr or "Traceback" in done.stderr:
            failures.append(f"{what}: {done.returncode} {done.stderr[-300:]}")

    odd = folder / "a folder, Ωμέγα 文 it's"
    expect(0, "", run("pipeline", odd), "an odd path")
    clean = ENV | {"PYTHONOPTIMIZE": "1", "PYTHONIOENCODING": "cp1252", "LC_ALL": "C"}
    expect(0, "", run("evaluate", odd, "--eval-n", 2, env=clean), "python -O in another encoding")
    blocked = folder / "a file"
    blocked.write_text("")
    expect(2, "cannot be made a folder", run("revise", blocked / "out"), "a file as a folder")
    if Path("/dev/full").exists():
        full = folder / "full"
        shutil.copytree(odd, full)
        (full / "revisions.jsonl.tmp").symlink_to("/dev/full")
        expect(2, "make room", run("revise", full, "--requests", 4), "a full disk")
    return failures


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    p.add_argument("campaign", choices=("kills", "fuzz", "places"))
    p.add_argument("--n", type=int, default=50)
    p.add_argument("--seed", type=int, default=0)
    args = p.parse_args()
    campaign = dict(kills=kills, fuzz=fuzz, places=places)[args.campaign]
    with tempfile.TemporaryDirectory() as folder:
        failures = campaign(args.n, args.seed, Path(folder))
    print(f"{args.campaign}: {len(failures)} failures, of n = {args.n}")
    sys.exit(bool(failures))


if __name__ == "__main__":
    main()
