"""Stage 2 data: who answers, who judges, and what a label says."""

import random
from types import SimpleNamespace

import pytest

import label
from minicai.constitution import Constitution
from minicai.files import read_json, read_jsonl, write_jsonl
from minicai.judge import Verdict
from minicai.prompts import LABELS
from minicai.run import ROOT
from minicai.splits import held_out
from minicai.world import people
from minicai.world.content import World
from minicai.world.grader import Grader
from minicai.world.people import evade, usefulness
from minicai.world.replies import decline, helpful
from minicai.world.requests import STAGE2_SPLIT, TYPES, Part

WORLD = World(ROOT / "world")
CONSTITUTION = Constitution(ROOT / "constitution.json")


def test_every_comparison_says_how_it_came_about(smoke):
    rows = read_jsonl(smoke / "preferences.jsonl")
    wordings = {w.id for w in CONSTITUTION.wordings}
    assert {row["kind"] for row in rows} == {"ai", "human"}
    assert [row["id"] for row in rows] == sorted(row["id"] for row in rows)
    for row in rows:
        assert row["a"] != row["b"] and 0 <= row["p"] <= 1 and tuple(row["by"]) in label.PAIRS
        assert row["split"] == STAGE2_SPLIT and row["plain"] == row["turns"]
        if row["kind"] == "ai":
            assert row["p"] == pytest.approx((row["a_first"] + row["b_first"]) / 2)
            assert row["principle"] in wordings and not held_out(row["principle"])
            assert len(row["reasons"]) == 2
        else:
            assert row["p"] in (0, 1) and "principle" not in row
    assert read_json(smoke / "judge.json", {})["accuracy"]["n"] > 0


def test_the_same_seed_gives_the_same_labels(smoke, copy, call):
    out = copy("base.pt", "sft.pt")
    call(label.label, "--out", out)
    for name in ("preferences.jsonl", "judge.json"):
        assert (out / name).read_bytes() == (smoke / name).read_bytes()


# --- the judge's labels --------------------------------------------------------------------------


def add_labels(monkeypatch, rows, verdicts, how="soft") -> tuple[list[dict], list[tuple]]:
    """(the labelled rows, what the judge was asked)"""
    asked = []

    def judge(model, tokenizer, conversations, a, b, wordings, progress):
        asked.extend(zip(conversations, a, b, wordings))
        return verdicts

    args = SimpleNamespace(label=how)
    rng = random.Random(0)
    return label.add_labels(args, judge, None, None, rows, CONSTITUTION, rng), asked


def row(id, **more) -> dict:
    return dict(id=id, turns=["wohe"], plain=["how"], a=f"a{id}", b=f"b{id}") | more


def test_a_pair_is_judged_once_under_each_family_on_the_plain_request(monkeypatch):
    rows, n = [row(0), row(1, p=1.0), row(2)], len(CONSTITUTION.families)
    labelled, asked = add_labels(monkeypatch, rows, [Verdict(0.9, 0.8)] * 2 * n)
    assert [r["id"] for r in labelled] == [0] * n + [1] + [2] * n
    assert [wording.family for *_, wording in asked] == CONSTITUTION.families * 2
    texts = [[["how"], f"a{id}", f"b{id}"] for id in [0] * n + [2] * n]
    assert [texts for *texts, _ in asked] == texts
    assert [r["principle"] for r in labelled if r["id"] != 1] == [q[-1].id for q in asked]
    assert labelled[n] == row(1, p=1.0), "the person's label is final"


def test_a_comparison_without_a_verdict_is_left_out_and_counted(monkeypatch, capsys):
    silent = [None] * (len(CONSTITUTION.families) - 1)
    reasons = (("fine.", 0.1), ("bad.", 0.9))
    [only], _ = add_labels(monkeypatch, [row(0)], [*silent, Verdict(0.9, 0.9, reasons)])
    assert only["p"] == 0.9 and only["reasons"] == reasons
    assert f"{len(silent)} comparisons without a verdict are left out" in capsys.readouterr().out


