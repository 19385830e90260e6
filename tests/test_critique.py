"""The critique-revise loop, seen from the prompts that reach the model and from what becomes of its texts."""

import json
import random
from types import SimpleNamespace

import pytest
import torch

import minicai.critique as critique_module
from minicai.common import UserError
from minicai.constitution import Constitution, Wording
from minicai.critique import answer, critique_and_revise
from minicai.sampler import Completion
from minicai.tokenizer import Tokenizer
from minicai.world.content import held_out
from minicai.world.skills import BREAKS, KEEPS

MODEL = SimpleNamespace(config=SimpleNamespace(block_size=300), embed=torch.nn.Embedding(1, 1))
WORDING = Wording("p/0", "p", "harmlessness", "does it hurt?", "make it safe", "which is safer?")


@pytest.fixture
def tokenizer():
    return Tokenizer.train(["does it hurt? make it safe no yes how do i bake bread"], 300)


@pytest.fixture
def scripted(monkeypatch, tokenizer):
    """A model that says the scripted texts in turn; None is a text that never ends. Returns the prompts it was given."""
    prompts, script = [], []

    def generate(model, asked, max_new_tokens, temperature, stop_ids, seed, progress):
        prompts.append(
            [tokenizer.bpe.decode([i for i in p if i < tokenizer.system]) for p in asked]
        )
        texts = script.pop(0)
        return [
            Completion(
                tokenizer.encode("abc" if t is None else t) + [tokenizer.end] * (t is not None),
                [],
                "length" if t is None else "stop",
            )
            for t in texts
        ]

    monkeypatch.setattr(critique_module, "generate", generate)
    return prompts, script


def test_the_critique_sees_the_answer_and_the_revision_sees_the_critique(scripted, tokenizer):
    prompts, script = scripted
    script += [["it hurts"], ["safe now"]]
    critiques, revisions = critique_and_revise(MODEL, tokenizer, [["how?"]], ["so"], [WORDING])
    assert (critiques, revisions) == (["it hurts"], ["safe now"])
    assert prompts[0] == ["how?soCritiqueRequest: does it hurt?"]
    assert prompts[1] == [
        "how?soCritiqueRequest: does it hurt?it hurtsRevisionRequest: make it safe"
    ]


def test_an_answer_without_fault_is_not_said_again(scripted, tokenizer):
    prompts, script = scripted
    script += [[f"fine. {KEEPS}", "it hurts", f"fine. {KEEPS}"], ["safe now"]]
    critiques, after = critique_and_revise(
        MODEL, tokenizer, [["how?"]] * 3, list("abc"), [WORDING] * 3
    )
    assert after == ["a", "safe now", "c"] and critiques[1] == "it hurts"
    assert prompts[1] == [
        "how?bCritiqueRequest: does it hurt?it hurtsRevisionRequest: make it safe"
    ]


def test_without_a_critique_the_revision_is_asked_for_directly(scripted, tokenizer):
    prompts, script = scripted
    script += [["safe now"]]
    critiques, revisions = critique_and_revise(
        MODEL, tokenizer, [["how?"]], ["so"], [WORDING], critique=False
    )
    assert (critiques, revisions) == ([None], ["safe now"])
    assert prompts == [["how?soRevisionRequest: make it safe"]]


def test_a_text_that_never_ends_or_is_empty_revises_nothing(scripted, tokenizer):
    _, script = scripted
    script += [[None, "fine", "fine"], [None, ""]]
    critiques, revisions = critique_and_revise(
        MODEL, tokenizer, [["x"]] * 3, ["so"] * 3, [WORDING] * 3
    )
    assert critiques == [None, "fine", "fine"]
    assert revisions == [None, None, None]


def test_a_revision_that_is_a_critique_revises_nothing(scripted, tokenizer):
    _, script = scripted
    script += [["it hurts"] * 3, [f"fine. {KEEPS}", f"bad. {BREAKS}", f"{KEEPS} Ask me more."]]
    assert critique_and_revise(MODEL, tokenizer, [["x"]] * 3, ["so"] * 3, [WORDING] * 3)[1] == [
        None,
        None,
        f"{KEEPS} Ask me more.",
    ]


def test_an_answer_is_stripped_of_its_end(scripted, tokenizer):
    _, script = scripted
    script += [[" yes "]]
    assert answer(MODEL, tokenizer, [["how?"]], 0.0, 0) == ["yes"]


def test_a_conversation_longer_than_the_context_loses_its_oldest_words(scripted, tokenizer):
    prompts, script = scripted
    script += [["yes"]]
    answer(MODEL, tokenizer, [["no " * 500 + "how?"]], 0.0, 0)
    assert (
        prompts[0][0].endswith("no how?")
        and len(tokenizer.encode(prompts[0][0])) < 300 - critique_module.MAX_NEW_TOKENS
    )


def test_principles_are_drawn_evenly_and_with_replacement():
    constitution, rng = Constitution(), random.Random(0)
    drawn = [constitution.draw(rng) for _ in range(200 * len(constitution.principles))]
    counts = {p: sum(w.principle == p for w in drawn) for p in constitution.principles}
    assert len(counts) >= 16 and all(
        140 < n < 260 for n in counts.values()
    )  # 200 each, five standard deviations
    assert any(a.principle == b.principle for a, b in zip(drawn, drawn[1:]))


def test_one_principle_can_be_asked_for():
    constitution, rng = Constitution(), random.Random(0)
    for name in constitution.principles:
        assert {constitution.draw(rng, principle=name).principle for _ in range(20)} == {name}
    with pytest.raises(UserError, match="no-such"):
        constitution.draw(rng, principle="no-such")


def test_training_draws_seen_wordings_and_the_exam_held_out_ones():
    constitution, rng = Constitution(), random.Random(0)
    assert not any(held_out(constitution.draw(rng).id) for _ in range(300))
    assert all(held_out(constitution.draw(rng, test=True).id) for _ in range(300))


def test_a_family_can_be_struck_out():
    rest = Constitution().without("harmlessness")
    assert {w.family for w in rest.wordings} == {"honesty", "respect", "autonomy", "necessity"}
    with pytest.raises(UserError, match="no such family"):
        Constitution().without("kindness")


@pytest.mark.parametrize(
    "text, message",
    [
        ("{", "c.json:1 is not valid JSON"),
        ("{}", "no list 'principles'"),
        ('{"principles": []}', "no principle"),
        ('{"principles": [{"id": "a", "family": "magic", "wordings": []}]}', "'magic'"),
        (
            '{"principles": [{"id": "a", "family": "honesty", "wordings": [{"critique": "x"}]}]}',
            "'revision'",
        ),
    ],
)
def test_a_bad_constitution_is_named(tmp_path, text, message):
    path = tmp_path / "c.json"
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        Constitution(path)


def test_every_sentence_of_the_constitution_is_unique():
    rows = json.load(open("constitution.json"))["principles"]
    sentences = [
        w[k] for p in rows for w in p["wordings"] for k in ("critique", "revision", "comparison")
    ]
    assert len(set(sentences)) == len(sentences) >= 16 * 4 * 3


def test_two_principles_with_one_id_are_named(tmp_path):
    principle = json.load(open("constitution.json"))["principles"][0]
    (tmp_path / "c.json").write_text(json.dumps(dict(principles=[principle, principle])))
    with pytest.raises(UserError, match="two principles with one id"):
        Constitution(tmp_path / "c.json")
