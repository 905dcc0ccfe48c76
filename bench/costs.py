"""What single operations cost: commands per hit, miss and update, batches, resolving a port."""

from __future__ import annotations

import asyncio
import time
from statistics import median
from uuid import UUID

import redis.asyncio

from bench.counting import counted
from bench.workload import CACHED, ProductCreate, ProductUpdate, Servers, wired


async def commands(at: Servers, ids: list[UUID]) -> dict[str, float]:
    """Commands per operation, by the server's count, at 1 and at 32 callers."""
    client = redis.asyncio.Redis.from_url(at.valkey.dsn)
    counts: dict[str, float] = {}
    try:
        async with wired(at) as ctx:
            query, docs = ctx.document.query(CACHED), ctx.document.command(CACHED)
            await query.get_many(ids)
            for callers in (1, 32):
                fresh = await docs.create_many(
                    [ProductCreate(name="n", price=1, description="d") for _ in range(320)]
                )
                for what in ("miss", "hit", "update"):
                    async with counted(client) as sent, asyncio.TaskGroup() as group:
                        for number in range(callers):
                            mine = fresh[number::callers]
                            group.create_task(_each(query, docs, what, mine))
                    counts[f"{what}, {callers} callers"] = sent.scripts / len(fresh)
            async with counted(client) as sent:
                await query.get_many(ids[:100])
            counts["get_many(100), hits"] = float(sent.scripts)
    finally:
        await client.aclose()
    return counts


async def _each(query, docs, what, documents) -> None:  # type: ignore[no-untyped-def]
    for document in documents:
        if what == "update":
            await docs.update(document.id, document.rev, ProductUpdate(price=2))
        else:
            await query.get(document.id)


async def batches(at: Servers, ids: list[UUID], rounds: int) -> float:
    """How many times faster ``get_many`` of 100 hits is than 100 ``get``, one caller."""
    async with wired(at) as ctx:
        query = ctx.document.query(CACHED)
        some = ids[:100]
        await query.get_many(some)
        ratios = []
        for _ in range(rounds * 5):
            began = time.perf_counter()
            await query.get_many(some)
            together = time.perf_counter()
            for each in some:
                await query.get(each)
            ratios.append((time.perf_counter() - together) / (together - began))
    return median(ratios)


async def resolving(at: Servers) -> float:
    """Microseconds to resolve a port again."""
    async with wired(at) as ctx:
        resolve, spec = ctx.document.query, CACHED
        resolve(spec)
        times = []
        for _ in range(20):
            began = time.perf_counter()
            for _ in range(10_000):
                resolve(spec)
            times.append((time.perf_counter() - began) / 10_000 * 1e6)
    return median(times)
