"""Stage 1 training: fine-tune the base on its own revisions and helpful answers (SL-CAI).

    python train_sft.py                            # quick preset: about a minute
    python train_sft.py --revisions 1 --name 1     # SL-CAI-1: revisions up to the first step
    python train_sft.py --train-on all --name all  # the revisions of all steps, as in the paper
    python train_sft.py --round 1                  # feedback: train the stage before further, on
                                                   # the revised attacks and on all of the above

reads   OUT/base.pt, OUT/revisions.jsonl, world/; for a round also OUT/revisions-roundN.jsonl and
        the stage before
writes  OUT/sft.pt (OUT/sft-NAME.pt, OUT/sft-roundN.pt), OUT/helpful.jsonl; OUT/train_sft.jsonl

Three kinds of text are mixed. Revisions teach what the constitution asks for. Helpful answers by
the base keep it helpful. Where a disguise fits, 30 % of these requests are asked in disguise:
without them the model forgets how to read disguises and refuses them all. New pretraining
documents in every epoch keep what the model has read about acts that no answer mentions (Ouyang
et al. 2022, arXiv 2203.02155, section 3.5, mix pretraining into RL for the same reason). In these
documents only plain text is learned, never a conversation. A pretrained model also trains on
answers in its own voice (minicai/world/voice.py). Up to two answers in five come again after
another conversation, because a person asks more than once: a model that was only shown first
questions answers the second one badly.

Bai et al. 2022, section 3.2. Departures: last revisions by default where the paper trains on all;
three epochs at a falling rate where the paper trains one at a constant rate.
"""

import copy
import random
from collections.abc import Iterator
from itertools import cycle, islice

import torch
from tqdm import tqdm

from minicai.answer import answer
from minicai.constitution import FAMILIES
from minicai.critique import DRAFT_TEMPERATURE
from minicai.data import Example, collate, encode_chats, encode_turns, make_batches, weighted_nll
from minicai.files import (
    UserError,
    load_like,
    load_policy,
    save_checkpoint,
    stage_before,
    warn_if_newer,
    write_jsonl,
)
from minicai.log import TrainingLog
from minicai.optim import optimizer_step, set_lr
from minicai.rows import read_chains
from minicai.run import above_zero, artifact, main, name_part, parser, positive, setup, share
from minicai.world.content import World
from minicai.world.corpus import Corpus
from minicai.world.disguises import disguise
from minicai.world.requests import HELPFUL, Part, draw_prompts
from minicai.world.voice import own_answers, questions

VOICE = 0.25  # answers of a pretrained model in its own voice, for each chain
DISGUISED = 0.3  # share of the helpful requests that a disguise fits
CHATS = 0.4  # share of the answers that are learned again, after another conversation
REPLAY = 1.0  # pretraining documents for each answer


def helpful_answers(args, base, tokenizer, n: int) -> list[dict]:
    """The base's answers to n harmless requests of the train split, also in OUT/helpful.jsonl.

    Phrasings that draw an insult or a sermon from the base are left out: revisions unlearn those.
    """
    world, rng = World.of(args), random.Random(f"helpful {args.seed}")
    part = Part(world, "train", without=[p for p in world.phrasings if p.draws])
    requests = []
    for request in draw_prompts(part, n, rng, HELPFUL):
        fits = request.type in ("legitimate", "sensitive") and rng.random() < DISGUISED
        requests.append(disguise(request, part, rng) if fits else request)
    turns = [list(r.turns) for r in requests]
    with tqdm(total=n, desc="helpful answers", unit=" texts") as bar:
        texts = answer(base, tokenizer, turns, DRAFT_TEMPERATURE, args.seed, bar.update)
    rows = [
        dict(id=i, split="train", type=r.type, request=r.id, turns=list(r.turns), response=text)
        for i, (r, text) in enumerate(zip(requests, texts))
    ]
    write_jsonl(args.out / "helpful.jsonl", rows)
    return [row for row in rows if row["response"]]


def replay(args, tokenizer) -> Iterator[Example]:
    """Pretraining documents without end. Names come twice as often: they are forgotten first."""
    corpus = Corpus(World.of(args), None, f"{args.seed} again")
    kinds = [corpus.reading, corpus.name, corpus.knowledge, corpus.name, corpus.knowledge]
    for kind in cycle([*kinds, corpus.code] if corpus.codes else kinds):
        turns = [(t.role, t.content, t.weight if t.role == "document" else 0.0) for t in kind()]
        if turns[-1][0] == "document":  # else it is a conversation alone
            yield encode_turns(tokenizer, turns)


