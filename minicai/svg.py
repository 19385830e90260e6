"""Charts as SVG text: axes, lines, dots, and bars with intervals. No library draws them.

On the page they stand inside HTML. `write_svg` makes a file of them. chart.css colours both.
"""

import math
from html import escape
from pathlib import Path

STYLE = Path(__file__).with_name("chart.css")
STAGES = {"base": "base", "sft": "SL-CAI", "dpo": "DPO-CAI", "ppo": "RL-CAI"}
GAP = 24  # between two charts of a file


def stage_label(name: str) -> str:
    """The name of a stage in tables and charts: "SL-CAI" for sft.pt, "round 1" for round1.pt."""
    return STAGES.get(name, name.replace("round", "round "))


def ticks(low: float, high: float, about: int = 4) -> list[float]:
    """Round numbers from `low` or below it to `high` or above it, about so many."""
    rough = (high - low or abs(high) or 1) / about
    unit = 10 ** math.floor(math.log10(rough))
    step = next(unit * m for m in (1, 2, 2.5, 5, 10) if unit * m >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 10) for i in range(first, max(last, first + 1) + 1)]


def series(i: int) -> str:
    """The classes of the i-th series: one of five colours, and another dash after each five."""
    return f"s{i % 5} d{i // 5 % 3}"


class Chart:
    """One chart. Its methods take values of the data; `at` turns them into places.

    `x` and `y` are the ticks of the axes, from one end to the other. `warp` bends both axes.
    """

    def __init__(
        self,
        title,
        x,
        y,
        x_label="",
        legend=(),
        width=360,
        height=250,
        left=40,
        after=14,
        warp=float,
    ):
        self.title, self.x, self.y, self.warp, self.size = title, x, y, warp, (width, height)
        self.parts = [f'<text class="title" x="0" y="14">{escape(title)}</text>']
        self.top = self._legend(legend, width) + 14
        self.left, self.right, self.bottom = left, width - after, height - (38 if x_label else 22)
        for value in y:
            self._tick(value, self.at(x[0], value)[1])
        for value in x:
            self._tick_below(value, self.at(value, y[0])[0])
        if x_label:
            self.text((left + self.right) / 2, height - 4, x_label, "tick middle")

    def _legend(self, labels, width: float) -> float:
        """Draw the names of the series below the title. Returns where the last line ends."""
        x, y = 0.0, 34.0
        for i, label in enumerate(labels):
            long = 30 + 6.4 * len(label)
            if x and x + long > width:
                x, y = 0.0, y + 16
            self.parts.append(f'<path class="line {series(i)}" d="M{x:.1f} {y - 4:.1f}h16"/>')
            self.text(x + 21, y, label, "tick")
            x += long
        return y if labels else 18

    def _tick(self, value: float, place: float):
        self.parts.append(f'<path class="grid" d="M{self.left} {place:.1f}H{self.right}"/>')
        self.text(self.left - 6, place + 4, f"{value:g}", "tick end")

    def _tick_below(self, value: float, place: float):
        self.text(place, self.bottom + 14, f"{value:g}", "tick middle")

    def at(self, x: float, y: float) -> tuple[float, float]:
        def share(value, ends):
            low, high = self.warp(ends[0]), self.warp(ends[-1])
            return (self.warp(value) - low) / (high - low)

        across, up = share(x, self.x), share(y, self.y)
        return (
            self.left + across * (self.right - self.left),
            self.bottom - up * (self.bottom - self.top),
        )

    def text(self, x: float, y: float, said: str, classes: str):
        self.parts.append(
            f'<text class="{classes}" x="{x:.1f}" y="{y:.1f}">{escape(str(said))}</text>'
        )

    def line(self, points, i: int = 0, dots: bool = False):
        """A line through (x, y) points in the colour of series i."""
        places = [self.at(*point) for point in points]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        self.parts.append(f'<polyline class="line {series(i)}" points="{path}"/>')
        for x, y in places if dots or len(places) == 1 else ():
            self.parts.append(f'<circle class="dot {series(i)}" cx="{x:.1f}" cy="{y:.1f}" r="3"/>')

    def whisker(self, start, end):
        """A straight line from one (x, y) point to another: an interval."""
        (a, b), (c, d) = self.at(*start), self.at(*end)
        self.parts.append(f'<path class="whisker" d="M{a:.1f} {b:.1f}L{c:.1f} {d:.1f}"/>')

    def ring(self, x: float, y: float):
        x, y = self.at(x, y)
        self.parts.append(f'<circle class="whisker" cx="{x:.1f}" cy="{y:.1f}" r="9"/>')

    def svg(self) -> str:
        width, height = self.size
        return (
            f'<svg class="chart" viewBox="0 0 {width} {height}" role="img" '
            f'aria-label="{escape(self.title)}">{"".join(self.parts)}</svg>'
        )


