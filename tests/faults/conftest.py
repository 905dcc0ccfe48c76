"""What the fault tests share: the products table, replicas over it, and three servers."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
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


@pytest.fixture(scope="module")
def three_servers() -> Iterator[list[ValkeyServer]]:
    """Started once for all tests of a file."""
    with ValkeyServer() as one, ValkeyServer() as two, ValkeyServer() as three:
        yield [one, two, three]


@pytest.fixture
def servers(three_servers: list[ValkeyServer]) -> list[ValkeyServer]:
    """Three servers that are as good as new."""
    for each in three_servers:
        each.resume()
        each.start()
        for words in ("CLIENT KILL TYPE normal", "FLUSHALL", "SCRIPT FLUSH", "ACL DELUSER app"):
            each.ask(*words.split())
    return three_servers


@pytest.fixture
def dsns(servers: list[ValkeyServer]) -> dict[str, str]:
    """Their DSNs, under the routes a, b and c."""
    return dict(zip("abc", (each.dsn for each in servers), strict=True))
