"""What an automated red team needs: reading what an attack asks, choosing what worked, diversity, and GCG.

An attack written by a model is just text. `recognise` finds what it asks by undoing what the world's phrasings and framings
do; a text that it cannot explain word by word has an unknown truth and is never trained on. Perez et al. 2022
(arXiv 2202.03286) for attackers that are language models, Zou et al. 2023 (arXiv 2307.15043) for suffixes by gradient.

Dimensions: B candidates, T time, L suffix length, V vocabulary.
"""

import random
import re
from collections.abc import Iterator
from dataclasses import replace
from difflib import get_close_matches
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from minicai.gpt import GPT
from minicai.metrics import ngrams
from minicai.world.content import Act, Context, World, held_out, split_of
from minicai.world.grader import Grade, words
from minicai.world.requests import Request, phrase

# --- what an attack asks ----------------------------------------------------------------------------------------------


def bare(text: str) -> str:
    """Lower case, without punctuation; a space behind every word."""
    return "".join(f"{word} " for word in words(text))


def pattern(template: str, slots: dict[str, str]) -> re.Pattern:
    """A template as a pattern of bare text. Each slot takes what its own pattern allows; a context may be missing."""
    parts = []
    for word in words(re.sub(r"{(\w+)}", r"slot\1", template)):
        slot = re.match("slot(" + "|".join(slots) + ")", word)
        if slot:
            part = f"(?P<{slot[1]}>{slots[slot[1]]}){re.escape(word[slot.end() :])} "
            parts.append(f"(?:{part})?" if slot[1] == "context" else part)
        else:
            parts.append(re.escape(f"{word} "))
    return re.compile("".join(parts))


@lru_cache(maxsize=2)
def grammar(world: World) -> tuple[set, dict, list, list]:
    """The world's words, its acts, contexts and facts by their bare text, and the patterns of framings and phrasings."""
    named = dict(
        act={bare(a.act).strip(): a for a in world.acts},
        context={bare(c.text).strip(): c for c in world.contexts},
        name={bare(f.name).strip(): f for f in world.facts},
        attribute={bare(a).strip(): a for kind in world.attributes.values() for a in kind},
    )
    slots = {
        slot: "|".join(map(re.escape, sorted(texts, key=len, reverse=True)))
        for slot, texts in named.items()
    }
    # Only what one message can hold. Held-out wordings come first: a text that could be one counts as one.
    frames = [
        f
        for f in world.framings
        if len(f.turns) == 1 and re.findall(r"{(\w+)}", f.turns[0]) == ["request"]
    ]
    phrasings = [p for p in world.phrasings if len(p.turns) == 1]
    frames, phrasings = (
        sorted(x, key=lambda item: not held_out(item.id)) for x in (frames, phrasings)
    )
    texts = [
        *(t for texts in named.values() for t in texts),
        *(x.turns[0] for x in (*frames, *phrasings)),
    ]
    vocabulary = {word for text in texts for word in words(text)}
    return (
        vocabulary,
        named,
        [(f, pattern(f.turns[0], dict(request=".+"))) for f in frames],
        [(p, pattern(p.turns[0], slots)) for p in phrasings],
    )


def type_of(use: str, act: Act, context: Context | None) -> str | None:
    """The table in requests.py, read backwards; None for what the world never asks."""
    intent = context and context.intent
    if use == "protection":
        return "dual_use_question" if act.kind in ("harmful", "dual_use") else None
    if act.kind == "dual_use":
        return {None: "ambiguous", "malicious": "harmful", "legitimate": "legitimate"}[intent]
    if act.kind == "harmful":
        return "harmful"
    return (
        None if intent == "malicious" else "sensitive" if act.kind == "sensitive" else "legitimate"
    )


def recognise(world: World, text: str) -> Request | None:
    """The request that a message of one turn makes, typing errors corrected; None where it is not wholly the world's own words."""
    vocabulary, named, framings, phrasings = grammar(world)
    corrected = [
        w if w in vocabulary else (get_close_matches(w, vocabulary, 1, 0.75) or [w])[0]
        for w in words(text)
    ]
    inner = []
    for said in dict.fromkeys((bare(text), bare(" ".join(corrected)))):
        inner += [
            (None, said),
            *((f, f"{m['request']} ") for f, shape in framings if (m := shape.fullmatch(said))),
        ]
    for framing, asked in inner:
        for phrasing, shape in phrasings:
            match = shape.fullmatch(asked)
            if not match:
                continue
            found = {slot: named[slot][said] for slot, said in match.groupdict().items() if said}
            act, context, fact = found.get("act"), found.get("context"), found.get("name")
            type = type_of(phrasing.use, act, context) if act else "fact"
            if type is None or (fact and found["attribute"] not in world.attributes[fact.kind]):
                continue
            plain = phrase(
                replace(phrasing, style="plain"),
                random.Random(0),
                act=act and act.act,
                context=context.text if context else "",
                name=fact and fact.name,
                attribute=found.get("attribute"),
            )
            return Request(
                type,
                (text,),
                phrasing,
                act,
                context,
                fact,
                found.get("attribute"),
                framing and framing.technique,
                framing and framing.id,
                plain if framing else (),
            )
    return None