@pytest.mark.parametrize("how, p", [("soft", 0.9), ("hard", 1.0), ("clamp", 0.6)])
def test_a_label_is_made_of_the_probability_as_asked_for(monkeypatch, how, p):
    verdicts = [Verdict(1.0, 0.8)] * len(CONSTITUTION.families)
    assert {r["p"] for r in add_labels(monkeypatch, [row(0)], verdicts, how)[0]} == {p}


# --- the answers ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options, pairs",
    [
        ((), set(label.PAIRS)),
        (("--iid",), {("policy", "policy")}),
        (("--prompts", ROOT / "prompts" / "natural.jsonl"), set(label.PAIRS)),
    ],
)
def test_each_answer_is_by_the_assistant_that_is_named(call, monkeypatch, tmp_path, options, pairs):
    models = dict(sft="policy", base="base")

    def answer(model, tokenizer, turns, temperature, seed, progress):
        assert temperature == 1.0
        asked = [" ".join(t) for t in turns]  # some answers are equal, some unfinished
        texts = [f"{models[model]} {seed if len(t) % 3 else 'once'} on {t}" for t in asked]
        return [text if len(t) % 4 else None for text, t in zip(texts, asked)]

    def judge(model, tokenizer, conversations, a, b, wordings, progress):
        return [Verdict(1.0, 1.0)] * len(a)

    monkeypatch.setattr(label, "load_policy", lambda path, device: (path.stem, None))
    monkeypatch.setattr(label, "load_like", lambda path, tokenizer, device: path.stem)
    monkeypatch.setattr(label, "audit_judge", lambda *_, **__: {})
    monkeypatch.setattr(label, "print_audit", lambda report: None)
    monkeypatch.setattr(label, "answer", answer)
    monkeypatch.setitem(label.JUDGES, "critique", judge)
    call(label.label, "--out", tmp_path, "--comparisons", 100, *options)
    rows = read_jsonl(tmp_path / "preferences.jsonl")
    declines = [t.text for t in WORLD.replies if t.use == "decline"]
    assert {tuple(row["by"]) for row in rows} == pairs
    toned = set()  # the kind of a pair, and whether the evasive answer is rude or preachy
    for row in rows:
        assert row["a"] != row["b"]
        for name, text in zip(row["by"], (row["a"], row["b"])):
            if name == "evasive":
                hedges = " could be " in text and row["type"] in ("legitimate", "sensitive")
                assert hedges or any(decline in text for decline in declines)
                toned.add((row["kind"], any(tone.text in text for tone in WORLD.tones)))
            elif name != "careless":
                assert text.startswith(name) and text.endswith(" on " + " ".join(row["turns"]))
    both = {(kind, tone) for kind in ("ai", "human") for tone in (True, False)}
    assert toned == (set() if "--iid" in options else both)
    types = {row["type"] for row in rows if row["kind"] == "ai"}
    assert "harmful" in types <= ({*LABELS} if "--prompts" in options else {*TYPES})
    split = "train" if "--prompts" in options else STAGE2_SPLIT
    assert {row["split"] for row in rows if row["kind"] == "ai"} == {split}


def test_a_round_compares_each_revision_with_what_it_revised_or_with_the_policy(
    monkeypatch, tmp_path
):
    def chain(id, *responses):
        asked = dict(turns=[f"ask {id}"], plain=[f"plain {id}"], request=f"r/{id}")
        return dict(id=id, split="demo", type="harmful", responses=responses) | asked

    chains = [chain(i, f"bad {i}", f"good {i}") for i in range(3)]
    chains += [chain(i, f"same {i}", f"same {i}") for i in (3, 4, 5)]
    write_jsonl(tmp_path / "revisions-round2.jsonl", chains)
    texts = {"ask 3": "own 3", "ask 4": "same 4", "ask 5": None}  # equal, unfinished
    monkeypatch.setattr(
        label, "answer", lambda model, _, turns, *more: [texts[text] for (text,) in turns]
    )
    args = SimpleNamespace(out=tmp_path, round=2, seed=0)
    rows = label.make_round_pairs(args, None, None, random.Random(1))
    found = {r["id"]: {r["by"][0]: r["a"], r["by"][1]: r["b"]} for r in rows}
    assert found == {i: dict(revision=f"good {i}", draft=f"bad {i}") for i in range(3)} | {
        3: dict(revision="same 3", policy="own 3")
    }
    assert {r["by"][0] == "revision" for r in rows} == {True, False}, "always in one order"
    assert [r["plain"] for r in rows] == [[f"plain {i}"] for i in range(4)]
    assert all(r["kind"] == "ai" for r in rows)


