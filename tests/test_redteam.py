"""The red team: every mode of redteam.py, GCG, and the attackers of experiments/redteam_rl.py."""

import json
import random
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

import experiments.gcg as gcg_module
import experiments.redteam_rl as rl_module
import redteam
import revise
from experiments.gcg import gcg, goal_loss, suffix_gradient, swap_one
from experiments.redteam_rl import overlap
from minicai import files
from minicai.data import collate, collate_responses, encode_turns, weighted_nll
from minicai.files import UserError
from minicai.gpt import GPT, GPTConfig, token_logps
from minicai.jailbreak import each_word, lopo_word
from minicai.prompts import Prompt, read_prompts
from minicai.splits import held_out, split_of
from minicai.tokenizer import Tokenizer
from minicai.world import attacks, disguises
from minicai.world.content import World
from minicai.world.requests import STAGE2_SPLIT, Part
from redteam import draw_weighted

ROOT = Path(redteam.__file__).parent


def test_examples_are_drawn_by_their_weights_and_never_twice():
    rng, weights = random.Random(0), [1.0, 2.0, 5.0]
    first = Counter(draw_weighted("abc", weights, 1, rng)[0] for _ in range(4000))
    for letter, weight in zip("abc", weights):
        assert abs(first[letter] / 4000 - weight / 8) < 0.03
    pairs = Counter(tuple(draw_weighted("abc", weights, 2, rng)) for _ in range(4000))
    assert abs(pairs["c", "b"] / 4000 - 5 / 8 * 2 / 3) < 0.03
    assert sorted(draw_weighted("abc", weights, 9, rng)) == ["a", "b", "c"]


def test_overlap_is_the_shared_part_averaged_over_the_others():
    assert overlap(["a b c d"] * 3) == [1, 1, 1]
    assert overlap(["a b c", "d e f", "g h i"]) == [0, 0, 0]
    assert overlap(["a b c d", "a b c x", "p q r s"]) == pytest.approx([1 / 4, 1 / 4, 0])
    assert overlap(["a b c d e", "a b c"]) == pytest.approx([1 / 3, 1])
    assert overlap(["one text"]) == [0]


@pytest.fixture(scope="module")
def tiny():
    torch.manual_seed(0)
    model = GPT(GPTConfig(23, 2, 2, 1, 16, 24, 40)).double().eval()
    for p in model.parameters():
        p.data *= 6
    return model


IDS = torch.tensor([3, 7, 1, 0, 5, 9, 20, 21, 4, 11, 2])
GOAL = IDS[-3:]


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


def test_candidates_swap_one_place_for_a_promising_token(monkeypatch):
    torch.manual_seed(0)
    monkeypatch.setattr(gcg_module, "TOP_K", 5)
    monkeypatch.setattr(gcg_module, "CANDIDATES", 400)
    gradient, suffix = torch.randn(4, 18), torch.tensor([1, 2, 3, 4])
    rows = swap_one(suffix, gradient, torch.Generator().manual_seed(0))
    best = [sorted(range(18), key=lambda v: gradient[place, v])[:5] for place in range(4)]
    changed = set()
    for row in rows.tolist():
        different = [place for place in range(4) if row[place] != suffix[place]]
        assert len(different) <= 1 and all(row[place] in best[place] for place in different)
        changed |= {(place, row[place]) for place in different}
    assert changed == {(place, v) for place in range(4) for v in best[place] if v != suffix[place]}


