"""Chains of Stage 1 and comparisons of Stage 2 as text that a person reads."""

from minicai.constitution import Constitution
from minicai.critique import KEEPS
from minicai.files import UserError, read_jsonl
from minicai.rows import FIELDS

GONE = "(no longer in the constitution)"


def quote(lines: list[str]) -> str:
    """Markdown paragraphs as one quotation."""
    return "\n>\n".join("> " + line.replace("\n", "\n> ") for line in lines)


def for_terminal(quotation: str) -> str:
    return quotation.replace("**", "").replace("\n>\n", "\n")


def turns_text(turns: list[str]) -> list[str]:
    names = ("Person", "Assistant")
    return [f"**{names[i % 2]}:** {text}" for i, text in enumerate(turns)]


def with_requests(chain: dict, constitution: Constitution) -> dict:
    """The chain with the texts of its requests: (critique, revision) for each step."""
    texts = {w.id: (w.critique, w.revision) for w in constitution.wordings}
    return chain | dict(requests=[texts.get(name, (GONE, GONE)) for name in chain["principles"]])


def chain_text(chain: dict) -> str:
    """A chain of `with_requests` as a quoted transcript."""
    lines = [*turns_text(chain["turns"]), f"**Draft:** {chain['responses'][0]}"]
    steps = zip(chain["principles"], chain["requests"], chain["critiques"])
    for step, (principle, (asked, revise), critique) in enumerate(steps):
        before, after = chain["responses"][step : step + 2]
        if critique:  # none where a response is revised directly, or where it did not end
            lines.append(f"**Critique request** (`{principle}`): {asked}")
            lines.append(f"**Critique:** {critique}")
        if before != after:
            lines.append(f"**Revision request** (`{principle}`): {revise}")
            lines.append(f"**Revision:** {after}")
        elif not (critique or "").endswith(KEEPS):
            lines.append(f"*Under `{principle}` no revision came to an end: the answer stays.*")
    return quote(lines)


def find(rows: list[dict], number: int, option: str) -> list[dict]:
    """The rows with the id `number`. Raises UserError, with the ids there are, if there is none."""
    found = [row for row in rows if str(row["id"]) == str(number)]
    if not found:
        ids = ", ".join(dict.fromkeys(str(row["id"]) for row in rows[:20]))
        raise UserError(f"{option} {number}: there is none; there are {ids or 'none'}, ...")
    return found


def comparison_text(rows: list[dict], number: int, constitution: Constitution) -> str:
    """Comparison `number` among the rows of label.py for the terminal: its answers and its labels.

    Raises UserError if there is no such comparison, or if its rows do not say how it was judged.
    """
    found = find(rows, number, "--explain")
    row, wordings = found[0], {wording.id: wording for wording in constitution.wordings}
    lines = turns_text(row["turns"])
    if row.get("plain", row["turns"]) != row["turns"]:
        lines.append(f"The judge reads: {row['plain'][-1]}")
    lines += [f"({name}, {by}): {row[name]}" for name, by in zip("ab", row["by"])]
    if row["kind"] == "human":
        better = "a" if row["p"] == 1 else "b"
        lines.append(f"A simulated person, wrong in one case of ten, prefers ({better}).")
        found = []
    for row in found:
        if not {"principle", "reasons", "a_first", "b_first"} <= row.keys():
            raise UserError(
                f"comparison {number} does not say how it was judged; run label.py again"
            )
        wording, request = wordings.get(row["principle"]), GONE
        if wording:
            request = wording.critique if row["reasons"] else wording.comparison
        lines.append(f"Principle {row['principle']}: {request}")
        for name, (critique, p) in zip("ab", row["reasons"]):
            lines.append(f"Critique of ({name}): {critique} P(it breaks the principle) = {p:.3f}")
        p = f"{row['a_first']:.3f}"
        if not row["reasons"]:  # the direct judge reads both orders
            p += f" with (a) first, {row['b_first']:.3f} with (b) first"
        lines.append(f"P((a) is better) = {p}. The label is {row['p']:.3f}.")
    return for_terminal(quote(lines))


def explanation(path, number: int, constitution: Constitution) -> str:
    """Comparison `number` of the file, as in `comparison_text`."""
    rows = read_jsonl(path, ("id", "kind", "turns", "by", "a", "b", "p"), FIELDS)
    return comparison_text(rows, number, constitution)
