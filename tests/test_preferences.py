"""Comparisons in and out: the formats of files, bad rows, and the loss that TRL gives."""

import gzip
import json
import math
import random
from contextlib import nullcontext

import pytest
import torch

import minicai.dpo
import train_dpo
import train_rm
from minicai import preferences
from minicai.data import read_pairs
from minicai.dpo import dpo_loss
from minicai.files import UserError, load_policy, read_jsonl, write_jsonl
from minicai.gpt import GPT, GPTConfig
from minicai.preferences import read_preferences
from minicai.pretrained import save_pretrained
from minicai.prompts import read_prompts
from minicai.tokenizer import Tokenizer


def user(text):
    return dict(role="user", content=text)


def assistant(text):
    return dict(role="assistant", content=text)


SYSTEM = dict(role="system", content="Be brief.")
ASKED = [user("How do I whistle?"), assistant("Blow."), user("How hard?")]
HH = "\n\nHuman: How do I whistle?\n\nAssistant: Blow.\n\nHuman: How hard?\n\nAssistant:"
TURNS = ["How do I whistle?", "Blow.", "How hard?"]
GOOD, BAD = [assistant("A bit.")], [assistant("Who\n\ncares?")]
ROWS = {  # format -> rows that all compare "A bit." with "Who\n\ncares?"
    "HH-RLHF": dict(chosen=f"{HH} A bit.", rejected=f"{HH} Who\n\ncares?"),
    "TRL": dict(prompt=ASKED, chosen=GOOD, rejected=BAD),
    "TRL, implicit prompt": dict(chosen=ASKED + GOOD, rejected=ASKED + BAD),
    "TRL, prompt twice": dict(prompt=ASKED, chosen=ASKED + GOOD, rejected=ASKED + BAD),
    "HH-RLHF, prompt twice": dict(prompt=HH, chosen=f"{HH} A bit.", rejected=f"{HH} Who\n\ncares?"),
    "TRL, space": dict(
        prompt=[*ASKED[:2], user(" How hard?\n")], chosen=ASKED + GOOD, rejected=ASKED + BAD
    ),
    "texts after HH-RLHF's prompt": dict(prompt=HH, chosen=" A bit.", rejected=" Who\n\ncares?"),
    "TRL, system": dict(prompt=[SYSTEM, *ASKED], chosen=GOOD, rejected=BAD),
    "TRL, system, implicit": dict(chosen=[SYSTEM, *ASKED, *GOOD], rejected=[SYSTEM, *ASKED, *BAD]),
    "TRL, texts": dict(prompt="How hard?", chosen="A bit.", rejected="Who\n\ncares?"),
    "UltraFeedback": dict(
        prompt="How hard?", chosen=ASKED[-1:] + GOOD, rejected=ASKED[-1:] + BAD, score_chosen=4.5
    ),
}
TEXT = "How do I whistle? Blow. How hard? A bit. Who cares? Be brief. Human: Assistant:"
TOKENIZER = Tokenizer.train([TEXT] * 5, 340)


def lines(*rows) -> bytes:
    return "".join(f"{json.dumps(row)}\n" for row in rows).encode()


@pytest.mark.parametrize("name", ROWS)
def test_every_format_is_read_plain_or_packed(tmp_path, name):
    wanted = dict(kind="ai", by=["unknown"] * 2, a="A bit.", b="Who\n\ncares?", p=1.0)
    wanted |= dict(turns=TURNS[-1:] if isinstance(ROWS[name].get("prompt"), str) else TURNS)
    wanted |= dict(turns=TURNS) if "HH-RLHF" in name else {}
    wanted |= dict(system="Be brief.") if "system" in name else {}
    data = lines(ROWS[name], ROWS[name])
    versions = (data, gzip.compress(data), b"\xef\xbb\xbf" + data.replace(b"\n", b"\r\n"))
    for version in (*versions, json.dumps([ROWS[name]] * 2).encode()):
        (tmp_path / "x").write_bytes(version)
        assert read_preferences(tmp_path / "x") == [dict(id=i) | wanted for i in (1, 2)]


def test_the_prompts_of_a_file_are_those_that_its_comparisons_answer(tmp_path):
    for name in ("HH-RLHF", "TRL", "TRL, implicit prompt"):
        (tmp_path / "x").write_bytes(lines(ROWS[name]))
        [prompt], [row] = read_prompts(tmp_path / "x"), read_preferences(tmp_path / "x")
        assert [*prompt.turns] == row["turns"]


