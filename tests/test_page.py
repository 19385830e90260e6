"""The page: one file, every text escaped, every number that of the results, whatever there is."""

import html
import random
import re
from html.parser import HTMLParser

import pytest

from minicai import cards, page
from minicai.exam import BENIGN, HARMFUL
from minicai.files import UserError, read_json, write_jsonl
from minicai.metrics import rate
from minicai.page import write_page
from minicai.report import METRICS, NO_BETTER, interval, lookup, percent
from minicai.world.content import TECHNIQUES
from minicai.world.requests import PLAIN
from tests.test_report import full_results, least_results

VOID = {"meta", "input", "br", "img", "link", "hr"}
SETS = (*PLAIN, "harmful again", "fact often", "fact seldom", "fact never", *HARMFUL, *BENIGN)
OUTCOMES = dict(good="refused", partly="safe_help", bad="other")


class Tree(HTMLParser):
    """Sections of a page: their texts, the rows of their tables, and their articles."""

    def __init__(self, text: str):
        super().__init__()
        self.open, self.section, self.texts, self.rows, self.articles = [], "head", {}, {}, {}
        self.feed(text)
        self.close()
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        if tag not in VOID:
            self.open.append(tag)
        if tag == "section":
            self.section = attributes["id"]
        if tag == "tr":
            self.rows.setdefault(self.section, []).append([])
        if tag in ("th", "td"):
            self.rows[self.section][-1].append("")
            assert tag == "td" or attributes["scope"] in ("row", "col")
        if tag == "article":
            self.articles.setdefault(self.section, []).append(attributes["data-set"])

    def handle_startendtag(self, tag, attributes):
        pass  # shapes of charts

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, f"</{tag}> closes another element"
        if tag == "section":
            self.section = "tail"

    def handle_data(self, data):
        self.texts[self.section] = self.texts.get(self.section, "") + data
        if "small" in self.open and {"th", "td"} & {*self.open}:
            data = f" {data}"
        if {"th", "td"} & {*self.open}:
            self.rows[self.section][-1][-1] += data


def exam_rows(stage: str, n: int, text: str = "An answer.") -> list[dict]:
    """n rows a set, with an answer that says which it is."""
    rng, rows = random.Random(stage), []
    for name in SETS:
        for i in range(n):
            mark = rng.choice(list(OUTCOMES))
            row = dict(set=name, turns=[f"{name} question {i}?"], answer=f"{stage} {i}: {text}")
            rows.append(row | dict(outcome=OUTCOMES[mark], verdict=mark))
    return rows


def transcripts(results: dict, n: int, text: str = "An answer.") -> dict:
    return {stage["name"]: exam_rows(stage["name"], n, text) for stage in results["stages"]}


def whole_page(results, rows) -> tuple[str, Tree]:
    text = page.page(results, rows)
    return text, Tree(text)


# --- what is on it ---


def test_a_full_page_has_every_section_in_order_and_links_to_each():
    results = full_results()
    text, tree = whole_page(results, transcripts(results, 3))
    sections = re.findall(r'<section id="(\w+)">', text)
    assert sections == [
        "errors",
        "same",
        "chains",
        "jailbreaks",
        "audits",
        "numbers",
        "training",
        "transcripts",
    ]
    assert re.findall(r'<a href="#(\w+)">', text) == sections
    head = tree.texts["head"]
    assert "Preset smoke, seed 7, a machine, trained in 30 minutes." in head
    assert "from the test split of world/" in head and "abc123" not in text
    assert "The last stage: round 1" in head
    assert text.count("<h1>") == 1 and text.startswith("<!DOCTYPE html>")


def row_of(tree: Tree, section: str, label: str) -> list[str]:
    [found] = [row[1:] for row in tree.rows[section] if row[0].lstrip("↑↓ ") == label]
    return found


def written(found: dict) -> str:
    """A rate as a cell of the page has it."""
    return (
        interval(found).replace("-", "–").replace(" (", " ").replace(")", "")
        if (found["rate"] is not None)
        else "-"
    )


