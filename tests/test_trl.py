"""Our losses and their gradients against TRL 1.16.0 on the same logits. Skipped without TRL.

    pip install trl==1.16.0 && python -m pytest tests/test_trl.py    # about 400 MB

dpo, hinge, ipo                  DPOTrainer ("sigmoid", "hinge", "ipo")
collate_pairs                    its DataCollatorForPreference
dpo with soft labels, cdpo       DPOTrainer ("aot", one pair at a time: its sorting does nothing)
kto                              KTOTrainer, with the batch's own answers as mismatched ones
simpo, orpo                      CPOTrainer ("simpo"), ORPOTrainer
bradley_terry_loss               RewardTrainer
rloo, shape_rewards              RLOOTrainer
grpo, policy_loss, entropy, k3   GRPOTrainer ("bnpo", the mean over all tokens)

Not compared: gae and value_loss (this TRL has no PPO); soft labels of the other losses (TRL has
them only for SimPO, where they negate gamma too); ORPO's likelihood in general (TRL's counts the
prompt).
"""

import os
from collections import defaultdict
from types import SimpleNamespace
from unittest.mock import MagicMock

import pytest
import torch

from minicai import ppo
from minicai.data import Pair, collate_pairs
from minicai.dpo import LOSSES, PER_TOKEN, response_logps
from minicai.reward import bradley_terry_loss

VERSION = "1.16.0"
trl = pytest.importorskip("trl", reason="TRL is not installed (pip install trl==1.16.0)")
if trl.__version__ != VERSION:  # another version may not have the private methods called here
    pytest.skip(f"made for TRL {VERSION}; {trl.__version__} is installed", allow_module_level=True)
os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
accelerate = pytest.importorskip("accelerate")
cpo, orpo = (pytest.importorskip(f"trl.experimental.{name}") for name in ("cpo", "orpo"))

END, VOCAB = 0, 11  # the end token is the pad too, so nothing can be told from ids
TRAINERS = dict(
    dpo=(trl.DPOTrainer, "sigmoid"),
    hinge=(trl.DPOTrainer, "hinge"),
    ipo=(trl.DPOTrainer, "ipo"),
    soft=(trl.DPOTrainer, "aot"),
    kto=(trl.KTOTrainer, "kto"),
    simpo=(cpo.CPOTrainer, "simpo"),
    orpo=(orpo.ORPOTrainer, None),
)
SETTINGS = dict(  # of DPO, KTO and SimPO; from `reward_weights` on, of RLOO and GRPO
    loss_weights=[1.0],
    f_divergence_type="reverse_kl",
    calculate_KL=True,
    desirable_weight=1.0,
    undesirable_weight=1.0,
    simpo_gamma=0.5,
    alpha=0.0,
    cpo_alpha=0.0,
    reward_weights=torch.ones(1),
    reward_func_names=["score"],
    multi_objective_aggregation="sum_then_normalize",
    scale_rewards="group",
    epsilon_low=0.2,
    epsilon_high=0.2,
    importance_sampling_level="token",
    top_entropy_quantile=1.0,
    num_generations_eval=3,
    per_device_eval_batch_size=6,
    steps_per_generation=1,
    num_iterations=1,
    gradient_accumulation_steps=1,
    report_to=[],
    state=MagicMock(),
    _tokenizer=SimpleNamespace(pad_token_id=END),
    _logs=MagicMock(),
    _pending_extra_logs={},
    _pending_metrics={},
)


class Given(torch.nn.Module):
    """What TRL needs of a language model.

    The last hidden states are the given logits, and the head is the identity.
    """

    is_gradient_checkpointing = False

    def __init__(self, logits):
        super().__init__()
        self.logits, self.config = logits, SimpleNamespace(get_text_config=lambda: None)
        trl.trainer.utils.add_fused_lm_head(
            self, outputs=("log_probs", "entropy", "mean_logits", "is_top1")
        )
        self.eval()

    def forward(self, input_ids, **_):
        logits = self.logits[:, : input_ids.shape[1]]
        return SimpleNamespace(logits=logits, last_hidden_state=logits)

    def base_model(self, *args, **kwargs):
        return Given.forward(self, *args, **kwargs)

    def get_output_embeddings(self):
        return SimpleNamespace(weight=torch.eye(VOCAB), bias=None)


