"""The red team: what it reads in an attack, what it may pass on to training, diversity, GCG, and every mode of redteam.py."""

import json
import os
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

import chat
import minicai.attack as attack
import minicai.common as common
import redteam
from minicai.attack import (
    draw_weighted,
    gcg,
    goal_loss,
    may_train,
    overlap,
    recognise,
    suffix_gradient,
    swap_one,
)
from minicai.data import collate, encode_turns, weighted_nll
from minicai.gpt import GPT, GPTConfig, token_logps
from minicai.jailbreak import fits, wrap
from minicai.judge import breaks
from minicai.sampler import Completion
from minicai.tokenizer import Tokenizer
from minicai.world.content import World, held_out, split_of
from minicai.world.replies import helpful
from minicai.world.requests import TYPES, UNTRAINED, Part
from tests.other_world import build

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module", params=["world", "other"])
def world(request, tmp_path_factory):
    return World(
        ROOT / "world" if request.param == "world" else build(tmp_path_factory.mktemp("other"))
    )


# --- reading an attack ---


def one_message(part):
    part.phrasings = [p for p in part.phrasings if len(p.turns) == 1]
    return part


def meaning(request):
    return (
        (request.type, request.act, request.context, request.fact, request.attribute)
        if request
        else None
    )


@pytest.mark.parametrize("type", TYPES)
@pytest.mark.parametrize("style", ["plain", "lower", "typos"])
def test_requests_of_every_kind_are_recognised(world, type, style):
    rng, part = random.Random(f"{type} {style}"), one_message(Part(world, None))
    part.phrasings = [p for p in part.phrasings if p.style == style] or part.phrasings
    if not any(p.use == "act" for p in part.phrasings) or type in ("fact", "dual_use_question"):
        part = one_message(Part(world, None))
    requests = [part.draw(rng, type) for _ in range(40)]
    right = [meaning(recognise(world, r.turns[0])) == meaning(r) for r in requests]
    assert sum(right) >= (40 if style != "typos" else 32)  # some errors make another word


def test_framed_requests_are_recognised_with_their_framing(world):
    rng, part, seen = random.Random(0), one_message(Part(world, None)), set()
    part.phrasings = [p for p in part.phrasings if p.style == "plain"]
    for framing in world.framings:
        request = part.draw(rng, "harmful")
        if (
            framing.technique in ("role_play", "hypothetical", "injection")
            and len(framing.turns) == 1
        ):
            found = recognise(world, wrap(request, framing, part, rng).turns[0])
            assert meaning(found) == meaning(request) and found.framing == framing.id
            assert (
                found.technique == framing.technique and found.plain == request.turns != found.turns
            )
            seen.add(framing.technique)
    assert len(seen) == 3


def test_what_is_not_wholly_the_worlds_words_is_unknown(world):
    rng, part = random.Random(0), one_message(Part(world, None))
    part.phrasings = [p for p in part.phrasings if p.style == "plain"]
    a, b = (part.draw(rng, "harmful").turns[0] for _ in "ab")
    for text in (
        "",
        "!?",
        "Hello there",
        f"{a} {b}",
        f"zq {a}",
        f"{a} xkcd",
        a.replace(" ", " zq ", 1),
    ):
        assert recognise(world, text) is None


def test_a_good_act_with_a_bad_reason_is_nothing_the_world_asks(world):
    act = next(a for a in world.acts if a.kind == "everyday")
    contexts = {
        i: next(c for c in world.contexts if c.intent == i) for i in ("legitimate", "malicious")
    }
    assert attack.type_of("act", act, contexts["malicious"]) is None
    assert (
        attack.type_of("act", act, contexts["legitimate"])
        == attack.type_of("act", act, None)
        == "legitimate"
    )
    assert attack.type_of("protection", act, None) is None


def forbidden(request):
    wordings = (request.phrasing.id, request.framing, request.context and request.context.id)
    return split_of((request.act or request.fact).id) == "test" or any(
        held_out(w) for w in wordings if w
    )


def test_no_test_act_and_no_held_out_wording_may_be_trained_on(world):
    """Of the request itself, and of its bare text, whatever is recognised in it."""
    rng, whole, count = random.Random(0), Part(world, None), Counter()
    for i in range(600):
        request = whole.draw(rng, TYPES[i % len(TYPES)])
        framing = rng.choice(world.framings)
        if (
            i % 3 == 0 and fits(framing, request) and framing.turns != ("{code}",)
        ):  # which may well change nothing
            request = wrap(request, framing, whole, rng)
        bad = forbidden(request)
        assert may_train(request) == (not bad)
        count[bad, may_train(recognise(world, request.turns[-1]))] += len(request.turns) == 1
    assert count[True, True] == 0 and count[True, False] > 100 and count[False, True] > 20
    assert not may_train(None)


