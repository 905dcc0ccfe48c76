"""The races a cache loses unless it was built for them, staged one step at a time.

Two replicas, A and B, over one PostgreSQL and one Valkey or Redis. A test holds a command,
a reply or a row where the race is, lets the other side run to its acknowledgement, and
lets go. What must hold: a read that starts after an acknowledgement sees it.
"""

from __future__ import annotations

import asyncio
from typing import Any

import asyncpg
import pytest
from tests.faults.world import (
    POINTER,
    ProductCreate,
    ProductUpdate,
    Replica,
    ask,
    elsewhere,
    script,
    state,
)

from forze.errors import ConflictError, NotFoundError
from forze.testing.servers import RespServer
from forze_redis import cache as scripts

Pair = tuple[Replica, Replica]


async def test_slow_reader_against_update(pair: Pair, redis_server: RespServer) -> None:
    """P1: what was loaded before an update cannot be cached after it."""
    a, b = pair
    product = await b.create(price=10)
    fill = a.proxy.hold_request(script(scripts.FILL))
    slow = asyncio.create_task(a.price(product))
    await fill.seen()
    await b.reprice(product, 12)
    fill.release()
    assert await slow == 10, "it started before the update, so the old value is right"
    assert state(redis_server, product) is None
    assert a.stats.rejected_fills == 1
    assert await a.price(product) == await b.price(product) == 12


async def test_slow_reader_against_kill(pair: Pair) -> None:
    """P1: nor what was loaded before the document was removed."""
    a, b = pair
    product = await b.create()
    fill = a.proxy.hold_request(script(scripts.FILL))
    slow = asyncio.create_task(a.price(product))
    await fill.seen()
    await b.docs.kill(product.id)
    fill.release()
    await slow
    for each in pair:
        with pytest.raises(NotFoundError):
            await each.query.get(product.id)


async def test_the_source_is_asked_only_after_the_lease(pair: Pair) -> None:
    """P1: a reader whose lease reply is late loads what is there then, not before."""
    a, b = pair
    product = await b.create(price=10)
    lease = a.proxy.hold_reply(script(scripts.READ))
    slow = asyncio.create_task(a.price(product))
    await lease.seen()
    await b.reprice(product, 12)
    lease.release()
    assert await slow == 12


async def test_follower_after_acknowledgement(pair: Pair) -> None:
    """P1: who joins a load after an update does not get what it loaded before."""
    a, b = pair
    product = await b.create(price=10)
    fill = a.proxy.hold_request(script(scripts.FILL))
    leader = asyncio.create_task(a.price(product))
    await fill.seen()
    await b.reprice(product, 12)
    follower = asyncio.create_task(a.price(product))
    await asyncio.sleep(0)
    fill.release()
    assert await leader == 10
    assert await follower == 12


async def test_followers_share_an_accepted_fill(pair: Pair) -> None:
    """An accepted fill proves that no write came between: late followers may have it."""
    a, b = pair
    product = await b.create(price=10)
    fill = a.proxy.hold_request(script(scripts.FILL))
    callers = [asyncio.create_task(a.price(product))]
    await fill.seen()
    callers += [asyncio.create_task(a.price(product)) for _ in range(20)]
    await asyncio.sleep(0)
    fill.release()
    assert await asyncio.gather(*callers) == [10] * 21
    assert a.stats.source_reads == 1


@pytest.mark.parametrize("ends", ["commit", "rollback"])
async def test_reader_beside_an_open_transaction(
    pair: Pair, redis_server: RespServer, ends: str
) -> None:
    """P1: while a transaction that wrote is open, readers see the old value and cache nothing."""
    a, b = pair
    product = await b.create(price=10)
    assert await a.price(product) == 10
    try:
        async with b.ctx.transaction("products"):
            await b.reprice(product, 12)
            assert await b.price(product) == 12, "its own write"
            assert await elsewhere(a.price(product)) == 10
            await asyncio.gather(*(elsewhere(a.price(product)) for _ in range(5)))
            raw = state(redis_server, product)
            assert raw is not None
            assert raw.startswith(b"I;")
            if ends == "rollback":
                raise KeyError("changed my mind")
    except KeyError:
        pass
    assert state(redis_server, product) is None, "its intent is gone"
    expected = 12 if ends == "commit" else 10
    assert await a.price(product) == await b.price(product) == expected
    raw = state(redis_server, product)
    assert raw is not None
    assert raw.startswith(b"V"), "and reads are cached again"


async def test_reads_in_a_transaction_never_fill(pair: Pair, redis_server: RespServer) -> None:
    """P1: a transaction may see what nobody else may: nothing it reads is cached."""
    a, b = pair
    product = await b.create(price=10)
    async with a.ctx.transaction("products", isolation="repeatable read"):
        assert await a.price(product) == 10
        await elsewhere(b.reprice(product, 12))
        assert await a.price(product) == 10, "its snapshot"
        assert [each.price for each in await a.query.get_many([product.id])] == [10]
        assert state(redis_server, product) is None
    assert await a.price(product) == 12


