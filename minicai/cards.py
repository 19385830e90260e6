"""Conversations as HTML: requests with the answer of every stage, and critique chains.

Every text that a model or a person wrote goes through `escape`.
"""

from hashlib import sha256
from html import escape

from minicai.critique import KEEPS
from minicai.files import UserError
from minicai.svg import stage_label
from minicai.world.content import TECHNIQUES

PER_KIND = 2  # requests of each kind that are shown side by side
SIGNS = {"good": "✓", "partly": "◐", "bad": "✗"}  # colour is never the only sign
OUTCOMES = {"complied": "complied", "refused": "refused", "safe_help": "safe help"}
KINDS = {  # group of sets -> what a person asks in it
    "harmful": "Harmful requests",
    "legitimate": "Legitimate requests",
    "dual_use_question": "How do I protect myself from this?",
    "ambiguous": "Dual-use requests without a reason",
    "sensitive": "Sensitive requests",
    "fact often": "Names that training mentions often",
    "fact seldom": "Names that training mentions seldom",
    "fact never": "Names that training never mentions",
    "jailbreak harmful": "Harmful requests in jailbreak forms",
    "jailbreak benign": "Legitimate requests in jailbreak forms",
    "again": "Requests asked again in other words",
}


def kind(name: str) -> str:
    """The group in KINDS that a set of the exam belongs to."""
    first, _, last = name.rpartition(" ")
    if last == "again":
        return last
    return f"jailbreak {last}" if first in TECHNIQUES else name


def side_by_side(transcripts: dict[str, list[dict]]) -> list[dict]:
    """The questions of the exam, each with its rows at every stage: {"set", "turns", "rows"}."""
    names, questions = list(transcripts), []
    if len({len(rows) for rows in transcripts.values()}) > 1:
        raise UserError("the transcripts are of different exams; evaluate all stages again")
    for rows in zip(*transcripts.values()):
        first = rows[0]
        if any((row["set"], row["turns"]) != (first["set"], first["turns"]) for row in rows):
            raise UserError("the transcripts are of different exams; evaluate all stages again")
        said = dict(zip(names, rows))
        questions.append(dict(set=first["set"], turns=first["turns"], rows=said))
    return questions


def chosen(questions: list[dict], k: int) -> dict[str, list[dict]]:
    """For each kind, the k questions whose SHA-256 comes first. No answer has a say in it."""
    found = {name: [] for name in KINDS}
    for question in questions:
        found[kind(question["set"])].append(question)

    def order(question):
        return sha256("\n".join([question["set"], *question["turns"]]).encode()).digest()

    return {name: sorted(rows, key=order)[:k] for name, rows in found.items() if rows}


def turns_html(turns: list[str]) -> str:
    """The turns of a conversation up to the request. All but the last are small."""
    said = []
    for i, turn in enumerate(turns):
        by = "Person" if i % 2 == 0 else "Assistant"
        said.append(f'<p class="{by.lower()}"><b>{by}</b> {escape(turn)}</p>')
    return f'<div class="turns">{"".join(said)}</div>'


def answer_html(stage: str, row: dict) -> str:
    mark, outcome = row["verdict"], OUTCOMES.get(row["outcome"], "garbled")
    if row["set"].startswith("fact "):
        outcome = {"complied": "answers", "refused": "does not know"}.get(row["outcome"], outcome)
    text = escape(row["answer"]) if row["answer"] else "<em>(did not end)</em>"
    return (
        f'<li class="{escape(mark)}" data-stage="{escape(stage)}">'
        f"<b>{escape(stage_label(stage))}</b> "
        f"<i>{SIGNS[mark]} {mark}: {outcome}</i> <span>{text}</span></li>"
    )


def card(question: dict) -> str:
    """A request, and the answer of every stage."""
    name = question["set"]
    answers = "".join(answer_html(stage, row) for stage, row in question["rows"].items())
    form = f"<small>{escape(name.replace('_', ' '))}</small>"
    return (
        f'<article data-set="{escape(name)}" data-kind="{kind(name)}">{form}'
        f"{turns_html(question['turns'])}<ul>{answers}</ul></article>\n"
    )


def sample(questions: list[dict], room: int) -> tuple[list[str], int]:
    """Cards of every n-th question that fit into `room` bytes, and n."""
    cards = [card(question) for question in questions]
    sizes = [len(text.encode("utf-8", "replace")) for text in cards]
    step = 1
    while sum(sizes[::step]) > room and step < len(cards):
        step += 1
    return cards[::step], step


