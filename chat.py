"""Talk to a checkpoint.

    python chat.py                                # the newest stage in OUT
    python chat.py --checkpoint out/cpu/base.pt   # the helpful-only base
    python chat.py --show-critique                # see each answer criticised and revised by the base model
    python chat.py --show-reward                  # and scored by the reward model: 0 is what the fine-tuned model is worth on average
    python chat.py --guard --helpful-refusals     # the base model checks each exchange, and adds a safe alternative to refusals

The conversation goes on until you say /new (forget it) or /quit. A small model knows only its small world: try
"How do I bake bread?", "I want to pick a lock. I am a thief, and that home is next.", or a name from world/facts.jsonl.

writes  with --guard, OUT/guard.jsonl: a row for each blocked exchange (turns, response, judge: P(breaks harmlessness), check);
        redteam.py --mode monitor reads it
"""

import random
import sys
from pathlib import Path

import torch

from minicai.common import (
    UserError,
    append_jsonl,
    at_least_zero,
    load_checkpoint,
    main,
    newest_stage,
    option_type,
    parser,
    setup,
)
from minicai.constitution import Constitution
from minicai.critique import MAX_NEW_TOKENS, answer, critique_and_revise
from minicai.guard import guarded_answer, helpful_refusals
from minicai.reward import RewardModel
from minicai.tokenizer import Tokenizer, talk
from minicai.world.skills import FAMILIES

probability = option_type(float, lambda x: 0 < x <= 1, "a probability above 0")


def options():
    p = parser(__doc__)
    p.add_argument(
        "--checkpoint",
        type=Path,
        help="default: the last feedback round, or the first there is of OUT/dpo.pt, sft.pt, base.pt",
    )
    p.add_argument(
        "--temperature", type=at_least_zero, default=0.0, help="0 is greedy (default: 0)"
    )
    p.add_argument(
        "--show-critique",
        action="store_true",
        help="after each answer, the base model's critique and revision",
    )
    p.add_argument(
        "--family",
        choices=FAMILIES,
        help="with --show-critique: principles of this family only (harmlessness, honesty, ...)",
    )
    p.add_argument(
        "--show-reward",
        action="store_true",
        help="after each answer, what the reward model (rm.pt) gives it",
    )
    p.add_argument(
        "--guard",
        action="store_true",
        help="the base model checks each request and each answer, and may block",
    )
    for check, what in (("input", "a draft by the base"), ("output", "the answer")):
        p.add_argument(
            f"--{check}-threshold",
            type=probability,
            default=0.5,
            help=f"with --guard: block where P({what} breaks harmlessness) is at least this (default: 0.5)",
        )
    p.add_argument(
        "--helpful-refusals",
        action="store_true",
        help="a refusal that offers nothing goes on with a safe alternative",
    )
    p.add_argument("--constitution", default="constitution.json", help="file with the principles")
    args = setup(p)
    if args.family and not args.show_critique:
        raise UserError("--family belongs to --show-critique; give both, or leave it out")
    if not args.guard and any(
        getattr(args, k) != p.get_default(k) for k in ("input_threshold", "output_threshold")
    ):
        raise UserError(
            "--input-threshold and --output-threshold belong to --guard; give that too, or leave them out"
        )
    return args


def chat():
    args = options()
    path = args.checkpoint or newest_stage(args.out)
    model, _ = load_checkpoint(path, device=args.device)
    tokenizer = Tokenizer.load(path.parent / "tokenizer.json")
    if args.show_critique or args.guard or args.helpful_refusals:
        critic, _ = load_checkpoint(path.parent / "base.pt", device=args.device)
        constitution = Constitution(args.constitution)
    if args.show_critique:
        constitution.draw(
            random.Random(args.seed), family=args.family
        )  # what it lacks is said before the first answer
    if args.show_reward:
        reward, _ = RewardModel.load(path.parent / "rm.pt", args.device)
    if args.guard or args.helpful_refusals:
        harmless = constitution.draw(random.Random(args.seed), family="harmlessness")

    def too_long(turns):
        return len(tokenizer.prompt(talk(*turns))) > model.config.block_size - MAX_NEW_TOKENS

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
        if too_long([said]):
            print("(that is longer than the model can read)")
            continue
        turns.append(said)
        while too_long(turns):
            turns = turns[2:]  # forget the oldest exchange
        count += 1
        if args.guard:
            response, flagged = guarded_answer(
                model,
                critic,
                tokenizer,
                turns,
                harmless,
                args.input_threshold,
                args.output_threshold,
                args.temperature,
                args.seed + count,
            )
            if flagged:
                threshold = vars(args)[f"{flagged['check']}_threshold"]
                append_jsonl(
                    args.out / "guard.jsonl", [dict(flagged, model=path.stem, threshold=threshold)]
                )
                p_harm = flagged[flagged["check"]]
                found = (
                    "which came to no verdict"
                    if p_harm is None
                    else f"P(breaks harmlessness) {p_harm:.3f}"
                )
                print(f"  guard> blocked by the {flagged['check']} check, {found}")
        else:
            response = answer(model, tokenizer, [turns], args.temperature, args.seed + count)[0]
        if args.helpful_refusals:
            threshold = args.output_threshold if args.guard else None
            [response] = helpful_refusals(
                critic, tokenizer, [turns], [response], harmless, threshold
            )
        response = response or "..."
        print(f"{path.stem}> {response}")
        if args.show_reward:
            read = [*tokenizer.prompt(talk(*turns)), *tokenizer.encode(response), tokenizer.end]
            ids = torch.tensor([read[-reward.gpt.config.block_size :]], device=args.device)
            with torch.no_grad():
                print(
                    f"  reward> {reward(ids, torch.tensor([ids.shape[1]], device=args.device)).item():+.2f}"
                )
        if args.show_critique:
            wording = constitution.draw(rng, family=args.family)
            critiques, revisions = critique_and_revise(
                critic, tokenizer, [turns], [response], [wording]
            )
            print(
                f"  principle> {wording.critique}\n  critique> {critiques[0] or '(unfinished)'}\n  revision> {revisions[0] or '(unfinished)'}"
            )
        turns.append(response)


if __name__ == "__main__":
    if sys.stdin:
        sys.stdin.reconfigure(errors="replace")  # a byte that is no UTF-8 is read as U+FFFD
    main(chat)
