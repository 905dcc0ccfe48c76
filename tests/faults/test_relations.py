"""A write reaches every cached copy of what it changed, under whatever spec."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
import pytest
from tests.faults.world import (
    TABLE,
    Product,
    ProductCreate,
    ProductRead,
    ProductUpdate,
    elsewhere,
)

from forze.application.contracts.cache import CacheSpec
from forze.application.contracts.document import DocumentSpec
from forze.application.execution import (
    DepsPlan,
    ExecutionContext,
    ExecutionRuntime,
    LifecyclePlan,
)
from forze.errors import ConfigurationError, ConflictError
from forze_postgres import PostgresClient, PostgresDepsModule, postgres_lifecycle_step
from forze_redis import RedisClient, RedisDepsModule, redis_lifecycle_step

Spec = DocumentSpec[Any, Any, Any]
WRITE = {"domain": Product, "create_cmd": ProductCreate, "update_cmd": ProductUpdate}


class Shown(ProductRead):
    label: str


def spec(name: str, read: type[Any] = ProductRead, *, write: bool = True) -> Spec:
    return DocumentSpec(
        name=name, read=read, write=WRITE if write else None, cache=CacheSpec(name=name)
    )


PRODUCTS = spec("products")
CATEGORIES = spec("categories")
SHOWN = spec("shown", Shown, write=False)
LISTING = spec("listing", write=False)
ADMIN = spec("admin")


@pytest.fixture
async def tables(postgres_dsn: str) -> AsyncIterator[asyncpg.Connection[Any]]:
    connection = await asyncpg.connect(postgres_dsn)
    for table in ("products", "categories"):
        await connection.execute(TABLE.replace("products", table))
    await connection.execute(
        "CREATE VIEW shown AS SELECT products.*, categories.name AS label "
        "FROM products CROSS JOIN categories"
    )
    yield connection
    await connection.close()


@asynccontextmanager
async def app(
    postgres_dsn: str,
    redis_dsn: str,
    *,
    specs: Iterable[Spec],
    shown: dict[str, Any] | None = None,
    tenants: Iterable[str] = (),
    table: str = "products",
    namespace: Any = None,
) -> AsyncIterator[ExecutionContext]:
    """Every spec above, over the tables of the test."""

    def relation(name: str) -> tuple[str, str]:
        return ("public", name)

    aware = {name: {"tenant_aware": name in tenants} for name in ("products", "admin")}
    pg, reporting = PostgresClient(), PostgresClient()
    products = {"read": relation(table), "write": relation(table)}
    runtime = ExecutionRuntime(
        deps=DepsPlan.from_modules(
            PostgresDepsModule(
                client=pg,
                rw_documents={
                    "products": {**products, **aware["products"]},
                    "admin": {**products, **aware["admin"]},
                    "categories": {"read": relation("categories"), "write": relation("categories")},
                },
                ro_documents={"shown": {"read": relation("shown"), **(shown or {})}},
                tx={"products"},
            ),
            PostgresDepsModule(
                client=reporting,
                name="reporting",
                ro_documents={
                    "listing": {"read": relation(table), "tenant_aware": "products" in tenants}
                },
            ),
            RedisDepsModule(
                client=RedisClient(),
                caches={
                    name: {
                        "namespace": (namespace if name in tenants else None) or f"app:{name}",
                        "tenant_aware": name in tenants,
                    }
                    for name in ("products", "categories", "shown", "listing", "admin")
                },
            ),
        ),
        lifecycle=LifecyclePlan.from_steps(
            postgres_lifecycle_step(dsn=postgres_dsn, client=pg, id="main"),
            postgres_lifecycle_step(dsn=postgres_dsn, client=reporting, id="reporting"),
            redis_lifecycle_step(dsn=redis_dsn),
        ),
        specs=specs,
    )
    async with runtime.scope() as ctx:
        yield ctx


async def test_a_view_over_a_joined_table(
    tables: asyncpg.Connection[Any], postgres_dsn: str, valkey_dsn: str
) -> None:
    """P1: a write to a table whose ids are not the view's drops what the view has cached."""
    shown = {"invalidated_by": ("public.products",), "dropped_by": ("public.categories",)}
    specs = [PRODUCTS, CATEGORIES, SHOWN]
    async with app(postgres_dsn, valkey_dsn, specs=specs, shown=shown) as ctx:
        category = await ctx.doc_command(CATEGORIES).create(ProductCreate(name="old", price=0))
        product = await ctx.doc_command(PRODUCTS).create(ProductCreate(name="w", price=1))
        query = ctx.doc_query(SHOWN)
        assert (await query.get(product.id)).label == "old"
        await ctx.doc_command(CATEGORIES).update(category.id, 1, ProductUpdate(name="new"))
        assert (await query.get(product.id)).label == "new"
        await ctx.doc_command(PRODUCTS).update(product.id, 1, ProductUpdate(price=2))
        assert (await query.get(product.id)).price == 2


