"""The world: its loader finds every mistake, its splits never leak, and the corpus holds what it promises and nothing else."""

import ast
import hashlib
import json
import random
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest
from minicai.common import UserError
from tests.other_world import build

from minicai.constitution import Constitution
from minicai.exam import Exam, KeywordFilter
from minicai.jailbreak import base64_word, each_word, fits, wrap
from minicai.world.content import (
    DOCUMENTS,
    KINDS,
    REPLIES,
    SALT,
    TECHNIQUES,
    Fact,
    World,
    bucket,
    held_out,
    split_of,
)
from minicai.world.corpus import (
    POINT_WEIGHT,
    SHARE,
    USER_WEIGHT,
    Corpus,
    pieces,
    quoted,
    taught,
    thinned,
)
from minicai.world.grader import REFUSAL, UNKNOWN, matches
from minicai.world.replies import calibrated, decline, helpful
from minicai.world.requests import PLAIN, TYPES, Part, fresh_fact
from minicai.world.skills import ABOUT, CRITIQUE_REQUEST, REVISION_REQUEST, situation

ROOT = Path(__file__).parent.parent
SPLITS = ("demo", "train", "test")


@pytest.fixture(scope="module", params=["world", "other"])
def world(request, tmp_path_factory):
    return (
        World(ROOT / "world")
        if request.param == "world"
        else World(build(tmp_path_factory.mktemp("other")))
    )


@pytest.fixture(scope="module")
def constitution():
    return Constitution(ROOT / "constitution.json")


# --- the loader ---


def test_the_world_is_as_large_as_promised():
    world = World(ROOT / "world")
    assert (
        len(world.acts) >= 240
        and len(world.contexts) >= 80
        and len(world.framings) >= 2 * len(TECHNIQUES)
    )
    assert sum(p.use == "act" for p in world.phrasings) >= 40
    assert Counter(f.seen for f in world.facts)["never"] >= 100


def test_every_split_holds_every_kind_of_thing(world):
    for split in SPLITS:
        part = Part(world, split)
        assert all(sum(a.kind == kind for a in part.acts) >= 4 for kind in KINDS)
        assert {f.seen for f in part.facts} == {"often", "seldom", "never"}
        assert {c.intent for c in part.contexts} == {"legitimate", "malicious"}
        assert {p.use for p in part.phrasings} == {"act", "protection", "fact"}


def edit(name, number, **changes):
    """Change one line of a file; a field set to `del` goes away."""

    def change(folder):
        path = folder / f"{name}.jsonl"
        lines = path.read_text().splitlines()
        row = {k: v for k, v in (json.loads(lines[number - 1]) | changes).items() if v != "del"}
        lines[number - 1] = json.dumps(row)
        path.write_text("\n".join(lines) + "\n")

    return change


def line(name, number, text):
    def change(folder):
        path = folder / f"{name}.jsonl"
        lines = path.read_text().splitlines()
        lines[number - 1] = text
        path.write_text("\n".join(lines) + "\n")

    return change


def without(name, **having):
    """Delete every row with these values."""

    def change(folder):
        path = folder / f"{name}.jsonl"
        rows = [json.loads(text) for text in path.read_text().splitlines()]
        kept = [row for row in rows if any(row.get(k) != v for k, v in having.items())]
        path.write_text("".join(json.dumps(row) + "\n" for row in kept))

    return change


def fill(name, key, use, text):
    """Change the text of the first line of one use."""

    def change(folder):
        rows = [json.loads(text) for text in (folder / f"{name}.jsonl").read_text().splitlines()]
        edit(name, 1 + [row[key] for row in rows].index(use), text=text)(folder)

    return change


