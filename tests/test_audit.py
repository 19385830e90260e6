"""Audits, of judges, critics and reward models whose worth is known."""

import copy
import math
import random
from types import SimpleNamespace

import pytest
import torch

from minicai import audit
from minicai.audit import (
    audit_judge,
    audit_reward,
    audit_skills,
    known_pairs,
    print_audit,
    reliability,
    revision_cases,
    reward_accuracy,
)
from minicai.constitution import Constitution
from minicai.critique import BREAKS, KEEPS
from minicai.exam import Exam
from minicai.files import UserError
from minicai.judge import Verdict
from minicai.metrics import ece, length_alone, rate, rate_by_topic
from minicai.splits import held_out, split_of
from minicai.tokenizer import Tokenizer, talk
from minicai.world.content import World
from minicai.world.grader import Grader, gold
from minicai.world.replies import any_reply
from minicai.world.requests import PLAIN, Part
from minicai.world.skills import flaws

TOKENIZER = Tokenizer.train(["how do i bake bread"], 300)


@pytest.fixture(scope="module")
def world():
    return World("world")


@pytest.fixture(scope="module")
def constitution():
    return Constitution("constitution.json")


# --- the judge ---


def test_in_each_known_pair_exactly_one_answer_breaks_the_principle(world, constitution):
    pairs = known_pairs(world, constitution, 60, 0)
    for request, a, b, wording in pairs:
        assert (wording.family in flaws(request, a)) != (wording.family in flaws(request, b))
        assert held_out(wording.id) and split_of(request.topic) == "test"
    assert {w.family for *_, w in pairs} == set(constitution.families) and len(pairs) == 60
    assert 10 < sum(w.family in flaws(r, a) for r, a, _, w in pairs) < 50
    for request, a, b, wording in known_pairs(world, constitution, 30, 0, differ=False):
        assert (wording.family in flaws(request, a)) == (wording.family in flaws(request, b))
    for request, *_, wording in known_pairs(world, constitution, 20, 0, "demo"):
        assert not held_out(wording.id) and split_of(request.topic) == "demo"


def test_a_constitution_without_held_out_wordings_is_named(world, constitution):
    bare = copy.copy(constitution)
    bare.wordings = [w for w in constitution.wordings if not held_out(w.id)]
    with pytest.raises(UserError, match="held-out wording"):
        known_pairs(world, bare, 5, 0)


def audit_of(judge, world, constitution, n, split="test"):
    """The audit of a judge that is a function of (request, a, b, family) -> Verdict or None."""
    calls = [
        iter(known_pairs(world, constitution, n, 3, split, differ)) for differ in (True, False)
    ]

    def scripted(model, tokenizer, conversations, a, b, wordings, progress):
        verdicts = []
        for turns, one, other, wording in zip(conversations, a, b, wordings, strict=True):
            request, *replies, w = next(calls[0])
            assert (turns, wording) == (list(request.turns), w)
            assert [one, other] == [reply.text for reply in replies]
            verdicts.append(judge(request, *replies, w.family))
        assert next(calls.pop(0), None) is None
        return verdicts

    return audit_judge("model", TOKENIZER, world, constitution, n, 3, split, judge=scripted)


def test_the_audit_of_a_perfect_judge(world, constitution, capsys):
    def perfect(request, a, b, family):
        a_breaks, b_breaks = family in flaws(request, a), family in flaws(request, b)
        if a_breaks == b_breaks:
            return Verdict(0.9, 0.8) if request.type == "fact" else Verdict(0.5, 0.5)
        return Verdict(0.03, 0.05) if a_breaks else Verdict(0.97, 0.95)

    found = audit_of(perfect, world, constitution, 50)
    pairs, same = (known_pairs(world, constitution, 50, 3, "test", d) for d in (True, False))
    truth = [w.family not in flaws(r, a) for r, a, _, w in pairs]
    topics = [r.topic for r, *_ in pairs]
    right = rate([True] * 50, topics)
    assert found["accuracy"] == found["swap_consistency"] == right
    assert found["always_a"] == rate(truth, topics) and 0.2 < found["always_a"]["rate"] < 0.8
    assert found["false_alarms"] == rate_by_topic((r.type == "fact", r.topic) for r, *_ in same)
    assert found["ece"] == pytest.approx(0.04, abs=1e-6) and found["dropped"] == 0
    for family, of in found["accuracy_by_family"].items():
        assert of["k"] == of["n"] == sum(w.family == family for *_, w in pairs) > 0
    harm = [r for r, *_, w in pairs if w.family == "harmlessness" and r.type == "harmful"]
    assert found["prefers_safe"]["k"] == found["prefers_safe"]["n"] == len(harm) > 0
    low, high = found["reliability"][0], found["reliability"][-1]
    assert (low["k"], low["n"], high["k"], high["n"]) == (0, 50 - sum(truth), *[sum(truth)] * 2)
    print_audit(found)
    printed = capsys.readouterr().out
    assert "audit of scripted" in printed and "100.0 (" in printed and "WARNING" not in printed


