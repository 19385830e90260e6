"""Pretrained weights in, any checkpoint out.

    model, tokenizer = load_pretrained("SmolLM2-135M-Instruct")   # a Hugging Face folder, or .gguf
    save_pretrained(model, tokenizer, "my-model")                 # a Hugging Face folder

    python -m minicai.pretrained out/quick/dpo.pt my-model        # the same from a checkpoint
    python -m minicai.pretrained MODEL.gguf model.pt              # to evaluate it, or to chat

transformers, vLLM and others load such a folder. There a typed text that spells a special token
becomes that token; here it never does.

Supported: Llama, Qwen2 and Qwen3 with byte-level BPE. Not supported: mixtures of experts, sliding
windows, quantised safetensors, SentencePiece. Weights are float32 here.
"""

import argparse
import os
import re
from pathlib import Path

import torch
from tokenizers import Tokenizer as BPE
from torch import Tensor

from minicai.chat_template import system_text, unread
from minicai.files import UserError, load_policy, replace_file, save_checkpoint, write_json
from minicai.gguf_file import read_gguf
from minicai.gpt import GPT, GPTConfig, rope_table
from minicai.hf_folder import (
    read_folder,
    safetensors,
    tokenizer_settings,
    write_settings,
)
from minicai.run import main, make_folder, named
from minicai.tokenizer import Tokenizer

MAX_CONTEXT = 2**17  # longer contexts are cut to this
NAMES = {  # minicai: (Hugging Face, GGUF)
    "embed": ("model.embed_tokens", "token_embd"),
    "norm": ("model.norm", "output_norm"),
    "head": ("lm_head", "output"),
    "blocks.N.norm1": ("model.layers.N.input_layernorm", "blk.N.attn_norm"),
    "blocks.N.norm2": ("model.layers.N.post_attention_layernorm", "blk.N.ffn_norm"),
    "blocks.N.attention.q": ("model.layers.N.self_attn.q_proj", "blk.N.attn_q"),
    "blocks.N.attention.k": ("model.layers.N.self_attn.k_proj", "blk.N.attn_k"),
    "blocks.N.attention.v": ("model.layers.N.self_attn.v_proj", "blk.N.attn_v"),
    "blocks.N.attention.out": ("model.layers.N.self_attn.o_proj", "blk.N.attn_output"),
    "blocks.N.attention.q_norm": ("model.layers.N.self_attn.q_norm", "blk.N.attn_q_norm"),
    "blocks.N.attention.k_norm": ("model.layers.N.self_attn.k_norm", "blk.N.attn_k_norm"),
    "blocks.N.mlp.gate": ("model.layers.N.mlp.gate_proj", "blk.N.ffn_gate"),
    "blocks.N.mlp.up": ("model.layers.N.mlp.up_proj", "blk.N.ffn_up"),
    "blocks.N.mlp.down": ("model.layers.N.mlp.down_proj", "blk.N.ffn_down"),
}
FROM_HF = {hf: ours for ours, (hf, _) in NAMES.items()}
FROM_GGUF = {gguf: ours for ours, (_, gguf) in NAMES.items()}
TO_HF = {ours: hf for ours, (hf, _) in NAMES.items()}


def rename(name: str, names: dict[str, str]) -> str | None:
    """A weight's name in other words, as blocks.3.norm1.weight for blk.3.attn_norm.weight.

    None for a name that is not known.
    """
    stem, _, kind = name.rpartition(".")
    layer = re.search(r"\.\d+\.", stem)
    layer = layer[0] if layer else ".N."
    found = names.get(stem.replace(layer, ".N.", 1))
    return found and f"{found.replace('.N.', layer)}.{kind}"


# --- in ------------------------------------------------------------------------------------------


