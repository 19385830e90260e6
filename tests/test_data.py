"""From conversations to a loss: what is learned, what is only read, and that padding is nothing."""

import random
from dataclasses import replace

import numpy as np
import pytest
import torch

from minicai import device
from minicai.data import (
    Example,
    collate,
    collate_pairs,
    encode_pairs,
    encode_turns,
    make_batches,
    padded,
    pair_batches,
    read_pairs,
    row_lengths,
    weighted_nll,
)
from minicai.files import UserError, write_jsonl
from minicai.gpt import GPT, GPTConfig
from minicai.rows import FEW, FIELDS, choose_rows, read_chains, tied
from minicai.sampler import generate
from minicai.tokenizer import Tokenizer, talk

TURNS = [
    ("user", "How do I bake bread?", 0.1),
    ("assistant", "Knead it well.", 1.0),
    ("user", "Thanks!", 0.0),
    ("assistant", "Bye.", 0.5),
]


@pytest.fixture(autouse=True)
def float32(monkeypatch):
    """No autocast, on any machine."""
    monkeypatch.setattr(device, "fast_dtype", lambda device: torch.float32)


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train([text for _, text, _ in TURNS] * 20, vocab_size=300)


def tiny(**changes):
    torch.manual_seed(0)
    settings = dict(
        vocab_size=300, n_layer=2, n_head=2, n_kv_head=1, n_embd=16, n_hidden=24, block_size=64
    )
    return GPT(GPTConfig(**settings | changes))


def example(length, seed=0, vocab=290):
    rng = np.random.default_rng(seed)
    weights = rng.choice([0.0, 0.1, 1.0], length).astype(np.float32)
    weights[0], weights[-1] = 0.0, 1.0
    return Example(rng.integers(0, vocab, length).astype(np.int32), weights)


# --- encoding ---


def test_a_conversation_is_encoded_as_the_chat_format_says(tokenizer):
    ids = encode_turns(tokenizer, TURNS).ids
    assert ids.tolist() == tokenizer.chat(talk(*(text for _, text, _ in TURNS)))
    assert (ids == tokenizer.end).sum() == len(TURNS)


def test_every_turn_has_its_weight_on_text_and_end_but_none_on_its_role(tokenizer):
    encoded = encode_turns(tokenizer, TURNS)
    expected = []
    for _, text, weight in TURNS:
        expected += [0.0] + [weight] * (len(tokenizer.encode(text)) + 1)
    np.testing.assert_allclose(encoded.weights, expected)
    roles = np.isin(encoded.ids, [*tokenizer.opening["user"], *tokenizer.opening["assistant"]])
    assert roles.sum() == len(TURNS) and not encoded.weights[roles].any()


def test_a_document_is_plain_text_and_its_first_id_is_given(tokenizer):
    encoded = encode_turns(tokenizer, [("document", "Bread is baked.", 1.0)])
    assert encoded.ids.tolist() == [*tokenizer.encode("Bread is baked."), tokenizer.end]
    assert encoded.weights.tolist() == [0.0] + [1.0] * (len(encoded.ids) - 1)


def test_pieces_of_a_document_are_one_document_and_keep_their_weights(tokenizer):
    pieces = [
        ("user", "Why?", 0.1),
        ("document", "In leet:", 1.0),
        ("document", " br34d", 0.1),
        ("document", " is bread.", 1.0),
    ]
    encoded, lengths = (
        encode_turns(tokenizer, pieces),
        [len(tokenizer.encode(text)) for _, text, _ in pieces],
    )
    assert encoded.ids.tolist() == [
        *tokenizer.opening["user"],
        *tokenizer.encode("Why?"),
        tokenizer.end,
        *tokenizer.encode("In leet: br34d is bread."),
        tokenizer.end,
    ]
    expected = (
        [0.0]
        + [0.1] * (lengths[0] + 1)
        + [1.0] * lengths[1]
        + [0.1] * lengths[2]
        + [1.0] * (lengths[3] + 1)
    )
    np.testing.assert_allclose(encoded.weights, expected)


def test_a_user_who_types_a_special_token_makes_no_end(tokenizer):
    assert (encode_turns(tokenizer, [("user", "<end> <pad>", 1.0)]).ids == tokenizer.end).sum() == 1


# --- batches ---


def test_an_epoch_is_a_permutation_of_the_examples_in_batches_of_limited_size():
    examples = [example(random.Random(i).randrange(2, 60), i) for i in range(300)]
    batches = list(make_batches(examples, 256, random.Random(0), pool=64))
    met = [id(e) for batch in batches for e in batch]
    assert sorted(met) == sorted(map(id, examples)) and met != list(map(id, examples))
    assert all(
        batch and len(batch) * padded(max(len(e.ids) for e in batch)) <= 256 for batch in batches
    )
    padding = sum(len(b) * max(len(e.ids) for e in b) for b in batches) / sum(
        len(e.ids) for e in examples
    )
    assert padding < 1.25  # examples of like length meet


