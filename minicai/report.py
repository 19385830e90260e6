"""results.json as an aligned table for the terminal and as a Markdown report."""

from pathlib import Path

from minicai.constitution import Constitution
from minicai.guard import LAYERS
from minicai.tradeoff import ERRORS, before, cost, errors, operating_point, overall, points
from minicai.world.content import TECHNIQUES
from minicai.world.skills import KEEPS

METRICS = [  # key in a stage, what it is called, which way is better
    ("under_refusal", "under-refusal: harmful requests complied with", "low"),
    ("over_refusal", "over-refusal: harmless requests refused", "low"),
    ("hedged", "legitimate dual-use requests answered only in part", "low"),
    ("steps_correct", "legitimate requests: all steps right", "high"),
    ("ambiguous_handled", "ambiguous requests: safe help, no steps", "high"),
    ("by_type.dual_use_question.safe_help", "dual-use questions answered", "high"),
    ("by_type.sensitive.complied", "sensitive requests answered", "high"),
    ("names_harm", "harmful requests whose harm the answer names", "high"),
    ("helpful_in_refusal", "refusals that offer another way", "high"),
    ("rude_or_preachy", "rude or preachy answers", "low"),
    ("fabrication", "made-up answers about unknown names", "low"),
    ("known_accuracy", "right answers about known names", "high"),
    ("seldom_accuracy", "right answers about names it has seldom read about", "high"),
    ("consistency", "same treatment in another wording", "high"),
    ("garbled", "garbled or beside the point", "low"),
    ("jailbreak_mean", "jailbreaks that get through, all forms", "low"),
    ("jailbreak.seen_mean", "  ... in framings that training may use", "low"),
    ("jailbreak.held_out_mean", "  ... in held-out framings", "low"),
    ("jailbreak_of_refused", "  ... of requests that are refused when asked plainly", "low"),
    ("jailbreak_benign_mean", "benign requests in the same forms: steps given", "high"),
    ("over_refusal_disguised", "benign requests in the same forms: refused", "low"),
]
SKILLS = [
    ("critique_right", "critique says rightly whether the principle is broken"),
    ("critique_names_harm", "critique of a harmful request names the right harm"),
    ("harmful_revised", "revision of harmful help declines or keeps to what is safe"),
    ("legitimate_kept", "revision of legitimate help keeps every step"),
]
STAGE_2 = [  # key in the results, what it is called
    ("judge_audit.accuracy", "judge: right where exactly one answer breaks the principle"),
    ("judge_audit.length_alone", "... the length alone would be right"),
    ("judge_audit.always_a", "... always the first answer would be right"),
    (
        "judge_audit.swap_consistency",
        "judge: the same answer wins in both orders (with critiques it has to)",
    ),
    ("judge_audit.ece", "judge: expected calibration error"),
    (
        "judge_audit.false_alarms",
        "judge: prefers one of two answers where neither or both break it",
    ),
    ("judge_audit.prefers_safe", "judge: prefers the safe answer to a harmful request"),
    (
        "reward_model.accuracy",
        "reward model: prefers the better of two answers written by the world",
    ),
    ("reward_model.length_alone", "... the length alone would be right"),
    ("reward_model.ece", "reward model: expected calibration error there"),
    ("reward_model.own_accuracy", "reward model: prefers the better of two samples of SL-CAI"),
    ("reward_model.own_length_alone", "... the length alone would be right"),
    ("reward_model.agrees_with_labels", "reward model: agrees with held-back labels"),
]


def lookup(stage: dict, key: str):
    """A rate by its dotted key; with "_mean" the mean over the jailbreak forms below it."""
    for part in key.removesuffix("_mean").split("."):
        stage = stage[part]
    if key.endswith("_mean"):
        rates = [stage[t]["rate"] for t in TECHNIQUES if stage[t]["rate"] is not None]
        return dict(rate=sum(rates) / len(rates) if rates else None)
    return stage


def stage_2(results: dict) -> dict[str, dict]:
    """Each number of STAGE_2 that has been measured, as a rate."""
    found = {}
    for key, _ in STAGE_2:
        place, name = key.split(".")
        value = (results.get(place) or {}).get(name)
        if isinstance(value, dict):
            found[key] = value if "rate" in value else dict(rate=value["accuracy"])
        elif value is not None:
            found[key] = dict(rate=value)
    return found


def percent(rate: dict) -> str:
    return "-" if rate["rate"] is None else f"{100 * rate['rate']:.1f}"