def options_html(questions: list[dict]) -> str:
    """The choices of the type filter: kinds, and below those of several sets, the sets."""
    found, made = {}, []
    for question in questions:
        found.setdefault(kind(question["set"]), {})[question["set"]] = None
    for name in (name for name in KINDS if name in found):
        made.append(f'<option value="{name}">{KINDS[name]}</option>')
        sets = [each for each in found[name] if each != name]
        for each in map(escape, sets):
            made.append(f'<option value="{each}">– {each.replace("_", " ")}</option>')
    return "".join(made)


def chain_html(chain: dict, opened: bool) -> str:
    """A chain of `with_requests` to unfold: draft, principle, critique, revision, again."""
    steps = zip(chain["principles"], chain["requests"], chain["critiques"])
    made = [turns_html(chain["turns"])] if len(chain["turns"]) > 1 else []
    made.append(said("Draft", chain["responses"][0], "draft"))
    for i, (principle, (asked, revise), critique) in enumerate(steps):
        before, after = chain["responses"][i : i + 2]
        if critique:
            made.append(said(f"Critique request, {principle}", asked, "asked"))
            made.append(said("Critique", critique))
        if before != after:
            made.append(said(f"Revision request, {principle}", revise, "asked"))
            made.append(said("Revision", after, "revision"))
        elif not (critique or "").endswith(KEEPS):
            made.append(said("No revision", f"none came to an end under {principle}", "asked"))
    title = f"<b>{escape(KINDS.get(chain['type'], 'A question about a name'))}</b> "
    title += f"<span>{escape(chain['turns'][-1])}</span>"
    return f"<details{' open' * opened}><summary>{title}</summary>{''.join(made)}</details>\n"


def said(by: str, text: str | None, look: str = "") -> str:
    """A step of a chain."""
    text = escape(text) if text else "<em>(did not end)</em>"
    return f'<div class="step {look}"><b>{escape(by)}</b><p>{text}</p></div>'


# --- sections ------------------------------------------------------------------------------------


def same_requests(questions: list[dict]) -> str:
    if not questions:
        return ""
    groups = chosen(questions, PER_KIND).items()
    shown = "".join(f"<h3>{KINDS[kind]}</h3>{''.join(map(card, rows))}" for kind, rows in groups)
    return (
        f"<p>Of each kind of request the {PER_KIND} whose SHA-256 hash comes first, so nobody has "
        f"picked them for their answers. {SIGNS['good']} good: what a calibrated assistant does. "
        f"{SIGNS['bad']} bad: one of the two errors, a wrong or made-up fact, or nonsense. "
        f"{SIGNS['partly']} partly: the rest. Steps of harmful acts are nonsense by design.</p>"
        f"{shown}"
    )


def chains(results: dict) -> str:
    shown = [chain_html(chain, not i) for i, chain in enumerate(results["chain"])]
    if not shown:
        return ""
    return (
        "<p>Stage 1 is made of such chains. The base drafts an answer, criticises it by a "
        "principle of the constitution, and revises it. SL-CAI is fine-tuned on the last revision. "
        f"Here is the first chain of each type that changed its answer.</p>{''.join(shown)}"
    )


def all_transcripts(questions: list[dict], room: int) -> str:
    if not questions:
        return ""
    shown, step = sample(questions, room)
    how = "all of them" if step == 1 else f"one in {step}, in the order of the exam"
    choices = "".join(f'<option value="{mark}">{SIGNS[mark]} {mark}</option>' for mark in SIGNS)
    stages = "".join(
        f'<option value="{escape(name)}">{escape(stage_label(name))}</option>'
        for name in questions[0]["rows"]
    )
    return (
        f"<p>This page holds {len(shown):,} of the {len(questions):,} requests of the exam "
        f"({how}), each with the answer of every stage. The folder of transcripts beside it holds "
        "all.</p>"
        '<form id="filter" hidden>'
        f'<label>request <select name="kind"><option value="">every kind</option>'
        f"{options_html(questions)}</select></label>"
        f'<label>outcome <select name="verdict"><option value="">every outcome</option>{choices}'
        "</select></label>"
        f'<label>stage <select name="stage"><option value="">every stage</option>{stages}'
        '</select></label><label>words <input name="words" type="search"></label>'
        '<button type="reset">show all</button><output id="matches"></output></form>'
        f"{''.join(shown)}"
        '<button id="more" type="button" hidden>show more</button>'
    )
