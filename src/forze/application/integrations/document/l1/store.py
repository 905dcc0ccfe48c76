"""What the in-process tier asks of a store: a bounded map whose entries live for a while.

A store is used from one event loop and never awaits, so it has no locks. It knows nothing of
documents, schemas or freshness: keys are any hashable, values any object but None.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable


@dataclass(frozen=True, slots=True, kw_only=True)
class L1Stats:
    """Counts since the store was made; ``clear`` does not reset them.

    ``evictions`` are entries removed for room: not the expired, invalidated or replaced.
    """

    size: int
    capacity: int
    hits: int
    misses: int
    evictions: int

    @property
    def hit_ratio(self) -> float:
        """Hits over reads, 0.0 when nothing was asked."""
        asked = self.hits + self.misses
        return self.hits / asked if asked else 0.0


class L1Store(Protocol):
    """At most ``capacity`` entries, each alive for the store's ttl from its last ``set``."""

    def get(self, key: Hashable) -> object | None:
        """The live value of ``key``, or None; an expired entry is removed."""
        ...

    def set(self, key: Hashable, value: object) -> None:
        """Keep ``value`` (not None) under ``key``; another entry may go for it."""
        ...

    def invalidate(self, key: Hashable) -> None:
        """Remove ``key`` if it is there."""
        ...

    def clear(self) -> None:
        """Remove every entry."""
        ...

    def stats(self) -> L1Stats:
        """The counts so far."""
        ...


@runtime_checkable
class PeekableL1Store(Protocol):
    """A store that can be looked into; those that come with the project can."""

    def peek(self, key: Hashable) -> tuple[object, float] | None:
        """The live value of ``key`` and the seconds it has left. Counts as no use."""
        ...