def test_a_gcg_step_never_worsens_the_loss_and_changes_one_token(tiny, monkeypatch):
    monkeypatch.setattr(gcg_module, "TOP_K", 6)
    monkeypatch.setattr(gcg_module, "CANDIDATES", 12)
    before, suffix, after, goal = [3, 7, 1], [0] * 5, [20, 21], [4, 11, 2]
    search = gcg(tiny, before, suffix, after, goal, list(range(18)), seed=0)
    history = [step for step, _ in zip(search, range(15))]
    assert history[0][0] == suffix
    for (old, worse), (new, loss) in zip(history, history[1:]):
        assert loss <= worse + 1e-12 and sum(a != b for a, b in zip(old, new)) <= 1
        assert all(token < 18 for token in new)
        whole = torch.tensor([before + new + after + goal])
        assert goal_loss(tiny, whole, torch.tensor(goal)).item() == pytest.approx(loss, abs=1e-12)
    assert history[-1][1] < history[0][1] - 0.01


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """base.pt says one of twelve messages as a person and repeats it as the assistant.

    sft.pt is the same.
    """
    torch.set_num_threads(1)
    out, world, rng = tmp_path_factory.mktemp("models"), World(ROOT / "world"), random.Random(0)
    odd = [p for p in world.phrasings if p.style != "plain" or len(p.turns) > 1]
    parts = [Part(world, split, without=odd) for split in ("train", "train", "test")]
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
    for name in ("base.pt", "sft.pt"):
        files.save_checkpoint(out / name, model.eval(), tokenizer, SimpleNamespace(name=name))
    return out, texts


@pytest.fixture
def out(models, tmp_path, monkeypatch):
    for path in models[0].iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    for module in (redteam, rl_module):
        monkeypatch.setattr(module, "BATCH", 8)
    monkeypatch.setattr(attacks, "p_breaks", fake_judge)
    monkeypatch.setattr(redteam, "setup", unlocked)
    return tmp_path


def unlocked(p):
    from minicai.run import setup

    return setup(p, writes=False)


def fake_judge(model, tokenizer, turns, responses, wordings):
    def p(t):
        return None if "?" in t[-1][-1:] else 0.9 if len(t[-1]) % 3 else 0.2

    return [p(t) if r else None for t, r in zip(turns, responses)]


def go(monkeypatch, out, mode, *options):
    words = ["--preset", "smoke", "--device", "cpu", "--out", out, *options]
    script = dict(gcg=gcg_module.run, rl=rl_module.run, sft=rl_module.run).get(
        mode, redteam.redteam
    )
    words += {"gcg": [], "rl": [], "sft": ["--attacker", "sft"]}.get(mode, ["--mode", mode])
    monkeypatch.setattr(sys, "argv", ["redteam.py", *map(str, words)])
    script()
    return files.read_jsonl(out / "redteam.jsonl")


@pytest.mark.parametrize("mode", ["templates", "zero_shot", "few_shot", "sft", "rl"])
def test_a_run_that_is_repeated_replaces_its_rows_and_makes_the_same(out, monkeypatch, mode):
    if mode in ("few_shot", "sft"):
        go(monkeypatch, out, "zero_shot", "--attempts", 30)
    rows = go(monkeypatch, out, mode, "--attempts", 20)
    path = out / "redteam.jsonl"
    assert sum(r["mode"] == mode for r in rows) == 20 and len({r["id"] for r in rows}) == len(rows)
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:-9]) + lines[-9][:50])  # killed inside a write
    with pytest.raises(UserError):
        files.read_jsonl(path)
    path.write_text("".join(lines[:-9]))
    again = go(monkeypatch, out, mode, "--attempts", 20)
    assert again == rows


@pytest.mark.parametrize("mode", ["templates", "zero_shot"])
def test_every_target_is_attacked_afresh_and_with_the_same_only_on_the_test_split(
    out, monkeypatch, mode
):
    (out / "round1.pt").write_bytes((out / "sft.pt").read_bytes())
    asked = {}
    for split in ("demo", "test"):
        for target in ("sft.pt", "round1.pt"):
            rows = go(
                monkeypatch, out, mode, "--attempts", 8, "--split", split, "--target", out / target
            )[-8:]
            asked[split, target] = [r["turns"] for r in rows]
    assert asked["test", "sft.pt"] == asked["test", "round1.pt"]
    shared = sum(a == b for a, b in zip(asked["demo", "sft.pt"], asked["demo", "round1.pt"]))
    assert shared < (1 if mode == "templates" else 8)