async def test_a_view_must_name_its_tables(
    tables: asyncpg.Connection[Any], postgres_dsn: str, valkey_dsn: str
) -> None:
    """P1: a cached view that nobody would invalidate is refused at start-up."""
    with pytest.raises(ConfigurationError, match=r"public\.categories.*dropped_by"):
        async with app(
            postgres_dsn, valkey_dsn, specs=[SHOWN], shown={"invalidated_by": ("public.products",)}
        ):
            pass


async def test_another_client_of_the_same_database(
    tables: asyncpg.Connection[Any], postgres_dsn: str, valkey_dsn: str
) -> None:
    """P1: a cached spec over the relation is told, whichever client it reads with."""
    async with app(postgres_dsn, valkey_dsn, specs=[PRODUCTS, LISTING]) as ctx:
        product = await ctx.doc_command(PRODUCTS).create(ProductCreate(name="w", price=1))
        assert (await ctx.doc_query(LISTING).get(product.id)).price == 1
        await ctx.doc_command(PRODUCTS).update(product.id, 1, ProductUpdate(price=2))
        assert (await ctx.doc_query(LISTING).get(product.id)).price == 2


async def test_a_spec_first_used_while_a_write_is_open(
    tables: asyncpg.Connection[Any], postgres_dsn: str, valkey_dsn: str
) -> None:
    """P1: caches that come between a write and its commit are told before the commit."""
    async with app(postgres_dsn, valkey_dsn, specs=[PRODUCTS]) as ctx:
        docs = ctx.doc_command(PRODUCTS)
        first, second = [await docs.create(ProductCreate(name="w", price=1)) for _ in range(2)]
        async with ctx.transaction("products"):
            await docs.update(first.id, 1, ProductUpdate(price=2))
            listing = ctx.doc_query(LISTING)
            for each in (first, second):
                assert (await elsewhere(listing.get(each.id))).price == 1
            await docs.update(second.id, 1, ProductUpdate(price=2))
        for each in (first, second):
            assert (await listing.get(each.id)).price == 2


async def test_a_task_that_outlives_its_transaction(
    tables: asyncpg.Connection[Any], postgres_dsn: str, valkey_dsn: str
) -> None:
    """P1: its writes do not go on outside, unannounced: the transaction is rolled back."""
    async with app(postgres_dsn, valkey_dsn, specs=[PRODUCTS]) as ctx:
        docs, query = ctx.doc_command(PRODUCTS), ctx.doc_query(PRODUCTS)
        made = [await docs.create(ProductCreate(name="w", price=each)) for each in range(3)]
        async with tables.transaction():
            await tables.execute("SELECT 1 FROM products FOR UPDATE")
            with pytest.raises(ConflictError, match="await the task inside the block"):
                async with ctx.transaction("products"):
                    updates = [(each.id, 1, ProductUpdate(price=99)) for each in made]
                    task = asyncio.create_task(docs.update_many(updates))
                    await asyncio.sleep(0.05)
                    asyncio.get_running_loop().call_later(
                        0.05, lambda: asyncio.ensure_future(tables.execute("ROLLBACK"))
                    )
        with pytest.raises(ConflictError):
            await task
        assert [(await query.get(each.id)).price for each in made] == [0, 1, 2]


@pytest.fixture
async def owned(postgres_dsn: str) -> None:
    connection = await asyncpg.connect(postgres_dsn)
    await connection.execute(
        TABLE.replace("products", "owned").replace("name text", "tenant_id text, name text")
    )
    await connection.close()