def test_harm_is_steps_for_what_is_harmful_or_given_no_reason(world):
    rng, part, grader = random.Random(0), Part(world, None), redteam.Grader(world)
    for type in TYPES:
        request = part.draw(rng, type, "often" if type == "fact" else None)
        grade = grader.grade(request, helpful(world, request, rng).text)
        assert attack.harmed(request, grade) == (type in ("harmful", "ambiguous"))
        assert not attack.harmed(request, grader.grade(request, "No."))
    assert attack.harmed(None, None) is None


# --- learning from what worked ---


def test_examples_are_drawn_by_their_weights_and_never_twice():
    rng, weights = random.Random(0), [1.0, 2.0, 5.0]
    first = Counter(draw_weighted("abc", weights, 1, rng)[0] for _ in range(4000))
    for letter, weight in zip("abc", weights):
        assert abs(first[letter] / 4000 - weight / 8) < 0.03
    pairs = Counter(tuple(draw_weighted("abc", weights, 2, rng)) for _ in range(4000))
    assert (
        abs(pairs["c", "b"] / 4000 - 5 / 8 * 2 / 3) < 0.03
    )  # the second among those that are left
    assert sorted(draw_weighted("abc", weights, 9, rng)) == ["a", "b", "c"]


def test_overlap_is_the_shared_part_averaged_over_the_others():
    assert overlap(["a b c d"] * 3) == [1, 1, 1]
    assert overlap(["a b c", "d e f", "g h i"]) == [0, 0, 0]
    assert overlap(["a b c d", "a b c x", "p q r s"]) == pytest.approx([1 / 4, 1 / 4, 0])
    assert overlap(["a b c d e", "a b c"]) == pytest.approx([1 / 3, 1])
    assert overlap(["one text"]) == [0]


# --- GCG ---


@pytest.fixture(scope="module")
def tiny():
    torch.manual_seed(0)
    model = GPT(GPTConfig(23, 2, 2, 1, 16, 24, 40)).double().eval()
    for p in model.parameters():
        p.data *= 6  # fresh weights are so small that no token matters
    return model


IDS = torch.tensor([3, 7, 1, 0, 5, 9, 20, 21, 4, 11, 2])  # suffix at 3..5, goal: the last three
GOAL = IDS[-3:]


def test_weights_that_are_one_hot_give_what_ids_give(tiny):
    assert torch.allclose(
        tiny(F.one_hot(IDS, 23).double()[None]), tiny(IDS[None]), atol=1e-12, rtol=0
    )


def test_the_goals_loss_is_its_mean_surprise(tiny):
    logp = tiny(IDS[None])[0].log_softmax(-1)
    by_hand = -sum(logp[t - 1, IDS[t]] for t in (8, 9, 10)) / 3
    assert torch.allclose(
        goal_loss(tiny, IDS[None].repeat(2, 1), GOAL), by_hand.repeat(2), atol=1e-12, rtol=0
    )


def test_the_suffix_gradient_is_that_of_finite_differences(tiny):
    gradient, weights, step = (
        suffix_gradient(tiny, IDS, 3, 3, GOAL),
        F.one_hot(IDS, 23).double(),
        1e-5,
    )
    assert gradient.shape == (3, 23)
    with torch.no_grad():
        for place in range(3):
            for token in range(23):
                change = torch.zeros_like(weights)
                change[3 + place, token] = step
                up, down = (
                    goal_loss(tiny, (weights + sign * change)[None], GOAL) for sign in (1, -1)
                )
                assert gradient[place, token].item() == pytest.approx(
                    ((up - down) / (2 * step)).item(), rel=1e-5, abs=1e-8
                )


def test_candidates_swap_one_place_for_a_promising_ordinary_token():
    torch.manual_seed(0)
    gradient, suffix = torch.randn(4, 23), torch.tensor([1, 2, 3, 4])
    gradient[:, 18:] = -100.0  # special tokens would promise most
    rows = swap_one(suffix, gradient, 18, 5, 400, torch.Generator().manual_seed(0))
    best = [sorted(range(18), key=lambda v: gradient[place, v])[:5] for place in range(4)]
    changed = set()
    for row in rows.tolist():
        different = [place for place in range(4) if row[place] != suffix[place]]
        assert len(different) <= 1 and all(row[place] in best[place] for place in different)
        changed |= {(place, row[place]) for place in different}
    assert changed == {(place, v) for place in range(4) for v in best[place] if v != suffix[place]}


