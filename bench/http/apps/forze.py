"""forze behind FastAPI, wired as its documentation does; ``variant`` chooses the one route."""

from datetime import timedelta
from typing import Annotated
from uuid import UUID

from fastapi import Depends, FastAPI
from products import Product, ProductCreate, ProductRead, ProductUpdate

from forze.application.contracts.cache import CACHED, CacheSpec, L1Spec
from forze.application.contracts.document import DocumentSpec, DocumentWriteTypes
from forze.application.execution import (
    DepsPlan,
    ExecutionContext,
    ExecutionRuntime,
    LifecyclePlan,
)
from forze_fastapi import (
    attach_document_endpoints,
    cached_response,
    context_of,
    register_exception_handlers,
    runtime_lifespan,
)
from forze_postgres import (
    PostgresClient,
    PostgresConfig,
    PostgresDepsModule,
    PostgresDocumentConfig,
    postgres_lifecycle_step,
)
from forze_redis import RedisClient, RedisDepsModule, redis_lifecycle_step


def make(settings):
    variant = settings["variant"]
    l1 = L1Spec(ttl=timedelta(minutes=10), capacity=2048) if variant == "l1" else None
    spec = DocumentSpec(
        name="products",
        read=ProductRead,
        write=DocumentWriteTypes(
            domain=Product, create_cmd=ProductCreate, update_cmd=ProductUpdate
        ),
        cache=CacheSpec(name="products", ttl=timedelta(hours=1), l1=l1),
    )
    runtime = runtime_of(settings, spec)
    app = FastAPI(lifespan=runtime_lifespan(runtime))
    register_exception_handlers(app)
    if variant in ("endpoints", "l1"):
        attach_document_endpoints(app, document=spec, ctx_dep=runtime.get_context, include=("get",))
        return app

    async def product(
        id: UUID, ctx: Annotated[ExecutionContext, Depends(context_of(runtime))]
    ) -> ProductRead:
        return await ctx.document.query(spec).get(id)

    if variant == "cached_response":
        product = cached_response(ttl=timedelta(hours=1))(product)
    app.get("/products/{id}")(product)
    return app


def runtime_of(settings, spec):
    table = PostgresDocumentConfig(read=("public", "products"), write=("public", "products"))
    return ExecutionRuntime(
        deps=DepsPlan.from_modules(
            PostgresDepsModule(client=PostgresClient(), rw_documents={"products": table}),
            RedisDepsModule(
                client=RedisClient(),
                caches={
                    name: {"namespace": f"bench:http:{name}"} for name in ("products", CACHED.name)
                },
            ),
        ),
        lifecycle=LifecyclePlan.from_steps(
            postgres_lifecycle_step(
                dsn=settings["postgres"], config=PostgresConfig(min_size=1, max_size=15)
            ),
            redis_lifecycle_step(dsn=settings["valkey"]),
        ),
        specs=[spec],
    )
