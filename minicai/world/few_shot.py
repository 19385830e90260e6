"""Demonstrations in the prompt, for a model that was not trained on them.

Each is a short conversation. They stand as earlier turns before the conversation in question, the
same ones for a whole run. They are drawn as the corpus draws its own: demo acts and seen wordings
only. Every other one, from the first on, finds a fault (or answers "(A)"), so that the model cannot
copy one verdict. Bai et al. 2022, section 3.1 and the few-shot prompts of its appendix.
"""

import functools
from collections.abc import Callable, Iterator

from minicai.answer import MAX_NEW_TOKENS
from minicai.constitution import Constitution, Wording
from minicai.critique import BREAKS, CRITIQUE_REQUEST, KEEPS, OPTIONS, REVISION_REQUEST
from minicai.files import UserError
from minicai.judge import judge_directly
from minicai.tokenizer import talk
from minicai.world.content import World
from minicai.world.corpus import Corpus

DRAWS = 2000  # for one demonstration; some worlds and constitutions have none of a kind
# Without end: turns, and whether they find a fault. None is for turns that do not serve.
Stream = Iterator[tuple[list[str], bool | None]]


def chains(corpus: Corpus) -> Stream:
    """Critiques. Those that find a fault go on with the revision."""
    while True:
        texts = [turn.content for turn in corpus.critique()]
        if texts[-1].endswith(KEEPS) or texts[-3].endswith(BREAKS):
            yield texts, not texts[-1].endswith(KEEPS)


def critiques(corpus: Corpus) -> Stream:
    """Critiques alone."""
    for texts, fault in chains(corpus):
        yield texts[:-2] if fault else texts, fault


def direct_revisions(corpus: Corpus) -> Stream:
    """Revisions without a critique. A response without a fault comes back as it was."""
    while True:
        texts = [turn.content for turn in corpus.critique()]
        if not texts[-1].endswith(KEEPS) and not texts[-3].endswith(BREAKS):
            yield texts, texts[-1] != texts[-3]


def comparisons(corpus: Corpus) -> Stream:
    """Comparisons of two answers, exactly one of which breaks the principle."""
    while True:
        turns, decided = corpus.comparison()
        first = turns[-1].content == OPTIONS[0]
        yield [turn.content for turn in turns], first if decided else None


def demonstrations(
    kind: Callable[[Corpus], Stream], n: int, world: World, constitution: Constitution, seed: int
) -> list[str]:
    """The turns of n demonstrations of one kind: person, assistant, ..., assistant.

    `kind` is one of the functions above. Raises UserError where the world has none.
    """
    corpus = Corpus(world, constitution, f"{seed} few-shot") if n else None
    turns = []
    for i in range(n):
        draws, wanted = kind(corpus), i % 2 == 0
        found = next(
            (texts for _, (texts, fault) in zip(range(DRAWS), draws) if fault == wanted), None
        )
        if found is None:
            raise UserError(
                f"{world.path} and {constitution.path} give no demonstrations "
                f"{'with' if wanted else 'without'} a fault; leave out --few-shot or add to them"
            )
        turns += found
    return turns


def check_fit(model, tokenizer, shots: list[str], conversations, wordings: list[Wording]):
    """Raise UserError unless every prompt fits the context with the demonstrations before it.

    Room is kept for the requests and for three texts by models: answer, critique, revision.
    """

    def size(*texts: str) -> int:
        return len(tokenizer.prompt(talk(*texts)))

    longest = max(conversations, key=lambda turns: size(*turns))
    requests = (
        (CRITIQUE_REQUEST.format(w.critique), "", REVISION_REQUEST.format(w.revision))
        for w in wordings
    )
    request = max(requests, key=lambda texts: size(*texts))
    needed = size(*shots, *longest, "", *request) + 3 * MAX_NEW_TOKENS
    if needed > model.config.block_size:
        raise UserError(
            f"the demonstrations and the longest prompt need {needed} ids, and the context has "
            f"{model.config.block_size}; lower --few-shot, or leave out long prompts"
        )


def few_shot_judge(judge, n: int, world: World, constitution: Constitution, seed: int):
    """The judge with n demonstrations in its prompts. It raises UserError where they do not fit."""
    if n == 0:
        return judge
    kind = comparisons if judge is judge_directly else critiques
    shots = demonstrations(kind, n, world, constitution, seed)

    @functools.wraps(judge)
    def with_shots(model, tokenizer, conversations, a, b, wordings, progress=None):
        if conversations:
            check_fit(model, tokenizer, shots, conversations, wordings)
        return judge(model, tokenizer, conversations, a, b, wordings, progress, shots)

    return with_shots
