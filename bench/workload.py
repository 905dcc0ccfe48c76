"""What every part works on: the documents, the servers, the wiring."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from datetime import timedelta
from typing import Any, NamedTuple
from uuid import UUID

import asyncpg

from bench.peers.products import Product, ProductCreate, ProductRead, ProductUpdate
from forze.application.contracts.cache import CacheSpec, L1Spec
from forze.application.contracts.document import DocumentSpec, DocumentWriteTypes
from forze.application.execution import (
    DepsPlan,
    ExecutionContext,
    ExecutionRuntime,
    LifecyclePlan,
)
from forze.testing.servers import PostgresServer, ValkeyServer
from forze_postgres import (
    PostgresClient,
    PostgresConfig,
    PostgresDepsModule,
    PostgresDocumentConfig,
    postgres_lifecycle_step,
)
from forze_redis import RedisCacheConfig, RedisClient, RedisDepsModule, redis_lifecycle_step

DOCUMENTS = 1_000

_COLUMNS = """
    id uuid PRIMARY KEY, rev bigint NOT NULL, created_at timestamptz NOT NULL,
    last_update_at timestamptz NOT NULL, name text NOT NULL, price bigint NOT NULL,
    description text NOT NULL
"""


def _spec(
    name: str, cache: CacheSpec | None
) -> DocumentSpec[ProductRead, ProductCreate, ProductUpdate]:
    write = DocumentWriteTypes(domain=Product, create_cmd=ProductCreate, update_cmd=ProductUpdate)
    return DocumentSpec(name=name, read=ProductRead, write=write, cache=cache)


CACHED = _spec("products", CacheSpec(name="products", ttl=timedelta(hours=1)))
UNCACHED = _spec("plain_products", None)  # a table of its own: writes to it announce nothing


def hot_spec(l1: L1Spec) -> DocumentSpec[ProductRead, ProductCreate, ProductUpdate]:
    """The cached documents, the hot ones kept in the process too."""
    return _spec("products", CacheSpec(name="products", ttl=timedelta(hours=1), l1=l1))


class TcpPostgres(PostgresServer):
    """PostgreSQL that waits for its disk, over TCP like Valkey: a socket file would make the
    source look closer than the cache."""

    def __init__(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self._port = free.getsockname()[1]
        super().__init__(fsync=True, listen_addresses="127.0.0.1", port=self._port)

    def database_dsn(self, database: str) -> str:
        """A database of this server."""
        return f"postgresql://postgres@127.0.0.1:{self._port}/{database}"


class Servers(NamedTuple):
    """Both servers of a run, started and with their tables."""

    postgres: PostgresServer
    valkey: ValkeyServer


@contextmanager
def servers() -> Iterator[Servers]:
    """PostgreSQL and Valkey, for the length of the run."""
    with TcpPostgres() as postgres, ValkeyServer() as valkey:
        yield Servers(postgres, valkey)


async def prepare(at: Servers) -> list[UUID]:
    """Make the tables and the documents; their ids."""
    connection = await asyncpg.connect(at.postgres.dsn)
    try:
        for table in ("products", "plain_products"):
            await connection.execute(f"CREATE TABLE {table} ({_COLUMNS})")
    finally:
        await connection.close()
    async with wired(at) as ctx:
        commands = [
            ProductCreate(name=f"Product {number}", price=number, description="x" * 280)
            for number in range(DOCUMENTS)
        ]
        await ctx.document.command(UNCACHED).create_many(commands)
        made = await ctx.document.command(CACHED).create_many(commands)
    return [document.id for document in made]


@asynccontextmanager
async def wired(
    at: Servers,
    cached: DocumentSpec[ProductRead, ProductCreate, ProductUpdate] = CACHED,
    **cache: Any,
) -> AsyncIterator[ExecutionContext]:
    """A runtime over both servers, as an application would wire it."""
    pg, redis = PostgresClient(), RedisClient()
    documents = {
        name: PostgresDocumentConfig(read=("public", name), write=("public", name))
        for name in ("products", "plain_products")
    }
    runtime = ExecutionRuntime(
        deps=DepsPlan.from_modules(
            PostgresDepsModule(client=pg, rw_documents=documents, tx=set(documents)),
            RedisDepsModule(
                client=redis,
                caches={"products": RedisCacheConfig(namespace="bench:products", **cache)},
            ),
        ),
        lifecycle=LifecyclePlan.from_steps(
            postgres_lifecycle_step(dsn=at.postgres.dsn, config=PostgresConfig(max_size=15)),
            redis_lifecycle_step(dsn=at.valkey.dsn),
        ),
        specs=[cached, UNCACHED],
    )
    async with runtime.scope() as ctx:
        yield ctx
