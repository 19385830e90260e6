"""The model against slow, separate versions: complex numbers for positions, loops for layers."""

import math

import pytest
import torch

from minicai.gpt import GPT, GPTConfig, KVCache, rope_table, rotate, token_logps


def tiny(**changes) -> GPT:
    settings = dict(
        vocab_size=37, n_layer=2, n_head=4, n_kv_head=2, n_embd=32, n_hidden=48, block_size=24
    )
    torch.manual_seed(0)
    model = GPT(GPTConfig(**{**settings, **changes}))
    # At the initial scale all attention weights are about equal, and all norms are ones.
    # That would hide mistakes.
    for parameter in model.parameters():
        if parameter.dim() == 1:
            torch.nn.init.uniform_(parameter, 0.5, 1.5)
        else:
            torch.nn.init.normal_(parameter, std=0.3)
    return model


def some_ids(rows: int, length: int, vocab_size: int = 37) -> torch.Tensor:
    return torch.randint(vocab_size, (rows, length), generator=torch.Generator().manual_seed(1))


def complex_rotate(vector: list[float], position: int, theta: float) -> list[float]:
    """RoPE as in its paper: pairs of coordinates are complex numbers, times exp(i * angle)."""
    half = len(vector) // 2
    turned = [
        complex(vector[i], vector[i + half]) * complex(math.cos(angle), math.sin(angle))
        for i in range(half)
        for angle in [position * theta ** (-2 * i / len(vector))]
    ]
    return [z.real for z in turned] + [z.imag for z in turned]


def rms_norm(x: list[float], weight: list[float], eps: float) -> list[float]:
    scale = 1 / math.sqrt(sum(value * value for value in x) / len(x) + eps)
    return [value * scale * w for value, w in zip(x, weight)]


def times(weight: torch.Tensor, x: list[float]) -> list[float]:
    return [sum(w * value for w, value in zip(row, x)) for row in weight.tolist()]


def slow_attention(attention, xs: list[list[float]], theta: float) -> list[list[float]]:
    """One query at a time, one head at a time, in Python floats."""
    H, G, D = attention.n_head, attention.n_kv_head, len(xs[0]) // attention.n_head

    def heads(flat):
        return [flat[start : start + D] for start in range(0, len(flat), D)]

    q = [
        [complex_rotate(h, t, theta) for h in heads(times(attention.q.weight, x))]
        for t, x in enumerate(xs)
    ]
    k = [
        [complex_rotate(h, t, theta) for h in heads(times(attention.k.weight, x))]
        for t, x in enumerate(xs)
    ]
    v = [heads(times(attention.v.weight, x)) for x in xs]
    ys = []
    for t in range(len(xs)):
        y = []
        for h in range(H):
            g = h * G // H
            weights = [
                math.exp(sum(a * b for a, b in zip(q[t][h], k[s][g])) / math.sqrt(D))
                for s in range(t + 1)
            ]
            y += [
                sum(w * v[s][g][d] for s, w in enumerate(weights)) / sum(weights) for d in range(D)
            ]
        ys.append(times(attention.out.weight, y))
    return ys


def slow_block(block, xs: list[list[float]], theta: float, eps: float) -> list[list[float]]:
    normed = [rms_norm(x, block.norm1.weight.tolist(), eps) for x in xs]
    xs = [
        [a + b for a, b in zip(x, y)]
        for x, y in zip(xs, slow_attention(block.attention, normed, theta))
    ]
    out = []
    for x in xs:
        normed = rms_norm(x, block.norm2.weight.tolist(), eps)
        gate, up = times(block.mlp.gate.weight, normed), times(block.mlp.up.weight, normed)
        y = times(block.mlp.down.weight, [g / (1 + math.exp(-g)) * u for g, u in zip(gate, up)])
        out.append([a + b for a, b in zip(x, y)])
    return out


def test_rotary_positions_are_complex_multiplication():
    x = torch.randn(1, 1, 20, 8, generator=torch.Generator().manual_seed(2))
    turned = rotate(x, *rope_table(20, 8, theta=100.0))
    expected = [complex_rotate(x[0, 0, t].tolist(), t, 100.0) for t in range(20)]
    torch.testing.assert_close(turned[0, 0], torch.tensor(expected), atol=1e-5, rtol=0)


def test_a_query_and_a_key_see_only_the_distance_between_them():
    q, k = torch.randn(2, 8, generator=torch.Generator().manual_seed(3))
    cos, sin = rope_table(40, 8, theta=100.0)
    q, k = (
        rotate(q.expand(1, 1, 40, 8), cos, sin)[0, 0],
        rotate(k.expand(1, 1, 40, 8), cos, sin)[0, 0],
    )
    products = q @ k.T
    for distance in range(-39, 40):
        same = products.diagonal(distance)
        torch.testing.assert_close(same, same[:1].expand_as(same), atol=1e-4, rtol=0)
    assert products[0].std() > 0.1  # the distance itself does matter


