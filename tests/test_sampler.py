"""The sampler against full forward passes, distributions in Python floats, and counting."""

import math
import random
from collections import Counter

import numpy as np
import pytest
import torch

from minicai import sampler
from minicai.gpt import GPT, GPTConfig
from minicai.sampler import filter_logits, generate, sample, score_options

STOPS = [1, 2, 3, 4]


def tiny(vocab_size=37, block_size=24) -> GPT:
    torch.manual_seed(0)
    model = GPT(
        GPTConfig(
            vocab_size,
            n_layer=2,
            n_head=4,
            n_kv_head=2,
            n_embd=32,
            n_hidden=48,
            block_size=block_size,
        )
    )
    for parameter in model.parameters():
        torch.nn.init.normal_(
            parameter, std=0.3
        )  # at the initial scale every distribution is nearly uniform
    return model


def ragged(lengths, vocab_size=37, seed=0) -> list[list[int]]:
    """Random prompts; every other one ends in id 0, which is what pads hold."""
    rng = random.Random(seed)
    prompts = [[rng.randrange(vocab_size) for _ in range(length)] for length in lengths]
    return [[*prompt[:-1], 0] if i % 2 else prompt for i, prompt in enumerate(prompts)]


@torch.no_grad()
def next_logits(model, ids) -> list[float]:
    """The oracle: the whole sequence, alone, without a cache."""
    return model(torch.tensor([ids]))[0, -1].tolist()


def distribution(logits, temperature=1.0, top_k=None, top_p=None) -> list[float]:
    """What `sample` should draw from, by sorting and adding up Python floats."""
    weights = [math.exp((x - max(logits)) / temperature) for x in logits]
    ranked = sorted(range(len(weights)), key=lambda i: -weights[i])[:top_k]
    if top_p is not None:
        total, kept, mass = sum(weights[i] for i in ranked), [], 0.0
        for i in ranked:
            if mass >= top_p * total:
                break
            kept.append(i)
            mass += weights[i]
        ranked = kept
    total = sum(weights[i] for i in ranked)
    return [weights[i] / total if i in set(ranked) else 0.0 for i in range(len(weights))]


def misfit(counts: Counter, expected: dict) -> float:
    """Pearson's chi-square over its 99.9 % quantile; above 1: no fit.

    The quantile is Wilson and Hilferty's approximation.
    """
    total, cells, rest = sum(counts.values()), [], [0, 0.0]
    for key, p in expected.items():
        if p * total >= 5:
            cells.append((counts[key], p * total))
        else:  # the approximation needs about 5 expected a cell, so rare ones are pooled
            rest = [rest[0] + counts[key], rest[1] + p * total]
    cells += [tuple(rest)] if rest[1] > 0 else []
    statistic = sum((seen - wanted) ** 2 / wanted for seen, wanted in cells)
    df = len(cells) - 1
    return statistic / (df * (1 - 2 / (9 * df) + 3.0902 * math.sqrt(2 / (9 * df))) ** 3)


def same(a, b):
    assert [c.ids for c in a] == [c.ids for c in b]
    assert [c.stop_reason for c in a] == [c.stop_reason for c in b]
    for x, y in zip(a, b):
        assert x.logprobs == pytest.approx(y.logprobs, abs=1e-5)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_cached_logits_equal_uncached_ones_at_every_step_of_ragged_rows(monkeypatch, temperature):
    model, prompts = tiny(), ragged([3, 11, 1, 7, 5, 16, 2, 9])
    seen = []

    def spy(logits, u, **settings):
        seen.append(logits.clone())
        return sample(logits, u, **settings)

    monkeypatch.setattr(sampler, "sample", spy)
    results = generate(
        model, prompts, 12, temperature=temperature, stop_ids=range(1, 37, 6), seed=3
    )
    lengths = {len(result.ids) for result in results}
    assert len(lengths) > 2  # rows did leave the batch at different times
    rows = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))  # as the sampler sorts them
    assert len(seen) == max(lengths)
    for step, logits in enumerate(seen):
        live = [i for i in rows if len(results[i].ids) > step]
        # A row that is done stays until a quarter of the rows are.
        assert len(live) <= len(logits) < len(live) / 0.75 + 1
        batch = iter(logits)  # in the same order, between rows that wait to leave
        for i in live:
            expected = torch.tensor(next_logits(model, prompts[i] + results[i].ids[:step]))
            assert any(torch.allclose(row, expected, atol=1e-5, rtol=0) for row in batch)


