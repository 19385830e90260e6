"""What the benches share: a clock, and our models and settings for transformers and TRL."""

import re
import time
from collections import Counter

import torch

from minicai.device import commit, fast_dtype, hardware
from minicai.files import UserError
from minicai.gpt import GPT
from minicai.tokenizer import BPE, Tokenizer

BETA = 0.1  # of the KL penalty
PPO_ADAMW = dict(betas=(0.9, 0.95), eps=1e-5, weight_decay=0.0)  # as in train_ppo.py
NAMES = {  # ours -> Llama's
    r"attention\.(q|k|v)\.": r"self_attn.\1_proj.",
    r"attention\.out": "self_attn.o_proj",
    r"mlp\.(\w+)": r"mlp.\1_proj",
    "norm1": "input_layernorm",
    "norm2": "post_attention_layernorm",
    "^blocks": "model.layers",
    "^embed": "model.embed_tokens",
    "^norm": "model.norm",
    "^head": "lm_head",
}


class Clock(Counter):
    """clock(name, function, *inputs) calls the function and adds its seconds to clock[name]."""

    def __init__(self, device: str):
        super().__init__()
        self.device = device

    def __call__(self, name, function, *inputs):
        began = time.perf_counter()
        result = function(*inputs)
        if self.device.startswith("cuda"):
            torch.cuda.synchronize()
        self[name] += time.perf_counter() - began
        return result


def conditions(device: str) -> str:
    """The hardware, threads, arithmetic and code of a measurement."""
    dtype = str(fast_dtype(device)).removeprefix("torch.")
    return f"{hardware(device)}, {torch.get_num_threads()} threads, {dtype}, commit {commit()}"


def llama_name(name: str) -> str:
    """The name of one of our parameters in transformers' LlamaForCausalLM."""
    for ours, theirs in NAMES.items():
        name = re.sub(ours, theirs, name)
    return name


def as_llama(model: GPT):
    """The same weights as a model of transformers, which stops at no token.

    Raises UserError for a pretrained model: its frozen layers, biases, ... are not carried over.
    """
    from transformers import LlamaConfig, LlamaForCausalLM

    c = model.config
    if c.n_frozen or c.qkv_bias or c.qk_norm or c.rope_scaling:
        raise UserError("the benches are for models from random weights; name another --out")
    config = LlamaConfig(
        vocab_size=c.vocab_size,
        hidden_size=c.n_embd,
        intermediate_size=c.n_hidden,
        num_hidden_layers=c.n_layer,
        num_attention_heads=c.n_head,
        num_key_value_heads=c.n_kv_head,
        max_position_embeddings=c.block_size,
        rope_parameters=dict(rope_type="default", rope_theta=c.rope_theta),
        rms_norm_eps=c.norm_eps,
        tie_word_embeddings=c.tie_embeddings,
        eos_token_id=None,
        pad_token_id=None,  # the embedding of a pad would get no gradient
    )
    llama = LlamaForCausalLM(config)
    weights = {llama_name(name): value for name, value in model.state_dict().items()}
    llama.load_state_dict(weights, strict=True)
    return llama.to(model.embed.weight).eval()


def as_tokenizer(tokenizer: Tokenizer):
    """The same ids in a tokenizer of transformers."""
    from transformers import PreTrainedTokenizerFast

    names = dict(eos_token=tokenizer.format.end, pad_token=tokenizer.format.pad)
    return PreTrainedTokenizerFast(tokenizer_object=BPE.from_str(tokenizer.bpe.to_str()), **names)


def trl_settings(model: GPT) -> dict:
    """Settings of any trainer of TRL: our arithmetic, no logs, and no gradient checkpointing (its
    default, which saves memory and costs time)."""
    weight = model.embed.weight
    return dict(
        use_cpu=weight.device.type == "cpu",
        bf16=weight.dtype == torch.float32 and fast_dtype(weight.device) == torch.bfloat16,
        gradient_checkpointing=False,
        disable_tqdm=True,
        report_to="none",
    )
