"""Policies that replay a trace: our store, and textbook ones that it is compared with.

Every policy does the same: a read, and where it misses a store. What the packages of others do
is in ``bench/peers/subjects/replay.py``, since each has an environment of its own.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from datetime import timedelta
from random import Random
from typing import Any, TypeAlias

from forze.application.integrations.document import LruL1Store, TinyLfuL1Store
from forze.application.integrations.document.l1.segments import Policy, Segments
from forze.application.integrations.document.l1.sketch import FrequencySketch

Replay: TypeAlias = Callable[[Sequence[int], int], float]
"""Accesses and a capacity, to hits per access."""

DAY = timedelta(days=1)


def replay_store(store: Any, trace: Sequence[int]) -> float:
    """Replay through ``get`` and ``set``."""
    get, put = store.get, store.set
    for key in trace:
        if get(key) is None:
            put(key, key)
    return float(store.stats().hit_ratio)


def lru_store(capacity: int) -> LruL1Store:
    """Ours that keeps what was used last."""
    return LruL1Store(capacity=capacity, ttl=DAY)


def tiny_lfu_store(capacity: int, seed: int = 1) -> TinyLfuL1Store:
    """Ours that chooses its policy."""
    return TinyLfuL1Store(capacity=capacity, ttl=DAY, random=Random(seed))


def ours(trace: Sequence[int], capacity: int, seed: int = 1) -> float:
    """Replay through :func:`tiny_lfu_store`."""
    return replay_store(tiny_lfu_store(capacity, seed), trace)


def lru(trace: Sequence[int], capacity: int) -> float:
    """Least recently used, inline on an ordered dict: the cost the others are compared with."""
    kept: OrderedDict[int, int] = OrderedDict()
    hits = 0
    for key in trace:
        if kept.get(key) is not None:
            kept.move_to_end(key)
            hits += 1
        else:
            kept[key] = 1
            if len(kept) > capacity:
                kept.popitem(last=False)
    return hits / len(trace)


def fixed_window(trace: Sequence[int], capacity: int) -> float:
    """W-TinyLFU with a window of one hundredth."""
    sketch = FrequencySketch(capacity)
    kept = Segments(capacity, Policy.FREQUENCY, sketch, _scattered, Random(1))
    hits = 0
    for key in trace:
        seen = _scattered(key)
        sketch.add(seen)
        sketch.age(1)
        if kept.use(key) is not None:
            hits += 1
        else:
            kept.admit(key, seen, (key, 1.0), 0.0)
    return hits / len(trace)


def _scattered(key: object) -> int:
    return hash((91, key))


def s3_fifo(trace: Sequence[int], capacity: int) -> float:
    """S3-FIFO of Yang et al.: a tenth small, the rest main, ghosts for as many as main holds."""
    small: OrderedDict[int, None] = OrderedDict()
    main: OrderedDict[int, None] = OrderedDict()
    ghosts: OrderedDict[int, None] = OrderedDict()
    uses: dict[int, int] = {}
    room = max(1, capacity // 10)
    hits = 0
    for key in trace:
        if key in uses:
            uses[key] = min(uses[key] + 1, 3)
            hits += 1
            continue
        while len(uses) >= capacity:
            if len(small) >= room or not main:
                old, _ = small.popitem(last=False)
                if uses[old] > 1:
                    main[old] = None
                    uses[old] = 0
                    continue
                ghosts[old] = None
                if len(ghosts) > capacity - room:
                    ghosts.popitem(last=False)
            else:
                old, _ = main.popitem(last=False)
                if uses[old]:
                    uses[old] -= 1
                    main[old] = None
                    continue
            del uses[old]
        (main if key in ghosts else small)[key] = None
        ghosts.pop(key, None)
        uses[key] = 0
    return hits / len(trace)


def two_queue(trace: Sequence[int], capacity: int) -> float:
    """2Q of Johnson and Shasha: a quarter first in first out, ghosts for half the capacity."""
    fresh: OrderedDict[int, None] = OrderedDict()
    main: OrderedDict[int, None] = OrderedDict()
    ghosts: OrderedDict[int, None] = OrderedDict()
    room = max(1, capacity // 4)
    hits = 0
    for key in trace:
        if key in main:
            main.move_to_end(key)
            hits += 1
            continue
        if key in fresh:
            hits += 1
            continue
        if len(fresh) + len(main) >= capacity:
            if len(fresh) > room or not main:
                ghosts[fresh.popitem(last=False)[0]] = None
                if len(ghosts) > capacity // 2:
                    ghosts.popitem(last=False)
            else:
                main.popitem(last=False)
        (main if key in ghosts else fresh)[key] = None
        ghosts.pop(key, None)
    return hits / len(trace)


TEXTBOOK: dict[str, Replay] = {
    "LRU": lru,
    "fixed window": fixed_window,
    "2Q": two_queue,
    "S3-FIFO": s3_fifo,
}
