"""Train a tokenizer and a helpful-only base model on the world's corpus, from random weights.

    python train_base.py                     # quick preset: about five minutes on 2 cores
    python train_base.py --preset smoke      # seconds, to see it run

reads   world/, constitution.json (demonstrations use its wordings)
writes  OUT/base.pt, OUT/tokenizer.json; log in OUT/train_base.jsonl

A killed run continues from its last save, OUT/train_base.state.pt; no other script goes on in the
middle. Left out: data from the internet, a validation split (evaluate.py is the test), gradient
accumulation.
"""

import random
import time

import numpy as np
from tqdm import tqdm

from minicai.constitution import Constitution
from minicai.data import Example, collate, encode_turns, make_batches, weighted_nll
from minicai.files import UserError, load_state, save_checkpoint, save_state
from minicai.gpt import GPT, GPTConfig
from minicai.log import TrainingLog
from minicai.optim import make_optimizers, optimizer_step, set_lr
from minicai.run import BLOCK_SIZE, above_zero, main, parser, positive, setup
from minicai.tokenizer import Tokenizer
from minicai.world.content import World
from minicai.world.corpus import Corpus

SAVE_SECONDS = 120
FOR_TOKENIZER = 30_000  # documents that its vocabulary is learned from, at most


def write_corpus(args) -> tuple[Tokenizer, list[Example]]:
    """The tokenizer and the encoded corpus. The same seed gives the same of both."""
    world, constitution = World(args.world, args.world_share), Constitution(args.constitution)

    def documents(n):
        return Corpus(world, constitution, args.seed).documents(n)

    sample = documents(min(args.documents, FOR_TOKENIZER))
    texts = (turn.content for document in sample for turn in document)
    tokenizer = Tokenizer.train(texts, args.vocab_size)
    examples = []
    bar = tqdm(documents(args.documents), total=args.documents, desc="corpus", unit=" documents")
    rng = np.random.default_rng(args.seed)
    for document in bar:
        turns = [(turn.role, turn.content, turn.weight) for turn in document]
        example = encode_turns(tokenizer, turns)
        # A token of weight 0.1 is learned in one case of ten: the same loss on average, and the
        # output head, which reads only tokens that are learned, has half of the work.
        learned = rng.random(len(example.ids)) < example.weights
        examples.append(Example(example.ids, np.where(learned, example.weights.clip(1), 0)))
    fitting = [e for e in examples if len(e.ids) <= BLOCK_SIZE]
    if len(fitting) < len(examples):
        print(f"{len(examples) - len(fitting)} documents are longer than the context and left out")
    return tokenizer, fitting


def resume(path, model: GPT, optimizers, options: dict) -> int:
    """Load the state of a killed run with these options, and return its step. 0 without one."""
    if not path.exists():
        return 0
    state = load_state(path)
    if state.get("options") != options:
        raise UserError(f"{path} is of a run with other options; delete it or name another --out")
    model.load_state_dict(state["model"])
    for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
        optimizer.load_state_dict(saved)
    print(f"going on from step {state['step']}")
    return state["step"]


def train():
    p = parser(__doc__)
    p.add_argument("--documents", type=positive, help="size of the corpus, which is read once")
    p.add_argument("--lr", dest="base_lr", type=above_zero, help="peak learning rate of Muon")
    args = setup(p)
    tokenizer, examples = write_corpus(args)
    batches = list(make_batches(examples, args.batch_tokens, random.Random(args.seed)))
    layers = (args.n_layer, args.n_head, args.n_head, args.n_embd, args.n_hidden)
    # An output head of its own costs no time, and the base learns faster with it.
    config = GPTConfig(tokenizer.vocab_size, *layers, BLOCK_SIZE, tie_embeddings=False)
    model = GPT(config).to(args.device)
    optimizers = make_optimizers(model, args.base_lr)
    state_path, options = (
        args.out / "train_base.state.pt",
        {k: str(v) for k, v in vars(args).items()},
    )
    start = resume(state_path, model, optimizers, options)
    log = TrainingLog(args.out / "train_base.jsonl", len(batches), every=50, start=start)

    saved = time.time()
    for step in range(start, len(batches)):
        set_lr(optimizers, step, len(batches))
        ids, weights = collate(batches[step], tokenizer.pad, args.device)
        loss = weighted_nll(model, ids, weights)
        optimizer_step(model, optimizers, loss)
        log.write(tokens=sum(len(e.ids) for e in batches[step]), loss=loss)
        if time.time() - saved > SAVE_SECONDS:
            saved = time.time()
            states = [optimizer.state_dict() for optimizer in optimizers]
            weights = dict(model=model.state_dict(), optimizers=states)
            save_state(state_path, step=step + 1, options=options, **weights)

    (args.out / "tokenizer.json").write_text(tokenizer.to_json(), encoding="utf-8")
    save_checkpoint(args.out / "base.pt", model, tokenizer, args)
    state_path.unlink(missing_ok=True)
    parameters = sum(p.numel() for p in model.parameters())
    print(f"{args.out / 'base.pt'}: {parameters / 1e6:.1f} M parameters, {len(batches)} steps")


if __name__ == "__main__":
    main(train)
