"""In-process caches of others over an access trace: theine, cachebox, and libCacheSim's policies.

A trace comes as a file of 64-bit integers, in the machine's order. As everywhere in this
comparison, an access is a read, and where it misses a store.
"""

from __future__ import annotations

import importlib
import time
from array import array
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

Replay = Callable[[Any, Sequence[int], int], int]
"""The package, accesses and a capacity, to the number of hits."""


def theine(module: Any, trace: Sequence[int], capacity: int) -> int:
    """W-TinyLFU with a window that adapts."""
    cache = module.Cache(capacity)
    hits = 0
    for key in trace:
        if cache.get(key)[1]:
            hits += 1
        else:
            cache.set(key, key)
    cache.close()
    return hits


def cachebox(module: Any, trace: Sequence[int], capacity: int) -> int:
    """Least frequently used."""
    cache = module.LFUCache(capacity)
    hits = 0
    for key in trace:
        if cache.get(key) is not None:
            hits += 1
        else:
            cache[key] = key + 1
    return hits


def simulated(kind: str) -> Replay:
    """A policy of libCacheSim, which is a simulator and keeps no values."""

    def replay(module: Any, trace: Sequence[int], capacity: int) -> int:
        cache, request, hits = getattr(module, kind)(capacity), module.Request(), 0
        request.obj_size = 1
        numbers: dict[int, int] = {}
        for key in trace:
            request.obj_id = numbers.setdefault(key, len(numbers) + 1)
            hits += bool(cache.get(request))
        return hits

    return replay


def read(path: str) -> list[int]:
    """The accesses of a trace."""
    return array("q", Path(path).read_bytes()).tolist()


POLICIES: dict[str, dict[str, Replay]] = {
    "theine": {"theine": theine},
    "cachebox": {"cachebox LFU": cachebox},
    "libcachesim": {"ARC": simulated("ARC"), "LIRS": simulated("LIRS")},
}


class Subject:
    """Opened with ``package``, one of ``POLICIES``."""

    def __init__(self, package: str) -> None:
        self._module = importlib.import_module(package)
        self._policies = POLICIES[package]

    @classmethod
    async def open(cls, settings: dict[str, Any]) -> Subject:
        """Import the package."""
        return cls(settings["package"])

    async def close(self) -> None:
        """Nothing is held."""

    async def do_replay(self, path: str, capacity: int) -> dict[str, dict[str, float]]:
        """By policy: hits per access, and processor time per access in microseconds."""
        trace = read(path)
        found = {}
        for name, replay in self._policies.items():
            began = time.process_time()
            hits = replay(self._module, trace, capacity)
            spent = (time.process_time() - began) / len(trace) * 1e6
            found[name] = {"ratio": hits / len(trace), "cpu": spent}
        return found
