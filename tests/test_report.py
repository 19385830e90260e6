"""Tables for the terminal: every number in its place, whatever of the results is there."""

import math
import random
from collections import Counter

import pytest

from minicai.audit import reliability
from minicai.constitution import Constitution
from minicai.critique import BREAKS, KEEPS
from minicai.exam import BENIGN, HARMFUL, RATES
from minicai.files import UserError
from minicai.metrics import paired_test, rate
from minicai.report import (
    METRICS,
    SKILLS,
    STAGE_2,
    aligned,
    interval,
    lookup,
    markdown,
    paired,
    paired_rows,
    percent,
    same_requests,
    table,
    trained_from,
)
from minicai.transcript import chain_text, comparison_text, for_terminal, with_requests
from minicai.world.content import TECHNIQUES
from minicai.world.grader import OUTCOMES
from minicai.world.requests import PLAIN


def some_rate(rng, n=20):
    return rate(rng.random() < 0.5 for _ in range(n))


def stage(name):
    """An entry of results.json with all its keys and random rates."""
    rng = random.Random(name)
    forms = [{t: some_rate(rng) for t in TECHNIQUES} for _ in range(4)]
    return {key: some_rate(rng) for key in (*RATES, "consistency", "jailbreak_of_refused")} | dict(
        name=name,
        mean_tokens=20.5,
        by_type={t: {o: some_rate(rng) for o in OUTCOMES} for t in PLAIN},
        jailbreak=forms[0] | dict(held_out=forms[1], seen=forms[2]),
        jailbreak_benign=forms[3],
        samples=[dict(set="harmful", turns=["hi", "yes?", "how?"], answer=f"{name} says no")],
    )


def least_results():
    """Of a base alone."""
    return dict(
        world="world",
        preset="smoke",
        seed=7,
        commit="abc123",
        hardware="a machine",
        exam=dict(split="test"),
        keyword_filter=dict(
            words=["want", "so"], under_refusal=rate([1, 0]), over_refusal=rate([1, 0, 0, 0])
        ),
        redteam={},
        chain=[],
        stages=[stage("base")],
        paired=[],
    )


def full_results():
    rng, constitution = random.Random(0), Constitution("constitution.json")
    results = least_results()
    results["stages"] = [stage(name) for name in ("base", "sft", "dpo", "ppo", "round1")]
    results["paired"] = [
        dict(metric="under_refusal", before="base", after="sft", n=20, fell=18, rose=1, p=2**-17),
        dict(metric="over_refusal_disguised", before="dpo", after="round1", n=20, p=0.125)
        | dict(fell=0, rose=4),
    ]
    p = [rng.random() for _ in range(100)]
    results["judge_audit"] = dict(
        accuracy=rate([1] * 3 + [0]),
        length_alone=rate([1, 0]),
        ece=0.125,
        prefers_safe=rate([1] * 9 + [0]),
        reliability=reliability(p, [rng.random() < q for q in p], list(range(100))),
    )
    results["reward_model"] = dict(
        own_accuracy=rate([1] * 5 + [0] * 3),
        own_length_alone=rate([1] * 3),
        agrees_with_labels=dict(accuracy=0.875, n=8, ece=0.1),
    )
    results["skills"] = {key: rate([1] * i + [0]) for i, (key, _) in enumerate(SKILLS)}
    red = dict(judge=rate([1, 0]), grader=rate([1, 1]), agreement=rate([1, 0, 0, 0]))
    results["redteam"] = {"rl/dpo/demo": red | dict(distinct_2=0.5, self_bleu=0.25)}
    curve = [dict(kl=k, proxy=k / 9, true=0.7 - k / 90) for k in range(12)]
    results["ppo_curves"] = {"ppo": curve, "ppo-beta-0": curve[:5]}
    results["training"] = {
        "base": [dict(step=50 * i, loss=9 / i) for i in range(1, 7)],
        "dpo": [dict(step=i, loss=0.7 - i / 50, margin=i / 9, accuracy=0.5) for i in range(9)],
        "round1": [dict(step=i, loss=0.6 - i / 50, margin=i / 8, accuracy=0.5) for i in range(9)],
        "ppo": [dict(step=i, **row) for i, row in enumerate(curve, 1)],
    }
    results["seconds"] = dict(train_base=1000, train_sft=800)
    results["chain"] = [with_requests(chain(constitution), constitution)]
    return results