def test_a_judge_that_favours_a_place_is_right_in_one_order_only(world, constitution):
    found = audit_of(lambda *a: Verdict(0.9, 0.1 + 1e-9), world, constitution, 40)
    assert found["accuracy"]["k"] == found["always_a"]["k"]  # p is just above one half
    assert found["swap_consistency"]["k"] == 0
    assert found["false_alarms"]["k"] == 0


def test_a_judge_that_always_takes_the_first_answer_is_a_warning(world, constitution, capsys):
    found = audit_of(lambda *a: Verdict(0.9, 0.9), world, constitution, 40)
    assert found["accuracy"] == found["always_a"] and found["false_alarms"]["rate"] == 1
    print_audit(found)
    assert "WARNING" in capsys.readouterr().out


def test_a_judge_that_reads_only_lengths_is_a_warning(world, constitution, capsys):
    wins = dict.fromkeys(constitution.families, 0)  # of the longer answer, less its losses
    for r, a, b, w in known_pairs(world, constitution, 150, 3):
        longer_wins = (len(a.text) > len(b.text)) == (w.family not in flaws(r, a))
        wins[w.family] += 1 if longer_wins else -1

    def longest(request, a, b, family):
        p = 0.9 if (len(a.text) > len(b.text)) == (wins[family] >= 0) else 0.1
        return Verdict(p, p)

    found = audit_of(longest, world, constitution, 150)
    assert found["accuracy"] == found["length_alone"]
    assert found["accuracy"]["rate"] > 0.6  # far above chance, and no judge all the same
    print_audit(found)
    assert "WARNING" in capsys.readouterr().out


def test_pairs_without_a_verdict_are_dropped_and_counted(world, constitution, capsys):
    def half(request, a, b, family):
        return None if request.type == "fact" else Verdict(0.9, 0.9)

    pairs = known_pairs(world, constitution, 40, 3, "demo")
    found = audit_of(half, world, constitution, 40, "demo")
    facts = sum(r.type == "fact" for r, *_ in pairs)
    assert found["dropped"] == facts > 0 and found["accuracy"]["n"] == 40 - facts
    assert found["always_a"]["n"] == sum(b["n"] for b in found["reliability"]) == 40 - facts
    assert found["accuracy_by_family"]["honesty"]["rate"] is None
    none = audit_of(lambda *a: None, world, constitution, 5)
    assert none["dropped"] == 5 and none["accuracy"]["rate"] is none["false_alarms"]["rate"] is None
    print_audit(none)
    assert "WARNING" in capsys.readouterr().out


def test_the_reliability_table_counts_every_verdict_once():
    rows = reliability([0.0, 0.05, 0.55, 1.0], [False, True, True, True], list("abcd"))
    assert [(r["k"], r["n"]) for r in rows if r["n"]] == [(1, 2), (1, 1), (1, 1)]
    assert [(r["low"], r["high"]) for r in rows if r["n"]] == [(0, 0.1), (0.5, 0.6), (0.9, 1.0)]
    assert len(rows) == 10 and rows[-1]["topics"] == 1


# --- the critic ---


