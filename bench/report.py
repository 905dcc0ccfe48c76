"""What a run found: printed as it comes, then written as JSON and plots.

A :class:`Figure` is one subject's readings, one per round; subjects of a comparison were read in
turns, so a ratio is taken round by round and only then summed up: a slow moment of the machine
falls on both sides of it.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median, quantiles
from typing import Any

from bench import plots


@dataclass(frozen=True, slots=True)
class Figure:
    """Readings of one subject: their median, and the quartiles as their spread."""

    values: tuple[float, ...]

    @classmethod
    def of(cls, values: Iterable[float]) -> Figure:
        """A figure of at least one reading."""
        figure = cls(tuple(values))
        if not figure.values:
            raise ValueError("a figure needs at least one reading")
        return figure

    @property
    def median(self) -> float:
        """The middle reading."""
        return median(self.values)

    @property
    def low(self) -> float:
        """The first quartile."""
        return self._quartiles()[0]

    @property
    def high(self) -> float:
        """The third quartile."""
        return self._quartiles()[2]

    def _quartiles(self) -> Sequence[float]:
        if len(self.values) == 1:
            return self.values * 3
        return quantiles(self.values, n=4, method="inclusive")

    def over(self, other: Figure) -> Figure:
        """This divided by ``other``, round by round; raises ``ZeroDivisionError``."""
        return Figure.of(a / b for a, b in zip(self.values, other.values, strict=True))

    def times(self, other: Figure) -> str:
        """:meth:`over` for a table: median and quartiles; empty where a round has no ratio."""
        if not all(other.values):
            return ""
        ratio = self.over(other)
        return f"{ratio.median:.2f}x  ({ratio.low:.2f} to {ratio.high:.2f})"

    def as_json(self) -> dict[str, Any]:
        """Median, quartiles and every reading."""
        return {"median": self.median, "quartiles": [self.low, self.high], "readings": self.values}


@dataclass(frozen=True, slots=True)
class Target:
    """A figure with a bound, both as numbers that a reader can compare.

    ``found`` is None where there is no figure; that is neither met nor missed.
    """

    what: str
    found: float | None
    bound: float
    at_least: bool

    @property
    def met(self) -> bool | None:
        """Whether the figure is on the right side of its bound; None without a figure."""
        if self.found is None:
            return None
        return self.found >= self.bound if self.at_least else self.found <= self.bound

    @property
    def side(self) -> str:
        """Where the figure has to be."""
        return "at least" if self.at_least else "at most"

    def verdict(self) -> str:
        """``met``, by how much it is missed, or that nobody knows."""
        if self.found is None:
            return "not measured"
        if self.met:
            return "met"
        return f"missed by {abs(self.found - self.bound):.3g}"


class Report:
    """The figures of one run, by part."""

    def __init__(self, heading: Mapping[str, str]) -> None:
        self.heading = dict(heading)
        self._parts: dict[str, dict[str, Any]] = {}
        self._targets: list[Target] = []
        self._missing: dict[str, str] = {}
        self._plots: dict[str, plots.Plot] = {}
        self._part: dict[str, Any] = {}
        for name, value in heading.items():
            _print_heading(name, value)

    def head(self, name: str, value: str) -> None:
        """One more line of the heading, such as a peer's version; printed once."""
        if name not in self.heading:
            self.heading[name] = value
            _print_heading(name, value)

    def begin(self, name: str, text: str) -> None:
        """A part begins; ``text`` says what is measured and how, in a sentence or two."""
        self._part = self._parts.setdefault(name, {})
        print(f"\n== {name}\n   {text}", flush=True)

    def compare(
        self,
        title: str,
        unit: str,
        figures: Mapping[str, Figure],
        *,
        ours: str = "forze",
        more_is_better: bool = False,
    ) -> None:
        """Subjects side by side; the last column says how many times better ``ours`` is. Without
        any subject nothing is said: why is in the report already."""
        if not figures:
            return
        own, lines = figures.get(ours), []
        width = max(28, *(len(name) + 2 for name in figures))
        for name, each in figures.items():
            spread = f"{_short(each.low)} to {_short(each.high)}"
            line = f"   {name:<{width}}{_short(each.median):>9}  {spread:<20}"
            if own is not None and name != ours:
                line += "   " + (own.times(each) if more_is_better else each.times(own))
            lines.append(line.rstrip())
        says = "; ours is so many times better" if own is not None else ""
        print(f"\n  {title}: {unit}, median and quartiles{says}")
        print("\n".join(lines), flush=True)
        self._part[title] = {
            "unit": unit,
            "more is better": more_is_better,
            "figures": {name: each.as_json() for name, each in figures.items()},
        }

    def pairs(
        self,
        title: str,
        unit: str,
        rows: Mapping[str, tuple[Figure, str, Figure | None]],
        *,
        more_is_better: bool = False,
    ) -> None:
        """A line per row: ours, who does the nearest to it and how fast (None: nobody does)."""
        width = max(28, *(len(name) + 2 for name in rows))
        beside = max(12, *(len(peer) + 2 for _, peer, _ in rows.values()))
        print(f"\n  {title}: {unit}, medians; ours is so many times better, with quartiles")
        content: dict[str, Any] = {}
        for name, (ours, peer, theirs) in rows.items():
            line = f"   {name:<{width}}{_short(ours.median):>9}"
            content[name] = {"ours": ours.as_json()}
            if theirs is not None:
                line += f"   {peer:<{beside}}{_short(theirs.median):>9}   "
                line += ours.times(theirs) if more_is_better else theirs.times(ours)
                content[name] |= {"peer": peer, "theirs": theirs.as_json()}
            print(line, flush=True)
        self._part[title] = {"unit": unit, "more is better": more_is_better, "rows": content}

    def table(
        self,
        title: str,
        unit: str,
        rows: Mapping[str, Mapping[str, float]],
        *,
        shown: bool = True,
    ) -> None:
        """Plain numbers, the columns those of the first row; kept, but not printed unless
        ``shown``."""
        self._part[title] = {"unit": unit, "rows": {name: dict(row) for name, row in rows.items()}}
        if not shown:
            return
        columns = {name: max(8, len(name) + 2) for name in next(iter(rows.values()))}
        width = max(24, *(len(name) + 2 for name in rows))
        print(f"\n  {title}: {unit}")
        print(" " * (width + 3) + "".join(f"{name:>{each}}" for name, each in columns.items()))
        for name, row in rows.items():
            cells = "".join(f"{row[column]:>{each}.2f}" for column, each in columns.items())
            print(f"   {name:<{width}}{cells}", flush=True)

    def growth(
        self, title: str, unit: str, series: Mapping[str, Sequence[tuple[float, Figure]]]
    ) -> None:
        """A line per series over a quantity that grows, the same for all; the last column is
        how many times the first the last one is."""
        at = [x for x, _ in next(iter(series.values()))]
        width = max(28, *(len(name) + 2 for name in series))
        print(f"\n  {title}: {unit}, medians; growth from first to last, with quartiles")
        print(" " * (width + 3) + "".join(f"{f'{x:,.0f}':>10}" for x in at) + f"{'growth':>11}")
        for name, points in series.items():
            line = f"   {name:<{width}}" + "".join(f"{_short(y.median):>10}" for _, y in points)
            print(f"{line}    {points[-1][1].times(points[0][1])}".rstrip(), flush=True)
        self._part[title] = {
            "unit": unit,
            "series": {
                name: [{"at": x, **y.as_json()} for x, y in points]
                for name, points in series.items()
            },
        }

    def fact(self, what: str, value: float, unit: str = "") -> None:
        """One number that is compared with nothing, such as commands per read."""
        print(f"   {what:<48}{_short(value):>10} {unit}".rstrip(), flush=True)
        self._part[what] = {"unit": unit, "value": value}

    def target(self, what: str, found: float | None, *, least: float = 0, most: float = 0) -> None:
        """A figure with its bound: ``least`` or ``most``; the verdicts are printed at the end.
        None: it could not be had, and so its target is not said to be met."""
        self._targets.append(Target(what, found, least or most, at_least=bool(least)))

    def missing(self, who: str, why: str) -> None:
        """A peer, trace or tool that could not be had; it is never dropped in silence."""
        print(f"   not measured: {who}: {why}", flush=True)
        self._missing[who] = why

    def plot(self, name: str, plot: plots.Plot) -> None:
        """A picture of figures that were printed; written as ``name.svg`` if there are any."""
        content = plot.series if isinstance(plot, plots.Lines) else plot.groups
        if any(content.values()):
            self._plots[name] = plot

    def verdicts(self) -> bool:
        """Print every target with its verdict; whether there are any and all are met."""
        if self._targets:
            print(f"\n== targets\n   {'':<66}{'found':>9}  {'bound':<14}")
        for each in self._targets:
            found = "" if each.found is None else f"{each.found:.4g}"
            bound = f"{each.side} {each.bound:.4g}"
            print(f"   {each.what:<66}{found:>9}  {bound:<14}  {each.verdict()}")
        for who, why in self._missing.items():
            print(f"   not measured: {who}: {why}")
        return bool(self._targets) and all(each.met for each in self._targets)

    def summary(self) -> str:
        """How many targets are met, missed and not measured."""
        states = [each.met for each in self._targets]
        counts = {"met": True, "missed": False, "not measured": None}
        said = (f"{states.count(state)} {name}" for name, state in counts.items())
        return f"{len(states)} targets: {', '.join(said)}"

    def write(self, out: Path, name: str) -> None:
        """``name.json`` with every reading, and the plots, into the folder ``out``."""
        out.mkdir(parents=True, exist_ok=True)
        content = {
            "machine": self.heading,
            "parts": self._parts,
            "targets": [
                {"what": t.what, "found": t.found, t.side: t.bound, "met": t.met}
                for t in self._targets
            ],
            "not measured": self._missing,
        }
        (out / f"{name}.json").write_text(json.dumps(content, indent=1) + "\n")
        for plot_name, plot in self._plots.items():
            plots.draw(plot, out / f"{plot_name}.svg")


class Progress:
    """One line on standard error that says how far a part is; nothing where nobody looks."""

    def __init__(self, name: str, steps: int) -> None:
        self._name, self._steps, self._done = name, steps, 0
        self._shown = sys.stderr.isatty()

    def step(self, what: str) -> None:
        """One more step is done; ``what`` comes next."""
        if self._shown:
            text = f"{self._name} {self._done}/{self._steps} {what}"
            print(f"\r\033[K{text[:78]}", end="", file=sys.stderr, flush=True)
        self._done += 1

    def clear(self) -> None:
        """Take the line away."""
        if self._shown:
            print("\r\033[K", end="", file=sys.stderr, flush=True)


def _print_heading(name: str, value: str) -> None:
    print(f"{name:<15}{value}", flush=True)


def _short(value: float) -> str:
    if value == 0 or abs(value) >= 1_000:
        return f"{value:,.0f}"
    return f"{value:.3g}" if abs(value) < 100 else f"{value:.0f}"
