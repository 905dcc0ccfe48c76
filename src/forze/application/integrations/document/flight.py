"""Collapsing concurrent reads of one document, without ever handing out an older value.

A caller may board a flight at any time. What it may take from it depends on when:

- a value the flight *asked for after the caller boarded* is fresh for the caller;
- a value whose *fill was accepted* is fresh for everyone who was aboard when the fill was
  sent: no write's intent came between lease and fill, so it is what a probe right after the
  fill would have hit;
- anything else may predate a write acknowledged before the caller boarded: it starts over.

Failures are shared by all: failing fast serves no stale value.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Final, Generic, Literal, TypeAlias, TypeVar

from forze.errors import ForzeError, NotFoundError

T = TypeVar("T")

Outcome: TypeAlias = Literal["hit", "filled", "refused", "bypassed"]
"""How a document came: from the cache after all, loaded and stored, loaded and not stored (a
write came between, or the cache did not answer), or loaded past the cache."""


class Again:
    """What a caller is handed that boarded too late for the value."""


AGAIN: Final = Again()


class Flight(Generic[T]):
    """One read of one document under way, and the callers waiting for it.

    Each caller waits on a future of its own: cancelling one touches nobody else.
    """

    __slots__ = ("_boarded", "_covered", "caller", "loop", "outcome")

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self._boarded: list[asyncio.Future[T | Again]] = []
        self._covered = 0
        self.outcome: Outcome = "hit"
        self.caller: Any = None
        """The span of whoever it left for, None where nobody traces."""

    def board(self) -> asyncio.Future[T | Again]:
        """Wait for the flight to land: the value, or :data:`AGAIN`."""
        seat: asyncio.Future[T | Again] = self.loop.create_future()
        self._boarded.append(seat)
        return seat

    def cover(self, boarded: int | None = None) -> None:
        """Those aboard now (or the first ``boarded``) may take what is asked for from here on."""
        self._covered = len(self._boarded) if boarded is None else boarded

    @property
    def aboard(self) -> int:
        """How many callers boarded."""
        return len(self._boarded)

    def land(self, value: T, copy: Callable[[T], T]) -> None:
        """Hand the value to those it is fresh for, to each but the first as ``copy`` makes it."""
        for position, seat in enumerate(self._boarded):
            if seat.done():
                continue
            if position >= self._covered:
                seat.set_result(AGAIN)
                continue
            try:
                seat.set_result(value if position == 0 else copy(value))
            except Exception as error:
                seat.set_exception(error)

    def crash(self, error: BaseException) -> None:
        """Share the failure, to each with a traceback of its own.

        That a document does not exist is an answer like a value, and can be out of date.
        """
        for position, seat in enumerate(self._boarded):
            if seat.done():
                continue
            out_of_date = isinstance(error, NotFoundError) and position >= self._covered
            if out_of_date or isinstance(error, asyncio.CancelledError):
                seat.set_result(AGAIN)
            else:
                seat.set_exception(error.again() if isinstance(error, ForzeError) else error)