def trainer(kind, logits, **settings):
    """A trainer without its constructor, which wants a data set. Other options are None."""
    methods = dict(__init__=lambda self: None, __getattr__=lambda self, name: None)
    made = type("Bare", (kind,), methods)()
    vars(made).update(
        model=Given(logits),
        args=made,
        accelerator=accelerate.Accelerator(cpu=True),
        _metrics={"eval": defaultdict(list)},
        **SETTINGS,
        **settings,
    )
    return made


def theirs(name, pairs, ref, beta, logits, smoothing=0.0):
    """(loss, metrics)."""
    kind, loss = TRAINERS[name]
    losses = dict(loss_type=loss, loss_types=[loss], label_smoothing=smoothing)
    made = trainer(kind, logits, ref_model=Given(ref), beta=beta, **losses)
    rows = [(x.chosen[: x.prompt], x.chosen[x.prompt :], x.rejected[x.prompt :]) for x in pairs]
    rows = [dict(zip(("prompt_ids", "chosen_ids", "rejected_ids"), row)) for row in rows]
    batch = trl.trainer.dpo_trainer.DataCollatorForPreference(END)(rows)
    if name in ("simpo", "orpo"):
        batch["labels"] = batch["input_ids"].masked_fill(batch.pop("completion_mask") == 0, -100)
        halves = {
            f"{half}_{k}": x.chunk(2)[half == "rejected"]
            for half in ("chosen", "rejected")
            for k, x in batch.items()
        }
        return made.get_batch_loss_metrics(made.model, halves)
    if name == "kto":
        batch |= {f"KL_{k}": x for k, x in batch.items()}
        batch["label"] = torch.arange(2 * len(pairs)) < len(pairs)
    loss = made._compute_loss(made.model, batch, return_outputs=False)
    return loss, {k: values[0] for k, values in made._metrics["eval"].items()}


def ours(name, pairs, ref, beta, logits, p=1.0):
    """(loss, stats)."""
    ids, mask = collate_pairs(pairs, END, "cpu")
    policy, reference = (
        response_logps(lambda ids, x=x: x[:, : ids.shape[1]], ids, mask, name in PER_TOKEN)
        for x in (logits, ref)
    )
    return LOSSES[name](*policy.chunk(2), *reference.chunk(2), beta, p)


def case(*lengths):
    """Pairs of (prompt, chosen answer, rejected answer) of these lengths, and two models' logits.

    Lengths of answers include the end token.
    """
    torch.manual_seed(0)
    ids = [[torch.randint(1, VOCAB, (n,)).tolist() for n in three] for three in lengths]
    pairs = [
        Pair(i, len(p), p + c[1:] + [END], p + r[1:] + [END], 1.0, (True, True))
        for i, (p, c, r) in enumerate(ids)
    ]
    logits = torch.randn(2 * len(pairs), 17, VOCAB)
    return pairs, logits, logits + torch.randn_like(logits)


def assert_same(mine, other, logits):
    """Two functions of the logits agree in value and gradient. TRL's head computes in float32."""
    a, b = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    x, y = mine(a), other(b)
    torch.testing.assert_close(x, y, rtol=1e-5, atol=1e-6)
    gradients = torch.autograd.grad(x, a), torch.autograd.grad(y, b)
    torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-6)


MIXED = (3, 4, 2), (1, 5, 7), (6, 1, 3), (2, 8, 5), (4, 2, 2)