def test_the_numbers_are_those_of_the_results():
    results = full_results()
    _, tree = whole_page(results, {})
    stages = results["stages"]
    for key, label, better in METRICS:
        label = label.strip()
        cells = row_of(tree, "numbers", label)
        assert cells == [written(lookup(stage, key)) for stage in stages]
        arrow = dict(low="↓", high="↑")[better]
        assert any(row[0].startswith(arrow) and label in row[0] for row in tree.rows["numbers"])
    for key in ("ambiguous_handled", "steps_correct", "rude_or_preachy", "known_accuracy"):
        [label] = [label for k, label, _ in METRICS if k == key]
        assert row_of(tree, "errors", label) == [written(stage[key]) for stage in stages]
    headlines = re.findall(r"(\d+\.\d)%, base (\d+\.\d)", tree.texts["head"])
    keys = ("under_refusal", "over_refusal", "ambiguous_handled", "jailbreak_mean")
    ends = [(percent(lookup(stages[-1], k)), percent(lookup(stages[0], k))) for k in keys]
    assert headlines == ends
    rows = [row for row in tree.rows["jailbreaks"] if row[0] == TECHNIQUES[0].replace("_", " ")]
    harm, benign = (
        [written(s[k][TECHNIQUES[0]]) for s in stages] for k in ("jailbreak", "jailbreak_benign")
    )
    assert [row[1:] for row in rows] == [harm, benign]
    audits = tree.rows["audits"]
    measured = [row[1].split(" ")[0] for row in audits if row[1] != "percent"]
    expected = ["75.0", "50.0", "12.5", "90.0", "62.5", "100.0", "87.5"]
    assert measured == [*expected, "0.0", "50.0", "66.7", "75.0"]
    red = row_of(tree, "jailbreaks", "rl/dpo/demo")
    assert [cell.split()[0] for cell in red] == ["50.0", "100.0", "25.0", "50.0", "25.0"]
    assert "lets 50.0 % of the harmful requests through" in tree.texts["numbers"]
    pair = row_of(tree, "numbers", "SL-CAI against base: under-refusal")
    assert pair[0] == "20" and pair[3:] == ["18", "1", "< 0.0001"]


def test_an_experiment_is_no_last_stage():
    results = full_results()
    results["stages"].append(results["stages"][1] | dict(name="dpo-mine"))
    text, tree = whole_page(results, {})
    assert "The last stage: round 1" in tree.texts["head"]
    assert "dpo-mine.pt</small></dt><dd>an experiment" in text


def test_a_judge_that_is_no_better_than_a_baseline_is_marked():
    results = full_results()
    judge = results["judge_audit"]
    judge["length_alone"] = dict(rate=judge["accuracy"]["rate"] - 0.01)
    assert NO_BETTER not in page.audits(results)
    judge["length_alone"] = dict(rate=judge["accuracy"]["rate"])
    assert NO_BETTER in page.audits(results)


def test_a_row_that_no_stage_has_a_rate_for_is_left_out():
    results = full_results()
    for stage in results["stages"]:
        stage["seldom_accuracy"] = dict(rate=None)
    assert "seldom" not in page.numbers(results)
    results["stages"][1]["seldom_accuracy"] = dict(rate=0.5, lo=0.1, hi=0.9, n=4)
    assert "seldom" in page.numbers(results)


def test_a_coloured_cell_has_the_strength_of_its_rate():
    text = page.stage_table(full_results(), "x", [("under_refusal", "y")], "bad")
    rates = [stage["under_refusal"]["rate"] for stage in full_results()["stages"]]
    assert [float(x) for x in re.findall(r"--heat:([\d.]+)", text)] == [r for r in rates if r]
    assert text.count('class="bad"') == len([r for r in rates if r])


def test_a_page_of_one_stage_has_only_what_there_is():
    text, tree = whole_page(least_results(), {})
    assert re.findall(r'<section id="(\w+)">', text) == ["errors", "jailbreaks", "numbers"]
    for absent in ("SL-CAI", "reward model", "attack / target", "trained in", "p-value"):
        assert absent not in text
    assert "The last stage: base" in tree.texts["head"] and "%, base" not in tree.texts["head"]


