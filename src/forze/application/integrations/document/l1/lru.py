"""The store that keeps what was used last: one ordered map, the coldest entry at its front.

Least recently used is the cheapest policy and needs no history. One pass over more keys than
it holds empties it of everything useful; :mod:`.tiny_lfu` is the store that resists that.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Hashable
from datetime import timedelta

from forze.application.contracts.cache import L1Spec
from forze.application.integrations.document.l1.store import L1Stats


class LruL1Store:
    """Keeps the ``capacity`` most recently used entries. Every operation but ``clear`` is O(1)."""

    __slots__ = (
        "_capacity",
        "_clock",
        "_entries",
        "_evictions",
        "_find",
        "_hits",
        "_misses",
        "_touch",
        "_ttl_s",
    )

    def __init__(
        self, *, capacity: int, ttl: timedelta, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._capacity = capacity
        self._ttl_s = ttl.total_seconds()
        self._clock = clock
        self._entries: OrderedDict[Hashable, tuple[object, float]] = OrderedDict()
        # Bound once: `get` is the hottest line of the project.
        self._find = self._entries.get
        self._touch = self._entries.move_to_end
        self._hits = self._misses = self._evictions = 0

    def get(self, key: Hashable) -> object | None:
        """The live value of ``key``, or None; an expired entry is removed."""
        find = self._find  # called through a local name it takes a third of the time
        entry = find(key)
        if entry is not None:
            clock = self._clock
            if clock() < entry[1]:
                touch = self._touch
                touch(key)
                self._hits += 1
                return entry[0]
            del self._entries[key]
        self._misses += 1
        return None

    def peek(self, key: Hashable) -> tuple[object, float] | None:
        """The live value of ``key`` and the seconds it has left. Counts as no use."""
        entry = self._find(key)
        left = 0.0 if entry is None else entry[1] - self._clock()
        return None if entry is None or left <= 0 else (entry[0], left)

    def set(self, key: Hashable, value: object) -> None:
        """Keep ``value`` under ``key``, in place of the least recently used where it is full."""
        entries = self._entries
        if key in entries:
            self._touch(key)
        elif len(entries) >= self._capacity:
            entries.popitem(last=False)
            self._evictions += 1
        entries[key] = (value, self._clock() + self._ttl_s)

    def invalidate(self, key: Hashable) -> None:
        """Remove ``key`` if it is there."""
        self._entries.pop(key, None)

    def clear(self) -> None:
        """Remove every entry."""
        self._entries.clear()

    def stats(self) -> L1Stats:
        """The counts so far."""
        return L1Stats(
            size=len(self._entries),
            capacity=self._capacity,
            hits=self._hits,
            misses=self._misses,
            evictions=self._evictions,
        )


def lru_l1_store(spec: L1Spec) -> LruL1Store:
    """A store for ``L1Spec(store_factory=lru_l1_store)``."""
    return LruL1Store(capacity=spec.capacity, ttl=spec.ttl)
