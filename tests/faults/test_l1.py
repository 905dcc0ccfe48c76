"""The in-process tier against writes, transactions, outages, and the callers themselves.

Here without pushes: an entry of another replica may be as old as the tier's ttl, and nothing
else may be older than the read-through allows.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from functools import cached_property
from typing import Any

import asyncpg
import pytest
from tests.faults.test_permissions import DOCUMENTED, user
from tests.faults.world import (
    Replica,
    ask,
    elsewhere,
    product_spec,
    replica,
    script,
)

from forze.application.contracts.cache import CacheSpec, L1Spec
from forze.application.contracts.document import DocumentSpec, DocumentWriteTypes
from forze.application.execution import DepsPlan, ExecutionContext, ExecutionRuntime, LifecyclePlan
from forze.application.integrations.document import L1Stats, tiny_lfu_l1_store
from forze.application.integrations.document.codec import DocumentCodec
from forze.application.integrations.document.query import DocumentQuery
from forze.domain.models import BaseDTO, CreateDocumentCmd, Document, ReadDocument
from forze.errors import (
    BackendError,
    BackendTimeout,
    ConfigurationError,
    NotFoundError,
    TenantRequired,
)
from forze.testing.servers import RespServer, ValkeyServer
from forze_memory import MemoryDepsModule
from forze_redis import RedisConfig
from forze_redis import cache as scripts

HOT = product_spec(l1=L1Spec(ttl=timedelta(seconds=60)))


@pytest.fixture
async def hot(
    database: asyncpg.Connection[Any], postgres_dsn: str, valkey: ValkeyServer, valkey_dsn: str
) -> AsyncIterator[tuple[Replica, Replica]]:
    """Two replicas whose entries would live for a minute, and nothing is pushed."""
    async with (
        replica(postgres_dsn, valkey.port, spec=HOT) as a,
        replica(postgres_dsn, valkey.port, spec=HOT) as b,
    ):
        yield a, b


@asynccontextmanager
async def lone(postgres_dsn: str, port: int, **l1: Any) -> AsyncIterator[Replica]:
    spec = product_spec(l1=L1Spec(**({"ttl": timedelta(seconds=60)} | l1)))
    async with replica(postgres_dsn, port, spec=spec) as one:
        yield one


def l1(one: Replica) -> L1Stats:
    stats = one.query.l1_stats()
    assert stats is not None
    return stats


def marks(one: Replica) -> int:
    """Questions under way."""
    coordinator = one.query._coordinator
    assert coordinator is not None
    assert coordinator.tier is not None
    return len(coordinator.tier._marks)


async def test_repeat_reads_never_leave_the_process(hot: tuple[Replica, Replica]) -> None:
    a, _ = hot
    product = await a.create(price=1)
    first = await a.query.get(product.id)
    sent = len(a.proxy.commands)
    for _ in range(50):
        assert await a.query.get(product.id) is first, "decoded already, and shared"
        assert await a.query.get(str(product.id)) is first
        assert await a.query.get_many([product.id]) == [first]
    assert len(a.proxy.commands) == sent
    assert l1(a) == L1Stats(size=1, capacity=1024, hits=150, misses=1, evictions=0)
    assert a.ctx.l1_stats() == {"products": l1(a)}


@pytest.mark.parametrize("cache", [{}, {"invalidation_push": True}])
async def test_the_hottest_documents_are_kept(
    database: asyncpg.Connection[Any],
    postgres_dsn: str,
    valkey: ValkeyServer,
    valkey_dsn: str,
    cache: dict[str, Any],
) -> None:
    """However many ask at the same time, somebody's answer is kept."""
    async with replica(postgres_dsn, valkey.port, spec=HOT, cache=cache) as one:
        product = await one.create(price=1)
        await one.price(product)
        coordinator = one.query._coordinator
        assert coordinator is not None
        assert coordinator.tier is not None
        coordinator.tier.flush()

        async def reader(wait: float) -> None:
            await asyncio.sleep(wait)
            for _ in range(50):
                await one.price(product)

        hits = l1(one).hits
        await asyncio.gather(*(reader(0.0003 * number) for number in range(16)))
        assert l1(one).hits - hits > 400