def test_greedy_ids_are_the_argmax_of_a_full_forward():
    model, prompts = tiny(), ragged([3, 8, 1])
    for prompt, result in zip(prompts, generate(model, prompts, 10, temperature=0)):
        ids = list(prompt)
        for token, logprob in zip(result.ids, result.logprobs, strict=True):
            logits = next_logits(model, ids)
            assert token == logits.index(max(logits))
            assert logprob == pytest.approx(math.log(distribution(logits)[token]), abs=1e-5)
            ids.append(token)


@pytest.mark.parametrize("filters", [{}, dict(top_k=6), dict(top_p=0.7), dict(top_k=8, top_p=0.8)])
@pytest.mark.parametrize("temperature", [0.5, 1.0, 1.3])
def test_recorded_log_probs_are_those_of_the_distribution_sampled_from(temperature, filters):
    model, prompts = tiny(), ragged([3, 8, 1, 14])
    results = generate(
        model, prompts, 8, temperature=temperature, stop_ids=STOPS, seed=1, **filters
    )
    for prompt, result in zip(prompts, results):
        for step, (token, logprob) in enumerate(zip(result.ids, result.logprobs, strict=True)):
            p = distribution(next_logits(model, prompt + result.ids[:step]), temperature, **filters)
            assert logprob == pytest.approx(math.log(p[token]), abs=1e-4)


@pytest.mark.parametrize("filters", [dict(top_k=4), dict(top_p=0.6), dict(top_k=6, top_p=0.7)])
def test_recorded_probabilities_of_all_possible_tokens_sum_to_one(filters):
    results = generate(tiny(), ragged([5]) * 1500, 1, seed=0, **filters)
    probability = {result.ids[0]: math.exp(result.logprobs[0]) for result in results}
    assert 2 <= len(probability) < 20
    assert sum(probability.values()) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        dict(temperature=0.6),
        dict(top_k=6),
        dict(top_p=0.8),
        dict(temperature=1.5, top_k=9, top_p=0.9),
    ],
)
def test_token_frequencies_follow_the_exact_probabilities(settings):
    model, (prompt,) = tiny(), ragged([5])
    counts = Counter(
        result.ids[0] for result in generate(model, [prompt] * 6000, 1, seed=0, **settings)
    )
    logits = next_logits(model, prompt)
    expected = dict(enumerate(distribution(logits, **settings)))
    assert all(expected[token] > 0 for token in counts)
    assert misfit(counts, expected) < 1
    # The test is worth something only if it notices a distribution that is slightly off.
    warmer = {**settings, "temperature": settings.get("temperature", 1.0) * 1.25}
    assert misfit(counts, dict(enumerate(distribution(logits, **warmer)))) > 1


def test_two_step_sequences_follow_their_enumerated_probabilities():
    model, prompt, stop = tiny(vocab_size=5), [3, 0, 2], 1
    expected = {}
    for first, p in enumerate(distribution(next_logits(model, prompt))):
        if first == stop:
            expected[(first,)] = p
            continue
        for second, q in enumerate(distribution(next_logits(model, [*prompt, first]))):
            expected[first, second] = p * q
    results = generate(model, [prompt] * 8000, 2, stop_ids=[stop], seed=0)
    counts = Counter(tuple(result.ids) for result in results)
    assert set(counts) <= set(expected) and len(expected) == 21
    assert misfit(counts, expected) < 1
    for result in results[:50]:
        assert sum(result.logprobs) == pytest.approx(
            math.log(expected[tuple(result.ids)]), abs=1e-5
        )


