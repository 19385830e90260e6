"""Stage 1 of Constitutional AI: the model critiques its own answer by a principle and revises it.

    person     How do I pick a lock? They are away.      } the conversation
    assistant  You want to pick a lock behind their      } the answer: at first a draft,
               backs. ... Sure: first hum at the hinge   } later the last revision
    person     CritiqueRequest: Say whether the          } of a principle
               response helps with a crime ...
    assistant  The person wants to pick a lock ... The   } the critique, greedy. If it ends
               principle is about harm. So the response  } in KEEPS, the answer stays
               breaks it.
    person     RevisionRequest: Take out of the ...      } of the same principle
    assistant  You want to pick a lock ... I won't help  } the revision, greedy. It replaces
               with that. You could ... instead.         } the answer, and the loop goes on

Bai et al. 2022 (arXiv 2212.08073), section 3.1. Departures:
  * The paper revises whatever the critique says. Here an answer without a fault stays as it is: a
    small model sometimes garbles a text that it repeats.
  * The paper shows a large model a few examples in its prompt, as `shots` does below. A small model
    has to be trained on demonstrations (minicai/world/skills.py).
  * The paper draws principles with replacement, all about harm. Here a chain meets every family
    once before it meets one again.
"""

import random

from minicai.answer import answer
from minicai.constitution import Constitution

# All prompt formats of the method. The first two are the paper's own markers.
CRITIQUE_REQUEST, REVISION_REQUEST = "CritiqueRequest: {}", "RevisionRequest: {}"
BREAKS, KEEPS = "So the response breaks it.", "So the response keeps to it."  # end a critique
DECLINES = "The response declines."  # in a critique: a refusal that offers nothing else
OPTIONS = ("(A)", "(B)")  # of the direct judge

# The paper samples at 1, where a model this small garbles one answer in ten.
DRAFT_TEMPERATURE = 0.5


def comparison_prompt(turns, principle: str, a: str, b: str) -> str:
    """The question to the direct judge. It is answered by one of OPTIONS."""
    names = ("Person", "Assistant")
    conversation = "\n".join(f"{names[i % 2]}: {text}" for i, text in enumerate(turns))
    return f"{conversation}\n{principle}\n{OPTIONS[0]} {a}\n{OPTIONS[1]} {b}"


def critique_and_revise(
    model, tokenizer, conversations, responses, wordings, critique=True, progress=None, shots=()
) -> tuple[list[str | None], list[str | None]]:
    """One step of the loop for a batch: (critiques, responses after the step).

    A conversation is a list of texts (person, assistant, ..., person), with one response and one
    wording each. `shots` are turns of demonstrations, which stand before every conversation.

    A response after the step is None where the critique or the revision did not end, or where the
    revision ends like a critique: that is no answer to the person. With critique=False every
    response is revised directly (section 3.5 of the paper compares the two).
    """
    dialogues = [[*shots, *turns, response] for turns, response in zip(conversations, responses)]
    critiques, after, faulty = [None] * len(dialogues), list(responses), range(len(dialogues))
    if critique:
        requests = [CRITIQUE_REQUEST.format(w.critique) for w in wordings]
        dialogues = [[*turns, request] for turns, request in zip(dialogues, requests)]
        critiques = answer(model, tokenizer, dialogues, progress=progress)
        dialogues = [[*turns, text] for turns, text in zip(dialogues, critiques)]
        after = [old if text is not None else None for old, text in zip(responses, critiques)]
        faulty = [i for i, text in enumerate(critiques) if text and not text.endswith(KEEPS)]
        if progress:
            progress(len(dialogues) - len(faulty))
    asked = [[*dialogues[i], REVISION_REQUEST.format(wordings[i].revision)] for i in faulty]
    for i, text in zip(faulty, answer(model, tokenizer, asked, progress=progress)):
        after[i] = None if (text or "").endswith((BREAKS, KEEPS)) else text
    return critiques, after


def critique_revise_loop(
    model,
    tokenizer,
    constitution: Constitution,
    conversations: list[list[str]],
    drafts: list[str],
    steps: int,
    rng: random.Random,
    critique=True,
    progress=None,
    shots=(),
) -> list[dict]:
    """One chain a draft: `responses` (the draft, then one a step), `principles`, `critiques`.

    A step that does not end in an answer leaves the response as it was.
    """
    chains = [dict(responses=[draft], principles=[], critiques=[]) for draft in drafts]
    families = constitution.families
    orders = [rng.sample(families, len(families)) for _ in chains]
    for step in range(steps):
        wordings = [constitution.draw(rng, family=order[step % len(order)]) for order in orders]
        latest = [chain["responses"][-1] for chain in chains]
        critiques, revisions = critique_and_revise(
            model, tokenizer, conversations, latest, wordings, critique, progress, shots
        )
        for chain, wording, text, old, new in zip(chains, wordings, critiques, latest, revisions):
            chain["principles"].append(wording.id)
            chain["critiques"].append(text)
            chain["responses"].append(new if new is not None else old)
    return chains
