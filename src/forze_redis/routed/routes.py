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
import logging
from collections.abc import Callable
from datetime import timedelta
from math import inf
from time import monotonic
from typing import Final

from forze.errors import ConfigurationError
from forze_redis.client import RedisClient
from forze_redis.routed.endpoints import Directory, Endpoints, is_unknown
from forze_redis.routed.rotation import Rotations
from forze_redis.routed.seats import Seat, apart
from forze_redis.wire.config import RedisConfig

_log = logging.getLogger("forze.redis")

DRAIN_SECONDS: Final = 0.05
"""How often a client that was replaced is looked at, whether it is still in use."""

_SWEEP_SECONDS: Final = (0.02, 30.0)


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
                self._routes.rotations.doubt(seat)
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
        self._directory: Directory | None = None
        self._seats: dict[str, Seat] = {}
        self._leaving: dict[Seat, asyncio.Task[None]] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._timer_loop: asyncio.AbstractEventLoop | None = None
        self._wanted: dict[str, set[object]] = {}
        self._listeners: list[Callable[[Seat], None]] = []
        self.rotations = Rotations(self._move, self._seats.get)

    def begin(self, endpoints: Endpoints, config: RedisConfig) -> None:
        """Routes are found in ``endpoints`` from now on."""
        self._directory = Directory(endpoints, config, clustered=self._clustered)

    @property
    def begun(self) -> bool:
        """Whether there are endpoints."""
        return self._directory is not None

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

    # -- coming ----------------------------------------------------------------

    def _take(self, route: str) -> Seat:
        directory = self._connected_to()
        directory.check(route)
        seat = Seat(route)
        seat.opening = apart(self._open(seat, directory), name=f"forze-redis route {route!r}")
        self._place(seat)
        return seat

    def _place(self, seat: Seat) -> None:
        self._seats[seat.route] = seat
        self._make_room()
        self._arm()

    async def _open(self, seat: Seat, directory: Directory) -> None:
        try:
            client = await directory.connected(seat.route, required=False)
        except Exception as error:
            if not is_unknown(seat.route, error):
                seat.failed_at = monotonic()
            elif self._seats.get(seat.route) is seat:  # there may be such a route in a moment
                del self._seats[seat.route]
            raise
        self._occupy(seat, client)
        if self._seats.get(seat.route) is not seat:
            self._leave(seat)

    async def _move(self, route: str) -> None:
        """Connect the route anew, and give the new client the old one's seat."""
        directory = self._connected_to()
        client = await directory.connected(route, required=True)
        if self._directory is not directory:
            await client.close()
            raise asyncio.CancelledError
        old, seat = self._seats.get(route), Seat(route)
        self._place(seat)
        self._occupy(seat, client)
        if old is not None:
            self._leave(old)

    def _connected_to(self) -> Directory:
        if self._directory is None:
            raise ConfigurationError(
                "the routed Redis client is not connected; put routed_redis_lifecycle_step("
                "dsn_of=...) into the lifecycle, or call `await client.connect(dsn_of)` first"
            )
        return self._directory

    def _occupy(self, seat: Seat, client: RedisClient) -> None:
        seat.occupy(client)
        for listener in self._listeners:
            try:
                listener(seat)
            except Exception:
                _log.exception("a listener of the routed Redis client failed")

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
        self._leaving[seat] = apart(self._drain(seat), name="forze-redis client leaving")

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
        self._directory = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        seats = [*self._seats.values(), *self._leaving]
        tasks = [*self._leaving.values(), *self.rotations.end()]
        tasks += [each.opening for each in seats if each.opening is not None]
        self._seats.clear()
        self._leaving.clear()
        self._wanted.clear()
        await asyncio.gather(*(_stop(each) for each in tasks))
        await asyncio.gather(*(each.open.close() for each in seats if each.open is not None))

    def forked(self) -> None:
        """In a child process: what was being opened or closed is the parent's affair."""
        for route, seat in tuple(self._seats.items()):
            seat.holds, seat.opening = 0, None
            if seat.open is None:
                del self._seats[route]
        self._leaving.clear()
        self.rotations.end()
        self._timer = None


async def _stop(task: asyncio.Task[None]) -> None:
    loop = task.get_loop()
    if loop is asyncio.get_running_loop():
        task.cancel()
        await asyncio.wait([task])
    elif not loop.is_closed():
        loop.call_soon_threadsafe(task.cancel)
