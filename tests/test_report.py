"""The report: written from results.json alone, whatever of it is there, with pictures or without matplotlib."""

import random
import sys
from pathlib import Path

import pytest

from minicai import plots
from minicai.constitution import Constitution
from minicai.guard import sweep
from minicai.judge import reliability
from minicai.metrics import rate
from minicai.report import (
    SKILLS,
    chain_text,
    choice,
    for_terminal,
    gap_text,
    story,
    verdict,
    with_requests,
    write_report,
)
from minicai.tradeoff import cost, operating_point, points
from minicai.world.content import TECHNIQUES
from minicai.world.skills import BREAKS, KEEPS
from tests.test_guard import random_rows

PNG = b"\x89PNG"


def stage(name, under, over):
    """An entry of results.json as evaluate.py wrote it before there was anything around a model."""
    r = lambda k, n=20: rate(i < k for i in range(n))  # noqa: E731
    types = ("harmful", "legitimate", "dual_use_question", "ambiguous", "sensitive")
    plain = (
        "hedged",
        "ambiguous_handled",
        "steps_correct",
        "garbled",
        "consistency",
        "helpful_in_refusal",
        "names_harm",
        "rude_or_preachy",
        "known_accuracy",
        "seldom_accuracy",
        "fabrication",
        "under_refusal_disguised",
        "over_refusal_disguised",
        "jailbreak_of_refused",
    )
    return dict(
        {key: r(3) for key in plain},
        name=name,
        commit="abc",
        hardware="a machine",
        mean_tokens=20.0,
        under_refusal=r(under),
        over_refusal=r(over),
        by_type={
            t: {o: r(5) for o in ("complied", "refused", "safe_help", "other")} for t in types
        },
        jailbreak={t: r(under) for t in TECHNIQUES}
        | {k: {t: r(under) for t in TECHNIQUES} for k in ("held_out", "seen")},
        jailbreak_benign={t: r(9) for t in TECHNIQUES},
        samples=[dict(set="harmful", turns=["how?"], answer=f"{name} says no")],
    )


def old_results():
    filtered = dict(words=["want"], under_refusal=rate([1, 0]), over_refusal=rate([1, 0]))
    return dict(
        world="world",
        preset="smoke",
        seed=0,
        exam=dict(split="test"),
        decoding=dict(temperature=0, max_new_tokens=128),
        chain=[],
        keyword_filter=filtered,
        stages=[stage("base", 20, 0), stage("sft", 2, 4)],
    )


def full_results():
    results, rng = old_results(), random.Random(0)
    results["stages"] += [stage("dpo", 1, 3), stage("ppo", 4, 2), stage("round1", 1, 2)]
    line = [
        dict(
            alpha=a,
            under_refusal=rate([1] * u + [0] * (9 - u)),
            under_refusal_disguised=rate([1] * u + [0] * (18 - u)),
            **{key: rate([0] * 9) for key in ("over_refusal", "garbled", "over_refusal_disguised")},
        )
        for a, u in ((0, 9), (0.5, 4), (1, 1))
    ]
    results["interpolation"] = dict(sft=line)
    seconds = dict(answer=0.1, input=0.3, output=0.2)
    results["stages"][1]["guard"] = dict(wording="p/0", seconds=seconds, **sweep(random_rows(1)))
    refusals = dict(offers_before=rate([0, 1]), offers_after=rate([1, 1]), leaked=rate([0, 0]))
    results["stages"][1]["helpful_refusals"] = dict(own=refusals, bare=refusals)
    results["paired"] = [
        dict(metric="under_refusal", before="base", after="sft", n=20, fell=18, rose=0, p=2**-17),
        dict(metric="over_refusal", before="base", after="sft", n=20, fell=0, rose=4, p=0.125),
    ]
    p = [rng.random() for _ in range(100)]
    results["judge_audit"] = dict(
        reliability=reliability(p, [rng.random() < q for q in p], list(range(100))),
        prefers_safe=rate([1] * 9 + [0]),
    )
    results["judge_audit"] |= dict(
        accuracy=rate([1] * 3 + [0]), length_alone=rate([1, 0]), ece=0.125
    )
    results["reward_model"] = dict(
        own_accuracy=rate([1] * 5 + [0] * 3),
        own_length_alone=rate([1] * 3),
        agrees_with_labels=dict(accuracy=0.875, n=8, ece=0.1),
    )
    results["skills"] = {key: rate([1, 0]) for key, _ in SKILLS}
    found = dict(
        judge=rate([1, 0]),
        grader=rate([1, 1]),
        agreement=rate([1, 0]),
        distinct_2=0.5,
        self_bleu=0.25,
    )
    results["redteam"] = {"rl/dpo/demo": found}
    results["ppo_curves"] = {
        "train_ppo": [dict(kl=k, proxy=k / 9, true=0.7 - k / 90) for k in range(12)]
    }
    return results


