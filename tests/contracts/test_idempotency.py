"""The batteries of idempotency, on every store there is."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from datetime import timedelta
from typing import Any, TypeAlias

import asyncpg
import pytest
import redis
from tests.contracts.conftest import NO_REDIS, running

from forze.testing.batteries import (
    IdempotencyBehaviour,
    IdempotencyFailures,
    IdempotencyLeg,
    IdempotencyOutage,
    IdempotencyOwnership,
    IdempotencyTransactions,
    Outage,
)
from forze.testing.batteries.idempotency import OWNED, SPECS
from forze.testing.clock import ManualClock
from forze.testing.cluster import Cluster
from forze.testing.servers import PostgresServer, RedisServer, RespServer
from forze_memory import MemoryDepsModule
from forze_postgres import (
    PostgresClient,
    PostgresDepsModule,
    PostgresIdempotencyConfig,
    idempotency_table_sql,
    postgres_lifecycle_step,
)
from forze_redis import RedisClient, RedisConfig, RedisDepsModule, redis_lifecycle_step

TABLE = ("public", "idempotency")
Store: TypeAlias = RespServer | Cluster | PostgresServer
SERVERS = ["valkey", "redis7", "valkey_cluster", "postgres"]


@pytest.fixture
def store(request: pytest.FixtureRequest) -> Store | None:
    """The server behind the leg, by the name the leg has; None for memory."""
    name: str = request.param
    if name == "memory":
        return None
    if name == "redis7" and RedisServer.executable() is None:
        pytest.skip(NO_REDIS)
    shared: Store = request.getfixturevalue("postgres_server" if name == "postgres" else name)
    if not isinstance(shared, PostgresServer):
        shared.ask("FLUSHALL")
    return shared


@pytest.fixture
def outage(store: Store) -> Iterator[Outage]:
    """Makes the server stand still, and go on."""

    async def break_backend() -> None:
        store.pause()

    async def restore() -> None:
        store.resume()

    yield Outage(break_backend=break_backend, restore=restore)
    store.resume()


@pytest.fixture
async def idempotency_leg(store: Store | None, stack: AsyncExitStack) -> IdempotencyLeg:
    """Two processes over one store."""
    if store is None:
        return await _memory(stack)
    if isinstance(store, PostgresServer):
        return await _postgres(stack, store)
    return await _redis(stack, store)


def _named(**config: Any) -> dict[str, Any]:
    return {
        each.name: {**config, "tenant_aware": each is OWNED}
        | ({"namespace": f"test:{each.name}"} if "table" not in config else {})
        for each in SPECS
    }


async def _memory(stack: AsyncExitStack) -> IdempotencyLeg:
    clock = ManualClock()
    module = MemoryDepsModule(idempotency=_named(), clock=clock)

    async def pass_time(by: timedelta) -> None:
        clock.advance(by)

    return IdempotencyLeg(
        ctx=await running(stack, module), other=await running(stack, module), pass_time=pass_time
    )


async def _redis(stack: AsyncExitStack, server: RespServer | Cluster) -> IdempotencyLeg:
    step = redis_lifecycle_step(dsn=server.dsn, config=RedisConfig(socket_timeout=0.5))
    contexts = [
        await running(
            stack,
            MemoryDepsModule(idempotency={}, caches={}),
            RedisDepsModule(client=RedisClient(), idempotency=_named()),
            steps=(step,),
        )
        for _ in range(2)
    ]
    return IdempotencyLeg(ctx=contexts[0], other=contexts[1], pass_time=_ageing(server))


def _ageing(server: RespServer | Cluster) -> Callable[[timedelta], Awaitable[None]]:
    """Makes every record on the server older: lives shorter, leases nearer their end."""

    async def pass_time(by: timedelta) -> None:
        for node in server.primaries if isinstance(server, Cluster) else [server]:
            age(node, by // timedelta(milliseconds=1))

    def age(node: RespServer, milliseconds: int) -> None:
        with redis.Redis.from_url(node.dsn) as client:
            for key in client.scan_iter("test:*"):
                left = client.pttl(key)
                assert isinstance(left, int)
                assert left != -1, f"{key!r} would never expire"
                if client.hexists(key, "lease"):
                    client.hincrby(key, "lease", -milliseconds)
                client.pexpire(key, left - milliseconds)

    return pass_time


async def _postgres(stack: AsyncExitStack, server: PostgresServer) -> IdempotencyLeg:
    beside = await asyncpg.connect(server.dsn)
    stack.push_async_callback(beside.close)
    await beside.execute(idempotency_table_sql(TABLE))
    stack.push_async_callback(beside.execute, "DROP TABLE idempotency")
    step = postgres_lifecycle_step(
        dsn=server.dsn, config={"statement_timeout": 1.0, "connect_timeout": 1.0}
    )
    configs = {
        name: PostgresIdempotencyConfig(**each) for name, each in _named(table=TABLE).items()
    }
    contexts = [
        await running(
            stack,
            PostgresDepsModule(client=PostgresClient(), idempotency=configs, tx={"items"}),
            steps=(step,),
        )
        for _ in range(2)
    ]

    async def pass_time(by: timedelta) -> None:
        await beside.execute(
            "UPDATE idempotency SET lease_until = lease_until - $1::interval, "
            "expires_at = expires_at - $1::interval",
            by,
        )

    return IdempotencyLeg(
        ctx=contexts[0], other=contexts[1], pass_time=pass_time, transactional=True
    )


everywhere = pytest.mark.parametrize("store", ["memory", *SERVERS], indirect=True)
servers = pytest.mark.parametrize("store", SERVERS, indirect=True)


@everywhere
class TestIdempotency(IdempotencyBehaviour):
    pass


@everywhere
class TestIdempotencyOwnership(IdempotencyOwnership):
    pass


@everywhere
class TestIdempotencyTransactions(IdempotencyTransactions):
    pass


@everywhere
class TestIdempotencyFailures(IdempotencyFailures):
    pass


@servers
class TestIdempotencyOutage(IdempotencyOutage):
    pass
