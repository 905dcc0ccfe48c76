"""One route's client, from the moment it is asked for until nobody uses it any more."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable, Coroutine
from time import monotonic
from typing import Any, Final, TypeVar

from forze.errors import BackendTimeout, BackendUnavailable, ForzeError
from forze_redis.client import RedisClient
from forze_redis.wire.replies import BACKEND

T = TypeVar("T")

RETRY_SECONDS: Final = 1.0
"""How long a failure to open a route answers for it, and a refused password is not asked anew."""


class Seat:
    """The client of one route. ``ports`` has what others made for this very client."""

    __slots__ = (
        "__weakref__",
        "_client",
        "_lent",
        "asked_at",
        "failed_at",
        "holds",
        "loop",
        "opening",
        "ports",
        "route",
        "used_at",
    )

    def __init__(self, route: str) -> None:
        self.route = route
        self.loop = asyncio.get_running_loop()
        self.opening: asyncio.Task[None] | None = None
        self.holds = 0
        self.used_at = self.asked_at = monotonic()
        self.failed_at: float | None = None
        self.ports: dict[object, Any] = {}
        self._client: RedisClient | None = None
        self._lent: dict[str, float] = {}

    @property
    def open(self) -> RedisClient | None:
        """Its client, None until that is open."""
        return self._client

    @property
    def client(self) -> RedisClient:
        """Its client; only for those who hold it."""
        assert self._client is not None
        return self._client

    def occupy(self, client: RedisClient) -> None:
        """Here is the client."""
        self._client = client

    @property
    def in_use(self) -> bool:
        """Whether anybody would miss it."""
        if self.holds > 0 or self._lends():
            return True
        return self._client is not None and self._client.in_use

    def lend(self, token: str, seconds: float) -> None:
        """It is in use until :meth:`returned`, but not for longer than so many seconds."""
        self._lent[token] = monotonic() + seconds

    def returned(self, token: str) -> None:
        """What was lent under ``token`` is over."""
        self._lent.pop(token, None)

    def _lends(self) -> bool:
        now = monotonic()
        self._lent = {token: until for token, until in self._lent.items() if until > now}
        return bool(self._lent)

    @property
    def spent(self) -> bool:
        """Whether its opening came to nothing, or is another event loop's affair."""
        if self._client is not None:
            return False
        if self.failed_at is not None:
            return monotonic() - self.failed_at > RETRY_SECONDS
        ended = self.opening is not None and self.opening.cancelled()
        return ended or self.loop is not asyncio.get_running_loop()

    def release(self, _: object = None) -> None:
        """One hold less."""
        self.holds -= 1

    def port(self, owner: object, make: Callable[[RedisClient], T]) -> T:
        """What ``make`` makes of its client; made once for each ``owner``."""
        made: T | None = self.ports.get(owner)
        if made is None:
            made = self.ports[owner] = make(self.client)
        return made

    async def opened(self, within_seconds: float) -> None:
        """Wait until it is open; raises what kept it from that, or ``BackendTimeout``."""
        opening = self.opening
        if self._client is not None or opening is None:
            return
        await asyncio.wait([opening], timeout=within_seconds)
        if not opening.done():
            raise _not_yet(self)
        if opening.cancelled():
            raise BackendUnavailable(
                f"the routed Redis client was closed while route {self.route!r} was being opened",
                backend=BACKEND,
            )
        error = opening.exception()
        if isinstance(error, ForzeError):
            raise error.again()
        if error is not None:
            raise error


def apart(work: Coroutine[Any, Any, None], *, name: str) -> asyncio.Task[None]:
    """A task that keeps nothing of its caller's request, and whose failure somebody has seen."""
    task = asyncio.get_running_loop().create_task(work, name=name, context=contextvars.Context())
    task.add_done_callback(lambda done: done.cancelled() or done.exception())
    return task


def _not_yet(seat: Seat) -> BackendTimeout:
    return BackendTimeout(
        f"Redis for route {seat.route!r} is being connected since "
        f"{monotonic() - seat.asked_at:.1f} s; nothing was sent. Is its server running, and does "
        "dsn_of answer?",
        backend=BACKEND,
    )
