"""The trade-off: weights between two models, and the cheapest of all measured points."""

import json
import random
import xml.etree.ElementTree as ET

import pytest
import torch

from experiments import interpolate
from experiments.interpolate import blend, cost, errors, name_points
from minicai.exam import BENIGN, ERRORS, HARMFUL, Exam
from minicai.files import UserError, load_policy, write_json
from minicai.gpt import GPT, GPTConfig
from minicai.metrics import rate
from minicai.run import SIZES
from minicai.world.content import World
from minicai.world.grader import Grader
from minicai.world.replies import decline, helpful
from minicai.world.requests import HARMLESS, PLAIN


def tiny(seed):
    torch.manual_seed(seed)
    return GPT(GPTConfig(50, 2, 2, 1, 16, 32, 64)).eval()


def test_the_ends_of_the_line_are_the_two_models_to_the_bit():
    base, model, ids = tiny(0), tiny(1), torch.randint(50, (2, 20))
    kept = {k: v.clone() for k, v in base.state_dict().items()}
    with torch.no_grad():
        assert torch.equal(blend(base, model, 0.0)(ids), base(ids))
        assert torch.equal(blend(base, model, 1.0)(ids), model(ids))
        assert not torch.allclose(base(ids), model(ids))
    assert all(torch.equal(v, base.state_dict()[k]) for k, v in kept.items())


@pytest.mark.parametrize("alpha", [0.25, 0.5, 1.25])
def test_every_weight_lies_on_the_line(alpha):
    base, model = tiny(0), tiny(1)
    for name, value in blend(base, model, alpha).state_dict().items():
        a, b = base.state_dict()[name].double(), model.state_dict()[name].double()
        assert torch.allclose(value.double(), a + alpha * (b - a), atol=1e-6)


@pytest.fixture
def scripted(monkeypatch):
    """scripted(world, requests, helps): the model helps if helps(model), and else declines."""

    def run(world, requests, helps):
        requests = {r.turns: r for r in requests}

        def answer(model, tokenizer, conversations):
            make, rng = helpful if helps(model) else decline, random.Random(0)
            return [make(world, requests[tuple(turns)], rng).text for turns in conversations]

        monkeypatch.setattr(interpolate, "answer", answer)

    return run


def test_both_errors_of_a_model_are_those_of_its_answers(scripted):
    """Of two models that only say which they are, a blend helps when it is nearer the base."""
    world, sets = World("world"), Exam(World("world"), 8, 0).sets
    asked = [(name, r) for name in (*PLAIN, *HARMFUL, *BENIGN) for r in sets[name]]
    scripted(world, [r for _, r in asked], lambda model: model.embed.weight[0, 0] < 0.5)
    base, model = tiny(0), tiny(1)
    base.embed.weight.data.zero_(), model.embed.weight.data.fill_(1.0)
    near, far = (errors(blend(base, model, a), None, asked, Grader(world)) for a in (0.4, 0.6))
    for suffix in ("", "_disguised"):
        under, over = f"under_refusal{suffix}", f"over_refusal{suffix}"
        assert near[under]["rate"] == far[over]["rate"] == 1
        assert near[over]["rate"] == far[under]["rate"] == 0
    assert near["garbled"]["k"] == far["garbled"]["k"] == 0 and near["garbled"]["n"] == 40
    assert near["over_refusal"]["n"] == sum(len(sets[name]) for name in HARMLESS)
    assert near["under_refusal_disguised"]["n"] == sum(len(sets[name]) for name in HARMFUL)


def point(under, over, hidden_under=None, hidden_over=None, **more):
    """A measured point. The shares are counted on 10 answers, None on none."""
    shares = (under, over, hidden_under, hidden_over)
    rates = [rate([] if x is None else [i < 10 * x for i in range(10)]) for x in shares]
    keys = ("under_refusal", "over_refusal", "under_refusal_disguised", "over_refusal_disguised")
    return dict(zip(keys, rates)) | more


def test_the_cost_weighs_both_errors_each_the_mean_of_plain_and_disguised():
    assert cost(point(0.2, 0.4, 0.6, 0.0), 1, 1) == pytest.approx(40 + 20)
    assert cost(point(0.2, 0.4, 0.6, 0.0), 3, 0.5) == pytest.approx(120 + 10)
    assert cost(point(0.2, 0.4), 1, 2) == pytest.approx(20 + 80)  # nothing in disguise was asked
    assert cost(point(None, 0.4), 1, 1) == pytest.approx(40)


@pytest.fixture
def lines():
    ends = dict(alpha=0, **point(0.9, 0.0, 1.0, 0.0)), dict(alpha=1, **point(0.0, 0.2, 0.2, 0.2))
    return dict(sft=[ends[0], dict(alpha=0.75, **point(0.1, 0.0, 0.2, 0.1)), ends[1]])


GUARDS = dict(sft=dict(points=[point(0.0, 0.4, 0.0, 0.2, layer="both", threshold=0.5)]))


def test_every_point_has_a_name(lines):
    points = name_points(lines, GUARDS)
    assert list(points.values()) == [*lines["sft"], *GUARDS["sft"]["points"]]
    assert list(points) == [
        "base",
        "base to sft, alpha 0.75",
        "sft",
        "sft behind a guard (both, 0.5)",
    ]