def test_the_system_message_is_a_turn_of_its_own(tmp_path):
    (tmp_path / "x").write_bytes(lines(ROWS["TRL, system"]))
    [pair] = read_pairs([tmp_path / "x"], TOKENIZER, 0, 128, random.Random(0))
    assert pair.chosen == TOKENIZER.chat([SYSTEM, *ASKED, *GOOD])
    assert pair.rejected == TOKENIZER.chat([SYSTEM, *ASKED, *BAD])
    assert pair.prompt == len(TOKENIZER.prompt([SYSTEM, *ASKED]))
    assert (pair.p, pair.by_policy) == (1.0, (False, False))


def test_rows_of_several_kinds_stand_in_one_file_and_answers_to_other_prompts_go(tmp_path, capsys):
    own = dict(id=7, kind="human", turns=["hi"], a="yes", b="no", p=0.0)
    other = dict(chosen=ASKED + GOOD, rejected=[user("How loud?"), *BAD])
    (tmp_path / "x").write_bytes(lines(own, other, ROWS["HH-RLHF"]))
    assert [row["id"] for row in read_preferences(tmp_path / "x")] == [7, 3]
    assert "x: 1 of 3 rows are left out; the first: " in capsys.readouterr().out


@pytest.mark.parametrize(
    "row, words",
    [
        (dict(prompt=ASKED, chosen=ASKED, rejected=BAD), "'chosen' does not end with the assist"),
        (dict(prompt=GOOD, chosen=BAD, rejected=BAD), "the prompt does not begin and"),
        (dict(prompt="q", chosen="", rejected="b"), "'chosen' does not end with the assist"),
        (
            dict(prompt="q", chosen=GOOD, rejected=[dict(role="assistant", content="")]),
            "'rejected' does not end with the assistant's answer",
        ),
        (dict(chosen=GOOD, rejected=BAD), "the prompt does not begin and end with the person"),
        (
            dict(prompt="Hm?", chosen=[SYSTEM, user("Hm?"), *GOOD], rejected=BAD),
            "the two answers follow different messages",
        ),
        (
            dict(
                chosen="\n\nHuman: a\n\nAssistant: b\n\nHuman: You miss the point.",
                rejected="\n\nHuman: a\n\nAssistant: c",
            ),
            "'chosen' does not end with the assistant's answer",
        ),
        (
            dict(
                chosen="\n\nHuman: \n\nAssistant: Hello?\n\nHuman: a\n\nAssistant: b",
                rejected="\n\nHuman: \n\nAssistant: Hello?\n\nHuman: a\n\nAssistant: c",
            ),
            "the prompt does not begin and end with the person",
        ),
        (dict(prompt="", chosen="a", rejected="b"), "the prompt is empty"),
        (dict(prompt=None, chosen="a", rejected="b"), "the prompt is empty"),
    ],
)
def test_a_row_that_compares_no_two_answers_is_left_out_and_named(tmp_path, capsys, row, words):
    path = tmp_path / "x.jsonl"
    path.write_bytes(lines(ROWS["TRL"], row))
    assert [row["id"] for row in read_preferences(path)] == [1]
    assert f"{path}: 1 of 2 rows are left out; the first: {path}:2: {words}" in (
        capsys.readouterr().out
    )
    path.write_bytes(lines(row))
    with pytest.raises(UserError, match=f"x.jsonl:1: {words}"):
        read_preferences(path)


