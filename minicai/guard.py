"""Defences around a model: two checks that may block an exchange, and refusals made helpful.

    input    before the answer: the critic drafts its own answer and judges the draft. The critic
             is the base model. It was trained only to help, so its draft shows what helping would
             mean, whatever the disguise.
    output   after the answer: the critic judges the model's answer.

Both end in P(breaks harmlessness) of judge.p_breaks. A blocked exchange ends in one fixed sentence,
which leaks nothing. A helpful refusal could leak, so behind a guard it passes the output check. A
guard supplements training: it is as good as its critic, and anyone with the weights can drop it.

`model` and `critic` are GPTs, `conversations` lists of turns, `wording` a Wording about harm.
"""

from minicai.answer import MAX_NEW_TOKENS, answer, encode_prompt, finished_text, fit, sample
from minicai.critique import CRITIQUE_REQUEST, DECLINES
from minicai.judge import p_breaks

REFUSAL = "I'm sorry, but I can't help with that."
INSTEAD = " Instead,"
LAYERS = {"output": ("output",), "input": ("input",), "both": ("input", "output")}


def check_output(critic, tokenizer, conversations, responses, wording) -> list[float | None]:
    """P(each response breaks the principle). None without a response or without a verdict."""
    return p_breaks(critic, tokenizer, conversations, responses, [wording] * len(responses))


def check_input(
    critic, tokenizer, conversations, wording
) -> tuple[list[str | None], list[float | None]]:
    """The critic's own drafts, and P(each breaks the principle)."""
    drafts = answer(critic, tokenizer, conversations)
    return drafts, check_output(critic, tokenizer, conversations, drafts, wording)


def closed(p: float | None) -> float:
    """P, or 1 for a check that came to no verdict: the guard fails closed."""
    return 1.0 if p is None else p


def guarded_answer(
    model, critic, tokenizer, turns, wording, threshold=0.5, temperature=0.0, seed=0, top_p=None
) -> tuple[str | None, dict | None]:
    """What the person is told, and a row for the log if a check blocked the exchange (else None).

    A check blocks from its threshold on. The row's `response` is the text that was judged, the
    critic's draft or the model's answer, and `judge` is its P(breaks the principle).
    """
    [draft], [p_in] = check_input(critic, tokenizer, [turns], wording)
    row = dict(turns=turns, response=draft, judge=p_in, check="input", input=p_in, output=None)
    if closed(p_in) >= threshold:
        return REFUSAL, row
    [text] = answer(model, tokenizer, [turns], temperature, seed, top_p=top_p)
    [p_out] = check_output(critic, tokenizer, [turns], [text], wording)
    if closed(p_out) >= threshold:
        return REFUSAL, row | dict(response=text, judge=p_out, check="output", output=p_out)
    return text, None


def helpful_refusals(
    critic, tokenizer, conversations, responses, wording, threshold=None
) -> list[str | None]:
    """The responses, where each refusal that offers nothing is followed by a safe alternative.

    The critic's critique says which those are. The critic then continues "<first sentence of its
    draft> <refusal> Instead,": after a refusal even a model that complies with everything offers
    something else. The draft's sentence says what was asked. Only the next sentence of the
    continuation is kept. With a threshold, as behind a guard, a refusal stays as it was if the
    output check flags the longer one.
    """
    asked = CRITIQUE_REQUEST.format(wording.critique)
    dialogues = [[*turns, text or "", asked] for turns, text in zip(conversations, responses)]
    critiques = answer(critic, tokenizer, dialogues)
    bare = [i for i, text in enumerate(critiques) if responses[i] and DECLINES in (text or "")]
    drafts = answer(critic, tokenizer, [conversations[i] for i in bare])
    prompts, block_size = [], critic.config.block_size
    for i, draft in zip(bare, drafts):
        first = (draft or "").partition(". ")[0].rstrip(".")
        begun = f"{first}. {responses[i]}{INSTEAD}"
        prompt = encode_prompt(tokenizer, conversations[i], block_size) + tokenizer.encode(begun)
        prompts.append(fit(prompt, block_size - MAX_NEW_TOKENS))
    after = list(responses)
    for i, more in zip(bare, sample(critic, tokenizer, prompts)):
        alternative = (finished_text(tokenizer, more) or "").partition(". ")[0].rstrip(".")
        if alternative:
            after[i] = f"{responses[i]}{INSTEAD} {alternative}."
    if threshold is not None:
        turns, texts = [conversations[i] for i in bare], [after[i] for i in bare]
        for i, p in zip(bare, check_output(critic, tokenizer, turns, texts, wording)):
            after[i] = responses[i] if closed(p) >= threshold else after[i]
    return after
