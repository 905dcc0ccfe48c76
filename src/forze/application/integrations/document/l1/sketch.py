"""How often was this hash seen lately: a count-min sketch that forgets.

Two counters per hash, of which only the lower is raised, and the lower is the answer (Cormode
and Muthukrishnan, Journal of Algorithms 2005, with conservative update). They stop at 15, and
all are halved once per period of ten accesses per entry of capacity (Einziger, Friedman, Manes:
TinyLFU, ACM Transactions on Storage 2017).

A counter takes a byte where four bits would do: Python reads a byte in one operation, and halves
a whole table in one ``translate``. With 12 to 24 counters per entry, collisions are rare enough
for two rows in one table. A dict of exact counts costs a hundred bytes for each key of the
period, most of which are not in the cache.
"""

from __future__ import annotations

_CEILING = 15
_HALVES = bytes(count >> 1 for count in range(256))
_COUNTERS_PER_ENTRY = 12
_ACCESSES_PER_ENTRY = 10
_ROW_BITS = 24


class FrequencySketch:
    """Counts hashes, of which it uses the low 48 bits; sized for a cache of ``capacity``."""

    __slots__ = ("_counts", "_left", "_mask", "_period")

    def __init__(self, capacity: int) -> None:
        bits = (_COUNTERS_PER_ENTRY * max(capacity, 8) - 1).bit_length()
        size = 1 << min(bits, _ROW_BITS)
        self._counts = bytearray(size)
        self._mask = size - 1
        self._period = self._left = _ACCESSES_PER_ENTRY * max(capacity, 8)

    def add(self, seen: int) -> None:
        """Count one access."""
        counts = self._counts
        mask = self._mask
        one = seen & mask
        two = seen >> _ROW_BITS & mask
        first = counts[one]
        second = counts[two]
        if first > second:
            counts[two] = second + 1
        elif first < _CEILING:
            counts[one] = first + 1
            if first == second:
                counts[two] = first + 1
        self._left = left = self._left - 1
        if not left:
            self._counts = counts.translate(_HALVES)
            self._left = self._period // 2

    def estimate(self, seen: int) -> int:
        """How often ``seen`` was counted lately, 0 to 15; seldom too high, never too low."""
        counts = self._counts
        first = counts[seen & self._mask]
        second = counts[seen >> _ROW_BITS & self._mask]
        return first if first < second else second
