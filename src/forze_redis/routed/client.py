"""A client for many servers: the bound tenant, or an explicit route, selects the endpoint.

::

    client = RoutedRedisClient()
    await client.connect({"acme": "redis://one:6379/0", "umbrella": "redis://two:6379/0"})
    with ctx.bind_tenant("acme"):
        await client.call("SET", "greeting", "hello")          # on one
    with client.route("umbrella"):
        await client.call("SET", "greeting", "hello")          # on two

It stands wherever a :class:`~forze_redis.RedisClient` does; each call chooses its client when it
is sent. How clients come and go is in ``routes``.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import (
    AbstractAsyncContextManager,
    AsyncExitStack,
    asynccontextmanager,
    contextmanager,
)
from contextvars import ContextVar
from datetime import timedelta
from time import monotonic
from typing import Any, Self, TypeAlias

from redis.asyncio import Redis

from forze.application.contracts.tenancy import TENANT, require_tenant
from forze.errors import (
    BackendTimeout,
    ConfigurationError,
    ForzeError,
    TenantRequired,
)
from forze_redis.client import Argument, Primary, RedisClient, RedisHealth
from forze_redis.routed.endpoints import Endpoints
from forze_redis.routed.routes import Hold, Routes
from forze_redis.routed.seats import Seat
from forze_redis.wire.config import RedisConfig, seconds
from forze_redis.wire.connection import Reply
from forze_redis.wire.link import Incarnation, weakly
from forze_redis.wire.pool import LARGE_BYTES
from forze_redis.wire.replies import BACKEND
from forze_redis.wire.scripts import Script
from forze_redis.wire.subscriptions import Heard, Subscription
from forze_redis.wire.tracking import Tracking

RouteOf: TypeAlias = Callable[[str | None], str]
"""The route of the bound tenant (None where none is bound)."""

Send: TypeAlias = Callable[[RedisClient, float], Awaitable[Reply]]
"""Sends with a client, within so many seconds."""

_bound: ContextVar[Mapping[RoutedRedisClient, str] | None] = ContextVar(
    "forze_redis_routes", default=None
)


class RoutedRedisClient(RedisClient):
    """One :class:`RedisClient` for each route, made when it is first used.

    The route is the bound tenant, or what ``route`` makes of it (several tenants may share one);
    :meth:`route` binds another. For caches of documents ``route`` has to be a function of the
    tenant alone: they go by it whatever is bound, so that a write reaches every copy.

    Above ``max_clients``, and after ``idle_after`` without a call, clients that nobody uses are
    closed, the longest unused first; one that is in use never is, so there may be more for a
    while. ``clustered`` says whether the endpoints are clusters.

    Every method raises ``TenantRequired`` where no route can be told, and ``ConfigurationError``
    naming the route where there is no endpoint for it.
    """

    def __init__(
        self,
        *,
        route: RouteOf | None = None,
        max_clients: int = 100,
        idle_after: timedelta = timedelta(minutes=5),
        clustered: bool = False,
    ) -> None:
        super().__init__()
        clients: object = max_clients
        if type(clients) is not int or clients < 1:
            raise ConfigurationError(
                f"RoutedRedisClient: max_clients must be a whole number, at least 1, not "
                f"{max_clients!r}",
                name="max_clients",
            )
        idle: object = idle_after
        if not isinstance(idle, timedelta) or idle_after <= timedelta(0):
            raise ConfigurationError(
                f"RoutedRedisClient: idle_after must be a timedelta above zero, not {idle_after!r}",
                name="idle_after",
            )
        self._route_of = route
        self.clustered = clustered
        self._routes = Routes(max_clients=max_clients, idle_after=idle_after, clustered=clustered)

    # -- which route -----------------------------------------------------------

    @contextmanager
    def route(self, name: str) -> Iterator[None]:
        """Send this task's calls to ``name``, whatever tenant is bound, within a ``with`` block."""
        given: object = name
        if not isinstance(given, str) or not given:
            raise ConfigurationError(f"a route is text that is not empty, not {name!r}")
        token = _bound.set({**(_bound.get() or {}), self: name})
        try:
            yield
        finally:
            _bound.reset(token)

    def current_route(self) -> str:
        """The route of a call sent now; raises ``TenantRequired`` where there is none."""
        bound = _bound.get()
        if bound is not None and (route := bound.get(self)) is not None:
            return route
        return self.tenants_route()

    def tenants_route(self) -> str:
        """The route of the bound tenant, whatever :meth:`route` says."""
        if self._route_of is None:
            return require_tenant("the routed Redis client")
        route: object = self._route_of(TENANT.get())
        if not isinstance(route, str) or not route:
            if TENANT.get() is None:
                raise TenantRequired("the routed Redis client")
            raise ConfigurationError(
                f"RoutedRedisClient: route= answered {route!r} for tenant {TENANT.get()!r}; it "
                "must answer text that is not empty",
                name="route",
            )
        return route

    @property
    def clients(self) -> Mapping[str, RedisClient]:
        """The clients that are open at present, by route."""
        return self._routes.known()

    # -- beginning and end -----------------------------------------------------

    async def connect(
        self, dsn: str | Endpoints, config: RedisConfig | dict[str, object] | None = None
    ) -> Self:
        """Find routes in ``dsn``: a mapping from route to DSN, or a function, async or not.

        Nothing is connected yet. ``config`` is that of every client, except that none is waited
        for at start: a server that is down is tried in the background, and its calls fail within
        their budget.
        """
        if isinstance(dsn, str) or not (isinstance(dsn, Mapping) or callable(dsn)):
            raise ConfigurationError(
                "a RoutedRedisClient takes a DSN for each route: a mapping, or a function of the "
                "route; for one server use RedisClient",
                name="dsn_of",
            )
        settled = RedisConfig.of(config)
        await self.close()
        self._config = settled
        self._timeout = seconds(settled.socket_timeout)
        self._cache_timeout = seconds(settled.cache_timeout)
        self._routes.begin(dsn, settled)
        return self

    async def close(self) -> None:
        """Close every client. Calls in flight get a second to be answered, then fail."""
        await self._routes.close()

    async def rotate(self, route: str | None = None) -> None:
        """Ask for the endpoint of ``route`` (default: the current one) again, and move there.

        The new client is connected first; calls that are under way, and what is held, end on the
        old one, which is then closed. Raises what kept the new one from connecting, and nothing
        has changed then. Done by itself where a server rejects the password.
        """
        await self._routes.rotations.rotate(self.current_route() if route is None else route)

    # -- sending ---------------------------------------------------------------

    def send(self, packed: bytes, timeout: float | None = None) -> asyncio.Future[Reply]:
        route = self.current_route()
        client = self._routes.seat(route).open
        if client is not None and client.available() and len(packed) <= LARGE_BYTES:
            return client.send(packed, timeout)
        budget = self._timeout if timeout is None else timeout
        return self._patiently(route, lambda here, left: here.send(packed, left), budget)

    def send_cached(self, packed: bytes) -> asyncio.Future[Reply]:
        route = self.current_route()
        seat = self._routes.seat(route)
        client = seat.open
        if client is not None and len(packed) <= LARGE_BYTES and not self._renewable(seat):
            return client.send_cached(packed)
        return self._patiently(route, lambda here, _: here.send_cached(packed))

    def change(
        self, script: Script, keys: Sequence[str], args: Sequence[Argument] = ()
    ) -> asyncio.Future[Reply]:
        return self._patiently(
            self.current_route(), lambda here, _: here.change(script, keys, args)
        )

    def post(self, packed: bytes) -> None:
        client = self._routes.seat(self.current_route()).open
        if client is not None:
            client.post(packed)

    def call_large(
        self, command: str | bytes, *args: Argument, timeout: float | None = None
    ) -> asyncio.Future[Reply]:
        return self._patiently(
            self.current_route(),
            lambda here, left: here.call_large(command, *args, timeout=left),
            self._timeout if timeout is None else timeout,
        )

    async def subscribe(self, channel: str, heard: Heard) -> Subscription:
        """:meth:`RedisClient.subscribe` on the current route; the client stays until it ends."""
        async with self.hold() as here:
            return await here.subscribe(channel, heard)

    def hold(self) -> AbstractAsyncContextManager[RedisClient]:
        """The client of the current route, kept open for the length of the block.

        It is not closed meanwhile, neither for being idle nor when its route is rotated.
        """
        return _client_of(Hold(self._routes, self.current_route(), self._timeout))

    @property
    def redis(self) -> Redis:
        """The redis-py client of the current route.

        Only where that is open already; within ``async with client.hold() as here:`` it is, and
        ``here.redis`` stays usable.
        """
        return self._open().redis

    # -- what the current route's client is like -------------------------------

    @property
    def connected(self) -> bool:
        """Whether there are endpoints."""
        return self._routes.begun

    @property
    def generation(self) -> str:
        return self._open().generation

    @property
    def generation_known(self) -> bool:
        return self._open().generation_known

    def available(self, key: str | None = None) -> bool:
        """False while calls on the cache path of the current route fail at once."""
        seat = self._routes.look(self.current_route())
        return seat is None or seat.open is None or seat.open.available(key)

    def incarnation(self, key: str | None = None) -> Incarnation | None:
        return self._open().incarnation(key)

    def primaries(self) -> Sequence[Primary]:
        return self._open().primaries()

    @property
    def tracking(self) -> Tracking:
        return self._open().tracking

    def on_recovery(self, callback: Callable[[], None]) -> None:
        """:meth:`RedisClient.on_recovery` of every route, those opened later included."""
        callback = weakly(callback)
        self._listen(lambda client: client.on_recovery(callback))

    def on_reconnect(self, callback: Callable[[str, str], None]) -> None:
        """:meth:`RedisClient.on_reconnect` of every route, those opened later included."""
        callback = weakly(callback)
        self._listen(lambda client: client.on_reconnect(callback))

    def on_push(self, callback: Callable[[list[Any]], None]) -> None:
        """:meth:`RedisClient.on_push` of every route, those opened later included."""
        callback = weakly(callback)
        self._listen(lambda client: client.on_push(callback))

    async def layout(self) -> tuple[str, ...]:
        async with self.hold() as here:
            return await here.layout()

    @property
    def in_use(self) -> bool:
        return any(each.in_use for each in self._routes.known().values())

    async def health(self) -> RedisHealth:
        """:meth:`RedisClient.health` of the current route; of all that are open without one.

        Without a route nobody is asked: it is not ok once every open client's server is away.
        """
        if not self.connected:
            return RedisHealth(ok=False, error="the routed client is not connected")
        try:
            route = self.current_route()
        except TenantRequired:
            return self._health_of_all()
        try:
            async with Hold(self._routes, route, min(1.0, self._timeout)) as seat:
                return await seat.client.health()
        except ForzeError as error:
            return RedisHealth(ok=False, error=str(error))

    # -- for the ports of a routed client ---------------------------------------

    @property
    def routes(self) -> Routes:
        """The table of clients."""
        return self._routes

    def hold_cached(self, route: str) -> Hold:
        """The seat of ``route``, kept for a block; waits for it as long as the cache path does."""
        return Hold(self._routes, route, self._cache_timeout, self._cache_timeout)

    # -- inside ----------------------------------------------------------------

    def _renewable(self, seat: Seat) -> bool:
        client = seat.open
        return (
            client is not None and not client.available() and self._routes.rotations.refused(seat)
        )

    def _patiently(
        self, route: str, send: Send, budget: float | None = None
    ) -> asyncio.Future[Reply]:
        seat = self._routes.seat(route)
        seat.holds += 1
        sending = asyncio.ensure_future(self._when_open(seat, send, budget))
        sending.add_done_callback(seat.release)
        return sending

    async def _when_open(self, seat: Seat, send: Send, budget: float | None) -> Reply:
        """Send once the seat is open, and again for as often as its password is replaced.

        ``budget`` in seconds; None is the cache path's, which knows how long others waited.
        """
        now = monotonic()
        until = now + (self._cache_timeout if budget is None else budget)
        open_by = until if budget is not None else seat.asked_at + self._cache_timeout
        await seat.opened(open_by - now)
        async with AsyncExitStack() as holds:
            while True:
                if not self._renewable(seat):
                    try:
                        return await send(seat.client, until - monotonic())
                    except ConfigurationError as error:  # there was no connection to send it on
                        if not self._routes.rotations.renews(seat, error):
                            raise
                await self._renewed(seat, until)
                newer = Hold(self._routes, seat.route, until - monotonic())
                seat = await holds.enter_async_context(newer)

    async def _renewed(self, seat: Seat, until: float) -> None:
        try:
            async with asyncio.timeout(until - monotonic()):
                await self._routes.rotations.renew(seat)
        except TimeoutError:
            raise BackendTimeout(
                f"Redis for route {seat.route!r} rejects our password, and another was not had in "
                "time; nothing was sent",
                backend=BACKEND,
            ) from None

    def _open(self) -> RedisClient:
        route = self.current_route()
        client = self._routes.seat(route).open
        if client is None:
            raise ConfigurationError(
                f"the client of route {route!r} is not open yet, and this has to be answered at "
                "once; ask within `async with client.hold() as here:`, of `here`",
                name=route,
            )
        return client

    def _listen(self, register: Callable[[RedisClient], None]) -> None:
        self._routes.listen(lambda seat: register(seat.client))

    def _health_of_all(self) -> RedisHealth:
        clients = self._routes.known()
        away = sorted(route for route, each in clients.items() if not each.available())
        return RedisHealth(
            ok=not away or len(away) < len(clients),
            breaker="open" if away else "closed",
            error=f"away: {', '.join(away)}" if away else None,
        )

    def _forked(self) -> None:
        super()._forked()
        self._routes.forked()


@asynccontextmanager
async def _client_of(hold: Hold) -> AsyncIterator[RedisClient]:
    async with hold as seat:
        yield seat.client