@pytest.mark.parametrize(
    "costs, choice, stage",
    [
        ((1, 1), "base to sft, alpha 0.75", "sft"),  # 20, where base is 95, sft 30 and a guard 30
        ((3, 0.1), "sft behind a guard (both, 0.5)", "sft"),  # 3; the blend 45.5, sft 32
        ((0, 1), "base", "base"),  # refusals alone cost something
    ],
)
def test_the_cheapest_point_is_chosen(
    call, lines, tmp_path, monkeypatch, capsys, costs, choice, stage
):
    monkeypatch.setattr(interpolate, "measure", lambda args: lines)
    guards = dict(sft=dict(points=[GUARDS["sft"]["points"][0] | dict(ambiguous_handled=rate([1]))]))
    write_json(tmp_path / "guard.json", guards)
    options = ("--cost-under", costs[0], "--cost-over", costs[1])
    call(interpolate.interpolate, "--out", tmp_path, *options)
    written, text = json.loads((tmp_path / "interpolate.json").read_text()), capsys.readouterr().out
    assert written["choice"] == choice and written["costs"] == list(costs)
    assert written["lines"] == lines
    price = cost(name_points(lines, guards)[choice], *costs)
    assert (
        f"the cheapest of 4 points is {choice} ({price:.1f}). The cheapest stage is {stage}" in text
    )
    assert ("100.0 % of ambiguous requests are handled" in text) == ("guard" in choice)
    assert "with the cheapest point circled" in text and (tmp_path / "tradeoff.svg").exists()


def test_a_guard_that_answered_other_questions_is_refused(call, lines, tmp_path, monkeypatch):
    monkeypatch.setattr(interpolate, "measure", lambda args: lines)
    other = GUARDS["sft"]["points"][0] | dict(over_refusal=rate([1]))
    write_json(tmp_path / "guard.json", dict(sft=dict(points=[other])))
    with pytest.raises(UserError, match="guard.json is of another --eval-n"):
        call(interpolate.interpolate, "--out", tmp_path)


def test_the_line_of_each_checkpoint_ends_at_the_base_and_at_the_checkpoint(
    call, copy, scripted, monkeypatch
):
    out = copy("base.pt", "sft.pt", "dpo.pt")
    models = {name: load_policy(out / f"{name}.pt")[0] for name in ("base", "sft", "dpo")}
    weights = {name: model.embed.weight for name, model in models.items()}
    world, n = World("world"), SIZES["eval_n"][0]
    sets, met = Exam(world, n, 0).sets, []

    def helps(model):
        met.extend(name for name, w in weights.items() if torch.equal(w, model.embed.weight))
        return torch.equal(weights["base"], model.embed.weight)

    scripted(world, [r for requests in sets.values() for r in requests], helps)
    monkeypatch.setattr(interpolate, "ALPHAS", (0.0, 0.5, 1.0))
    call(interpolate.interpolate, "--out", out)
    found = json.loads((out / "interpolate.json").read_text())
    assert met == ["base", "sft", "base", "dpo"] and list(found["lines"]) == ["sft", "dpo"]
    for line in found["lines"].values():
        assert [q["alpha"] for q in line] == [0, 0.5, 1] and set(ERRORS) < line[0].keys()
        assert [q["under_refusal"]["rate"] for q in line] == [1, 0, 0]
        assert [q["over_refusal_disguised"]["rate"] for q in line] == [0, 1, 1]
        assert line[0]["under_refusal"]["n"] == len(sets["harmful"][::4]) == -(-n // 4)


def test_the_picture_goes_through_all_points(lines, tmp_path):
    best = GUARDS["sft"]["points"][0]
    interpolate.draw(lines, GUARDS, best, tmp_path / "tradeoff.svg")
    both = ET.parse(tmp_path / "tradeoff.svg").getroot().findall("./{*}svg")
    for chart, suffix in zip(both, ("", "_disguised"), strict=True):

        def ticks(axis, look, chart=chart):
            found = [e for e in chart.iter() if {"tick", look} <= {*e.get("class", "").split()}]
            return {float(e.text): float(e.get(axis)) for e in found if e.text.isdigit()}

        across, up = ticks("x", "middle"), ticks("y", "end")

        def place(q, across=across, up=up, suffix=suffix):
            over, under = (100 * q[f"{s}_refusal{suffix}"]["rate"] for s in ("over", "under"))
            wide, high = across[100] - across[0], up[100] - up[0]
            x, y = across[0] + wide * (over / 100) ** 0.5, up[0] + high * (under / 100) ** 0.5
            return pytest.approx((x, y - 4), abs=0.2)  # a label stands 4 below its line

        through = [
            [tuple(map(float, at.split(","))) for at in e.get("points").split()]
            for e in chart.iter()
            if e.tag.endswith("polyline")
        ]
        points = [lines["sft"], GUARDS["sft"]["points"]]
        assert through == [[place(q) for q in line] for line in points]
        [ring] = [e for e in chart.iter() if e.get("r") == "9"]
        assert (float(ring.get("cx")), float(ring.get("cy"))) == place(best)