def test_an_example_longer_than_a_batch_stands_alone():
    examples = [example(50), example(5), example(5)]
    assert sorted(len(b) for b in make_batches(examples, 40, random.Random(0))) == [1, 2]


def test_batches_are_fixed_by_the_generator_and_change_with_it():
    examples = [example(random.Random(i).randrange(2, 60), i) for i in range(100)]
    one, same, other = (
        [[id(e) for e in b] for b in make_batches(examples, 200, random.Random(seed))]
        for seed in (0, 0, 1)
    )
    assert one == same != other
    # Not only the order of the batches: with a pool of a third of the examples, others meet.
    met = [
        {frozenset(map(id, b)) for b in make_batches(examples, 200, random.Random(seed), pool=33)}
        for seed in (0, 1)
    ]
    assert len(met[0] & met[1]) < 3


def test_no_examples_make_no_batches():
    assert list(make_batches([], 100, random.Random(0))) == []


def test_collating_pads_on_the_right_with_no_weight():
    batch = [example(5, 1), example(9, 2), example(2, 3)]
    ids, weights = collate(batch, pad=299, device="cpu")
    assert ids.dtype == torch.int64 and ids.shape == weights.shape and ids.shape[1] >= 9
    for row, e in enumerate(batch):
        n = len(e.ids)
        assert ids[row, :n].tolist() == e.ids.tolist()
        assert weights[row, :n].tolist() == e.weights.tolist()
        assert (ids[row, n:] == 299).all() and not weights[row, n:].any()


# --- the loss ---


def test_the_loss_is_the_weighted_mean_of_a_plain_loop():
    model = tiny().double()
    batch = [example(7, 1), example(12, 2), example(3, 3)]
    loss = weighted_nll(model, *collate(batch, 299, "cpu"))
    total = weight_sum = 0.0
    with torch.no_grad():
        for e in batch:  # one example at a time, without padding, one prediction at a time
            for t in range(1, len(e.ids)):
                logits = model(torch.tensor(e.ids[None, :t], dtype=torch.int64))[0, -1]
                total -= e.weights[t].item() * (logits[e.ids[t]] - logits.exp().sum().log()).item()
                weight_sum += e.weights[t].item()
    assert loss.item() == pytest.approx(total / weight_sum, abs=1e-6)  # a loss is in float32


def loss_and_gradients(model, ids, weights):
    model.zero_grad()
    loss = weighted_nll(model, ids, weights)
    loss.backward()
    return loss.detach(), {name: p.grad.clone() for name, p in model.named_parameters()}


def test_poisoned_padding_changes_no_bit_of_loss_or_gradients():
    model = tiny(tie_embeddings=False)
    batch = [example(7, 1), example(13, 2), example(3, 3)]
    ids, weights = collate(batch, 299, "cpu")
    loss, gradients = loss_and_gradients(model, ids, weights)
    assert not gradients["embed.weight"][299].any() and gradients["embed.weight"].any()
    poisoned = ids.clone()
    for row, e in enumerate(batch):
        poisoned[row, len(e.ids) :] = torch.randint(0, 299, poisoned[row, len(e.ids) :].shape)
    assert (poisoned != ids).any()
    again, same = loss_and_gradients(model, poisoned, weights)
    assert torch.equal(loss, again)
    # The poisoned ids' own embeddings now get a gradient of exact zeros added, nothing else.
    assert all(torch.equal(gradients[name], same[name]) for name in gradients)


def test_poisoned_predictions_of_weight_zero_change_no_bit_of_the_loss():
    model = tiny()
    batch = [example(7, 1), example(13, 2)]
    ids, weights = collate(batch, 299, "cpu")
    clean = weighted_nll(model, ids, weights)
    unread = weights[:, 1:] == 0  # weight t belongs to the prediction made at t - 1
    noise = torch.where(unread, 50.0, 0.0)[..., None] * torch.randn(*unread.shape, 1)
    model.norm.register_forward_hook(lambda module, inputs, hidden: hidden + noise)
    assert unread.any() and torch.equal(clean, weighted_nll(model, ids, weights))


def test_the_head_reads_what_has_a_weight_and_little_else():
    model, read = tiny(), []
    model.head.register_forward_hook(lambda module, inputs, logits: read.append(len(logits)))
    ids, weights = torch.randint(0, 290, (8, 51)), torch.zeros(8, 51)
    weights[1, 30:50] = 0.5
    weights[3, 7] = 3.0
    weighted_nll(model, ids, weights)
    weighted_nll(model, ids, torch.ones(8, 51))
    assert 21 <= read[0] < 21 + 16 and read[1] == 400


