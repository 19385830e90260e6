"""The benches run at their smallest size, and an unequal comparison is refused."""

import re

import pytest

import minicai.ppo
from bench import dpo, ppo, sampler, training
from bench.shared import as_llama
from minicai.files import UserError
from minicai.gpt import GPT, GPTConfig

MADE_FOR = "1.16.0"  # of TRL; another version may not have the private methods called here


def needs_trl():
    trl = pytest.importorskip("trl", reason="TRL is not installed (pip install trl==1.16.0)")
    if trl.__version__ != MADE_FOR:
        pytest.skip(f"made for TRL {MADE_FOR}; {trl.__version__} is installed")


def rows(capsys) -> dict[str, list[str]]:
    """What a bench printed: the first word of each line -> the other words."""
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    return {words[0]: words[1:] for words in lines if words}


@pytest.mark.parametrize("installed", [True, False])
def test_sampler_with_random_weights(call, capsys, tmp_path, monkeypatch, installed):
    if installed:
        pytest.importorskip("transformers", reason="transformers is not installed")
    else:
        monkeypatch.setattr(sampler, "find_spec", lambda name: None)
    monkeypatch.setattr(sampler, "RUNS", 1)
    call(sampler.bench, "--out", tmp_path, "--rows", 3)
    said = capsys.readouterr().out
    assert "random weights" in said and ("transformers" in said) == installed
    cells = [len(re.findall(r"\(\d+\.\d\d\)", line)) for line in said.splitlines()[-2:]]
    assert cells == ([2, 3] if installed else [1, 2])  # only the second case has no stops
    assert not list(tmp_path.iterdir())


def test_sampler_refuses_different_ids(refuses, tmp_path, monkeypatch):
    """One id that differs, in the last row."""

    def wrong(model, prompts, new_tokens, stops):
        ids = sampler.cached(model, prompts, new_tokens, stops)
        return [*ids[:-1], [*ids[-1][:-1], ids[-1][-1] ^ 1]]

    monkeypatch.setattr(sampler, "uncached", wrong)
    monkeypatch.setattr(sampler, "find_spec", lambda name: None)
    assert "ids differ" in refuses(sampler.bench, "--out", tmp_path, "--rows", 2)


def test_training(call, capsys):
    call(training.bench, "--steps", 1)
    assert {"forward", "backward", "AdamW", "Muon", "a"} <= rows(capsys).keys()


def test_sampler_with_a_trained_model(call, capsys, smoke, monkeypatch):
    monkeypatch.setattr(sampler, "RUNS", 1)
    call(sampler.bench, "--out", smoke, "--rows", 2)
    assert f"{smoke / 'sft.pt'};" in rows(capsys)


@pytest.mark.parametrize("installed", [True, False])
def test_dpo(call, capsys, smoke, monkeypatch, installed):
    if installed:
        needs_trl()
    else:
        monkeypatch.setattr(dpo, "find_spec", lambda name: None)
    call(dpo.bench, "--out", smoke, "--steps", 1)
    assert ("TRL" in rows(capsys)) == installed


def test_dpo_refuses_another_loss(refuses, smoke, monkeypatch):
    needs_trl()
    right = dpo.dpo_loss
    monkeypatch.setattr(dpo, "dpo_loss", lambda *logps, beta: right(*logps, beta=1.01 * beta))
    assert "the losses differ" in refuses(dpo.bench, "--out", smoke, "--steps", 1)


@pytest.mark.parametrize("installed", [True, False])
def test_ppo(call, capsys, smoke, monkeypatch, installed):
    if installed:
        needs_trl()
    else:
        monkeypatch.setattr(ppo, "find_spec", lambda name: None)
    call(ppo.bench, "--out", smoke, "--runs", 1)
    said = rows(capsys)
    assert said["seconds"] == ["gae", "grpo"] + (["TRL's", "grpo"] if installed else [])
    tokens = [int(cell.replace(",", "")) for cell in said["tokens"]]
    assert len(tokens) == (3 if installed else 2) and min(tokens) >= 16  # answers of an update
    assert ("the" in said) == installed  # ... gradients differ by


@pytest.mark.parametrize("broken", ["policy_loss", "kl_estimates"])
def test_ppo_refuses_another_gradient(refuses, smoke, monkeypatch, broken):
    """A clip range of 0.22, or a KL term that weighs one percent more."""
    needs_trl()
    right = getattr(minicai.ppo, broken)
    wrong = {
        "policy_loss": lambda *given: right(*given[:-1], 1.1 * given[-1]),
        "kl_estimates": lambda *logps: [1.01 * k for k in right(*logps)],
    }
    monkeypatch.setattr(minicai.ppo, broken, wrong[broken])
    assert "the gradients of" in refuses(ppo.bench, "--out", smoke)


@pytest.mark.parametrize("settings", [dict(n_frozen=1), dict(qk_norm=True), dict(qkv_bias=True)])
def test_a_pretrained_model_is_refused(settings):
    pytest.importorskip("transformers", reason="transformers is not installed")
    model = GPT(GPTConfig(300, 2, 2, 1, 16, 24, 64, **settings))
    with pytest.raises(UserError, match="benches are for models from random weights; name another"):
        as_llama(model)
