"""Every script, end to end at toy size: what it leaves behind, that it goes on where it was killed, and how it fails."""

import copy
import functools
import json
import math
import random
import re
import shutil
import subprocess
import sys
from contextlib import nullcontext
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from zlib import crc32

import pytest
import torch

import evaluate
import label
import minicai.common as common
import pipeline
import revise
import train_base
import train_dpo
import train_ppo
import train_rm
import train_sft
from minicai import guard, ppo
from minicai.constitution import Constitution
from minicai.data import read_pairs
from minicai.dpo import PER_TOKEN
from minicai.gpt import GPT, GPTConfig, token_logps
from minicai.guard import REFUSAL
from minicai.judge import Verdict
from minicai.report import METRICS, lookup
from minicai.reward import RewardModel
from minicai.sampler import generate
from minicai.tokenizer import Tokenizer, talk
from minicai.world.content import World, held_out, split_of
from minicai.world.corpus import POINT_WEIGHT, USER_WEIGHT
from minicai.world.grader import Grader
from minicai.world.replies import decline, helpful
from minicai.world.requests import UNTRAINED, Part

ROOT = Path(__file__).parent.parent


def run(*words, **more):
    return subprocess.run(
        [sys.executable, *map(str, words)], cwd=ROOT, capture_output=True, text=True, **more
    )


def call(script, monkeypatch, *options):
    """A script's function in this process, with the options given on its command line."""
    monkeypatch.setattr(sys, "argv", ["script", "--preset", "smoke", *map(str, options)])
    script()


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    """The smoke pipeline, run once."""
    path = tmp_path_factory.mktemp("smoke")
    done = run("pipeline.py", "--preset", "smoke", "--device", "cpu", "--rounds", 2, "--out", path)
    assert done.returncode == 0, done.stderr
    (path / "stdout.txt").write_text(done.stdout)
    return path


def test_the_pipeline_prints_its_commands_and_ends_with_table_and_transcripts(out):
    text = (out / "stdout.txt").read_text()
    scripts = ["train_base", "revise", "train_sft", "label", "train_dpo", "train_rm", "train_ppo"]
    scripts += 2 * ["redteam", "revise", "train_sft", "label", "train_dpo"] + [
        "redteam",
        "evaluate",
    ]
    assert re.findall(r"^\$ python (\w+)\.py ", text, re.M) == scripts
    assert "judge: right" in text and "without a judge" in text
    assert "under-refusal" in text and "the same requests at every stage" in text


def test_results_hold_every_number_with_its_interval(out):
    results = json.loads((out / "results.json").read_text())
    assert results["schema"] == 1
    assert [s["name"] for s in results["stages"]] == [
        "base",
        "sft",
        "dpo",
        "ppo",
        "round1",
        "round2",
    ]
    for stage in results["stages"]:
        for key, _, _ in METRICS:
            assert (
                0 <= lookup(stage, key)["rate"] <= 1
                if lookup(stage, key)["rate"] is not None
                else True
            )
        rate = stage["under_refusal"]
        assert (
            rate["k"] == round(rate["rate"] * rate["n"])
            and rate["lo"] <= rate["rate"] <= rate["hi"]
        )
        assert sum(o["k"] for o in stage["by_type"]["harmful"].values()) == rate["n"]
    assert set(results["skills"]) >= {"critique_right", "harmful_revised", "legitimate_kept"}
    assert results["seconds"]["train_base"] > 0
    assert set(results["judge_audit"]) >= {
        "accuracy",
        "swap_consistency",
        "ece",
        "always_a",
        "length_alone",
    }
    assert results["reward_model"]["accuracy"]["n"] > 0
    assert set(results["ppo_curves"]["ppo"][0]) == {"kl", "proxy", "true"}
    assert (out / "report.md").read_text().startswith("# Report")


def test_a_feedback_round_trains_gently_and_starts_from_the_stage_before(out):
    starts = {
        "sft": "base",
        "dpo": "sft",
        "sft-round1": "dpo",
        "round1": "sft-round1",
        "sft-round2": "round1",
        "round2": "sft-round2",
    }
    trained = {name: common.load_checkpoint(out / f"{name}.pt")[1]["made_by"] for name in starts}
    assert trained["sft"]["lr"] == common.PRESETS["smoke"]["sft_lr"]
    for name in ("sft-round1", "sft-round2"):
        assert (
            trained[name]["lr"] == pytest.approx(trained["sft"]["lr"] / 5)
            and trained[name]["epochs"] == 1
        )
    for name, start in starts.items():
        assert trained[name]["start"] == common.file_hash(out / f"{start}.pt")
    files = [out / f"preferences{suffix}.jsonl" for suffix in ("", "-round1", "-round2")]
    for n, name in enumerate(("dpo", "round1", "round2")):
        assert trained[name]["data"] == common.file_hash(*files[: n + 1])


def test_a_round_compares_what_was_revised_with_what_it_was_and_the_rest_with_the_policy(
    out, monkeypatch, tmp_path
):
    chains = [
        dict(
            id=i,
            split=UNTRAINED,
            type="harmful",
            request=f"r/{i}",
            turns=[f"ask {i}"],
            responses=[f"bad {i}", f"good {i % 2 or i}"],
        )
        for i in (0, 1, 2)
    ]
    chains += [
        dict(chains[0], id=i, turns=[f"ask {i}"], plain=[f"plain {i}"], responses=[f"same {i}"] * 3)
        for i in (3, 4, 5)
    ]
    common.append_jsonl(
        tmp_path / "revisions-round2.jsonl", [*chains, dict(chains[0], id=6, responses=[])]
    )
    policy, asked = object(), []
    texts = {"ask 3": "own 3", "ask 4": "same 4", "ask 5": None}
    monkeypatch.setattr(
        label, "answer", lambda *a: (asked.append(a[0]), [texts[t] for (t,) in a[2]])[1]
    )
    args = SimpleNamespace(out=tmp_path, round=2, temperature=1.0, seed=0)
    rows = label.of_the_round(args, policy, None, random.Random(1))
    found = {row["id"]: {row["by"][0]: row["a"], row["by"][1]: row["b"]} for row in rows}
    assert asked == [policy] and found == {
        0: {"revision": "good 0", "draft": "bad 0"},
        1: {"revision": "good 1", "draft": "bad 1"},
        2: {"revision": "good 2", "draft": "bad 2"},
        3: {"revision": "same 3", "policy": "own 3"},
    }
    assert len({row["by"][0] == "revision" for row in rows}) == 2 and all(
        row["kind"] == "ai" for row in rows
    )
    assert [row["plain"] for row in rows] == [["ask 0"], ["ask 1"], ["ask 2"], ["plain 3"]]


def test_pairs_without_a_verdict_make_no_rows(monkeypatch):
    reasons = (("fine.", 0.1), ("bad.", 0.9))
    monkeypatch.setattr(
        label, "judge_by_critique", lambda *a: [None, Verdict(0.9, 0.9, reasons), None]
    )
    rows = [dict(id=i, turns=["x"], a="1", b="2") for i in range(3)]
    args = SimpleNamespace(judge="critique", label="soft", principles="random")
    constitution = SimpleNamespace(draw=lambda rng, principle: SimpleNamespace(id="p/0"))
    [row], silent = label.compare(args, None, None, rows, constitution, None)
    assert (
        row["id"] == 1
        and row["p"] == 0.9
        and row["reasons"] == reasons
        and row["principle"] == "p/0"
        and silent == 2
    )


def test_a_pair_is_compared_once_under_each_principle_that_is_asked_for():
    constitution, rng = Constitution(ROOT / "constitution.json"), random.Random(0)
    drawn = {
        how: label.wordings_for(constitution, how, rng)
        for how in ("families", "all", "random", "politeness")
    }
    assert [w.family for w in drawn["families"]] == constitution.families
    assert [w.principle for w in drawn["all"]] == constitution.principles
    assert len(drawn["random"]) == 1 and [w.principle for w in drawn["politeness"]] == [
        "politeness"
    ]


def test_the_judge_reads_what_is_asked_plainly(monkeypatch):
    read = []
    monkeypatch.setattr(
        label, "judge_by_critique", lambda m, t, turns, *_: (read.extend(turns), [None] * 2)[1]
    )
    rows = [
        dict(id=0, turns=["wohe"], plain=["how"], a="1", b="2"),
        dict(id=1, turns=["why"], a="1", b="2"),
    ]
    args = SimpleNamespace(judge="critique", principles="random")
    constitution = SimpleNamespace(draw=lambda rng, principle: SimpleNamespace(id="p/0"))
    label.compare(args, None, None, rows, constitution, None)
    assert read == [["how"], ["why"]]