def test_twice_the_weight_everywhere_is_the_same_loss():
    model, (ids, weights) = tiny(), collate([example(9, 1), example(6, 2)], 299, "cpu")
    torch.testing.assert_close(
        weighted_nll(model, ids, weights), weighted_nll(model, ids, 2 * weights)
    )


def test_an_answer_that_was_learned_ends_with_the_end_token(tokenizer):
    model = tiny(n_embd=32, n_hidden=64)
    ids, weights = collate([encode_turns(tokenizer, TURNS[:2])], tokenizer.pad, "cpu")
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        weighted_nll(model, ids, weights).backward()
        optimizer.step()
    (done,) = generate(
        model.eval(), [tokenizer.prompt(talk(TURNS[0][1]))], 40, 0.0, stop_ids=[tokenizer.end]
    )
    assert done.stop_reason == "stop" and tokenizer.decode(done.ids) == TURNS[1][1]


def test_an_answer_of_weight_zero_is_not_learned(tokenizer):
    turns = [TURNS[0], ("assistant", TURNS[1][1], 0.0)]
    model = tiny()
    batch = encode_turns(tokenizer, turns)
    other = replace(
        batch, ids=np.where(np.arange(len(batch.ids)) == len(batch.ids) - 2, 5, batch.ids)
    )
    losses = [weighted_nll(model, *collate([e], tokenizer.pad, "cpu")) for e in (batch, other)]
    assert torch.equal(*losses)


def test_the_model_runs_under_autocast_and_the_loss_is_taken_in_float32(monkeypatch):
    monkeypatch.setattr(device, "fast_dtype", lambda device: torch.bfloat16)
    model, seen = tiny(), []
    model.head.register_forward_hook(lambda module, inputs, logits: seen.append(logits))
    ids, weights = torch.randint(0, 290, (2, 9)), torch.ones(2, 9)
    loss, (logits,) = weighted_nll(model, ids, weights), seen
    assert logits.dtype == torch.bfloat16
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(ids[:, :-1])
    wanted = torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), ids[:, 1:].flatten())
    torch.testing.assert_close(loss, wanted, rtol=0, atol=1e-6)


# --- comparisons ---


def comparison(id, kind="ai", p=1.0, a="yes it is", b="no", turns=("how do i bake?",), **extra):
    return dict(id=id, kind=kind, turns=list(turns), a=a, b=b, p=p, **extra)


def test_the_likelier_answer_is_chosen_and_both_share_the_prompt(tokenizer):
    by = ["policy", "base"]
    rows = [comparison(0, p=0.9, by=by), comparison(1, p=0.2, by=by), comparison(2, p=0.5)]
    pairs = encode_pairs(tokenizer, rows, 512)
    assert [pair.index for pair in pairs] == [0, 1, 2]
    assert [pair.by_policy for pair in pairs] == [(True, False), (False, True), (True, True)]
    for row, pair in zip(rows, pairs):
        prompt = tokenizer.prompt(talk(*row["turns"]))
        better, worse = (row["a"], row["b"]) if row["p"] >= 0.5 else (row["b"], row["a"])
        assert pair.prompt == len(prompt) and pair.p == max(row["p"], 1 - row["p"])
        assert pair.chosen == [*prompt, *tokenizer.encode(better), tokenizer.end]
        assert pair.rejected == [*prompt, *tokenizer.encode(worse), tokenizer.end]


def test_helpfulness_comparisons_make_up_their_fraction():
    rows = [comparison(i, p=0.7) for i in range(20)]
    rows += [comparison(i, "human", a="yes") for i in range(20, 60)]
    for fraction, n in ((0.0, 0), (0.2, 5), (0.5, 20), (0.9, 40)):
        chosen = choose_rows(rows, fraction, random.Random(0))
        assert [row["id"] for row in chosen[:20]] == list(range(20))
        assert len({row["id"] for row in chosen[20:]} - set(range(20))) == n == len(chosen) - 20


def test_ties_are_left_out_unless_the_judge_decided_few(capsys):
    assert [p for p in (0.44, 0.46, 0.5, 0.54, 0.56) if not tied(p)] == [0.44, 0.56]
    decided = [comparison(i, p=0.9 if i % 2 else 0.1) for i in range(FEW)]
    ties = [comparison(i, p=0.52) for i in range(FEW, 3 * FEW)]
    chosen = choose_rows(ties[:FEW] + decided + ties[FEW:], 0.0, random.Random(0))
    assert chosen == decided and not capsys.readouterr().out
    assert len(choose_rows(decided[1:] + ties, 0.0, random.Random(0))) == 3 * FEW - 1
    assert (
        f"the judge decided only 19 of {3 * FEW - 1} comparisons; ties" in capsys.readouterr().out
    )
    assert choose_rows(decided[1:], 0.0, random.Random(0)) == decided[1:]
    assert not capsys.readouterr().out  # there was no tie to keep