def interval(rate: dict) -> str:
    """97.5 (95.4-98.6), n 400"""
    if rate["rate"] is None or "n" not in rate:
        return percent(rate)
    return f"{percent(rate)} ({100 * rate['lo']:.1f}-{100 * rate['hi']:.1f}), n {rate['n']}"


def aligned(rows: list[list[str]]) -> str:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join(
        "  ".join(
            cell.ljust(w) if i == 0 else cell.rjust(w)
            for i, (cell, w) in enumerate(zip(row, widths))
        ).rstrip()
        for row in rows
    )


def table(results: dict) -> str:
    """Percentages, one column a stage."""
    rows = [["percent", *(s["name"] for s in results["stages"]), "better"]]
    rows += [
        [label, *(percent(lookup(s, key)) for s in results["stages"]), better]
        for key, label, better in METRICS
    ]
    rows.append(
        ["mean tokens of an answer", *(str(s["mean_tokens"]) for s in results["stages"]), ""]
    )
    text = aligned(rows)
    if "skills" in results:
        text += "\n\n" + aligned(
            [[f"the base model as a critic, {results['exam']['split']} acts", "percent"]]
            + [[label, percent(results["skills"][key])] for key, label in SKILLS]
        )
    return f"{text}\n\n{gap_text(results)}{filter_text(results)}"


def markdown(rows: list[list[str]]) -> str:
    head, *rest = rows
    lines = [head, ["---", *(["---:"] * (len(head) - 1))], *rest]
    return "\n".join("| " + " | ".join(row) + " |" for row in lines)


def with_requests(chain: dict, constitution: Constitution) -> dict:
    """The chain with the texts of its critique requests; None where a wording is no longer in the constitution."""
    texts = {wording.id: wording.critique for wording in constitution.wordings}
    return chain | dict(requests=[texts.get(name) for name in chain["principles"]])


def chain_text(chain: dict, in_short: bool = False) -> str:
    """A critique-revision chain as a quoted transcript; in short, without the steps that left the answer as it was."""
    names = ("Person", "Assistant")
    lines = [f"**{names[i % 2]}:** {text}" for i, text in enumerate(chain["turns"])]
    lines.append(f"**Draft:** {chain['responses'][0]}")
    requests, kept = chain.get("requests") or [""] * len(chain["principles"]), []
    steps = zip(
        chain["principles"],
        requests,
        chain["critiques"],
        chain["responses"],
        chain["responses"][1:],
    )
    for principle, request, critique, response, revision in steps:
        if in_short and revision == response and (critique or "").endswith(KEEPS):
            kept.append(f"`{principle}`")
            continue
        said = "(no longer in the constitution)" if request is None else request or "(not kept)"
        lines.append(f"**Critique request** (`{principle}`): {said}")
        lines.append(f"**Critique:** {critique or '(none)'}")
        lines += [f"**Revision:** {revision}"] if revision != response else []
    if kept:
        lines.append(f"*Critiques under {', '.join(kept)} found nothing to change.*")
    return quote(lines)


def samples_by_request(results: dict) -> list[tuple[dict, list[tuple[str, str]]]]:
    """Each sample question with (stage, answer) for every stage."""
    stages = results["stages"]
    return [
        (sample, [(s["name"], s["samples"][i]["answer"] or "(did not end)") for s in stages])
        for i, sample in enumerate(stages[0]["samples"])
    ]


def same_requests(results: dict) -> str:
    """For the terminal: one chain of critique and revision, and the same requests at every stage."""
    lines = []
    for chain in results["chain"][:1]:
        lines += ["a chain of Stage 1:", for_terminal(chain_text(chain)), ""]
    lines.append("the same requests at every stage:")
    for sample, answers in samples_by_request(results):
        lines.append(f"  [{sample['set']}] {' / '.join(sample['turns'])}")
        lines += [f"      {name}: {text}" for name, text in answers]
    return "\n".join(lines)


def quote(lines: list[str]) -> str:
    """Markdown paragraphs as one quotation."""
    return "\n>\n".join("> " + line.replace("\n", "\n> ") for line in lines)


def for_terminal(quotation: str) -> str:
    return quotation.replace("**", "").replace("\n>\n", "\n")


def samples_text(results: dict, names: dict) -> str:
    """The same requests at every stage, as quotations."""
    text = []
    for sample, answers in samples_by_request(results):
        lines = [f"**{sample['set']}:** " + " / ".join(sample["turns"])]
        text.append(
            quote(lines + [f"**{names.get(name, name)}:** {answer}" for name, answer in answers])
        )
    return "\n\n".join(text)


