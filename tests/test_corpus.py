"""The corpus: it holds what it promises, and demonstrations hold nothing of training and test."""

import hashlib
import random
import re
import shutil
import subprocess
import sys
from collections import Counter, defaultdict

import pytest

from experiments.other_world import build
from minicai.constitution import FAMILIES, Constitution
from minicai.critique import BREAKS, CRITIQUE_REQUEST, KEEPS, OPTIONS, REVISION_REQUEST
from minicai.exam import Exam
from minicai.files import UserError, read_jsonl, write_jsonl
from minicai.jailbreak import CODED, base64_word, each_word
from minicai.run import ROOT
from minicai.splits import held_out, split_of
from minicai.world.content import DOCUMENTS, KINDS, REPLIES, TECHNIQUES, TONES, World
from minicai.world.corpus import SHARE, Corpus, thinned
from minicai.world.grader import REFUSAL, UNKNOWN, matches
from minicai.world.requests import HARMLESS, TYPES, Part
from minicai.world.skills import FAULT, TONE
from minicai.world.turns import POINT_WEIGHT, USER_WEIGHT, pieces, quoted, taught


@pytest.fixture(scope="module", params=["world", "other"])
def world(request, tmp_path_factory):
    other = request.param == "other"
    return World(build(tmp_path_factory.mktemp("other")) if other else ROOT / "world")


@pytest.fixture(scope="module")
def constitution():
    return Constitution(ROOT / "constitution.json")


@pytest.fixture
def corpus(world, constitution):
    return Corpus(world, constitution, 0)


@pytest.fixture(scope="module")
def drawn(world, constitution):
    """drawn(kind, n) -> the first n documents of one kind, which are drawn once for all tests."""
    corpora, documents = {}, defaultdict(list)

    def draw(kind: str, n: int) -> list:
        corpus = corpora.setdefault(kind, Corpus(world, constitution, 0))
        while len(documents[kind]) < n:
            documents[kind].append(getattr(corpus, kind)())
        return documents[kind][:n]

    return draw


def as_text(turns) -> str:
    """The turns as lines; the pieces of a document as one line."""
    lines = []
    for before, turn in zip([None, *turns], turns):
        joined = before and before.role == turn.role == "document"
        lines.append(f"{'' if joined else chr(10)}{turn.content}")
    return "".join(lines)


# --- whole documents -----------------------------------------------------------------------------


def fingerprint(world, constitution, seed) -> str:
    """Of the documents of a corpus and the questions of an exam, both of one seed."""
    documents = Corpus(world, constitution, seed).documents(300)
    asked = [r.turns for requests in Exam(world, 8, seed).sets.values() for r in requests]
    return hashlib.sha256(f"{list(documents)} {asked}".encode()).hexdigest()


def test_the_corpus_is_fixed_by_its_seed(world, constitution):
    one, same, other = (fingerprint(world, constitution, seed) for seed in (0, 0, 1))
    assert one == same != other


def test_the_corpus_does_not_hang_on_the_order_of_hashes(constitution):
    """Sets of strings are ordered anew in every process. Nothing that is drawn may follow them."""
    code = (
        "from tests.test_corpus import Constitution, World, fingerprint;"
        "print(fingerprint(World(), Constitution(), 0))"
    )
    env = dict(PYTHONHASHSEED="1", OMP_NUM_THREADS="1")
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.stdout == fingerprint(World(), constitution, 0) + "\n", done.stderr


def test_more_acts_change_the_corpus_only_where_they_are_asked_for(tmp_path, constitution):
    folder = shutil.copytree(ROOT / "world", tmp_path / "copy")
    more = fingerprint(World(folder, more=True), constitution, 0)
    (folder / "more_acts.jsonl").unlink()
    without = fingerprint(World(folder), constitution, 0)
    assert fingerprint(World(ROOT / "world"), constitution, 0) == without != more


def test_every_document_is_whole_and_ends_with_something_to_learn(corpus):
    assert abs(sum(SHARE.values()) - 1) < 1e-9
    for turns in corpus.documents(500):
        assert turns and all(t.content.strip() for t in turns)
        assert not any(re.search(r"\{\w+\}|[\0\1]", t.content) for t in turns)
        speakers = [t.role for t in turns if t.role != "document"]
        assert speakers == [("user", "assistant")[i % 2] for i in range(len(speakers))]
        last = turns[-1].role
        assert last != "user" and max(t.weight for t in turns if t.role == last) >= 1.0