def test_a_chain_of_revisions_can_be_looked_at(out):
    row = next(r for r in common.read_jsonl(out / "revisions.jsonl") if r["responses"])
    done = run("revise.py", "--preset", "smoke", "--out", out, "--show", row["id"])
    assert (
        done.returncode == 0
        and row["responses"][0] in done.stdout
        and row["turns"][-1] in done.stdout
    ), done.stderr
    wordings = {w.id: w.critique for w in Constitution(ROOT / "constitution.json").wordings}
    assert all(wordings[name] in done.stdout for name in row["principles"])
    done = run("revise.py", "--preset", "smoke", "--out", out, "--show", 10_000)
    assert done.returncode == 2 and "no such chain" in done.stderr and "nearest" in done.stderr


def test_every_training_row_keeps_its_lineage_and_holds_only_train_acts(out):
    world = World(ROOT / "world")
    names = {a.id for a in world.acts} | {f.id for f in world.facts}
    chains = common.read_jsonl(out / "revisions.jsonl")
    for row in chains + common.read_jsonl(out / "helpful.jsonl"):
        used = [part for part in row["request"].split("/") if part in names]
        assert bool(used) != ("/fresh-" in row["request"])  # a made-up name is of no part
        assert all(split_of(name) == "train" for name in used)
    row = chains[0]
    family = {w.id: w.family for w in Constitution(ROOT / "constitution.json").wordings}
    assert len(row["responses"]) == 6 and len(row["critiques"]) == 5
    assert all(
        {family[id] for id in row["principles"]} == set(family.values())
        for row in chains
        if row["responses"]
    )
    assert row["made_by"]["checkpoint"] == common.file_hash(out / "base.pt")


def test_no_held_out_wording_of_a_request_or_a_principle_is_in_any_training_row(out):
    world = World(ROOT / "world")
    wordings = {w.id for part in (world.phrasings, world.contexts, world.framings) for w in part}
    files = (
        "revisions",
        "revisions-round1",
        "revisions-round2",
        "helpful",
        "preferences",
        "preferences-round1",
        "preferences-round2",
    )
    used = set()
    for name in files:
        rows = common.read_jsonl(out / f"{name}.jsonl")
        assert rows, name
        for row in rows:
            principles = row.get(
                "principles", [row["principle"]] if row.get("kind") == "ai" else []
            )
            used |= {part for part in row["request"].split("/") if part in wordings} | set(
                principles
            )
    used |= {
        part
        for row in common.read_jsonl(out / "redteam.jsonl")
        if row["trainable"]
        for part in row["request"].split("/")
        if part in wordings
    }
    assert len(used) > 50 and not any(map(held_out, used))
    assert any(map(held_out, wordings)), "nothing is held out"


def test_replayed_documents_teach_no_answer(monkeypatch):
    """Of a conversation that a document remarks on nothing is learned: its answer may be help with harm."""
    learned, read, world = [], [], World(ROOT / "world")
    monkeypatch.setattr(train_sft, "encode_turns", lambda _, turns: turns)
    for turns in islice(train_sft.recall(SimpleNamespace(world=ROOT / "world", seed=3), None), 600):
        learned += [text for role, text, weight in turns if weight]
        read += [text for role, text, weight in turns if role != "document"]
        assert all(
            weight in (USER_WEIGHT, 1.0, POINT_WEIGHT) if role == "document" else weight == 0
            for role, _, weight in turns
        )
    harmful = [step for act in world.acts if act.kind == "harmful" for step in act.steps]
    assert any(step in text for step in harmful for text in read)
    assert not any(step in text for step in harmful for text in learned)
    again = train_sft.recall(SimpleNamespace(world=ROOT / "world", seed=3), None)
    anew = [text for turns in islice(again, 50) for _, text, weight in turns if weight]
    assert len(anew) >= 50 and anew == learned[: len(anew)]


def test_a_pipeline_that_made_nothing_yet_takes_other_settings(out, tmp_path, monkeypatch):
    done = run("pipeline.py", "--preset", "smoke", "--world", "nowhere", "--out", tmp_path)
    assert (
        done.returncode == 2
        and "nowhere is not a folder" in done.stderr
        and not (tmp_path / "settings.json").exists()
    )
    common.write_json(tmp_path / "settings.json", dict(preset="cpu"))
    monkeypatch.setattr(pipeline, "run", lambda name, args, *own: 0.0)
    call(pipeline.pipeline, monkeypatch, "--out", tmp_path)
    assert common.read_json(tmp_path / "settings.json", {})["preset"] == "smoke"
    with pytest.raises(common.UserError, match="another preset, seed, world"):
        call(pipeline.pipeline, monkeypatch, "--out", tmp_path, "--seed", 1)


def test_what_a_constitution_lacks_is_said_before_anything_is_made(tmp_path, monkeypatch):
    monkeypatch.setattr(pipeline, "run", lambda *args: pytest.fail("it begins all the same"))
    whole = json.load(open(ROOT / "constitution.json"))["principles"]
    harmless = [p for p in whole if p["family"] != "harmlessness"]
    first = [dict(p, wordings=p["wordings"][:1]) for p in whole if not held_out(f"{p['id']}/0")]
    kept = next(p for p in whole if p["family"] == "necessity" and held_out(f"{p['id']}/0"))
    hidden = [
        *(p for p in whole if p["family"] == "harmlessness"),
        dict(kept, wordings=kept["wordings"][:1]),
    ]
    for principles, message in (
        (harmless, "no principle of the family harmlessness"),
        (first, "held-out wording"),
        (hidden, "all wordings of the family necessity are held out"),
    ):
        (tmp_path / "c.json").write_text(json.dumps(dict(principles=principles)))
        with pytest.raises(common.UserError, match=message):
            call(
                pipeline.pipeline,
                monkeypatch,
                "--out",
                tmp_path,
                "--constitution",
                tmp_path / "c.json",
                "--rounds",
                1,
            )
    assert not (tmp_path / "settings.json").exists()


def test_a_stage_made_anew_makes_the_rounds_after_it_anew_too(tmp_path, monkeypatch):
    made, steps = [], pipeline.STEPS + pipeline.round_steps(1, tmp_path)
    artifacts = {(name.split()[0], *own): artifact for name, own, artifact in steps}

    def run(name, args, *own):
        made.append((name, *own))
        (tmp_path / artifacts.get((name, *own), "results.json")).touch()
        return 0.0

    monkeypatch.setattr(pipeline, "run", run)
    call(pipeline.pipeline, monkeypatch, "--out", tmp_path, "--rounds", 1)
    assert made == [*artifacts, ("evaluate",)]
    (tmp_path / "dpo.pt").unlink()
    made.clear()
    call(pipeline.pipeline, monkeypatch, "--out", tmp_path)
    assert made == [("train_dpo",), ("train_rm",), ("train_ppo",), ("evaluate",)]
    assert (tmp_path / "preferences.jsonl").exists() and (tmp_path / "redteam.jsonl").exists()
    assert not (tmp_path / "revisions-round1.jsonl").exists(), (
        "revise.py would refuse to go on with it"
    )
    made.clear()
    call(pipeline.pipeline, monkeypatch, "--out", tmp_path, "--rounds", 1)
    assert made == [*list(artifacts)[7:], ("evaluate",)], "the round was trained from the old stage"


def test_a_step_that_was_killed_half_way_is_not_taken_for_done(tmp_path, monkeypatch):
    """revise.py and label.py write batch by batch: after a kill their file is there, and holds some of its rows."""
    artifacts = {name: artifact for name, _, artifact in pipeline.STEPS} | dict(
        evaluate="results.json"
    )

    def run(name, args, *own):
        made.append(name)
        (tmp_path / artifacts[name]).touch()
        if name == killed:
            raise KeyboardInterrupt
        return 0.0

    monkeypatch.setattr(pipeline, "run", run)
    made, killed = [], None
    call(pipeline.pipeline, monkeypatch, "--out", tmp_path)
    (tmp_path / "revisions.jsonl").unlink()
    made, killed = [], "revise"
    with pytest.raises(KeyboardInterrupt):
        call(pipeline.pipeline, monkeypatch, "--out", tmp_path)
    assert (
        made == ["revise"]
        and not (tmp_path / "sft.pt").exists()
        and (tmp_path / "base.pt").exists()
    )
    made, killed = [], None
    call(pipeline.pipeline, monkeypatch, "--out", tmp_path)
    assert made == [*list(artifacts)[1:]]


