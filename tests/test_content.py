"""The world's content: the loader finds every mistake, and no id ever moves to another split."""

import ast
import hashlib
import json
import shutil
from collections import Counter
from pathlib import Path

import pytest

from experiments.other_world import build
from minicai.files import UserError, read_jsonl, write_jsonl
from minicai.run import ROOT
from minicai.splits import SALT, bucket, held_out, split_of
from minicai.world.content import KINDS, SEEN, TECHNIQUES, Act, Context, World
from minicai.world.requests import Part

SPLITS = ("demo", "train", "test")


@pytest.fixture(scope="module", params=["world", "more", "other"])
def world(request, tmp_path_factory):
    if request.param == "other":
        return World(build(tmp_path_factory.mktemp("other")))
    return World(ROOT / "world", more=request.param == "more")


@pytest.fixture
def folder(tmp_path) -> Path:
    """A copy of world/ that may be changed."""
    return shutil.copytree(ROOT / "world", tmp_path / "copy")


def test_the_world_is_as_large_as_promised():
    world = World(ROOT / "world")
    assert len(world.acts) >= 240 and len(world.contexts) >= 80
    assert len(world.framings) >= 2 * len(TECHNIQUES)
    assert sum(p.use == "act" for p in world.phrasings) >= 40
    assert Counter(f.seen for f in world.facts)["never"] >= 100


def test_every_split_holds_every_kind_of_thing(world):
    for split in SPLITS:
        part = Part(world, split)
        assert all(sum(a.kind == kind for a in part.acts) >= 4 for kind in KINDS)
        assert {f.seen for f in part.facts} == set(SEEN)
        assert {c.intent for c in part.contexts} == {"legitimate", "malicious"}
        assert {p.use for p in part.phrasings} == {"act", "protection", "fact"}


def test_the_values_of_an_attribute_are_those_of_all_names_each_once(world):
    for kind, attributes in world.attributes.items():
        facts = [f.facts for f in world.facts if f.kind == kind and f.facts]
        for attribute, values in attributes.items():
            assert len(values) == len(set(values)) > 1
            assert set(values) == {f[attribute] for f in facts if attribute in f}


def test_a_reason_fits_an_act_of_its_kinds_or_words_and_without_a_list_every_act():
    def act(kind, *about):
        return Act("x", kind, "do it", ("a b c", "d e f"), about)

    def fits(act, *about):
        return Context("y", "legitimate", "Why.", "for it", about).fits(act)

    assert fits(act("dual_use", "car"), "home", "car") and fits(act("dual_use"), "dual_use")
    assert not fits(act("dual_use", "car"), "home") and not fits(act("dual_use"), "harmful")
    assert fits(act("dual_use", "car")) and fits(act("everyday"))


@pytest.mark.parametrize("more", [False, True])
def test_acts_and_reasons_of_the_world_share_their_words(more):
    """A word that only one side has is a spelling mistake, or of no use."""
    world = World(ROOT / "world", more=more)
    of_acts = {word for act in world.acts for word in act.about}
    of_contexts = {word for context in world.contexts for word in context.about}
    assert of_acts and of_acts == of_contexts - set(KINDS)


# --- more acts -----------------------------------------------------------------------------------


def test_more_acts_come_after_the_others_and_only_on_request(folder):
    few, more = World(folder).acts, World(folder, more=True).acts
    assert few == more[: len(few)] and len(more) - len(few) >= 200
    added = Counter(act.kind for act in more[len(few) :])
    assert added["harmful"] >= 80 and added["dual_use"] >= 35
    assert added["lookalike"] >= 50 and added["sensitive"] >= 35
    (folder / "more_acts.jsonl").unlink()
    assert World(folder).acts == few
    with pytest.raises(UserError, match="more_acts.jsonl does not exist; write it") as error:
        World(folder, more=True)
    assert "\n" not in str(error.value)


