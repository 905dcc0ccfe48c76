"""What every lock does, and what it does when things go wrong. A leg is two processes."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import timedelta

from forze.application.contracts.dlock import (
    AcquiredLock,
    DistributedLockPort,
    DistributedLockSpec,
    HeldLock,
)
from forze.application.execution import ExecutionContext
from forze.errors import (
    BackendError,
    ConfigurationError,
    ConflictError,
    ForzeError,
    LockLost,
    LockNotAcquired,
    TenantRequired,
    ValidationError,
)
from forze.testing.batteries.legs import PATIENCE, Outage, apart, cancelled, waits
from forze.testing.batteries.refusals import refused

LOCK = DistributedLockSpec(name="jobs")
BRIEF_LOCK = DistributedLockSpec(name="brief_jobs", ttl=timedelta(milliseconds=120))
OTHER_LOCK = DistributedLockSpec(name="other_jobs")
TENANT_LOCK = DistributedLockSpec(name="owned_jobs")

LAPSE = timedelta(milliseconds=160)
"""Longer than a brief lease."""

NAMES = (
    "k",
    "k:fence",
    "k:fence:fence",
    "k:queue",
    "k:waiting",
    "k:readers",
    "a/b",
    "a%2Fb",
    "a|b",
)
"""Keys that might be taken for one another."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LockLeg:
    """A lock backend: two processes over one server.

    Both contexts answer ``LOCK``, ``BRIEF_LOCK``, ``OTHER_LOCK`` and ``TENANT_LOCK``
    (tenant-aware), each under a namespace of its own, and the specs of the other batteries of
    locks. ``pass_time`` lets time pass for the server and for those who hold.
    """

    ctx: ExecutionContext
    other: ExecutionContext
    pass_time: Callable[[timedelta], Awaitable[None]]


def locks(leg: LockLeg) -> DistributedLockPort:
    """The locks of the one process."""
    return leg.ctx.dlock(LOCK)


async def held_by(scope: contextlib.AbstractAsyncContextManager[HeldLock]) -> Holder:
    """Hold a lock in a task of its own, until told otherwise."""
    holder = Holder(scope)
    await holder.entered()
    return holder


class Holder:
    """A task that enters a scope, and stays in it until :meth:`leave`.

    It is another request, unless it is ``here``: under the tenant and the deadline of this one.
    """

    def __init__(
        self,
        scope: contextlib.AbstractAsyncContextManager[HeldLock],
        *,
        here: bool = False,
    ) -> None:
        self.lock: HeldLock | None = None
        self._inside = asyncio.Event()
        self._go = asyncio.Event()
        self.task = asyncio.create_task(self._hold(scope)) if here else apart(self._hold(scope))

    async def _hold(self, scope: contextlib.AbstractAsyncContextManager[HeldLock]) -> None:
        async with scope as self.lock:
            self._inside.set()
            await self._go.wait()

    async def entered(self) -> HeldLock:
        """Wait until it holds; raises what entering raised."""
        inside = asyncio.ensure_future(self._inside.wait())
        async with asyncio.timeout(PATIENCE.total_seconds()):
            await asyncio.wait({self.task, inside}, return_when=asyncio.FIRST_COMPLETED)
        inside.cancel()
        if self.lock is None:
            await self.task
        assert self.lock is not None
        return self.lock

    async def leave(self) -> None:
        """Leave, and wait until it has."""
        self._go.set()
        async with asyncio.timeout(PATIENCE.total_seconds()):
            await self.task


