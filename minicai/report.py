"""results.json as an aligned table for the terminal and as a Markdown report."""

from pathlib import Path

METRICS = [  # key in a stage, what it is called, which way is better
    ("under_refusal", "under-refusal: harmful requests complied with", "low"),
    ("over_refusal", "over-refusal: harmless requests refused", "low"),
    ("over_refusal_partial", "  ... or answered only in part", "low"),
    ("steps_correct", "legitimate requests: all steps right", "high"),
    ("ambiguous_handled", "ambiguous requests: safe help, no steps", "high"),
    ("by_type.dual_use_question.safe_help", "dual-use questions answered", "high"),
    ("by_type.sensitive.complied", "sensitive requests answered", "high"),
    ("helpful_in_refusal", "refusals that offer another way", "high"),
    ("rude_or_preachy", "rude or preachy answers", "low"),
    ("fabrication", "made-up answers about unknown names", "low"),
    ("known_accuracy", "right answers about known names", "high"),
    ("consistency", "same treatment in another wording", "high"),
    ("garbled", "garbled or beside the point", "low"),
    ("jailbreak_mean", "jailbreaks that get through, all forms", "low"),
    ("jailbreak_benign_mean", "benign requests in the same forms: steps given", "high"),
]
SKILLS = [
    ("critique_right", "critique says rightly whether the principle is broken"),
    ("critique_names_harm", "critique of a harmful request names the right harm"),
    ("harmful_revised", "revision of harmful help reveals no step"),
    ("legitimate_kept", "revision of legitimate help keeps every step"),
]


def lookup(stage: dict, key: str):
    """A rate by its dotted key; the means over jailbreak forms are derived here."""
    if key.endswith("_mean"):
        rates = [r["rate"] for name, r in stage[key[:-5]].items() if name != "held_out" and r["rate"] is not None]
        return dict(rate=sum(rates) / len(rates)) if rates else dict(rate=None)
    for part in key.split("."):
        stage = stage[part]
    return stage


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
        "  ".join(cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths))).rstrip()
        for row in rows
    )


def table(results: dict) -> str:
    """Percentages, one column a stage."""
    rows = [["percent", *(s["name"] for s in results["stages"]), "better"]]
    rows += [[label, *(percent(lookup(s, key)) for s in results["stages"]), better] for key, label, better in METRICS]
    rows.append(["mean tokens of an answer", *(str(s["mean_tokens"]) for s in results["stages"]), ""])
    text = aligned(rows)
    if "skills" in results:
        text += "\n\n" + aligned([["the base model as a critic, on held-out acts", "percent"]] +
                                 [[label, percent(results["skills"][key])] for key, label in SKILLS])  # fmt: skip
    return f"{text}\n\n{filter_text(results)}"


def markdown(rows: list[list[str]]) -> str:
    head, *rest = rows
    lines = [head, ["---", *(["---:"] * (len(head) - 1))], *rest]
    return "\n".join("| " + " | ".join(row) + " |" for row in lines)


def chain_text(chain: dict) -> str:
    """A critique-revision chain as a quoted transcript."""
    names = ("Person", "Assistant")
    lines = [f"**{names[i % 2]}:** {text}" for i, text in enumerate(chain["turns"])]
    lines.append(f"**Draft:** {chain['responses'][0]}")
    for principle, critique, revision in zip(chain["principles"], chain["critiques"], chain["responses"][1:]):
        lines.append(f"**Critique** (`{principle}`): {critique or '(none)'}")
        lines.append(f"**Revision:** {revision}")
    return quote(lines)


def samples_by_request(results: dict) -> list[tuple[dict, list[tuple[str, str]]]]:
    """Each sample question with (stage, answer) for every stage."""
    stages = results["stages"]
    return [
        (sample, [(s["name"], s["samples"][i]["answer"]) for s in stages])
        for i, sample in enumerate(stages[0]["samples"])
    ]


def same_requests(results: dict) -> str:
    """For the terminal: one chain of critique and revision, and the same requests at every stage."""
    lines = []
    for chain in results["chain"][:1]:
        lines += ["a chain of Stage 1:", chain_text(chain).replace("**", "").replace("\n>\n", "\n"), ""]
    lines.append("the same requests at every stage:")
    for sample, answers in samples_by_request(results):
        lines.append(f"  [{sample['set']}] {' / '.join(sample['turns'])}")
        lines += [f"      {name}: {text}" for name, text in answers]
    return "\n".join(lines)


def quote(lines: list[str]) -> str:
    """Markdown paragraphs as one quotation."""
    return "\n>\n".join("> " + line.replace("\n", "\n> ") for line in lines)


def samples_text(results: dict, names: dict) -> str:
    """The same requests at every stage, as quotations."""
    text = []
    for sample, answers in samples_by_request(results):
        lines = [f"**{sample['set']}:** " + " / ".join(sample["turns"])]
        text.append(quote(lines + [f"**{names.get(name, name)}:** {answer}" for name, answer in answers]))
    return "\n\n".join(text)


def filter_text(results: dict) -> str:
    f = results["keyword_filter"]
    return (f"keyword filter ({len(f['words'])} words, chosen on the train split): lets {percent(f['under_refusal'])} of the harmful requests "
            f"through and blocks {percent(f['over_refusal'])} of the harmless ones")  # fmt: skip


def write_report(results: dict, path: Path):
    """Everything in results.json that a person would read."""
    stages = results["stages"]
    names = [s["name"] for s in stages]
    made = "; ".join(f"{s['name']} at commit {s['commit']} on {s['hardware']}" for s in stages)
    text = [f"# Report\n\nWorld `{results['world']}`, preset {results['preset']}, seed {results['seed']}; {made}. "
            f"Greedy decoding, {results['exam']['split']} split. Percent, with the Wilson 95 % interval."]  # fmt: skip
    text.append(
        markdown([["", *names]] + [[label, *(interval(lookup(s, key)) for s in stages)] for key, label, _ in METRICS])
    )
    if "skills" in results:
        rows = [[label, interval(results["skills"][key])] for key, label in SKILLS]
        text.append(
            "## The base model as a critic\n\n" + markdown([["held-out acts, held-out wordings", "percent"], *rows])
        )
    text.append(
        f"## A baseline\n\nA {filter_text(results)}. Its words: {', '.join(results['keyword_filter']['words'])}."
    )
    rows = [["what it does with each type of request", *names]]
    for type, outcomes in stages[0]["by_type"].items():
        rows += [[f"{type}: {o}", *(percent(s["by_type"][type][o]) for s in stages)] for o in outcomes]
    text.append("## By type of request\n\n" + markdown(rows))
    rows = [["form", *names]]
    for form in stages[0]["jailbreak_benign"]:
        rows.append(
            [form, *(f"{percent(s['jailbreak'][form])} / {percent(s['jailbreak_benign'][form])}" for s in stages)]
        )
    text.append("## Jailbreak forms: harmful requests complied with / benign requests helped\n\n" + markdown(rows))
    if results["chain"]:
        text.append("## Critique and revision\n\n" + "\n\n---\n\n".join(map(chain_text, results["chain"])))
    text.append("## The same requests at every stage\n\n" + samples_text(results, {}))
    path.write_text("\n\n".join(text) + "\n", encoding="utf-8")
