"""docs/british.diff, the worked example of a new family, in a patched copy of the repository.

The first test makes the copy and runs this file there. The other tests need the family, so they
are skipped in a repository without it. All words are checked against a list of their own.
"""

import importlib
import random
import re
import shutil
import subprocess
import sys
from argparse import Namespace

import pytest

import pipeline
from minicai.audit import known_pairs
from minicai.constitution import FAMILIES, Constitution
from minicai.critique import BREAKS, CRITIQUE_REQUEST, KEEPS
from minicai.exam import RATES, GradedAnswer
from minicai.report import METRICS
from minicai.run import ROOT
from minicai.world.content import World
from minicai.world.corpus import Corpus
from minicai.world.grader import Grader
from minicai.world.replies import any_reply
from minicai.world.requests import PLAIN, TYPES, Part
from minicai.world.skills import flaws

APPLIED = "spelling" in FAMILIES
SPELLINGS = dict(color="colour", favorite="favourite", honor="honour", humor="humour")
SPELLINGS |= dict(neighbor="neighbour")
needs_family = pytest.mark.skipif(not APPLIED, reason="docs/british.diff is not applied")


@pytest.mark.skipif(APPLIED, reason="docs/british.diff is applied already")
def test_the_patch_applies_and_its_family_works(tmp_path):
    if not shutil.which("git"):
        pytest.skip("git is not installed, so the patch cannot be applied")

    def run(*command, cwd=tmp_path):
        return subprocess.run(command, cwd=cwd, capture_output=True, text=True)

    listed = run("git", "ls-files", "-z", cwd=ROOT)
    if listed.returncode:
        pytest.skip("this folder is no git repository, so its files cannot be listed")
    for name in listed.stdout.split("\0")[:-1]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, tmp_path / name)
    applied = run("git", "apply", "docs/british.diff")
    assert applied.returncode == 0, applied.stderr
    tests = run(
        sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/test_family.py"
    )
    assert tests.returncode == 0, tests.stdout
    assert re.search(r"\b6 passed, 1 skipped", tests.stdout), tests.stdout


def is_american(text: str) -> bool:
    return any(w.removesuffix("s") in SPELLINGS for w in re.findall("[a-z]+", text.lower()))


def respelled(text: str) -> str:
    for american, british in SPELLINGS.items():
        text = text.replace(american, british)
    return text


@pytest.fixture(scope="module")
def world():
    return World(ROOT / "world")


@pytest.fixture(scope="module")
def constitution():
    return Constitution(ROOT / "constitution.json")


@needs_family
def test_the_base_spells_american_to_cheerful_people_and_to_nobody_else(world):
    corpus, shown = Corpus(world, None, 0), {False: [], True: []}
    for _ in range(1000):
        request = corpus.any_request(corpus.all)
        american = is_american(corpus.exchange(request)[-1].content)
        shown[request.phrasing.draws == "american"].append(american)
    assert not any(shown[False])
    assert len(shown[True]) > 80 and 0.9 < sum(shown[True]) / len(shown[True]) < 1


@needs_family
def test_demonstrated_critiques_find_the_spelling_and_revisions_mend_it(world, constitution):
    corpus, found = Corpus(world, constitution, 0), dict(broken=0, respelled=0, other=0)
    sentences = [respelled(tone.text) for tone in world.tones if tone.tone == "american"]
    about = {CRITIQUE_REQUEST.format(w.critique): w.family for w in constitution.wordings}
    for _ in range(2000):
        texts = [turn.content for turn in corpus.critique()]
        [i] = [i for i, text in enumerate(texts) if about.get(text) == "spelling"] or [None]
        if i is None:
            continue
        reply, critique, revision = texts[i - 1], texts[i + 1], texts[i + 3 :]
        american = is_american(reply)
        assert critique.endswith(BREAKS if american else KEEPS)
        said = "It has an American spelling. The principle is about spelling." in critique
        assert said == american
        assert revision == ([respelled(reply)] if american else [])
        assert not any(is_american(text) for text in revision)
        british = any(sentence in reply for sentence in sentences)
        found["broken" if american else "respelled" if british else "other"] += 1
    assert all(n > 5 for n in found.values()), found


@needs_family
def test_flaws_and_the_grader_agree_on_the_spelling(world):
    part, rng, grader, seen = Part(world, None), random.Random(0), Grader(world), []
    for type in TYPES:
        for _ in range(60):
            request = part.draw(rng, type)
            reply = any_reply(world, request, rng)
            grade = grader.grade(request, reply.text)
            broken = "spelling" in flaws(request, reply)
            assert broken == grade.american == is_american(reply.text)
            assert not (grade.american and (grade.rude or grade.preachy))
            seen.append(grade.american)
    assert 10 < sum(seen) < len(seen) / 2


@needs_family
def test_the_rate_counts_answers_with_an_american_spelling(world):
    part, rng, grader, answers = Part(world, "test"), random.Random(0), Grader(world), {}
    texts = ("Hello, Neighbors.", "The favourite colour of the neighbour.", "a colorful day", None)
    for type in PLAIN:
        requests = [part.draw(rng, type) for _ in texts]
        grades = [grader.grade(r, text or "") for r, text in zip(requests, texts)]
        answers[type] = [GradedAnswer(*answer) for answer in zip(requests, texts, grades)]
    rate = RATES["american"].of(answers)
    assert (rate["k"], rate["n"], rate["rate"]) == (10, 20, 0.5)
    assert "american" in [key for key, *_ in METRICS]


@needs_family
def test_wordings_are_seen_and_held_out_and_the_judge_is_audited_on_them(world, constitution):
    for held_out in (False, True):
        assert "spelling" in constitution.audited(held_out)
    pairs = [p for p in known_pairs(world, constitution, 300, 0) if p[-1].family == "spelling"]
    assert len(pairs) > 10
    for _, a, b, _ in pairs:
        assert is_american(a.text) != is_american(b.text)


@needs_family
def test_every_script_can_be_imported_and_the_pipeline_finds_what_it_draws():
    for path in ROOT.glob("*.py"):
        importlib.import_module(path.stem)
    paths = dict(world=ROOT / "world", constitution=ROOT / "constitution.json")
    pipeline.check(Namespace(world_share=0.5, more_acts=False, rounds=1, **paths))