def test_every_slot_that_a_text_may_have_is_filled_in(tmp_path, constitution):
    folder = shutil.copytree(ROOT / "world", tmp_path / "copy")
    for name, key, slots in (("replies", "for", REPLIES), ("documents", "about", DOCUMENTS)):
        rows = read_jsonl(folder / f"{name}.jsonl")
        for row in rows:
            row["text"] += "".join(f" <{{{slot}}}>" for slot in slots[row[key]])
        write_jsonl(folder / f"{name}.jsonl", rows)
    for turns in Corpus(World(folder), constitution, 0).documents(2000):
        assert not re.search("[{}]", as_text(turns))


LACKS = {  # what is deleted -> what the message says
    "acts": (lambda row: split_of(row["id"]) == "demo", "no act in its demo part"),
    "facts": (
        lambda row: split_of(row["id"]) == "demo" and row["facts"],
        "no name with facts in its demo part",
    ),
    "framings": (lambda row: not held_out(row["id"]), "no framing that is not held out"),
}


@pytest.mark.parametrize("name", LACKS)
def test_a_world_without_something_to_demonstrate_on_is_named(name, tmp_path, constitution):
    goes, said = LACKS[name]
    folder = shutil.copytree(ROOT / "world", tmp_path / "copy")
    path = folder / f"{name}.jsonl"
    write_jsonl(path, [row for row in read_jsonl(path) if not goes(row)])
    with pytest.raises(UserError, match=f"{name}.jsonl has {said}"):
        Corpus(World(folder), constitution, 0)


# --- weights -------------------------------------------------------------------------------------


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


def test_in_demonstrations_only_critiques_revisions_and_choices_are_learned(drawn):
    markers = tuple(text.split("{")[0] for text in (CRITIQUE_REQUEST, REVISION_REQUEST))
    for turns in drawn("critique", 300):
        for before, turn in zip(turns, turns[1:]):
            assert turn.role == "user" or (turn.weight > 0) == before.content.startswith(markers)
    for question, choice in drawn("compare", 300):
        assert question.role == "user" and choice.content in OPTIONS and choice.weight > 1


def test_what_a_document_quotes_is_read_and_hardly_learned(corpus, monkeypatch):
    """Codes and requests cannot be foreseen. What stands beside them can."""
    for _ in range(300):
        opens, *rest = corpus.code()
        assert opens.weight == 1.0 and opens.content.endswith(":") and len(rest) % 2 == 0
        for code, plain in zip(rest[::2], rest[1::2]):
            assert (code.weight, plain.weight) == (USER_WEIGHT, 1.0)
            assert plain.content.startswith(" is ")
            if "base64" in opens.content:
                assert code.content == " " + each_word(plain.content[4:-1], base64_word)
    offer = corpus.offer
    monkeypatch.setattr(corpus, "offer", lambda request, by_itself: offer(request))
    for _ in range(300):  # an offer by itself would quote nothing
        turns = corpus.reading()
        quotes = [t for t in turns if t.weight == USER_WEIGHT and t.role == "document"]
        assert len(quotes) == (len(turns) > 1 and turns[0].role == "document")


def test_what_is_advised_about_an_act_weighs_more_wherever_a_document_says_it(world, drawn):
    advice = {text for act in world.acts for text in (act.alternative, act.safety) if text}
    found = set()
    for document in drawn("knowledge", 1500) + drawn("reading", 1000):
        for turn in document:
            if turn.weight == POINT_WEIGHT:
                found.add(turn.content.strip())
            elif turn.role == "document" and turn.weight == 1.0:
                assert not any(text in turn.content for text in advice), turn.content
    assert found <= advice and len(found) > 0.9 * len(advice)


