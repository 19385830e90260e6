"""The constitution: how its wordings are drawn, and which files are refused."""

import json
import random
import re
from collections import Counter
from pathlib import Path

import pytest

from minicai.constitution import FAMILIES, Constitution
from minicai.files import UserError
from minicai.splits import held_out


@pytest.fixture(scope="module")
def constitution():
    return Constitution("constitution.json")


def write(path, principles) -> Constitution:
    path.write_text(json.dumps(dict(principles=principles)))
    return Constitution(path)


def principle(id="a", family="honesty", n=8, **changes) -> dict:
    keys = ("critique", "revision", "comparison")
    wordings = [{key: f"{key} {i} of {id}" for key in keys} for i in range(n)]
    return dict(id=id, family=family, wordings=wordings) | changes


def test_a_wording_is_its_principle_and_its_place_in_the_list(tmp_path):
    found = write(tmp_path / "c.json", [principle("a"), principle("b", "respect")]).wordings
    assert [w.id for w in found] == [f"{name}/{i}" for name in "ab" for i in range(8)]
    wording = found[9]
    assert (wording.principle, wording.family) == ("b", "respect")
    texts = wording.critique, wording.revision, wording.comparison
    assert texts == ("critique 1 of b", "revision 1 of b", "comparison 1 of b")


def test_every_sentence_of_the_constitution_is_unique(constitution):
    sentences = [t for w in constitution.wordings for t in (w.critique, w.revision, w.comparison)]
    assert len(set(sentences)) == len(sentences) >= 16 * 4 * 3
    assert constitution.families == list(FAMILIES)


def test_the_principle_that_the_documents_show_can_be_added(tmp_path):
    added = json.loads(re.search(r"```json\n(.*?)```", Path("docs/family.md").read_text(), re.S)[1])
    principles = json.loads(Path("constitution.json").read_text())["principles"]
    found = write(tmp_path / "c.json", [*principles, added])
    drawn = {found.draw(random.Random(i), family=added["family"]).principle for i in range(100)}
    assert added["id"] in drawn


def test_principles_are_drawn_evenly_and_with_replacement(constitution):
    rng, names = random.Random(0), {w.principle for w in constitution.wordings}
    drawn = [constitution.draw(rng) for _ in range(200 * len(names))]
    counts = Counter(w.principle for w in drawn)
    # 200 each, within four standard deviations
    assert counts.keys() == names and len(names) >= 16
    assert all(140 < n < 260 for n in counts.values())
    assert any(a.principle == b.principle for a, b in zip(drawn, drawn[1:]))
    for name in names:  # then each of its wordings alike
        seen = {w.id for w in constitution.wordings if w.principle == name and not held_out(w.id)}
        wordings = Counter(w.id for w in drawn if w.principle == name)
        assert wordings.keys() == seen
        assert all(n > 100 / len(seen) for n in wordings.values())


@pytest.mark.parametrize("test", [False, True])
def test_training_draws_seen_wordings_and_the_exam_held_out_ones(constitution, test):
    rng = random.Random(0)
    assert all(held_out(constitution.draw(rng, test).id) == test for _ in range(300))
    for family in FAMILIES:
        drawn = [constitution.draw(rng, test, family) for _ in range(50)]
        assert all(w.family == family and held_out(w.id) == test for w in drawn)


def test_a_family_can_be_struck_out(constitution):
    rest = constitution.without("harmlessness")
    assert rest.families == [family for family in FAMILIES if family != "harmlessness"]
    assert constitution.families == list(FAMILIES)  # the whole one stays whole
    with pytest.raises(UserError, match="no seen wording of harmlessness; add"):
        rest.draw(random.Random(0), family="harmlessness")
    with pytest.raises(UserError, match="--without kindness: constitution.json has harmlessness"):
        constitution.without("kindness")
    *others, last = rest.families
    for family in others:
        rest = rest.without(family)
    with pytest.raises(UserError, match=f"--without {last}"):
        rest.without(last)


def test_families_come_in_one_order_whatever_the_file_says(tmp_path):
    names = ("necessity", "honesty", "harmlessness")
    found = write(tmp_path / "c.json", [principle(name, name) for name in names])
    assert found.families == ["harmlessness", "honesty", "necessity"]


def test_an_audit_needs_a_wording_of_its_kind(tmp_path, constitution):
    assert constitution.audited(True) == constitution.audited(False) == list(FAMILIES)
    seen = next(name for name in map(str, range(99)) if not held_out(f"{name}/0"))
    found = write(tmp_path / "c.json", [principle(seen, "respect", 1), principle("honest", n=20)])
    assert found.audited(False) == ["honesty", "respect"] and found.audited(True) == ["honesty"]
    with pytest.raises(UserError, match="c.json has no held-out wording to audit with"):
        found.without("honesty").audited(True)
    with pytest.raises(UserError, match="no held-out wording of respect"):
        found.draw(random.Random(0), test=True, family="respect")


WORDING = dict(critique="x", revision="y", comparison="z")


@pytest.mark.parametrize(
    "principles, message",
    [
        (None, "has no list of principles"),
        (5, "has no list of principles"),
        ("ab", "has no list of principles"),
        ([], "has no list of principles"),
        ([5], "the principle 5... is not built like the others"),
        (["ab"], "is not built like the others"),
        ([principle(wordings=5)], "is not built like the others"),
        ([principle(wordings=["x"])], "is not built like the others"),
        ([dict(id="a", family="honesty")], "lacks the field 'wordings'; add it"),
        ([principle(wordings=[dict(critique="x")])], "lacks the field 'revision'"),
        ([principle(family="magic")], "has the family 'magic', not one of harmlessness, "),
        ([principle(family=["honesty"])], "has the family"),
        ([principle(wordings=[])], "has no wording"),
        ([principle(wordings=[WORDING | dict(critique=1)])], "or one that is not text"),
        ([principle(id=3)], "or one that is not text"),
        ([principle(), principle()], "has two principles with one id"),
    ],
)
def test_a_file_of_another_shape_is_refused(tmp_path, principles, message):
    with pytest.raises(UserError, match=f"c.json.*{message}"):
        write(tmp_path / "c.json", principles)


def test_a_byte_order_mark_and_other_line_ends_are_no_matter(tmp_path, constitution):
    text = Path(constitution.path).read_bytes()
    (tmp_path / "c.json").write_bytes(b"\xef\xbb\xbf" + text.replace(b"\n", b"\r\n"))
    assert Constitution(tmp_path / "c.json").wordings == constitution.wordings


def test_a_family_without_a_seen_wording_is_refused(tmp_path):
    name = next(name for name in map(str, range(99)) if held_out(f"{name}/0"))
    with pytest.raises(UserError, match="c.json: all wordings of honesty are held out"):
        write(tmp_path / "c.json", [principle("r", "respect"), principle(name, n=1)])


@pytest.mark.parametrize("text", ["{", "", "[]", "3", "9" * 5000, "[" * 20_000, "NaN"])
def test_a_file_that_is_no_json_object_is_refused(tmp_path, text):
    path = tmp_path / "c.json"
    with pytest.raises(UserError, match="c.json does not exist"):
        Constitution(path)
    path.write_text(text)
    with pytest.raises(UserError, match="c.json (is not valid JSON|has no list of principles)"):
        Constitution(path)