def chain(constitution):
    return dict(
        type="harmful",
        turns=["Why?"],
        responses=["Because.", "Because.", "I do not know."],
        critiques=[KEEPS, BREAKS],
        principles=[wording.id for wording in constitution.wordings[:2]],
    )


# --- cells and tables ---


def test_a_rate_is_looked_up_by_its_path():
    entry = dict(a=dict(b=rate([1, 0]), ece=0.125))
    assert lookup(entry, "a.b") == rate([1, 0]) and lookup(entry, "a.ece") == dict(rate=0.125)
    assert lookup(entry, "a.none") == lookup(entry, "a.ece.b") == dict(rate=None)
    forms = {t: rate([]) for t in TECHNIQUES}
    assert lookup(dict(jailbreak=forms), "jailbreak_mean") == dict(rate=None)
    forms |= {TECHNIQUES[0]: rate([1]), TECHNIQUES[2]: rate([1, 0]), TECHNIQUES[8]: rate([0])}
    assert lookup(dict(jailbreak=dict(seen=forms)), "jailbreak.seen_mean") == dict(rate=0.5)


def test_a_rate_is_written_with_its_interval_and_n():
    assert percent(rate([])) == interval(rate([])) == "-"
    assert interval(rate([1] * 15 + [0] * 133)) == "10.1 (6.2-16.1), n 148"  # Newcombe 1998
    assert interval(dict(rate=0.125)) == percent(dict(rate=0.125)) == "12.5"


def test_tables_line_up():
    rows = [["what", "a"], ["x", "100.0"], ["longer", "-"]]
    assert aligned(rows) == "what        a\nx       100.0\nlonger      -"
    assert markdown(rows).split("\n")[:3] == ["| what | a |", "| --- | ---: |", "| x | 100.0 |"]
    assert markdown(rows[:1]) == ""


def test_the_table_of_stages_has_every_metric_under_its_stage():
    results = full_results()
    text, stages = table(results), results["stages"]
    head, *lines = text.splitlines()
    assert head.split("  ")[0] == "percent" and head.split()[-2:] == ["1", "better"]
    assert "SL-CAI" in head and "DPO-CAI" in head and "RL-CAI" in head
    for (key, label, better), line in zip(METRICS, lines):
        assert line.startswith(label)
        assert line.removeprefix(label).split() == [
            *(percent(lookup(stage, key)) for stage in stages),
            better,
        ]
    assert "mean tokens of an answer" in text and text.count("20.5") == 5
    assert "A filter of 2 keywords (want, so)" in text and "lets 50.0 % of the harmful" in text
    assert "blocks 25.0 % of the harmless" in text
    assert [line.split()[-4] for line in text.splitlines()[-6:-2]] == [
        "0.0",
        "50.0",
        "66.7",
        "75.0",
    ]
    assert "the base as a critic" not in table(least_results())


def test_every_metric_of_the_tables_is_measured():
    for key, label, better in METRICS:
        assert lookup(stage("base"), key)["rate"] is not None and better in ("low", "high"), label


# --- stages compared question by question ---


@pytest.mark.parametrize(
    "names, start",
    [
        ("base sft dpo ppo round1 round2", "- base sft sft dpo round1"),
        ("base ppo", "- base"),  # without sft.pt: the stage before
        ("mine base sft", "- - base"),
        ("base sft sft-hard dpo-ipo ppo-beta-0 mine", "- base base sft sft ppo-beta-0"),
        ("base dpo round2", "- base dpo"),
    ],
)
def test_each_stage_is_compared_with_the_one_it_was_trained_from(names, start):
    names = names.split()
    assert [trained_from(name, names) or "-" for name in names] == start.split()


def transcript(rng, share, topics):
    """30 answers to each set that counts for an error, half of it erroneous by `share`."""
    sets = ("harmful", "legitimate", "sensitive", HARMFUL[0], BENIGN[8], "fact often")
    return [
        dict(set=name, topic=i % topics, outcome=rng.choices(("complied", "refused"), share)[0])
        for name in sets
        for i in range(30)
    ]


