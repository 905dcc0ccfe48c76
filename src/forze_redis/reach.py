"""The server as those ask it who can do without: within a short budget, and not at all while away.

A call that fails loses the server: from then on nobody who calls asks it, or waits. A timer does,
apart from all callers: it tries a call that only looks, ten times a second at first and once a
second at last, and as soon as the client itself knows that the server is back. On a cluster each
server is lost by itself. Losing it, and having it back, is one event each: a log line, and a call
of ``told``.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence
from contextvars import Context
from datetime import timedelta
from time import monotonic
from typing import Final, TypeAlias

from forze.application.execution.background import Background
from forze.application.integrations.resilience.transitions import LOGGER
from forze.errors import BackendCorrupt, BackendUnavailable, ConfigurationError, ForzeError
from forze_redis.client import Argument, RedisClient
from forze_redis.routed import RoutedRedisClient
from forze_redis.wire.config import seconds
from forze_redis.wire.connection import Reply
from forze_redis.wire.link import weakly
from forze_redis.wire.scripts import Script

BUDGET: Final = timedelta(milliseconds=250)
"""How long an answer is waited for, as on the cache path."""

_PAUSE_SECONDS: Final = (0.1, 1.0)

Call: TypeAlias = tuple[Sequence[str], Sequence[Argument]]
"""Keys and arguments of a script."""

Look: TypeAlias = Callable[[], Call]
"""Makes the call that only looks."""

Told: TypeAlias = Callable[[bool], None]
"""Takes whether the server is away, when that changed. Must not block."""


class Outage:
    """A server that is away, and the call that tries whether it is back."""

    __slots__ = ("look", "loop", "pause", "timer", "trying", "where")

    def __init__(self, where: str, look: Call) -> None:
        self.where = where
        self.look = look
        self.pause = _PAUSE_SECONDS[0]
        self.loop: asyncio.AbstractEventLoop | None = None
        """Where its timer runs."""
        self.timer: asyncio.TimerHandle | None = None
        self.trying = False


class Reach:
    """Runs the script of one store, as long as its servers are there."""

    def __init__(
        self,
        client: RedisClient,
        what: str,
        script: Script,
        timeout: timedelta | float,
        told: Told | None,
    ) -> None:
        given: object = client
        if not isinstance(given, RedisClient) or isinstance(given, RoutedRedisClient):
            raise ConfigurationError(
                f"{what}: the state of a fleet stands on one server (or cluster), so give it a "
                f"RedisClient of its own, not {client!r}: a client for many servers would keep "
                "one state for each tenant",
                name="client",
            )
        if not seconds(timeout) > 0:
            raise ConfigurationError(
                f"{what}: timeout must be longer than zero, not {timeout!r}", name="timeout"
            )
        self._client = client
        self._what = what
        self._script = script
        self._timeout = seconds(timeout)
        self._told = told
        self._outages: dict[str, Outage] = {}
        self._background = Background()
        self._complained_of = ""
        client.on_recovery(self._returned)

    @property
    def degraded(self) -> bool:
        """Whether some server is away."""
        return bool(self._outages)

    def lost(self, key: str, look: Look) -> bool:
        """Whether the server of ``key`` is away; ``look`` makes what is tried from then on."""
        if not self._client.available(key):
            self._lose(key, look, "the client has no connection to it")
        elif not self._outages:
            return False
        outage = self._outages.get(self._client.where(key))
        if outage is None:
            return False
        if outage.loop is not asyncio.get_running_loop():
            self._wait(outage)
        return True

    async def ask(self, call: Call, look: Look, *, repeatable: bool = True) -> Reply | None:
        """The reply, or None where there is none to be had; one round trip.

        A ``repeatable`` call, which is answered the same again where it is the same attempt, is
        sent once more where its reply was lost with the connection; half of the budget is for
        waiting for another.
        """
        key = call[0][0]
        if self.lost(key, look):
            return None
        try:
            return await self._run(call, repeatable)
        except BackendCorrupt as error:  # of this key, not of the server
            if self._complained_of != key:
                self._complained_of = key
                LOGGER.warning("%s: %s; until then each process decides", self._what, error)
        except ForzeError as error:
            self._lose(key, look, str(error))
        return None

    async def _run(self, call: Call, repeatable: bool) -> Reply:
        until = monotonic() + self._timeout
        try:
            return await self._client.run(self._script, *call, timeout=self._timeout)
        except BackendUnavailable as error:
            left = min(until - monotonic(), self._timeout / 2)
            if not repeatable or left <= 0 or error.outcome != "unknown":
                raise
        return await self._client.run(self._script, *call, timeout=left)

    # -- away, and back ----------------------------------------------------------

    def _lose(self, key: str, look: Look, why: str) -> None:
        where = self._client.where(key)
        if where in self._outages:
            return
        first = not self._outages
        outage = self._outages[where] = Outage(where, look())
        LOGGER.warning(
            "%s: Redis at %s cannot be asked (%s); until it can, each process decides by itself",
            self._what,
            where,
            why,
        )
        self._wait(outage)
        if first:
            self._tell(True)

    def _wait(self, outage: Outage) -> None:
        """Try again in a while, whether anybody calls or not."""
        if outage.timer is not None:
            outage.timer.cancel()
        outage.loop = loop = asyncio.get_running_loop()
        pause = outage.pause * random.uniform(0.5, 1.0)
        outage.pause = min(_PAUSE_SECONDS[1], outage.pause * 2)
        outage.timer = loop.call_later(pause, weakly(self._due), outage, context=Context())

    def _due(self, outage: Outage) -> None:
        if self._outages.get(outage.where) is not outage or outage.trying:
            return
        if self._client.available(outage.look[0][0]):
            self._try(outage)
        else:
            self._wait(outage)

    def _returned(self) -> None:
        for outage in tuple(self._outages.values()):
            if not outage.trying:
                self._try(outage)

    def _try(self, outage: Outage) -> None:
        outage.trying = True
        self._background.spawn(self._look(outage), name="forze-reach", wait=False)

    async def _look(self, outage: Outage) -> None:
        """Ask again. Where its keys have moved to another server, that one is asked."""
        try:
            await self._client.run(self._script, *outage.look, timeout=self._timeout)
        except BackendCorrupt:
            pass  # it answers
        except ForzeError:
            self._wait(outage)
            return
        finally:
            outage.trying = False
        self._have_back(outage)

    def _have_back(self, outage: Outage) -> None:
        if self._outages.pop(outage.where, None) is None:
            return
        LOGGER.info("%s: Redis at %s can be asked again", self._what, outage.where)
        if not self._outages:
            self._tell(False)

    def _tell(self, away: bool) -> None:
        if self._told is None:
            return
        try:
            self._told(away)
        except Exception:
            LOGGER.exception("%s: whoever listens to its outages failed", self._what)
