"""Servers for the tests: one Valkey, one Redis 7 where installed, one PostgreSQL per session.

Tests that mistreat a server take ``own_valkey`` or ``own_redis_server`` and have it alone.
"""

from __future__ import annotations

import itertools
import signal
from collections.abc import AsyncIterator, Iterator

import asyncpg
import pytest

from forze.testing.cluster import ValkeyCluster
from forze.testing.servers import PostgresServer, RedisServer, RespServer, ValkeyServer

_NO_REDIS = "no redis-server on the PATH: nothing was tested against Redis 7"
_databases = itertools.count(1)
_LONGEST = "test_protocol_model.py"

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # begun by a shell, in the background
    signal.signal(signal.SIGINT, signal.default_int_handler)  # what they start inherits it


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What takes minutes begins first, so that no worker is left alone with it at the end."""
    items.sort(key=lambda item: item.path.name != _LONGEST)


@pytest.fixture(scope="session")
def valkey() -> Iterator[ValkeyServer]:
    """The session's Valkey."""
    with ValkeyServer() as server:
        yield server


@pytest.fixture(scope="session")
def redis7() -> Iterator[RedisServer]:
    """The session's Redis 7."""
    if RedisServer.executable() is None:
        pytest.skip(_NO_REDIS)
    with RedisServer() as server:
        yield server


@pytest.fixture(scope="session")
def valkey_cluster() -> Iterator[ValkeyCluster]:
    """The session's cluster of three Valkey nodes; to be left with its slots where they are.

    A node that a busy machine lets wait for seconds is not given up by the others.
    """
    with ValkeyCluster(node_timeout_ms=15_000) as cluster:
        yield cluster


@pytest.fixture(scope="session", params=["valkey", "redis7"])
def redis_server(request: pytest.FixtureRequest) -> RespServer:
    """Valkey, then Redis 7."""
    server: RespServer = request.getfixturevalue(request.param)
    return server


@pytest.fixture
def redis_dsn(redis_server: RespServer) -> str:
    """The DSN of an empty ``redis_server``."""
    redis_server.ask("FLUSHALL")
    return redis_server.dsn


@pytest.fixture
def valkey_dsn(valkey: ValkeyServer) -> str:
    """The DSN of an empty Valkey, where one kind of server is enough."""
    valkey.ask("FLUSHALL")
    return valkey.dsn


@pytest.fixture
def own_valkey() -> Iterator[ValkeyServer]:
    """A Valkey for one test, to be stopped, killed, paused."""
    with ValkeyServer() as server:
        yield server


@pytest.fixture(params=["valkey", "redis7"])
def own_redis_server(request: pytest.FixtureRequest) -> Iterator[RespServer]:
    """A Valkey, then a Redis 7, for one test."""
    if request.param == "redis7" and RedisServer.executable() is None:
        pytest.skip(_NO_REDIS)
    with ValkeyServer() if request.param == "valkey" else RedisServer() as server:
        yield server


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    """The session's PostgreSQL, fsync off."""
    with PostgresServer(max_connections=200) as server:
        yield server


@pytest.fixture
async def postgres_dsn(postgres_server: PostgresServer) -> AsyncIterator[str]:
    """The DSN of a database that is new and empty, and dropped after the test."""
    name = f"test_{next(_databases)}"
    admin = await asyncpg.connect(postgres_server.dsn)
    try:
        await admin.execute(f"CREATE DATABASE {name} TEMPLATE template0 STRATEGY FILE_COPY")
        yield postgres_server.database_dsn(name)
        await admin.execute(f"DROP DATABASE {name} WITH (FORCE)")
    finally:
        await admin.close()
