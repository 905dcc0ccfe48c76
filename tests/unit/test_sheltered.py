"""Work that goes on when its caller is cancelled: the end of every write."""

from __future__ import annotations

import asyncio
import gc
from datetime import timedelta

import pytest

from forze.application.contracts.deps import sheltered
from forze.application.execution import ExecutionContext
from forze_memory import MemoryDepsModule


async def test_result_and_error_reach_the_caller() -> None:
    """Both come as the work gave them, and an error leaves nothing for the collector."""
    ctx = ExecutionContext(MemoryDepsModule()())

    async def one() -> int:
        return 1

    async def none() -> int:
        raise LookupError

    assert await sheltered(ctx, one(), name="one") == 1
    gc.collect()
    gc.disable()
    try:
        with pytest.raises(LookupError):
            await sheltered(ctx, none(), name="none")
    finally:
        await ctx.close(timedelta(seconds=1))
        gc.enable()
    assert not any(isinstance(each, asyncio.Future) for each in _collected())


async def test_the_work_ends_without_its_caller() -> None:
    """A cancelled caller leaves at once; the work runs on, and nobody hears how it ended."""
    ctx, go, ended = ExecutionContext(MemoryDepsModule()()), asyncio.Event(), []

    async def work(fails: bool) -> None:
        await go.wait()
        ended.append(fails)
        if fails:
            raise LookupError

    callers = [
        asyncio.create_task(sheltered(ctx, work(fails), name="work")) for fails in (False, True)
    ]
    await asyncio.sleep(0)
    for caller in callers:
        caller.cancel()
        with pytest.raises(asyncio.CancelledError):
            await caller
    assert not ended
    go.set()
    await ctx.close(timedelta(seconds=1))
    assert ended == [False, True]


async def test_cancelled_work_cancels_its_caller() -> None:
    """What shutdown cuts off does not leave its caller waiting."""
    ctx = ExecutionContext(MemoryDepsModule()())
    caller = asyncio.create_task(sheltered(ctx, asyncio.Event().wait(), name="work"))
    await asyncio.sleep(0)
    await ctx.close(timedelta(milliseconds=1))
    with pytest.raises(asyncio.CancelledError):
        async with asyncio.timeout(5):
            await caller


def _collected() -> list[object]:
    """What only the collector could free."""
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        gc.collect()
        return gc.garbage[:]
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
