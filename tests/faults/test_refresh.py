"""Early refresh on real servers: who does it, who waits, and what happens when it goes wrong.

The dice of a read decide whether it volunteers; a ``beta`` in the millions makes them sure,
so that what follows can be staged.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import asyncpg
import pytest
from tests.faults.world import (
    POINTER,
    Replica,
    ask,
    product_spec,
    replica,
    script,
    state,
)

from forze.application.contracts.cache import L1Spec
from forze.errors import NotFoundError
from forze.testing.servers import RespServer
from forze_redis import cache as scripts

SURE = 1e9
WAITING = product_spec(early_refresh_beta=SURE)
BACKGROUND = product_spec(early_refresh_beta=SURE, early_refresh_background=True)

Pair = tuple[Replica, Replica]


@pytest.fixture
async def waiting(
    database: asyncpg.Connection[Any], postgres_dsn: str, redis_server: RespServer, redis_dsn: str
) -> AsyncIterator[Pair]:
    """Two replicas whose elected readers wait; every read of an entry volunteers."""
    port = redis_server.port
    async with (
        replica(postgres_dsn, port, spec=WAITING) as a,
        replica(postgres_dsn, port, spec=WAITING) as b,
    ):
        yield a, b


@pytest.fixture
async def background(
    database: asyncpg.Connection[Any], postgres_dsn: str, redis_server: RespServer, redis_dsn: str
) -> AsyncIterator[Pair]:
    """The same, but served at once."""
    port = redis_server.port
    async with (
        replica(postgres_dsn, port, spec=BACKGROUND) as a,
        replica(postgres_dsn, port, spec=BACKGROUND) as b,
    ):
        yield a, b


async def refreshed(one: Replica, times: int) -> None:
    async with asyncio.timeout(5):
        while one.stats.refreshes < times:
            await asyncio.sleep(0.005)


async def test_the_elected_reader_waits_for_the_new_value(
    waiting: Pair, database: asyncpg.Connection[Any], redis_server: RespServer
) -> None:
    a, _ = waiting
    product = await a.create(price=1)
    await a.price(product)
    await database.execute("UPDATE products SET price = 2")  # past the library
    assert await a.price(product) == 2
    assert a.stats.refreshes == 1
    pointer = state(redis_server, product)
    assert pointer is not None
    assert pointer.startswith(b"V")


async def test_in_the_background_the_reader_is_served_at_once(
    background: Pair, database: asyncpg.Connection[Any]
) -> None:
    a, _ = background
    product = await a.create(price=1)
    await a.price(product)
    await database.execute("UPDATE products SET price = 2")
    async with database.transaction():
        await database.execute("LOCK TABLE products IN ACCESS EXCLUSIVE MODE")
        assert await a.price(product) == 1, "though the source does not answer"
    await refreshed(a, 1)
    assert await a.price(product) == 2


async def test_one_refresh_at_a_time_in_the_fleet(
    waiting: Pair, database: asyncpg.Connection[Any], redis_server: RespServer
) -> None:
    """P14: one reader loads, everyone else goes on hitting the current value."""
    a, b = waiting
    product = await a.create(price=1)
    await a.price(product)
    loads = a.stats.source_reads + b.stats.source_reads
    async with database.transaction():
        await database.execute("LOCK TABLE products IN ACCESS EXCLUSIVE MODE")
        elected = asyncio.create_task(a.price(product))
        async with asyncio.timeout(5):
            while (state(redis_server, product) or b"")[:1] != b"R":
                await asyncio.sleep(0.002)
        others = [one.price(product) for one in (a, b) for _ in range(50)]
        assert await asyncio.gather(*others) == [1] * 100
        assert not elected.done()
    assert await elected == 1
    assert a.stats.source_reads + b.stats.source_reads == loads + 1
    assert a.stats.refreshes + b.stats.refreshes == 1


async def test_two_who_volunteer_at_once(
    waiting: Pair, database: asyncpg.Connection[Any], redis_server: RespServer
) -> None:
    """P14: the one who is not elected has its answer already, and loads nothing."""
    a, b = waiting
    product = await a.create(price=1)
    await a.price(product)
    loads = a.stats.source_reads
    elect = a.proxy.hold_request(script(scripts.ELECT))
    late = asyncio.create_task(a.price(product))
    await elect.seen()
    async with database.transaction():
        await database.execute("LOCK TABLE products IN ACCESS EXCLUSIVE MODE")
        elected = asyncio.create_task(b.price(product))
        async with asyncio.timeout(5):
            while (state(redis_server, product) or b"")[:1] != b"R":
                await asyncio.sleep(0.002)
        elect.release()
        async with asyncio.timeout(2):
            assert await late == 1
        assert not elected.done()
    assert await elected == 1
    assert a.stats.source_reads == loads
    assert (a.stats.refreshes, b.stats.refreshes) == (0, 1)


async def test_a_write_takes_the_right_to_refresh_away(
    waiting: Pair, redis_server: RespServer
) -> None:
    """P1: what a refresh loaded before a write is not stored after it."""
    a, b = waiting
    product = await a.create(price=1)
    await a.price(product)
    fill = a.proxy.hold_request(script(scripts.FILL))
    slow = asyncio.create_task(a.price(product))
    await fill.seen()
    await b.reprice(product, 2)
    fill.release()
    assert await slow == 1, "it started before the write"
    assert a.stats.rejected_fills == 1
    assert state(redis_server, product) is None
    assert await a.price(product) == await b.price(product) == 2


async def test_a_failed_refresh_is_logged_and_the_entry_stays(
    background: Pair, database: asyncpg.Connection[Any], caplog: pytest.LogCaptureFixture
) -> None:
    a, _ = background
    product = await a.create(price=1)
    await a.price(product)
    await database.execute("ALTER TABLE products RENAME TO gone")
    with caplog.at_level(logging.WARNING, logger="forze"):
        assert await a.price(product) == 1
        async with asyncio.timeout(5):
            while a.stats.refresh_failures < 1:
                await asyncio.sleep(0.005)
    assert "refreshing" in caplog.text
    assert str(product.id) in caplog.text
    await database.execute("ALTER TABLE gone RENAME TO products")
    assert await a.price(product) == 1
    await refreshed(a, 1)


async def test_a_failed_refresh_leaves_the_waiting_reader_its_value(
    waiting: Pair, database: asyncpg.Connection[Any], redis_server: RespServer
) -> None:
    a, _ = waiting
    product = await a.create(price=1)
    await a.price(product)
    await database.execute("ALTER TABLE products RENAME TO gone")
    assert await a.price(product) == 1
    await database.execute("ALTER TABLE gone RENAME TO products")
    assert a.stats.refresh_failures == 1
    pointer = state(redis_server, product)
    assert pointer is not None
    assert pointer.startswith(b"V"), "the right to refresh was given back"
    assert await a.price(product) == 1


async def test_a_document_that_is_gone_from_the_source(
    waiting: Pair, database: asyncpg.Connection[Any], redis_server: RespServer
) -> None:
    a, _ = waiting
    product = await a.create(price=1)
    await a.price(product)
    await database.execute("DELETE FROM products")
    with pytest.raises(NotFoundError):
        await a.price(product)
    assert state(redis_server, product) is None
    with pytest.raises(NotFoundError):
        await a.price(product)


async def test_a_cancelled_reader_does_not_stop_the_refresh(
    waiting: Pair, database: asyncpg.Connection[Any]
) -> None:
    """P5: nor does it leave anything behind."""
    a, _ = waiting
    product = await a.create(price=1)
    await a.price(product)
    fill = a.proxy.hold_request(script(scripts.FILL))
    reading = asyncio.create_task(a.price(product))
    await fill.seen()
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    fill.release()
    await refreshed(a, 1)


async def test_shutdown_cancels_a_refresh(
    database: asyncpg.Connection[Any],
    postgres_dsn: str,
    redis_server: RespServer,
    redis_dsn: str,
) -> None:
    """A background refresh is nobody's work: leaving the scope does not wait for it."""
    async with replica(postgres_dsn, redis_server.port, spec=BACKGROUND) as a:
        product = await a.create(price=1)
        await a.price(product)
        hold = a.proxy.hold_request(script(scripts.FILL))
        await a.price(product)
        await hold.seen()
        leaving = asyncio.get_running_loop().time()
    assert asyncio.get_running_loop().time() - leaving < 3
    assert not [each for each in asyncio.all_tasks() if each.get_name() == "forze-early-refresh"]


