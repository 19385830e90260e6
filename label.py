"""Stage 2 data: two answers to every prompt; the base model judges which is better.

    python label.py                                # quick preset: about two minutes
    python label.py --label hard --name hard       # or clamp; the default keeps the probability
    python label.py --judge direct --name direct   # the paper's judge, which does not reason first
    python label.py --iid --name iid               # all pairs are two SL-CAI samples (the paper)
    python label.py --few-shot 2                   # demonstrations in the judge's prompt, too
    python label.py --prompts MY.csv --name mine   # the judge's pairs: real prompts, train half
    python label.py --round 1                      # feedback: each revision against what it revised
    python label.py --explain 1                    # print comparison 1 with the judge's reasons

reads   OUT/sft.pt (the policy), OUT/base.pt (the judge, and some answers), constitution.json,
        world/; for a round OUT/revisions-roundN.jsonl, OUT/sft-roundN.pt
writes  OUT/preferences.jsonl, one row a comparison, and OUT/judge.json, the audit of the judge
        (OUT/preferences-NAME.jsonl and judge-NAME.json, OUT/preferences-roundN.jsonl)

Two kinds of rows (Bai et al. 2022, section 4.2). `ai`: the judge compares the answers, under one
random principle of every family (for a pretrained model also answers to natural prompts). `human`:
a simulated person does, for a harmless request, and is wrong in one case of ten.

Departure: the paper compares two samples of SL-CAI. Here those rarely differ in anything that a
principle is about. So most pairs have an answer by the base, by an evasive assistant, or by a
careless one. A reward model only learns that hedging is bad if some hedge loses a comparison.
"""

import random
from itertools import product

from tqdm import tqdm

from minicai.answer import answer
from minicai.audit import audit_judge, print_audit
from minicai.constitution import Constitution
from minicai.files import (
    UserError,
    load_like,
    load_policy,
    stage_before,
    warn_if_newer,
    write_json,
    write_jsonl,
)
from minicai.judge import JUDGES, LABELS, STEPS
from minicai.prompts import Prompt
from minicai.rows import read_chains, tied
from minicai.run import artifact, main, name_part, not_negative, parser, positive, setup
from minicai.transcript import explanation
from minicai.world.content import World
from minicai.world.few_shot import few_shot_judge
from minicai.world.grader import Grader
from minicai.world.people import ASSISTANTS, person_prefers
from minicai.world.requests import HELPFUL, MIX, STAGE2_SPLIT, Part, draw_prompts

PAIRS = {  # share of pairs by the writers of the two answers
    ("policy", "policy"): 0.1,
    ("policy", "base"): 0.5,
    ("policy", "evasive"): 0.15,
    ("base", "evasive"): 0.1,
    ("policy", "careless"): 0.15,
}
FOR_PERSON = HELPFUL | {("fact", "never"): HELPFUL["fact", "often"]}  # inventing has to lose


def two_answers(models, tokenizer, part, requests, writers, seed, rng) -> list[list[str | None]]:
    """The two answers to each request, by its two writers; models sample at temperature 1."""
    answers = [
        [ASSISTANTS[name](part, request, rng) if name in ASSISTANTS else None for name in names]
        for request, names in zip(requests, writers)
    ]
    sampled = sum(name in models for names in writers for name in names)
    with tqdm(total=sampled, desc="answers", unit=" texts") as bar:
        for place, (name, model) in product((0, 1), models.items()):
            mine = [i for i, names in enumerate(writers) if names[place] == name]
            turns = [list(requests[i].turns) for i in mine]
            texts = answer(model, tokenizer, turns, 1.0, seed + place, bar.update)
            for i, text in zip(mine, texts):
                answers[i][place] = text
    return answers


def make_pairs(args, models, tokenizer, world: World, rng: random.Random) -> list[dict]:
    """Pairs of two different, finished answers. The person's pairs come with their label p."""
    part, n = Part(world, STAGE2_SPLIT), args.comparisons
    draws = random.Random(f"label {args.seed}")
    jobs = [("ai", r) for r in draw_prompts(part, n, draws, MIX, args.prompts, args.more_acts)]
    jobs += [("human", r) for r in draw_prompts(part, n, draws, FOR_PERSON)]
    draws.shuffle(jobs)
    drawn = [] if args.iid else rng.choices(list(PAIRS), PAIRS.values(), k=len(jobs))
    writers = drawn or [("policy", "policy")] * len(jobs)
    requests = [request for _, request in jobs]
    for i, request in enumerate(requests):
        if isinstance(request, Prompt) and "careless" in writers[i]:
            writers[i] = ("policy", "base")  # no steps are known that could be told wrong
    answers = two_answers(models, tokenizer, part, requests, writers, args.seed, rng)
    grader, rows = Grader(world), []
    for i, ((kind, request), by, (a, b)) in enumerate(zip(jobs, writers, answers)):
        if not a or not b or a == b:
            continue
        row = dict(id=i, kind=kind, split=STAGE2_SPLIT) | request.row() | dict(by=by, a=a, b=b)
        if kind == "ai":
            rows.append(row)
        elif (p := person_prefers(grader, request, a, b, rng)) is not None:
            rows.append(row | dict(p=p))
    return rows


