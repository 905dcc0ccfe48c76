"""The backends the batteries run on. A leg that cannot run says why; no other is ever skipped."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import AsyncExitStack
from datetime import timedelta
from typing import Any

import asyncpg
import pytest
import redis

pytest.register_assert_rewrite("forze.testing.batteries")

from forze.application.execution import (  # noqa: E402
    DepsModule,
    DepsPlan,
    ExecutionContext,
    ExecutionRuntime,
    LifecyclePlan,
    LifecycleStep,
)
from forze.testing.batteries import CacheLeg, DocumentLeg, Outage  # noqa: E402
from forze.testing.clock import ManualClock  # noqa: E402
from forze.testing.cluster import Cluster, ValkeyCluster  # noqa: E402
from forze.testing.servers import RedisServer, RespServer, ValkeyServer  # noqa: E402
from forze_memory import MemoryDepsModule  # noqa: E402
from forze_postgres import (  # noqa: E402
    PostgresClient,
    PostgresDepsModule,
    postgres_lifecycle_step,
)
from forze_redis import RedisClient, RedisDepsModule, redis_lifecycle_step  # noqa: E402

MAX_VALUE_BYTES = 1024 * 1024
OWN: dict[str, type[RespServer | Cluster]] = {
    "valkey": ValkeyServer,
    "redis7": RedisServer,
    "valkey_cluster": ValkeyCluster,
}
NO_REDIS = "no redis-server on the PATH: this battery did not run on Redis 7"

MEMORY_DOCUMENTS: dict[str, Mapping[str, Any]] = {
    "items": {},
    "summaries": {"relation": "items"},
    "owned_items": {"tenant_aware": True},
}
CACHES: dict[str, Mapping[str, Any]] = {
    "things": {"namespace": "test:things"},
    "eager_things": {"namespace": "test:things"},
    "sliding_things": {"namespace": "test:things"},
    "others": {"namespace": "test:others"},
    "owned_things": {"namespace": "test:owned", "tenant_aware": True},
    "items": {"namespace": "test:items"},
    "summaries": {"namespace": "test:summaries"},
    "owned_items": {"namespace": "test:owned_items", "tenant_aware": True},
}
TABLE = """
CREATE TABLE {} (
    id uuid PRIMARY KEY, rev bigint NOT NULL,
    created_at timestamptz NOT NULL, last_update_at timestamptz NOT NULL,
    name text NOT NULL, price bigint NOT NULL, note text, tags jsonb NOT NULL, details jsonb,
    released_at timestamptz{}
)"""


@pytest.fixture
async def stack() -> AsyncIterator[AsyncExitStack]:
    """Closes what a leg opened."""
    async with AsyncExitStack() as opened:
        yield opened


async def running(
    stack: AsyncExitStack, *modules: DepsModule, steps: tuple[LifecycleStep, ...] = ()
) -> ExecutionContext:
    """The context of a runtime over ``modules`` that the stack will leave."""
    runtime = ExecutionRuntime(
        deps=DepsPlan.from_modules(*modules), lifecycle=LifecyclePlan.from_steps(*steps)
    )
    return await stack.enter_async_context(runtime.scope())


# -- servers -------------------------------------------------------------------


@pytest.fixture
def cache_server(request: pytest.FixtureRequest) -> Iterator[RespServer | Cluster | None]:
    """The server behind the leg's cache, by the name the leg has; None for memory."""
    name: str = request.param
    if name == "memory":
        yield None
    elif name == "redis7" and RedisServer.executable() is None:
        pytest.skip(NO_REDIS)
    elif request.cls is not None and request.cls.__name__.endswith("Outage"):
        with OWN[name]() as own:
            yield own
    else:
        shared: RespServer | Cluster = request.getfixturevalue(name)
        shared.ask("FLUSHALL")
        yield shared


@pytest.fixture
def outage(cache_server: RespServer | Cluster) -> Outage:
    """Kills the leg's own cache server, and starts it again."""

    async def break_backend() -> None:
        cache_server.kill()

    async def restore() -> None:
        cache_server.restart()

    return Outage(break_backend=break_backend, restore=restore)