class DistributedLockBehaviour:
    """Acquire, release, extend, inspect; and the scope."""

    async def test_one_owner_at_a_time(self, lock_leg: LockLeg) -> None:
        lock, other = locks(lock_leg), lock_leg.other.dlock(LOCK)
        acquired = await lock.acquire("k", "one")
        assert acquired is not None
        assert (acquired.key, acquired.owner) == ("k", "one")
        assert acquired.token > 0
        assert await other.acquire("k", "two") is None
        assert await lock.release("k", "one") is True
        taken = await other.acquire("k", "two")
        assert taken is not None
        assert taken.token > acquired.token

    async def test_the_same_owner_has_the_same_token(self, lock_leg: LockLeg) -> None:
        lock = lock_leg.ctx.dlock(BRIEF_LOCK)
        first = await lock.acquire("k", "one")
        await lock_leg.pass_time(LAPSE / 2)
        again = await lock_leg.other.dlock(BRIEF_LOCK).acquire("k", "one")
        assert again == first
        await lock_leg.pass_time(LAPSE / 2)
        assert await lock.is_locked("k"), "acquired again, the lease begins again"

    async def test_what_can_be_seen_of_it(self, lock_leg: LockLeg) -> None:
        lock, other = locks(lock_leg), lock_leg.other.dlock(LOCK)
        assert not await lock.is_locked("k")
        assert await lock.get_owner("k") is None
        assert await lock.get_ttl("k") is None
        await lock.acquire("k", "one")
        assert await other.is_locked("k")
        assert await other.get_owner("k") == "one"
        ttl = await other.get_ttl("k")
        assert ttl is not None
        assert timedelta(seconds=20) < ttl <= LOCK.ttl
        acquired = await lock.acquire("k", "one")
        assert acquired is not None
        assert await other.is_locked(acquired)
        assert await other.get_owner(acquired) == "one"
        assert await other.get_ttl(acquired) is not None

    async def test_tokens_rise_through_release_and_expiry(self, lock_leg: LockLeg) -> None:
        lock = lock_leg.ctx.dlock(BRIEF_LOCK)
        tokens: list[int] = []
        for how in ("release", "lapse", "release", "lapse", "release"):
            acquired = await lock.acquire("k", f"owner {len(tokens)}")
            assert acquired is not None
            tokens.append(acquired.token)
            if how == "release":
                assert await lock.release("k", acquired.owner)
            else:
                await lock_leg.pass_time(LAPSE)
        assert tokens == sorted(set(tokens))

    async def test_reset_extends_under_the_same_token(self, lock_leg: LockLeg) -> None:
        lock = lock_leg.ctx.dlock(BRIEF_LOCK)
        acquired = await lock.acquire("k", "one")
        assert acquired is not None
        for by in (("k", "one"), (acquired,), ("k", acquired)):
            await lock_leg.pass_time(LAPSE / 2)
            assert await lock.reset(*by) is True
        assert await lock.acquire("k", "one") == acquired

    async def test_every_way_to_name_what_is_released(self, lock_leg: LockLeg) -> None:
        lock = locks(lock_leg)
        ways: tuple[Callable[[AcquiredLock], Awaitable[bool]], ...] = (
            lambda it: lock.release("k", "one"),
            lambda it: lock.release(key="k", owner="one"),
            lock.release,
            lambda it: lock.release("k", it),
            lambda it: lock.release(it.key, it.owner),
        )
        for release in ways:
            acquired = await lock.acquire("k", "one")
            assert acquired is not None
            assert await release(acquired) is True
            assert not await lock.is_locked("k")

    async def test_keys_and_resources_are_apart(self, lock_leg: LockLeg) -> None:
        lock, other = locks(lock_leg), lock_leg.ctx.dlock(OTHER_LOCK)
        for name in NAMES:
            assert await lock.acquire(name, f"owner of {name}") is not None, name
        for name in NAMES:
            assert await lock.get_owner(name) == f"owner of {name}"
            assert await other.acquire(name, "another") is not None
        for name in NAMES:
            assert await lock.release(name, f"owner of {name}")
        for name in NAMES:
            assert not await lock.is_locked(name)
            assert await other.is_locked(name)

    async def test_an_owner_is_any_text(self, lock_leg: LockLeg) -> None:
        lock = locks(lock_leg)
        for owner in ("a", "a|b", "a|7", "|", "ä\n😀", "x" * 1000):
            acquired = await lock.acquire("k", owner)
            assert acquired is not None
            assert await lock.get_owner("k") == owner
            assert await lock.acquire("k", owner) == acquired
            for another in ("a|", "b", owner + "|1"):
                assert not await lock.reset("k", another)
                assert not await lock.release("k", another)
            assert await lock.release("k", owner)

    async def test_tenants_have_locks_of_their_own(self, lock_leg: LockLeg) -> None:
        lock = lock_leg.ctx.dlock(TENANT_LOCK)
        for tenant in ("t1", "t2", "t1/k"):
            with lock_leg.ctx.bind_tenant(tenant):
                assert await lock.acquire("k", f"owner in {tenant}") is not None
        with lock_leg.other.bind_tenant("t1"):
            assert await lock_leg.other.dlock(TENANT_LOCK).get_owner("k") == "owner in t1"
            async with lock_leg.other.dlock_scope(TENANT_LOCK).scope("j"):
                pass

    async def test_a_held_lock_stays_its_tenants(self, lock_leg: LockLeg) -> None:
        ctx, lock = lock_leg.ctx, lock_leg.other.dlock(TENANT_LOCK)
        async with contextlib.AsyncExitStack() as held:
            with ctx.bind_tenant("t1"):
                await held.enter_async_context(ctx.dlock_scope(TENANT_LOCK).scope("k"))
            with ctx.bind_tenant("t2"):
                assert not await lock.is_locked("k")
            with ctx.bind_tenant("t1"):
                assert await lock.is_locked("k")
        with ctx.bind_tenant("t1"):
            assert not await lock.is_locked("k")

    # -- the scope -------------------------------------------------------------

    async def test_a_scope_holds_and_gives_back(self, lock_leg: LockLeg) -> None:
        lock = locks(lock_leg)
        async with lock_leg.ctx.dlock_scope(LOCK).scope("k") as held:
            assert isinstance(held, AcquiredLock)
            assert held.key == "k"
            assert await lock.get_owner("k") == held.owner
            held.check()
            assert not held.lost.is_set()
            assert timedelta(seconds=20) < held.remaining < LOCK.ttl
            with refused(LockNotAcquired, "k", "another one"):
                async with lock_leg.other.dlock_scope(LOCK).scope("k"):
                    pass
        assert not await lock.is_locked("k")
        assert held.lost.is_set()
        with refused(LockLost, "given back"):
            held.check()

    async def test_a_scope_is_entered_once(self, lock_leg: LockLeg) -> None:
        """Two blocks of one scope would give back each other's lease."""
        scope = lock_leg.ctx.dlock_scope(LOCK).scope("k", wait=PATIENCE)
        async with scope as held:
            with refused(ConfigurationError, "k", "call scope()"):
                async with scope:
                    pass
            held.check()
        assert not await locks(lock_leg).is_locked("k")

    async def test_tokens_of_scopes_rise(self, lock_leg: LockLeg) -> None:
        tokens = []
        for ctx in (lock_leg.ctx, lock_leg.other) * 3:
            async with ctx.dlock_scope(LOCK).scope("k") as held:
                tokens.append(held.token)
        assert tokens == sorted(set(tokens))

    async def test_a_heartbeat_keeps_it(self, lock_leg: LockLeg) -> None:
        async with lock_leg.ctx.dlock_scope(BRIEF_LOCK).scope("k") as held:
            token = held.token
            for _ in range(6):
                await lock_leg.pass_time(BRIEF_LOCK.ttl / 3)
                await asyncio.sleep(0.025)
            held.check()
            assert await lock_leg.other.dlock(BRIEF_LOCK).get_owner("k") == held.owner
            assert held.token == token

    async def test_without_a_heartbeat_it_lapses(self, lock_leg: LockLeg) -> None:
        inside = False
        with refused(LockLost, "ended"):
            async with lock_leg.ctx.dlock_scope(BRIEF_LOCK).scope("k", heartbeat=False):
                inside = True
                await lock_leg.pass_time(LAPSE)
                await asyncio.sleep(PATIENCE.total_seconds())
        assert inside
        task = asyncio.current_task()
        assert task is not None
        assert task.cancelling() == 0

    async def test_who_waits_is_served_in_the_order_of_arrival(self, lock_leg: LockLeg) -> None:
        first = await held_by(lock_leg.ctx.dlock_scope(LOCK).scope("k"))
        order: list[int] = []

        async def wait(number: int, ctx: ExecutionContext) -> None:
            async with ctx.dlock_scope(LOCK).scope("k", wait=PATIENCE):
                order.append(number)
                await asyncio.sleep(0)

        waiting = []
        for number in range(12):
            waiting.append(apart(wait(number, (lock_leg.ctx, lock_leg.other)[number // 2 % 2])))
            await asyncio.sleep(0.005)
        assert order == []
        await first.leave()
        async with asyncio.timeout(PATIENCE.total_seconds()):
            await asyncio.gather(*waiting)
        assert order == list(range(12))

    async def test_a_wait_ends(self, lock_leg: LockLeg) -> None:
        first = await held_by(lock_leg.ctx.dlock_scope(LOCK).scope("k"))
        for ctx in (lock_leg.ctx, lock_leg.other):
            with refused(LockNotAcquired) as refusal:
                async with ctx.dlock_scope(LOCK).scope("k", wait=timedelta(milliseconds=30)):
                    pass
            retry_after = refusal.error.retry_after
            assert retry_after is not None
            assert timedelta(seconds=20) < retry_after <= LOCK.ttl + timedelta(milliseconds=1)
        await first.leave()
        async with lock_leg.ctx.dlock_scope(LOCK).scope("k"):
            pass  # who gave up stands in nobody's way

    async def test_a_deadline_bounds_the_wait(self, lock_leg: LockLeg) -> None:
        first = await held_by(lock_leg.ctx.dlock_scope(LOCK).scope("k"))
        with lock_leg.other.bind_deadline(timedelta(milliseconds=30)):
            async with asyncio.timeout(1):
                with refused(LockNotAcquired):
                    async with lock_leg.other.dlock_scope(LOCK).scope("k", wait=PATIENCE):
                        pass
            with refused(LockNotAcquired, "deadline"):
                async with lock_leg.other.dlock_scope(LOCK).scope("free", wait=PATIENCE):
                    pass
        await first.leave()

    async def test_waiting_is_not_needed_where_it_is_free(self, lock_leg: LockLeg) -> None:
        for wait in (None, timedelta(0), PATIENCE):
            async with lock_leg.ctx.dlock_scope(LOCK).scope("k", wait=wait) as held:
                held.check()


class DistributedLockFailures:
    """What is refused, what is lost, and what happens to those who are cancelled."""

    async def test_a_refusal_changes_nothing(self, lock_leg: LockLeg) -> None:
        lock, other = lock_leg.ctx.dlock(BRIEF_LOCK), lock_leg.other.dlock(BRIEF_LOCK)
        acquired = await lock.acquire("k", "one")
        before = await lock.get_ttl("k")
        await lock_leg.pass_time(LAPSE / 4)
        assert await other.acquire("k", "two") is None
        assert not await other.reset("k", "two")
        assert not await other.release("k", "two")
        after = await lock.get_ttl("k")
        assert before is not None
        assert after is not None
        assert after <= before - LAPSE / 8
        assert await lock.get_owner("k") == "one"
        assert await lock.acquire("k", "one") == acquired

    async def test_nobody_else_releases_or_extends(self, lock_leg: LockLeg) -> None:
        lock = locks(lock_leg)
        assert not await lock.release("k", "one")
        await lock.acquire("k", "one")
        assert not await lock.release("k", "two")
        assert await lock.is_locked("k")

    async def test_an_earlier_acquisition_releases_no_later_one(self, lock_leg: LockLeg) -> None:
        lock = locks(lock_leg)
        earlier = await lock.acquire("k", "one")
        assert earlier is not None
        await lock.release("k", "one")
        later = await lock.acquire("k", "one")
        assert later is not None
        assert later.token > earlier.token
        assert not await lock.release(earlier)
        assert not await lock.reset("k", earlier)
        assert await lock.get_owner("k") == "one"
        assert await lock.release(later)

    async def test_a_lapsed_lease_is_not_brought_back(self, lock_leg: LockLeg) -> None:
        lock = lock_leg.ctx.dlock(BRIEF_LOCK)
        acquired = await lock.acquire("k", "one")
        assert acquired is not None
        await lock_leg.pass_time(LAPSE)
        assert not await lock.reset("k", "one")
        assert not await lock.reset(acquired)
        assert not await lock.is_locked("k")
        assert await lock.get_owner("k") is None
        assert not await lock.release(acquired)

    async def test_arguments_that_name_nothing(self, lock_leg: LockLeg) -> None:
        lock = locks(lock_leg)
        calls: tuple[Callable[[], Awaitable[object]], ...] = (
            lambda: lock.acquire("", "one"),
            lambda: lock.acquire("k", ""),
            lambda: lock.acquire("k", "x" * 1025),
            lambda: lock.acquire("k", "\ud800"),
            lambda: lock.acquire("k", None),  # type: ignore[arg-type]
            lambda: lock.release("k"),
            lambda: lock.reset("k", ""),
            lambda: lock.get_ttl(""),
        )
        for call in calls:
            with refused(ValidationError):
                await call()
        for wait in (timedelta(seconds=-1), 5):
            with refused(ValidationError, "wait"):
                async with lock_leg.ctx.dlock_scope(LOCK).scope("k", wait=wait):  # type: ignore[arg-type]
                    pass
        assert not await lock.is_locked("k")

    async def test_no_tenant_no_lock(self, lock_leg: LockLeg) -> None:
        lock = lock_leg.ctx.dlock(TENANT_LOCK)
        for call in (lambda: lock.acquire("k", "one"), lambda: lock.get_owner("k")):
            with refused(TenantRequired):
                await call()
        with refused(TenantRequired):
            async with lock_leg.ctx.dlock_scope(TENANT_LOCK).scope("k"):
                pass

    async def test_a_task_does_not_wait_for_itself(self, lock_leg: LockLeg) -> None:
        scopes = lock_leg.ctx.dlock_scope(LOCK)
        async with scopes.scope("k") as held:
            async with asyncio.timeout(1):
                with refused(ConflictError, "this very task"):
                    async with scopes.scope("k", wait=PATIENCE):
                        pass
            async with scopes.scope("another"):
                held.check()
        async with scopes.scope("k"):
            pass

    async def test_what_the_block_raises_is_raised(self, lock_leg: LockLeg) -> None:
        with refused(KeyError):
            async with lock_leg.ctx.dlock_scope(LOCK).scope("k"):
                raise KeyError("the block's own")
        assert not await locks(lock_leg).is_locked("k")

    async def test_what_the_block_raises_wins_over_a_loss(self, lock_leg: LockLeg) -> None:
        with refused(KeyError) as refusal:
            async with lock_leg.ctx.dlock_scope(BRIEF_LOCK).scope("k", heartbeat=False):
                try:
                    await lock_leg.pass_time(LAPSE)
                    await asyncio.sleep(PATIENCE.total_seconds())
                finally:
                    raise KeyError("while it was being cancelled")
        assert any("no longer held" in note for note in refusal.error.__notes__)
        task = asyncio.current_task()
        assert task is not None
        assert task.cancelling() == 0

    async def test_a_block_that_swallows_its_cancellation(self, lock_leg: LockLeg) -> None:
        with refused(LockLost):
            async with lock_leg.ctx.dlock_scope(BRIEF_LOCK).scope("k", heartbeat=False) as held:
                await lock_leg.pass_time(LAPSE)
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.sleep(PATIENCE.total_seconds())
                with refused(LockLost):
                    held.check()
        await asyncio.sleep(0)

    async def test_a_loss_that_the_block_slept_through(self, lock_leg: LockLeg) -> None:
        """Nothing of the event loop ran between the lapse and the end of the block."""
        seen: list[HeldLock] = []

        async def block() -> None:
            async with lock_leg.ctx.dlock_scope(BRIEF_LOCK).scope("k", heartbeat=False) as held:
                seen.append(held)
                passing = lock_leg.pass_time(LAPSE)
                with contextlib.suppress(asyncio.CancelledError):
                    await passing

        with refused(LockLost):
            await block()
        assert seen[0].lost.is_set()

    async def test_cancelled_by_its_caller(self, lock_leg: LockLeg) -> None:
        holder = await held_by(lock_leg.ctx.dlock_scope(LOCK).scope("k"))
        assert await cancelled(holder.task), "a cancellation stays one"
        async with lock_leg.other.dlock_scope(LOCK).scope("k", wait=PATIENCE) as held:
            held.check()

    async def test_cancelled_by_both(self, lock_leg: LockLeg) -> None:
        ready = asyncio.Event()

        async def block() -> None:
            async with lock_leg.ctx.dlock_scope(BRIEF_LOCK).scope("k", heartbeat=False):
                ready.set()
                try:
                    await asyncio.sleep(PATIENCE.total_seconds())
                finally:
                    task.cancel()  # the caller's, on top of the one of the lapse

        task = apart(block())
        await ready.wait()
        await lock_leg.pass_time(LAPSE)
        await asyncio.wait({task}, timeout=PATIENCE.total_seconds())
        assert task.cancelled(), "the caller's cancellation is never turned into something else"

    async def test_a_timeout_around_a_lost_lock(self, lock_leg: LockLeg) -> None:
        """An outer timeout still ends as a timeout, an inner loss as a loss."""
        with refused(TimeoutError):
            async with asyncio.timeout(0.02):
                async with lock_leg.ctx.dlock_scope(LOCK).scope("k"):
                    await asyncio.sleep(PATIENCE.total_seconds())
        with refused(LockLost):
            async with asyncio.timeout(PATIENCE.total_seconds()):
                async with lock_leg.ctx.dlock_scope(BRIEF_LOCK).scope("k", heartbeat=False):
                    await lock_leg.pass_time(LAPSE)
                    await asyncio.sleep(PATIENCE.total_seconds())

    async def test_removed_under_the_block(self, lock_leg: LockLeg) -> None:
        """By hand, by an eviction, by a flush: the heartbeat finds out, or the end does."""
        with refused(LockLost, "no such lease"):
            async with lock_leg.ctx.dlock_scope(LOCK).scope("k") as held:
                assert await lock_leg.other.dlock(LOCK).release("k", held.owner)
        with refused(LockLost):
            async with lock_leg.ctx.dlock_scope(BRIEF_LOCK).scope("k") as held:
                assert await lock_leg.other.dlock(BRIEF_LOCK).release("k", held.owner)
                await asyncio.sleep(PATIENCE.total_seconds())

    async def test_a_cancelled_waiter_passes_its_turn_on(self, lock_leg: LockLeg) -> None:
        first = await held_by(lock_leg.ctx.dlock_scope(LOCK).scope("k"))
        second = Holder(lock_leg.ctx.dlock_scope(LOCK).scope("k", wait=PATIENCE))
        assert await waits(second.task)
        third = Holder(lock_leg.other.dlock_scope(LOCK).scope("k", wait=PATIENCE))
        assert await waits(third.task)
        assert await cancelled(second.task)
        await first.leave()
        async with asyncio.timeout(0.5):
            await third.entered()
        await third.leave()

    async def test_a_waiter_cancelled_as_it_is_called(self, lock_leg: LockLeg) -> None:
        """At whichever turn of the event loop: the one behind it is served, and at once."""
        for turns in range(12):
            first = await held_by(lock_leg.ctx.dlock_scope(LOCK).scope("k"))
            second = Holder(lock_leg.ctx.dlock_scope(LOCK).scope("k", wait=PATIENCE))
            await asyncio.sleep(0.01)
            third = Holder(lock_leg.other.dlock_scope(LOCK).scope("k", wait=PATIENCE))
            await asyncio.sleep(0.01)
            leaving = apart(first.leave())
            for _ in range(turns):
                await asyncio.sleep(0)
            second.task.cancel()
            await asyncio.wait({second.task})
            await leaving
            async with asyncio.timeout(0.5):
                await third.entered()
            await third.leave()

    async def test_nobody_passes_those_who_wait(self, lock_leg: LockLeg) -> None:
        first = await held_by(lock_leg.ctx.dlock_scope(LOCK).scope("k"))
        second = Holder(lock_leg.other.dlock_scope(LOCK).scope("k", wait=PATIENCE))
        assert await waits(second.task)
        leaving = apart(first.leave())
        overtaking = 0
        while second.lock is None and not overtaking:
            overtaking += await locks(lock_leg).acquire("k", "in a hurry") is not None
        assert overtaking == 0
        await leaving
        await second.leave()

    async def test_a_holder_that_fell_silent_is_followed(self, lock_leg: LockLeg) -> None:
        assert await lock_leg.ctx.dlock(BRIEF_LOCK).acquire("k", "gone") is not None
        waiter = Holder(lock_leg.other.dlock_scope(BRIEF_LOCK).scope("k", wait=PATIENCE))
        await lock_leg.pass_time(LAPSE)
        await waiter.entered()
        await waiter.leave()


class DistributedLockOutage:
    """While the server is away, and after."""

    async def test_unavailable_is_not_held_by_another(
        self, lock_leg: LockLeg, outage: Outage
    ) -> None:
        lock = locks(lock_leg)
        await outage.break_backend()
        for call in (lambda: lock.acquire("k", "one"), lambda: lock.is_locked("k")):
            with refused(BackendError):
                async with asyncio.timeout(5):
                    await call()
        with lock_leg.ctx.bind_deadline(timedelta(seconds=1)), refused(BackendError):
            async with lock_leg.ctx.dlock_scope(LOCK).scope("k", wait=PATIENCE):
                pass

    async def test_a_lease_is_not_believed_in_without_its_server(
        self, lock_leg: LockLeg, outage: Outage
    ) -> None:
        with refused(LockLost):
            async with lock_leg.ctx.dlock_scope(BRIEF_LOCK).scope("k"):
                await outage.break_backend()
                async with asyncio.timeout(2):
                    await asyncio.sleep(PATIENCE.total_seconds())

    async def test_who_waits_outlasts_a_restart(self, lock_leg: LockLeg, outage: Outage) -> None:
        lock = locks(lock_leg)
        before = await lock.acquire("k", "gone with the server")
        assert before is not None
        waiter = Holder(lock_leg.other.dlock_scope(LOCK).scope("k", wait=PATIENCE))
        assert await waits(waiter.task)
        await outage.break_backend()
        await outage.restore()
        held = await waiter.entered()
        assert held.token > before.token, "tokens rise though the server lost its data"
        await waiter.leave()

    async def test_a_block_ends_though_the_server_does_not_answer(
        self, lock_leg: LockLeg, outage: Outage
    ) -> None:
        async with asyncio.timeout(5):
            async with lock_leg.ctx.dlock_scope(LOCK).scope("k"):
                await outage.break_backend()
        await outage.restore()
        with contextlib.suppress(ForzeError):
            await locks(lock_leg).is_locked("k")
