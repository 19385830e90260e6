"""results.json as tables for the terminal: which numbers are shown, and how they are written."""

from minicai.exam import ERRORS
from minicai.metrics import paired_test
from minicai.svg import stage_label
from minicai.transcript import chain_text, for_terminal, quote
from minicai.world.content import TECHNIQUES

METRICS = [  # (key in a stage, label, whether low or high is better)
    ("under_refusal", "under-refusal: harmful requests complied with", "low"),
    ("over_refusal", "over-refusal: harmless requests refused", "low"),
    ("hedged", "legitimate dual-use requests: only the safe part answered", "low"),
    ("steps_correct", "legitimate requests: all steps right", "high"),
    ("ambiguous_handled", "ambiguous requests: safe help, no steps", "high"),
    ("by_type.dual_use_question.safe_help", "dual-use questions answered", "high"),
    ("by_type.sensitive.complied", "sensitive requests answered", "high"),
    ("names_harm", "harmful requests: the answer names the harm", "high"),
    ("helpful_in_refusal", "refusals of harmful requests that offer another way", "high"),
    ("rude_or_preachy", "rude or preachy answers", "low"),
    ("fabrication", "made-up answers about unknown names", "low"),
    ("known_accuracy", "right answers about names seen often", "high"),
    ("seldom_accuracy", "right answers about names seen seldom", "high"),
    ("consistency", "same outcome in another phrasing", "high"),
    ("garbled", "garbled or off-topic answers", "low"),
    ("jailbreak_mean", "jailbreaks: harmful requests complied with", "low"),
    ("jailbreak.seen_mean", "  ... in framings that training may use", "low"),
    ("jailbreak.held_out_mean", "  ... in held-out framings", "low"),
    ("jailbreak_of_refused", "  ... of requests that are refused when asked plainly", "low"),
    ("jailbreak_benign_mean", "jailbreak forms, benign requests: steps given", "high"),
    ("over_refusal_disguised", "jailbreak forms, benign requests: refused", "low"),
]
SKILLS = [  # (key, label) of the base model as a critic
    ("critique_right", "critiques with the right verdict"),
    ("critique_names_harm", "critiques of harmful requests that name the right harm"),
    ("harmful_revised", "revisions of harmful help that give no steps"),
    ("legitimate_kept", "revisions of legitimate help that keep every step"),
]
STAGE_2 = [  # (key in the results, label)
    ("judge_audit.accuracy", "judge: right if exactly one answer breaks the principle"),
    ("judge_audit.length_alone", "... length-only baseline"),
    ("judge_audit.always_a", "... always the first answer"),
    ("judge_audit.swap_consistency", "judge: same answer wins in both orders"),
    ("judge_audit.ece", "judge: expected calibration error"),
    ("judge_audit.false_alarms", "judge: sees a difference if both or neither break it"),
    ("judge_audit.prefers_safe", "judge: prefers the safe answer to a harmful request"),
    ("reward_model.accuracy", "reward model: prefers the better of two answers by the world"),
    ("reward_model.length_alone", "... length-only baseline"),
    ("reward_model.ece", "reward model: expected calibration error on these"),
    ("reward_model.own_accuracy", "reward model: prefers the better of two samples of SL-CAI"),
    ("reward_model.own_length_alone", "... length-only baseline"),
    ("reward_model.agrees_with_labels.accuracy", "reward model: agrees with held-out labels"),
]
NO_BETTER = (
    "WARNING: the judge is no better than a baseline; read its labels before training on them"
)
# The stage that each stage was trained from; round n + 1 was trained from round n.
TRAINED_FROM = {"sft": "base", "dpo": "sft", "ppo": "sft", "round1": "dpo"}


def lookup(entry: dict, key: str) -> dict:
    """The rate at a dotted key of a stage or of the results. {"rate": None} if it is missing.

    With "_mean" at the end: the mean over the jailbreak forms below the key.
    """
    for part in key.removesuffix("_mean").split("."):
        entry = entry.get(part, {}) if isinstance(entry, dict) else {}
    if key.endswith("_mean"):
        rates = [entry[t]["rate"] for t in TECHNIQUES if entry[t]["rate"] is not None]
        return dict(rate=sum(rates) / len(rates) if rates else None)
    return dict(rate=None) | entry if isinstance(entry, dict) else dict(rate=entry)


def no_better_than_baselines(audit: dict) -> bool:
    """Whether a baseline that is no judge is right as often as the judge."""
    right = lookup(audit, "accuracy")["rate"]
    baselines = [lookup(audit, key)["rate"] or 0.0 for key in ("always_a", "length_alone")]
    return right is None or right <= max(baselines)


def percent(rate: dict) -> str:
    return "-" if rate["rate"] is None else f"{100 * rate['rate']:.1f}"


def interval(rate: dict) -> str:
    """97.5 (95.4-98.6), n 400"""
    if rate["rate"] is None or "n" not in rate:
        return percent(rate)
    return f"{percent(rate)} ({100 * rate['lo']:.1f}-{100 * rate['hi']:.1f}), n {rate['n']}"


# --- tables: lists of rows, the first is the head ------------------------------------------------


def aligned(rows: list[list[str]]) -> str:
    """For the terminal. The first column is aligned to the left, the others to the right."""
    first, *others = (max(map(len, column)) for column in zip(*rows))
    lines = [[row[0].ljust(first), *map(str.rjust, row[1:], others)] for row in rows]
    return "\n".join("  ".join(line).rstrip() for line in lines)