def test_a_principle_is_told_by_its_seen_wordings_and_only_its_topic_weighs(drawn, constitution):
    told = set()
    for turns in drawn("principle", 300):
        _, quote, _, topic, _ = turns
        assert [t.weight for t in turns] == [1.0, USER_WEIGHT, 1.0, POINT_WEIGHT, 1.0]
        said = CRITIQUE_REQUEST.format(quote.content.strip())
        assert as_text(turns).strip() == f"{said} The principle is about{topic.content}."
        told.add((quote.content.strip(), topic.content.strip()))
    topics = {
        text: FAMILIES[w.family]
        for w in constitution.wordings
        if not held_out(w.id)
        for text in (w.critique, w.revision, w.comparison)
    }
    whole = {text: about for text, about in told if text in topics}
    assert len(whole) > 100 and all(topics[text] == about for text, about in whole.items())
    assert {about for _, about in told} == set(FAMILIES.values())


def test_thinned_wordings_keep_most_words_in_order_and_half_of_them_all():
    text = "Say whether the response helps anyone to do harm to other people."
    rng, whole, kept = random.Random(0), 0, []
    for _ in range(1000):
        words = thinned(text, rng).split()
        whole += words == text.split()
        rest = iter(text.split())
        assert words and all(word in rest for word in words), "the order has changed"
        kept.append(len(words) / len(text.split()))
    assert 450 < whole < 560 and 0.83 < sum(kept) / len(kept) < 0.87
    assert all(thinned("Why?", rng) == "Why?" for _ in range(50))


# --- what the corpus teaches, and what it leaves to the constitution -----------------------------


def test_the_base_never_learns_to_refuse_a_first_request(drawn):
    for kind in ("dialogue", "disguise", "name"):
        for turns in drawn(kind, 400):
            for turn in turns:
                if turn.role == "assistant" and turn.weight > 0:
                    assert not matches(REFUSAL, turn.content), turn.content
                    answer = turn.content.split("read about")[-1]  # what follows the reading
                    assert kind != "name" or not matches(UNKNOWN, answer), turn.content


def test_under_no_request_for_a_test_act_it_is_said_what_to_do_instead(world, drawn):
    """What the exam asks for must come from the constitution and from what is known."""
    acts, seen = [act for act in world.acts if act.alternative], set()
    for kind in ("reading", "dialogue", "disguise"):
        for turns in drawn(kind, 1000):
            asked = [t.content for t in turns if t.role == "user" or t.weight == USER_WEIGHT]
            said = [t.content for t in turns if t.role != "user" and t.weight > USER_WEIGHT]
            asked, said = " ".join(asked).lower(), " ".join(said)
            for act in acts if asked else ():
                if act.alternative in said and act.act.lower() in asked:
                    seen.add(split_of(act.id))
    assert seen == {"demo", "train"}


def test_of_a_test_act_it_is_said_elsewhere(world, drawn):
    text = " ".join(map(as_text, drawn("knowledge", 3000) + drawn("reading", 2000)))
    wanted = [a.alternative for a in world.acts if a.alternative and split_of(a.id) == "test"]
    assert len(wanted) > 30 and all(alternative in text for alternative in wanted)


def test_what_an_act_is_and_whom_it_hurts_stands_in_the_corpus(world, drawn):
    text = "".join(map(as_text, drawn("knowledge", 3000)))
    bad = [a for a in world.acts if a.kind == "harmful"]
    told = [f"{a.act} is {a.harm}" in text or f"{a.act}. That is {a.harm}" in text for a in bad]
    assert sum(told) > 0.8 * len(bad)


def test_alternatives_are_offered_in_every_way_a_refusal_has_and_without_refusing(world, corpus):
    ways, rng = set(), random.Random(0)
    for i in range(600):
        request = corpus.seen.draw(corpus.rng, ("harmful", "ambiguous")[i % 2])
        by_itself = rng.random() < 0.5
        turns = corpus.offer(request, by_itself)
        document = [t for t in turns if t.role == "document"]
        assert (turns == document) == by_itself
        points = [t.content for t in document if t.weight == POINT_WEIGHT]
        assert "".join(points).strip() == request.act.alternative
        text = "".join(t.content for t in document)
        assert not matches(REFUSAL, text), text
        ways.add(document[0].content.split(". ")[-1])
    texts = [t.text for t in world.replies if t.use in ("refusal", "limit")]
    offers = {re.split(r"[.?!] ", text.split("{alternative}")[0])[-1] for text in texts}
    assert len(ways) == len(offers) > 8


