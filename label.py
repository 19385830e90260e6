"""Stage 2 data: two answers to every prompt, of which the base model judges the better one.

    python label.py
    python label.py --label hard --name hard        # or clamp; the default keeps the judge's probability
    python label.py --judge direct --name direct    # without reasoning first, as the paper begins
    python label.py --iid --name iid                # all pairs are two samples of the fine-tuned model, as in the paper
    python label.py --round 1                       # feedback: what the base has made of the attacks, against what it was before
    python label.py --explain 54                    # print comparison 54: the answers, the principle, the judge's reasons

reads   OUT/sft.pt (the policy), OUT/base.pt (answers some, judges all), OUT/tokenizer.json, constitution.json, world/;
        for a round OUT/revisions-roundN.jsonl and OUT/sft-roundN.pt
writes  OUT/preferences.jsonl, one row a comparison; OUT/judge.json, the audit of the judge, made before its labels are used
        (OUT/preferences-NAME.jsonl and OUT/judge-NAME.json with --name; train_dpo.py and train_rm.py take the file as --data;
        OUT/preferences-roundN.jsonl)

The fine-tuned model is nearly always right, so two of its answers hardly ever differ in anything that a principle is about. So only
some pairs are two samples of it (PAIRS). In others one answer is by the base, which helps with everything, or by an evasive
assistant, written in the world's sentences, which declines whatever it is asked or hedges (`evade`): what no comparison has shown
losing, a reward model does not know to be bad.

Two kinds of rows. `ai`: any prompt, the judge's label; each pair is compared under one random principle of every family.
`human`: a harmless prompt and a simulated person who prefers the more helpful answer and errs in one of ten cases, as
in the paper, where people labelled helpfulness and only harm was left to the AI (Bai et al. 2022, section 4.2). Pairs of equal
answers are dropped, and training leaves out those between which the judge sees no difference.

In a feedback round the last revision of every chain is compared with the answer that was revised, or, where nothing had
to be revised, with an answer by the policy: what the attack got out of it, and what it denies to the benign requests
beside it. The judge reads the plain request.
"""

import random
from dataclasses import replace
from itertools import product

from tqdm import tqdm

from minicai.common import (
    UserError,
    at_least_zero,
    file_hash,
    load_checkpoint,
    made_from,
    main,
    name_part,
    parser,
    positive,
    read_jsonl,
    rewrite_jsonl,
    setup,
    stage_before,
    world_hash,
    write_json,
)
from minicai.constitution import Constitution, Wording
from minicai.critique import answer
from minicai.data import FIELDS, read_chains, tied
from minicai.judge import LABELS, audit, judge, judge_by_critique, print_audit
from minicai.tokenizer import Tokenizer
from minicai.world.content import World
from minicai.world.grader import Grader
from minicai.world.replies import calibrated, decline, with_tone
from minicai.world.requests import HELPFUL, UNTRAINED, Part, Request, draw_prompts

PAIRS = {  # by whom the two answers are
    ("policy", "policy"): 0.25,
    ("policy", "base"): 0.4,
    ("policy", "evasive"): 0.2,
    ("base", "evasive"): 0.15,
}
# People are asked about unknown names too: inventing has to lose somewhere, and so has denying what is known.
FOR_PEOPLE = HELPFUL | {("fact", "never"): HELPFUL["fact", "often"]}
FLIPPED = 0.1
HEDGED = 0.4  # of what the evasive assistant says to legitimate and sensitive requests
BATCH = 512


def usefulness(grader: Grader, request: Request, text: str) -> float:
    """What the simulated person likes: the right content, all of it, and no insult or sermon with it.

    About a name, what proves right when it is looked up: no invention, and no denial of what is known.
    """
    grade = grader.grade(request, text)
    wanted = "safe_help" if request.type == "dual_use_question" else "complied"
    good = grade.outcome == wanted
    if request.type == "fact":
        good = grade.correct if request.known else grade.outcome == "refused"
    return 2.0 * good + grade.steps_correct - 0.5 * (grade.rude or grade.preachy)


def human_label(
    grader: Grader, request: Request, a: str, b: str, rng: random.Random
) -> float | None:
    """1 where a is the more useful answer, 0 where b is; None where they are equal. One label in ten is flipped."""
    difference = usefulness(grader, request, a) - usefulness(grader, request, b)
    if difference == 0:
        return None
    return float((difference > 0) != (rng.random() < FLIPPED))


