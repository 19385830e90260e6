"""Other people's prompts in the scripts: what is measured, and that test prompts never train."""

import json
from types import SimpleNamespace

import pytest

import evaluate
import label
import revise
import train_dpo
import train_sft
from minicai import prompt_exam
from minicai.constitution import Constitution
from minicai.files import read_json, read_jsonl, write_json, write_jsonl
from minicai.metrics import rate, wilson
from minicai.prompt_exam import prompt_table, prompt_texts, scores_by_label
from minicai.prompts import read_prompts
from minicai.results import left_by_others
from minicai.run import ROOT
from minicai.splits import held_out

NATURAL = ROOT / "prompts" / "natural.jsonl"
PROMPTS = read_prompts(NATURAL)
HALVES = {half: {p.turns[0] for p in PROMPTS if p.split == half} for half in ("train", "test")}
ANSWERS = {  # label of a prompt -> what the models of the tests answer
    "harmful": "I'm sorry, but I can't help with that.",
    "ambiguous": "Here is how: take a spoon.",
    "safe": "Here is how: take a fork.",
}
LABEL = {p.turns[0]: p.label for p in PROMPTS}
STAGES = ["base", "sft"]
TEXTS = ("critique", "revision", "comparison")  # of a wording


def row(label, refusal, category="", harm=0.1, finished=True, **more) -> dict:
    found = dict(id="7", label=label, category=category, turns=("Who?",), answer="Me.")
    return found | dict(refusal=refusal, harm=harm, finished=finished) | more


# --- rates ---------------------------------------------------------------------------------------


def test_rates_count_refusals_harm_and_ends():
    rows = [
        row("harmful", "full_refusal", harm=None),
        row("harmful", "partial_refusal", harm=0.51),
        row("harmful", "compliance", harm=0.5),
        row("harmful", "compliance", harm=0.0),
        row("harmful", "none", finished=False),
    ]
    found = scores_by_label(rows)["harmful"]
    counts = {key: value["k"] for key, value in found.items() if key != "by_category"}
    assert counts == dict(
        refused=2, full_refusal=1, partial_refusal=1, compliance=2, harm=1, judged=4, finished=4
    )
    lo, hi = wilson(2, 5)
    assert found["refused"] == dict(rate=0.4, k=2, n=5, lo=round(lo, 4), hi=round(hi, 4))


def test_rates_are_by_label_and_category():
    rows = [row("unknown", "compliance"), row("safe", "full_refusal", category="b")]
    rows += [row("safe", "compliance", category=c) for c in ("a", "b", "")]
    found = scores_by_label(rows)
    assert list(found) == ["safe", "unknown"] and not found["unknown"]["by_category"]
    assert found["safe"]["refused"]["n"] == 4
    refused = {c: s["refused"] for c, s in found["safe"]["by_category"].items()}
    assert refused == dict(b=rate([True, False]), a=rate([False]))


def test_the_table_has_every_rate_with_its_interval_and_one_column_a_stage():
    rows = [row("safe", "full_refusal", category="a"), row("safe", "compliance", category="b")]
    rows.append(row("unknown", "compliance", category="c"))
    stages = [
        dict(name="base", labels=scores_by_label(rows)),
        dict(name="sft", labels=scores_by_label([*rows[1:], row("safe", "none", category="a")])),
    ]
    head, *lines = prompt_table(dict(stages=stages)).splitlines()
    assert head.split() == ["percent", "n", "base", "SL-CAI"]
    lo, hi = wilson(1, 2)
    cells = f"2 50.0 ({100 * lo:.0f}-{100 * hi:.0f}) 0.0 (0-{100 * wilson(0, 2)[1]:.0f})"
    assert lines[0].split("  ")[0] == "safe prompts: refused, in full or in part"
    assert lines[0].split()[-5:] == cells.split() and lines[6].startswith("  b: refused")
    assert len(lines) == 12 and len({len(line) for line in (head, *lines)}) == 1


def test_the_transcript_has_all_answers_to_a_prompt_together():
    rows = [
        row("safe", "partial_refusal", stage="base", category="a", answer="One\ntwo"),
        row("harmful", "none", "harmful", None, stage="base", turns=("What?", "That.", "Why?")),
        row("safe", "compliance", stage="sft", harm=0.987, finished=False, category="a"),
        row("harmful", "none", stage="sft", turns=("What?", "That.", "Why?"), answer=""),
    ]
    first, second = prompt_texts(rows, 2)
    assert first.split("\n>\n") == [
        "> safe, a (7)",
        "> **Person:** Who?",
        "> **base** (partial refusal, P(harm) 0.10): One\n> two",
        "> **SL-CAI** (compliance, P(harm) 0.99): Me. ...",
    ]
    assert "**Assistant:** That." in second and "(none, no verdict): Me." in second
    assert second.startswith("> harmful (7)\n")


# --- evaluate.py ---------------------------------------------------------------------------------


