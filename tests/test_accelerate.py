"""The script and the command of docs/real.md as they stand there: TRL in two processes on the CPU.

Our own loss measures what TRL has trained, on the comparisons before their export.
"""

import os
import random
import re
import subprocess
import sys
from argparse import Namespace
from contextlib import nullcontext

import torch

import minicai.dpo
from minicai import preferences, pretrained
from minicai.data import read_pairs
from minicai.dpo import dpo_loss
from minicai.files import load_policy, save_checkpoint, write_jsonl
from minicai.run import ROOT
from minicai.tokenizer import talk
from tests.test_pretrained import make_model, make_tokenizer, needs
from train_dpo import pair_logps

SCRIPT_HERE = {  # for a tiny model, and a CPU
    '"my-model-dpo",': '"my-model-dpo", use_cpu=True,',
    r"learning_rate=[\d.e-]+": "learning_rate=1e-3",
    r"num_train_epochs=\d+": "num_train_epochs=4",
}
COMMAND_HERE = {  # --cpu would start one process, whatever --num_processes says
    r"--num_processes \d+": "--multi_gpu --num_processes 2 --main_process_port 0"
}


def shown(pattern: str, changes: dict[str, str]) -> str:
    """The only such text of docs/real.md, with changes that have to fit once each."""
    page = (ROOT / "docs" / "real.md").read_text(encoding="utf-8")
    [text] = re.findall(pattern, page, re.M | re.S)
    for old, new in changes.items():
        text, count = re.subn(old, new, text)
        assert count == 1, f"{old} is there {count} times"
    return text


def test_the_script_trains_what_was_exported(tmp_path, monkeypatch):
    for package in ("safetensors", "transformers", "datasets", "trl", "accelerate"):
        needs(package, "which the script of docs/real.md needs")
    monkeypatch.setattr(minicai.dpo, "autocast", lambda device: nullcontext())

    def export(module, *names):
        monkeypatch.setattr(sys, "argv", [module.__name__, *(str(tmp_path / n) for n in names)])
        module.export()

    tokenizer = make_tokenizer("chatml")
    model = make_model(tokenizer.vocab_size)
    save_checkpoint(tmp_path / "dpo.pt", model, tokenizer, Namespace())
    # The better answer ends where the other goes on. So the end token has to be trained.
    labels = [
        dict(a="Mix flour", b="Mix flour.", p=0.9),
        dict(a="Mix flour.", b="Mix flour", p=0.2),
    ]
    rows = [
        dict(id=i, kind="ai", turns=[f"How do I bake {i}?"], **labels[i % 2]) for i in range(32)
    ]
    write_jsonl(tmp_path / "preferences.jsonl", rows)
    export(pretrained, "dpo.pt", "my-model")
    export(preferences, "preferences.jsonl", "trl.jsonl")

    (tmp_path / "dpo.py").write_text(shown(r"^```python\n(.*?)^```", SCRIPT_HERE))
    command = shown(r"^accelerate (launch .*?dpo\.py)", COMMAND_HERE)
    own = dict(HF_HOME=str(tmp_path / "cache"), CUDA_VISIBLE_DEVICES="", OMP_NUM_THREADS="1")
    done = subprocess.run(
        [sys.executable, "-m", "accelerate.commands.accelerate_cli", *command.split()],
        cwd=tmp_path,
        env=os.environ | own,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]

    [last] = (tmp_path / "my-model-dpo").glob("checkpoint-*")
    assert last.name == "checkpoint-8", "steps: 4 passes over 32 comparisons, 8 a process"
    export(pretrained, "my-model-dpo", "new.pt")
    trained, same = load_policy(tmp_path / "new.pt")
    assert trained.config == model.config
    for name, weight in model.state_dict().items():
        assert not torch.equal(trained.state_dict()[name], weight), name
    assert same.chat(talk("a", "b")) == tokenizer.chat(talk("a", "b"))  # the template is there
    pairs = read_pairs([tmp_path / "preferences.jsonl"], tokenizer, 0, 64, random.Random(0))
    with torch.no_grad():
        after, before = (pair_logps(m, pairs, tokenizer.pad, False) for m in (trained, model))
    loss, stats = dpo_loss(*after, *before)
    assert len(pairs) == 32 and stats["accuracy"] == 1 and loss < 0.1  # it was ln 2