@pytest.mark.parametrize("exchange", [False, True])
@pytest.mark.parametrize(
    "name, beta", [("dpo", 0.3), ("hinge", 0.3), ("ipo", 0.3), ("kto", 0.3), ("simpo", 2.0)]
)
def test_preference_losses(name, beta, exchange):
    """With both models as the policy: KTO's z is above 0 for one, and cut at 0 for the other."""
    pairs, *models = case(*MIXED)
    logits, ref = models[::-1] if exchange else models
    assert_same(*(lambda x, f=f: f(name, pairs, ref, beta, x)[0] for f in (ours, theirs)), logits)
    (_, stats), (_, metrics) = (f(name, pairs, ref, beta, logits) for f in (ours, theirs))
    names = dict(chosen_reward="chosen", rejected_reward="rejected", margin="margins")
    for a, b in names.items():
        if name != "ipo":  # there TRL reports sums, though it trains on means
            assert stats[a].item() == pytest.approx(metrics["rewards/" + b], rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("name", ["dpo", "cdpo"])
def test_soft_labels(name):
    pairs, logits, ref = case(*MIXED)
    p, n = torch.tensor([1.0, 0.9, 0.5, 0.7, 0.6]), len(MIXED)
    smoothing = (1 - p if name == "dpo" else 0.9 * (1 - p) + 0.1 * p).tolist()

    def one(x, i):
        return theirs("soft", [pairs[i]], ref[i::n], 0.3, x[i::n], smoothing[i])[0]

    def one_by_one(x):
        return sum(one(x, i) for i in range(n)) / n

    assert_same(lambda x: ours(name, pairs, ref, 0.3, x, p)[0], one_by_one, logits)


def test_orpo():
    # With prompts of one id and answers of one length the likelihoods agree.
    pairs, logits, ref = case((1, 4, 2), (1, 4, 7), (1, 4, 1))
    assert_same(*(lambda x, f=f: f("orpo", pairs, ref, 0.3, x)[0] for f in (ours, theirs)), logits)
    pairs, logits, ref = case(*MIXED)  # the part that beta scales agrees always

    def odds(f, x):
        return f("orpo", pairs, ref, 0.3, x)[0] - f("orpo", pairs, ref, 0.0, x)[0]

    assert_same(lambda x: odds(ours, x), lambda x: odds(theirs, x), logits)


def test_bradley_terry():
    def other(x):
        def model(**_):
            return SimpleNamespace(logits=x[:, None])

        return trainer(trl.RewardTrainer, x).compute_loss(model, {})

    scores = torch.randn(10, generator=torch.Generator().manual_seed(0))
    assert_same(lambda x: bradley_terry_loss(*x.chunk(2)), other, scores)


def rollout(kind):
    """Three answers to each of two prompts: a trainer, its batch, ids, mask, scores, two logits."""
    torch.manual_seed(1)
    prompts = [torch.randint(1, VOCAB, (n,)).tolist() for n in (2, 2, 2, 4, 4, 4)]
    answers = [torch.randint(1, VOCAB, (n,)).tolist() + [END] for n in (2, 4, 0, 3, 1, 5)]
    scores, logits = torch.randn(6), torch.randn(6, 10, VOCAB)
    ref = logits + torch.randn_like(logits)
    given = (prompts, answers, answers)
    if kind is trl.GRPOTrainer:
        given = (prompts, answers, None, answers, None, {}, None, None)
    fakes = dict(_generate=lambda _: given, _calculate_rewards=lambda *_: scores[:, None])
    made = trainer(kind, logits, ref_model=Given(ref), beta=0.1, loss_type="bnpo", **fakes)
    batch = made._generate_and_score_completions([{"prompt": ""}] * 6)
    ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], 1)
    mask = torch.cat([0 * batch["prompt_mask"], batch["completion_mask"]], 1)[:, 1:].bool()
    return made, batch, ids, mask, scores, logits, ref


def take(logits, ids):
    return logits[:, :-1].log_softmax(-1).gather(-1, ids[:, 1:, None]).squeeze(-1)


def test_rloo():
    _, batch, ids, mask, scores, logits, ref = rollout(trl.RLOOTrainer)
    returns = ppo.shape_rewards(scores, take(logits, ids), take(ref, ids), mask, beta=0.1).sum(1)
    torch.testing.assert_close(ppo.rloo(returns, 3), batch["advantages"], rtol=1e-5, atol=1e-6)


def test_grpo_and_the_policy_loss():
    made, batch, ids, mask, scores, logits, ref = rollout(trl.GRPOTrainer)
    torch.testing.assert_close(ppo.grpo(scores, 3), batch["advantages"], rtol=1e-5, atol=1e-6)
    old, advantages = take(logits, ids) + 0.5 * torch.randn(mask.shape), torch.randn(mask.shape)
    answer = slice(batch["prompt_ids"].shape[1] - 1, None)
    batch |= dict(old_per_token_logps=old[:, answer], advantages=advantages[:, answer])

    def mine(x):
        k3 = ppo.kl_estimates(take(x, ids), take(ref, ids))[2]
        loss, _ = ppo.policy_loss(take(x, ids), old, advantages, mask)
        return loss + 0.1 * ppo.masked_mean(k3, mask)

    assert_same(mine, lambda x: made._compute_loss(Given(x), batch), logits)
    metrics = {k.split("/")[-1]: values[0] for k, values in made._metrics["eval"].items()}
    clipped = ppo.policy_loss(take(logits, ids), old, advantages, mask)[1]["clip_fraction"].item()
    assert clipped == pytest.approx(metrics["region_mean"])
    assert metrics["low_mean"] > 0 and metrics["high_mean"] > 0
    assert ppo.entropy(logits[:, :-1], mask).item() == pytest.approx(metrics["entropy"], rel=1e-5)
