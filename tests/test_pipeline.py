"""The scripts together: their order, what never reaches a training, and how they fail."""

import json
import re
import shutil
import subprocess
import sys
from types import SimpleNamespace

import pytest

import chat
import evaluate
import label
import minicai.run
import pipeline
import redteam
import revise
import train_base
import train_dpo
import train_ppo
import train_rm
import train_sft
from minicai.files import UserError, read_json, read_jsonl, write_json
from minicai.run import ROOT
from minicai.splits import held_out, split_of
from minicai.world.content import World

NAMES = [name for name, _, _ in pipeline.STEPS]
ROUND = ["redteam 1", "revise 1", "train_sft 1", "label 1", "train_dpo 1", "redteam 2"]


def test_the_pipeline_prints_its_commands_and_what_each_took(smoke):
    text, steps = (smoke / "stdout.txt").read_text(encoding="utf-8"), [*NAMES, *ROUND, "evaluate"]
    run = re.findall(r"^\$ python (\w+)\.py", text, re.M)
    assert run == [name.split()[0] for name in steps]
    *_, minutes, last = text.splitlines()
    assert minutes.startswith("minutes: train_base 0.0, revise 0.0, ")
    assert last == f"open {smoke / 'report.html'} in a browser"
    assert list(read_json(smoke / "pipeline.json", {})["seconds"]) == steps


# --- splits ---------------------------------------------------------------------------------------

TRAINING = {  # file -> split of the acts and names in it
    "revisions": "train",
    "helpful": "train",
    "preferences": "demo",
    "revisions-round1": "demo",
    "preferences-round1": "demo",
}


@pytest.mark.parametrize("name", TRAINING)
def test_no_test_act_and_no_held_out_wording_is_in_a_training_file(smoke, name):
    world, rows = World(ROOT / "world"), read_jsonl(smoke / f"{name}.jsonl")
    topics = {act.id for act in world.acts} | {fact.id for fact in world.facts}
    wordings = {w.id for part in (world.phrasings, world.contexts, world.framings) for w in part}
    hidden = [act.act for act in world.acts if split_of(act.id) == "test"]
    used = set()
    for row in rows:
        parts = row["request"].split("/")
        assert {split_of(part) for part in parts if part in topics} <= {TRAINING[name]}
        assert any(part in topics or "fresh-" in part for part in parts)
        assert not any(act in turn for act in hidden for turn in row["turns"])
        used |= {part for part in parts if part in wordings} | set(row.get("principles", ()))
        used |= {row["principle"]} if "principle" in row else set()
    assert len(used) > 10 and not any(map(held_out, used))


def test_no_attack_that_may_be_trained_on_holds_a_test_act_or_a_held_out_wording(smoke):
    rows = read_jsonl(smoke / "redteam.jsonl")
    assert rows and {row["target"] for row in rows} == {"dpo", "round1"}
    for row in rows:
        if row["trainable"]:
            assert row["success"] and row["split"] != "test" and not held_out(row["framing"])


# --- the record of finished steps -----------------------------------------------------------------


@pytest.fixture
def steps(monkeypatch, tmp_path, call):
    """steps(options...) -> the steps that the pipeline runs; a name in `fails` ends it."""
    artifacts = {(n.split()[0], *own): (n, a) for n, own, a in all_steps(tmp_path)}
    artifacts["evaluate",] = "evaluate", "results.json"

    def run(*options, fails=None) -> list[str]:
        made = []

        def run_script(name, args, *own):
            step, artifact = artifacts[name, *own]
            made.append(step)
            if step == fails:
                raise UserError(f"{step} ended")
            (tmp_path / artifact).touch()
            return 60.0

        monkeypatch.setattr(pipeline, "run_script", run_script)
        try:
            call(pipeline.pipeline, "--out", tmp_path, *options)
        except UserError as error:
            assert str(error) == f"{fails} ended"
        return made

    return run


def all_steps(out):
    return pipeline.STEPS + pipeline.round_steps(9, out)


