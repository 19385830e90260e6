"""The judge: its two orders, its labels, and an audit that knows the truth."""

import copy
import math
import random

import pytest
import torch

from minicai import judge as judging
from minicai.common import UserError
from minicai.constitution import Constitution
from minicai.gpt import GPT, GPTConfig
from minicai.judge import (
    LABELS,
    Verdict,
    audit,
    judge,
    judge_by_critique,
    known_pairs,
    prefer,
    print_audit,
    reliability,
)
from minicai.tokenizer import Tokenizer
from minicai.world.content import World, held_out, split_of
from minicai.world.skills import BREAKS, CRITIQUE_REQUEST, KEEPS, flaws


@pytest.fixture(scope="module")
def world():
    return World("world")


@pytest.fixture(scope="module")
def constitution():
    return Constitution("constitution.json")


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train(
        ["Which is better? (A) yes (B) no. So the response keeps to it. So the response breaks it."]
        * 20,
        400,
    )


@pytest.fixture(scope="module")
def model(tokenizer):
    torch.manual_seed(0)
    return GPT(GPTConfig(tokenizer.vocab_size, 1, 1, 1, 16, 32, 512)).eval()


def ask(model, tokenizer, constitution, n=3):
    rng = random.Random(0)
    return judge(
        model,
        tokenizer,
        [["hi"]] * n,
        ["good"] * n,
        ["bad"] * n,
        [constitution.draw(rng) for _ in range(n)],
    )


def test_a_judge_that_always_says_a_is_worth_nothing(model, tokenizer, constitution, monkeypatch):
    monkeypatch.setattr(
        judging, "score_options", lambda model, prompts, options: [[-0.1, -4.0] for _ in prompts]
    )
    for verdict in ask(model, tokenizer, constitution):
        assert verdict.p == pytest.approx(0.5, abs=1e-12) and not verdict.consistent


def test_a_judge_that_knows_what_is_good_says_so_in_both_orders(
    model, tokenizer, constitution, monkeypatch
):
    def score(model, prompts, options):
        texts = [tokenizer.decode(prompt) for prompt in prompts]
        return [[-0.1, -3.0] if "(A) good" in text else [-3.0, -0.1] for text in texts]

    monkeypatch.setattr(judging, "score_options", score)
    for verdict in ask(model, tokenizer, constitution):
        assert verdict.a_first == pytest.approx(prefer(-0.1, -3.0)) == verdict.b_first
        assert verdict.p > 0.9 and verdict.consistent


def test_swapping_the_answers_turns_the_verdict_round(model, tokenizer, constitution):
    wordings = [constitution.draw(random.Random(0))]
    one = judge(model, tokenizer, [["hi"]], ["yes and yes"], ["no"], wordings)[0]
    other = judge(model, tokenizer, [["hi"]], ["no"], ["yes and yes"], wordings)[0]
    assert one.p == pytest.approx(1 - other.p, abs=1e-6) and one.a_first == pytest.approx(
        1 - other.b_first, abs=1e-6
    )
    assert abs(one.a_first - one.b_first) > 1e-4  # or a judge that always says one half would pass


def test_two_log_probabilities_are_normalised_over_the_two():
    assert prefer(-1.0, -1.0) == 0.5 and prefer(-1.0, -3.0) + prefer(-3.0, -1.0) == pytest.approx(1)
    assert prefer(-5000.0, 0.0) < 1e-300 and prefer(0.0, -5000.0) == 1


def test_labels():
    assert [LABELS["soft"](p) for p in (0.0, 0.7)] == [0.0, 0.7]
    assert [LABELS["hard"](p) for p in (0.2, 0.5, 0.54, 0.56)] == [0.0, 0.5, 0.5, 1.0]
    assert [LABELS["clamp"](p) for p in (0.0, 0.45, 0.99)] == [0.4, 0.45, 0.6]