def filter_text(results: dict) -> str:
    f = results["keyword_filter"]
    return (
        f"keyword filter ({len(f['words'])} words, chosen on the train split): lets {percent(f['under_refusal'])} of the harmful requests "
        f"through and blocks {percent(f['over_refusal'])} of the harmless ones"
    )


def gap_text(results: dict) -> str:
    """What the base does against what it knows: the gap that Constitutional AI closes. Empty before there are base and judge."""
    judged, base = (
        results.get("judge_audit"),
        next((s for s in results["stages"] if s["name"] == "base"), None),
    )
    if not judged or not judged["prefers_safe"]["n"] or not base:
        return ""
    return (
        f"the base complies with {percent(base['under_refusal'])} % of harmful requests, and as a judge prefers the safe of two answers "
        f"to {percent(judged['prefers_safe'])} % of them (n {judged['prefers_safe']['n']})\n"
    )


def redteam_text(found: dict) -> str:
    """What redteam.py has found, with the grader's word beside the judge's."""
    rows = [
        [
            "attack / target / split",
            "success by the judge",
            "by the grader",
            "they agree",
            "distinct-2",
            "self-BLEU",
        ]
    ]
    rows += [
        [
            name,
            *(interval(s[k]) for k in ("judge", "grader", "agreement")),
            f"{100 * s['distinct_2']:.1f}",
            f"{100 * s['self_bleu']:.1f}",
        ]
        for name, s in found.items()
    ]
    return "## Red team\n\n" + markdown(rows)


def p_value(p: float) -> str:
    return "p < 0.0001" if p < 0.0001 else f"p = {p:.4f}" + ", may be chance" * (p >= 0.05)


def story(results: dict) -> str:
    """How each stage moved the two errors, in words."""
    names, lines = [s["name"] for s in results["stages"]], []
    tests = {(row["before"], row["after"], row["metric"]): row for row in results.get("paired", [])}
    for stage in results["stages"]:
        under, over = (100 * (errors(stage)[side]["rate"] or 0.0) for side in ("under", "over"))
        start = before(names, stage["name"])
        if start is None:
            lines.append(
                f"* **{stage['name']}** is where it starts: under-refusal {under:.1f}, over-refusal {over:.1f}."
            )
            continue
        was = errors(results["stages"][names.index(start)])
        moved = [
            now - 100 * (was[side]["rate"] or 0.0)
            for side, now in (("under", under), ("over", over))
        ]
        said = []
        for metric, now, by in zip(("under_refusal", "over_refusal"), (under, over), moved):
            test = tests.get((start, stage["name"], metric))
            sure = f" ({p_value(test['p'])})" if test and abs(by) >= 0.05 else ""
            said.append(
                f"{metric.replace('_', '-')} {'unchanged at' if abs(by) < 0.05 else 'down to' if by < 0 else 'up to'} {now:.1f}{sure}"
            )
        shown = [
            tests.get((start, stage["name"], m), {"p": 1.0})["p"] < 0.05
            for m in ("under_refusal", "over_refusal")
        ]
        proven = [
            by if by > 0 or sure else 0.0 for by, sure in zip(moved, shown)
        ]  # a fall has to be shown
        now, was = errors(stage)["disguised"], was["disguised"]
        hidden = (
            f"In disguise: harm let through {percent(was['under'])} to {percent(now['under'])}, "
            f"benign requests refused {percent(was['over'])} to {percent(now['over'])}."
        )
        lines.append(
            f"* **{stage['name']}** against {start}: {', '.join(said)}. {verdict(*proven)} {hidden}"
        )
    return "\n".join(lines)


def verdict(under: float, over: float) -> str:
    """What a move by so many points of each error is."""
    if abs(under) < 0.05 and abs(over) < 0.05:
        return "Neither error rose, nor fell further than chance could take it."
    if under <= 0 and over <= 0:
        return "Better on one side and worse on neither: the curve itself moved."
    if under >= 0 and over >= 0:
        return "Worse on one side and better on neither."
    if under < 0:
        return f"A trade along the curve: {-under:.1f} points less harm let through for {over:.1f} points more help denied."
    return f"A trade along the curve: {-over:.1f} points less help denied for {under:.1f} points more harm let through."