def test_the_pipeline_goes_on_after_the_last_finished_step(steps, capsys):
    assert steps(fails="label") == [*NAMES[:4]]
    assert steps() == [*NAMES[3:], "evaluate"]
    assert steps() == ["evaluate"], "no step is made again"
    assert "train_base: done before, in 1.0 minutes" in capsys.readouterr().out
    assert steps("--rounds", 1) == [*ROUND, "evaluate"]


def test_what_comes_after_a_step_that_runs_again_runs_again_too(steps, tmp_path):
    steps("--rounds", 1)
    (tmp_path / "dpo.pt").unlink()
    assert steps() == [*NAMES[4:], "evaluate"]
    assert steps("--rounds", 1) == [*ROUND, "evaluate"], "the round was made from the old stage"
    assert steps("--rounds", 1) == ["evaluate"]


def test_a_step_that_failed_is_not_taken_for_done_though_its_old_file_is_there(steps, tmp_path):
    steps()
    (tmp_path / "revisions.jsonl").unlink()
    assert steps(fails="train_sft") == ["revise", "train_sft"] and (tmp_path / "sft.pt").exists()
    assert steps() == [*NAMES[2:], "evaluate"]


def test_a_pipeline_of_other_options_is_refused(steps, tmp_path, refuses):
    steps()
    said = refuses(pipeline.pipeline, "--out", tmp_path, "--seed", 1)
    assert "is of a run with other options; delete it or name another --out" in said
    said = refuses(pipeline.pipeline, "--out", tmp_path, "--preset", "full")
    assert "was made with --preset smoke; give that, or name another --out" in said
    record = read_json(tmp_path / "pipeline.json", {})
    write_json(tmp_path / "pipeline.json", record | dict(seconds=dict(train_base="long")))
    said = refuses(pipeline.pipeline, "--out", tmp_path)
    assert "is of a run with other options; delete it or name another --out" in said


def test_what_is_missing_is_said_before_anything_is_made(refuses, tmp_path, monkeypatch):
    monkeypatch.setattr(pipeline, "run_script", lambda *_: pytest.fail("a step has begun"))
    whole = json.loads((ROOT / "constitution.json").read_text())["principles"]
    harmless = [p for p in whole if p["family"] != "harmlessness"]
    first = [p | dict(wordings=p["wordings"][:1]) for p in whole if not held_out(f"{p['id']}/0")]
    kept = next(p for p in whole if p["family"] == "necessity")
    name = next(f"n{i}" for i in range(100) if held_out(f"n{i}/0"))
    hidden = [p for p in whole if p["family"] == "harmlessness"]
    hidden.append(kept | dict(id=name, wordings=kept["wordings"][:1]))
    path = tmp_path / "c.json"
    for principles, words in (
        (harmless, "has no seen wording of harmlessness"),
        (first, "has no held-out wording to audit with"),
        (hidden, "all wordings of necessity are held out"),
    ):
        write_json(path, dict(principles=principles))
        out, more = tmp_path / "out", ["--constitution", path, "--rounds", 1]
        assert words in refuses(pipeline.pipeline, "--out", out, *more)
    assert not (out / "pipeline.json").exists()


@pytest.mark.parametrize(
    "name, old, new, words",
    [
        (
            "replies",
            "I am not able to help anyone with this",
            "My lips are sealed",
            "reads '.*' as other, not refused",
        ),
        ("replies", " {steps}.", " so.", "reads '.*' as other, not complied"),
        ("phrasings", '"draws": null', '"draws": "rude"', "no seen phrasing without a tone"),
    ],
)
def test_a_world_that_would_be_graded_wrongly_ends_at_once(tmp_path, name, old, new, words):
    shutil.copytree(ROOT / "world", tmp_path / "mine")
    path = tmp_path / "mine" / f"{name}.jsonl"
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))
    args = SimpleNamespace(world=tmp_path / "mine", world_share=1.0, more_acts=False, rounds=0)
    args.constitution = ROOT / "constitution.json"
    with pytest.raises(UserError, match=words):
        pipeline.check(args)


