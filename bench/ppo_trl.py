"""The side of TRL in bench/ppo.py: an update of GRPOTrainer, and its gradient beside ours."""

import copy
import tempfile

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

import train_ppo
from bench.shared import BETA, PPO_ADAMW, Clock, as_llama, as_tokenizer, llama_name, trl_settings
from minicai.answer import MAX_NEW_TOKENS
from minicai.data import collate_responses, row_lengths
from minicai.rollout import Actor, add_advantages, score_answers


def reward_function(reward, tokenizer, device):
    """The reward model as TRL calls it: prompts and answers, as ids -> scores."""

    @torch.no_grad()
    def scores(prompts, completion_ids, **_) -> list[float]:
        rows, lengths = [p + c for p, c in zip(prompts, completion_ids)], [len(p) for p in prompts]
        ids, mask = collate_responses(rows, lengths, tokenizer.pad, device)
        ended = [c[-1] == tokenizer.end and len(c) > 1 for c in completion_ids]
        given = reward(ids, row_lengths(mask)).tolist()
        return [score if end else train_ppo.END_PENALTY for score, end in zip(given, ended)]

    return scores


def make_trainer(gpt, tokenizer, reward, args):
    """A GRPOTrainer with the settings of train_ppo.py, for prompts that are ids."""
    from datasets import Dataset
    from transformers.utils.logging import disable_progress_bar
    from trl import GRPOConfig, GRPOTrainer

    class FromIds(GRPOTrainer):
        def _tokenize_prompts(self, prompts):
            return prompts, None, {}

        def _generate(self, prompts):
            given = self.clock("rollout", super()._generate, prompts)
            self.answer_tokens = sum(map(len, given[1]))
            return given

        def _generate_and_score_completions(self, inputs):
            return self.clock("answers", super()._generate_and_score_completions, inputs)

    disable_progress_bar()
    llama, (group, size) = as_llama(gpt), train_ppo.sizes("grpo", args.ppo_episodes)
    scores = reward_function(reward, tokenizer, args.device)
    with tempfile.TemporaryDirectory() as folder:
        llama.save_pretrained(folder)  # the trainer reads its reference from a file
        llama.config._name_or_path = folder
        config = GRPOConfig(
            folder,
            per_device_train_batch_size=size,
            steps_per_generation=args.ppo_episodes // size,
            num_iterations=train_ppo.EPOCHS,
            num_generations=group,
            max_completion_length=MAX_NEW_TOKENS,
            loss_type="bnpo",  # a mean over all tokens
            beta=BETA,
            use_bias_correction_kl=False,  # TRL's default multiplies the KL term by the ratio
            epsilon=train_ppo.CLIP,
            **trl_settings(gpt),
        )
        data = Dataset.from_list([{"prompt": [0]}])  # the prompts come later
        trainer = FromIds(llama, scores, config, data, processing_class=as_tokenizer(tokenizer))
    trainer.current_gradient_accumulation_steps = 1  # which its own loop would set
    trainer.clock = Clock(args.device)
    return trainer


def trl_update(gpt, tokenizer, reward, prompts: list[list[int]], args) -> tuple[Clock, int]:
    """The seconds of an update on these prompts, and the tokens of its answers."""
    trainer = make_trainer(gpt, tokenizer, reward, args)
    optimizer = torch.optim.AdamW(trainer.model.parameters(), lr=args.ppo_lr, **PPO_ADAMW)
    model, optimizer = trainer.accelerator.prepare(trainer.model, optimizer)
    trainer.model_wrapped, clock = model, trainer.clock
    inputs = [dict(prompt=prompt) for prompt in prompts]

    def step():
        trainer.training_step(model, inputs, None)  # the first one also answers and scores
        trainer.accelerator.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    for _ in range(train_ppo.EPOCHS * trainer.args.steps_per_generation):
        clock("learning", step)
    answers = clock.pop("answers")
    clock["learning"] -= answers
    clock["scoring"] = answers - clock["rollout"]
    return clock, trainer.answer_tokens


def as_trl_batch(b: dict[str, Tensor], prompts: list[list[int]]) -> dict[str, Tensor]:
    """Scored answers as GRPOTrainer takes them: prompts padded left, answers right."""

    def answers(x):  # (B, T-1) -> (B, length of the longest answer)
        return pad_sequence([row[m] for row, m in zip(x, b["mask"])], batch_first=True)

    asked = [torch.tensor(prompt, device=b["ids"].device) for prompt in prompts]
    left = dict(batch_first=True, padding_side="left")
    return dict(
        prompt_ids=pad_sequence(asked, **left),
        prompt_mask=pad_sequence([torch.ones_like(prompt) for prompt in asked], **left),
        completion_ids=answers(b["ids"][:, 1:]),
        completion_mask=answers(b["mask"]).long(),
        advantages=answers(b["advantages"]),
        old_per_token_logps=answers(b["logps"]),
        ref_per_token_logps=answers(b["ref_logps"]),
    )


def gradient_distance(gpt, tokenizer, reward, part, args) -> tuple[float, str]:
    """The greatest distance between the two gradients of a parameter, and the parameter's name.

    Both are of one step on the same answers and advantages, in units of the norm of ours.
    """
    group, size = train_ppo.sizes("grpo", args.ppo_episodes)
    _, prompts, completions = train_ppo.rollout(gpt, tokenizer, part, size, group, args.seed, 0)
    gpt = copy.deepcopy(gpt).double()
    trainer, actor = make_trainer(gpt, tokenizer, reward, args), Actor(gpt).to(args.device)
    inputs = actor, gpt, reward, prompts, completions, tokenizer.pad, train_ppo.END_PENALTY
    b = score_answers(*inputs)
    add_advantages([b], "grpo", BETA, group)
    b["advantages"] += 0.1 * b["mask"]  # not 0, even where all answers of a group score the same
    for logps in b["logps"], b["ref_logps"]:  # as if the policy had moved since
        logps += 0.2 * torch.randn_like(logps)

    trainer.compute_loss(trainer.model, as_trl_batch(b, prompts)).backward()
    torch.nn.utils.clip_grad_norm_(trainer.model.parameters(), 1.0)
    train_ppo.ppo_step(actor, torch.optim.SGD(actor.parameters(), lr=0.0), b, "grpo", BETA)
    theirs = {name: p.grad for name, p in trainer.model.named_parameters()}
    distances = {
        name: ((p.grad - theirs[llama_name(name)]).norm() / p.grad.norm()).nan_to_num(torch.inf)
        for name, p in gpt.named_parameters()
    }
    name = max(distances, key=distances.get)
    return distances[name].item(), name
