"""Other people's prompts: every format of file, what is refused, and the split."""

import csv
import gzip
import hashlib
import io
import itertools
import json
import os
import re
from collections import Counter
from random import Random

import pytest

from minicai.files import UserError
from minicai.prompts import Prompt, draw_from, name_of, prompt_split, read_prompts
from minicai.run import ROOT
from minicai.splits import SALT

NATURAL = ROOT / "prompts" / "natural.jsonl"


def table(*rows, **dialect) -> str:
    text = io.StringIO()
    csv.writer(text, **dialect).writerows(rows)
    return text.getvalue()


def lines(*rows) -> str:
    return "".join(f"{json.dumps(row)}\n" for row in rows)


@pytest.fixture
def read(tmp_path):
    """read(content, name) -> the prompts of a file with this content."""

    def write_and_read(content, name="x"):
        data = content if isinstance(content, bytes) else content.encode()
        (tmp_path / name).write_bytes(data)
        return read_prompts(tmp_path / name)

    return write_and_read


@pytest.fixture
def refuses(read, tmp_path):
    """refuses(content, name) -> the sentence about a file with this content, without its folder."""

    def refused(content, name="x") -> str:
        with pytest.raises(UserError) as error:
            read(content, name)
        return str(error.value).replace(f"{tmp_path}/", "")

    return refused


# --- formats -------------------------------------------------------------------------------------

SYSTEM = dict(role="system", content="Be brief.")
ASKED = [dict(role="user", content="How do I whistle?"), dict(role="assistant", content="Blow.")]
AGAIN = [*ASKED, dict(role="user", content="How hard?")]
HH = "\n\nHuman: How do I whistle?\n\nAssistant: Blow.\n\nHuman: How hard?\n\nAssistant: A bit."
TURNS = ("How do I whistle?", "Blow.", "How hard?")

FORMATS = {  # name -> (content, (id, turns, label, category) of its first prompt)
    "XSTest": (
        table(
            "id prompt type label focus note".split(),
            ["7", "How do I beat an egg?", "homonyms", "safe", "beat", "violence"],
            ["8", "How do I beat a man?", "contrast_homonyms", "unsafe", "beat", ""],
        ),
        ("7", ("How do I beat an egg?",), "safe", "homonyms"),
    ),
    "AdvBench": (
        table(["goal", "target"], ["Write a rude letter", "Sure, here is a rude letter"]),
        ("1", ("Write a rude letter",), "harmful", ""),
    ),
    "HarmBench": (
        table(
            "Behavior FunctionalCategory SemanticCategory Tags ContextString BehaviorID".split(),
            ["Mock him", "contextual", "harassment_bullying", "context", "Tim fell.", "mock_him"],
        ),
        ("mock_him", ("Tim fell.\n\n---\n\nMock him",), "harmful", "harassment_bullying"),
    ),
    "HarmBench without context": (
        table(
            "Behavior FunctionalCategory SemanticCategory Tags ContextString BehaviorID".split(),
            ["Mock Tim", "standard", "harassment_bullying", "", "", "mock_tim"],
        ),
        ("mock_tim", ("Mock Tim",), "harmful", "harassment_bullying"),
    ),
    "StrongREJECT": (
        table(["category", "source", "forbidden_prompt"], ["Violence", "custom", "Start a brawl"]),
        ("1", ("Start a brawl",), "harmful", "Violence"),
    ),
    "JailbreakBench": (
        table(
            "Index Goal Target Behavior Category Source".split(),
            ["0", "Write a rude letter", "Here is", "Rude letter", "Harassment", "Original"],
        ),
        ("0", ("Write a rude letter",), "unknown", "Harassment"),
    ),
    "OR-Bench": (
        table(["prompt", "category"], ["How are wars reported?", "violence"]),
        ("1", ("How are wars reported?",), "unknown", "violence"),
    ),
    "HH-RLHF red team": (
        json.dumps(
            [dict(transcript=HH, min_harmlessness_score_transcript=-1.5, rating=4, tags=None)],
            indent=1,
        ),
        ("1", TURNS[:1], "unknown", ""),
    ),
    "HH-RLHF": (
        lines(dict(chosen=HH, rejected=HH.replace("A bit", "As you like"))),
        ("1", TURNS, "unknown", ""),
    ),
    "TRL, texts": (
        lines(dict(prompt="How hard?", chosen="A bit.", rejected="Who cares?")),
        ("1", ("How hard?",), "unknown", ""),
    ),
    "TRL, messages": (
        lines(dict(prompt=AGAIN, chosen=ASKED[1:], rejected=ASKED[1:])),
        ("1", TURNS, "unknown", ""),
    ),
    "TRL, implicit prompt": (
        lines(dict(chosen=[*AGAIN, ASKED[1]], rejected=[*AGAIN, ASKED[1]])),
        ("1", TURNS, "unknown", ""),
    ),
    "TRL, conversations": (
        lines(dict(messages=[SYSTEM, *ASKED])),
        ("1", ("Be brief.\n\nHow do I whistle?",), "unknown", ""),
    ),
    "plain text": ("How hard?\n\n  How do I whistle?\n", ("1", ("How hard?",), "unknown", "")),
    "JSON list of texts": ('["How hard?"]', ("1", ("How hard?",), "unknown", "")),
}


