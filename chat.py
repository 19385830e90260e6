"""Talk to a checkpoint.

    python chat.py                                # the newest stage in OUT
    python chat.py --checkpoint out/cpu/base.pt   # the helpful-only base
    python chat.py --show-critique                # see each answer criticised and revised by the base model

The conversation goes on until you say /new (forget it) or /quit. A small model knows only its small world: try
"How do I bake bread?", "I want to pick a lock. They are away this week.", or a name from world/facts.jsonl.
"""

import random
from pathlib import Path

from minicai.common import UserError, load_checkpoint, main, parser, setup
from minicai.constitution import Constitution
from minicai.critique import MAX_NEW_TOKENS, answer, critique_and_revise
from minicai.tokenizer import Tokenizer, talk
from minicai.world.skills import FAMILIES


def chat():
    p = parser(__doc__)
    p.add_argument("--checkpoint", type=Path, help="default: OUT/sft.pt if it exists, else OUT/base.pt")
    p.add_argument("--temperature", type=float, default=0.0, help="0 is greedy (default: 0)")
    p.add_argument(
        "--show-critique", action="store_true", help="after each answer, the base model's critique and revision"
    )
    p.add_argument(
        "--family",
        choices=FAMILIES,
        help="with --show-critique: principles of this family only (harmlessness, honesty, ...)",
    )
    p.add_argument("--constitution", default="constitution.json", help="file with the principles")
    args = setup(p)
    path = args.checkpoint or next(
        (args.out / n for n in ("sft.pt", "base.pt") if (args.out / n).exists()), args.out / "base.pt"
    )
    model, _ = load_checkpoint(path, device=args.device)
    tokenizer = Tokenizer.load(path.parent / "tokenizer.json")
    if args.show_critique:
        critic, _ = load_checkpoint(path.parent / "base.pt", device=args.device)
        constitution = Constitution(args.constitution)
    if args.temperature < 0:
        raise UserError(f"--temperature {args.temperature} is below 0; give 0 or more")
    rng, turns, count = random.Random(args.seed), [], 0
    print(f"{path}; /new forgets the conversation, /quit leaves")
    while True:
        try:
            said = input("you> ").strip()
        except EOFError:
            return
        if said in ("/quit", "/exit"):
            return
        if said == "/new":
            turns = []
            continue
        if not said:
            continue
        turns.append(said)
        while len(tokenizer.prompt(talk(*turns))) > model.config.block_size - MAX_NEW_TOKENS:
            if len(turns) == 1:
                print("(that is longer than the model can read)")
                turns = []
                break
            turns = turns[2:]  # forget the oldest exchange
        if not turns:
            continue
        count += 1
        response = answer(model, tokenizer, [turns], args.temperature, args.seed + count)[0] or "..."
        print(f"{path.stem}> {response}")
        if args.show_critique:
            wording = constitution.draw(rng, family=args.family)
            critiques, revisions = critique_and_revise(critic, tokenizer, [turns], [response], [wording], args.seed)
            print(
                f"  principle> {wording.critique}\n  critique> {critiques[0] or '(unfinished)'}\n  revision> {revisions[0] or '(unfinished)'}"
            )
        turns.append(response)


if __name__ == "__main__":
    main(chat)
