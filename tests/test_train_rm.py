"""The reward model: what it learns from, what is held back, and where its scores begin."""

import random

import pytest
import torch

import train_rm
from minicai.data import pair_batches, read_pairs
from minicai.files import load_policy, read_jsonl, write_jsonl
from minicai.reward import RewardModel


def pairs_of(folder, rng):
    policy, tokenizer = load_policy(folder / "sft.pt")
    path = folder / "preferences.jsonl"
    return read_pairs([path], tokenizer, 1 / 3, policy.config.block_size, rng)


def test_no_prompt_is_trained_on_and_held_back(smoke):
    rng = random.Random(1)
    pairs = pairs_of(smoke, rng)
    held, kept = train_rm.hold_back(pairs, rng)
    one, other = ({tuple(p.chosen[: p.prompt]) for p in part} for part in (held, kept))
    assert not one & other and len(held) + len(kept) == len(pairs)
    assert len(one) == (len(one) + len(other)) // 10 > 0


def test_the_labels_of_what_is_not_held_back_are_learned_and_the_rest_measured(
    copy, call, monkeypatch
):
    out, loss, agreement = (
        copy("sft.pt", "preferences.jsonl"),
        train_rm.bradley_terry_loss,
        train_rm.agreement,
    )
    learned, batches, parts, measured = [], [], [], []
    monkeypatch.setattr(train_rm, "bradley_terry_loss", lambda *a: learned.append(a[2]) or loss(*a))
    monkeypatch.setattr(
        train_rm, "pair_batches", lambda *a: batches.append(pair_batches(*a)) or batches[-1]
    )
    hold_back = train_rm.hold_back
    monkeypatch.setattr(train_rm, "hold_back", lambda *a: parts.extend(hold_back(*a)) or parts)
    monkeypatch.setattr(
        train_rm, "agreement", lambda m, b, pad: measured.extend(b) or agreement(m, b, pad)
    )
    call(train_rm.train, "--out", out)
    held, kept = ({pair.index for pair in part} for part in parts)
    assert {pair.index for batch in batches[0] for pair in batch} == kept and not kept & held
    for labels, batch in zip(learned, batches[0], strict=True):
        assert labels.tolist() == pytest.approx([pair.p for pair in batch])
    assert {pair.index for batch in measured for pair in batch} == held
    reward, _, extra = RewardModel.load(out / "rm.pt")
    assert extra["held_out"]["n"] == len(held) and 0 <= extra["held_out"]["accuracy"] <= 1
    assert not torch.equal(reward.gpt.embed.weight, load_policy(out / "sft.pt")[0].embed.weight)


def test_the_policys_own_answers_score_0_on_average_whoever_their_rivals_are(smoke):
    rng = random.Random("rm 0")  # as train_rm.py draws
    reward, _, _ = RewardModel.load(smoke / "rm.pt")
    _, pairs = train_rm.hold_back(pairs_of(smoke, rng), rng)
    sides = [(ids, by) for p in pairs for ids, by in zip((p.chosen, p.rejected), p.by_policy)]
    own = [ids for ids, by_policy in sides if by_policy]
    assert 0 < len(own) < len(sides)
    with torch.no_grad():
        scores = [reward(torch.tensor([ids]), torch.tensor([len(ids)])).item() for ids in own]
    assert sum(scores) / len(scores) == pytest.approx(0, abs=0.02)  # perhaps in bfloat16
    assert max(scores) - min(scores) > 0.1


def test_scores_stay_where_no_answer_is_the_policys_and_the_person_can_be_left_out(copy, call):
    out = copy("sft.pt", "preferences.jsonl")
    rows = [row | dict(by=["base", "evasive"]) for row in read_jsonl(out / "preferences.jsonl")]
    write_jsonl(out / "others.jsonl", rows)
    options = ["--data", out / "others.jsonl", "--helpful-fraction", 0, "--name", "others"]
    call(train_rm.train, "--out", out, *options)
    reward, _, _ = RewardModel.load(out / "rm-others.pt")
    assert reward.score.bias.isfinite().all() and not (out / "rm.pt").exists()
