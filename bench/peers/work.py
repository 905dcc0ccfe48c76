"""What subjects share: callers at work for a while, or all at once. The standard library only."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from itertools import accumulate, count
from typing import Any, TypeAlias

ZIPF_EXPONENT = 0.99  # the YCSB default: the hottest of 1,000 keys gets about 13 % of the reads
SEED = 20_260

Read: TypeAlias = Callable[[Any], Awaitable[Any]]
"""Reads the document of a key."""


def zipf(ids: Sequence[Any], size: int) -> list[Any]:
    """``size`` ids, the n-th most popular one drawn in proportion to ``n ** -ZIPF_EXPONENT``."""
    weights = list(accumulate(rank**-ZIPF_EXPONENT for rank in range(1, len(ids) + 1)))
    return random.Random(SEED).choices(ids, cum_weights=weights, k=size)


async def work(read: Read, keys: Sequence[Any], callers: int, seconds: float) -> dict[str, float]:
    """``callers`` tasks read one key after another, each at least eight.

    ``reads`` are how many were read, ``us`` microseconds per read, ``cpu`` those of processor
    time that this process spent on one.
    """
    clock, position, size = time.perf_counter, count(), len(keys)
    until = clock() + seconds

    async def caller() -> int:
        done = 0
        while not done or clock() < until:
            for _ in range(8):
                await read(keys[next(position) % size])
            done += 8
        return done

    began, spent = clock(), time.process_time()
    done = sum(await asyncio.gather(*(caller() for _ in range(callers))))
    return {
        "reads": done,
        "us": (clock() - began) / done * 1e6,
        "cpu": (time.process_time() - spent) / done * 1e6,
    }


async def at_once(read: Read, key: Any, callers: int) -> float:
    """``callers`` tasks read one key at once; milliseconds until all are answered."""
    began = time.perf_counter()
    await asyncio.gather(*(read(key) for _ in range(callers)))
    return (time.perf_counter() - began) * 1e3
