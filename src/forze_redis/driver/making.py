"""What the makers of both sorts of client have in common: from a URL to pools and connections."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any, TypeVar, cast

from forze_redis.driver.guard import Guard, NoGuard
from forze_redis.driver.limit import ConnectionLimit
from forze_redis.driver.options import DriverOptions, settings
from forze_redis.driver.watched import watched
from forze_redis.wire.config import RedisConfig
from forze_redis.wire.dsn import Endpoint, parse_dsn
from forze_redis.wire.place import Kinds, place

C = TypeVar("C")
S = TypeVar("S")


def make(
    url: str,
    options: DriverOptions,
    guard: Guard | None,
    limit: ConnectionLimit | None,
    *,
    cluster: Callable[[Endpoint, DriverOptions, Guard, ConnectionLimit], C],
    client: Callable[..., S],
    pool: Callable[[Endpoint, RedisConfig, DriverOptions, Guard, ConnectionLimit], object],
) -> C | S:
    """What ``url`` names: a ``cluster``, or else a ``client`` with a ``pool`` that it closes.

    Raises ``ConfigurationError`` for a URL, or files of TLS, that cannot be used.
    """
    config = RedisConfig(connect_timeout=options.connect_timeout)
    endpoint = parse_dsn(url, config)
    endpoint.ssl_context()
    guard = guard or NoGuard()
    limit = limit or ConnectionLimit(options.max_connections)
    if endpoint.seeds:
        return cluster(endpoint, options, guard, limit)
    made: Any = client(connection_pool=pool(endpoint, config, options, guard, limit))
    made.auto_close_connection_pool = True
    return cast(S, made)


def pool_arguments(
    pool: object,
    kinds: Kinds,
    endpoint: Endpoint,
    options: DriverOptions,
    guard: Guard,
    limit: ConnectionLimit,
) -> dict[str, Any]:
    """What redis-py's pool under ``pool`` is told; connections by sentinels ask ``pool`` where."""
    kind, arguments = place(endpoint, kinds)
    if endpoint.sentinels is not None:
        arguments |= {"connection_pool": weakref.proxy(pool)}
    return {
        "connection_class": watched(kind, guard),
        "max_connections": limit.n,
        **settings(options),
        **arguments,
    }
