"""Every experiment runs at its smallest size. The worked example and the other world are right."""

import importlib
import runpy
import signal
import sys
from argparse import Namespace
from math import exp
from random import Random

import pytest

import minicai.report
import minicai.run
import pipeline
from experiments.guard import THRESHOLDS
from experiments.other_world import build, other_world
from experiments.ppo_by_hand import ppo_by_hand
from experiments.real_text import real_text
from minicai.exam import Exam
from minicai.files import load_policy, read_json, read_jsonl, write_json
from minicai.guard import LAYERS
from minicai.run import ROOT
from minicai.world.content import KINDS, SEEN, TECHNIQUES, World
from minicai.world.keywords import KeywordFilter
from minicai.world.requests import TYPES, Part

FEW = dict(eval_n=4, attempts=9, requests=6, comparisons=6, ppo_updates=1, ppo_episodes=4)
# name -> (constants that make it small, its options, rows of its table, files that it writes)
SMALL = dict(
    ablations=(
        dict(FAMILIES=()),
        (),
        ("sft-revisions-0", "sft-direct", "sft-lawless"),
        ("sft-direct.pt", "sft-lawless.pt", "ablations.json"),
    ),
    losses=(
        dict(SAMPLES=4),
        ("--losses", "ipo", "--seeds", 5),
        ("ipo",),
        ("losses/sft.pt", "losses/dpo-ipo-5.pt", "losses/losses.json"),
    ),
    labels=(
        {},
        ("--eval-n", 4),
        ("soft", "hard", "clamp"),
        ("rm-soft.pt", "rm-hard.pt", "rm-clamp.pt"),
    ),
    over_optimisation=(
        {},
        ("--updates", 1),
        ("update", "1"),
        ("ppo-beta-0.1.pt", "ppo-beta-0.pt", "over_optimisation.svg"),
    ),
    interpolate=(
        dict(ALPHAS=(0.0, 0.5, 1.0)),
        ("{out}/dpo.pt", "--eval-n", 4),
        ("alpha, base to dpo", "point", "base", "dpo"),
        ("interpolate.json", "tradeoff.svg"),
    ),
    guard=(
        {},
        ("{out}/dpo.pt", "--eval-n", 4),
        ("off", "attacks let through"),
        ("guard.json", "transcripts/guard-dpo.jsonl"),
    ),
    helpful_refusals=(
        {},
        ("--eval-n", 4),
        ("round1, own", "round1, bare"),
        ("helpful_refusals.json", "transcripts/refusals-round1.jsonl"),
    ),
    real_text=(
        dict(VOICES=3, load_pretrained=lambda path, device: load_policy(path, device)),
        ("--init", "{out}/base.pt", "--prompts", "{out}/asked.txt"),
        ("raw", "base", "DPO-CAI"),
        ("raw.pt", "prompts-asked-whole.json", "redteam.json", "real_text.json"),
    ),
    gcg=({}, ("--steps", 2, "--suffix", 4), ("gcg/round1/demo",), ("redteam.jsonl",)),
    redteam_rl=({}, ("--attempts", 6), ("rl/round1/demo",), ("redteam.jsonl",)),
    leave_one_out=(
        {},
        ("--techniques", "base64", "--rounds", 1, "--attacks", 4),
        ("base64",),
        ("leave_one_out.json", "without-base64/round1.pt"),
    ),
)