async def test_an_own_write_past_a_flight_under_way(
    database: asyncpg.Connection[Any], postgres_dsn: str, own_redis_server: RespServer
) -> None:
    """P12: what the cache could not be told of is read from the source by flights as well."""
    port = own_redis_server.port
    deaf = user(own_redis_server, DOCUMENTED + " -scan")  # no namespace can be cleared
    async with (
        replica(postgres_dsn, port, spec=HOT, redis=deaf) as a,
        replica(postgres_dsn, port, spec=HOT) as b,
    ):
        product = await b.create(price=1)
        fill = b.proxy.hold_request(script(scripts.FILL))
        filling = asyncio.create_task(b.price(product))
        await fill.seen()
        await database.execute("UPDATE products SET price = 2, rev = 2")
        waiting_on_b = asyncio.create_task(a.price(product))
        coordinator = a.query._coordinator
        assert coordinator is not None
        async with asyncio.timeout(5):
            while not coordinator.loading(coordinator.address(product.id)):
                await asyncio.sleep(0.001)  # until A has been told that B fills
        coordinator.outlet.journal.owe_namespace(coordinator.outlet.pointers.namespace())
        fill.release()
        assert await filling == 1, "B stored the old value"
        assert await waiting_on_b == 2
        assert await a.price(product) == 2
        assert l1(a).size == 0
        ask(own_redis_server, "ACL", "SETUSER", "app", "+scan")


async def test_many_documents_within_a_deadline(hot: tuple[Replica, Replica]) -> None:
    """A bound deadline holds for a reader of many that waits for another's load."""
    a, b = hot
    product = await b.create(price=1)
    fill = b.proxy.hold_request(script(scripts.FILL))
    filling = asyncio.create_task(b.price(product))
    await fill.seen()
    began = asyncio.get_running_loop().time()
    with a.ctx.bind_deadline(timedelta(milliseconds=100)), pytest.raises(BackendTimeout):
        await a.query.get_many([product.id])
    assert asyncio.get_running_loop().time() - began < 1
    fill.release()
    await filling


async def test_the_writer_reads_its_own_write(hot: tuple[Replica, Replica]) -> None:
    """P12: in every mode, through either port, and whatever kind of write it was."""
    a, _ = hot
    product = await a.create(price=1)
    for price in (2, 3):
        await a.price(product)
        product = await a.reprice(product, price)
        assert await a.price(product) == price
        assert await a.price(product) == price
    async with a.ctx.transaction("products"):
        product = await a.reprice(product, 4)
        assert await elsewhere(a.price(product)) == 3, "not committed"
    assert await a.price(product) == 4
    cache = a.ctx.cache(HOT.cache)
    await cache.invalidate(str(product.id))
    assert l1(a).size == 0
    await a.price(product)
    await a.docs.kill(product.id)
    with pytest.raises(NotFoundError):
        await a.price(product)


async def test_another_replica_may_be_as_old_as_the_ttl(
    database: asyncpg.Connection[Any], postgres_dsn: str, valkey: ValkeyServer, valkey_dsn: str
) -> None:
    """Without pushes the ttl is the bound, and is kept."""
    async with (
        lone(postgres_dsn, valkey.port, ttl=timedelta(milliseconds=400)) as a,
        replica(postgres_dsn, valkey.port, spec=HOT) as b,
    ):
        product = await b.create(price=1)
        await a.price(product)
        await b.reprice(product, 2)
        assert await a.price(product) == 1
        await asyncio.sleep(0.41)
        assert await a.price(product) == 2, "an expired entry falls back to the cache"


async def test_what_a_transaction_reads_is_not_kept(hot: tuple[Replica, Replica]) -> None:
    """P3: nor is a kept entry served there."""
    a, b = hot
    product = await a.create(price=1)
    await a.price(product)
    hits = l1(a).hits
    async with a.ctx.transaction("products"):
        await b.reprice(product, 2)
        assert await a.price(product) == 2, "the source, not the tier"
    assert l1(a).hits == hits
    assert await a.price(product) == 1, "within the ttl, as the mode has it"


async def test_nothing_read_under_an_intent_is_kept(hot: tuple[Replica, Replica]) -> None:
    """P2: while a write is in flight anywhere, its document is read from the source."""
    a, b = hot
    product = await b.create(price=1)
    async with b.ctx.transaction("products"):
        await b.reprice(product, 2)
        await elsewhere(asyncio.sleep(0.02))
        for _ in range(3):
            assert await elsewhere(a.price(product)) == 1
        assert l1(a).size == 0
    assert await a.price(product) == 2


async def test_a_refused_fill_is_not_kept(hot: tuple[Replica, Replica]) -> None:
    """P1: the process keeps what the cache stored, and nothing else."""
    a, b = hot
    product = await b.create(price=1)
    fill = a.proxy.hold_request(script(scripts.FILL))
    slow = asyncio.create_task(a.price(product))
    await fill.seen()
    await b.reprice(product, 2)
    fill.release()
    assert await slow == 1
    assert a.stats.rejected_fills == 1
    assert l1(a).size == 0
    assert await a.price(product) == 2


