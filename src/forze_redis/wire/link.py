"""A connection that comes back.

One background task opens a connection, watches over it (heartbeat while all is well,
probes while the server is away) and opens the next when it is lost, with jittered
exponential back-off. One timer sweeps deadlines while calls are under way.

What belongs to the client outlives a connection: the queue of calls that wait for room,
the availability, the callbacks.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
import random
from collections import deque
from collections.abc import Callable
from time import monotonic
from types import MethodType
from typing import Any, ParamSpec
from weakref import WeakMethod

from redis.asyncio import Redis

from forze.errors import BackendError, BackendUnavailable, ConfigurationError, ForzeError
from forze_redis.wire.availability import Availability
from forze_redis.wire.config import RedisConfig, seconds
from forze_redis.wire.connection import Call, Connection, Reply, gone, late
from forze_redis.wire.dsn import Endpoint
from forze_redis.wire.handshake import (
    INFO_REPLICATION,
    UNKNOWN_GENERATION,
    Greeting,
    generation_of,
    shake_hands,
)
from forze_redis.wire.pool import execute, open_pool
from forze_redis.wire.replies import BACKEND
from forze_redis.wire.scripts import pack
from forze_redis.wire.subscriptions import Subscriptions
from forze_redis.wire.topology import Topology
from forze_redis.wire.tracking import Tracking

P = ParamSpec("P")

_log = logging.getLogger("forze.redis")

_SWEEP_SECONDS = 0.02
_STALL_SECONDS = 0.1
_BACKOFF_SECONDS = (0.05, 2.0)
_STANDING_SECONDS = 5.0
_REFUSED_SECONDS = 10.0
_PROBE_SECONDS = (0.25, 0.5)
_CLOSE_SECONDS = 1.0
_PING = pack("PING")

Callback = Callable[[], None]
Elsewhere = Callable[[bytes, float], "asyncio.Future[Reply]"]


class Listeners:
    """Who is told what; outlives links, and belongs to the client."""

    def __init__(self) -> None:
        self.tracking = Tracking()
        self.subscriptions = Subscriptions()
        self.reconnect: list[Callable[[str, str], None]] = [self.tracking.flush]
        self.push: list[Callable[[list[Reply]], None]] = [
            self.tracking.heard,
            self.subscriptions.heard,
        ]

    def leave(self) -> None:
        """The event loop or the process is another from now on."""
        self.tracking.end()
        self.subscriptions.end()


def weakly(callback: Callable[P, None]) -> Callable[P, None]:
    """A method that does not keep its object alive: an object that is gone is not told."""
    if not isinstance(callback, MethodType):
        return callback
    method = WeakMethod(callback)

    def call(*args: P.args, **kwargs: P.kwargs) -> None:
        if (alive := method()) is not None:
            alive(*args, **kwargs)

    return call


class Incarnation:
    """A server as one connection found it, until its generation changes. Compared by identity.

    ``known_as`` is for those who ask it, to keep what follows from its generation.
    """

    __slots__ = ("generation", "known_as")

    def __init__(self, generation: str) -> None:
        self.generation = generation
        self.known_as: dict[str, Any] = {}


class Link:
    """The way to one server from one event loop."""

    def __init__(
        self,
        endpoint: Endpoint,
        config: RedisConfig,
        availability: Availability,
        listeners: Listeners,
        elsewhere: Elsewhere,
    ) -> None:
        self.loop = asyncio.get_running_loop()
        self.endpoint = endpoint
        self.where = endpoint.where
        self._topology = Topology(endpoint, config)
        self.elsewhere = elsewhere
        self.waiting: deque[Call] = deque()
        self.availability = availability
        self.generation = UNKNOWN_GENERATION
        self.incarnation = Incarnation(UNKNOWN_GENERATION)
        self.greeting: Greeting | None = None
        self.error: ForzeError | None = None
        self.connection = Connection(self, self.loop, config.max_in_flight)
        self._config = config
        self._pool: Redis | None = None
        self._silence = seconds(config.socket_timeout)
        self._listeners = listeners
        self._wake = asyncio.Event()
        self._first: asyncio.Future[None] = self.loop.create_future()
        self._timer: asyncio.TimerHandle | None = None
        self._heard = self._due = 0.0
        self._stalled = False
        self.retired = False
        self._task = self.loop.create_task(
            self._run(), name=f"forze-redis {self.where}", context=contextvars.Context()
        )

    @property
    def redis(self) -> Redis:
        """The redis-py client beside the connection, made at first use."""
        if self._pool is None:
            self._pool = open_pool(self.endpoint, self._config, self._topology)
        return self._pool

    @property
    def generation_known(self) -> bool:
        """Whether the server has told its generation."""
        return self.greeting is not None and self.greeting.generation_known

    @property
    def busy(self) -> bool:
        """Whether calls wait, are in flight, or have a connection of the pool."""
        pool = None if self._pool is None else self._pool.connection_pool
        return bool(self.connection.in_flight or self.waiting) or (
            pool is not None and bool(pool._in_use_connections)
        )

    @property
    def nodes(self) -> tuple[Link, ...]:
        """Each server there is: this one."""
        return (self,)

    def home(self, key: bytes) -> Link:
        """Where a key, or a channel, lives: here."""
        return self

    def incarnation_of(self, key: str | None) -> Incarnation | None:
        """What the server is at present."""
        return self.incarnation

    def available(self, key: str | None) -> bool:
        """Whether the server is there."""
        return not self.availability.away

    def doubt(self) -> None:
        """Keys live here."""

    async def send_large(self, packed: bytes, timeout: float) -> Reply:
        """Send a command on a connection of the pool."""
        return await execute(self.redis, packed, timeout, self.where)

    async def first_attempt(self) -> None:
        """Wait for the outcome of the first attempt to connect; raises its error."""
        await asyncio.shield(self._first)

    async def close(self) -> None:
        """Let calls in flight be answered for a second, then close."""
        connection = self.connection
        self._retire()
        connection.retire()
        if connection.open:
            await asyncio.wait([connection.closed], timeout=_CLOSE_SECONDS)
        self._task.cancel()
        await asyncio.wait([self._task])
        self._fail_waiting("the client was closed")
        if connection.attached:
            await asyncio.wait([connection.closed], timeout=_CLOSE_SECONDS)

    def abandon(self) -> None:
        """Give up everything at once, from within the loop."""
        self._retire()
        self._task.cancel()
        self._fail_waiting("the client moved to another event loop")

    def _retire(self) -> None:
        self.retired = True
        self._tried(gone(self.where, "the client was closed", "none"))

    def refused(self) -> asyncio.Future[Reply]:
        """The future of a call that is not attempted while the server is away."""
        future: asyncio.Future[Reply] = self.loop.create_future()
        future.set_exception(
            BackendUnavailable(
                f"Redis at {self.where} is away since {self.availability.since:%H:%M:%S} UTC "
                f"({self.error or 'it does not answer'}); the call was not attempted",
                backend=BACKEND,
            )
        )
        return future

    def watch(self) -> None:
        """Start sweeping, if that is not under way."""
        self.connection.watched = True
        if self._timer is None:
            self._heard = monotonic()
            self._arm()

    def pushed(self, message: list[Reply]) -> None:
        """Hand a push message to those who listen."""
        for listener in self._listeners.push:
            shielded(listener, message)

    def lost(self, connection: Connection) -> None:
        """Note that the connection is gone."""
        self._listeners.tracking.end(connection)
        if connection is self.connection and not self.retired:
            if self.availability.lost():
                self._log_away("its connection was lost")
            self._wake.set()

    def serves(self, channel: bytes) -> bool:
        """Whether a channel is heard here: this is the one server there is."""
        return True

    def redirected(self, call: Call, said: str) -> bool:
        """No: this is the one server there is."""
        return False

    async def _run(self) -> None:
        attempts = 0
        try:
            while not self.retired:
                try:
                    await self._open()
                except ConfigurationError as error:
                    self._failed(error)
                    await asyncio.sleep(_REFUSED_SECONDS)
                    continue
                except BackendError as error:
                    self._failed(error)
                except Exception as error:
                    _log.exception("connecting to Redis at %s failed", self.where)
                    self._failed(self._unreachable(f"cannot be reached ({error!r})"))
                else:
                    standing = monotonic()
                    await self._stand()
                    if monotonic() - standing > _STANDING_SECONDS:
                        attempts = 0
                await asyncio.sleep(backoff(attempts, random.random()))
                attempts += 1
        finally:
            self.retired = True
            self.connection.lose()
            if self._pool is not None:
                await self._pool.aclose(close_connection_pool=True)

    async def _open(self) -> None:
        connection = Connection(self, self.loop, self._config.max_in_flight)
        timeout = seconds(self._config.connect_timeout)
        self.connection = connection
        try:
            async with asyncio.timeout(timeout):
                await self._dial(connection)
                greeting = await shake_hands(
                    connection, self.endpoint, self._config.client_name, timeout
                )
                self._topology.check(greeting.info, self.where)
                await self._listeners.tracking.begin(
                    self, connection, timeout, seconds(self._config.heartbeat)
                )
                await self._listeners.subscriptions.begin(connection, timeout, self.serves)
        except TimeoutError as error:
            connection.lose()
            raise self._unreachable(f"did not answer within {timeout:g} s") from error
        except (OSError, UnicodeError) as error:
            connection.lose()
            why = getattr(error, "strerror", None) or error
            raise self._unreachable(f"cannot be reached ({why})") from error
        except BaseException:
            connection.lose()
            raise
        if not connection.open:
            raise gone(self.where, "the connection was lost while opening", "none")
        self.error = None
        self.greeting = greeting
        connection.begin()
        self._settle(greeting.generation, reconnected=True)
        connection.admit()
        if not self._first.done():
            self._first.set_result(None)

    async def _dial(self, connection: Connection) -> None:
        endpoint, before = await self._topology.primary(), self.endpoint
        self.endpoint, self.where, context = endpoint, endpoint.where, endpoint.ssl_context()
        if endpoint != before and self._pool is not None:
            await self._pool.connection_pool.disconnect()
        if endpoint.path is not None:
            await self.loop.create_unix_connection(lambda: connection, endpoint.path)
            return
        await self.loop.create_connection(
            lambda: connection,
            endpoint.host,
            endpoint.port,
            ssl=context,
            server_hostname=endpoint.host if context is not None else None,
        )
        connection.tune(keepalive=self._config.keepalive)

    async def _stand(self) -> None:
        """Watch over the connection until it is lost."""
        connection = self.connection
        heartbeat = seconds(self._config.heartbeat)
        while connection.open:
            away = self.availability.away
            pause = random.uniform(*_PROBE_SECONDS) if away else heartbeat
            self._wake.clear()
            try:
                async with asyncio.timeout(pause):
                    await self._wake.wait()
            except TimeoutError:
                await (self._probe(connection) if away else self._beat(connection))

    async def _beat(self, connection: Connection) -> None:
        try:
            info = await connection.ask(INFO_REPLICATION, seconds(self._config.socket_timeout))
        except ForzeError:
            info = None  # not permitted: the answer was a sign of life; late: the sweep saw to it
        if self._topology.refuses(info):
            connection.lose()
            return
        if info is not None:
            self._settle(generation_of(info) or UNKNOWN_GENERATION, reconnected=False)
        if connection.open and await self._topology.moved_from(self.endpoint):
            connection.lose()

    async def _probe(self, connection: Connection) -> None:
        """Ask until an answer comes in time; a late one says that the next may be in time."""
        budget, silence = seconds(self._config.cache_timeout), self._silence
        try:
            asked = monotonic()
            await connection.ask(_PING, silence)
            if monotonic() - asked > budget:
                asked = monotonic()
                await connection.ask(_PING, silence)
        except ForzeError:
            return
        if monotonic() - asked <= budget and connection.open:
            self._restore()

    def _settle(self, generation: str, *, reconnected: bool) -> None:
        """Take note of the generation; tell those who must know before anything is served."""
        old, self.generation = self.generation, generation
        if reconnected or old != generation:
            self.incarnation = Incarnation(generation)
            for callback in self._listeners.reconnect:
                shielded(callback, old, generation)
        if reconnected:
            self._restore()

    def _restore(self) -> None:
        away, since = self.availability.away, self.availability.since
        for callback in self.availability.restored():
            shielded(callback)
        if away:
            _log.info("Redis at %s answers again; it was away since %s", self.where, since)

    def _failed(self, error: ForzeError) -> None:
        self.error = error
        self._topology.doubt()
        if self.availability.lost():
            self._log_away(str(error))
        self._tried(error)
        if isinstance(error, ConfigurationError):
            self._fail_waiting(error)

    def _tried(self, error: ForzeError) -> None:
        """The first attempt has failed, if that was not known."""
        if not self._first.done():
            self._first.set_exception(error)
            self._first.exception()  # not every client waits for it

    def _log_away(self, why: str) -> None:
        _log.warning(
            "Redis at %s is away: %s. Cached reads go to the source until it answers again",
            self.where,
            why,
        )

    def _unreachable(self, why: str) -> BackendUnavailable:
        return BackendUnavailable(
            f"Redis at {self.where} {why}; is the server running, and is the DSN right?",
            backend=BACKEND,
        )

    def _arm(self) -> None:
        self._due = monotonic() + _SWEEP_SECONDS
        self._timer = self.loop.call_later(
            _SWEEP_SECONDS, self._sweep, context=contextvars.Context()
        )

    def _sweep(self) -> None:
        self._timer = None
        now, connection, availability = monotonic(), self.connection, self.availability
        if connection.received:
            connection.received, self._heard = False, now
        if connection.resolved:
            connection.resolved = False
            availability.answered()
        self._stalled = now - self._due > _STALL_SECONDS and not self._stalled
        if not self._stalled:  # else our loop stood still, not the server: look again once
            expired = connection.expire(now)
            self._expire_waiting(now)
            if expired and availability.unanswered(expired):
                self._log_away("it does not answer in time")
                self._wake.set()
            overdue = connection.overdue_since
            if overdue is not None and overdue < now and now - self._heard > self._silence:
                connection.lose()
        if connection.in_flight or self.waiting:
            self._arm()
        else:
            connection.watched = False

    def _expire_waiting(self, now: float) -> None:
        if isinstance(self.error, ConfigurationError):
            self._fail_waiting(self.error)  # waiting would not help
        kept: deque[Call] = deque()
        for call in self.waiting:
            future, deadline, _ = call
            if future is None or future.done():
                continue
            if deadline > now:
                kept.append(call)
            elif self.connection.open:
                future.set_exception(late(self.where, "none"))
            else:
                future.set_exception(self._not_connected())
        self.waiting.clear()
        self.waiting.extend(kept)

    def _not_connected(self) -> BackendUnavailable:
        because = f": {self.error}" if self.error else ""
        return gone(self.where, f"there is no connection{because}", "none")

    def _fail_waiting(self, why: str | ForzeError) -> None:
        for future, _, _ in self.waiting:
            if future is not None and not future.done():
                error = (
                    why.again() if isinstance(why, ForzeError) else gone(self.where, why, "none")
                )
                future.set_exception(error)
        self.waiting.clear()


def backoff(attempts: int, dice: float) -> float:
    """Seconds before attempt ``attempts + 1``: doubling from 50 ms to 2 s, jittered by half."""
    shortest, longest = _BACKOFF_SECONDS
    return min(longest, shortest * 2.0 ** min(attempts, 10)) * (0.5 + dice / 2)


def shielded(callback: Callable[..., None], *args: Any) -> None:
    """A listener that raises is reported, and hurts nobody else."""
    try:
        callback(*args)
    except Exception:
        _log.exception("a listener of the Redis connection failed")