@pytest.fixture
def asked(monkeypatch):
    """(model, prompts it was asked, cases of the judge), in place of models that answer by label"""
    models, judged = {}, []
    tokenizer = SimpleNamespace(decode=lambda ids: ids)

    def sample(model, tokenizer, prompts, progress):
        models[model.name] = list(prompts)
        progress(len(prompts))
        return [
            SimpleNamespace(ids=f" {ANSWERS[LABEL[text]]}", stop_reason="stop") for text in prompts
        ]

    def p_breaks(model, tokenizer, turns, answers, wordings):
        judged.append((model.name, list(zip(turns, answers, wordings))))
        return [0.9 if "spoon" in text else None for text in answers]

    def load_policy(path, device):
        name = getattr(path, "stem", path)
        return SimpleNamespace(name=name, config=SimpleNamespace(block_size=0)), tokenizer

    monkeypatch.setattr(prompt_exam, "encode_prompt", lambda tokenizer, turns, size: turns[-1])
    monkeypatch.setattr(prompt_exam, "sample", sample)
    monkeypatch.setattr(prompt_exam, "p_breaks", p_breaks)
    monkeypatch.setattr(prompt_exam, "load_policy", load_policy)
    return models, judged


@pytest.fixture
def out(tmp_path):
    for name in ("base.pt", "sft.pt"):
        (tmp_path / name).touch()
    return tmp_path


def test_the_test_half_is_measured_by_the_rules_and_by_the_base(call, asked, out, capsys):
    call(evaluate.evaluate, "--out", out, "--prompts", NATURAL)
    models, judged = asked
    assert list(models) == ["base", "sft"] and models["base"] == models["sft"]
    assert set(models["sft"]) == HALVES["test"] and len(models["sft"]) == len(HALVES["test"])
    (critic, cases), (again, same) = judged
    assert critic == again == "base" and cases == same, "the same wordings for every stage"
    family = {w.id: w.family for w in Constitution(ROOT / "constitution.json").wordings}
    for turns, answer, wording in cases:
        assert answer == ANSWERS[LABEL[turns[-1]]]
        assert held_out(wording.id) and family[wording.id] == "harmlessness"
    assert len({wording.id for *_, wording in cases}) > 1

    found = read_json(out / "prompts-natural.json", {})
    assert (found["file"], found["split"]) == (str(NATURAL), "test")
    assert found["n"] == len(HALVES["test"]) and [s["name"] for s in found["stages"]] == STAGES
    for stage in found["stages"]:
        rates = {label: stage["labels"][label] for label in ANSWERS}
        assert [rates[label]["refused"]["rate"] for label in ANSWERS] == [1, 0, 0]
        assert [rates[label]["harm"]["rate"] for label in ANSWERS] == [0, 1, 0]
        types = "sensitive legitimate everyday dual_use_question fact".split()
        assert list(rates["safe"]["by_category"]) == types
    rows = read_jsonl(out / "prompts-natural.jsonl")
    assert len(rows) == 2 * found["n"] and {row["stage"] for row in rows} == set(STAGES)
    assert {row["harm"] for row in rows} == {0.9, None} and all(row["principle"] for row in rows)
    read = (out / "prompts-natural.md").read_text()
    assert all(text.split("\n")[0] in read for text in HALVES["test"])
    said = capsys.readouterr().out
    assert (
        "WARNING" not in said
        and prompt_table(found) in said
        and f"{out / 'prompts-natural.md'}; test split" in said
    )


def test_answers_that_are_mostly_cut_off_are_warned_of(call, asked, out, capsys, monkeypatch):
    def sample(model, tokenizer, prompts, progress):
        ends = ["length" if i % 3 else "stop" for i in range(len(prompts))]
        return [SimpleNamespace(ids="Well", stop_reason=end) for end in ends]

    monkeypatch.setattr(prompt_exam, "sample", sample)
    call(evaluate.evaluate, "--out", out, "--prompts", NATURAL)
    said = capsys.readouterr().out
    assert f"{out / 'sft.pt'} finished less than half of its answers in 128 tokens" in said


def test_a_checkpoint_a_split_and_a_file_can_be_chosen(call, asked, out, tmp_path):
    for split, texts in HALVES.items():
        options = ("--prompts", NATURAL, "--split", split, "--results", tmp_path / "mine.json")
        call(evaluate.evaluate, out / "sft.pt", "--out", out, *options)
        assert set(asked[0]["sft"]) == texts and list(asked[0]) == ["sft"]
    call(evaluate.evaluate, out / "sft.pt", "--out", out, "--prompts", NATURAL, "--split", "whole")
    assert len(asked[0]["sft"]) == 240
    assert len(read_jsonl(tmp_path / "mine.jsonl")) == len(HALVES[split])
    assert read_json(tmp_path / "mine.json", {})["split"] == split


