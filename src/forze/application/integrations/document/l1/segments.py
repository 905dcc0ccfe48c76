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

    ``hash_of`` gives the hash of a key that is to be compared or remembered: kept beside every
    entry it would cost forty bytes.
    """

    __slots__ = (
        "_by_recency",
        "_by_reuse",
        "_capacity",
        "_estimate",
        "_evicted",
        "_free",
        "_hash_of",
        "_luck",
        "_probation",
        "_protected",
        "_protected_room",
        "_random",
        "_reused",
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
        self._capacity = self._free = capacity
        self._estimate = sketch.estimate
        self._hash_of = hash_of
        self._random = random.random
        self._evicted = array("q", bytes(8 * capacity))
        self._reused: set[Hashable] = set()
        self._window: OrderedDict[Hashable, Entry] = OrderedDict()
        self._probation: OrderedDict[Hashable, Entry] = OrderedDict()
        self._protected: OrderedDict[Hashable, Entry] = OrderedDict()
        self.follow(policy)

    def __len__(self) -> int:
        return self._capacity - self._free

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
        window = self._window
        if key in window:
            window.move_to_end(key)
            if self._by_reuse:
                self._reused.add(key)
            return window[key]
        protected = self._protected
        if key in protected:
            entry = protected[key]
            if self._by_recency:
                del protected[key]
                window[key] = entry
            else:
                protected.move_to_end(key)
            return entry
        if key in self._probation:
            entry = self._probation.pop(key)
            self._promote(key, entry)
            return entry
        return None

    def look(self, key: Hashable) -> Entry | None:
        """The entry of ``key``, left where it is."""
        for segment in (self._window, self._protected, self._probation):
            if key in segment:
                return segment[key]
        return None

    def _promote(self, key: Hashable, entry: Entry) -> None:
        """Put an entry used while on probation where it is safer."""
        if self._by_recency:
            self._window[key] = entry
            return
        protected = self._protected
        protected[key] = entry
        if len(protected) > self._protected_room:
            key, entry = protected.popitem(False)
            self._probation[key] = entry
            if len(protected) > self._protected_room:
                key, entry = protected.popitem(False)
                self._probation[key] = entry

    def replace(self, key: Hashable, entry: Entry) -> bool:
        """Give ``key`` another entry in its place; False where it has none."""
        for segment in (self._window, self._protected, self._probation):
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
                self._free += 1
                return

    def clear(self) -> None:
        """Forget every entry."""
        for segment in (self._protected, self._window, self._probation):
            segment.clear()
        self._reused.clear()
        self._free = self._capacity

    def admit(self, key: Hashable, seen: int, entry: Entry, now: float) -> bool:
        """Add ``key``, which is not there and hashes to ``seen``; whether another went for it."""
        full = not self._free
        if not full:
            self._free -= 1
        if self._by_reuse and self._evicted[seen % self._capacity] == seen and self._main():
            if full:
                self._main().popitem(False)
            self._promote(key, entry)
            return full
        window = self._window
        window[key] = entry
        surplus = len(window) - self._window_room
        if surplus == 1:
            key, entry = window.popitem(False)
            reused = key in self._reused
            if reused:
                self._reused.remove(key)
            if not full or self._takes_place(key, reused, now):
                self._probation[key] = entry
        else:
            if surplus > 1:
                self._shrink_window(surplus)
            if full:
                self._main().popitem(False)
        return full

    def _main(self) -> OrderedDict[Hashable, Entry]:
        """Where main evicts from: empty if main is."""
        return self._probation or self._protected

    def _shrink_window(self, surplus: int) -> None:
        """After a change of policy: bring the window nearer to its room."""
        for _ in range(min(surplus, _MOVES_PER_ADMISSION)):
            key, entry = self._window.popitem(False)
            self._probation[key] = entry
            self._reused.discard(key)

    def _takes_place(self, key: Hashable, reused: bool, now: float) -> bool:
        """Evict from main for ``key``, which leaves the window, if it is worth more."""
        main = self._probation or self._protected
        if not main:
            return False
        victim = next(iter(main))
        if not reused and main[victim][1] > now and not self._is_worth_more(key, victim):
            return False
        del main[victim]
        return True

    def _is_worth_more(self, key: Hashable, rival: Hashable) -> bool:
        """Whether the policy, or luck, prefers ``key`` to ``rival``."""
        seen = self._hash_of(key)
        if self._by_reuse:
            if self._random() < self._luck:
                return True
            self._evicted[seen % self._capacity] = seen
            return False
        mine = self._estimate(seen)
        if mine > _LEAD and mine > self._estimate(self._hash_of(rival)) + _LEAD:
            return True
        return mine >= _WARM and self._random() < self._luck