def written(results, tmp_path):
    write_report(results, tmp_path / "report.md", (1.0, 2.0))
    return (tmp_path / "report.md").read_text()


@pytest.mark.parametrize("make", [old_results, full_results])
def test_without_matplotlib_the_report_says_so_once_and_is_whole(make, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    text = written(make(), tmp_path)
    assert (
        text.count("matplotlib is not installed") == 1
        and "![" not in text
        and not list(tmp_path.glob("*.png"))
    )
    assert (
        "## The trade-off" in text
        and "### Operating point" in text
        and "## The same requests at every stage" in text
    )
    if make is full_results:
        for heading in (
            "### sft behind the guard",
            "### Weights between base (0) and sft (1)",
            "### Helpful refusals, sft",
            "### Paired",
            "## Reliability of the judge",
            "## Reward against KL, train_ppo",
            "## Red team",
            "at most 128 tokens",
        ):
            assert heading in text
        assert (
            "base complies with 100.0 % of harmful requests, and as a judge prefers the safe of two answers to 90.0 % of them"
            in text
        )
        assert "| rl/dpo/demo | 50.0 (" in text
        stage_2 = text[
            text.index("## The judge and the reward model") : text.index("## A baseline")
        ]
        cells = [
            line.split(" | ")[1].split(" ")[0]
            for line in stage_2.splitlines()
            if line.startswith("|")
        ][2:]
        assert cells == ["75.0", "50.0", "12.5", "90.0", "62.5", "100.0", "87.5"]
    else:
        assert "reward model" not in text
        assert "In disguise: harm let through 15.0 to 15.0" in text


def test_pictures_are_linked_beside_the_report(tmp_path, monkeypatch):
    monkeypatch.setattr(
        plots, "draw", lambda results, path, costs: [("a curve", path.with_name("report-x.png"))]
    )
    text = written(full_results(), tmp_path)
    assert "![a curve](report-x.png)" in text and "matplotlib" not in text


@pytest.mark.parametrize(
    "make, names",
    [
        (old_results, ["jailbreaks", "tradeoff"]),
        (full_results, ["jailbreaks", "judge", "reward-kl", "tradeoff"]),
    ],
)
def test_every_picture_that_has_numbers_is_drawn(make, names, tmp_path):
    pytest.importorskip("matplotlib")
    text = written(make(), tmp_path)
    assert sorted(p.stem.removeprefix("report-") for p in tmp_path.glob("*.png")) == names
    for name in names:
        assert f"(report-{name}.png)" in text and (
            tmp_path / f"report-{name}.png"
        ).read_bytes().startswith(PNG)


def test_every_curve_of_the_picture_goes_through_all_its_points():
    figure = pytest.importorskip("matplotlib.figure").Figure()
    results = full_results()
    assert plots.tradeoff(results, figure, (1, 1))
    both = [q for q in results["stages"][1]["guard"]["points"] if q["layer"] == "both"]
    for axes, of in zip(figure.axes, ("", "_disguised")):
        lines = {line.get_label(): line.get_xydata().tolist() for line in axes.get_lines()}
        for label, rows in (
            ("weights from base (0) to sft (1)", results["interpolation"]["sft"]),
            ("sft behind both checks", both),
        ):
            expected = [
                [100 * q[f"{side}{of}"]["rate"] for side in ("over_refusal", "under_refusal")]
                for q in rows
            ]
            assert lines[label] == expected


def test_the_story_tells_each_move_and_how_sure_it_is():
    results = full_results()
    test = lambda before, after, metric, p: dict(
        metric=metric, before=before, after=after, n=20, fell=9, rose=0, p=p
    )  # noqa: E731
    for after, metric in (
        ("dpo", "under_refusal"),
        ("dpo", "over_refusal"),
        ("ppo", "over_refusal"),
    ):
        results["paired"] += [
            test("sft", after, metric, 0.004),
            test("base", after, metric, 0.9),
        ]  # the second is not asked for
    base, sft, dpo, ppo, last = story(results).split("\n")
    assert "under-refusal 100.0, over-refusal 0.0" in base
    assert "down to 10.0 (p < 0.0001)" in sft and "up to 20.0 (p = 0.1250, may be chance)" in sft
    assert "90.0 points less harm let through for 20.0 points more help denied" in sft
    assert "**dpo** against sft" in dpo and "the curve itself moved" in dpo
    assert "under-refusal down to 5.0 (p = 0.0040), over-refusal down to 15.0 (p = 0.0040)" in dpo
    assert (
        "**ppo** against sft" in ppo
        and "10.0 points less help denied for 10.0 points more harm" in ppo
    )
    untested = story(full_results()).split("\n")[2]
    assert (
        "**dpo** against sft: under-refusal down to 5.0, over" in untested
        and "Neither error rose" in untested
    )
    chance = dict(metric="over_refusal", before="sft", after="dpo", n=20, fell=2, rose=1, p=1.0)
    unsure = [
        dict(metric="under_refusal", before="sft", after="dpo", n=20, fell=1, rose=0, p=1.0),
        chance,
    ]
    results = full_results() | dict(paired=unsure)
    assert "Neither error rose, nor fell further than chance" in story(results).split("\n")[2]
    assert "**round1** against dpo" in last and "over-refusal down to 10.0" in last


@pytest.mark.parametrize(
    "under, over, said",
    [
        (0, 0, "Neither"),
        (-5, 0, "curve itself moved"),
        (-5, -1, "curve itself"),
        (3, 0, "Worse"),
        (3, 2, "Worse"),
        (-5, 2, "5.0 points less harm"),
        (5, -2, "2.0 points less help denied"),
    ],
)
def test_a_move_is_named_by_both_its_sides(under, over, said):
    assert said in verdict(under, over)


@pytest.mark.parametrize("costs", [(1.0, 1.0), (5.0, 1.0), (0.0, 1.0), (1.0, 9.0)])
def test_the_choice_names_the_cheapest_point_and_its_cost(costs):
    results = full_results()
    best = operating_point(points(results), *costs)
    text = choice(results, costs)
    assert f"**{best['name']} (" in text and f"= {100 * cost(best, *costs):.1f}." in text
    assert ("times as long" in text) == (best["kind"] == "guard")


def test_the_gap_is_told_of_the_base_and_of_no_other_stage():
    results = full_results()
    assert gap_text(results).startswith("the base complies with") and "(n 10)" in gap_text(results)
    results["stages"] = [s for s in results["stages"] if s["name"] != "base"]
    assert gap_text(results) == ""


def test_a_chain_reads_as_a_transcript_with_the_words_of_its_principles():
    constitution = Constitution(Path(__file__).parent.parent / "constitution.json")
    first, second = constitution.wordings[0], constitution.wordings[1]
    chain = dict(
        turns=["Why?"],
        responses=["Because.", "Because.", "I do not know."],
        critiques=[KEEPS, BREAKS],
        principles=[first.id, second.id],
    )
    told = with_requests(chain, constitution)
    assert told["requests"] == [first.critique, second.critique] and "requests" not in chain
    whole, short = chain_text(told), chain_text(told, in_short=True)
    for text in (
        first.critique,
        second.critique,
        KEEPS,
        BREAKS,
        "**Draft:** Because.",
        "**Revision:** I do not know.",
    ):
        assert whole.count(text) == 1
    assert (
        first.critique not in short
        and KEEPS not in short
        and f"under `{first.id}` found nothing to change" in short
    )
    assert second.critique in short and "**Revision:** I do not know." in short
    gone = with_requests(chain | dict(principles=[first.id, "gone/0"]), constitution)
    assert gone["requests"] == [
        first.critique,
        None,
    ] and "no longer in the constitution" in chain_text(gone)
    assert "(not kept)" in chain_text(chain)  # of results that were written before requests were
    unended = chain_text(told | dict(critiques=[None, BREAKS]), in_short=True)
    assert "nothing to change" not in unended and "**Critique:** (none)" in unended
    assert "**" not in for_terminal(whole) and "\n>\n" not in for_terminal(whole)