@pytest.mark.parametrize("n_kv_head", [1, 2, 4])
@torch.no_grad()
def test_one_layer_equals_loops_over_single_queries(n_kv_head):
    model = tiny(
        n_layer=1, n_kv_head=n_kv_head, rope_theta=50.0, norm_eps=1e-2, tie_embeddings=False
    )
    ids = some_ids(1, 9)
    xs = slow_block(model.blocks[0], model.embed(ids)[0].tolist(), theta=50.0, eps=1e-2)
    xs = [rms_norm(x, model.norm.weight.tolist(), 1e-2) for x in xs]
    torch.testing.assert_close(model.hidden(ids)[0], torch.tensor(xs), atol=1e-4, rtol=1e-4)
    logits = torch.tensor([times(model.head.weight, x) for x in xs])
    torch.testing.assert_close(model(ids)[0], logits, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_grouped_queries_equal_full_heads_with_repeated_keys_and_values():
    grouped, full = tiny(n_kv_head=2), tiny(n_kv_head=4)
    weights = grouped.state_dict()
    for name, weight in weights.items():
        if ".attention.k." in name or ".attention.v." in name:
            head0, head1 = weight.split(8)
            weights[name] = torch.cat([head0, head0, head1, head1])
    full.load_state_dict(weights)
    ids = some_ids(2, 12)
    torch.testing.assert_close(grouped(ids), full(ids), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_later_tokens_do_not_change_earlier_logits():
    model, ids = tiny(), some_ids(2, 12)
    before = model(ids)
    for t in range(1, 12):
        changed = ids.clone()
        changed[:, t:] = (changed[:, t:] + 5) % 37
        after = model(changed)
        assert torch.equal(after[:, :t], before[:, :t])
        assert not torch.allclose(after[:, t], before[:, t])


@torch.no_grad()
def test_every_earlier_token_reaches_the_last_logits():
    model, ids = tiny(), some_ids(1, 12)
    last = model(ids)[0, -1]
    for t in range(12):
        changed = ids.clone()
        changed[:, t] = (changed[:, t] + 5) % 37
        assert (model(changed)[0, -1] - last).abs().max() > 1e-3


@torch.no_grad()
def test_padding_on_the_right_is_harmless():
    model, ids = tiny(), some_ids(3, 12)
    together = model(ids)
    for row, length in enumerate([4, 12, 7]):
        alone = model(ids[row : row + 1, :length])[0]
        torch.testing.assert_close(together[row, :length], alone, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_long_sequences_begin_with_the_logits_of_short_ones():
    # Above 256 positions attention takes another path on a CPU. float64 leaves no room for error.
    model, ids = tiny(block_size=300).double(), some_ids(2, 300)
    torch.testing.assert_close(model(ids)[:, :200], model(ids[:, :200]), atol=1e-10, rtol=0)


SHORT = [3, 5], [1, 4], [4, 2], [4, 1]
LONG = [260, 200], [4, 3], [1, 1], [8, 5]  # there, and on every GPU, attention is PyTorch's kernel


@pytest.mark.parametrize("pieces", [SHORT, LONG])
@torch.no_grad()
def test_a_cache_filled_in_ragged_pieces_gives_the_plain_logits(pieces):
    model, ids = tiny(block_size=300).double(), some_ids(2, 290)
    slots = sum(map(max, pieces))
    cache = KVCache(model.config, rows=2, slots=slots, device="cpu", dtype=torch.float64)
    cache.k.fill_(9.0), cache.v.fill_(9.0)  # leftovers that no query may see
    expected, starts = model(ids), torch.tensor([0, 0])
    for sizes in pieces:
        positions = starts[:, None] + torch.arange(max(sizes))
        got = model(ids.gather(1, positions), cache, positions)
        for row, size in enumerate(sizes):
            wanted = expected[row, starts[row] : starts[row] + size]
            torch.testing.assert_close(got[row, :size], wanted, atol=1e-9, rtol=0)
        starts = starts + torch.tensor(sizes)
        slots, needed = cache.k.shape[3], int(positions.max()) + 1
        assert needed <= cache.used <= min(needed + 15, slots)
        assert cache.used % 16 == 0 or cache.used == slots


@torch.no_grad()
def test_rows_that_stay_in_the_cache_go_on_as_before():
    model, ids = tiny().double(), some_ids(4, 9)
    cache = KVCache(model.config, rows=4, slots=9, device="cpu", dtype=torch.float64)
    model(ids[:, :8], cache, torch.arange(8).expand(4, 8))
    kept = torch.tensor([3, 1])
    cache.keep(kept)
    got = model(ids[kept, 8:], cache, torch.full((2, 1), 8))
    torch.testing.assert_close(got[:, 0], model(ids)[kept, -1], atol=1e-9, rtol=0)


def test_weights_over_the_vocabulary_replace_ids_and_have_a_gradient():
    model, ids = tiny().double(), some_ids(1, 6)
    weights = torch.nn.functional.one_hot(ids, 37).double().requires_grad_()
    torch.testing.assert_close(model(weights), model(ids))
    step = 1e-4 * torch.randn(weights.shape, generator=torch.Generator().manual_seed(4))
    last = model(weights)[0, -1, 3]
    last.backward()
    with torch.no_grad():
        up, down = (model(weights + sign * step)[0, -1, 3].item() for sign in (1, -1))
    assert (up - down) / 2 == pytest.approx((weights.grad * step).sum().item(), rel=1e-4)


def test_log_probabilities_are_of_the_next_id_in_float32():
    logits = torch.randn(2, 8, 37, generator=torch.Generator().manual_seed(5)).bfloat16()
    ids, exact = some_ids(2, 9), logits.double().log_softmax(-1)
    expected = [[exact[row, t, ids[row, t + 1]].item() for t in range(8)] for row in range(2)]
    torch.testing.assert_close(token_logps(logits, ids), torch.tensor(expected))


def test_an_embedding_that_only_pads_use_gets_no_gradient():
    # Untied, because a tied head gives every row a gradient through the softmax.
    model, pad = tiny(tie_embeddings=False), 36
    ids = some_ids(2, 10, vocab_size=36)
    ids[0, 6:] = pad
    logits = model(ids[:, :-1])
    inside = torch.tensor([[True] * 5 + [False] * 4, [True] * 9])  # targets that are no pads
    loss = torch.nn.functional.cross_entropy(logits[inside], ids[:, 1:][inside])
    loss.backward()
    assert torch.all(model.embed.weight.grad[pad] == 0)
    for token in ids[1, :-1].tolist():
        assert model.embed.weight.grad[token].abs().max() > 0


@pytest.mark.parametrize("tied", [True, False])
def test_the_parameter_count_is_the_one_worked_out_by_hand(tied):
    model = tiny(tie_embeddings=tied)
    embedding, norm = 37 * 32, 32
    attention = 32 * 32 + 2 * 32 * 16 + 32 * 32  # q, then k and v at half width, then out
    mlp = 3 * 32 * 48
    expected = embedding * (1 if tied else 2) + 2 * (attention + mlp + 2 * norm) + norm
    assert sum(p.numel() for p in model.parameters()) == expected


def test_tied_embeddings_share_their_storage_and_untied_ones_do_not():
    tied, untied = tiny(tie_embeddings=True), tiny(tie_embeddings=False)
    assert tied.head.weight is tied.embed.weight
    assert untied.head.weight.data_ptr() != untied.embed.weight.data_ptr()


@pytest.mark.parametrize("tied", [True, False])
@torch.no_grad()
def test_a_state_dict_has_no_rope_table_and_loads_strictly(tied):
    model = tiny(tie_embeddings=tied)
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert not any("rope" in name for name in weights)
    other = GPT(model.config)
    other.load_state_dict(weights, strict=True)
    ids = some_ids(2, 9)
    assert torch.equal(other(ids), model(ids))


@torch.no_grad()
def test_the_head_on_the_hidden_states_gives_the_logits():
    model, ids = tiny(), some_ids(2, 9)
    assert model.hidden(ids).shape == (2, 9, 32)
    assert torch.equal(model.head(model.hidden(ids)), model(ids))


@torch.no_grad()
def test_the_last_block_layers_start_smaller_than_the_others():
    model = GPT(
        GPTConfig(
            vocab_size=37, n_layer=8, n_head=4, n_kv_head=4, n_embd=128, n_hidden=128, block_size=8
        )
    )
    for block in model.blocks:
        assert abs(block.attention.q.weight.std() / 0.02 - 1) < 0.05
        for last in (block.attention.out, block.mlp.down):
            assert abs(last.weight.std() / (0.02 / 4) - 1) < 0.05


@pytest.mark.parametrize(
    "bad", [dict(n_embd=30), dict(n_embd=12), dict(n_kv_head=3), dict(n_kv_head=8)]
)
def test_head_counts_that_do_not_divide_are_refused(bad):
    with pytest.raises(ValueError):
        tiny(**bad)


@torch.no_grad()
def test_sequences_beyond_the_context_are_refused():
    model = tiny()
    assert model(some_ids(1, 24)).shape == (1, 24, 37)
    with pytest.raises(ValueError):
        model(some_ids(1, 25))
    cache = KVCache(model.config, rows=1, slots=24, device="cpu", dtype=torch.float32)
    with pytest.raises(ValueError):
        model(some_ids(1, 1), cache, torch.tensor([[24]]))
