"""Stage 1 training: fine-tune the base model on its own revisions, mixed with its own helpful answers (SL-CAI).

    python train_sft.py                                # CPU preset: two to five minutes
    python train_sft.py --revisions 1 --name 1         # SL-CAI-1: revisions up to the first step only
    python train_sft.py --train-on all --name all      # every step's revision, as in the paper, instead of the last
    python train_sft.py --round 1                      # feedback: the stage before is trained further, on the revised attacks and on
                                                       # all of the above; train_dpo.py --round 1 goes on from there

reads   OUT/base.pt, OUT/tokenizer.json, OUT/revisions.jsonl, world/; for a round also OUT/revisions-roundN.jsonl, the stage before
writes  OUT/sft.pt (OUT/sft-NAME.pt with --name, OUT/sft-roundN.pt); log in OUT/train_sft.jsonl; the helpful answers in OUT/helpful.jsonl

Three tenths of the helpful answers that a disguise fits are to the request in that disguise: what a model no longer reads, it refuses.
Documents like those of pretraining are mixed in, new ones in every epoch, so that what the model has read about acts that no
answer mentions is not forgotten (Ouyang et al. 2022, arXiv 2203.02155, section 3.5, mix pretraining into RL for the same reason).
Like those, they speak of all acts, the test part's too; where they remark on a conversation, nothing of that is learned.

It takes minutes, so a killed run starts again. Bai et al. 2022, section 3.2. Left out: the paper trains one epoch at a
constant rate; here three epochs with a falling rate.
"""

import random
from collections.abc import Iterator
from itertools import cycle, islice

import torch
from tqdm import tqdm

from minicai.common import (
    UserError,
    above_zero,
    append_jsonl,
    at_least_zero,
    autocast,
    begin_log,
    file_hash,
    load_checkpoint,
    made_from,
    main,
    marks_of,
    name_part,
    parser,
    positive,
    read_jsonl,
    rewrite_jsonl,
    save_checkpoint,
    setup,
    share,
    stage_before,
    world_files,
)
from minicai.critique import DRAFT_TEMPERATURE, answer
from minicai.data import (
    FIELDS,
    Example,
    collate,
    encode_turns,
    make_batches,
    read_chains,
    weighted_nll,
)
from minicai.jailbreak import disguise
from minicai.optim import descend, set_lr
from minicai.tokenizer import Tokenizer
from minicai.world.content import TECHNIQUES, World
from minicai.world.corpus import Corpus
from minicai.world.requests import HELPFUL, Part, draw_prompts
from minicai.world.skills import STEPS

DISGUISED = 0.3  # of the requests that a disguise may fit


def helpful_answers(args, model, tokenizer, n: int) -> list[dict]:
    """The base model's answers to harmless requests of the train part: what must not get lost.

    Their phrasings are those that draw no tone: a helpful answer that insults would teach what the revisions unlearn.
    """
    path, part = args.out / "helpful.jsonl", Part(World(args.world), "train")
    made_by = dict(
        checkpoint=file_hash(args.out / "base.pt"),
        world=file_hash(*world_files(args.world)),
        seed=args.seed,
        n=n,
    )
    if n == 0:
        return []
    if path.exists():
        append_jsonl(path, [])  # cuts off a line that a killed run left unfinished
        rows = read_jsonl(
            path, required=("turns", "response", "made_by", "technique"), fields=FIELDS
        )
        if len(rows) == n and all(row["made_by"] == made_by for row in rows):
            return rows
    rng = random.Random(f"helpful {args.seed}")
    part.phrasings = [p for p in part.phrasings if p.draws is None]
    requests = [
        disguise(r, part, rng)
        if r.type in ("legitimate", "sensitive") and rng.random() < DISGUISED
        else r
        for r in draw_prompts(part, n, rng, HELPFUL)
    ]
    with tqdm(total=n, desc="helpful answers", unit=" texts") as bar:
        texts = answer(
            model,
            tokenizer,
            [list(r.turns) for r in requests],
            DRAFT_TEMPERATURE,
            args.seed,
            bar.update,
        )
    rows = [
        dict(
            id=i,
            split="train",
            type=r.type,
            request=r.id,
            technique=r.technique,
            turns=r.turns,
            response=t or "",
            made_by=made_by,
        )
        for i, (r, t) in enumerate(zip(requests, texts))
    ]
    rewrite_jsonl(path, rows)
    return rows


def recall(args, tokenizer: Tokenizer) -> Iterator[Example]:
    """Pretraining documents without end: requests and what they mean, acts and whom they hurt, codes, and names, which are
    forgotten first."""
    corpus = Corpus(World(args.world), None, f"{args.seed} again")
    for kind in cycle((corpus.reading, corpus.name, corpus.knowledge, corpus.name, corpus.code)):
        turns = [(t.role, t.content, t.weight if t.role == "document" else 0.0) for t in kind()]
        if turns[-1][0] == "document":  # not a conversation alone
            yield encode_turns(tokenizer, turns)


def sft_turns(turns: list[str], response: str) -> list[tuple[str, str, float]]:
    """Only the final answer is learned."""
    return [(("user", "assistant")[i % 2], text, 0.0) for i, text in enumerate(turns)] + [
        ("assistant", response, 1.0)
    ]


