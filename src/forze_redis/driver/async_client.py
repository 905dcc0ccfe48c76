"""A redis-py asyncio client that may be used from any event loop, before and after a fork.

It is an ordinary ``redis.asyncio.Redis``; what differs is its pool, which keeps a bay of
connections for each event loop and is bounded by a :class:`ConnectionLimit` over all of them.
A loop that ends as ``asyncio.run``, pytest-asyncio and uvicorn end theirs takes its connections
along (its asynchronous generators are closed, and one of them holds the bay); those of a loop
that was merely closed are buried when somebody needs a connection next.
"""

from __future__ import annotations

import asyncio
import threading
import weakref
from time import monotonic
from typing import Any

from redis.asyncio import Redis, RedisCluster
from redis.asyncio.connection import ConnectionPool
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from forze_redis.driver.async_cluster import LoopCluster
from forze_redis.driver.bays import LoopBay
from forze_redis.driver.guard import Guard
from forze_redis.driver.limit import ConnectionLimit
from forze_redis.driver.making import make, pool_arguments
from forze_redis.driver.options import DriverOptions
from forze_redis.driver.parting import Parting, socket_of, together, usable
from forze_redis.wire.config import RedisConfig
from forze_redis.wire.connection import disown
from forze_redis.wire.dsn import Endpoint
from forze_redis.wire.pool import ASYNC
from forze_redis.wire.topology import Topology


def async_client(
    url: str,
    options: DriverOptions,
    *,
    guard: Guard | None = None,
    limit: ConnectionLimit | None = None,
) -> Redis | RedisCluster:
    """A redis-py client of what ``url`` names; connects when it is used, raises redis-py's errors.

    ``url`` is in any form of ``RedisClient.connect``: a server, its primary by sentinels, a
    cluster, TLS, a Unix socket; a malformed one is a ``ConfigurationError``. Nothing is retried,
    but a connection that the server closed while idle is replaced. ``guard`` may refuse calls;
    ``limit`` is shared with other clients, on a cluster it bounds the calls under way instead.
    A call that waits ``pool_timeout`` in vain raises :class:`PoolTimeout`, which is a
    ``redis.ConnectionError`` as well. ``aclose()`` closes its connections on every loop; it may
    be used again afterwards.
    """
    return make(url, options, guard, limit, cluster=LoopCluster, client=Redis, pool=LoopPool)


class LoopPool(ConnectionPool):
    """A redis-py pool with a bay for each event loop; waits for a connection, with a deadline."""

    is_master = True
    check_connection = False
    keeps = True
    """False: who still holds the client may use it, and each connection is closed after its use."""

    def __init__(
        self,
        endpoint: Endpoint,
        config: RedisConfig,
        options: DriverOptions,
        guard: Guard,
        limit: ConnectionLimit,
    ) -> None:
        super().__init__(
            retry=Retry(NoBackoff(), 0),
            **pool_arguments(self, ASYNC, endpoint, options, guard, limit),
        )
        self.guard = guard
        self.limit = limit
        self._timeout = options.pool_timeout
        self._whole = options.whole_timeout
        self._bays: dict[asyncio.AbstractEventLoop, LoopBay] = {}
        self._entering = threading.Lock()
        self._topology = Topology(endpoint, config)
        self._primary: tuple[str, int] | None = None
        _pools.add(self)

    async def get_connection(self, command_name: Any = None, *keys: Any, **options: Any) -> Any:
        """A connected connection of the running loop; raises :class:`PoolTimeout`."""
        deadline = monotonic() + self._whole
        bay = self._here()
        turn = await bay.turn(self.guard, self._timeout)
        connection = turn.connection
        if connection is None:
            connection = self.connection_class(**self.connection_kwargs)
            connection.bay = bay  # type: ignore[attr-defined]
            bay.open.add(connection)
        bay.in_use.add(connection)
        try:
            await turn.make_room().gone()
            connection.deadline = deadline
            await self.ensure_connection(connection)
            connection.deadline = deadline  # connecting has answers of its own
        except BaseException:
            await self.release(connection)
            raise
        return connection

    async def release(self, connection: Any) -> None:
        """Take a connection back, on whichever loop this is called."""
        bay: LoopBay = connection.bay
        if connection not in bay.in_use:
            return
        if not self.limit.hand_back(bay, connection, usable=self.keeps and usable(connection)):
            await bay.part_with(connection).gone()

    async def disconnect(self, inuse_connections: bool = True) -> None:
        """Close what is idle on every loop; what is in use as well, or once it is handed back."""
        await self.leave(in_use=inuse_connections).gone()

    async def aclose(self) -> None:
        """:meth:`disconnect`; the pool may be used again."""
        await self.disconnect()

    def leave(self, *, in_use: bool) -> Parting:
        """Begin to :meth:`disconnect`, from any thread."""
        return together(bay.leave(in_use=in_use) for bay in tuple(self._bays.values()))

    async def get_master_address(self) -> tuple[str, int]:
        """Where the sentinels say that the primary is; what was connected elsewhere is closed."""
        found = await self._topology.discover_master("")
        if found != self._primary:
            self._primary = found
            await self.disconnect(inuse_connections=False)
        return found

    def after_fork(self) -> None:
        """In a child: leave everything to the parent."""
        for bay in self._bays.values():
            _inherited.append(bay)
            for connection in bay.left():
                disown(socket_of(connection))
        self._bays = {}
        self._entering = threading.Lock()

    def _here(self) -> LoopBay:
        loop = asyncio.get_running_loop()
        bay = self._bays.get(loop)
        if bay is None or bay.ended:
            bay = LoopBay(self.limit)
            self.limit.enter(bay)
            with self._entering:
                stand = {at: each for at, each in self._bays.items() if not each.ended}
                self._bays = {**stand, loop: bay}
        return bay


_pools: weakref.WeakSet[LoopPool] = weakref.WeakSet()
_inherited: list[LoopBay] = []
"""Bays of the parent process: kept, so that nothing of them is ever finalized here."""


def after_fork() -> None:
    """In a child: every pool begins anew."""
    for pool in tuple(_pools):
        pool.after_fork()
