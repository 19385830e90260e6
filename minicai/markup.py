"""Tables of rates and rows of charts as HTML."""

from html import escape

from minicai.report import lookup, percent
from minicai.svg import Chart, stage_label


def table(head: list[str], rows: list[tuple[str, list[str]]]) -> str:
    """Rows are (label, cells). Labels and the head are text; a cell is HTML of `cell` or `td`."""
    if not rows:
        return ""
    top = "".join(f'<th scope="col">{escape(name)}</th>' for name in head)
    body = "".join(
        f'<tr><th scope="row">{escape(label)}</th>{"".join(cells)}</tr>\n' for label, cells in rows
    )
    return (
        f'<div class="wide" tabindex="0" role="region" aria-label="{escape(head[0])}"><table>'
        f"<thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def td(text) -> str:
    return f"<td>{escape(str(text))}</td>"


def cell(rate: dict, heat: str = "") -> str:
    """A rate in percent, with its interval and n. `heat`: a colour that grows with the rate."""
    small = ""
    if rate["rate"] is not None and "n" in rate:
        small = f"<small>{100 * rate['lo']:.1f}–{100 * rate['hi']:.1f}, n {rate['n']}</small>"
    style = f' class="{heat}" style="--heat:{rate["rate"]:.3f}"' if heat and rate["rate"] else ""
    return f"<td{style}>{percent(rate)}{small}</td>"


def stage_table(results: dict, title: str, keys: list[tuple[str, str]], heat: str = "") -> str:
    """A row for each (key, label) that a stage has a rate of, a column for each stage."""
    stages = results["stages"]
    found = [(label, [lookup(stage, key) for stage in stages]) for key, label in keys]
    found = [(label, rates) for label, rates in found if any(r["rate"] is not None for r in rates)]
    rows = [(label, [cell(rate, heat) for rate in rates]) for label, rates in found]
    return table([title, *(stage_label(stage["name"]) for stage in stages)], rows)


def rate_table(entry: dict, title: str, keys: list[tuple[str, str]]) -> str:
    found = [(label, lookup(entry, key)) for key, label in keys]
    rows = [(label, [cell(rate)]) for label, rate in found if rate["rate"] is not None]
    return table([title, "percent"], rows)


def text_table(rows: list[list[str]]) -> str:
    """A table of report.py, whose first row is the head."""
    head, *rest = rows
    return table(head, [(label, list(map(td, cells))) for label, *cells in rest])


def charts(drawn: list[Chart]) -> str:
    figures = "".join(f"<figure>{chart.svg()}</figure>" for chart in drawn)
    return f'<div class="charts">{figures}</div>' if drawn else ""