class Bars(Chart):
    """Horizontal bars in percent. `rows` holds (label, rates); each rate is a bar of its series."""

    def __init__(self, title: str, rows: list[tuple[str, list[dict]]], legend):
        self.bar, between = 13, 11
        step, y = self.bar * len(legend) + between, list(range(len(rows) + 1))
        labels = [label if len(label) < 23 else f"{label[:21]}…" for label, _ in rows]
        left = round(16 + 6.8 * max(map(len, labels)))
        size = dict(height=72 + step * len(rows), left=left, after=44)
        super().__init__(title, [0, 50, 100], y, "", legend, **size)
        for i, (label, (_, rates)) in enumerate(zip(labels, rows)):
            top = self.top + i * step + 4
            self.text(self.left - 8, top + (step - between) / 2 + 4, label, "label end")
            for j, rate in enumerate(rates):
                self._draw(top + j * self.bar, rate, j)

    def _tick(self, value, place):
        pass  # the rows have labels instead

    def _tick_below(self, value, place):
        self.parts.append(f'<path class="grid" d="M{place:.1f} {self.top}V{self.bottom}"/>')
        super()._tick_below(value, place)

    def _draw(self, y: float, rate: dict, j: int):
        if rate["rate"] is None:
            return self.text(self.left + 4, y + 10, "no answers", "tick")
        value, low, high = (self.at(100 * rate[key], 0)[0] for key in ("rate", "lo", "hi"))
        self.parts += [
            f'<rect class="bar {series(j)}" x="{self.left}" y="{y:.1f}" '
            f'width="{value - self.left:.1f}" height="{self.bar - 2}"/>',
            f'<path class="whisker" d="M{low:.1f} {y + 5.5:.1f}H{high:.1f}"/>',
        ]
        said = f"{100 * rate['rate']:.1f}"
        self.text(max(value, high) + 5, y + 10, said, "tick strong")


def errors_by_stage(stages: list[dict]) -> list[Chart]:
    """Both errors at every stage, for requests that are asked plainly and for jailbreaks."""
    titles = ("Harmful requests complied with, %", "Harmless requests refused, %")
    charts = []
    for title, key in zip(titles, ("under_refusal", "over_refusal")):
        rows = [(stage_label(s["name"]), [s[key], s[f"{key}_disguised"]]) for s in stages]
        charts.append(Bars(title, rows, ("asked plainly", "in jailbreak forms")))
    return charts


def lines(title: str, x_label: str, curves: dict[str, list[tuple]], dots=False) -> Chart:
    """A chart of curves, each a name with its (x, y) points."""
    xs, ys = zip(*(point for points in curves.values() for point in points))
    legend = list(curves) if len(curves) > 1 else ()
    ends = ticks(min(xs), max(xs)), ticks(min(ys), max(ys))
    chart = Chart(title, *ends, x_label, legend)
    for i, points in enumerate(curves.values()):
        chart.line(points, i, dots)
    return chart


def reliability(bins: list[dict]) -> Chart:
    """How often the first answer is the better one, against the judge's probability that it is."""
    percents = [0, 25, 50, 75, 100]
    label = "judge's P(first answer is better), %; above: pairs"
    chart = Chart("First answer is better, %", percents, percents, label, height=320)
    (a, b), (c, d) = chart.at(0, 0), chart.at(100, 100)
    chart.parts.append(f'<path class="diagonal" d="M{a:.1f} {b:.1f}L{c:.1f} {d:.1f}"/>')
    for b in (b for b in bins if b["n"]):
        middle, rate = 50 * (b["low"] + b["high"]), 100 * b["rate"]
        chart.whisker((middle, 100 * b["lo"]), (middle, 100 * b["hi"]))
        chart.line([(middle, rate)])  # a dot
        chart.text(chart.at(middle, 100)[0], chart.top - 5, b["n"], "count middle")
    return chart


def reward_kl(curves: dict[str, list[dict]]) -> list[Chart]:
    """Proxy and true reward against the KL that PPO has spent (Gao et al. 2022, fig. 1)."""
    titles = dict(proxy="Proxy reward (reward model)", true="True reward (grader)")
    return [
        lines(
            title,
            "KL from SL-CAI, nats",
            dots=True,
            curves={name: [(row["kl"], row[key]) for row in rows] for name, rows in curves.items()},
        )
        for key, title in titles.items()
    ]


def write_svg(path, charts: list[Chart]):
    """Write charts side by side as a file of its own."""
    width = sum(chart.size[0] for chart in charts) + GAP * (len(charts) - 1)
    height, x, parts = max(chart.size[1] for chart in charts), 0, []
    for chart in charts:
        w, h = chart.size
        parts.append(chart.svg().replace("<svg", f'<svg x="{x}" width="{w}" height="{h}"', 1))
        x += w + GAP
    edge = f'viewBox="-16 -16 {width + 32} {height + 32}" width="{width + 32}"'
    style = STYLE.read_text(encoding="utf-8")
    head = f'<svg xmlns="http://www.w3.org/2000/svg" class="chart" {edge}><style>{style}</style>'
    Path(path).write_text(f"{head}{''.join(parts)}</svg>\n", encoding="utf-8")
