"""The judge: its two orders, its labels, its reasons, and the prompts that reach the model."""

import math

import pytest
import torch

from minicai import device
from minicai import judge as judging
from minicai.answer import MAX_NEW_TOKENS, option_scores
from minicai.constitution import Wording
from minicai.critique import BREAKS, CRITIQUE_REQUEST, KEEPS, comparison_prompt
from minicai.gpt import GPT, GPTConfig
from minicai.judge import (
    LABELS,
    STEPS,
    Verdict,
    critiques_with_p,
    judge_by_critique,
    judge_directly,
    normalise,
    p_breaks,
)
from minicai.tokenizer import Tokenizer, talk

WORDING = Wording("p/0", "p", "honesty", "Is it true?", "Make it true.", "Which is truer?")
OTHER = Wording("q/1", "q", "respect", "Is it rude?", "Make it kind.", "Which is kinder?")
TEXT = f"Which is better? (A) yes (B) no. {KEEPS} {BREAKS}"
TOKENIZER = Tokenizer.train([TEXT] * 20, 400)


@pytest.fixture(autouse=True)
def float32(monkeypatch):
    """No autocast, on any machine."""
    monkeypatch.setattr(device, "fast_dtype", lambda device: torch.float32)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return GPT(GPTConfig(TOKENIZER.vocab_size, 1, 1, 1, 16, 32, 512)).eval()


def turns_of(prompt) -> list[str]:
    """The conversation in a prompt, and the answer that has begun."""
    text = "".join(TOKENIZER.decode([i]) or "|" for i in prompt)
    return text.removeprefix("|").split("||")


# --- one question about two answers ---


def ask(model, n=3):
    return judge_directly(model, TOKENIZER, [["hi"]] * n, ["good"] * n, ["bad"] * n, [WORDING] * n)


def test_a_judge_that_always_says_a_is_worth_nothing(model, monkeypatch):
    monkeypatch.setattr(
        judging, "option_scores", lambda _, prompts, __: [[-0.1, -4]] * len(prompts)
    )
    for verdict in ask(model):
        assert verdict.p == pytest.approx(0.5, abs=1e-12) and not verdict.consistent


def test_a_judge_that_knows_what_is_good_says_so_in_both_orders(model, monkeypatch):
    def score(model, prompts, options, progress=None):
        texts = [TOKENIZER.decode(prompt) for prompt in prompts]
        return [[-0.1, -3.0] if "(A) good" in text else [-3.0, -0.1] for text in texts]

    monkeypatch.setattr(judging, "option_scores", score)
    for verdict in ask(model):
        assert verdict.a_first == pytest.approx(normalise(-0.1, -3.0)) == verdict.b_first
        assert verdict.p > 0.9 and verdict.consistent


def test_swapping_the_answers_turns_the_verdict_round(model):
    (one,) = judge_directly(model, TOKENIZER, [["hi"]], ["yes and yes"], ["no"], [WORDING])
    (other,) = judge_directly(model, TOKENIZER, [["hi"]], ["no"], ["yes and yes"], [WORDING])
    assert one.p == pytest.approx(1 - other.p, abs=1e-6)
    assert one.a_first == pytest.approx(1 - other.b_first, abs=1e-6)
    assert abs(one.a_first - one.b_first) > 1e-4  # or a judge that always says one half would pass


def test_the_question_is_asked_in_both_orders_with_whole_options(model, monkeypatch):
    seen = []

    def score(model, prompts, options, progress=None):
        seen.append((prompts, options))
        return [[-1.0, -2.0]] * len(prompts)

    monkeypatch.setattr(judging, "option_scores", score)
    conversations = [["hi", "ho", "hu"], ["hi " * 600]]
    judge_directly(model, TOKENIZER, conversations, ["a1", "a2"], ["b1", "b2"], [WORDING, OTHER])
    [(prompts, options)] = seen
    expected = [
        comparison_prompt(conversations[0], "Which is truer?", "a1", "b1"),
        comparison_prompt(conversations[0], "Which is truer?", "b1", "a1"),
    ]
    assert [turns_of(prompt) for prompt in prompts[:2]] == [[text, ""] for text in expected]
    letters = [[*TOKENIZER.encode(letter), TOKENIZER.end] for letter in ("(A)", "(B)")]
    assert options == [letters] * 4
    for prompt, answers in zip(prompts[2:], (("a2", "b2"), ("b2", "a2"))):  # cut from the left
        assert len(prompt) + max(map(len, letters)) == 512
        assert prompt[-1:] == TOKENIZER.opening["assistant"]
        end = "\nWhich is kinder?\n(A) {}\n(B) {}".format(*answers)
        assert turns_of(prompt)[0].endswith("hi hi " + end)