@pytest.mark.parametrize("reply", ["intend", "done"])
async def test_a_local_write_between_question_and_answer(
    hot: tuple[Replica, Replica], reply: str
) -> None:
    """P12: a probe answered before the write was sent is not kept after it."""
    a, _ = hot
    product = await a.create(price=1)
    await a.price(product)
    await a.ctx.cache(HOT.cache).get(str(product.id))
    a.query._coordinator.tier.flush()  # type: ignore[union-attr]
    held = a.proxy.hold_reply(script(scripts.READ))
    slow = asyncio.create_task(a.price(product))
    await held.seen()
    writing = asyncio.create_task(a.reprice(product, 2))
    await asyncio.sleep(0.02)  # its intent is on the way, behind the held answer
    held.release()
    assert await slow == 1
    await writing
    assert await a.price(product) == 2


async def test_a_write_drops_the_entry_as_it_is_sent(hot: tuple[Replica, Replica]) -> None:
    """P12: no entry is served while its announcement is under way."""
    a, _ = hot
    product = await a.create(price=1)
    await a.price(product)
    intent = a.proxy.hold_request(script(scripts.INTEND))
    writing = asyncio.create_task(a.reprice(product, 2))
    await intent.seen()
    assert l1(a).size == 0
    intent.release()
    await writing
    assert await a.price(product) == 2


async def test_a_write_drops_the_entry_again_as_it_is_answered(
    hot: tuple[Replica, Replica],
) -> None:
    """P12: what was kept while the answer was on its way may predate the write."""
    a, _ = hot
    product = await a.create(price=1)
    done = a.proxy.hold_reply(script(scripts.DONE))
    writing = asyncio.create_task(a.reprice(product, 2))
    await done.seen()
    coordinator = a.query._coordinator
    assert coordinator is not None
    assert coordinator.tier is not None
    tier = coordinator.tier
    key = tier.key(product.id, coordinator.address(product.id))
    tier.take(key, tier.reserve(key), product, b"")  # kept while the answer was on its way
    assert l1(a).size == 1
    done.release()
    await writing
    assert l1(a).size == 0


async def test_a_new_connection_flushes(hot: tuple[Replica, Replica]) -> None:
    """Without pushes too: another server may know less than the entries do."""
    a, _ = hot
    product = await a.create(price=1)
    await a.price(product)
    connections = a.proxy.connections
    a.proxy.cut()
    async with asyncio.timeout(5):
        while a.proxy.connections == connections or not a.redis.available():
            await asyncio.sleep(0.01)
    assert l1(a).size == 0
    assert a.stats.flushes > 0


async def test_a_write_that_cannot_be_told_is_not_hidden_by_an_entry(
    database: asyncpg.Connection[Any], postgres_dsn: str, own_redis_server: RespServer
) -> None:
    """P12: also while the server is away, and when it is back."""
    async with replica(postgres_dsn, own_redis_server.port, spec=HOT) as a:
        product = await a.create(price=1)
        await a.price(product)
        own_redis_server.kill()
        product = await a.reprice(product, 2)
        assert await a.price(product) == 2
        own_redis_server.start()
        async with asyncio.timeout(5):
            while not a.redis.available() or a.stats.journal:
                await asyncio.sleep(0.02)
        assert await a.price(product) == 2


@pytest.mark.parametrize("capacity", [1, 2])
@pytest.mark.parametrize("store_factory", [None, tiny_lfu_l1_store])
async def test_the_smallest_capacities(
    database: asyncpg.Connection[Any],
    postgres_dsn: str,
    valkey: ValkeyServer,
    valkey_dsn: str,
    capacity: int,
    store_factory: Any,
) -> None:
    async with lone(
        postgres_dsn, valkey.port, capacity=capacity, store_factory=store_factory
    ) as one:
        products = [await one.create(price=each) for each in range(4)]
        for _ in range(5):
            for price, product in enumerate(products):
                assert await one.price(product) == price
                assert l1(one).size <= capacity
        assert l1(one).capacity == capacity
        for _ in range(3):
            await one.price(products[0])
        assert l1(one).hits >= 1
        assert marks(one) == 0