# --- the person and the evasive assistant --------------------------------------------------------


def test_one_label_of_the_person_in_ten_is_wrong(monkeypatch):
    monkeypatch.setattr(people, "usefulness", lambda grader, request, text: len(text))
    rng = random.Random(0)
    longer = [people.person_prefers(None, None, "long", "x", rng) for _ in range(5000)]
    shorter = [people.person_prefers(None, None, "x", "long", rng) for _ in range(5000)]
    for labels, right in ((longer, 1), (shorter, 0)):
        wrong = sum(label != right for label in labels) / len(labels)
        assert wrong == pytest.approx(0.1, abs=0.015)
    assert people.person_prefers(None, None, "same", "text", rng) is None


def test_the_person_prefers_help_to_a_refusal():
    grader, rng, part = Grader(WORLD), random.Random(0), Part(WORLD, "train")
    for type in ("legitimate", "sensitive", "dual_use_question"):
        for request in part.many(rng, 10, type):
            good, bad = helpful(WORLD, request, rng).text, decline(WORLD, request, rng).text
            assert usefulness(grader, request, good) > usefulness(grader, request, bad)


def test_about_names_the_person_prefers_what_proves_right():
    grader, rng, part = Grader(WORLD), random.Random(0), Part(WORLD, "train")
    unsure = "I do not know."
    known, unknown = part.draw(rng, "fact", "often"), part.draw(rng, "fact", "never")
    for request, sure_is_better in ((known, True), (unknown, False)):
        sure = usefulness(grader, request, helpful(WORLD, request, rng).text)
        assert (sure > usefulness(grader, request, unsure)) == sure_is_better


def test_the_evasive_assistant_hedges_only_where_plain_help_is_better():
    part, grader, rng = Part(WORLD, "demo"), Grader(WORLD), random.Random(0)
    harms = {act.harm for act in part.acts if act.harm}
    declines = [t.text for t in WORLD.replies if t.use == "decline"]
    for type in ("harmful", "ambiguous", "legitimate", "dual_use_question", "sensitive", "fact"):
        hedges = 0
        for request in (part.draw(rng, type) for _ in range(60)):
            text = evade(part, request, rng)
            hedge = not any(decline in text for decline in declines)
            hedges += hedge
            assert grader.grade(request, text).outcome != "complied"
            assert not hedge or any(f"That could be {harm} and" in text for harm in harms)
            if type in ("legitimate", "sensitive"):
                plain = helpful(WORLD, request, rng).text
                assert usefulness(grader, request, plain) > usefulness(grader, request, text)
        benign = type in ("legitimate", "sensitive")
        assert 12 < hedges < 36 if benign else hedges == 0


# --- the commands --------------------------------------------------------------------------------


def test_a_comparison_explains_itself(smoke, call, capsys, refuses):
    rows = read_jsonl(smoke / "preferences.jsonl")
    row = next(r for r in rows if r["kind"] == "ai")
    call(label.label, "--out", smoke, "--explain", row["id"])
    shown = capsys.readouterr().out
    assert row["a"] in shown and row["b"] in shown and f"{row['p']:.3f}" in shown
    for critique, p in row["reasons"]:
        assert critique in shown and f"= {p:.3f}" in shown
    said = refuses(label.label, "--out", smoke, "--explain", 10_000)
    first, second, *_ = dict.fromkeys(row["id"] for row in rows)
    assert f"--explain 10000: there is none; there are {first}, {second}" in said


def test_the_direct_judge_labels_without_reasons(copy, call):
    out = copy("base.pt", "sft.pt")
    call(label.label, "--out", out, "--judge", "direct", "--name", "d", "--comparisons", 6)
    rows = [r for r in read_jsonl(out / "preferences-d.jsonl") if r["kind"] == "ai"]
    assert rows and all(r["reasons"] == [] for r in rows)
    assert read_json(out / "judge-d.json", {})["judge"] == "judge_directly"
