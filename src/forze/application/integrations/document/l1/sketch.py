"""How often was this hash seen lately: a table of small counters that forgets.

A hash raises the one counter it falls on, up to 15; all are halved once per period of ten
accesses per entry of capacity (Einziger, Friedman, Manes: TinyLFU, ACM Transactions on Storage
2017). With 24 to 48 counters per entry, few hashes of a period share one, so the table does
without the further rows of a count-min sketch (Cormode and Muthukrishnan, Journal of Algorithms
2005), each of which costs as much again at every access.

A counter takes a byte where four bits would do: Python reads a byte in one operation, and halves
a whole table in one ``translate``. A dict of exact counts costs a hundred bytes for each key of
the period, most of which are not in the cache.
"""

from __future__ import annotations

CEILING = 15
_HALVES = bytes(count >> 1 for count in range(256))
_COUNTERS_PER_ENTRY = 24
_ACCESSES_PER_ENTRY = 10


class FrequencySketch:
    """Counts hashes, by their lowest bits; sized for a cache of ``capacity``.

    ``counts`` and ``mask`` are for the one caller that writes ``add`` out to save the call;
    ``counts`` is the same object for ever.
    """

    __slots__ = ("_left", "_period", "counts", "mask")

    def __init__(self, capacity: int) -> None:
        size = 1 << (_COUNTERS_PER_ENTRY * max(capacity, 8) - 1).bit_length()
        self.counts = bytearray(size)
        self.mask = size - 1
        self._period = self._left = _ACCESSES_PER_ENTRY * max(capacity, 8)

    def add(self, seen: int) -> None:
        """Count one access."""
        place = seen & self.mask
        count = self.counts[place]
        if count < CEILING:
            self.counts[place] = count + 1

    def age(self, accesses: int) -> None:
        """Let as much time pass as so many accesses take."""
        self._left -= accesses
        if self._left <= 0:
            self.counts[:] = self.counts.translate(_HALVES)
            self._left = self._period // 2

    def estimate(self, seen: int) -> int:
        """How often ``seen`` was counted lately, 0 to 15; seldom too high, never too low."""
        return self.counts[seen & self.mask]
