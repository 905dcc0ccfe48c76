"""What every ``IdAllocator`` does: ids out of blocks of a counter."""

from __future__ import annotations

import asyncio
import copy
import pickle
from collections.abc import Callable
from typing import Any

from forze.errors import TenantRequired, ValidationError
from forze.testing.batteries.counters import (
    BOUNDED_COUNTER,
    COUNTER,
    TENANT_COUNTER,
    CounterLeg,
    counter_of,
)
from forze.testing.batteries.legs import PATIENCE, apart, cancelled
from forze.testing.batteries.refusals import refused


class AllocatorBehaviour:
    """Ids out of blocks."""

    async def test_ids_follow_each_other(self, counter_leg: CounterLeg) -> None:
        ids = counter_of(counter_leg).allocator(10)
        assert [await ids.next() for _ in range(35)] == list(range(1, 36))

    async def test_a_block_costs_one_trip(self, counter_leg: CounterLeg) -> None:
        if counter_leg.trips is None:
            return
        ids = counter_of(counter_leg).allocator(100)
        before = counter_leg.trips()
        assert [await ids.next() for _ in range(74)] == list(range(1, 75))
        assert counter_leg.trips() - before == 1

    async def test_the_next_block_is_fetched_ahead(self, counter_leg: CounterLeg) -> None:
        counter = counter_of(counter_leg)
        ids = counter.allocator(8)
        for _ in range(5):
            await ids.next()
        assert await counter.get() == 8
        assert await ids.next() == 6
        taken: list[int] = []
        async with asyncio.timeout(PATIENCE.total_seconds()):
            while len(taken) < 10:
                each = ids.take_nowait()
                if each is None:
                    await asyncio.sleep(0)
                else:
                    taken.append(each)
        assert taken == list(range(7, 17))
        assert await counter.get() == 16, "taken without waiting, nothing is fetched"
        assert ids.take_nowait() is None

    async def test_many_at_once_fetch_once(self, counter_leg: CounterLeg) -> None:
        counter = counter_of(counter_leg)
        ids = counter.allocator(100)
        taken = await asyncio.gather(*(ids.next() for _ in range(60)))
        assert sorted(taken) == list(range(1, 61))
        assert await counter.get() == 100

    async def test_all_who_wait_are_served_by_one_block(self, counter_leg: CounterLeg) -> None:
        counter = counter_of(counter_leg)
        ids = counter.allocator(1)
        taken = await asyncio.gather(*(ids.next() for _ in range(50)))
        assert sorted(taken) == list(range(1, 51))
        assert await counter.get() <= 51, "and at most the one that is fetched ahead"

    async def test_processes_share_no_id(self, counter_leg: CounterLeg) -> None:
        ports = [counter_of(counter_leg), counter_leg.other.counter(COUNTER)]
        allocators = [port.allocator(block) for port in ports for block in (3, 7)]
        taken = await asyncio.gather(*(allocators[n % 4].next() for n in range(400)))
        taken += [await ports[0].incr(), *await ports[1].allocate(5)]
        assert len(set(taken)) == len(taken)
        for place, each in enumerate(allocators):
            mine = [await each.next() for _ in range(20)]
            assert mine == sorted(mine), place
            taken += mine
        assert len(set(taken)) == len(taken)

    async def test_each_suffix_has_blocks_of_its_own(self, counter_leg: CounterLeg) -> None:
        counter = counter_of(counter_leg)
        a, b = counter.allocator(10, "a"), counter.allocator(10, "b")
        assert (await a.next(), await b.next(), await a.next(), await b.next()) == (1, 1, 2, 2)
        assert await counter.get() == 0

    async def test_each_tenant_has_blocks_of_its_own(self, counter_leg: CounterLeg) -> None:
        ctx, counter = counter_leg.ctx, counter_leg.ctx.counter(TENANT_COUNTER)
        ids = counter.allocator(4)
        taken: dict[str, list[int]] = {"a": [], "b": []}

        async def take(tenant: str) -> None:
            with ctx.bind_tenant(tenant):
                taken[tenant].append(await ids.next())

        await asyncio.gather(*(take("ab"[n % 2]) for n in range(40)))
        assert sorted(taken["a"]) == sorted(taken["b"]) == list(range(1, 21))
        with refused(TenantRequired, "owned_orders"):
            await ids.next()
        with refused(TenantRequired, "owned_orders"):
            ids.take_nowait()


class AllocatorFailures:
    """No id comes twice, whatever happens to whoever asks."""

    async def test_cancelled_callers_lose_nothing(self, counter_leg: CounterLeg) -> None:
        ids = counter_of(counter_leg).allocator(5)
        taken: list[int] = []

        async def take() -> None:
            taken.append(await ids.next())

        for turn in range(40):
            tasks = [apart(take()) for _ in range(4)]
            for _ in range(turn % 8):
                await asyncio.sleep(0)
            tasks[turn % 4].cancel()
            await asyncio.wait(tasks)
        assert len(taken) >= 120
        assert len(set(taken)) == len(taken)

    async def test_the_first_cancelled_harms_nobody(self, counter_leg: CounterLeg) -> None:
        ids = counter_of(counter_leg).allocator(5)
        first = apart(ids.next())
        await asyncio.sleep(0)
        second = apart(ids.next())
        await asyncio.sleep(0)
        assert await cancelled(first)
        assert await second == 1
        assert await ids.next() == 2

    async def test_a_failure_is_everyones_and_not_the_end(self, counter_leg: CounterLeg) -> None:
        stock = counter_leg.ctx.counter(BOUNDED_COUNTER)
        ids = stock.allocator(8)
        assert await ids.next() == 1
        await stock.reset(value=9)
        while ids.take_nowait() is not None:
            pass
        answers = await asyncio.gather(*(ids.next() for _ in range(5)), return_exceptions=True)
        assert [type(each) for each in answers] == [ValidationError] * 5
        assert len({id(each) for each in answers}) == 5, "each with a traceback of its own"
        await stock.reset(value=2)
        assert await ids.next() == 3

    async def test_it_cannot_be_copied(self, counter_leg: CounterLeg) -> None:
        ids = counter_of(counter_leg).allocator(5)
        copiers: tuple[Callable[[Any], Any], ...] = (copy.copy, copy.deepcopy, pickle.dumps)
        for copied in copiers:
            with refused(TypeError, "one process"):
                copied(ids)