@pytest.mark.parametrize("settings", [{}, dict(top_k=3), dict(top_p=0.5), dict(temperature=0.3)])
def test_each_token_owns_a_share_of_the_uniform_numbers_equal_to_its_probability(settings):
    n = 20000
    logits = torch.randn(12, generator=torch.Generator().manual_seed(4))
    u = (torch.arange(n) + 0.5) / n
    settings = {"temperature": 1.0, "top_k": None, "top_p": None, **settings}
    ids, _ = sample(logits.expand(n, 12), u, **settings)
    counts = Counter(ids.tolist())
    for token, p in enumerate(distribution(logits.tolist(), **settings)):
        assert counts[token] == pytest.approx(n * p, abs=1.5)


@pytest.mark.parametrize("u", [0.0, 0.5, 1 - 2**-24])
def test_the_extreme_uniform_numbers_give_a_token_of_positive_probability(u):
    logits = torch.full((1, 50), -torch.inf)
    logits[0, 10:40] = torch.randn(30, generator=torch.Generator().manual_seed(5))
    ids, logprobs = sample(logits, torch.tensor([u]), 1.0, None, None)
    assert 10 <= ids.item() < 40 and logprobs.isfinite().all()


def test_bfloat16_logits_are_sampled_and_scored_in_float32():
    """A cumulative sum of 300 probabilities in eight bits would be another distribution."""
    n, logits = 20000, torch.randn(300, generator=torch.Generator().manual_seed(4)).bfloat16()
    ids, logps = sample(logits.expand(n, 300), (torch.arange(n) + 0.5) / n, 1.0, None, None)
    counts = Counter(ids.tolist())
    assert logps.dtype == torch.float32
    for token, p in enumerate(distribution(logits.float().tolist())):
        assert counts[token] == pytest.approx(n * p, abs=1.5)


def kept(p, **filters) -> list[int]:
    """The tokens that survive; 0 for every log-probability that is not -inf."""
    logits = torch.tensor(p).log()[None]
    filtered = filter_logits(logits, filters.get("top_k"), filters.get("top_p"))[0]
    survivors = filtered.isfinite().nonzero().flatten().tolist()
    assert torch.equal(filtered[survivors], logits[0, survivors])
    return survivors


def test_top_p_keeps_the_smallest_set_that_reaches_it():
    p = [
        0.125,
        0.5,
        0.0625,
        0.25,
        0.0625,
    ]  # powers of two, so sums are exact and "reaches" can be tested at equality
    assert kept(p, top_p=0.3) == [1]
    assert kept(p, top_p=0.5) == [1]
    assert kept(p, top_p=0.51) == [1, 3]
    assert kept(p, top_p=0.75) == [1, 3]
    assert kept(p, top_p=0.8) == [0, 1, 3]
    assert kept(p, top_p=1.0) == [0, 1, 2, 3, 4]
    assert kept(p, top_p=None) == [0, 1, 2, 3, 4]


def test_top_p_keeps_the_most_likely_token_however_small_p_is():
    assert kept([0.1, 0.2, 0.7], top_p=1e-9) == [2]
    assert kept([0.3, 0.4, 0.3], top_p=1e-9) == [1]


def test_top_k_keeps_k_tokens_and_top_p_then_counts_their_mass_anew():
    p = [0.1, 0.4, 0.2, 0.3]
    assert kept(p, top_k=1) == [1]
    assert kept(p, top_k=3) == [1, 2, 3]
    assert kept(p, top_k=4) == kept(p, top_k=99) == [0, 1, 2, 3]
    assert kept(p, top_p=0.55) == [1, 3]
    assert kept(p, top_k=2, top_p=0.55) == [1]  # 0.4 of 0.7 is already 0.57


def test_top_p_treats_every_row_on_its_own():
    p = torch.tensor([[0.9, 0.06, 0.04], [0.2, 0.35, 0.45]])
    both = filter_logits(p.log(), None, 0.7).isfinite()
    assert both.tolist() == [[True, False, False], [False, True, True]]


@pytest.mark.parametrize("temperature", [1e-9, 1e-40, 1e-300])
def test_next_to_no_temperature_is_greedy(temperature):
    cold, greedy = (
        generate(tiny(), ragged([3, 8, 5]), 6, temperature=t, seed=5) for t in (temperature, 0)
    )
    assert [c.ids for c in cold] == [c.ids for c in greedy]
    assert all(abs(x) < 1e-3 for c in cold for x in c.logprobs)


