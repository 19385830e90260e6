"""The critique-revise loop: the prompts that reach the model, and what becomes of its texts."""

import random
from types import SimpleNamespace

import pytest
import torch

from minicai import answer as answering
from minicai import critique as critique_module
from minicai.constitution import Constitution, Wording
from minicai.critique import (
    BREAKS,
    KEEPS,
    comparison_prompt,
    critique_and_revise,
    critique_revise_loop,
)
from minicai.sampler import Completion
from minicai.splits import held_out
from minicai.tokenizer import Tokenizer

MODEL = SimpleNamespace(config=SimpleNamespace(block_size=1024), embed=torch.nn.Embedding(1, 1))
WORDING = Wording("p/0", "p", "harmlessness", "does it hurt?", "make it safe", "which is safer?")
OTHER = Wording("q/1", "q", "respect", "is it rude?", "make it kind", "which is kinder?")
CRITIQUE, REVISION = "CritiqueRequest: does it hurt?", "RevisionRequest: make it safe"
TOKENIZER = Tokenizer.train(["does it hurt? make it safe no yes how do i bake bread"], 300)


@pytest.fixture
def scripted(monkeypatch):
    """A model that says the scripted texts in turn; None is a text that never ends.

    Returns the conversations that it was given, and the script.
    """
    prompts, script = [], []

    def turns_of(ids):
        assert ids[-1:] == TOKENIZER.opening["assistant"]
        ends = [i for i, token in enumerate(ids) if token == TOKENIZER.end]
        turns = [ids[a:b] for a, b in zip([0, *(end + 1 for end in ends)], ends)]
        for i, turn in enumerate(turns):
            assert turn[:1] == TOKENIZER.opening[("user", "assistant")[i % 2]]
        return [TOKENIZER.decode(turn) for turn in turns]

    def generate(model, asked, max_new_tokens, temperature, **settings):
        assert temperature == 0
        prompts.append([turns_of(ids) for ids in asked])
        texts = script.pop(0)
        assert len(texts) == len(asked)
        ids = [TOKENIZER.encode(text or "abc") for text in texts]
        reasons = ["length" if text is None else "stop" for text in texts]
        return [Completion([*i, TOKENIZER.end], [], reason) for i, reason in zip(ids, reasons)]

    monkeypatch.setattr(answering, "generate", generate)
    return prompts, script


def test_a_verdict_says_what_it_means():
    assert KEEPS == "So the response keeps to it." and BREAKS == "So the response breaks it."


def test_the_critique_sees_the_answer_and_the_revision_sees_the_critique(scripted):
    prompts, script = scripted
    script += [["it hurts"], ["safe now"]]
    turns = ["how?", "why?", "so that"]
    found = critique_and_revise(MODEL, TOKENIZER, [turns], ["so"], [WORDING])
    assert found == (["it hurts"], ["safe now"])
    assert prompts[0] == [[*turns, "so", CRITIQUE]]
    assert prompts[1] == [[*turns, "so", CRITIQUE, "it hurts", REVISION]]


def test_an_answer_without_fault_stays_and_is_not_written_again(scripted):
    prompts, script = scripted
    fine, mixed = f"fine. {KEEPS}", f"{KEEPS} Or not. {BREAKS}"
    script += [[fine, "it hurts", fine, mixed], ["safe now", "and now"]]
    done, asked = [], ([["how?"]] * 4, list("abcd"), [WORDING] * 3 + [OTHER])
    critiques, after = critique_and_revise(MODEL, TOKENIZER, *asked, progress=done.append)
    assert after == ["a", "safe now", "c", "and now"]
    assert critiques == [fine, "it hurts", fine, mixed]
    assert prompts[1][0] == ["how?", "b", CRITIQUE, "it hurts", REVISION]
    rude = "CritiqueRequest: is it rude?", mixed, "RevisionRequest: make it kind"
    assert prompts[1][1:] == [["how?", "d", *rude]]
    assert sum(done) == 2  # texts that need not be written; the sampler counts the others


def test_without_a_critique_the_revision_is_asked_for_directly(scripted):
    prompts, script = scripted
    script += [["safe now", f"bad. {BREAKS}"]]
    asked = [["how?"]] * 2, ["so", "or so"], [WORDING] * 2
    found = critique_and_revise(MODEL, TOKENIZER, *asked, critique=False)
    assert found == ([None, None], ["safe now", None])
    assert prompts == [[["how?", "so", REVISION], ["how?", "or so", REVISION]]]


def test_a_text_that_never_ends_or_is_empty_revises_nothing(scripted):
    _, script = scripted
    script += [[None, "fine", "fine"], [None, " "]]
    asked = [["x"]] * 3, ["so"] * 3, [WORDING] * 3
    critiques, revisions = critique_and_revise(MODEL, TOKENIZER, *asked)
    assert critiques == [None, "fine", "fine"] and revisions == [None, None, None]


