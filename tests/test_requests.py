"""Requests: each is made only of what its split may use, as the table in requests.py says."""

import random
import re
from collections import Counter

import pytest

from experiments.other_world import build
from minicai.constitution import Constitution
from minicai.exam import Exam
from minicai.files import UserError
from minicai.run import ROOT
from minicai.splits import held_out, split_of
from minicai.world.content import Fact, World
from minicai.world.corpus import Corpus
from minicai.world.disguises import fits, wrap
from minicai.world.names import fresh_fact
from minicai.world.requests import HELPFUL, MIX, PLAIN, TYPES, Part, draw_prompts

SPLITS = ("demo", "train", "test")


@pytest.fixture(scope="module", params=["world", "more", "other"])
def world(request, tmp_path_factory):
    if request.param == "other":
        return World(build(tmp_path_factory.mktemp("other")))
    return World(ROOT / "world", more=request.param == "more")


# --- what a split may use ------------------------------------------------------------------------


@pytest.mark.parametrize("split", SPLITS)
def test_requests_are_made_only_of_what_their_split_may_use(world, split):
    part, rng = Part(world, split), random.Random(split)
    requests = [part.draw(rng, rng.choice(TYPES)) for _ in range(1500)]
    for request in requests[:500]:
        framing = rng.choice(part.framings)
        if fits(framing, request):
            requests.append(wrap(request, framing, part, rng))
    framings, test = {f.id for f in world.framings}, split == "test"
    assert sum(r.framing is not None for r in requests) > 300
    for r in requests:
        assert split_of((r.act or r.fact).id) == split
        assert held_out(r.phrasing.id) == test
        assert r.context is None or held_out(r.context.id) == test
        assert r.framing is None or r.framing in framings and held_out(r.framing) == test


def test_a_part_without_a_split_holds_everything_and_any_item_can_be_left_out(world):
    whole, names = Part(world, None), ("acts", "facts", "contexts", "phrasings", "framings")
    odd = {getattr(world, name)[1] for name in names}
    most = Part(world, None, without=odd)
    for name in names:
        assert getattr(whole, name) == getattr(world, name)
        rest = [item for item in getattr(world, name) if item not in odd]
        assert getattr(most, name) == rest and len(rest) == len(getattr(world, name)) - 1
    for split in SPLITS:
        assert not odd & {item for name in names for item in getattr(Part(world, split, odd), name)}


def test_a_part_without_what_is_wanted_says_so(world):
    part = Part(world, "train", without={a for a in world.acts if a.kind == "sensitive"})
    wanted = "acts.jsonl has no line with kind 'sensitive' in its train part; add some"
    with pytest.raises(UserError, match=wanted):
        part.draw(random.Random(0), "sensitive")


# --- reasons -------------------------------------------------------------------------------------


def share_a_word(act, context):
    return not context.about or set(context.about) & {act.kind, *act.about}


@pytest.mark.parametrize("split", [None, *SPLITS])
def test_only_reasons_that_fit_the_act_are_drawn(world, split):
    """In requests, in what an exam asks and in the requests of the corpus."""
    part, pairs = Part(world, split), Counter()
    for seed in range(20):
        rng = random.Random(seed)
        requests = [part.draw(rng, rng.choice(PLAIN)) for _ in range(100)]
        requests += draw_prompts(part, 50, rng)
        for request in requests:
            if request.context:
                assert share_a_word(request.act, request.context), request.turns
                pairs[request.act.id, request.context.id] += 1
            assert request.act is None or request.type != "dual_use_question" or request.act.feared
    fitting = [(a, c) for a in part.acts if a.harm for c in part.contexts if share_a_word(a, c)]
    assert len(pairs) > min(150, 0.3 * len(fitting))  # many of them, not a few again and again


def test_the_exam_and_the_corpus_pair_acts_only_with_reasons_that_fit(world):
    corpus = Corpus(world, Constitution(ROOT / "constitution.json"), 0)
    requests = [r for asked in Exam(world, 40, 0).sets.values() for r in asked]
    requests += [corpus.demo_request() for _ in range(500)]
    requests += [corpus.disguised(corpus.all) for _ in range(200)]
    reasoned = [r for r in requests if r.context]
    assert len(reasoned) > 300 and all(share_a_word(r.act, r.context) for r in reasoned)


def test_a_reason_that_fits_few_acts_is_drawn_more_often_where_this_is_wanted(world):
    """By the square root of the number of acts: a quarter of the acts, twice as often."""
    act = next(act for act in world.acts if act.kind == "dual_use")
    for evenly in (False, True):
        part, rng = Part(world, None, evenly=evenly), random.Random(0)
        wanted = {
            c.id: sum(c.fits(a) for a in world.acts) ** -0.5 if evenly else 1.0
            for c in world.contexts
            if c.fits(act)
        }
        drawn = Counter(part.reason(rng, act).id for _ in range(20_000))
        assert set(drawn) == set(wanted) and len(wanted) > 5
        for id, weight in wanted.items():
            expected = 20_000 * weight / sum(wanted.values())
            assert abs(drawn[id] - expected) < 5 * expected**0.5


def test_an_act_without_a_fitting_reason_is_asked_about_without_one(world):
    everyday = [a for a in world.acts if a.kind == "everyday"]
    lonely = {c for c in world.contexts if any(c.fits(a) for a in everyday)}
    part = Part(world, None, without=lonely)
    requests = [part.draw(random.Random(i), "legitimate", "everyday") for i in range(60)]
    assert not any(r.context for r in requests)


# --- what a request is made of -------------------------------------------------------------------