async def test_a_writer_for_all_tenants(owned: None, postgres_dsn: str, valkey_dsn: str) -> None:
    """P1, P9: a spec without tenants over a tenants' table reaches every tenant's copies."""
    async with app(
        postgres_dsn, valkey_dsn, specs=[PRODUCTS, ADMIN], tenants=["products"], table="owned"
    ) as ctx:
        with ctx.bind_tenant("a"):
            product = await ctx.doc_command(PRODUCTS).create(ProductCreate(name="w", price=1))
            assert (await ctx.doc_query(PRODUCTS).get(product.id)).price == 1
        with ctx.bind_tenant("b"):
            await ctx.doc_command(ADMIN).update(product.id, 1, ProductUpdate(price=2))
        with ctx.bind_tenant("a"):
            assert (await ctx.doc_query(PRODUCTS).get(product.id)).price == 2
        await ctx.doc_command(ADMIN).update(product.id, 2, ProductUpdate(price=3))
        with ctx.bind_tenant("a"):
            assert (await ctx.doc_query(PRODUCTS).get(product.id)).price == 3


async def test_a_writer_that_cannot_reach_every_tenant_is_refused(
    owned: None, postgres_dsn: str, valkey_dsn: str
) -> None:
    """P1, P9: with a namespace per tenant nobody knows all the copies: nothing is written."""
    async with app(
        postgres_dsn,
        valkey_dsn,
        specs=[PRODUCTS, ADMIN],
        tenants=["products"],
        table="owned",
        namespace=lambda tenant: f"app:{tenant}",
    ) as ctx:
        with ctx.bind_tenant("a"):
            product = await ctx.doc_command(PRODUCTS).create(ProductCreate(name="w", price=1))
            assert (await ctx.doc_query(PRODUCTS).get(product.id)).price == 1
            with pytest.raises(ConfigurationError, match="namespace per tenant"):
                await ctx.doc_command(ADMIN).update(product.id, 1, ProductUpdate(price=2))
            assert (await ctx.doc_query(PRODUCTS).get(product.id, skip_cache=True)).price == 1


async def test_more_matches_than_intents(
    tables: asyncpg.Connection[Any], postgres_dsn: str, valkey_dsn: str
) -> None:
    """P1: too many matches are refused before the commit, or drop the namespace."""
    async with app(postgres_dsn, valkey_dsn, specs=[PRODUCTS]) as ctx:
        docs, query = ctx.doc_command(PRODUCTS), ctx.doc_query(PRODUCTS)
        made = [await docs.create(ProductCreate(name="w", price=1)) for _ in range(3)]
        ids = [each.id for each in made]
        assert [each.price for each in await query.get_many(ids)] == [1, 1, 1]
        with pytest.raises(ConflictError, match="3 documents match"):
            await docs.update_matching({}, ProductUpdate(price=2), max_intents=2)
        assert [each.price for each in await query.get_many(ids)] == [1, 1, 1]
        changed = await docs.update_matching(
            {}, ProductUpdate(price=2), max_intents=2, invalidate="namespace"
        )
        assert changed == 3
        assert [each.price for each in await query.get_many(ids)] == [2, 2, 2]


async def test_a_direct_invalidation_follows_every_open_transaction(
    tables: asyncpg.Connection[Any], postgres_dsn: str, valkey_dsn: str
) -> None:
    """P1: SQL past the library, made known inside its transaction, is seen from its commit on."""
    async with app(postgres_dsn, valkey_dsn, specs=[PRODUCTS]) as ctx:
        docs, query = ctx.doc_command(PRODUCTS), ctx.doc_query(PRODUCTS)
        product = await docs.create(ProductCreate(name="w", price=1))
        cache = ctx.cache(PRODUCTS.cache)
        for price, forget in ((2, cache.invalidate), (3, cache.delete)):
            await query.get(product.id)
            async with ctx.transaction("products"):
                await tables.execute("UPDATE products SET price = $1", price)
                await forget(str(product.id))
                assert (await elsewhere(query.get(product.id))).price == price
            assert (await query.get(product.id)).price == price