def test_what_was_measured_of_a_checkpoint_that_is_gone_goes_too(out, tmp_path, monkeypatch):
    shutil.copytree(out, tmp_path / "out")
    (tmp_path / "out" / "round2.pt").unlink(), (tmp_path / "out" / "rm.pt").unlink()
    monkeypatch.setattr(
        evaluate, "measure", lambda *a: pytest.fail("what is there has been measured")
    )
    call(evaluate.evaluate, monkeypatch, "--out", tmp_path / "out")
    results = common.read_json(tmp_path / "out" / "results.json", {})
    assert [s["name"] for s in results["stages"]] == ["base", "sft", "dpo", "ppo", "round1"]
    assert not any("round2" in (pair["before"], pair["after"]) for pair in results["paired"])
    assert "reward_model" not in results
    assert {name.split("/")[1] for name in results["redteam"]} == {"dpo", "round1"}
    dpo = common.file_hash(out / "dpo.pt")
    assert evaluate.still_there("dpo", dpo, out) and not evaluate.still_there(
        "dpo", "of another run", out
    )
    assert evaluate.still_there("of-elsewhere", "any", out) and not evaluate.still_there(
        "round9", dpo, out
    )


def test_what_was_measured_of_a_checkpoint_that_has_changed_goes_too(
    out, tmp_path, monkeypatch, capsys
):
    shutil.copytree(out, tmp_path / "out")
    (tmp_path / "out" / "sft.pt").write_bytes((out / "dpo.pt").read_bytes())
    judged = common.read_json(tmp_path / "out" / "judge.json", {})
    common.write_json(tmp_path / "out" / "judge.json", judged | dict(hash="of another base"))
    monkeypatch.setattr(
        evaluate, "measure", lambda *a: pytest.fail("what is named has been measured")
    )
    call(evaluate.evaluate, monkeypatch, tmp_path / "out" / "base.pt", "--out", tmp_path / "out")
    results = common.read_json(tmp_path / "out" / "results.json", {})
    assert [s["name"] for s in results["stages"]] == ["base", "dpo", "ppo", "round1", "round2"]
    assert "sft: what was measured was another checkpoint" in capsys.readouterr().out
    assert judged["hash"] == common.file_hash(out / "base.pt") and "judge_audit" not in results


def test_results_are_not_mixed_with_those_of_another_folder(out, tmp_path, monkeypatch):
    monkeypatch.setattr(evaluate, "measure", lambda *a: pytest.fail("the exam has begun"))
    with pytest.raises(common.UserError, match="sft.pt is not in .* give its folder as --out"):
        call(evaluate.evaluate, monkeypatch, out / "sft.pt", "--out", tmp_path)
    with pytest.raises(common.UserError, match="missing.pt does not exist"):
        call(evaluate.evaluate, monkeypatch, out / "sft.pt", out / "missing.pt", "--out", out)


def test_a_checkpoint_of_another_folder_is_measured_with_what_belongs_to_it(
    out, tmp_path, monkeypatch
):
    for name in ("dpo", "base"):  # the one is still known when the other is measured
        call(
            evaluate.evaluate,
            monkeypatch,
            out / f"{name}.pt",
            "--out",
            tmp_path,
            "--results",
            tmp_path / "there.json",
        )
    results = json.loads((tmp_path / "there.json").read_text())
    assert [s["name"] for s in results["stages"]] == ["base", "dpo"]
    assert (
        results["judge_audit"]["hash"] == common.file_hash(out / "base.pt")
        and results["reward_model"]
        and results["seconds"]
    )
    assert {(row["before"], row["after"]) for row in results["paired"]} == {("base", "dpo")}


@pytest.mark.parametrize(
    "script, option, replaced",
    [
        (train_sft, "--data", "base.pt"),
        (train_dpo, "--data", "sft.pt"),
        (train_rm, "--data", "sft.pt"),
        (train_ppo, "--reward", "sft.pt"),
    ],
)
def test_what_another_model_made_is_not_trained_on_unasked(
    script, option, replaced, out, tmp_path, monkeypatch
):
    for name in (
        "base.pt",
        "sft.pt",
        "rm.pt",
        "tokenizer.json",
        "revisions.jsonl",
        "helpful.jsonl",
        "preferences.jsonl",
    ):
        (tmp_path / name).write_bytes((out / name).read_bytes())
    (tmp_path / replaced).write_bytes((out / "dpo.pt").read_bytes())
    with pytest.raises(
        common.UserError, match=f"was made from another .*{replaced} than is there now.*{option}"
    ):
        call(script.train, monkeypatch, "--out", tmp_path)


def test_a_round_does_not_go_on_from_what_was_made_with_other_models(out, tmp_path, monkeypatch):
    for path in (*out.glob("*.pt"), *out.glob("*.jsonl"), out / "tokenizer.json"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "dpo.pt").write_bytes((out / "ppo.pt").read_bytes())
    for script, made in (
        (train_sft.train, "revisions-round1.jsonl"),
        (label.label, "sft-round1.pt"),
        (train_dpo.train, "sft-round1.pt"),
    ):
        with pytest.raises(
            common.UserError,
            match=f"{made} was made from another .*dpo.pt than is there now; run .*--round 1",
        ):
            call(script, monkeypatch, "--out", tmp_path, "--round", 1)
    (tmp_path / "base.pt").write_bytes((out / "ppo.pt").read_bytes())
    with pytest.raises(
        common.UserError,
        match="sft.pt was made from another .*base.pt than is there now; run train_sft.py again",
    ):
        call(label.label, monkeypatch, "--out", tmp_path, "--name", "more")


def test_a_guard_measured_with_another_base_is_forgotten(out, tmp_path, monkeypatch):
    shutil.copytree(out, tmp_path / "out")
    results = common.read_json(out / "results.json", {})
    dpo = next(s for s in results["stages"] if s["name"] == "dpo")
    dpo["guard"], results["interpolation"] = dict(points=[]), dict(dpo=[])
    common.write_json(tmp_path / "out" / "results.json", results)
    (tmp_path / "out" / "base.pt").write_bytes((out / "sft.pt").read_bytes())
    call(evaluate.evaluate, monkeypatch, tmp_path / "out" / "dpo.pt", "--out", tmp_path / "out")
    again = common.read_json(tmp_path / "out" / "results.json", {})
    assert (
        not any("guard" in s for s in again["stages"])
        and not {"interpolation", "skills"} & again.keys()
    )


def test_a_guard_without_a_principle_about_harm_is_refused_before_the_exam(
    out, tmp_path, monkeypatch
):
    monkeypatch.setattr(evaluate, "measure", lambda *a: pytest.fail("the exam has begun"))
    principles = [
        p
        for p in json.load(open(ROOT / "constitution.json"))["principles"]
        if p["family"] != "harmlessness"
    ]
    (tmp_path / "c.json").write_text(json.dumps(dict(principles=principles)))
    with pytest.raises(common.UserError, match="no seen wording for harmlessness"):
        call(
            evaluate.evaluate,
            monkeypatch,
            "--out",
            out,
            "--constitution",
            tmp_path / "c.json",
            "--guard",
        )


def test_helpful_answers_outlive_a_world_that_is_not_there(out, tmp_path, monkeypatch):
    for name in ("base.pt", "tokenizer.json", "revisions.jsonl", "helpful.jsonl"):
        (tmp_path / name).write_bytes((out / name).read_bytes())
    with pytest.raises(common.UserError, match="nowhere"):
        call(train_sft.train, monkeypatch, "--out", tmp_path, "--world", tmp_path / "nowhere")
    assert (tmp_path / "helpful.jsonl").read_bytes() == (out / "helpful.jsonl").read_bytes()


def test_helpful_answers_in_a_disguise_are_made_once_and_can_be_left_out(
    out, tmp_path, monkeypatch
):
    for name in ("base.pt", "tokenizer.json", "revisions.jsonl", "helpful.jsonl"):
        (tmp_path / name).write_bytes((out / name).read_bytes())
    made, learned = common.read_jsonl(tmp_path / "helpful.jsonl"), []
    disguised = [r for r in made if r["technique"]]
    technique = disguised[0]["technique"]
    assert 0.05 < len(disguised) / len(made) < 0.4 and {r["type"] for r in disguised} <= {
        "legitimate",
        "sensitive",
    }
    monkeypatch.setattr(train_sft, "answer", lambda *a: pytest.fail("they are answered again"))
    monkeypatch.setattr(
        train_sft,
        "sft_turns",
        lambda turns, response: learned.append(turns) or [("assistant", response, 1.0)],
    )
    call(train_sft.train, monkeypatch, "--out", tmp_path, "--helpful-fraction", 0)
    assert (
        not any(r["turns"] in learned for r in disguised)
        and common.read_jsonl(tmp_path / "helpful.jsonl") == made
    )
    call(train_sft.train, monkeypatch, "--out", tmp_path, "--leave-out", technique)
    assert not any(r["turns"] in learned for r in disguised if r["technique"] == technique)
    assert all(r["turns"] in learned for r in made if r["technique"] != technique and r["response"])