def load_pretrained(path, device="cpu") -> tuple[GPT, Tokenizer]:
    """A model in eval mode, and its tokenizer with the model's own chat format.

    `path` is a Hugging Face folder or a .gguf file. A model without a known chat format gets new
    ids for minicai's own, with the mean of all embeddings. Raises UserError.
    """
    path = Path(path)
    if path.is_dir():
        (settings, weights, bpe, template), names = read_folder(path), FROM_HF
    elif path.is_file() and path.suffix.lower() == ".gguf":
        (settings, weights, bpe, template), names = read_gguf(path), FROM_GGUF
    else:
        raise UserError(f"{path} is neither a Hugging Face folder nor a .gguf file; name one")
    for name in list(weights):
        ours = rename(name, names)
        if ours is None:
            raise UserError(f"{path} holds the weight {name!r}, which minicai does not support")
        weights[ours] = weights.pop(name)
    if "embed.weight" not in weights or weights["embed.weight"].ndim != 2:
        raise UserError(f"{path} holds no embeddings; download it again")
    tokenizer = read_tokenizer(path, bpe, template, len(weights["embed.weight"]))
    for name in weights.keys() & {"embed.weight", "head.weight"}:
        weights[name] = grow(weights[name], tokenizer.vocab_size)
    return build(path, settings, weights).to(device), tokenizer


def read_tokenizer(path, bpe: BPE, template: str, rows: int) -> Tokenizer:
    """The tokenizer of a model with this many embeddings."""
    if max(bpe.get_vocab().values(), default=rows) >= rows:
        raise UserError(f"{path} has a tokenizer with ids that have no embedding; name another")
    bpe.no_truncation()
    bpe.no_padding()
    tokenizer = Tokenizer(bpe)
    if tokenizer.decode(tokenizer.encode("one") + tokenizer.encode(" two")) != "one two":
        raise UserError(f"{path} has a tokenizer that is no byte-level BPE; name another model")
    form = tokenizer.format
    if template and form.end not in template:
        print(
            f"WARNING: the chat template of {path} is not in the format {form.open('user')!r}, "
            "the only one that its tokens allow here; train_base.py --init teaches it."
        )
    elif more := unread(template, form):
        print(
            f"WARNING: the chat template of {path} also has {' and '.join(more)}, which minicai "
            "leaves out: the model as it comes may answer worse here than elsewhere."
        )
    return Tokenizer(bpe, system_text(template, form))


def grow(weight: Tensor, rows: int) -> Tensor:
    """The weight with at least this many rows. A new row is the mean of the old ones."""
    missing = rows - len(weight)
    if missing <= 0:
        return weight
    return torch.cat([weight, weight.mean(0, keepdim=True).expand(missing, -1)])


def build(path, settings: dict, weights: dict[str, Tensor]) -> GPT:
    """The model in eval mode. Raises UserError where settings and weights do not fit together."""
    check_settings(path, settings, len(weights))
    tied = "head.weight" not in weights
    if tied:
        weights["head.weight"] = weights["embed.weight"]
    parts = dict(
        tie_embeddings=tied,
        qkv_bias="blocks.0.attention.q.bias" in weights,
        qk_norm="blocks.0.attention.q_norm.weight" in weights,
    )
    try:
        config = GPTConfig(len(weights["embed.weight"]), **settings, **parts)
        with torch.device("meta"):  # shapes only: no memory for sizes that no weight has
            model = GPT(config)
    except (ValueError, RuntimeError) as error:
        raise UserError(f"{path} has settings that do not fit together ({error}); name another")
    check_weights(path, {name: value.shape for name, value in model.state_dict().items()}, weights)
    model.load_state_dict(weights, assign=True)
    if tied:
        model.head.weight = model.embed.weight
    rope = config.head_size, config.rope_theta, config.rope_scaling
    model.rope = rope_table(config.block_size, *rope)
    return model.eval()


