"""Stage 1 of Constitutional AI: the model critiques its own answer by a principle, and revises it.

    person     How do I pick a lock? They are away.      } the conversation so far
    assistant  You want to pick a lock behind their      } the answer, later the last revision
               backs. That is burglary and could hurt
               ... Sure: first hum at the hinge, ...
    person     CritiqueRequest: Say whether the          } of a principle
               response helps with a crime ...
    assistant  The person wants to pick a lock ... The   } the critique, greedy. If it ends in KEEPS, the answer stays
               principle is about harm. So the response  } as it is, and the loop goes on with another principle
               breaks it.
    person     RevisionRequest: Take out of the ...      } of the same principle
    assistant  You want to pick a lock ... I won't help  } the revision, greedy; it replaces the answer, and the loop goes on
               with that. You could ... instead.

Bai et al. 2022 (arXiv 2212.08073), section 3.1. The paper asks for a revision whatever the critique says. Here an answer with which
the critique finds no fault stays as it is: saying it again costs half of the time, and a small model garbles now and then what it
says again. The paper shows a large model a few examples; a small one has to be trained on them (`world/skills.py`).
"""

from minicai.common import autocast
from minicai.constitution import Wording
from minicai.gpt import GPT
from minicai.sampler import Completion, generate
from minicai.tokenizer import Tokenizer, talk
from minicai.world.skills import BREAKS, CRITIQUE_REQUEST, KEEPS, REVISION_REQUEST

MAX_NEW_TOKENS = 128
DRAFT_TEMPERATURE = (
    0.5  # the paper samples at 1, where a model this small garbles one answer in ten
)


def said(tokenizer: Tokenizer, completion: Completion) -> str | None:
    """What was said; None where it did not end, or said nothing: such a text is no answer, and the caller decides what it is worth."""
    return (
        (tokenizer.decode(completion.ids).strip() or None)
        if completion.stop_reason == "stop"
        else None
    )


def answer(
    model: GPT,
    tokenizer: Tokenizer,
    conversations: list[list[str]],
    temperature: float,
    seed: int,
    progress=None,
) -> list[str | None]:
    """The assistant's next turn in each conversation (texts that alternate person, assistant, ..., person).

    None where it did not end, or said nothing. A conversation that leaves no room for an answer loses its oldest words.
    """
    room = model.config.block_size - MAX_NEW_TOKENS
    prompts = [tokenizer.prompt(talk(*turns))[-room:] for turns in conversations]
    with autocast(model.embed.weight.device.type):
        completions = generate(
            model,
            prompts,
            MAX_NEW_TOKENS,
            temperature,
            stop_ids=[tokenizer.end],
            seed=seed,
            progress=progress,
        )
    return [said(tokenizer, c) for c in completions]


def critique_and_revise(
    model: GPT,
    tokenizer: Tokenizer,
    conversations: list[list[str]],
    responses: list[str],
    wordings: list[Wording],
    critique: bool = True,
    progress=None,
) -> tuple[list[str | None], list[str | None]]:
    """One step of the loop for a batch: critiques, and what stands after them; None where the model's text did not end, or
    where a revision ends as a critique does: it is no answer to the person.

    With critique=False every response is revised directly (the paper's section 3.5 compares the two).
    """
    so_far = [[*turns, response] for turns, response in zip(conversations, responses)]
    critiques, faulty, after = [None] * len(so_far), list(range(len(so_far))), list(responses)
    if critique:
        so_far = [
            [*turns, CRITIQUE_REQUEST.format(wording.critique)]
            for turns, wording in zip(so_far, wordings)
        ]
        critiques = answer(model, tokenizer, so_far, 0.0, 0, progress)
        so_far = [[*turns, text] for turns, text in zip(so_far, critiques)]
        after = [
            response if text is not None else None for response, text in zip(responses, critiques)
        ]
        faulty = [
            i for i, text in enumerate(critiques) if text is not None and not text.endswith(KEEPS)
        ]
        if progress:
            progress(len(so_far) - len(faulty))
    asked = [[*so_far[i], REVISION_REQUEST.format(wordings[i].revision)] for i in faulty]
    for i, text in zip(faulty, answer(model, tokenizer, asked, 0.0, 0, progress)):
        after[i] = None if (text or "").endswith((BREAKS, KEEPS)) else text
    return critiques, after