def choose_revisions(chains: list[dict], steps: int, train_on: str) -> list[tuple]:
    """(turns, response) of the revisions up to a step: the last one of each chain, or all."""
    chosen = []
    for chain in chains:
        responses = chain["responses"][: steps + 1]  # the draft, then its revisions
        kept = responses[1:] if train_on == "all" and len(responses) > 1 else responses[-1:]
        chosen += [(chain["turns"], response) for response in kept]
    return chosen


def options():
    p = parser(__doc__)
    steps = len(FAMILIES)
    add = p.add_argument
    add("--data", help="file of revisions (default: OUT/revisions.jsonl)")
    add(
        "--revisions",
        type=int,
        choices=range(steps + 1),
        default=steps,
        help="use steps up to this",
    )
    add("--train-on", choices=("last", "all"), default="last", help="revisions (default: last)")
    add(
        "--helpful-fraction",
        type=share,
        default=0.5,
        help="share of helpful answers (default: 0.5)",
    )
    add("--lr", type=above_zero, help="peak of AdamW (default: the preset's; a fifth in a round)")
    add("--name", type=name_part, help="write OUT/sft-NAME.pt instead of OUT/sft.pt")
    add("--round", type=positive, help="train the stage before this feedback round further")
    args = setup(p)
    # A round is gentle: at the full rate it would undo what Stage 2 has done.
    args.lr = args.lr or (args.sft_lr / 5 if args.round else args.sft_lr)
    args.sft_epochs = 1 if args.round else args.sft_epochs
    return args, artifact("sft", args)


def read_data(args) -> tuple[list[dict], list[dict]]:
    """The chains of Stage 1, and those of all rounds so far."""
    path, of_rounds = args.data or args.out / "revisions.jsonl", []
    if not args.data:
        warn_if_newer(path, args.out / "base.pt", remedy="run revise.py again")
    chains = read_chains(path)
    for n in range(1, (args.round or 0) + 1):
        path = args.out / f"revisions-round{n}.jsonl"
        remedy = f"run redteam.py and revise.py --round {n} again"
        warn_if_newer(path, stage_before(args.out, n), remedy=remedy)
        of_rounds += read_chains(path)
    return chains, of_rounds


def train():
    args, name = options()
    chains, of_rounds = read_data(args)
    base, tokenizer = load_policy(args.out / "base.pt", args.device)
    n_helpful = round(args.helpful_fraction / (1 - args.helpful_fraction) * len(chains))
    helpful = helpful_answers(args, base, tokenizer, n_helpful) if n_helpful else []
    model = copy.deepcopy(base)
    if args.round:
        model = load_like(stage_before(args.out, args.round), tokenizer, args.device)
    block_size = model.config.block_size

    voice = questions("train", round(VOICE * len(chains)), args.seed) if args.more_acts else []
    data = [(row["turns"], row["response"]) for row in helpful]
    data += choose_revisions(chains + of_rounds, args.revisions, args.train_on)
    encoded = encode_chats(tokenizer, data, CHATS, block_size, random.Random(f"chats {args.seed}"))
    encoded += own_answers(base, tokenizer, voice, args.seed)
    examples = [e for e in encoded if len(e.ids) <= block_size]
    if not examples:
        raise UserError(f"none of {len(encoded)} answers fits the context of {block_size} ids")
    if len(examples) < len(encoded):
        print(f"{len(encoded) - len(examples)} answers do not fit the context and are left out")
    documents = (e for e in replay(args, tokenizer) if len(e.ids) <= block_size)
    n_documents, rng = round(REPLAY * len(examples)), random.Random(f"sft {args.seed}")
    epochs = [examples + list(islice(documents, n_documents)) for _ in range(args.sft_epochs)]
    batches = [b for epoch in epochs for b in make_batches(epoch, args.batch_tokens, rng)]

    # Fast, with weight decay: gentler runs refuse harm too, but keep inventing facts about names.
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=args.lr, betas=(0.9, 0.95), weight_decay=0.1
    )
    log = TrainingLog(args.out / f"train_{name}.jsonl", len(batches))
    for step, batch in enumerate(batches):
        set_lr([optimizer], step, len(batches), warmup=0.05, cooldown=0.8)
        ids, weights = collate(batch, tokenizer.pad, args.device)
        loss = weighted_nll(model, ids, weights)
        optimizer_step(model, [optimizer], loss)
        log.write(tokens=sum(len(e.ids) for e in batch), loss=loss)
    save_checkpoint(args.out / f"{name}.pt", model, tokenizer, args)
    print(f"{args.out / name}.pt: {len(examples)} answers, {len(batches)} steps")


if __name__ == "__main__":
    main(train)
