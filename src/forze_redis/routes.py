"""The clients behind a routed client: one per route, made when first asked for.

::

    asked for ──► opening ──► open ──► idle, and too many or for too long ──► closed
       ▲  resolve, connect      │ rotated: a new one is connected first, takes its place,
       │  (one task per route)  ▼ and the old one is closed once nobody uses it any more
       └── failed: remembered for a second, so that a dead resolver is not asked by everyone

Nothing here waits for another route: there is no lock, and each connects in a task of its own.
A client is *in use* while it is held, has calls under way or channels to hear. Looking whether
it is and taking it out of the table happen without an await between them, and whoever takes it
from the table sends, or holds it, before the next one: so no client is closed under a call.
"""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import logging
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from dataclasses import replace
from datetime import timedelta
from math import inf
from time import monotonic
from typing import Any, Final, TypeAlias, TypeVar

from forze.errors import BackendUnavailable, ConfigurationError, ForzeError
from forze_redis.client import RedisClient
from forze_redis.seats import RETRY_SECONDS, Seat
from forze_redis.wire.config import RedisConfig, seconds
from forze_redis.wire.replies import BACKEND

T = TypeVar("T")

_log = logging.getLogger("forze.redis")

Endpoints: TypeAlias = (
    "Mapping[str, str] | Callable[[str], str | None] | Callable[[str], Awaitable[str | None]]"
)
"""The DSN of each route: a mapping, or a function that answers one at once or as a coroutine.

It answers None, or raises ``LookupError``, for a route that there is not."""

DRAIN_SECONDS: Final = 0.05
"""How often a client that was replaced is looked at, whether it is still in use."""

_SWEEP_SECONDS: Final = (0.02, 30.0)
_PASSWORD: Final = ("password", "WRONGPASS", "NOAUTH")


class Hold:
    """Keeps the client of a route open for the length of an ``async with`` block.

    One that is not open yet is waited for: until ``wait_seconds`` have passed, counted from now,
    or ``at_most_seconds``, counted from when the first caller asked for it.
    """

    __slots__ = ("_at_most_seconds", "_route", "_routes", "_seat", "_wait_seconds")

    def __init__(
        self, routes: Routes, route: str, wait_seconds: float, at_most_seconds: float = inf
    ) -> None:
        self._routes = routes
        self._route = route
        self._wait_seconds = wait_seconds
        self._at_most_seconds = at_most_seconds

    async def __aenter__(self) -> Seat:
        seat = self._seat = self._routes.seat(self._route)
        seat.holds += 1
        if seat.open is not None:
            if not seat.open.available():
                self._routes.doubt(seat)
        else:
            left = self._at_most_seconds - (monotonic() - seat.asked_at)
            try:
                await seat.opened(min(self._wait_seconds, left))
            except BaseException:
                seat.holds -= 1
                raise
        return seat

    async def __aexit__(self, *_: object) -> None:
        self._seat.holds -= 1