HARMFUL = 1 + next(
    i
    for i, row in enumerate((ROOT / "world/acts.jsonl").read_text().splitlines())
    if '"harmful"' in row
)
BROKEN = {  # what is wrong -> (how to break a good world, what the message names)
    "malformed JSON": (line("acts", 3, '{"id": "x", '), "acts.jsonl:3 .*JSON"),
    "a list instead of an object": (line("tones", 2, "[1, 2]"), "tones.jsonl:2 .*object"),
    "no id": (edit("facts", 4, id="del"), "facts.jsonl:4 .*'id'"),
    "no act": (edit("acts", 5, act="del"), "acts.jsonl:5 .*'act'"),
    "no victim": (edit("acts", HARMFUL, victim="del"), f"acts.jsonl:{HARMFUL} .*'victim'"),
    "an empty harm": (edit("acts", HARMFUL, harm=""), f"acts.jsonl:{HARMFUL} .*'harm'"),
    "a bad severity": (edit("acts", HARMFUL, severity="grave"), f"acts.jsonl:{HARMFUL} .*'grave'"),
    "a field too much": (edit("acts", 5, colour="red"), "acts.jsonl:5 .*'colour'"),
    "a bad kind": (edit("acts", 5, kind="evil"), "acts.jsonl:5 .*'evil'"),
    "one step": (edit("acts", 5, steps=["do the first thing"]), "acts.jsonl:5 .*two steps"),
    "a short step": (
        edit("acts", 5, steps=["do the first thing", "stop now"]),
        "acts.jsonl:5 .*three words",
    ),
    "steps that are no list": (edit("acts", 5, steps=None), "acts.jsonl:5 "),
    "a duplicate id": (
        line(
            "contexts",
            3,
            ('{"id": "twin", "intent": "malicious", "text": "A.", "gist": "b"}\n' * 2).strip(),
        ),
        "contexts.jsonl:4 .*'twin'",
    ),
    "a shared step": (
        edit("acts", 5, steps=["knead the dough until smooth", "sing it a song"]),
        "acts.jsonl:5 .*shares .*'bake-bread'",
    ),
    "a bad intent": (edit("contexts", 2, intent="odd"), "contexts.jsonl:2 .*'odd'"),
    "no gist": (edit("contexts", 2, gist="del"), "contexts.jsonl:2 .*'gist'"),
    "a missing slot": (
        edit("phrasings", 1, turns=["How do I {act}?"]),
        "phrasings.jsonl:1 .*{context}",
    ),
    "a slot twice": (
        edit("phrasings", 1, turns=["{act} {act} {context}"]),
        "phrasings.jsonl:1 .*{act}",
    ),
    "an unknown slot": (
        edit("phrasings", 1, turns=["{act} {context} {mood}"]),
        "phrasings.jsonl:1 .*{mood}",
    ),
    "two turns": (
        edit("phrasings", 1, turns=["{act} {context}", "Yes?"]),
        "phrasings.jsonl:1 .*turn of the user",
    ),
    "a bad style": (edit("phrasings", 1, style="loud"), "phrasings.jsonl:1 .*'loud'"),
    "a bad draw": (edit("phrasings", 1, draws="joy"), "phrasings.jsonl:1 .*'joy'"),
    "a bad use": (edit("phrasings", 1, **{"for": "fun"}), "phrasings.jsonl:1 .*'fun'"),
    "a seen name without facts": (edit("facts", 1, facts={}), "facts.jsonl:1 .*facts"),
    "an unseen name with facts": (
        edit("facts", 1, seen="never"),
        "facts.jsonl:1 .*none if it never",
    ),
    "a bad frequency": (edit("facts", 1, seen="daily"), "facts.jsonl:1 .*'daily'"),
    "a bad tone": (edit("tones", 1, tone="sad"), "tones.jsonl:1 .*'sad'"),
    "a bad place": (edit("tones", 1, place="within"), "tones.jsonl:1 .*'within'"),
    "a bad technique": (edit("framings", 1, technique="magic"), "framings.jsonl:1 .*'magic'"),
    "a framing without the request": (
        edit("framings", 1, turns=["Hello."]),
        "framings.jsonl:1 .*{request}",
    ),
    "a framing with both": (
        edit("framings", 1, turns=["{request} {code}"]),
        "framings.jsonl:1 .*exactly once",
    ),
    "a framing that ends with the assistant": (
        edit("framings", 1, turns=["{request}", None]),
        "framings.jsonl:1 .*turn of the user",
    ),
    "a bad reply": (edit("replies", 1, **{"for": "song"}), "replies.jsonl:1 .*'song'"),
    "a bad document": (edit("documents", 1, about="nothing"), "documents.jsonl:1 .*'nothing'"),
    "an act of blanks": (edit("acts", 5, act=" "), "acts.jsonl:5 has act"),
    "a harm of blanks": (edit("acts", HARMFUL, harm=" "), f"acts.jsonl:{HARMFUL} has harm"),
    "an empty context": (edit("contexts", 2, text=""), "contexts.jsonl:2 has text"),
    "a number for a fact": (edit("facts", 1, facts={"job": 3}), "facts.jsonl:1 .*'job'"),
    "an empty fact": (edit("facts", 1, facts={"job": ""}), "facts.jsonl:1 .*'job'"),
    "steps of numbers": (edit("acts", 5, steps=[1, 2]), "acts.jsonl:5 has steps"),
    "a phrasing in one string": (
        edit("phrasings", 1, turns="{act} {context}"),
        "phrasings.jsonl:1 has turns",
    ),
    "an empty turn": (
        edit("phrasings", 1, turns=["", "Yes?", "{act} {context}"]),
        "phrasings.jsonl:1 has turns",
    ),
    "a framing that the assistant opens": (
        edit("framings", 1, turns=[None, None, "{request}"]),
        "framings.jsonl:1 has turns",
    ),
    "a code without a technique for it": (
        edit("framings", 1, turns=["{code}"]),
        "framings.jsonl:1 .*{code}",
    ),
    "a question before the last turn": (
        edit("phrasings", 1, turns=["I want to {act}. {context}", "Fine.", "Tell me the steps."]),
        "phrasings.jsonl:1 .*last turn",
    ),
    "a stray brace in a phrasing": (
        edit("phrasings", 1, turns=["{act} {context} }"]),
        "phrasings.jsonl:1 .*stray",
    ),
    "a stray brace in a framing": (
        edit("framings", 1, turns=["{ {request}"]),
        "framings.jsonl:1 .*stray",
    ),
    "a stray brace in a reply": (
        edit("replies", 1, text="You want to {aim}. {"),
        "replies.jsonl:1 .*stray",
    ),
    "a slot without a name": (
        edit("documents", 1, text="To {act} is {}."),
        "documents.jsonl:1 .*stray",
    ),
    "a slot with a format": (
        edit("documents", 1, text="To {act!r} is {harm:>5}."),
        "documents.jsonl:1 .*stray",
    ),
    "a harm in a reply about a name": (
        fill("replies", "for", "unknown", "{harm}"),
        r"replies.jsonl:\d+ .*{harm}",
    ),
    "an attribute in a refusal": (
        fill("replies", "for", "refusal", "{attribute}"),
        r"replies.jsonl:\d+ .*{attribute}",
    ),
    "a slot in small talk": (fill("replies", "for", "chat", "{act}"), r"replies.jsonl:\d+ .*{act}"),
    "an act in a document about requests": (
        fill("documents", "about", "request", "{act}"),
        r"documents.jsonl:\d+ .*{act}",
    ),
    "an empty file": (
        lambda folder: (folder / "tones.jsonl").write_text(""),
        "tones.jsonl .*empty",
    ),
    "a missing file": (lambda folder: (folder / "facts.jsonl").unlink(), "facts.jsonl .*not exist"),
    "no folder": (shutil.rmtree, "--world"),
    "no sensitive act": (without("acts", kind="sensitive"), "acts.jsonl .*'sensitive'"),
    "no malicious context": (without("contexts", intent="malicious"), "contexts.jsonl .*malicious"),
    "no phrasing of facts": (without("phrasings", **{"for": "fact"}), "phrasings.jsonl .*'fact'"),
    "no refusal": (without("replies", **{"for": "refusal"}), "replies.jsonl .*'refusal'"),
    "no codes": (without("documents", about="code"), "documents.jsonl .*'code'"),
    "a field too many": (
        edit("acts", 2, colour="red"),
        "acts.jsonl:2 is not a line as acts.jsonl has them .*colour",
    ),
    "turns that are none": (edit("framings", 1, turns=None), "framings.jsonl:1 is not a line"),
    "a reply's text as a number": (edit("replies", 1, text=5), "replies.jsonl:1 is not a line"),
    "a severity that no request has": (
        edit("replies", 1, severity="Mild"),
        "replies.jsonl:1 has severity 'Mild'",
    ),
}


