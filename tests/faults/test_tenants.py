"""One tenant's reads never answer another's, also where they share a moment."""

from __future__ import annotations

import asyncio
from typing import Any

import asyncpg
import pytest
from tests.faults.world import (
    TABLE,
    Product,
    ProductCreate,
    ProductRead,
    ProductUpdate,
    ask,
)

from forze.application.contracts.cache import CacheSpec
from forze.application.contracts.document import DocumentSpec
from forze.application.execution import DepsRegistry, ExecutionRuntime, LifecyclePlan
from forze.errors import ConfigurationError, NotFoundError, TenantRequired
from forze.testing.servers import ValkeyServer
from forze_postgres import (
    PostgresClient,
    PostgresDepsModule,
    PostgresDocumentConfig,
    postgres_lifecycle_step,
)
from forze_redis import RedisCacheConfig, RedisClient, RedisDepsModule, redis_lifecycle_step

SPEC: DocumentSpec[ProductRead, ProductCreate, ProductUpdate] = DocumentSpec(
    name="products",
    read=ProductRead,
    write={"domain": Product, "create_cmd": ProductCreate, "update_cmd": ProductUpdate},
    cache=CacheSpec(name="products"),
)


def runtime(
    postgres_dsn: str, redis_dsn: str, *, store: bool = True, cache: bool = True
) -> ExecutionRuntime:
    pg, client = PostgresClient(), RedisClient()
    table = ("public", "products")
    return ExecutionRuntime(
        deps=DepsRegistry.from_modules(
            PostgresDepsModule(
                client=pg,
                rw_documents={
                    "products": PostgresDocumentConfig(read=table, write=table, tenant_aware=store)
                },
                tx={"products"},
            ),
            RedisDepsModule(
                client=client,
                caches={"products": RedisCacheConfig(namespace="app", tenant_aware=cache)},
            ),
        ),
        lifecycle=LifecyclePlan.from_steps(
            postgres_lifecycle_step(dsn=postgres_dsn), redis_lifecycle_step(dsn=redis_dsn)
        ),
        specs=[SPEC],
    )


async def waiting(connection: asyncpg.Connection[Any], queries: int) -> None:
    """Until so many queries wait for the table."""
    async with asyncio.timeout(2):
        while queries > await connection.fetchval(
            "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
        ):
            await asyncio.sleep(0.01)


@pytest.fixture
async def tenant_table(postgres_dsn: str) -> str:
    connection = await asyncpg.connect(postgres_dsn)
    await connection.execute(TABLE.replace("name text", "tenant_id text NOT NULL, name text"))
    await connection.close()
    return postgres_dsn


async def test_flights_of_two_tenants_are_two(
    tenant_table: str, valkey: ValkeyServer, valkey_dsn: str
) -> None:
    """P9: a load under way for one tenant is not joined by another."""
    beside = await asyncpg.connect(tenant_table)
    async with runtime(tenant_table, valkey_dsn).scope() as ctx:
        query, docs = ctx.document.query(SPEC), ctx.document.command(SPEC)
        with ctx.bind_tenant("a"):
            product = await docs.create(ProductCreate(name="of a", price=1))
        async with beside.transaction():
            await beside.execute("LOCK TABLE products IN ACCESS EXCLUSIVE MODE")
            with ctx.bind_tenant("a"):
                mine = asyncio.create_task(query.get(product.id))
            await waiting(beside, 1)
            with ctx.bind_tenant("b"):
                theirs = asyncio.create_task(query.get(product.id))
            await waiting(beside, 2)
        assert (await mine).name == "of a"
        with pytest.raises(NotFoundError):
            await theirs
        assert ask(valkey, "EXISTS", f"app/cache/pointer/a/{product.id}") == 1
    await beside.close()


async def test_nothing_of_one_tenant_reaches_another(tenant_table: str, valkey_dsn: str) -> None:
    """P9: reads, batches, updates and removals stay with their tenant; none bound is an error."""
    async with runtime(tenant_table, valkey_dsn).scope() as ctx:
        query, docs = ctx.document.query(SPEC), ctx.document.command(SPEC)
        with ctx.bind_tenant("a"):
            product = await docs.create(ProductCreate(name="of a", price=1))
            assert (await query.get(product.id)).name == "of a"
            assert await ctx.cache(SPEC.cache).get(str(product.id)) is not None
        with ctx.bind_tenant("b"):
            assert await ctx.cache(SPEC.cache).get(str(product.id)) is None
            assert await query.get_many([product.id], missing="skip") == []
            for attempt in (
                query.get(product.id),
                docs.update(product.id, 1, ProductUpdate(price=2)),
                docs.kill(product.id),
            ):
                with pytest.raises(NotFoundError):
                    await attempt
        with ctx.bind_tenant("a"):
            assert (await query.get(product.id)).price == 1
        with pytest.raises(TenantRequired, match="bind_tenant"):
            await query.get(product.id)
        with pytest.raises(TenantRequired):
            await ctx.cache(SPEC.cache).get("k")


@pytest.mark.parametrize(("store", "cache"), [(True, False), (False, True)])
async def test_store_and_cache_must_agree(
    tenant_table: str, valkey_dsn: str, store: bool, cache: bool
) -> None:
    """P9: half a separation would mix tenants, or leave one's copy stale."""
    with pytest.raises(ConfigurationError, match="tenant-aware"):
        async with runtime(tenant_table, valkey_dsn, store=store, cache=cache).scope():
            pass