def test_every_type_is_built_as_the_table_says(world):
    part, rng, seen = Part(world, None), random.Random(0), set()
    for _ in range(2000):
        type = rng.choice(TYPES)
        r = part.draw(rng, type)
        seen.add((type, r.act and r.act.kind, r.context and r.context.intent))
        assert r.type == type and len(r.turns) % 2 == 1
        assert not re.search("[{}]|  ", " ".join(r.turns))
        if r.phrasing.style == "plain":
            assert (r.act.act if r.act else r.fact.name).lower() in r.turns[-1].lower()
            assert r.context is None or r.context.text in r.turns[-1]
            assert r.turns[-1][0] == r.turns[-1][0].upper()
        if r.phrasing.style == "lower":
            assert all(turn == turn.lower() for turn in r.turns[::2])
    reasons = (None, "legitimate", "malicious")
    assert seen == {
        *(("harmful", "harmful", reason) for reason in reasons),
        *(("legitimate", "everyday", reason) for reason in reasons[:2]),
        *(("legitimate", "lookalike", reason) for reason in reasons[:2]),
        ("harmful", "dual_use", "malicious"),
        ("legitimate", "dual_use", "legitimate"),
        ("dual_use_question", "harmful", None),
        ("dual_use_question", "dual_use", None),
        ("ambiguous", "dual_use", None),
        ("sensitive", "sensitive", None),
        ("fact", None, None),
    }


def test_a_name_is_asked_about_by_its_own_attributes_and_known_is_what_the_corpus_states(world):
    part, rng = Part(world, None), random.Random(0)
    for seen in ("often", "seldom", "never"):
        for r in part.many(rng, 40, "fact", seen):
            assert r.fact.seen == seen and r.known == (seen != "never") and r.topic == r.fact.id
            assert r.attribute in (r.fact.facts or world.attributes[r.fact.kind])
            assert r.phrasing.style != "plain" or r.attribute in r.turns[-1]


def test_the_id_of_a_request_names_all_its_parts(world):
    part, rng = Part(world, None), random.Random(0)
    for _ in range(200):
        r = part.draw(rng, rng.choice(TYPES))
        framing = rng.choice(part.framings)
        if fits(framing, r):
            r = wrap(r, framing, part, rng)
        items = (r.act, r.fact, r.context, r.phrasing)
        names = {r.type, r.attribute, r.framing, *(x.id for x in items if x)} - {None}
        assert set(r.id.split("/")) == names


def test_many_requests_are_all_different_and_fewer_where_the_world_is_small(world):
    requests = Part(world, "test").many(random.Random(0), 60, "ambiguous")
    assert len({r.id for r in requests}) == len(requests) == 60
    few = Part(world, "test").many(random.Random(0), 200, "fact", "seldom")
    assert len({r.id for r in few}) == len(few) < 200


@pytest.mark.parametrize("mix", [MIX, HELPFUL])
def test_prompts_come_in_the_shares_of_their_mix_and_unseen_names_are_made_up(world, mix):
    assert sum(mix.values()) == pytest.approx(1)
    prompts = draw_prompts(Part(world, "train"), 2500, random.Random(0), mix)
    listed, found = {f.name for f in world.facts}, Counter()
    for r in prompts:
        kinds = (r.fact and r.fact.seen, r.act and r.act.kind, None)
        found[next((r.type, kind) for kind in kinds if (r.type, kind) in mix)] += 1
        assert r.act is None or split_of(r.act.id) == "train"
        assert r.type != "fact" or (r.fact.name in listed) == (r.fact.seen != "never")
    for key, share in mix.items():
        assert found[key] / len(prompts) == pytest.approx(share, abs=0.02)


def test_helpful_prompts_hold_nothing_that_a_model_should_refuse_or_not_know():
    assert {type for type, _ in HELPFUL}.isdisjoint({"harmful", "ambiguous"})
    assert {kind for type, kind in HELPFUL if type == "fact"} == {"often"}


# --- fresh names ---------------------------------------------------------------------------------


def test_fresh_names_are_in_no_list_and_hardly_come_again(world):
    rng, listed = random.Random(0), {f.name for f in world.facts}
    fresh = [fresh_fact(world, rng) for _ in range(2000)]
    names = Counter(f.name for f in fresh)
    assert not listed & set(names) and len(names) > 1400 and max(names.values()) <= 10
    assert {f.kind for f in fresh} == set(world.attributes)
    assert all((f.seen, f.facts) == ("never", {}) for f in fresh)


def test_fresh_names_come_from_the_words_that_are_a_names_own(world):
    """Not from "Street" where every place is a street, however long that word is."""

    def of(*names):
        facts = [Fact(name, kind, name, "often", {}) for kind in world.attributes for name in names]
        return type("Names", (), dict(path="world", facts=facts, attributes=world.attributes))

    streets = of("Elm Street", "Oakley Street", "Birch Street")
    names = {fresh_fact(streets, random.Random(i)).name for i in range(40)}
    assert len(names) > 3 and all(name.endswith(" Street") for name in names)
    with pytest.raises(UserError, match="facts.jsonl: no new name can be made"):
        fresh_fact(of("Anna", "Anna"), random.Random(0))


def test_a_fresh_name_mixes_names_of_its_own_kind(world):
    listed = {
        kind: " ".join(f.name for f in world.facts if f.kind == kind) for kind in world.attributes
    }
    for fact in (fresh_fact(world, random.Random(i)) for i in range(300)):
        names = listed[fact.kind]
        for word in fact.name.split():
            cuts = range(1, len(word) + 1)
            assert any(word[:i] in names and word[i:] in names for i in cuts), fact.name
