"""What users hold: one client per application, one multiplexed connection behind it.

::

    client = RedisClient()
    await client.connect("redis://localhost:6379/0", RedisConfig(socket_timeout=2.0))
    await client.call("SET", "greeting", "hello")

Commands of concurrent callers share the connection and travel together; what is too large
for it (above 256 KiB) takes a connection of the redis-py pool, and everything else that
redis-py can do is at :attr:`RedisClient.redis`. Blocking commands belong there too.

A client serves one event loop at a time. Used from another one, or in a forked child, it
connects anew there; the other loop's calls in flight fail as unknown, a parent's
connection is left as it is.
"""

from __future__ import annotations

import asyncio
import os
import re
import weakref
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from inspect import iscoroutinefunction
from time import monotonic
from typing import TYPE_CHECKING, Any, Self, TypeAlias, cast

from redis.asyncio import Redis

from forze.application.contracts.deps import DepKey
from forze.errors import BackendUnavailable, ConfigurationError, ForzeError, ValidationError
from forze_redis.pipeline import Pipeline
from forze_redis.wire.availability import Availability
from forze_redis.wire.cluster import Cluster, Shape
from forze_redis.wire.config import RedisConfig, seconds
from forze_redis.wire.connection import Reply
from forze_redis.wire.dsn import Endpoint, parse_dsn
from forze_redis.wire.link import Incarnation, Link, Listeners, weakly
from forze_redis.wire.pool import LARGE_BYTES
from forze_redis.wire.replies import BACKEND
from forze_redis.wire.scripts import Script, pack
from forze_redis.wire.slots import own_row, settled
from forze_redis.wire.subscriptions import Heard, Subscription
from forze_redis.wire.tracking import Tracking
from forze_redis.wire.way import Way

if TYPE_CHECKING:
    from forze_redis.push_latency import PushLatency

Argument: TypeAlias = str | bytes | int | float

