"""The blocking twin: a redis-py client for any number of threads, before and after a fork."""

from __future__ import annotations

import weakref
from time import monotonic
from typing import Any

from redis import Redis, RedisCluster
from redis import exceptions as driver
from redis.backoff import NoBackoff
from redis.connection import ConnectionPool
from redis.retry import Retry
from redis.sentinel import MasterNotFoundError

from forze.errors import ForzeError
from forze_redis.driver.bays import ThreadBay
from forze_redis.driver.guard import Guard
from forze_redis.driver.limit import ConnectionLimit
from forze_redis.driver.making import make, pool_arguments
from forze_redis.driver.options import DriverOptions
from forze_redis.driver.parting import Parting, usable
from forze_redis.driver.sync_cluster import ThreadCluster
from forze_redis.driver.watched import SYNC
from forze_redis.wire.config import RedisConfig
from forze_redis.wire.dsn import Endpoint
from forze_redis.wire.topology import Topology


def sync_client(
    url: str,
    options: DriverOptions,
    *,
    guard: Guard | None = None,
    limit: ConnectionLimit | None = None,
) -> Redis | RedisCluster:
    """A blocking redis-py client of what ``url`` names; all else as with ``async_client``."""
    return make(url, options, guard, limit, cluster=ThreadCluster, client=Redis, pool=ThreadPool)


class ThreadPool(ConnectionPool):
    """A redis-py pool that waits for a connection, with a deadline."""

    is_master = True
    check_connection = False
    service_name = ""

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
            **pool_arguments(self, SYNC, endpoint, options, guard, limit),
        )
        self.guard = guard
        self.limit = limit
        self._timeout = options.pool_timeout
        self._whole = options.whole_timeout
        self._topology = BlockingTopology(endpoint, config)
        self._primary: tuple[str, int] | None = None
        self._enter()
        _pools.add(self)

    def get_connection(self, command_name: Any = None, *keys: Any, **options: Any) -> Any:
        """A connected connection; raises :class:`PoolTimeout`."""
        deadline = monotonic() + self._whole
        turn = self._bay.turn(self.guard, self._timeout)
        connection = turn.connection
        if connection is None:
            connection = self.connection_class(**self.connection_kwargs)
            connection.bay = turn.bay
        turn.bay.in_use.add(connection)
        try:
            turn.make_room().wait()
            connection.deadline = deadline
            _ensure(connection)
            connection.deadline = deadline  # connecting has answers of its own
        except BaseException:
            self.release(connection)
            raise
        return connection

    def release(self, connection: Any) -> None:
        """Take a connection back."""
        bay: ThreadBay = connection.bay
        if connection not in bay.in_use:
            return
        if not self.limit.hand_back(bay, connection, usable=usable(connection)):
            bay.part_with(connection).wait()

    def disconnect(self, inuse_connections: bool = True) -> None:
        """Close what is idle; what is in use as well, or once it is handed back."""
        self.leave(in_use=inuse_connections).wait()

    def close(self) -> None:
        """:meth:`disconnect`; the pool may be used again."""
        self.disconnect()

    def leave(self, *, in_use: bool) -> Parting:
        """Begin to :meth:`disconnect`."""
        return self._bay.leave(in_use=in_use)

    def get_master_address(self) -> tuple[str, int]:
        """Where the sentinels say that the primary is; what was connected elsewhere is closed."""
        found = self._topology.discover()
        if found != self._primary:
            self._primary = found
            self.disconnect(inuse_connections=False)
        return found

    def after_fork(self) -> None:
        """In a child: leave everything to the parent."""
        for connection in (*self._bay.idle, *self._bay.in_use):
            connection.disconnect()  # closes the descriptor only: redis-py looks at the pid
        self._enter()

    def _enter(self) -> None:
        self._bay = ThreadBay(self.limit)
        self.limit.enter(self._bay)


def _ensure(connection: Any) -> None:
    """Connected, and nothing to read: else it was closed, or an answer was left behind."""
    connection.connect()
    try:
        dirty = connection.can_read()
    except (driver.ConnectionError, driver.TimeoutError, OSError):
        dirty = True
    if dirty:
        connection.disconnect()
        connection.connect()


class BlockingTopology(Topology):
    """Asks the sentinels without an event loop."""

    def discover(self) -> tuple[str, int]:
        """The address of the primary; raises redis-py's error as ``discover_master`` does."""
        search = self.search()
        answer: tuple[str, int] | ForzeError | None = None
        try:
            while True:
                sentinel = search.send(answer)
                try:
                    answer = self._ask_blocking(*sentinel)
                except ForzeError as error:
                    answer = error
        except StopIteration as found:
            return found.value.host, found.value.port
        except ForzeError as error:
            raise MasterNotFoundError(str(error)) from error

    def _ask_blocking(self, host: str, port: int) -> tuple[str, int]:
        share = self.share()
        connection = (SYNC.plain if self._endpoint.tls is None else SYNC.tls)(
            host=host,
            port=port,
            retry=Retry(NoBackoff(), 0),
            socket_timeout=share,
            socket_connect_timeout=share,
            protocol=2,
            **self.credentials(),
        )
        try:
            connection.connect()
            connection.send_command(*self.question())
            named = connection.read_response()
        except Exception as error:
            raise self.trouble(error, host, port) from error
        finally:
            connection.disconnect()
        return self.named(named, host, port)


_pools: weakref.WeakSet[ThreadPool] = weakref.WeakSet()


def after_fork() -> None:
    """In a child: every pool begins anew."""
    for pool in tuple(_pools):
        pool.after_fork()