async def test_a_cancelled_read_leaves_nothing(hot: tuple[Replica, Replica]) -> None:
    """P5: wherever it was; also the places it had reserved are free again."""
    a, _ = hot
    product = await a.create(price=1)
    for which in (scripts.READ, scripts.FILL):
        hold = a.proxy.hold_request(script(which))
        reading = asyncio.create_task(a.price(product))
        await hold.seen()
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading
        hold.release()
        async with asyncio.timeout(2):
            while marks(a):
                await asyncio.sleep(0.005)
    assert await a.price(product) == 1


async def test_a_read_that_fails_leaves_nothing(
    database: asyncpg.Connection[Any], postgres_dsn: str, valkey: ValkeyServer, valkey_dsn: str
) -> None:
    config = RedisConfig(cache_timeout=0.05)
    async with replica(postgres_dsn, valkey.port, spec=HOT, redis=config) as one:
        product = await one.create(price=1)
        hold = one.proxy.hold_reply(script(scripts.READ))
        assert await one.price(product) == 1, "from the source, after the budget"
        assert marks(one) == 0
        assert l1(one).size == 0
        hold.release()
        with pytest.raises(NotFoundError):
            await one.query.get(uuid.uuid4())
        assert marks(one) == 0


async def test_a_failing_source_leaves_nothing(
    hot: tuple[Replica, Replica], database: asyncpg.Connection[Any]
) -> None:
    a, _ = hot
    product = await a.create(price=1)
    await database.execute("ALTER TABLE products RENAME TO gone")
    with pytest.raises((BackendError, ConfigurationError)):
        await a.price(product)
    await database.execute("ALTER TABLE gone RENAME TO products")
    assert marks(a) == 0
    assert await a.price(product) == 1


class Listed(ReadDocument):
    name: str

    @cached_property
    def parts(self) -> list[str]:
        return self.name.split()


def test_what_a_model_caches_in_itself_is_not_shared() -> None:
    """P13: a frozen model with a cached property can be changed in place."""
    assert not DocumentCodec(Listed, "listed").shareable
    assert DocumentCodec(ReadDocument, "plain").shareable


class Tagged(Document):
    tags: list[str]


class TaggedCreate(CreateDocumentCmd):
    tags: list[str]


class TaggedUpdate(BaseDTO):
    tags: list[str] | None = None


class TaggedRead(ReadDocument):
    tags: list[str]


TAGGED = DocumentSpec(
    name="tagged",
    read=TaggedRead,
    write=DocumentWriteTypes(domain=Tagged, create_cmd=TaggedCreate, update_cmd=TaggedUpdate),
    cache=CacheSpec(name="tagged", l1=L1Spec(ttl=timedelta(seconds=60))),
)


@pytest.fixture
async def memory() -> AsyncIterator[ExecutionContext]:
    runtime = ExecutionRuntime(
        deps=DepsPlan.from_modules(MemoryDepsModule()), lifecycle=LifecyclePlan.from_steps()
    )
    async with runtime.scope() as ctx:
        yield ctx


async def test_callers_cannot_poison_the_tier(memory: ExecutionContext) -> None:
    """P13: what one caller does to a document it was handed, no other caller sees."""
    query = memory.document.query(TAGGED)
    tagged = await memory.document.command(TAGGED).create(TaggedCreate(tags=["a"]))
    for _ in range(3):
        read = await query.get(tagged.id)
        read.tags.append("poison")
        (many,) = await query.get_many([tagged.id])
        many.tags.clear()
    assert (await query.get(tagged.id)).tags == ["a"]
    stats = query.l1_stats()
    assert stats is not None
    assert stats.hits == 6


async def test_a_write_reaches_the_tier_in_process(memory: ExecutionContext) -> None:
    """P12: the embedded cache keeps the same rules."""
    query, docs = memory.document.query(TAGGED), memory.document.command(TAGGED)
    tagged = await docs.create(TaggedCreate(tags=["a"]))
    await query.get(tagged.id)
    await docs.update(tagged.id, tagged.rev, TaggedUpdate(tags=["b"]))
    assert (await query.get(tagged.id)).tags == ["b"]
    await memory.cache(TAGGED.cache).set_versioned(str(tagged.id), "9", {"any": "thing"})
    assert (await query.get(tagged.id)).tags == ["b"]
    stats = query.l1_stats()
    assert stats is not None
    assert stats.hits == 0