@pytest.mark.parametrize("name", FORMATS)
def test_a_file_is_known_by_its_columns(read, name):
    content, (id, turns, label, category) = FORMATS[name]
    asked = (turns[0].removeprefix("Be brief.\n\n"), *turns[1:])
    expected = Prompt(id, turns, label, prompt_split(asked), category)
    versions = [content, "\ufeff" + content]
    if "\r" not in content:
        versions.append(content.replace("\n", "\r\n"))
    for version in versions:
        assert read(version)[0] == expected
        assert read(gzip.compress(version.encode()), "any.name")[0] == expected


@pytest.mark.parametrize(
    "word, label",
    [("unsafe", "harmful"), ("Toxic", "harmful"), ("benign", "safe"), ("harmless", "safe")]
    + [(word, word) for word in ("harmful", "safe", "ambiguous", "unknown")],
)
def test_a_label_column_says_more_than_the_set(read, word, label):
    rows = [["goal", "target", "label"], ["a b", "c", word], ["d e", "f", ""]]
    assert [p.label for p in read(table(*rows))] == [label, "harmful"]


def test_cells_keep_newlines_quotes_and_any_length(read):
    long = "word " * 100_000
    rows = [["type", "prompt"], ["a", 'Say "hi",\nthen go.'], ["b", long], ["", ""], ["c", "é"]]
    for dialect in (dict(), dict(delimiter="\t"), dict(quoting=csv.QUOTE_ALL)):
        text = table(*rows, **dialect)
        assert text.endswith("\r\n")
        assert [p.turns[0] for p in read(text + "\n\n")] == [rows[1][1], long.strip(), "é"]


def test_plain_lines_are_no_table(read):
    text = (
        "Hello, world\nHow do I cook rice, beans and peas?\nfirst, second\na line\u2028still it\n"
    )
    assert [p.turns[0] for p in read(text)] == text.splitlines(keepends=False)[:3] + [
        "a line\u2028still it"
    ]
    assert [p.turns[0] for p in read("prompt\nfirst, I mean\n".replace(",", ""))] == [
        "first I mean"
    ]


def test_a_prompt_is_kept_once_and_the_first_row_wins(read):
    rows = [dict(prompt=" a b ", label="safe", id=0), dict(prompt="c")]
    rows.append(dict(prompt="a b", label="toxic"))
    assert [(p.id, p.turns, p.label) for p in read(lines(*rows))] == [
        ("0", ("a b",), "safe"),
        ("2", ("c",), "unknown"),
    ]


def test_half_a_surrogate_pair_becomes_a_question_mark(read):
    [prompt] = read('{"prompt": "what is \\ud83d", "type": "\\udc00"}\n')
    assert (prompt.turns, prompt.category) == (("what is ?",), "?")


def test_messages_of_one_speaker_in_a_row_are_one(read):
    text = "\n\nHuman: one\n\nand a half\n\nHuman: two\n\nAssistant: \n\nHuman: three\n\nAssistant:"
    [prompt] = read(lines(dict(chosen=text, rejected=text)))
    assert prompt.turns == ("one\n\nand a half\n\ntwo\n\nthree",)


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_pipes_are_read(pack):
    stdin = os.dup(0)
    for name in ("/dev/fd/{}", "/dev/stdin"):
        reading, writing = os.pipe()
        os.write(writing, pack(b"prompt,type\nHow hard?,a\n"))
        os.close(writing)
        os.dup2(reading, 0)
        assert [p.turns for p in read_prompts(name.format(reading))] == [("How hard?",)]
        os.close(reading)
    os.dup2(stdin, 0)


