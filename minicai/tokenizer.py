"""Byte-level BPE, and the chat format.

A turn is {"role": "system" | "user" | "assistant", "content": text}. Every format writes a turn as
the opening of its role, the text, one end token, and what closes the turn:

    minicai's    <user>How do I bake bread?<end>
    ChatML       <|im_start|>user\\nHow do I bake bread?<|im_end|>\\n
    Llama 3      <|start_header_id|>user<|end_header_id|>\\n\\nHow do I bake bread?<|eot_id|>

The names in angle brackets are special tokens, one id each. No typed text can produce one: "<end>"
typed into a chat is ordinary characters. A plain document is its text and one end token.
"""

import json
import re
from dataclasses import dataclass
from itertools import cycle

from tokenizers import AddedToken, decoders, models, pre_tokenizers, trainers
from tokenizers import Tokenizer as BPE

ROLES = ("system", "user", "assistant")


@dataclass(frozen=True)
class ChatFormat:
    """The strings around the texts of a conversation."""

    opening: str  # before the text of a turn
    end: str  # the token after a text, which the model says when it has finished
    closing: str  # between the end token and the next turn
    pad: str  # the token that fills up the shorter rows of a batch
    begin: str = ""  # before the first turn

    def open(self, role: str) -> str:
        return self.opening.replace("{role}", role)

    def special_tokens(self) -> list[str]:
        parts = [self.begin, *map(self.open, ROLES), self.end, self.pad]
        return list(dict.fromkeys(re.findall("<.+?>", "".join(parts))))


MINICAI = ChatFormat(opening="<{role}>", end="<end>", closing="", pad="<pad>")
CHATML = ChatFormat("<|im_start|>{role}\n", "<|im_end|>", closing="\n", pad="<|endoftext|>")
LLAMA3 = ChatFormat(
    opening="<|start_header_id|>{role}<|end_header_id|>\n\n",
    end="<|eot_id|>",
    closing="",
    pad="<|end_of_text|>",
    begin="<|begin_of_text|>",
)


def find_format(bpe: BPE) -> ChatFormat:
    """The format whose special tokens are in the vocabulary; minicai's where none is."""
    for known in (CHATML, LLAMA3):
        names = re.findall("<.+?>", known.opening + known.end)
        if all(bpe.token_to_id(name) is not None for name in names):
            return known
    return MINICAI


class Tokenizer:
    """Ids of texts and conversations, with the format that `find_format` finds.

    `system` is the text of the system turn that opens every conversation without one; an empty
    text means no such turn.
    """

    def __init__(self, bpe: BPE, system: str = ""):
        self.bpe, self.system, self.format = bpe, system, find_format(bpe)
        # A token that the vocabulary has keeps its id. The others get the next free ids.
        names = self.format.special_tokens()
        bpe.add_special_tokens([AddedToken(name, normalized=False) for name in names])
        self.end, self.pad = bpe.token_to_id(self.format.end), bpe.token_to_id(self.format.pad)
        bpe.encode_special_tokens = False
        self.begin, self.closing = self._ids(self.format.begin), self._ids(self.format.closing)
        self.opening = {role: self._ids(self.format.open(role)) for role in ROLES}
        bpe.encode_special_tokens = True  # from here on as ordinary text
        self.system_turn = self.turn("system", system) if system else []
        added = bpe.get_added_tokens_decoder()
        special = {i for i, token in added.items() if token.special}
        self.text_ids = sorted(set(bpe.get_vocab().values()) - special)  # all but special tokens
        self.vocab_size = max(*self.text_ids, *special) + 1

    @classmethod
    def train(cls, texts, vocab_size: int) -> "Tokenizer":
        """Byte-level BPE with vocab_size ids, the special tokens included.

        Sennrich et al. 2016 (arXiv 1508.07909); over bytes as in GPT-2.
        """
        bpe = BPE(models.BPE())
        bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        bpe.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size - len(MINICAI.special_tokens()),
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        bpe.train_from_iterator(texts, trainer)
        return cls(bpe)

    @classmethod
    def from_json(cls, text: str) -> "Tokenizer":
        """The tokenizer that `to_json` wrote."""
        value = json.loads(text)
        system = value.pop("system", "")
        return cls(BPE.from_str(json.dumps(value)), system)

    def to_json(self) -> str:
        """The JSON of the library `tokenizers`, and the system text as one more field."""
        system = {"system": self.system} if self.system else {}
        return json.dumps(json.loads(self.bpe.to_str()) | system, ensure_ascii=False)

    def _ids(self, text: str) -> list[int]:
        return self.bpe.encode(text, add_special_tokens=False).ids

    def encode(self, text: str) -> list[int]:
        """Ids of a text. Half of a surrogate pair, which UTF-8 cannot hold, becomes "?"."""
        return self._ids(text.encode("utf-8", "replace").decode())

    def decode(self, ids: list[int]) -> str:
        """Text of the ids; special tokens are left out."""
        return self.bpe.decode(ids, skip_special_tokens=True)

    def start(self, role: str) -> list[int]:
        """What comes before a first turn of this role."""
        return [*self.begin, *(self.system_turn if role in ("user", "assistant") else [])]

    def turn(self, role: str, content: str) -> list[int]:
        """One turn. Raises ValueError for an unknown role."""
        if role not in ROLES:
            raise ValueError(f"unknown role {role!r}: a turn is system, user or assistant")
        return [*self.opening[role], *self.encode(content), self.end, *self.closing]

    def chat(self, turns: list[dict]) -> list[int]:
        ids = self.start(turns[0]["role"] if turns else "user")
        return ids + [i for turn in turns for i in self.turn(turn["role"], turn["content"])]

    def prompt(self, turns: list[dict], role: str = "assistant") -> list[int]:
        """The conversation, opened for a role: a prefix of the `chat` with that role's turn."""
        return [*self.chat(turns), *self.opening[role]]


def talk(*contents: str, system: str = "") -> list[dict]:
    """Turns from bare texts: user, assistant, user, ...; with a system text one more in front."""
    turns = [{"role": "system", "content": system}] if system else []
    roles = cycle(("user", "assistant"))
    return turns + [{"role": role, "content": text} for role, text in zip(roles, contents)]
