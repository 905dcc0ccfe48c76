"""What the thin layers cost beside redis-py by hand: time on the clock, and of the processor.

Each pair does the same, one caller, in turns: the same value under a key of its own, and what is
read is decoded to the same thing. The peer keeps no budget of time, no circuit, joins no callers,
and tells nobody of a write.
"""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import timedelta
from typing import Any, NamedTuple

import redis
import redis.asyncio

from bench.peers.products import ProductRead
from bench.peers.work import work
from bench.report import Figure
from bench.run import Run
from bench.workload import CACHED, wired
from fastapi_rc import CacheManager, CacheService
from forze.application.execution import ExecutionContext
from forze.application.integrations.cached import cached
from forze_redis import RedisManager

SHARE = 0.5  # of a visit's length, since there are so many
TTL = 600

Call = Callable[[], Any]


class Pair(NamedTuple):
    """Ours, theirs, and whether both are awaited."""

    name: str
    ours: Call
    peer: str
    theirs: Call
    awaited: bool = True


async def measure(run: Run) -> None:
    """One table of time on the clock, one of processor time."""
    wall: dict[str, tuple[Figure, str, Figure | None]] = {}
    cpu: dict[str, tuple[Figure, str, Figure | None]] = {}
    async with _pairs(run) as pairs:
        for pair in pairs:
            subjects = {
                "ours": _visits(pair.ours, run.seconds * SHARE, awaited=pair.awaited),
                "theirs": _visits(pair.theirs, run.seconds * SHARE, awaited=pair.awaited),
            }
            found = await run.async_turns(pair.name, subjects)
            for at, table in ((0, wall), (1, cpu)):
                ours, theirs = (Figure.of(each[at] for each in found[who]) for who in subjects)
                table[pair.name] = (ours, pair.peer, theirs)
    run.report.pairs("thin layers over redis-py, 1 caller: on the clock", "us per call", wall)
    run.report.pairs("thin layers over redis-py, 1 caller: of the processor", "us per call", cpu)


def _visits(
    call: Call, seconds: float, *, awaited: bool
) -> Callable[[], Awaitable[tuple[float, float]]]:
    async def visit() -> tuple[float, float]:
        if awaited:
            done = await work(lambda _: call(), (None,), 1, seconds)
            return done["us"], done["cpu"]
        return _blocking(call, seconds)

    return visit


def _blocking(call: Call, seconds: float) -> tuple[float, float]:
    calls, began, spent = 0, time.perf_counter(), time.process_time()
    while time.perf_counter() < began + seconds:
        for _ in range(8):
            call()
        calls += 8
    return (
        (time.perf_counter() - began) / calls * 1e6,
        (time.process_time() - spent) / calls * 1e6,
    )


@asynccontextmanager
async def _pairs(run: Run) -> AsyncIterator[list[Pair]]:
    dsn = run.at.valkey.dsn
    async with AsyncExitStack() as stack:
        ctx = await stack.enter_async_context(wired(run.at))
        document = await ctx.document.query(CACHED).get(run.ids[0])
        text = document.model_dump_json()
        plain = await stack.enter_async_context(
            redis.asyncio.Redis.from_url(dsn, decode_responses=True)
        )
        blocking = stack.enter_context(redis.Redis.from_url(dsn, decode_responses=True))
        manager = RedisManager(url=dsn)
        stack.push_async_callback(manager.close)
        await plain.set("bench:plain", text)
        yield [
            *_manager(manager, plain, blocking, text),
            await _service(stack, dsn, plain, json.loads(text)),
            await _function(ctx, plain, document),
        ]


def _manager(manager: RedisManager, plain: Any, blocking: Any, text: str) -> list[Pair]:
    key, other = "bench:managed", "bench:plain"
    return [
        Pair(
            "RedisManager.set_async",
            lambda: manager.set_async(key, text, ex=TTL),
            "SET",
            lambda: plain.set(other, text, ex=TTL),
        ),
        Pair(
            "RedisManager.get_async",
            lambda: manager.get_async(key),
            "GET",
            lambda: plain.get(other),
        ),
        Pair(
            "RedisManager.set_sync",
            lambda: manager.set_sync(key, text, ex=TTL),
            "SET",
            lambda: blocking.set(other, text, ex=TTL),
            awaited=False,
        ),
        Pair(
            "RedisManager.get_sync",
            lambda: manager.get_sync(key),
            "GET",
            lambda: blocking.get(other),
            awaited=False,
        ),
    ]


async def _service(stack: AsyncExitStack, dsn: str, plain: Any, value: dict[str, Any]) -> Pair:
    manager = CacheManager()
    manager.init(redis_url=dsn)
    stack.push_async_callback(manager.close)
    service: CacheService[Any] = CacheService(manager.client, "bench")

    async def ours() -> Any:
        return await service.get_or_set("product", lambda: value, ttl=TTL)

    async def theirs() -> Any:
        return json.loads(await plain.get("bench:plain"))

    assert await ours() == await ours() == value
    return Pair("CacheService.get_or_set, a hit", ours, "GET, json.loads", theirs)


async def _function(ctx: ExecutionContext, plain: Any, document: ProductRead) -> Pair:
    @cached(timedelta(seconds=TTL), ctx=lambda: ctx, cache=CACHED.cache or "")
    async def product(number: int) -> ProductRead:
        return document

    async def theirs() -> ProductRead:
        return ProductRead.model_validate_json(await plain.get("bench:plain"))

    assert await product(1) == await product(1) == await theirs() == document
    return Pair("@cached function, a hit", lambda: product(1), "GET, pydantic", theirs)
