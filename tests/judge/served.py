"""Who answered a read, told from the public counters.

A coroutine runs from one wait to the next without anybody else in between, so what the
counters gain during its own steps is its own doing.
"""

from __future__ import annotations

from collections.abc import Coroutine, Generator
from typing import Any, Generic, NamedTuple, TypeVar

from tests.judge.record import Served

from forze.application.integrations.document.query import DocumentQuery

T = TypeVar("T")


class Tally(NamedTuple):
    """The counters that matter, at one moment."""

    l1: int
    redis: int
    available: bool


def tally(query: DocumentQuery[Any]) -> Tally:
    """The counters now."""
    stats, l1 = query.stats(), query.l1_stats()
    assert stats is not None
    return Tally(l1.hits if l1 is not None else 0, stats.hits, stats.available)


class Watched(Generic[T]):
    """Await it instead of the coroutine, then ask who answered."""

    def __init__(self, query: DocumentQuery[Any], work: Coroutine[Any, Any, T]) -> None:
        self._query = query
        self._work = work
        self._l1 = self._redis = 0
        self._available = True

    def served(self, documents: int) -> Served:
        """Who answered the read of so many documents."""
        if self._l1 == documents:
            return "l1"
        if self._l1:
            return "mixed"
        if self._redis == documents:
            return "redis"
        return "source" if self._available else "away"

    def __await__(self) -> Generator[Any, Any, T]:
        steps = self._work.__await__()
        error: BaseException | None = None
        while True:
            before = tally(self._query)
            try:
                waiting = steps.send(None) if error is None else steps.throw(error)
            except StopIteration as done:
                result: T = done.value
                return result
            finally:
                after = tally(self._query)
                self._l1 += after.l1 - before.l1
                self._redis += after.redis - before.redis
                self._available &= before.available and after.available
            error = None
            try:
                yield waiting
            except BaseException as thrown:
                error = thrown