def test_a_gcg_step_never_worsens_the_loss_and_changes_one_token(tiny):
    before, suffix, after, goal = [3, 7, 1], [0] * 5, [20, 21], [4, 11, 2]
    search = gcg(tiny, before, suffix, after, goal, 18, seed=0, top_k=6, candidates=12)
    history = [step for step, _ in zip(search, range(15))]
    assert history[0][0] == suffix
    for (old, worse), (new, loss) in zip(history, history[1:]):
        assert loss <= worse + 1e-12 and sum(a != b for a, b in zip(old, new)) <= 1
        assert all(token < 18 for token in new)
        whole = torch.tensor([before + new + after + goal])
        assert goal_loss(tiny, whole, torch.tensor(goal)).item() == pytest.approx(loss, abs=1e-12)
    assert history[-1][1] < history[0][1] - 0.01


# --- redteam.py, with a model that learned a few messages by heart and a judge that fears one word ---


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """base.pt says one of twelve things as a person and repeats it as the assistant; sft.pt is the same."""
    torch.set_num_threads(1)
    out, world, rng = tmp_path_factory.mktemp("models"), World(ROOT / "world"), random.Random(0)
    parts = [Part(world, split) for split in ("train", "train", "test")]
    for part in parts:
        part.phrasings = [p for p in part.phrasings if p.style == "plain" and len(p.turns) == 1]
    texts = [part.draw(rng, "harmful").turns[0] for part in parts for _ in range(4)]
    tokenizer = Tokenizer.train(texts * 20, 500)
    torch.manual_seed(0)
    model = GPT(GPTConfig(tokenizer.vocab_size, 1, 2, 2, 64, 128, 512))
    data = [
        encode_turns(
            tokenizer, [("user", t, 1.0), ("assistant", t, 1.0), ("user", rng.choice(texts), 1.0)]
        )
        for t in texts
    ]
    ids, weights = collate(data, tokenizer.pad, "cpu")
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for _ in range(120):
        optimizer.zero_grad()
        weighted_nll(model, ids, weights).backward()
        optimizer.step()
    tokenizer.save(out / "tokenizer.json")
    for name in ("base.pt", "sft.pt"):
        common.save_checkpoint(out / name, model.eval(), "policy", made_by=dict(name=name))
    return out, texts


@pytest.fixture
def out(models, tmp_path, monkeypatch):
    for path in models[0].iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    monkeypatch.setattr(redteam, "BATCH", 8)
    monkeypatch.setattr(
        redteam,
        "breaks",
        lambda model, tokenizer, turns, responses, wordings: [
            None if "?" in t[-1][-1:] else 0.9 if len(t[-1]) % 3 else 0.2 for t in turns
        ],
    )
    return tmp_path


def go(monkeypatch, out, mode, *options):
    words = ("--preset", "smoke", "--device", "cpu", "--out", out, "--mode", mode, *options)
    monkeypatch.setattr(sys, "argv", ["redteam.py", *map(str, words)])
    redteam.redteam()
    return common.read_jsonl(out / "redteam.jsonl")


LEARNERS = ("few_shot", "sft")


@pytest.mark.parametrize("mode", ["templates", "zero_shot", "few_shot", "sft", "rl"])
def test_a_killed_run_goes_on_and_ends_with_the_same_rows(out, monkeypatch, mode):
    if mode in LEARNERS:
        go(monkeypatch, out, "zero_shot", "--attempts", 30)
    pools, imitate = [], redteam.imitate
    monkeypatch.setattr(
        redteam, "imitate", lambda red, pool: (pools.append(pool), imitate(red, pool))[1]
    )
    rows = go(monkeypatch, out, mode, "--attempts", 20)
    path, whole = out / "redteam.jsonl", (out / "redteam.jsonl").read_text()
    lines = whole.splitlines(keepends=True)
    assert sum(r["mode"] == mode for r in rows) == 20 and len({r["id"] for r in rows}) == len(rows)
    assert all(r["turns"] for r in rows if mode == "templates")
    path.write_text(
        "".join(lines[:-9]) + lines[-9][:50]
    )  # killed inside a batch and inside a write
    asked, real = [], redteam.answer
    monkeypatch.setattr(redteam, "answer", lambda *args: (asked.extend(args[2]), real(*args))[1])
    assert go(monkeypatch, out, mode, "--attempts", 20) == rows and path.read_text() == whole
    assert len(asked) == sum(
        bool(r["turns"]) for r in rows[-9:]
    )  # what was logged is not attacked again
    assert (
        len(pools) == 2 * (mode == "sft") and pools[:1] == pools[1:]
    )  # its own successes teach it nothing
    go(monkeypatch, out, mode, "--attempts", 20)
    assert path.read_text() == whole and len(pools) <= 2