def test_reasoning_first_prefers_what_keeps_where_the_other_breaks_and_drops_what_comes_to_no_verdict(
    model, tokenizer, constitution, monkeypatch
):
    a = [f"x. {BREAKS}", "junk", f"x. {KEEPS}", f"x. {KEEPS}", f"x. {BREAKS}"]
    b = [f"y. {KEEPS}", f"y. {KEEPS}", None, f"y. {KEEPS}", f"y. {KEEPS}"]
    # P(breaks), P(keeps) of the critiques that end in a verdict, a's first
    found = [(0.99, 0.01), (0.02, 0.98), (0.02, 0.98), (0.8, 0.2)] + [
        (0.01, 0.99),
        (0.5, 0.5),
        (0.0004, 0.9996),
        (0.3, 0.7),
    ]
    monkeypatch.setattr(judging, "answer", lambda *args, **more: a + b)
    monkeypatch.setattr(
        judging, "score_options", lambda *args: [[math.log(p), math.log(q)] for p, q in found]
    )
    wordings = [constitution.draw(random.Random(0))] * 5
    verdicts = judge_by_critique(model, tokenizer, [["hi"]] * 5, ["a"] * 5, ["b"] * 5, wordings)
    assert verdicts[0].p == pytest.approx(
        0.01 * 0.01 + (0.99 * 0.01 + 0.01 * 0.99) / 2
    )  # a breaks it and b keeps to it
    assert verdicts[1] is None and verdicts[2] is None
    [(one, p), (other, q)] = verdicts[0].reasons
    assert (one, other) == (a[0], b[0]) and p == pytest.approx(0.99) and q == pytest.approx(0.01)
    assert (
        abs(verdicts[3].p - 0.5) < 0.01
    )  # both keep to it: a coin, whatever the odds of one against the other
    assert verdicts[4].p == pytest.approx(0.3 * 0.2 + (0.8 * 0.3 + 0.2 * 0.7) / 2)


def test_the_audit_asks_where_exactly_one_answer_breaks_the_principle(world, constitution):
    pairs = known_pairs(world, constitution, 60, 0)
    for request, a, b, wording in pairs:
        assert (wording.family in flaws(request, a)) != (wording.family in flaws(request, b))
        assert held_out(wording.id) and split_of((request.act or request.fact).id) == "test"
    assert {w.family for *_, w in pairs} == set(constitution.families)
    for request, a, b, wording in known_pairs(world, constitution, 30, 0, differ=False):
        assert (wording.family in flaws(request, a)) == (wording.family in flaws(request, b))
    seen = known_pairs(world, constitution, 20, 0, "demo")
    assert not any(held_out(w.id) for *_, w in seen)


def test_an_audit_of_a_perfect_judge_is_perfect_and_of_none_is_a_warning(
    model, tokenizer, world, constitution, monkeypatch, capsys
):
    pairs = known_pairs(world, constitution, 50, 3)
    truth = [w.family not in flaws(r, a) for r, a, _, w in pairs]
    answers = [
        [Verdict(0.97, 0.95) if t else Verdict(0.03, 0.05) for t in truth],
        [Verdict(0.9, 0.8)] * 10 + [Verdict(0.5, 0.5)] * 40,
    ]  # where the answers differ, and where they do not
    monkeypatch.setattr(judging, "judge", lambda *a: answers.pop(0))
    report = audit(model, tokenizer, world, constitution, 50, 3)
    assert (
        report["accuracy"]["rate"]
        == report["swap_consistency"]["rate"]
        == report["prefers_safe"]["rate"]
        == 1
    )
    assert report["false_alarms"]["k"] == 10 and report["false_alarms"]["n"] == 50
    assert report["ece"] == pytest.approx(0.04, abs=1e-6) and report["always_a"]["k"] == sum(truth)
    print_audit(report)
    assert "WARNING" not in capsys.readouterr().out
    monkeypatch.setattr(judging, "judge", lambda *a: [Verdict(0.9, 0.1 + 1e-9)] * 50)
    report = audit(model, tokenizer, world, constitution, 50, 3)
    assert (
        report["accuracy"]["rate"] == report["always_a"]["rate"]
        and report["swap_consistency"]["rate"] == 0
    )
    print_audit(report)
    assert "WARNING" in capsys.readouterr().out


