"""Texts in, texts out: here conversations are cut to fit, and models speak.

A conversation is a list of texts: person, assistant, ..., person. A prompt is a list of ids.
Sampling and scoring run under `autocast` here, so that both use the same arithmetic.
"""

from minicai.console import warn
from minicai.device import autocast
from minicai.files import UserError
from minicai.gpt import GPT
from minicai.sampler import Completion, generate, score_options
from minicai.tokenizer import Tokenizer, talk

MAX_NEW_TOKENS = 128  # of every answer


def encode_prompt(tokenizer: Tokenizer, turns: list[str], block_size: int) -> list[int]:
    """The conversation, opened for the assistant, as ids. It leaves room for an answer."""
    return fit(tokenizer.prompt(talk(*turns)), block_size - MAX_NEW_TOKENS)


def fit(prompt: list[int], room: int) -> list[int]:
    """The last `room` ids of a prompt, with a warning if that loses some. Raises UserError without
    room."""
    if room < 1:
        raise UserError(f"the model's context has no room for answers of {MAX_NEW_TOKENS} tokens")
    if len(prompt) > room:
        warn(f"a prompt of more than {room} ids does not fit the context; its beginning is cut off")
    return prompt[-room:]


def sample(
    model, tokenizer, prompts, temperature=0.0, seed=0, progress=None, top_p=None
) -> list[Completion]:
    """Continue each prompt up to its end token. Temperature 0 is greedy.

    Padding ends an answer too: pretrained models end texts that are no chats with that token.
    """
    with autocast(model.embed.weight.device):
        return generate(
            model,
            prompts,
            MAX_NEW_TOKENS,
            temperature,
            top_p=top_p,
            stop_ids=[tokenizer.end, tokenizer.pad],
            seed=seed,
            progress=progress,
        )


def finished_text(tokenizer: Tokenizer, completion: Completion) -> str | None:
    """The text. None if generation hit the length limit or produced no text."""
    if completion.stop_reason != "stop":
        return None
    return tokenizer.decode(completion.ids).strip() or None


def answer(
    model, tokenizer, conversations, temperature=0.0, seed=0, progress=None, top_p=None
) -> list[str | None]:
    """The assistant's next turn in each conversation. None where `finished_text` is None."""
    prompts = [encode_prompt(tokenizer, turns, model.config.block_size) for turns in conversations]
    completions = sample(model, tokenizer, prompts, temperature, seed, progress, top_p)
    return [finished_text(tokenizer, c) for c in completions]


def option_scores(model: GPT, prompts, options, progress=None) -> list[list[float]]:
    """log p(option | prompt) for each prompt's own options, summed over the option's tokens."""
    with autocast(model.embed.weight.device):
        return score_options(model, prompts, options, progress)