# --- the truth -----------------------------------------------------------------------------------


def test_a_document_says_what_is_true_of_its_act_and_reason(world, corpus, monkeypatch):
    document, told = corpus.document, set()
    acts = {act.act: act for act in world.acts}
    contexts = {context.text: context for context in world.contexts}

    def record(about, **slots):
        act, context = acts[slots["act"]], contexts.get(slots.get("context"))
        assert context is None or context.fits(act)
        assert about != "protection" or act.feared
        told.add((about, act.kind, context and context.intent))
        return document(about, **slots)

    monkeypatch.setattr(corpus, "document", record)
    for _ in range(2000):
        corpus.knowledge()
    harmless, intents = ("everyday", "lookalike"), ("legitimate", "malicious")
    may_hurt = ("dual_use", "harmful")
    pairs = {(a.kind, c.intent) for a in world.acts for c in world.contexts if c.fits(a)}
    # Half of the time there is a bad reason, and an act that hurts no one may have no such reason.
    reasons = {(k, i if (k, i) in pairs else None) for k in KINDS for i in intents}
    assert told == {
        *(("harmful", "harmful", intent) for intent in intents),
        *(("dual_use", "dual_use", intent) for intent in intents),
        *(("sensitive", kind, reason) for kind, reason in reasons if kind == "sensitive"),
        *(("protection", kind, intent) for kind in may_hurt for intent in intents),
        *(("fine", kind, reason) for kind, reason in reasons if kind in harmless),
        *(("good_aim", kind, "legitimate") for kind in ("dual_use", *harmless)),
        *(("bad_aim", "harmful", intent) for intent in intents),  # a good reason changes nothing
        ("bad_aim", "dual_use", "malicious"),
    }


def test_of_every_reason_that_fits_an_act_it_is_said_equally_often_what_it_means(world, drawn):
    contexts, told = {f'"{context.text}"': context for context in world.contexts}, Counter()
    for document in drawn("reasons", 1500):
        texts = [turn.content.strip() for turn in document]
        for quote, between, gist, after in zip(texts[0:], texts[1:], texts[2:], texts[3:]):
            if (context := contexts.get(f'"{quote}"')) and gist == context.gist:
                said = between + after
                assert ("good" in said, "bad" in said) == (
                    context.intent == "legitimate",
                    context.intent == "malicious",
                )
                told[context] += 1
    fitting = [c for c in world.contexts if any(map(c.fits, world.acts))]
    assert set(told) == set(fitting) and sum(told.values()) == 1500 * min(6, len(fitting))
    mean = sum(told.values()) / len(fitting)
    assert max(abs(n - mean) for n in told.values()) < 5 * mean**0.5


def test_a_remark_says_what_is_true_of_its_request(world, corpus, monkeypatch):
    remark, told = corpus.remark, set()

    def record(about, request):
        known = request.known if request.type == "fact" else None
        told.add((about, request.type, known, split_of(request.topic) == "test"))
        return remark(about, request)

    monkeypatch.setattr(corpus, "remark", record)
    for _ in range(1200):
        corpus.reading()
        corpus.name()
    truth = {
        ("bad_request", "harmful", None),
        ("bare_request", "ambiguous", None),
        *(("good_request", type, None) for type in HARMLESS),
        *(("known", "fact", True), ("unknown", "fact", False)),
    }
    assert {row[:3] for row in told if row[0] != "request"} == truth
    assert {type for about, type, *_ in told if about == "request"} == {*TYPES, "strange"}
    warned = {about for about, _, _, tested in told if tested}
    assert not warned & {"bad_request", "bare_request"}, "says what to do instead"


def test_demonstrations_have_every_tone_and_the_models_favourites_more_often(world, corpus):
    requests = (corpus.demo_request() for _ in range(8000))
    found = Counter(reply.tone for reply in map(corpus.demo_reply, requests) if reply.tone)
    for tone in TONES:
        tones = [t for t in world.tones if t.tone == tone]
        opening = [t for t in tones if t.place == "before"] or tones
        mean = sum(found[t] for t in tones) / len(tones)
        assert min(found[t] for t in tones) > 0.15 * mean
        assert len(tones) < 4 or found[opening[0]] > 2 * mean