async def test_background_refreshes_are_bounded(
    background: Pair, database: asyncpg.Connection[Any]
) -> None:
    a, _ = background
    products = [await a.create(price=each) for each in range(40)]
    await a.query.get_many([each.id for each in products])
    async with database.transaction():
        await database.execute("LOCK TABLE products IN ACCESS EXCLUSIVE MODE")
        for product in products:
            await a.price(product)
        running = [t for t in asyncio.all_tasks() if t.get_name() == "forze-early-refresh"]
        assert len(running) == 16
    await refreshed(a, 16)


async def test_many_documents_are_refreshed_early_too(
    waiting: Pair, database: asyncpg.Connection[Any]
) -> None:
    a, _ = waiting
    ids = [(await a.create(price=1)).id for _ in range(5)]
    await a.query.get_many(ids)
    await database.execute("UPDATE products SET price = 2")
    assert [each.price for each in await a.query.get_many(ids)] == [2] * 5
    assert a.stats.refreshes == 5
    await database.execute("DELETE FROM products WHERE id = $1", ids[0])
    left = await a.query.get_many(ids, missing="skip")
    assert [each.id for each in left] == ids[1:]


async def test_entries_with_and_without_an_envelope_are_read_by_both(
    database: asyncpg.Connection[Any], postgres_dsn: str, redis_server: RespServer, redis_dsn: str
) -> None:
    port = redis_server.port
    async with (
        replica(postgres_dsn, port) as plain,
        replica(postgres_dsn, port, spec=WAITING) as early,
    ):
        for writer, reader in ((plain, early), (early, plain)):
            product = await writer.create(price=7)
            await writer.price(product)
            loads = reader.stats.source_reads
            reader_hits = reader.stats.hits
            assert await reader.price(product) == 7
            assert reader.stats.hits == reader_hits + 1
            assert reader.stats.source_reads == loads
            cached = await reader.ctx.cache(reader.spec.cache).get(str(product.id))
            assert isinstance(cached, dict)
            assert cached["price"] == 7