def markdown(rows: list[list[str]]) -> str:
    """Empty if there is only a head."""
    head, *rest = rows
    lines = [head, ["---", *(["---:"] * (len(head) - 1))], *rest] if rest else []
    return "\n".join("| " + " | ".join(row) + " |" for row in lines)


def stage_rows(results: dict, title: str, rows: list[tuple], text) -> list[list[str]]:
    """One column a stage. `rows` holds (label, key, ...); `text` makes a cell of a rate."""
    stages, made = results["stages"], []
    for label, *keys in rows:
        cells = [" / ".join(text(lookup(stage, key)) for key in keys) for stage in stages]
        made.append([label, *cells])
    return [[title, *(stage_label(stage["name"]) for stage in stages)], *made]


def metric_rows(results: dict, text) -> list[list[str]]:
    rows = stage_rows(results, "percent", [(label, key) for key, label, _ in METRICS], text)
    better = ["better", *(way for _, _, way in METRICS)]
    return [[*row, way] for row, way in zip(rows, better)]


def rate_rows(entry: dict, title: str, keys: list[tuple[str, str]]) -> list[list[str]]:
    """The (key, label) pairs that were measured, with their rates."""
    found = [(label, lookup(entry, key)) for key, label in keys]
    return [[title, "percent"], *([x, interval(r)] for x, r in found if r["rate"] is not None)]


def trained_from(name: str, names: list[str]) -> str | None:
    """The stage that a stage was trained from. If `names` lacks that one, the one before it."""
    n, kind, at = name.removeprefix("round"), name.partition("-")[0], names.index(name)
    start = f"round{int(n) - 1}" if n.isdecimal() else None
    start = TRAINED_FROM.get(kind, start)  # the kind of "dpo-ipo" is "dpo"
    return start if start in names else names[at - 1] if at and name != "base" else None


def paired(transcripts: dict[str, list[dict]]) -> list[dict]:
    """Each stage against the one it was trained from, question by question, for both errors.

    `transcripts` holds the rows of `exam.measure` by stage, all on the same questions. `fell` and
    `rose` count the answers that no longer, or newly, are errors.
    """
    rows, names = [], list(transcripts)
    for name in names:
        start = trained_from(name, names)
        for metric, (sets, error) in ERRORS.items():
            if start is None or metric == "garbled":
                continue
            stages = [[t for t in transcripts[s] if t["set"] in sets] for s in (start, name)]
            old, new = ([t["outcome"] == error for t in stage] for stage in stages)
            p = paired_test(old, new, [t["topic"] for t in stages[0]])
            fell, rose = (sum(a > b for a, b in zip(*pair)) for pair in ((old, new), (new, old)))
            row = dict(metric=metric, before=start, after=name, n=len(old), fell=fell, rose=rose)
            rows.append(row | dict(p=p))
    return rows


def paired_rows(results: dict) -> list[list[str]]:
    rows = [["errors on the same questions", "n", "before", "after", "fell", "rose", "p-value"]]
    stages = {stage["name"]: stage for stage in results["stages"]}
    for r in results["paired"]:
        metric = r["metric"].replace("_refusal", "-refusal").replace("_", ", ")
        label = f"{stage_label(r['after'])} against {stage_label(r['before'])}: {metric}"
        rates = [percent(stages[r[side]][r["metric"]]) for side in ("before", "after")]
        p = "< 0.0001" if r["p"] < 0.0001 else f"{r['p']:.4f}"
        rows.append([label, str(r["n"]), *rates, str(r["fell"]), str(r["rose"]), p])
    return rows


def redteam_rows(results: dict) -> list[list[str]]:
    """What redteam.py found: success by the judge's word and by the grader's, and diversity."""
    rows = [["attack / target / split", "judge", "grader", "they agree", "distinct-2", "self-BLEU"]]
    for name, s in results["redteam"].items():
        rates = [interval(s[key]) for key in ("judge", "grader", "agreement")]
        rows.append([name, *rates, f"{100 * s['distinct_2']:.1f}", f"{100 * s['self_bleu']:.1f}"])
    return rows


# --- texts below the tables -----------------------------------------------------------------------


def samples_text(results: dict) -> str:
    """The same requests at every stage, as quotations."""
    texts = []
    for i, sample in enumerate(results["stages"][0]["samples"]):
        lines = [f"**{sample['set']}:** {' / '.join(sample['turns'])}"]
        for stage in results["stages"]:
            said = stage["samples"][i]["answer"] or "(did not end)"
            lines.append(f"**{stage_label(stage['name'])}:** {said}")
        texts.append(quote(lines))
    return "\n\n".join(texts)


def filter_text(results: dict) -> str:
    f = results["keyword_filter"]
    return (
        f"A filter of {len(f['words'])} keywords ({', '.join(f['words'])}), chosen on the train "
        f"split, lets {percent(f['under_refusal'])} % of the harmful requests through and blocks "
        f"{percent(f['over_refusal'])} % of the harmless ones."
    )


def table(results: dict) -> str:
    """Percentages at every stage; then the base as a critic, and the keyword filter."""
    tokens = [str(stage["mean_tokens"]) for stage in results["stages"]]
    text = aligned([*metric_rows(results, percent), ["mean tokens of an answer", *tokens, ""]])
    if "skills" in results:
        text += "\n\n" + aligned(rate_rows(results["skills"], "the base as a critic", SKILLS))
    return f"{text}\n\n{filter_text(results)}"


def same_requests(results: dict) -> str:
    """One chain of Stage 1, and the same requests at every stage."""
    chains = [f"a chain of Stage 1:\n{chain_text(chain)}\n\n" for chain in results["chain"][:1]]
    return for_terminal(f"{''.join(chains)}the same requests:\n{samples_text(results)}")
