"""Talk to a checkpoint, or to all stages at once.

    python chat.py                                # the newest stage in OUT
    python chat.py --checkpoint out/quick/base.pt # the helpful-only base
    python chat.py --stages                       # all stages in OUT answer, side by side
    python chat.py --show-critique harmlessness   # the base critiques and revises each answer, by
                                                  # a principle of this family (without: of any)
    python chat.py --show-reward                  # the reward model scores each answer
    python chat.py --guard --helpful-refusals     # the base checks each exchange, and adds a safe
                                                  # alternative to refusals

With --stages each stage has a conversation of its own. /new forgets, /quit leaves. A model of the
small world knows only that: try "How do I bake a loaf of bread?", "I want to pick a lock. The
family is away, so I can steal from them now.", or a name from world/facts.jsonl.

writes  with --guard, OUT/guard.jsonl: one row a blocked exchange, for redteam.py --mode monitor
"""

import signal

if __name__ == "__main__":  # Ctrl-C during the imports leaves without a traceback
    signal.signal(signal.SIGINT, signal.SIG_DFL)

import random
import shutil
import textwrap
from pathlib import Path

import torch

from minicai.answer import MAX_NEW_TOKENS, answer
from minicai.console import ask
from minicai.constitution import Constitution
from minicai.critique import critique_and_revise
from minicai.files import (
    UserError,
    append_jsonl,
    check_tokenizer,
    load_like,
    load_policy,
    newest_stage,
    stages,
)
from minicai.guard import guarded_answer, helpful_refusals
from minicai.reward import RewardModel
from minicai.run import at_least_zero, main, make_folder, option_type, parser, setup
from minicai.svg import stage_label
from minicai.tokenizer import talk

probability = option_type(float, lambda x: 0 < x <= 1, "a probability above 0")


def options():
    p = parser(__doc__)
    add = p.add_argument
    add("--checkpoint", type=Path, help="default: the last round, else dpo.pt, sft.pt, base.pt")
    add("--stages", action="store_true", help="every stage in OUT answers, side by side")
    add("--temperature", type=at_least_zero, default=0.0, help="0 is greedy (default: 0)")
    add("--top-p", type=probability, default=1.0, help="sample from this much mass (default: 1)")
    said = "the base's critique and revision, by a principle of the family (default: of any)"
    add("--show-critique", nargs="?", const="any", metavar="FAMILY", help=said)
    add("--show-reward", action="store_true", help="the score of OUT/rm.pt; SL-CAI averages 0")
    said = "the base checks requests and answers, and blocks from this P(harm) on (0.5 without P)"
    add("--guard", type=probability, nargs="?", const=0.5, metavar="P", help=said)
    add("--helpful-refusals", action="store_true", help="add a safe alternative to bare refusals")
    args = setup(p, writes=False)
    if args.stages and (args.checkpoint or args.guard or args.helpful_refusals):
        said = "leave out --checkpoint, --guard and --helpful-refusals"
        raise UserError(f"--stages shows every stage as it is; {said}")
    return args


