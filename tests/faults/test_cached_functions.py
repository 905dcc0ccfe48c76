"""Cached functions against real servers: what comes between a read, its load and its fill."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from tests.faults.world import ask

from forze.application.contracts.cache import CacheSpec, L1Spec
from forze.application.execution import (
    DepsPlan,
    ExecutionContext,
    ExecutionRuntime,
    LifecyclePlan,
)
from forze.application.integrations.cached.tags import SCHEMA
from forze.application.integrations.document.protocol import SCHEMA_CHARS
from forze.errors import BackendUnavailable
from forze.testing.batteries.cached_functions import Shop
from forze.testing.proxy import RespProxy, script
from forze.testing.servers import RespServer, ValkeyServer
from forze_memory import MemoryDepsModule
from forze_redis import (
    RedisClient,
    RedisDepsModule,
    RoutedRedisClient,
    redis_lifecycle_step,
    routed_redis_lifecycle_step,
)
from forze_redis import cache as scripts

NAMESPACE = "app:prices"
TAG = NAMESPACE + "/cache/pointer/~tag:price:1"
PRICES = CacheSpec(name="prices")
KEPT = CacheSpec(name="prices", l1=L1Spec(ttl=timedelta(seconds=30)))
BUDGET_SECONDS = 1.5


@dataclass
class Process:
    """One process's worth of the application."""

    ctx: ExecutionContext
    proxy: RespProxy
    price: Any

    async def invalidate(self, *tags: str) -> None:
        """By tags."""
        await self.ctx.invalidate_tags(*tags, cache=self.price.spec)


@asynccontextmanager
async def process(
    port: int, shop: Shop, *, spec: CacheSpec = PRICES, **config: Any
) -> AsyncIterator[Process]:
    """A process, running, its Redis connection through a proxy of its own."""
    async with RespProxy(port) as proxy:
        runtime = ExecutionRuntime(
            deps=DepsPlan.from_modules(
                MemoryDepsModule(caches=()),
                RedisDepsModule(
                    client=RedisClient(), caches={"prices": {"namespace": NAMESPACE, **config}}
                ),
            ),
            lifecycle=LifecyclePlan.from_steps(redis_lifecycle_step(dsn=proxy.dsn)),
        )
        async with runtime.scope() as ctx:
            price: Any = shop.cached(ctx, cache=spec)
            price.spec = spec
            yield Process(ctx, proxy, price)


@pytest.fixture
def shop() -> Shop:
    return Shop()


@pytest.fixture
async def pair(
    redis_server: RespServer, redis_dsn: str, shop: Shop
) -> AsyncIterator[tuple[Process, Process]]:
    """Two processes over one server."""
    port = redis_server.port
    async with process(port, shop) as a, process(port, shop) as b:
        yield a, b


Pair = tuple[Process, Process]


def test_the_schema_of_pointers_has_its_length() -> None:
    assert len(SCHEMA) == SCHEMA_CHARS


async def test_a_fill_that_arrives_after_an_invalidation(pair: Pair, shop: Shop) -> None:
    a, b = pair
    await b.price(1)
    await b.price.invalidate(1)  # the tag stands, the value is gone
    fill = a.proxy.hold_request(script(scripts.FILL))
    slow = asyncio.create_task(a.price(1))
    await fill.seen()
    shop.prices[1] = 11
    await b.invalidate("price:1")
    fill.release()
    assert await slow == 10
    assert [await a.price(1), await b.price(1), await a.price(1)] == [11, 11, 11]


async def test_who_waits_while_a_fill_is_late_takes_nothing_old(pair: Pair, shop: Shop) -> None:
    a, b = pair
    await b.price(1)
    await b.price.invalidate(1)
    fill = a.proxy.hold_reply(script(scripts.FILL))
    slow = asyncio.create_task(a.price(1))
    await fill.seen()
    shop.prices[1] = 11
    await b.invalidate("price:1")
    late = asyncio.create_task(a.price(1))
    assert not (await asyncio.wait({late}, timeout=0.05))[0]
    fill.release()
    assert await late == 11
    assert await slow == 10


