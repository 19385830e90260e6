"""The time of a DPO step, against TRL's DPOTrainer.

    python -m bench.dpo [--out OUT] [--steps 8]     # after label.py: a minute; nothing is written

Both sides start from OUT/sft.pt and take the same steps: the same batches of OUT/preferences.jsonl,
all labels 1, AdamW, clipping, the log-probabilities of the reference computed beforehand. A step
leads from lists of ids to new weights. TRL's goes through its own collator and `training_step`; the
rest of its loop is not timed.

First, losses of three steps in float64 have to agree to 1e-4. The second and third depend on the
gradients before them. The times are under autocast where the machine has bfloat16. Every step is
timed three times, and the best time counts. Without TRL only our own times are shown.
"""

import copy
import random
import tempfile
from importlib.util import find_spec

import torch

from bench.shared import Clock, as_llama, as_tokenizer, conditions, trl_settings
from minicai.data import pair_batches, read_pairs
from minicai.dpo import dpo_loss
from minicai.files import UserError, load_policy
from minicai.optim import optimizer_step
from minicai.run import main, parser, positive, setup
from train_dpo import pair_logps, reference_logps

ADAMW = dict(lr=1e-4, betas=(0.9, 0.95), weight_decay=0.0)
BETA = 1.0
RUNS = 3


def our_step(policy, tokenizer, pairs):
    """A function that takes one step on a batch of pairs and returns its loss."""
    policy = copy.deepcopy(policy)
    reference = reference_logps(policy, pairs, 8192, tokenizer.pad, per_token=False)
    optimizer = torch.optim.AdamW(policy.parameters(), **ADAMW)

    def step(batch) -> float:
        chosen, rejected = pair_logps(policy, batch, tokenizer.pad, per_token=False)
        ref = reference[:, [pair.index for pair in batch]]
        loss, _ = dpo_loss(chosen, rejected, *ref, beta=BETA)
        optimizer_step(policy, [optimizer], loss, clip=1.0)
        return loss.item()

    return step


def trl_step(policy, tokenizer, pairs):
    """The same of TRL's trainer."""
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    class FromIds(DPOTrainer):
        def _prepare_dataset(self, dataset, *_):
            return dataset

    keys = "prompt_ids", "chosen_ids", "rejected_ids"
    split = ((p.chosen[: p.prompt], p.chosen[p.prompt :], p.rejected[p.prompt :]) for p in pairs)
    data = Dataset.from_list([dict(zip(keys, parts)) for parts in split])
    with tempfile.TemporaryDirectory() as folder:
        settings = dict(beta=BETA, precompute_ref_log_probs=True, max_length=None)
        config = DPOConfig(folder, **settings, **trl_settings(policy))
        given = dict(train_dataset=data, processing_class=as_tokenizer(tokenizer))
        trainer = FromIds(as_llama(policy), args=config, **given)
    optimizer = torch.optim.AdamW(trainer.model.parameters(), **ADAMW)
    model, optimizer = trainer.accelerator.prepare(trainer.model, optimizer)
    trainer.current_gradient_accumulation_steps = 1  # which its own loop would set

    def step(batch) -> float:
        rows = [trainer.train_dataset[pair.index] for pair in batch]
        loss = trainer.training_step(model, trainer.data_collator(rows))
        trainer.accelerator.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    return step


def bench():
    p = parser(__doc__)
    p.add_argument("--steps", type=positive, default=8, help="to measure (default: 8)")
    args = setup(p, writes=False)
    policy, tokenizer = load_policy(args.out / "sft.pt", args.device)
    rng = random.Random(args.seed)
    block_size, files = policy.config.block_size, [args.out / "preferences.jsonl"]
    pairs = read_pairs(files, tokenizer, 1 / 3, block_size, rng)
    batches = pair_batches(pairs, args.batch_tokens, rng)[: args.steps]
    sides = {"minicai": our_step} | ({"TRL": trl_step} if find_spec("trl") else {})
    if len(sides) > 1:
        exact = [make(policy.double(), tokenizer, pairs) for make in sides.values()]
        for batch in batches[:1] * 3:
            ours, theirs = (step(batch) for step in exact)
            if abs(ours - theirs) > 1e-4:
                raise UserError(f"the losses differ: {ours} and {theirs}; one is wrong, mend it")
        print(f"the third loss: {ours:.6f}, TRL's {theirs:.6f}")
    steps = {name: make(policy.float(), tokenizer, pairs) for name, make in sides.items()}
    seconds = dict.fromkeys(steps, 0.0)
    for batch in batches:
        runs = [Clock(args.device) for _ in range(RUNS)]
        for clock in runs:
            for name, step in steps.items():
                clock(name, step, batch)
        for name in steps:
            seconds[name] += min(clock[name] for clock in runs) / len(batches)
    print(conditions(args.device))
    for name, s in seconds.items():
        print(f"{name:8}{s:8.3f} s a step ({s / seconds['minicai']:.2f})")


if __name__ == "__main__":
    main(bench)