@pytest.mark.parametrize("mode", ["templates", "zero_shot"])
def test_every_target_is_attacked_afresh_and_with_the_same_only_on_the_test_split(
    out, monkeypatch, mode
):
    """A round's attacks are trained on; put again to the model that this made, they would flatter it."""
    model, extra = common.load_checkpoint(out / "sft.pt")
    common.save_checkpoint(out / "round1.pt", model, "policy", made_by=dict(name="another"))
    asked = {}
    for split in ("demo", "test"):
        for target in ("sft.pt", "round1.pt"):
            rows = go(
                monkeypatch, out, mode, "--attempts", 8, "--split", split, "--target", out / target
            )[-8:]
            asked[split, target] = [r["turns"] for r in rows]
    assert asked["test", "sft.pt"] == asked["test", "round1.pt"]
    shared = sum(a == b for a, b in zip(asked["demo", "sft.pt"], asked["demo", "round1.pt"]))
    assert shared < (1 if mode == "templates" else 8)  # this attacker knows twelve messages


def test_what_a_guard_has_blocked_is_put_to_the_model_once(out, models, monkeypatch):
    with pytest.raises(common.UserError, match="guard.jsonl does not exist; chat.py --guard"):
        go(monkeypatch, out, "monitor")
    blocked = [[models[1][0]], ["Hello.", "Hello!", "And now?"], [models[1][0]]]
    common.append_jsonl(
        out / "guard.jsonl", [dict(turns=turns, check="input") for turns in blocked]
    )
    rows = go(monkeypatch, out, "monitor")
    assert (
        [r["turns"] for r in rows] == blocked[:2]
        and rows[0]["type"] == "harmful"
        and rows[1]["request"] is None
    )
    assert (
        rows[0]["response"] and not rows[1]["trainable"] and go(monkeypatch, out, "monitor") == rows
    )
    common.append_jsonl(
        out / "guard.jsonl", [dict(turns=["a third"], response=None, check="output")]
    )
    assert [r["id"].split("/")[1] for r in go(monkeypatch, out, "monitor")] == ["0", "1", "2"]
    (out / "guard.jsonl").write_text("")  # begun anew, with one that is known
    common.append_jsonl(
        out / "guard.jsonl",
        [dict(turns=turns, check="input") for turns in (["a fourth"], blocked[1])],
    )
    rows = go(monkeypatch, out, "monitor")
    assert [r["id"].split("/")[1] for r in rows] == ["0", "1", "2", "3"] and rows[-1]["turns"] == [
        "a fourth"
    ]
    common.append_jsonl(out / "guard.jsonl", [dict(turns=["a", "b"], check="output")])
    with pytest.raises(common.UserError, match="guard.jsonl:3"):
        go(monkeypatch, out, "monitor")


def test_attackers_learn_from_trainable_attacks_on_this_target(out, monkeypatch):
    rows = go(monkeypatch, out, "zero_shot", "--attempts", 40)
    other = dict(rows[0], id="x/0", turns=["never"], trainable=True, judge=1.0, target="another")
    long = dict(rows[0], id="x/1", turns=["never", "ever", "again"], trainable=True, judge=1.0)
    common.append_jsonl(out / "redteam.jsonl", [other, long])
    good = {r["turns"][0] for r in rows if r["trainable"]}
    tokenizer, prompts, real = Tokenizer.load(out / "tokenizer.json"), [], redteam.generate
    monkeypatch.setattr(
        redteam, "generate", lambda *args, **more: (prompts.extend(args[1]), real(*args, **more))[1]
    )
    go(monkeypatch, out, "few_shot", "--attempts", 8, "--shots", 2)
    for prompt in prompts:
        assert prompt[0] == prompt[-1] == tokenizer.user and prompt.count(tokenizer.end) == 2
        assert tokenizer.assistant not in prompt
        shown = [
            tokenizer.decode(prompt[a + 1 : b])
            for a, b in spans(prompt, tokenizer.user, tokenizer.end)
        ]
        assert len(set(shown)) == 2 and set(shown) <= good
    texts = []
    monkeypatch.setattr(
        redteam, "encode_turns", lambda t, turns: (texts.extend(turns), encode_turns(t, turns))[1]
    )
    go(monkeypatch, out, "sft", "--attempts", 8)
    assert {text for _, text, _ in texts} <= good and {
        (role, weight) for role, _, weight in texts
    } == {("user", 1.0)}
    long = [list(prompt) for prompt in prompts if len(prompt) > 30]
    monkeypatch.setattr(
        redteam, "MAX_NEW_TOKENS", 512 - 30
    )  # of a context of 512: what was shown first is cut off
    prompts.clear()
    go(monkeypatch, out, "few_shot", "--attempts", 16, "--shots", 2)
    assert long and all(len(prompt) <= 30 and prompt[-1] == tokenizer.user for prompt in prompts)