def choice(results: dict, costs: tuple[float, float]) -> str:
    """The operating point for these costs, and why this one."""
    found = points(results)
    best = operating_point(found, *costs)
    price = lambda p: cost(p, *costs)  # noqa: E731
    rates = lambda p: [p["under"], p["disguised"]["under"], p["over"], p["disguised"]["over"]]  # noqa: E731

    def where(p):
        said = "{} (under-refusal {}, in disguise {}; over-refusal {}, in disguise {})"
        return said.format(p["name"], *map(interval, rates(p)))

    shares = [100 * overall(best, side) for side in ("under", "over")]
    text = [
        f"With a cost of {costs[0]:g} for each harmful request complied with and {costs[1]:g} for each harmless one refused, and every second "
        f"request in a disguise, the cheapest of {len(found)} measured points is **{where(best)}**: {costs[0]:g} x {shares[0]:.1f} + "
        f"{costs[1]:g} x {shares[1]:.1f} = {100 * price(best):.1f}."
    ]
    if best["kind"] == "guard":
        q, off, seconds = best["point"], best["guard"]["off"], best["guard"]["seconds"]
        times = 1 + sum(seconds[check] for check in LAYERS[q["layer"]]) / max(
            seconds["answer"], 1e-9
        )
        text.append(
            f"What it pays beside that: an exchange takes {times:.1f} times as long, and of the ambiguous requests {percent(q['ambiguous_handled'])} % "
            f"are handled, against {percent(off['ambiguous_handled'])} % without the guard."
        )
    if best["kind"] != "stage":
        plain = operating_point([p for p in found if p["kind"] == "stage"], *costs)
        text.append(
            f"Of the stages alone, without a guard or blended weights, it is {where(plain)}, at {100 * price(plain):.1f}."
        )
    others = [p for p in found if p["kind"] == best["kind"] and p is not best]
    if others:
        second = operating_point(others, *costs)
        near = all(
            x["lo"] <= y["hi"] and y["lo"] <= x["hi"]
            for x, y in zip(rates(best), rates(second))
            if x["rate"] is not None
        )
        text.append(
            f"The next of its kind is {second['name']} at {100 * price(second):.1f}"
            + (", and the intervals of all errors overlap." if near else ".")
        )
    if best["garbled"]["rate"] is not None:
        text.append(
            f"Garbled answers count for neither error; here they are {percent(best['garbled'])} %."
        )
    text.append(
        "The best of many points on one set of questions flatters itself a little: to choose for use, measure with `--split train --results FILE`."
    )
    return " ".join(text)


def pictures(results: dict, path: Path, costs: tuple[float, float]) -> str:
    try:
        from minicai.plots import draw

        return "\n\n".join(
            f"![{caption}]({file.name})" for caption, file in draw(results, path, costs)
        )
    except ImportError:
        return "(No pictures: matplotlib is not installed. `pip install -r requirements-extras.txt`, then `python evaluate.py --report`.)"


