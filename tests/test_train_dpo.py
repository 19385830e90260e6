"""DPO: it starts at its reference, and the loss gets what it should."""

import math
from contextlib import nullcontext

import pytest
import torch

import minicai.dpo
import train_dpo
from minicai.data import pair_batches, read_pairs
from minicai.dpo import LOSSES, PER_TOKEN
from minicai.files import load_policy, read_jsonl, write_jsonl
from minicai.gpt import token_logps


@pytest.fixture
def exact(monkeypatch):
    """Arithmetic in float32: in bfloat16 it holds to three digits only."""
    monkeypatch.setattr(minicai.dpo, "autocast", lambda device: nullcontext())


@pytest.fixture
def out(copy):
    """A folder with few comparisons, of different labels."""
    folder = copy(
        "sft.pt", "dpo.pt", "sft-round1.pt", "preferences.jsonl", "preferences-round1.jsonl"
    )
    for path in folder.glob("*.jsonl"):
        write_jsonl(path, read_jsonl(path)[:30])
    return folder


@pytest.mark.parametrize("name", ["dpo", "simpo"])
def test_the_loss_gets_both_answers_the_reference_and_the_label(
    out, call, exact, monkeypatch, name
):
    real, batches, seen = LOSSES[name], [], []

    def loss(*logps, p, **more):
        seen.append((*logps, p, more))
        return real(*logps, p=p, **more)

    def batched(*args):
        batches.append(pair_batches(*args))
        return batches[-1]

    monkeypatch.setitem(LOSSES, name, loss)
    monkeypatch.setattr(train_dpo, "pair_batches", batched)
    call(train_dpo.train, "--out", out, "--loss", name, "--name", name)
    start, _ = load_policy(out / "sft.pt")
    rows = read_jsonl(out / f"train_dpo-{name}.jsonl")
    assert len(rows) == len(seen) == len(batches[1]), "one step a batch"
    for step in (0, len(seen) - 1):
        chosen, rejected, *reference, labels, more = seen[step]
        batch = batches[1][step]
        assert labels.tolist() == pytest.approx([pair.p for pair in batch]) and more == {}
        for side, found, logps in zip(
            ("chosen", "rejected"), reference, (chosen.tolist(), rejected.tolist())
        ):
            for pair, ref, policy in zip(batch, found.tolist(), logps):
                ids = torch.tensor([getattr(pair, side)])
                response = token_logps(start(ids[:, :-1]), ids)[0, pair.prompt - 1 :]
                wanted = response.mean() if name in PER_TOKEN else response.sum()
                assert ref == pytest.approx(wanted.item(), abs=1e-3), "the reference has moved"
                assert step or policy == pytest.approx(ref, abs=1e-3)
        assert rows[step]["chosen_logps"] == pytest.approx(chosen.mean().item(), abs=1e-3)
    if name == "dpo":
        assert rows[0]["loss"] == pytest.approx(math.log(2), abs=1e-4) and rows[0]["margin"] == 0
    trained, _ = load_policy(out / f"dpo-{name}.pt")
    assert not torch.equal(trained.embed.weight, start.embed.weight)


def test_a_wrong_reference_is_noticed_at_the_first_step(out, call, monkeypatch):
    right = train_dpo.reference_logps
    shift = torch.tensor([[3.0], [0.0]])
    monkeypatch.setattr(train_dpo, "reference_logps", lambda *args: right(*args) + shift)
    with pytest.raises(AssertionError, match="not ln 2"):
        call(train_dpo.train, "--out", out)


def test_beta_and_epochs_are_those_asked_for(out, call, monkeypatch):
    seen = []

    def loss(chosen, rejected, ref_chosen, ref_rejected, p, beta):
        seen.append(beta)
        return (chosen - rejected).mean() ** 2, {}

    monkeypatch.setitem(LOSSES, "ipo", loss)
    for epochs in (1, 3):
        call(train_dpo.train, "--out", out, "--loss", "ipo", "--beta", 0.3, "--epochs", epochs)
    once = len(seen) // 4
    assert seen == [0.3] * 4 * once and once > 0
    assert len(read_jsonl(out / "train_dpo-ipo.jsonl")) == 3 * once


def test_a_round_starts_from_its_fine_tuning_and_reads_the_comparisons_of_all_rounds(
    out, call, monkeypatch
):
    read = []

    def load(path, device):
        read.append(path)
        return load_policy(path, device)

    def pairs(files, *more):
        read.extend(files)
        return read_pairs(files, *more)

    monkeypatch.setattr(train_dpo, "load_policy", load)
    monkeypatch.setattr(train_dpo, "read_pairs", pairs)
    monkeypatch.setattr(train_dpo, "optimizer_step", lambda *args, **more: None)
    call(train_dpo.train, "--out", out, "--round", 1)
    names = ["sft-round1.pt", "preferences.jsonl", "preferences-round1.jsonl"]
    assert read == [out / name for name in names]
    one, other = (load_policy(out / name)[0] for name in ("round1.pt", "sft-round1.pt"))
    assert torch.equal(one.embed.weight, other.embed.weight)
