"""The same wiring in the older spelling: plans, dict configs, merged modules, ``doc_query``.

One implementation stands behind both; use the one your code base has.
"""

from __future__ import annotations

from app import SCHEMA, Product, ProductCreate, ProductRead, ProductUpdate

from forze.application.contracts.cache import CacheSpec
from forze.application.contracts.document import DocumentSpec
from forze.application.execution import (
    Deps,
    DepsPlan,
    ExecutionContext,
    ExecutionRuntime,
    LifecyclePlan,
)
from forze_postgres import (
    PostgresClient,
    PostgresConfig,
    PostgresDepsModule,
    postgres_lifecycle_step,
)
from forze_redis import RedisClient, RedisConfig, RedisDepsModule, redis_lifecycle_step

PRODUCT_SPEC: DocumentSpec[ProductRead, ProductCreate, ProductUpdate] = DocumentSpec(
    name="products",
    read=ProductRead,
    write={"domain": Product, "create_cmd": ProductCreate, "update_cmd": ProductUpdate},
    cache=CacheSpec(name="products"),
)


def build_runtime(
    pg: PostgresClient, redis: RedisClient, *, pg_dsn: str, redis_dsn: str
) -> ExecutionRuntime:
    relation = (SCHEMA, "products")
    return ExecutionRuntime(
        deps=DepsPlan.from_modules(
            lambda: Deps.merge(
                PostgresDepsModule(
                    client=pg, rw_documents={"products": {"read": relation, "write": relation}}
                )(),
                RedisDepsModule(client=redis, caches={"products": {"namespace": "app:products"}})(),
            ),
        ),
        lifecycle=LifecyclePlan.from_steps(
            postgres_lifecycle_step(dsn=pg_dsn, config=PostgresConfig()),
            redis_lifecycle_step(dsn=redis_dsn, config=RedisConfig(max_size=20)),
        ),
    )


async def cache_scenario(ctx: ExecutionContext) -> ProductRead:
    product = await ctx.doc_command(PRODUCT_SPEC).create(ProductCreate(name="Gadget", price=20))
    await ctx.doc_query(PRODUCT_SPEC).get(product.id)
    await ctx.doc_command(PRODUCT_SPEC).update(product.id, product.rev, ProductUpdate(price=25))
    return await ctx.doc_query(PRODUCT_SPEC).get(product.id)