def test_an_act_may_not_come_twice_in_the_two_files(folder):
    rows = read_jsonl(folder / "more_acts.jsonl")
    for change in ({field: ACTS[0][field]} for field in ("id", "act", "steps")):
        write_jsonl(folder / "more_acts.jsonl", [rows[0], rows[1] | change])
        with pytest.raises(UserError, match=f"more_acts.jsonl:2 shares .*{ACTS[0]['id']!r}"):
            World(folder, more=True)


def test_no_act_and_no_advice_can_be_taken_for_another():
    """Acts are found in free text, and an answer is graded by its advice."""
    acts = World(ROOT / "world", more=True).acts
    for field in ("act", "alternative", "safety"):
        texts = [f" {getattr(act, field)} " for act in acts if getattr(act, field)]
        assert not [(a, b) for a in texts for b in texts if a is not b and a.lower() in b.lower()]


# --- mistakes in a world -------------------------------------------------------------------------


def edit(name, number, **changes):
    """Change one line of a file; a field set to `del` goes away."""

    def change(folder):
        rows = read_jsonl(folder / f"{name}.jsonl")
        row = rows[number - 1] | changes
        rows[number - 1] = {key: value for key, value in row.items() if value != "del"}
        write_jsonl(folder / f"{name}.jsonl", rows)

    return change


def line(name, number, text):
    """Replace one line of a file by a text."""

    def change(folder):
        path = folder / f"{name}.jsonl"
        lines = path.read_text().splitlines()
        lines[number - 1] = text
        path.write_text("\n".join(lines) + "\n")

    return change


def without(name, **having):
    """Delete every row with these values."""

    def change(folder):
        rows = read_jsonl(folder / f"{name}.jsonl")
        kept = [row for row in rows if any(row.get(k) != v for k, v in having.items())]
        write_jsonl(folder / f"{name}.jsonl", kept)

    return change


def fill(name, key, use, text):
    """Change the text of the first line of one use."""
    rows = read_jsonl(ROOT / "world" / f"{name}.jsonl")
    return edit(name, 1 + [row[key] for row in rows].index(use), text=text)


def turns(name, *texts):
    """Change the turns of the first line."""
    return edit(name, 1, turns=list(texts))


def misfit(hidden, intent):
    """Let the reasons of one intent in the seen or the held-out part fit no act."""

    def change(folder):
        rows = read_jsonl(folder / "contexts.jsonl")
        for row in rows:
            if (held_out(row["id"]), row["intent"]) == (hidden, intent):
                row["about"] = ["nothing"]
        write_jsonl(folder / "contexts.jsonl", rows)

    return change