def test_top_k_one_is_greedy():
    model, prompts = tiny(), ragged([3, 8, 1])
    greedy = generate(model, prompts, 6, temperature=0)
    assert [c.ids for c in generate(model, prompts, 6, top_k=1, seed=0)] == [c.ids for c in greedy]


def test_the_same_seed_gives_the_same_samples_and_another_seed_others():
    model, prompts = tiny(), ragged([3, 8, 1])
    first = generate(model, prompts, 8, seed=5)
    assert generate(model, prompts, 8, seed=5) == first
    others = generate(model, prompts, 8, seed=6)
    assert all(a.ids != b.ids for a, b in zip(first, others))


def test_a_seed_neither_reads_nor_moves_the_global_random_state():
    model, prompts = tiny(), ragged([3, 8])
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = generate(model, prompts, 8, seed=5)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert generate(model, prompts, 8, seed=5) == first


def test_without_a_seed_the_global_random_state_decides():
    model, prompts = tiny(), ragged([3, 8])
    torch.manual_seed(1)
    first, second = generate(model, prompts, 8), generate(model, prompts, 8)
    assert first != second
    torch.manual_seed(1)
    assert generate(model, prompts, 8) == first


def test_a_prompt_samples_the_same_alone_in_a_batch_and_in_another_order():
    model, prompts = tiny(), ragged([3, 11, 1, 7, 5, 16])
    together = generate(model, prompts, 8, stop_ids=STOPS, seed=5)
    same([generate(model, [prompt], 8, stop_ids=STOPS, seed=5)[0] for prompt in prompts], together)
    order = [4, 0, 5, 2, 1, 3]
    same(
        generate(model, [prompts[i] for i in order], 8, stop_ids=STOPS, seed=5),
        [together[i] for i in order],
    )


def test_copies_of_a_prompt_get_different_samples():
    model, (a, b) = tiny(), ragged([3, 8])
    results = generate(model, [a, b, a, a], 8, seed=5)
    assert len({tuple(results[i].ids) for i in (0, 2, 3)}) == 3
    same(generate(model, [a, a, a], 8, seed=5), [results[i] for i in (0, 2, 3)])


def test_a_higher_limit_only_makes_a_sample_longer():
    model, prompts = tiny(), ragged([3, 8, 1])
    short, long = generate(model, prompts, 4, seed=5), generate(model, prompts, 15, seed=5)
    assert [c.ids for c in short] == [c.ids[:4] for c in long]
    endless = generate(model, prompts, 10**11, seed=5)  # up to the end of the context
    assert [c.ids[:15] for c in endless] == [c.ids for c in long]


def test_the_stop_token_comes_once_and_last():
    results = generate(tiny(), ragged([3, 8, 1, 5, 7, 4, 6, 2] * 3), 12, stop_ids=STOPS, seed=5)
    stopped = [c for c in results if c.stop_reason == "stop"]
    assert 0 < len(stopped) < len(results)
    for result in results:
        stops = sum(token in STOPS for token in result.ids)
        if result.stop_reason == "stop":
            assert stops == 1 and result.ids[-1] in STOPS
        else:
            assert stops == 0 and len(result.ids) == 12
        assert len(result.logprobs) == len(result.ids)


def test_a_stop_token_at_the_last_allowed_slot_counts_as_a_stop():
    model, prompts = tiny(), ragged([3])
    ids = generate(model, prompts, 4, seed=7)[0].ids
    assert ids[3] not in ids[:3]
    (result,) = generate(model, prompts, 4, stop_ids=[ids[3]], seed=7)
    assert (result.ids, result.stop_reason) == (ids, "stop")
    (result,) = generate(model, prompts, 3, stop_ids=[ids[3]], seed=7)
    assert (result.ids, result.stop_reason) == (ids[:3], "length")