def test_a_revision_that_ends_as_a_critique_revises_nothing(scripted):
    _, script = scripted
    script += [["it hurts"] * 3, [f"fine. {KEEPS}", f"bad. {BREAKS}", f"{KEEPS} Ask me more."]]
    _, after = critique_and_revise(MODEL, TOKENIZER, [["x"]] * 3, ["so"] * 3, [WORDING] * 3)
    assert after == [None, None, f"{KEEPS} Ask me more."]


def test_a_comparison_shows_the_conversation_the_principle_and_both_answers_in_order():
    prompt = comparison_prompt(["how?", "why?", "so"], "which is safer?", "one", "two")
    assert prompt == "Person: how?\nAssistant: why?\nPerson: so\nwhich is safer?\n(A) one\n(B) two"


# --- the loop ---


@pytest.fixture(scope="module")
def constitution():
    return Constitution("constitution.json")


def test_a_chain_meets_every_family_once_before_it_meets_one_again(monkeypatch, constitution):
    asked, n = [], len(constitution.families)

    def keep(model, tokenizer, conversations, responses, wordings, *settings):
        asked.append(wordings)
        return [None] * len(responses), list(responses)

    monkeypatch.setattr(critique_module, "critique_and_revise", keep)
    rest = constitution, [["x"]] * 40, ["so"] * 40
    chains = critique_revise_loop(None, None, *rest, steps=n + 2, rng=random.Random(0))
    assert len(asked) == n + 2
    for chain, wordings in zip(chains, zip(*asked), strict=True):
        assert chain["principles"] == [w.id for w in wordings]
        families = [w.family for w in wordings]
        assert sorted(families[:n]) == sorted(constitution.families)
        assert families[n:] == families[:2]
        assert not any(held_out(w.id) for w in wordings)
    orders = {tuple(w.family for w in wordings) for wordings in zip(*asked)}
    assert len(orders) > 20  # of n! orders
    again = critique_revise_loop(None, None, *rest, steps=n + 2, rng=random.Random(0))
    assert again == chains


@pytest.mark.parametrize("critique", [True, False])
def test_a_step_revises_the_last_response_and_an_unfinished_one_leaves_it(
    monkeypatch, constitution, critique
):
    calls, bar = [], print
    steps = [
        (["c1", None], ["a1", None]),
        (["c2", "d2"], [None, "b2"]),
        ([None, "d3"], ["a3", "b2"]),
    ]

    def step(model, tokenizer, conversations, responses, wordings, *settings):
        calls.append((model, tokenizer, conversations, responses, settings))
        return steps[len(calls) - 1]

    monkeypatch.setattr(critique_module, "critique_and_revise", step)
    turns, rng = [["x"], ["y"]], random.Random(0)
    settings = dict(steps=3, rng=rng, critique=critique, progress=bar, shots=["s", "t"])
    one, other = critique_revise_loop("m", "t", constitution, turns, ["a", "b"], **settings)
    assert [call[3] for call in calls] == [["a", "b"], ["a1", "b"], ["a1", "b2"]]
    assert all(call[:3] == ("m", "t", turns) for call in calls)
    assert all(call[4] == (critique, bar, ["s", "t"]) for call in calls)
    assert one["responses"] == ["a", "a1", "a1", "a3"]
    assert other["responses"] == ["b", "b", "b2", "b2"]
    assert one["critiques"] == ["c1", "c2", None] and other["critiques"] == [None, "d2", "d3"]
    assert len(one["principles"]) == len(other["principles"]) == 3


def test_two_steps_as_the_model_sees_them(scripted, constitution):
    prompts, script = scripted
    script += [["it hurts"], ["safe now"], [f"fine. {KEEPS}"], []]
    rest = constitution, [["how?"]], ["so"], 2, random.Random(0)
    (chain,) = critique_revise_loop(MODEL, TOKENIZER, *rest)
    texts = {w.id: w for w in constitution.wordings}
    first, second = (texts[id] for id in chain["principles"])
    asked = ["how?", "so", f"CritiqueRequest: {first.critique}"]
    assert prompts[0] == [asked]
    assert prompts[1] == [[*asked, "it hurts", f"RevisionRequest: {first.revision}"]]
    assert prompts[2] == [["how?", "safe now", f"CritiqueRequest: {second.critique}"]]
    assert chain["responses"] == ["so", "safe now", "safe now"] and prompts[3] == []


def test_no_steps_and_no_drafts_make_chains_of_drafts_and_none(constitution):
    def loop(drafts):
        turns = [["x"]] * len(drafts)
        return critique_revise_loop(None, None, constitution, turns, drafts, 0, random.Random(0))

    assert loop([]) == []
    assert loop(["so"]) == [dict(responses=["so"], principles=[], critiques=[])]
