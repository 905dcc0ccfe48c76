"""A redis-py asyncio client of a cluster that may be used from any event loop.

redis-py's ``RedisCluster`` belongs to the loop that first used it, raises when all connections
to a node are taken, and has no pool that could be replaced. So there is one of it for each
loop, behind one client; and a call waits for its turn before it begins: as many are under way
as there may be connections to a node.
"""

from __future__ import annotations

import asyncio
import threading
import weakref
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from math import inf
from time import monotonic
from typing import Any, Self

from redis.asyncio.cluster import ClusterNode, ClusterPipeline, RedisCluster
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from forze_redis.driver.bays import LoopBay
from forze_redis.driver.guard import Guard
from forze_redis.driver.limit import ConnectionLimit
from forze_redis.driver.options import DriverOptions, settings
from forze_redis.driver.parting import Parting, socket_of
from forze_redis.driver.patience import turn_deadline
from forze_redis.driver.watched import watched
from forze_redis.wire.connection import disown
from forze_redis.wire.dsn import Endpoint
from forze_redis.wire.pool import ASYNC


class Gate:
    """Lets the calls of one event loop through, as many at once as the limit has room for."""

    def __init__(self, guard: Guard, limit: ConnectionLimit, options: DriverOptions) -> None:
        self._guard = guard
        self._options = options
        self.bay = ClusterBay(limit)
        limit.enter(self.bay)

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """For the length of a call; raises what the guard raises, and :class:`PoolTimeout`."""
        if turn_deadline.get() < inf:  # a pipeline sends again what was redirected
            yield
            return
        deadline = monotonic() + self._options.whole_timeout
        turn = await self.bay.turn(self._guard, self._options.pool_timeout)
        token = turn_deadline.set(deadline)
        try:
            await turn.make_room().gone()
            yield
        finally:
            turn_deadline.reset(token)
            turn.give_up()


class ClusterBay(LoopBay):
    """Counts calls; the connections are the cluster's own, ``made`` by it."""

    def __init__(self, limit: ConnectionLimit) -> None:
        super().__init__(limit)
        self.made: weakref.WeakSet[Any] = weakref.WeakSet()

    def left(self) -> list[Any]:
        """Every connection of the cluster."""
        return list(self.made)


class WaitingCluster(RedisCluster):
    """The cluster of one event loop."""

    def __init__(
        self, endpoint: Endpoint, options: DriverOptions, guard: Guard, limit: ConnectionLimit
    ) -> None:
        super().__init__(
            startup_nodes=[ClusterNode(*seed) for seed in endpoint.seeds],
            max_connections=limit.n,
            username=endpoint.username,
            password=endpoint.password,
            retry=Retry(NoBackoff(), 0),  # the next call asks the cluster for its layout
            reinitialize_steps=0,  # each MOVED is followed; else some close all connections
            require_full_coverage=False,
            ssl=endpoint.tls is not None,
            **settings(options),
            **(endpoint.tls or {}),
        )
        self.gate = Gate(guard, limit, options)
        kind = ASYNC.plain if endpoint.tls is None else ASYNC.tls
        kind = watched(kind, guard, self.gate.bay.made)
        self.connection_kwargs["connection_class"] = kind
        for node in self.nodes_manager.startup_nodes.values():
            node.connection_class = kind

    def __del__(self, *_: Any) -> None:
        """Its connections go with its bay, and speak for themselves."""

    async def execute_command(self, *args: Any, **kwargs: Any) -> Any:
        """As redis-py's, in its turn."""
        async with self.gate.turn():
            return await super().execute_command(*args, **kwargs)

    def pipeline(self, transaction: Any = None, shard_hint: Any = None) -> ClusterPipeline:
        """A redis-py pipeline that is executed in its turn."""
        pipeline = super().pipeline(transaction, shard_hint)
        execute = pipeline.execute

        async def in_turn(*args: Any, **kwargs: Any) -> list[Any]:
            async with self.gate.turn():
                return await execute(*args, **kwargs)

        pipeline.execute = in_turn  # type: ignore[method-assign]
        return pipeline


class LoopCluster(RedisCluster):
    """One client of the cluster for every event loop: what it has is the running loop's."""

    def __init__(
        self, endpoint: Endpoint, options: DriverOptions, guard: Guard, limit: ConnectionLimit
    ) -> None:
        # Not the parent's: all its state is in the cluster of each loop.
        self._arguments = (endpoint, options, guard, limit)
        self._clusters: dict[asyncio.AbstractEventLoop, WaitingCluster] = {}
        self._entering = threading.Lock()
        _all.add(self)

    def __getattr__(self, name: str) -> Any:
        if name in ("_arguments", "_clusters", "_entering"):
            raise AttributeError(name)
        return getattr(self._here(), name)

    def __del__(self, *_: Any) -> None:
        """Its clusters speak for themselves."""

    async def __aenter__(self) -> Self:
        await self.initialize()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def initialize(self, *args: Any, **kwargs: Any) -> Self:
        """Ask the cluster for its layout, unless it is known on this loop."""
        await self._here().initialize(*args, **kwargs)
        return self

    async def execute_command(self, *args: Any, **kwargs: Any) -> Any:
        """As redis-py's, on the running loop's connections, in its turn."""
        return await self._here().execute_command(*args, **kwargs)

    def pipeline(self, transaction: Any = None, shard_hint: Any = None) -> ClusterPipeline:
        """A pipeline of the running loop."""
        return self._here().pipeline(transaction, shard_hint)

    def pubsub(self, *args: Any, **kwargs: Any) -> Any:
        """Of the running loop."""
        return self._here().pubsub(*args, **kwargs)

    async def aclose(self) -> None:
        """Close its connections on every loop; it may be used again."""
        await self.leave(in_use=True).gone()

    def leave(self, *, in_use: bool) -> Parting:
        """Begin to close, from any thread; what is under way ends with an error."""
        twins = []
        for cluster in tuple(self._clusters.values()):
            bay = cluster.gate.bay
            twins += [bay.close(each) for each in bay.left()]
        return Parting(twins, lambda: None)

    def after_fork(self) -> None:
        """In a child: leave everything to the parent."""
        for cluster in self._clusters.values():
            _inherited.append(cluster)
            for connection in cluster.gate.bay.left():
                disown(socket_of(connection))
        self._clusters, self._entering = {}, threading.Lock()

    def _here(self) -> WaitingCluster:
        loop = asyncio.get_running_loop()
        cluster = self._clusters.get(loop)
        if cluster is None or cluster.gate.bay.ended:
            cluster = WaitingCluster(*self._arguments)
            with self._entering:
                stand = {at: each for at, each in self._clusters.items() if not each.gate.bay.ended}
                self._clusters = {**stand, loop: cluster}
        return cluster


_all: weakref.WeakSet[LoopCluster] = weakref.WeakSet()
_inherited: list[WaitingCluster] = []
"""Of the parent process: kept, so that nothing of them is ever finalized here."""


def after_fork() -> None:
    """In a child: every client begins anew."""
    for cluster in tuple(_all):
        cluster.after_fork()
