"""Plots as SVG: lines with their spread, or bars side by side. Drawn by matplotlib."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import matplotlib

matplotlib.use("svg")
from matplotlib import pyplot

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from bench.report import Figure


@dataclass(frozen=True)
class Lines:
    """A line per subject over a quantity that grows; the quartiles are shaded."""

    title: str
    x: str
    y: str
    series: Mapping[str, Sequence[tuple[float, Figure]]]
    log_x: bool = True
    log_y: bool = False


@dataclass(frozen=True)
class Bars:
    """Groups of bars, one bar per subject in each; the quartiles are whiskers."""

    title: str
    y: str
    groups: Mapping[str, Mapping[str, Figure]]
    log_y: bool = False


Plot: TypeAlias = Lines | Bars

_LEVEL_LABELS = 8  # more groups of bars than this have their names aslant
_OURS = "#0b7285"
_OTHERS = ("#adb5bd", "#868e96", "#f08c00", "#e8590c", "#7048e8", "#2b8a3e", "#c2255c", "#495057")
_STYLE: dict[Any, Any] = {
    "svg.hashsalt": "forze",  # the same figures give the same file
    "svg.fonttype": "none",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e9ecef",
}


def draw(plot: Plot, path: Path) -> None:
    """Write ``plot`` to ``path``, as SVG."""
    with pyplot.rc_context(_STYLE):
        figure, axes = pyplot.subplots(figsize=(8, 4.2), layout="constrained")
        if isinstance(plot, Lines):
            _lines(axes, plot)
        else:
            _bars(axes, plot)
        axes.set_title(plot.title, loc="left", fontsize=11)
        axes.set_ylabel(plot.y)
        axes.set_axisbelow(True)
        if plot.log_y:
            axes.set_yscale("log")
        else:
            axes.set_ylim(bottom=0)
        axes.legend(frameon=False, fontsize=9)
        figure.savefig(path, format="svg", metadata={"Date": None})
        pyplot.close(figure)


def _lines(axes: Axes, plot: Lines) -> None:
    for (name, points), color in zip(plot.series.items(), _colors(plot.series), strict=False):
        at = [x for x, _ in points]
        axes.plot(at, [each.median for _, each in points], marker="o", label=name, color=color)
        low, high = [each.low for _, each in points], [each.high for _, each in points]
        axes.fill_between(at, low, high, alpha=0.15, color=color, linewidth=0)
    axes.set_xlabel(plot.x)
    if plot.log_x:
        axes.set_xscale("log")
        ticks = sorted({x for points in plot.series.values() for x, _ in points})
        axes.set_xticks(ticks, [f"{x:,.0f}" for x in ticks], minor=False)
        axes.minorticks_off()


def _bars(axes: Axes, plot: Bars) -> None:
    names = list(dict.fromkeys(name for group in plot.groups.values() for name in group))
    width = 0.8 / len(names)
    for place, (name, color) in enumerate(zip(names, _colors(names), strict=False)):
        found = [
            (at, group[name]) for at, group in enumerate(plot.groups.values()) if name in group
        ]
        middles = [each.median for _, each in found]
        below = [each.median - each.low for _, each in found]
        above = [each.high - each.median for _, each in found]
        axes.bar(
            [at - 0.4 + width * (place + 0.5) for at, _ in found],
            middles,
            width * 0.92,
            yerr=[below, above],
            label=name,
            color=color,
            error_kw={"linewidth": 1, "ecolor": "#495057"},
        )
    axes.set_xticks(range(len(plot.groups)), list(plot.groups))
    if len(plot.groups) > _LEVEL_LABELS:
        axes.tick_params("x", labelrotation=30)
        pyplot.setp(axes.get_xticklabels(), ha="right", rotation_mode="anchor")
    axes.grid(visible=False, axis="x")


def _colors(names: Sequence[str] | Mapping[str, object]) -> list[str]:
    """Ours stands out; the others keep their order."""
    others = iter(_OTHERS * (len(names) // len(_OTHERS) + 1))
    return [
        _OURS if name.startswith("forze") and "0.16" not in name else next(others) for name in names
    ]