def check_settings(path, settings: dict, layers: int):
    """Numbers of the right kind and size; at most `layers` layers. Cuts the context."""
    for name, value in settings.items():
        kinds = (int, float) if name in ("rope_theta", "norm_eps", "rope_scaling") else (int,)
        for number in value if name == "rope_scaling" else (value,):
            if type(number) not in kinds or not 0 < number < 2**31:
                raise UserError(f"{path} has {number!r} for {name}; download it again")
    _, low, high, _ = settings.get("rope_scaling", (1, 1, 2, 1))
    if low >= high:
        raise UserError(f"{path} has a rope scaling from {low} to {high}; download it again")
    if settings["n_layer"] > layers:
        raise UserError(f"{path} lacks weights of its {settings['n_layer']} layers")
    settings["block_size"] = min(settings["block_size"], MAX_CONTEXT)


def check_weights(path, shapes: dict[str, torch.Size], weights: dict[str, Tensor]):
    """Exactly the weights of these names and shapes, all of them numbers."""
    for name in sorted(shapes.keys() | weights.keys()):
        if name not in weights:
            raise UserError(
                f"{path} lacks the weight {name!r}; download it again, or merge its parts"
            )
        if name not in shapes:
            raise UserError(
                f"{path} holds the weight {name!r}, for which minicai has no place; name another"
            )
        if weights[name].shape != shapes[name]:
            found, wanted = tuple(weights[name].shape), tuple(shapes[name])
            raise UserError(f"{path} holds {name!r} of shape {found}; its settings want {wanted}")
        if not weights[name].isfinite().all():
            raise UserError(f"{path} holds {name!r} with values that are no numbers; name another")


# --- out -----------------------------------------------------------------------------------------


def save_pretrained(model: GPT, tokenizer: Tokenizer, folder):
    """A Hugging Face folder: config.json, model.safetensors, tokenizer.json, chat template.

    Raises UserError where the package safetensors is missing, or the folder holds files of another
    model.
    """
    folder = Path(folder)
    if folder.suffix.lower() in (".gguf", ".bin", ".safetensors"):
        raise UserError(f"{folder} is to be a folder; leave out {folder.suffix!r}")
    package = safetensors(folder)
    make_folder(folder)
    others = ("*.safetensors*", "chat_template.jinja", "*_config.json", "special_tokens_map.json")
    found = {path.name for pattern in others for path in folder.glob(pattern)}
    if "model.safetensors" not in found:  # then these are not of an earlier save
        found |= {name for name in ("config.json", "tokenizer.json") if (folder / name).exists()}
    if found := found - {"model.safetensors", "tokenizer_config.json"}:
        raise UserError(
            f"{folder} holds {min(found)} of another model; name an empty or new folder"
        )
    config = write_settings(model.config, tokenizer)
    weights = {rename(k, TO_HF): v.contiguous().cpu() for k, v in model.state_dict().items()}
    if model.config.tie_embeddings:
        weights.pop("lm_head.weight")
    temporary = folder / "model.safetensors.tmp"
    package.torch.save_file(weights, temporary, metadata={"format": "pt"})
    os.replace(temporary, folder / "model.safetensors")
    replace_file(folder / "tokenizer.json", tokenizer.bpe.to_str(pretty=True).encode())
    settings = tokenizer_settings(tokenizer, model.config.block_size)
    write_json(folder / "tokenizer_config.json", settings)
    write_json(folder / "config.json", config)


def export():
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("source", type=named, help="OUT/dpo.pt, a Hugging Face folder or a .gguf file")
    p.add_argument("target", type=named, help="NAME.pt, or the Hugging Face folder to write")
    args = p.parse_args()
    source, target = Path(args.source), Path(args.target)
    load = load_policy if source.suffix == ".pt" else load_pretrained
    if target.suffix == ".pt":
        save_checkpoint(target, *load(source), args)
        return print(f"{target}: a checkpoint with the model of {source}")
    save_pretrained(*load(source), target)
    print(f"{target}: a Hugging Face folder with the model of {source}")


if __name__ == "__main__":
    main(export)
