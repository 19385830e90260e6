"""Stage 1 training: which texts it reads, and how much of each."""

import random
from functools import partial
from itertools import islice
from types import SimpleNamespace

import pytest
import torch

import minicai.run
import train_sft
from minicai.data import encode_answer, encode_chats
from minicai.files import load_checkpoint, load_policy, read_jsonl, write_jsonl
from minicai.rows import read_chains
from minicai.run import ROOT
from minicai.world.content import World
from minicai.world.turns import POINT_WEIGHT, USER_WEIGHT

CHAINS = [
    dict(id=0, turns=["a"], responses=["draft 0", "first 0", "second 0"]),
    dict(id=1, turns=["b"], responses=["draft 1", "first 1"]),
    dict(id=2, turns=["c"], responses=["draft 2"]),
]


@pytest.fixture
def learned(monkeypatch):
    """(turns, answer) of everything that a training encodes as an answer."""
    found, encode = [], train_sft.encode_chats

    def watched(tokenizer, data, *rest):
        found.extend(data)
        return encode(tokenizer, data, *rest)

    monkeypatch.setattr(train_sft, "encode_chats", watched)
    return found


def test_only_the_final_answer_of_a_conversation_is_learned_with_its_end(smoke):
    _, tokenizer = load_policy(smoke / "base.pt")
    example = encode_answer(tokenizer, ["Hello.", "Good day.", "How?"], "So.")
    answer = [*tokenizer.encode("So."), tokenizer.end]
    assert example.ids[-len(answer) :].tolist() == answer
    assert example.weights.tolist() == [0] * (len(example.ids) - len(answer)) + [1] * len(answer)


def test_some_answers_come_again_after_another_conversation(smoke):
    _, tokenizer = load_policy(smoke / "base.pt")
    data = [([f"Question {i}?"], f"Answer {i}.") for i in range(100)]
    alone = [encode_answer(tokenizer, *row) for row in data]
    examples = encode_chats(tokenizer, data, 0.4, 1024, random.Random(0))
    ids, chats = [e.ids.tolist() for e in alone], examples[len(data) :]
    assert [e.ids.tolist() for e in examples[: len(data)]] == ids and len(chats) == 40
    for e in chats:
        before, n = next((b, len(b)) for b in ids if b == e.ids[: len(b)].tolist())
        again = alone[ids.index(e.ids[n:].tolist())]
        assert (
            before != again.ids.tolist() and e.weights.tolist() == [0] * n + again.weights.tolist()
        )
    short = encode_chats(tokenizer, data, 0.4, max(map(len, ids)), random.Random(0))
    assert len(short) == len(data), "no room for two"
    same = encode_chats(tokenizer, data[:1] * 5, 0.4, 1024, random.Random(0))
    assert len(same) == 5, "no conversation comes after itself"


@pytest.mark.parametrize(
    "steps, train_on, answers",
    [
        (5, "last", ["second 0", "first 1", "draft 2"]),
        (1, "last", ["first 0", "first 1", "draft 2"]),
        (0, "last", ["draft 0", "draft 1", "draft 2"]),
        (5, "all", ["first 0", "second 0", "first 1", "draft 2"]),
        (1, "all", ["first 0", "first 1", "draft 2"]),
    ],
)
def test_revisions_up_to_a_step_are_trained_on(steps, train_on, answers):
    chosen = train_sft.choose_revisions(CHAINS, steps, train_on)
    assert [answer for _, answer in chosen] == answers and chosen[-1][0] == ["c"]


def test_replayed_documents_teach_no_answer(monkeypatch):
    """Nothing is learned of a conversation in a document: its answer may be help with harm."""
    learned, read = [], []
    args = SimpleNamespace(world=ROOT / "world", world_share=1.0, more_acts=False, seed=3)
    monkeypatch.setattr(train_sft, "encode_turns", lambda _, turns: turns)
    for turns in islice(train_sft.replay(args, None), 600):
        learned += [text for _, text, weight in turns if weight]
        read += [text for role, text, _ in turns if role != "document"]
        for role, _, weight in turns:
            assert weight in ((USER_WEIGHT, 1.0, POINT_WEIGHT) if role == "document" else (0,))
    acts = World(args.world).acts
    harmful = [step for act in acts if act.kind == "harmful" for step in act.steps]
    assert any(step in text for step in harmful for text in read)
    assert not any(step in text for step in harmful for text in learned)
    again = [t for turns in islice(train_sft.replay(args, None), 50) for _, t, w in turns if w]
    assert again == learned[: len(again)] and len(again) >= 50


