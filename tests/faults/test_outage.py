"""Valkey stopped, killed, restarted: reads go to the source, writes proceed or are refused."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import asyncpg
import pytest
from tests.faults.world import POINTER, Replica, ask, replica, script, state

from forze.errors import BackendUnavailable
from forze.testing.servers import RespServer, ValkeyServer
from forze_postgres import PostgresConfig
from forze_redis import cache as scripts

BUDGET_SECONDS = 1.5


async def recovered(*replicas: Replica) -> None:
    """Until each replica's cache answers again and nothing is owed."""
    async with asyncio.timeout(10):
        for each in replicas:
            while not each.stats.available or each.stats.journal:
                await asyncio.sleep(0.02)


async def test_paused_server(
    own_pair: tuple[Replica, Replica], own_redis_server: RespServer
) -> None:
    """P4: nothing fails, nothing takes longer than the budget, and it comes back by itself."""
    a, b = own_pair
    product = await a.create(price=10)
    assert await a.price(product) == await b.price(product) == 10
    own_redis_server.pause()
    try:
        price = 10
        for _ in range(6):
            began = time.monotonic()
            price += 1
            product = await a.reprice(product, price)
            assert await a.price(product) == price, "this process bypasses what it wrote"
            assert time.monotonic() - began < BUDGET_SECONDS
        assert a.stats.journal == 1
        assert not a.stats.available
        began = time.monotonic()
        await a.price(product)
        await a.reprice(product, price)
        assert time.monotonic() - began < 0.2, "the breaker is open: no waiting at all"
    finally:
        own_redis_server.resume()
    await recovered(a, b)
    assert await b.price(product) == await a.price(product) == price
    assert await b.price(product) == price
    assert b.stats.hits > 1


@pytest.mark.parametrize("keep_data", [False, True], ids=["empty", "with its data"])
async def test_killed_and_restarted(
    own_pair: tuple[Replica, Replica], own_redis_server: RespServer, keep_data: bool
) -> None:
    """P3: after a restart the cache is cold, not wrong, whatever snapshot it starts from."""
    a, b = own_pair
    product = await a.create(price=10)
    assert await b.price(product) == 10
    if keep_data:
        ask(own_redis_server, "SAVE")
    own_redis_server.kill()
    product = await a.reprice(product, 12)
    assert await a.price(product) == 12
    own_redis_server.restart(keep_data=keep_data)
    await recovered(a, b)
    assert await b.price(product) == await a.price(product) == 12


async def test_killed_between_intent_and_done(
    own_pair: tuple[Replica, Replica], own_redis_server: RespServer
) -> None:
    """P4: the write proceeds, its key is bypassed here, and invalidated when it is back."""
    a, b = own_pair
    product = await a.create(price=10)
    async with a.ctx.transaction("products"):
        product = await a.reprice(product, 12)
        while state(own_redis_server, product) is None:
            await asyncio.sleep(0.005)
        own_redis_server.kill()
    assert a.stats.journal == 1
    assert await a.price(product) == 12
    own_redis_server.restart()
    await recovered(a, b)
    assert a.stats.journal == 0
    assert await b.price(product) == await a.price(product) == 12


async def test_the_journal_is_told_before_the_key_is_read_again(
    own_pair: tuple[Replica, Replica], own_redis_server: RespServer
) -> None:
    """P4: an old value that survived the outage is not served to the process that replaced it."""
    a, b = own_pair
    product = await a.create(price=10)
    assert await b.price(product) == 10
    a.proxy.refuse()
    a.proxy.cut()
    product = await a.reprice(product, 12)
    assert await b.price(product) == 10, "documented: others may be stale until the outage ends"
    invalidation = a.proxy.hold_request(script(scripts.DONE))
    await a.proxy.accept()
    await invalidation.seen()
    assert await a.price(product) == 12
    invalidation.release()
    await recovered(a)
    assert await b.price(product) == await a.price(product) == 12


