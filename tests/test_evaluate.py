"""evaluate.py: what results.json holds, what is measured, and what is refused before it is."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import evaluate
from minicai.exam import Exam
from minicai.files import load_policy, read_json, read_jsonl, write_json, write_jsonl
from minicai.metrics import rate, wilson
from minicai.report import METRICS, lookup, paired
from minicai.reward import RewardModel
from minicai.run import ROOT, SIZES
from minicai.splits import held_out, split_of
from minicai.world.content import TECHNIQUES, World
from minicai.world.grader import OUTCOMES
from minicai.world.requests import PLAIN, TYPES

STAGES = ["base", "sft", "dpo", "ppo", "round1"]


@pytest.fixture(scope="module")
def results(smoke):
    return read_json(smoke / "results.json", {})


def every_rate(value):
    """All rates in a value, at any depth."""
    if isinstance(value, dict) and {"rate", "k", "n", "lo", "hi"} <= value.keys():
        yield value
    elif isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from every_rate(item)


# --- what a finished run holds ---


def test_results_keep_the_keys_that_others_read(results):
    assert results["schema"] == 2 and results["preset"] == "smoke" and results["seed"] == 0
    asked = results["exam"]["questions"]
    assert results["exam"] == dict(split="test", n=SIZES["eval_n"][0], seed=0, questions=asked)
    assert len(asked) == 16
    assert results["decoding"] == dict(temperature=0, max_new_tokens=128)
    assert isinstance(results["hardware"], str) and isinstance(results["commit"], str)
    assert [stage["name"] for stage in results["stages"]] == STAGES
    for stage in results["stages"]:
        for key in (
            "under_refusal over_refusal ambiguous_handled steps_correct rude preachy fabrication "
            "known_accuracy garbled under_refusal_disguised over_refusal_disguised"
        ).split():
            assert {"rate", "k", "n", "lo", "hi"} <= stage[key].keys()
        assert set(stage["by_type"]) == set(PLAIN)
        assert all(set(outcomes) == set(OUTCOMES) for outcomes in stage["by_type"].values())
        assert set(stage["jailbreak"]) == {*TECHNIQUES, "held_out", "seen"}
        assert (
            set(stage["jailbreak"]["held_out"]) == set(stage["jailbreak_benign"]) == {*TECHNIQUES}
        )
        assert 0 <= stage["ece"] <= 1 and stage["mean_tokens"] > 0
        assert not {"hash", "commit", "hardware", "guard", "every_fourth"} & stage.keys()
    judged = {"accuracy", "swap_consistency", "ece", "always_a", "length_alone", "reliability"}
    assert judged <= results["judge_audit"].keys()
    assert {"accuracy", "own_accuracy", "agrees_with_labels"} <= results["reward_model"].keys()
    assert {"critique_right", "harmful_revised", "legitimate_kept"} <= results["skills"].keys()


def test_every_rate_is_a_count_with_its_interval(results):
    found = list(every_rate(results))
    assert len(found) > 400
    for r in found:
        assert 0 <= r["k"] <= r["n"] and 0 <= r["lo"] <= r["hi"] <= 1
        if r["n"] == 0:
            assert r["rate"] is None
            continue
        assert r["rate"] == round(r["k"] / r["n"], 4)
        lo, hi = wilson(r["k"], r["n"])  # topics can only widen it
        assert r["lo"] <= lo + 1e-4 and r["hi"] >= hi - 1e-4
    for stage in results["stages"]:
        for key, *_ in METRICS:
            assert 0 <= (lookup(stage, key)["rate"] or 0) <= 1, key
        for outcomes in stage["by_type"].values():
            assert len({o["n"] for o in outcomes.values()}) == 1
            assert sum(o["k"] for o in outcomes.values()) == outcomes["other"]["n"]


def test_the_transcripts_have_the_questions_behind_the_rates(results, smoke):
    logs = {name: read_jsonl(smoke / "transcripts" / f"{name}.jsonl") for name in STAGES}
    for stage in results["stages"]:
        rows = logs[stage["name"]]
        harmful = [row["outcome"] for row in rows if row["set"] == "harmful"]
        found = stage["under_refusal"]
        assert (harmful.count("complied"), len(harmful)) == (found["k"], found["n"])
        benign = [row["outcome"] for row in rows if row["set"].endswith(" benign")]
        found = stage["over_refusal_disguised"]
        assert (benign.count("refused"), len(benign)) == (found["k"], found["n"])
        assert {row["verdict"] for row in rows} <= {"good", "partly", "bad"}
        assert all(row["verdict"] == "bad" for row in rows if row["outcome"] == "other")
        assert [sample["set"] for sample in stage["samples"]] == list(evaluate.SAMPLES)
        for sample in stage["samples"]:
            assert sample == next(row for row in rows if row["set"] == sample["set"])
    questions = [[(row["set"], row["turns"]) for row in rows] for rows in logs.values()]
    assert all(asked == questions[0] for asked in questions)
    assert results["paired"] == paired(logs)
    assert {(row["before"], row["after"]) for row in results["paired"]} == {
        ("base", "sft"),
        ("sft", "dpo"),
        ("sft", "ppo"),
        ("dpo", "round1"),
    }
    skills = read_jsonl(smoke / "transcripts" / "skills.jsonl")
    assert all(held_out(row["wording"]) for row in skills)
    assert len(skills) >= results["skills"]["critique_right"]["n"] == 2 * SIZES["eval_n"][0]


def test_what_other_scripts_left_is_in_the_results(results, smoke):
    assert results["judge_audit"] == read_json(smoke / "judge.json", {})
    assert results["redteam"] == read_json(smoke / "redteam.json", {})
    log = read_jsonl(smoke / "train_ppo.jsonl")
    curve = [{key: row[key] for key in ("kl", "proxy", "true")} for row in log]
    assert results["ppo_curves"] == dict(ppo=curve) and curve
    logs = "base dpo ppo rm round1 sft sft-round1".split()
    assert list(results["training"]) == logs
    assert results["training"]["ppo"] == [
        {key: row[key] for key in ("step", "proxy", "true", "kl")} for row in log
    ]
    assert set(results["seconds"]) >= {"train_base", "revise", "train_ppo", "train_dpo 1"}
    assert all(seconds > 0 for seconds in results["seconds"].values())
    chains = {chain["id"]: chain for chain in read_jsonl(smoke / "revisions.jsonl")}
    for chain in results["chain"]:
        assert chain == chains[chain["id"]] | dict(requests=chain["requests"])
        assert chain["responses"][0] != chain["responses"][-1] and all(chain["requests"])
    revised = {c["type"] for c in chains.values() if c["responses"][0] != c["responses"][-1]}
    assert [chain["type"] for chain in results["chain"]] == [t for t in TYPES if t in revised]


def test_the_run_ends_with_its_table_and_its_report(results, smoke):
    text, written = ((smoke / name).read_text() for name in ("stdout.txt", "report.html"))
    for part in ("under-refusal", "the base as a critic", "A filter of", "the same requests:"):
        assert part in text
    assert written.startswith("<!DOCTYPE html>") and "SL-CAI against base" in written


# --- measuring again ---


@pytest.fixture
def replayed(monkeypatch, results, smoke):
    """Measuring a stage gives what the smoke run measured; a list of what was measured."""
    stages, measured = {stage["name"]: stage for stage in results["stages"]}, []

    def measure_stage(path, exam, args):
        measured.append(path.stem)
        return stages[path.stem], read_jsonl(smoke / "transcripts" / f"{path.stem}.jsonl")

    def audit(*args):
        measured.append("audit")
        return results["skills"], []

    monkeypatch.setattr(evaluate, "measure_stage", measure_stage)
    monkeypatch.setattr(evaluate, "audit_base", audit)
    monkeypatch.setattr(evaluate, "audit_rm", lambda *a: results["reward_model"])
    monkeypatch.setattr(evaluate, "commit", lambda: results["commit"])
    monkeypatch.setattr(evaluate, "write_page", lambda results, logs, path: path.touch())
    return measured


def test_nothing_of_an_earlier_exam_is_left_in_the_results(call, copy, replayed, results, capsys):
    out = copy()
    (out / "round1.pt").unlink(), (out / "rm.pt").unlink(), (out / "judge.json").unlink()
    call(evaluate.evaluate, "--out", out)
    found = read_json(out / "results.json", {})
    assert "results.json will no longer hold round1; to add" in capsys.readouterr().out
    assert replayed == ["base", "audit", "sft", "dpo", "ppo"]
    assert found["stages"] == results["stages"][:-1]
    assert found["paired"] == [row for row in results["paired"] if row["after"] != "round1"]
    assert not {"reward_model", "judge_audit"} & found.keys()
    same = ("exam", "decoding", "keyword_filter", "redteam", "skills", "ppo_curves", "chain")
    assert {key: found[key] for key in same} == {key: results[key] for key in same}


def test_results_are_written_after_every_stage(call, copy, replayed, monkeypatch):
    out, stage_of = copy("base.pt", "sft.pt", "dpo.pt"), evaluate.measure_stage

    def killed(path, exam, args):
        if path.stem == "dpo":
            raise KeyboardInterrupt
        return stage_of(path, exam, args)

    monkeypatch.setattr(evaluate, "measure_stage", killed)
    with pytest.raises(KeyboardInterrupt):
        call(evaluate.evaluate, "--out", out)
    found = read_json(out / "results.json", {})
    assert [stage["name"] for stage in found["stages"]] == ["base", "sft"]
    assert found["skills"] and {row["after"] for row in found["paired"]} == {"sft"}
    assert (out / "transcripts" / "sft.jsonl").exists()


def test_other_checkpoints_are_measured_into_a_file_of_their_own(
    call, copy, replayed, smoke, tmp_path
):
    names = ["base.pt", "judge.json", "results.json", "rm.pt", "sft.pt"]
    out, there = copy(*names), tmp_path / "new" / "there.json"
    call(evaluate.evaluate, smoke / "sft.pt", smoke / "dpo.pt", "--out", out, "--results", there)
    found = read_json(there, {})
    assert replayed == ["sft", "dpo"] and "reward_model" not in found and "skills" not in found
    assert [stage["name"] for stage in found["stages"]] == ["sft", "dpo"]
    assert {(row["before"], row["after"]) for row in found["paired"]} == {("sft", "dpo")}
    assert (tmp_path / "new" / "there.html").exists()
    assert len(read_jsonl(tmp_path / "new" / "transcripts-there" / "dpo.jsonl")) > 50
    assert sorted(path.name for path in out.iterdir() if path.name != ".lock") == names
    assert (out / "results.json").read_bytes() == (smoke / "results.json").read_bytes()


def test_another_checkpoint_stands_beside_the_stages_measured_before(call, copy, refuses, smoke):
    out = copy("dpo.pt", "results.json")
    shutil.copytree(smoke / "transcripts", out / "transcripts")
    shutil.copy2(out / "dpo.pt", out / "dpo-mine.pt")
    before = read_json(smoke / "results.json", {})
    for _ in range(2):  # measured again, it takes its own place
        call(evaluate.evaluate, out / "dpo-mine.pt", "--out", out)
        found = read_json(out / "results.json", {})
        *others, mine = found["stages"]
        assert others == before["stages"] and mine["name"] == "dpo-mine"
        [dpo] = [stage for stage in others if stage["name"] == "dpo"]
        assert {key for key in mine if mine[key] != dpo[key]} == {"name", "checkpoint"}
        assert all(found[key] == before[key] for key in ("skills", "reward_model"))
        rows = [r for r in found["paired"] if r["after"] != "dpo-mine"]
        assert rows == before["paired"]
        mine = [r | dict(after="dpo") for r in found["paired"] if r["after"] == "dpo-mine"]
        assert mine and mine == [r for r in rows if r["after"] == "dpo"]
    names = {path.name for path in (smoke / "transcripts").iterdir()}
    assert {path.name for path in (out / "transcripts").iterdir()} == names | {"dpo-mine.jsonl"}
    assert 'data-stage="dpo-mine"' in (out / "report.html").read_text()

    shutil.copytree(ROOT / "world", out / "other" / "world")
    acts = (out / "other" / "world" / "acts.jsonl").read_text()
    (out / "other" / "world" / "acts.jsonl").write_text(
        acts.replace('"steps": ["', '"steps": ["gently ')
    )
    (out / "mine").mkdir()
    shutil.copy2(out / "dpo-mine.pt", out / "mine" / "dpo.pt")
    for options in (("--eval-n", 3), ("--world", out / "other" / "world")):
        said = refuses(evaluate.evaluate, out / "dpo-mine.pt", "--out", out, *options)
        assert "results.json is of another exam; give the same" in said
    said = refuses(evaluate.evaluate, out / "mine" / "dpo.pt", "--out", out)
    assert f"has the name of {out / 'dpo.pt'}; rename it" in said
    call(evaluate.evaluate, out / "dpo.pt", "--out", out)  # it keeps its place
    assert read_json(out / "results.json", {})["stages"][:-1] == before["stages"]
    said = refuses(evaluate.evaluate, out / "dpo-mine.pt", "--out", out, "--eval-n", 3)
    assert "results.json is of another exam; give the same options, or --results NEW.json" in said
    (out / "results.json").write_text(json.dumps(before | dict(stages=[7])))
    said = refuses(evaluate.evaluate, out / "dpo-mine.pt", "--out", out)
    assert "results.json is not whole" in said and "without a checkpoint" in said


def test_one_checkpoint_from_the_exam_to_the_page(call, copy, tmp_path, capsys):
    out = copy("base.pt")
    shutil.copy2(out / "base.pt", out / "mine.pt")
    options = ("--results", tmp_path / "r.json", "--eval-n", 2, "--split", "demo", "--exam-seed", 5)
    call(evaluate.evaluate, out / "mine.pt", "--out", out, *options)
    found = read_json(tmp_path / "r.json", {})
    asked = Exam(World(ROOT / "world"), 2, 5, "demo").fingerprint()
    assert found["exam"] == dict(split="demo", n=2, seed=5, questions=asked)
    assert "skills" not in found
    [stage] = found["stages"]
    assert (stage["name"], stage["checkpoint"]) == ("mine", "mine.pt")
    assert stage["under_refusal"]["n"] == 2
    rows = read_jsonl(tmp_path / "transcripts-r" / "mine.jsonl")
    assert stage["samples"][0] == next(row for row in rows if row["set"] == "harmful")
    assert {split_of(row["topic"]) for row in rows} == {"demo"}
    assert not found["chain"] and not found["redteam"] and not found["ppo_curves"]
    written = (tmp_path / "r.html").read_text()
    assert "from the demo split" in written and 'data-stage="mine"' in written
    assert f"{tmp_path / 'r.json'}, {tmp_path / 'r.html'}; demo split" in capsys.readouterr().out


@pytest.mark.parametrize("finished, warning", [(0, True), (1, False)])
def test_a_checkpoint_that_finishes_no_answer_is_a_warning(monkeypatch, capsys, finished, warning):
    row = dict(set="harmful", answer=None)
    scores = dict(finished=rate([1] * finished + [0] * 5))
    monkeypatch.setattr(evaluate, "load_policy", lambda *a: (None, None))
    monkeypatch.setattr(evaluate, "measure", lambda *a: (scores, [row, row]))
    found, rows = evaluate.measure_stage(
        Path("x/sft.pt"), SimpleNamespace(sets={}), SimpleNamespace(device="cpu")
    )
    assert found == dict(name="sft", checkpoint="sft.pt", samples=[row]) | scores
    assert ("WARNING: x/sft.pt finished no answer" in capsys.readouterr().out) == warning


def test_the_reward_model_is_audited_on_samples_of_the_fine_tuned_model(monkeypatch, smoke):
    sft, (reward, _, extra) = load_policy(smoke / "sft.pt")[0], RewardModel.load(smoke / "rm.pt")

    def audit_reward(policy, model, tokenizer, exam, n, seed):
        assert torch.equal(policy.embed.weight, sft.embed.weight)
        assert torch.equal(model.score.weight, reward.score.weight)
        assert (exam, n, seed) == ("exam", 7, 5)
        return dict(accuracy=0.75)

    monkeypatch.setattr(evaluate, "audit_reward", audit_reward)
    args = SimpleNamespace(out=smoke, device="cpu", eval_n=7, exam_seed=5)
    found = evaluate.audit_rm("exam", args)
    labels = extra["held_out"]
    assert found == dict(accuracy=0.75, test_accuracy=0.75, agrees_with_labels=labels) and labels


def test_the_page_is_written_again_without_a_model(call, copy, monkeypatch, smoke, capsys):
    out = copy("results.json")
    shutil.copytree(smoke / "transcripts", out / "transcripts")
    monkeypatch.setattr(evaluate, "load_policy", lambda *a: pytest.fail("a model is loaded"))
    call(evaluate.evaluate, "--out", out, "--report", "--world", "nowhere")
    assert (out / "report.html").read_bytes() == (smoke / "report.html").read_bytes()
    assert (out / "results.json").read_bytes() == (smoke / "results.json").read_bytes()
    assert capsys.readouterr().out.strip() == str(out / "report.html")


# --- what is refused, before anything is measured ---


@pytest.fixture
def unmeasured(monkeypatch):
    monkeypatch.setattr(evaluate, "measure_stage", lambda *a: pytest.fail("the exam has begun"))


@pytest.mark.parametrize(
    "options, said",
    [
        ((), "holds no checkpoint; run pipeline.py or train_base.py"),
        (("{smoke}/none.pt", "--results", "{out}/r.json"), "none.pt is not a file; name a"),
        (("{smoke}", "--results", "{out}/r.json"), "smoke.* is not a file"),
        (
            ("{smoke}/sft.pt", "{smoke}/sft.pt", "--results", "{out}/r.json"),
            "two checkpoints are named sft; rename one",
        ),
        (("{smoke}/sft.pt", "--results", "{out}/r.txt"), "name a file that ends in .json"),
        (("--report",), "results.json does not exist"),
        (("--exam-seed", "-1"), "argument --exam-seed: '-1' is not"),
        (("--eval-n", "0"), "argument --eval-n: '0' is not a whole number from 1 on"),
    ],
)
def test_what_cannot_be_measured_is_refused_in_one_sentence(
    refuses, unmeasured, smoke, tmp_path, options, said
):
    words = (word.format(smoke=smoke, out=tmp_path) for word in options)
    with pytest.raises(AssertionError, match=said):
        raise AssertionError(refuses(evaluate.evaluate, "--out", tmp_path, *words))
    assert {path.name for path in tmp_path.iterdir()} <= {".lock"}


def test_results_of_all_stages_are_not_replaced_by_those_of_another_folder(
    refuses, unmeasured, copy, smoke
):
    out = copy("base.pt", "results.json")
    refuses(evaluate.evaluate, "--out", out, smoke / "sft.pt")
    refuses(evaluate.evaluate, "--out", out, out / "base.pt", smoke / "sft.pt")
    assert (out / "results.json").read_bytes() == (smoke / "results.json").read_bytes()


def test_the_folder_of_the_results_is_made_before_anything_is_measured(refuses, tmp_path):
    (tmp_path / "broken.pt").touch()
    where = ("--out", tmp_path, "--results", tmp_path / "new" / "r.json")
    said = refuses(evaluate.evaluate, tmp_path / "broken.pt", *where)
    assert "broken.pt is not a checkpoint" in said and (tmp_path / "new").is_dir()


def test_a_constitution_without_held_out_wordings_is_refused_before_the_exam(
    refuses, unmeasured, copy, tmp_path
):
    rows = json.load(open("constitution.json"))["principles"]
    rows = [r | dict(wordings=r["wordings"][:1]) for r in rows if not held_out(f"{r['id']}/0")]
    path = tmp_path / "c.json"
    write_json(path, dict(principles=rows))
    said = refuses(evaluate.evaluate, "--out", copy("base.pt"), "--constitution", path)
    assert "no held-out wording" in said


@pytest.mark.parametrize("stages", [5, "base", [5], [], [dict(name="base")]])
def test_results_of_another_shape_are_not_reported(refuses, tmp_path, stages):
    write_json(tmp_path / "results.json", dict(stages=stages))
    said = refuses(evaluate.evaluate, "--out", tmp_path, "--report")
    assert "results.json is not whole" in said and "then evaluate.py" in said


def test_a_training_log_of_another_shape_is_named_with_its_line(refuses, unmeasured, copy):
    out = copy("base.pt")
    write_jsonl(out / "train_ppo.jsonl", [dict(step=1, kl=0.5, proxy=1.0)])
    said = refuses(evaluate.evaluate, "--out", out)
    assert "train_ppo.jsonl:1 has no field 'true'" in said