def test_a_step_that_fails_ends_the_pipeline_with_its_sentence(copy):
    """In processes of their own: the step may write where the pipeline does."""
    out = copy()
    (out / "round1.pt").write_bytes(b"garbage")
    command = [sys.executable, ROOT / "pipeline.py", "--preset", "smoke", "--device", "cpu"]
    done = subprocess.run([*command, "--out", out], capture_output=True, text=True)
    step, whole = done.stderr.splitlines()[-2:]
    assert done.returncode == 2 and "train_ppo: done before" in done.stdout
    assert step.startswith("evaluate.py: ") and "round1.pt is not a checkpoint" in step
    assert whole.startswith("pipeline.py: evaluate.py ended with exit code 2; fix what it says")


# --- inputs ---------------------------------------------------------------------------------------


TRAININGS = [s.train for s in (train_base, train_sft, train_dpo, train_rm, train_ppo)]


class Continued(Exception):
    pass


@pytest.mark.parametrize(
    "script, newer, options, stop",
    [
        (train_sft.train, "base.pt", (), "load_policy"),
        (train_sft.train, "dpo.pt", ("--round", 1), "load_policy"),
        (label.label, "base.pt", (), "load_policy"),
        (label.label, "dpo.pt", ("--round", 1), "load_policy"),
        (train_dpo.train, "sft.pt", (), "load_policy"),
        (train_rm.train, "sft.pt", (), "load_policy"),
        (train_ppo.train, "sft.pt", (), "RewardModel"),
        (revise.revise, "dpo.pt", ("--round", 1), "read_jsonl"),
    ],
)
def test_an_input_made_from_an_older_file_only_warns(
    copy, call, capsys, monkeypatch, script, newer, options, stop
):
    out, module = copy(), sys.modules[script.__module__]

    def go_on(*_, **__):
        raise Continued

    (out / newer).touch()
    monkeypatch.setattr(
        module, stop, SimpleNamespace(load=go_on) if stop == "RewardModel" else go_on
    )
    with pytest.raises(Continued):
        call(script, "--out", out, *options)
    said = capsys.readouterr().err
    assert said.count(f"may be out of date: {newer}, from which it was made, is newer") == 1


@pytest.mark.parametrize("script", TRAININGS, ids=lambda script: script.__module__)
def test_a_diverged_training_stops_with_its_remedy_and_keeps_the_old_checkpoint(
    copy, refuses, monkeypatch, script
):
    out, name = copy(), script.__module__.removeprefix("train_")
    monkeypatch.setitem(minicai.run.SIZES, "documents", (60,) * 3)
    monkeypatch.setitem(minicai.run.SIZES, "requests", (4,) * 3)
    old = (out / f"{name}.pt").read_bytes()
    said = refuses(script, "--out", out, "--lr", 1e30)
    assert re.fullmatch(
        rf"train_{name}.py: the (loss|gradient) is .* at step \d+: .*lower --lr.*", said
    )
    assert (out / f"{name}.pt").read_bytes() == old and not list(out.glob("*.tmp"))