def tradeoff_text(results: dict, costs: tuple[float, float]) -> list[str]:
    """The sections on the trade-off: how it moved, the operating point, and every curve as a table."""
    text = [
        "## The trade-off\n\n" + story(results),
        "### Operating point\n\n" + choice(results, costs),
    ]
    if results.get("paired"):
        rows = [
            ["the same questions, before and after", "n", "no longer", "newly", "permutation test"]
        ]
        rows += [
            [
                f"{r['after']} against {r['before']}: {r['metric']}",
                str(r["n"]),
                str(r["fell"]),
                str(r["rose"]),
                p_value(r["p"]),
            ]
            for r in results["paired"]
        ]
        text.append("### Paired\n\n" + markdown(rows))
    for name, line in results.get("interpolation", {}).items():
        rows = [["alpha", *(key.replace("_", " ") for key in ERRORS)]]
        rows += [[f"{q['alpha']:g}", *(interval(q[key]) for key in ERRORS)] for q in line]
        text.append(f"### Weights between base (0) and {name} (1)\n\n" + markdown(rows))
    for s in results["stages"]:
        if "guard" in s:
            text.append(guard_text(s["name"], s["guard"]))
        if "helpful_refusals" in s:
            h = s["helpful_refusals"]
            rows = [
                [
                    "refusals of harmful requests that offer another way",
                    "before",
                    "after",
                    "answers of all types that leaked a step",
                ]
            ]
            rows += [
                [label, *(interval(h[key][k]) for k in ("offers_before", "offers_after", "leaked"))]
                for key, label in (
                    ("own", "the model's own"),
                    ("bare", "bare ones, which say no more than that"),
                )
            ]
            text.append(f"### Helpful refusals, {s['name']}\n\n" + markdown(rows))
    bins = [b for b in (results.get("judge_audit") or {}).get("reliability", []) if b["n"]]
    if bins:
        rows = [["the judge's P(first is better)", "first is better"]]
        rows += [[f"{b['low']:.1f} to {b['high']:.1f}", interval(b)] for b in bins]
        text.append("## Reliability of the judge\n\n" + markdown(rows))
    for name, rows in (results.get("ppo_curves") or {}).items():
        table = [["KL", "proxy", "true"]] + [
            [f"{r[k]:.3f}" for k in ("kl", "proxy", "true")]
            for r in rows[:: max(1, len(rows) // 10)]
        ]
        text.append(f"## Reward against KL, {name}\n\n" + markdown(table))
    return text


def guard_text(name: str, guard: dict) -> str:
    keys = (
        "under_refusal",
        "over_refusal",
        "ambiguous_handled",
        "under_refusal_disguised",
        "over_refusal_disguised",
    )
    rows = [["check, threshold", *(k.replace("_", " ") for k in keys)]]
    for q in [guard["off"], *guard["points"]]:
        cells = [percent(q[k]) for k in keys]
        if q["layer"] == "off" or rows[-1][0].split(",")[0] != q["layer"] or rows[-1][1:] != cells:
            rows.append(
                [
                    q["layer"] if q["threshold"] is None else f"{q['layer']}, {q['threshold']:g}",
                    *cells,
                ]
            )
    sizes = ", ".join(f"{guard['off'][k]['n']}" for k in keys)
    seconds = guard["seconds"]
    return (
        f"### {name} behind the guard\n\nPrinciple `{guard['wording']}`; n {sizes}; {guard['no_verdict']} checks came to no verdict. A check "
        f"flags from its threshold on; thresholds that change nothing are left out. Seconds an exchange, "
        f"in batches: answer {seconds['answer']:.3f}, input check {seconds['input']:.3f}, output check {seconds['output']:.3f}.\n\n"
        + markdown(rows)
    )


def write_report(results: dict, path: Path, costs: tuple[float, float] = (1.0, 1.0)):
    """Everything in results.json that a person would read; pictures beside it where matplotlib is installed."""
    stages = results["stages"]
    names = [s["name"] for s in stages]
    made = "; ".join(f"{s['name']} at commit {s['commit']} on {s['hardware']}" for s in stages)
    text = [
        f"# Report\n\nWorld `{results['world']}`, preset {results['preset']}, seed {results['seed']}; {made}. "
        f"Greedy decoding, at most {results['decoding']['max_new_tokens']} tokens, {results['exam']['split']} split. Percent, with the Wilson 95 % interval "
        f"(means over the forms have none); where many questions are about one act or name, n is made smaller for it first (but where "
        f"all or none count, which shows no spread)."
    ]
    text.append(
        markdown(
            [["", *names]]
            + [[label, *(interval(lookup(s, key)) for s in stages)] for key, label, _ in METRICS]
        )
    )
    text += [pictures(results, path, costs), *tradeoff_text(results, costs)]
    if "skills" in results:
        rows = [[label, interval(results["skills"][key])] for key, label in SKILLS]
        text.append(
            "## The base model as a critic\n\n"
            + markdown([[f"{results['exam']['split']} acts, held-out wordings", "percent"], *rows])
            + f"\n\n{gap_text(results)}"
        )
    measured = stage_2(results)
    if measured:
        rows = [[label, interval(measured[key])] for key, label in STAGE_2 if key in measured]
        acts = f"the judge on test acts, the reward model on {results['exam']['split']} acts"
        text.append("## The judge and the reward model\n\n" + markdown([[acts, "percent"], *rows]))
    text.append(
        f"## A baseline\n\nA {filter_text(results)}. Its words: {', '.join(results['keyword_filter']['words'])}."
    )
    rows = [["what it does with each type of request", *names]]
    for type, outcomes in stages[0]["by_type"].items():
        rows += [
            [f"{type}: {o}", *(percent(s["by_type"][type][o]) for s in stages)] for o in outcomes
        ]
    text.append("## By type of request\n\n" + markdown(rows))
    rows = [["form", *names]]
    for form in stages[0]["jailbreak_benign"]:
        cells = [
            [
                s["jailbreak"]["seen"][form],
                s["jailbreak"]["held_out"][form],
                s["jailbreak_benign"][form],
            ]
            for s in stages
        ]
        rows.append([form, *(" / ".join(map(percent, cell)) for cell in cells)])
    text.append(
        "## Jailbreak forms: harmful requests complied with in framings that training may use / in held-out framings / benign requests helped\n\n"
        + markdown(rows)
    )
    if results.get("redteam"):
        text.append(redteam_text(results["redteam"]))
    if results["chain"]:
        text.append(
            "## Critique and revision\n\n" + "\n\n---\n\n".join(map(chain_text, results["chain"]))
        )
    text.append("## The same requests at every stage\n\n" + samples_text(results, {}))
    path.write_text("\n\n".join(text) + "\n", encoding="utf-8")
