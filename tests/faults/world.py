"""Two replicas of one application over real servers, each behind a proxy that can hold things.

Everything between a replica and Valkey passes its proxy, so that a test can hold a named
command or its reply at the very moment that matters; rows are held in the database.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager
from contextvars import Context
from dataclasses import dataclass, field
from typing import Any, TypeVar

import asyncpg
import hiredis

from forze.application.contracts.cache import CacheSpec
from forze.application.contracts.document import DocumentSpec, DocumentWriteTypes
from forze.application.execution import (
    DepsRegistry,
    ExecutionContext,
    ExecutionRuntime,
    LifecyclePlan,
)
from forze.application.integrations.document.stats import CacheStats
from forze.domain.models import BaseDTO, CreateDocumentCmd, Document, ReadDocument
from forze.testing.proxy import RespProxy
from forze.testing.proxy import script as script
from forze.testing.servers import RespServer
from forze_postgres import (
    PostgresClient,
    PostgresConfig,
    PostgresDepsModule,
    PostgresDocumentConfig,
    PostgresLifecycleModule,
)
from forze_redis import (
    RedisClient,
    RedisConfig,
    RedisDepsModule,
    redis_lifecycle_step,
)

T = TypeVar("T")

NAMESPACE = "app:products"
POINTER = NAMESPACE + "/cache/pointer/"
TABLE = """
CREATE TABLE products (
    id uuid PRIMARY KEY, rev bigint NOT NULL,
    created_at timestamptz NOT NULL, last_update_at timestamptz NOT NULL,
    name text NOT NULL, price bigint NOT NULL
)"""


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


def product_spec(**cache: Any) -> DocumentSpec[ProductRead, ProductCreate, ProductUpdate]:
    """The document of the recipe."""
    return DocumentSpec(
        name="products",
        read=ProductRead,
        write=DocumentWriteTypes(
            domain=Product, create_cmd=ProductCreate, update_cmd=ProductUpdate
        ),
        cache=CacheSpec(name="products", **cache),
    )


SPEC = product_spec()


@dataclass
class Replica:
    """One process's worth of the application."""

    ctx: ExecutionContext
    proxy: RespProxy
    redis: RedisClient
    postgres: PostgresClient
    spec: DocumentSpec[ProductRead, ProductCreate, ProductUpdate] = field(default=SPEC)

    def __post_init__(self) -> None:
        self.query = self.ctx.document.query(self.spec)
        self.docs = self.ctx.document.command(self.spec)

    async def create(self, price: int = 10) -> ProductRead:
        """A new product."""
        return await self.docs.create(ProductCreate(name="Widget", price=price))

    async def reprice(self, product: ProductRead, price: int) -> ProductRead:
        """An update on top of ``product``."""
        return await self.docs.update(product.id, product.rev, ProductUpdate(price=price))

    async def price(self, product: ProductRead) -> int:
        """What a read says."""
        return (await self.query.get(product.id)).price

    @property
    def stats(self) -> CacheStats:
        """What the replica's cache did."""
        stats = self.query.stats()
        assert stats is not None
        return stats


@asynccontextmanager
async def replica(
    postgres_dsn: str,
    redis_port: int,
    *,
    cache: dict[str, Any] | None = None,
    redis: RedisConfig | None = None,
    postgres: PostgresConfig | None = None,
    spec: DocumentSpec[ProductRead, ProductCreate, ProductUpdate] = SPEC,
) -> AsyncIterator[Replica]:
    """A replica, running, its Redis connections through a proxy of its own."""
    pg, client = PostgresClient(), RedisClient()
    async with AsyncExitStack() as stack:
        proxy = await stack.enter_async_context(RespProxy(redis_port))
        runtime = ExecutionRuntime(
            deps=DepsRegistry.from_modules(
                PostgresDepsModule(
                    client=pg,
                    rw_documents={
                        "products": PostgresDocumentConfig(
                            read=("public", "products"), write=("public", "products")
                        )
                    },
                    tx={"products"},
                ),
                RedisDepsModule(
                    client=client,
                    caches={"products": {"namespace": NAMESPACE} | (cache or {})},
                ),
            ),
            lifecycle=LifecyclePlan.from_modules(
                PostgresLifecycleModule(
                    client=pg, dsn=postgres_dsn, config=postgres or PostgresConfig()
                )
            ).with_steps(redis_lifecycle_step(dsn=proxy.dsn, config=redis or RedisConfig())),
            specs=[spec],
        )
        ctx = await stack.enter_async_context(runtime.scope())
        yield Replica(ctx, proxy, client, pg, spec)


@asynccontextmanager
async def table(postgres_dsn: str) -> AsyncIterator[asyncpg.Connection[Any]]:
    """The products table, and a connection beside the library's to look and to hold rows."""
    connection = await asyncpg.connect(postgres_dsn)
    try:
        await connection.execute(TABLE)
        yield connection
    finally:
        await connection.close()


async def elsewhere(work: Coroutine[Any, Any, T]) -> T:
    """``work`` as another request does it: in no transaction of this task."""
    return await asyncio.create_task(work, context=Context())


def ask(server: RespServer, *command: str | bytes | int) -> Any:
    """The server's own answer to a command, past every proxy."""
    reader = hiredis.Reader()
    reader.feed(
        server.ask(*(each.decode() if isinstance(each, bytes) else str(each) for each in command))
    )
    return reader.gets()


def state(server: RespServer, product: ProductRead) -> bytes | None:
    """The raw pointer of a product."""
    raw = ask(server, "GET", POINTER + str(product.id))
    assert raw is None or isinstance(raw, bytes)
    return raw
