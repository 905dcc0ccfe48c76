"""What a worker writes down: each read and write when it is over, its counts at the end."""

from __future__ import annotations

from typing import TextIO

from tests.faults.world import ProductRead
from tests.judge.record import Closing, Outcome, Read, Served, Write, now, write_line

from forze.application.integrations.document.stats import CacheStats
from forze.errors import BackendError


class Logbook:
    """The log of one process, and the numbers of its operations."""

    def __init__(self, process: int, file: TextIO) -> None:
        self.process = process
        self.file = file
        self.operations = 0
        """How many were begun."""

    def begin(self) -> int:
        """The number of a new operation."""
        self.operations += 1
        return self.operations

    def found(
        self, operation: int, document: int, start: int, found: ProductRead, served: Served
    ) -> None:
        """A read that is over now."""
        read = Read(
            process=self.process,
            operation=operation,
            document=document,
            start=start,
            end=now(),
            served=served,
            outcome="ok",
            rev=found.rev,
            value=found.price,
        )
        write_line(self.file, read)

    def missed(self, operation: int, document: int, start: int, error: Exception) -> None:
        """A read that failed, or was given up."""
        read = Read(
            process=self.process,
            operation=operation,
            document=document,
            start=start,
            end=now(),
            served="source",
            outcome="failed",
            error=type(error).__name__,
        )
        write_line(self.file, read)

    def close(self, stats: CacheStats, l1_hits: int) -> None:
        """The last line."""
        closing = Closing(
            process=self.process,
            l1_hits=l1_hits,
            redis_hits=stats.hits,
            bypasses=stats.bypasses,
            pushes=stats.pushes,
            refreshes=stats.refreshes,
        )
        write_line(self.file, closing)


class Attempt:
    """The writes of one operation, which come true together or not at all."""

    def __init__(self, book: Logbook) -> None:
        self.operation = book.begin()
        self._book = book
        self._sent: list[tuple[int, int, int, int]] = []

    def send(self, document: int, rev: int, value: int) -> None:
        """One of them is about to be sent."""
        self._sent.append((document, rev, value, now()))

    def end(self, error: Exception | None = None) -> None:
        """They are over."""
        end, outcome = now(), _outcome(error)
        for document, rev, value, start in self._sent:
            write = Write(
                process=self._book.process,
                operation=self.operation,
                document=document,
                start=start,
                end=end,
                outcome=outcome,
                rev=rev,
                value=value,
                error="" if error is None else type(error).__name__,
            )
            write_line(self._book.file, write)


def _outcome(error: Exception | None) -> Outcome:
    if error is None:
        return "ok"
    if isinstance(error, TimeoutError):
        return "unknown"
    if isinstance(error, BackendError) and error.outcome != "none":
        return "unknown"
    return "failed"
