"""Tokens per second of the cached sampler, against no cache and against transformers.

    python -m bench.sampler [--device cuda] [--new-tokens 48] [--rows 1 16 128]

All three decode greedily from the same weights and ragged prompts of 24 to 40 tokens, to the full
number of new tokens, so the work is equal. Different ids are an error. transformers runs
LlamaForCausalLM.generate with left padding; it is skipped if not installed.
The time is the best of three runs. With a ratio above 1 minicai is faster.
"""

import random
import time
from importlib.util import find_spec

import torch

from minicai.device import hardware
from minicai.gpt import GPT, GPTConfig
from minicai.pretrained import TO_HF, rename
from minicai.run import main, parser, positive, setup
from minicai.sampler import generate, pad_right


def cached(model, prompts, new_tokens):
    return [completion.ids for completion in generate(model, prompts, new_tokens, temperature=0)]


@torch.inference_mode()
def uncached(model, prompts, new_tokens):
    """The simplest sampler: run the whole text again for each new token."""
    device = model.embed.weight.device
    ids, lengths = pad_right([prompt + [0] * new_tokens for prompt in prompts], device)
    rows, ends = torch.arange(len(prompts), device=device), lengths - new_tokens
    for _ in range(new_tokens):
        last = model.hidden(ids[:, : int(ends.max())])[rows, ends - 1]
        ids[rows, ends] = model.head(last).argmax(-1)
        ends = ends + 1
    return [ids[row, end - new_tokens : end].tolist() for row, end in enumerate(ends.tolist())]


@torch.inference_mode()
def transformers(llama, prompts, new_tokens):
    width = max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(p)) + p for p in prompts], device=llama.device)
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts]).to(ids)
    out = llama.generate(ids, attention_mask=mask, do_sample=False, max_new_tokens=new_tokens)
    return out[:, width:].tolist()


def as_llama(model):
    """The same weights as a model of transformers."""
    from transformers import LlamaConfig, LlamaForCausalLM

    c = model.config
    sizes = dict(vocab_size=c.vocab_size, hidden_size=c.n_embd, intermediate_size=c.n_hidden)
    layers = dict(num_hidden_layers=c.n_layer, num_attention_heads=c.n_head)
    other = dict(rms_norm_eps=c.norm_eps, eos_token_id=None, pad_token_id=0)  # nothing stops early
    weights = {rename(name, TO_HF): value for name, value in model.state_dict().items()}
    llama = LlamaForCausalLM(LlamaConfig(**sizes, **layers, **other))
    llama.load_state_dict(weights, strict=True)
    return llama.to(model.embed.weight.device).eval()


def measure(function, model, prompts, new_tokens):
    """The ids, and the seconds of the fastest of three runs after a short one."""
    function(model, prompts, 2)
    seconds = []
    for _ in range(3):
        began = time.perf_counter()
        ids = function(model, prompts, new_tokens)  # ends in tolist(), so the device has finished
        seconds.append(time.perf_counter() - began)
    return ids, min(seconds)


def bench():
    p = parser(__doc__)
    p.add_argument("--new-tokens", type=positive, default=48, help="(default: 48)")
    p.add_argument("--rows", type=positive, nargs="+", default=[1, 16, 128], help="(1 16 128)")
    args = setup(p, writes=False)
    sizes = dict(n_layer=4, n_head=6, n_kv_head=6, n_embd=192, n_hidden=512, block_size=1024)
    model = GPT(GPTConfig(2048, **sizes, tie_embeddings=False)).to(args.device).eval()
    for parameter in model.parameters():  # small weights give near-ties, and rounding decides them
        if parameter.dim() == 2:
            torch.nn.init.normal_(parameter, std=0.1)
    samplers = {"minicai": (cached, model), "no cache": (uncached, model)}
    if find_spec("transformers"):
        samplers["transformers"] = (transformers, as_llama(model))
    print(f"{hardware(args.device)}, {torch.get_num_threads()} threads; tokens/s (minicai's ratio)")
    print("  rows" + "".join(f"{name:>20}" for name in samplers))
    rng = random.Random(0)
    for n in args.rows:
        prompts = [[rng.randrange(2048) for _ in range(rng.randint(24, 40))] for _ in range(n)]
        found = [measure(*pair, prompts, args.new_tokens) for pair in samplers.values()]
        assert all(ids == found[0][0] for ids, _ in found), f"the ids differ at {n} rows"
        ours = found[0][1]
        cells = [f"{n * args.new_tokens / s:,.0f} ({s / ours:.2f})" for _, s in found]
        print(f"{n:6}" + "".join(f"{cell:>20}" for cell in cells), flush=True)


if __name__ == "__main__":
    main(bench)