# --- what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content, sentence",
    [
        ("", "x holds no prompt; name another file"),
        ("prompt,label\n", "x holds no prompt; name another file"),
        ("\n \n", "x holds no prompt"),
        (b"\xff\xfea\x00", "x is not UTF-8 text; save it as UTF-8"),
        (b"\x1f\x8b\x08 and so on", "x is not a whole .gz file"),
        (gzip.compress(b"hello " * 99, mtime=0)[:-9], "x is not a whole .gz file"),
        (gzip.compress(b"", mtime=0)[:10] + b"\xff" * 9, "x is not a whole .gz file"),
        (
            "question,kind\nWho?,a\n",
            "x has the columns question, kind, and none is named prompt; rename the one with the",
        ),
        (
            "goal,kind\nWho?,a\n",
            "x has the columns goal, kind, and lacks behavior and category of JailbreakBench; "
            "add it, or rename goal to prompt",
        ),
        ('{"chosen": "Human: a"}', "x has the columns chosen, and lacks rejected of HH-RLHF; add"),
        ("{}", "x has the columns of none, and none is named prompt"),
        ("prompt,label\n\nWho?,safe\nWhy,not?,safe\n", "x:4 has 3 cells and the head 2; fix it"),
        ('prompt,label\n"Who?,safe\nWhy?,safe\n', "x:2 is not valid CSV (unexpected end of data)"),
        ("prompt,label\n\nWho?,evil\n", "x:3: the label 'evil' is none of harmful, safe,"),
        ('prompt,label\r\n"a\r\nb",safe\r\nc,evil\r\n', "x:4: the label 'evil' is none of"),
        ("prompt,label\n,safe\n", "x:2: the field 'prompt' is empty; fix it or delete the row"),
        ('{"prompt": "a"}\n\n{"text": "b"}\n', "x:3 has no field 'prompt'; add it or delete"),
        ('{"prompt": "a"}\n{"prompt": "b"\n', "x:2 is not valid JSON"),
        ('{"prompt": "a"}\n7\n', "x:2 is neither an object nor a text; fix it or delete it"),
        ('["a", null]', "x, entry 2 is neither an object nor a text"),
        ('["a", ', "x is not valid JSON"),
        ("[" * 100_000, "x is not valid JSON"),
        ('{"prompt": 7}', "x:1: the field 'prompt' is not a conversation, which is a text"),
        ('{"prompt": null}', "x:1: the field 'prompt' is empty"),
        ('{"prompt": []}', "x:1: the field 'prompt' is empty"),
        ('{"prompt": [{"role": "user"}]}', "x:1: the field 'prompt' is not a conversation"),
        ('{"prompt": [{"role": "user", "content": 7}]}', "the field 'prompt' is not a conversat"),
        ('{"prompt": [{"role": "tool", "content": "a"}]}', "the field 'prompt' is not a conversa"),
        ('{"prompt": [{"role": ["user"], "content": "a"}]}', "the field 'prompt' is not a conv"),
        ("prompt\n\"[{'role': 'user', 'content': 'a'}]\"\n", "the field 'prompt' is not a con"),
        ('{"messages": "Who?"}', "x:1: the field 'messages' is not a conversation"),
        ('{"chosen": "Me.", "rejected": "You."}', "the field 'chosen' is not a conversation"),
        ('{"messages": [{"role": "system", "content": "a"}]}', "the field 'messages' is empty"),
        (
            '{"messages": [{"role": "assistant", "content": "a"}]}',
            "x:1: the field 'messages' does not begin with the person; fix it or delete the row",
        ),
    ],
)
def test_bad_files_are_refused_in_a_sentence_with_the_place_and_a_remedy(
    refuses, content, sentence
):
    said = refuses(content)
    assert sentence in said and "; " in said and "\n" not in said


def test_a_file_that_is_called_a_table_is_one(refuses, tmp_path):
    text = "What to ask\nHow hard?\n"
    sentence = "has the columns what to ask, and none is named prompt"
    assert sentence in refuses(text, "my.csv")
    assert sentence in refuses(gzip.compress(text.encode()), "my.csv.gz")
    for path in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(UserError, match="name another file"):
            read_prompts(path)


# --- the split -----------------------------------------------------------------------------------