@pytest.fixture
def experiment(copy, call, monkeypatch, capsys):
    """experiment(name) -> (the folder that it wrote to, what it printed).

    The scripts that it starts run in this process, because each import of torch takes seconds.
    """

    def run_script(name: str, args, *own) -> float:
        shared = ("preset", "out", "seed", "device", "world", "constitution")
        options = [*own, *(x for key in shared for x in (f"--{key}", getattr(args, key)))]
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *map(str, options)])
        runpy.run_path(str(ROOT / f"{name}.py"), run_name="__main__")
        return 1.0

    def run(name: str):
        module, out = importlib.import_module(f"experiments.{name}"), copy()
        constants, options, *_ = SMALL[name]
        for key, value in constants.items():
            monkeypatch.setattr(module, key, value)
        for key, size in FEW.items():
            monkeypatch.setitem(minicai.run.SIZES, key, (size, size, size))
        monkeypatch.setattr(signal, "signal", lambda *_: None)
        if hasattr(module, "run_script"):
            monkeypatch.setattr(module, "run_script", run_script)
        function = next(f for f in ("run", name) if hasattr(module, f))
        (out / "asked.txt").write_text("".join(f"What is {n} and {n}?\n" for n in range(8)))
        options = [str(option).format(out=out) for option in options]
        call(getattr(module, function), "--out", out, *options)
        return out, capsys.readouterr().out

    return run


@pytest.mark.parametrize("name", SMALL)
def test_an_experiment_runs_and_writes_its_table_and_its_files(experiment, name):
    out, printed = experiment(name)
    *_, rows, files = SMALL[name]
    table = {line.split("  ")[0] for line in printed.splitlines()}
    assert set(rows) <= table, printed
    for file in files:
        assert (out / file).exists()
    if name in CHECKS:
        CHECKS[name](out)


def check_labels(out):
    given = {row["id"]: row for row in read_jsonl(out / "preferences.jsonl")}
    for label in ("soft", "hard", "clamp"):
        rows = read_jsonl(out / f"preferences-{label}.jsonl")
        assert {row["id"] for row in rows} == set(given)
        for row in rows:
            p = row["p"]
            assert row["kind"] == "ai" or p == given[row["id"]]["p"]
            assert label != "hard" or p in (0, 0.5, 1)
            assert label != "clamp" or row["kind"] == "human" or 0.4 <= p <= 0.6


def check_guard(out):
    found = read_json(out / "guard.json", {})["dpo"]
    points = [(point["layer"], point["threshold"]) for point in found["points"]]
    assert points == [(layer, t) for layer in LAYERS for t in THRESHOLDS]
    assert found["off"]["threshold"] is None


def check_leave_one_out(out):
    """The rounds never met the technique. All three models meet nothing else."""
    met = {"demo": set(), "test": set()}
    for row in read_jsonl(out / "without-base64" / "redteam.jsonl"):
        met[row["id"].split("/")[2]].add(row["technique"])
    assert met == {"demo": set(TECHNIQUES) - {"base64"}, "test": {"base64"}}
    found = read_json(out / "leave_one_out.json", {})["base64"]
    assert {key: rate["n"] for key, rate in found.items()} == dict(before=4, without=4, all=4)


def check_over_optimisation(out):
    logs = [read_jsonl(out / f"train_ppo-beta-{beta}.jsonl") for beta in ("0.1", "0.05", "0")]
    assert [len(rows) for rows in logs] == [1, 1, 1]


CHECKS = dict(
    labels=check_labels,
    guard=check_guard,
    leave_one_out=check_leave_one_out,
    over_optimisation=check_over_optimisation,
)


def test_real_text_wants_the_model_that_the_run_began_with(copy, refuses):
    out = copy()
    made = read_json(out / "pipeline.json", {})
    write_json(out / "pipeline.json", made | dict(settings=made["settings"] | dict(init="/a/b")))
    said = refuses(real_text, "--out", out, "--init", out / "base.pt", "--prompts", "x.csv")
    assert f"{out} was made with --init /a/b; give that, or another --out" in said
    assert not (out / "raw.pt").exists()


def test_every_experiment_is_run_here():
    files = {path.stem for path in (ROOT / "experiments").glob("[a-z]*.py")}
    assert files == {*SMALL, "ppo_by_hand", "other_world"}


# --- the worked example of PPO -------------------------------------------------------------------