_PING = pack("PING")
_OF_ONE_SERVER = frozenset({"DBSIZE", "FLUSHALL", "FLUSHDB", "KEYS", "RANDOMKEY", "SCAN"})
_not_shared = re.compile(
    r"AUTH|HELLO|MONITOR|P?SYNC|QUIT|RESET|SELECT|DISCARD|EXEC|MULTI|(UN)?WATCH|[PS]?(UN)?SUBSCRIBE"
    r"|BLM?POP|BLMOVE|BRPOP(LPUSH)?|BZMPOP|BZPOP(MAX|MIN)",
    re.IGNORECASE,
).fullmatch
"""They block, or change the state of the connection that all callers share."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RedisHealth:
    """What :meth:`RedisClient.health` saw. ``breaker`` is ``"open"`` while the server is away.

    Of a cluster it is ok when every primary is, and ``nodes`` has each by itself.
    """

    ok: bool
    where: str | None = None
    server: str | None = None
    version: str | None = None
    latency_ms: float | None = None
    generation_known: bool = False
    breaker: str = "closed"
    breaker_since: datetime | None = None
    in_flight: int = 0
    pushes: str = "off"
    error: str | None = None
    nodes: tuple[RedisHealth, ...] = ()


class Primary:
    """One server of those that a client talks to."""

    __slots__ = ("_link", "_timeout")

    def __init__(self, link: Link, timeout: float) -> None:
        self._link = link
        self._timeout = timeout

    def available(self) -> bool:
        """False while it is away."""
        return not self._link.availability.away

    def call(self, command: str, *args: Argument) -> asyncio.Future[Reply]:
        """Send one command to this very server; see :meth:`RedisClient.call`."""
        return self._link.connection.send(pack(command, *args), self._timeout)


class RedisClient:
    """A client of one Redis or Valkey server, or of a cluster of them.

    Every method that sends returns a future, without a task and without a timer of its own;
    await it for the reply as RESP3 has it (``bytes``, ``int``, ``float``, ``bool``, None,
    list, dict), or for a :class:`~forze.errors.BackendError`. One round trip each. Where
    the answer was lost, the error's ``outcome`` is ``"unknown"``.
    """

    def __init__(self) -> None:
        self._endpoint: Endpoint | None = None
        self._config = RedisConfig()
        self._timeout = seconds(self._config.socket_timeout)
        self._cache_timeout = seconds(self._config.cache_timeout)
        self._link: Way | None = None
        self.clustered = False
        """Whether it is a cluster that it talks to: keys of one call then share a hash tag."""
        self._availability = Availability()
        self._shape = Shape(self._availability)
        self._listeners = Listeners()
        self.push_probe: PushLatency | None = None
        """Who measures how long the server's pushes take, where somebody follows them."""
        _clients.add(self)

    async def connect(
        self, dsn: str, config: RedisConfig | dict[str, object] | None = None
    ) -> Self:
        """Connect to the server at ``dsn``; one round trip beyond the socket's own.

        With ``redis+sentinel://`` it is the primary that the sentinels name, now and at every
        reconnect; one more round trip and connection each time. With ``redis+cluster://`` it is
        every primary of the cluster that the named nodes belong to; one primary is enough.

        Raises ``ConfigurationError`` for a malformed DSN, wrong credentials, an unknown
        database or service, or a server too old, ``BackendUnavailable`` where it cannot be reached
        (with ``RedisConfig(require_at_start=False)`` it is waited for in the background).
        """
        config = RedisConfig.of(config)
        endpoint = parse_dsn(dsn, config)
        endpoint.ssl_context()
        await self.close()
        self._endpoint, self._config = endpoint, config
        self.clustered = bool(endpoint.seeds)
        self._shape = Shape(self._availability)
        self._timeout = seconds(config.socket_timeout)
        self._cache_timeout = seconds(config.cache_timeout)
        returned = self._availability.restored()
        link = self._relink()
        try:
            await link.first_attempt()
            for callback in returned:
                callback()
        except BackendUnavailable as error:
            if config.require_at_start:
                await self.close()
                raise _at_start(error) from error
        except BaseException:
            await self.close()
            raise
        return self

    async def close(self) -> None:
        """Close every connection. Calls in flight get a second to be answered, then fail."""
        link, self._link = self._link, None
        self._endpoint = None
        self._listeners.subscriptions.end()
        if link is None:
            return
        if link.loop is asyncio.get_running_loop():
            await link.close()
        else:
            self._listeners.leave()
            _leave(link)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def call(
        self, command: str | bytes, *args: Argument, timeout: float | None = None
    ) -> asyncio.Future[Reply]:
        """Send one command; ``timeout`` in seconds, default ``RedisConfig.socket_timeout``.

        A command that would block or change the connection everyone shares is refused with a
        ``ConfigurationError``; it belongs to :attr:`redis`. So is, on a cluster, one that looks at
        all keys of a server: see :meth:`primaries`.
        """
        return self.send(self.packed(command, *args), timeout)

    def packed(self, command: str | bytes, *args: Argument) -> bytes:
        """A command as :meth:`send` takes it; refuses what :meth:`call` refuses."""
        name = command if isinstance(command, str) else command.decode(errors="replace")
        if _not_shared(name):
            raise ConfigurationError(
                f"{name} blocks or changes the connection that all callers share; use "
                "client.redis for it, and client.subscribe() for channels",
                name=name,
            )
        if self.clustered and name.upper() in _OF_ONE_SERVER:
            raise ConfigurationError(
                f"{name} looks at the keys of one server only, and this is a cluster; send it to "
                "each of client.primaries()",
                name=name,
            )
        return pack(command, *args)

    def run(
        self,
        script: Script,
        keys: Sequence[Argument],
        args: Sequence[Argument] = (),
        *,
        timeout: float | None = None,
    ) -> asyncio.Future[Reply]:
        """Run a script; sent in full by itself where the server does not have it."""
        return self.send(pack("EVALSHA", script.sha1, len(keys), *keys, *args), timeout)

    def send(self, packed: bytes, timeout: float | None = None) -> asyncio.Future[Reply]:
        """:meth:`call` for a command that is packed already (see ``Script.head``)."""
        link = self._link or self._relink()
        if timeout is None:
            timeout = self._timeout
        if len(packed) > LARGE_BYTES:
            return asyncio.ensure_future(self._send_large(packed, timeout))
        return link.connection.send(packed, timeout)

    def run_cached(
        self, script: Script, keys: Sequence[Argument], args: Sequence[Argument] = ()
    ) -> asyncio.Future[Reply]:
        """:meth:`run` on the cache path: see :meth:`send_cached`."""
        return self.send_cached(pack("EVALSHA", script.sha1, len(keys), *keys, *args))

    def send_cached(self, packed: bytes) -> asyncio.Future[Reply]:
        """:meth:`send` within the cache path's budget (``RedisConfig.cache_timeout``).

        While the server is away the future fails at once with ``BackendUnavailable``,
        outcome ``"none"``.
        """
        link = self._link or self._relink()
        if self._availability.away:
            return self._here().refused()
        if len(packed) > LARGE_BYTES:
            return asyncio.ensure_future(self._send_large(packed, self._cache_timeout))
        return link.connection.send_cached(packed, self._cache_timeout)

    def change(
        self, script: Script, keys: Sequence[str], args: Sequence[Argument] = ()
    ) -> asyncio.Future[Reply]:
        """:meth:`run_cached` for a script that changes what is cached under ``keys``.

        The in-process tiers drop them as it is sent and again as it is answered, so that what
        waits for the answer does not have to wait for the push as well.
        """
        touched = self._listeners.tracking.touched
        touched(keys)
        reply = self.send_cached(pack("EVALSHA", script.sha1, len(keys), *keys, *args))
        reply.add_done_callback(lambda _: touched(keys))
        return reply

    def post(self, packed: bytes) -> None:
        """Send a packed command whose reply nobody wants, if it can be sent right now."""
        link = self._link or self._relink()
        if not self._availability.away and len(packed) <= LARGE_BYTES:
            link.connection.post(packed)

    def call_large(
        self, command: str | bytes, *args: Argument, timeout: float | None = None
    ) -> asyncio.Future[Reply]:
        """:meth:`call` on a connection of the pool: for replies that may be large."""
        budget = self._timeout if timeout is None else timeout
        return asyncio.ensure_future(self._send_large(pack(command, *args), budget))

    async def subscribe(self, channel: str, heard: Heard) -> Subscription:
        """Hear what is published to a channel (``SPUBLISH``), until the subscription is closed.

        ``heard`` is called in the event loop with each message, and with None when messages may
        have been missed: the connection was replaced, and the channel is heard again. When this
        returns the server has confirmed; one round trip, none where the process listens already.
        Raises ``BackendError``, a ``ConfigurationError`` where the user may not listen.
        """
        given: object = heard
        if not callable(given) or iscoroutinefunction(given):
            raise ValidationError(
                f"heard is a function that is called with each message and not awaited, not "
                f"{heard!r}",
                field="heard",
            )
        subscriptions = self._listeners.subscriptions
        subscription = subscriptions.add(channel, heard)
        try:
            while subscriptions.holds(subscription):
                home = self._here().home(subscription.channel)
                connection = home.connection
                if subscriptions.confirmed(subscription.channel, connection):
                    return subscription
                if connection.ready:
                    await subscriptions.ask(connection, subscription.channel, self._timeout)
                else:
                    await connection.send(_PING, self._timeout)  # waits for one that hears all
        except BaseException:
            subscription.close()
            raise
        raise BackendUnavailable(
            f"the client was closed while it subscribed to {channel!r}", backend=BACKEND
        )

    def pipeline(self) -> Pipeline:
        """Several commands in one write and one round trip."""
        return Pipeline(self)

    def current_route(self) -> str | None:
        """Which of several servers a call sent now would go to; None where there is one."""
        return None

    def hold(self) -> AbstractAsyncContextManager[RedisClient]:
        """The client that serves the current route, kept open for the length of the block.

        That is this one itself; a client per tenant gives the bound tenant's. What outlives a
        call (a held lock, a claim) goes on with it wherever it runs.
        """
        return nullcontext(self)

    @property
    def redis(self) -> Redis:
        """The redis-py client of the same server, for everything else; raises its own errors.

        Its pool has ``max_size - 1`` connections and waits up to ``socket_timeout`` for one. On
        a cluster it is a ``redis.asyncio.RedisCluster``, with as many to each node.
        """
        return cast(Redis, self._here().redis)

    @property
    def connected(self) -> bool:
        """Whether it was connected, and not closed since, on the running event loop."""
        link = self._link
        return link is not None and link.loop is asyncio.get_running_loop()

    @property
    def in_use(self) -> bool:
        """Whether calls are under way, on the pool's connections too, or channels are heard."""
        link = self._link
        return link is not None and (link.busy or self._listeners.subscriptions.any)

    @property
    def generation(self) -> str:
        """Eight characters that change when another server answers, or it restarted."""
        return self._link.generation if self._link is not None else "00000000"

    @property
    def generation_known(self) -> bool:
        """False where the server does not tell (INFO not permitted): no safety over failovers."""
        return self._link is not None and self._link.generation_known

    def incarnation(self, key: str | None = None) -> Incarnation | None:
        """What the server of ``key`` is at present; another object when that may have changed.

        Without a key that of every key, None where there is no such thing.
        """
        return None if self._link is None else self._link.incarnation_of(key)

    def available(self, key: str | None = None) -> bool:
        """False while calls on the cache path fail at once because the server is away.

        On a cluster: the server of ``key``; without one, every server.
        """
        if self.clustered and self._link is not None:
            return self._link.available(key)
        return not self._availability.away

    def where(self, key: str) -> str:
        """The address of the server that has ``key``; without one, of where it was looked for."""
        if self._endpoint is None:
            return "no address: call connect()"
        link = self._here()
        try:
            return link.home(key.encode()).where
        except BackendUnavailable:
            return link.where

    async def layout(self) -> tuple[str, ...]:
        """Which slots each primary of a cluster says it has; () for a single server.

        One round trip. Two answers that are alike and ``settled`` were given while no key moved.
        Where others have some of the slots by now, the client asks for them.
        """
        if not self.clustered:
            return ()
        nodes = await asyncio.gather(*(each.call("CLUSTER", "NODES") for each in self.primaries()))
        rows = tuple(own_row(told) for told in nodes)
        if not settled(rows):
            self._here().doubt()
        return rows

    def primaries(self) -> Sequence[Primary]:
        """Each server that has keys of its own, for commands that look at all of a server's."""
        return tuple(Primary(node, self._timeout) for node in self._here().nodes)

    def on_recovery(self, callback: Callable[[], None]) -> None:
        """Call back whenever the server answers again after it was away.

        Called in the event loop before any call that waits is sent; what the callback
        sends goes first. It must not block.
        """
        self._availability.on_recovery(weakly(callback))

    def on_reconnect(self, callback: Callable[[str, str], None]) -> None:
        """Call back with the old and the new generation after each connect, the first included.

        Before :meth:`on_recovery`; also when the generation changes on a standing connection.
        """
        self._listeners.reconnect.append(weakly(callback))

    def on_push(self, callback: Callable[[list[Any]], None]) -> None:
        """Call back with every push message of the server, in the order it sent them."""
        self._listeners.push.append(weakly(callback))

    @property
    def tracking(self) -> Tracking:
        """Who hears of which keys in this process, and the state of the server's pushes."""
        return self._listeners.tracking

    def push_latency(self) -> timedelta | None:
        """From a change to the arrival of its push, as measured last; None where nobody follows
        pushes, or the last one did not arrive. Being asked, it is measured anew, apart."""
        probe = self.push_probe
        if probe is None:
            return None
        probe.wanted()
        return None if probe.seconds is None else timedelta(seconds=probe.seconds)

    async def health(self) -> RedisHealth:
        """Ask the server for a sign of life; never raises, takes a second at most."""
        if self._endpoint is None:
            return RedisHealth(ok=False, error="the client is not connected; call connect()")
        link = self._here()
        nodes = await asyncio.gather(*(self._health_at(node) for node in link.nodes))
        if not nodes:
            why = link.error or "no node of the cluster is known"
            return RedisHealth(ok=False, where=link.where, error=str(why))
        return self._together(link.where, nodes) if self.clustered else nodes[0]

    def _together(self, where: str, nodes: Sequence[RedisHealth]) -> RedisHealth:
        """All primaries of a cluster, as one."""
        sick = [node for node in nodes if not node.ok]
        open_since = [each.breaker_since for each in nodes if each.breaker == "open"]
        said = "; ".join(each.error or f"{each.where} is away" for each in sick)
        return replace(
            nodes[0],
            ok=not sick,
            where=where,
            latency_ms=max((each.latency_ms or 0.0 for each in nodes if each.ok), default=None),
            generation_known=all(each.generation_known for each in nodes),
            breaker="open" if open_since else "closed",
            breaker_since=open_since[0] if open_since else nodes[0].breaker_since,
            in_flight=sum(each.in_flight for each in nodes),
            error=f"{len(sick)} of {len(nodes)} primaries: {said}" if sick else None,
            nodes=tuple(nodes),
        )

    async def _health_at(self, link: Link) -> RedisHealth:
        availability = link.availability
        latency_ms: float | None = None
        error: str | None = None
        try:
            asked = monotonic()
            await link.connection.send(_PING, min(1.0, self._timeout))
            latency_ms = (monotonic() - asked) * 1000
        except ForzeError as failure:
            error = str(failure)
        greeting = link.greeting
        return RedisHealth(
            ok=error is None and not availability.away,
            where=link.where,
            server=greeting.server if greeting else None,
            version=greeting.version if greeting else None,
            latency_ms=latency_ms,
            generation_known=link.generation_known,
            breaker=availability.state,
            breaker_since=availability.since,
            in_flight=link.connection.in_flight,
            pushes=self.tracking.state,
            error=error,
        )

    async def _send_large(self, packed: bytes, timeout: float) -> Reply:
        reply = await self._here().send_large(packed, timeout)
        task = asyncio.current_task()
        if task is not None and task.cancelling():  # redis-py can lose a cancellation on 3.11
            raise asyncio.CancelledError
        return reply

    def _connected_to(self) -> Endpoint:
        if self._endpoint is None:
            raise ConfigurationError(
                "the Redis client is not connected; call `await client.connect(dsn)` first, or "
                "put redis_lifecycle_step(dsn=...) into the lifecycle"
            )
        return self._endpoint

    def _here(self) -> Way:
        """The link of the running event loop."""
        link = self._link
        if link is None or link.loop is not asyncio.get_running_loop():
            return self._relink()
        return link

    def _relink(self) -> Way:
        """A new link of the running event loop, in the place of any other."""
        endpoint, old = self._connected_to(), self._link
        if old is not None:
            self._listeners.leave()
            _leave(old)
        config, listeners, elsewhere = self._config, self._listeners, self._elsewhere
        if endpoint.seeds:
            cluster = self._link = Cluster(endpoint, config, self._shape, listeners, elsewhere)
            return cluster
        self._link = link = Link(endpoint, config, self._availability, listeners, elsewhere)
        if isinstance(old, Link):
            link.generation = old.generation
        return link

    def _elsewhere(self, packed: bytes, timeout: float) -> asyncio.Future[Reply]:
        return self._here().connection.send(packed, timeout)

    def _forked(self) -> None:
        link, self._link = self._link, None
        self._listeners.leave()
        if link is not None:
            _inherited.append(link)
            link.connection.disown()


RedisClientDepKey: DepKey[RedisClient] = DepKey("redis_client")

_clients: weakref.WeakSet[RedisClient] = weakref.WeakSet()
_inherited: list[Way] = []
"""Links of the parent process: kept, so that nothing of them is ever finalized here."""


def _after_fork() -> None:
    for client in tuple(_clients):
        client._forked()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def _leave(link: Way) -> None:
    """Give up a link that belongs to another event loop, which may be closed."""
    link.retired = True
    if not link.loop.is_closed():
        link.loop.call_soon_threadsafe(link.abandon)


def _at_start(error: BackendUnavailable) -> BackendUnavailable:
    return BackendUnavailable(
        f"{error} To start without it, set RedisConfig(require_at_start=False)",
        backend=error.backend,
    )
