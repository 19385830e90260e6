"""Tokens per second of minicai's cached sampler, against sampling without a cache and against transformers.

    python -m bench.sampler [--device cuda] [--new-tokens 48] [--rows 1 16 128]

All three decode greedily from the same weights and ragged prompts of 24 to 40 tokens, always to the full number of new
tokens, so the work is equal. The ids of every row are compared; the command fails where they differ. transformers runs
LlamaForCausalLM.generate with left padding, and is skipped when it is not installed.

Prints one line per number of rows: new tokens per second of each (the best of three runs, or of fewer that took ten
seconds), and minicai's speed divided by each of the others' (above 1: minicai is faster).

With other work on the machine, set OMP_NUM_THREADS=1: threads that wait for each other make the speeds jump tenfold.
"""

import argparse
import random
import time

import torch

from minicai.gpt import GPT, GPTConfig
from minicai.sampler import generate, pad_right

try:
    from transformers import LlamaConfig, LlamaForCausalLM
except ImportError:
    LlamaForCausalLM = None


@torch.inference_mode()
def uncached(model, prompts, new_tokens):
    """The simplest sampler there is: run everything again for each new token."""
    ids, lengths = pad_right(
        [[*prompt, *[0] * new_tokens] for prompt in prompts], model.embed.weight.device
    )
    ends = lengths - new_tokens
    rows = torch.arange(len(prompts), device=ids.device)
    for _ in range(new_tokens):
        # Only the last position goes through the head, as in the other two.
        last = model.hidden(ids[:, : int(ends.max())])[rows, ends - 1]
        ids[rows, ends] = model.head(last).argmax(-1)
        ends = ends + 1
    return [ids[row, end - new_tokens : end].tolist() for row, end in enumerate(ends.tolist())]


def cached(model, prompts, new_tokens):
    return [completion.ids for completion in generate(model, prompts, new_tokens, temperature=0)]


def as_llama(model):
    config = model.config
    llama = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=config.vocab_size,
            hidden_size=config.n_embd,
            intermediate_size=config.n_hidden,
            num_hidden_layers=config.n_layer,
            num_attention_heads=config.n_head,
            num_key_value_heads=config.n_kv_head,
            max_position_embeddings=config.block_size,
            rms_norm_eps=config.norm_eps,
            rope_parameters={"rope_type": "default", "rope_theta": config.rope_theta},
            tie_word_embeddings=config.tie_embeddings,
            bos_token_id=None,
            eos_token_id=None,  # so that nothing stops early
            pad_token_id=0,
        )
    )
    names = {"embed": "model.embed_tokens", "norm": "model.norm", "head": "lm_head"}
    for i in range(config.n_layer):
        ours, theirs = f"blocks.{i}", f"model.layers.{i}"
        names |= {
            f"{ours}.norm1": f"{theirs}.input_layernorm",
            f"{ours}.norm2": f"{theirs}.post_attention_layernorm",
        }
        names |= {
            f"{ours}.mlp.{part}": f"{theirs}.mlp.{part}_proj" for part in ("gate", "up", "down")
        }
        names |= {
            f"{ours}.attention.{part}": f"{theirs}.self_attn.{part}_proj"
            for part in ("q", "k", "v")
        }
        names[f"{ours}.attention.out"] = f"{theirs}.self_attn.o_proj"
    weights = {
        names[name.removesuffix(".weight")] + ".weight": value
        for name, value in model.state_dict().items()
    }
    llama.load_state_dict(weights, strict=True)
    return llama.to(model.embed.weight.device).eval()


@torch.inference_mode()
def transformers(llama, prompts, new_tokens):
    width = max(map(len, prompts))
    ids = torch.tensor(
        [[0] * (width - len(prompt)) + prompt for prompt in prompts], device=llama.device
    )
    mask = torch.tensor(
        [[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts], device=llama.device
    )
    out = llama.generate(
        ids,
        attention_mask=mask,
        max_new_tokens=new_tokens,
        min_new_tokens=new_tokens,
        do_sample=False,
    )
    return out[:, width:].tolist()


def measure(function, *arguments):
    """The result and the seconds of the fastest run, after a short one that warms up."""
    function(*arguments[:-1], 2)
    seconds = []
    while len(seconds) < 3 and sum(seconds) < 10:
        start = time.perf_counter()
        result = function(*arguments)  # ends in tolist(), so the device has finished
        seconds.append(time.perf_counter() - start)
    return result, min(seconds)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--new-tokens", type=int, default=48)
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 16, 128])
    args = parser.parse_args()

    torch.manual_seed(0)
    block_size = 40 + args.new_tokens
    config = GPTConfig(
        2048, n_layer=4, n_head=6, n_kv_head=6, n_embd=192, n_hidden=512, block_size=block_size
    )
    model = GPT(config).to(args.device).eval()
    # Larger than the initial weights: near-ties between logits would let rounding decide the ids.
    for parameter in model.parameters():
        if parameter.dim() == 2:
            torch.nn.init.normal_(parameter, std=0.1)

    others = {"no cache": (uncached, model)}
    if LlamaForCausalLM is None:
        print(
            "transformers is not installed: that comparison is skipped (pip install transformers==5.23.0)"
        )
    else:
        others["transformers"] = (transformers, as_llama(model))

    print(
        f"{args.device}, {torch.get_num_threads()} threads, {args.new_tokens} new tokens a row, greedy; tokens/s"
    )
    header = f"{'rows':>5}{'minicai':>12}"
    for name in others:
        header += f"{name:>15}{'ratio':>8}"
    print(header)
    rng = random.Random(0)
    for rows in args.rows:
        prompts = [[rng.randrange(2048) for _ in range(rng.randint(24, 40))] for _ in range(rows)]
        expected, ours = measure(cached, model, prompts, args.new_tokens)
        line = f"{rows:>5}{rows * args.new_tokens / ours:>12,.0f}"
        for name, (function, other) in others.items():
            ids, seconds = measure(function, other, prompts, args.new_tokens)
            if ids != expected:
                raise SystemExit(f"{name} gives other ids than minicai at {rows} rows")
            line += f"{rows * args.new_tokens / seconds:>15,.0f}{seconds / ours:>8.2f}"
        print(line, flush=True)


if __name__ == "__main__":
    main()
