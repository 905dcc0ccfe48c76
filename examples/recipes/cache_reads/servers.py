"""Where the recipe runs: servers of its own, or those the environment names.

``POSTGRES_DSN`` and ``REDIS_DSN`` point it at servers that run already; nothing is started
in their place, and the recipe's table lives in a schema that it makes and drops again.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import NamedTuple

import asyncpg
from app import SCHEMA

from forze.testing.servers import PostgresServer, ValkeyServer

TABLE = f"""
CREATE SCHEMA {SCHEMA};
CREATE TABLE {SCHEMA}.products (
    id uuid PRIMARY KEY,
    rev bigint NOT NULL,
    created_at timestamptz NOT NULL,
    last_update_at timestamptz NOT NULL,
    name text NOT NULL,
    price bigint NOT NULL
);
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
    await _execute(dsn, TABLE)
    try:
        yield
    finally:
        await _execute(dsn, f"DROP SCHEMA {SCHEMA} CASCADE")


async def _execute(dsn: str, sql: str) -> None:
    connection = await asyncpg.connect(dsn)
    try:
        await connection.execute(sql)
    finally:
        await connection.close()