async def test_a_store_of_ones_own(memory: ExecutionContext) -> None:
    """Any object with the five methods will do, and another is refused by name."""
    kept: dict[Any, object] = {}

    class Forever:
        get = staticmethod(kept.get)
        set = staticmethod(kept.__setitem__)
        clear = staticmethod(kept.clear)

        def invalidate(self, key: Any) -> None:
            kept.pop(key, None)

        def stats(self) -> L1Stats:
            return L1Stats(size=len(kept), capacity=9, hits=0, misses=0, evictions=0)

    def spec(store_factory: Any) -> DocumentSpec[TaggedRead, TaggedCreate, TaggedUpdate]:
        l1 = L1Spec(ttl=timedelta(seconds=1), store_factory=store_factory)
        name = store_factory.__name__
        return DocumentSpec(
            name=name,
            read=TaggedRead,
            write=TAGGED.write,
            cache=CacheSpec(name=name, l1=l1),
        )

    def forever(_: L1Spec) -> Forever:
        return Forever()

    def nothing(_: L1Spec) -> object:
        return object()

    query = memory.document.query(spec(forever))
    tagged = await memory.document.command(spec(forever)).create(TaggedCreate(tags=["a"]))
    assert (await query.get(tagged.id)) == (await query.get(tagged.id))
    assert len(kept) == 1
    with pytest.raises(ConfigurationError, match="get, set, invalidate, clear, stats"):
        memory.document.query(spec(nothing))


async def test_tenants_have_entries_of_their_own() -> None:
    """P8: what is kept for one tenant answers no other."""
    runtime = ExecutionRuntime(
        deps=DepsPlan.from_modules(
            MemoryDepsModule(
                caches={"tagged": {"tenant_aware": True}},
                documents={"tagged": {"tenant_aware": True}},
            )
        ),
        lifecycle=LifecyclePlan.from_steps(),
    )
    async with runtime.scope() as ctx:
        query, docs = ctx.document.query(TAGGED), ctx.document.command(TAGGED)
        tagged: dict[str, TaggedRead] = {}
        for tenant in ("a", "b", "a/b"):
            with ctx.bind_tenant(tenant):
                tagged[tenant] = await docs.create(TaggedCreate(tags=[tenant]))
                for _ in range(2):
                    assert (await query.get(tagged[tenant].id)).tags == [tenant]
        for tenant, foreign in (("b", "a"), ("a", "a/b"), ("a/b", "b")):
            with ctx.bind_tenant(tenant), pytest.raises(NotFoundError):
                await query.get(tagged[foreign].id)
        with pytest.raises(TenantRequired):
            await query.get(tagged["a"].id)
        with ctx.bind_tenant("a"):
            await docs.update(tagged["a"].id, 1, TaggedUpdate(tags=["new"]))
            assert (await query.get(tagged["a"].id)).tags == ["new"]
        hits = _hits(query)
        with ctx.bind_tenant("b"):
            assert (await query.get(tagged["b"].id)).tags == ["b"]
        assert _hits(query) == hits + 1, "another tenant's write left it"


def _hits(query: DocumentQuery[Any]) -> int:
    stats = query.l1_stats()
    assert stats is not None
    return stats.hits


async def test_a_thousand_entries_that_end_together(
    database: asyncpg.Connection[Any], postgres_dsn: str, valkey: ValkeyServer, valkey_dsn: str
) -> None:
    """Jitter keeps what was cached together from dying together; what dies is collapsed."""
    spec = product_spec(ttl=timedelta(seconds=3), l1=L1Spec(ttl=timedelta(seconds=1)))
    patient = RedisConfig(cache_timeout=10.0)  # a slow machine is not what this is about
    async with replica(postgres_dsn, valkey.port, spec=spec, redis=patient) as one:
        ids = [(await one.create(price=each)).id for each in range(1_000)]
        await one.query.get_many(ids)
        lives = [int(valkey.ask("PTTL", f"app:products/cache/pointer/{each}")[1:]) for each in ids]
        assert 1500 < min(lives) <= max(lives) <= 3000
        assert max(lives) - min(lives) > 100
        loads = one.stats.source_reads
        await asyncio.sleep(3.05)
        await asyncio.gather(*(one.query.get(each) for each in ids for _ in range(3)))
        assert one.stats.source_reads - loads == len(ids)


async def test_waiting_is_still_possible(hot: tuple[Replica, Replica]) -> None:
    """A kept entry does not stand in the way of ``skip_cache`` and row locks."""
    a, b = hot
    product = await a.create(price=1)
    await a.price(product)
    await b.reprice(product, 2)
    assert (await a.query.get(product.id, skip_cache=True)).price == 2
    async with a.ctx.transaction("products"):
        assert (await a.query.get(product.id, for_update=True)).price == 2