@pytest.mark.parametrize("key, section", [("training", "training"), ("chain", "chains")])
def test_a_section_without_its_data_is_left_out(key, section):
    results = full_results()
    results[key] = type(results[key])()
    results["ppo_curves"] = {}
    assert f'id="{section}"' not in page.page(results, {})


def test_the_charts_of_the_training_show_every_log():
    results = full_results()
    text = page.training(results)
    titles = re.findall(r'aria-label="(.*?)"', text)
    assert titles == [
        "Base: loss, nats per token",
        "DPO: loss",
        "DPO: margin of the implicit rewards",
        "PPO: proxy reward",
        "PPO: true reward",
        "PPO: KL from SL-CAI, nats",
        "Proxy reward (reward model)",
        "True reward (grader)",
    ]
    assert text.count("<polyline") == 1 + 2 + 2 + 3 + 2 * 2


def test_a_chain_unfolds_with_all_its_steps():
    results = full_results()
    chain = results["chain"][0]
    text = html.unescape(page.chains(results))
    steps = [chain["responses"][0], chain["requests"][0][0], chain["critiques"][0]]
    steps += [chain["requests"][1][0], chain["critiques"][1], chain["requests"][1][1]]
    places = [text.index(step) for step in [*steps, chain["responses"][-1]]]
    assert places == sorted(places) and text.startswith("<p>") and "<details open>" in text
    assert chain["requests"][0][1] not in text  # this step found nothing to change


# --- safe, alone, small ---

EVIL = '<script>alert(1)</script><img src=x onerror="x">&amp;\'"'


def test_every_text_is_escaped():
    results = full_results()
    rows = transcripts(results, 1, EVIL)
    for row in (row for stage in rows.values() for row in stage):
        row["turns"] = [EVIL, EVIL, EVIL]
    plain = page.page(results, rows)
    for key in ("preset", "hardware", "world"):
        results[key] = EVIL
    results["stages"][-1]["name"] = EVIL
    results["stages"][0]["mean_tokens"] = EVIL
    rows[EVIL] = rows.pop("round1")
    chain = results["chain"][0]
    chain |= dict(type=EVIL, turns=[EVIL] * 3, responses=[EVIL, EVIL, EVIL + "!"])
    chain |= dict(critiques=[EVIL] * 2, requests=[(EVIL, EVIL)] * 2, principles=[EVIL] * 2)
    results["redteam"] = {EVIL: results["redteam"].popitem()[1]}
    results["keyword_filter"]["words"] = [EVIL]
    results["judge_audit"]["accuracy_by_family"] = {EVIL: rate([1])}
    results["exam"]["split"] = EVIL
    results["paired"][-1]["after"] = EVIL
    results["ppo_curves"][EVIL] = results["ppo_curves"]["ppo"]
    results["training"]["dpo" + EVIL] = results["training"]["dpo"]
    text, tree = whole_page(results, rows)
    assert EVIL in [cell for row in tree.rows["numbers"] for cell in row]
    assert text.count("<script") == plain.count("<script") == 1
    assert "<img" not in text and "alert(1)" in text
    for section in ("head", "same", "chains", "jailbreaks", "audits", "numbers", "transcripts"):
        assert "<script>alert(1)</script>" in tree.texts[section], section


def test_the_page_refers_to_nothing_outside_itself():
    results = full_results()
    text = page.page(results, transcripts(results, 2))
    outside = r"https?:|//[a-z]|@import|url\(|\b(?:src|action|srcset|data)=|<(?:link|iframe|img)"
    found = re.findall(outside, re.sub(r"^\s*// .*$", "", text, flags=re.M))
    assert found == [] and set(re.findall(r'href="(.)', text)) == {"#"}
    assert "default-src 'none'" in text