def test_a_second_run_does_nothing_again(out):
    before = {p: p.stat().st_mtime_ns for p in out.glob("*.pt")}
    done = run("pipeline.py", "--preset", "smoke", "--device", "cpu", "--rounds", 2, "--out", out)
    assert (
        done.returncode == 0
        and "train_base: done before" in done.stdout
        and "exam for" not in done.stderr
    )
    assert before == {p: p.stat().st_mtime_ns for p in out.glob("*.pt")}


def test_a_killed_revise_goes_on_and_ends_with_the_same_rows(out, monkeypatch, tmp_path):
    for name in ("base.pt", "tokenizer.json"):
        (tmp_path / name).write_bytes((out / name).read_bytes())
    monkeypatch.setattr(revise, "BATCH", 16)
    call(revise.revise, monkeypatch, "--out", tmp_path)
    path = tmp_path / "revisions.jsonl"
    whole = path.read_text()
    lines = whole.splitlines(keepends=True)
    at = next(i for i, line in enumerate(lines) if json.loads(line)["id"] >= 32)
    path.write_text("".join(lines[:at]) + lines[at][:40])  # killed inside a write
    call(revise.revise, monkeypatch, "--out", tmp_path)
    assert path.read_text() == whole


def test_rows_of_other_settings_are_not_mixed(out, monkeypatch):
    with pytest.raises(common.UserError, match="other settings"):
        call(revise.revise, monkeypatch, "--out", out, "--no-critique")


def test_a_killed_base_training_ends_in_the_same_weights(monkeypatch, tmp_path):
    options = ("--documents", 150, "--device", "cpu")
    call(train_base.train, monkeypatch, "--out", tmp_path / "whole", *options)
    monkeypatch.setattr(train_base, "SAVE_SECONDS", -1)
    collate, calls = train_base.collate, []

    def killed(*args):
        calls.append(1)
        if len(calls) == 6:
            raise KeyboardInterrupt
        return collate(*args)

    monkeypatch.setattr(train_base, "collate", killed)
    with pytest.raises(KeyboardInterrupt):
        call(train_base.train, monkeypatch, "--out", tmp_path / "killed", *options)
    monkeypatch.setattr(train_base, "collate", collate)
    common.append_jsonl(
        tmp_path / "killed" / "train_base.jsonl", [dict(step=99, loss=0)]
    )  # logged, not saved
    call(train_base.train, monkeypatch, "--out", tmp_path / "killed", *options)
    a, b = (
        torch.load(tmp_path / d / "base.pt", weights_only=True)["model"]
        for d in ("whole", "killed")
    )
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert (tmp_path / "whole" / "base.pt").read_bytes() == (
        tmp_path / "killed" / "base.pt"
    ).read_bytes()
    assert not (tmp_path / "killed" / "train_base.state.pt").exists()
    whole, killed = (
        common.read_jsonl(tmp_path / d / "train_base.jsonl") for d in ("whole", "killed")
    )
    assert [row["step"] for row in killed] == [row["step"] for row in whole]


def test_a_base_training_killed_before_its_first_line_of_log_goes_on(monkeypatch, tmp_path):
    options = ("--out", tmp_path, "--documents", 150, "--device", "cpu")
    monkeypatch.setattr(train_base, "SAVE_SECONDS", -1)
    monkeypatch.setattr(
        train_base, "append_jsonl", lambda path, rows: (_ for _ in ()).throw(KeyboardInterrupt)
    )
    with pytest.raises(KeyboardInterrupt):
        call(train_base.train, monkeypatch, *options)
    monkeypatch.undo()
    assert (tmp_path / "train_base.state.pt").exists() and not (
        tmp_path / "train_base.jsonl"
    ).exists()
    call(train_base.train, monkeypatch, *options)
    assert (tmp_path / "base.pt").exists() and common.read_jsonl(tmp_path / "train_base.jsonl")


def test_a_base_keeps_its_tokenizer_until_another_is_done_and_what_was_made_from_it_is_then_refused(
    out, monkeypatch, tmp_path
):
    for name in ("base.pt", "sft.pt", "tokenizer.json"):
        shutil.copy(out / name, tmp_path / name)
    options = ("--out", tmp_path, "--documents", 150, "--device", "cpu", "--seed", 7)
    collate = train_base.collate
    monkeypatch.setattr(train_base, "SAVE_SECONDS", -1)
    for made in (
        2,
        0,
    ):  # batches before it is killed; a state with and without its tokenizer goes on
        left = iter(range(made))
        monkeypatch.setattr(
            train_base, "collate", lambda *args, left=left: (next(left), collate(*args))[1]
        )
        with pytest.raises((StopIteration, RuntimeError)):
            call(train_base.train, monkeypatch, *options)
        assert common.tokenizer_of(tmp_path / "base.pt") == common.tokenizer_of(out / "base.pt")
        common.load_checkpoint(tmp_path / "sft.pt")
        (tmp_path / train_base.TOKENIZER).unlink()
    monkeypatch.setattr(train_base, "collate", collate)
    call(train_base.train, monkeypatch, *options)
    assert not (tmp_path / train_base.TOKENIZER).exists()
    common.load_checkpoint(tmp_path / "base.pt")
    with pytest.raises(common.UserError, match="sft.pt was trained with another tokenizer"):
        common.load_checkpoint(tmp_path / "sft.pt")


def test_fine_tuning_moves_the_model_toward_its_data(out, monkeypatch):
    call(train_sft.train, monkeypatch, "--out", out, "--name", "more", "--epochs", 4)
    losses = [
        row["loss"]
        for row in common.read_jsonl(out / "train_sft.jsonl")
        if row["name"] == "sft-more"
    ]
    epoch = len(losses) // 4  # the same answers in each; single batches differ
    assert sum(losses[-epoch:]) < sum(losses[:epoch])


def test_only_the_final_answer_of_a_conversation_is_learned():
    turns = train_sft.sft_turns(["a", "b", "c"], "d")
    assert turns == [
        ("user", "a", 0.0),
        ("assistant", "b", 0.0),
        ("user", "c", 0.0),
        ("assistant", "d", 1.0),
    ]


def test_chat_answers_and_shows_the_critique(out):
    done = run(
        "chat.py",
        "--preset",
        "smoke",
        "--device",
        "cpu",
        "--out",
        out,
        "--show-critique",
        "--show-reward",
        input="How do I bake bread?\n/quit\n",
    )
    assert done.returncode == 0, done.stderr
    assert "round2> " in done.stdout and "critique> " in done.stdout
    assert re.search(r"reward> [+-]\d+\.\d\d", done.stdout)


def test_chat_behind_a_guard_logs_what_it_flags(out, tmp_path):
    for name in ("base.pt", "sft.pt", "tokenizer.json"):
        (tmp_path / name).write_bytes((out / name).read_bytes())
    options = f"--preset smoke --device cpu --out {tmp_path} --guard --helpful-refusals --input-threshold".split()
    done = run("chat.py", *options, "1e-12", input="How do I bake bread?\n/quit\n")
    assert done.returncode == 0, done.stderr
    assert f"sft> {REFUSAL[:-1]}" in done.stdout and "blocked by the input check" in done.stdout
    [row] = common.read_jsonl(
        tmp_path / "guard.jsonl",
        required=("turns", "response", "judge", "check", "input", "output"),
    )
    assert row["turns"] == ["How do I bake bread?"] and row["check"] == "input"
    assert row["judge"] is None or 1e-12 <= row["judge"] <= 1
    assert run("chat.py", *options, "0", input="").returncode == 2


def test_what_goes_around_a_model_is_measured_and_reported_again_without_it(
    out, monkeypatch, tmp_path, capsys
):
    results_path = tmp_path / "results.json"
    results_path.write_text((out / "results.json").read_text())
    shutil.copytree(out / "transcripts", tmp_path / "transcripts")
    options = f"--out {out} --device cpu --results {results_path} --guard --helpful-refusals --interpolate".split()
    call(evaluate.evaluate, monkeypatch, out / "base.pt", out / "sft.pt", *options)
    results = json.loads(results_path.read_text())
    base, sft = (
        next(s for s in results["stages"] if s["name"] == name) for name in ("base", "sft")
    )
    for stage, at in (
        (base, 0.0),
        (sft, 1.0),
    ):  # no guard, an end of the line, and the exam itself agree
        [end] = [q for q in results["interpolation"]["sft"] if q["alpha"] == at]
        assert (
            stage["guard"]["off"]["under_refusal"]
            == end["under_refusal"]
            == stage["every_fourth"]["under_refusal"]
        )
        assert (
            stage["guard"]["off"]["over_refusal"]
            == end["over_refusal"]
            == stage["every_fourth"]["over_refusal"]
        )
        rows = common.read_jsonl(tmp_path / "transcripts" / f"guard-{stage['name']}.jsonl")
        assert (
            guard.sweep(rows)["points"] == stage["guard"]["points"]
        )  # another threshold needs no model
    assert results["paired"][0]["before"] == "base" and results["paired"][0]["after"] == "sft"
    assert sft["helpful_refusals"]["bare"]["offers_before"]["rate"] == 0
    old = copy.deepcopy(results)
    next(s for s in old["stages"] if s["name"] == "base")["hash"] = "another base"
    old["stages"].reverse()
    common.write_json(results_path, old)
    call(
        evaluate.evaluate,
        monkeypatch,
        out / "base.pt",
        "--out",
        out,
        "--device",
        "cpu",
        "--results",
        results_path,
    )
    again = json.loads(results_path.read_text())
    assert [s["name"] for s in again["stages"]] == [
        s["name"] for s in results["stages"]
    ]  # whatever was measured first
    assert "interpolation" not in again and not any(
        "guard" in s or "helpful_refusals" in s for s in again["stages"]
    )
    common.write_json(results_path, results)
    (tmp_path / "report.md").unlink()
    call(
        evaluate.evaluate,
        monkeypatch,
        "--out",
        tmp_path,
        "--report",
        "--cost-over",
        "7",
        "--world",
        "nowhere",
    )
    assert (
        "cost of 1 for each harmful request complied with and 7 for"
        in (tmp_path / "report.md").read_text()
    )
    assert json.loads(results_path.read_text()) == results


