"""A dictionary whose entries expire: the memory cache's stand-in for a server's keyspace.

Time is an argument, in milliseconds. Expired entries are never seen, and are removed a few
at a time by later writes, so that they cannot accumulate.
"""

from __future__ import annotations

import heapq
from collections.abc import Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")

SWEEP = 4
"""Due entries removed per write; more than one, so that the dead cannot outnumber the living."""


class Keyspace(Generic[K, V]):
    """Values by key, each until its own deadline."""

    __slots__ = ("_deadlines", "_due", "_values")

    def __init__(self) -> None:
        self._values: dict[K, V] = {}
        self._deadlines: dict[K, int] = {}
        self._due: list[tuple[int, int, K]] = []

    def __len__(self) -> int:
        """How many entries are held in memory, expired ones that were not swept yet included."""
        return len(self._values)

    def get(self, key: K, now: int) -> V | None:
        """The value, or None if there is none any more."""
        deadline = self._deadlines.get(key)
        return self._values[key] if deadline is not None and deadline > now else None

    def deadline(self, key: K) -> int:
        """When the entry under ``key`` expires; 0 if there is none."""
        return self._deadlines.get(key, 0)

    def set(self, key: K, value: V, deadline: int, now: int) -> None:
        """Store ``value`` until ``deadline``."""
        self._values[key] = value
        if self._deadlines.get(key) != deadline:
            self._deadlines[key] = deadline
            # The second item keeps keys from being compared when deadlines are equal.
            heapq.heappush(self._due, (deadline, id(key), key))
        self._sweep(now)

    def remove(self, key: K, now: int) -> bool:
        """Remove the entry; whether there was one."""
        there = self._deadlines.pop(key, 0) > now
        self._values.pop(key, None)
        return there

    def keys(self) -> list[K]:
        """Every key held."""
        return list(self._values)

    def _sweep(self, now: int) -> None:
        for _ in range(SWEEP):
            if not self._due or self._due[0][0] > now:
                break
            deadline, _, key = heapq.heappop(self._due)
            if self._deadlines.get(key) == deadline:
                del self._deadlines[key], self._values[key]
        if len(self._due) > 2 * len(self._values) + 64:
            self._due = [(until, id(key), key) for key, until in self._deadlines.items()]
            heapq.heapify(self._due)
