"""What redis-py has to be told of an endpoint: the class of a connection, and its arguments."""

from __future__ import annotations

from typing import Any, NamedTuple

from forze_redis.wire.dsn import Endpoint


class Kinds(NamedTuple):
    """The connection classes of redis-py; those of ``sentinel`` ask who the primary is."""

    plain: Any
    tls: Any
    unix: Any
    sentinel: Any
    sentinel_tls: Any


def place(
    endpoint: Endpoint, kinds: Kinds, *, keepalive: bool = True
) -> tuple[Any, dict[str, Any]]:
    """The class of a connection to ``endpoint``, and its arguments."""
    arguments: dict[str, Any] = {
        "db": endpoint.db,
        "username": endpoint.username,
        "password": endpoint.password,
    }
    if endpoint.path is not None:
        return kinds.unix, arguments | {"path": endpoint.path}
    if endpoint.sentinels is None:
        arguments |= {"host": endpoint.host, "port": endpoint.port}
    arguments |= {"socket_keepalive": keepalive, **(endpoint.tls or {})}
    if endpoint.sentinels is None:
        return (kinds.plain if endpoint.tls is None else kinds.tls), arguments
    return (kinds.sentinel if endpoint.tls is None else kinds.sentinel_tls), arguments
