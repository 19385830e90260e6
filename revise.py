"""Stage 1 data: the base model answers, critiques its answer by a principle, revises it, and again.

    python revise.py                       # CPU preset: about 3 minutes
    python revise.py --no-critique --name direct          # revise without a critique
    python revise.py --without harmlessness --name careless   # strike a family out of the constitution
    python revise.py --show 17                            # print chain 17: the draft, every critique, every revision
    python revise.py --round 1             # feedback: what the red team got through, and fresh requests in disguise

reads   OUT/base.pt, OUT/tokenizer.json, constitution.json, world/; for a round also OUT/redteam.jsonl and the policy attacked
writes  OUT/revisions.jsonl (OUT/revisions-NAME.jsonl with --name, OUT/revisions-roundN.jsonl), one row a prompt, with its
        whole chain

The prompts are of the world's train part (demo in a round): four in ten for harm or ambiguous, as many ordinary ones, and questions
about names, so that every principle has something to find and something to leave alone. At every step a principle is drawn at random, of a family that the chain has not
met yet: the paper draws with replacement, but its principles are all about harm, and a chain that never meets the family it
needs would be trained on unrevised. Rows are appended batch by batch; a killed run goes on after its last whole batch.
Left out: prompts written by a model, few-shot examples (the base has seen demonstrations).
"""

import random
from dataclasses import dataclass
from zlib import crc32

from tqdm import tqdm

from minicai.common import (
    UserError,
    append_jsonl,
    at_least_zero,
    file_hash,
    load_checkpoint,
    main,
    name_part,
    parser,
    positive,
    read_jsonl,
    rewrite_jsonl,
    setup,
    stage_before,
    world_hash,
)
from minicai.constitution import Constitution
from minicai.critique import DRAFT_TEMPERATURE, answer, critique_and_revise
from minicai.data import FIELDS
from minicai.gpt import GPT
from minicai.jailbreak import disguise
from minicai.report import chain_text, for_terminal, with_requests
from minicai.tokenizer import Tokenizer
from minicai.world.content import TECHNIQUES, World, split_of
from minicai.world.requests import UNTRAINED, Part, Request, draw_prompts
from minicai.world.skills import STEPS

BATCH = 256
FRESH = {
    ("harmful", None): 0.5,
    ("sensitive", None): 0.1,  # of a round, in disguise
    **{("legitimate", kind): 0.4 / 3 for kind in ("dual_use", "everyday", "lookalike")},
}


@dataclass(frozen=True)
class Attack:
    """A logged attack, as far as a chain needs to know it."""

    type: str
    id: str
    topic: str
    turns: tuple[str, ...]
    plain: tuple[str, ...]