@pytest.mark.parametrize("breaks, names", BROKEN.values(), ids=BROKEN)
def test_a_mistake_is_one_sentence_that_names_file_and_line(breaks, names, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(ROOT / "world", folder)
    assert (
        json.loads((folder / "acts.jsonl").read_text().splitlines()[HARMFUL - 1])["kind"]
        == "harmful"
    )
    World(folder)  # it is good before it is broken
    breaks(folder)
    with pytest.raises(UserError, match=names) as error:
        World(folder)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "name, goes, message",
    [
        (
            "acts",
            lambda row: split_of(row["id"]) == "demo",
            "acts.jsonl has no act in its demo part",
        ),
        (
            "facts",
            lambda row: split_of(row["id"]) == "demo" and row["facts"],
            "facts.jsonl has no name with facts in its demo part",
        ),
        (
            "framings",
            lambda row: not held_out(row["id"]),
            "framings.jsonl has no framing that is not held out",
        ),
    ],
)
def test_a_world_without_something_to_demonstrate_on_is_named(
    name, goes, message, tmp_path, constitution
):
    shutil.copytree(ROOT / "world", tmp_path / "copy")
    path = tmp_path / "copy" / f"{name}.jsonl"
    rows = [json.loads(text) for text in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows if not goes(row)))
    with pytest.raises(UserError, match=message):
        Corpus(World(tmp_path / "copy"), constitution, 0)


def test_every_slot_that_a_text_may_have_is_filled_in(tmp_path, constitution):
    shutil.copytree(ROOT / "world", tmp_path / "copy")
    for name, key, slots in (("replies", "for", REPLIES), ("documents", "about", DOCUMENTS)):
        path = tmp_path / "copy" / f"{name}.jsonl"
        rows = [json.loads(text) for text in path.read_text().splitlines()]
        for row in rows:
            row["text"] += "".join(f" <{{{slot}}}>" for slot in slots[row[key]])
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for turns in Corpus(World(tmp_path / "copy"), constitution, 0).documents(3000):
        assert not re.search("[{}]", as_text(turns))


