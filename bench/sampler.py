"""Tokens per second of the cached sampler, against no cache and against transformers.

    python -m bench.sampler [--out OUT] [--rows 1 16 128]     # 3 minutes; nothing is written

With OUT/sft.pt: that model and requests of its world. Otherwise random weights and ids. All
samplers are greedy and get the same ragged prompts, in two cases:

natural   every row ends at its stop token, or after 128 tokens; the random model has 64 stop tokens
none      48 tokens for every row, whatever they are

transformers runs LlamaForCausalLM.generate on all rows in one batch, with left padding. It is left
out if it is not installed. In float32 all ids up to the stop have to be equal. The times are under
autocast where the machine has bfloat16, and are the best of three runs, which take turns. With a
ratio above 1 minicai is faster.
"""

import random
import time
from importlib.util import find_spec

import torch

from bench.shared import as_llama, conditions
from minicai.answer import MAX_NEW_TOKENS, encode_prompt
from minicai.device import autocast
from minicai.files import UserError, load_policy
from minicai.gpt import GPT, GPTConfig
from minicai.run import main, parser, positive, setup
from minicai.sampler import generate, pad_right
from minicai.world.content import World
from minicai.world.requests import STAGE2_SPLIT, Part, draw_prompts

RUNS = 3


def cached(model, prompts, new_tokens, stops):
    done = generate(model, prompts, new_tokens, temperature=0, stop_ids=stops)
    return [completion.ids for completion in done]


@torch.inference_mode()
def uncached(model, prompts, new_tokens, stops):
    """The simplest sampler: run the whole text again for each new token. It has no stops."""
    device = model.embed.weight.device
    ids, lengths = pad_right([prompt + [0] * new_tokens for prompt in prompts], device)
    rows, ends = torch.arange(len(prompts), device=device), lengths - new_tokens
    for _ in range(new_tokens):
        last = model.hidden(ids[:, : int(ends.max())])[rows, ends - 1]
        ids[rows, ends] = model.head(last).argmax(-1)
        ends = ends + 1
    return [ids[row, end - new_tokens : end].tolist() for row, end in enumerate(ends.tolist())]


@torch.inference_mode()
def transformers(llama, prompts, new_tokens, stops):
    width = max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(p)) + p for p in prompts], device=llama.device)
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts]).to(ids)
    limits = dict(max_new_tokens=new_tokens, eos_token_id=stops or None, pad_token_id=0)
    rows = llama.generate(ids, attention_mask=mask, do_sample=False, **limits)[:, width:].tolist()
    ends = [next((t + 1 for t, i in enumerate(row) if i in stops), len(row)) for row in rows]
    return [row[:end] for row, end in zip(rows, ends)]  # behind a stop there are pads


def trained(args):
    """OUT/sft.pt, requests, and the end token."""
    model, tokenizer = load_policy(args.out / "sft.pt", args.device)
    part, rng = Part(World.of(args), STAGE2_SPLIT), random.Random(args.seed)
    turns = [list(request.turns) for request in draw_prompts(part, max(args.rows), rng)]
    return (
        model,
        [encode_prompt(tokenizer, t, model.config.block_size) for t in turns],
        [tokenizer.end],
    )


def untrained(args):
    """Random weights, random prompts of 24 to 40 tokens, and stop tokens."""
    sizes = dict(n_layer=4, n_head=6, n_kv_head=6, n_embd=192, n_hidden=512, block_size=1024)
    model = GPT(GPTConfig(2048, **sizes, tie_embeddings=False)).to(args.device).eval()
    for parameter in model.parameters():  # small weights give near-ties, and rounding decides them
        if parameter.dim() == 2:
            torch.nn.init.normal_(parameter, std=0.1)
    rng, lengths = random.Random(args.seed), range(24, 41)
    prompts = [rng.choices(range(2048), k=rng.choice(lengths)) for _ in range(max(args.rows))]
    return model, prompts, list(range(0, 2048, 32))


def measure(samplers, *inputs):
    """The ids, which have to be equal, and every sampler's tokens per second."""
    expected, *others = [sampler(model, *inputs) for sampler, model in samplers.values()]
    if any(ids != expected for ids in others):
        raise UserError("the samplers' ids differ in float32: one of them is wrong; mend it first")
    speeds = dict.fromkeys(samplers, 0.0)
    for name, (sampler, model) in [*samplers.items()] * RUNS:
        began = time.perf_counter()
        with autocast(next(model.parameters()).device):
            ids = sampler(model, *inputs)  # ends in tolist(), so the device has finished
        speeds[name] = max(speeds[name], sum(map(len, ids)) / (time.perf_counter() - began))
    return expected, speeds


def bench():
    p = parser(__doc__)
    p.add_argument("--rows", type=positive, nargs="+", default=[1, 16, 128], help="(1 16 128)")
    args = setup(p, writes=False)
    has_model = (args.out / "sft.pt").exists()
    model, prompts, stops = (trained if has_model else untrained)(args)
    samplers = {"minicai": (cached, model)}
    if find_spec("transformers"):
        samplers["transformers"] = (transformers, as_llama(model))
    print(conditions(args.device))
    print(f"{args.out / 'sft.pt' if has_model else 'random weights'}; tokens/s (minicai's ratio)")
    print("  rows    stops   length" + "".join(f"{name:>18}" for name in (*samplers, "no cache")))
    for n in args.rows:
        for case, new_tokens, ends in ("natural", MAX_NEW_TOKENS, stops), ("none", 48, []):
            tried = samplers if ends else samplers | {"no cache": (uncached, model)}
            ids, speeds = measure(tried, prompts[:n], new_tokens, ends)
            cells = [f"{s:,.0f} ({speeds['minicai'] / s:.2f})" for s in speeds.values()]
            line = f"{n:6} {case:>8} {sum(map(len, ids)) / n:8.0f}"
            print(line + "".join(f"{cell:>18}" for cell in cells), flush=True)


if __name__ == "__main__":
    main(bench)