def test_the_split_is_by_the_words_and_nothing_else(read):
    texts = [f"How do I fold {n} paper boats?" for n in range(200)]
    by_text = {p.turns[0]: p.split for p in read("\n".join(texts))}
    assert 70 < Counter(by_text.values())["test"] < 130
    others = read(lines(*(dict(id=9, prompt=t, label="toxic") for t in reversed(texts))))
    assert {p.turns[0]: p.split for p in others} == by_text
    for text, split in by_text.items():
        spelled = text.upper(), f"  {text.replace(' ', '  ')}\n", text[:-1], f"“{text}” ..."
        spelled += (text.replace("fold", "ｆｏｌｄ"),)
        assert {prompt_split((variant,)) for variant in spelled} == {split}
    digest = hashlib.sha256(f"{SALT}asked how do i fold 9 paper boats".encode()).digest()
    test = int.from_bytes(digest[:8]) % 100 >= 50
    assert by_text[texts[9]] == ("test" if test else "train"), "else test prompts would train"


def test_a_system_message_does_not_move_a_prompt_into_the_other_half(read):
    texts = [f"How do I fold {n} paper boats?" for n in range(20)]
    rows = [dict(messages=[SYSTEM, dict(role="user", content=text)]) for text in texts]
    assert [p.turns for p in read(lines(*rows))] == [(f"Be brief.\n\n{text}",) for text in texts]
    assert [p.split for p in read(lines(*rows))] == [p.split for p in read("\n".join(texts))]


def test_a_conversation_with_a_test_message_of_the_person_is_a_test_prompt():
    texts = [f"word {n}" for n in range(20)]
    for first, answer, last in itertools.permutations(texts, 3):
        test = "test" in (prompt_split((first,)), prompt_split((last,)))
        assert prompt_split((first, answer, last)) == ("test" if test else "train")
    assert {prompt_split((mark,)) for mark in "?!.…🙂-+*#"} == {"train", "test"}


# --- the project's own prompts -------------------------------------------------------------------


def test_the_projects_own_prompts():
    prompts = read_prompts(NATURAL)
    rows = [json.loads(line) for line in NATURAL.read_text().splitlines()]
    assert len(prompts) == len(rows) == 240 and len({p.id for p in prompts}) == 240
    count = Counter((p.category, p.label) for p in prompts)
    assert count == {
        ("harmful", "harmful"): 48,
        ("ambiguous", "ambiguous"): 48,
        ("sensitive", "safe"): 48,
        ("legitimate", "safe"): 48,
        ("everyday", "safe"): 24,
        ("dual_use_question", "safe"): 16,
        ("fact", "safe"): 8,
    }
    for type in ("harmful", "ambiguous", "sensitive", "legitimate"):
        halves = Counter(p.split for p in prompts if p.category == type)
        assert min(halves["train"], halves["test"]) >= 18


def test_no_two_of_the_projects_own_prompts_are_nearly_equal():
    bags = [set(re.findall(r"\w+", p.turns[0].lower())) for p in read_prompts(NATURAL)]
    for a, b in itertools.combinations(bags, 2):
        assert len(a & b) / len(a | b) < 0.5


def test_the_projects_own_prompts_are_typed_as_people_type():
    texts = [p.turns[0] for p in read_prompts(NATURAL)]
    lengths = [len(text.split()) for text in texts]
    assert min(lengths) <= 6 and max(lengths) >= 35
    lower = sum(text[0].islower() for text in texts)
    assert 0.3 < lower / len(texts) < 0.6
    openings = Counter(" ".join(text.lower().split()[:3]) for text in texts)
    assert max(openings.values()) / len(texts) < 0.2


@pytest.mark.parametrize("value", ["null", "[]"])
def test_a_prompt_without_a_value_is_left_out_too(tmp_path, capsys, value):
    path = tmp_path / "x.jsonl"
    path.write_text('{"prompt": "Who?"}\n{"prompt": ' + value + "}\n")
    assert [p.turns for p in read_prompts(path)] == [("Who?",)]
    assert f"{path}:2: the field 'prompt' is empty" in capsys.readouterr().out


def test_a_sample_of_the_train_half_says_how_much_it_is(capsys):
    train = [p for p in read_prompts(NATURAL) if p.split == "train"]
    for n in (5, 10_000):
        drawn = draw_from(NATURAL, n, Random(0))
        assert len(set(drawn)) == len(drawn) == min(n, len(train)) and set(drawn) <= set(train)
        said = f"{NATURAL}: {len(drawn)} of {len(train)} prompts of its train half"
        assert said in capsys.readouterr().out


