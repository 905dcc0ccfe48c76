"""The blocking twin: a redis-py client of a cluster that connects when it is first used."""

from __future__ import annotations

import contextlib
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from math import inf
from queue import Empty
from time import monotonic
from typing import Any, Self

from redis.backoff import NoBackoff
from redis.cluster import ClusterNode, RedisCluster
from redis.connection import BlockingConnectionPool
from redis.retry import Retry

from forze_redis.driver.bays import ThreadBay
from forze_redis.driver.guard import Guard
from forze_redis.driver.limit import ConnectionLimit
from forze_redis.driver.options import DriverOptions, settings
from forze_redis.driver.parting import Parting
from forze_redis.driver.patience import turn_deadline
from forze_redis.driver.watched import SYNC, watched
from forze_redis.wire.dsn import Endpoint, address


class ThreadCluster(RedisCluster):
    """A client of the cluster for any number of threads.

    What redis-py does when a client is made (ask for the layout) is done at the first use, and
    again in a forked child. Calls have a turn each, as in :mod:`async_cluster`.
    """

    def __init__(
        self, endpoint: Endpoint, options: DriverOptions, guard: Guard, limit: ConnectionLimit
    ) -> None:
        # Not the parent's: all its state is in the cluster behind it.
        self._arguments = (endpoint, options, guard, limit)
        self._guard = guard
        self._cluster: Any = None
        self._opening = threading.Lock()
        self._bay = ThreadBay(limit)
        limit.enter(self._bay)
        _all.add(self)

    def __getattr__(self, name: str) -> Any:
        if name in ("_arguments", "_cluster", "_opening", "_bay", "_guard"):
            raise AttributeError(name)
        return getattr(self._opened(), name)

    def __del__(self) -> None:
        """The cluster behind it speaks for itself."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def execute_command(self, *args: Any, **kwargs: Any) -> Any:
        """As redis-py's, in its turn."""
        with self.turn():
            return self._opened().execute_command(*args, **kwargs)

    def pipeline(self, transaction: Any = None, shard_hint: Any = None) -> Any:
        """A redis-py pipeline that is executed in its turn."""
        with self.turn():
            pipeline = self._opened().pipeline(transaction, shard_hint)
        execute = pipeline.execute

        def in_turn(*args: Any, **kwargs: Any) -> Any:
            with self.turn():
                return execute(*args, **kwargs)

        pipeline.execute = in_turn
        return pipeline

    def pubsub(self, *args: Any, **kwargs: Any) -> Any:
        """As redis-py's."""
        return self._opened().pubsub(*args, **kwargs)

    def close(self) -> None:
        """Close its connections; it may be used again."""
        self.leave(in_use=True).wait()

    def leave(self, *, in_use: bool) -> Parting:
        """Close what is idle; what is in use as well, or else once it is handed back."""
        with self._opening:
            cluster, self._cluster = self._cluster, None
        if cluster is not None:
            if in_use:
                cluster.close()
            else:
                for node in cluster.get_nodes():
                    if node.redis_connection is not None:
                        node.redis_connection.connection_pool.close_idle()
        return Parting((), lambda: None)

    def after_fork(self) -> None:
        """In a child: leave everything to the parent; redis-py closes descriptors only."""
        self._cluster, self._opening = None, threading.Lock()
        self._bay = ThreadBay(self._bay.limit)
        self._bay.limit.enter(self._bay)

    @contextmanager
    def turn(self) -> Iterator[None]:
        """For the length of a call; raises what the guard raises, and :class:`PoolTimeout`."""
        if turn_deadline.get() < inf:
            yield
            return
        options = self._arguments[1]
        deadline = monotonic() + options.whole_timeout
        turn = self._bay.turn(self._guard, options.pool_timeout)
        token = turn_deadline.set(deadline)
        try:
            turn.make_room().wait()
            yield
        finally:
            turn_deadline.reset(token)
            turn.give_up()

    def _opened(self) -> Any:
        cluster = self._cluster
        if cluster is None:
            with self._opening:
                cluster = self._cluster = self._cluster or _open(*self._arguments)
        return cluster


class NodePool(BlockingConnectionPool):
    """The connections to one node."""

    def close_idle(self) -> None:
        """Close what is not in use."""
        taken: list[Any] = []
        with contextlib.suppress(Empty):
            while True:
                taken.append(self.pool.get_nowait())
        for connection in taken:
            if connection is not None:
                connection.disconnect()
            self.pool.put_nowait(connection)


def _open(
    endpoint: Endpoint, options: DriverOptions, guard: Guard, limit: ConnectionLimit
) -> RedisCluster:
    kind = watched(SYNC.plain if endpoint.tls is None else SYNC.tls, guard)

    def pool(**arguments: Any) -> Any:
        arguments |= {"connection_class": kind, "timeout": options.pool_timeout}
        return NodePool(**arguments)  # type: ignore[no-untyped-call]

    node: Any = ClusterNode
    return RedisCluster(
        # An URL is what makes redis-py take the pool it is given.
        url=f"{'redis' if endpoint.tls is None else 'rediss'}://{address(*endpoint.seeds[0])}",
        startup_nodes=[node(*seed) for seed in endpoint.seeds],
        connection_pool_class=pool,
        max_connections=limit.n,
        username=endpoint.username,
        password=endpoint.password,
        retry=Retry(NoBackoff(), 0),  # the next call asks the cluster for its layout
        require_full_coverage=False,
        **settings(options),
        **(endpoint.tls or {}),
    )


_all: weakref.WeakSet[ThreadCluster] = weakref.WeakSet()


def after_fork() -> None:
    """In a child: every client begins anew."""
    for cluster in tuple(_all):
        cluster.after_fork()
