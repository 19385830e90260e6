"""Train a helpful-only base model on the world's corpus, from random or from pretrained weights.

    python train_base.py                     # quick preset: about five minutes on 2 cores
    python train_base.py --preset smoke      # seconds, to see it run
    python train_base.py --init MODEL.gguf   # a pretrained model, or a Hugging Face folder

reads   world/, constitution.json (demonstrations use its wordings); prompts/general.txt with --init
writes  OUT/base.pt, OUT/tokenizer.json; log in OUT/train_base.jsonl

A pretrained model brings its tokenizer and chat format. It learns from a shorter corpus (preset
`real`) with more acts, in which about one document in eleven is an answer of its own
(minicai/world/voice.py). Only its upper layers are trained, here and in all later trainings.

A killed run continues from its last save, OUT/train_base.state.pt; no other script goes on in the
middle. Left out: data from the internet, a validation split (evaluate.py is the test), gradient
accumulation.
"""

import random
import time
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from minicai.constitution import Constitution
from minicai.data import Example, collate, encode_turns, make_batches, weighted_nll
from minicai.files import UserError, load_state, save_checkpoint, save_state
from minicai.gpt import GPT, GPTConfig
from minicai.log import TrainingLog
from minicai.optim import make_optimizers, optimizer_step, set_lr
from minicai.pretrained import load_pretrained
from minicai.run import BLOCK_SIZE, above_zero, main, parser, positive, setup
from minicai.tokenizer import Tokenizer
from minicai.world.content import World
from minicai.world.corpus import PRETRAINED_SHARE, SHARE, Corpus
from minicai.world.voice import mean_loss, own_answers, questions

SAVE_SECONDS = 120
FOR_TOKENIZER = 30_000  # documents that its vocabulary is learned from, at most
LAYERS = 20  # of a pretrained model, the upper ones
OWN_VOICE = 0.1  # of a pretrained model: its own answers, for each document of the corpus
HELD_OUT = 64  # more answers of its own, to measure what is left of its voice


def write_corpus(args, tokenizer: Tokenizer | None = None) -> tuple[Tokenizer, list[Example]]:
    """The tokenizer of a pretrained model, or a new one, and the encoded corpus.

    The same seed gives the same of both.
    """
    world, constitution = World.of(args), Constitution(args.constitution)
    shares = PRETRAINED_SHARE if tokenizer else SHARE

    def documents(n):
        return Corpus(world, constitution, args.seed, shares).documents(n)

    if tokenizer is None:
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


def answers_before_training(args, model: GPT, tokenizer: Tokenizer) -> list[list[Example]]:
    """The pretrained model's own answers: those to train on, and the held-out ones."""
    n = round(OWN_VOICE * args.documents)
    found = []
    with tqdm(total=n + HELD_OUT, desc="answers of its own", unit=" texts") as bar:
        for split, count in (("train", n), ("test", HELD_OUT)):
            asked = questions(split, count, args.seed)
            found.append(own_answers(model, tokenizer, asked, args.seed, bar.update))
    return found


def new_model(args, vocab_size: int) -> GPT:
    layers = (args.n_layer, args.n_head, args.n_head, args.n_embd, args.n_hidden)
    # An output head of its own costs no time, and the base learns faster with it.
    return GPT(GPTConfig(vocab_size, *layers, BLOCK_SIZE, tie_embeddings=False)).to(args.device)


def adamw(model: GPT, lr: float) -> list[torch.optim.Optimizer]:
    """For pretrained weights. Muon's steps are for weights that are still to be found."""
    kept = [p for p in model.parameters() if p.requires_grad]
    return [torch.optim.AdamW(kept, lr=lr, betas=(0.9, 0.95), weight_decay=0.0)]


def prepare(args) -> tuple[GPT, Tokenizer, list, list[Example], list[Example]]:
    """Model, tokenizer, optimizers, the documents, and a pretrained model's held-out answers."""
    if not args.init:
        tokenizer, examples = write_corpus(args)
        model = new_model(args, tokenizer.vocab_size)
        return model, tokenizer, make_optimizers(model, args.base_lr), examples, []
    model, tokenizer = load_pretrained(args.init, args.device)
    if model.config.block_size < BLOCK_SIZE:
        found = f"{args.init} has a context of {model.config.block_size} ids"
        raise UserError(f"{found}, and the corpus needs {BLOCK_SIZE}; name another model")
    _, examples = write_corpus(args, tokenizer)
    own, held_out = answers_before_training(args, model, tokenizer)
    model.freeze(max(0, model.config.n_layer - (args.layers or LAYERS)))
    return model, tokenizer, adamw(model, args.base_lr), examples + own, held_out


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
    p.add_argument(
        "--lr", dest="base_lr", type=above_zero, help="peak of Muon; of AdamW with --init"
    )
    p.add_argument("--init", type=Path, help="pretrained model: Hugging Face folder or .gguf file")
    p.add_argument(
        "--layers", type=positive, help="of --init to train, the upper ones (default: 20)"
    )
    args = setup(p)
    if args.preset != "smoke" and (args.preset == "real") != bool(args.init):
        raise UserError("--init and --preset real go together; give both or neither")
    if args.layers and not args.init:
        raise UserError("--layers is for --init; leave it out, or name a pretrained model")
    model, tokenizer, optimizers, examples, held_out = prepare(args)
    before = mean_loss(model, tokenizer, held_out) if held_out else 0.0
    batches = list(make_batches(examples, args.batch_tokens, random.Random(args.seed)))
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

    if held_out:
        after = mean_loss(model, tokenizer, held_out)
        print(f"loss on {len(held_out)} held-out answers of its own: {before:.3f}, now {after:.3f}")
    (args.out / "tokenizer.json").write_text(tokenizer.to_json(), encoding="utf-8")
    save_checkpoint(args.out / "base.pt", model, tokenizer, args)
    state_path.unlink(missing_ok=True)
    parameters = sum(p.numel() for p in model.parameters())
    print(f"{args.out / 'base.pt'}: {parameters / 1e6:.1f} M parameters, {len(batches)} steps")


if __name__ == "__main__":
    main(train)