@pytest.mark.parametrize(
    "words, said",
    [
        (("evaluate.py", "--out", "{tmp}", "--report"), "holds no results"),
        (("revise.py", "--out", "{tmp}"), "tokenizer.json does not exist"),
        (("train_sft.py", "--out", "{out}", "--replay", "-1"), "'-1' is not a number from 0 on"),
        (
            ("chat.py", "--out", "{out}", "--family", "honesty"),
            "--family belongs to --show-critique",
        ),
        (("chat.py", "--out", "{out}", "--input-threshold", "0.1"), "belong to --guard"),
        (
            ("train_sft.py", "--out", "{out}", "--data", "nowhere.jsonl"),
            "nowhere.jsonl does not exist",
        ),
        (("evaluate.py", "--out", "{out}", "{out}/results.json"), "is not a checkpoint"),
        (("train_base.py", "--out", "{tmp}", "--world", "nowhere"), "nowhere is not a folder"),
        (
            (
                "pipeline.py",
                "--no-such-option",
            ),
            "unrecognized arguments",
        ),
        (
            ("train_ppo.py", "--out", "{out}", "--beta", "0", "--target-kl", "6"),
            "give a --beta above 0",
        ),
        (("train_sft.py", "--out", "{out}", "--round", "1", "--name", "x"), "exclude each other"),
        (("revise.py", "--out", "{out}", "--round", "1", "--name", "x"), "exclude each other"),
        (("revise.py", "--out", "{out}", "--leave-out", "typos"), "give --round too"),
        (("evaluate.py", "--out", "{out}", "--eval-n", "3"), "holds results of another exam"),
        (("label.py", "--out", "{out}", "--explain", "99999"), "there is no such comparison"),
        (("train_dpo.py", "--out", "{out}", "--helpful-fraction", "1"), "share from 0 to below 1"),
        (
            ("train_rm.py", "--out", "{out}", "--data", "nowhere.jsonl"),
            "nowhere.jsonl does not exist",
        ),
        (
            ("train_dpo.py", "--out", "{out}", "--loss", "no-such-loss"),
            "invalid choice: 'no-such-loss'",
        ),
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_2(out, tmp_path, words, said):
    done = run(
        *(w.format(out=out, tmp=tmp_path) for w in words),
        *(() if "--no-such-option" in words else ("--preset", "smoke")),
    )
    assert done.returncode == 2 and said in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "script, option, values",
    [
        *(
            (s.train, "--lr", ("0", "nan"))
            for s in (train_base, train_sft, train_dpo, train_rm, train_ppo)
        ),
        *((s.train, "--helpful-fraction", ("1", "nan")) for s in (train_sft, train_dpo, train_rm)),
        *(
            (s, "--name", ("a/b",))
            for s in (
                revise.revise,
                train_sft.train,
                train_dpo.train,
                train_rm.train,
                train_ppo.train,
            )
        ),
        *((s, "--temperature", ("-1", "nan")) for s in (revise.revise, label.label)),
        (train_sft.train, "--replay", ("inf",)),
        (train_dpo.train, "--beta", ("0", "inf")),
        (train_ppo.train, "--beta", ("-1", "inf")),
        (train_ppo.train, "--clip", ("0", "nan")),
        (train_ppo.train, "--target-kl", ("0", "nan")),
        (train_ppo.train, "--end-penalty", ("nan",)),
        (train_ppo.train, "--value-coef", ("-1", "nan")),
        (train_ppo.train, "--value-rate", ("0", "inf")),
        (train_ppo.train, "--entropy-coef", ("-1", "nan")),
        (evaluate.evaluate, "--cost-under", ("-1", "nan")),
        (evaluate.evaluate, "--cost-over", ("-1", "inf")),
        (evaluate.evaluate, "--exam-seed", ("-1",)),
        (revise.revise, "--seed", ("-1", "9" * 30)),
    ],
)
def test_a_number_or_name_out_of_range_is_refused_at_once(
    monkeypatch, tmp_path, capsys, script, option, values
):
    for value in values:
        with pytest.raises(SystemExit) as stop:
            call(script, monkeypatch, "--out", tmp_path, option, value)
        assert (
            stop.value.code == 2
            and f"argument {option}: '{value}' is not" in capsys.readouterr().err
        )


@pytest.mark.parametrize(
    "words, said",
    [
        (("A/sft.pt", "B/sft.pt"), "two checkpoints are named sft"),
        *(
            (("A/sft.pt", "B/dpo.pt", option), "of one folder")
            for option in ("--guard", "--helpful-refusals", "--interpolate")
        ),
        (("{tmp}",), "is not a file"),
    ],
)
def test_checkpoints_that_cannot_be_measured_together_are_refused(
    monkeypatch, tmp_path, words, said
):
    with pytest.raises(common.UserError, match=said):
        call(
            evaluate.evaluate,
            monkeypatch,
            "--out",
            tmp_path,
            *(w.format(tmp=tmp_path) for w in words),
        )


def test_the_folder_of_the_results_is_made_before_anything_is_measured(monkeypatch, tmp_path):
    (tmp_path / "broken.pt").touch()
    with pytest.raises(common.UserError, match="broken.pt is not a checkpoint"):
        call(
            evaluate.evaluate,
            monkeypatch,
            tmp_path / "broken.pt",
            "--out",
            tmp_path,
            "--results",
            tmp_path / "new" / "r.json",
        )
    assert (tmp_path / "new").is_dir()


@pytest.mark.parametrize("stages", [5, "base", [5], [dict(name="base")]])
def test_results_of_another_shape_are_not_reported(monkeypatch, tmp_path, stages):
    common.write_json(tmp_path / "results.json", dict(stages=stages))
    with pytest.raises(common.UserError, match="results.json is not whole .*run evaluate.py again"):
        call(evaluate.evaluate, monkeypatch, "--out", tmp_path, "--report")


@pytest.mark.parametrize(
    "change",
    [
        dict(p="0.7"),
        dict(p=math.nan),
        dict(p=1.5),
        dict(p=None),
        dict(p=True),
        dict(a=5),
        dict(b=None),
        dict(turns=[]),
        dict(turns="Hi"),
        dict(turns=["a", "b"]),
        dict(turns=[5]),
        dict(by="me"),
        dict(by=["policy"]),
        dict(by=[1, 2]),
        dict(kind="other"),
        dict(kind=[]),
        dict(responses="text"),
        dict(responses=[None]),
        dict(responses={}),
    ],
)
def test_a_row_to_train_on_that_holds_another_type_is_named_with_its_line(tmp_path, change):
    good = dict(
        id=0, kind="ai", turns=["Hi"], a="x", b="y", p=0.7, by=["policy", "base"], responses=["x"]
    )
    common.append_jsonl(tmp_path / "x.jsonl", [good, good | change])
    read = (
        train_sft.read_chains
        if "responses" in change
        else lambda p: read_pairs([p], None, 1 / 3, 1024, random.Random(0))
    )
    with pytest.raises(common.UserError, match=rf"x.jsonl:2: the field '{[*change][0]}' is not "):
        read(tmp_path / "x.jsonl")


# --- Stage 2 ---


def test_comparisons_that_cannot_be_trained_on_are_not_said_to_be_missing(out, tmp_path):
    tokenizer, rng = Tokenizer.load(out / "tokenizer.json"), random.Random(0)
    with pytest.raises(common.UserError, match="none of its .* do not fit the context of 4 ids"):
        read_pairs([out / "preferences.jsonl"], tokenizer, 1 / 3, 4, rng)
    (tmp_path / "empty.jsonl").touch()
    with pytest.raises(common.UserError, match="holds no comparison"):
        read_pairs([tmp_path / "empty.jsonl"], tokenizer, 1 / 3, 4, rng)


def test_scores_stay_as_they_are_where_no_answer_is_the_policys(out, monkeypatch, tmp_path, capsys):
    rows = [
        row | dict(by=("base", "evasive")) for row in common.read_jsonl(out / "preferences.jsonl")
    ]
    common.append_jsonl(tmp_path / "others.jsonl", rows)
    call(
        train_rm.train,
        monkeypatch,
        "--out",
        out,
        "--data",
        tmp_path / "others.jsonl",
        "--name",
        "others",
    )
    assert "are not shifted" in capsys.readouterr().out
    assert RewardModel.load(out / "rm-others.pt")[0].score.bias.isfinite().all()


def test_a_reward_model_of_another_vocabulary_is_refused(out, monkeypatch, tmp_path):
    RewardModel(GPT(GPTConfig(20, 1, 1, 1, 8, 12, 16))).save(tmp_path / "rm.pt")
    with pytest.raises(common.UserError, match="rm.pt has another vocabulary"):
        call(
            train_ppo.train,
            monkeypatch,
            "--out",
            out,
            "--reward",
            tmp_path / "rm.pt",
            "--name",
            "other",
        )


def test_every_comparison_keeps_its_lineage_and_holds_only_demo_acts(out):
    rows = common.read_jsonl(
        out / "preferences.jsonl", required=("id", "kind", "turns", "a", "b", "p", "made_by")
    )
    world, constitution = World(ROOT / "world"), Constitution(ROOT / "constitution.json")
    names, wordings = (
        {a.id for a in world.acts} | {f.id for f in world.facts},
        {w.id for w in constitution.wordings},
    )
    for row in rows:
        assert all(
            split_of(part) == UNTRAINED for part in row["request"].split("/") if part in names
        )
        assert row["a"] != row["b"] and 0 <= row["p"] <= 1 and row["kind"] in ("ai", "human")
        assert tuple(row["by"]) in label.PAIRS
        if row["kind"] == "ai":
            assert row["p"] == pytest.approx((row["a_first"] + row["b_first"]) / 2)
            assert row["principle"] in wordings and not held_out(row["principle"])
    assert rows[0]["made_by"]["policy"] == common.file_hash(out / "sft.pt")


def test_killed_labelling_goes_on_and_ends_with_the_same_rows(out, monkeypatch, tmp_path):
    for name in ("base.pt", "sft.pt", "tokenizer.json"):
        (tmp_path / name).write_bytes((out / name).read_bytes())
    monkeypatch.setattr(label, "BATCH", 10)
    call(label.label, monkeypatch, "--out", tmp_path)
    path = tmp_path / "preferences.jsonl"
    whole = path.read_text()
    path.unlink()
    compare, calls = label.compare, []

    def killed(*args):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return compare(*args)

    monkeypatch.setattr(label, "compare", killed)
    with pytest.raises(KeyboardInterrupt):
        call(label.label, monkeypatch, "--out", tmp_path)
    part = path.read_text()
    assert part and whole.startswith(part) and part != whole
    call(label.label, monkeypatch, "--out", tmp_path)
    assert path.read_text() == whole
    monkeypatch.setattr(label, "answer", lambda *args: pytest.fail("what is done is done again"))
    call(label.label, monkeypatch, "--out", tmp_path)
    assert path.read_text() == whole


def test_no_prompt_is_trained_on_and_held_back(out):
    tokenizer, rng = Tokenizer.load(out / "tokenizer.json"), random.Random(1)
    pairs = read_pairs([out / "preferences.jsonl"], tokenizer, 1 / 3, 10_000, rng)
    held, kept = train_rm.hold_back(pairs, rng)
    asked = [{tuple(p.chosen[: p.prompt]) for p in part} for part in (held, kept)]
    assert not asked[0] & asked[1] and len(held) + len(kept) == len(pairs)
    assert len(asked[0]) == (len(asked[0]) + len(asked[1])) // 10 > 0


def test_the_policys_own_answers_score_0_on_average_whatever_their_rivals(out):
    tokenizer, rng = Tokenizer.load(out / "tokenizer.json"), random.Random("rm 0")
    reward, _ = RewardModel.load(out / "rm.pt", "cpu")
    pairs = read_pairs(
        [out / "preferences.jsonl"], tokenizer, 1 / 3, reward.gpt.config.block_size, rng
    )
    _, pairs = train_rm.hold_back(pairs, rng)
    assert len(pairs) <= 500
    own = [ids for p in pairs for ids, mine in zip((p.chosen, p.rejected), p.own) if mine]
    assert len(pairs) < len(own) < 2 * len(pairs)
    with torch.no_grad():
        scores = [reward(torch.tensor([ids]), torch.tensor([len(ids)])).item() for ids in own]
    assert sum(scores) / len(scores) == pytest.approx(
        0, abs=0.02
    )  # trained and shifted in bfloat16
    assert max(scores) - min(scores) > 0.1


@pytest.mark.parametrize(
    "options, pairs", [((), set(label.PAIRS)), (("--iid",), {("policy", "policy")})]
)
def test_each_answer_is_by_the_assistant_that_is_named(out, monkeypatch, tmp_path, options, pairs):
    for name in ("base.pt", "sft.pt", "tokenizer.json"):
        (tmp_path / name).write_bytes((out / name).read_bytes())
    loaded = dict(zip(("policy", "base"), (torch.nn.Linear(1, 1), torch.nn.Linear(1, 1))))
    name_of = {id(model): name for name, model in loaded.items()}

    def fake_answer(model, tokenizer, turns, temperature, seed, progress):
        assert temperature == 0.7
        return [f"{name_of[id(model)]} with {seed} on {' '.join(t)}" for t in turns]

    monkeypatch.setattr(
        label,
        "load_checkpoint",
        lambda path, device: (loaded["base" if "base" in path.name else "policy"], {}),
    )
    monkeypatch.setattr(label, "audit", lambda *args, **kwargs: {})
    monkeypatch.setattr(label, "print_audit", lambda report: None)
    monkeypatch.setattr(label, "answer", fake_answer)
    monkeypatch.setattr(
        label,
        "judge_by_critique",
        lambda model, tokenizer, turns, a, b, wordings: [Verdict(1.0, 1.0)] * len(a),
    )
    call(label.label, monkeypatch, "--out", tmp_path, "--temperature", 0.7, *options)
    rows = common.read_jsonl(tmp_path / "preferences.jsonl")
    world = World(ROOT / "world")
    declines = [t.text for t in world.replies if t.use == "decline"]
    toned = []  # of the evasive answers: with a rude or a preachy sentence
    assert {tuple(row["by"]) for row in rows} == pairs
    for row in rows:
        for name, text in zip(row["by"], (row["a"], row["b"])):
            if name == "evasive":
                hedged = " could be " in text and row["type"] in ("legitimate", "sensitive")
                assert hedged or any(decline in text for decline in declines)
                toned.append(any(tone.text in text for tone in world.tones))
            else:
                assert text.startswith(name) and text.endswith(" on " + " ".join(row["turns"]))
    assert len(set(toned)) == (
        2 if toned else 0
    )  # what no comparison shows losing is not known to be bad


def test_the_evasive_assistant_hedges_only_where_plain_help_is_better():
    world = World(ROOT / "world")
    part, grader, rng = Part(world, "demo"), Grader(world), random.Random(0)
    harms, declines = (
        {a.harm for a in part.acts if a.harm},
        [t.text for t in world.replies if t.use == "decline"],
    )
    for type in ("harmful", "ambiguous", "legitimate", "dual_use_question", "sensitive", "fact"):
        hedges = 0
        for request in (part.draw(rng, type) for _ in range(200)):
            text = label.evade(part, request, rng)
            hedges += (hedge := not any(decline in text for decline in declines))
            assert grader.grade(request, text).outcome != "complied"
            assert not hedge or any(f"That could be {harm} and" in text for harm in harms)
            if type in ("legitimate", "sensitive"):
                plain = helpful(world, request, rng).text
                assert label.usefulness(grader, request, plain) > label.usefulness(
                    grader, request, text
                )
        assert (40 < hedges < 120) if type in ("legitimate", "sensitive") else hedges == 0


def test_a_comparison_explains_itself(out):
    row = next(r for r in common.read_jsonl(out / "preferences.jsonl") if r["kind"] == "ai")
    done = run("label.py", "--preset", "smoke", "--out", out, "--explain", row["id"])
    assert done.returncode == 0 and row["a"] in done.stdout, done.stderr
    assert f"{row['p']:.3f}" in done.stdout
    for critique, p in row["reasons"]:
        assert critique in done.stdout and f"{p:.3f}" in done.stdout
    done = run("label.py", "--preset", "smoke", "--out", out, "--explain", 10_000)
    assert done.returncode == 2 and "no such comparison" in done.stderr


def test_the_simulated_person_prefers_help_and_errs_in_one_case_of_ten():
    world = World(ROOT / "world")
    grader, rng, part = Grader(world), random.Random(0), Part(world, "train")
    labels = []
    for _ in range(600):
        request = part.draw(rng, rng.choice(("legitimate", "sensitive", "dual_use_question")))
        good, bad = helpful(world, request, rng).text, decline(world, request, rng).text
        labels += [
            label.human_label(grader, request, good, bad, rng),
            1 - label.human_label(grader, request, bad, good, rng),
        ]
        assert label.human_label(grader, request, good, good, rng) is None
    known, unknown = part.draw(rng, "fact", "often"), part.draw(rng, "fact", "never")
    for request, right, wrong in ((known, helpful, None), (unknown, None, helpful)):
        texts = (
            make(world, request, rng).text if make else "I do not know." for make in (right, wrong)
        )
        assert label.usefulness(grader, request, next(texts)) > label.usefulness(
            grader, request, next(texts)
        )
    assert 0.87 < sum(labels) / len(labels) < 0.93


def test_feedback_takes_what_worked_and_may_be_trained_on_and_fresh_disguises_of_both_sides(
    out, monkeypatch, tmp_path
):
    for name in ("base.pt", "dpo.pt", "tokenizer.json"):
        (tmp_path / name).write_bytes((out / name).read_bytes())
    world = World(ROOT / "world")
    hidden, part = Part(world, "test"), Part(world, UNTRAINED)
    target, rng, rows = common.file_hash(tmp_path / "dpo.pt"), random.Random(0), []
    for i, (at, trainable, attacked) in enumerate(
        [
            (part, True, target),
            (part, True, target),
            (part, True, "another"),
            (hidden, False, target),
            (part, False, target),
        ]
    ):
        r = at.draw(rng, "harmful")
        rows.append(
            dict(
                id=f"t/{i}",
                type=r.type,
                request=r.id,
                topic=r.topic,
                turns=list(r.turns),
                plain=[f"plainly {i}"],
                response=f"answer {i}",
                target=attacked,
                trainable=trainable,
                technique="leetspeak" if i == 1 else None,
            )
        )
    common.append_jsonl(tmp_path / "redteam.jsonl", rows)
    real, read = revise.critique_and_revise, []
    monkeypatch.setattr(
        revise,
        "critique_and_revise",
        lambda m, t, turns, *more, **k: (read.extend(turns), real(m, t, turns, *more, **k))[1],
    )
    call(revise.revise, monkeypatch, "--out", tmp_path, "--round", 1)
    technique = {f.id: f.technique for f in world.framings}

    def techniques(rows):
        return {
            technique[part]
            for row in rows
            for part in row["request"].split("/")
            if part in technique
        }

    assert {"leetspeak", "escalation"} <= techniques(
        common.read_jsonl(tmp_path / "revisions-round1.jsonl")
    )
    made = common.read_jsonl(tmp_path / "revisions-round1.jsonl")
    attacks, fresh = made[:2], made[2:]
    assert [r["responses"][0] for r in attacks] == ["answer 0", "answer 1"]
    # The critic reads what is asked, the policy will be trained on the disguise.
    assert [r["plain"] for r in attacks] == [["plainly 0"], ["plainly 1"]]
    assert {tuple(r["plain"]) for r in made if r["responses"]} == set(map(tuple, read))
    assert all(r["plain"] != r["turns"] for r in made) and all(
        "{" not in r["plain"][-1] for r in fresh
    )
    harmful = sum(r["type"] == "harmful" for r in fresh)
    assert {r["type"] for r in fresh} <= {
        "harmful",
        "legitimate",
        "sensitive",
    } and 0.2 < harmful / len(fresh) < 0.8
    framings = {f.id for f in world.framings}
    for row in fresh:
        assert any(part in framings for part in row["request"].split("/")), (
            "a fresh request that is not disguised"
        )
    acts = {a.id for a in world.acts}
    for row in made:
        for name in row["request"].split("/"):
            assert not (name in acts and split_of(name) != UNTRAINED) and not (
                name in framings and held_out(name)
            )
    (tmp_path / "revisions-round1.jsonl").unlink()
    call(
        revise.revise,
        monkeypatch,
        "--out",
        tmp_path,
        "--round",
        1,
        "--leave-out",
        "leetspeak",
        "escalation",
    )
    made = common.read_jsonl(tmp_path / "revisions-round1.jsonl")
    assert "answer 1" not in [r["responses"][0] for r in made if r["responses"]] and techniques(
        made
    )
    assert not techniques(made) & {"leetspeak", "escalation"}


@pytest.mark.parametrize("loss, beta", [("dpo", 1.0), ("ipo", 0.1), ("orpo", 0.1), ("simpo", 2.0)])
def test_dpo_starts_at_its_reference_and_writes_a_policy_with_the_beta_of_its_loss(
    out, monkeypatch, loss, beta
):
    # In bfloat16 it holds to three digits only.
    monkeypatch.setattr(train_dpo, "autocast", lambda device: nullcontext())
    call(train_dpo.train, monkeypatch, "--out", out, "--loss", loss, "--name", loss)
    first, *later = (
        r for r in common.read_jsonl(out / "train_dpo.jsonl") if r["name"] == f"dpo-{loss}"
    )
    if loss == "dpo":
        assert first["loss"] == pytest.approx(math.log(2), abs=1e-4) and first["margin"] == 0
        assert any(row["margin"] != 0 for row in later), "the reference moves with the policy"
    trained, start = (
        common.load_checkpoint(out / name)[0] for name in (f"dpo-{loss}.pt", "sft.pt")
    )
    assert not all(torch.equal(a, b) for a, b in zip(trained.parameters(), start.parameters()))
    assert common.load_checkpoint(out / f"dpo-{loss}.pt")[1]["made_by"]["beta"] == beta


def test_the_reward_model_and_ppo_run_and_a_killed_ppo_ends_in_the_same_weights(
    out, monkeypatch, tmp_path
):
    for name in ("whole", "killed"):
        (tmp_path / name).mkdir()
        for file in ("sft.pt", "rm.pt", "tokenizer.json"):
            (tmp_path / name / file).write_bytes((out / file).read_bytes())
    call(train_ppo.train, monkeypatch, "--out", tmp_path / "whole", "--updates", 3)
    monkeypatch.setattr(train_ppo, "SAVE_SECONDS", -1)
    generate, calls = train_ppo.generate, []

    def killed(*args, **options):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return generate(*args, **options)

    monkeypatch.setattr(train_ppo, "generate", killed)
    with pytest.raises(KeyboardInterrupt):
        call(train_ppo.train, monkeypatch, "--out", tmp_path / "killed", "--updates", 3)
    monkeypatch.setattr(train_ppo, "generate", generate)
    common.append_jsonl(
        tmp_path / "killed" / "train_ppo.jsonl", [dict(update=3)]
    )  # logged, not saved
    call(train_ppo.train, monkeypatch, "--out", tmp_path / "killed", "--updates", 3)
    a, b = (
        torch.load(tmp_path / d / "ppo.pt", weights_only=True)["model"] for d in ("whole", "killed")
    )
    assert all(torch.equal(a[k], b[k]) for k in a)
    rows = common.read_jsonl(tmp_path / "killed" / "train_ppo.jsonl")
    assert [r["update"] for r in rows] == [1, 2, 3] and rows[0]["kl"] == rows[0]["k3"] == 0
    assert not (tmp_path / "killed" / "train_ppo.state.pt").exists()


@pytest.mark.parametrize("advantage", ["rloo", "grpo"])
def test_the_penalty_is_in_the_comparison_of_rloo_and_in_the_loss_of_grpo(
    out, monkeypatch, advantage
):
    monkeypatch.setattr(train_ppo, "autocast", lambda device: nullcontext())
    args = SimpleNamespace(
        device="cpu", advantage=advantage, group=2, end_penalty=-1.0, clip=0.2, entropy_coef=0.0
    )
    (gpt, _), (reference, _), (reward, _) = (
        common.load_checkpoint(out / "sft.pt"),
        common.load_checkpoint(out / "base.pt"),
        RewardModel.load(out / "rm.pt"),
    )
    tokenizer = Tokenizer.load(out / "tokenizer.json")
    prompts = [tokenizer.prompt(talk("How do I bake bread?"))] * 4
    completions = generate(gpt, prompts, 12, 1.0, stop_ids=[tokenizer.end], seed=0)

    def trained(beta):
        torch.manual_seed(0)
        actor = train_ppo.Actor(copy.deepcopy(gpt))
        batch = train_ppo.score(
            actor, reference, reward, prompts, completions, beta, args, tokenizer.pad
        )
        advantages = batch["advantages"].clone()
        batch["advantages"].zero_()  # what moves now is the penalty alone
        for _ in range(10):
            train_ppo.climb(actor, torch.optim.SGD(actor.parameters(), lr=0.1), batch, beta, args)
        with torch.no_grad():
            logps = token_logps(actor(batch["ids"])[0], batch["ids"])
        k3 = (ppo.kl_estimates(x, batch["ref_logps"])[2] for x in (batch["logps"], logps))
        return advantages, [ppo.masked_mean(x, batch["mask"]).item() for x in k3]

    (without, still), (with_it, moved) = trained(0.0), trained(1.0)
    assert torch.equal(without, with_it) == (advantage == "grpo")
    assert still[0] == pytest.approx(still[1], rel=1e-3)
    assert (moved[1] < 0.9 * moved[0]) == (advantage == "grpo")


@pytest.mark.parametrize("advantage", ["rloo", "grpo"])
def test_ppo_runs_with_groups_instead_of_values(out, monkeypatch, tmp_path, advantage):
    call(
        train_ppo.train,
        monkeypatch,
        "--out",
        out,
        "--advantage",
        advantage,
        "--name",
        advantage,
        "--updates",
        1,
    )
    assert (out / f"ppo-{advantage}.pt").exists()
    with pytest.raises(common.UserError, match="groups"):
        call(train_ppo.train, monkeypatch, "--out", out, "--advantage", advantage, "--group", 3)


def test_every_rollout_is_by_the_policy_that_is_trained(out, monkeypatch):
    """Its own log-probabilities are those that scoring finds, also after it has moved."""
    monkeypatch.setattr(train_ppo, "autocast", lambda device: nullcontext())
    real, seen = train_ppo.score, []
    monkeypatch.setattr(train_ppo, "score", lambda *a: (seen.append(real(*a)), seen[-1])[1])
    call(
        train_ppo.train,
        monkeypatch,
        "--out",
        out,
        "--device",
        "cpu",
        "--updates",
        3,
        "--lr",
        0.003,
        "--name",
        "fresh",
    )
    assert all(b["mismatch"] < 1e-3 for b in seen) and max(b["kl"].abs().max() for b in seen) > 0.1
    a, b = (common.load_checkpoint(out / name)[0] for name in ("ppo-fresh.pt", "sft.pt"))
    assert not all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters()))


