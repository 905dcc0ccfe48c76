"""The application: products over HTTP, from one spec."""

from __future__ import annotations

import os
from datetime import timedelta
from typing import Literal

from fastapi import FastAPI

from forze.application.contracts.cache import CacheSpec
from forze.application.contracts.document import DocumentSpec, DocumentWriteTypes
from forze.application.contracts.idempotency import IdempotencySpec
from forze.application.execution import DepsPlan, ExecutionRuntime, LifecyclePlan
from forze.domain.models import BaseDTO, CreateDocumentCmd, Document, ReadDocument
from forze_fastapi import (
    attach_document_endpoints,
    register_exception_handlers,
    runtime_lifespan,
)
from forze_postgres import (
    PostgresClient,
    PostgresDepsModule,
    PostgresDocumentConfig,
    postgres_lifecycle_step,
)
from forze_redis import RedisClient, RedisDepsModule, redis_lifecycle_step

Color = Literal["red", "green", "blue"]


class Product(Document):
    name: str
    price: int
    color: Color


class ProductCreate(CreateDocumentCmd):
    name: str
    price: int
    color: Color


class ProductUpdate(BaseDTO):
    name: str = ""
    price: int = 0


class ProductRead(ReadDocument):
    name: str
    price: int
    color: Color


PRODUCTS = DocumentSpec(
    name="products",
    read=ProductRead,
    write=DocumentWriteTypes(domain=Product, create_cmd=ProductCreate, update_cmd=ProductUpdate),
    cache=CacheSpec(name="products", ttl=timedelta(minutes=5)),
)

ONCE = IdempotencySpec(name="default")


def build_app() -> FastAPI:
    """The application on the servers that REDIS_DSN and POSTGRES_DSN name."""
    table = PostgresDocumentConfig(read=("public", "products"), write=("public", "products"))
    runtime = ExecutionRuntime(
        deps=DepsPlan.from_modules(
            PostgresDepsModule(client=PostgresClient(), rw_documents={"products": table}),
            RedisDepsModule(
                client=RedisClient(),
                caches={"products": {"namespace": "recipe:products"}},
                idempotency={"default": {"namespace": "recipe:idempotency"}},
            ),
        ),
        lifecycle=LifecyclePlan.from_steps(
            postgres_lifecycle_step(dsn=os.environ["POSTGRES_DSN"]),
            redis_lifecycle_step(dsn=os.environ["REDIS_DSN"]),
        ),
        specs=[PRODUCTS, ONCE],
    )
    app = FastAPI(title="Products", lifespan=runtime_lifespan(runtime))
    register_exception_handlers(app)
    attach_document_endpoints(app, document=PRODUCTS, ctx_dep=runtime.get_context, idempotency=ONCE)
    return app
