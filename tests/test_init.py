"""A pretrained model as the base: what is trained, what stays, and what is left of its voice."""

import copy
from argparse import Namespace
from random import Random

import pytest
import torch
import torch.nn.functional as F

import label
import minicai.run
import pipeline
import revise
import train_base
import train_sft
from minicai.files import UserError, load_policy, read_jsonl, save_checkpoint, write_jsonl
from minicai.gpt import GPT, GPTConfig
from minicai.prompts import prompts_of
from minicai.run import ROOT
from minicai.tokenizer import Tokenizer
from minicai.world import requests, voice
from minicai.world.content import TECHNIQUES, World
from minicai.world.documents import Documents

TOKENIZER = Tokenizer.train(["How do I bake bread? Mix flour, water and yeast."] * 9, 300)

WORLD = World(ROOT / "world")


def pretrained(*_, context=2048) -> tuple[GPT, Tokenizer]:
    """A model of four layers that nobody has trained."""
    torch.manual_seed(1)
    model = GPT(GPTConfig(TOKENIZER.vocab_size, 4, 2, 1, 16, 24, context))
    return model.eval(), copy.deepcopy(TOKENIZER)


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(train_base, "load_pretrained", pretrained)
    monkeypatch.setattr(train_base, "HELD_OUT", 6)
    for name, size in dict(documents=60, base_lr=1e-3).items():
        monkeypatch.setitem(minicai.run.SIZES, name, (size,) * len(minicai.run.PRESETS))


def moved(before: GPT, after: GPT) -> set[str]:
    other = after.state_dict()
    return {name for name, value in before.state_dict().items() if not value.equal(other[name])}


def test_only_the_upper_layers_are_trained_and_the_checkpoint_remembers_it(call, tmp_path, capsys):
    call(train_base.train, "--out", tmp_path, "--init", "any", "--layers", 1)
    model, tokenizer = load_policy(tmp_path / "base.pt")
    changed = moved(pretrained()[0], model)
    upper = {name for name in model.state_dict() if name.startswith(("blocks.3", "norm."))}
    assert changed == upper and tokenizer.to_json() == TOKENIZER.to_json()
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trained == upper, "in later trainings too"
    assert "loss on 6 held-out answers of its own: " in capsys.readouterr().out


def test_with_all_layers_everything_is_trained(call, tmp_path):
    call(train_base.train, "--out", tmp_path, "--init", "any", "--layers", 9)
    model, _ = load_policy(tmp_path / "base.pt")
    assert moved(pretrained()[0], model) == set(model.state_dict())


def test_a_killed_training_goes_on_to_the_same_weights(call, monkeypatch, tmp_path):
    monkeypatch.setattr(train_base, "SAVE_SECONDS", -1)
    options = ("--init", "any", "--layers", 2)
    call(train_base.train, "--out", tmp_path / "whole", *options)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        step, calls = train_base.optimizer_step, []

        def killed(*args):
            calls.append(args)
            if len(calls) > 5:
                raise KeyboardInterrupt
            step(*args)

        patch.setattr(train_base, "optimizer_step", killed)
        call(train_base.train, "--out", tmp_path / "killed", *options)
    call(train_base.train, "--out", tmp_path / "killed", *options)
    models = [load_policy(tmp_path / name / "base.pt")[0] for name in ("whole", "killed")]
    assert not moved(*models)


def test_the_corpus_of_a_pretrained_model_has_its_own_shares(call, monkeypatch, tmp_path):
    seen, learned, batches = [], [], train_base.make_batches
    monkeypatch.setattr(train_base, "Corpus", lambda *args: seen.append(args) or real(*args))
    from minicai.world.corpus import PRETRAINED_SHARE, SHARE
    from minicai.world.corpus import Corpus as real

    monkeypatch.setattr(
        train_base, "make_batches", lambda rows, *more: learned.extend(rows) or batches(rows, *more)
    )
    call(train_base.train, "--out", tmp_path, "--init", "any")
    assert len(learned) == 60 + 6, "documents, and answers of its own"
    assert seen and all(args[3] is PRETRAINED_SHARE for args in seen)
    assert sum(PRETRAINED_SHARE.values()) == pytest.approx(1) == pytest.approx(sum(SHARE.values()))


