"""The accesses that the in-process stores are shown: published traces, and ones made here.

A trace is a list of keys (whole numbers), one for each access, in order.
"""

from __future__ import annotations

import gzip
import lzma
from array import array
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from random import Random
from typing import Any, NamedTuple


class Trace(NamedTuple):
    """Accesses, and the capacities (in entries) they are replayed at."""

    name: str
    family: str
    accesses: list[int]
    capacities: Sequence[int]


FAMILIES = {
    "web": ("web07", "web12"),
    "ORM, OLTP": ("orm-night", "oltp"),
    "ledger": ("trace_vaultservice",),
    "loops, scans": ("loop", "cs", "gli", "ps", "cpp"),
    "mixed": ("multi1", "multi2", "multi3", "2_pools"),
    "zigzag": ("zigzag",),
}
CAPACITIES = {
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


def published(directory: Path, limit: int) -> tuple[list[Trace], list[str]]:
    """The first ``limit`` accesses of each published trace in ``directory``, and which ones are
    not there."""
    found: list[Trace] = []
    absent: list[str] = []
    for family, names in FAMILIES.items():
        for name in names:
            files = sorted(directory.glob(f"{name}.*z"))
            if files:
                found.append(Trace(name, family, load(files[0], limit), CAPACITIES[name]))
            else:
                absent.append(name)
    return found, absent


def made(limit: int) -> list[Trace]:
    """``limit`` accesses of each of ``SYNTHETIC``."""
    return [Trace(name, name, synthetic(name, limit), (200, 500, 1000)) for name in SYNTHETIC]