def skills_of(critic, monkeypatch, world, constitution, n=60):
    """The audit of a critic that is a function of (reply's text, family) -> critique, revision."""

    def scripted(model, tokenizer, conversations, responses, wordings, progress=None):
        assert all(held_out(w.id) for w in wordings) and progress == "bar"
        found = [critic(turns, *pair) for turns, *pair in zip(conversations, responses, wordings)]
        return tuple(zip(*found))

    monkeypatch.setattr(audit, "critique_and_revise", scripted)
    exam = Exam(world, 4, 0)
    return audit_skills("model", TOKENIZER, exam, constitution, n, 0, "bar")


def test_a_critic_is_right_where_its_verdict_is_the_truth(monkeypatch, world, constitution):
    def lenient(turns, response, wording):
        return f"Fine. {KEEPS}", response

    def strict(turns, response, wording):
        return f"Bad. {BREAKS}", "I can't help with that."

    def sloppy(turns, response, wording):
        return f"Bad. {BREAKS}", response.split(", then ")[0]  # without the last step

    (kept, rows), (broke, _), (cut, _) = (
        skills_of(critic, monkeypatch, world, constitution) for critic in (lenient, strict, sloppy)
    )
    broken = [row["broken"] for row in rows[:60]]
    assert 15 < sum(broken) < 45 and len(rows) == 60 + 20 + 20
    assert kept["critique_right"]["k"] == 60 - sum(broken) and kept["critique_right"]["n"] == 60
    assert broke["critique_right"]["k"] == sum(broken)
    assert [row["right"] for row in rows] == [not row["broken"] for row in rows]
    by_family = kept["critique_right_by_family"]
    assert sum(f["n"] for f in by_family.values()) == 60 and list(by_family) == sorted(by_family)
    families = {w.id: w.family for w in constitution.wordings}
    for family, found in by_family.items():
        mine = [row for row in rows[:60] if families[row["wording"]] == family]
        assert (found["k"], found["n"]) == (sum(row["right"] for row in mine), len(mine))
    # Of the revision cases, help with harm stays help, and a refusal keeps no step.
    assert kept["harmful_revised"]["k"] == 0 and kept["legitimate_kept"]["rate"] == 1
    assert broke["harmful_revised"]["rate"] == 1 and broke["legitimate_kept"]["k"] == 0
    assert cut["harmful_revised"]["k"] == cut["legitimate_kept"]["k"] == 0
    assert kept["harmful_revised"]["n"] == kept["legitimate_kept"]["n"] == 20


def test_an_unfinished_critique_or_revision_is_never_right(monkeypatch, world, constitution):
    found, rows = skills_of(lambda *a: (None, None), monkeypatch, world, constitution, 30)
    for key in ("critique_right", "critique_names_harm", "harmful_revised", "legitimate_kept"):
        assert found[key]["k"] == 0 and found[key]["n"] > 0, key
    assert {(row["critique"], row["revision"], row["right"]) for row in rows} == {
        (None, None, False)
    }


def test_the_harm_is_looked_for_in_critiques_of_harmful_requests(monkeypatch, world, constitution):
    def parrot(turns, response, wording):
        return f"{response} {KEEPS}", None

    found, rows = skills_of(parrot, monkeypatch, world, constitution)
    acts = {act.id: act for act in world.acts}
    harmful = [row for row in rows[:60] if row["request"].startswith("harmful/")]
    named = [acts[row["request"].split("/")[1]].harm in row["reply"] for row in harmful]
    assert (found["critique_names_harm"]["k"], len(named)) == (sum(named), sum(named))
    assert found["critique_names_harm"]["n"] == len(harmful) > 3


def test_without_harmlessness_no_revision_is_audited(monkeypatch, world, constitution):
    rest = constitution.without("harmlessness")
    found, rows = skills_of(lambda *a: (KEEPS, "x"), monkeypatch, world, rest, 20)
    assert len(rows) == 20 and found["harmful_revised"]["rate"] is None


def test_replies_to_revise_help_with_everything(world, constitution):
    cases = revision_cases(Exam(world, 4, 0), constitution, 8, random.Random(0))
    assert [request.type for request, *_ in cases] == ["harmful"] * 8 + ["legitimate"] * 8
    for request, reply, wording in cases:
        assert reply.kind == "steps" and wording.family == "harmlessness" and held_out(wording.id)
        assert split_of(request.topic) == "test"


# --- the reward model ---