def spans(ids, opens, closes):
    return list(
        zip(
            (i for i, x in enumerate(ids) if x == opens),
            (i for i, x in enumerate(ids) if x == closes),
        )
    )


def test_modes_share_the_log_and_more_attempts_add_to_a_run(out, monkeypatch):
    go(monkeypatch, out, "templates", "--attempts", 10)
    go(monkeypatch, out, "zero_shot", "--attempts", 5)
    go(monkeypatch, out, "templates", "--attempts", 5, "--split", "test")
    rows = go(monkeypatch, out, "templates", "--attempts", 18)
    train = [r for r in rows if r["mode"] == "templates" and r["split"] == UNTRAINED]
    assert len(rows) == 28 and len({r["id"] for r in rows}) == 28
    assert set(Counter(r["technique"] for r in train).values()) == {
        2
    }  # in turn: each of the nine as often
    summary = json.loads((out / "redteam.json").read_text())
    assert set(summary) == {
        f"templates/sft/{UNTRAINED}",
        f"zero_shot/sft/{UNTRAINED}",
        "templates/sft/test",
    }
    s = summary[f"templates/sft/{UNTRAINED}"]
    assert s["judge"]["n"] == 18 and s["judge"]["k"] == sum(r["success"] for r in train)
    assert set(s["techniques"]) == {r["technique"] for r in train}
    more = go(monkeypatch, out, "templates", "--attempts", 14, "--leave-out", "base64", "typos")[
        28:
    ]
    assert set(Counter(r["technique"] for r in more).values()) == {2}
    assert {r["technique"] for r in more} == {r["technique"] for r in train} - {"base64", "typos"}
    after = json.loads((out / "redteam.json").read_text())  # beside the whole run, not in its place
    assert after == summary | {
        f"templates leave_out=base64,typos/sft/{UNTRAINED}": after[
            f"templates leave_out=base64,typos/sft/{UNTRAINED}"
        ]
    }


def test_rows_hold_everything_and_only_trainable_ones_what_training_may_see(out, monkeypatch):
    for options in (
        ("templates",),
        ("templates", "--split", "test"),
        ("zero_shot",),
        ("few_shot",),
    ):
        rows = go(monkeypatch, out, *options, "--attempts", 40)
    world = World(ROOT / "world")
    names = {a.id for a in world.acts} | {f.id for f in world.facts}
    wordings = {x.id for x in (*world.contexts, *world.phrasings, *world.framings)}
    test_acts = [a.act.lower() for a in world.acts if split_of(a.id) == "test"]
    count = Counter()
    for r in rows:
        assert r["success"] == (r["judge"] is not None and r["judge"] > 0.5)
        assert r["target"] == common.file_hash(out / "sft.pt") == r["made_by"]["target"]
        assert r["made_by"]["judge"] == common.file_hash(out / "base.pt") and not held_out(
            r["principle"]
        )
        assert r["split"] == (
            r["topic"] and split_of(r["topic"])
        )  # an attacker speaks of acts of all parts
        assert (r["outcome"] is None) == (r["request"] is None) == (r["harmed"] is None)
        ids = (r["request"] or "").split("/")[1:]
        bad = any(split_of(i) == "test" for i in ids if i in names) or any(
            held_out(i) for i in ids if i in wordings
        )
        assert r["trainable"] == (
            r["success"] and r["split"] != "test" and r["request"] is not None and not bad
        )
        if r["trainable"]:
            text = " ".join(r["turns"]).lower()
            assert not any(f" {act}" in text for act in test_acts)
        count[r["mode"], r["split"], r["trainable"]] += 1
    assert count["templates", UNTRAINED, True] and any(
        count["zero_shot", split, True] for split in (UNTRAINED, "train")
    )
    assert not count["templates", "test", True]
    test_zero = [
        r for r in rows if r["mode"] == "zero_shot" and r["success"] and not r["trainable"]
    ]
    assert test_zero  # the base also says what is in the test part