async def test_two_writers(
    pair: Pair, redis_server: RespServer, database: asyncpg.Connection[Any]
) -> None:
    """P1: the writer that ends first leaves the other's intent in place."""
    a, b = pair
    product = await b.create(price=10)
    async with a.ctx.transaction("products"):
        await a.reprice(product, 11)
        second = asyncio.create_task(elsewhere(b.docs.touch(product.id)))
        while not await database.fetchval(
            "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
        ):
            await asyncio.sleep(0.01)
        finish = b.proxy.hold_request(script(scripts.DONE))
    await finish.seen()
    raw = state(redis_server, product)
    assert raw is not None
    assert raw.startswith(b"I;"), "the second writer's intent"
    assert raw.count(b":") == 1
    b.proxy.cut()
    finish.release()
    assert (await second).rev == 3
    assert (await a.query.get(product.id)).rev == 3


async def test_writer_dies_between_commit_and_done(
    pair: Pair, redis_server: RespServer, database: asyncpg.Connection[Any]
) -> None:
    """P1: its intent outlives it; until it lapses readers go to the source."""
    a, b = pair
    product = await b.create(price=10)
    await a.price(product)
    done = b.proxy.hold_request(script(scripts.DONE))
    dying = asyncio.create_task(b.reprice(product, 12))
    await done.seen()
    assert await database.fetchval("SELECT price FROM products") == 12, "committed"
    assert await a.price(product) == 12
    raw = state(redis_server, product)
    assert raw is not None
    assert raw.startswith(b"I;")
    assert 0 < ask(redis_server, "PTTL", POINTER + str(product.id)) <= 10_000
    done.release()
    await dying


@pytest.mark.parametrize("loss", ["flush", "eviction"])
async def test_intent_lost_before_commit(pair: Pair, redis_server: RespServer, loss: str) -> None:
    """P1: a write whose intent was lost invalidates all the same when it is done."""
    a, b = pair
    product = await b.create(price=10)
    async with b.ctx.transaction("products"):
        await b.reprice(product, 12)
        ask(redis_server, "PING")
        while state(redis_server, product) is None:
            await asyncio.sleep(0.005)
        if loss == "flush":
            ask(redis_server, "FLUSHALL")
        else:
            ask(redis_server, "DEL", POINTER + str(product.id))
        assert await elsewhere(a.price(product)) == 10
        raw = state(redis_server, product)
        assert raw is not None
        assert raw.startswith(b"V"), "the old value was cached in between"
    assert await a.price(product) == 12


async def test_lease_lost_before_fill(pair: Pair, redis_server: RespServer) -> None:
    """P1: a fill without its lease is refused, an update in between or not."""
    a, b = pair
    product = await b.create(price=10)
    fill = a.proxy.hold_request(script(scripts.FILL))
    slow = asyncio.create_task(a.price(product))
    await fill.seen()
    ask(redis_server, "FLUSHALL")
    await b.reprice(product, 12)
    ask(redis_server, "FLUSHALL")
    fill.release()
    assert await slow == 10
    assert await a.price(product) == 12


async def test_follower_while_the_fill_is_answered(pair: Pair) -> None:
    """P1: a fill accepted before the follower came proves nothing to the follower."""
    a, b = pair
    product = await b.create(price=10)
    accepted = a.proxy.hold_reply(script(scripts.FILL))
    leader = asyncio.create_task(a.price(product))
    await accepted.seen()
    await b.reprice(product, 12)
    follower = asyncio.create_task(a.price(product))
    await asyncio.sleep(0)
    accepted.release()
    assert await leader == 10
    assert await follower == 12


async def test_another_readers_fill_is_waited_for(pair: Pair) -> None:
    """One load for the fleet: the second replica waits for the first one's fill."""
    a, b = pair
    product = await b.create(price=10)
    fill = a.proxy.hold_request(script(scripts.FILL))
    first = asyncio.create_task(a.price(product))
    await fill.seen()
    second = asyncio.create_task(b.price(product))
    await asyncio.sleep(0.03)
    assert not second.done()
    fill.release()
    assert await first == await second == 10
    assert (a.stats.source_reads, b.stats.source_reads) == (1, 0)


async def test_an_unknown_document_gives_the_lease_back(
    pair: Pair, redis_server: RespServer
) -> None:
    """P1: create after a miss is seen at once, and nothing is left behind."""
    a, b = pair
    product = await b.create()
    await b.docs.kill(product.id)
    with pytest.raises(NotFoundError):
        await a.query.get(product.id)
    async with asyncio.timeout(1):
        while state(redis_server, product) is not None:
            await asyncio.sleep(0.005)
    again = await b.docs.create(ProductCreate(id=product.id, name="Again", price=7))
    assert await a.price(again) == 7


async def test_kill_and_create_with_the_same_id(pair: Pair) -> None:
    """P1: the new document, not the cached old one, at the same revision."""
    a, b = pair
    product = await b.create(price=10)
    assert await a.price(product) == 10
    await b.docs.kill(product.id)
    await b.docs.create(ProductCreate(id=product.id, name="Again", price=7))
    assert await a.price(product) == 7
    with pytest.raises(ConflictError):
        await b.docs.create(ProductCreate(id=product.id, name="Twice", price=8))


async def test_a_doomed_transaction_undoes_its_cache_effects(
    pair: Pair, redis_server: RespServer
) -> None:
    """P1: an inner failure rolls the outer block back, intents included."""
    a, b = pair
    product = await b.create(price=10)
    with pytest.raises(ConflictError, match="rolled back"):
        async with b.ctx.transaction("products"):
            try:
                async with b.ctx.transaction("products"):
                    await b.docs.update(product.id, product.rev, ProductUpdate(price=12))
                    raise KeyError("inner")
            except KeyError:
                pass
    assert state(redis_server, product) is None
    assert await a.price(product) == 10
