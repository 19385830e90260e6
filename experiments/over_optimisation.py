"""What happens when PPO climbs the reward model without a KL penalty?

    python -m experiments.over_optimisation

After pipeline.py. A quarter of an hour on 2 cores. Trains PPO with the default penalty, with half
of it, and without one at three times the learning rate. Proxy is the reward model's score, true
reward the grader's; the grader trains nothing. Gao et al. 2022 (arXiv 2210.10760), figure 1.
Writes OUT/ppo-NAME.pt, OUT/train_ppo-NAME.jsonl and OUT/over_optimisation.svg.

Answer so far (quick preset, seed 0, 12 updates): it over-optimises. With beta 0 the true reward
rises from 0.71 to 0.86 at 1 nat and falls to 0.70 at 12 nats, while the proxy goes from 0.21 to
0.42. With beta 0.1 the policy stays within 0.6 nats and the true reward at 0.8 to 0.9. (First
edition, full preset: the true reward fell to 0.26 at 31 nats.)
"""

from minicai.files import read_jsonl
from minicai.report import aligned
from minicai.run import main, parser, positive, run_script, setup
from minicai.svg import reward_kl, write_svg

RUNS = {  # name -> options of train_ppo.py
    "beta-0.1": ("--beta", 0.1),
    "beta-0.05": ("--beta", 0.05),
    "beta-0": ("--beta", 0, "--lr", 3e-4),
}


def over_optimisation():
    p = parser(__doc__)
    p.add_argument("--updates", dest="ppo_updates", type=positive, help="updates of PPO")
    args = setup(p)
    curves = {}
    for name, options in RUNS.items():
        run_script("train_ppo", args, *options, "--updates", args.ppo_updates, "--name", name)
        curves[name] = read_jsonl(args.out / f"train_ppo-{name}.jsonl")

    rows = [["update", *(f"{key}, {name}" for name in RUNS for key in ("KL", "proxy", "true"))]]
    for step in zip(*curves.values()):
        numbers = [f"{row[key]:.2f}" for row in step for key in ("kl", "proxy", "true")]
        rows.append([str(step[0]["step"]), *numbers])
    print(f"\n{aligned(rows)}")
    write_svg(args.out / "over_optimisation.svg", reward_kl(curves))
    print(f"\n{args.out}/over_optimisation.svg: both rewards against the KL")


if __name__ == "__main__":
    main(over_optimisation)
