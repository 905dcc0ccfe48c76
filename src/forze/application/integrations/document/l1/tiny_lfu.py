"""The store that keeps what will be used again: admission by history, under a policy it chooses.

Four parts, each with its source:

- *window and main*: a newcomer starts in a small window and enters the main part only if it is
  worth more than who would leave for it; main is a segmented LRU (:mod:`.segments`; W-TinyLFU,
  Einziger, Friedman, Manes, ACM ToS 2017);
- *sketch*: how often each key was asked for lately, hit or miss, in 24 to 48 bytes per entry
  (:mod:`.sketch`; the same paper);
- *admission*: by frequency, or by one reuse within window or memory of the evicted (S3-FIFO,
  Yang et al., SOSP 2023), or of everyone, which is LRU;
- *adaptation*: which of the three, decided by small shadows of the cache (:mod:`.contest`; the
  aim is that of Einziger et al., Adaptive Software Cache Management, Middleware 2018).

Hashes are mixed with a secret of the store, so that nobody outside knows which keys share
counters; a coin keeps even one who knew from pinning the cache.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable
from datetime import timedelta
from random import Random

from forze.application.contracts.cache import L1Spec
from forze.application.integrations.document.l1.contest import Contest
from forze.application.integrations.document.l1.segments import Segments
from forze.application.integrations.document.l1.sketch import CEILING, FrequencySketch
from forze.application.integrations.document.l1.store import L1Stats

_NO_KEY = object()


class TinyLfuL1Store:
    """Keeps the ``capacity`` entries most worth keeping. Every operation but ``clear`` is O(1).

    ``random`` is where its secret and its coins come from: seeded, it behaves the same again
    for keys whose hashes do (not text or bytes, whose hashes differ from process to process).
    """

    __slots__ = (
        "_admit",
        "_capacity",
        "_clock",
        "_contest",
        "_counts",
        "_evictions",
        "_hits",
        "_mask",
        "_misses",
        "_missing",
        "_missing_hash",
        "_sample",
        "_secret",
        "_segments",
        "_ttl_s",
        "_use",
    )

    def __init__(
        self,
        *,
        capacity: int,
        ttl: timedelta,
        clock: Callable[[], float] = time.monotonic,
        random: Random | None = None,
    ) -> None:
        random = random or Random()
        self._capacity = capacity
        self._ttl_s = ttl.total_seconds()
        self._clock = clock
        self._secret = random.getrandbits(60)
        sketch = FrequencySketch(capacity)
        self._contest = Contest(capacity, sketch, random)
        self._segments = Segments(capacity, self._contest.best, sketch, self._hash_of, random)
        self._sample = self._contest.sample
        self._counts = sketch.counts
        self._mask = sketch.mask
        self._use = self._segments.use
        self._admit = self._segments.admit
        self._missing: Hashable = _NO_KEY
        self._missing_hash = 0
        self._hits = self._misses = self._evictions = 0

    def _hash_of(self, key: Hashable) -> int:
        return hash((self._secret, key))

    def get(self, key: Hashable) -> object | None:
        """The live value of ``key``, or None; an expired entry is removed."""
        seen = hash((self._secret, key))
        # FrequencySketch.add, written out: the call would cost as much as what it does.
        counts = self._counts
        place = seen & self._mask
        count = counts[place]
        if count < CEILING:
            counts[place] = count + 1
        if not seen & self._sample and self._contest.watch(seen):
            self._segments.follow(self._contest.best)
        entry = self._use(key)
        if entry is not None:
            if self._clock() < entry[1]:
                self._hits += 1
                return entry[0]
            self._segments.remove(key)
        self._misses += 1
        self._missing = key
        self._missing_hash = seen
        return None

    def peek(self, key: Hashable) -> tuple[object, float] | None:
        """The live value of ``key`` and the seconds it has left. Counts as no use."""
        entry = self._segments.look(key)
        left = 0.0 if entry is None else entry[1] - self._clock()
        return None if entry is None or left <= 0 else (entry[0], left)

    def set(self, key: Hashable, value: object) -> None:
        """Keep ``value`` under ``key``; where it is full, the entry least worth it goes."""
        now = self._clock()
        entry = (value, now + self._ttl_s)
        if key is self._missing:
            # What is stored is mostly what was missed last: then its hash is known, and that
            # it is not there.
            self._evictions += self._admit(key, self._missing_hash, entry, now)
        elif not self._segments.replace(key, entry):
            self._evictions += self._admit(key, self._hash_of(key), entry, now)
        self._missing = _NO_KEY

    def invalidate(self, key: Hashable) -> None:
        """Remove ``key`` if it is there."""
        self._segments.remove(key)

    def clear(self) -> None:
        """Remove every entry; what was learned of the keys' use stays."""
        self._segments.clear()

    def stats(self) -> L1Stats:
        """The counts so far."""
        return L1Stats(
            size=len(self._segments),
            capacity=self._capacity,
            hits=self._hits,
            misses=self._misses,
            evictions=self._evictions,
        )


def tiny_lfu_l1_store(spec: L1Spec) -> TinyLfuL1Store:
    """A store for ``L1Spec(store_factory=tiny_lfu_l1_store)``."""
    return TinyLfuL1Store(capacity=spec.capacity, ttl=spec.ttl)
