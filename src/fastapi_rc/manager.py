"""CacheManager: one client for an application, opened and closed with it.

::

    cachemanager.init(redis_url="redis://localhost:6379/0")    # does not connect
    await cachemanager.client.get("greeting")
    await cachemanager.close()

Behind it stands :mod:`forze_redis.driver`: a waiting pool for each event loop, a guard on each
connection. What a test assigns to ``_client`` goes before the client that ``init`` made.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any, NoReturn

from redis.asyncio import Redis, RedisCluster

from fastapi_rc.budget import BUDGET_SECONDS, budget_of, with_budget
from fastapi_rc.calls import calls_of
from fastapi_rc.circuit import Circuit
from fastapi_rc.errors import CacheUnavailable
from forze.errors import ConfigurationError
from forze_redis.driver import DriverOptions, async_client, leave, sync_client
from forze_redis.wire.config import RedisConfig
from forze_redis.wire.dsn import parse_dsn

_INSTEAD = "the arguments of CacheManager.init, such as max_connections"


@dataclass(frozen=True, slots=True, kw_only=True)
class _InUse:
    """A client, and what is known of its server."""

    client: Any
    circuit: Circuit


class CacheManager:
    """Opens, hands out and closes one redis-py client; usable on every event loop.

    There may be several in a process, each with a pool and a circuit of its own.
    """

    def __init__(self) -> None:
        self._made: _InUse | None = None
        self._substitute: _InUse | None = None

    def init(
        self,
        redis_url: str,
        max_connections: int = 50,
        socket_timeout: float = 5.0,
        socket_connect_timeout: float = 2.0,
        health_check_interval: float = 30,
        decode_responses: bool = True,
        *,
        budget: float = BUDGET_SECONDS,
        client_name: str | None = None,
    ) -> None:
        """Take the settings; the first call connects. An earlier client's connections are closed.

        Who still holds that client may go on, and leaves no connection open.

        ``redis_url``: ``redis://``, ``rediss://``, ``unix://``, ``redis+sentinel://``,
        ``redis+cluster://``. At most ``max_connections`` are open; who finds none waits. No call
        takes longer than ``budget`` because of Redis, whatever the other timeouts say (all in
        seconds); blocking commands have the time they ask for on top. A connection that was idle
        for ``health_check_interval`` is asked first (0: never). Raises ``ConfigurationError``.
        """
        durations = {
            "socket_timeout": socket_timeout,
            "socket_connect_timeout": socket_connect_timeout,
            "budget": budget,
        }
        for name, value in durations.items():
            _require(name, value, above_zero=True)
        _require("health_check_interval", health_check_interval, above_zero=False)
        if type(max_connections) is not int or max_connections < 1:
            _refuse("max_connections", f"a whole number from 1, not {max_connections!r}")
        options = DriverOptions(
            max_connections=max_connections,
            socket_timeout=socket_timeout,
            connect_timeout=min(socket_connect_timeout, budget),
            pool_timeout=0.9 * budget,  # within the budget: then it was the pool, not the server
            health_check_interval=health_check_interval,
            decode_responses=decode_responses,
            client_name=client_name,
        )
        made = _open(_text(redis_url), options, budget)
        earlier, self._made = self._made, made
        _retire(earlier)

    async def close(self) -> None:
        """Close every connection, and forget the settings; may be repeated, and ``init`` follow.

        A client that stands in for ours is closed, too.
        """
        made, substitute = self._made, self._substitute
        self._made = self._substitute = None
        _retire(made)
        for each in (made, substitute):
            if each is not None:
                await each.client.aclose()

    async def ping(self) -> bool:
        """Whether Redis answers, asked now, within the budget; never raises."""
        current = self._current
        if current is None:
            return False
        try:
            with current.circuit.asking():
                async with asyncio.timeout(budget_of(current.client)):
                    await current.client.ping()
        except Exception as error:
            current.circuit.failed(error)
            return False
        current.circuit.succeeded()
        return True

    @property
    def client(self) -> Redis:
        """The redis-py client; raises :class:`CacheUnavailable`, HTTP 503, before ``init``."""
        current = self._current
        if current is None:
            raise CacheUnavailable(
                "the cache manager is not initialised: call init(redis_url=...) where the "
                "application starts (in its lifespan), and close() where it ends"
            )
        return current.client  # type: ignore[no-any-return]

    @property
    def is_available(self) -> bool:
        """Whether calls are let through: False before ``init`` and while Redis is known to be away.

        Asks nobody: a server that nobody has called yet counts as available.
        """
        current = self._current
        return current is not None and current.circuit.closed

    @contextlib.asynccontextmanager
    async def pipeline(self, transaction: bool = True) -> AsyncIterator[Any]:
        """A redis-py pipeline, returned to the pool with the block; ``await pipe.execute()``."""
        async with self.client.pipeline(transaction=transaction) as pipe:
            yield pipe

    # -- the client as tests replace it ----------------------------------------------

    @property
    def _client(self) -> Any:
        """The client in use, or None. Assigned, it goes before ours; None ends both.

        Raises ``InvalidWiring``, a TypeError, for what is no asyncio client.
        """
        current = self._current
        return None if current is None else current.client

    @_client.setter
    def _client(self, client: Any) -> None:
        if client is not None:
            self._substitute = _InUse(client=client, circuit=calls_of(client).circuit)
            return
        earlier, self._made, self._substitute = self._made, None, None
        _retire(earlier)

    @property
    def _current(self) -> _InUse | None:
        return self._substitute or self._made


cachemanager = CacheManager()
"""The application's manager, which the dependencies use."""


def _open(url: str, options: DriverOptions, budget: float) -> _InUse:
    where = parse_dsn(url, RedisConfig(), instead=_INSTEAD).where

    def probe() -> None:
        asking = sync_client(url, options)
        try:
            asking.ping()
        finally:
            asking.close()

    circuit = Circuit(where=where, probe=probe)
    client = with_budget(async_client(url, options, guard=circuit), budget, circuit)
    return _InUse(client=client, circuit=circuit)


def _retire(earlier: _InUse | None) -> None:
    """Close what is idle at once, from wherever this is called, and the rest when it is done."""
    if earlier is not None:
        earlier.circuit.end()
        if not isinstance(earlier.client, RedisCluster):
            earlier.client.connection_pool.keeps = False
        leave(earlier.client).at_once()


def _text(redis_url: Any) -> str:
    if redis_url is None or isinstance(redis_url, bytes) or not str(redis_url):
        _refuse("redis_url", f"text such as redis://localhost:6379/0, not {redis_url!r}")
    return str(redis_url)  # pydantic's RedisDsn is no str


def _require(name: str, value: object, *, above_zero: bool) -> None:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not math.isfinite(value) or value < 0 or (above_zero and value == 0):  # type: ignore[arg-type, operator]
        _refuse(name, f"seconds {'above' if above_zero else 'from'} 0, not {value!r}")


def _refuse(name: str, must_be: str) -> NoReturn:
    raise ConfigurationError(f"CacheManager.init: {name} must be {must_be}", name=name)