def test_advantages_are_whitened_over_the_whole_update(out, monkeypatch):
    real, seen = train_ppo.climb, {}
    monkeypatch.setattr(
        train_ppo, "climb", lambda a, o, b, *r: (seen.setdefault(id(b), b), real(a, o, b, *r))[1]
    )
    call(train_ppo.train, monkeypatch, "--out", out, "--updates", 1, "--name", "white")
    parts = [b["advantages"][b["mask"]] for b in seen.values()]
    every = torch.cat(parts)
    assert (
        abs(every.mean()) < 1e-4
        and abs(every.std() - 1) < 1e-3
        and max(abs(p.mean()) for p in parts) > 0.02
    )


def test_labels_are_of_the_answers_in_their_order_and_as_asked_for(monkeypatch):
    read, rows = [], [dict(id=0, turns=["x"], a="1", b="2")]
    monkeypatch.setattr(
        label,
        "judge_by_critique",
        lambda m, t, turns, a, b, w: (read.append((a, b)), [Verdict(0.9, 0.9)])[1],
    )
    constitution = SimpleNamespace(draw=lambda rng, principle: SimpleNamespace(id="p/0"))
    for how, p in (("soft", 0.9), ("hard", 1.0), ("clamp", 0.6)):
        args = SimpleNamespace(judge="critique", label=how, principles="random")
        assert label.compare(args, None, None, rows, constitution, None)[0][0]["p"] == p
    assert read == [(["1"], ["2"])] * 3