async def test_a_refresh_is_kept_in_the_process(
    database: asyncpg.Connection[Any], postgres_dsn: str, redis_server: RespServer, redis_dsn: str
) -> None:
    """P12: what stood there before goes, what was stored comes."""
    spec = product_spec(early_refresh_beta=SURE, l1=L1Spec(ttl=timedelta(milliseconds=400)))
    async with replica(postgres_dsn, redis_server.port, spec=spec) as a:
        product = await a.create(price=1)
        await a.price(product)
        await database.execute("UPDATE products SET price = 2")
        assert await a.price(product) == 1, "kept"
        await asyncio.sleep(0.41)
        assert await a.price(product) == 2
        sent = len(a.proxy.commands)
        assert await a.price(product) == 2
        assert len(a.proxy.commands) == sent


async def test_it_fires_with_default_lifetimes(
    database: asyncpg.Connection[Any], postgres_dsn: str, redis_server: RespServer, redis_dsn: str
) -> None:
    """The pointer lives as long as its body, so the end that readers look at is the real one."""
    spec = product_spec(early_refresh_beta=1.0)
    async with replica(postgres_dsn, redis_server.port, spec=spec) as a:
        product = await a.create(price=1)
        await a.price(product)
        for _ in range(50):
            await a.price(product)
        assert a.stats.refreshes == 0, "five minutes before its end nobody volunteers"
        key = POINTER + str(product.id)
        async with asyncio.timeout(5):
            while not a.stats.refreshes:
                ask(redis_server, "PEXPIRE", key, 4)
                for _ in range(5):
                    await a.price(product)
        assert int(ask(redis_server, "PTTL", key)) > 200_000, "and lives as long again"
