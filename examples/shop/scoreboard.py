"""What the customers have seen, as figures, as a live board, and as a summary."""

from __future__ import annotations

import asyncio
import time
from collections import Counter, deque
from collections.abc import Iterable

import httpx
from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table

RECENT_SECONDS = 2.0
TIERS = {"l1": "the process", "cache": "Valkey", "source": "PostgreSQL"}


class Score:
    """Counts, and how long each request took, from now on."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.counts: Counter[str] = Counter()
        self.tiers: Counter[str] = Counter()
        """Who answered the reads of documents, as the consoles say."""
        self.took_ms: list[float] = []
        self.longest_behind_ms = 0.0
        self.failures: list[str] = []
        self.event = ""
        """What is broken just now, so that answers may have to wait for it."""
        self.noticed: set[int] = set()
        """The replicas that have shown an open circuit."""
        self._began = time.monotonic()
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

    def come_back(self, *, excused: bool = False) -> None:
        """Somebody was told to come back; without need, unless something is broken."""
        self.counts["come back"] += 1
        self.counts["without need"] += not (self.event or excused)

    def behind(self, for_ms: float) -> None:
        """A catalogue read was older than a write that had been acknowledged for so long."""
        self.counts["behind"] += 1
        self.longest_behind_ms = max(self.longest_behind_ms, for_ms)

    async def noticed_by(self, replicas: int) -> None:
        """Return when so many have shown an open circuit."""
        while len(self.noticed) < replicas:  # noqa: ASYNC110 - somebody looks, nobody notifies
            await asyncio.sleep(0.05)

    @property
    def elapsed(self) -> float:
        """Seconds since the beginning."""
        return time.monotonic() - self._began

    def recent_ms(self) -> list[float]:
        """How long the requests of late took."""
        before = time.monotonic() - RECENT_SECONDS
        while self._recent and self._recent[0][0] < before:
            self._recent.popleft()
        return [took for _, took in self._recent]

    @property
    def per_second(self) -> float:
        """Requests per second, of late."""
        return len(self.recent_ms()) / min(RECENT_SECONDS, max(self.elapsed, 0.1))


def percentile(values: Iterable[float], share: float) -> float:
    """The value that this share of them does not exceed; 0 of none."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))] if ordered else 0.0


def board(score: Score) -> RenderableType:
    """The live view."""
    bar = ProgressBar(total=score.seconds, completed=min(score.elapsed, score.seconds))
    title = f"The shop · {score.event}" if score.event else "The shop"
    return Panel(Group(bar, figures(score)), title=title, width=78)


def figures(score: Score) -> Table:
    """The rows of both views."""
    recent = score.recent_ms() or score.took_ms
    rows = {
        "requests": f"{len(score.took_ms):,}, {score.per_second:,.0f}/s of late",
        "took": f"p50 {percentile(recent, 0.5):.1f} ms, p99 {percentile(recent, 0.99):.1f} ms",
        "answered by": tiers(score),
        "orders": (
            f"{score['orders']:,} placed ({score['replayed']:,} sent twice), "
            f"{score['sold out']:,} sold out"
        ),
        "stale reads": f"{score['stale']} of {score['checked']:,}",
        "from the L1": (
            f"{score['behind']} of {score['browsed']:,} behind a write, "
            f"at most {score.longest_behind_ms:,.0f} ms"
        ),
        "errors": (
            f"{score['failed']} failed, {score['come back']} told to come back, "
            f"{score['throttled']} throttled"
        ),
    }
    table = Table.grid(padding=(0, 2))
    for name, text in rows.items():
        table.add_row(f"[dim]{name}", text)
    return table


def tiers(score: Score) -> str:
    """Who answered the reads of documents."""
    total = sum(score.tiers.values()) or 1
    return ", ".join(f"{name} {score.tiers[key] / total:.0%}" for key, name in TIERS.items())


def line(score: Score) -> str:
    """The live view where there is no terminal."""
    return (
        f"{score.elapsed:5.1f} s  {len(score.took_ms):,} requests, {score.per_second:,.0f}/s, "
        f"{score['orders']:,} orders, {score['stale']} stale, {score['failed']} failed"
        + (f" · {score.event}" if score.event else "")
    )
