"""A cached document: the model, the wiring, and what happens on read and write.

The only line about caching in the model is ``cache=`` on its specification, the only one
in the wiring is ``caches=``. The handlers do not change.
"""

from __future__ import annotations

import os
from secrets import token_hex

from forze.application.contracts.cache import CacheSpec
from forze.application.contracts.document import DocumentSpec, DocumentWriteTypes
from forze.application.execution import (
    DepsRegistry,
    ExecutionContext,
    ExecutionRuntime,
    LifecyclePlan,
)
from forze.domain.models import BaseDTO, CreateDocumentCmd, Document, ReadDocument
from forze_postgres import (
    PostgresClient,
    PostgresConfig,
    PostgresDepsModule,
    PostgresDocumentConfig,
    PostgresLifecycleModule,
)
from forze_redis import RedisCacheConfig, RedisClient, RedisDepsModule, redis_lifecycle_step


class Product(Document):
    name: str
    price: int


class ProductCreate(CreateDocumentCmd):
    name: str
    price: int


class ProductUpdate(BaseDTO):
    name: str | None = None
    price: int | None = None


class ProductRead(ReadDocument):
    name: str
    price: int


PRODUCT_SPEC = DocumentSpec(
    name="products",
    read=ProductRead,
    write=DocumentWriteTypes(domain=Product, create_cmd=ProductCreate, update_cmd=ProductUpdate),
    cache=CacheSpec(name="products"),  # reads cached, writes invalidate
)

SCHEMA = os.environ.get("RECIPE_SCHEMA") or f"forze_cache_reads_{token_hex(4)}"

PRODUCT_PG = PostgresDocumentConfig(read=(SCHEMA, "products"), write=(SCHEMA, "products"))
PRODUCT_CACHE = RedisCacheConfig(namespace="app:products")


def build_runtime(
    pg: PostgresClient,
    redis: RedisClient,
    *,
    pg_dsn: str,
    redis_dsn: str,
    table: PostgresDocumentConfig = PRODUCT_PG,
    cache: RedisCacheConfig = PRODUCT_CACHE,
) -> ExecutionRuntime:
    deps = DepsRegistry.from_modules(
        PostgresDepsModule(client=pg, rw_documents={"products": table}, tx={"products"}),
        # caches keyed by CacheSpec.name: this is the whole "cache reads" step
        RedisDepsModule(client=redis, caches={"products": cache}),
    )
    lifecycle = LifecyclePlan.from_modules(
        PostgresLifecycleModule(client=pg, dsn=pg_dsn, config=PostgresConfig()),
    ).with_steps(redis_lifecycle_step(dsn=redis_dsn))
    return ExecutionRuntime(deps=deps.freeze(), lifecycle=lifecycle.freeze())


async def cache_scenario(ctx: ExecutionContext) -> ProductRead:
    docs = ctx.document.command(PRODUCT_SPEC)
    query = ctx.document.query(PRODUCT_SPEC)
    cache = ctx.cache(PRODUCT_SPEC.cache)

    product = await docs.create(ProductCreate(name="Widget", price=10))

    await query.get(product.id)  # miss: fills the cache
    assert await cache.get(str(product.id)) is not None  # cached now

    await docs.update(product.id, product.rev, ProductUpdate(price=12))  # invalidates
    fresh = await query.get(product.id)  # repopulates, new value
    assert fresh.price == 12
    return fresh
