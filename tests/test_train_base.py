"""The base: what it learns, and that a killed training ends in the same weights."""

import pytest
import torch

import minicai.run
import train_base
from minicai.constitution import Constitution
from minicai.files import UserError, load_policy, read_jsonl
from minicai.world.content import World
from minicai.world.corpus import Corpus


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """A vocabulary and a model that are ready in a second."""
    for name, size in dict(vocab_size=400, n_layer=1, n_embd=16, n_hidden=24, documents=60).items():
        monkeypatch.setitem(minicai.run.SIZES, name, (size,) * len(minicai.run.PRESETS))


def weights(path) -> dict:
    return torch.load(path, weights_only=True)["model"]


def kill_at(monkeypatch, step: int):
    collate, calls = train_base.collate, []

    def killed(*args):
        calls.append(args)
        if len(calls) > step:
            raise KeyboardInterrupt
        return collate(*args)

    monkeypatch.setattr(train_base, "collate", killed)


def test_a_killed_training_ends_in_the_weights_of_an_undisturbed_one(call, monkeypatch, tmp_path):
    """Which also shows that the same seed gives the same weights."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    monkeypatch.setattr(train_base, "SAVE_SECONDS", -1)
    call(train_base.train, "--out", whole)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        kill_at(patch, 6)
        call(train_base.train, "--out", killed)
    assert not (killed / "base.pt").exists()
    call(train_base.train, "--out", killed)
    one, other = weights(whole / "base.pt"), weights(killed / "base.pt")
    assert all(torch.equal(one[name], other[name]) for name in one)
    steps = [[row["step"] for row in read_jsonl(d / "train_base.jsonl")] for d in (whole, killed)]
    assert steps[0] == steps[1] and not (killed / "train_base.state.pt").exists()
    call(train_base.train, "--out", killed, "--seed", 1)
    assert not torch.equal(one["embed.weight"], weights(killed / "base.pt")["embed.weight"])


def test_a_killed_training_does_not_go_on_with_other_options(call, monkeypatch, tmp_path):
    monkeypatch.setattr(train_base, "SAVE_SECONDS", -1)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        kill_at(patch, 1)
        call(train_base.train, "--out", tmp_path)
    with pytest.raises(UserError, match="train_base.state.pt is of a run with other options; del"):
        call(train_base.train, "--out", tmp_path, "--documents", 50)


def test_the_base_reads_every_document_once_up_to_its_end_token(smoke):
    argv = ["--preset", "smoke", "--out", str(smoke)]
    args = minicai.run.setup(minicai.run.parser(""), argv, writes=False)
    tokenizer, examples = train_base.write_corpus(args)
    corpus = Corpus(World(args.world), Constitution(args.constitution), args.seed)
    for document, example in zip(corpus.documents(args.documents), examples, strict=True):
        assert tokenizer.decode(example.ids) == "".join(turn.content for turn in document)
        assert example.ids[-1] == tokenizer.end
        assert example.weights[-1] == pytest.approx(document[-1].weight)


def test_the_base_of_the_smoke_run_has_learned(smoke):
    losses = [row["loss"] for row in read_jsonl(smoke / "train_base.jsonl")]
    assert losses[-1] < losses[0] < 8
    model, tokenizer = load_policy(smoke / "base.pt")
    assert model.config.vocab_size == tokenizer.vocab_size
    assert (smoke / "tokenizer.json").read_text(encoding="utf-8") == tokenizer.to_json()