def test_own_answers_are_learned_and_their_questions_read():
    model, tokenizer = pretrained()
    asked = [["How do I bake bread?"], ["And pies?"]]
    for example, turns in zip(voice.own_answers(model, tokenizer, asked, seed=0), asked):
        prompt = tokenizer.prompt([dict(role="user", content=turns[0])])
        n = len(prompt)
        assert example.ids[:n].tolist() == prompt and not example.weights[:n].any()
        assert len(example.ids) > n and (example.weights[n:] == 1).all()


def test_the_loss_is_the_mean_over_all_learned_tokens():
    """Against one row at a time, token by token."""
    model, tokenizer = pretrained()
    model.blocks[0].mlp.down.weight.data *= 20  # so that the losses of tokens differ
    examples = voice.own_answers(model, tokenizer, [["a"], ["bb cc"], ["d e f"]], seed=0)
    losses = []
    for example in examples:
        ids = torch.tensor(example.ids, dtype=torch.long)
        logits = model(ids[None, :-1])[0]
        for t in range(1, len(ids)):
            if example.weights[t]:
                losses.append(F.cross_entropy(logits[t - 1], ids[t]).item())
    expected = sum(losses) / len(losses)
    found = voice.mean_loss(model, tokenizer, examples, batch_tokens=200)
    assert found == pytest.approx(expected, rel=2e-3)  # bfloat16 on some machines


def test_held_out_questions_are_never_trained_on_and_all_are_harmless():
    asked = {split: voice.questions(split, 400, seed=0) for split in ("train", "test")}
    found = {split: {turns[0] for turns in asked[split]} for split in asked}
    assert not found["train"] & found["test"]
    for split, texts in found.items():
        general, natural = (
            {p.turns[0]: p.label for p in prompts_of(ROOT / "prompts" / name, split)}
            for name in ("general.txt", "natural.jsonl")
        )
        assert sum(turns[0] in general for turns in asked[split]) == 200
        assert texts <= general.keys() | natural.keys()
        assert {natural[text] for text in texts - general.keys()} == {"safe"}


def test_documents_of_steps_tell_how_any_act_is_done():
    world = World(ROOT / "world", share=0.5, more=True)
    corpus = Documents(world, 0)
    told = set()
    for _ in range(3000):
        [turn] = corpus.steps()
        told |= {a.id for a in world.acts if all(step in turn.content for step in a.steps)}
    assert told == {a.id for a in world.acts}


def test_the_world_of_a_pretrained_model_has_more_acts_and_no_codes():
    args = Namespace(world=ROOT / "world", world_share=1.0, more_acts=True)
    world, usual = World.of(args), World(ROOT / "world")
    assert len(world.acts) > len(usual.acts)
    assert {f.technique for f in world.framings} == set(TECHNIQUES[:5])
    assert {f.technique for f in usual.framings} == set(TECHNIQUES)


def test_the_preset_goes_with_the_option(tmp_path):
    options = ["--out", str(tmp_path), "--init", "any"]
    p = minicai.run.parser("")
    p.add_argument("--init")
    args = minicai.run.setup(p, options, writes=False)
    assert args.preset == "real" and args.more_acts
    assert minicai.run.setup(p, [*options, "--preset", "smoke"], writes=False).preset == "smoke"


def test_the_preset_without_a_model_is_refused_and_a_model_with_another_preset(
    monkeypatch, tmp_path
):
    for options in (["--preset", "real"], ["--preset", "quick", "--init", "any"]):
        monkeypatch.setattr("sys.argv", ["train_base.py", *options, "--out", str(tmp_path)])
        with pytest.raises(UserError, match="--init and --preset real go together"):
            train_base.train()
    monkeypatch.setattr("sys.argv", ["train_base.py", "--layers", "2", "--out", str(tmp_path)])
    with pytest.raises(UserError, match="--layers is for --init; leave it out"):
        train_base.train()


