"""The order of a cache under one policy: who stays, and who goes for the newcomer.

A newcomer enters the *window*. What the window lets go either moves on into *main* or is
evicted, and that is what the policies differ in:

``RECENCY``    the window is the whole cache: least recently used.
``REUSE``      a tenth of it; who was used again while there moves on, and who comes back soon
               after its eviction is protected at once (2Q: Johnson and Shasha, VLDB 1994;
               S3-FIFO: Yang et al., FIFO queues are all you need, SOSP 2023).
``FREQUENCY``  a hundredth; who was used more often than the one main would evict takes its
               place (W-TinyLFU: Einziger, Friedman, Manes, ACM ToS 2017).
``UNDECIDED``  as ``REUSE``, but a coin decides whether one who was not used again moves on: with
               nothing known, half of what is kept is old and half is new.

Main is a segmented LRU: *probation*, where entries arrive and are evicted from, and *protected*
for those used while there. The policy may change at any time: the window then grows or shrinks
with the admissions that follow, a few entries at a time, and nothing is evicted for it.

Under ``FREQUENCY`` a lead of one use is no lead: of two keys of a loop, the one just passed is
always one ahead. Losers are let in at random now and then, one in 32 of those not used again,
one in 128 of the frequent: else main could be held by entries nobody asks for any more, or by
those whose estimates somebody raises with colliding keys.

The evicted are remembered by hash in a table of one slot per entry of capacity, each taking the
slot of whoever had it: a memory of about ``capacity`` evictions at eight bytes each.
"""

from __future__ import annotations

from array import array
from collections import OrderedDict
from collections.abc import Callable, Hashable
from enum import Enum
from random import Random
from typing import TypeAlias

from forze.application.integrations.document.l1.sketch import FrequencySketch

Entry: TypeAlias = tuple[object, float]
"""A value, and the clock's reading from which on it is dead."""

_PROTECTED_SHARE = 0.8
_MOVES_PER_ADMISSION = 4
_LEAD = 1
_WARM = 6


class Policy(Enum):
    """What decides who stays."""

    RECENCY = "recency"
    REUSE = "reuse"
    FREQUENCY = "frequency"
    UNDECIDED = "undecided"


_WINDOW_SHARE = {
    Policy.RECENCY: 1.0,
    Policy.REUSE: 0.1,
    Policy.FREQUENCY: 0.01,
    Policy.UNDECIDED: 0.1,
}
_LUCK = {
    Policy.RECENCY: 0.0,
    Policy.REUSE: 1 / 32,
    Policy.FREQUENCY: 1 / 128,
    Policy.UNDECIDED: 1 / 2,
}


