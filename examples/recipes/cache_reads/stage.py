"""What every step stands on: replicas of the application, and a run that leaves nothing behind.

Servers come from ``servers``; they, and whatever the step made, are gone afterwards, also on
Ctrl-C, on SIGTERM and on failure.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import signal
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import NamedTuple

from app import PRODUCT_CACHE, PRODUCT_PG, build_runtime
from servers import Servers, servers

from forze.application.execution import ExecutionContext
from forze.errors import ForzeError
from forze_postgres import PostgresClient, PostgresDocumentConfig
from forze_redis import RedisCacheConfig, RedisClient


class Replica(NamedTuple):
    """One running application: its context, and its clients to look behind it."""

    ctx: ExecutionContext
    redis: RedisClient
    postgres: PostgresClient


@asynccontextmanager
async def replica(
    at: Servers,
    *,
    cache: RedisCacheConfig = PRODUCT_CACHE,
    table: PostgresDocumentConfig = PRODUCT_PG,
) -> AsyncIterator[Replica]:
    """The application of ``app.py``, running on clients of its own."""
    pg, redis = PostgresClient(), RedisClient()
    runtime = build_runtime(
        pg, redis, pg_dsn=at.pg_dsn, redis_dsn=at.redis_dsn, cache=cache, table=table
    )
    async with runtime.scope() as ctx:
        yield Replica(ctx, redis, pg)


async def commands_sent(redis: RedisClient) -> int:
    """How many scripts the server has run: each of the cache's calls is one."""
    stats = await redis.call("INFO", "commandstats")
    return sum(map(int, re.findall(rb"cmdstat_eval(?:sha)?:calls=(\d+)", stats)))


async def until(condition: Callable[[], Awaitable[bool]], look_s: float = 0.0005) -> float:
    """Look until ``condition`` holds; the monotonic time at which it did."""
    while not await condition():  # noqa: ASYNC110 - reads are looked at, nobody notifies
        await asyncio.sleep(look_s)
    return time.monotonic()


def title(text: str) -> None:
    """The heading of a step."""
    print(f"\n{text}\n{'-' * len(text)}", flush=True)


def say(text: str) -> None:
    """A line of the story."""
    print(text, flush=True)


def perform(play: Callable[[Servers], Awaitable[None]]) -> int:
    """Run ``play`` under servers that are gone afterwards; the exit status."""
    return asyncio.run(_performed(play))


async def _performed(play: Callable[[Servers], Awaitable[None]]) -> int:
    task = asyncio.current_task()
    assert task is not None
    stopped_by: list[int] = []

    def stop(number: int) -> None:
        stopped_by.append(number)
        task.cancel()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        with contextlib.suppress(NotImplementedError):  # Windows
            loop.add_signal_handler(number, stop, number)
    try:
        async with servers() as at:
            await play(at)
    except asyncio.CancelledError:
        print("stopped; everything is torn down", flush=True)
        return 128 + (stopped_by or [signal.SIGINT])[0]
    except ForzeError as error:
        print(f"failed: {error}", file=sys.stderr)
        return 1
    print("\nall torn down", flush=True)
    return 0