def test_a_model_with_a_context_below_the_longest_document_is_refused(
    refuses, monkeypatch, tmp_path
):
    monkeypatch.setattr(train_base, "load_pretrained", lambda *_: pretrained(context=1023))
    said = refuses(train_base.train, "--out", tmp_path, "--init", "any")
    assert "any has a context of 1023 ids, and the corpus needs 1024; name another model" in said


def test_the_pipeline_hands_the_model_to_its_first_step(call, monkeypatch, tmp_path):
    ran = []
    monkeypatch.setattr(pipeline, "run_script", lambda name, _, *own: ran.append((name, own)) or 1)
    call(pipeline.pipeline, "--out", tmp_path, "--init", "some.gguf")
    assert [own for name, own in ran if "--init" in own] == [ran[0][1]]
    assert ran[0][0] == "train_base" and str(ran[0][1][1]) == "some.gguf"
    with pytest.raises(UserError, match="of a run with other options"):
        call(pipeline.pipeline, "--out", tmp_path, "--init", "other.gguf")


def test_a_frozen_model_trains_on_after_it_was_saved(tmp_path):
    model, tokenizer = pretrained()
    model.freeze(2)
    save_checkpoint(tmp_path / "x.pt", model, tokenizer, Namespace())
    again, _ = load_policy(tmp_path / "x.pt")
    assert again.config.n_frozen == 2
    again(torch.tensor([[1, 2, 3]])).sum().backward()
    assert again.embed.weight.grad is None and again.blocks[2].mlp.up.weight.grad is not None


@pytest.fixture
def natural(monkeypatch, tmp_path):
    """A short file in the place of prompts/natural.jsonl, and the preset's acts: its train half."""
    monkeypatch.setitem(minicai.run.SIZES, "more_acts", (True,) * 4)
    path = tmp_path / "natural.jsonl"
    write_jsonl(path, [dict(prompt=f"Is {n} a prime?", label="safe") for n in range(12)])
    monkeypatch.setattr(requests, "NATURAL", path)
    halves = [{p.turns for p in prompts_of(path, split)} for split in ("train", "test")]
    assert all(halves)
    return halves[0]


def test_a_pretrained_model_revises_answers_to_natural_prompts_too(copy, call, natural):
    out = copy("base.pt", "tokenizer.json")
    call(revise.revise, "--out", out, "--requests", 3)
    asked = {tuple(row["turns"]) for row in read_jsonl(out / "revisions.jsonl")}
    assert asked & natural and len(asked - natural) <= 3
    rows = revise.draw_requests(Namespace(seed=0, requests=3, prompts=None, more_acts=True), WORLD)
    assert {tuple(row["turns"]) for row in rows[3:]} == natural, "and none of the test half"


def test_the_judge_compares_answers_to_natural_prompts_too(copy, monkeypatch, natural):
    asked = []
    monkeypatch.setattr(
        label, "two_answers", lambda *args: asked.extend(args[3]) or [("a", "b") for _ in args[3]]
    )
    args = Namespace(seed=0, comparisons=4, prompts=None, more_acts=True, iid=False)
    rows = label.make_pairs(args, {}, None, WORLD, Random(0))
    own = [row for row in rows if tuple(row["turns"]) in natural]
    assert len(own) == len(natural) and all(row["kind"] == "ai" for row in own)
    assert len(asked) == 8 + len(natural)


def test_stage_1_keeps_the_voice_of_a_pretrained_model_alone(copy, call, monkeypatch):
    out, asked = copy("base.pt", "tokenizer.json", "revisions.jsonl"), []
    real = train_sft.own_answers
    monkeypatch.setattr(
        train_sft, "own_answers", lambda *args: asked.append(args[2]) or real(*args)
    )
    call(train_sft.train, "--out", out, "--name", "usual")
    monkeypatch.setitem(minicai.run.SIZES, "more_acts", (True,) * 4)
    call(train_sft.train, "--out", out, "--name", "voice")
    n = round(train_sft.VOICE * len(read_jsonl(out / "revisions.jsonl")))
    assert asked == [[], voice.questions("train", n, 0)] and n > 0