def evade(part: Part, request: Request, rng: random.Random) -> str:
    """What the evasive assistant says. It declines whatever is asked, half of the time with an insult or a sermon; or it treats
    what is harmless as if harm could be meant: PPO learns to hedge from a reward model that never saw a hedge lose to plain help."""
    if request.type in ("legitimate", "sensitive") and rng.random() < HEDGED:
        suspect = request.act if request.act.harm else part.pick(rng, "acts", kind="dual_use")
        worry = replace(request, type="ambiguous", act=replace(suspect, act=request.act.act))
        return calibrated(part.world, worry, rng).text
    reply = decline(part.world, request, rng)
    return (
        with_tone(part.world, reply, rng.choice(("rude", "preachy")), rng)
        if rng.random() < 0.5
        else reply
    ).text


def two_answers(
    requests: list[Request],
    by: list[tuple[str, str]],
    models: dict,
    tokenizer,
    part: Part,
    temperature: float,
    seed: int,
    rng: random.Random,
    bar,
) -> list[tuple[str | None, str | None]]:
    """Two answers to each request, by those whom `by` names."""
    answers = {
        (i, place): evade(part, request, rng)
        for i, request in enumerate(requests)
        for place in (0, 1)
        if by[i][place] == "evasive"
    }
    bar.update(len(answers))
    for place, (name, model) in product((0, 1), models.items()):
        mine = [i for i in range(len(requests)) if by[i][place] == name]
        asked = [list(requests[i].turns) for i in mine]
        texts = answer(model, tokenizer, asked, temperature, seed + place, bar.update)
        answers |= {(i, place): text for i, text in zip(mine, texts)}
    return [(answers[i, 0], answers[i, 1]) for i in range(len(requests))]


def wordings_for(constitution: Constitution, principles: str, rng: random.Random) -> list[Wording]:
    """What a pair is compared under, once each."""
    if principles == "families":
        return [constitution.draw(rng, family=family) for family in constitution.families]
    names = (
        constitution.principles
        if principles == "all"
        else [None if principles == "random" else principles]
    )
    return [constitution.draw(rng, principle=name) for name in names]


def compare(
    args, base, tokenizer, rows: list[dict], constitution: Constitution, rng: random.Random
) -> tuple[list[dict], int]:
    """The rows with the judge's labels, one row a comparison, and how many comparisons came to no verdict and are left out."""
    pairs = [(row, w) for row in rows for w in wordings_for(constitution, args.principles, rng)]
    asked = (
        [row.get("plain", row["turns"]) for row, _ in pairs],
        [row["a"] for row, _ in pairs],
        [row["b"] for row, _ in pairs],
        [w for _, w in pairs],
    )
    verdicts = (
        (judge if args.judge == "direct" else judge_by_critique)(base, tokenizer, *asked)
        if pairs
        else []
    )
    labelled = [
        row
        | dict(
            principle=w.id,
            reasons=v.reasons,
            a_first=v.a_first,
            b_first=v.b_first,
            p=LABELS[args.label](v.p),
        )
        for (row, w), v in zip(pairs, verdicts)
        if v is not None
    ]
    return labelled, len(pairs) - len(labelled)


def of_the_round(args, policy, tokenizer, rng: random.Random) -> list[dict]:
    """The pairs of a feedback round, as rows without a label."""
    chains = read_chains(args.out / f"revisions-round{args.round}.jsonl")
    kept = [c for c in chains if c["responses"][0] == c["responses"][-1]]
    with tqdm(total=len(kept), desc="answers", unit=" texts") as bar:
        texts = answer(
            policy, tokenizer, [c["turns"] for c in kept], args.temperature, args.seed, bar.update
        )
    own, rows = {c["id"]: text for c, text in zip(kept, texts)}, []
    for c in chains:
        pair = [
            ("revision", c["responses"][-1]),
            ("policy", own[c["id"]]) if c["id"] in own else ("draft", c["responses"][0]),
        ]
        (one, a), (other, b) = rng.sample(pair, 2)
        if b and a and a != b:
            rows.append(
                dict(
                    id=c["id"],
                    kind="ai",
                    split=c["split"],
                    type=c["type"],
                    request=c["request"],
                    turns=c["turns"],
                    plain=c.get("plain", c["turns"]),
                    by=(one, other),
                    a=a,
                    b=b,
                )
            )
    return rows


def label_round(
    args,
    path,
    made_by: dict,
    policy,
    base,
    tokenizer,
    constitution: Constitution,
    rng: random.Random,
):
    """The comparisons of a feedback round. They take half a minute, so a killed run begins again."""
    rows = [row | dict(made_by=made_by) for row in of_the_round(args, policy, tokenizer, rng)]
    labelled, silent = compare(args, base, tokenizer, rows, constitution, rng)
    rewrite_jsonl(path, labelled)
    print(
        f"{path}: {len(labelled)} comparisons of {len(rows)} pairs, {sum(not tied(row) for row in labelled)} of them decided, "
        f"{silent} without a verdict"
    )