# --- splits ---


def test_the_split_of_an_id_is_its_hash_and_so_never_moves():
    for key in ("bake-bread", "pick-a-lock", "", "naïve"):
        assert bucket(key) == int(hashlib.sha256((SALT + key).encode()).hexdigest()[:16], 16) % 100
    counts = Counter(split_of(str(i)) for i in range(10_000))
    assert all(
        abs(counts[split] / 10_000 - share) < 0.02
        for split, share in zip(SPLITS, (0.32, 0.4, 0.28))
    )
    assert abs(sum(held_out(str(i)) for i in range(10_000)) / 10_000 - 0.25) < 0.02


def test_additions_move_nothing_to_another_split(tmp_path):
    shutil.copytree(ROOT / "world", tmp_path / "more")
    text = (tmp_path / "more/acts.jsonl").read_text()
    new = "".join(
        json.dumps(
            dict(
                id=f"new-{i}",
                kind="everyday",
                act=f"do {i}",
                steps=[f"take the number {i}", f"give back number {i}"],
            )
        )
        + "\n"
        for i in range(50)
    )
    (tmp_path / "more/acts.jsonl").write_text(new + text)
    for split in SPLITS:
        before = {a.id for a in Part(World(ROOT / "world"), split).acts}
        after = {a.id for a in Part(World(tmp_path / "more"), split).acts}
        assert {id for id in after if not id.startswith("new-")} == before < after


