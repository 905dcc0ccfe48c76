"""Counters: named 64-bit integers that every process adds to, and ids drawn from them.

An increment is atomic and exact at both ends of the range, and is never retried behind the
caller's back: where its answer was lost, the error says so (``outcome="unknown"``), and the
caller repeats it safely only under an ``operation_id``.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Protocol, TypeAlias

from forze.application.contracts.deps import DepKey, Factory
from forze.errors import ConfigurationError

INT64_MIN = -(2**63)
INT64_MAX = 2**63 - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class CounterSpec:
    """A set of counters: the one under ``name``, and one more for each suffix.

    ``minimum`` and ``maximum`` (inclusive; None: the 64-bit range) are what no change may
    step over: one that would is refused and leaves the value as it was. A counter beyond a
    bound (reset there, or the bound came later) may still move towards it. ``operation_ttl``
    is how long the answer to an ``operation_id`` is remembered.
    """

    name: str
    minimum: int | None = None
    maximum: int | None = None
    operation_ttl: timedelta = timedelta(days=1)

    def __post_init__(self) -> None:
        name: object = self.name
        if not isinstance(name, str) or not name:
            raise ConfigurationError(
                f"CounterSpec: name must be text that is not empty, not {name!r}", name="name"
            )
        for which, bound in (("minimum", self.minimum), ("maximum", self.maximum)):
            self._check_bound(which, bound)
        if self.lowest > self.highest:
            raise ConfigurationError(
                f"CounterSpec {self.name!r}: minimum {self.minimum} is above maximum "
                f"{self.maximum}",
                name="minimum",
            )
        ttl: object = self.operation_ttl
        if not isinstance(ttl, timedelta) or ttl < timedelta(milliseconds=1):
            raise ConfigurationError(
                f"CounterSpec {self.name!r}: operation_ttl must be a timedelta of at least a "
                f"millisecond, not {ttl!r}",
                name="operation_ttl",
            )

    @property
    def lowest(self) -> int:
        """The bound below."""
        return INT64_MIN if self.minimum is None else self.minimum

    @property
    def highest(self) -> int:
        """The bound above."""
        return INT64_MAX if self.maximum is None else self.maximum

    def _check_bound(self, which: str, bound: object) -> None:
        if bound is None:
            return
        if type(bound) is not int or not INT64_MIN <= bound <= INT64_MAX:
            raise ConfigurationError(
                f"CounterSpec {self.name!r}: {which} must be a 64-bit integer or None, "
                f"not {bound!r}",
                name=which,
            )


class IdAllocator(Protocol):
    """Ids out of blocks that this process took from a counter.

    No id is handed out twice, whatever becomes of the process: what is left of a block when
    it ends is never used (a gap). A forked child takes blocks of its own. Ids of one process
    rise, those of several are interleaved by blocks. Made once and kept: each allocator has
    its own blocks. Tenants never share a block where the counter is tenant-aware.
    """

    async def next(self) -> int:
        """The next id; no round trip while a block lasts, one for everyone who waits.

        Fails as :meth:`CounterPort.allocate` does; a block whose answer was lost is a gap,
        and the next call takes another. May be cancelled at any time.
        """
        ...

    def take_nowait(self) -> int | None:
        """An id of the block in hand, None when it is used up; safe from any thread."""
        ...


class CounterPort(Protocol):
    """Counters of one :class:`CounterSpec`; every method is one round trip.

    ``suffix`` names one of the counters, None the one without; a counter that was never
    written stands at 0. ``by``, ``count`` and ``value`` are integers (no bool, no float);
    with signs applied they fit 64 bits. A change that would leave the range or the bounds of
    the spec is a ``ValidationError`` that leaves the value as it was. What is stored and is
    no integer is a ``BackendCorrupt``.

    ``operation_id`` (text of 1 to 255 characters) makes a change safe to repeat: the same
    call again under it changes nothing and gets the same answer, for ``operation_ttl``.
    Another call, or other arguments, under it are a ``ValidationError``. Without it a change
    whose error has the outcome ``"unknown"`` may or may not have happened.
    """

    async def incr(
        self, suffix: str | None = None, by: int = 1, *, operation_id: str | None = None
    ) -> int:
        """Add ``by``; the new value."""
        ...

    async def decr(
        self, suffix: str | None = None, by: int = 1, *, operation_id: str | None = None
    ) -> int:
        """Subtract ``by``; the new value."""
        ...

    async def incr_batch(
        self, count: int, suffix: str | None = None, *, operation_id: str | None = None
    ) -> int:
        """Add ``count``, 1 or more; the new value, the last of the block that is now taken."""
        ...

    async def allocate(
        self, count: int, suffix: str | None = None, *, operation_id: str | None = None
    ) -> range:
        """Add ``count``, 1 or more; the block that is now taken, ``count`` values that rise."""
        ...

    async def reset(self, suffix: str | None = None, value: int = 0) -> None:
        """Make it ``value``, which is within the bounds. What ids are drawn from must never be
        set back: the ids in between would come again."""
        ...

    async def get(self, suffix: str | None = None) -> int:
        """The value now; 0 where nothing was ever written."""
        ...

    def allocator(self, block: int = 1000, suffix: str | None = None) -> IdAllocator:
        """An allocator that takes ``block`` ids per round trip; keep it, it holds the block."""
        ...


CounterFactory: TypeAlias = Factory[CounterSpec, CounterPort]
CounterDepKey: DepKey[CounterFactory] = DepKey("counter")

__all__ = [
    "INT64_MAX",
    "INT64_MIN",
    "CounterDepKey",
    "CounterFactory",
    "CounterPort",
    "CounterSpec",
    "IdAllocator",
]
