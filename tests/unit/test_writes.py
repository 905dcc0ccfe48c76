"""When a write may commit, by its own clock."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

import pytest

from forze.application.contracts.cache import CacheDepKey, CacheSpec, PointerCache
from forze.application.contracts.transaction import Outcome
from forze.application.execution import ExecutionContext
from forze.application.integrations.document.outage import Journals
from forze.application.integrations.document.stats import CacheCounters
from forze.application.integrations.document.writes import Invalidation, Outlet
from forze.errors import BackendTimeout
from forze_memory import MemoryDepsModule


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


class Unanswering:
    """A cache whose announcements can be made to go unanswered."""

    def __init__(self, pointers: PointerCache) -> None:
        self._pointers = pointers
        self.silent = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._pointers, name)

    async def intend(self, addresses: Sequence[str], write_id: str) -> None:
        if self.silent:
            raise BackendTimeout("no answer", backend="cache", outcome="unknown")
        await self._pointers.intend(addresses, write_id)


@asynccontextmanager
async def write() -> AsyncIterator[tuple[Invalidation, Unanswering, Clock, Outlet]]:
    """A write announced at time zero, with its clock in the test's hand."""
    ctx = ExecutionContext(MemoryDepsModule()())
    cache = ctx.provide(CacheDepKey, "things")(ctx, CacheSpec(name="things"))
    pointers, clock = Unanswering(cache.pointers("schema01")), Clock()
    outlet = Outlet(pointers, Journals(pointers, ctx), CacheCounters())
    invalidation = Invalidation(ctx, clock=clock)
    invalidation.announce(outlet, [pointers.address("k")])
    await invalidation.before_commit()
    yield invalidation, pointers, clock, outlet
    await invalidation.after(Outcome.ROLLED_BACK, None)
    await ctx.close(timedelta(seconds=1))


async def test_no_commit_with_an_old_intent() -> None:
    """P1: COMMIT is not sent once the announcement may lapse before it takes effect."""
    async with write() as (invalidation, _, clock, _outlet):
        clock.now = 4.9
        invalidation.check_commit()
        clock.now = 5.1
        with pytest.raises(BackendTimeout, match="not committed"):
            invalidation.check_commit()
        await invalidation.before_commit()
        invalidation.check_commit()


async def test_a_renewal_counts_only_once_answered() -> None:
    """P1: a renewal that was sent but not answered moves no deadline."""
    async with write() as (invalidation, pointers, clock, outlet):
        clock.now = 4.0
        pointers.silent = True
        await invalidation.before_commit()
        clock.now = 5.1
        with pytest.raises(BackendTimeout, match="not committed"):
            invalidation.check_commit()
        assert outlet.counters.lapsed_intents == 0


class Meeting(Unanswering):
    """A cache that is told of the end of a write only when another is being told, too."""

    def __init__(self, pointers: PointerCache, met: asyncio.Barrier) -> None:
        super().__init__(pointers)
        self._met = met
        self.told = 0

    async def done(self, addresses: Sequence[str], write_id: str) -> None:
        await self._met.wait()
        await self._pointers.done(addresses, write_id)
        self.told += 1


async def test_several_caches_are_told_together() -> None:
    """P8: a write over what several caches hold waits for one round trip after it, not for each."""
    ctx, met = ExecutionContext(MemoryDepsModule()()), asyncio.Barrier(2)
    invalidation, caches = Invalidation(ctx), list[Meeting]()
    for name in ("things", "others"):
        cache = ctx.provide(CacheDepKey, name)(ctx, CacheSpec(name=name))
        pointers = Meeting(cache.pointers("schema01"), met)
        outlet = Outlet(pointers, Journals(pointers, ctx), CacheCounters())
        caches.append(pointers)
        invalidation.announce(outlet, [pointers.address("k")])
    await invalidation.before_commit()
    async with asyncio.timeout(5):
        await invalidation.after(Outcome.COMMITTED, None)
    assert [each.told for each in caches] == [1, 1]
    await ctx.close(timedelta(seconds=1))


async def test_a_caller_that_left_is_not_committed_for() -> None:
    """P5: a write whose caller is gone before its statement ends without it."""
    async with write() as (invalidation, _, _clock, _outlet):
        invalidation.check_commit()
        invalidation.withdraw()
        with pytest.raises(asyncio.CancelledError):
            invalidation.check_commit()