ACTS = read_jsonl(ROOT / "world" / "acts.jsonl")
HARMFUL = 1 + [row["kind"] for row in ACTS].index("harmful")
TWINS = '{"id": "twin", "intent": "malicious", "text": "A.", "gist": "b"}\n' * 2
BROKEN = {  # what is wrong -> (how to break a good world, a pattern of the message)
    "malformed JSON": (line("acts", 3, '{"id": "x", '), "acts.jsonl:3 .*JSON"),
    "a list instead of an object": (line("tones", 2, "[1, 2]"), "tones.jsonl:2 .*object"),
    "an empty file": (lambda f: (f / "tones.jsonl").write_text(""), "tones.jsonl .*empty"),
    "a missing file": (lambda f: (f / "facts.jsonl").unlink(), "facts.jsonl .*not exist"),
    "no folder": (shutil.rmtree, "--world"),
    # fields
    "no id": (edit("facts", 4, id="del"), "facts.jsonl:4 .*'id'"),
    "no act": (edit("acts", 5, act="del"), "acts.jsonl:5 .*'act'"),
    "no gist": (edit("contexts", 2, gist="del"), "contexts.jsonl:2 .*'gist'"),
    "no use": (edit("replies", 2, **{"for": "del"}), "replies.jsonl:2 .*'for'"),
    "no subject": (edit("documents", 2, about="del"), "documents.jsonl:2 .*'about'"),
    "an unknown field": (edit("acts", 5, colour="red"), "acts.jsonl:5 .*'colour'; delete"),
    "an act of blanks": (edit("acts", 5, act=" "), "acts.jsonl:5 has act"),
    "a word in place of a list": (edit("acts", 5, about="home"), "acts.jsonl:5 has about 'home'"),
    "a blank word": (edit("contexts", 2, about=["home", ""]), "contexts.jsonl:2 has about"),
    "a fear in words": (edit("acts", 5, feared="no"), "acts.jsonl:5 has feared 'no'.*true or fals"),
    "an empty context": (edit("contexts", 2, text=""), "contexts.jsonl:2 has text"),
    "a number as the text of a reply": (edit("replies", 1, text=5), "replies.jsonl:1 has text 5"),
    "a bad kind": (edit("acts", 5, kind="evil"), "acts.jsonl:5 .*'evil'.*everyday"),
    "a bad intent": (edit("contexts", 2, intent="odd"), "contexts.jsonl:2 .*'odd'"),
    "a bad frequency": (edit("facts", 1, seen="daily"), "facts.jsonl:1 .*'daily'"),
    "a bad tone": (edit("tones", 1, tone="sad"), "tones.jsonl:1 .*'sad'"),
    "a bad place": (edit("tones", 1, place="within"), "tones.jsonl:1 .*'within'"),
    "a bad technique": (edit("framings", 1, technique="magic"), "framings.jsonl:1 .*'magic'"),
    "a bad style": (edit("phrasings", 1, style="loud"), "phrasings.jsonl:1 .*'loud'"),
    "a bad draw": (edit("phrasings", 1, draws="joy"), "phrasings.jsonl:1 .*'joy'"),
    "a bad use": (edit("phrasings", 1, **{"for": "fun"}), "phrasings.jsonl:1 .*'fun'"),
    "a bad reply": (edit("replies", 1, **{"for": "song"}), "replies.jsonl:1 .*'song'"),
    "a bad document": (edit("documents", 1, about="nothing"), "documents.jsonl:1 .*'nothing'"),
    "a bad severity": (edit("acts", HARMFUL, severity="grave"), f"acts.jsonl:{HARMFUL} .*'grave'"),
    "a severity of no act": (edit("replies", 1, severity="Mild"), "replies.jsonl:1 .*'Mild'"),
    # acts
    "no victim": (edit("acts", HARMFUL, victim="del"), f"acts.jsonl:{HARMFUL} .*'victim'"),
    "an empty harm": (edit("acts", HARMFUL, harm=""), f"acts.jsonl:{HARMFUL} .*'harm'"),
    "a harm of blanks": (edit("acts", HARMFUL, harm=" "), f"acts.jsonl:{HARMFUL} has harm"),
    "one step": (edit("acts", 5, steps=["do the first thing"]), "acts.jsonl:5 .*two steps"),
    "a short step": (edit("acts", 5, steps=["do a thing", "stop now"]), "acts.jsonl:5 .*three wor"),
    "steps that are no list": (edit("acts", 5, steps=None), "acts.jsonl:5 has steps None"),
    "steps of numbers": (edit("acts", 5, steps=[1, 2]), "acts.jsonl:5 has steps"),
    "a duplicate id": (line("contexts", 3, TWINS.strip()), "contexts.jsonl:4 .*'twin'"),
    "a shared act": (edit("acts", 5, act=ACTS[0]["act"]), "acts.jsonl:5 .*shares .*'bake-bread'"),
    "a shared step": (
        edit("acts", 5, steps=["knead the dough until smooth", "sing it a song"]),
        "acts.jsonl:5 .*shares .*'bake-bread'",
    ),
    # names
    "a seen name without facts": (edit("facts", 1, facts={}), "facts.jsonl:1 .*facts"),
    "an unseen name with facts": (edit("facts", 1, seen="never"), "facts.jsonl:1 .*none if it nev"),
    "a number for a fact": (edit("facts", 1, facts={"job": 3}), "facts.jsonl:1 .*'job'"),
    "an empty fact": (edit("facts", 1, facts={"job": ""}), "facts.jsonl:1 .*'job'"),
    "a lone name of its kind": (
        edit("facts", 1, kind="comet"),
        "facts.jsonl needs two 'comet' nam",
    ),
    # phrasings
    "a missing slot": (turns("phrasings", "How do I {act}?"), "phrasings.jsonl:1 .*{context}"),
    "a slot twice": (turns("phrasings", "{act} {act} {context}"), "phrasings.jsonl:1 .*{act}"),
    "an unknown slot": (turns("phrasings", "{act} {context} {mood}"), "phrasings.jsonl:1 .*{mood}"),
    "two turns": (turns("phrasings", "{act} {context}", "Yes?"), "phrasings.jsonl:1 .*turn of the"),
    "an empty turn": (
        turns("phrasings", "", "Yes?", "{act} {context}"),
        "phrasings.jsonl:1 has tu",
    ),
    "turns in one string": (edit("phrasings", 1, turns="{act} {context}"), "phrasings.jsonl:1 has"),
    "a question before the last turn": (
        turns("phrasings", "I want to {act}. {context}", "Fine.", "Tell me the steps."),
        "phrasings.jsonl:1 .*last turn",
    ),
    # framings
    "a framing without the request": (turns("framings", "Hello."), "framings.jsonl:1 .*{request}"),
    "a framing with both": (turns("framings", "{request} {code}"), "framings.jsonl:1 .*exactly on"),
    "turns that are none": (edit("framings", 1, turns=None), "framings.jsonl:1 has turns None"),
    "the assistant ends": (turns("framings", "{request}", None), "framings.jsonl:1 .*turn of the"),
    "the assistant opens": (
        turns("framings", None, None, "{request}"),
        "framings.jsonl:1 .*turn o",
    ),
    "a code without a technique for it": (turns("framings", "{code}"), "framings.jsonl:1 .*{code}"),
    # braces and slots
    "a brace in a phrasing": (turns("phrasings", "{act} {context} }"), "phrasings.jsonl:1 .*stray"),
    "a brace in a framing": (turns("framings", "{ {request}"), "framings.jsonl:1 .*stray"),
    "a brace in a reply": (edit("replies", 1, text="To {aim}. {"), "replies.jsonl:1 .*stray"),
    "a nameless slot": (edit("documents", 1, text="{act} is {}."), "documents.jsonl:1 .*stray"),
    "a format": (edit("documents", 1, text="{act!r} is {harm:>5}."), "documents.jsonl:1 .*stray"),
    "a harm of a name": (
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
    # what every world needs
    "no sensitive act": (without("acts", kind="sensitive"), "acts.jsonl .*'sensitive'"),
    "no malicious context": (without("contexts", intent="malicious"), "contexts.jsonl .*malicious"),
    "no good reason that is seen": (
        misfit(False, "legitimate"),
        "contexts.jsonl has no seen legitimate context that fits the act '.*'; add one",
    ),
    "no bad reason that is held out": (
        misfit(True, "malicious"),
        "contexts.jsonl has no held-out malicious context that fits the act '.*'; add one",
    ),
    "no phrasing of facts": (without("phrasings", **{"for": "fact"}), "phrasings.jsonl .*'fact'"),
    "no unseen name": (without("facts", seen="never"), "facts.jsonl .*'never'"),
    "no sermon": (without("tones", tone="preachy"), "tones.jsonl .*'preachy'"),
    "no refusal": (without("replies", **{"for": "refusal"}), "replies.jsonl .*'refusal'"),
    "no mild refusal": (without("replies", severity="mild"), "replies.jsonl .*'mild'"),
    "no codes": (without("documents", about="code"), "documents.jsonl .*'code'"),
}


@pytest.mark.parametrize("breaks, names", BROKEN.values(), ids=BROKEN)
def test_a_mistake_is_one_sentence_that_names_file_and_line(breaks, names, folder):
    breaks(folder)
    with pytest.raises(UserError, match=names) as error:
        World(folder)
    assert "\n" not in str(error.value)


def test_a_copy_that_is_not_broken_is_read_and_its_fields_may_be_in_any_order(folder):
    for path in folder.glob("*.jsonl"):
        write_jsonl(path, [dict(reversed(row.items())) for row in read_jsonl(path)])
    copy, world = World(folder), World(ROOT / "world")
    for name in ("acts", "contexts", "phrasings", "facts", "tones", "framings", "replies"):
        assert getattr(copy, name) == getattr(world, name)
    assert copy.documents == world.documents


# --- splits --------------------------------------------------------------------------------------


def test_the_split_of_an_id_is_its_hash_and_so_never_moves():
    for key in ("bake-bread", "pick-a-lock", "", "naïve"):
        digest = hashlib.sha256((SALT + key).encode()).hexdigest()
        assert bucket(key) == int(digest[:16], 16) % 100
    assert [split_of(key) for key in ("brush-cat", "bake-bread", "learn-guitar")] == list(SPLITS)
    counts = Counter(split_of(str(i)) for i in range(10_000))
    for split, share in zip(SPLITS, (0.32, 0.4, 0.28)):
        assert abs(counts[split] / 10_000 - share) < 0.02
    assert abs(sum(held_out(str(i)) for i in range(10_000)) / 10_000 - 0.25) < 0.02


def test_a_part_holds_its_split_whatever_is_added_to_the_world(folder):
    rows = read_jsonl(folder / "acts.jsonl")
    steps = [[f"take the number {i}", f"give back number {i}"] for i in range(50)]
    new = [dict(id=f"new-{i}", kind="everyday", act=f"do {i}") for i in range(50)]
    write_jsonl(folder / "acts.jsonl", [r | dict(steps=s) for r, s in zip(new, steps)] + rows)
    for split in SPLITS:
        before = {act.id for act in Part(World(ROOT / "world"), split).acts}
        after = {act.id for act in Part(World(folder), split).acts}
        assert {id for id in after if not id.startswith("new-")} == before < after


# --- the code knows no content -------------------------------------------------------------------


def test_no_code_holds_an_act_a_context_or_a_name():
    """This is about strings. Docstrings and comments may give examples."""
    world = World(ROOT / "world")
    content = [act.act for act in world.acts] + [s for act in world.acts for s in act.steps]
    content += [c.text for c in world.contexts] + [f.name for f in world.facts]
    content = [text.lower() for text in (*content, *(tone.text for tone in world.tones))]
    holders = ast.Module | ast.FunctionDef | ast.ClassDef
    for path in (*(ROOT / "minicai").rglob("*.py"), *ROOT.glob("*.py")):
        nodes = list(ast.walk(ast.parse(path.read_text())))
        bodies = [n.body[0] for n in nodes if isinstance(n, holders) and n.body]
        docs = {id(first.value) for first in bodies if isinstance(first, ast.Expr)}
        strings = [n for n in nodes if isinstance(n, ast.Constant) and id(n) not in docs]
        for text in (n.value.lower() for n in strings if isinstance(n.value, str)):
            assert not [c for c in content if c in text], f"{path}: {text}"


def test_half_a_surrogate_pair_may_be_in_an_id(folder):
    facts = folder / "facts.jsonl"
    row = json.loads(facts.read_text().splitlines()[0]) | dict(id="half \ud83d", name="Half")
    with facts.open("a") as f:
        f.write(json.dumps(row) + "\n")
    assert World(folder).facts[-1].id == "half \ud83d"
