"""Early refresh: one reader in the fleet replaces a hot entry before it ends.

A reader that hits an entry near its end volunteers by chance (``freshness.refreshes_early``),
is elected if nobody else is at it, loads, and fills. Everyone else goes on hitting the old
entry, which is current: the election hides nothing. A refresh that fails leaves it so.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Generic

from forze.application.contracts.cache import Aging, CacheSpec, PointerCache
from forze.application.contracts.deps import Resolver
from forze.application.contracts.tenancy import bind_again, current_deadline, current_tenant
from forze.application.integrations.document.codec import V, unseal
from forze.application.integrations.document.filling import Filler, K
from forze.application.integrations.document.freshness import refreshes_early
from forze.application.integrations.document.l1.tier import Tier
from forze.application.integrations.document.stats import CacheCounters
from forze.errors import ForzeError, NotFoundError

if TYPE_CHECKING:
    from forze.application.integrations.document.filling import HeldLease
    from forze.application.integrations.document.spans import Spans

_log = logging.getLogger("forze")

AT_ONCE = 16
"""Refreshes of one document kind under way in a process; above it nobody volunteers."""


class EarlyRefresh(Generic[V, K]):
    """The refreshes of one document kind. ``beta`` 1.0 is the published rule."""

    def __init__(
        self,
        name: str,
        spec: CacheSpec,
        pointers: PointerCache,
        filler: Filler[V, K],
        tier: Tier[V] | None,
        resolver: Resolver,
        counters: CacheCounters,
        dice: Callable[[], float],
    ) -> None:
        self._name = name
        self._beta = spec.early_refresh_beta
        self._background = spec.early_refresh_background
        self._pointers = pointers
        self._filler = filler
        self._tier = tier
        self._resolver = resolver
        self._counters = counters
        self._dice = dice
        self._running: dict[str, asyncio.Task[V]] = {}
        self.spans: Spans | None = None

    async def considered(self, pk: K, address: str, document: V, found: Aging) -> V:
        """What the reader of ``document`` gets: by default the refreshed one, if it is elected.

        Costs nothing unless the dice say so; then one round trip, for the elected reader also
        the load and one more. Raises ``NotFoundError`` if the source has it no longer.
        """
        if self._busy(address) or not self._volunteers(found):
            return document
        caller = None if self.spans is None else self.spans.caller()
        work = self._refresh(pk, address, document, current_tenant(), caller)
        refreshing = self._resolver.spawn(work, name="forze-early-refresh", wait=False)
        self._running[address] = refreshing
        refreshing.add_done_callback(lambda _: self._running.pop(address, None))
        if self._background:
            return document
        deadline = current_deadline()
        patience = None if deadline is None else max(0.0, deadline - time.monotonic())
        await asyncio.wait((refreshing,), timeout=patience)
        if not refreshing.done() or refreshing.cancelled():
            return document
        return refreshing.result()

    def _busy(self, address: str) -> bool:
        running = self._running.get(address)
        if running is not None and running.get_loop() is not asyncio.get_running_loop():
            self._running.clear()  # their loop may never run again
            running = None
        return running is not None or len(self._running) >= AT_ONCE

    def _volunteers(self, found: Aging) -> bool:
        _, load_ms = unseal(found.body)
        if self._beta is None or load_ms is None:
            return False
        load, remaining = load_ms / 1000, found.remaining_ms / 1000
        return refreshes_early(load, remaining, self._beta, 1 - self._dice())

    async def _refresh(
        self, pk: K, address: str, document: V, tenant: str | None, caller: Any
    ) -> V:
        token = self._pointers.token(address)
        with bind_again(tenant), self._filler.leased((address,), token) as right:
            try:
                if not await self._elected(pk, address, token):
                    right.ended((address,))
                    return document
                replacing = self._replace(pk, address, right)
                if self.spans is not None:
                    replacing = self.spans.refresh(caller, replacing)
                loaded, stored = await replacing
            except NotFoundError:
                with suppress(ForzeError):
                    await self._pointers.done((address,), token)
                raise
            except Exception as error:
                self._counters.refresh_failures += 1
                _log.warning("%s: refreshing %s early failed: %s", self._name, pk, error)
                return document
        self._counters.refreshes += stored
        return loaded

    async def _replace(self, pk: K, address: str, right: HeldLease) -> tuple[V, bool]:
        """What was loaded, and whether it was stored."""
        loaded = await self._filler.load(pk)
        return loaded, await self._filler.fill(right, {address: loaded})

    async def _elected(self, pk: K, address: str, token: str) -> bool:
        """Ask for the right to refresh; to the tier a change of the pointer like any other."""
        tier = self._tier
        if tier is None:
            return await self._pointers.elect(address, token)
        key = tier.key(pk, address)
        tier.forget(key)
        try:
            return await self._pointers.elect(address, token)
        finally:
            tier.forget(key)