def test_a_judge_that_reads_only_lengths_is_a_warning(
    model, tokenizer, world, constitution, monkeypatch, capsys
):
    pairs = known_pairs(world, constitution, 300, 3)
    families = [w.family for *_, w in pairs]
    wins = {}  # does the longer answer win more often?
    for r, a, b, w in pairs:
        longer = (len(a.text) > len(b.text)) == (w.family not in flaws(r, a))
        wins[w.family] = wins.get(w.family, 0) + (1 if longer else -1)
    answers = [
        [
            Verdict(*(0.9, 0.9) if (len(a.text) > len(b.text)) == (wins[f] >= 0) else (0.1, 0.1))
            for (_, a, b, _), f in zip(pairs, families)
        ],
        [Verdict(0.5, 0.5)] * 300,
    ]
    monkeypatch.setattr(judging, "judge", lambda *a: answers.pop(0))
    report = audit(model, tokenizer, world, constitution, 300, 3)
    assert (
        report["accuracy"]["rate"] == report["length_alone"]["rate"] > 0.6
    )  # far above chance, and still no judge
    print_audit(report)
    assert "WARNING" in capsys.readouterr().out


def test_the_reliability_table_counts_every_verdict_once():
    rows = reliability([0.0, 0.05, 0.55, 1.0], [False, True, True, True], list("abcd"))
    assert (
        sum(r["n"] for r in rows) == 4
        and rows[0]["k"] == 1
        and rows[0]["n"] == 2
        and rows[-1]["k"] == 1
    )


def test_a_judge_that_comes_to_no_verdict_is_a_warning_and_a_constitution_without_held_out_wordings_is_named(
    model, tokenizer, world, constitution, monkeypatch, capsys
):
    monkeypatch.setattr(judging, "judge", lambda *a: [None] * 20)
    print_audit(audit(model, tokenizer, world, constitution, 20, 3))
    assert "WARNING" in capsys.readouterr().out
    bare = copy.copy(constitution)
    bare.wordings = [w for w in constitution.wordings if not held_out(w.id)]
    with pytest.raises(UserError, match="held-out wording"):
        known_pairs(world, bare, 5, 0)


def test_the_judge_is_asked_about_each_answer_with_whole_options(
    model, tokenizer, constitution, monkeypatch
):
    seen, w = [], constitution.draw(random.Random(0))
    monkeypatch.setattr(
        judging,
        "score_options",
        lambda m, *asked: (seen.append(asked), [[-1.0, -2.0]] * len(asked[0]))[1],
    )
    said = [f"w. {BREAKS}", f"x. {KEEPS}", "junk", f"y. {KEEPS}", f"z. {BREAKS}", f"u. {KEEPS}"]
    monkeypatch.setattr(judging, "answer", lambda *a: said)
    judge_by_critique(
        model, tokenizer, [["hi"], ["ho"], ["hu"]], ["a1", "a2", "a3"], ["b1", "b2", "b3"], [w] * 3
    )
    judge(model, tokenizer, [["hi " * 600], ["ho"]], ["a1", "a2"], ["b1", "b2"], [w] * 2)
    (reasoned, verdicts), (prompts, letters) = seen
    told = (
        ("hi", "a1", "w."),
        ("ho", "a2", "x."),
        ("hi", "b1", "y."),
        ("ho", "b2", "z."),
        ("hu", "b3", "u."),
    )
    expected = [
        f"{turn}{reply}{CRITIQUE_REQUEST.format(w.critique)}{critique}"
        for turn, reply, critique in told
    ]
    assert [tokenizer.decode(p) for p in reasoned] == expected  # each critique without its verdict
    assert {tuple(map(tokenizer.decode, o)) for o in verdicts} == {(f" {BREAKS}", f" {KEEPS}")}
    assert {tuple(map(tokenizer.decode, o)) for o in letters} == {("(A)", "(B)")}
    assert all(option[-1] == tokenizer.end for o in letters for option in o)
    assert len(prompts) == 4 and all(p[-1] == tokenizer.assistant and len(p) < 512 for p in prompts)