def binomial_p(fell, rose):
    """Two-sided: the chance that a fair coin splits the changed answers at least as unevenly."""
    n = fell + rose
    return sum(math.comb(n, k) for k in range(n + 1) if abs(k - n / 2) >= abs(fell - n / 2)) / 2**n


@pytest.mark.parametrize("seed", range(3))
def test_paired_rows_count_changed_answers_and_test_them(seed):
    rng = random.Random(seed)
    old, new = transcript(rng, (7, 3), 30), transcript(rng, (4, 6), 30)
    rows = {row.pop("metric"): row for row in paired({"base": old, "sft": new})}
    expected = {
        "under_refusal": (("harmful",), "complied"),
        "over_refusal": (("legitimate", "sensitive"), "refused"),
        "under_refusal_disguised": (HARMFUL[:1], "complied"),
        "over_refusal_disguised": (BENIGN[8:], "refused"),
    }
    assert list(rows) == list(expected)
    for metric, (sets, error) in expected.items():
        pairs = [(a, b) for a, b in zip(old, new) if a["set"] in sets]
        changes = Counter((a["outcome"] == error, b["outcome"] == error) for a, b in pairs)
        fell, rose = changes[True, False], changes[False, True]
        p = rows[metric].pop("p")
        found = dict(before="base", after="sft", n=len(pairs), fell=fell, rose=rose)
        assert rows[metric] == found and fell + rose > 5
        if len(sets) == 1:  # one question about each topic
            assert p == pytest.approx(binomial_p(fell, rose), abs=1e-12)


def test_the_test_of_paired_rows_turns_all_questions_about_a_topic_together():
    rng = random.Random(0)
    old, new = transcript(rng, (7, 3), 6), transcript(rng, (4, 6), 6)
    row = paired({"base": old, "dpo": new})[0]
    before, after = ([t["outcome"] == "complied" for t in stage[:30]] for stage in (old, new))
    assert row["p"] == paired_test(before, after, [i % 6 for i in range(30)])
    assert row["p"] != paired_test(before, after)


def test_one_stage_alone_is_compared_with_nothing():
    assert paired({"base": transcript(random.Random(0), (1, 1), 9)}) == []


def test_paired_rows_name_both_stages_and_their_rates():
    results = full_results()
    _, *rows = paired_rows(results)
    base, sft, dpo, _, last = results["stages"]
    before, after = percent(base["under_refusal"]), percent(sft["under_refusal"])
    label = "SL-CAI against base: under-refusal"
    assert rows[0] == [label, "20", before, after, "18", "1", "< 0.0001"] and before != after
    rates = [percent(s["over_refusal_disguised"]) for s in (dpo, last)]
    label = "round 1 against DPO-CAI: over-refusal, disguised"
    assert rows[1] == [label, "20", *rates, "0", "4", "0.1250"]


# --- the terminal ---


def test_the_terminal_shows_a_chain_and_the_same_requests_without_markdown():
    text = same_requests(full_results())
    assert "**" not in text and "\n>\n" not in text
    assert "a chain of Stage 1:" in text and "> Revision: I do not know." in text
    assert "> SL-CAI: sft says no" in text and "> round 1: round1 says no" in text
    results = least_results()
    results["stages"][0]["samples"][0]["answer"] = None
    assert "> base: (did not end)" in same_requests(results)
    assert "chain" not in same_requests(results)


def test_labels_of_the_tables_are_unlike():
    for labels in ([label for _, label, _ in METRICS], [label for _, label in SKILLS]):
        assert len(set(labels)) == len(labels)
    assert len(dict(STAGE_2)) == len(STAGE_2)


# --- transcripts of chains and comparisons ---


@pytest.fixture(scope="module")
def constitution():
    return Constitution("constitution.json")


def test_a_chain_reads_as_a_transcript_with_the_words_of_its_principles(constitution):
    plain, (first, second) = chain(constitution), constitution.wordings[:2]
    told = with_requests(plain, constitution)
    assert told["requests"] == [(w.critique, w.revision) for w in (first, second)]
    assert "requests" not in plain
    whole = chain_text(told)
    parts = ("**Person:** Why?", "**Draft:** Because.", first.critique, KEEPS, second.critique)
    parts += (BREAKS, second.revision, "**Revision:** I do not know.")
    places = [whole.index(part) for part in parts]
    assert places == sorted(places) and whole.count("**Revision:**") == 1
    assert first.revision not in whole  # this step found nothing to change
    assert all(line.startswith(">") for line in whole.splitlines())
    assert "**" not in for_terminal(whole) and "\n>\n" not in for_terminal(whole)


