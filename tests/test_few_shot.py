"""Demonstrations in the prompt: what they are, who reads them, and whether they fit."""

import re
from types import SimpleNamespace

import pytest
import torch

import label
import revise
from minicai import critique as critique_module
from minicai import judge as judging
from minicai.constitution import Constitution
from minicai.critique import BREAKS, CRITIQUE_REQUEST, KEEPS, OPTIONS, REVISION_REQUEST
from minicai.files import UserError, read_json, read_jsonl
from minicai.judge import judge_by_critique, judge_directly
from minicai.run import ROOT
from minicai.splits import held_out, split_of
from minicai.tokenizer import Tokenizer
from minicai.world import few_shot, skills
from minicai.world.content import World
from minicai.world.few_shot import (
    chains,
    check_fit,
    comparisons,
    critiques,
    demonstrations,
    direct_revisions,
)

WORLD = World(ROOT / "world")
CONSTITUTION = Constitution(ROOT / "constitution.json")
TOKENIZER = Tokenizer.train([f"Is it true? yes no hi {KEEPS} {BREAKS}"] * 9, 400)
ASKS, REVISES = CRITIQUE_REQUEST.format(""), REVISION_REQUEST.format("")
N = 12


def shots(kind, n=N, seed=0, world=WORLD, constitution=CONSTITUTION) -> list[str]:
    return demonstrations(kind, n, world, constitution, seed)


def verdicts(turns) -> list[bool]:
    """Whether each critique finds a fault."""
    return [text.endswith(BREAKS) for text in turns if text.endswith((BREAKS, KEEPS))]


