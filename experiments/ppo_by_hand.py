"""What does PPO compute for one answer? A worked example with every column in numbers.

    python -m experiments.ppo_by_hand

Seconds, and no checkpoint. Every number of the table comes from the functions of minicai/ppo.py.
Below it the line of one token is written out, to be checked by hand. train_ppo.py also whitens the
advantages over all answers of an update, which one answer cannot show.

Answer: three words and END are four actions, and each shows another case of the clipped loss.

    action   advantage   ratio           clipped?
    I        positive    above 1 + clip  yes: the token already gained enough
    won't    negative    below 1 - clip  yes: the token already lost enough
    help     positive    below 1 - clip  no: the step went the wrong way and has to be undone
    END      positive    inside          no
"""

import torch

from minicai import ppo
from minicai.report import aligned
from minicai.run import main

BETA, GAMMA, LAMBDA, CLIP = 0.1, 1.0, 0.95, 0.2
TOKENS = ["I", "won't", "help", "END"]
LOGP = torch.tensor([[-0.7, -1.2, -0.3, -0.1]])  # of the policy that sampled the answer
REF = torch.tensor([[-0.9, -0.8, -0.3, -0.4]])  # of the fine-tuned model
VALUE = torch.tensor([[0.3, 1.2, 0.7, 0.8]])  # expected return before each token
SCORE = torch.tensor([1.0])  # of the whole answer, by the reward model
NEW_LOGP = torch.tensor([[-0.4, -1.6, -0.6, -0.05]])  # of the policy after an optimizer step
MASK = torch.ones(1, 4, dtype=torch.bool)


def ppo_by_hand():
    k1 = ppo.kl_estimates(LOGP, REF)[0]
    rewards = ppo.shape_rewards(SCORE, LOGP, REF, MASK, BETA)
    deltas, _ = ppo.gae(rewards, VALUE, MASK, GAMMA, lam=0.0)  # with lambda 0 only delta is left
    advantages, returns = ppo.gae(rewards, VALUE, MASK, GAMMA, LAMBDA)
    names = ["logp", "ref", "k1", "reward", "value", "delta", "advantage", "return", "new logp"]
    numbers = LOGP, REF, k1, rewards, VALUE, deltas, advantages, returns, NEW_LOGP
    columns = {name: x[0].tolist() for name, x in zip(names, numbers)}
    rows, ratio, loss = [["token", *names, "ratio", "clipped", "loss"]], [], []
    for t, token in enumerate(TOKENS):
        only = torch.arange(4)[None] == t  # the loss of this token alone
        token_loss, stats = ppo.policy_loss(NEW_LOGP, LOGP, advantages, only, CLIP)
        ratio.append(stats["ratio"].item())
        loss.append(token_loss.item())
        shown = [f"{column[t]:.3f}" for column in (*columns.values(), ratio)]
        rows.append([token, *shown, "yes" if stats["clip_fraction"] else "no", f"{loss[t]:.3f}"])
    policy = ppo.policy_loss(NEW_LOGP, LOGP, advantages, MASK, CLIP)[0].item()
    value = ppo.value_loss(VALUE, VALUE, returns, MASK, CLIP).item()
    print(f"beta {BETA}, gamma {GAMMA}, lambda {LAMBDA}, clip {CLIP}, score {SCORE.item()}\n")
    print(aligned(rows))
    print(f"\npolicy loss, the mean of the last column: {policy:.4f}")
    print(f"value loss, half the mean of (value - return)^2: {value:.4f}\n")
    t = 1
    logp, ref, k1, reward, value, delta, advantage, back, new = (x[t] for x in columns.values())
    next_value, next_advantage = columns["value"][t + 1], columns["advantage"][t + 1]
    print(f"""The line of "{TOKENS[t]}", from left to right:
  k1         logp - ref = {logp:.2f} - ({ref:.2f}) = {k1:.2f}
  reward     -beta k1, and no score before END = -{BETA} x {k1:.2f} = {reward:.3f}
  delta      reward + gamma x next value - value
             = {reward:.3f} + {next_value:.3f} - {value:.3f} = {delta:.3f}
  advantage  delta + gamma x lambda x next advantage
             = {delta:.3f} + {LAMBDA} x {next_advantage:.4f} = {advantage:.4f}
  return     advantage + value = {advantage:.3f} + {value:.3f} = {back:.3f}
  ratio      exp(new logp - logp) = exp({new:.2f} - ({logp:.2f})) = {ratio[t]:.3f}
  loss       -min(ratio x advantage, (ratio clipped to 1 - clip) x advantage)
             = -min({ratio[t]:.3f} x {advantage:.4f}, {1 - CLIP:.1f} x {advantage:.4f})
             = -min({ratio[t] * advantage:.4f}, {(1 - CLIP) * advantage:.4f}) = {loss[t]:.4f}""")


if __name__ == "__main__":
    main(ppo_by_hand)
