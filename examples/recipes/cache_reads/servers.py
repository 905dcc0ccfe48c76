"""Where the recipe runs: servers of its own, or those the environment names.

``POSTGRES_DSN`` and ``REDIS_DSN`` point it at servers that run already; nothing is started
in their place, and the recipe's table lives in a schema that it makes and drops again.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import NamedTuple

from app import SCHEMA

from forze.testing.servers import PostgresServer, ValkeyServer
from forze_postgres import PostgresClient, PostgresConfig

TABLE = f"""
CREATE TABLE {SCHEMA}.products (
    id uuid PRIMARY KEY,
    rev bigint NOT NULL,
    created_at timestamptz NOT NULL,
    last_update_at timestamptz NOT NULL,
    name text NOT NULL,
    price bigint NOT NULL
)
"""


class Servers(NamedTuple):
    """Where PostgreSQL and Redis (or Valkey) answer."""

    pg_dsn: str
    redis_dsn: str
    pg_is_ours: bool
    redis_is_ours: bool


@asynccontextmanager
async def servers() -> AsyncIterator[Servers]:
    """Both servers, and the recipe's table; on the way out, everything that was made goes."""
    async with AsyncExitStack() as stack:
        pg_dsn = os.environ.get("POSTGRES_DSN", "")
        redis_dsn = os.environ.get("REDIS_DSN", "")
        pg_is_ours, redis_is_ours = not pg_dsn, not redis_dsn
        if pg_is_ours:
            pg_dsn = stack.enter_context(PostgresServer()).dsn
        if redis_is_ours:
            redis_dsn = stack.enter_context(ValkeyServer()).dsn
        await stack.enter_async_context(_table(pg_dsn))
        yield Servers(pg_dsn, redis_dsn, pg_is_ours, redis_is_ours)


@asynccontextmanager
async def _table(dsn: str) -> AsyncIterator[None]:
    client = PostgresClient()
    await client.connect(dsn, PostgresConfig(min_size=1, max_size=1))
    try:
        await client.rows(f"CREATE SCHEMA {SCHEMA}", doing=f"make schema {SCHEMA}", write=True)
        try:
            await client.rows(TABLE, doing="make the table", write=True)
            yield
        finally:
            drop = f"DROP SCHEMA {SCHEMA} CASCADE"
            await client.rows(drop, doing=f"drop schema {SCHEMA}", write=True)
    finally:
        await client.close()