FAULTS = [True, False] * (N // 2)


def test_every_other_critique_finds_a_fault_and_goes_on_with_the_revision():
    turns = shots(chains)
    assert verdicts(turns) == FAULTS and len(turns) % 2 == 0
    assert sum(text.startswith(ASKS) for text in turns[::2]) == N
    assert sum(text.startswith(REVISES) for text in turns[::2]) == N // 2
    for asked, critique in zip(turns[::2], turns[1::2]):
        assert asked.startswith(ASKS) == critique.endswith((BREAKS, KEEPS))
    for before, asked in zip(turns[1::2], turns[2::2]):
        assert asked.startswith(REVISES) == before.endswith(BREAKS)


def test_the_judges_demonstrations_are_critiques_alone():
    turns = shots(critiques)
    assert verdicts(turns) == FAULTS and not any(text.startswith(REVISES) for text in turns)
    assert sum(text.startswith(ASKS) for text in turns[::2]) == N


def test_without_critiques_every_other_response_is_changed():
    turns = shots(direct_revisions)
    assert not verdicts(turns) and not any(text.startswith(ASKS) for text in turns)
    places = [i for i, text in enumerate(turns) if text.startswith(REVISES)]
    assert [turns[i - 1] != turns[i + 1] for i in places] == FAULTS


def test_the_direct_judges_demonstrations_answer_a_and_b_in_turn_and_no_tie(monkeypatch):
    decided, real = {}, skills.better

    def better(request, a, b, family, rng):
        broken = [family in skills.flaws(request, reply) for reply in (a, b)]
        decided[a.text, b.text] = broken[0] != broken[1]
        return real(request, a, b, family, rng)

    monkeypatch.setattr(skills, "better", better)
    turns = shots(comparisons)
    assert turns[1::2] == [*OPTIONS] * (N // 2)
    texts = [re.search(r"^\(A\) (.*)\n\(B\) (.*)$", turn, re.M).groups() for turn in turns[::2]]
    assert all(decided[pair] for pair in texts) and not all(decided.values())


@pytest.mark.parametrize("kind", [chains, critiques, direct_revisions, comparisons])
def test_demonstrations_are_of_demo_acts_and_seen_wordings(monkeypatch, kind):
    """The requests that are asked are recorded, with those of demonstrations not used."""
    asked, real = [], few_shot.Corpus.demo_request

    def record(corpus):
        asked.append(real(corpus))
        return asked[-1]

    monkeypatch.setattr(few_shot.Corpus, "demo_request", record)
    turns = shots(kind, 30)
    acts = {r.act.id for r in asked if r.act in WORLD.acts}
    names = {r.fact.id for r in asked if r.fact in WORLD.facts}
    assert len(acts) > 10 and names and set(map(split_of, acts | names)) == {"demo"}
    requests = [r.plain[-1] for r in asked] + [r.turns[-1] for r in asked]
    assert any(text in turns[0] for text in requests)
    test_steps = [", next ".join(a.steps[:2]) for a in WORLD.acts if split_of(a.id) == "test"]
    assert not any(steps in turn for steps in test_steps for turn in turns)
    found = 0
    for wording in CONSTITUTION.wordings:
        for request in (wording.critique, wording.revision, wording.comparison):
            used = any(request in turn for turn in turns[::2])
            assert not (used and held_out(wording.id) and only_here(request)), wording.id
            found += used
    assert found > 10


def only_here(request: str) -> bool:
    texts = [vars(w).values() for w in CONSTITUTION.wordings if not held_out(w.id)]
    return not any(request in text for values in texts for text in values)


def test_a_seed_gives_the_same_demonstrations_and_another_one_others():
    assert shots(chains, 4) == shots(chains, 4) != shots(chains, 4, seed=1)
    assert shots(chains, 6)[: len(shots(chains, 4))] == shots(chains, 4)
    assert shots(chains, 0) == []


def test_a_family_that_is_struck_out_is_in_no_demonstration():
    turns = shots(critiques, 40, constitution=CONSTITUTION.without("harmlessness"))
    assert not any("The principle is about harm." in text for text in turns)
    assert any("The principle is about harm." in text for text in shots(critiques, 40))


def test_a_world_without_faults_gives_no_demonstrations_of_them(monkeypatch):
    monkeypatch.setattr(few_shot, "DRAWS", 50)

    def faultless(corpus):
        while True:
            yield ["hi", "ho"], False

    tie = few_shot.Corpus(WORLD, CONSTITUTION, 0).comparison()[0], False
    monkeypatch.setattr(few_shot.Corpus, "comparison", lambda _: tie)
    for kind in (faultless, comparisons):
        with pytest.raises(UserError, match="give no demonstrations with a fault; leave out --few"):
            shots(kind)


# --- who reads them ------------------------------------------------------------------------------

WORDING = SimpleNamespace(critique="Is it true?", revision="Make it true.", comparison="Truer?")
SHOTS = ["yes?", "no.", f"{ASKS}hi", f"yes. {BREAKS}"]


def model(block_size=1024):
    return SimpleNamespace(
        config=SimpleNamespace(block_size=block_size), embed=torch.nn.Embedding(1, 1)
    )


def judge_prompts(monkeypatch, judge, shots) -> tuple[list, list, list]:
    """(conversations answered, prompts scored, options scored) of one judgement."""
    answered, scored = [], []

    def answer(model, tokenizer, dialogues, progress=None):
        answered.extend(dialogues)
        return [f"yes. {KEEPS}"] * len(dialogues)

    def score(model, prompts, options, progress=None):
        scored.append((prompts, options))
        return [[-1.0, -2.0]] * len(prompts)

    monkeypatch.setattr(judging, "answer", answer)
    monkeypatch.setattr(judging, "option_scores", score)
    judge(model(), TOKENIZER, [["hi"]], ["yes"], ["no"], [WORDING], None, shots)
    [(prompts, options)] = scored
    return answered, prompts, options


@pytest.mark.parametrize("judge", [judge_by_critique, judge_directly])
def test_the_judge_reads_the_demonstrations_first_and_scores_the_same_options(monkeypatch, judge):
    plain, with_shots = (judge_prompts(monkeypatch, judge, s) for s in ((), SHOTS))
    assert with_shots[0] == [[*SHOTS, *dialogue] for dialogue in plain[0]]
    assert with_shots[2] == plain[2], "the options"
    turns = [TOKENIZER.turn(("user", "assistant")[i % 2], text) for i, text in enumerate(SHOTS)]
    assert with_shots[1] == [[*sum(turns, []), *prompt] for prompt in plain[1]]
    assert len(plain[1]) == 2


def spy_on(monkeypatch, module, read):
    """Record the conversations that `module` has answered."""
    real = module.answer

    def answer(model, tokenizer, dialogues, *more, **settings):
        read.extend(dialogues)
        return real(model, tokenizer, dialogues, *more, **settings)

    monkeypatch.setattr(module, "answer", answer)


def test_revise_shows_the_same_demonstrations_before_every_critique(copy, call, monkeypatch):
    out, read = copy("base.pt"), []
    spy_on(monkeypatch, critique_module, read)
    monkeypatch.setattr(revise, "check_fit", lambda *_: None)
    call(revise.revise, "--out", out, "--requests", 5, "--revisions", 1, "--few-shot", 2)
    world = World(ROOT / "world", 1.0)
    expected = demonstrations(chains, 2, world, CONSTITUTION, 0)
    assert read and all(dialogue[: len(expected)] == expected for dialogue in read)
    for dialogue in read:
        asked = dialogue[len(expected) :][::2]
        assert sum(text.startswith(ASKS) for text in dialogue[::2]) == 3
        assert sum(text.startswith(ASKS) for text in asked) == 1
    assert read_jsonl(out / "revisions.jsonl")


@pytest.mark.parametrize("judge, kind", [("critique", critiques), ("direct", comparisons)])
def test_label_shows_them_to_the_judge_it_audits_and_uses(copy, call, monkeypatch, judge, kind):
    out, read = copy("base.pt", "sft.pt"), []
    function = label.JUDGES[judge]

    def spy(model, tokenizer, conversations, a, b, wordings, progress, shots=()):
        read.append(shots)
        return function(model, tokenizer, conversations, a, b, wordings, progress, shots)

    monkeypatch.setattr(spy, "__name__", function.__name__, raising=False)
    monkeypatch.setattr(few_shot, "judge_directly", spy if judge == "direct" else judge_directly)
    monkeypatch.setattr(few_shot, "check_fit", lambda *_: None)
    monkeypatch.setitem(label.JUDGES, judge, spy)
    call(label.label, "--out", out, "--judge", judge, "--few-shot", 3, "--comparisons", 4)
    expected = demonstrations(kind, 3, World(ROOT / "world", 1.0), CONSTITUTION, 0)
    assert len(read) >= 3 and all(found == expected for found in read)
    assert read_json(out / "judge.json", {})["judge"] == function.__name__


# --- room ----------------------------------------------------------------------------------------


def test_room_is_kept_for_the_demonstrations_the_requests_and_three_texts():
    """At exactly the size of the longest prompt and three texts they fit."""
    dialogue = ["hi yes no hi", "", ASKS + WORDING.critique, "", REVISES + WORDING.revision]
    turns = [TOKENIZER.turn("user", text) for text in (*SHOTS, *dialogue)]
    needed = sum(map(len, turns)) + 1 + 3 * 128
    given = TOKENIZER, SHOTS, [["hi"], ["hi yes no hi"]], [WORDING]
    check_fit(model(needed), *given)
    with pytest.raises(UserError, match=f"need {needed} ids, and the context has {needed - 1}; lo"):
        check_fit(model(needed - 1), *given)


@pytest.mark.parametrize("script", [revise.revise, label.label])
def test_too_many_are_refused_in_one_sentence(copy, refuses, script):
    out = copy("base.pt", "sft.pt")
    said = refuses(
        script,
        "--out",
        out,
        "--few-shot",
        30,
        "--requests" if script is revise.revise else "--comparisons",
        4,
    )
    assert "the context has 1024; lower --few-shot, or leave out long prompts" in said
    assert not {path.name for path in out.iterdir()} & {"revisions.jsonl", "preferences.jsonl"}
