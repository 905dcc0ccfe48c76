"""What the load script has seen, as figures, as a live board, and as a summary."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Iterable

import httpx
from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table

RECENT_SECONDS = 2.0
TIERS = {
    "l1": "the process",
    "cache": "Valkey",
    "shared": "another's load",
    "source": "PostgreSQL",
}


class Score:
    """Counts, and how long each request took."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.restart()

    def restart(self) -> None:
        """From nothing, now."""
        self._began = time.monotonic()
        self.counts: Counter[str] = Counter()
        self.tiers: Counter[str] = Counter()
        self.took_ms: list[float] = []
        self.longest_behind_ms = 0.0
        self.event = ""
        self.failures: list[str] = []
        self.excused = False
        """Whether something is away that answers may have to wait for."""
        self._recent: deque[tuple[float, float]] = deque()

    def __getitem__(self, name: str) -> int:
        return self.counts[name]

    def request(self, took_ms: float) -> None:
        """One more, just now."""
        self.took_ms.append(took_ms)
        self._recent.append((time.monotonic(), took_ms))

    def failed(self, method: str, path: str, answer: httpx.Response | None) -> None:
        """A request that had to be answered otherwise."""
        self.counts["failed"] += 1
        said = "no answer" if answer is None else f"{answer.status_code} {answer.text}"
        self.failures.append(f"{method} {path}: {said}")

    def come_back(self) -> None:
        """Somebody was told to come back."""
        self.counts["come back"] += 1
        self.counts["without need"] += not self.excused

    def behind(self, for_ms: float) -> None:
        """A catalogue read was older than a write that had been acknowledged for so long."""
        self.counts["behind"] += 1
        self.longest_behind_ms = max(self.longest_behind_ms, for_ms)

    @property
    def elapsed(self) -> float:
        """Seconds since the beginning."""
        return time.monotonic() - self._began

    @property
    def per_second(self) -> float:
        """Requests per second, of late."""
        self._forget()
        return len(self._recent) / min(RECENT_SECONDS, max(self.elapsed, 0.1))

    def recent_ms(self) -> list[float]:
        """How long those of late took."""
        self._forget()
        return [took for _, took in self._recent]

    def _forget(self) -> None:
        before = time.monotonic() - RECENT_SECONDS
        while self._recent and self._recent[0][0] < before:
            self._recent.popleft()


def percentile(values: Iterable[float], share: float) -> float:
    """The value that this share of them does not exceed; 0 of none."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))] if ordered else 0.0


def board(score: Score) -> RenderableType:
    """The live view."""
    bar = ProgressBar(total=score.seconds, completed=min(score.elapsed, score.seconds), width=60)
    return Panel(Group(bar, figures(score)), title=f"The shop {score.event}".strip(), width=78)


def figures(score: Score) -> Table:
    """The rows of both views."""
    recent = score.recent_ms() or score.took_ms
    rows = {
        "requests": f"{len(score.took_ms):,}, {score.per_second:,.0f}/s of late",
        "took": f"p50 {percentile(recent, 0.5):.1f} ms, p99 {percentile(recent, 0.99):.1f} ms",
        "answered by": tiers(score),
        "orders": (
            f"{score['orders']:,} placed, {score['replayed']:,} sent twice and placed once, "
            f"{score['sold out']:,} refused: sold out"
        ),
        "stale reads": f"{score['stale']} of {score['checked']:,} checked",
        "from the L1": (
            f"{score['behind']} of {score['browsed']:,} behind a write, "
            f"by {score.longest_behind_ms:.1f} ms at most"
        ),
        "errors": (
            f"{score['failed']} failed, {score['come back']} told to come back (503), "
            f"{score['throttled']} throttled (429)"
        ),
    }
    table = Table.grid(padding=(0, 2))
    for name, text in rows.items():
        table.add_row(f"[dim]{name}", text)
    return table


def tiers(score: Score) -> str:
    """Who answered the reads of documents."""
    total = sum(score.tiers.values()) or 1
    return ", ".join(f"{name} {score.tiers[key] / total:.1%}" for key, name in TIERS.items())


def line(score: Score) -> str:
    """The live view where there is no terminal."""
    return (
        f"{score.elapsed:5.1f} s  {len(score.took_ms):,} requests, {score.per_second:,.0f}/s, "
        f"{score['orders']:,} orders, {score['stale']} stale, {score['failed']} failed "
        f"{score.event}".rstrip()
    )
