"""``python -m bench hit-ratio``: what the L1 stores keep, beside other policies, and cost.

Every policy replays the same accesses: a read, and where it misses a store. *Regret* is how many
points of hit ratio a policy is below the best of those run in that cell; *shortfall* how many it
is below LRU. Of our store, regret is the mean over the seeds and shortfall the worst of them; at
the end each figure stands beside its target. The published traces are read from ``--traces DIR``
(or ``FORZE_TRACES``, or ``bench/traces``); without them, synthetic ones are made. Peers that are
not installed are named.
"""

from __future__ import annotations

import argparse
import gzip
import importlib
import lzma
import os
import time
import tracemalloc
from array import array
from collections import OrderedDict
from collections.abc import Callable, Sequence
from datetime import timedelta
from functools import partial
from itertools import accumulate
from pathlib import Path
from random import Random
from typing import Any

from forze.application.integrations.document import LruL1Store, TinyLfuL1Store
from forze.application.integrations.document.l1.segments import Policy, Segments
from forze.application.integrations.document.l1.sketch import FrequencySketch

Replay = Callable[[Sequence[int], int], float]
"""Accesses and a capacity, to hits per access."""

OURS = "TinyLfuL1Store"
LIMIT = 100_000
SEEDS = 3
TARGETS = {
    "mean regret, points": 2.0,
    "worst shortfall under LRU, points": 1.0,
    "LruL1Store, us per access": 0.4,
    "TinyLfuL1Store, us per access": 1.5,
    "LruL1Store, bytes per entry": 200.0,
    "TinyLfuL1Store, bytes per entry": 300.0,
}
DAY = timedelta(days=1)
CELLS = {
    "loop": (250, 500, 1000),
    "multi1": (250, 500, 1000),
    "multi2": (500, 1000, 2000),
    "multi3": (500, 1000, 2000),
    "2_pools": (100, 200, 400),
    "cs": (100, 250, 500, 1000),
    "cpp": (20, 50, 100, 200, 500),
    "gli": (250, 500, 1000, 2000),
    "ps": (250, 500, 1000, 2000),
    "zigzag": (250, 500, 1000, 1500),
    "oltp": (250, 500, 1000, 2000),
    "web07": (250, 500, 1000, 2000),
    "web12": (250, 500, 1000, 2000),
    "orm-night": (250, 1000, 5000),
    "trace_vaultservice": (512, 2048, 8192),
}
SYNTHETIC = ("zipf 0.7", "zipf 1.1", "zipf and scan", "loop of 1300", "drift", "walk", "jumps")


def zipf(random: Random, keys: int, alpha: float, accesses: int) -> list[int]:
    """Independent accesses; the key of rank r has weight r**-alpha."""
    weights = list(accumulate(1 / rank**alpha for rank in range(1, keys + 1)))
    return random.choices(range(keys), cum_weights=weights, k=accesses)


def scanned(random: Random, accesses: int) -> list[int]:
    """A hot set, and in every third stretch of 5000 a new key between any two of its reads."""
    trace: list[int] = []
    for place, key in enumerate(zipf(random, 5_000, 0.9, accesses)):
        trace.append(key)
        if place // 5_000 % 3 == 1:
            trace.append(10_000 + place)
    return trace[:accesses]