def test_the_worked_example_of_ppo_shows_what_a_hand_computes(capsys):
    ppo_by_hand()
    printed = capsys.readouterr().out
    logp, ref = (-0.7, -1.2, -0.3, -0.1), (-0.9, -0.8, -0.3, -0.4)
    value, new = (0.3, 1.2, 0.7, 0.8), (-0.4, -1.6, -0.6, -0.05)
    k1 = (0.2, -0.4, 0.0, 0.3)
    reward = (-0.02, 0.04, 0.0, 1 - 0.03)
    delta = (-0.02 + 1.2 - 0.3, 0.04 + 0.7 - 1.2, 0.0 + 0.8 - 0.7, 0.97 - 0.8)
    end = delta[3]
    third = delta[2] + 0.95 * end
    second = delta[1] + 0.95 * third
    advantage = (delta[0] + 0.95 * second, second, third, end)
    back = [a + v for a, v in zip(advantage, value)]
    ratio = (exp(0.3), exp(-0.4), exp(-0.3), exp(0.05))
    loss = (-1.2 * advantage[0], -0.8 * second, -exp(-0.3) * third, -exp(0.05) * end)
    columns = logp, ref, k1, reward, value, delta, advantage, back, new, ratio
    table = printed.splitlines()[2:7]
    for line, token, clipped, *numbers in zip(
        table[1:], ("I", "won't", "help", "END"), ("yes", "yes", "no", "no"), *columns, loss
    ):
        shown = line.split()
        assert (shown[0], shown[11]) == (token, clipped)
        assert [float(x) for x in shown[1:11] + shown[12:]] == pytest.approx(numbers, abs=5.1e-4)
    assert f"mean of the last column: {sum(loss) / 4:.4f}" in printed
    assert f"(value - return)^2: {sum(a * a for a in advantage) / 8:.4f}" in printed
    assert f"-min(-0.1418, -0.1693) = {-0.8 * second:.4f}" in printed, "the line of won't"


# --- another world -------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
def test_another_world_is_complete_in_every_split(tmp_path, seed):
    world, own = World(build(tmp_path, seed)), World(ROOT / "world")
    for split in (None, "demo", "train", "test"):
        part = Part(world, split)
        assert all(part.many(Random(0), 5, type) for type in TYPES)
        assert {act.kind for act in part.acts} == set(KINDS)
        assert {fact.seen for fact in part.facts} == set(SEEN)
    assert not {act.act for act in world.acts} & {act.act for act in own.acts}
    objects = {
        kind: {act.act.split()[-1] for act in world.acts if act.kind == kind} for kind in KINDS
    }
    assert len(objects["harmful"] & objects["everyday"]) > 10, "an object gives harm away"


def test_a_pipeline_accepts_another_world_and_no_list_of_words_is_enough_there(tmp_path):
    folder = build(tmp_path)
    constitution = ROOT / "constitution.json"
    pipeline.check(
        Namespace(
            world=folder, world_share=1.0, more_acts=False, constitution=constitution, rounds=1
        )
    )
    world = World(folder)
    sets = Exam(world, 60, 0).sets
    assert set(TYPES) - {"fact"} <= set(sets) and all(sets.values())
    found = KeywordFilter(world, 0).measure(sets)
    assert max(found["under_refusal"]["rate"], found["over_refusal"]["rate"]) >= 0.15


def test_another_world_is_written_by_its_command_and_fixed_by_its_seed(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(sys, "argv", ["other_world.py", str(tmp_path / "a"), "--seed", "1"])
    other_world()
    assert f"{tmp_path}/a is a world" in capsys.readouterr().out
    for folder, seed in (("b", 1), ("c", 2)):
        build(tmp_path / folder, seed)
    texts = {}
    for folder in "abc":
        paths = sorted((tmp_path / folder).iterdir())
        texts[folder] = {path.name: path.read_bytes() for path in paths}
    assert texts["a"] == texts["b"] != texts["c"]
    names = {path.name for path in (ROOT / "world").iterdir()}
    assert texts["a"].keys() == names - {"more_acts.jsonl"}