class Segments:
    """At most ``capacity`` entries by key, in the order a policy gives them; every call is O(1).

    ``hash_of`` gives the hash of a key that is to be compared or remembered.
    """

    __slots__ = (
        "_by_recency",
        "_by_reuse",
        "_capacity",
        "_evicted",
        "_hash_of",
        "_luck",
        "_probation",
        "_protected",
        "_protected_room",
        "_random",
        "_reused",
        "_sketch",
        "_window",
        "_window_room",
    )

    def __init__(
        self,
        capacity: int,
        policy: Policy,
        sketch: FrequencySketch,
        hash_of: Callable[[Hashable], int],
        random: Random,
    ) -> None:
        self._capacity = capacity
        self._sketch = sketch
        self._hash_of = hash_of
        self._random = random
        self._evicted = array("q", bytes(8 * capacity))
        self._reused: set[Hashable] = set()
        self._window: OrderedDict[Hashable, Entry] = OrderedDict()
        self._probation: OrderedDict[Hashable, Entry] = OrderedDict()
        self._protected: OrderedDict[Hashable, Entry] = OrderedDict()
        self.follow(policy)

    def __len__(self) -> int:
        return len(self._window) + len(self._probation) + len(self._protected)

    def follow(self, policy: Policy) -> None:
        """Decide by ``policy`` from now on."""
        self._by_recency = policy is Policy.RECENCY
        self._luck = _LUCK[policy]
        self._by_reuse = policy in (Policy.REUSE, Policy.UNDECIDED)
        self._window_room = max(1, int(self._capacity * _WINDOW_SHARE[policy]))
        self._protected_room = int((self._capacity - self._window_room) * _PROTECTED_SHARE)
        if not self._by_reuse:
            self._reused.clear()

    def use(self, key: Hashable) -> Entry | None:
        """The entry of ``key``, moved to where a use of it puts it."""
        entry = self._protected.get(key)
        if entry is not None:
            if self._by_recency:
                self._window[key] = self._protected.pop(key)
            else:
                self._protected.move_to_end(key)
            return entry
        entry = self._window.get(key)
        if entry is not None:
            self._window.move_to_end(key)
            if self._by_reuse:
                self._reused.add(key)
            return entry
        if key in self._probation:
            entry = self._probation.pop(key)
            self._promote(key, entry)
        return entry

    def _promote(self, key: Hashable, entry: Entry) -> None:
        """Put an entry used while on probation where it is safer."""
        if self._by_recency:
            self._window[key] = entry
            return
        self._protected[key] = entry
        surplus = len(self._protected) - self._protected_room
        for _ in range(min(surplus, _MOVES_PER_ADMISSION)):
            key, entry = self._protected.popitem(last=False)
            self._probation[key] = entry

    def replace(self, key: Hashable, entry: Entry) -> bool:
        """Give ``key`` another entry in its place; False where it has none."""
        for segment in (self._protected, self._window, self._probation):
            if key in segment:
                segment[key] = entry
                return True
        return False

    def remove(self, key: Hashable) -> None:
        """Forget ``key``."""
        for segment in (self._protected, self._window, self._probation):
            if key in segment:
                del segment[key]
                self._reused.discard(key)
                return

    def clear(self) -> None:
        """Forget every entry."""
        for segment in (self._protected, self._window, self._probation):
            segment.clear()
        self._reused.clear()

    def admit(self, key: Hashable, seen: int, entry: Entry, now: float) -> bool:
        """Add ``key``, which is not there and hashes to ``seen``; whether another went for it."""
        window = self._window
        main = len(self._probation) + len(self._protected)
        full = len(window) + main >= self._capacity
        if self._by_reuse and main and self._evicted[seen % self._capacity] == seen:
            if full:
                self._evict_main()
            self._promote(key, entry)
            return full
        window[key] = entry
        surplus = len(window) - self._window_room
        if surplus == 1:
            self._let_go(full, now)
            return full
        if surplus > 1:
            self._shrink_window(surplus)
        if full:
            self._evict_main()
        return full

    def _shrink_window(self, surplus: int) -> None:
        """After a change of policy: bring the window nearer to its room."""
        for _ in range(min(surplus, _MOVES_PER_ADMISSION)):
            key, entry = self._window.popitem(last=False)
            self._probation[key] = entry
            self._reused.discard(key)

    def _evict_main(self) -> None:
        (self._probation or self._protected).popitem(last=False)

    def _let_go(self, full: bool, now: float) -> None:
        """Take the oldest out of the window, and into main if there is room or it is worth it."""
        key, entry = self._window.popitem(last=False)
        if not full:
            self._probation[key] = entry
            self._reused.discard(key)
        elif self._belongs_in_main(key, now):
            self._evict_main()
            self._probation[key] = entry
        elif self._by_reuse:
            seen = self._hash_of(key)
            self._evicted[seen % self._capacity] = seen

    def _belongs_in_main(self, key: Hashable, now: float) -> bool:
        """Whether ``key`` is worth more than the entry main would evict for it."""
        reused = key in self._reused
        if reused:
            self._reused.remove(key)
        main = self._probation or self._protected
        if not main:
            return False
        victim = next(iter(main))
        if reused or main[victim][1] <= now:
            return True
        if self._by_reuse:
            return self._random.random() < self._luck
        mine = self._sketch.estimate(self._hash_of(key))
        if mine > self._sketch.estimate(self._hash_of(victim)) + _LEAD:
            return True
        return mine >= _WARM and self._random.random() < self._luck