def test_two_log_probabilities_are_normalised_over_the_two():
    assert normalise(-1.0, -1.0) == 0.5
    assert normalise(-1.0, -3.0) + normalise(-3.0, -1.0) == pytest.approx(1)
    assert normalise(math.log(0.06), math.log(0.02)) == pytest.approx(0.75)
    assert normalise(-5000.0, 0.0) < 1e-300 and normalise(0.0, -5000.0) == 1


@pytest.mark.parametrize(
    "a_first, b_first, p, consistent",
    [(0.9, 0.7, 0.8, True), (0.1, 0.3, 0.2, True), (0.9, 0.1, 0.5, False), (0.9, 0.5, 0.7, False)],
)
def test_a_verdict_is_the_mean_of_both_orders(a_first, b_first, p, consistent):
    verdict = Verdict(a_first, b_first)
    assert verdict.p == pytest.approx(p) and verdict.consistent == consistent


def test_labels():
    assert [LABELS["soft"](p) for p in (0.0, 0.7)] == [0.0, 0.7]
    assert [LABELS["hard"](p) for p in (0.2, 0.5, 0.54, 0.56)] == [0.0, 0.5, 0.5, 1.0]
    assert [LABELS["clamp"](p) for p in (0.0, 0.45, 0.99)] == [0.4, 0.45, 0.6]


# --- a critique of each answer ---


@pytest.fixture
def scripted(monkeypatch):
    """Fix the critiques, and P(BREAKS) and P(KEEPS) of those that come to a verdict.

    Returns the conversations that were asked, and the prompts and options that were scored.
    """
    asked, scored = [], []

    def script(critiques, odds=None):
        def answer(model, tokenizer, conversations, progress=None):
            asked.extend(conversations)
            return critiques

        def score(model, prompts, options, progress=None):
            scored.extend(zip(prompts, options, strict=True))
            return [[math.log(p), math.log(q)] for p, q in odds or [(0.5, 0.5)] * len(prompts)]

        monkeypatch.setattr(judging, "answer", answer)
        monkeypatch.setattr(judging, "option_scores", score)
        return asked, scored

    return script


def test_an_answer_is_better_where_it_keeps_and_the_other_breaks(model, scripted):
    a = [f"x. {BREAKS}", "junk", f"x. {KEEPS}", f"x. {KEEPS}", f"x. {BREAKS}"]
    b = [f"y. {KEEPS}", f"y. {KEEPS}", None, f"y. {KEEPS}", f"y. {KEEPS}"]
    odds_a = [(0.99, 0.01), (0.02, 0.98), (0.02, 0.98), (0.8, 0.2)]
    odds_b = [(0.01, 0.99), (0.5, 0.5), (0.0004, 0.9996), (0.3, 0.7)]
    scripted(a + b, odds_a + odds_b)
    rest = [["hi"]] * 5, ["a"] * 5, ["b"] * 5, [WORDING] * 5
    verdicts = judge_by_critique(model, TOKENIZER, *rest)
    assert verdicts[1] is None and verdicts[2] is None
    # Win, and half of every tie: a keeps and b breaks, or both do the same.
    for i, p, q in ((0, 0.99, 0.01), (3, 0.02, 0.0004), (4, 0.8, 0.3)):
        expected = (1 - p) * q + (p * q + (1 - p) * (1 - q)) / 2
        assert verdicts[i].a_first == verdicts[i].b_first == pytest.approx(expected)
        [(one, p_one), (other, p_other)] = verdicts[i].reasons
        assert (one, other) == (a[i], b[i])
        assert (p_one, p_other) == pytest.approx((p, q))