def feedback(
    args, base: GPT, tokenizer: Tokenizer, part: Part, rng: random.Random
) -> tuple[list[Request], list[str]]:
    """The attacks that worked on the last stage, each with the answer it got, and fresh requests in disguises that training may use.

    The fresh ones are harmful and benign alike: with the attacks alone the policy would learn to refuse whatever looks
    odd, with benign ones beside a few attacks to comply with it. The base answers them, which reads a disguise better
    than the policies made from it. Critiques and revisions are of the plain request, which the red team knows: a critic
    that takes a code for something else would teach that. What worked is the judge's word, and attacks with a test act,
    a test name or a held-out wording are never trained on.
    """
    target = file_hash(stage_before(args.out, args.round))
    rows = read_jsonl(
        args.out / "redteam.jsonl",
        required=(
            "turns",
            "plain",
            "response",
            "type",
            "request",
            "topic",
            "target",
            "trainable",
            "technique",
        ),
    )
    worked = {
        tuple(r["turns"]): r
        for r in rows
        if r["trainable"] and r["target"] == target and r["technique"] not in args.leave_out
    }
    attacks = [
        Attack(r["type"], r["request"], r["topic"], turns, tuple(r["plain"]))
        for turns, r in worked.items()
    ]
    part.framings = [f for f in part.framings if f.technique not in args.leave_out]
    if not part.framings:
        raise UserError(
            "--leave-out leaves no technique of which a framing may be trained on; leave out fewer"
        )
    fresh = [
        disguise(r, part, rng)
        for r in draw_prompts(part, 2 * max(len(attacks), args.attempts // 3), rng, FRESH)
    ]
    answers = answer(base, tokenizer, [list(r.turns) for r in fresh], args.temperature, args.seed)
    return [*attacks, *fresh], [*(r["response"] for r in worked.values()), *answers]


def show(path, number: int, constitution: Constitution):
    required = ("id", "turns", "responses", "principles", "critiques")
    chains = [c for c in read_jsonl(path, required=required, fields=FIELDS) if c["responses"]]
    if not chains:
        raise UserError(f"{path} holds no chain yet; run revise.py without --show")
    found = [c for c in chains if c["id"] == number]
    if not found:
        near = min((c["id"] for c in chains), key=lambda id: abs(id - number))
        raise UserError(
            f"--show {number}: there is no such chain in {path} (a draft that never ended makes none); the nearest is {near}"
        )
    print(for_terminal(chain_text(with_requests(found[0], constitution))))


def options():
    p = parser(__doc__)
    p.add_argument("--constitution", default="constitution.json", help="file with the principles")
    p.add_argument(
        "--without", help="family of principles to strike out (harmlessness, honesty, ...)"
    )
    p.add_argument(
        "--revisions",
        type=int,
        default=STEPS,
        choices=range(STEPS + 1),
        help=f"steps of the loop (default: {STEPS}, one for each family of principles)",
    )
    p.add_argument(
        "--no-critique",
        dest="critique",
        action="store_false",
        help="revise directly, without a critique",
    )
    p.add_argument("--prompts", type=positive, help="number of prompts")
    p.add_argument(
        "--temperature",
        type=at_least_zero,
        default=DRAFT_TEMPERATURE,
        help=f"of the first answers; the rest is greedy (default: {DRAFT_TEMPERATURE})",
    )
    p.add_argument(
        "--name", type=name_part, help="write OUT/revisions-NAME.jsonl, beside the main file"
    )
    p.add_argument(
        "--round",
        type=positive,
        help="revise what the red team got out of the stage before this feedback round",
    )
    p.add_argument("--show", type=int, metavar="ID", help="print chain ID and stop")
    p.add_argument(
        "--leave-out",
        nargs="+",
        choices=TECHNIQUES,
        default=[],
        metavar="TECHNIQUE",
        help="techniques that the round does not train on",
    )
    args = setup(p)
    if args.round and args.name:
        raise UserError("--name and --round exclude each other: a round's file has its own name")
    if args.leave_out and not args.round:
        raise UserError("--leave-out belongs to a feedback round; give --round too")
    if args.round:
        args.name = f"round{args.round}"
    return args


def respond(
    args,
    model: GPT,
    tokenizer: Tokenizer,
    part: Part,
    start: int,
    requests: list,
    drafts: list[str] | None,
    bar,
) -> list[dict]:
    """The chains of one batch as they begin: each request with its first answer."""
    turns = [list(r.turns) for r in requests]
    if drafts is None:
        drafts = answer(
            model,
            tokenizer,
            turns,
            args.temperature,
            args.seed * 1_000_003 + start * 16,
            bar.update,
        )
    else:
        bar.update(len(requests))
    return [
        dict(
            id=start + i,
            split=split_of(r.topic) if isinstance(r, Attack) else part.split,
            type=r.type,
            request=r.id,
            turns=t,
            plain=list(r.plain),
            responses=[draft] if draft else [],
            principles=[],
            critiques=[],
        )
        for i, (r, t, draft) in enumerate(zip(requests, turns, drafts))
    ]


def lengthen(
    args,
    model: GPT,
    tokenizer: Tokenizer,
    constitution: Constitution,
    start: int,
    chains: list[dict],
    bar,
):
    """The loop of Stage 1: the principles, critiques and revisions of one batch, step by step."""
    rng = random.Random(f"principles {args.seed} {start}")
    rows = [
        row for row in chains if row["responses"]
    ]  # an answer that never ended leaves an empty chain
    orders = [rng.sample(constitution.families, len(constitution.families)) for _ in rows]
    for step in range(args.revisions):
        wordings = [constitution.draw(rng, family=order[step % len(order)]) for order in orders]
        latest = [row["responses"][-1] for row in rows]
        critiques, revisions = critique_and_revise(
            model,
            tokenizer,
            [row["plain"] for row in rows],
            latest,
            wordings,
            args.critique,
            progress=bar.update,
        )
        for row, wording, critique, old, new in zip(rows, wordings, critiques, latest, revisions):
            row["principles"].append(wording.id)
            row["critiques"].append(critique)
            row["responses"].append(
                new if new is not None else old
            )  # a text that never ended revises nothing


def revise():
    args = options()
    world, constitution = World(args.world), Constitution(args.constitution)
    if args.without:
        constitution = constitution.without(args.without)
    path = args.out / (f"revisions-{args.name}.jsonl" if args.name else "revisions.jsonl")
    if args.show is not None:
        return show(path, args.show, constitution)
    tokenizer = Tokenizer.load(args.out / "tokenizer.json")
    model, _ = load_checkpoint(args.out / "base.pt", device=args.device)

    made_by = dict(
        world=world_hash(args),
        prompts=args.prompts,
        checkpoint=file_hash(args.out / "base.pt"),
        seed=args.seed,
        critique=args.critique,
        without=args.without,
        steps=args.revisions,
        temperature=args.temperature,
    )
    rng = random.Random(f"revise {args.seed} {args.round or ''}")
    part = Part(world, UNTRAINED if args.round else "train")
    if args.round:
        requests, drafts = feedback(args, model, tokenizer, part, rng)
        made_by |= dict(
            attacked=file_hash(stage_before(args.out, args.round)),
            leave_out=args.leave_out,
            attacks=crc32(repr([r.turns for r in requests if isinstance(r, Attack)]).encode()),
        )
    else:
        requests, drafts = draw_prompts(part, args.prompts, rng), None
    done = []
    if path.exists():
        append_jsonl(path, [])  # cuts off a line that a killed run left unfinished
        done = read_jsonl(path, required=("id", "made_by"))
    if done and done[0]["made_by"] != made_by:
        raise UserError(
            f"{path}:1 was made with other settings ({done[0]['made_by']}); delete it or use --name"
        )

    if len(done) < len(requests) and len(done) % BATCH:  # a batch is made whole or not at all
        done = done[: len(done) - len(done) % BATCH]
        rewrite_jsonl(path, done)
    texts = 1 + args.revisions * (2 if args.critique else 1)
    bar = tqdm(total=len(requests) * texts, initial=len(done) * texts, desc="revise", unit=" texts")
    for start in range(len(done), len(requests), BATCH):
        batch = slice(start, start + BATCH)
        chains = respond(
            args, model, tokenizer, part, start, requests[batch], drafts and drafts[batch], bar
        )
        lengthen(args, model, tokenizer, constitution, start, chains, bar)
        append_jsonl(path, [row | dict(made_by=made_by) for row in chains])
    bar.close()
    rows = [row for row in read_jsonl(path) if row["responses"]]
    changed = sum(row["responses"][-1] != row["responses"][0] for row in rows)
    print(f"{path}: {len(rows)} chains, {changed} end with another answer than they began with")


if __name__ == "__main__":
    main(revise)
