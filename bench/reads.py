"""Cached reads against a bare redis-py GET and against PostgreSQL.

Rounds are interleaved: each visits every event loop, concurrency and subject, so that a
slow minute of the machine falls on all of them. Each visit works for a fixed time; what
is compared is the median over rounds of microseconds per read.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from itertools import count
from statistics import median
from typing import NamedTuple
from uuid import UUID

import redis.asyncio
import uvloop

from bench.counting import Sent, counted
from bench.workload import CACHED, ProductRead, Servers, wired, zipf
from forze.application.execution import ExecutionContext
from forze.application.integrations.document.query import DocumentQuery

CALLERS = (1, 32, 256)
SUBJECTS = ("forze", "redis-py", "PostgreSQL")
LOOPS: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {
    "asyncio": asyncio.new_event_loop,
    "uvloop": uvloop.new_event_loop,
}

Read = Callable[[UUID], Awaitable[ProductRead]]


class Visit(NamedTuple):
    """One subject at work for a while."""

    reads: int
    collapsed: int  # answered by another caller's flight, not counted in `us_per_read`
    us_per_read: float
    commands_per_read: float


Cell = tuple[str, str, int]
"""Event loop, subject, callers."""


def measure(
    at: Servers, ids: list[UUID], *, rounds: int, seconds: float
) -> dict[Cell, list[Visit]]:
    """Every visit of every cell."""
    keys = zipf(ids, 100_003)
    visits: dict[Cell, list[Visit]] = {
        (loop, subject, callers): []
        for loop in LOOPS
        for subject in SUBJECTS
        for callers in CALLERS
    }
    for turn in range(rounds):
        for loop, factory in LOOPS.items():
            with asyncio.Runner(loop_factory=factory) as runner:
                runner.run(_round(at, keys, ids, turn, seconds, loop, visits))
    return visits


def middle(visits: list[Visit]) -> float:
    """The median microseconds per read."""
    return median(visit.us_per_read for visit in visits)


async def _round(
    at: Servers,
    keys: list[UUID],
    ids: list[UUID],
    turn: int,
    seconds: float,
    loop: str,
    visits: dict[Cell, list[Visit]],
) -> None:
    async with wired(at) as ctx, _redis_py(at, 1) as watcher:
        query = ctx.document.query(CACHED)
        for number in range(0, len(ids), 100):  # fill, so that what follows are hits
            await query.get_many(ids[number : number + 100])
        for callers in CALLERS:
            async with _redis_py(at, callers) as client:
                await _copy_bodies(ctx, client, ids)
                subjects: dict[str, Read] = {
                    "forze": query.get,
                    "redis-py": _bare_get(client),
                    "PostgreSQL": _uncached(query),
                }
                order = [*SUBJECTS[turn % 3 :], *SUBJECTS[: turn % 3]]
                for subject in order:
                    await _work(subjects[subject], keys, callers, seconds / 10)
                    before = _collapsed(query)
                    async with counted(watcher) as sent:
                        reads, elapsed = await _work(subjects[subject], keys, callers, seconds)
                    collapsed = _collapsed(query) - before
                    visits[loop, subject, callers].append(
                        _visit(subject, reads, collapsed, elapsed, sent)
                    )


def _collapsed(query: DocumentQuery[ProductRead]) -> int:
    stats = query.stats()
    return stats.collapsed if stats is not None else 0


def _visit(subject: str, reads: int, collapsed: int, elapsed: float, sent: Sent) -> Visit:
    own = reads - collapsed
    commands = sent.gets if subject == "redis-py" else sent.scripts
    return Visit(reads, collapsed, elapsed / own * 1e6, commands / own)


async def _work(read: Read, keys: list[UUID], callers: int, seconds: float) -> tuple[int, float]:
    """``callers`` tasks read one key after another; how many reads, in how many seconds."""
    position = count()
    size = len(keys)
    until = time.perf_counter() + seconds
    clock = time.perf_counter

    async def caller() -> int:
        done = 0
        while clock() < until:
            for _ in range(8):
                await read(keys[next(position) % size])
            done += 8
        return done

    began = clock()
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(caller()) for _ in range(callers)]
    return sum(task.result() for task in tasks), clock() - began


def _bare_get(client: redis.asyncio.Redis) -> Read:
    """What one writes without a library: GET, then the very decode our cache does."""
    decode = ProductRead.__pydantic_validator__.validate_json

    async def get(key: UUID) -> ProductRead:
        return decode(await client.get(f"bench:bare:{key}") or b"")  # type: ignore[no-any-return]

    return get


def _uncached(query: DocumentQuery[ProductRead]) -> Read:
    async def get(key: UUID) -> ProductRead:
        return await query.get(key, skip_cache=True)

    return get


async def _copy_bodies(ctx: ExecutionContext, client: redis.asyncio.Redis, ids: list[UUID]) -> None:
    """Give redis-py the very bytes our cache holds."""
    for document in await ctx.document.query(CACHED).get_many(ids):
        body = document.__pydantic_serializer__.to_json(document, by_alias=False, round_trip=True)
        await client.set(f"bench:bare:{document.id}", body)


@asynccontextmanager
async def _redis_py(at: Servers, connections: int) -> AsyncIterator[redis.asyncio.Redis]:
    """redis-py as one would use it under ``connections`` callers: a pool that size, hiredis."""
    pool = redis.asyncio.BlockingConnectionPool.from_url(
        at.valkey.dsn, max_connections=connections, timeout=30
    )
    client = redis.asyncio.Redis(connection_pool=pool)
    try:
        yield client
    finally:
        await client.aclose()
        await pool.aclose()
