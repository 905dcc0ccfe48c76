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

Keys of a cluster have as many sources as it has primaries, and may move from one to another:
a tier is trusted while every one of them pushes, and no longer than the most silent allows.

Source: Redis documentation, client-side caching; ``CLIENT TRACKING``.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
from collections.abc import Iterable, Sequence
from functools import partial
from math import inf
from time import monotonic
from typing import Final, Literal
from weakref import ReferenceType, WeakSet, ref

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


class Stream:
    """The pushes on one connection. ``live`` prefixes are confirmed, ``asked`` ones were sent."""

    __slots__ = ("alive", "asked", "asked_at", "connection", "live", "refused")

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.asked: set[str] = set()
        self.live: set[str] = set()
        self.refused = False
        self.asked_at = self.alive = monotonic()

    def ask(self, prefixes: Sequence[str], timeout: float) -> asyncio.Future[Reply]:
        """Have the server push what changes under ``prefixes``."""
        self.asked.update(prefixes)
        named = [part for prefix in prefixes for part in ("PREFIX", prefix)]
        return self.connection.ask(pack("CLIENT", "TRACKING", "ON", "BCAST", *named), timeout)

    def beat(self, now: float, timeout: float) -> None:
        """Ask for a sign of life."""
        self.asked_at = now
        self.connection.ask(_PING, timeout).add_done_callback(
            lambda reply: self._answered(now, reply)
        )

    def _answered(self, asked_at: float, reply: asyncio.Future[Reply]) -> None:
        """Whatever was pushed before an answered heartbeat was sent has been heard by now."""
        if reply.cancelled():
            return
        if not isinstance(reply.exception(), BackendUnavailable | BackendTimeout):
            self.alive = asked_at  # a refusal (ACL) is an answer too


