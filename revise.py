"""Stage 1 data: the base model answers, critiques its answer by a principle, revises it, again.

    python revise.py                                         # quick preset: about a minute
    python revise.py --no-critique --name direct             # revise without a critique
    python revise.py --without harmlessness --name lawless   # strike out a family of principles
    python revise.py --few-shot 2                            # demonstrations in the prompt, too
    python revise.py --show 1                                # print chain 1
    python revise.py --prompts MY.csv --name mine            # real prompts: their train half
    python revise.py --round 1                               # feedback: revise what got through

reads   OUT/base.pt, constitution.json, world/; for a round also OUT/redteam.jsonl
writes  OUT/revisions.jsonl (OUT/revisions-NAME.jsonl, OUT/revisions-roundN.jsonl), one row a prompt
        with its whole chain: responses, principles, critiques

The prompts are of the world's train split: 42 % for harm or ambiguous, 40 % harmless, 18 % about
names, so that every principle finds something to change and something to leave alone. A pretrained
model also answers the train half of prompts/natural.jsonl, because it is for people's own words.

A feedback round revises the attacks that worked on the stage before, and fresh requests in
disguise, half of them benign: with attacks alone the model would learn to refuse whatever looks
odd. The base drafts the answers to the fresh ones, because it reads disguises best. Critique and
revision read the request without its disguise, which the red team recorded.

Demonstrations in the prompt are for a base that was not trained on any (minicai/world/few_shot.py).
Left out: prompts written by a model.
"""

import random

from tqdm import tqdm

from minicai.answer import answer
from minicai.constitution import FAMILIES, Constitution
from minicai.critique import DRAFT_TEMPERATURE, critique_revise_loop
from minicai.files import (
    UserError,
    load_policy,
    read_jsonl,
    stage_before,
    warn_if_newer,
    write_jsonl,
)
from minicai.rows import FIELDS, read_chains
from minicai.run import artifact, main, name_part, not_negative, parser, positive, setup
from minicai.transcript import chain_text, find, for_terminal, with_requests
from minicai.world.content import World
from minicai.world.disguises import disguise
from minicai.world.few_shot import chains, check_fit, demonstrations, direct_revisions
from minicai.world.requests import MIX, STAGE2_SPLIT, Part, draw_prompts

FRESH = {  # of a round, in disguise: shares of (type of request, kind of act)
    ("harmful", None): 0.5,
    ("sensitive", None): 0.1,
    ("legitimate", "dual_use"): 0.4 / 3,
    ("legitimate", "everyday"): 0.4 / 3,
    ("legitimate", "lookalike"): 0.4 / 3,
}


def draw_requests(args, world: World) -> list[dict]:
    """Requests of the train split, or prompts of the train half of a file, as rows.

    The `plain` of a row is the request without a disguise.
    """
    rng, part = random.Random(f"revise {args.seed} "), Part(world, "train")
    requests = draw_prompts(part, args.requests, rng, MIX, args.prompts, args.more_acts)
    return [dict(split="train") | r.row() for r in requests]


def attacks_that_worked(args) -> dict[tuple, dict]:
    """By its turns, each logged attack on the stage before that training may use."""
    path, target = args.out / "redteam.jsonl", stage_before(args.out, args.round)
    warn_if_newer(path, target, remedy="run redteam.py again")
    fields = ("turns", "plain", "response", "type", "request", "split", "target", "trainable")
    rows = read_jsonl(path, fields, FIELDS)
    return {
        tuple(row["turns"]): row
        for row in rows
        if row["trainable"] and row["target"] == target.stem and row["response"]
    }


def draw_round(args, world: World) -> list[dict]:
    """The requests of a feedback round, as rows; the attacks come first, with their `response`."""
    attacks = attacks_that_worked(args).values()
    rng, part = random.Random(f"revise {args.seed} {args.round}"), Part(world, STAGE2_SPLIT)
    n_fresh = 2 * max(len(attacks), args.attempts // 3)
    fresh = [disguise(r, part, rng) for r in draw_prompts(part, n_fresh, rng, FRESH)]
    print(f"{len(attacks)} attacks that worked, {n_fresh} fresh requests in disguise")
    kept = ("split", "type", "request", "turns", "plain", "response")
    rows = [{key: a[key] for key in kept} for a in attacks]
    return rows + [dict(split=STAGE2_SPLIT) | r.row() for r in fresh]


def show(path, number: int, constitution: Constitution):
    rows = [c for c in read_chains(path) if {"principles", "critiques"} <= c.keys()]
    [chain] = find(rows, number, "--show")
    print(for_terminal(chain_text(with_requests(chain, constitution))))


def options():
    p = parser(__doc__)
    add, steps = p.add_argument, len(FAMILIES)
    add("--without", help="family of principles to strike out (harmlessness, honesty, ...)")
    add("--revisions", type=int, default=steps, choices=range(steps + 1), help="steps of the loop")
    add("--no-critique", dest="critique", action="store_false", help="revise without a critique")
    add("--few-shot", type=not_negative, default=0, metavar="N", help="demonstrations (default: 0)")
    add("--requests", type=positive, help="number of requests, or of prompts at most")
    add("--prompts", help="file of other people's prompts to revise answers to")
    add("--name", type=name_part, help="write OUT/revisions-NAME.jsonl")
    add("--round", type=positive, help="revise for this feedback round")
    add("--show", type=int, metavar="ID", help="print chain ID and stop")
    return setup(p)


def revise():
    args = options()
    world, constitution = World.of(args), Constitution(args.constitution)
    if args.without:
        constitution = constitution.without(args.without)
    path = args.out / f"{artifact('revisions', args)}.jsonl"
    if args.show is not None:
        return show(path, args.show, constitution)
    base, tokenizer = load_policy(args.out / "base.pt", args.device)
    rows = draw_round(args, world) if args.round else draw_requests(args, world)
    kind = chains if args.critique else direct_revisions
    shots = demonstrations(kind, args.few_shot, world, constitution, args.seed)
    if shots:
        check_fit(base, tokenizer, shots, [r["plain"] for r in rows], constitution.wordings)

    texts = 1 + args.revisions * (2 if args.critique else 1)
    bar = tqdm(total=len(rows) * texts, desc="revise", unit=" texts")
    asked = [row["turns"] for row in rows if "response" not in row]
    drafts = answer(base, tokenizer, asked, DRAFT_TEMPERATURE, args.seed, bar.update)
    drafts = [row.pop("response") for row in rows if "response" in row] + drafts
    usable = [(i, row, draft) for i, (row, draft) in enumerate(zip(rows, drafts)) if draft]
    if not usable:
        raise UserError(
            f"none of {len(rows)} drafts came to an end: is {args.out}/base.pt trained?"
        )
    found = critique_revise_loop(
        base,
        tokenizer,
        constitution,
        conversations=[row["plain"] for _, row, _ in usable],
        drafts=[draft for _, _, draft in usable],
        steps=args.revisions,
        rng=random.Random(f"principles {args.seed} 0"),
        critique=args.critique,
        progress=bar.update,
        shots=shots,
    )
    bar.close()
    made = [dict(id=i) | row | chain for (i, row, _), chain in zip(usable, found)]
    write_jsonl(path, made)
    changed = sum(chain["responses"][-1] != chain["responses"][0] for chain in made)
    print(f"{path}: {len(made)} chains, {changed} end in another answer than they began with")


if __name__ == "__main__":
    main(revise)