def test_what_a_guard_has_blocked_is_put_to_the_model_once(out, models, monkeypatch):
    with pytest.raises(
        UserError, match="guard.jsonl holds no blocked conversation; run chat.py --guard"
    ):
        go(monkeypatch, out, "monitor")
    blocked = [[models[1][0]], ["Hello.", "Hello!", "And now?"], [models[1][0]]]
    files.append_jsonl(out / "guard.jsonl", [dict(turns=turns, check="input") for turns in blocked])
    rows = go(monkeypatch, out, "monitor")
    assert (
        [r["turns"] for r in rows] == blocked[:2]
        and rows[0]["type"] == "harmful"
        and rows[1]["request"] is None
    )
    assert not rows[1]["trainable"] and go(monkeypatch, out, "monitor") == rows
    files.append_jsonl(
        out / "guard.jsonl", [dict(turns=["a third"], response=None, check="output")]
    )
    assert [r["id"].split("/")[-1] for r in go(monkeypatch, out, "monitor")] == ["0", "1", "2"]
    files.append_jsonl(out / "guard.jsonl", [dict(turns=["a", "b"], check="output")])
    with pytest.raises(UserError, match="guard.jsonl:5"):
        go(monkeypatch, out, "monitor")


def test_attackers_learn_from_trainable_attacks_on_this_target(out, monkeypatch):
    rows = go(monkeypatch, out, "zero_shot", "--attempts", 40)
    said = {row["turns"][0]: row for row in rows if row["response"]}
    for row in list(said.values())[:3]:  # whatever the tiny model's judge thinks of its attacks
        row |= dict(trainable=True, judge=0.9)
    files.write_jsonl(out / "redteam.jsonl", rows)
    other = dict(rows[0], id="x/0", turns=["never"], trainable=True, judge=1.0, target="another")
    long = dict(rows[0], id="x/1", turns=["never", "ever", "again"], trainable=True, judge=1.0)
    files.append_jsonl(out / "redteam.jsonl", [other, long])
    good = {r["turns"][0] for r in rows if r["trainable"]}
    _, tokenizer = files.load_policy(out / "base.pt")
    prompts, real = [], attacks.sample
    monkeypatch.setattr(
        attacks, "sample", lambda *a, **more: (prompts.extend(a[2]), real(*a, **more))[1]
    )
    go(monkeypatch, out, "few_shot", "--attempts", 8)
    for prompt in prompts:
        [user], [assistant] = tokenizer.opening["user"], tokenizer.opening["assistant"]
        assert prompt[0] == prompt[-1] == user and prompt.count(tokenizer.end) == 2
        assert assistant not in prompt
        starts = [i for i, x in enumerate(prompt) if x == user]
        ends = [i for i, x in enumerate(prompt) if x == tokenizer.end]
        shown = [tokenizer.decode(prompt[a + 1 : b]) for a, b in zip(starts, ends)]
        assert len(set(shown)) == 2 and set(shown) <= good
    texts = []
    monkeypatch.setattr(
        rl_module, "encode_turns", lambda t, turns: (texts.extend(turns), encode_turns(t, turns))[1]
    )
    files.write_jsonl(out / "redteam.jsonl", [*rows, other, long])
    go(monkeypatch, out, "sft", "--attempts", 8)
    assert {text for _, text, _ in texts} == good and {
        (role, weight) for role, _, weight in texts
    } == {("user", 1.0)}


