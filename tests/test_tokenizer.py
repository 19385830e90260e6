"""The tokenizer: nothing is lost, and no text can pass for a special token."""

import random

import pytest

from minicai.tokenizer import MINICAI, Tokenizer, talk

CORPUS = [
    "How do I bake bread? To bake bread, mix flour, water and yeast.",
    "The quick brown fox jumps over the lazy dog.\nThe dog sleeps.\n\nThe fox does not.",
    "user assistant system end pad user assistant",
    "Grüße aus Köln, naïve café, 東京, 🙂 and 👩‍👩‍👧.",
] * 20


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train(CORPUS, vocab_size=330)


def special_ids(tokenizer):
    return {tokenizer.bpe.token_to_id(name) for name in MINICAI.special_tokens()}


def random_texts(count):
    """Any code points but surrogates, which no UTF-8 text holds."""
    rng = random.Random(0)
    spans = [
        (0, 0x80),
        (0x80, 0x800),
        (0x800, 0xD800),
        (0xE000, 0x10000),
        (0x1F300, 0x1FAFF),
        (0x10000, 0x110000),
    ]
    for _ in range(count):
        yield "".join(chr(rng.randrange(*rng.choice(spans))) for _ in range(rng.randrange(30)))


HARD = [
    "",
    " ",
    "   leading, trailing   ",
    "\n\n\r\n\ttabs\r",
    "a\x00b\x7f",
    "👩‍👩‍👧 🇩🇪 e\u0301 \u00e9 \ufeff \u202e",
    "שלום مرحبا 東京",
    "don't we'll I'M",
    "Ġ Ċ are the letters that byte-level BPE writes for a space and a newline",
]
TYPED = [
    "<|end|>",
    "<end>",
    "<pad>",
    "<user> hi <end> <assistant>",
    "<|endoftext|>",
    "</s>",
    "end",
    "assistant",
]


@pytest.mark.parametrize("text", HARD + TYPED)
def test_text_survives_the_round_trip(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_random_unicode_survives_the_round_trip(tokenizer):
    for text in random_texts(300):
        assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize("text", TYPED)
def test_nothing_a_user_types_becomes_a_special_id(tokenizer, text):
    assert not special_ids(tokenizer) & set(tokenizer.encode(text))
    ids = tokenizer.turn("user", text)
    assert [i for i in ids if i in special_ids(tokenizer)] == [
        *tokenizer.opening["user"],
        tokenizer.end,
    ]


def test_what_utf8_cannot_hold_becomes_a_question_mark(tokenizer):
    """Half of an emoji in a JSON file, or a byte from the keyboard that is no UTF-8."""
    assert tokenizer.decode(tokenizer.encode("a \ud83d \udcff b")) == "a ? ? b"


def test_random_unicode_never_becomes_a_special_id(tokenizer):
    for text in random_texts(300):
        assert all(0 <= i < min(special_ids(tokenizer)) for i in tokenizer.encode(text))


def test_text_seen_in_training_is_compressed(tokenizer):
    assert len(tokenizer.encode(CORPUS[0])) < 0.6 * len(CORPUS[0])


def test_every_turn_has_its_role_first_and_exactly_one_end_last(tokenizer):
    turns = [{"role": "system", "content": "<end>"}, *talk("How do I bake bread?", "", "end\n")]
    ids = tokenizer.chat(turns)
    assert ids.count(tokenizer.end) == 4 and ids[-1] == tokenizer.end
    # Cut after every end: each piece is one turn, and its text is what went in.
    pieces, piece = [], []
    for i in ids:
        piece.append(i)
        if i == tokenizer.end:
            pieces.append(piece)
            piece = []
    roles = "system", "user", "assistant", "user"
    assert [p[:1] for p in pieces] == [tokenizer.opening[role] for role in roles]
    assert [tokenizer.decode(p[1:-1]) for p in pieces] == [turn["content"] for turn in turns]


def test_a_prompt_is_a_prefix_of_the_chat_with_any_answer(tokenizer):
    turns = talk("How do I bake bread?")
    prompt = tokenizer.prompt(turns)
    assert prompt[-1:] == tokenizer.opening["assistant"]
    for answer in ["", "mix flour", " mix flour", "\n", *HARD, *TYPED]:
        chat = tokenizer.chat([*turns, {"role": "assistant", "content": answer}])
        assert chat[: len(prompt)] == prompt
        assert chat[len(prompt) :] == [*tokenizer.encode(answer), tokenizer.end]


def test_no_merge_crosses_the_boundary_between_turns(tokenizer):
    left, right = "bake br", "ead"
    whole = tokenizer.encode(left + right)
    assert whole != tokenizer.encode(left) + tokenizer.encode(
        right
    )  # as one text, a merge does cross it
    expected = [*tokenizer.opening["user"], *tokenizer.encode(left), tokenizer.end]
    expected += [*tokenizer.opening["assistant"], *tokenizer.encode(right), tokenizer.end]
    assert tokenizer.chat(talk(left, right)) == expected


@pytest.mark.parametrize("vocab_size", [261, 262, 300, 330])
def test_the_vocabulary_has_exactly_the_size_asked_for(vocab_size):
    tokenizer = Tokenizer.train(CORPUS, vocab_size)
    assert tokenizer.vocab_size == vocab_size
    assert special_ids(tokenizer) == set(
        range(vocab_size - 5, vocab_size)
    )  # five different ids, the highest ones
    assert tokenizer.text_ids == list(range(vocab_size - 5))


def test_a_tokenizer_comes_back_identical_from_its_json(tokenizer):
    text = tokenizer.to_json()
    loaded = Tokenizer.from_json(text)
    assert loaded.vocab_size == tokenizer.vocab_size and loaded.to_json() == text
    assert loaded.opening == tokenizer.opening
    assert (loaded.end, loaded.pad) == (tokenizer.end, tokenizer.pad)
    for text in [*HARD, *TYPED, *CORPUS[:4], *random_texts(50)]:
        assert loaded.encode(text) == tokenizer.encode(text)
        assert loaded.chat(talk(text)) == tokenizer.chat(talk(text))


def test_training_twice_gives_the_same_tokenizer(tokenizer):
    assert Tokenizer.train(CORPUS, vocab_size=330).to_json() == tokenizer.to_json()


@pytest.mark.parametrize("role", ["end", "pad", "User", "", "tool"])
def test_an_unknown_role_is_refused(tokenizer, role):
    with pytest.raises(ValueError):
        tokenizer.turn(role, "hello")


def test_decoding_leaves_special_ids_out(tokenizer):
    ids = [tokenizer.pad, *tokenizer.chat(talk("one", " two")), tokenizer.pad]
    assert tokenizer.decode(ids) == "one two"


def test_talk_alternates_user_and_assistant():
    assert [turn["role"] for turn in talk("a", "b", "c")] == ["user", "assistant", "user"]
    assert [turn["content"] for turn in talk("a", "b", "c")] == ["a", "b", "c"]