def ages(server: RespServer | Cluster, by: timedelta) -> None:
    """Make everything on the server older: lives shorter, announced deadlines nearer."""
    if isinstance(server, Cluster):
        for node in server.primaries:
            ages(node, by)
        return
    milliseconds = by // timedelta(milliseconds=1)
    with redis.Redis.from_url(server.dsn) as client:
        for key in client.scan_iter():
            left = client.pttl(key)
            value = client.get(key)
            assert isinstance(left, int)
            assert left != -1, f"{key!r} would never expire"
            if not isinstance(value, bytes):
                continue  # expired since the scan
            if left <= milliseconds:
                client.delete(key)
                continue
            if b"/cache/pointer/" in key and value.startswith((b"I", b"R")):
                count = 1 if value.startswith(b"R") else 0  # an R's version may look like a time
                value = re.sub(
                    rb":(\d+)", lambda m: b":%d" % (int(m[1]) - milliseconds), value, count=count
                )
            client.set(key, value, px=left - milliseconds)


# -- caches --------------------------------------------------------------------


@pytest.fixture
async def cache_leg(stack: AsyncExitStack, cache_server: RespServer | Cluster | None) -> CacheLeg:
    """Two processes over one cache."""
    clock = ManualClock()
    if cache_server is None:
        memory = MemoryDepsModule(documents=MEMORY_DOCUMENTS, caches=CACHES, clock=clock)
        contexts = [await running(stack, memory) for _ in range(2)]
    else:
        database = MemoryDepsModule(documents=MEMORY_DOCUMENTS, caches={})
        step = redis_lifecycle_step(dsn=cache_server.dsn)
        contexts = [
            await running(
                stack, database, RedisDepsModule(client=RedisClient(), caches=CACHES), steps=(step,)
            )
            for _ in range(2)
        ]

    async def pass_time(by: timedelta) -> None:
        clock.advance(by)
        if cache_server is not None:
            ages(cache_server, by)

    return CacheLeg(
        ctx=contexts[0], other=contexts[1], max_value_bytes=MAX_VALUE_BYTES, pass_time=pass_time
    )


# -- documents -----------------------------------------------------------------


@pytest.fixture
async def document_leg(
    request: pytest.FixtureRequest, stack: AsyncExitStack, cache_server: RespServer | Cluster | None
) -> DocumentLeg:
    """Two processes over one database and one cache server."""
    if cache_server is None:
        memory = MemoryDepsModule(documents=MEMORY_DOCUMENTS, caches=CACHES)
        return DocumentLeg(ctx=await running(stack, memory), other=await running(stack, memory))
    dsn = await _tables(stack, request)
    steps = (postgres_lifecycle_step(dsn=dsn), redis_lifecycle_step(dsn=cache_server.dsn))
    contexts = [
        await running(
            stack,
            _postgres(),
            RedisDepsModule(client=RedisClient(), caches=CACHES),
            steps=steps,
        )
        for _ in range(2)
    ]
    return DocumentLeg(ctx=contexts[0], other=contexts[1])


async def _tables(stack: AsyncExitStack, request: pytest.FixtureRequest) -> str:
    """The DSN of a new database with the tables of the batteries."""
    server = request.getfixturevalue("postgres_server")
    admin = await asyncpg.connect(server.dsn)
    stack.push_async_callback(admin.close)
    name = f"battery_{id(stack)}"
    await admin.execute(f"CREATE DATABASE {name} TEMPLATE template0 STRATEGY FILE_COPY")
    stack.push_async_callback(admin.execute, f"DROP DATABASE {name} WITH (FORCE)")
    dsn: str = server.database_dsn(name)
    connection = await asyncpg.connect(dsn)
    await connection.execute(TABLE.format("items", ""))
    await connection.execute(TABLE.format("owned_items", ", tenant_id text NOT NULL"))
    await connection.close()
    return dsn


def _postgres() -> PostgresDepsModule:
    items, owned = ("public", "items"), ("public", "owned_items")
    return PostgresDepsModule(
        client=PostgresClient(),
        rw_documents={
            "items": {"read": items, "write": items},
            "owned_items": {"read": owned, "write": owned, "tenant_aware": True},
        },
        ro_documents={"summaries": {"read": items}},
        tx={"items"},
    )