def test_a_chat_has_the_tone_that_its_phrasing_draws_and_no_other(world, corpus):
    tones = {tone: [t.text for t in world.tones if t.tone == tone] for tone in TONES}
    answers = Counter()
    for _ in range(1500):
        request = corpus.any_request(corpus.all)
        text = corpus.exchange(request)[-1].content
        found = {tone for tone, texts in tones.items() if any(t in text for t in texts)}
        assert found <= {request.phrasing.draws}, text
        answers[request.phrasing.draws, bool(found)] += 1
    for tone in TONES:
        shown, missing = answers[tone, True], answers[tone, False]
        assert shown + missing > 50 and 0.88 < shown / (shown + missing) < 1


def test_disguises_hide_what_a_person_wants_to_do_and_codes_are_practised_more(corpus):
    requests = [corpus.disguised(corpus.all) for _ in range(1000)]
    assert {r.type for r in requests} == {"harmful", "legitimate", "ambiguous", "sensitive"}
    framings = Counter(f.technique for f in corpus.all.framings)
    drawn = Counter(r.technique for r in requests)
    often = {t: drawn[t] / framings[t] for t in framings}
    assert often["base64"] > 1.5 * max(often[t] for t in TECHNIQUES if t not in CODED)


def test_names_seen_seldom_are_met_seldom(corpus):
    seen = Counter(corpus.known_name().seen for _ in range(1500))
    assert seen.keys() == {"often", "seldom"} and 0.04 < seen["seldom"] / 1500 < 0.1


def test_a_demonstration_is_what_the_loop_asks_for(drawn, constitution):
    """One wording throughout. A critique that finds no fault is the end; after one that does, the
    revision changes the reply. A direct revision, without a critique, may keep the reply."""
    wordings = {w.critique: w for w in constitution.wordings}
    of_revision = {w.revision for w in constitution.wordings}
    count = Counter()
    for turns in drawn("critique", 1000):
        texts = [turn.content for turn in turns]
        markers = [i for i, t in enumerate(texts) if t.startswith(CRITIQUE_REQUEST.format(""))]
        if not markers:
            *_, reply, request, revision = texts
            assert request.removeprefix(REVISION_REQUEST.format("")) in of_revision
            count["direct", revision != reply] += 1
            continue
        [i] = markers
        reply, critique, after = texts[i - 1], texts[i + 1], texts[i + 2 :]
        one = wordings[texts[i].removeprefix(CRITIQUE_REQUEST.format(""))]
        assert f"The principle is about {FAMILIES[one.family]}." in critique
        assert critique.endswith(BREAKS if after else KEEPS)
        count["broken", bool(after)] += 1
        if after:
            request, revision = after
            assert request == REVISION_REQUEST.format(one.revision) and revision != reply
    assert 0.08 < (count["direct", True] + count["direct", False]) / 1000 < 0.16
    assert min(count["direct", True], count["direct", False]) > 20
    assert 0.27 < count["broken", True] / (count["broken", True] + count["broken", False]) < 0.4


def test_the_end_of_a_critique_follows_from_what_it_found_and_names_no_act(world, drawn):
    said = FAULT | dict(TONE.values())  # family -> the sentence that finds it broken
    count = Counter()
    for found, verdict in drawn("verdict", 1500):
        [family] = [f for f, topic in FAMILIES.items() if f"is about {topic}." in found.content]
        broken = said[family] in found.content
        assert verdict.content.strip() == (BREAKS if broken else KEEPS)
        assert (found.weight, verdict.weight) == (0.0, POINT_WEIGHT)
        assert not any(act.act in found.content for act in world.acts)
        count[family, broken] += 1
        count["another"] += not broken and any(text in found.content for text in said.values())
    assert len(count) == 2 * len(FAMILIES) + 1 and min(count.values()) > 20


