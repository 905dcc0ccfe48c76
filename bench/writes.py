"""A cached update against an uncached one, one caller, with the disk's own time beside them."""

from __future__ import annotations

import os
import time
from collections.abc import Awaitable, Callable
from statistics import median
from typing import Any

from bench.workload import CACHED, UNCACHED, ProductRead, ProductUpdate, Servers, wired
from forze.application.execution import ExecutionContext

Update = Callable[[ExecutionContext, Any, ProductRead, int], Awaitable[ProductRead]]


async def measure(at: Servers, pairs: int) -> dict[str, dict[str, float]]:
    """Median microseconds per update, ``cached`` and ``uncached``, in turns, by kind of commit."""
    async with wired(at) as ctx:
        return {
            "autocommit": await _in_turns(ctx, _autocommit, pairs),
            "explicit transaction": await _in_turns(ctx, _explicit, pairs),
        }


async def _in_turns(ctx: ExecutionContext, update: Update, pairs: int) -> dict[str, float]:
    times: dict[str, list[float]] = {"cached": [], "uncached": []}
    documents = {
        name: (await ctx.document.query(spec).find_many(limit=1)).items[0]
        for name, spec in (("cached", CACHED), ("uncached", UNCACHED))
    }
    for number in range(pairs + 10):
        turns = (("cached", CACHED), ("uncached", UNCACHED))
        for name, spec in turns if number % 2 else reversed(turns):
            await ctx.document.query(spec).get(documents[name].id)  # so that there is something
            began = time.perf_counter()
            documents[name] = await update(ctx, spec, documents[name], 1_000_000 + number)
            if number >= 10:
                times[name].append((time.perf_counter() - began) * 1e6)
    return {name: median(each) for name, each in times.items()}


async def _autocommit(
    ctx: ExecutionContext, spec: Any, document: ProductRead, price: int
) -> ProductRead:
    command = ctx.document.command(spec)
    return await command.update(document.id, document.rev, ProductUpdate(price=price))  # type: ignore[no-any-return]


async def _explicit(
    ctx: ExecutionContext, spec: Any, document: ProductRead, price: int
) -> ProductRead:
    async with ctx.transaction(spec.name):
        return await _autocommit(ctx, spec, document, price)


def disk_commit_us(at: Servers) -> float:
    """Median microseconds the disk takes to make 8 KiB durable, in PostgreSQL's directory."""
    path = at.postgres.directory / "fdatasync"
    descriptor = os.open(path, os.O_CREAT | os.O_WRONLY, 0o600)
    times = []
    try:
        for _ in range(200):
            began = time.perf_counter()
            os.pwrite(descriptor, b"x" * 8192, 0)
            os.fdatasync(descriptor)
            times.append((time.perf_counter() - began) * 1e6)
    finally:
        os.close(descriptor)
        path.unlink()
    return median(times)
