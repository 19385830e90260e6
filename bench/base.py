"""Where the time of a training step of the base goes, and what Muon costs against PyTorch's own.

    python -m bench.base
    python -m bench.base --preset gpu --device cuda

Random ids in batches of the preset's size; the steps of both optimizers take turns. torch.optim.Muon orthogonalizes in bfloat16
wherever it runs, minicai's in float32 where the CPU has no instructions for that.
"""

import argparse
import time
from collections import Counter

import torch

from minicai import common
from minicai.common import BLOCK_SIZE, PRESETS, autocast, fast_dtype, hardware
from minicai.data import weighted_nll
from minicai.gpt import GPT, GPTConfig
from minicai.optim import make_optimizers

WIDTHS = (64, 128, 256)  # ids of a row, most documents lie between


def main():
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("--preset", choices=PRESETS, default="cpu")
    p.add_argument("--device", default="cpu")
    p.add_argument("--steps", type=int, default=12)
    args = p.parse_args()
    size, seconds = PRESETS[args.preset], Counter()
    torch.manual_seed(0)
    layers = [size[k] for k in ("n_layer", "n_head", "n_head", "n_embd", "n_hidden")]
    model = GPT(GPTConfig(size["vocab_size"], *layers, BLOCK_SIZE, tie_embeddings=False)).to(
        args.device
    )
    muon, adamw = make_optimizers(model, 1e-4)
    theirs = torch.optim.Muon(muon.param_groups[0]["params"], lr=1e-4)

    wait = torch.cuda.synchronize if args.device.startswith("cuda") else lambda: None

    def clocked(name, function, counts):
        wait()
        began = time.perf_counter()
        result = function()
        wait()
        seconds[name] += (time.perf_counter() - began) * counts
        return result

    def forward(ids):
        with autocast(args.device):
            return weighted_nll(model, ids, torch.ones_like(ids, dtype=torch.float))

    for step in range(-len(WIDTHS), args.steps):  # the first of each width warm up
        width, counts = WIDTHS[step % len(WIDTHS)], step >= 0
        ids = torch.randint(
            size["vocab_size"], (size["batch_tokens"] // width, width + 1), device=args.device
        )
        loss = clocked("forward", lambda ids=ids: forward(ids), counts)
        model.zero_grad()
        clocked("backward", loss.backward, counts)
        clocked("AdamW", adamw.step, counts)
        clocked("Muon", muon.step, counts)
        clocked("torch.optim.Muon", theirs.step, counts)
    dtype = str(fast_dtype(args.device)).removeprefix("torch.")
    print(f"{hardware(args.device)}, {torch.get_num_threads()} threads, {dtype}")
    step = sum(s for name, s in seconds.items() if name != "torch.optim.Muon")
    for name, s in seconds.items():
        print(f"{name:>18}: {s / args.steps:.3f} s, {s / step:.2f} of a step")
    whole = step - seconds["Muon"] + seconds["torch.optim.Muon"]
    print(f"with torch.optim.Muon a step would take {whole / step:.2f} times as long")


if __name__ == "__main__":
    common.main(main)