@pytest.mark.parametrize(
    "row, turns, a, system",
    [
        (dict(system="Be brief.", prompt="q", chosen="a", rejected="b"), ["q"], "a", "Be brief."),
        (
            dict(system="Other.", chosen=[SYSTEM, *ASKED, *GOOD], rejected=[SYSTEM, *ASKED, *BAD]),
            [turn["content"] for turn in ASKED],
            GOOD[0]["content"],
            SYSTEM["content"],
        ),
        (
            dict(prompt="q", chosen=[SYSTEM, user("q"), *GOOD], rejected=[SYSTEM, user("q"), *BAD]),
            ["q"],
            GOOD[0]["content"],
            SYSTEM["content"],
        ),
        (
            dict(system="", prompt="q", chosen="Human: beings think.", rejected="b"),
            ["q"],
            "Human: beings think.",
            None,
        ),
        (
            dict(
                prompt="Human: hi\nAssistant:",
                chosen=[user("Human: hi\nAssistant:"), *GOOD],
                rejected=[user("Human: hi\nAssistant:"), *BAD],
            ),
            ["Human: hi\nAssistant:"],
            GOOD[0]["content"],
            None,
        ),
        (
            dict(
                prompt="Human: hi\n\nAssistant:",
                chosen=[user("Human: hi\n\nAssistant:"), *GOOD],
                rejected=[user("Human: hi\n\nAssistant:"), *BAD],
            ),
            ["Human: hi\n\nAssistant:"],
            GOOD[0]["content"],
            None,
        ),
        (
            dict(prompt="Write a chat.", chosen="Human: a\n\nAssistant: b", rejected="No."),
            ["Write a chat."],
            "Human: a\n\nAssistant: b",
            None,
        ),
        (
            dict(chosen="\n\nHuman: q\nAssistant: a", rejected="\n\nHuman: q\nAssistant: b"),
            ["q"],
            "a",
            None,
        ),
        (
            dict(chosen="Human: hi\nAssistant: yo", rejected="Human: hi\nAssistant: no"),
            ["hi"],
            "yo",
            None,
        ),
        (
            dict(chosen="Human: hi\r\n\r\nAssistant: yo", rejected="Human: hi\n\nAssistant: no"),
            ["hi"],
            "yo",
            None,
        ),
    ],
)
def test_odd_rows_are_read_as_they_are_meant(tmp_path, row, turns, a, system):
    (tmp_path / "x").write_bytes(lines(row))
    [read] = read_preferences(tmp_path / "x")
    assert (read["turns"], read["a"], read.get("system")) == (turns, a, system)


@pytest.mark.parametrize(
    "row, words",
    [
        (dict(chosen=GOOD), "has no field 'rejected'; add it"),
        (dict(chosen="A bit.", rejected="No."), "'chosen' is no conversation, .* add the field"),
        (dict(chosen=ASKED + GOOD, rejected="No."), "'rejected' is no conversation"),
        (dict(prompt=ASKED, chosen=GOOD, rejected=[]), "'rejected' is no conversation"),
        (dict(prompt=ASKED, chosen=None, rejected=BAD), "'chosen' is no conversation"),
        (dict(prompt=[dict(role="cat")], chosen=GOOD, rejected=BAD), "'prompt' is no conversation"),
        (dict(prompt="a", chosen="b", rejected=3), "'rejected' is no conversation"),
        (dict(prompt="a", chosen=str(ASKED), rejected="b"), "'chosen' is no conversation"),
        (dict(prompt=json.dumps(ASKED), chosen="b", rejected="c"), "'prompt' is no conversation"),
        (
            dict(prompt="How hard?", chosen=ASKED + GOOD, rejected=ASKED + BAD),
            "'chosen' is a whole conversation and does not begin with 'prompt'; fix one, or delete",
        ),
        (dict(turns=["hi"], a="yes", b="no", p=1), "has no field 'id'"),
    ],
)
def test_a_bad_row_is_one_sentence_with_its_line(tmp_path, row, words):
    (tmp_path / "x.jsonl").write_bytes(lines(ROWS["TRL"], row))
    with pytest.raises(UserError, match=f"x.jsonl:2:? {words}"):
        read_preferences(tmp_path / "x.jsonl")


# --- out -----------------------------------------------------------------------------------------


def command(monkeypatch, *files):
    monkeypatch.setattr("sys.argv", ["preferences.py", *map(str, files)])
    preferences.export()


def test_what_is_written_has_the_likelier_answer_first_and_comes_back(tmp_path, monkeypatch):
    rows = [
        dict(id=i, kind="ai", turns=TURNS, by=["policy", "base"], a="A bit.", b="No.", p=p)
        for i, p in enumerate((0.9, 0.2, 0.52))
    ]
    write_jsonl(tmp_path / "ours.jsonl", rows)
    command(monkeypatch, tmp_path / "ours.jsonl", tmp_path / "trl.jsonl")
    good, bad = [assistant("A bit.")], [assistant("No.")]
    found = read_jsonl(tmp_path / "trl.jsonl")
    assert found == [
        dict(prompt=ASKED, chosen=c, rejected=r) for c, r in [(good, bad), (bad, good)]
    ]
    again = read_preferences(tmp_path / "trl.jsonl")
    assert [(r["a"], r["b"], r["p"]) for r in again] == [("A bit.", "No.", 1), ("No.", "A bit.", 1)]
    (tmp_path / "x").write_bytes(lines(ROWS["TRL, system"]))
    command(monkeypatch, tmp_path / "x", tmp_path / "same.jsonl")
    assert read_jsonl(tmp_path / "same.jsonl") == [ROWS["TRL, system"]]
    write_jsonl(tmp_path / "ours.jsonl", rows[2:])
    with pytest.raises(
        UserError, match="ours.jsonl holds no decided comparison of two answers; add"
    ):
        command(monkeypatch, tmp_path / "ours.jsonl", tmp_path / "none.jsonl")
    assert not (tmp_path / "none.jsonl").exists()