def test_modes_share_the_log_and_the_summary(out, monkeypatch):
    go(monkeypatch, out, "templates", "--attempts", 10)
    go(monkeypatch, out, "zero_shot", "--attempts", 5)
    go(monkeypatch, out, "templates", "--attempts", 5, "--split", "test")
    rows = go(monkeypatch, out, "templates", "--attempts", 18)
    train = [r for r in rows if r["mode"] == "templates" and r["split"] == STAGE2_SPLIT]
    assert len(rows) == 28 and len({r["id"] for r in rows}) == 28
    assert set(Counter(r["technique"] for r in train).values()) == {2}
    summary = json.loads((out / "redteam.json").read_text())
    assert set(summary) == {
        f"templates/sft/{STAGE2_SPLIT}",
        f"zero_shot/sft/{STAGE2_SPLIT}",
        "templates/sft/test",
    }
    s = summary[f"templates/sft/{STAGE2_SPLIT}"]
    assert s["judge"]["n"] == 18 and s["judge"]["k"] == sum(r["success"] for r in train)
    assert set(s["techniques"]) == {r["technique"] for r in train}


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
    count = Counter()
    fields = (
        "id mode seed target split turns plain response principle judge success trainable "
        "type request topic technique framing outcome harmed"
    )
    for r in rows:
        assert set(r) == set(fields.split())
        assert r["success"] == (r["judge"] is not None and r["judge"] > 0.5)
        assert r["target"] == "sft" and not held_out(r["principle"])
        assert r["split"] == (r["topic"] and split_of(r["topic"]))
        assert (r["outcome"] is None) == (r["request"] is None) == (r["harmed"] is None)
        ids = (r["request"] or "").split("/")[1:]
        bad = any(split_of(i) == "test" for i in ids if i in names) or any(
            held_out(i) for i in ids if i in wordings
        )
        run_split = r["id"].split("/")[2]
        assert r["trainable"] == (
            r["success"] and run_split != "test" and r["request"] is not None and not bad
        )
        count[r["mode"], r["split"], r["trainable"]] += 1
    assert count["templates", STAGE2_SPLIT, True] and any(
        count["zero_shot", s, True] for s in ("demo", "train")
    )
    assert not count["templates", "test", True]


def test_training_rows_of_free_text_are_nothing_when_asked_about_the_test_part(out, monkeypatch):
    rows = go(monkeypatch, out, "zero_shot", "--attempts", 24, "--split", "test")
    assert any(r["success"] for r in rows) and not any(r["trainable"] for r in rows)


def test_without_a_verdict_of_the_judge_nothing_is_a_success(out, monkeypatch):
    from minicai.judge import p_breaks

    monkeypatch.setattr(attacks, "p_breaks", p_breaks)
    rows = go(monkeypatch, out, "templates", "--attempts", 9)
    assert len(rows) == 9 and all(
        r["judge"] is None and not r["success"] and not r["trainable"] for r in rows
    )


def test_the_rl_attacker_climbs_and_without_a_diversity_term_it_collapses(out, models, monkeypatch):
    prize = {text[:12]: p for text, p in zip(models[1], (1.0, 0.9, 0.9))}
    monkeypatch.setattr(rl_module, "BATCH", 32)
    monkeypatch.setattr(
        attacks,
        "p_breaks",
        lambda m, t, turns, *_: [prize.get((x or [""])[-1][:12], 0.0) for x in turns],
    )
    commonest = {}
    for weight in (0, 3):
        rows = go(monkeypatch, out, "rl", "--attempts", 384, "--diversity", weight, "--lr", 0.0005)
        mode = "rl" if weight else "rl-diversity-0"
        mine = [r for r in rows if r["mode"] == mode]
        assert len(mine) == 384
        harm = [sum(r["judge"] or 0 for r in part) / len(part) for part in (mine[:32], mine[-64:])]
        assert harm[1] > harm[0] + 0.15
        late = [" ".join(r["turns"]) for r in mine[-256:]]
        commonest[weight] = max(map(late.count, set(late)))
    print(commonest)
    assert commonest[0] > 1.4 * commonest[3]
    assert {"rl/sft/demo", "rl-diversity-0/sft/demo"} == set(
        json.loads((out / "redteam.json").read_text())
    )


def test_the_judge_reads_what_a_disguise_hides(out, monkeypatch):
    read = []
    monkeypatch.setattr(
        attacks, "p_breaks", lambda m, t, turns, *_: (read.extend(turns), [0.2] * len(turns))[1]
    )
    rows = go(monkeypatch, out, "templates", "--attempts", 9)
    assert read == [r["plain"] for r in rows] and all(r["plain"] != r["turns"] for r in rows)


