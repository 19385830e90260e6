"""Stage 1 data: chains of critiques and revisions, and what a feedback round revises."""

import random

import pytest

import revise
from minicai.constitution import FAMILIES, Constitution
from minicai.files import append_jsonl, read_jsonl
from minicai.run import ROOT
from minicai.splits import held_out, split_of
from minicai.world.content import World
from minicai.world.requests import STAGE2_SPLIT, Part

WORLD = World(ROOT / "world")
CONSTITUTION = Constitution(ROOT / "constitution.json")
FAMILY = {wording.id: wording.family for wording in CONSTITUTION.wordings}


def test_a_chain_meets_every_family_and_holds_a_text_for_every_step(smoke):
    rows = read_jsonl(smoke / "revisions.jsonl")
    assert len(rows) > 10 and len({row["id"] for row in rows}) == len(rows)
    for row in rows:
        assert len(row["responses"]) - 1 == len(row["critiques"]) == len(FAMILIES)
        assert {FAMILY[id] for id in row["principles"]} == set(FAMILIES)
        assert row["turns"] == row["plain"] and row["split"] == "train"


def test_the_same_seed_gives_the_same_chains_and_another_one_others(smoke, copy, call):
    out = copy("base.pt")
    call(revise.revise, "--out", out)
    assert (out / "revisions.jsonl").read_bytes() == (smoke / "revisions.jsonl").read_bytes()
    call(revise.revise, "--out", out, "--requests", 8, "--revisions", 0, "--seed", 1)
    other = {row["request"] for row in read_jsonl(out / "revisions.jsonl")}
    assert len(other) > 2 and not other <= {
        r["request"] for r in read_jsonl(smoke / "revisions.jsonl")
    }


def test_a_family_is_struck_out_and_critiques_can_be_left_out(copy, call):
    out = copy("base.pt")
    options = ["--requests", 6, "--without", "harmlessness", "--revisions", 2, "--no-critique"]
    call(revise.revise, "--out", out, "--name", "a", *options)
    rows = read_jsonl(out / "revisions-a.jsonl")
    for row in rows:
        assert len(row["responses"]) == 3 and row["critiques"] == [None, None]
        assert "harmlessness" not in {FAMILY[id] for id in row["principles"]}
    assert rows and not (out / "revisions.jsonl").exists()


def test_a_chain_can_be_looked_at(smoke, call, capsys, refuses):
    row = read_jsonl(smoke / "revisions.jsonl")[3]
    call(revise.revise, "--out", smoke, "--show", row["id"])
    shown, wordings = capsys.readouterr().out, {w.id: w.critique for w in CONSTITUTION.wordings}
    texts = [row["turns"][-1], *row["responses"], *(text for text in row["critiques"] if text)]
    texts += [wordings[name] for name in row["principles"]]
    assert all(text in shown.replace("\n> ", "\n") for text in texts)
    said = refuses(revise.revise, "--out", smoke, "--show", 10_000)
    assert "--show 10000: there is none; there are 0, 1" in said


def log_attacks(path) -> list[dict]:
    """Attacks on dpo.pt that worked, and four rows that no training may use."""
    rng, rows = random.Random(0), []
    for i in range(6):
        request = Part(WORLD, "test" if i == 3 else STAGE2_SPLIT).draw(rng, "harmful")
        row = dict(id=f"t/{i}", type=request.type, request=request.id, split=STAGE2_SPLIT)
        row |= dict(turns=list(request.turns), plain=[f"plainly {i}"], response=f"answer {i}")
        rows.append(row | dict(target="dpo", trainable=True))
    rows[2]["target"] = "another"
    rows[3]["trainable"] = rows[4]["trainable"] = False
    rows[5]["response"] = None
    append_jsonl(path, rows)
    return rows[:2]


@pytest.fixture
def feedback(copy, call, monkeypatch):
    """(the attacks that a round must revise, its chains, the conversations the critic has read)"""
    out, loop, read = copy("base.pt", "dpo.pt"), revise.critique_revise_loop, []
    attacks = log_attacks(out / "redteam.jsonl")

    def spy(*args, conversations, **more):
        read.extend(conversations)
        return loop(*args, conversations=conversations, **more)

    monkeypatch.setattr(revise, "critique_revise_loop", spy)
    call(revise.revise, "--out", out, "--round", 1, "--revisions", 1)
    return attacks, read_jsonl(out / "revisions-round1.jsonl"), read


def test_feedback_revises_only_what_worked_on_the_stage_before_and_may_be_trained_on(feedback):
    attacks, made, _ = feedback
    assert [row["responses"][0] for row in made[:2]] == ["answer 0", "answer 1"]
    assert [row["turns"] for row in made[:2]] == [row["turns"] for row in attacks]
    assert not any(row["responses"][0].startswith("answer") for row in made[2:])


def test_the_critic_of_a_round_reads_the_plain_request_and_the_policy_learns_the_disguise(feedback):
    _, made, read = feedback
    assert [row["plain"] for row in made] == read and read[:2] == [["plainly 0"], ["plainly 1"]]
    assert all(row["plain"] != row["turns"] for row in made)


def test_the_fresh_requests_of_a_round_are_disguised_and_half_of_them_benign(feedback):
    fresh, framings = feedback[1][2:], {f.id for f in WORLD.framings}
    acts = {act.id for act in WORLD.acts}
    harmful = sum(row["type"] == "harmful" for row in fresh)
    assert 0.2 < harmful / len(fresh) < 0.8
    assert {row["type"] for row in fresh} <= {"harmful", "legitimate", "sensitive"}
    for row in fresh:
        parts = set(row["request"].split("/"))
        assert {split_of(name) for name in parts & acts} == {STAGE2_SPLIT}
        assert parts & framings and not any(map(held_out, parts & framings))
