"""Where the time of a PPO update goes: rollout, scoring, or learning?

    python -m bench.ppo --out out/cpu       # after train_rm.py; nothing is written

Runs the parts of train_ppo.py with a clock around each.
"""

import copy
import time
from collections import Counter

import torch

import train_ppo
from minicai.device import hardware
from minicai.files import load_policy
from minicai.reward import RewardModel
from minicai.rollout import Actor, add_advantages, score_answers
from minicai.run import main, parser, positive, setup
from minicai.world.content import World
from minicai.world.requests import STAGE2_SPLIT, Part


def bench():
    p = parser(__doc__)
    p.add_argument("--updates", type=positive, default=4, help="to measure (default: 4)")
    args = setup(p, writes=False)
    gpt, tokenizer = load_policy(args.out / "sft.pt", args.device)
    reward, _, _ = RewardModel.load(args.out / "rm.pt", args.device)
    reference, actor = copy.deepcopy(gpt), Actor(gpt).to(args.device)
    part, seconds = Part(World(args.world, args.world_share), STAGE2_SPLIT), Counter()
    optimizer = torch.optim.AdamW(actor.parameters(), lr=args.ppo_lr)
    size = max(1, args.ppo_episodes // train_ppo.MINIBATCHES)

    def clocked(name, function, *inputs):
        began = time.perf_counter()
        result = function(*inputs)
        if args.device.startswith("cuda"):
            torch.cuda.synchronize()
        seconds[name] += (time.perf_counter() - began) / args.updates
        return result

    for update in range(args.updates):
        drawn = gpt, tokenizer, part, args.ppo_episodes, 1, args.seed, update
        _, prompts, completions = clocked("rollout", train_ppo.rollout, *drawn)
        batches = []
        for i in range(0, len(prompts), size):
            answers = prompts[i : i + size], completions[i : i + size]
            inputs = actor, reference, reward, *answers, tokenizer.pad, train_ppo.END_PENALTY
            batches.append(clocked("scoring", score_answers, *inputs))
        add_advantages(batches, "gae", beta=0.1, group=1)
        for b in batches * train_ppo.EPOCHS:
            clocked("learning", train_ppo.ppo_step, actor, optimizer, b, "gae", 0.1)
    print(f"{hardware(args.device)}, {torch.get_num_threads()} threads")
    for name, spent in seconds.items():
        print(f"{name:9} {spent:6.2f} s an update, {spent / sum(seconds.values()):.0%}")


if __name__ == "__main__":
    main(bench)