def test_a_checkpoint_is_measured_beside_the_others_and_never_over_other_prompts(
    call, refuses, asked, out, tmp_path
):
    (tmp_path / "a").mkdir(), (tmp_path / "b").mkdir()
    for folder, prompt in zip("ab", PROMPTS):
        (tmp_path / folder / "test.jsonl").write_text(json.dumps(dict(prompt=prompt.turns[0])))
    whole = ("--out", out, "--split", "whole", "--prompts")
    one, other = (tmp_path / folder / "test.jsonl" for folder in "ab")
    for name in ("sft", "base", "sft"):
        call(evaluate.evaluate, out / f"{name}.pt", *whole, one)
    found = read_json(out / "prompts-test-whole.json", {})
    assert [stage["name"] for stage in found["stages"]] == ["base", "sft"]
    assert [row["stage"] for row in read_jsonl(out / "prompts-test-whole.jsonl")] == ["base", "sft"]
    said = refuses(evaluate.evaluate, out / "sft.pt", *whole, other)
    assert "prompts-test-whole.json is of other prompts, another constitution or an older" in said
    assert read_json(out / "prompts-test-whole.json", {}) == found
    call(evaluate.evaluate, out / "sft.pt", *whole, other, "--results", out / "b.json")
    call(evaluate.evaluate, *whole, one)
    stages = read_json(out / "prompts-test-whole.json", {})["stages"]
    assert [stage["name"] for stage in stages] == STAGES
    (out / "prompts-test-whole.jsonl").write_text("")
    said = refuses(evaluate.evaluate, out / "sft.pt", *whole, one)
    assert "does not hold the answers of every stage" in said
    write_json(out / "prompts-test-whole.json", dict(found, stages=7))
    assert "is not whole" in refuses(evaluate.evaluate, out / "sft.pt", *whole, one)


def test_what_cannot_be_measured_is_refused(refuses, asked, out, tmp_path):
    here = ("--out", out, "--prompts")
    assert "does not exist" in refuses(evaluate.evaluate, *here, tmp_path / "nowhere.csv")
    said = refuses(evaluate.evaluate, *here, NATURAL, "--split", "demo")
    assert "--split demo is of acts; choose test, train or whole for --prompts" in said
    said = refuses(evaluate.evaluate, "--out", out, "--split", "whole")
    assert "--split whole is for --prompts; choose a split of the acts" in said
    rest = dict(id="a", family="honesty", wordings=[dict.fromkeys(TEXTS, "a")] * 9)
    write_json(tmp_path / "rest.json", dict(principles=[rest]))
    said = refuses(evaluate.evaluate, *here, NATURAL, "--constitution", tmp_path / "rest.json")
    assert "rest.json has no held-out wording of harmlessness; add some" in said
    (out / "base.pt").unlink(), (out / "sft.pt").unlink()
    assert "holds no checkpoint" in refuses(evaluate.evaluate, *here, NATURAL)
    assert not asked[0] and not list(out.glob("prompts-*"))


def test_the_results_of_the_stages_hold_those_on_prompts_too(tmp_path):
    constitution = Constitution(ROOT / "constitution.json")
    assert "prompt_files" not in left_by_others(tmp_path, constitution)
    for name in ("b", "a"):
        write_json(tmp_path / f"prompts-{name}.json", dict(file=name))
    assert left_by_others(tmp_path, constitution)["prompt_files"] == [
        dict(file="a"),
        dict(file="b"),
    ]


# --- the trainings -------------------------------------------------------------------------------


def test_real_prompts_go_from_the_base_to_the_table_and_test_prompts_never_train(copy, call):
    """Smoke models say gibberish, so what a chain ends in does not matter here."""
    out = copy("base.pt")
    call(revise.revise, "--out", out, "--prompts", NATURAL, "--requests", 20, "--name", "real")
    chains = read_jsonl(out / "revisions-real.jsonl")
    call(train_sft.train, "--out", out, "--data", out / "revisions-real.jsonl")
    call(label.label, "--out", out, "--prompts", NATURAL, "--comparisons", 20)
    compared = [r for r in read_jsonl(out / "preferences.jsonl") if r["kind"] == "ai"]
    for found in (chains, compared):
        assert 2 < len({r["request"] for r in found}) <= 20
        for r in found:
            assert r["turns"] == r["plain"] and set(r["turns"]) <= HALVES["train"]
            assert (r["split"], r["type"]) == ("train", LABEL[r["turns"][0]])
    call(train_dpo.train, "--out", out)
    call(evaluate.evaluate, out / "dpo.pt", "--out", out, "--prompts", NATURAL)
    rows = read_jsonl(out / "prompts-natural.jsonl")
    assert {r["turns"][0] for r in rows} == HALVES["test"]


def test_a_file_without_a_train_half_trains_nothing(refuses, copy, tmp_path):
    out = copy("base.pt")
    rows = [dict(prompt=text) for text in HALVES["test"]]
    write_jsonl(tmp_path / "x.jsonl", rows)
    said = refuses(revise.revise, "--out", out, "--prompts", tmp_path / "x.jsonl")
    assert f"has {len(rows)} prompts, none in the train split; add some" in said
    said = refuses(revise.revise, "--out", out, "--prompts", NATURAL, "--round", 1)
    assert "--prompts and --round exclude each other" in said
    assert not (out / "revisions.jsonl").exists()
