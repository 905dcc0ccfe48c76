"""What the fault tests share: the products table, and replicas over it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import pytest
from tests.faults.world import Replica, replica, table

from forze.testing.servers import RespServer, ValkeyServer


@pytest.fixture
async def database(postgres_dsn: str) -> AsyncIterator[asyncpg.Connection[Any]]:
    """The products table, and a connection beside the library's."""
    async with table(postgres_dsn) as connection:
        yield connection


@pytest.fixture
async def pair(
    database: asyncpg.Connection[Any], postgres_dsn: str, redis_server: RespServer, redis_dsn: str
) -> AsyncIterator[tuple[Replica, Replica]]:
    """Two replicas over the session's server."""
    port = redis_server.port
    async with replica(postgres_dsn, port) as a, replica(postgres_dsn, port) as b:
        yield a, b


@pytest.fixture
async def own_pair(
    database: asyncpg.Connection[Any], postgres_dsn: str, own_redis_server: RespServer
) -> AsyncIterator[tuple[Replica, Replica]]:
    """Two replicas over a server of the test's own."""
    port = own_redis_server.port
    async with replica(postgres_dsn, port) as a, replica(postgres_dsn, port) as b:
        yield a, b


@pytest.fixture
async def one(
    database: asyncpg.Connection[Any], postgres_dsn: str, valkey: ValkeyServer, valkey_dsn: str
) -> AsyncIterator[Replica]:
    """A replica over the session's Valkey."""
    async with replica(postgres_dsn, valkey.port) as only:
        yield only