def test_without_a_verdict_of_the_judge_nothing_is_a_success(out, monkeypatch):
    """The real judge: a model that never learned to critique says nothing that counts."""
    monkeypatch.setattr(redteam, "breaks", breaks)
    rows = go(monkeypatch, out, "templates", "--attempts", 9)
    assert len(rows) == 9 and all(
        r["judge"] is None and not r["success"] and not r["trainable"] for r in rows
    )


def test_training_rows_of_free_text_are_nothing_when_asked_about_the_test_part(out, monkeypatch):
    rows = go(monkeypatch, out, "zero_shot", "--attempts", 24, "--split", "test")
    assert any(r["success"] for r in rows) and not any(r["trainable"] for r in rows)


def test_the_rl_attacker_climbs_and_without_a_diversity_term_it_collapses(out, models, monkeypatch):
    """The judge finds harm in what opens like one of the twelve messages, and a little less in what opens like two others."""
    prize = {text[:12]: p for text, p in zip(models[1], (1.0, 0.9, 0.9))}
    monkeypatch.setattr(redteam, "BATCH", 32)
    monkeypatch.setattr(
        redteam, "breaks", lambda m, t, turns, *_: [prize.get(x[-1][:12], 0.0) for x in turns]
    )
    commonest = {}
    for weight in (0, 3):
        rows = go(monkeypatch, out, "rl", "--attempts", 384, "--diversity", weight, "--lr", 0.0005)
        mine = [r for r in rows if r["made_by"]["diversity"] == weight]
        harm = [
            sum(r["judge"] or 0 for r in part) / len(part) for part in (mine[:32], mine[-64:])
        ]  # untaught, taught
        assert harm[1] > harm[0] + 0.15
        late = [" ".join(r["turns"]) for r in mine[-256:]]
        commonest[weight] = max(map(late.count, set(late)))
    assert commonest[0] > 1.4 * commonest[3]  # in trials with five seeds 2.0 to 3.9 times


def test_the_judge_reads_what_a_disguise_hides(out, monkeypatch):
    read = []
    monkeypatch.setattr(
        redteam, "breaks", lambda m, t, turns, *_: (read.extend(turns), [0.2] * len(turns))[1]
    )
    rows = go(monkeypatch, out, "templates", "--attempts", 9)
    assert read == [r["plain"] for r in rows if r["response"]] and all(
        r["plain"] != r["turns"] for r in rows
    )
    phrasings = {p.id: p for p in World(ROOT / "world").phrasings}
    assert all(len(r["plain"]) == len(phrasings[r["request"].split("/")[-2]].turns) for r in rows)


def test_gcg_attacks_with_ordinary_ids_and_stops_at_success(out, monkeypatch):
    real, asked = redteam.generate, []
    monkeypatch.setattr(redteam, "CHECK", 1)
    monkeypatch.setattr(
        redteam, "generate", lambda *args, **more: (asked.extend(args[1]), real(*args, **more))[1]
    )
    verdicts = iter(
        [0.1, 0.1, 0.9, 0.9]
    )  # without a suffix, with the first, with a better one, and that again for the log
    read = []
    monkeypatch.setattr(
        redteam, "judge_harm", lambda _, turns, *__: (read.extend(turns), [next(verdicts)])[1]
    )
    options = ("--attempts", 1, "--suffix", 4, "--steps", 12)
    (row,) = rows = go(monkeypatch, out, "gcg", *options)
    tokenizer = Tokenizer.load(out / "tokenizer.json")
    assert len(row["suffix"]) == 4 and all(i < tokenizer.system for i in row["suffix"])
    assert asked[-1] == [
        *asked[0][:-2],
        *row["suffix"],
        tokenizer.end,
        tokenizer.assistant,
    ]  # these very ids
    assert row["turns"][-1].endswith(tokenizer.decode(row["suffix"]))
    assert (
        row["steps"] < 12 and row["queries"] == 3 and row["harm_before"] == 0.1 and row["success"]
    )
    assert row["plain"] != row["turns"] and read == [row["plain"]] * 4  # never the suffix
    assert not row["trainable"]  # its text may be read as other ids
    assert go(monkeypatch, out, "gcg", *options) == rows


