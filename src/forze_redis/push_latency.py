"""How long pushes take, measured: an invalidation carries no time, so we cause some ourselves.

Whenever metrics are collected, or somebody asks, a key of our own is written on a connection
of the pool, as another process would write it, and the time until its push arrives is noted:
server, network and event loop included, as an in-process tier sees it. A push that never
arrives is not recorded; that the stream fails is for ``tracking`` to notice.

The key stands beside the namespace's own, behind a prefix that only this process follows, so
no other one hears of it: ``{namespace}/push-latency/{process}/cache/pointer/{probe}``.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Iterable
from secrets import token_hex
from time import monotonic
from typing import Final
from weakref import ref

from forze.application.contracts.deps import Resolver
from forze.application.integrations.document.telemetry import Telemetry, telemetry_of
from forze.errors import BackendTimeout, BackendUnavailable, ForzeError
from forze_redis.client import RedisClient
from forze_redis.keys import POINTER

_log = logging.getLogger("forze.redis")

LIFE_MS: Final = 1_000
_HERE: Final = token_hex(6)


class PushLatency:
    """Probes the pushes of one client. To ``Tracking`` it is a tier that keeps nothing."""

    def __init__(
        self, resolver: Resolver, client: RedisClient, telemetry: Telemetry | None, namespace: str
    ) -> None:
        self._resolver = ref(resolver)
        self._client = client
        self._telemetry = None if telemetry is None else ref(telemetry)
        self.seconds: float | None = None
        """What the last push took; None where it did not arrive."""
        self._loop = asyncio.get_running_loop()
        self._follows = self._refused = False
        self._prefix = f"{namespace}/push-latency/{_HERE}{os.getpid():x}{POINTER}"
        self._task: asyncio.Task[None] | None = None
        self._awaited = ""
        self._sent = 0.0
        if telemetry is not None:
            telemetry.on_collection(self.wanted)

    def wanted(self) -> None:
        """Probe once; called in any thread."""
        try:
            self._loop.call_soon_threadsafe(self._begin)
        except RuntimeError:
            _log.debug("the event loop is closed: pushes are not measured any more")

    def serves(self, resolver: Resolver) -> bool:
        """Whether it measures for this scope."""
        return self._resolver() is resolver

    def drop(self, addresses: Iterable[str], *, pushed: bool = False) -> None:
        """Called by ``Tracking``: keys behind our prefix changed."""
        if not pushed or self._awaited not in addresses:
            return
        self._awaited, self.seconds = "", monotonic() - self._sent
        telemetry = None if self._telemetry is None else self._telemetry()
        if telemetry is not None:
            telemetry.pushed_within(self.seconds)

    def flush(self) -> None:
        """Called by ``Tracking``: what was sent may have been lost."""
        self._awaited = ""

    def trust(self, until: float, bound_seconds: float) -> None:
        """Called by ``Tracking``; nothing is kept here."""

    def _begin(self) -> None:
        resolver, client = self._resolver(), self._client
        if resolver is None or self._refused or not client.connected:
            return
        if client.tracking.state != "on":
            return
        if not self._follows:
            self._follows = True
            client.tracking.follow(self._prefix, self, push=True)
        if self._task is None or self._task.done():
            self._task = resolver.spawn(self._probe(), name="forze-push-latency", wait=False)

    async def _probe(self) -> None:
        try:
            await self._client.call_large("PING")  # so that no connection is opened below
            if self._awaited:
                self.seconds = None
            self._awaited, self._sent = self._prefix + token_hex(8), monotonic()
            await self._client.call_large("SET", self._awaited, b"", "PX", LIFE_MS)
        except (BackendUnavailable, BackendTimeout):
            self._awaited = ""
        except ForzeError as error:
            self._awaited, self._refused = "", True
            _log.warning("the latency of pushes cannot be measured: %s", error)


def measure_push_latency(resolver: Resolver, client: RedisClient, namespace: str) -> None:
    """Measure the pushes of ``client`` while the scope is open, whenever somebody collects metrics
    or asks for ``client.push_latency()``.

    Once per client and scope, however many namespaces it has. Two round trips on a connection
    of the pool each time, nothing in between.
    """
    probe = client.push_probe
    if probe is not None and probe.serves(resolver):
        return
    try:
        client.push_probe = PushLatency(resolver, client, telemetry_of(resolver), namespace)
    except RuntimeError:
        _log.debug("bound outside the event loop: pushes are not measured")