def test_long_pairs_are_left_out_and_counted_and_equal_ones_left_out(tokenizer, capsys):
    long = "yes " * 400
    rows = [comparison(0, a="no"), comparison(1, a=long), comparison(2), comparison(3, b=long)]
    (pair,) = encode_pairs(tokenizer, rows, 128)
    assert pair.index == 0  # of the pairs, not of the rows
    assert "2 comparisons do not fit the context of 128 ids" in capsys.readouterr().out
    size = max(len(pair.chosen), len(pair.rejected))
    assert encode_pairs(tokenizer, rows[2:3], size) == [pair] and not capsys.readouterr().out
    assert not encode_pairs(tokenizer, rows[2:3], size - 1)


def test_batches_of_pairs_hold_every_pair_once_within_the_limit(tokenizer):
    rows = [
        comparison(i, a="yes " * (i % 17 + 1), turns=["how " * (i % 13 + 1)]) for i in range(200)
    ]
    pairs = encode_pairs(tokenizer, rows, 512)
    batches = pair_batches(pairs, 600, random.Random(1))
    indices = [pair.index for batch in batches for pair in batch]
    assert sorted(indices) == list(range(200)) != indices
    for batch in batches:
        ids, mask = collate_pairs(batch, tokenizer.pad, "cpu")
        assert ids.numel() <= 600
        rows = [pair.chosen for pair in batch] + [pair.rejected for pair in batch]
        for i, (pair, row) in enumerate(zip(batch * 2, rows, strict=True)):
            assert ids[i, : len(row)].tolist() == row
            assert (ids[i, len(row) :] == tokenizer.pad).all()
            assert mask[i].nonzero().flatten().tolist() == list(range(pair.prompt, len(row)))
        assert row_lengths(mask).tolist() == list(map(len, rows))


# --- files ---


@pytest.mark.parametrize(
    "field, good, bad",
    [
        ("id", [0, "a"], [1.5, None, []]),
        ("turns", [["a"], ["a", "b", "c"]], [[], ["a", "b"], "a", [1], None]),
        ("responses", [[], ["a", "b"]], ["a", [None], None]),
        ("critiques", [[], [None, "a"]], ["a", [1], None]),
        ("response", ["a", None], [1, []]),
        ("a", ["", "a"], [None, 1]),
        ("by", [["policy", "base"]], [["policy"], "ab", None]),
        ("kind", ["ai", "human"], ["AI", None]),
        ("p", [0, 1, 0.5], [-0.1, 1.1, True, "0.5", None, float("nan")]),
    ],
)
def test_fields_hold_what_training_can_use(field, good, bad):
    fits, _ = FIELDS[field]
    assert all(map(fits, good)) and not any(map(fits, bad))


def test_a_file_with_nothing_to_train_on_is_named(tokenizer, tmp_path):
    def pairs(rows, fraction=0.5):
        write_jsonl(tmp_path / "x.jsonl", rows)
        paths = [tmp_path / "x.jsonl"] * 2  # several files are read as one
        return read_pairs(paths, tokenizer, fraction, 128, random.Random(0))

    assert [pair.index for pair in pairs([comparison(0)])] == [0, 1]
    human = [comparison(0, "human")]
    for rows, fraction in (([], 0.5), ([comparison(0, a="no")], 0.5), (human, 0.0)):
        with pytest.raises(UserError, match="x.jsonl holds no comparison to train on"):
            pairs(rows, fraction)
    with pytest.raises(UserError, match="x.jsonl:1: the field 'p' is not a number from 0 to 1"):
        pairs([comparison(0, p=2)])
    with pytest.raises(UserError, match="x.jsonl:1 has no field 'id'"):
        pairs([dict(kind="ai", a="yes")])
    with pytest.raises(UserError, match="x.jsonl:1 is no comparison: it has no 'chosen'"):
        pairs([dict(text="yes")])


def test_a_chain_without_a_response_is_none(tmp_path):
    rows = [dict(id=i, turns=["hi"], responses=["yes"] * i) for i in range(3)]
    write_jsonl(tmp_path / "x.jsonl", rows)
    assert read_chains(tmp_path / "x.jsonl") == rows[1:]
    write_jsonl(tmp_path / "x.jsonl", rows[:1])
    with pytest.raises(UserError, match="x.jsonl holds no chain; run revise.py"):
        read_chains(tmp_path / "x.jsonl")