class Routes:
    """The table of seats. Bound to endpoints between :meth:`begin` and :meth:`close`."""

    def __init__(self, *, max_clients: int, idle_after: timedelta, clustered: bool) -> None:
        self._max_clients = max_clients
        self._idle_seconds = idle_after.total_seconds()
        self._clustered = clustered
        self.config = RedisConfig()
        self._endpoints: Endpoints | None = None
        self._seats: dict[str, Seat] = {}
        self._leaving: dict[Seat, asyncio.Task[None]] = {}
        self._rotations: dict[str, asyncio.Task[None]] = {}
        self._refused_at: dict[str, float] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._timer_loop: asyncio.AbstractEventLoop | None = None
        self._wanted: dict[str, set[object]] = {}
        self._listeners: list[Callable[[Seat], None]] = []

    def begin(self, endpoints: Endpoints, config: RedisConfig) -> None:
        """Routes are found in ``endpoints`` from now on."""
        self._endpoints, self.config = endpoints, config

    @property
    def begun(self) -> bool:
        """Whether there are endpoints."""
        return self._endpoints is not None

    def known(self) -> dict[str, RedisClient]:
        """The open clients, by route."""
        return {route: seat.open for route, seat in self._seats.items() if seat.open is not None}

    def seat(self, route: str) -> Seat:
        """The seat of a route, open or being opened; asking for it is using it."""
        seat = self._seats.get(route)
        if seat is None or (seat.open is None and seat.spent):
            seat = self._take(route)
        seat.used_at = monotonic()
        return seat

    def look(self, route: str) -> Seat | None:
        """The seat of a route, if there is one; asking is not using."""
        return self._seats.get(route)

    def want(self, route: str, by: object, wants: bool) -> None:
        """Keep the client of a route although nobody calls; or no longer, on behalf of ``by``."""
        wanting = self._wanted.setdefault(route, set())
        (wanting.add if wants else wanting.discard)(by)
        if not wanting:
            del self._wanted[route]

    def listen(self, listener: Callable[[Seat], None]) -> None:
        """Call back with every open client now, and with each new one before anybody has it."""
        self._listeners.append(listener)
        for seat in tuple(self._seats.values()):
            if seat.open is not None:
                listener(seat)

    # -- opening ---------------------------------------------------------------

    def _take(self, route: str) -> Seat:
        endpoints = self._endpoints
        if endpoints is None:
            raise ConfigurationError(
                "the routed Redis client is not connected; put routed_redis_lifecycle_step("
                "dsn_of=...) into the lifecycle, or call `await client.connect(dsn_of)` first"
            )
        if isinstance(endpoints, Mapping) and route not in endpoints:
            raise _unknown(route)
        seat = self._seats[route] = Seat(route)
        seat.opening = _apart(self._open(seat), name=f"forze-redis route {route!r}")
        self._make_room()
        self._arm()
        return seat

    async def _open(self, seat: Seat) -> None:
        try:
            client = await self._connected(seat.route, required=False)
        except BaseException as error:
            if isinstance(error, Exception) and getattr(error, "name", None) != seat.route:
                seat.failed_at = monotonic()  # an unknown one may be made at any moment
            elif self._seats.get(seat.route) is seat:
                del self._seats[seat.route]
            raise
        seat.occupy(client)
        self._announce(seat)
        if self._seats.get(seat.route) is not seat:
            self._leave(seat)

    async def _connected(self, route: str, *, required: bool) -> RedisClient:
        """A client of the route, connected; or, unless ``required``, trying to."""
        config = replace(self.config, require_at_start=required)
        dsn = await self._dsn(route)
        client = RedisClient()
        try:
            await client.connect(dsn, config)
        except ConfigurationError as error:
            if not _wrong_password(error) or (newer := await self._dsn(route)) == dsn:
                raise
            await client.connect(newer, config)
        if client.clustered != self._clustered:
            await client.close()
            kind = "a cluster" if client.clustered else "no cluster"
            raise ConfigurationError(
                f"route {route!r} leads to {kind}, and keys are spelled otherwise there; give the "
                f"routed client clustered={client.clustered}, and its routes one kind of server",
                name="clustered",
            )
        return client

    async def _dsn(self, route: str) -> str:
        endpoints = self._endpoints
        assert endpoints is not None
        try:
            async with asyncio.timeout(seconds(self.config.connect_timeout)):
                found: object = (
                    endpoints.get(route) if isinstance(endpoints, Mapping) else endpoints(route)
                )
                if inspect.isawaitable(found):
                    found = await found
        except LookupError as error:
            raise _unknown(route) from error
        except ForzeError:
            raise
        except TimeoutError as error:
            raise BackendUnavailable(
                f"the DSN of route {route!r} was not found out within "
                f"{seconds(self.config.connect_timeout):g} s; look at what dsn_of asks",
                backend=BACKEND,
            ) from error
        except Exception as error:
            raise BackendUnavailable(
                f"the DSN of route {route!r} could not be found out: dsn_of failed ({error!r})",
                backend=BACKEND,
            ) from error
        if found is None:
            raise _unknown(route)
        return str(found)

    def _announce(self, seat: Seat) -> None:
        for listener in self._listeners:
            try:
                listener(seat)
            except Exception:
                _log.exception("a listener of the routed Redis client failed")

    # -- rotation --------------------------------------------------------------

    async def rotate(self, route: str) -> None:
        """Ask for the endpoint anew, connect, and put the new client in the old one's place.

        Calls under way and holds end on the old client, which is then closed. Raises, and leaves
        everything as it is, where the new one cannot be connected.
        """
        running = self._rotations.get(route)
        here = asyncio.get_running_loop()
        if running is not None and running.get_loop() is here:
            # It may have asked before there was something new to know.
            await asyncio.wait([running])
        await self._join_rotation(route)

    async def _join_rotation(self, route: str) -> None:
        running = self._rotations.get(route)
        if running is None or running.get_loop() is not asyncio.get_running_loop():
            running = self._rotations[route] = _apart(
                self._rotate(route), name=f"forze-redis rotation of {route!r}"
            )
        await asyncio.wait([running])
        if running.cancelled():
            raise BackendUnavailable(
                f"the routed Redis client was closed while route {route!r} was being rotated",
                backend=BACKEND,
            )
        error = running.exception()
        if error is not None:
            raise error.again() if isinstance(error, ForzeError) else error

    async def _rotate(self, route: str) -> None:
        try:
            client = await self._connected(route, required=True)
            if self._endpoints is None:
                await client.close()
                raise asyncio.CancelledError
            old, seat = self._seats.get(route), Seat(route)
            seat.occupy(client)
            self._seats[route] = seat
            self._announce(seat)
            if old is not None:
                self._leave(old)
        finally:
            if self._rotations.get(route) is asyncio.current_task():
                del self._rotations[route]

    def refused(self, seat: Seat) -> bool:
        """Whether the server rejects the client's password, and it is time to ask for another
        (or somebody does already)."""
        client = seat.open
        link = None if client is None else client._link
        return link is not None and self.renews(seat, link.error)

    def renews(self, seat: Seat, error: ForzeError | None) -> bool:
        """Whether ``error`` is about the password, and :meth:`renew` may help."""
        if not _wrong_password(error):
            return False
        since = monotonic() - self._refused_at.get(seat.route, -inf)
        replaced = self._seats.get(seat.route) is not seat
        return replaced or since > RETRY_SECONDS or seat.route in self._rotations

    async def renew(self, seat: Seat) -> None:
        """:meth:`rotate`, for a client whose password is rejected, unless that was done already;
        at most once a second."""
        route = seat.route
        if self._seats.get(route) is not seat:
            return
        if route not in self._rotations:
            self._refused_at[route] = monotonic()
        await self._join_rotation(route)
        self._refused_at.pop(route, None)

    def doubt(self, seat: Seat) -> None:
        """Renew in the background where that is due; nobody waits for it."""
        if seat.route not in self._rotations and self.refused(seat):
            _apart(self.renew(seat), name=f"forze-redis renewal of {seat.route!r}")

    # -- leaving ---------------------------------------------------------------

    def _make_room(self) -> None:
        """Close clients nobody uses: those unused for long, and the longest unused if too many."""
        now = monotonic()
        for seat in sorted(self._seats.values(), key=lambda each: each.used_at):
            crowded = len(self._seats) > self._max_clients
            if not crowded and now - seat.used_at < self._idle_seconds:
                return
            if seat.open is None:
                if seat.failed_at is not None and seat.spent:
                    del self._seats[seat.route]
            elif not seat.in_use and seat.route not in self._wanted:
                del self._seats[seat.route]
                self._leave(seat)

    def _leave(self, seat: Seat) -> None:
        """Close a seat that is not in the table any more as soon as nobody uses it."""
        self._leaving[seat] = _apart(self._drain(seat), name="forze-redis client leaving")

    async def _drain(self, seat: Seat) -> None:
        if seat.opening is not None:
            await asyncio.wait([seat.opening])
        while seat.in_use:  # noqa: ASYNC110 - calls come and go, nobody notifies
            await asyncio.sleep(DRAIN_SECONDS)
        if seat.open is not None:
            await seat.open.close()
        self._leaving.pop(seat, None)

    def _arm(self) -> None:
        loop = asyncio.get_running_loop()
        if self._timer is None or self._timer_loop is not loop:
            shortest, longest = _SWEEP_SECONDS
            period = max(shortest, min(longest, self._idle_seconds / 4))
            self._timer_loop = loop
            self._timer = loop.call_later(period, self._sweep, context=contextvars.Context())

    def _sweep(self) -> None:
        self._timer = None
        if self._timer_loop is not asyncio.get_running_loop():
            return
        self._make_room()
        if self._seats:
            self._arm()

    async def close(self) -> None:
        """Close every client, those that were leaving included; no route is known afterwards."""
        self._endpoints = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        seats = [*self._seats.values(), *self._leaving]
        tasks = [*self._leaving.values(), *self._rotations.values()]
        tasks += [each.opening for each in seats if each.opening is not None]
        self._seats.clear()
        self._leaving.clear()
        self._wanted.clear()
        self._refused_at.clear()
        await asyncio.gather(*(_stop(each) for each in tasks))
        await asyncio.gather(*(each.open.close() for each in seats if each.open is not None))

    def forked(self) -> None:
        """In a child process: what was being opened or closed is the parent's affair."""
        self._seats = {key: each for key, each in self._seats.items() if each.open is not None}
        for seat in self._seats.values():
            seat.holds, seat.opening = 0, None
        self._leaving.clear()
        self._rotations.clear()
        self._timer = None


def _apart(work: Coroutine[Any, Any, None], *, name: str) -> asyncio.Task[None]:
    """A task that keeps nothing of its caller's request, and whose failure somebody has seen."""
    task = asyncio.get_running_loop().create_task(work, name=name, context=contextvars.Context())
    task.add_done_callback(lambda done: done.cancelled() or done.exception())
    return task


async def _stop(task: asyncio.Task[None]) -> None:
    loop = task.get_loop()
    if loop is asyncio.get_running_loop():
        task.cancel()
        await asyncio.wait([task])
    elif not loop.is_closed():
        loop.call_soon_threadsafe(task.cancel)


def _wrong_password(error: object) -> bool:
    return isinstance(error, ConfigurationError) and error.name in _PASSWORD


def _unknown(route: str) -> ConfigurationError:
    return ConfigurationError(
        f"there is no Redis endpoint for route {route!r}; add it to the mapping, or let dsn_of "
        "answer a DSN for it",
        name=route,
    )
