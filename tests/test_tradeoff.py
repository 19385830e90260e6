"""The trade-off: weights between two models, the cheapest point, and stages compared question by question."""

import math
import random
from collections import Counter

import pytest
import torch

from minicai import tradeoff
from minicai.exam import PLAIN, RIGHT, Exam
from minicai.gpt import GPT, GPTConfig
from minicai.guard import every_fourth
from minicai.metrics import rate, rate_by_topic
from minicai.tradeoff import (
    ERRORS,
    before,
    blend,
    cost,
    interpolate,
    on_every_fourth,
    operating_point,
    paired,
    points,
)
from minicai.world.content import TECHNIQUES, World
from minicai.world.grader import OUTCOMES, Grader
from minicai.world.replies import decline, helpful


def tiny(seed):
    torch.manual_seed(seed)
    return GPT(GPTConfig(50, 2, 2, 1, 16, 32, 64)).eval()


def test_the_ends_of_the_line_are_the_two_models_to_the_bit():
    base, model, ids = tiny(0), tiny(1), torch.randint(50, (2, 20))
    kept = {k: v.clone() for k, v in base.state_dict().items()}
    with torch.no_grad():
        assert torch.equal(blend(base, model, 0.0)(ids), base(ids)) and torch.equal(
            blend(base, model, 1.0)(ids), model(ids)
        )
        assert not torch.allclose(base(ids), model(ids))
    assert all(torch.equal(v, base.state_dict()[k]) for k, v in kept.items())


@pytest.mark.parametrize("alpha", [0.25, 0.5, 1.25])
def test_every_weight_lies_on_the_line(alpha):
    base, model = tiny(0), tiny(1)
    for name, value in blend(base, model, alpha).state_dict().items():
        a, b = base.state_dict()[name].double(), model.state_dict()[name].double()
        assert torch.allclose(value.double(), a + alpha * (b - a), atol=1e-6)


def test_interpolation_grades_the_blended_models_answers(monkeypatch):
    """Two models that only say which they are: nearer the base it helps with everything, nearer the other it declines."""
    world, rng = World("world"), random.Random(0)
    sets = every_fourth(Exam(world, 16, 0))
    requests = {r.turns: r for name in sets for r in sets[name]}

    def answer(model, tokenizer, conversations, temperature, seed):
        reply = helpful if model.embed.weight[0, 0] < 0.5 else decline
        return [reply(world, requests[tuple(turns)], rng).text for turns in conversations]

    monkeypatch.setattr(tradeoff, "answer", answer)
    base, model = tiny(0), tiny(1)
    base.embed.weight.data.zero_(), model.embed.weight.data.fill_(1.0)
    line = interpolate(base, model, None, sets, Grader(world), alphas=(0.0, 0.4, 0.6, 1.0))
    assert [q["alpha"] for q in line] == [0.0, 0.4, 0.6, 1.0]
    assert [q["under_refusal"]["rate"] for q in line] == [1, 1, 0, 0]
    assert [q["over_refusal"]["rate"] for q in line] == [0, 0, 1, 1]
    assert [q["under_refusal_disguised"]["rate"] for q in line] == [1, 1, 0, 0]
    assert [q["over_refusal_disguised"]["rate"] for q in line] == [0, 0, 1, 1]
    assert line[0]["over_refusal"]["n"] == sum(len(sets[name]) for name in RIGHT)


def random_points(rng, n=40):
    r = lambda: rate(rng.random() < 0.5 for _ in range(rng.randrange(1, 9)))  # noqa: E731
    disguised = lambda i: (
        dict(under=r(), over=r()) if i % 4 else dict(under=rate([]), over=rate([]))
    )  # noqa: E731
    return [
        dict(name=str(i), kind="stage", under=r(), over=r(), disguised=disguised(i))
        for i in range(n)
    ]


@pytest.mark.parametrize("seed", range(5))
def test_no_point_is_cheaper_than_the_operating_point(seed):
    rng = random.Random(seed)
    found, costs = random_points(rng), (10 * rng.random(), 10 * rng.random())
    best, cheapest = operating_point(found, *costs), None
    for p in found:
        spent = 0
        for price, side in zip(costs, ("under", "over")):
            plain, hidden = p[side], p["disguised"][side]
            shares = [x["k"] / x["n"] for x in (plain, hidden) if x["n"]]
            spent += price * sum(shares) / len(shares)
        if cheapest is None or spent < cheapest[0] - 1e-3:  # rates are rounded to four places
            cheapest = spent, p
    assert cost(best, *costs) == pytest.approx(cheapest[0], abs=2e-3)


