"""A Hugging Face folder: config.json, *.safetensors, tokenizer.json and the chat template.

Files are read as data: no pickle, no code.
"""

from pathlib import Path

import torch
from tokenizers import Tokenizer as BPE
from torch import Tensor

from minicai.chat_template import chat_template
from minicai.files import UserError, parse_json, read_text
from minicai.gpt import GPTConfig
from minicai.tokenizer import Tokenizer

ARCHITECTURES = {"llama": "Llama", "qwen2": "Qwen2", "qwen3": "Qwen3"}
SETTINGS = {  # of GPTConfig -> of config.json
    "n_layer": "num_hidden_layers",
    "n_head": "num_attention_heads",
    "n_kv_head": "num_key_value_heads",
    "n_embd": "hidden_size",
    "n_hidden": "intermediate_size",
    "block_size": "max_position_embeddings",
    "norm_eps": "rms_norm_eps",
    "head_size": "head_dim",
}
SCALING = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")


def safetensors(path):
    """The package. Raises UserError where it is not installed."""
    try:
        import safetensors.torch

        return safetensors
    except ImportError:
        raise UserError(f"{path} needs the package safetensors: pip install safetensors==0.8.0")


# --- in ------------------------------------------------------------------------------------------


def read_folder(folder: Path) -> tuple[dict, dict[str, Tensor], BPE, str]:
    """Settings of GPTConfig, weights by their names in the files, tokenizer, chat template.

    Raises UserError for what is damaged or not supported.
    """
    config = read_object(folder / "config.json")
    settings = read_settings(folder / "config.json", config)
    weights = {}
    for path in weight_files(folder):
        weights |= read_weights(path)
    if config.get("tie_word_embeddings") is True:
        weights.pop("lm_head.weight", None)
    elif config.get("tie_word_embeddings") is False and "lm_head.weight" not in weights:
        raise UserError(f"{folder} lacks the weight 'lm_head.weight'; download it again")
    text = read_text(folder / "tokenizer.json")
    try:
        bpe = BPE.from_str(text)
    except Exception as error:
        raise UserError(f"{folder / 'tokenizer.json'} is no tokenizer ({error}); download it again")
    return settings, weights, bpe, read_template(folder)


def read_object(path) -> dict:
    value = parse_json(read_text(path), str(path))
    if not isinstance(value, dict):
        raise UserError(f"{path} is not a JSON object; download it again")
    return value


def read_settings(path, config: dict) -> dict:
    """Settings of GPTConfig from config.json. Their values are checked later, with the weights."""
    kind = config.get("model_type")
    if kind not in tuple(ARCHITECTURES):
        raise UserError(f"{path} is of a {kind!r} model; minicai reads llama, qwen2 and qwen3")
    if config.get("quantization_config"):
        raise UserError(f"{path} is of a quantised model; name the full one, or a GGUF file")
    if config.get("hidden_act", "silu") != "silu":
        raise UserError(
            f"{path} has the activation {config['hidden_act']!r}; minicai supports silu"
        )
    if config.get("use_sliding_window"):
        raise UserError(
            f"{path} wants a sliding window, which minicai does not support; name another"
        )
    found = {ours: config.get(theirs) for ours, theirs in SETTINGS.items()}
    found["n_kv_head"] = found["n_kv_head"] or found["n_head"]
    if found["head_size"] is None:
        found.pop("head_size")
    rope = {"rope_theta": config.get("rope_theta", 10000.0)}
    for key in ("rope_scaling", "rope_parameters"):  # the old and the new way to write it
        if isinstance(config.get(key), dict):
            rope |= config[key]
    found["rope_theta"] = rope["rope_theta"]
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind not in ("default", "llama3") or rope.get("partial_rotary_factor", 1) != 1:
        raise UserError(f"{path} has rotary positions of type {kind!r}; minicai supports Llama 3's")
    if kind == "llama3":
        found["rope_scaling"] = tuple(rope.get(key) for key in SCALING)
    return found


def weight_files(folder: Path) -> list[Path]:
    """The files that the index names; without one, all .safetensors files."""
    index = folder / "model.safetensors.index.json"
    if index.exists():
        files = read_object(index).get("weight_map")
        names = set(map(str, files.values())) if isinstance(files, dict) else set()
    else:
        names = {path.name for path in folder.glob("*.safetensors")}
    if not names:
        raise UserError(f"{folder} names no .safetensors file; name a folder that does")
    return [folder / Path(name).name for name in sorted(names)]


def read_weights(path: Path) -> dict[str, Tensor]:
    """Names and float32 weights of a .safetensors file."""
    package, weights = safetensors(path), {}
    if not path.exists():
        raise UserError(f"{path} does not exist, but the index names it; download it again")
    try:
        with package.safe_open(path, "pt") as file:
            for name in file.keys():
                weights[name] = file.get_tensor(name)
    except Exception as error:
        reason = type(error).__name__
        raise UserError(f"{path} is damaged or no safetensors file ({reason}); download it again")
    for name, tensor in weights.items():
        if not tensor.is_floating_point():
            raise UserError(f"{path} holds {name!r} as {tensor.dtype}; name unquantised weights")
        # A copy, since the file is only mapped into memory.
        weights[name] = tensor.to(torch.float32, copy=True)
    return weights


def read_template(folder: Path) -> str:
    """The chat template, in a file of its own or in tokenizer_config.json; "" without one."""
    if (folder / "chat_template.jinja").exists():
        return read_text(folder / "chat_template.jinja")
    path = folder / "tokenizer_config.json"
    template = read_object(path).get("chat_template") if path.exists() else ""
    if isinstance(template, list):  # of templates for several uses, by name
        named = {entry.get("name"): entry for entry in template if isinstance(entry, dict)}
        template = named.get("default", {}).get("template")
    return template if isinstance(template, str) else ""


# --- out -----------------------------------------------------------------------------------------


def write_settings(config: GPTConfig, tokenizer: Tokenizer) -> dict:
    """config.json."""
    kind = "qwen3" if config.qk_norm else "qwen2" if config.qkv_bias else "llama"
    if config.qk_norm and config.qkv_bias:
        raise UserError("no architecture of transformers has these biases and these norms")
    written = {theirs: getattr(config, ours) for ours, theirs in SETTINGS.items()}
    scaling = None
    if config.rope_scaling:
        scaling = dict(zip(SCALING, config.rope_scaling), rope_type="llama3")
    return written | {
        "architectures": [f"{ARCHITECTURES[kind]}ForCausalLM"],
        "model_type": kind,
        "vocab_size": config.vocab_size,
        "hidden_act": "silu",
        "rope_theta": config.rope_theta,
        "rope_scaling": scaling,
        "tie_word_embeddings": config.tie_embeddings,
        "bos_token_id": tokenizer.begin[0] if tokenizer.begin else None,
        "eos_token_id": tokenizer.end,
        "pad_token_id": tokenizer.pad,
        "torch_dtype": "float32",
    }


def tokenizer_settings(tokenizer: Tokenizer, block_size: int) -> dict:
    """tokenizer_config.json."""
    form = tokenizer.format
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": form.begin or None,
        "eos_token": form.end,
        "pad_token": form.pad,
        "model_max_length": block_size,
        "clean_up_tokenization_spaces": False,
        "chat_template": chat_template(form, tokenizer.system),
    }
