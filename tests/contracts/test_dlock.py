"""The batteries of locks, semaphores and read/write locks, on every backend there is."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import AsyncExitStack
from datetime import timedelta
from typing import Any

import pytest
from tests.contracts.conftest import NO_REDIS, running

from forze.testing.batteries import (
    DistributedLockBehaviour,
    DistributedLockFailures,
    DistributedLockOutage,
    LockLeg,
    Outage,
    ReadWriteLockBehaviour,
    ReadWriteLockFailures,
    SemaphoreBehaviour,
    SemaphoreFailures,
)
from forze.testing.clock import ManualClock
from forze.testing.servers import RedisServer, ValkeyServer
from forze_memory import MemoryDepsModule
from forze_redis import RedisClient, RedisConfig, RedisDepsModule, redis_lifecycle_step

DLOCKS: dict[str, dict[str, Any]] = {
    "jobs": {"namespace": "test:jobs"},
    "brief_jobs": {"namespace": "test:brief_jobs"},
    "other_jobs": {"namespace": "test:other_jobs"},
    "owned_jobs": {"namespace": "test:owned_jobs", "tenant_aware": True},
}
SEMAPHORES: dict[str, dict[str, Any]] = {
    "slots": {"namespace": "test:slots"},
    "brief_slots": {"namespace": "test:brief_slots"},
    "owned_slots": {"namespace": "test:owned_slots", "tenant_aware": True},
}
RWLOCKS: dict[str, dict[str, Any]] = {
    "pages": {"namespace": "test:pages"},
    "brief_pages": {"namespace": "test:brief_pages"},
}
RESOURCES: dict[str, Any] = {"dlocks": DLOCKS, "semaphores": SEMAPHORES, "rwlocks": RWLOCKS}

everywhere = pytest.mark.parametrize(
    "lock_server", ["memory", "valkey", "redis7", "valkey_cluster"], indirect=True
)
servers = pytest.mark.parametrize("lock_server", ["valkey", "redis7"], indirect=True)


@pytest.fixture
def lock_server(request: pytest.FixtureRequest) -> Iterator[Any]:
    """The server behind the locks, by the name of its fixture; None for memory."""
    name: str = request.param
    if name == "memory":
        yield None
    elif name == "redis7" and RedisServer.executable() is None:
        pytest.skip(NO_REDIS)
    elif request.cls is not None and request.cls.__name__.endswith("Outage"):
        with ValkeyServer() if name == "valkey" else RedisServer() as own:
            yield own
    else:
        shared = request.getfixturevalue(name)
        shared.ask("FLUSHALL")
        yield shared


@pytest.fixture
def outage(lock_server: Any) -> Outage:
    """Kills the leg's own server, and starts it again, empty."""

    async def break_backend() -> None:
        lock_server.kill()

    async def restore() -> None:
        lock_server.restart()

    return Outage(break_backend=break_backend, restore=restore)


@pytest.fixture
async def lock_leg(stack: AsyncExitStack, lock_server: Any) -> LockLeg:
    """Two processes over one server. On a real one, time passes by itself."""
    if lock_server is None:
        clock = ManualClock()
        memory = MemoryDepsModule(**RESOURCES, clock=clock)

        async def advance(by: timedelta) -> None:
            clock.advance(by)

        ctx, other = [await running(stack, memory) for _ in range(2)]
        return LockLeg(ctx=ctx, other=other, pass_time=advance)

    async def pause(by: timedelta) -> None:
        await asyncio.sleep(by.total_seconds())

    step = redis_lifecycle_step(dsn=lock_server.dsn, config=RedisConfig(socket_timeout=1.0))
    ctx, other = [
        await running(stack, RedisDepsModule(client=RedisClient(), **RESOURCES), steps=(step,))
        for _ in range(2)
    ]
    return LockLeg(ctx=ctx, other=other, pass_time=pause)


@everywhere
class TestDistributedLock(DistributedLockBehaviour):
    pass


@everywhere
class TestDistributedLockFailures(DistributedLockFailures):
    pass


@servers
class TestDistributedLockOutage(DistributedLockOutage):
    pass


@everywhere
class TestSemaphore(SemaphoreBehaviour):
    pass


@everywhere
class TestSemaphoreFailures(SemaphoreFailures):
    pass


@everywhere
class TestReadWriteLock(ReadWriteLockBehaviour):
    pass


@everywhere
class TestReadWriteLockFailures(ReadWriteLockFailures):
    pass