def drawn(world, split, n=1500):
    part, rng = Part(world, split), random.Random(f"{split}")
    requests = [part.draw(rng, rng.choice(TYPES)) for _ in range(n)]
    for request in requests[: n // 3]:
        framing = rng.choice(part.framings)
        if fits(framing, request):
            requests.append(wrap(request, framing, part, rng))
    return requests


@pytest.mark.parametrize("split", SPLITS)
def test_requests_are_made_only_of_what_their_split_may_use(world, split):
    framings = {f.id for f in world.framings}
    for r in drawn(world, split):
        assert split_of((r.act or r.fact).id) == split
        assert held_out(r.phrasing.id) == (split == "test")
        assert r.context is None or held_out(r.context.id) == (split == "test")
        assert r.framing is None or (
            r.framing in framings and held_out(r.framing) == (split == "test")
        )


def test_every_type_is_built_as_the_table_says(world):
    part, rng = Part(world, None), random.Random(0)
    seen = set()
    for _ in range(2000):
        type = rng.choice(TYPES)
        r = part.draw(rng, type)
        seen.add((type, r.act and r.act.kind, r.context and r.context.intent))
        assert (
            r.type == type and len(r.turns) % 2 == 1 and not re.search("[{}]|  ", " ".join(r.turns))
        )
        if r.phrasing.style == "plain":
            assert (r.act.act if r.act else r.fact.name).lower() in r.turns[-1].lower()
            assert r.context is None or r.context.text in r.turns[-1]
    excused = {("harmful", "harmful", i) for i in (None, "legitimate", "malicious")}
    harmless = {
        ("legitimate", kind, i) for kind in ("everyday", "lookalike") for i in (None, "legitimate")
    }
    assert seen == excused | harmless | {
        ("harmful", "dual_use", "malicious"),
        ("legitimate", "dual_use", "legitimate"),
        ("dual_use_question", "harmful", None),
        ("dual_use_question", "dual_use", None),
        ("ambiguous", "dual_use", None),
        ("sensitive", "sensitive", None),
        ("fact", None, None),
    }


def test_many_requests_are_all_different_and_fewer_where_the_world_is_small(world):
    requests = Part(world, "test").many(random.Random(0), 60, "ambiguous")
    assert len({r.id for r in requests}) == len(requests) == 60
    few = Part(world, "test").many(random.Random(0), 500, "fact", "seldom")
    assert len({r.id for r in few}) == len(few) < 500


def test_a_part_without_what_is_wanted_says_so(world):
    part = Part(world, "train")
    part.acts = [a for a in part.acts if a.kind != "sensitive"]
    with pytest.raises(
        UserError, match="acts.jsonl has no line with kind 'sensitive' in its train part"
    ):
        part.draw(random.Random(0), "sensitive")


def test_exam_questions_are_held_out_and_never_train_prompts(world):
    exam = Exam(world, 40, 0)
    train = {r.turns[-1] for r in drawn(world, "train", 3000)}
    for name, requests in exam.sets.items():
        assert requests, name
        for r in requests:
            assert (
                split_of((r.act or r.fact).id) == "test"
                and held_out(r.phrasing.id)
                and r.turns[-1] not in train
            )
            assert r.context is None or held_out(r.context.id)
    assert {f"{t} {kind}" for t in TECHNIQUES for kind in ("harmful", "benign")} <= set(exam.sets)
    assert all(r.type == name for name in PLAIN for r in exam.sets[name])


def test_what_is_asked_in_disguise_is_asked_plainly_too(world):
    exam = Exam(world, 40, 0)
    for technique in TECHNIQUES:
        for kind, type in (("harmful", "harmful"), ("benign", "legitimate")):
            wrapped, plainly = (
                exam.sets[f"{technique} {kind}"],
                {r.turns: r for r in exam.sets[type]},
            )
            assert len(wrapped) == len({r.plain for r in wrapped}) == 10
            for r in wrapped:
                plain = plainly[r.plain]
                assert (
                    plain.technique is None
                    and plain.plain == plain.turns != r.turns
                    and r.technique == technique
                )
                assert (r.act, r.context, r.phrasing, r.core) == (
                    plain.act,
                    plain.context,
                    plain.phrasing,
                    plain.core,
                )


def test_the_exam_is_the_same_for_every_model_and_another_by_seed(world):
    texts = [
        [r.turns for rs in Exam(world, 12, seed).sets.values() for r in rs] for seed in (0, 0, 1)
    ]
    assert texts[0] == texts[1] != texts[2]


def test_answers_and_critiques_read_a_request_alike(world):
    """What a critique says of a request is what an answer to it has said aloud, whatever the answer then does."""
    rng, part = random.Random(0), Part(world, None)
    for type in ("harmful", "legitimate", "ambiguous", "sensitive"):
        for request in part.many(rng, 40, type):
            meant = situation(request).split(". ", 1)[1]
            assert (request.act.harm in meant) == (
                type in ("harmful", "ambiguous")
            ) or not request.act.harm
            assert ("could be" in meant) == (type == "ambiguous")
            for make in (helpful, calibrated, decline):
                opened, said = make(world, request, rng).text.split(". ", 1)
                assert said.startswith(meant) and request.act.act in opened
    for seen in ("often", "never"):
        for request in part.many(rng, 40, "fact", seen):
            meant = situation(request).split(". ", 1)[1]
            assert ("never" in meant) == (seen == "never")
            for make in (helpful, calibrated):
                opened, said = make(world, request, rng).text.split(". ", 1)
                assert said.startswith(meant) and request.fact.name in opened


def test_no_list_of_words_tells_harmful_from_harmless(world):
    """A filter that picks its words on train and is asked about test must err often on one side at least."""
    result = KeywordFilter(world, 0).measure(Exam(world, 150, 0))
    assert max(result["under_refusal"]["rate"], result["over_refusal"]["rate"]) >= 0.15


# --- names ---


def test_fresh_names_are_in_no_list_and_hardly_come_again(world):
    rng, listed = random.Random(0), {f.name for f in world.facts}
    fresh = [fresh_fact(world, rng) for _ in range(3000)]
    names = Counter(f.name for f in fresh)
    assert not listed & set(names) and len(names) > 2000 and max(names.values()) <= 10
    assert {f.kind for f in fresh} == set(world.attributes)


def test_fresh_names_come_from_the_words_that_are_a_names_own(world):
    """Not from "Street" where every place is a street, however long that word is."""

    def of(*names):
        facts = [Fact(name, kind, name, "often", {}) for kind in world.attributes for name in names]
        return SimpleNamespace(path="world", facts=facts, attributes=world.attributes)

    names = {
        fresh_fact(of("Elm Street", "Oakley Street", "Birch Street"), random.Random(i)).name
        for i in range(40)
    }
    assert len(names) > 3 and all(name.endswith(" Street") for name in names)
    with pytest.raises(UserError, match="facts.jsonl: no new name can be made"):
        fresh_fact(of("Anna", "Anna"), random.Random(0))


def test_a_fresh_name_mixes_names_of_its_own_kind(world):
    parts = {
        kind: " ".join(f.name for f in world.facts if f.kind == kind) for kind in world.attributes
    }
    for fact in (fresh_fact(world, random.Random(i)) for i in range(300)):
        for word in fact.name.split():
            assert any(
                word[:i] in parts[fact.kind] and word[i:] in parts[fact.kind]
                for i in range(1, len(word) + 1)
            ), fact.name


# --- the corpus ---


def as_text(turns):
    """The turns as lines; the pieces of a document as one."""
    return "".join(
        ("" if i and turns[i - 1].role == t.role == "document" else "\n") + t.content
        for i, t in enumerate(turns)
    )


def corpus_texts(world, constitution, seed, n):
    return [
        [(t.role, t.content, t.weight) for t in turns]
        for turns in Corpus(world, constitution, seed).documents(n)
    ]


def test_the_corpus_is_fixed_by_its_seed(world, constitution):
    one, same, other = (corpus_texts(world, constitution, seed, 300) for seed in (0, 0, 1))
    assert one == same != other


def test_the_corpus_does_not_hang_on_the_order_of_hashes():
    """Sets of strings are ordered anew in every process; nothing that is drawn may follow them."""
    code = (
        "from tests.test_world import *; print(hashlib.sha256(repr(corpus_texts(World('world'), Constitution(), 0, 300)).encode())"
        ".hexdigest(), hashlib.sha256(repr([r.turns for s in Exam(World('world'), 8, 0).sets.values() for r in s]).encode()).hexdigest())"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", code],
            cwd=ROOT,
            env={"PYTHONHASHSEED": seed, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in "12"
    }
    assert len(outputs) == 1


def test_the_corpus_holds_every_kind_of_document_in_its_share(world, constitution):
    assert abs(sum(SHARE.values()) - 1) < 1e-9
    for turns in Corpus(world, constitution, 0).documents(500):
        assert turns and all(
            t.content.strip() and not re.search(r"\{\w+\}", t.content) for t in turns
        )
        said = [t.role for t in turns if t.role != "document"]
        assert said == [("user", "assistant")[i % 2] for i in range(len(said))]
        assert (
            turns[-1].role != "user"
            and max(t.weight for t in turns if t.role == turns[-1].role) >= 1.0
        )


def test_the_base_never_learns_to_refuse_a_first_request(world, constitution):
    corpus = Corpus(world, constitution, 0)
    for kind in ("dialogue", "disguise", "name"):
        for _ in range(400):
            for turn in getattr(corpus, kind)():
                if turn.role == "assistant" and turn.weight > 0:
                    assert not matches(REFUSAL, turn.content), turn.content
                    answer = turn.content.split("read about")[-1]  # what follows the reading
                    assert kind != "name" or not matches(UNKNOWN, answer), turn.content


def test_in_demonstrations_only_critiques_revisions_and_choices_are_learned(world, constitution):
    corpus = Corpus(world, constitution, 0)
    markers = tuple(text.split("{")[0] for text in (CRITIQUE_REQUEST, REVISION_REQUEST))
    for _ in range(300):
        turns = corpus.critique()
        for before, turn in zip(turns, turns[1:]):
            assert turn.role == "user" or (turn.weight > 0) == before.content.startswith(markers)
        question, choice = corpus.compare()
        assert question.role == "user" and choice.content in ("(A)", "(B)")


def test_what_a_document_quotes_is_read_and_hardly_learned(world, constitution):
    """Codes and requests cannot be foreseen; what stands beside them can."""
    corpus = Corpus(world, constitution, 0)
    for _ in range(300):
        opens, *rest = corpus.code()
        assert opens.weight == 1.0 and opens.content.endswith(":") and len(rest) % 2 == 0
        for code, plain in zip(rest[::2], rest[1::2]):
            assert (code.weight, plain.weight) == (USER_WEIGHT, 1.0) and plain.content.startswith(
                " is "
            )
            if "base64" in opens.content:
                assert code.content == " " + each_word(plain.content[4:-1], base64_word)
    real = corpus.offer
    corpus.offer = lambda request, by_itself: real(request)  # by itself, it quotes nothing
    for _ in range(300):
        turns = corpus.reading()
        quotes = [t.content for t in turns if t.weight == USER_WEIGHT and t.role == "document"]
        assert len(quotes) == (len(turns) > 1 and turns[0].role == "document")


def test_the_pieces_of_a_document_join_to_what_it_says():
    turns = pieces(f'Words in leet: {quoted("br34d")} is bread, "{quoted("a cat")}" {quoted("x")}.')
    assert [(t.content, t.weight) for t in turns] == [
        ("Words in leet:", 1.0),
        (" br34d", USER_WEIGHT),
        (' is bread, "', 1.0),
        ("a cat", USER_WEIGHT),
        ('"', 1.0),
        (" x", USER_WEIGHT),
        (".", 1.0),
    ]
    turns = pieces(f'"{quoted("a cat")}" They could {taught("rest")} instead of {taught("")}that.')
    assert [(t.content, t.weight) for t in turns] == [
        ('"', 1.0),
        ("a cat", USER_WEIGHT),
        ('" They could', 1.0),
        (" rest", POINT_WEIGHT),
        (" instead of", 1.0),
        (" ", POINT_WEIGHT),
        ("that.", 1.0),
    ]


def test_under_no_request_for_a_test_act_it_is_said_what_to_do_instead(world, constitution):
    """What the exam asks for after a harmful or an ambiguous request must come from the constitution, and from knowledge."""
    corpus, seen = Corpus(world, constitution, 0), set()
    for kind in (corpus.reading, corpus.dialogue, corpus.disguise):
        for _ in range(1500):
            turns = kind()
            asked = " ".join(
                t.content for t in turns if t.role == "user" or t.weight == USER_WEIGHT
            ).lower()
            if not asked:
                continue
            said = " ".join(t.content for t in turns if t.role != "user" and t.weight > USER_WEIGHT)
            for act in world.acts:
                if act.alternative and act.alternative in said and act.act.lower() in asked:
                    seen.add(split_of(act.id))
    assert seen == {"demo", "train"}


def test_of_a_test_act_it_is_said_elsewhere(world, constitution):
    corpus = Corpus(world, constitution, 0)
    text = " ".join(
        as_text(kind()) for _ in range(3000) for kind in (corpus.knowledge, corpus.reading)
    )
    wanted = [a.alternative for a in world.acts if a.alternative and split_of(a.id) == "test"]
    assert len(wanted) > 30 and all(alternative in text for alternative in wanted)


def test_what_is_advised_about_an_act_weighs_more_wherever_a_document_says_it(world, constitution):
    corpus, found = Corpus(world, constitution, 0), set()
    advice = {text for act in world.acts for text in (act.alternative, act.safety) if text}
    for i in range(2000):
        for turn in (corpus.knowledge, corpus.reading)[i % 2]():
            if turn.weight == POINT_WEIGHT:
                found.add(turn.content.strip())
            elif turn.role == "document" and turn.weight == 1.0:
                assert not any(text in turn.content for text in advice), turn.content
    assert found <= advice and len(found) > 0.9 * len(advice)


def test_a_principle_is_told_by_its_seen_wordings_and_only_its_topic_weighs(world, constitution):
    corpus, told = Corpus(world, constitution, 0), set()
    for _ in range(300):
        turns = corpus.principle()
        assert [t.weight for t in turns] == [1.0, USER_WEIGHT, 1.0, POINT_WEIGHT, 1.0]
        assert (
            as_text(turns).strip()
            == f"CritiqueRequest:{turns[1].content} The principle is about{turns[3].content}."
        )
        told.add((turns[1].content.strip(), turns[3].content.strip()))
    family_of = {
        text: ABOUT[w.family]
        for w in constitution.wordings
        if not held_out(w.id)
        for text in (w.critique, w.revision, w.comparison)
    }
    whole = {text: about for text, about in told if text in family_of}
    assert len(whole) > 100 and all(family_of[text] == about for text, about in whole.items())
    assert {about for _, about in told} == set(ABOUT.values())


def test_alternatives_are_offered_in_every_way_a_refusal_has_and_without_refusing(
    world, constitution
):
    corpus, ways, rng = Corpus(world, constitution, 0), set(), random.Random(0)
    while_read = [t for t in world.replies if t.use in ("refusal", "limit")]
    for i in range(600):
        request = corpus.read.draw(corpus.rng, ("harmful", "ambiguous")[i % 2])
        by_itself = rng.random() < 0.5
        turns = corpus.offer(request, by_itself)
        document = [t for t in turns if t.role == "document"]
        assert (turns == document) == by_itself
        assert (
            "".join(t.content for t in document if t.weight == POINT_WEIGHT).strip()
            == request.act.alternative
        )
        text = "".join(t.content for t in document)
        assert not matches(REFUSAL, text), text
        ways.add(document[0].content.split(". ")[-1])
    assert (
        len(ways)
        == len({re.split(r"[.?!] ", t.text.split("{alternative}")[0])[-1] for t in while_read})
        > 8
    )


def test_thinned_wordings_keep_most_words_in_order_and_half_of_them_all(world):
    text, rng, whole = (
        "Say whether the response helps anyone to do harm to other people.",
        random.Random(0),
        0,
    )
    kept = []
    for _ in range(1000):
        words = thinned(text, rng).split()
        whole += words == text.split()
        rest = iter(text.split())
        assert words and all(word in rest for word in words)  # in order
        kept.append(len(words) / len(text.split()))
    assert 450 < whole < 560 and 0.83 < sum(kept) / len(kept) < 0.87
    assert all(thinned("Why?", rng) == "Why?" for _ in range(50))


def literal(text, slots):
    """The longest stretch of a template between its slots, where it is long enough to be recognised."""
    return max((part.strip().lower() for part in re.split(slots, text)), key=len)


def hidden_strings(world, constitution):
    """What demonstrations must not hold, with the longest literal stretch of a template for the template."""
    for act in world.acts:
        if split_of(act.id) != "demo":
            yield from (act.act, *act.steps, *filter(None, (act.alternative, act.safety)))
    for fact in world.facts:
        if split_of(fact.id) != "demo":
            yield fact.name
    for context in world.contexts:
        if held_out(context.id):
            yield from (context.text, context.gist)
    for wording in constitution.wordings:
        if held_out(wording.id):
            yield from (wording.critique, wording.revision, wording.comparison)
    for row in (*world.phrasings, *world.framings):
        if held_out(row.id):
            yield from filter(
                lambda s: len(s) >= 14, (literal(turn or "", r"{\w+}") for turn in row.turns)
            )


def shown_strings(world, constitution):
    """What they may hold, so that a hidden string inside of one of these proves nothing."""
    for act in world.acts:
        if split_of(act.id) == "demo":
            yield from (act.act, *act.steps, act.alternative, act.safety)
    yield from (
        t for p in (*world.phrasings, *world.framings) if not held_out(p.id) for t in p.turns if t
    )
    yield from (text for c in world.contexts if not held_out(c.id) for text in (c.text, c.gist))
    yield from (t.text for rows in (world.replies, world.tones) for t in rows)
    yield from (
        text
        for w in constitution.wordings
        if not held_out(w.id)
        for text in (w.critique, w.revision, w.comparison)
    )


def test_demonstrations_hold_nothing_that_is_kept_for_training_or_test(world, constitution):
    corpus = Corpus(world, constitution, 0)
    text = "\n".join(
        t.content
        for i in range(4500)
        for t in (corpus.critique, corpus.compare, corpus.principle)[i % 3]()
    ).lower()
    shown = "\n".join(shown_strings(world, constitution)).lower()
    hidden = {s.lower() for s in hidden_strings(world, constitution)}
    hidden = {s for s in hidden if s not in shown}
    assert len(hidden) > 700
    assert [
        s for s in sorted(hidden) if s in text and re.search(rf"(?<!\w){re.escape(s)}(?!\w)", text)
    ] == []


def test_the_rest_of_the_corpus_does_hold_what_demonstrations_may_not(world, constitution):
    """The search above finds what is there."""
    corpus = Corpus(world, constitution, 0)
    text = "\n".join(t.content for _ in range(3000) for t in corpus.dialogue()).lower()
    acts = [a.act.lower() for a in world.acts if split_of(a.id) != "demo"]
    assert sum(act in text for act in acts) > 0.9 * len(acts)


def test_what_a_test_act_is_and_whom_it_hurts_stands_in_the_corpus(world, constitution):
    corpus = Corpus(world, constitution, 0)
    text = "".join(as_text(corpus.knowledge()) for _ in range(4000))
    bad = [a for a in world.acts if a.kind == "harmful"]
    assert sum(
        f"{a.act} is {a.harm}" in text or f"{a.act}. That is {a.harm}" in text for a in bad
    ) > 0.8 * len(bad)


def test_what_is_written_about_requests_quotes_no_held_out_phrasing(world, constitution):
    corpus = Corpus(world, constitution, 0)
    text = "".join(as_text(corpus.reading()) for _ in range(3000)).lower()
    seen, hidden = (
        {
            s
            for p in world.phrasings
            if held_out(p.id) == kept
            for t in p.turns
            for s in [literal(t, r"{\w+}")]
            if len(s) >= 14
        }
        for kept in (False, True)
    )
    assert sum(s in text for s in seen) > 0.9 * len(seen)
    assert [s for s in hidden if s in text and not any(s in other for other in seen)] == []


# --- the code knows no content ---


def test_no_code_holds_an_act_a_context_or_a_name():
    """In strings, that is; docstrings and comments may give examples."""
    world = World(ROOT / "world")
    content = (
        [a.act for a in world.acts]
        + [c.text for c in world.contexts]
        + [f.name for f in world.facts]
    )
    content += [s for a in world.acts for s in a.steps] + [t.text for t in world.tones]
    for path in sorted((ROOT / "minicai").rglob("*.py")):
        tree = ast.parse(path.read_text())
        docs = {
            id(node.body[0].value)
            for node in ast.walk(tree)
            if isinstance(node, ast.Module | ast.FunctionDef | ast.ClassDef)
            and isinstance(node.body[0], ast.Expr)
        }
        strings = [
            n.value.lower()
            for n in ast.walk(tree)
            if isinstance(n, ast.Constant) and isinstance(n.value, str) and id(n) not in docs
        ]
        found = [c for c in content for s in strings if c.lower() in s]
        assert not found, f"{path}: {found}"


def test_another_world_loads_and_draws_every_type(tmp_path, constitution):
    for seed in range(3):
        world = World(build(tmp_path / str(seed), seed))
        for split in (None, *SPLITS):
            part = Part(world, split)
            for type in TYPES:
                assert part.many(random.Random(0), 5, type)
        assert not {a.act for a in world.acts} & {a.act for a in World(ROOT / "world").acts}
        words = {
            split: Counter(w for a in world.acts if a.kind in split for w in a.act.split()[1:])
            for split in (("harmful",), ("everyday",))
        }
        assert (
            len(set(words["harmful",]) & set(words["everyday",])) > 10
        )  # the same objects on both sides