# --- training ------------------------------------------------------------------------------------


def hh_rows(n):
    """Rows of HH-RLHF, each about another prompt."""
    asked = [f"\n\nHuman: {'how ' * (i % 5)}do I whistle {i}?\n\nAssistant:" for i in range(n)]
    return [dict(chosen=f"{a} A bit {i}.", rejected=f"{a} No.") for i, a in enumerate(asked)]


@pytest.mark.parametrize("script", [train_dpo, train_rm])
def test_trainings_run_whole_on_other_peoples_comparisons(copy, call, script):
    out = copy("sft.pt")
    (out / "hh.jsonl.gz").write_bytes(gzip.compress(lines(*hh_rows(24))))
    call(script.train, "--out", out, "--data", out / "hh.jsonl.gz", "--name", "hh")
    [path] = out.glob("*-hh.pt")
    assert script is not train_dpo or not torch.equal(
        *(load_policy(p)[0].embed.weight for p in (path, out / "sft.pt"))
    )


def tiny(seed) -> GPT:
    torch.manual_seed(seed)
    model = GPT(GPTConfig(TOKENIZER.vocab_size, 2, 2, 1, 16, 24, 128))
    for parameter in model.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    return model.eval()


def trl_loss(policy, reference, rows, folder) -> float:
    """TRL's loss on rows in its own formats, from their texts on, all in one batch."""
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer

    trl = pytest.importorskip("trl", reason="TRL is not installed (pip install trl==1.16.0)")
    for name, model in dict(policy=policy, reference=reference).items():
        save_pretrained(model, TOKENIZER, folder / name)
    load = AutoModelForCausalLM.from_pretrained
    trainer = trl.DPOTrainer(
        load(folder / "policy", dtype=torch.float32),
        load(folder / "reference", dtype=torch.float32),
        args=trl.DPOConfig(
            str(folder / "trl"),
            beta=1.0,
            max_length=None,
            use_cpu=True,
            bf16=False,
            disable_tqdm=True,
            report_to="none",
            gradient_checkpointing=False,
        ),
        train_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(folder / "policy"),
    )
    batch = trainer.data_collator([trainer.train_dataset[i] for i in range(len(rows))])
    return trainer.compute_loss(trainer.model.eval(), batch).item()


def as_messages(text: str) -> list[dict]:
    """A text of `hh_rows`: one question, one answer."""
    asked, answer = text.removeprefix("\n\nHuman: ").split("\n\nAssistant: ")
    return [user(asked), assistant(answer)]


OURS_AND_TRLS = {  # the rows in our file; the same for TRL, which has no format for HH-RLHF's texts
    "HH-RLHF": (
        hh_rows(6),
        [{key: as_messages(text) for key, text in row.items()} for row in hh_rows(6)],
    ),
    **{
        name: ([ROWS[name]] * 2, [ROWS[name]] * 2)
        for name in ("TRL", "TRL, implicit prompt", "TRL, system", "TRL, system, implicit")
    },
}


@pytest.mark.parametrize("name", OURS_AND_TRLS)
def test_dpo_gives_the_loss_that_trl_gives_on_the_same_rows(tmp_path, monkeypatch, name):
    for package in ("safetensors", "transformers", "datasets", "trl"):
        pytest.importorskip(package, reason=f"{package} is not installed")
    monkeypatch.setattr(minicai.dpo, "autocast", lambda device: nullcontext())
    policy, reference = tiny(0), tiny(1)
    rows, theirs = OURS_AND_TRLS[name]
    (tmp_path / "x.jsonl").write_bytes(lines(*rows))
    pairs = read_pairs([tmp_path / "x.jsonl"], TOKENIZER, 1 / 3, 128, random.Random(0))
    given = (TOKENIZER.pad, False)
    ref = train_dpo.reference_logps(reference, pairs, 4096, *given)
    with torch.no_grad():
        loss, _ = dpo_loss(*train_dpo.pair_logps(policy, pairs, *given), *ref, beta=1.0)
    assert abs(loss.item() - math.log(2)) > 0.05, "the loss of equal models"
    wanted = trl_loss(policy, reference, theirs, tmp_path)
    assert loss.item() == pytest.approx(wanted, abs=1e-4)