class Chat:
    """A conversation, the models around it, and what each of them says about an exchange."""

    def __init__(self, args, path: Path):
        self.args, self.path, self.turns, self.seed = args, path, [], args.seed
        self.model, self.tokenizer = load_policy(self.path, args.device)
        self.rng, self.constitution = random.Random(args.seed), Constitution(args.constitution)
        self.family = None if args.show_critique == "any" else args.show_critique
        if self.family:
            self.constitution.draw(random.Random(0), family=self.family)  # a wrong name fails now
        if args.show_critique or args.guard or args.helpful_refusals:
            self.base = load_like(self.beside("base.pt"), self.tokenizer, args.device)
        if args.guard:
            make_folder(args.out)  # for the log
        if args.guard or args.helpful_refusals:
            self.harmless = self.constitution.draw(self.rng, family="harmlessness")
        if args.show_reward:
            self.reward, own, _ = RewardModel.load(self.beside("rm.pt"), args.device)
            check_tokenizer(self.beside("rm.pt"), own, self.tokenizer)

    def beside(self, name: str) -> Path:
        """Another checkpoint: from the folder of this one, else from OUT."""
        path = self.path.parent / name
        return path if path.exists() else self.args.out / name

    def fits(self, turns: list[str]) -> bool:
        room = self.model.config.block_size - MAX_NEW_TOKENS
        return len(self.tokenizer.prompt(talk(*turns))) <= room

    def hear(self, typed: str) -> str | None:
        """The answer to what a person typed. The oldest exchanges are forgotten if need be, and one
        whose answer came to no end."""
        turns, self.seed = [*self.turns, typed], self.seed + 1
        while not self.fits(turns):
            turns = turns[2:]
        text = self.reply(turns, self.seed)
        self.turns = [*turns, text] if text else turns[:-1]
        return text

    def reply(self, turns: list[str], seed: int) -> str | None:
        args = self.args
        decoding = dict(temperature=args.temperature, seed=seed, top_p=args.top_p)
        if args.guard:
            models = self.model, self.base, self.tokenizer
            text, flagged = guarded_answer(*models, turns, self.harmless, args.guard, **decoding)
            if flagged:
                row = dict(flagged, model=self.path.stem, threshold=args.guard)
                append_jsonl(args.out / "guard.jsonl", [row])
                p = "no verdict" if flagged["judge"] is None else f"{flagged['judge']:.3f}"
                print(f"  guard> blocked by the {flagged['check']} check, P(harm) {p}")
        else:
            [text] = answer(self.model, self.tokenizer, [turns], **decoding)
        if args.helpful_refusals:
            critic = self.base, self.tokenizer
            [text] = helpful_refusals(*critic, [turns], [text], self.harmless, args.guard)
        return text

    def comment(self):
        """Print what the reward model and the critic say about the last answer."""
        (*turns, text), tokenizer = self.turns, self.tokenizer
        if self.args.show_reward:
            ids = [*tokenizer.prompt(talk(*turns)), *tokenizer.encode(text), tokenizer.end]
            ids = torch.tensor([ids[-self.reward.gpt.config.block_size :]], device=self.args.device)
            with torch.no_grad():
                score = self.reward(ids, torch.tensor([ids.shape[1]], device=ids.device)).item()
            print(f"  reward> {score:+.2f}")
        if self.args.show_critique:
            wording = self.constitution.draw(self.rng, family=self.family)
            [critique], [revision] = critique_and_revise(
                self.base, tokenizer, [turns], [text], [wording]
            )
            print(f"  principle> {wording.critique}")
            print(f"  critique> {critique or '(unfinished)'}")
            print(f"  revision> {revision or '(unfinished)'}")


def show(name: str, text: str, width: int):
    """Print "name> text". A text that is longer than the line goes on below itself."""
    label, columns = f"{name}> ".ljust(width + 2), shutil.get_terminal_size().columns
    indent = dict(initial_indent=label, subsequent_indent=" " * len(label))
    print(textwrap.fill(text, max(columns - 1, 40), **indent))


def chat():
    args = options()
    paths = stages(args.out) if args.stages else [args.checkpoint or newest_stage(args.out)]
    if not paths:
        raise UserError(f"{args.out} holds no stage; run pipeline.py or name another --out")
    sessions = [Chat(args, path) for path in paths]
    names = [stage_label(path.stem) if args.stages else path.stem for path in paths]
    said = [f"{name} is {path}" for name, path in zip(names, paths)] if args.stages else paths
    print(f"{', '.join(map(str, said))}; /new forgets the conversation, /quit leaves")
    while (typed := ask("you> ")) != "/quit":
        if typed == "/new":
            for session in sessions:
                session.turns = []
        elif typed and not sessions[0].fits([typed]):
            print("(that is longer than the model can read)")
        elif typed:
            for name, session in zip(names, sessions):
                text = session.hear(typed)
                show(name, text or "...", max(map(len, names)))
                if text:
                    session.comment()


if __name__ == "__main__":
    main(chat)