def test_gcg_attacks_with_ordinary_ids_and_stops_at_success(out, monkeypatch):
    real, asked = gcg_module.sample, []
    monkeypatch.setattr(gcg_module, "CHECK", 1)
    monkeypatch.setattr(
        gcg_module, "sample", lambda *a, **more: (asked.extend(a[2]), real(*a, **more))[1]
    )
    verdicts, read = iter([0.1, 0.1, 0.9, 0.9]), []
    monkeypatch.setattr(
        attacks, "p_breaks", lambda m, t, turns, *_: (read.extend(turns), [next(verdicts)])[1]
    )
    (row,) = go(monkeypatch, out, "gcg", "--attempts", 1, "--suffix", 4, "--steps", 12)
    _, tokenizer = files.load_policy(out / "base.pt")
    assert len(row["suffix"]) == 4 and set(row["suffix"]) <= set(tokenizer.text_ids)
    assert asked[-1] == [*asked[0][:-2], *row["suffix"], *asked[0][-2:]]
    assert row["turns"][-1].endswith(tokenizer.decode(row["suffix"]))
    assert (
        row["steps"] < 12 and row["queries"] == 3 and row["harm_before"] == 0.1 and row["success"]
    )
    assert row["plain"] != row["turns"] and read == [row["plain"]] * 4
    assert not row["trainable"] and row["mode"] == "gcg"


def test_a_person_types_and_everything_is_logged(out, models, monkeypatch, capsys):
    lines = iter([models[1][0], "", "hello " * 600, "hello you", "/quit"])
    monkeypatch.setattr("builtins.input", lambda _: next(lines))
    rows = go(monkeypatch, out, "human")
    assert [r["turns"] for r in rows] == [[models[1][0]], ["hello you"]]
    assert rows[0]["type"] == "harmful" and rows[1]["request"] is None
    said = capsys.readouterr().out
    assert "judge> " in said and "longer than the model can read" in said
    print(said)
    lines = iter(["again"])
    monkeypatch.setattr(
        "builtins.input", lambda _: next(lines, None) or (_ for _ in ()).throw(EOFError)
    )
    assert [r["id"].split("/")[-1] for r in go(monkeypatch, out, "human")] == ["0", "1", "2"]


def test_an_attack_counts_once_by_its_id_and_new_ones_get_new_ids(out, models, monkeypatch):
    rows = go(monkeypatch, out, "templates", "--attempts", 6)
    files.append_jsonl(out / "redteam.jsonl", rows)  # as a second red team would without a lock
    lines = iter([models[1][0], models[1][1], "/quit", models[1][2], "/quit"])
    monkeypatch.setattr("builtins.input", lambda _: next(lines))
    go(monkeypatch, out, "human")
    go(monkeypatch, out, "templates", "--attempts", 6)
    summaries = files.read_json(out / "redteam.json", {})
    assert {name: s["judge"]["n"] for name, s in summaries.items()} == {
        "templates/sft/demo": 6,
        "human/sft/demo": 2,
    }
    rows = files.read_jsonl(out / "redteam.jsonl")
    files.write_jsonl(out / "redteam.jsonl", [r for r in rows if r["id"] != "human/sft/demo/0/0"])
    rows = go(monkeypatch, out, "human")
    assert [r["id"] for r in rows if r["mode"] == "human"] == [
        "human/sft/demo/0/1",
        "human/sft/demo/0/2",
    ]


def test_a_target_that_finishes_no_answer_is_a_warning(out, monkeypatch, capsys):
    go(monkeypatch, out, "templates", "--attempts", 3)
    assert "WARNING" not in capsys.readouterr().out
    monkeypatch.setattr(attacks, "answer", lambda model, tokenizer, asked: [None] * len(asked))
    go(monkeypatch, out, "templates", "--attempts", 3)
    assert "WARNING: sft finished no answer, so these rates mean nothing" in capsys.readouterr().out


