"""The batteries of search-result snapshots, on every backend there is."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AsyncExitStack
from datetime import timedelta
from typing import Any

import asyncpg
import pytest
from tests.contracts.resources import CountedClient, keys_on, pass_time_on, resources, trips_of

from forze.application.execution import DepsPlan, ExecutionRuntime, LifecyclePlan
from forze.errors import ConfigurationError
from forze.testing.batteries.search_snapshots import (
    CursorBehaviour,
    SnapshotBehaviour,
    SnapshotFailures,
    SnapshotLeg,
    SnapshotOutage,
)
from forze.testing.batteries.snapshot_searches import (
    OWNED_FROZEN_ITEMS,
    SnapshotSearchBehaviour,
    SnapshotSearchFailures,
    SnapshotSearchLeg,
)
from forze.testing.clock import ManualClock
from forze.testing.cluster import Cluster
from forze.testing.servers import RespServer
from forze_memory import MemoryDepsModule
from forze_postgres import PostgresClient, PostgresDepsModule, postgres_lifecycle_step
from forze_redis import RedisDepsModule, redis_lifecycle_step

SNAPSHOTS: dict[str, Mapping[str, Any]] = {
    "results": {"namespace": "test:results"},
    "short_results": {"namespace": "test:short"},
    "other_results": {"namespace": "test:others"},
    "owned_results": {"namespace": "test:owned", "tenant_aware": True},
    "frozen_items": {"namespace": "test:frozen"},
    "owned_frozen_items": {"namespace": "test:owned_frozen", "tenant_aware": True},
}
CACHES: dict[str, Mapping[str, Any]] = {"frozen_items": {"namespace": "test:frozen_items"}}
TABLE = """
CREATE TABLE {} (
    id uuid PRIMARY KEY, rev bigint NOT NULL,
    created_at timestamptz NOT NULL, last_update_at timestamptz NOT NULL,
    name text NOT NULL, price bigint NOT NULL, note text, tags jsonb NOT NULL, details jsonb,
    released_at timestamptz{}
)"""

SERVERS = ["valkey", "redis7", "valkey_cluster"]
everywhere = pytest.mark.parametrize("cache_server", ["memory", *SERVERS], indirect=True)
servers = pytest.mark.parametrize("cache_server", SERVERS, indirect=True)


@pytest.fixture
async def snapshot_leg(
    stack: AsyncExitStack, cache_server: RespServer | Cluster | None
) -> SnapshotLeg:
    """Two processes over one server."""
    clock = ManualClock()
    ctx, other = await resources(stack, cache_server, clock, search_snapshots=SNAPSHOTS)

    async def pass_time(by: timedelta) -> None:
        clock.advance(by)
        pass_time_on(cache_server, by)

    return SnapshotLeg(
        ctx=ctx,
        other=other,
        pass_time=pass_time,
        trips=trips_of(ctx),
        left=None if cache_server is None else lambda: keys_on(cache_server),
    )


@pytest.fixture
async def search_leg(
    request: pytest.FixtureRequest, stack: AsyncExitStack, cache_server: RespServer | Cluster | None
) -> SnapshotSearchLeg:
    """Two processes over one database and one server."""
    clock = ManualClock()
    if cache_server is None:
        memory = MemoryDepsModule(
            documents={
                "frozen_items": {"relation": "items"},
                "plain_items": {"relation": "items"},
                "owned_frozen_items": {"tenant_aware": True},
            },
            caches=CACHES,
            search_snapshots=SNAPSHOTS,
            clock=clock,
        )
        runtimes = [ExecutionRuntime(deps=DepsPlan.from_modules(memory)) for _ in range(2)]
    else:
        dsn = await tables(request, stack)
        runtimes = [_on_servers(dsn, cache_server) for _ in range(2)]
    ctx, other = [await stack.enter_async_context(each.scope()) for each in runtimes]

    async def pass_time(by: timedelta) -> None:
        clock.advance(by)
        pass_time_on(cache_server, by)

    return SnapshotSearchLeg(ctx=ctx, other=other, pass_time=pass_time, trips=trips_of(ctx))


async def tables(request: pytest.FixtureRequest, stack: AsyncExitStack) -> str:
    """The DSN of a new database with both tables."""
    server = request.getfixturevalue("postgres_server")
    admin = await asyncpg.connect(server.dsn)
    stack.push_async_callback(admin.close)
    name = f"search_{id(stack)}"
    await admin.execute(f"CREATE DATABASE {name} TEMPLATE template0 STRATEGY FILE_COPY")
    stack.push_async_callback(admin.execute, f"DROP DATABASE {name} WITH (FORCE)")
    dsn: str = server.database_dsn(name)
    connection = await asyncpg.connect(dsn)
    await connection.execute(TABLE.format("items", ""))
    await connection.execute(TABLE.format("owned_items", ", tenant_id text NOT NULL"))
    await connection.close()
    return dsn


def _on_servers(dsn: str, server: RespServer | Cluster) -> ExecutionRuntime:
    items, owned = ("public", "items"), ("public", "owned_items")
    plain: Mapping[str, Any] = {"read": items, "write": items}
    documents: dict[str, Mapping[str, Any]] = {
        "frozen_items": plain,
        "plain_items": plain,
        "owned_frozen_items": {"read": owned, "write": owned, "tenant_aware": True},
    }
    redis = RedisDepsModule(client=CountedClient(), caches=CACHES, search_snapshots=SNAPSHOTS)
    postgres = PostgresDepsModule(
        client=PostgresClient(), rw_documents=documents, tx={"frozen_items"}
    )
    return ExecutionRuntime(
        deps=DepsPlan.from_modules(postgres, redis),
        lifecycle=LifecyclePlan.from_steps(
            postgres_lifecycle_step(dsn=dsn), redis_lifecycle_step(dsn=server.dsn)
        ),
    )


@everywhere
class TestSnapshots(SnapshotBehaviour):
    pass


@everywhere
class TestSnapshotFailures(SnapshotFailures):
    pass


@servers
class TestSnapshotOutage(SnapshotOutage):
    pass


@pytest.mark.parametrize("cache_server", ["memory"], indirect=True)
class TestCursors(CursorBehaviour):
    pass


@everywhere
class TestSnapshotSearches(SnapshotSearchBehaviour):
    pass


@everywhere
class TestSnapshotSearchFailures(SnapshotSearchFailures):
    pass


async def test_snapshots_of_tenants_documents_are_tenants_too() -> None:
    """Else what one tenant searched for could be found by another."""
    memory = MemoryDepsModule(documents={"owned_frozen_items": {"tenant_aware": True}})
    runtime = ExecutionRuntime(deps=DepsPlan.from_modules(memory), specs=[OWNED_FROZEN_ITEMS])
    with pytest.raises(ConfigurationError, match="set tenant_aware on them"):
        async with runtime.scope():
            pass