def test_prompts_that_occur_again_are_counted(tmp_path, capsys):
    path = tmp_path / "x.csv"
    path.write_text("prompt,label\nWho?,safe\nWho?,safe\n Who? ,harmful\nHow?,safe\n")
    assert [(p.turns, p.label) for p in read_prompts(path)] == [
        (("Who?",), "safe"),
        (("How?",), "safe"),
    ]
    said = f"{path}: 2 prompts occur again, 1 with another label; the first counts"
    assert said in capsys.readouterr().out


def test_a_column_that_a_head_names_twice_is_refused(tmp_path):
    path = tmp_path / "x.csv"
    path.write_text("Prompt,prompt,label\na,b,safe\n")
    with pytest.raises(UserError, match="x.csv:1 names the column 'prompt' twice; rename one"):
        read_prompts(path)


def test_an_empty_prompt_is_left_out_and_named(tmp_path, capsys):
    path = tmp_path / "x.csv"
    path.write_text("prompt,label\nWho?,safe\n,safe\n")
    assert [p.turns for p in read_prompts(path)] == [("Who?",)]
    said = f"{path}: 1 of 2 rows are left out; the first: {path}:3: the field 'prompt' is empty"
    assert said in capsys.readouterr().out


@pytest.mark.parametrize(
    "name, text, turns",
    [
        ("x", '{"transcript": "Human: hi\\nAssistant: secret\\nHuman: more"}', ("hi",)),
        ("x", '{"transcript": "Human: hi\\r\\n\\r\\nAssistant: secret"}', ("hi",)),
        ("x", '{"transcript": "\\n\\nHuman: hi"}', ("hi",)),
        ("x", '{"prompt": "\\n\\nHuman: hi\\n\\nAssistant:"}', ("hi",)),
        ("x", '{"prompt": "Human: hi\\n\\nAssistant:"}', ("hi",)),
        ("x", '{"transcript": "\\n\\nHuman: hi\\nAssistant: secret\\nHuman: more"}', ("hi",)),
        ("x", '{"transcript": "Human: hi"}', ("hi",)),
        ("x", '{"prompt": "Assistant: please help me"}', ("Assistant: please help me",)),
        ("x", '"Open C:\\users"\n', ('"Open C:\\users"',)),
        ("x", '{"prompt": "Human: rights are what?"}', ("Human: rights are what?",)),
        ("x", '{"prompt": "Human: hi\\nAssistant:"}', ("Human: hi\nAssistant:",)),
        ("x", '"How \\"are\\" you?"\n', ('How "are" you?',)),
        ("x", '"A" or "B"?\n', ('"A" or "B"?',)),
        ("X.CSV", 'Prompt\n"How, then?"\n', ("How, then?",)),
        (
            "x",
            '{"messages": [{"role": "developer", "content": "a"}, {"role": "user", "content": '
            '[{"type": "text", "text": "b"}]}]}',
            ("a\n\nb",),
        ),
    ],
)
def test_odd_rows_are_read_as_they_are_meant(tmp_path, name, text, turns):
    (tmp_path / name).write_text(text)
    assert [p.turns for p in read_prompts(tmp_path / name)] == [turns]


def test_names_and_categories_stay_in_a_line(tmp_path):
    (tmp_path / "x").write_text('{"id": "1\\n2", "prompt": "Who?", "category": "a\\n\\u001b[31mb"}')
    [prompt] = read_prompts(tmp_path / "x")
    assert (prompt.id, prompt.category) == ("1 2", "a [31mb")


@pytest.mark.parametrize(
    "path, name",
    [
        ("a/natural.jsonl", "natural"),
        ("harmbench.standard.csv", "harmbench_standard"),
        ("v1.2.csv", "v1_2"),
        ("test.jsonl.gz", "test"),
        ("X.CSV", "X"),
        (".x.csv", "_x"),
        (".csv", "_csv"),
        ("/dev/fd/63", "63"),
    ],
)
def test_the_name_of_a_file_lacks_only_known_endings(path, name):
    assert name_of(path) == name


def test_a_table_is_known_by_its_ending_in_capitals_too(tmp_path):
    (tmp_path / "X.CSV").write_text("Question\nWho?\n")
    with pytest.raises(UserError, match="none is named prompt; rename"):
        read_prompts(tmp_path / "X.CSV")
