"""Where the time of a training step goes, and what Muon costs against PyTorch's own.

    python -m bench.training [--preset full --device cuda] [--steps 12]

Random ids, in batches of the preset's size. Beside every time stands the machine's own figure,
GFLOP/s of float32 1024 x 1024 matrix products with the same threads, measured in the same steps:
times of two machines, or of a busy one, compare only together with it.
torch.optim.Muon computes in bfloat16 everywhere, minicai's in float32 on a CPU without bfloat16.
"""

import torch

from bench.shared import Clock, conditions
from minicai.data import weighted_nll
from minicai.gpt import GPT, GPTConfig
from minicai.optim import make_optimizers
from minicai.run import BLOCK_SIZE, PRESETS, SIZES, main, parser, positive, setup

WIDTHS = (64, 128, 256)  # ids of a row; most documents lie between


def bench():
    p = parser(__doc__)
    p.add_argument("--steps", type=positive, default=12, help="to measure (default: 12)")
    args = setup(p, writes=False)
    size = {name: values[PRESETS.index(args.preset)] for name, values in SIZES.items()}
    names = ("vocab_size", "n_layer", "n_head", "n_head", "n_embd", "n_hidden")
    config = GPTConfig(*(size[name] for name in names), BLOCK_SIZE, tie_embeddings=False)
    model, clock = GPT(config).to(args.device), Clock(args.device)
    muon, adamw = make_optimizers(model, 1e-4)
    torch_muon = torch.optim.Muon(muon.param_groups[0]["params"], lr=1e-4)
    square = torch.randn(1024, 1024, device=args.device)

    for step in range(-len(WIDTHS), args.steps):
        if step == 0:
            clock.clear()  # the first batch of each width was to warm up
        width = WIDTHS[step % len(WIDTHS)]
        shape = size["batch_tokens"] // width, width + 1
        ids = torch.randint(size["vocab_size"], shape, device=args.device)
        loss = clock("forward", weighted_nll, model, ids, torch.ones(shape).to(args.device))
        model.zero_grad()
        clock("backward", loss.backward)
        clock("AdamW", adamw.step)
        clock("Muon", muon.step)
        clock("torch.optim.Muon", torch_muon.step)
        clock("machine", torch.matmul, square, square)
    seconds = {name: total / args.steps for name, total in clock.items()}
    gflops = 2 * 1024**3 / 1e9 / seconds.pop("machine")
    print(conditions(args.device))
    print(f"{'':17}{'seconds':>10}{'of a step':>12}{'machine, GFLOP/s':>19}")
    step = sum(seconds.values()) - seconds["torch.optim.Muon"]
    for name, s in (*seconds.items(), ("a step", step)):
        print(f"{name:17}{s:10.3f}{s / step:12.0%}{gflops:19.0f}")


if __name__ == "__main__":
    main(bench)
