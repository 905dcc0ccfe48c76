"""What running parts tell of themselves: locks, claims, and what is registered."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from datetime import timedelta
from time import time
from typing import Any

import pytest

from forze.application.contracts.deps import DepKey
from forze.application.contracts.dlock import (
    DistributedLockSpec,
    HeldLock,
    ReadWriteLockSpec,
    SemaphoreSpec,
)
from forze.application.contracts.idempotency import IdempotencySnapshot, IdempotencySpec
from forze.application.contracts.introspection import (
    ClaimView,
    Degrading,
    HoldsClaims,
    HoldsLocks,
    LockView,
)
from forze.application.execution import Deps, DepsPlan, ExecutionContext, ExecutionRuntime
from forze.application.integrations.locks import ledger
from forze.errors import LockNotAcquired
from forze.testing.clock import ManualClock
from forze_memory import MemoryDepsModule

JOBS = DistributedLockSpec(name="jobs", ttl=timedelta(seconds=30))
SLOTS = SemaphoreSpec(name="slots", permits=2)
PAGES = ReadWriteLockSpec(name="pages")
PAYMENTS = IdempotencySpec(name="payments")


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
async def ctx(clock: ManualClock) -> AsyncIterator[ExecutionContext]:
    runtime = ExecutionRuntime(deps=DepsPlan.from_modules(MemoryDepsModule(clock=clock)))
    async with runtime.scope() as context:
        yield context


def locks_of(port: object) -> list[LockView]:
    assert isinstance(port, HoldsLocks)
    return list(port.locks())


def claims_of(port: object) -> list[ClaimView]:
    assert isinstance(port, HoldsClaims)
    return list(port.open_claims())


async def _hold(scope: AbstractAsyncContextManager[HeldLock], until: asyncio.Event) -> None:
    async with scope:
        await until.wait()


async def test_a_held_lock_and_those_who_wait(ctx: ExecutionContext) -> None:
    port = ctx.dlock(JOBS)
    assert locks_of(port) == []
    with ctx.bind_tenant("acme"):
        async with port.scope("reindex") as lock:
            waiting = asyncio.create_task(
                _hold(port.scope("reindex", wait=timedelta(seconds=30)), asyncio.Event())
            )
            async with asyncio.timeout(10):
                while len(locks_of(port)) < 2:
                    await asyncio.sleep(0.001)
            held, waits = locks_of(port)
            assert (held.key, held.token, held.owner) == ("reindex", lock.token, lock.owner)
            assert held.left_seconds is not None
            assert 0 < held.left_seconds <= 30
            assert (waits.token, waits.left_seconds, waits.tenant) == (None, None, "acme")
            assert abs(held.since - time()) < 60
            waiting.cancel()
            await asyncio.wait({waiting})
            assert len(locks_of(port)) == 1
    assert locks_of(port) == []


async def test_a_lock_that_is_not_had_is_not_shown(ctx: ExecutionContext) -> None:
    port = ctx.dlock(JOBS)
    async with port.scope("k"):
        with pytest.raises(LockNotAcquired):
            await asyncio.create_task(_hold(port.scope("k"), asyncio.Event()))
        assert [each.token is None for each in locks_of(port)] == [False]


async def test_locks_acquired_by_name(ctx: ExecutionContext, clock: ManualClock) -> None:
    port = ctx.dlock(JOBS)
    acquired = await port.acquire("k", "me")
    assert acquired is not None
    assert await port.acquire("k", "other") is None
    (held,) = locks_of(port)
    assert (held.owner, held.token) == ("me", acquired.token)
    clock.advance(timedelta(seconds=20))
    assert await port.reset(acquired)
    (extended,) = locks_of(port)
    assert extended.left_seconds is not None
    assert extended.left_seconds > 20
    assert extended.since == held.since
    assert not await port.release("k", "other")
    assert len(locks_of(port)) == 1
    assert await port.release(acquired)
    assert locks_of(port) == []
    assert await port.acquire("k", "me") is not None
    clock.advance(timedelta(seconds=31))
    assert locks_of(port) == [], "its lease has ended"


async def test_lapsed_locks_do_not_pile_up(
    ctx: ExecutionContext, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledger, "SWEPT_AT", 10)
    port: Any = ctx.dlock(JOBS)
    for number in range(10):
        await port.acquire(f"k{number}", "me")
    clock.advance(timedelta(seconds=31))
    await port.acquire("another", "me")
    assert len(port._scopes.ledger._named) == 1


async def test_a_lock_costs_the_same_however_many_there_are(
    ctx: ExecutionContext, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledger, "SWEPT_AT", 10)
    port: Any = ctx.dlock(JOBS)
    sweeps = []
    sweep = port._scopes.ledger._sweep
    monkeypatch.setattr(port._scopes.ledger, "_sweep", lambda: sweeps.append(sweep()))
    for number in range(200):
        await port.acquire(f"k{number}", "me")
    assert len(locks_of(port)) == 200
    assert len(sweeps) <= 7


async def test_permits_and_readers(ctx: ExecutionContext) -> None:
    slots, pages = ctx.semaphore(SLOTS), ctx.rwlock(PAGES)
    async with slots.scope("k"), slots.scope("k"), pages.reading("p"):
        assert len(locks_of(slots)) == 2
        assert [each.shared for each in locks_of(pages)] == [True]
    assert locks_of(slots) + locks_of(pages) == []


async def test_claims_in_flight(ctx: ExecutionContext) -> None:
    port = ctx.idempotency(PAYMENTS)
    assert claims_of(port) == []
    async with port.claim("pay", "k", "hash") as claim:
        (view,) = claims_of(port)
        assert (view.resource, view.operation, view.key) == ("payments", "pay", "k")
        assert (view.generation, view.phase) == (1, "held")
        assert (view.takeover, view.lost) == (False, False)
        assert view.left_seconds is not None
        assert 0 < view.left_seconds <= PAYMENTS.lease.total_seconds()
        await claim.complete(IdempotencySnapshot(200, "text/plain", b"ok"))
    assert claims_of(port) == []


async def test_what_is_registered_is_found_by_what_it_can_do() -> None:
    class Store:
        degraded = True

    one, two = Store(), Store()
    module = Deps(
        plain={DepKey("one"): one}, routed={DepKey("several"): {"a": two, "b": one, "c": object()}}
    )
    async with ExecutionRuntime(deps=DepsPlan.from_modules(lambda: module)).scope() as ctx:
        found = ctx.registered(Degrading)  # type: ignore[type-abstract] # found by what it can do
        assert found == [("one", one), ("a", two)]


async def test_ports_are_those_that_were_asked_for(ctx: ExecutionContext) -> None:
    assert ctx.ports() == []
    port = ctx.dlock(JOBS)
    assert ctx.ports() == [(JOBS, port)]