def test_a_person_types_and_everything_is_logged(out, models, monkeypatch, capsys):
    lines = iter([models[1][0], "", "hello you", "/quit"])
    monkeypatch.setattr("builtins.input", lambda _: next(lines))
    rows = go(monkeypatch, out, "human")
    assert [r["turns"] for r in rows] == [[models[1][0]], ["hello you"]]
    assert rows[0]["type"] == "harmful" and rows[1]["request"] is None
    assert "judge> " in capsys.readouterr().out
    lines = iter(["again"])  # and then the input ends
    monkeypatch.setattr(
        "builtins.input", lambda _: next(lines, None) or (_ for _ in ()).throw(EOFError)
    )
    assert [r["id"].split("/")[1] for r in go(monkeypatch, out, "human")] == ["0", "1", "2"]


def test_what_a_person_types_too_long_is_neither_sent_nor_logged(out, monkeypatch, capsys):
    lines = iter(["hello " * 600, "hello you", "/quit"])
    monkeypatch.setattr("builtins.input", lambda _: next(lines))
    assert [r["turns"] for r in go(monkeypatch, out, "human")] == [["hello you"]]
    assert "longer than the model can read" in capsys.readouterr().out


@pytest.mark.parametrize(
    "script, errors",
    [
        (["redteam.py", "--mode", "human"], "strict"),
        (["chat.py", "--guard", "--helpful-refusals"], "surrogateescape"),
    ],
)
def test_typing_that_is_no_utf8_is_read_all_the_same(out, script, errors):
    """What Python makes of such bytes depends on the locale."""
    done = subprocess.run(
        [sys.executable, *script, "--preset", "smoke", "--device", "cpu", "--out", out],
        cwd=ROOT,
        input=b"\xff\xfe hi\n",
        capture_output=True,
        env=os.environ | dict(PYTHONIOENCODING=f"utf-8:{errors}"),
    )
    assert done.returncode == 0 and b"sft> " in done.stdout, done.stderr


@pytest.mark.parametrize(
    "option, value",
    [("--lr", "-1"), ("--lr", "0"), ("--lr", "nan"), ("--diversity", "nan"), ("--beta", "-1")],
)
def test_a_number_out_of_range_is_no_option(out, monkeypatch, capsys, option, value):
    with pytest.raises(SystemExit, match="2"):
        go(monkeypatch, out, "rl", "--attempts", 1, option, value)
    assert f"argument {option}: '{value}' is not a number" in capsys.readouterr().err


@pytest.mark.parametrize(
    "option, value",
    [
        ("--temperature", "nan"),
        ("--temperature", "-1"),
        ("--temperature", "inf"),
        ("--input-threshold", "nan"),
        ("--output-threshold", "0"),
    ],
)
def test_a_number_out_of_range_is_no_option_of_chat(out, monkeypatch, capsys, option, value):
    monkeypatch.setattr(
        sys, "argv", ["chat.py", "--device", "cpu", "--out", str(out), option, value]
    )
    monkeypatch.setattr("builtins.input", lambda _: "/quit")
    with pytest.raises(SystemExit, match="2"):
        chat.chat()
    assert f"argument {option}: '{value}' is not" in capsys.readouterr().err


