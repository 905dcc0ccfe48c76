"""An even load on one key, for subjects whose entry expires under it. The standard library only."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from typing import Any

from work import SEED


async def steady(
    read: Callable[[], Awaitable[Any]], callers: int, pause: float, seconds: float, late: float
) -> dict[str, int]:
    """``callers`` tasks read, sleep for about ``pause`` seconds, and read again.

    ``reads`` are how many were read, ``late`` how many of them took longer than ``late`` seconds.
    """
    clock, dice = time.perf_counter, random.Random(SEED)
    until, found = clock() + seconds, {"reads": 0, "late": 0}

    async def caller() -> None:
        await asyncio.sleep(pause * dice.random())
        while (asked := clock()) < until:
            await read()
            found["reads"] += 1
            found["late"] += clock() - asked > late
            await asyncio.sleep(pause * (0.5 + dice.random()))

    await asyncio.gather(*(caller() for _ in range(callers)))
    return found