LR, NAME, SHARE = "is not a number above 0", "letters, digits", "is not a share from 0 to below 1"
NAMED = [revise.revise, label.label, *TRAININGS[1:]]
ROUNDS = [revise.revise, label.label, train_sft.train, train_dpo.train]
BAD = [  # (script, what is wrong, words in the sentence); {out} is a finished run, {tmp} is empty
    (pipeline.pipeline, "--no-such-option", "unrecognized arguments"),
    (pipeline.pipeline, "--rounds 10", "invalid choice: 10"),
    (pipeline.pipeline, "--out {tmp} --world {out}/nowhere", "nowhere is not a folder"),
    (train_base.train, "--out {tmp} --constitution {out}/nowhere", "nowhere does not exist"),
    (train_base.train, "--documents 0", "is not a whole number from 1 on"),
    (revise.revise, "--out {tmp}", "base.pt does not exist; run the step that writes it"),
    (revise.revise, "--seed -1", "is not a whole number from 0 to"),
    (revise.revise, "--seed " + "9" * 30, "is not a whole number from 0 to"),
    (revise.revise, "--without kindness", "--without kindness: "),
    (label.label, "--out {tmp}", "sft.pt does not exist"),
    (label.label, "--judge nobody", "invalid choice: 'nobody'"),
    (train_dpo.train, "--loss no-such-loss", "invalid choice: 'no-such-loss'"),
    (train_dpo.train, "--beta inf", LR),
    (train_dpo.train, "--data {out}/gone.jsonl", "gone.jsonl does not exist"),
    (train_rm.train, "--data {out}/half.jsonl", "half.jsonl:1 is not valid JSON"),
    (train_rm.train, "--data {out}/empty.jsonl", "holds no comparison to train on (0 rows"),
    (train_sft.train, "--data {out}/empty.jsonl", "holds no chain; run revise.py"),
    (train_sft.train, "--data {out}", "cannot be read"),
    (train_sft.train, "--world {out}/nowhere", "nowhere is not a folder"),
    (train_ppo.train, "--reward {out}/sft.pt", "holds a 'policy' model, not a 'reward' one"),
    (train_ppo.train, "--reward {out}/garbage.pt", "garbage.pt is not a checkpoint"),
    (train_ppo.train, "--beta -1", "is not a number from 0 on"),
    (chat.chat, "--checkpoint {out}/rm.pt", "holds a 'reward' model, not a 'policy' one"),
    (chat.chat, "--checkpoint {out}/results.json", "results.json is not a checkpoint"),
    (chat.chat, "--constitution {out}/results.json", "has no list of principles"),
    (chat.chat, "--guard 0", "is not a probability above 0"),
    (chat.chat, "--stages --checkpoint {out}/sft.pt", "--stages shows every stage as it is; leave"),
    (chat.chat, "--stages --guard", "--stages shows every stage as it is; leave out"),
    (chat.chat, "--stages --helpful-refusals", "--stages shows every stage as it is; leave"),
    (chat.chat, "--stages --out {tmp}", "holds no stage; run pipeline.py"),
    (evaluate.evaluate, "--out {tmp}", "holds no checkpoint; run pipeline.py"),
    (redteam.redteam, "--mode templates --out {tmp}", "base.pt does not exist"),
    *((script, "--lr 0", LR) for script in TRAININGS),
    *((script, "--lr nan", LR) for script in TRAININGS),
    *((script, "--helpful-fraction 1", SHARE) for script in TRAININGS[1:4]),
    *((script, "--name round1", NAME) for script in NAMED),
    *((script, "--name a/b", NAME) for script in NAMED),
    *((script, "--round 1 --name x", "exclude each other") for script in ROUNDS),
]


@pytest.fixture(scope="module")
def damaged(smoke, tmp_path_factory):
    """A finished run with damaged files beside it. Bad input never changes it."""
    out = shutil.copytree(smoke, tmp_path_factory.mktemp("damaged") / "out")
    (out / "garbage.pt").write_bytes(b"PK\x03\x04 cut off")
    (out / "empty.jsonl").touch()
    (out / "half.jsonl").write_text('{"id": 0, "kind": "ai", "tur')
    return out


def stamps(folder) -> dict:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.name != ".lock"}


@pytest.mark.parametrize(
    "script, options, words", BAD, ids=[f"{s.__module__} {o[:40]}" for s, o, _ in BAD]
)
def test_bad_input_is_one_sentence_and_writes_nothing(
    damaged, refuses, tmp_path, script, options, words
):
    before, empty = stamps(damaged.parent), tmp_path / "empty"
    given = options.format(out=damaged, tmp=empty).split()
    said = refuses(script, "--out", damaged, *given)
    assert words in said and said.startswith(f"{script.__module__}.py: ")
    files = [path for path in stamps(empty) if path.is_file()]
    assert stamps(damaged.parent) == before and files == []
