"""What the nodes of a cluster say of its slots, and whom to believe.

Each node has a view of its own. Several are asked at once, on connections that stand or, where
none does, on new ones; of those that answer the view with the highest epoch is taken, so that
a node that was cut off from the others is outvoted by any of them. Nothing is remembered from
one round to the next: a cluster made anew is seen as it is.

Redis Cluster specification, "Configuration handling, propagation, and failovers".
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterable
from dataclasses import replace
from typing import Any, NamedTuple

from redis import exceptions as driver
from redis.asyncio.connection import Connection as DriverConnection
from redis.asyncio.connection import SSLConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from forze.errors import BackendCorrupt, BackendUnavailable, ConfigurationError, ForzeError
from forze_redis.wire.connection import Connection, Reply
from forze_redis.wire.dsn import Endpoint
from forze_redis.wire.pool import error_from_driver
from forze_redis.wire.replies import BACKEND
from forze_redis.wire.scripts import pack
from forze_redis.wire.slots import Range, epoch_of, ranges_of

GRACE_SECONDS = 0.05
"""How long the other views are waited for when the first one is there."""

_SLOTS = ("CLUSTER", "SLOTS")
_INFO = ("CLUSTER", "INFO")
_PACKED = (pack(*_SLOTS), pack(*_INFO))


class View(NamedTuple):
    """The slots of a cluster as one node sees them; a higher ``epoch`` is more recent."""

    epoch: int
    ranges: tuple[Range, ...]


async def view_over(connection: Connection, endpoint: Endpoint, timeout: float) -> View:
    """The view of a node we are connected to."""
    slots, info = await asyncio.gather(*(connection.ask(each, timeout) for each in _PACKED))
    return _view(slots, info, endpoint)


async def view_at(endpoint: Endpoint, timeout: float) -> View:
    """The view of the node at ``endpoint``, on a connection that is made for it."""
    connection = (DriverConnection if endpoint.tls is None else SSLConnection)(
        host=endpoint.host,
        port=endpoint.port,
        username=endpoint.username,
        password=endpoint.password,
        retry=Retry(NoBackoff(), 0),
        **(endpoint.tls or {}),
    )
    try:
        async with asyncio.timeout(timeout):
            await connection.connect()  # type: ignore[no-untyped-call]
            await connection.send_command(*_SLOTS)
            slots = await connection.read_response()
            await connection.send_command(*_INFO)
            info = await connection.read_response()
    except (driver.AuthenticationError, driver.NoPermissionError) as error:
        raise ConfigurationError(
            f"Redis at {endpoint.where} does not let us ask for the cluster's slots ({error}); "
            "correct user and password in the DSN, or grant +cluster|slots and +cluster|info",
            name="dsn",
        ) from error
    except (driver.ConnectionError, OSError, UnicodeError) as error:
        raise BackendUnavailable(
            f"Redis at {endpoint.where} cannot be reached ({error})", backend=BACKEND
        ) from error
    except driver.ResponseError as error:
        raise _no_cluster(endpoint, error) from error
    except Exception as error:
        raise error_from_driver(error, endpoint.where) from error
    finally:
        await connection.disconnect(nowait=True)
    return _view(slots, info, endpoint)


async def newest(asking: Iterable[Coroutine[Any, Any, View]]) -> View:
    """The most recent of the views; raises the gravest error where nobody has one.

    That is ``ConfigurationError`` where each refused for good, else ``BackendUnavailable``.
    """
    running = {asyncio.ensure_future(each) for each in asking}
    views: list[View] = []
    failed: list[ForzeError] = []
    try:
        while running:
            timeout = GRACE_SECONDS if views else None
            done, running = await asyncio.wait(
                running, timeout=timeout, return_when=asyncio.FIRST_COMPLETED
            )
            if not done:
                break
            for each in done:
                error = each.exception()
                if error is None:
                    views.append(each.result())
                elif isinstance(error, ForzeError):
                    failed.append(error)
                else:
                    raise error
    finally:
        for each in running:
            each.cancel()
        await asyncio.gather(*running, return_exceptions=True)
    if views:
        return max(views, key=lambda view: view.epoch)
    why = "; ".join(map(str, failed)) or "there is nobody to ask"
    if failed and all(isinstance(each, ConfigurationError) for each in failed):
        raise ConfigurationError(f"no node of the cluster can help: {why}", name="dsn")
    raise BackendUnavailable(f"no node of the cluster answers: {why}", backend=BACKEND)


def seeds_of(endpoint: Endpoint, known: Iterable[tuple[str, int]]) -> list[Endpoint]:
    """Whom to ask: the nodes that were known last, then those of the DSN."""
    places = dict.fromkeys((*known, *endpoint.seeds))
    return [node_at(endpoint, *place) for place in places]


def node_at(endpoint: Endpoint, host: str, port: int) -> Endpoint:
    """One node of the cluster that ``endpoint`` stands for."""
    return replace(endpoint, host=host, port=port, seeds=())


def _view(slots: Reply, info: Reply, endpoint: Endpoint) -> View:
    try:
        ranges = tuple(sorted(ranges_of(slots, endpoint.host)))
    except ValueError as error:
        raise BackendCorrupt(f"Redis at {endpoint.where}: {error}", backend=BACKEND) from error
    if not ranges:
        raise BackendUnavailable(
            f"Redis at {endpoint.where} knows of no node that serves slots; look at CLUSTER NODES",
            backend=BACKEND,
        )
    return View(epoch_of(info), ranges)


def _no_cluster(endpoint: Endpoint, error: Exception) -> ForzeError:
    if any(each in str(error) for each in ("cluster support disabled", "unknown command")):
        return ConfigurationError(
            f"Redis at {endpoint.where} is no node of a cluster; use redis:// for one server",
            name="dsn",
        )
    return error_from_driver(error, endpoint.where)