def test_a_chain_may_hold_a_wording_that_is_gone(constitution):
    names = [constitution.wordings[0].id, "gone/0"]
    text = chain_text(with_requests(chain(constitution) | dict(principles=names), constitution))
    assert "**Critique request** (`gone/0`): (no longer in the constitution)" in text
    assert "**Revision request** (`gone/0`): (no longer in the constitution)" in text


def test_a_chain_without_critiques_has_revision_requests_only(constitution):
    plain = chain(constitution) | dict(critiques=[None, None], turns=["Why?", "What?", "One\ntwo"])
    (first, second), text = (
        constitution.wordings[:2],
        chain_text(with_requests(plain, constitution)),
    )
    assert "Critique" not in text and first.revision not in text and second.revision in text
    assert f"Under `{first.id}` no revision came to an end" in text and second.id in text
    assert "> **Assistant:** What?" in text.splitlines() and "> two" in text.splitlines()


@pytest.fixture
def rows(constitution):
    """Comparison 4 as label.py writes it: under two principles by the judge, 7 by the person."""
    row = dict(id=4, kind="ai", turns=["h0w?"], plain=["how?"], by=["policy", "base"])
    row |= dict(a="No way.", b="First this.", a_first=0.25, b_first=0.125, p=0.1875)
    reasons = [["It declines. " + KEEPS, 0.0625], ["It helps. " + BREAKS, 0.9375]]
    first, second = (dict(principle=wording.id) for wording in constitution.wordings[:2])
    return [
        row | first | dict(reasons=reasons),
        row | second | dict(reasons=[]),
        dict(id=7, kind="human", turns=["bread?"], by=["base", "evasive"], a="Bake.", b="Hm.", p=0),
    ]


def test_a_comparison_of_the_judge_explains_itself(rows, constitution):
    first, second = constitution.wordings[:2]
    text = comparison_text(rows, 4, constitution)
    for part in (
        "Person: h0w?",
        "The judge reads: how?",
        "(a, policy): No way.",
        "(b, base): First this.",
        f"Principle {first.id}: {first.critique}",
        f"Critique of (a): It declines. {KEEPS} P(it breaks the principle) = 0.062",
        f"Critique of (b): It helps. {BREAKS} P(it breaks the principle) = 0.938",
        "P((a) is better) = 0.250. The label is 0.188.",
        f"Principle {second.id}: {second.comparison}",  # of the direct judge
        "P((a) is better) = 0.250 with (a) first, 0.125 with (b) first. The label is 0.188.",
    ):
        assert part in text
        text = text[text.index(part) :]  # they come in this order
    text = comparison_text(rows, 4, constitution)
    assert "**" not in text and "simulated" not in text
    plain = [row | dict(plain=row["turns"]) for row in rows[:2]]
    assert "The judge reads" not in comparison_text(plain, 4, constitution)
    gone = [rows[0] | dict(principle="gone/0")]
    assert "Principle gone/0: (no longer" in comparison_text(gone, 4, constitution)


def test_a_comparison_of_the_person_says_which_answer_the_person_prefers(rows, constitution):
    text = comparison_text(rows, 7, constitution)
    assert "(a, base): Bake." in text and "prefers (b)" in text and "Principle" not in text
    assert "prefers (a)" in comparison_text([rows[2] | dict(p=1)], 7, constitution)


def test_a_comparison_that_cannot_be_explained_is_named(rows, constitution):
    with pytest.raises(UserError, match="--explain 9: there is none; there are 4, 7"):
        comparison_text(rows, 9, constitution)
    with pytest.raises(UserError, match="there are none"):
        comparison_text([], 9, constitution)
    del rows[1]["reasons"]
    with pytest.raises(UserError, match="comparison 4 does not say how it was judged"):
        comparison_text(rows, 4, constitution)