async def test_a_stamp_that_is_made_while_its_tag_is_invalidated(pair: Pair, shop: Shop) -> None:
    a, b = pair
    minting = a.proxy.hold_request(script(scripts.FILL))
    slow = asyncio.create_task(a.price(1))
    await minting.seen()
    assert shop.runs == 0, "nothing is loaded before its stamps stand"
    await b.invalidate("price:1", "prices")
    minting.release()
    assert await slow == 10
    shop.prices[1] = 11
    await b.invalidate("price:1")
    assert [await a.price(1), await b.price(1)] == [11, 11]


@pytest.mark.parametrize("lost", ["the tag", "everything"])
async def test_a_lost_tag_costs_a_miss_and_nothing_else(
    pair: Pair, shop: Shop, redis_server: RespServer, lost: str
) -> None:
    a, b = pair
    assert await a.price(1) == 10
    if lost == "the tag":
        assert ask(redis_server, "DEL", TAG) == 1
    else:
        ask(redis_server, "FLUSHALL")
    shop.prices[1] = 11
    await b.invalidate("price:1")
    assert [await a.price(1), await b.price(1)] == [11, 11]
    ask(redis_server, "DEL", TAG)
    assert await a.price(1) == 11
    assert shop.runs == 3


async def test_an_elected_reader_whose_value_was_replaced_loads_nothing(
    pair: Pair, shop: Shop
) -> None:
    a, b = pair
    await a.price(1)
    await b.invalidate("prices")
    elect = a.proxy.hold_request(script(scripts.ELECT))
    slow = asyncio.create_task(a.price(1))
    await elect.seen()
    shop.prices[1] = 11
    assert await b.price(1) == 11
    elect.release()
    assert await slow == 11
    assert shop.runs == 2


async def test_push_takes_an_entry_out_of_another_process(
    redis_server: RespServer, redis_dsn: str, shop: Shop
) -> None:
    port = redis_server.port
    async with (
        process(port, shop, spec=KEPT, invalidation_push=True) as a,
        process(port, shop, spec=KEPT, invalidation_push=True) as b,
    ):
        async with asyncio.timeout(10):
            while a.price.l1_stats() is None or a.price.l1_stats().hits < 2:
                assert await a.price(1) == 10
                await asyncio.sleep(0.01)
        await a.price(2)
        shop.prices = {1: 11, 2: 21}
        await b.invalidate("price:1")
        async with asyncio.timeout(10):
            while await a.price(1) != 11:
                await asyncio.sleep(0.005)
        assert await a.price(2) == 20
        hits = a.price.l1_stats().hits
        async with asyncio.timeout(10):
            while a.price.l1_stats().hits < hits + 2:
                assert await a.price(1) == 11
                await asyncio.sleep(0.01)


async def test_an_outage_costs_its_budget_and_nothing_else(
    valkey: ValkeyServer, valkey_dsn: str, shop: Shop
) -> None:
    async with process(valkey.port, shop) as a, process(valkey.port, shop) as b:
        await b.price(1)
        a.proxy.black_hole()
        for expected in (10, 11, 12):
            began = time.monotonic()
            assert await a.price(1) == expected
            shop.prices[1] = expected + 1
            await a.invalidate("price:1")
            assert time.monotonic() - began < BUDGET_SECONDS
        assert not a.price.stats().available
        began = time.monotonic()
        assert [await a.price(1) for _ in range(5)] == [13] * 5
        assert time.monotonic() - began < 0.5, "nobody waits for a server that is known to be away"
        assert await b.price(1) == 10, "it could not be told"
        await a.proxy.accept()
        async with asyncio.timeout(10):
            while await b.price(1) != 13:
                await asyncio.sleep(0.02)
        hits = a.price.stats().hits
        async with asyncio.timeout(10):
            while a.price.stats().hits == hits:
                assert await a.price(1) == 13
                await asyncio.sleep(0.02)


async def test_an_invalidation_is_refused_where_that_is_wanted(
    valkey: ValkeyServer, valkey_dsn: str, shop: Shop
) -> None:
    async with process(valkey.port, shop, on_outage="refuse") as a:
        await a.price(1)
        a.proxy.black_hole()
        with pytest.raises(BackendUnavailable):
            await a.invalidate("price:1")
        with pytest.raises(BackendUnavailable):
            await a.price.invalidate(1)