def test_helpful_answers_are_mixed_in_and_some_requests_are_disguised(smoke, copy, call, learned):
    rows = read_jsonl(smoke / "helpful.jsonl")
    out, chains = copy("base.pt", "revisions.jsonl"), len(read_chains(smoke / "revisions.jsonl"))
    framings = {f.id for f in World(ROOT / "world").framings}
    disguised = [row for row in rows if framings & {*row["request"].split("/")}]
    fitting = [row for row in rows if row["type"] in ("legitimate", "sensitive")]
    assert len(rows) == chains and all(row in fitting for row in disguised)
    assert 0.1 < len(disguised) / len(fitting) < 0.5
    assert {row["type"] for row in rows} & {"harmful", "ambiguous"} == set()
    call(train_sft.train, "--out", out, "--helpful-fraction", 0.2)
    helpful = read_jsonl(out / "helpful.jsonl")
    assert len(helpful) == round(chains / 4)
    answered = [(row["turns"], row["response"]) for row in helpful if row["response"]]
    assert learned[: len(answered)] == answered and len(learned) == len(answered) + chains


def test_training_moves_the_model_toward_its_revisions(copy, call, monkeypatch, learned):
    out = copy("base.pt", "revisions.jsonl")
    monkeypatch.setitem(minicai.run.SIZES, "sft_epochs", (4,) * 3)
    call(train_sft.train, "--out", out, "--helpful-fraction", 0, "--name", "more")
    chains = read_chains(out / "revisions.jsonl")
    assert learned == [(chain["turns"], chain["responses"][-1]) for chain in chains]
    assert not (out / "helpful.jsonl").exists() and not (out / "sft.pt").exists()
    losses = [row["loss"] for row in read_jsonl(out / "train_sft-more.jsonl")]
    epoch = len(losses) // 4  # the same answers in all, other documents
    assert sum(losses[-epoch:]) < sum(losses[:epoch])


def test_a_round_trains_the_stage_before_gently_on_all_revisions(copy, call, monkeypatch, learned):
    out, started = copy(), []

    def watched(load, path, *rest):
        started.append(path.name)
        return load(path, *rest)

    for name in ("load_policy", "load_like"):
        monkeypatch.setattr(train_sft, name, partial(watched, getattr(train_sft, name)))
    before = (out / "sft-round1.pt").read_bytes()
    call(train_sft.train, "--out", out, "--round", 1)
    assert started == ["base.pt", "dpo.pt"], "the base answers, the stage before is trained"
    chains = read_chains(out / "revisions.jsonl") + read_chains(out / "revisions-round1.jsonl")
    assert [answer for _, answer in learned[-len(chains) :]] == [c["responses"][-1] for c in chains]
    again = torch.load(out / "sft-round1.pt", weights_only=True)
    monkeypatch.undo()
    (out / "old.pt").write_bytes(before)
    old, _, extra = load_checkpoint(out / "old.pt")
    assert all(torch.equal(a, again["model"][name]) for name, a in old.state_dict().items())
    assert extra["options"]["lr"] == extra["options"]["sft_lr"] / 5
    assert extra["options"]["sft_epochs"] == 1


def test_answers_that_do_not_fit_the_context_are_left_out_and_counted(copy, call, capsys, refuses):
    out = copy("base.pt", "revisions.jsonl")
    chains = [dict(chain, responses=["long " * 1100]) for chain in CHAINS]
    data = ["--data", out / "long.jsonl", "--helpful-fraction", 0]
    write_jsonl(out / "long.jsonl", chains)
    said = refuses(train_sft.train, "--out", out, *data)
    assert "none of 3 answers fits the context of 1024 ids" in said
    write_jsonl(out / "long.jsonl", [*chains, CHAINS[0] | dict(id=3)])
    call(train_sft.train, "--out", out, *data)
    assert "3 answers do not fit the context and are left out" in capsys.readouterr().out