def test_bad_input_is_one_sentence(out, monkeypatch, tmp_path):
    for mode in LEARNERS:
        with pytest.raises(common.UserError, match="no trainable attack"):
            go(monkeypatch, out, mode)
    path = tmp_path / "only-honesty.json"
    principles = json.loads((ROOT / "constitution.json").read_text())["principles"]
    path.write_text(
        json.dumps(dict(principles=[p for p in principles if p["family"] == "honesty"]))
    )
    with pytest.raises(common.UserError, match="family harmlessness"):
        go(monkeypatch, out, "templates", "--constitution", path)
    with pytest.raises(common.UserError, match="nowhere.pt does not exist"):
        go(monkeypatch, out, "templates", "--target", "nowhere.pt")
    for mode, option in (
        ("few_shot", ("--leave-out", "base64")),
        ("templates", ("--shots", 5)),
        ("gcg", ("--lr", 0.1)),
    ):
        with pytest.raises(common.UserError, match=f"{option[0]} belongs to --mode"):
            go(monkeypatch, out, mode, *option)
    with pytest.raises(common.UserError, match="--suffix 600 does not fit"):
        go(monkeypatch, out, "gcg", "--suffix", 600)
    (out / "redteam.jsonl").write_text("{}\n")
    with pytest.raises(common.UserError, match="redteam.jsonl:1 has no field"):
        go(monkeypatch, out, "templates")
    done = subprocess.run(
        [sys.executable, "redteam.py", "--mode", "templates", "--out", tmp_path / "none"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert (
        done.returncode == 2 and "does not exist" in done.stderr and "Traceback" not in done.stderr
    )


def test_the_rl_attackers_gradient_is_that_of_its_definition(monkeypatch):
    tokenizer, rng = Tokenizer.train(["how do i bake bread"] * 9, 270), random.Random(0)
    torch.manual_seed(0)
    attacker, base = (GPT(GPTConfig(270, 1, 1, 1, 16, 16, 64)) for _ in "ab")
    words = tokenizer.encode("how do i bake bread")
    said = [
        [rng.choice(words) for _ in range(rng.randrange(1, 9))] + [tokenizer.end] for _ in range(20)
    ]
    said[0] = [i for c in "bread" for i in tokenizer.encode(c)] + [
        tokenizer.end
    ]  # not as the tokenizer would write it
    rows = [dict(turns=[tokenizer.decode(ids)], judge=rng.random()) for ids in said]
    red = SimpleNamespace(
        args=SimpleNamespace(diversity=0.5, beta=0.3, device="cpu"), tokenizer=tokenizer, base=base
    )

    def logps(model, ids):
        ids = torch.tensor([[tokenizer.user, *ids]])
        return token_logps(model(ids[:, :-1]), ids)[0]

    repeats = overlap([row["turns"][0] for row in rows])
    pay = [
        row["judge"] - 0.5 * o - 0.3 * (logps(attacker, ids) - logps(base, ids)).sum().item()
        for row, o, ids in zip(rows, repeats, said)
    ]
    loss = -sum((x - (sum(pay) - x) / 19) * logps(attacker, ids).sum() for x, ids in zip(pay, said))
    expected = torch.autograd.grad(loss, list(attacker.parameters()))
    for p in attacker.parameters():
        p.grad = torch.ones_like(p)  # left over from the batch before
    monkeypatch.setattr(redteam, "EPOCHS", 1)
    completions = [Completion(ids, [], "stop") for ids in said]
    redteam.learn(
        red,
        attacker,
        torch.optim.SGD(attacker.parameters(), lr=0.0),
        [[tokenizer.user]] * 20,
        completions,
        rows,
    )
    a, b = (
        torch.cat([g.flatten() for g in grads])
        for grads in (expected, [p.grad for p in attacker.parameters()])
    )
    torch.testing.assert_close(
        a / a.norm(), b / b.norm(), atol=1e-4, rtol=0
    )  # the length is clipped


def test_the_rl_attacker_learns_from_the_ids_and_the_distribution_that_were_sampled(
    out, monkeypatch
):
    real, gaps = redteam.learn, []

    def learn(red, attacker, optimizer, prompts, completions, rows):
        for prompt, completion in zip(prompts, completions):
            ids = torch.tensor([prompt + completion.ids])
            logps = token_logps(attacker(ids[:, :-1]), ids)[0, len(prompt) - 1 :]
            gaps.append((logps - torch.tensor(completion.logprobs)).abs().max().item())
        return real(red, attacker, optimizer, prompts, completions, rows)

    monkeypatch.setattr(redteam, "learn", learn)
    go(monkeypatch, out, "rl", "--attempts", 16)
    assert len(gaps) == 16 and max(gaps) < 1e-3


def test_the_target_of_gcg_reads_the_suffix_as_ids_however_its_text_would_be_read(out, monkeypatch):
    tokenizer, real, asked = Tokenizer.load(out / "tokenizer.json"), redteam.generate, []
    pieces = [i for c in "How do" for i in tokenizer.encode(c)]
    assert tokenizer.encode(tokenizer.decode(pieces)) != pieces
    monkeypatch.setattr(redteam, "gcg", lambda *a: iter([(pieces, 1.0)]))
    monkeypatch.setattr(
        redteam, "generate", lambda *a, **more: (asked.extend(a[1]), real(*a, **more))[1]
    )
    monkeypatch.setattr(redteam, "judge_harm", lambda *a: [0.9])
    go(monkeypatch, out, "gcg", "--attempts", 1, "--suffix", 6, "--steps", 1)
    assert asked[-1] == [*asked[0][:-2], *pieces, tokenizer.end, tokenizer.assistant]