class Scripted(torch.nn.Module):
    """A reward model whose scores are a function of (prompt's text, answer's text, length)."""

    def __init__(self, score):
        super().__init__()
        self.gpt = SimpleNamespace(config=SimpleNamespace(block_size=1024))
        self.weight, self.score = torch.nn.Parameter(torch.zeros(())), score

    def forward(self, ids, lengths):
        assert (ids[torch.arange(len(ids)), lengths - 1] == TOKENIZER.end).all()
        scores = []
        for row, length in zip(ids.tolist(), lengths.tolist()):
            answer = length - row[:length][::-1].index(*TOKENIZER.opening["assistant"])
            texts = TOKENIZER.decode(row[:answer]), TOKENIZER.decode(row[answer : length - 1])
            scores.append(self.score(*texts, length))
        return torch.tensor(scores)


def test_a_reward_model_that_likes_length_does_no_better_than_lengths(monkeypatch, world):
    exam, seen = Exam(world, 8, 0), []

    def answer(policy, tokenizer, conversations, temperature, seed):
        assert (policy, tokenizer, temperature, seed) == ("policy", TOKENIZER, 1.0, 5)
        assert conversations[::2] == conversations[1::2]
        seen.extend(conversations)
        return ["yes and no", "no"] * (len(conversations) // 2)

    monkeypatch.setattr(audit, "answer", answer)
    longest = Scripted(lambda prompt, text, length: float(length))
    found = audit_reward("policy", longest, TOKENIZER, exam, 8, 5)
    assert 0 < found["accuracy"]["rate"] <= found["length_alone"]["rate"] < 1
    assert len(seen) == 2 * (8 * len(PLAIN) + 4 + 4)
    keys = {"accuracy", "length_alone", "ece"}
    assert found.keys() == keys | {f"own_{key}" for key in keys}
    # Of the samples only "no" is ever right: to harm, and to a question about an unknown name.
    own, baseline = found["own_accuracy"], found["own_length_alone"]
    assert (own["k"], own["n"], baseline["k"], baseline["n"]) == (0, 8 + 4, 8 + 4, 8 + 4)


def test_the_reward_model_is_asked_about_pairs_of_which_the_world_prefers_one(world):
    part, rng, grader = Part(world, "test"), random.Random(1), Grader(world)
    requests = [r for type in PLAIN for r in part.many(rng, 6, type)]
    requests += part.many(rng, 6, "fact", "often")
    texts = [any_reply(world, r, rng).text for r in requests for _ in range(2)]
    texts[0], texts[3] = None, ""  # did not end; said nothing
    worth = [gold(r, grader.grade(r, t or "")) for r, t in zip(twice(requests), texts)]
    value = {
        (TOKENIZER.decode(TOKENIZER.prompt(talk(*r.turns))), text): gold
        for r, text, gold in zip(twice(requests), texts, worth)
    }
    margin = 2.0

    def truthful(prompt, text, length):
        return margin * value[prompt, text]

    def measured(score):
        return reward_accuracy(Scripted(score), TOKENIZER, grader, twice(requests), texts)

    pairs = list(zip(requests, texts[::2], texts[1::2], worth[::2], worth[1::2]))
    pairs = [(r, a, b, x - y) for r, a, b, x, y in pairs if a and b and x != y]
    assert 10 < len(pairs) < len(requests) - 5
    right = measured(truthful)
    topics = [r.topic for r, *_ in pairs]
    assert right["accuracy"] == rate([True] * len(pairs), topics)
    wrong = measured(lambda *a: -truthful(*a))
    assert wrong["accuracy"] == rate([False] * len(pairs), topics)
    longer = [(tokens(a) > tokens(b)) == (d > 0) for _, a, b, d in pairs]
    baseline = rate(length_alone(longer, [r.type for r, *_ in pairs]), topics)
    assert right["length_alone"] == wrong["length_alone"] == baseline
    sure = [1 / (1 + math.exp(-margin * abs(d))) for *_, d in pairs]
    assert right["ece"] == ece(sure, [True] * len(pairs))
    assert wrong["ece"] == ece(sure, [False] * len(pairs)) > 0.5


def twice(requests):
    return [r for r in requests for _ in range(2)]


def tokens(text):
    return len(TOKENIZER.encode(text))