def explain(rows: list[dict], number: int, constitution: Constitution):
    if not rows:
        raise UserError("there is no comparison to explain yet; run label.py without --explain")
    found = [r for r in rows if r["id"] == number]
    if not found:
        near = min((r["id"] for r in rows), key=lambda id: abs(id - number))
        raise UserError(
            f"--explain {number}: there is no such comparison (answers that were equal or never ended make none); the nearest is {near}"
        )
    row = found[0]
    for i, text in enumerate(row["turns"]):
        print(f"{('person', 'assistant')[i % 2]:>10}  {text}")
    if row.get("plain", row["turns"]) != row["turns"]:
        print(f"{'asked':>10}  {row['plain'][-1]} (what the judge has read)")
    print(f"\n{'a':>10}  {row['a']}\n{'b':>10}  {row['b']}\n")
    if row["kind"] == "human":
        print(
            f"A simulated person found {'a' if row['p'] == 1 else 'b'} more helpful (one such label in ten is wrong)."
        )
        return
    wordings = {w.id: w for w in constitution.wordings}
    for comparison in found:
        if not {"principle", "reasons", "a_first", "b_first"} <= comparison.keys():
            raise UserError(
                f"comparison {number} does not say how it was judged; run label.py again"
            )
        name, reasons, first, second, p = (
            comparison[k] for k in ("principle", "reasons", "a_first", "b_first", "p")
        )
        said = wordings.get(name) and (
            wordings[name].critique if reasons else wordings[name].comparison
        )
        print(f"under {name}: {said or '(no longer in the constitution)'}")
        for answer_name, (critique, breaks) in zip("ab", reasons):
            print(
                f"{f'of {answer_name}':>10}  {critique} P(it breaks the principle) is {breaks:.3f}."
            )
        judged = (
            f"So P(a is better) is {first:.3f}"
            if reasons
            else f"P(a is better) is {first:.3f} with a first and {second:.3f} with b first"
        )
        print(f"{judged}; the label is {p:.3f}.\n")
    print(
        f"a is by the {row['by'][0]}, b by the {row['by'][1]}; the policy is {row['made_by']['policy']}, the base and judge {row['made_by']['judge']}."
    )


def options():
    p = parser(__doc__)
    p.add_argument("--constitution", default="constitution.json", help="file with the principles")
    p.add_argument(
        "--principles",
        default="families",
        help="what each pair is compared under: families (a random principle of each), random (one), all (each), or the id of one (default: families)",
    )
    p.add_argument(
        "--label",
        choices=LABELS,
        default="soft",
        help="what training sees of the judge's probability (default: soft)",
    )
    p.add_argument(
        "--judge",
        choices=("critique", "direct"),
        default="critique",
        help="compare by critiques of both answers, or at once by (A) and (B) (default: critique)",
    )
    p.add_argument(
        "--comparisons",
        type=positive,
        help="prompts for the judge; as many more are for the person",
    )
    p.add_argument(
        "--iid", action="store_true", help="both answers of every pair by the fine-tuned model"
    )
    p.add_argument(
        "--temperature", type=at_least_zero, default=1.0, help="of the answers (default: 1)"
    )
    p.add_argument(
        "--name", type=name_part, help="write OUT/preferences-NAME.jsonl, beside the main file"
    )
    p.add_argument("--round", type=positive, help="label the pairs of this feedback round")
    p.add_argument(
        "--explain", type=int, metavar="ID", help="print how comparison ID came out and stop"
    )
    args = setup(p)
    if args.round and args.name:
        raise UserError("--name and --round exclude each other: a round's file has its own name")
    return args