@pytest.mark.parametrize("name", ["dpo", "simpo"])
def test_the_loss_that_was_asked_for_gets_both_answers_the_reference_and_the_label(
    out, monkeypatch, name
):
    monkeypatch.setattr(train_dpo, "autocast", lambda device: nullcontext())
    real, collate, seen, met = train_dpo.LOSSES[name], train_dpo.collate_pairs, [], []
    monkeypatch.setitem(
        train_dpo.LOSSES, name, functools.wraps(real)(lambda *a: (seen.append(a), real(*a))[1])
    )
    monkeypatch.setattr(
        train_dpo, "collate_pairs", lambda b, *r: (met.append(b), collate(b, *r))[1]
    )
    call(train_dpo.train, monkeypatch, "--out", out, "--loss", name, "--name", f"spied-{name}")
    sft, (*logps, _, labels), first = (
        common.load_checkpoint(out / "sft.pt")[0],
        seen[0],
        met[-len(seen)],
    )
    assert labels.tolist() == pytest.approx([pair.p for pair in first])
    assert len({pair.p for batch in met for pair in batch}) > 2
    for side, policy, reference in zip(("chosen", "rejected"), logps[:2], logps[2:]):
        for pair, x, y in zip(first, policy.tolist(), reference.tolist()):
            ids = torch.tensor([getattr(pair, side)])
            said = token_logps(sft(ids[:, :-1]), ids)[0, pair.prompt - 1 :]
            assert x == pytest.approx(
                (said.mean() if name in PER_TOKEN else said.sum()).item(), abs=1e-3
            )
            assert y == pytest.approx(x, abs=1e-3)
    row = next(
        r for r in common.read_jsonl(out / "train_dpo.jsonl") if r["name"] == f"dpo-spied-{name}"
    )
    logged = [row[f"{side}_logps"] for side in ("chosen", "rejected")]
    assert logged == pytest.approx([x.mean().item() for x in logps[:2]], abs=1e-3)


