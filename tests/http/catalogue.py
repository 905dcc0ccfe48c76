"""Products over HTTP: an application for the tests of document endpoints.

``application_from_environment`` is a factory for replicas.
"""

from __future__ import annotations

import os
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Annotated, Any, Literal

from fastapi import FastAPI
from pydantic import Field

from forze.application.contracts.cache import CacheSpec
from forze.application.contracts.document import DocumentSpec
from forze.application.contracts.idempotency import IdempotencySpec
from forze.application.contracts.search import SearchResultSnapshotSpec
from forze.application.execution import DepsPlan, ExecutionRuntime, LifecyclePlan
from forze.domain.models import BaseDTO, CreateDocumentCmd, Document, ReadDocument
from forze_fastapi import (
    attach_document_endpoints,
    register_exception_handlers,
    runtime_lifespan,
)
from forze_memory import MemoryDepsModule
from forze_postgres import (
    PostgresClient,
    PostgresConfig,
    PostgresDepsModule,
    PostgresDocumentConfig,
    postgres_lifecycle_step,
)
from forze_redis import RedisClient, RedisDepsModule, redis_lifecycle_step

Name = Annotated[str, Field(max_length=80)]
Price = Annotated[int, Field(ge=0, le=10**12)]
Color = Literal["red", "green", "blue"]

TABLE = """
CREATE TABLE products (
    id uuid PRIMARY KEY, rev bigint NOT NULL,
    created_at timestamptz NOT NULL, last_update_at timestamptz NOT NULL,
    name text NOT NULL, price bigint NOT NULL, color text, weight double precision,
    vat numeric NOT NULL, available boolean NOT NULL, released_at timestamptz,
    tags jsonb NOT NULL
)
"""


class Product(Document):
    name: Name
    price: Price
    color: Color | None = None
    weight: float | None = None
    vat: Decimal = Decimal("0.19")
    available: bool = True
    released_at: datetime | None = None
    tags: list[str] = Field(default_factory=list)


class ProductCreate(CreateDocumentCmd):
    name: Name
    price: Price
    color: Color | None = None
    weight: float | None = None
    available: bool = True
    tags: list[str] = Field(default_factory=list)


class ProductUpdate(BaseDTO):
    name: Name = ""
    price: Price = 0
    color: Color | None = None


class ProductRead(ReadDocument):
    name: str
    price: int
    color: Color | None
    weight: float | None
    vat: Decimal
    available: bool
    released_at: datetime | None
    tags: list[str]


def products(**more: Any) -> DocumentSpec[Any, Any, Any]:
    """The spec, cached for as long as a test runs."""
    return DocumentSpec(
        name="products",
        read=ProductRead,
        write={"domain": Product, "create_cmd": ProductCreate, "update_cmd": ProductUpdate},
        cache=CacheSpec(name="products", ttl=timedelta(minutes=10)),
        **more,
    )


SNAPSHOT = SearchResultSnapshotSpec(name="products", cursor_secret="0123456789abcdef")
ONCE = IdempotencySpec(name="products")


def memory_runtime(*specs: Any) -> ExecutionRuntime:
    """Everything in this process."""
    return ExecutionRuntime(deps=DepsPlan.from_modules(MemoryDepsModule()), specs=specs)


def server_runtime(
    postgres_dsn: str, valkey_dsn: str, *specs: Any, read: str = "products"
) -> ExecutionRuntime:
    """PostgreSQL and Valkey."""
    postgres, redis = PostgresClient(), RedisClient()
    config = PostgresDocumentConfig(read=("public", read), write=("public", "products"))
    return ExecutionRuntime(
        deps=DepsPlan.from_modules(
            PostgresDepsModule(client=postgres, rw_documents={"products": config}),
            RedisDepsModule(
                client=redis,
                caches={"products": {"namespace": "test:products"}},
                idempotency={"products": {"namespace": "test:once"}},
                search_snapshots={"products": {"namespace": "test:snapshots"}},
            ),
        ),
        lifecycle=LifecyclePlan.from_steps(
            postgres_lifecycle_step(dsn=postgres_dsn, config=PostgresConfig(min_size=1)),
            redis_lifecycle_step(dsn=valkey_dsn),
        ),
        specs=specs,
    )


def application(
    runtime: ExecutionRuntime, spec: DocumentSpec[Any, Any, Any], **options: Any
) -> FastAPI:
    """The endpoints of ``spec`` at /products."""
    app = FastAPI(title="Products", lifespan=runtime_lifespan(runtime))
    register_exception_handlers(app)
    attach_document_endpoints(app, document=spec, ctx_dep=runtime.get_context, **options)
    return app


def memory_application(**options: Any) -> FastAPI:
    """In memory, with idempotent creation."""
    spec = products()
    return application(memory_runtime(spec), spec, idempotency=ONCE, **options)


def application_from_environment() -> FastAPI:
    """On the servers that the environment names."""
    spec = products()
    runtime = server_runtime(os.environ["POSTGRES_DSN"], os.environ["VALKEY_DSN"], spec)
    return application(runtime, spec)
