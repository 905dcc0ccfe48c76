"""Legs of the coordination ports: two processes over one server, whose time a test can pass."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AsyncExitStack
from datetime import timedelta
from typing import Any

import redis

from forze.application.execution import (
    DepsPlan,
    ExecutionContext,
    ExecutionRuntime,
    LifecyclePlan,
)
from forze.testing.clock import ManualClock
from forze.testing.cluster import Cluster
from forze.testing.servers import RespServer
from forze_memory import MemoryDepsModule
from forze_redis import (
    RedisClient,
    RedisClientDepKey,
    RedisConfig,
    RedisDepsModule,
    redis_lifecycle_step,
)
from forze_redis.wire.connection import Reply


class CountedClient(RedisClient):
    """A client that counts what it is asked to send."""

    trips = 0

    def send(self, packed: bytes, timeout: float | None = None) -> asyncio.Future[Reply]:
        self.trips += 1
        return super().send(packed, timeout)

    def call_large(self, *args: Any, timeout: float | None = None) -> asyncio.Future[Reply]:
        self.trips += 1
        return super().call_large(*args, timeout=timeout)


async def resources(
    stack: AsyncExitStack,
    server: RespServer | Cluster | None,
    clock: ManualClock,
    *,
    timeout: float | None = None,
    **configs: Any,
) -> tuple[ExecutionContext, ExecutionContext]:
    """Two contexts that answer ``configs``, the arguments of a module; ``server`` None: memory.

    ``timeout``: after how many seconds their client gives up; None is its default.
    """
    config = None if timeout is None else RedisConfig(socket_timeout=timeout)
    memory = MemoryDepsModule(**(configs if server is None else {}), clock=clock)

    async def running() -> ExecutionContext:
        if server is None:
            deps, lifecycle = DepsPlan.from_modules(memory), None
        else:
            deps = DepsPlan.from_modules(RedisDepsModule(client=CountedClient(), **configs))
            lifecycle = LifecyclePlan.from_steps(
                redis_lifecycle_step(dsn=server.dsn, config=config)
            )
        runtime = ExecutionRuntime(deps=deps, lifecycle=lifecycle)
        return await stack.enter_async_context(runtime.scope())

    return await running(), await running()


def pass_time_on(server: RespServer | Cluster | None, by: timedelta) -> None:
    """Make whatever expires on the server older."""
    milliseconds = by // timedelta(milliseconds=1)
    for node in _nodes(server):
        with redis.Redis.from_url(node.dsn) as client:
            for key in client.scan_iter(count=1_000):
                left = client.pttl(key)
                assert isinstance(left, int)
                if left > milliseconds:
                    client.pexpire(key, left - milliseconds)
                elif left >= 0:
                    client.delete(key)


def keys_on(server: RespServer | Cluster) -> list[str]:
    """What the server holds."""
    found: list[str] = []
    for node in _nodes(server):
        with redis.Redis.from_url(node.dsn, decode_responses=True) as client:
            found.extend(client.scan_iter(count=1_000))
    return sorted(found)


def trips_of(ctx: ExecutionContext) -> Callable[[], int] | None:
    """Counts what the process of ``ctx`` asked the server; None where there is none."""
    if not ctx.exists(RedisClientDepKey):
        return None
    client = ctx.provide(RedisClientDepKey)
    assert isinstance(client, CountedClient)
    return lambda: client.trips


def _nodes(server: RespServer | Cluster | None) -> list[RespServer]:
    if server is None:
        return []
    return list(server.primaries) if isinstance(server, Cluster) else [server]
