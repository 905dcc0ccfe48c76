"""Timelines as SVG: for each of several runs, the slowest read of every moment."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from xml.sax.saxutils import escape

WIDTH, LEFT, ROW, TOP = 900, 60, 150, 60
MOMENT_S = 0.01
STEP_MS = 10
INK, FAINT, BARS = "#222", "#ccc", ("#c0392b", "#2471a3", "#1e8449")


def timelines(
    heading: str, runs: Mapping[str, Sequence[tuple[float, float]]], seconds: float
) -> str:
    """An SVG with one row per run, of ``(when_s, took_ms)`` pairs; all to one scale."""
    height = TOP + ROW * len(runs) + 30
    slowest = max(ms for reads in runs.values() for _, ms in reads)
    most = math.ceil(slowest / STEP_MS) * STEP_MS
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" '
        'font-family="sans-serif" font-size="12">',
        f'<rect width="{WIDTH}" height="{height}" fill="white"/>',
        _text(LEFT, 24, heading, size=15),
    ]
    for row, (name, reads) in enumerate(runs.items()):
        floor = TOP + ROW * (row + 1) - 20
        parts += [_text(LEFT, floor - ROW + 42, name), *_grid(floor, most)]
        bars = (
            f"M{_x(at, seconds):.1f} {floor}V{_y(ms, floor, most):.1f}"
            for at, ms in _slowest(reads)
        )
        parts.append(
            f'<path d="{"".join(bars)}" stroke="{BARS[row % len(BARS)]}" stroke-width="2"/>'
        )
    for second in range(math.floor(seconds) + 1):
        parts.append(_text(_x(second, seconds), height - 14, f"{second} s", anchor="middle"))
    return "\n".join([*parts, "</svg>\n"])


def _slowest(reads: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    slowest: dict[int, float] = {}
    for at, ms in reads:
        moment = int(at / MOMENT_S)
        slowest[moment] = max(slowest.get(moment, 0.0), ms)
    return [(moment * MOMENT_S, ms) for moment, ms in sorted(slowest.items())]


def _grid(floor: float, most: int) -> list[str]:
    lines = []
    for ms in range(0, most + 1, STEP_MS * math.ceil(most / STEP_MS / 5)):
        y = _y(ms, floor, most)
        lines.append(f'<path d="M{LEFT} {y:.1f}H{WIDTH - 20}" stroke="{FAINT}"/>')
        lines.append(_text(LEFT - 6, y + 4, f"{ms} ms", anchor="end"))
    return lines


def _x(at: float, seconds: float) -> float:
    return LEFT + at / seconds * (WIDTH - LEFT - 20)


def _y(ms: float, floor: float, most: int) -> float:
    return floor - ms / most * (ROW - 50)


def _text(x: float, y: float, text: str, *, anchor: str = "start", size: int = 12) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" fill="{INK}" text-anchor="{anchor}" '
        f'font-size="{size}">{escape(text)}</text>'
    )