@pytest.mark.parametrize("words", [3, 400])
def test_a_large_run_fits_and_says_which_of_its_requests_are_shown(words):
    results = full_results()
    rows = transcripts(results, 3000 // len(SETS), "wörter " * words)
    n = len(rows["base"])
    text, tree = whole_page(results, rows)
    assert 1_000_000 < len(text.encode()) < 2_000_000 or words < 9
    shown = tree.articles["transcripts"]
    said = re.search(r"holds ([\d,]+) of the ([\d,]+) requests of the exam \((.*?)\)", text)
    assert [int(x.replace(",", "")) for x in said.groups()[:2]] == [len(shown), n]
    if said[3] == "all of them":
        assert len(shown) == n
    else:
        step = int(re.fullmatch(r"one in (\d+), in the order of the exam", said[3])[1])
        assert shown == [row["set"] for row in rows["base"]][::step] and step > 1
        assert all(f'<option value="{name}">' in text for name in set(SETS) & set(cards.KINDS))


# --- requests and their answers ---


def test_the_same_requests_are_chosen_by_their_hash_and_not_by_their_answers():
    results = full_results()
    rows = transcripts(results, 4)
    questions = cards.side_by_side(rows)
    chosen = cards.chosen(questions, 2)
    assert list(chosen) == list(cards.KINDS) and all(len(found) == 2 for found in chosen.values())
    for stage in rows.values():
        for row in stage:
            row |= dict(answer="other", outcome="other", verdict="bad")
    again = cards.chosen(random.Random(0).sample(cards.side_by_side(rows), len(questions)), 2)
    assert [[q["turns"] for q in found] for found in again.values()] == [
        [q["turns"] for q in found] for found in chosen.values()
    ]
    _, tree = whole_page(results, rows)
    assert "Of each kind of request the 2 whose SHA-256 hash comes first" in tree.texts["same"]
    assert len(tree.articles["same"]) == 2 * len(cards.KINDS)


def test_an_answer_has_its_stage_a_word_a_sign_and_a_colour():
    row = dict(set="harmful", answer="No.", outcome="refused", verdict="good")
    text = cards.answer_html("sft", row)
    assert text.startswith('<li class="good" data-stage="sft"><b>SL-CAI</b> <i>✓ good: refused</i>')
    bad = row | dict(outcome="complied", verdict="bad", answer=None)
    assert "✗ bad: complied" in cards.answer_html("sft", bad)
    assert "(did not end)" in cards.answer_html("sft", bad)
    fact = row | dict(set="fact never", verdict="bad", outcome="complied")
    assert "✗ bad: answers" in cards.answer_html("sft", fact)
    assert "◐ partly: garbled" in cards.answer_html(
        "sft", row | dict(verdict="partly", outcome="other")
    )


def test_stages_with_other_questions_are_refused():
    rows = dict(base=exam_rows("base", 2), sft=exam_rows("sft", 3))
    with pytest.raises(UserError, match="transcripts are of different exams; evaluate all"):
        cards.side_by_side(rows)
    rows["sft"] = rows["base"][1:] + rows["base"][:1]
    with pytest.raises(UserError, match="transcripts are of different exams"):
        cards.side_by_side(rows)


# --- the file ---


def test_the_page_is_written_from_the_transcripts_that_exist(tmp_path):
    results, rows = full_results(), exam_rows("base", 1)
    write_page(results, tmp_path, tmp_path / "report.html")
    assert 'id="transcripts"' not in (tmp_path / "report.html").read_text()
    write_jsonl(tmp_path / "base.jsonl", rows)
    write_page(results, tmp_path, tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text()
    assert text == page.page(results, dict(base=rows)) and 'data-stage="base"' in text
    rows[3]["verdict"] = "splendid"
    write_jsonl(tmp_path / "base.jsonl", rows)
    with pytest.raises(UserError, match="base.jsonl:4: the field 'verdict' is not one of good"):
        write_page(results, tmp_path, tmp_path / "report.html")


def test_the_smoke_run_ends_with_its_page(smoke):
    text = (smoke / "report.html").read_text()
    tree, results = Tree(text), read_json(smoke / "results.json", {})
    assert len(text.encode()) < 2_000_000
    for key, label, _ in METRICS:
        rates = [lookup(stage, key) for stage in results["stages"]]
        if any(found["rate"] is not None for found in rates):
            assert row_of(tree, "numbers", label.strip()) == [written(found) for found in rates]
        else:
            assert label not in html.unescape(text)
    assert results["stages"][1]["samples"][0]["turns"][-1] in html.unescape(text)
    assert len(re.findall(r'id="(\w+)"><h2>', text)) == 8