async def test_a_loader_that_is_killed(
    redis_server: RespServer, redis_dsn: str, shop: Shop
) -> None:
    worker = await asyncio.create_subprocess_exec(
        sys.executable,
        str(Path(__file__).with_name("cached_worker.py")),
        redis_dsn,
        stdout=asyncio.subprocess.PIPE,
    )
    assert worker.stdout is not None
    async with asyncio.timeout(30):
        assert await worker.stdout.readline() == b"loading\n"
    worker.kill()
    await worker.wait()
    async with process(redis_server.port, shop) as a:
        price: Any = shop.cached(a.ctx, cache=PRICES, tags="all", name="price")
        a.ctx.functions._bound.clear()
        pointer = NAMESPACE + "/cache/pointer/" + price.key(1)
        assert ask(redis_server, "GET", pointer)[:1] == b"L"
        ask(redis_server, "PEXPIRE", pointer, 200)  # most of the lease has passed
        assert await price(1) == 10
        assert await price(1) == 10
        assert shop.runs == 1


async def test_a_value_above_the_limit_is_not_kept(
    valkey: ValkeyServer, valkey_dsn: str, shop: Shop
) -> None:
    shop.prices[1] = "x" * 200
    async with process(valkey.port, shop, max_value_bytes=100) as a:
        assert [await a.price(1), await a.price(1)] == ["x" * 200] * 2
        assert shop.runs == 2
        assert a.price.stats().uncacheable == 2


async def test_what_it_costs(valkey: ValkeyServer, valkey_dsn: str, shop: Shop) -> None:
    """Commands: of a hit, of a miss, of an invalidation, and of the first call after one."""
    async with process(valkey.port, shop) as a:
        plain: Any = shop.cached(a.ctx, cache=PRICES, tags=(), name="plain")

        async def commands(call: Any, *args: Any, **options: Any) -> int:
            before = len(a.proxy.commands)
            await call(*args, **options)
            await asyncio.sleep(0.02)  # what nobody waits for
            sent = list(a.proxy.commands)[before:]
            return sum(each[0] in (b"EVALSHA", b"EVAL") for each in sent)

        assert await commands(plain, 1) == 2
        assert await commands(plain, 1) == 1
        assert await commands(a.price, 1) == 4, "a read, the stamps, the fill and a look at them"
        assert await commands(a.price, 2) == 4, "one of the two tags is new"
        await a.price.invalidate(2)
        assert await commands(a.price, 2) == 3
        assert await commands(a.price, 2) == 1, "whatever the number of tags"
        assert await commands(a.invalidate, "prices", "price:1") == 1
        assert await commands(a.price, 2) == 6, "read, stamp, election, another look, fill, look"
        assert await commands(plain.invalidate, 1) == 1


async def test_tenants_on_servers_of_their_own(
    valkey: ValkeyServer, valkey_dsn: str, redis7: RespServer, shop: Shop
) -> None:
    redis7.ask("FLUSHALL")
    client = RoutedRedisClient()
    dsns = {"a": valkey.dsn, "b": redis7.dsn}
    caches = {"prices": {"namespace": NAMESPACE, "tenant_aware": True}}
    runtime = ExecutionRuntime(
        deps=DepsPlan.from_modules(RedisDepsModule(client=client, caches=caches)),
        lifecycle=LifecyclePlan.from_steps(routed_redis_lifecycle_step(dsn_of=dsns)),
    )
    async with runtime.scope() as ctx:
        price = shop.cached(ctx, cache=PRICES)
        for tenant in "abab":
            with ctx.bind_tenant(tenant):
                assert await price(1) == 10
        assert shop.runs == 2
        shop.prices[1] = 11
        with ctx.bind_tenant("a"):
            await ctx.invalidate_tags("price:1", cache=PRICES)
            assert await price(1) == 11
        with ctx.bind_tenant("b"):
            assert await price(1) == 10