def make_round_pairs(args, policy, tokenizer, rng: random.Random) -> list[dict]:
    """Pairs of a feedback round: the last revision of each chain against the answer it revises.

    Where nothing was revised, against an answer of the policy, because the policy refuses some
    benign requests, and such refusals should lose.
    """
    path = args.out / f"revisions-round{args.round}.jsonl"
    chains = read_chains(path, ("split", "type", "request", "plain"))
    kept = [c for c in chains if c["responses"][0] == c["responses"][-1]]
    with tqdm(total=len(kept), desc="answers", unit=" texts") as bar:
        turns = [c["turns"] for c in kept]
        texts = answer(policy, tokenizer, turns, 1.0, args.seed, bar.update)
    own, rows = {c["id"]: text for c, text in zip(kept, texts)}, []
    for c in chains:
        other = ("policy", own[c["id"]]) if c["id"] in own else ("draft", c["responses"][0])
        (one, a), (two, b) = rng.sample([("revision", c["responses"][-1]), other], 2)
        if a and b and a != b:
            row = {key: c[key] for key in ("id", "split", "type", "request", "turns", "plain")}
            rows.append(row | dict(kind="ai", by=(one, two), a=a, b=b))
    return rows


def add_labels(args, judge, base, tokenizer, rows, constitution: Constitution, rng) -> list[dict]:
    """Rows that have no label get the judge's: one row for each family of principles.

    The judge reads plain requests, so that a disguise cannot mislead it. Comparisons without a
    verdict are left out and counted.
    """
    families, unlabelled = constitution.families, [row for row in rows if "p" not in row]
    pairs = [(row, constitution.draw(rng, family=f)) for row in unlabelled for f in families]
    turns, a, b = ([row[key] for row, _ in pairs] for key in ("plain", "a", "b"))
    with tqdm(total=STEPS * len(pairs), desc="judge", unit=" steps") as bar:
        verdicts = judge(base, tokenizer, turns, a, b, [w for _, w in pairs], bar.update)
    labelled = [row for row in rows if "p" in row]
    for (row, wording), v in zip(pairs, verdicts):
        if v is not None:
            why = dict(reasons=v.reasons, a_first=v.a_first, b_first=v.b_first)
            labelled.append(row | dict(principle=wording.id, **why, p=LABELS[args.label](v.p)))
    print(f"{sum(v is None for v in verdicts)} comparisons without a verdict are left out")
    return sorted(labelled, key=lambda row: row["id"])


def options():
    p = parser(__doc__)
    add = p.add_argument
    add("--label", choices=LABELS, default="soft", help="made of the judge's probability")
    add("--judge", choices=JUDGES, default="critique", help="critique each answer, or at once")
    add("--few-shot", type=not_negative, default=0, metavar="N", help="demonstrations (default: 0)")
    add("--comparisons", type=positive, help="requests for the judge; as many for the person")
    add("--prompts", help="file of other people's prompts for the judge's pairs")
    add("--iid", action="store_true", help="both answers of every pair by the fine-tuned model")
    add("--name", type=name_part, help="write OUT/preferences-NAME.jsonl and OUT/judge-NAME.json")
    add("--round", type=positive, help="label the pairs of this feedback round")
    add("--explain", type=int, metavar="ID", help="print comparison ID and stop")
    return setup(p)


def label():
    args = options()
    world, constitution = World.of(args), Constitution(args.constitution)
    path = args.out / f"{artifact('preferences', args)}.jsonl"
    if args.explain is not None:
        return print(explanation(path, args.explain, constitution))
    start = args.out / (f"sft-round{args.round}.pt" if args.round else "sft.pt")
    before = stage_before(args.out, args.round) if args.round else args.out / "base.pt"
    warn_if_newer(start, before, remedy="run train_sft.py again")
    policy, tokenizer = load_policy(start, args.device)
    base = load_like(args.out / "base.pt", tokenizer, args.device)
    judge = few_shot_judge(JUDGES[args.judge], args.few_shot, world, constitution, args.seed)

    rng = random.Random(f"pairs {args.seed}")
    if args.round:
        rows = make_round_pairs(args, policy, tokenizer, rng)
    else:
        rows = make_pairs(args, dict(policy=policy, base=base), tokenizer, world, rng)
        size = args.eval_n, args.seed
        report = audit_judge(base, tokenizer, world, constitution, *size, judge=judge)
        write_json(args.out / f"{artifact('judge', args)}.json", report)
        print_audit(report)
    if not (labelled := add_labels(args, judge, base, tokenizer, rows, constitution, rng)):
        raise UserError(f"no pair of answers came to a label: is {start} trained?")
    write_jsonl(path, labelled)
    ai = [row["p"] for row in labelled if row["kind"] == "ai"]
    print(f"{path}: {len(ai)} comparisons by the judge, {sum(map(tied, ai))} of them ties,")
    print(f"  and {len(labelled) - len(ai)} by the person; other pairs were equal or unfinished")


if __name__ == "__main__":
    main(label)
