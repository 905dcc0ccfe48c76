"""forze 0.16.2: the hand-written route over its own cached documents, through Redis."""

from contextlib import asynccontextmanager
from datetime import timedelta
from uuid import UUID

from fastapi import FastAPI
from products import Product, ProductCreate, ProductRead, ProductUpdate

from forze.application.contracts.cache import CacheSpec
from forze.application.contracts.document import DocumentSpec, DocumentWriteTypes
from forze.application.execution import DepsRegistry, ExecutionRuntime, LifecyclePlan
from forze_postgres import (
    PostgresClient,
    PostgresConfig,
    PostgresDepsModule,
    PostgresDocumentConfig,
    PostgresLifecycleModule,
)
from forze_redis import RedisCacheConfig, RedisClient, RedisDepsModule, redis_lifecycle_step

SPEC = DocumentSpec(
    name="products",
    read=ProductRead,
    write=DocumentWriteTypes(domain=Product, create_cmd=ProductCreate, update_cmd=ProductUpdate),
    cache=CacheSpec(name="products", ttl=timedelta(hours=1)),
)


def make(settings):
    runtime = runtime_of(settings)

    @asynccontextmanager
    async def running(app):
        async with runtime.scope():
            yield

    app = FastAPI(lifespan=running)

    @app.get("/products/{id}")
    async def product(id: UUID) -> ProductRead:
        return await runtime.get_context().document.query(SPEC).get(id)

    return app


def runtime_of(settings):
    pg, client = PostgresClient(), RedisClient()
    table = PostgresDocumentConfig(
        read=("public", "products"),
        write=("public", "products"),
        bookkeeping_strategy="application",
    )
    return ExecutionRuntime(
        deps=DepsRegistry.from_modules(
            PostgresDepsModule(client=pg, rw_documents={"products": table}),
            RedisDepsModule(
                client=client, caches={"products": RedisCacheConfig(namespace="peer:http")}
            ),
        ).freeze(),
        lifecycle=LifecyclePlan.from_modules(
            PostgresLifecycleModule(client=pg, dsn=settings["postgres"], config=PostgresConfig())
        )
        .with_steps(redis_lifecycle_step(dsn=settings["valkey"]))
        .freeze(),
    )