def options():
    p = parser(__doc__)
    p.add_argument("--data", help="file of revisions (default: OUT/revisions.jsonl)")
    p.add_argument(
        "--revisions",
        type=int,
        choices=range(STEPS + 1),
        default=STEPS,
        help=f"use the chains up to this step (default: {STEPS})",
    )
    p.add_argument(
        "--train-on",
        choices=("last", "all"),
        default="last",
        help="which steps of a chain (default: last)",
    )
    p.add_argument(
        "--helpful-fraction",
        type=share,
        default=0.5,
        help="share of helpful answers among these and the chains of Stage 1 (default: 0.5)",
    )
    p.add_argument(
        "--replay",
        type=at_least_zero,
        default=1.0,
        help="pretraining documents for each answer (default: 1)",
    )
    p.add_argument(
        "--epochs",
        type=positive,
        help="passes over the data (default: the preset's; 1 in a feedback round)",
    )
    p.add_argument(
        "--lr",
        dest="rate",
        type=above_zero,
        help="peak learning rate of AdamW (default: the preset's; a fifth of it in a feedback round)",
    )
    p.add_argument("--name", type=name_part, help="write OUT/sft-NAME.pt instead of OUT/sft.pt")
    p.add_argument(
        "--round", type=positive, help="train the stage before this feedback round further"
    )
    p.add_argument(
        "--leave-out",
        nargs="+",
        choices=TECHNIQUES,
        default=[],
        metavar="TECHNIQUE",
        help="disguises of which no helpful answer is used",
    )
    args = setup(p)
    if args.round and args.name:
        raise UserError(
            "--name and --round exclude each other: a round's checkpoint has its own name"
        )
    # A round is gentle: at the full rate it would undo what Stage 2 has done.
    args.epochs = args.epochs or (1 if args.round else args.sft_epochs)
    args.rate = args.rate or (args.sft_lr / 5 if args.round else args.sft_lr)
    return args


def train():
    args = options()
    tokenizer = Tokenizer.load(args.out / "tokenizer.json")
    base, _ = load_checkpoint(args.out / "base.pt", device=args.device)
    sources = [args.data or args.out / "revisions.jsonl"]
    rows = read_chains(sources[0])
    if not args.data:
        made_from(
            sources[0],
            marks_of(rows, "checkpoint"),
            args.out / "base.pt",
            "run revise.py again, or name it with --data if that is meant",
        )
    n_helpful = round(args.helpful_fraction / (1 - args.helpful_fraction) * len(rows))
    helpful = [
        r
        for r in helpful_answers(args, base, tokenizer, n_helpful)
        if r["technique"] not in args.leave_out
    ]
    start, name = args.out / "base.pt", f"sft-{args.name}" if args.name else "sft"
    if args.round:
        start, name = stage_before(args.out, args.round), f"sft-round{args.round}"
        for n in range(1, args.round + 1):
            path = args.out / f"revisions-round{n}.jsonl"
            chains = read_chains(path)
            made_from(
                path,
                marks_of(chains, "attacked"),
                stage_before(args.out, n),
                f"run redteam.py and revise.py --round {n} again",
            )
            sources, rows = [*sources, path], rows + chains
    model, _ = load_checkpoint(start, device=args.device)

    data = [(row["turns"], row["response"]) for row in helpful if row["response"]]
    for row in rows:
        responses = row["responses"][: args.revisions + 1]  # the draft, then its revisions
        learned = responses[1:] if args.train_on == "all" and len(responses) > 1 else responses[-1:]
        data += [(row["turns"], response) for response in learned]
    examples = [encode_turns(tokenizer, sft_turns(turns, response)) for turns, response in data]
    fits = lambda e: len(e.ids) <= model.config.block_size  # noqa: E731
    fitting = list(filter(fits, examples))
    if not fitting:
        raise UserError(
            f"{sources[0]}: none of {len(examples)} answers fits the context of {model.config.block_size} ids; shorten the requests"
        )
    if len(fitting) < len(examples):
        print(
            f"{len(examples) - len(fitting)} answers do not fit the context of {model.config.block_size} ids and are left out"
        )
    examples = fitting

    rng = random.Random(f"sft {args.seed}")
    documents, n_documents = (
        filter(fits, recall(args, tokenizer)),
        round(args.replay * len(examples)),
    )
    epochs = [examples + list(islice(documents, n_documents)) for _ in range(args.epochs)]
    batches = [b for epoch in epochs for b in make_batches(epoch, args.batch_tokens, rng)]
    # Fast, with weight decay: gentler runs refuse what is harmful as well, but hardly carry over to names that no one knows.
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=args.rate, betas=(0.9, 0.95), weight_decay=0.1
    )
    log, bar = args.out / "train_sft.jsonl", tqdm(batches, desc="train sft", unit=" steps")
    begin_log(log, name)
    tokens = 0
    for step, batch in enumerate(bar):
        set_lr([optimizer], step, len(batches), warmup=0.05, cooldown=0.8)
        ids, weights = collate(batch, tokenizer.pad, args.device)
        with autocast(args.device):
            loss = weighted_nll(model, ids, weights)
        descend(model, [optimizer], loss)
        tokens += sum(len(e.ids) for e in batch)
        bar.set_postfix_str(
            f"loss {loss.item():.3f}, {tokens / bar.format_dict['elapsed']:,.0f} tokens/s"
        )
        append_jsonl(log, [dict(name=name, step=step + 1, loss=round(loss.item(), 4))])
    out = args.out / f"{name}.pt"
    made_by = dict(
        start=file_hash(start),
        data=file_hash(*sources),
        revisions=args.revisions,
        train_on=args.train_on,
        helpful_fraction=args.helpful_fraction,
        replay=args.replay,
        epochs=args.epochs,
        lr=args.rate,
        leave_out=args.leave_out,
        seed=args.seed,
    )
    save_checkpoint(out, model, "policy", made_by=made_by)
    print(f"{out}: {len(examples)} answers, {len(batches)} steps")


if __name__ == "__main__":
    main(train)