def synthetic(name: str, accesses: int) -> list[int]:
    """One of ``SYNTHETIC``, the same every time."""
    random = Random(name)
    if name.startswith(("zipf 0", "zipf 1")):
        return zipf(random, 20_000, float(name.split()[1]), accesses)
    if name == "zipf and scan":
        return scanned(random, accesses)
    if name.startswith("loop"):
        return [place % 1_300 for place in range(accesses)]
    if name == "drift":
        return [key + place // 20 for place, key in enumerate(zipf(random, 20_000, 0.9, accesses))]
    steps = 30 if name == "walk" else 300
    return list(accumulate(random.randint(-steps, steps) for _ in range(accesses)))


def load(file: Path, limit: int) -> list[int]:
    """The first ``limit`` accesses of a published trace; the format follows from the name."""
    opened: Any = lzma if file.suffix == ".xz" else gzip
    if file.suffix == ".xz" or "vaultservice" in file.name:
        with opened.open(file) as stream:
            numbers = array("i" if file.suffix == ".xz" else "q", stream.read())
        numbers.byteswap()
        return numbers.tolist()[:limit]
    trace: list[int] = []
    with opened.open(file, "rt") as lines:
        for line in lines:
            fields = line.split()
            if file.name.startswith("oltp") and len(fields) > 1:
                trace.extend(range(int(fields[0]), int(fields[0]) + int(fields[1])))
            elif fields and fields[0] != "*":
                trace.append(int(fields[0]))
            if len(trace) >= limit:
                break
    return trace[:limit]


def replay_store(store: Any, trace: Sequence[int]) -> float:
    """Replay through ``get`` and ``set``."""
    get, put = store.get, store.set
    for key in trace:
        if get(key) is None:
            put(key, key)
    return float(store.stats().hit_ratio)


def ours(trace: Sequence[int], capacity: int, seed: int = 1) -> float:
    """The store that chooses its policy."""
    store = TinyLfuL1Store(capacity=capacity, ttl=DAY, random=Random(seed))
    return replay_store(store, trace)


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


def _theine(module: Any) -> dict[str, Replay]:
    def replay(trace: Sequence[int], capacity: int) -> float:
        cache = module.Cache(capacity)
        hits = 0
        for key in trace:
            if cache.get(key)[1]:
                hits += 1
            else:
                cache.set(key, key)
        cache.close()
        return hits / len(trace)

    return {"theine": replay}


def _cachebox(module: Any) -> dict[str, Replay]:
    def replay(trace: Sequence[int], capacity: int) -> float:
        cache = module.LFUCache(capacity)
        hits = 0
        for key in trace:
            if cache.get(key) is not None:
                hits += 1
            else:
                cache[key] = key + 1
        return hits / len(trace)

    return {"cachebox LFU": replay}


def _libcachesim(module: Any) -> dict[str, Replay]:
    def of(kind: Any) -> Replay:
        def replay(trace: Sequence[int], capacity: int) -> float:
            cache, request, hits = kind(capacity), module.Request(), 0
            request.obj_size = 1
            numbers: dict[int, int] = {}
            for key in trace:
                request.obj_id = numbers.setdefault(key, len(numbers) + 1)
                hits += bool(cache.get(request))
            return hits / len(trace)

        return replay

    return {"ARC": of(module.ARC), "LIRS": of(module.LIRS)}


PEERS: dict[str, Callable[[Any], dict[str, Replay]]] = {
    "theine": _theine,
    "cachebox": _cachebox,
    "libcachesim": _libcachesim,
}


def policies() -> dict[str, Replay]:
    """Ours first; peers where they are installed, and a line for each that is not."""
    found: dict[str, Replay] = {
        OURS: ours,
        "LRU": lru,
        "fixed window": fixed_window,
        "2Q": two_queue,
        "S3-FIFO": s3_fifo,
    }
    for name, adapter in PEERS.items():
        try:
            found |= adapter(importlib.import_module(name))
        except ImportError:
            print(f"not installed, so not compared: {name}")
    return found


def _traces(directory: Path | None, limit: int) -> list[tuple[str, list[int], Sequence[int]]]:
    if directory is None:
        print("no traces given: synthetic ones")
        return [(name, synthetic(name, limit), (200, 500, 1000)) for name in SYNTHETIC]
    found: list[tuple[str, list[int], Sequence[int]]] = []
    for name, capacities in CELLS.items():
        files = sorted(directory.glob(f"{name}.*z"))
        if files:
            found.append((name, load(files[0], limit), capacities))
        else:
            print(f"no such trace, so not replayed: {name}")
    return found


def _print_cells(
    cells: dict[str, dict[str, float]], lowest: dict[str, float], names: Sequence[str]
) -> dict[str, float]:
    """The table, and of it what has a target; ``lowest`` is our worst seed in each cell."""
    print(f"\n{'hit ratio, % (regret)':<26}" + "".join(f"{name:>16}" for name in names))
    for cell, row in cells.items():
        best = max(row.values())
        figures = (f"{row[name]:.2f} ({best - row[name]:5.2f})" for name in names)
        print(f"{cell:<26}" + "".join(f"{figure:>16}" for figure in figures))
    regrets = {name: [max(row.values()) - row[name] for row in cells.values()] for name in names}
    shortfall = {name: max(row["LRU"] - row[name] for row in cells.values()) for name in names}
    shortfall[OURS] = max(row["LRU"] - lowest[cell] for cell, row in cells.items())
    means = {name: sum(column) / len(column) for name, column in regrets.items()}
    largest = {name: max(column) for name, column in regrets.items()}
    for title, by_name in (
        ("mean regret", means),
        ("max regret", largest),
        ("worst shortfall under LRU", shortfall),
    ):
        print(f"{title:<26}" + "".join(f"{by_name[name]:>16.2f}" for name in names))
    return {
        "mean regret, points": means[OURS],
        "worst shortfall under LRU, points": shortfall[OURS],
    }


def _print_targets(figures: dict[str, float]) -> None:
    print(f"\n{'figure':<36}{'found':>8}{'target':>8}")
    for name, target in TARGETS.items():
        over = figures[name] - target
        verdict = "met" if over <= 0 else f"missed by {over:.2f}"
        print(f"{name:<36}{figures[name]:>8.2f}{target:>8.2f}  {verdict}")


def seconds(work: Callable[[], object]) -> float:
    """CPU time of one call."""
    began = time.process_time()
    work()
    return time.process_time() - began


def costs(traces: Sequence[tuple[str, list[int], Sequence[int]]]) -> dict[str, float]:
    """Microseconds per access, misses and stores included: the mean over the traces."""
    replays: dict[str, Replay] = {
        "OrderedDict inline": lru,
        "LruL1Store": lambda part, capacity: replay_store(
            LruL1Store(capacity=capacity, ttl=DAY), part
        ),
        OURS: ours,
    }
    spent = dict.fromkeys(replays, 0.0)
    for _, trace, capacities in traces:
        part, capacity = trace[:20_000], capacities[len(capacities) // 2]
        taken = dict.fromkeys(replays, float("inf"))
        for _ in range(3):  # in turns, so that a slow moment of the machine is everybody's
            for name, replay in replays.items():
                taken[name] = min(taken[name], seconds(partial(replay, part, capacity)))
        for name, best in taken.items():
            spent[name] += best / len(part) * 1e6 / len(traces)
    return spent


def hit_cost(store: Any) -> float:
    """Microseconds per ``get`` that hits, the loop around it included."""
    keys = [b"%016d" % key for key in range(1_000)]
    for key in keys:
        store.set(key, key)
    get = store.get

    def work() -> None:
        for _ in range(20):
            for key in keys:
                get(key)

    return min(seconds(work) for _ in range(3)) / 20_000 * 1e6


def entry_bytes(make: Callable[[int], Any], capacity: int) -> float:
    """What an entry takes beyond its key and value, in a full store that has seen evictions."""
    keys = [b"%016d" % key for key in range(4 * capacity)]
    order = [keys[key] for key in zipf(Random(3), len(keys), 0.9, 20 * capacity)]
    value = object()
    tracemalloc.start()
    store = make(capacity)
    for key in order:
        if store.get(key) is None:
            store.set(key, value)
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return held / float(store.stats().size)


def _replayed(
    traces: Sequence[tuple[str, list[int], Sequence[int]]], seeds: int
) -> dict[str, float]:
    """Replay every cell, print the tables, and return what has a target."""
    entrants = policies()
    cells: dict[str, dict[str, float]] = {}
    lowest: dict[str, float] = {}
    for name, trace, capacities in traces:
        began = time.monotonic()
        for capacity in capacities:
            cell = f"{name}@{capacity}"
            of_seeds = [100 * ours(trace, capacity, seed) for seed in range(1, seeds + 1)]
            cells[cell] = {OURS: sum(of_seeds) / seeds} | {
                entrant: 100 * replay(trace, capacity)
                for entrant, replay in entrants.items()
                if entrant != OURS
            }
            lowest[cell] = min(of_seeds)
        print(f"{name}: {len(trace)} accesses, {time.monotonic() - began:.0f} s", flush=True)
    return _print_cells(cells, lowest, list(entrants))


def _costs_and_bytes(
    traces: Sequence[tuple[str, list[int], Sequence[int]]],
) -> dict[str, float]:
    """Measure and print what the stores take; returns what has a target."""
    figures: dict[str, float] = {}
    per_access = costs(traces)
    for name, spent in per_access.items():
        ratio = spent / per_access["OrderedDict inline"]
        print(f"{name:<20}{spent:8.2f} us per access{ratio:8.2f}x")
        figures[f"{name}, us per access"] = spent
    kinds: dict[str, Callable[[int], Any]] = {
        "LruL1Store": lambda capacity: LruL1Store(capacity=capacity, ttl=DAY),
        OURS: lambda capacity: TinyLfuL1Store(capacity=capacity, ttl=DAY, random=Random(1)),
    }
    for name, make in kinds.items():
        taken = entry_bytes(make, 10_000)
        print(f"{name:<20}{hit_cost(make(1_024)):8.2f} us per hit{taken:8.0f} bytes per entry")
        figures[f"{name}, bytes per entry"] = taken
    return figures


def run(directory: Path | None, limit: int = LIMIT, seeds: int = SEEDS) -> dict[str, float]:
    """Replay, measure, print, and return what has a target by its name."""
    traces = _traces(directory, limit)
    print(f"the first {limit} accesses of each trace, {OURS} with {seeds} seeds")
    figures = _replayed(traces, seeds)
    scan = scanned(Random(9), limit)
    print(f"\nZipf with scans, 200 entries: LRU {100 * lru(scan, 200):.1f} %,", end=" ")
    print(f"{OURS} {100 * ours(scan, 200):.1f} %")
    figures |= _costs_and_bytes(traces)
    _print_targets(figures)
    return figures


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the arguments and run."""
    parser = argparse.ArgumentParser(prog="python -m bench hit-ratio", description=__doc__)
    default = os.environ.get("FORZE_TRACES") or Path(__file__).parent / "traces"
    parser.add_argument("--traces", type=Path, default=Path(default))
    parser.add_argument("--limit", type=int, default=LIMIT, help="accesses per trace")
    parser.add_argument("--seeds", type=int, default=SEEDS, help=f"of {OURS}")
    options = parser.parse_args(argv)
    run(options.traces if options.traces.is_dir() else None, options.limit, options.seeds)


if __name__ == "__main__":
    main()
