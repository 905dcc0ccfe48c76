"""The redis-py side: one bounded pool for everything that does not belong on the shared wire.

Values above :data:`LARGE_BYTES` go through it, so that they hold up nobody else, and
``client.redis`` is it. Nothing is retried behind the caller's back.
"""

from __future__ import annotations

import asyncio
import socket

from redis import exceptions as driver
from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.cluster import ClusterNode, RedisCluster
from redis.asyncio.connection import Connection, SSLConnection, UnixDomainSocketConnection
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import (
    SentinelConnectionPool,
    SentinelManagedConnection,
    SentinelManagedSSLConnection,
)
from redis.backoff import NoBackoff

from forze.errors import (
    BackendCorrupt,
    BackendTimeout,
    BackendUnavailable,
    ForzeError,
    ValidationError,
)
from forze_redis.wire.config import RedisConfig, seconds
from forze_redis.wire.connection import Reply
from forze_redis.wire.dsn import Endpoint
from forze_redis.wire.place import Kinds, place
from forze_redis.wire.replies import BACKEND, error_from_reply
from forze_redis.wire.scripts import in_full
from forze_redis.wire.topology import Topology

LARGE_BYTES = 256 * 1024

ASYNC = Kinds(
    plain=Connection,
    tls=SSLConnection,
    unix=UnixDomainSocketConnection,
    sentinel=SentinelManagedConnection,
    sentinel_tls=SentinelManagedSSLConnection,
)

# redis-py cuts off a reply's first word when it makes one of these of it. The derived
# classes stand before those they derive from.
_WORDS: tuple[tuple[type[Exception], str], ...] = (
    (driver.NoScriptError, "NOSCRIPT"),
    (driver.OutOfMemoryError, "OOM"),
    (driver.ReadOnlyError, "READONLY"),
    (driver.NoPermissionError, "NOPERM"),
    (driver.BusyLoadingError, "LOADING"),
    (driver.AuthenticationError, "WRONGPASS"),
    (driver.AuthorizationError, "NOPERM"),
    (driver.MovedError, "MOVED"),
    (driver.AskError, "ASK"),
    (driver.TryAgainError, "TRYAGAIN"),
    (driver.MasterDownError, "MASTERDOWN"),
    (driver.ClusterDownError, "CLUSTERDOWN"),
    (driver.SlotNotCoveredError, "CLUSTERDOWN"),
)


_NEVER_SENT = (ConnectionRefusedError, FileNotFoundError, socket.gaierror)
"""What connecting fails with before anything is sent."""


class PrimaryPool(SentinelConnectionPool, BlockingConnectionPool):
    """Connections to whichever server is the primary when they are opened."""


def open_pool(endpoint: Endpoint, config: RedisConfig, topology: Topology) -> Redis:
    """A redis-py client whose connections, with the shared one, stay within ``max_size``."""
    connection_class, arguments = place(endpoint, ASYNC, keepalive=config.keepalive)
    pool_class: type[BlockingConnectionPool] = BlockingConnectionPool
    if endpoint.sentinels is not None:
        pool_class = PrimaryPool
        arguments |= {"service_name": endpoint.sentinels.service, "sentinel_manager": topology}
    timeout = seconds(config.socket_timeout)
    return Redis(
        connection_pool=pool_class(
            connection_class=connection_class,
            max_connections=config.max_size - 1,
            timeout=timeout,
            client_name=config.client_name,
            socket_timeout=timeout,
            socket_connect_timeout=seconds(config.connect_timeout),
            retry=Retry(NoBackoff(), 0),
            **arguments,
        )
    )


def open_cluster_pool(endpoint: Endpoint, config: RedisConfig) -> RedisCluster:
    """A redis-py client of the whole cluster: ``max_size - 1`` connections to each node."""
    timeout = seconds(config.socket_timeout)
    return RedisCluster(
        startup_nodes=[ClusterNode(*seed) for seed in endpoint.seeds],
        max_connections=config.max_size - 1,
        username=endpoint.username,
        password=endpoint.password,
        client_name=config.client_name,
        socket_timeout=timeout,
        socket_connect_timeout=seconds(config.connect_timeout),
        socket_keepalive=config.keepalive,
        retry=Retry(NoBackoff(), 0),
        require_full_coverage=False,
        ssl=endpoint.tls is not None,
        **(endpoint.tls or {}),
    )


async def execute(
    redis: Redis, packed: bytes, timeout: float, where: str, before: bytes | None = None
) -> Reply:
    """Send a packed command on a connection of the pool, right behind one ``before`` it; errors
    are ours."""
    try:
        async with asyncio.timeout(timeout):
            connection = await redis.connection_pool.get_connection()  # type: ignore[no-untyped-call]
            try:
                if before is not None:
                    await connection.send_packed_command(before)
                    await connection.read_response()
                await connection.send_packed_command(packed)
                try:
                    return await connection.read_response()
                except driver.NoScriptError:
                    full = in_full(packed)
                    if full is None:
                        raise
                    if before is not None:
                        await connection.send_packed_command(before)
                        await connection.read_response()
                    await connection.send_packed_command(full)
                    return await connection.read_response()
            finally:
                await redis.connection_pool.release(connection)
    except Exception as error:
        raise error_from_driver(error, where) from error


def error_from_driver(
    error: Exception, where: str, timeout_setting: str = "RedisConfig.socket_timeout"
) -> ForzeError:
    """The error of ours for whatever redis-py or the socket below it raised."""
    if isinstance(error, driver.RedisClusterException) and isinstance(error.__cause__, Exception):
        error = error.__cause__  # no node of a cluster could be asked
    if isinstance(error.__context__, (ForzeError, driver.ReadOnlyError)):
        error = error.__context__  # what a pool behind sentinels made a ConnectionError of
    if isinstance(error, ForzeError):
        return error
    for kind, word in _WORDS:
        if isinstance(error, kind):
            text = str(error)
            return error_from_reply(text if text.startswith(word) else f"{word} {text}", where)
    if isinstance(error, (driver.TimeoutError, TimeoutError)):
        return BackendTimeout(
            f"Redis at {where} did not answer in time; it may have executed the command. Look at "
            f"its load and at the network, or allow more time ({timeout_setting})",
            backend=BACKEND,
            outcome="unknown",
        )
    if isinstance(error.__context__ or error, _NEVER_SENT):
        return BackendUnavailable(
            f"Redis at {where}: there is no connection ({error}); nothing was sent. Is the server "
            "running?",
            backend=BACKEND,
        )
    if isinstance(error, (driver.ConnectionError, OSError)):
        return BackendUnavailable(
            f"Redis at {where}: the connection failed ({error}); the command may have been "
            "executed. Is the server running?",
            backend=BACKEND,
            outcome="unknown",
        )
    if isinstance(error, driver.DataError):
        return ValidationError(f"not an argument of a Redis command: {error}")
    if isinstance(error, driver.ResponseError):
        return error_from_reply(str(error), where)
    return BackendCorrupt(
        f"Redis at {where}: {type(error).__name__}: {error}", backend=BACKEND, outcome="unknown"
    )
