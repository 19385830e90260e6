"""Texts in, texts out: what is cut of a prompt, what counts as an answer, and the arithmetic."""

import math
from types import SimpleNamespace

import pytest
import torch

from minicai import answer as answering
from minicai import console, device
from minicai.answer import (
    MAX_NEW_TOKENS,
    answer,
    encode_prompt,
    finished_text,
    option_scores,
    sample,
)
from minicai.files import UserError
from minicai.gpt import GPT, GPTConfig
from minicai.sampler import Completion, generate, score_options
from minicai.tokenizer import Tokenizer, talk

TOKENIZER = Tokenizer.train(["yes no how do i bake bread"], 300)


@pytest.fixture(autouse=True)
def float32(monkeypatch):
    """No autocast, on any machine."""
    monkeypatch.setattr(device, "fast_dtype", lambda device: torch.float32)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    model = GPT(GPTConfig(TOKENIZER.vocab_size, 1, 2, 1, 16, 24, MAX_NEW_TOKENS + 30))
    torch.nn.init.normal_(model.embed.weight, std=0.3)
    return model.eval()


def test_a_prompt_is_the_conversation_opened_for_the_assistant():
    ids = encode_prompt(TOKENIZER, ["how?", "yes", "no"], 1024)
    assert ids == TOKENIZER.prompt(talk("how?", "yes", "no"))
    assert ids[-1:] == TOKENIZER.opening["assistant"]


@pytest.mark.parametrize("room", [1, 5, 40])
def test_a_prompt_too_long_to_answer_loses_its_oldest_ids(room):
    turns = ["no " * 50 + "how do i bake", "yes", "bread?"]
    whole = TOKENIZER.prompt(talk(*turns))
    assert len(whole) > 40
    assert encode_prompt(TOKENIZER, turns, MAX_NEW_TOKENS + room) == whole[-room:]


def test_a_context_without_room_for_an_answer_is_refused():
    with pytest.raises(UserError, match="no room"):
        encode_prompt(TOKENIZER, ["how?"], MAX_NEW_TOKENS)


def test_an_answer_may_have_its_full_length_after_the_longest_prompt(model):
    turns = ["no " * 100]
    prompt = encode_prompt(TOKENIZER, turns, model.config.block_size)
    (completion,) = generate(model, [prompt], MAX_NEW_TOKENS, 1.0, seed=0)
    assert len(prompt) == 30 and len(completion.ids) == MAX_NEW_TOKENS


@pytest.mark.parametrize(
    "text, reason, finished",
    [
        (" yes ", "stop", "yes"),
        ("yes\n", "stop", "yes"),
        ("yes", "length", None),
        ("", "stop", None),
        (" \n", "stop", None),
    ],
)
def test_a_text_is_finished_if_it_ended_and_says_something(text, reason, finished):
    ids = TOKENIZER.encode(text) + [TOKENIZER.end] * (reason == "stop")
    assert finished_text(TOKENIZER, Completion(ids, [], reason)) == finished


def test_an_end_token_at_the_length_limit_finishes_nothing():
    ids = [*TOKENIZER.encode("yes"), TOKENIZER.end]
    assert finished_text(TOKENIZER, Completion(ids, [], "length")) is None


def test_answers_are_what_the_sampler_says(monkeypatch, model):
    """Every setting reaches the sampler, and a text that did not end is None."""
    calls = []

    def fake(model, prompts, limit, temperature, **settings):
        calls.append((prompts, limit, temperature, settings))
        done = [*TOKENIZER.encode("yes"), TOKENIZER.end]
        return [Completion(done, [], reason) for reason in ("stop", "length")]

    monkeypatch.setattr(answering, "generate", fake)
    turns = [["how?"], ["no", "yes", "how?"]]
    assert answer(model, TOKENIZER, turns) == ["yes", None]
    answer(model, TOKENIZER, turns, 0.7, 5, print)
    prompts = [encode_prompt(TOKENIZER, t, model.config.block_size) for t in turns]
    shared = dict(top_p=None, stop_ids=[TOKENIZER.end, TOKENIZER.pad])
    greedy = (prompts, MAX_NEW_TOKENS, 0.0, shared | dict(seed=0, progress=None))
    assert calls == [greedy, (prompts, MAX_NEW_TOKENS, 0.7, shared | dict(seed=5, progress=print))]
    sample(model, TOKENIZER, prompts, 1.0, 3, top_p=0.9)
    answer(model, TOKENIZER, turns, 1.0, 3, top_p=0.9)
    settings = shared | dict(seed=3, progress=None, top_p=0.9)
    assert calls[2] == calls[3] == (prompts, MAX_NEW_TOKENS, 1.0, settings)


def test_sampling_stops_at_the_end_token_and_depends_on_the_seed(model):
    prompts = [encode_prompt(TOKENIZER, ["how?"], model.config.block_size)] * 24
    completions = sample(model, TOKENIZER, prompts, 1.0, seed=1)
    assert {c.stop_reason for c in completions} == {"stop", "length"}
    for c in completions:
        ends = c.ids.count(TOKENIZER.end) + c.ids.count(TOKENIZER.pad)
        assert ends == (c.stop_reason == "stop")
    assert sample(model, TOKENIZER, prompts, 1.0, seed=1) == completions
    assert sample(model, TOKENIZER, prompts, 1.0, seed=2) != completions


def test_padding_ends_an_answer_too(model):
    prompts = [encode_prompt(TOKENIZER, ["how?"], model.config.block_size)]
    own = sample(model, TOKENIZER, prompts)[0].ids
    first = next(i for i in own if i != TOKENIZER.end)
    pads = SimpleNamespace(end=TOKENIZER.end, pad=first)
    [completion] = sample(model, pads, prompts)
    assert completion.ids == own[: own.index(first) + 1] and completion.stop_reason == "stop"


def test_models_speak_and_score_under_autocast(monkeypatch, model):
    monkeypatch.setattr(device, "fast_dtype", lambda device: torch.bfloat16)
    prompts = [encode_prompt(TOKENIZER, ["how?"], model.config.block_size)]
    seen = []
    hook = model.head.register_forward_hook(lambda module, i, logits: seen.append(logits.dtype))
    (completion,) = sample(model, TOKENIZER, prompts)
    assert set(seen) == {torch.bfloat16}
    options = [[completion.ids[:2], completion.ids[:1]]]
    scores = option_scores(model, prompts, options)
    assert set(seen) == {torch.bfloat16}
    hook.remove()
    assert scores[0][1] == pytest.approx(completion.logprobs[0], abs=1e-3)  # one arithmetic
    exact = score_options(model, prompts, options)
    for a, b in zip(scores[0], exact[0], strict=True):
        assert a == pytest.approx(b, abs=0.2) and a != b


def test_option_scores_are_log_probabilities(model):
    options = [[[token] for token in range(TOKENIZER.vocab_size)]]
    (scores,) = option_scores(model, [[1, 2, 3]], options)
    assert sum(map(math.exp, scores)) == pytest.approx(1, abs=1e-4)


def test_a_prompt_that_is_cut_is_warned_of_once(capsys):
    console.warn.cache_clear()
    for turns in (["no"], ["no " * 100], ["yes " * 100]):
        encode_prompt(TOKENIZER, turns, MAX_NEW_TOKENS + 40)
        said = capsys.readouterr().err
        assert ("more than 40 ids" in said) == (turns == ["no " * 100])