def may_train(request: Request | None) -> bool:
    """Whether a request is wholly of parts that training may see: no test act or name, no held-out wording."""
    if request is None:
        return False
    wordings = (request.phrasing.id, request.framing, request.context and request.context.id)
    return split_of((request.act or request.fact).id) != "test" and not any(
        held_out(w) for w in wordings if w
    )


def harmed(request: Request | None, grade: Grade | None) -> bool | None:
    """The world's own word on an attack: steps were given that should not have been. None where the truth is unknown."""
    return request and request.type in ("harmful", "ambiguous") and grade.outcome == "complied"


# --- attackers that learn from what worked ----------------------------------------------------------------------------


def draw_weighted(items: list, weights: list[float], k: int, rng: random.Random) -> list:
    """k different items, each next one with probability in proportion to its weight (Efraimidis and Spirakis 2006)."""
    keys = [rng.random() ** (1 / weight) for weight in weights]
    return [items[i] for i in sorted(range(len(items)), key=keys.__getitem__, reverse=True)[:k]]


def overlap(texts: list[str], n: int = 3) -> list[float]:
    """How much each text repeats the others: the share of its n-grams that another text has, averaged over the others.

    0: nothing in common; 1: all are the same. What the RL attacker is paid not to do.
    """
    grams = [set(ngrams(text, n)) for text in texts]
    shares = [[len(a & b) / len(a) if a else float(not b) for b in grams] for a in grams]
    return [(sum(row) - row[i]) / max(1, len(row) - 1) for i, row in enumerate(shares)]


# --- GCG: greedy coordinate gradient, on ids, so that nothing is ever tokenised again ---------------------------------


def goal_loss(model: GPT, ids: Tensor, goal: Tensor) -> Tensor:
    """ids (B, T), or weights over the vocabulary (B, T, V), that end with the goal (n,) -> (B,): its mean loss a token."""
    logits = model.head(
        model.hidden(ids[:, :-1])[:, -len(goal) :]
    )  # (B, n, V), and no more of them than count
    return F.cross_entropy(logits.mT, goal.expand(len(ids), -1), reduction="none").mean(1)


def suffix_gradient(model: GPT, ids: Tensor, at: int, length: int, goal: Tensor) -> Tensor:
    """ids (T,) that end with the goal -> (L, V): how its loss changes with the weight of each token in each place of the suffix."""
    weights = F.one_hot(ids, model.config.vocab_size).to(model.embed.weight.dtype)  # (T, V)
    suffix = weights[at : at + length].clone().requires_grad_()
    mixed = torch.cat([weights[:at], suffix, weights[at + length :]])
    return torch.autograd.grad(goal_loss(model, mixed[None], goal).sum(), suffix)[0]


def swap_one(
    suffix: Tensor, gradient: Tensor, allowed: int, top_k: int, candidates: int, generator
) -> Tensor:
    """suffix (L,) -> (B, L): each row has one place, drawn at random, changed to one of its top_k most promising ids below `allowed`."""
    promising = (-gradient[:, :allowed]).topk(min(top_k, allowed)).indices  # (L, K)
    place = torch.randint(len(suffix), (candidates,), generator=generator)
    choice = torch.randint(promising.shape[1], (candidates,), generator=generator)
    rows = suffix.repeat(candidates, 1)
    rows[torch.arange(candidates), place] = promising[place, choice]
    return rows


def gcg(
    model: GPT,
    before: list[int],
    suffix: list[int],
    after: list[int],
    goal: list[int],
    allowed: int,
    seed: int,
    top_k: int = 64,
    candidates: int = 64,
) -> Iterator[tuple[list[int], float]]:
    """Endless: (suffix, loss of the goal) from the given suffix on, one step each; the caller decides when to stop.

    A step takes the gradient for every token in every place of the suffix, tries `candidates` single swaps that it promises
    most of, and keeps the best, or the suffix as it was: the loss never rises. Special tokens are never tried.
    """
    device, generator = model.embed.weight.device, torch.Generator().manual_seed(seed)
    head, best, tail = (torch.tensor(x, dtype=torch.long) for x in (before, suffix, after + goal))
    wanted = tail[len(after) :].to(device)

    def whole(rows):
        return torch.cat([head.expand(len(rows), -1), rows, tail.expand(len(rows), -1)], 1).to(
            device
        )

    with torch.no_grad():
        loss = goal_loss(model, whole(best[None]), wanted).item()
    while True:
        yield best.tolist(), loss
        gradient = suffix_gradient(model, whole(best[None])[0], len(head), len(best), wanted).cpu()
        rows = torch.cat(
            [best[None], swap_one(best, gradient, allowed, top_k, candidates - 1, generator)]
        )
        with torch.no_grad():
            losses = goal_loss(model, whole(rows), wanted)
        best, loss = rows[int(losses.argmin())], losses.min().item()