async def test_refuse_fails_the_write_before_it_commits(
    database: asyncpg.Connection[Any], postgres_dsn: str, own_valkey: ValkeyServer
) -> None:
    """P4: with on_outage="refuse" nothing is written that the cache cannot be told of."""
    async with replica(postgres_dsn, own_valkey.port, cache={"on_outage": "refuse"}) as a:
        product = await a.create(price=10)
        own_valkey.kill()
        with pytest.raises(BackendUnavailable, match="not committed") as refused:
            await a.reprice(product, 12)
        assert refused.value.outcome == "none"
        with pytest.raises(BackendUnavailable, match="not committed"):
            async with a.ctx.transaction("products"):
                await a.reprice(product, 12)
        assert await database.fetchval("SELECT price FROM products") == 10
        assert await a.price(product) == 10


async def test_refuse_says_that_the_write_stands(
    database: asyncpg.Connection[Any], postgres_dsn: str, own_valkey: ValkeyServer
) -> None:
    """P4: lost after the commit, the error says so."""
    async with replica(postgres_dsn, own_valkey.port, cache={"on_outage": "refuse"}) as a:
        product = await a.create(price=10)
        done = a.proxy.hold_request(script(scripts.DONE))
        writer = asyncio.create_task(a.reprice(product, 12))
        await done.seen()
        own_valkey.kill()
        a.proxy.cut()
        with pytest.raises(BackendUnavailable, match="is committed") as stands:
            await writer
        assert stands.value.committed
        assert await database.fetchval("SELECT price FROM products") == 12
        assert await a.price(product) == 12


async def test_down_at_start(
    database: asyncpg.Connection[Any], postgres_dsn: str, own_valkey: ValkeyServer
) -> None:
    """A runtime whose Redis is down says so when it starts."""
    own_valkey.kill()
    with pytest.raises(BackendUnavailable, match="require_at_start"):
        async with replica(postgres_dsn, own_valkey.port):
            pass


async def test_a_value_of_another_generation_is_not_there(
    database: asyncpg.Connection[Any], postgres_dsn: str, own_redis_server: RespServer
) -> None:
    """P3: a value another server generation left behind is not served."""
    async with replica(postgres_dsn, own_redis_server.port) as a:
        product = await a.create(price=10)
        await a.price(product)
        pointer = state(own_redis_server, product)
        assert pointer is not None
        ask(
            own_redis_server,
            "SET",
            POINTER + str(product.id),
            b"Vfffffff0" + pointer[9:],
            "PX",
            60_000,
        )
        assert await a.price(product) == 10
        assert a.stats.hits == 0
        assert state(own_redis_server, product) == pointer


async def test_an_undecodable_body_is_a_miss(
    database: asyncpg.Connection[Any], postgres_dsn: str, own_valkey: ValkeyServer
) -> None:
    """P6: what does not fit the model is loaded again and counted, never raised."""
    async with replica(postgres_dsn, own_valkey.port) as a:
        product = await a.create(price=10)
        await a.price(product)
        body = f"app:products/cache/body/{product.id}/1"
        assert ask(own_valkey, "EXISTS", body) == 1
        ask(own_valkey, "SET", body, '{"price": "nonsense"}')
        assert await a.price(product) == 10
        assert a.stats.undecodable == 1
        assert (await a.query.get_many([product.id]))[0].price == 10
        assert await a.price(product) == 10


async def test_500_readers_and_a_small_pool(
    database: asyncpg.Connection[Any], postgres_dsn: str, own_valkey: ValkeyServer
) -> None:
    """Concurrent misses collapse to one load; distinct ones wait for the pool, none fails."""
    small = PostgresConfig(min_size=1, max_size=2)
    async with replica(postgres_dsn, own_valkey.port, postgres=small) as a:
        one = await a.create(price=10)
        assert await asyncio.gather(*(a.price(one) for _ in range(500))) == [10] * 500
        assert a.stats.source_reads == 1
        many = [await a.create(price=each) for each in range(100)]
        prices = await asyncio.gather(*(a.price(each) for each in many * 5))
        assert prices == list(range(100)) * 5
        assert a.stats.source_reads == 101
