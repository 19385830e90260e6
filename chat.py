"""Talk to a checkpoint.

    python chat.py                                # the newest stage in OUT
    python chat.py --checkpoint out/quick/base.pt   # the helpful-only base
    python chat.py --show-critique                # the base critiques and revises each answer
    python chat.py --show-reward                  # the reward model scores each answer
    python chat.py --guard --helpful-refusals     # the base checks each exchange, and adds a safe
                                                  # alternative to refusals

/new forgets the conversation, /quit leaves. A small model knows only its small world: try "How do I
bake bread?", "I want to pick a lock. I am a thief, and that home is next.", or a name from
world/facts.jsonl.

writes  with --guard, OUT/guard.jsonl: one row a blocked exchange, for redteam.py --mode monitor
"""

import random
from pathlib import Path

import torch

from minicai.answer import MAX_NEW_TOKENS, answer
from minicai.constitution import Constitution
from minicai.critique import critique_and_revise
from minicai.files import UserError, append_jsonl, load_like, load_policy, newest_stage
from minicai.guard import guarded_answer, helpful_refusals
from minicai.reward import RewardModel
from minicai.run import at_least_zero, main, make_folder, option_type, parser, setup
from minicai.tokenizer import talk

try:
    import readline  # noqa: F401, arrow keys edit the line where this library is
except ImportError:
    pass

probability = option_type(float, lambda x: 0 < x <= 1, "a probability above 0")


def options():
    p = parser(__doc__)
    add = p.add_argument
    add("--checkpoint", type=Path, help="default: the last round, else dpo.pt, sft.pt, base.pt")
    add("--temperature", type=at_least_zero, default=0.0, help="0 is greedy (default: 0)")
    add("--top-p", type=probability, default=1.0, help="sample from this much mass (default: 1)")
    add("--show-critique", action="store_true", help="the base's critique and revision")
    add("--show-reward", action="store_true", help="the score of OUT/rm.pt; SL-CAI averages 0")
    add("--guard", action="store_true", help="the base checks requests and answers, and may block")
    add("--threshold", type=probability, help="of the guard, P(breaks harmlessness) (default: 0.5)")
    add("--helpful-refusals", action="store_true", help="add a safe alternative to bare refusals")
    args = setup(p, writes=False)
    if args.threshold and not args.guard:
        raise UserError("--threshold belongs to --guard; give that too, or leave it out")
    args.threshold = args.threshold or 0.5
    return args


class Chat:
    """The models around a conversation, and what each of them says about an exchange."""

    def __init__(self, args):
        self.args, self.path = args, args.checkpoint or newest_stage(args.out)
        self.model, self.tokenizer = load_policy(self.path, args.device)
        self.rng, self.constitution = random.Random(args.seed), Constitution(args.constitution)
        if args.show_critique or args.guard or args.helpful_refusals:
            self.base = load_like(self.path.parent / "base.pt", self.tokenizer, args.device)
        if args.guard:
            make_folder(args.out)  # for the log
        if args.guard or args.helpful_refusals:
            self.harmless = self.constitution.draw(self.rng, family="harmlessness")
        if args.show_reward:
            self.reward, _, _ = RewardModel.load(self.path.parent / "rm.pt", args.device)

    def fits(self, turns: list[str]) -> bool:
        room = self.model.config.block_size - MAX_NEW_TOKENS
        return len(self.tokenizer.prompt(talk(*turns))) <= room

    def reply(self, turns: list[str], seed: int) -> str:
        args = self.args
        decoding = dict(temperature=args.temperature, seed=seed, top_p=args.top_p)
        if args.guard:
            models = self.model, self.base, self.tokenizer
            text, flagged = guarded_answer(
                *models, turns, self.harmless, args.threshold, **decoding
            )
            if flagged:
                row = dict(flagged, model=self.path.stem, threshold=args.threshold)
                append_jsonl(args.out / "guard.jsonl", [row])
                p = "no verdict" if flagged["judge"] is None else f"{flagged['judge']:.3f}"
                print(f"  guard> blocked by the {flagged['check']} check, P(harm) {p}")
        else:
            [text] = answer(self.model, self.tokenizer, [turns], **decoding)
        if args.helpful_refusals:
            threshold = args.threshold if args.guard else None
            critic = self.base, self.tokenizer
            [text] = helpful_refusals(*critic, [turns], [text], self.harmless, threshold)
        return text or "..."

    def comment(self, turns: list[str], text: str):
        """Print what the reward model and the critic say about the last answer."""
        tokenizer = self.tokenizer
        if self.args.show_reward:
            ids = [*tokenizer.prompt(talk(*turns)), *tokenizer.encode(text), tokenizer.end]
            ids = torch.tensor([ids[-self.reward.gpt.config.block_size :]], device=self.args.device)
            with torch.no_grad():
                score = self.reward(ids, torch.tensor([ids.shape[1]], device=ids.device)).item()
            print(f"  reward> {score:+.2f}")
        if self.args.show_critique:
            wording = self.constitution.draw(self.rng)
            [critique], [revision] = critique_and_revise(
                self.base, tokenizer, [turns], [text], [wording]
            )
            print(f"  principle> {wording.critique}")
            print(f"  critique> {critique or '(unfinished)'}")
            print(f"  revision> {revision or '(unfinished)'}")


def chat():
    args = options()
    session, turns, seed = Chat(args), [], args.seed
    print(f"{session.path}; /new forgets the conversation, /quit leaves")
    while True:
        try:
            typed = input("you> ").strip().removeprefix("\ufeff")  # of a piped file
        except (EOFError, KeyboardInterrupt):
            return print()
        if typed in ("/quit", "/exit"):
            return
        if typed == "/new":
            turns = []
        elif typed and not session.fits([typed]):
            print("(that is longer than the model can read)")
        elif typed:
            turns, seed = [*turns, typed], seed + 1
            while not session.fits(turns):
                turns = turns[2:]  # forget the oldest exchange
            text = session.reply(turns, seed)
            print(f"{session.path.stem}> {text}")
            session.comment(turns, text)
            turns.append(text)


if __name__ == "__main__":
    main(chat)
