"""Moving a route to another endpoint, or to the same one with another password.

A new client is connected first; then it takes the old one's seat, which is closed once nobody
uses it any more. It is done when asked for, and by itself when a server rejects the password:
by one for all, and at most once a second.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from math import inf
from time import monotonic

from forze.errors import BackendUnavailable, ForzeError
from forze_redis.routed.endpoints import wrong_password
from forze_redis.routed.seats import RETRY_SECONDS, Seat, apart
from forze_redis.wire.replies import BACKEND


class Rotations:
    """Those under way, by route. ``move`` connects the new client and gives it the seat."""

    def __init__(
        self, move: Callable[[str], Awaitable[None]], seat_of: Callable[[str], Seat | None]
    ) -> None:
        self._move = move
        self._seat_of = seat_of
        self._running: dict[str, asyncio.Task[None]] = {}
        self._refused_at: dict[str, float] = {}

    async def rotate(self, route: str) -> None:
        """Ask for the endpoint anew, and move there; raises what kept it from that."""
        running = self._running.get(route)
        if running is not None and running.get_loop() is asyncio.get_running_loop():
            # It may have asked before there was something new to know.
            await asyncio.wait([running])
        await self._join(route)

    def refused(self, seat: Seat) -> bool:
        """Whether the server rejects the client's password, and it is time to ask for another
        (or somebody does already)."""
        link = None if seat.open is None else seat.open._link
        return link is not None and self.renews(seat, link.error)

    def renews(self, seat: Seat, error: ForzeError | None) -> bool:
        """Whether ``error`` is about the password, and :meth:`renew` may help."""
        if not wrong_password(error):
            return False
        since = monotonic() - self._refused_at.get(seat.route, -inf)
        replaced = self._seat_of(seat.route) is not seat
        return replaced or since > RETRY_SECONDS or seat.route in self._running

    async def renew(self, seat: Seat) -> None:
        """:meth:`rotate`, for a client whose password is rejected, unless that was done already."""
        route = seat.route
        if self._seat_of(route) is not seat:
            return
        if route not in self._running:
            self._refused_at[route] = monotonic()
        await self._join(route)
        self._refused_at.pop(route, None)

    def doubt(self, seat: Seat) -> None:
        """Renew in the background where that is due; nobody waits for it."""
        if seat.route not in self._running and self.refused(seat):
            apart(self.renew(seat), name=f"forze-redis renewal of {seat.route!r}")

    def end(self) -> tuple[asyncio.Task[None], ...]:
        """Forget everything; what was under way has to be stopped."""
        running = tuple(self._running.values())
        self._running.clear()
        self._refused_at.clear()
        return running

    async def _join(self, route: str) -> None:
        running = self._running.get(route)
        if running is None or running.get_loop() is not asyncio.get_running_loop():
            running = self._running[route] = apart(
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
            await self._move(route)
        finally:
            if self._running.get(route) is asyncio.current_task():
                del self._running[route]