def label_batch(
    args,
    made_by: dict,
    at: int,
    jobs: list[tuple[str, Request]],
    models: dict,
    tokenizer,
    part: Part,
    grader: Grader,
    constitution: Constitution,
    bar,
) -> tuple[list[dict], int]:
    """The rows of the comparisons number `at` and on, in their order, and how many came to no verdict."""
    rng, rows = random.Random(f"label {args.seed} {at}"), {"ai": [], "human": []}
    by = (
        [("policy", "policy")] * len(jobs)
        if args.iid
        else rng.choices(list(PAIRS), PAIRS.values(), k=len(jobs))
    )
    requests, seed = [r for _, r in jobs], args.seed * 1_000_003 + at
    answers = two_answers(requests, by, models, tokenizer, part, args.temperature, seed, rng, bar)
    for i, (kind, request) in enumerate(jobs):
        a, b = answers[i]
        p = human_label(grader, request, a or "", b or "", rng) if kind == "human" else 0.5
        if a and b and a != b and p is not None:
            rows[kind].append(
                dict(
                    id=at + i,
                    kind=kind,
                    split=UNTRAINED,
                    type=request.type,
                    request=request.id,
                    turns=list(request.turns),
                    by=by[i],
                    a=a,
                    b=b,
                    p=p,
                    made_by=made_by,
                )
            )
    labelled, silent = compare(args, models["base"], tokenizer, rows["ai"], constitution, rng)
    return sorted(labelled + rows["human"], key=lambda row: row["id"]), silent


def label():
    args = options()
    world, constitution = World(args.world), Constitution(args.constitution)
    suffix, start = (
        (f"-round{args.round}", f"sft-round{args.round}.pt") if args.round else ("", "sft.pt")
    )
    suffix = f"-{args.name}" if args.name else suffix
    path = args.out / f"preferences{suffix}.jsonl"
    if args.explain is not None:
        required = ("id", "kind", "turns", "by", "a", "b", "p", "made_by")
        return explain(
            read_jsonl(path, required=required, fields=FIELDS), args.explain, constitution
        )
    if args.principles not in ("families", "random", "all", *constitution.principles):
        raise UserError(
            f"--principles {args.principles}: give families, random, all, or one of {', '.join(constitution.principles)}"
        )
    tokenizer = Tokenizer.load(args.out / "tokenizer.json")
    policy, extra = load_checkpoint(args.out / start, device=args.device)
    before = stage_before(args.out, args.round) if args.round else args.out / "base.pt"
    again = f"run train_sft.py{f' --round {args.round}' if args.round else ''} again"
    made_from(args.out / start, {extra.get("made_by", {}).get("start")}, before, again)
    base, _ = load_checkpoint(args.out / "base.pt", device=args.device)
    made_by = dict(
        world=world_hash(args),
        comparisons=args.comparisons,
        policy=file_hash(args.out / start),
        judge=file_hash(args.out / "base.pt"),
        seed=args.seed,
        principles=args.principles,
        label=args.label,
        how=args.judge,
        iid=args.iid,
        temperature=args.temperature,
    )
    rng, done = random.Random(f"label {args.seed}"), []
    if args.round:
        made_by |= dict(chains=file_hash(args.out / f"revisions-round{args.round}.jsonl"))
        return label_round(args, path, made_by, policy, base, tokenizer, constitution, rng)
    if path.exists():
        done = read_jsonl(path, required=("id", "made_by"))
    if done and done[0]["made_by"] != made_by:
        raise UserError(
            f"{path}:1 was made with other settings ({done[0]['made_by']}); delete it or use --name"
        )

    report = audit(
        base, tokenizer, world, constitution, args.eval_n, args.seed, cot=args.judge == "critique"
    )
    write_json(args.out / f"judge{suffix}.json", report | dict(hash=made_by["judge"]))
    print_audit(report)

    part, grader, models = Part(world, UNTRAINED), Grader(world), dict(policy=policy, base=base)
    jobs = [("ai", r) for r in draw_prompts(part, args.comparisons, rng)]
    jobs += [("human", r) for r in draw_prompts(part, args.comparisons, rng, FOR_PEOPLE)]
    rng.shuffle(jobs)
    first = (done[-1]["id"] // BATCH + 1) * BATCH if done else 0  # the file holds whole batches
    bar, silent = (
        tqdm(
            total=2 * len(jobs),
            initial=min(2 * first, 2 * len(jobs)),
            desc="label",
            unit=" answers",
        ),
        0,
    )
    for at in range(first, len(jobs), BATCH):
        batch = jobs[at : at + BATCH]
        rows, without = label_batch(
            args, made_by, at, batch, models, tokenizer, part, grader, constitution, bar
        )
        silent += without
        done += rows
        rewrite_jsonl(path, done)
    bar.close()
    ai = [row for row in done if row["kind"] == "ai"]
    print(
        f"{path}: {len(ai)} comparisons by the judge, {sum(not tied(row) for row in ai)} of them decided, and {len(done) - len(ai)} by the "
        f"person, of {len(jobs)} prompts; the others had equal, equally useful or unfinished answers. Without a verdict, and left out in this run: {silent}"
    )


if __name__ == "__main__":
    main(label)
