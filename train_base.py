"""Train a tokenizer and a helpful-only base model from random weights on the world's corpus.

    python train_base.py                     # CPU preset: 20 to 40 minutes on one core with bf16, 50 to 70 on 2 without
    python train_base.py --preset smoke      # seconds, to see it run

reads   world/*.jsonl, constitution.json (the wordings that demonstrations use)
writes  OUT/tokenizer.json, OUT/base.pt; log in OUT/train_base.jsonl; OUT/train_base.state.pt and .tokenizer.json until done

A killed run goes on from its last save. Left out: data from the internet, a validation split (evaluate.py is the test),
gradient accumulation.
"""

import random
import time

import torch
from tqdm import tqdm

from minicai.common import (
    BLOCK_SIZE,
    above_zero,
    append_jsonl,
    autocast,
    load_state,
    main,
    parser,
    positive,
    read_jsonl,
    rewrite_jsonl,
    save_checkpoint,
    save_state,
    setup,
    world_hash,
)
from minicai.constitution import Constitution
from minicai.data import Example, collate, encode_turns, make_batches, weighted_nll
from minicai.gpt import GPT, GPTConfig
from minicai.optim import descend, make_optimizers, set_lr
from minicai.tokenizer import Tokenizer
from minicai.world.content import World
from minicai.world.corpus import Corpus

SAVE_SECONDS, STATE = 120, "train_base.state.pt"
TOKENIZER = "train_base.tokenizer.json"  # an older base in OUT keeps its own until this one is done


def prepare(args) -> tuple[Tokenizer, list[Example]]:
    """The corpus as examples. It is written again from the seed each time, so a killed run continues on the same data."""
    world, constitution = World(args.world), Constitution(args.constitution)
    path = args.out / TOKENIZER
    if not (path.exists() and (args.out / STATE).exists()):
        sample = Corpus(world, constitution, args.seed).documents(min(args.documents, 30_000))
        Tokenizer.train(
            (turn.content for document in sample for turn in document), args.vocab_size
        ).save(path)
    tokenizer, examples, long = Tokenizer.load(path), [], 0
    documents = Corpus(world, constitution, args.seed).documents(args.documents)
    for document in tqdm(documents, total=args.documents, desc="write corpus", unit=" documents"):
        example = encode_turns(tokenizer, [(t.role, t.content, t.weight) for t in document])
        long += len(example.ids) > BLOCK_SIZE
        if len(example.ids) <= BLOCK_SIZE:
            examples.append(example)
    if long:
        print(f"{long} documents do not fit the context of {BLOCK_SIZE} ids and are left out")
    return tokenizer, examples


def train():
    p = parser(__doc__)
    p.add_argument(
        "--constitution", default="constitution.json", help="whose wordings the demonstrations use"
    )
    p.add_argument("--documents", type=positive, help="size of the corpus, read once")
    p.add_argument("--lr", dest="base_lr", type=above_zero, help="peak learning rate of Muon")
    args = setup(p)
    tokenizer, examples = prepare(args)
    batches = list(make_batches(examples, args.batch_tokens, random.Random(args.seed)))
    layers = (args.n_layer, args.n_head, args.n_head, args.n_embd, args.n_hidden)
    # A head of its own costs no time, and the base learns faster with it (docs/log.md has the experiment).
    config = GPTConfig(tokenizer.vocab_size, *layers, BLOCK_SIZE, tie_embeddings=False)
    model = GPT(config).to(args.device)
    optimizers = make_optimizers(model, args.base_lr)

    made_by = dict(
        seed=args.seed,
        world=world_hash(args),
        documents=args.documents,
        preset=args.preset,
        lr=args.base_lr,
    )
    state_path, start = args.out / STATE, 0
    log = args.out / "train_base.jsonl"
    if state_path.exists():
        state = load_state(state_path, model, optimizers, made_by)
        start = state["step"]
        append_jsonl(
            log, []
        )  # it may not exist yet, or end in a line that a killed run left unfinished
        logged = [row for row in read_jsonl(log, required=("step",)) if row["step"] <= start]
        rewrite_jsonl(log, logged)  # what came after the last save comes again
        print(f"going on from step {start}")
    else:
        log.unlink(missing_ok=True)

    saved_at, tokens, losses = time.time(), 0, []
    bar = tqdm(
        range(start, len(batches)),
        initial=start,
        total=len(batches),
        desc="train base",
        unit=" steps",
    )
    for step in bar:
        set_lr(optimizers, step, len(batches))
        ids, weights = collate(batches[step], tokenizer.pad, args.device)
        with autocast(args.device):
            loss = weighted_nll(model, ids, weights)
        descend(model, optimizers, loss)
        tokens += sum(len(e.ids) for e in batches[step])
        losses.append(loss.detach())
        if (step + 1) % 50 == 0 or step + 1 == len(batches):
            speed = tokens / bar.format_dict["elapsed"]
            row = dict(
                step=step + 1,
                loss=round(torch.stack(losses).mean().item(), 4),
                tokens_per_second=round(speed),
            )
            losses = []
            append_jsonl(log, [row])
            bar.set_postfix_str(f"loss {row['loss']:.3f}, {speed:,.0f} tokens/s")
        if time.time() - saved_at > SAVE_SECONDS and step + 1 < len(batches):
            saved_at = time.time()
            save_state(state_path, model, optimizers, made_by, step=step + 1)
    tokenizer.save(args.out / "tokenizer.json")
    save_checkpoint(args.out / "base.pt", model, "policy", made_by=made_by)
    state_path.unlink(missing_ok=True)
    (args.out / TOKENIZER).unlink()
    print(
        f"{args.out / 'base.pt'}: {sum(p.numel() for p in model.parameters()) / 1e6:.1f} M parameters"
    )


if __name__ == "__main__":
    main(train)
