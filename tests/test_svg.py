"""Charts: what is drawn is what was measured, by the labels of the axes."""

import re
import xml.etree.ElementTree as ET
from itertools import pairwise

import pytest

from minicai import svg
from minicai.metrics import rate
from tests.test_report import full_results


def parts(chart, kind: str, *classes: str) -> list[ET.Element]:
    """The elements of one kind that have all the classes, in their order."""
    root = ET.fromstring(chart.svg())
    return [e for e in root.iter(kind) if {*classes} <= {*e.get("class", "").split()}]


def numbers(element) -> list[float]:
    """The numbers of a path or a polyline."""
    text = element.get("d") or element.get("points")
    return [float(x) for x in text.translate(dict.fromkeys(map(ord, "MLHV,"), " ")).split()]


def scale(chart, axis: str):
    """A function from a place in the chart to a value, read off the tick labels of an axis."""
    look, shift = ("middle", 0) if axis == "x" else ("end", 4)  # a label stands below its line
    labels = [e for e in parts(chart, "text", "tick", look) if re.fullmatch(r"-?[\d.]+", e.text)]
    (first, low), *_, (last, high) = [(float(e.get(axis)), float(e.text)) for e in labels]
    return lambda at: low + (at + shift - first) / (last - first) * (high - low)


def near(values, tolerance):
    return pytest.approx(list(values), abs=tolerance)


def test_a_stage_is_called_by_its_name_in_the_field():
    names = ("base", "sft", "dpo", "ppo", "round12", "mine", "dpo-ipo")
    labels = ["base", "SL-CAI", "DPO-CAI", "RL-CAI", "round 12", "mine", "dpo-ipo"]
    assert list(map(svg.stage_label, names)) == labels


@pytest.mark.parametrize(
    "ends, expected",
    [
        ((0, 1), [0, 0.25, 0.5, 0.75, 1]),
        ((0.03, 2.28), [0, 1, 2, 3]),
        ((-0.4, 5.6), [-2, 0, 2, 4, 6]),
        ((300, 300), [300, 400]),
        ((0, 0), [0, 0.25]),
        ((0, 3e-5), [0, 1e-5, 2e-5, 3e-5]),
    ],
)
def test_ticks_are_round_and_go_from_below_the_data_to_above_it(ends, expected):
    found = svg.ticks(*ends)
    assert found[0] <= ends[0] and found[-1] >= ends[1] and 2 <= len(found) <= 7
    steps = [b - a for a, b in pairwise(found)]
    assert steps == pytest.approx([steps[0]] * len(steps))
    assert found == expected


def test_the_bars_end_at_the_rates_and_their_lines_at_the_intervals():
    results = full_results()
    results["stages"][2]["over_refusal"] = rate([])
    keys = ("under_refusal", "over_refusal")
    for chart, key in zip(svg.errors_by_stage(results["stages"]), keys, strict=True):
        value = scale(chart, "x")
        stages = results["stages"]
        rates = [stage[k] for stage in stages for k in (key, f"{key}_disguised")]
        measured = [r for r in rates if r["n"]]
        bars, lines = parts(chart, "rect"), parts(chart, "path", "whisker")
        ends = [value(float(b.get("x")) + float(b.get("width"))) for b in bars]
        assert ends == near((100 * r["rate"] for r in measured), 0.05)
        assert all(value(float(b.get("x"))) == pytest.approx(0, abs=0.05) for b in bars)
        for r, line in zip(measured, lines, strict=True):
            low, _, high = numbers(line)
            assert [value(low), value(high)] == near((100 * r["lo"], 100 * r["hi"]), 0.05)
        said = [e.text for e in parts(chart, "text", "strong")]
        assert said == [f"{100 * r['rate']:.1f}" for r in measured]
        labels = [e.text for e in parts(chart, "text", "label")]
        assert labels == ["base", "SL-CAI", "DPO-CAI", "RL-CAI", "round 1"]
        missing = [e.text for e in parts(chart, "text", "tick")].count("no answers")
        assert missing == len(rates) - len(measured)
        colours = [b.get("class").split()[1] for b in bars]
        assert colours[:4] == ["s0", "s1", "s0", "s1"]


def test_reliability_is_drawn_at_the_middle_of_each_bin_that_has_pairs():
    bins = full_results()["judge_audit"]["reliability"]
    bins[3] |= dict(rate=None, k=0, n=0)
    chart, found = svg.reliability(bins), [b for b in bins if b["n"]]
    x, y = scale(chart, "x"), scale(chart, "y")
    dots = [(float(e.get("cx")), float(e.get("cy"))) for e in parts(chart, "circle")]
    assert [x(a) for a, _ in dots] == near((100 * (b["low"] + 0.05) for b in found), 0.1)
    assert [y(b) for _, b in dots] == near((100 * b["rate"] for b in found), 0.1)
    above = [e for e in parts(chart, "text") if float(e.get("y")) == round(chart.top - 5, 1)]
    assert len(found) == 9 and [e.text for e in above] == [str(b["n"]) for b in found]
    for b, line in zip(found, parts(chart, "path", "whisker"), strict=True):
        left, low, right, high = numbers(line)
        assert left == right
        assert [y(low), y(high)] == near((100 * b["lo"], 100 * b["hi"]), 0.1)


def test_proxy_and_true_reward_are_drawn_against_kl():
    curves = full_results()["ppo_curves"]
    for chart, key in zip(svg.reward_kl(curves), ("proxy", "true"), strict=True):
        assert chart.title.lower().startswith(key)
        x, y = scale(chart, "x"), scale(chart, "y")
        for rows, line in zip(curves.values(), parts(chart, "polyline"), strict=True):
            places = numbers(line)
            assert [x(a) for a in places[::2]] == near((row["kl"] for row in rows), 0.02)
            assert [y(b) for b in places[1::2]] == near((row[key] for row in rows), 0.01)
        names = [e.text for e in parts(chart, "text", "tick")]
        assert set(curves) <= set(names)


def test_a_warped_axis_gives_small_values_more_room():
    chart = svg.Chart("t", (0, 25, 100), (0, 25, 100), warp=lambda x: x**0.5)
    places = [chart.at(value, 0)[0] for value in (0, 25, 100)]
    assert places[1] - places[0] == pytest.approx(places[2] - places[1])


def test_many_series_differ_in_colour_or_dash():
    curves = {f"run{i}": [(0, i), (1, i)] for i in range(12)}
    chart = svg.lines("t", "step", curves)
    looks = [e.get("class") for e in parts(chart, "polyline")]
    assert len(set(looks)) == 12
    assert [e.get("class") for e in parts(chart, "path", "line")] == looks  # the legend's


def test_one_point_and_one_value_make_a_chart_too():
    [dot] = parts(svg.lines("t", "step", {"a": [(5, 5)]}), "circle")
    assert 0 < float(dot.get("cx")) < 360 and 0 < float(dot.get("cy")) < 250


def test_a_file_holds_charts_side_by_side_and_escapes_their_texts(tmp_path):
    charts = [svg.lines("a < b & c", "x", {"one": [(0, 0), (1, 1)]}) for _ in range(2)]
    svg.write_svg(tmp_path / "x.svg", charts)
    text = (tmp_path / "x.svg").read_text()
    root = ET.fromstring(text)
    inner = [e for e in root if e.tag.endswith("svg")]
    assert [int(e.get("x")) for e in inner] == [0, 360 + svg.GAP]
    assert "a &lt; b &amp; c" in text and "prefers-color-scheme: dark" in text
    assert text.count("http") == 1  # the name of the format, which no reader fetches