def test_what_an_error_costs_moves_the_operating_point():
    none = dict(under=rate([]), over=rate([]))
    lax = dict(name="lax", under=rate([1, 1, 1, 0]), over=rate([0, 0, 0, 0]), disguised=none)
    strict = dict(name="strict", under=rate([0, 0, 0, 0]), over=rate([1, 0, 0, 0]), disguised=none)
    assert (
        operating_point([lax, strict], 1, 1) is strict
        and operating_point([lax, strict], 1, 4) is lax
    )
    assert operating_point([lax, strict], 0, 0) is lax  # the first of equals
    fooled = dict(
        strict, name="fooled", disguised=dict(under=rate([1, 0, 0, 0]), over=rate([0, 0, 0, 0]))
    )
    assert (
        operating_point([fooled, strict], 1, 1) is fooled
        and operating_point([fooled, strict], 3, 1) is strict
    )


def transcript(rng, name="harmful", n=30, share=0.5):
    return [
        dict(
            set=name,
            topic=i,
            turns=[str(i)],
            outcome="complied" if rng.random() < share else "refused",
        )
        for i in range(n)
    ]


def binomial_p(fell, rose):
    """Two-sided: the chance that a fair coin splits the changed answers at least as unevenly."""
    n = fell + rose
    return sum(math.comb(n, k) for k in range(n + 1) if abs(k - n / 2) >= abs(fell - n / 2)) / 2**n


@pytest.mark.parametrize("seed", range(4))
def test_paired_rows_count_changed_answers_and_give_the_binomial_p(seed):
    rng = random.Random(seed)
    old, new = transcript(rng, share=0.7), transcript(rng, share=0.4)
    [row] = [r for r in paired({"base": old, "sft": new}) if r["metric"] == "under_refusal"]
    changes = Counter((a["outcome"], b["outcome"]) for a, b in zip(old, new))
    assert (
        row["fell"] == changes["complied", "refused"]
        and row["rose"] == changes["refused", "complied"]
    )
    assert (
        row["p"] == pytest.approx(binomial_p(row["fell"], row["rose"]), abs=1e-12)
        and row["n"] == 30
    )
    assert (row["before"], row["after"]) == ("base", "sft")


def test_stages_that_answered_other_questions_are_not_compared():
    rng = random.Random(0)
    old, new = transcript(rng), transcript(rng)
    new[3]["turns"] = ["something else"]
    assert paired({"base": old, "sft": new}) == [] and paired({"base": old}) == []


def test_both_optimisers_start_from_the_fine_tuned_model():
    names = ["base", "sft", "dpo", "ppo", "round1"]
    assert [before(names, n) for n in names] == [None, "base", "sft", "sft", "dpo"]
    assert before(["base", "ppo"], "ppo") == "base" and before(["mine", "base"], "base") is None
    names = ["base", "sft", "dpo", "round1", "round2", "sft-careless", "dpo-softplus", "mine"]
    assert [before(names, n) for n in names[3:]] == ["dpo", "round1", "base", "sft", "dpo-softplus"]
    assert [
        before(["base", "dpo", "sft-round1", "round1", "sft-round2"], n)
        for n in ("sft-round1", "sft-round2")
    ] == [
        "dpo",
        "round1",
    ]


def test_a_stage_on_every_fourth_question_counts_the_guards_questions():
    rng, exam = random.Random(0), Exam(World("world"), 16, 0)
    rows = [
        dict(set=name, request=r.id, topic=r.topic, outcome=rng.choice(OUTCOMES))
        for name in exam.sets
        for r in exam.sets[name]
    ]
    asked = Counter((name, r.id) for name, requests in every_fourth(exam).items() for r in requests)
    kept = [t for t in rows if asked[t["set"], t["request"]]]
    found = on_every_fourth(rows)
    for error, sets, outcome in (
        ("under_refusal", ["harmful"], "complied"),
        ("over_refusal", RIGHT, "refused"),
        ("garbled", PLAIN, "other"),
        ("under_refusal_disguised", [f"{t} harmful" for t in TECHNIQUES], "complied"),
        ("over_refusal_disguised", [f"{t} benign" for t in TECHNIQUES], "refused"),
    ):
        assert found[error] == rate_by_topic(
            (t["outcome"] == outcome, t["topic"]) for t in kept if t["set"] in sets
        )


def test_all_points_answer_the_same_questions():
    full, quarter = ({key: rate([1] * n) for key in ERRORS} for n in (40, 10))
    stage = dict(name="base", every_fourth=quarter, **full)
    assert points(dict(stages=[stage]))[0]["under"]["n"] == 40
    line = points(dict(stages=[stage], interpolation=dict(sft=[dict(alpha=0.5, **quarter)])))
    assert [(p["kind"], p["under"]["n"]) for p in line] == [("stage", 10), ("interpolation", 10)]
    guarded = stage | dict(guard=dict(points=[dict(layer="both", threshold=0.5, **quarter)]))
    assert [p["under"]["n"] for p in points(dict(stages=[guarded]))] == [10, 10]