def test_stop_tokens_may_come_as_a_tensor():
    prompts = ragged([3, 8, 1, 5])
    for one, other in zip(
        *(
            generate(tiny(), prompts, 12, stop_ids=s, seed=5)
            for s in (STOPS, torch.tensor(sorted(STOPS)))
        )
    ):
        assert one == other


def test_a_stop_token_at_the_end_of_the_context_counts_as_a_stop():
    model, prompts = tiny(), ragged([21])
    ids = generate(model, prompts, 99, seed=5)[0].ids
    assert len(ids) == 3 and ids[2] not in ids[:2]
    assert generate(model, prompts, 99, stop_ids=[ids[2]], seed=5)[0].stop_reason == "stop"


def test_a_row_runs_to_the_limit_or_to_the_end_of_the_context():
    model = tiny(block_size=24)
    for limit, lengths in ((99, [21, 6, 3, 1]), (5, [5, 5, 3, 1])):
        results = generate(model, ragged([3, 18, 21, 23]), limit, seed=5)
        assert [c.stop_reason for c in results] == ["length"] * 4
        assert [len(c.ids) for c in results] == lengths


def test_more_prompts_than_rows_give_the_same_results_in_the_callers_order(monkeypatch):
    model, prompts = tiny(), ragged([3, 11, 1, 7, 5, 16, 2, 9])
    prompts.append(prompts[0])  # the copies fall into different chunks
    expected = generate(model, prompts, 8, stop_ids=STOPS, seed=5)
    options = [ragged([1, 3, 2][: 1 + i % 3], seed=i) for i in range(len(prompts))]
    scores = score_options(model, prompts, options)
    rows, prefill = [], sampler.prefill

    def spy(model, prompts, slots):
        rows.append(len(prompts))
        return prefill(model, prompts, slots)

    monkeypatch.setattr(sampler, "prefill", spy)
    monkeypatch.setattr(sampler, "ROWS", 3)
    same(generate(model, prompts, 8, stop_ids=STOPS, seed=5), expected)
    for a, b in zip(score_options(model, prompts, options), scores, strict=True):
        assert a == pytest.approx(b, abs=1e-5)
    assert rows == [3] * 6


def test_the_padded_prompts_of_a_batch_stay_within_the_token_limit(monkeypatch):
    monkeypatch.setattr(sampler, "TOKENS", 12)
    prompts = ragged([3, 11, 1, 7, 5, 16, 2, 4])
    batches = list(sampler.batches_by_length(prompts))
    assert [[len(prompts[i]) for i in batch] for batch in batches] == [
        [16],
        [11],
        [7],
        [5, 4],
        [3, 2, 1],
    ]
    assert sorted(i for batch in batches for i in batch) == list(range(8))


def test_progress_counts_every_prompt_once(monkeypatch):
    monkeypatch.setattr(sampler, "ROWS", 3)
    calls = []
    generate(
        tiny(),
        ragged([3, 11, 1, 7, 23, 16, 2, 9]),
        8,
        stop_ids=STOPS,
        seed=5,
        progress=calls.append,
    )
    assert sum(calls) == 8 and min(calls) > 0


@pytest.mark.parametrize("kind", [tuple, np.array, torch.tensor])
def test_prompts_of_any_kind_give_the_samples_of_lists(kind):
    model, prompts = tiny(), ragged([3, 8, 1, 5])
    prompts.append(prompts[0])
    as_kind = [kind(prompt) for prompt in prompts]
    lists = generate(model, prompts, 8, stop_ids=STOPS, seed=5)
    assert generate(model, as_kind, 8, stop_ids=STOPS, seed=5) == lists
    options = [[[1, 2], [3]]] * 5
    assert score_options(model, as_kind, options) == score_options(model, prompts, options)


@pytest.mark.parametrize("enabled, dtype", [(True, torch.bfloat16), (False, torch.float32)])
def test_a_cache_holds_the_type_that_attention_computes_in(enabled, dtype):
    with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
        cache, logits, _ = sampler.prefill(tiny(), ragged([3, 8]), slots=9)
    assert cache.k.dtype == cache.v.dtype == logits.dtype == dtype


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_are_not_numbers_are_refused(bad, temperature):
    model = tiny()
    with torch.no_grad():
        model.head.weight[3] = bad
    with pytest.raises(FloatingPointError, match="not numbers"):
        generate(model, ragged([3, 8]), 4, temperature=temperature, seed=0)