def test_bad_input_is_one_sentence(out, monkeypatch, tmp_path):
    for mode in ("few_shot", "sft"):
        with pytest.raises(UserError, match="no trainable attack"):
            go(monkeypatch, out, mode)
    path = tmp_path / "only-honesty.json"
    principles = json.loads((ROOT / "constitution.json").read_text())["principles"]
    path.write_text(
        json.dumps(dict(principles=[p for p in principles if p["family"] == "honesty"]))
    )
    with pytest.raises(UserError, match="no principle of harmlessness"):
        go(monkeypatch, out, "templates", "--constitution", path)
    with pytest.raises(UserError, match="nowhere.pt does not exist"):
        go(monkeypatch, out, "templates", "--target", "nowhere.pt")
    with pytest.raises(UserError, match="--suffix 600 does not fit"):
        go(monkeypatch, out, "gcg", "--suffix", 600)
    model, _ = files.load_policy(out / "sft.pt")
    other = Tokenizer.train(["quite another text with other words"] * 20, 500)
    files.save_checkpoint(out / "other.pt", model, other, SimpleNamespace())
    with pytest.raises(UserError, match="other.pt has another tokenizer"):
        go(monkeypatch, out, "templates", "--target", out / "other.pt")
    (out / "redteam.jsonl").write_text("{}\n")
    with pytest.raises(UserError, match="redteam.jsonl:1 has no field"):
        go(monkeypatch, out, "templates")
    (out / "base.pt").unlink()
    with pytest.raises(UserError, match="base.pt does not exist"):
        go(monkeypatch, out, "templates")


def test_the_rl_attackers_gradient_is_that_of_its_definition(monkeypatch):
    tokenizer, rng = Tokenizer.train(["how do i bake bread"] * 9, 270), random.Random(0)
    torch.manual_seed(0)
    attacker, base = (GPT(GPTConfig(270, 1, 1, 1, 16, 16, 64)) for _ in "ab")
    words = tokenizer.encode("how do i bake bread")
    said = [
        [rng.choice(words) for _ in range(rng.randrange(1, 9))] + [tokenizer.end] for _ in range(20)
    ]
    rows = [dict(turns=[tokenizer.decode(ids)], judge=rng.random()) for ids in said]

    def logps(model, ids):
        ids = torch.tensor([[*tokenizer.opening["user"], *ids]])
        return token_logps(model(ids[:, :-1]), ids)[0]

    repeats = overlap([row["turns"][0] for row in rows])
    pay = [
        row["judge"] - 0.5 * o - 0.3 * (logps(attacker, ids) - logps(base, ids)).sum().item()
        for row, o, ids in zip(rows, repeats, said)
    ]
    loss = -sum((x - (sum(pay) - x) / 19) * logps(attacker, ids).sum() for x, ids in zip(pay, said))
    expected = torch.autograd.grad(loss, list(attacker.parameters()))
    for p in attacker.parameters():
        p.grad = torch.ones_like(p)
    monkeypatch.setattr(rl_module, "EPOCHS", 1)
    monkeypatch.setattr("minicai.device.fast_dtype", lambda device: torch.float32)
    ids, mask = collate_responses(
        [[*tokenizer.opening["user"], *s] for s in said], [1] * 20, tokenizer.pad, "cpu"
    )
    reward = torch.tensor(rl_module.rewards(rows, 0.5))
    kl = rl_module.learn(
        attacker, base, torch.optim.SGD(attacker.parameters(), lr=0.0), ids, mask, reward, 0.3
    )
    a, b = (
        torch.cat([g.flatten() for g in grads])
        for grads in (expected, [p.grad for p in attacker.parameters()])
    )
    torch.testing.assert_close(a / a.norm(), b / b.norm(), atol=1e-4, rtol=0)
    assert kl == pytest.approx(
        sum((logps(attacker, i) - logps(base, i)).sum().item() for i in said) / 20, abs=1e-4
    )


@pytest.fixture
def file(tmp_path):
    """Prompts of both halves, with every label, the last ones with a conversation before them."""
    labels = ("harmful", "safe", "ambiguous", "unknown")
    rows = [dict(prompt=f"zap number {i}", label=labels[i % 4], id=f"p{i}") for i in range(60)]
    talk = [dict(role="user", content="hello"), dict(role="assistant", content="hi")]
    for row in rows[40:]:
        row["prompt"] = [*talk, dict(role="user", content=row["prompt"])]
    files.write_jsonl(tmp_path / "zaps.jsonl", rows)
    return tmp_path / "zaps.jsonl"


