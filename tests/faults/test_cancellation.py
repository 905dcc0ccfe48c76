"""A caller cancelled at any await leaves no lease, no intent, no connection behind.

Each await of a read and of a write is held open in turn, the caller is cancelled there, and
the world is looked at afterwards.
"""

from __future__ import annotations

import asyncio
import gc
import weakref
from typing import Any

import asyncpg
import pytest
from tests.faults.world import Replica, script, state

from forze.testing.servers import ValkeyServer
from forze_redis import cache as scripts


async def cancel(task: asyncio.Task[Any]) -> None:
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def settled(valkey: ValkeyServer, product: Any) -> bytes | None:
    """The pointer once no lease or intent is left of what was cancelled."""
    async with asyncio.timeout(2):
        while (raw := state(valkey, product)) is not None and not raw.startswith(b"V"):
            await asyncio.sleep(0.01)
    return raw


@pytest.mark.parametrize("held", ["request", "reply"])
async def test_cancelled_while_probing(one: Replica, valkey: ValkeyServer, held: str) -> None:
    """P5: the lease that a cancelled reader may have taken is given back."""
    product = await one.create()
    hold = getattr(one.proxy, f"hold_{held}")(script(scripts.READ))
    reader = asyncio.create_task(one.price(product))
    await hold.seen()
    await cancel(reader)
    hold.release()
    await one.redis.call("PING")
    assert await settled(valkey, product) is None
    assert await one.price(product) == 10


async def test_a_cancelled_read_leaves_nothing_for_the_collector(one: Replica) -> None:
    """What its callers hold, such as a request, goes with it and not some time later."""

    class Request:
        """Held by nobody but who reads on its behalf."""

    async def serve(request: Request) -> None:
        await one.price(product)

    product, request = await one.create(), Request()
    hold = one.proxy.hold_request(script(scripts.READ))
    reader, gone = asyncio.create_task(serve(request)), weakref.ref(request)
    del request
    await hold.seen()
    gc.disable()
    try:
        reader.cancel()
        await asyncio.wait([reader])
        assert reader.cancelled()
        del reader
        assert gone() is None
    finally:
        gc.enable()
        hold.release()


@pytest.mark.parametrize("held", ["request", "reply"])
async def test_cancelled_while_filling(one: Replica, valkey: ValkeyServer, held: str) -> None:
    """P5: the load goes on for the others, whoever is cancelled, the first included."""
    product = await one.create()
    hold = getattr(one.proxy, f"hold_{held}")(script(scripts.FILL))
    first = asyncio.create_task(one.price(product))
    await hold.seen()
    second = asyncio.create_task(one.price(product))
    await asyncio.sleep(0)
    await cancel(first)
    hold.release()
    assert await second == 10
    raw = await settled(valkey, product)
    assert raw is not None
    assert one.stats.source_reads == 1


async def test_cancelled_while_loading(
    one: Replica, valkey: ValkeyServer, database: asyncpg.Connection[Any]
) -> None:
    """P5: also while the source is being asked."""
    product = await one.create()
    async with database.transaction():
        await database.execute("LOCK TABLE products IN ACCESS EXCLUSIVE MODE")
        first = asyncio.create_task(one.price(product))
        while state(valkey, product) is None:
            await asyncio.sleep(0.005)
        second = asyncio.create_task(one.price(product))
        await asyncio.sleep(0)
        await cancel(first)
    assert await second == 10
    assert one.stats.source_reads == 1


@pytest.mark.parametrize("held", ["request", "reply"])
@pytest.mark.parametrize("explicit", [False, True], ids=["autocommit", "transaction"])
async def test_cancelled_while_announcing(
    one: Replica, valkey: ValkeyServer, held: str, explicit: bool
) -> None:
    """P5: nothing was written, and the intent goes."""
    product = await one.create(price=10)
    hold = getattr(one.proxy, f"hold_{held}")(script(scripts.INTEND))

    async def write() -> None:
        if explicit:
            async with one.ctx.transaction("products"):
                await one.reprice(product, 12)
        else:
            await one.reprice(product, 12)

    writer = asyncio.create_task(write())
    await hold.seen()
    if explicit:
        await asyncio.sleep(0.05)
    await cancel(writer)
    hold.release()
    assert await settled(valkey, product) is None
    assert await one.price(product) == 10


async def test_cancelled_while_the_row_is_locked(
    one: Replica, valkey: ValkeyServer, database: asyncpg.Connection[Any]
) -> None:
    """P5: a statement that was sent runs to its end; the reads after it see what it did."""
    product = await one.create(price=10)
    async with database.transaction():
        await database.execute("SELECT 1 FROM products FOR UPDATE")
        writer = asyncio.create_task(one.reprice(product, 12))
        while not await database.fetchval(
            "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
        ):
            await asyncio.sleep(0.01)
        await cancel(writer)
        assert await one.price(product) == 10
    assert await settled(valkey, product) is None
    assert await one.price(product) == await database.fetchval("SELECT price FROM products") == 12


@pytest.mark.parametrize("held", ["request", "reply"])
@pytest.mark.parametrize("explicit", [False, True], ids=["autocommit", "transaction"])
async def test_cancelled_while_finishing(
    one: Replica, valkey: ValkeyServer, held: str, explicit: bool
) -> None:
    """P5: it is committed, and its intent goes although nobody waits for it any more."""
    product = await one.create(price=10)
    hold = getattr(one.proxy, f"hold_{held}")(script(scripts.DONE))

    async def write() -> None:
        if explicit:
            async with one.ctx.transaction("products"):
                await one.reprice(product, 12)
        else:
            await one.reprice(product, 12)

    writer = asyncio.create_task(write())
    await hold.seen()
    await cancel(writer)
    hold.release()
    assert await settled(valkey, product) is None
    assert await one.price(product) == 12


async def test_cancelled_many(one: Replica, valkey: ValkeyServer) -> None:
    """P5: get_many gives back every lease it took."""
    products = [await one.create(price) for price in range(5)]
    hold = one.proxy.hold_reply(script(scripts.READ))
    reader = asyncio.create_task(one.query.get_many([each.id for each in products]))
    await hold.seen()
    await cancel(reader)
    hold.release()
    for each in products:
        assert await settled(valkey, each) is None
    found = await one.query.get_many([each.id for each in products])
    assert [each.price for each in found] == list(range(5))