def test_the_reward_model_learns_the_labels_of_what_is_not_held_back(out, monkeypatch):
    loss, collate, split, seen, met, parts = (
        train_rm.bradley_terry_loss,
        train_rm.collate_pairs,
        train_rm.hold_back,
        [],
        [],
        [],
    )
    monkeypatch.setattr(
        train_rm, "bradley_terry_loss", lambda *a: (seen.append(a[2:]), loss(*a))[1]
    )
    monkeypatch.setattr(train_rm, "collate_pairs", lambda b, *r: (met.append(b), collate(b, *r))[1])
    monkeypatch.setattr(train_rm, "hold_back", lambda *a: (parts.extend(split(*a)), parts)[1])
    call(train_rm.train, monkeypatch, "--out", out, "--name", "spied")
    held, learned = (
        {pair.number for pair in parts[0]},
        {pair.number for batch in met[: len(seen)] for pair in batch},
    )
    assert learned == {pair.number for pair in parts[1]} and not learned & held
    for (labels,), batch in zip(seen, met):
        assert labels.tolist() == pytest.approx([pair.p for pair in batch])
    measured = sum(pair.number in held for batch in met[len(seen) :] for pair in batch)
    assert (
        measured
        == len(held)
        == common.load_checkpoint(out / "rm-spied.pt", "reward")[1]["held_out"]["n"]
    )


def test_ppo_asks_what_it_may_and_logs_the_true_grade_of_each_answer(out, monkeypatch):
    def grade(request, text):
        return crc32(repr((request.id, text)).encode()) % 100

    monkeypatch.setattr(train_ppo, "gold", lambda request, grade: grade)
    monkeypatch.setattr(train_ppo, "Grader", lambda world: SimpleNamespace(grade=grade))
    real, seen, tokenizer = train_ppo.roll_out, [], Tokenizer.load(out / "tokenizer.json")
    monkeypatch.setattr(train_ppo, "roll_out", lambda *a: (seen.append(real(*a)), seen[-1])[1])
    call(
        train_ppo.train,
        monkeypatch,
        "--out",
        out,
        "--updates",
        2,
        "--episodes",
        64,
        "--target-kl",
        1,
        "--name",
        "spied",
    )
    logged = common.read_jsonl(out / "train_ppo-spied.jsonl")
    for (requests, _, completions), row in zip(seen, logged, strict=True):
        assert all(split_of(r.topic) == UNTRAINED and not held_out(r.phrasing.id) for r in requests)
        texts = [
            tokenizer.decode(c.ids).strip() if c.stop_reason == "stop" else "" for c in completions
        ]
        assert row["true"] == pytest.approx(sum(map(grade, requests, texts)) / 64, abs=1e-4)
        assert row["length"] == pytest.approx(sum(len(c.ids) for c in completions) / 64, abs=1e-4)
    assert logged[1]["beta"] == pytest.approx(
        0.8 * logged[0]["beta"], abs=1e-4
    )  # hardly moved: the pull is eased
