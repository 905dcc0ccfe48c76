"""Is the server away? The breaker of the cache path, one per client and process
(on a cluster: per node).

Two calls in a row that were not answered in time, or a lost connection, open it: until a
probe is answered again, calls on the cache path fail at once instead of waiting. A state
machine without I/O; the link tells it what happened and does the probing.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Literal

_FAILURES_TO_OPEN = 2


class Availability:
    """``away`` is all the hot path looks at."""

    __slots__ = ("_failures", "_on_recovery", "away", "opened_count", "since")

    def __init__(self, told: list[Callable[[], None]] | None = None) -> None:
        self.away = False
        self.opened_count = 0
        self.since = datetime.now(UTC)
        self._failures = 0
        self._on_recovery: list[Callable[[], None]] = [] if told is None else told

    def sibling(self) -> Availability:
        """Of another server of the same client: away by itself, its recovery told alike."""
        return Availability(self._on_recovery)

    def listeners(self) -> list[Callable[[], None]]:
        """Who wants to know of a recovery."""
        return list(self._on_recovery)

    @property
    def state(self) -> Literal["closed", "open"]:
        """``"open"`` while the server is away, since :attr:`since`."""
        return "open" if self.away else "closed"

    def on_recovery(self, callback: Callable[[], None]) -> None:
        """Call back whenever the server answers again after it was away."""
        self._on_recovery.append(callback)

    def unanswered(self, calls: int) -> bool:
        """Count calls that timed out; whether this opened the breaker."""
        self._failures += calls
        return self._failures >= _FAILURES_TO_OPEN and self.lost()

    def answered(self) -> None:
        """A call was answered in time: the count starts anew."""
        self._failures = 0

    def lost(self) -> bool:
        """Open; whether it was closed."""
        if self.away:
            return False
        self.away = True
        self.opened_count += 1
        self.since = datetime.now(UTC)
        return True

    def restored(self) -> list[Callable[[], None]]:
        """Close; who wants to know of it."""
        self._failures = 0
        if not self.away:
            return []
        self.away = False
        self.since = datetime.now(UTC)
        return self.listeners()