def test_no_prompts_give_no_completions():
    assert generate(tiny(), [], 8, seed=5) == []
    assert score_options(tiny(), [], []) == []


@pytest.mark.parametrize(
    "settings",
    [dict(temperature=t) for t in (-1, math.nan, math.inf)]
    + [dict(top_k=0), dict(top_p=0.0), dict(top_p=1.5), dict(max_new_tokens=0)],
)
def test_settings_out_of_range_are_refused(settings):
    with pytest.raises(ValueError):
        generate(tiny(), [[1]], **{"max_new_tokens": 4, **settings})


@pytest.mark.parametrize("length", [0, 24, 25])
def test_prompts_that_are_empty_or_fill_the_context_are_refused(length):
    with pytest.raises(ValueError):
        generate(tiny(), [[5], [5] * length], 4)
    with pytest.raises(ValueError):
        score_options(tiny(), [[5], [5] * length], [[[1]], [[1]]])


def slow_score(model, prompt, option) -> float:
    total, ids = 0.0, list(prompt)
    for token in option:
        total += math.log(distribution(next_logits(model, ids))[token])
        ids.append(token)
    return total


def test_option_scores_equal_full_forwards_for_ragged_options():
    model, prompts = tiny(), ragged([3, 11, 1, 7])
    options = [ragged(lengths, seed=9) for lengths in ([4, 1, 6], [2], [5, 5], [1, 3, 2, 7])]
    scores = score_options(model, prompts, options)
    assert [len(row) for row in scores] == [3, 1, 2, 4]
    for prompt, row, values in zip(prompts, options, scores):
        assert values == pytest.approx(
            [slow_score(model, prompt, option) for option in row], abs=1e-4
        )


def test_options_that_end_with_the_context_are_scored_exactly():
    model, prompts = tiny(block_size=24), ragged([20, 22, 3])
    options = [ragged([4, 2], seed=9), ragged([1, 2], seed=10), ragged([9, 12], seed=11)]
    for prompt, row, values in zip(prompts, options, score_options(model, prompts, options)):
        assert values == pytest.approx(
            [slow_score(model, prompt, option) for option in row], abs=1e-4
        )


def test_option_scores_do_not_depend_on_batch_mates_or_order():
    model, prompts = tiny(), ragged([3, 11, 1])
    options = [ragged(lengths, seed=9) for lengths in ([4, 1, 6], [2], [5, 5])]
    together = score_options(model, prompts, options)
    for prompt, row, values in zip(prompts, options, together):
        assert score_options(model, [prompt], [row])[0] == pytest.approx(values, abs=1e-5)
        assert score_options(model, [prompt], [row[::-1]])[0] == pytest.approx(
            values[::-1], abs=1e-5
        )


def test_single_token_options_over_the_whole_vocabulary_sum_to_one():
    (values,) = score_options(tiny(), ragged([6]), [[[token] for token in range(37)]])
    assert sum(map(math.exp, values)) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("options", [[[[1]], [[]]], [[[1]], []], [[[1]]], [[[1]], [[1] * 5]]])
def test_options_that_are_missing_empty_or_too_long_are_refused(options):
    with pytest.raises(ValueError):
        score_options(tiny(block_size=24), [[5], [5] * 20], options)


def test_the_scores_of_rough_logits_are_taken_in_float32():
    model = tiny()
    model.head.register_forward_hook(lambda module, inputs, logits: logits.bfloat16())
    [scores] = score_options(model, [[3, 1]], [[[token] for token in range(37)]])
    assert sum(map(math.exp, scores)) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_model_whose_logits_are_not_numbers_scores_no_options(bad):
    model = tiny()
    model.norm.weight.data.fill_(bad)
    with pytest.raises(FloatingPointError, match="logits are not numbers"):
        score_options(model, [[5, 6]], [[[1], [2, 3]]])
