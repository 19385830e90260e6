"""Byte-level BPE, and the chat format.

A turn is {"role": "system" | "user" | "assistant", "content": text}. A conversation as ids:

    <user> How do I bake bread? <end> <assistant> To bake bread, ... <end>

The special ids lie above the BPE vocabulary and belong to no string. So no typed text can produce
one: "<end>" typed into a chat is five ordinary characters. Every turn ends in exactly one <end>. A
plain document is its text and <end>.
"""

from tokenizers import Tokenizer as BPE
from tokenizers import decoders, models, pre_tokenizers, trainers

SPECIALS = ("system", "user", "assistant", "end", "pad")


class Tokenizer:
    def __init__(self, bpe: BPE):
        self.bpe = bpe
        first = bpe.get_vocab_size()
        self.vocab_size = first + len(SPECIALS)
        self.system, self.user, self.assistant, self.end, self.pad = range(first, self.vocab_size)

    @classmethod
    def train(cls, texts, vocab_size: int) -> "Tokenizer":
        """Byte-level BPE with vocab_size ids, the special ones included.

        Sennrich et al. 2016 (arXiv 1508.07909); over bytes as in GPT-2.
        """
        bpe = BPE(models.BPE())
        bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        bpe.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size - len(SPECIALS),
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        bpe.train_from_iterator(texts, trainer)
        return cls(bpe)

    @classmethod
    def from_json(cls, text: str) -> "Tokenizer":
        """The tokenizer that `to_json` wrote."""
        return cls(BPE.from_str(text))

    def to_json(self) -> str:
        return self.bpe.to_str()

    def encode(self, text: str) -> list[int]:
        """Ids of a text. Half of a surrogate pair, which UTF-8 cannot hold, becomes "?"."""
        return self.bpe.encode(text.encode("utf-8", "replace").decode()).ids

    def decode(self, ids: list[int]) -> str:
        """Text of the ids; special ids are left out."""
        return self.bpe.decode([i for i in ids if i < self.system])

    def turn(self, role: str, content: str) -> list[int]:
        """One turn: its role, its text, one end token. Raises ValueError for an unknown role."""
        if role not in SPECIALS[:3]:
            raise ValueError(f"unknown role {role!r}: a turn is system, user or assistant")
        return [getattr(self, role), *self.encode(content), self.end]

    def chat(self, turns: list[dict]) -> list[int]:
        return [i for turn in turns for i in self.turn(turn["role"], turn["content"])]

    def prompt(self, turns: list[dict]) -> list[int]:
        """The conversation, opened for the assistant: a prefix of the `chat` with its answer."""
        return [*self.chat(turns), self.assistant]


def talk(*contents: str) -> list[dict]:
    """Turns from bare texts that alternate user, assistant, user, ..."""
    return [
        {"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(contents)
    ]
