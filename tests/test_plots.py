"""Pictures: what is drawn is what was measured."""

import pytest

from minicai import plots
from minicai.report import write_report
from minicai.world.content import TECHNIQUES
from tests.test_report import full_results, least_results

pytest.importorskip("matplotlib")


@pytest.fixture
def axes_of(monkeypatch, tmp_path):
    """axes_of(picture, results) -> the axes of the figure that was saved."""
    from matplotlib import pyplot

    def run(picture, results):
        made = []
        with monkeypatch.context() as patch:
            patch.setattr(pyplot, "close", made.append)
            patch.setattr(pyplot.Figure, "savefig", lambda figure, path, dpi: path.touch())
            picture(results, tmp_path / "x.png")
        assert (tmp_path / "x.png").exists()
        pyplot.close(made[0])
        return made[0].axes

    return run


def test_a_stage_is_called_by_its_name_in_the_field():
    names = ("base", "sft", "dpo", "ppo", "round12", "mine", "dpo-ipo")
    labels = ["base", "SL-CAI", "DPO-CAI", "RL-CAI", "round 12", "mine", "dpo-ipo"]
    assert list(map(plots.stage_label, names)) == labels


def test_the_bars_have_the_height_of_the_rates_and_their_intervals(axes_of):
    results = full_results()
    results["stages"][2]["over_refusal"] |= dict(rate=None, n=0)
    keys = ("under_refusal", "over_refusal")
    for axes, key in zip(axes_of(plots.errors_by_stage, results), keys, strict=True):
        bars = [c for c in axes.containers if hasattr(c, "patches")]
        for group, suffix in zip(bars, ("", "_disguised"), strict=True):
            rates = [stage[key + suffix] for stage in results["stages"]]
            assert [bar.get_height() for bar in group] == [100 * (r["rate"] or 0) for r in rates]
            lines = group.errorbar.lines[2][0].get_segments()
            for rate, line in zip(rates, lines, strict=True):
                ends = [100 * rate["lo"], 100 * rate["hi"]] if rate["n"] else [0, 0]
                assert [y for _, y in line] == pytest.approx(ends)
        labels = [label.get_text() for label in axes.get_xticklabels()]
        assert labels == ["base", "SL-CAI", "DPO-CAI", "RL-CAI", "round 1"]
        assert [text.get_text() for text in axes.get_legend().get_texts()] == [
            "asked plainly",
            "in jailbreaks",
        ]


def test_the_heat_map_has_a_row_for_each_form_and_a_column_for_each_stage(axes_of):
    results = full_results()
    [axes] = axes_of(plots.heat_map, results)
    expected = [
        [100 * stage["jailbreak"][t]["rate"] for stage in results["stages"]] for t in TECHNIQUES
    ]
    assert axes.images[0].get_array().tolist() == expected
    texts = [text.get_text() for text in axes.texts]
    assert texts == [f"{value:.0f}" for row in expected for value in row]
    rows = [label.get_text() for label in axes.get_yticklabels()]
    assert rows == [t.replace("_", " ") for t in TECHNIQUES]


def test_reliability_is_drawn_at_the_middle_of_each_bin_that_has_pairs(axes_of):
    results = full_results()
    bins = results["judge_audit"]["reliability"]
    bins[3] |= dict(rate=None, k=0, n=0)
    [axes] = axes_of(plots.reliability, results)
    drawn = axes.containers[0].lines[0].get_xydata().tolist()
    points = [[100 * (b["low"] + 0.05), 100 * b["rate"]] for b in bins if b["n"]]
    assert len(drawn) == 9 and drawn == [pytest.approx(point) for point in points]
    assert [text.get_text() for text in axes.texts] == [str(b["n"]) for b in bins if b["n"]]


def test_proxy_and_true_reward_are_drawn_against_kl(axes_of):
    results = full_results()
    for axes, key in zip(axes_of(plots.reward_kl, results), ("proxy", "true"), strict=True):
        assert axes.get_title(loc="left").lower().startswith(key)
        lines = {line.get_label(): line.get_xydata().tolist() for line in axes.lines}
        assert lines == {
            name: [[row["kl"], row[key]] for row in rows]
            for name, rows in results["ppo_curves"].items()
        }


def linked(results, tmp_path) -> list[str]:
    """The pictures beside a report, each of which the report links."""
    write_report(results, tmp_path / "report.md")
    text = (tmp_path / "report.md").read_text()
    names = sorted(path.name for path in tmp_path.glob("*.png"))
    assert all(f"({name})" in text for name in names) and text.count("![") == len(names)
    return names


def test_every_picture_that_has_numbers_is_linked(monkeypatch, tmp_path):
    from matplotlib import pyplot

    monkeypatch.setattr(pyplot.Figure, "savefig", lambda figure, path, dpi: path.touch())
    kinds = ("errors", "jailbreaks", "judge", "reward-kl")
    assert linked(full_results(), tmp_path) == [f"report-{kind}.png" for kind in kinds]


def test_pictures_are_written_as_png(tmp_path):
    assert linked(least_results(), tmp_path) == ["report-errors.png", "report-jailbreaks.png"]
    for path in tmp_path.glob("*.png"):
        assert path.read_bytes().startswith(b"\x89PNG") and path.stat().st_size > 5000
