"""GGUF, the one-file format of llama.cpp: settings, dequantised weights and the tokenizer.

The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. The package `gguf` reads it
and undoes the quantisation. A file is data only, so nothing in it can run.
"""

import numpy as np
import torch
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers
from tokenizers import Tokenizer as BPE
from torch import Tensor

from minicai.files import UserError
from minicai.gpt import rope_table

CONTROL, USER_DEFINED = 3, 4  # token types: a special token; one that text can spell
SETTINGS = {  # of GPTConfig -> the key after the architecture's name
    "n_layer": "block_count",
    "n_head": "attention.head_count",
    "n_kv_head": "attention.head_count_kv",
    "n_embd": "embedding_length",
    "n_hidden": "feed_forward_length",
    "block_size": "context_length",
    "norm_eps": "attention.layer_norm_rms_epsilon",
    "rope_theta": "rope.freq_base",
    "head_size": "attention.key_length",
}


def read_gguf(path) -> tuple[dict, dict[str, Tensor], BPE, str]:
    """Settings of GPTConfig, weights by their names in the file, tokenizer, chat template.

    Raises UserError for what is damaged or not supported.
    """
    try:
        import gguf
    except ImportError:
        raise UserError(f"{path} needs the package gguf: pip install gguf==0.19.0")

    class Reader(gguf.GGUFReader):
        def _get(self, offset, dtype, count=1, override_order=None):
            if offset + np.dtype(dtype).itemsize * int(count) > len(self.data):
                raise EOFError  # the library would return fewer numbers, and could go on for ever
            return super()._get(offset, dtype, count, override_order)

    try:
        reader = Reader(path)
        fields = {key: field.contents() for key, field in reader.fields.items()}
        check_supported(path, fields)
        bpe = read_tokenizer(path, fields)
        weights = {
            # A copy, since the file is only mapped into memory.
            t.name: torch.from_numpy(
                np.array(gguf.quants.dequantize(t.data, t.tensor_type), np.float32)
            )
            for t in reader.tensors
        }
        settings = read_settings(path, fields, weights)
    except NotImplementedError as error:
        raise UserError(f"{path} cannot be dequantised: {error}; name another quantisation")
    except UserError:
        raise
    except Exception as error:
        reason = type(error).__name__
        raise UserError(f"{path} is damaged or no GGUF file ({reason}); download it again")
    return settings, weights, bpe, str(fields.get("tokenizer.chat_template", ""))


def check_supported(path, fields: dict):
    kind = fields.get("general.architecture")
    if kind not in ("llama", "qwen2", "qwen3"):
        raise UserError(f"{path} holds a {kind!r} model; minicai reads llama, qwen2 and qwen3")
    if fields.get(f"{kind}.expert_count"):
        raise UserError(f"{path} is a mixture of experts, which minicai does not support")
    scaling = fields.get(f"{kind}.rope.scaling.type", "none")
    if scaling != "none":
        raise UserError(f"{path} uses rope scaling {scaling!r}; minicai supports Llama 3's")
    tokenizer = fields.get("tokenizer.ggml.model")
    if tokenizer != "gpt2":
        raise UserError(
            f"{path} has a {tokenizer!r} tokenizer; minicai reads byte-level BPE (gpt2)"
        )


def read_settings(path, fields: dict, weights: dict[str, Tensor]) -> dict:
    """Settings of GPTConfig. The weights get Hugging Face's order of rotary pairs."""
    kind = fields["general.architecture"]
    found = {name: fields.get(f"{kind}.{key}") for name, key in SETTINGS.items()}
    found["n_kv_head"] = found["n_kv_head"] or found["n_head"]
    found["rope_theta"] = found["rope_theta"] or 10000.0
    found["head_size"] = found["head_size"] or found["n_embd"] // found["n_head"]
    if "rope_freqs.weight" in weights:
        divisors = weights.pop("rope_freqs.weight")
        found["rope_scaling"] = llama3_scaling(path, divisors, found["rope_theta"])
    if kind == "llama":
        for name in weights:
            for part, heads in ((".attn_q.", "n_head"), (".attn_k.", "n_kv_head")):
                if part in name:
                    weights[name] = halves(weights[name], found[heads])
    return found


def halves(weight: Tensor, heads: int) -> Tensor:
    """Rows (H D, ..) with rotary pairs side by side -> the same with pairs D/2 apart.

    llama.cpp stores the queries and keys of Llama as Meta's code pairs them; see `rotate`.
    """
    pairs = weight.view(heads, len(weight) // heads // 2, 2, *weight.shape[1:])
    return pairs.transpose(1, 2).reshape(weight.shape)


def llama3_scaling(path, divisors: Tensor, theta: float) -> tuple:
    """The scaling that divides each frequency by these numbers (D/2,).

    GGUF keeps the divisors and not the settings. All of Llama 3's have the same but for `factor`.
    """
    scaling = (divisors.max().item(), 1.0, 4.0, 8192)

    def frequency(scaling=None):
        cos, sin = rope_table(2, 2 * len(divisors), theta, scaling)[:, 1]  # at position 1
        return torch.atan2(sin, cos)

    if not torch.allclose(frequency() / frequency(scaling), divisors, rtol=1e-3):
        raise UserError(f"{path} scales its rotary positions in another way than Llama 3")
    return scaling


def read_tokenizer(path, fields: dict) -> BPE:
    tokens = fields["tokenizer.ggml.tokens"]
    kind = fields.get("tokenizer.ggml.pre")
    vocabulary = {token: i for i, token in enumerate(tokens)}
    merges = [tuple(merge.split(" ")) for merge in fields["tokenizer.ggml.merges"]]
    # Llama 3 takes a whole word that is in the vocabulary, whether or not merges lead to it.
    bpe = BPE(models.BPE(vocabulary, merges, ignore_merges=kind == "llama-bpe"))
    bpe.pre_tokenizer = pre_tokenizer(path, kind)
    bpe.decoder = decoders.ByteLevel()
    if kind == "qwen2":
        bpe.normalizer = normalizers.NFC()
    types = dict(zip(tokens, fields.get("tokenizer.ggml.token_type", [])))
    for wanted, add in ((CONTROL, bpe.add_special_tokens), (USER_DEFINED, bpe.add_tokens)):
        add([AddedToken(t, normalized=False) for t in tokens if types.get(t) == wanted])
    return bpe


def pre_tokenizer(path, kind: str):
    """How text is split before any merge. GGUF names the model it is from; the patterns are those
    in the models' own tokenizer.json."""
    gpt2 = pre_tokenizers.ByteLevel(add_prefix_space=False)
    if kind == "gpt-2":
        return gpt2
    if kind == "smollm":
        return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), gpt2])
    numbers = {"llama-bpe": r"\p{N}{1,3}", "qwen2": r"\p{N}"}.get(kind)
    if numbers is None:
        known = "gpt-2, smollm, llama-bpe and qwen2"
        raise UserError(f"{path} splits text like {kind!r}; minicai knows {known}")
    words = rf"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|{numbers}"
    rest = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    split = pre_tokenizers.Split(Regex(f"{words}|{rest}"), "isolated")
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return pre_tokenizers.Sequence([split, to_bytes])
