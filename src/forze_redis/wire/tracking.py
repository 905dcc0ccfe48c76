"""Invalidation: which in-process tiers hear of which keys, and whether pushes can be relied on.

Tiers hear of the changes this process makes from whoever sends them (:meth:`Tracking.touched`),
before a push could tell; and of everyone's, its own again included, by pushes: ``CLIENT TRACKING
ON BCAST PREFIX ...`` on the very connection that carries the reads, one prefix for each
namespace. A namespace's prefix ends where its keys begin, so that no two overlap.

::

    lost, silent, another server ──► every pushed tier flushed, nothing kept or served
    connected and tracking       ──► flushed again, then trusted from tick to tick
    tracking refused (ACL)       ──► said once; the tiers live by their own lifetimes

A tick grants trust for a moment only, so that a process that stood still serves nothing it
kept before it has looked at the socket again; and never beyond three heartbeats from the
*sending* of the last one that was answered, so that a dead link is not trusted for longer.

Source: Redis documentation, client-side caching; ``CLIENT TRACKING``.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
from collections.abc import Iterable, Sequence
from math import inf
from time import monotonic
from typing import Final, Literal
from weakref import WeakSet

from forze.application.contracts.cache import CacheInvalidation
from forze.errors import (
    BackendCorrupt,
    BackendTimeout,
    BackendUnavailable,
    ConfigurationError,
    ForzeError,
)
from forze_redis.keys import POINTER
from forze_redis.wire.connection import Connection, Reply
from forze_redis.wire.scripts import pack

_log = logging.getLogger("forze.redis")

TICK_SECONDS: Final = 0.1
TRUST_SECONDS: Final = 0.35
STALL_SECONDS: Final = 0.25
"""A tick this late grants nothing: the loop stood still and may not have read its socket yet."""

LONGEST_HEARTBEAT_SECONDS: Final = 1.0
SILENT_HEARTBEATS: Final = 3
_PING: Final = pack("PING")

Pushes = Literal["off", "on", "down", "refused"]


class Tracking:
    """The tiers of one client, and the pushes they rely on."""

    def __init__(self) -> None:
        self._told: dict[str | None, WeakSet[CacheInvalidation]] = {}
        self._pushed: dict[str, WeakSet[CacheInvalidation]] = {}
        self._asked: set[str] = set()
        self._live: set[str] = set()
        self._refused = False
        self._said: set[str] = set()
        self._connection: Connection | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._heartbeat = LONGEST_HEARTBEAT_SECONDS
        self._asked_at = self._alive = self._due = self._stood = 0.0

    @property
    def state(self) -> Pushes:
        """``"off"``: nobody asked for pushes; ``"refused"``: the server does not push to us."""
        if not self._pushed:
            return "off"
        if self._refused:
            return "refused"
        return "on" if self._live else "down"

    @property
    def bound_seconds(self) -> float:
        """The longest that an entry can outlive a change on a link that died silently."""
        return SILENT_HEARTBEATS * self._heartbeat

    # -- who is told what ------------------------------------------------------

    def follow(self, prefix: str | None, tier: CacheInvalidation, *, push: bool) -> None:
        """Tell ``tier`` of changes under ``prefix`` (None: of this process's, to any key)."""
        self._told.setdefault(prefix, WeakSet()).add(tier)
        if not push:
            return
        if prefix is None:
            self._say(
                "dynamic",
                "invalidation_push has no effect on a namespace made from the tenant: there is "
                "no prefix to follow; its in-process entries live for their ttl",
            )
            return
        self._pushed.setdefault(prefix, WeakSet()).add(tier)
        tier.trust(inf if self._refused else -inf, self.bound_seconds)
        connection = self._connection
        if connection is not None and prefix not in self._asked and not self._refused:
            self._ask(connection, (prefix,), self._heartbeat).add_done_callback(
                lambda reply: self._answered(connection, prefix, reply)
            )

    def touched(self, keys: Sequence[str]) -> None:
        """This process changes these keys, or just did."""
        if self._told:
            for key in keys:
                for tier in self._of(key):
                    tier.drop((key,))

    def cleared(self, namespace: str) -> None:
        """This process removes, or just did, every key of a namespace."""
        for tier in (*self._told.get(namespace + POINTER, ()), *self._told.get(None, ())):
            tier.flush()

    def heard(self, message: Sequence[Reply]) -> None:
        """Take a push message of the server."""
        if message[0] != b"invalidate":
            return
        if message[1] is None:  # FLUSHALL, FLUSHDB
            self.flush()
            return
        for each in message[1]:
            key = each.decode(errors="replace")
            for tier in self._of(key):
                tier.drop((key,), pushed=True)

    def _of(self, key: str) -> Iterable[CacheInvalidation]:
        prefix = key[: key.find(POINTER) + len(POINTER)]
        return (*self._told.get(prefix, ()), *self._told.get(None, ()))

    # -- the stream ------------------------------------------------------------

    async def begin(self, connection: Connection, timeout: float, heartbeat: float) -> None:
        """Follow every prefix on a connection nobody uses yet; raises if it is lost meanwhile."""
        self._heartbeat = max(TICK_SECONDS, min(heartbeat, LONGEST_HEARTBEAT_SECONDS))
        self._refused = False
        self._connection = connection
        self._asked_at = self._alive = monotonic()
        prefixes = tuple(self._pushed)
        if prefixes:
            try:
                await self._ask(connection, prefixes, timeout)
            except (ConfigurationError, BackendCorrupt) as error:
                self._refuse(error)
            else:
                if connection is self._connection:  # not lost in the very turn of its answer
                    self._live.update(prefixes)
        self._grant(monotonic())
        self._arm()

    def flush(self, *_: object) -> None:
        """Everything kept may be out of date: another connection, another server."""
        self._flush(self._told.values())

    def end(self, connection: Connection | None = None) -> None:
        """The connection is gone (None: whichever there was): keep and serve nothing pushed."""
        if connection is not None and connection is not self._connection:
            return
        self._connection = None
        self._asked.clear()
        self._live.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if not self._refused:
            for tiers in self._pushed.values():
                for tier in tiers:
                    tier.trust(-inf, 0.0)
            self._flush(self._pushed.values())

    def _ask(
        self, connection: Connection, prefixes: Sequence[str], timeout: float
    ) -> asyncio.Future[Reply]:
        self._asked.update(prefixes)
        named = [part for prefix in prefixes for part in ("PREFIX", prefix)]
        return connection.ask(pack("CLIENT", "TRACKING", "ON", "BCAST", *named), timeout)

    def _answered(self, connection: Connection, prefix: str, reply: asyncio.Future[Reply]) -> None:
        """A prefix that came while the connection was in use is followed, or is not."""
        error = reply.exception() if not reply.cancelled() else None
        if connection is not self._connection:
            return
        if error is None and not reply.cancelled():
            self._live.add(prefix)
            self._flush((self._pushed[prefix],))
            self._grant(monotonic())
            self._arm()
        elif isinstance(error, ConfigurationError | BackendCorrupt):
            self._refuse(error)
        else:
            connection.lose()  # the next one asks again

    def _refuse(self, error: ForzeError) -> None:
        self._refused = True
        self._live.clear()
        for tiers in self._pushed.values():
            for tier in tiers:
                tier.trust(inf, inf)
        self._say(
            "refused",
            f"the server does not push invalidations to this user ({error.__cause__}); in-process "
            "entries live for their ttl. Permit `+client|tracking`, or set invalidation_push=False",
        )

    # -- trust -----------------------------------------------------------------

    def _arm(self) -> None:
        if self._timer is None and self._live:
            self._due = monotonic() + TICK_SECONDS
            self._timer = asyncio.get_running_loop().call_later(
                TICK_SECONDS, self._tick, context=contextvars.Context()
            )

    def _tick(self) -> None:
        self._timer = None
        connection, now = self._connection, monotonic()
        if connection is None or not self._live:
            return
        if now - self._due > STALL_SECONDS:
            self._stood = now  # the silence may have been ours; nothing is trusted for it
        else:
            silence = now - max(self._alive, self._stood)
            if silence > self.bound_seconds:
                _log.warning("Redis answered no heartbeat for %.1f s: reconnecting", silence)
                connection.lose()
                return
            self._grant(now)
        if now - self._asked_at >= self._heartbeat:
            self._asked_at = now
            connection.ask(_PING, self.bound_seconds).add_done_callback(
                lambda reply: self._beat(connection, now, reply)
            )
        self._arm()

    def _beat(self, connection: Connection, asked_at: float, reply: asyncio.Future[Reply]) -> None:
        """Whatever was pushed before an answered heartbeat was sent has been heard by now."""
        if reply.cancelled():
            return
        unanswered = isinstance(reply.exception(), BackendUnavailable | BackendTimeout)
        if not unanswered and connection is self._connection:
            self._alive = asked_at  # a refusal (ACL) is an answer too

    def _grant(self, now: float) -> None:
        until = min(now + TRUST_SECONDS, self._alive + self.bound_seconds)
        for prefix in self._live:
            for tier in self._pushed[prefix]:
                tier.trust(until, self.bound_seconds)

    def _flush(self, groups: Iterable[WeakSet[CacheInvalidation]]) -> None:
        for tiers in groups:
            for tier in tiers:
                tier.flush()

    def _say(self, what: str, text: str) -> None:
        if what not in self._said:
            self._said.add(what)
            _log.warning(text)
