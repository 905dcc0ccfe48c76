"""What semaphores and read/write locks do beyond a lock. Legs are those of the locks."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from datetime import timedelta

from forze.application.contracts.dlock import HeldLock, ReadWriteLockSpec, SemaphoreSpec
from forze.application.execution import ExecutionContext
from forze.errors import ConflictError, LockLost, LockNotAcquired, TenantRequired
from forze.testing.batteries.legs import PATIENCE, apart, cancelled, waits
from forze.testing.batteries.locks import LAPSE, Holder, LockLeg, held_by
from forze.testing.batteries.refusals import refused

SEMAPHORE = SemaphoreSpec(name="slots", permits=2)
BRIEF_SEMAPHORE = SemaphoreSpec(name="brief_slots", permits=2, ttl=timedelta(milliseconds=120))
TENANT_SEMAPHORE = SemaphoreSpec(name="owned_slots", permits=1)
RWLOCK = ReadWriteLockSpec(name="pages")
BRIEF_RWLOCK = ReadWriteLockSpec(name="brief_pages", ttl=timedelta(milliseconds=120))

Making = Callable[[], AbstractAsyncContextManager[HeldLock]]


class SemaphoreBehaviour:
    """Permits: so many and no more, in the order of arrival."""

    async def test_so_many_and_no_more(self, lock_leg: LockLeg) -> None:
        slots, others = lock_leg.ctx.semaphore(SEMAPHORE), lock_leg.other.semaphore(SEMAPHORE)
        one = await held_by(slots.scope("k"))
        two = await held_by(others.scope("k"))
        assert await slots.permits_held("k") == 2
        assert await slots.permits_held("another") == 0
        for each in (slots, others):
            with refused(LockNotAcquired, "slots", "k"):
                async with each.scope("k"):
                    pass
        await one.leave()
        async with others.scope("k") as third:
            assert two.lock is not None
            assert third.token > two.lock.token
        await two.leave()
        assert await slots.permits_held("k") == 0

    async def test_in_the_order_of_arrival(self, lock_leg: LockLeg) -> None:
        holders = [await held_by(lock_leg.ctx.semaphore(SEMAPHORE).scope("k")) for _ in range(2)]
        order: list[int] = []
        running = most = 0

        async def wait(number: int, ctx: ExecutionContext) -> None:
            nonlocal running, most
            async with ctx.semaphore(SEMAPHORE).scope("k", wait=PATIENCE):
                order.append(number)
                running += 1
                most = max(most, running)
                await asyncio.sleep(0.002)
                running -= 1

        waiting = []
        for number in range(10):
            waiting.append(apart(wait(number, (lock_leg.ctx, lock_leg.other)[number % 2])))
            await asyncio.sleep(0.005)
        assert order == []
        for holder in holders:
            await holder.leave()
        async with asyncio.timeout(PATIENCE.total_seconds()):
            await asyncio.gather(*waiting)
        assert most == 2
        assert sorted(order) == list(range(10))
        assert all(abs(number - place) <= 1 for place, number in enumerate(order)), order

    async def test_a_heartbeat_keeps_a_permit(self, lock_leg: LockLeg) -> None:
        slots = lock_leg.ctx.semaphore(BRIEF_SEMAPHORE)
        async with slots.scope("k") as held:
            for _ in range(6):
                await lock_leg.pass_time(BRIEF_SEMAPHORE.ttl / 3)
                await asyncio.sleep(0.025)
            held.check()
            assert await slots.permits_held("k") == 1

    async def test_a_task_may_have_every_permit(self, lock_leg: LockLeg) -> None:
        slots = lock_leg.ctx.semaphore(SEMAPHORE)
        async with slots.scope("k"), slots.scope("k"):
            with refused(ConflictError, "this very task"):
                async with slots.scope("k", wait=PATIENCE):
                    pass

    async def test_tenants_have_permits_of_their_own(self, lock_leg: LockLeg) -> None:
        slots = lock_leg.ctx.semaphore(TENANT_SEMAPHORE)
        with lock_leg.ctx.bind_tenant("t1"):
            one = Holder(slots.scope("k"), here=True)
            await one.entered()
        with lock_leg.ctx.bind_tenant("t2"):
            async with slots.scope("k"):
                pass
        await one.leave()
        with refused(TenantRequired):
            async with slots.scope("k"):
                pass


class SemaphoreFailures:
    """Permits that lapse, holders that are cancelled."""

    async def test_a_permit_that_lapsed_is_free_and_lost(self, lock_leg: LockLeg) -> None:
        slots = lock_leg.ctx.semaphore(BRIEF_SEMAPHORE)
        with refused(LockLost):
            async with slots.scope("k", heartbeat=False):
                await lock_leg.pass_time(LAPSE)
                await asyncio.sleep(PATIENCE.total_seconds())
        async with slots.scope("k", wait=PATIENCE), slots.scope("k", wait=PATIENCE):
            assert await slots.permits_held("k") == 2

    async def test_a_silent_holder_is_followed(self, lock_leg: LockLeg) -> None:
        slots = lock_leg.ctx.semaphore(BRIEF_SEMAPHORE)
        silent = [Holder(slots.scope("k", heartbeat=False)) for _ in range(2)]
        for each in silent:
            await each.entered()
        waiter = Holder(lock_leg.other.semaphore(BRIEF_SEMAPHORE).scope("k", wait=PATIENCE))
        await lock_leg.pass_time(LAPSE)
        await waiter.entered()
        await waiter.leave()
        results = await asyncio.gather(*(each.task for each in silent), return_exceptions=True)
        assert [type(each) for each in results] == [LockLost, LockLost]

    async def test_a_cancelled_waiter_passes_its_turn_on(self, lock_leg: LockLeg) -> None:
        slots, others = lock_leg.ctx.semaphore(SEMAPHORE), lock_leg.other.semaphore(SEMAPHORE)
        holders = [await held_by(slots.scope("k")) for _ in range(2)]
        second = Holder(slots.scope("k", wait=PATIENCE))
        assert await waits(second.task)
        third = Holder(others.scope("k", wait=PATIENCE))
        assert await waits(third.task)
        assert await cancelled(second.task)
        await holders[0].leave()
        async with asyncio.timeout(0.5):
            await third.entered()
        await third.leave()
        await holders[1].leave()

    async def test_a_wait_ends(self, lock_leg: LockLeg) -> None:
        slots = lock_leg.ctx.semaphore(SEMAPHORE)
        holders = [await held_by(slots.scope("k")) for _ in range(2)]
        with refused(LockNotAcquired) as refusal:
            async with slots.scope("k", wait=timedelta(milliseconds=30)):
                pass
        assert refusal.error.retry_after is not None
        for holder in holders:
            await holder.leave()


class ReadWriteLockBehaviour:
    """Many readers or one writer, in the order of arrival."""

    async def test_readers_are_together_and_writers_alone(self, lock_leg: LockLeg) -> None:
        pages, others = lock_leg.ctx.rwlock(RWLOCK), lock_leg.other.rwlock(RWLOCK)
        async with pages.reading("k") as reading:
            other = await held_by(others.reading("k"))
            assert other.lock is not None
            assert other.lock.token == reading.token
            with refused(LockNotAcquired):
                async with others.writing("k"):
                    pass
            await other.leave()
        async with pages.writing("k") as writing:
            assert writing.token > reading.token
            for scope in (others.reading, others.writing):
                with refused(LockNotAcquired):
                    async with scope("k"):
                        pass

    async def test_a_reader_has_the_last_writers_token(self, lock_leg: LockLeg) -> None:
        pages = lock_leg.ctx.rwlock(RWLOCK)
        for _ in range(3):
            async with pages.writing("k") as writing:
                pass
            async with pages.reading("k") as reading:
                assert reading.token == writing.token

    async def test_a_writer_that_waits_keeps_new_readers_out(self, lock_leg: LockLeg) -> None:
        pages, others = lock_leg.ctx.rwlock(RWLOCK), lock_leg.other.rwlock(RWLOCK)
        reader = await held_by(pages.reading("k"))
        writer = Holder(others.writing("k", wait=PATIENCE))
        assert await waits(writer.task)
        with refused(LockNotAcquired):
            async with pages.reading("k"):
                pass
        late = Holder(pages.reading("k", wait=PATIENCE))
        assert await waits(late.task)
        await reader.leave()
        await writer.entered()
        assert late.lock is None
        await writer.leave()
        await late.entered()
        await late.leave()

    async def test_in_the_order_of_arrival(self, lock_leg: LockLeg) -> None:
        first = await held_by(lock_leg.ctx.rwlock(RWLOCK).writing("k"))
        log: list[str] = []

        async def enter(name: str, scope: Making) -> None:
            async with scope() as held:
                held.check()
                log.append(name)
                await asyncio.sleep(0.01)
                log.append(name.lower())

        waiting = []
        for place, name in enumerate("RSWTUVX"):  # R, S, T, U read; W, V, X write
            rwlock = (lock_leg.ctx, lock_leg.other)[place % 2].rwlock(RWLOCK)
            kind = rwlock.writing if name in "WVX" else rwlock.reading
            waiting.append(apart(enter(name, lambda kind=kind: kind("k", wait=PATIENCE))))  # type: ignore[misc]
            await asyncio.sleep(0.04)
        await first.leave()
        async with asyncio.timeout(PATIENCE.total_seconds()):
            await asyncio.gather(*waiting)
        text = "".join(log)
        assert [set(text[0:2]), set(text[2:4]), text[4:6]] == [{"R", "S"}, {"r", "s"}, "Ww"], text
        assert [set(text[6:8]), set(text[8:10])] == [{"T", "U"}, {"t", "u"}], text
        assert text[10:] == "VvXx"

    async def test_a_writer_that_gives_up_lets_readers_in(self, lock_leg: LockLeg) -> None:
        pages, others = lock_leg.ctx.rwlock(RWLOCK), lock_leg.other.rwlock(RWLOCK)
        reader = await held_by(pages.reading("k"))
        writer = Holder(others.writing("k", wait=PATIENCE))
        assert await waits(writer.task)
        late = Holder(pages.reading("k", wait=PATIENCE))
        assert await waits(late.task)
        assert await cancelled(writer.task)
        async with asyncio.timeout(0.5):
            await late.entered()
        await late.leave()
        await reader.leave()


class ReadWriteLockFailures:
    """Leases of readers and writers that lapse."""

    async def test_a_reader_extends_only_itself(self, lock_leg: LockLeg) -> None:
        """One that beats keeps no other alive, and one that lapsed is not kept by another."""
        pages, others = lock_leg.ctx.rwlock(BRIEF_RWLOCK), lock_leg.other.rwlock(BRIEF_RWLOCK)
        silent = Holder(pages.reading("k", heartbeat=False))
        await silent.entered()
        lively = await held_by(others.reading("k"))
        for _ in range(6):
            await lock_leg.pass_time(BRIEF_RWLOCK.ttl / 3)
            await asyncio.sleep(0.025)
        results = await asyncio.gather(silent.task, return_exceptions=True)
        assert [type(each) for each in results] == [LockLost]
        assert lively.lock is not None
        lively.lock.check()
        await lively.leave()
        async with pages.writing("k") as writing:
            writing.check()

    async def test_lost_while_reading_and_while_writing(self, lock_leg: LockLeg) -> None:
        pages = lock_leg.ctx.rwlock(BRIEF_RWLOCK)
        for scope in (pages.reading, pages.writing):
            with refused(LockLost):
                async with scope("k", wait=PATIENCE, heartbeat=False):
                    await lock_leg.pass_time(LAPSE)
                    await asyncio.sleep(PATIENCE.total_seconds())

    async def test_no_upgrade_in_one_task(self, lock_leg: LockLeg) -> None:
        pages = lock_leg.ctx.rwlock(RWLOCK)
        async with pages.reading("k"):
            for scope in (pages.writing, pages.reading):
                with refused(ConflictError, "this very task"):
                    async with scope("k", wait=PATIENCE):
                        pass