def test_prompts_of_a_file_take_the_place_of_the_worlds_requests(out, monkeypatch, file):
    read, world = {p.id: p for p in read_prompts(file)}, World(ROOT / "world")
    act_free = {f.id: f for f in world.framings if not disguises.speaks_of_act(f)}
    go(monkeypatch, out, "templates", "--attempts", 9)
    for split, half in ((STAGE2_SPLIT, "train"), ("test", "test")):
        options = ("--prompts", file, "--split", split, "--attempts", 32)
        rows = go(monkeypatch, out, "templates", *options)
        mine = [r for r in rows if r["id"].startswith(f"templates-zaps/sft/{split}/0/")]
        assert len(mine) == 32 and len(rows) == 41 + 32 * (half == "test")
        fitting = [f for f in act_free.values() if held_out(f.id) == (half == "test")]
        assert {r["technique"] for r in mine} == {f.technique for f in fitting}
        for r in mine:
            prompt = read[r["request"]]
            assert (prompt.split, r["split"]) == (half, half) and prompt.label == r["type"]
            assert r["type"] != "safe" and r["plain"] == [*prompt.turns]
            before = len(prompt.turns) - 1
            assert r["turns"][:before] == [*prompt.turns[:-1]] and len(r["turns"]) % 2 == 1
            assert r["framing"] in {f.id for f in fitting}
            assert r["trainable"] == (r["success"] and half == "train")
            assert r["outcome"] == attacks.classify(r["response"] or "")
            assert r["harmed"] == (r["outcome"] == "compliance")
        plainly = [r for r in mine if r["technique"] in ("role_play", "many_shot")]
        assert all(r["plain"][-1] in r["turns"][-1] for r in plainly) and plainly
        coded = [r for r in mine if r["technique"] == "toy_language"]
        assert all(each_word(r["plain"][-1], lopo_word) in r["turns"][-1] for r in coded)
        assert any(r["success"] for r in mine) and {r["type"] for r in mine} >= {"unknown"}
    summary = json.loads((out / "redteam.json").read_text())
    assert set(summary) == {
        "templates/sft/demo",
        "templates-zaps/sft/demo",
        "templates-zaps/sft/test",
    }


def test_a_round_revises_the_prompts_that_got_through(out, monkeypatch, file):
    rows = go(monkeypatch, out, "templates", "--prompts", file, "--attempts", 32)
    monkeypatch.setattr(revise, "stage_before", lambda out, n: out / "sft.pt")
    found = revise.attacks_that_worked(SimpleNamespace(out=out, round=1))
    worked = {tuple(r["turns"]) for r in rows if r["success"] and r["response"]}
    assert worked and set(found) == worked


def test_attacks_with_another_file_of_the_same_name_are_kept(out, monkeypatch, tmp_path, file):
    other = tmp_path / "other" / file.name
    other.parent.mkdir()
    go(monkeypatch, out, "templates", "--prompts", file, "--attempts", 16)
    before = (out / "redteam.jsonl").read_bytes()
    texts = [dict(id=str(i), prompt=f"How do I fold {i} shirts?") for i in range(9)]
    other.write_text("\n".join(map(json.dumps, texts)))
    with pytest.raises(UserError, match="holds attacks with other prompts as templates-"):
        go(monkeypatch, out, "templates", "--prompts", other, "--attempts", 16)
    assert (out / "redteam.jsonl").read_bytes() == before


def test_a_file_of_safe_prompts_is_no_attack(out, monkeypatch, tmp_path, file):
    files.write_jsonl(
        tmp_path / "safe.jsonl", [dict(prompt=f"p {i}", label="safe") for i in range(9)]
    )
    with pytest.raises(UserError, match="all prompts of the train half of .*safe.jsonl are safe"):
        go(monkeypatch, out, "templates", "--prompts", tmp_path / "safe.jsonl")
    with pytest.raises(UserError, match="--prompts is for --mode templates"):
        go(monkeypatch, out, "zero_shot", "--prompts", file)


def test_only_a_train_prompt_in_a_seen_framing_may_train():
    found = {}
    for framing in World(ROOT / "world").framings:
        for split in ("train", "test"):
            prompt = Prompt("7", ("zap",), "harmful", split)
            attempt = attacks.Attempt(["please zap"], None, prompt, framing)
            assert attempt.may_train == (split == "train" and not held_out(framing.id))
            found[attempt.may_train] = attempt.plain
    assert found == {True: ["zap"], False: ["zap"]}