class Tracking:
    """The tiers of one client, and the streams of pushes they rely on: one from each source."""

    def __init__(self) -> None:
        self._told: dict[str | None, WeakSet[CacheInvalidation]] = {}
        self._pushed: dict[str, WeakSet[CacheInvalidation]] = {}
        self._sources: frozenset[object] = frozenset()
        self._streams: dict[object, Stream] = {}
        self._live: list[ReferenceType[CacheInvalidation]] | None = None
        """The tiers whose every source pushes, None where that has to be found out: whoever
        changes what it follows from forgets it. Looked through ten times a second."""
        self._refused = False
        self._said: set[str] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._heartbeat = LONGEST_HEARTBEAT_SECONDS
        self._due = self._stood = 0.0

    @property
    def state(self) -> Pushes:
        """``"off"``: nobody asked for pushes; ``"refused"``: the server does not push to us."""
        if not self._pushed:
            return "off"
        if self._refused:
            return "refused"
        return "on" if any(map(self._is_live, self._pushed)) else "down"

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
        self._live = None
        tier.trust(inf if self._refused else -inf, self.bound_seconds)
        for stream in self._streams.values():
            if prefix not in stream.asked and not self._refused:
                stream.ask((prefix,), self._heartbeat).add_done_callback(
                    partial(self._answered, stream, prefix)
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
        """Take a push message of a server."""
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

    # -- the streams -----------------------------------------------------------

    def rely_on(self, sources: Iterable[object]) -> None:
        """Every one of these has to push, or nothing is trusted. Without it: whoever does."""
        before, self._sources = self._sources, frozenset(sources)
        self._live = None
        if self._sources - before:
            self._distrust()
        for source in self._streams.keys() - self._sources if self._sources else ():
            del self._streams[source]

    async def begin(
        self, source: object, connection: Connection, timeout: float, heartbeat: float
    ) -> None:
        """Follow every prefix on a connection nobody uses yet; raises if it is lost meanwhile."""
        self._heartbeat = max(TICK_SECONDS, min(heartbeat, LONGEST_HEARTBEAT_SECONDS))
        stream = self._streams[source] = Stream(connection)
        self._live = None
        self._refused = any(each.refused for each in self._streams.values())
        prefixes = tuple(self._pushed)
        if prefixes:
            try:
                await stream.ask(prefixes, timeout)
            except (ConfigurationError, BackendCorrupt) as error:
                self._refuse(stream, error)
            else:
                if self._stands(stream):  # not lost in the very turn of its answer
                    stream.live.update(prefixes)
                    self._live = None
        self._grant(monotonic())
        self._arm()

    def flush(self, *_: object) -> None:
        """Everything kept may be out of date: another connection, another server."""
        self._flush(self._told.values())

    def end(self, connection: Connection | None = None) -> None:
        """The connection is gone (None: every one): keep and serve nothing pushed."""
        ended = [
            source
            for source, stream in self._streams.items()
            if connection is None or stream.connection is connection
        ]
        if not ended and connection is not None:
            return
        for source in ended:
            del self._streams[source]
        self._live = None
        if connection is None:
            self._sources = frozenset()
        if not self._streams and self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._distrust()

    def _stands(self, stream: Stream) -> bool:
        return any(each is stream for each in self._streams.values())

    def _is_live(self, prefix: str) -> bool:
        """Whether every source there has to be pushes what changes under ``prefix``."""
        streams = self._streams
        return (
            bool(streams)
            and self._sources <= streams.keys()
            and all(prefix in each.live for each in streams.values())
        )

    def _answered(self, stream: Stream, prefix: str, reply: asyncio.Future[Reply]) -> None:
        """A prefix that came while the connection was in use is followed, or is not."""
        error = reply.exception() if not reply.cancelled() else None
        if not self._stands(stream):
            return
        if error is None and not reply.cancelled():
            stream.live.add(prefix)
            self._live = None
            self._flush((self._pushed[prefix],))
            self._grant(monotonic())
            self._arm()
        elif isinstance(error, ConfigurationError | BackendCorrupt):
            self._refuse(stream, error)
        else:
            stream.connection.lose()  # the next one asks again

    def _refuse(self, stream: Stream, error: ForzeError) -> None:
        self._refused = stream.refused = True
        stream.live.clear()
        self._live = None
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
        if self._timer is None and any(each.live for each in self._streams.values()):
            self._due = monotonic() + TICK_SECONDS
            self._timer = asyncio.get_running_loop().call_later(
                TICK_SECONDS, self._tick, context=contextvars.Context()
            )

    def _tick(self) -> None:
        self._timer = None
        now = monotonic()
        if now - self._due > STALL_SECONDS:
            self._stood = now  # the silence may have been ours; nothing is trusted for it
        else:
            for stream in tuple(self._streams.values()):
                self._listen(stream, now)
            self._grant(now)
        for stream in self._streams.values():
            if stream.live and now - stream.asked_at >= self._heartbeat:
                stream.beat(now, self.bound_seconds)
        self._arm()

    def _listen(self, stream: Stream, now: float) -> None:
        """Give up a connection that has been silent for too long."""
        silence = now - max(stream.alive, self._stood)
        if silence > self.bound_seconds:
            _log.warning("Redis answered no heartbeat for %.1f s: reconnecting", silence)
            stream.connection.lose()

    def _grant(self, now: float) -> None:
        """Trust until the next ticks, and no longer than the most silent source allows."""
        if self._refused or not self._streams:
            return
        alive = min(each.alive for each in self._streams.values())
        until = min(now + TRUST_SECONDS, alive + self.bound_seconds)
        bound = self.bound_seconds
        if self._live is None:
            live = filter(self._is_live, self._pushed)
            self._live = [ref(tier) for prefix in live for tier in self._pushed[prefix]]
        for each in self._live:
            if (tier := each()) is not None:
                tier.trust(until, bound)

    def _distrust(self) -> None:
        """Something may be changing unheard: nothing pushed is kept or served."""
        if self._refused:
            return
        for tiers in self._pushed.values():
            for tier in tiers:
                tier.trust(-inf, 0.0)
        self._flush(self._pushed.values())

    def _flush(self, groups: Iterable[WeakSet[CacheInvalidation]]) -> None:
        for tiers in groups:
            for tier in tiers:
                tier.flush()

    def _say(self, what: str, text: str) -> None:
        if what not in self._said:
            self._said.add(what)
            _log.warning(text)
