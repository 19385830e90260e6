"""Every experiment runs at its smallest size, and the two that need no model are right."""

import importlib
import runpy
import signal
import sys

import pytest

import minicai.run
import pipeline
from experiments.other_world import build
from experiments.ppo_by_hand import ppo_by_hand
from minicai.exam import Exam
from minicai.files import read_json
from minicai.run import ROOT
from minicai.world.content import KINDS, SEEN, World
from minicai.world.keywords import KeywordFilter
from minicai.world.requests import TYPES, Part
from tests.test_readme import EXPERIMENTS, parser_of

SPLITS = ("demo", "train", "test")
FEW = dict(eval_n=4, attempts=9, prompts=12, comparisons=6, ppo_updates=1, ppo_episodes=4)


@pytest.fixture
def experiment(copy, call, monkeypatch, capsys):
    """experiment(name, constants, options) -> (the folder that it wrote to, what it printed).

    The scripts that it starts run in this process: each import of torch takes seconds.
    """

    def run_script(name: str, args, *own) -> float:
        shared = ("preset", "out", "seed", "device", "world", "constitution")
        options = [*own, *(x for key in shared for x in (f"--{key}", getattr(args, key)))]
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *map(str, options)])
        runpy.run_path(str(ROOT / f"{name}.py"), run_name="__main__")
        return 1.0

    def run(name, constants, options):
        module, out = importlib.import_module(f"experiments.{name}"), copy()
        for key, size in FEW.items():
            monkeypatch.setitem(minicai.run.SIZES, key, (size, size, size))
        monkeypatch.setattr(signal, "signal", lambda *_: None)
        for key, value in constants.items():
            monkeypatch.setattr(module, key, value)
        if hasattr(module, "run_script"):
            monkeypatch.setattr(module, "run_script", run_script)
        function = next(f for f in ("run", name) if hasattr(module, f))
        call(getattr(module, function), "--out", out, *options)
        return out, capsys.readouterr().out

    return run


# name -> (constants that make it small, options, rows of its table, files that it writes)
SMALL = dict(
    ablations=(
        dict(FAMILIES=("harmlessness",)),
        (),
        ("sft-revisions-0", "sft-revisions-1", "sft-direct", "sft-careless"),
        ("sft-direct.pt", "sft-careless.pt", "ablations.json"),
    ),
    losses=(dict(SAMPLES=4), ("--losses", "dpo", "ipo", "--seeds", 5), ("dpo", "ipo"), ("dpo-ipo-5.pt",)),
    labels=({}, ("--eval-n", 4), ("soft", "hard", "clamp"), ("rm-clamp.pt",)),
    over_optimisation=({}, ("--updates", 1), ("1",), ("ppo-beta-0.pt", "over_optimisation.png")),
    interpolate=(
        dict(ALPHAS=(0.0, 1.0)),
        ("--eval-n", 4),
        ("alpha, base to sft", "alpha, base to round1", "base", "sft", "dpo", "ppo", "round1"),
        ("interpolate.json", "tradeoff.png"),
    ),
    guard=({}, ("--eval-n", 4), ("off",), ("guard.json", "transcripts/guard-dpo.jsonl")),
    helpful_refusals=(
        {},
        ("--eval-n", 4),
        ("round1, own", "round1, bare"),
        ("helpful_refusals.json", "transcripts/refusals-round1.jsonl"),
    ),
    gcg=({}, ("--steps", 2, "--suffix", 4), ("1 requests did not work",), ()),
    redteam_rl=({}, ("--attempts", 6), ("rl/",), ()),
    leave_one_out=(
        {},
        ("--techniques", "base64", "--rounds", 1, "--attacks", 4),
        ("base64",),
        ("leave_one_out.json",),
    ),
)


@pytest.mark.parametrize("name", SMALL)
def test_an_experiment_runs(experiment, name):
    constants, options, rows, files = SMALL[name]
    out, printed = experiment(name, constants, options)
    print(printed)
