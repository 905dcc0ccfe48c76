"""Blocks of ids inside one process: threads, event loops, many tenants."""

from __future__ import annotations

import asyncio
from collections.abc import Hashable
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from itertools import count

import pytest

from forze.application.execution.background import Background
from forze.application.integrations import id_blocks
from forze.application.integrations.id_blocks import IdBlocks
from forze.application.integrations.single_flight import SingleFlight
from forze.errors import ValidationError


class Server:
    """A counter that hands out blocks, and counts how often it is asked."""

    def __init__(self) -> None:
        self.last = 0
        self.asked = 0

    async def allocate(self, number: int) -> range:
        self.asked += 1
        first, self.last = self.last + 1, self.last + number
        await asyncio.sleep(0)
        return range(first, self.last + 1)


class Wiring(Background):
    """As much of a resolver as a block needs."""

    provide: object = None


def blocks(server: Server, *, block: int, scope: Hashable = "only") -> IdBlocks:
    return IdBlocks(server.allocate, lambda: scope, Wiring(), block=block)  # type: ignore[arg-type]


def test_threads_never_share_an_id() -> None:
    server = Server()
    ids = blocks(server, block=20_000)
    taken = [asyncio.run(ids.next())]

    def take() -> list[int]:
        mine = []
        while (each := ids.take_nowait()) is not None:
            mine.append(each)
        return mine

    with ThreadPoolExecutor(8) as pool:
        for mine in pool.map(lambda _: take(), range(8)):
            assert mine == sorted(mine)
            taken += mine
    assert sorted(taken) == list(range(1, 20_001))


def test_event_loops_take_turns() -> None:
    """A flight of a loop that ended halfway is nobody's; a block serves every loop."""
    server = Server()
    ids = blocks(server, block=4)

    async def leave_in_the_middle() -> None:
        asyncio.get_running_loop().create_task(ids.next())
        await asyncio.sleep(0)

    async def three() -> list[int]:
        return [await ids.next() for _ in range(3)]

    asyncio.run(leave_in_the_middle())
    taken = asyncio.run(three()) + asyncio.run(three())
    assert len(set(taken)) == 6
    assert taken == sorted(taken)


async def test_what_is_kept_for_tenants_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(id_blocks, "SHELVES", 10)
    server, tenant = Server(), ContextVar[int]("tenant")
    ids = IdBlocks(server.allocate, tenant.get, Wiring(), block=5)  # type: ignore[arg-type]
    taken = []
    for each in (*range(30), *range(30)):
        tenant.set(each)
        taken.append(await ids.next())
    assert len(set(taken)) == 60
    assert server.asked == 60, "each of them was given up before it came again"
    assert len(ids._shelves) == 10


async def test_a_flight_is_shared_and_its_failure_too() -> None:
    flights: SingleFlight[int] = SingleFlight(Wiring(), "flight")  # type: ignore[arg-type]
    numbers = count()

    async def work() -> int:
        number = next(numbers)
        await asyncio.sleep(0)
        if number == 1:
            raise ValidationError("no")
        return number

    async def ask() -> int:
        return await flights.share("k", work)

    assert await asyncio.gather(*(ask() for _ in range(5))) == [0] * 5
    failures = await asyncio.gather(*(ask() for _ in range(5)), return_exceptions=True)
    assert [str(each) for each in failures] == ["no"] * 5
    assert len(set(map(id, failures))) == 5
    assert await ask() == 2
    assert next(numbers) == 3


async def test_a_flight_that_was_ended_is_begun_again() -> None:
    """As at the end of a runtime: it is no cancellation of those who wait."""
    flights: SingleFlight[str] = SingleFlight(Wiring(), "flight")  # type: ignore[arg-type]
    ready = asyncio.Event()

    async def work() -> str:
        await ready.wait()
        return "landed"

    waiting = asyncio.create_task(flights.share("k", work))
    await asyncio.sleep(0)
    flights.begin("k", work).cancel()
    await asyncio.sleep(0)
    assert not waiting.done()
    ready.set()
    assert await waiting == "landed"