def test_each_answer_is_critiqued_alone_and_its_verdict_is_scored_after_its_reasons(
    model, scripted
):
    texts = [f"w. {BREAKS}", f"x. {KEEPS}", "junk", f"y. {KEEPS}", f"z. {BREAKS}", f"u. {KEEPS}"]
    asked, scored = scripted(texts)
    turns = [["hi"], ["ho", "hu", "he"], ["hm"]]
    wordings = [WORDING, OTHER, WORDING]
    answers = ["a1", "a2", "a3"], ["b1", "b2", "b3"]
    judge_by_critique(model, TOKENIZER, turns, *answers, wordings)
    both = zip([*turns, *turns], answers[0] + answers[1], wordings * 2)
    questions = [[*t, reply, CRITIQUE_REQUEST.format(w.critique)] for t, reply, w in both]
    assert asked == questions
    expected = [[*q, text[:2]] for q, text in zip(questions, texts) if text != "junk"]
    assert [turns_of(prompt) for prompt, _ in scored] == expected
    ends = [TOKENIZER.encode(f" {BREAKS}"), TOKENIZER.encode(f" {KEEPS}")]
    assert all(options == ends for _, options in scored)


def test_the_prompt_of_a_verdict_is_cut_from_the_left(model, scripted):
    _, scored = scripted([f"x. {KEEPS}"])
    critiques_with_p(model, TOKENIZER, [["hi " * 600]], ["so"], [WORDING])
    [(prompt, _)] = scored
    assert len(prompt) == 512 - MAX_NEW_TOKENS
    assert turns_of(prompt)[1:] == ["so", "CritiqueRequest: Is it true?", "x."]


def test_a_model_prefers_the_end_that_it_wrote(model):
    """Without a script: greedy critiques, and the same model's probabilities of both ends."""
    torch.manual_seed(0)
    trained = GPT(GPTConfig(TOKENIZER.vocab_size, 1, 2, 2, 32, 48, 512))
    question = TOKENIZER.prompt(talk("hi", "no", "CritiqueRequest: Is it true?"))
    ids = torch.tensor([[*question, *TOKENIZER.encode(f"It is. {BREAKS}"), TOKENIZER.end]])
    optimizer = torch.optim.Adam(trained.parameters(), lr=1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        logits = trained(ids[:, :-1]).flatten(0, 1)
        torch.nn.functional.cross_entropy(logits, ids[0, 1:]).backward()
        optimizer.step()
    [(text, p)] = critiques_with_p(trained, TOKENIZER, [["hi"]], ["no"], [WORDING])
    assert text == f"It is. {BREAKS}" and p > 0.9


def test_p_breaks_is_none_without_a_response_or_without_a_verdict(model, scripted):
    texts = [f"x. {BREAKS}", "junk", None, f"x. {KEEPS}"]
    asked, _ = scripted(texts, [(0.9, 0.1), (0.2, 0.6)])
    responses = [None, "a", "b", "", "c", "d"]
    turns = [[f"hi {i}"] for i in range(6)]
    found = p_breaks(model, TOKENIZER, turns, responses, [WORDING, OTHER] * 3)
    assert found == [None, pytest.approx(0.9), None, None, None, pytest.approx(0.25)]
    assert [question[:2] for question in asked] == [
        ["hi 1", "a"],
        ["hi 2", "b"],
        ["hi 4", "c"],
        ["hi 5", "d"],
    ]
    requests = [CRITIQUE_REQUEST.format(w.critique) for w in (OTHER, WORDING, WORDING, OTHER)]
    assert [question[2] for question in asked] == requests


def test_progress_is_whole_only_when_the_answers_are_scored(model, monkeypatch):
    done, before = [], []

    def answer(model, tokenizer, conversations, progress):
        progress(len(conversations))
        return [f"x. {KEEPS}", "junk"] * 2

    def score(*given):
        before.append(sum(done))
        return option_scores(*given)

    monkeypatch.setattr(judging, "answer", answer)
    monkeypatch.setattr(judging, "option_scores", score)
    pairs = [["hi"]] * 2, ["a"] * 2, ["b"] * 2, [WORDING] * 2
    judge_by_critique(model, TOKENIZER, *pairs, done.append)
    assert before == [4] and done == [4, 2, 2] and sum(done) == 2 * STEPS
    done.clear()
    judge_directly(model, TOKENIZER, *pairs, done.append)
    assert before == [4, 0] and sum(done) == 2 * STEPS


def test_nothing_to_judge_gives_no_verdicts(model):
    assert p_breaks(model, TOKENIZER, [["hi"]] * 2, [None, ""], [WORDING] * 2) == [None, None]
    assert judge_by_critique(model, TOKENIZER, [], [], [], []) == []
    assert judge_directly(model, TOKENIZER, [], [], [], []) == []