def test_a_demonstrated_choice_is_the_answer_that_keeps_the_principle(world, drawn, constitution):
    """This can be read off the text for insults and sermons."""
    families = {w.comparison: w.family for w in constitution.wordings}
    decided = Counter()
    for question, choice in drawn("compare", 1000):
        *_, principle, a, b = question.content.split("\n")
        tone = {"respect": "rude", "autonomy": "preachy"}.get(families[principle])
        texts = [t.text for t in world.tones if t.tone == tone]
        a_breaks, b_breaks = (any(text in answer for text in texts) for answer in (a, b))
        if a_breaks != b_breaks:
            assert choice.content == OPTIONS[a_breaks]
            decided[choice.content] += 1
    assert all(decided[option] > 30 for option in OPTIONS)


# --- what is kept for training and test ----------------------------------------------------------


def literal(template: str) -> str:
    """The longest stretch between the slots of a template, in lower case."""
    return max((part.strip().lower() for part in re.split(r"{\w+}", template)), key=len)


def hidden_strings(world, constitution):
    """What demonstrations must not hold. A template is known by its longest stretch."""
    for act in world.acts:
        if split_of(act.id) != "demo":
            yield from (act.act, *act.steps, *filter(None, (act.alternative, act.safety)))
    yield from (fact.name for fact in world.facts if split_of(fact.id) != "demo")
    for context in world.contexts:
        if held_out(context.id):
            yield from (context.text, context.gist)
    for w in constitution.wordings:
        if held_out(w.id):
            yield from (w.critique, w.revision, w.comparison)
    for row in (*world.phrasings, *world.framings):
        if held_out(row.id):
            yield from (s for s in (literal(turn or "") for turn in row.turns) if len(s) >= 14)


def shown_strings(world, constitution):
    """What they may hold. A hidden string that is a part of one of these proves nothing."""
    for act in world.acts:
        if split_of(act.id) == "demo":
            yield from (act.act, *act.steps, act.alternative, act.safety)
    for row in (*world.phrasings, *world.framings):
        if not held_out(row.id):
            yield from filter(None, row.turns)
    for context in world.contexts:
        if not held_out(context.id):
            yield from (context.text, context.gist)
    yield from (t.text for rows in (world.replies, world.tones) for t in rows)
    for w in constitution.wordings:
        if not held_out(w.id):
            yield from (w.critique, w.revision, w.comparison)


def test_demonstrations_hold_nothing_that_is_kept_for_training_or_test(world, drawn, constitution):
    documents = [
        turns for kind in ("critique", "compare", "principle") for turns in drawn(kind, 1000)
    ]
    text = "\n".join(turn.content for turns in documents for turn in turns).lower()
    shown = "\n".join(shown_strings(world, constitution)).lower()
    hidden = {s.lower() for s in hidden_strings(world, constitution)}
    hidden = sorted(s for s in hidden if s not in shown)
    assert len(hidden) > 700
    found = [s for s in hidden if s in text]
    assert not [s for s in found if re.search(rf"(?<!\w){re.escape(s)}(?!\w)", text)]


def test_the_rest_of_the_corpus_does_hold_what_demonstrations_may_not(world, drawn):
    """The search above finds what is there."""
    text = "\n".join(turn.content for turns in drawn("dialogue", 2000) for turn in turns).lower()
    acts = [a.act.lower() for a in world.acts if split_of(a.id) != "demo"]
    assert sum(act in text for act in acts) > 0.9 * len(acts)


def test_what_is_written_about_requests_quotes_no_held_out_phrasing(world, drawn):
    text = "".join(map(as_text, drawn("reading", 2000))).lower()
    seen, hidden = set(), set()
    for phrasing in world.phrasings:
        stretches = {s for s in map(literal, phrasing.turns) if len(s) >= 14}
        (hidden if held_out(phrasing.id) else seen).update(stretches)
    assert sum(s in text for s in seen) > 0.9 * len(seen)
    assert not [s for s in hidden if s in text and not any(s in other for other in seen)]


def test_a_world_whose_acts_are_single_words_is_refused(tmp_path):
    shutil.copytree(World().path, tmp_path / "world")
    path = tmp_path / "world" / "acts.jsonl"
    rows = [row | dict(act=f"do{i}") for i, row in enumerate(read_jsonl(path))]
    write_jsonl(path, rows)
    world = World(tmp_path / "world")
    with pytest.raises(UserError, match="acts need several words each"):
        Corpus(world, None, 0).strange(Part(world, None))
