"""Documents cached behind a routed client: each tenant on a server of its own, and never stale."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import pytest
from tests.faults.world import (
    Product,
    ProductCreate,
    ProductRead,
    ProductUpdate,
    ask,
)

from forze.application.contracts.cache import CacheSpec, Fill, L1Spec, Miss
from forze.application.contracts.document import DocumentSpec
from forze.application.contracts.search import SearchResultSnapshotSpec
from forze.application.execution import (
    DepsPlan,
    ExecutionContext,
    ExecutionRuntime,
    LifecyclePlan,
)
from forze.application.integrations.document.stats import CacheStats
from forze.errors import ConfigurationError, NotFoundError, TenantRequired
from forze.testing.proxy import RespProxy, command
from forze.testing.servers import RespServer, ValkeyServer
from forze_memory import MemoryDepsModule
from forze_redis import (
    RedisClient,
    RedisConfig,
    RedisDepsModule,
    RoutedRedisClient,
    redis_lifecycle_step,
    routed_redis_lifecycle_step,
)

SPEC: DocumentSpec[ProductRead, ProductCreate, ProductUpdate] = DocumentSpec(
    name="products",
    read=ProductRead,
    write={"domain": Product, "create_cmd": ProductCreate, "update_cmd": ProductUpdate},
    cache=CacheSpec(name="products"),
)
KEPT: DocumentSpec[ProductRead, ProductCreate, ProductUpdate] = DocumentSpec(
    name="products",
    read=ProductRead,
    write={"domain": Product, "create_cmd": ProductCreate, "update_cmd": ProductUpdate},
    cache=CacheSpec(name="products", l1=L1Spec(ttl=timedelta(seconds=60))),
)
CACHES = {"products": {"namespace": "app", "tenant_aware": True}}


@dataclass
class Process:
    """One process's worth of an application, over a database it shares with the others."""

    ctx: ExecutionContext
    client: RoutedRedisClient
    spec: DocumentSpec[ProductRead, ProductCreate, ProductUpdate]

    def __post_init__(self) -> None:
        self.query = self.ctx.document.query(self.spec)
        self.docs = self.ctx.document.command(self.spec)

    async def create(self, tenant: str, price: int = 1) -> ProductRead:
        with self.ctx.bind_tenant(tenant):
            return await self.docs.create(ProductCreate(name=f"of {tenant}", price=price))

    async def price(self, tenant: str, product: ProductRead) -> int:
        with self.ctx.bind_tenant(tenant):
            return (await self.query.get(product.id)).price

    async def reprice(self, tenant: str, product: ProductRead, price: int) -> ProductRead:
        with self.ctx.bind_tenant(tenant):
            return await self.docs.update(product.id, product.rev, ProductUpdate(price=price))

    @property
    def stats(self) -> CacheStats:
        stats = self.query.stats()
        assert stats is not None
        return stats


@asynccontextmanager
async def process(
    database: MemoryDepsModule,
    dsns: dict[str, str],
    *,
    spec: DocumentSpec[ProductRead, ProductCreate, ProductUpdate] = SPEC,
    caches: Any = CACHES,
    config: RedisConfig | None = None,
    **settings: Any,
) -> AsyncIterator[Process]:
    """A process, running."""
    client = RoutedRedisClient(**settings)
    runtime = ExecutionRuntime(
        deps=DepsPlan.from_modules(database, RedisDepsModule(client=client, caches=caches)),
        lifecycle=LifecyclePlan.from_steps(
            routed_redis_lifecycle_step(dsn_of=dsns, config=config, client=client)
        ),
        specs=[spec],
        drain=timedelta(seconds=2),
    )
    async with runtime.scope() as ctx:
        yield Process(ctx, client, spec)


@pytest.fixture
def database() -> MemoryDepsModule:
    """Tables with tenants, no caches."""
    return MemoryDepsModule(documents={"products": {"tenant_aware": True}}, caches={})


@pytest.fixture
async def pair(
    database: MemoryDepsModule, dsns: dict[str, str]
) -> AsyncIterator[tuple[Process, Process]]:
    """Two processes over three servers."""
    async with process(database, dsns) as one, process(database, dsns) as other:
        yield one, other


def pointers(server: RespServer) -> list[bytes]:
    found: list[bytes] = ask(server, "KEYS", "*/cache/pointer/*")
    return found


async def until(condition: Any, seconds: float = 8.0) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.01)


async def test_each_tenants_documents_are_on_its_own_server(
    pair: tuple[Process, Process], servers: list[ValkeyServer]
) -> None:
    """P9: what is cached for one tenant is on no other's server."""
    here, there = pair
    products = {tenant: await here.create(tenant) for tenant in "ab"}
    for tenant, product in products.items():
        assert await here.price(tenant, product) == await there.price(tenant, product) == 1
    assert (here.stats.misses, there.stats.misses, there.stats.hits) == (2, 0, 2), "filled cold"
    for server, tenant in zip(servers, "ab", strict=False):
        key = f"app/cache/pointer/{tenant}/{products[tenant].id}"
        assert pointers(server) == [key.encode()]
    with pytest.raises(NotFoundError):
        await here.price("b", products["a"])
    with pytest.raises(TenantRequired):
        await here.query.get(products["a"].id)


async def test_a_write_here_is_seen_there(pair: tuple[Process, Process]) -> None:
    """P1: at once, for each tenant, through every method."""
    here, there = pair
    for tenant in "abc":
        product = await here.create(tenant)
        for price in range(2, 6):
            assert await there.price(tenant, product) == product.price
            product = await here.reprice(tenant, product, price)
            assert await there.price(tenant, product) == price
        with here.ctx.bind_tenant(tenant):
            others = [await here.create(tenant) for _ in range(3)]
            ids = [product.id, *(each.id for each in others)]
            assert [each.id for each in await there_many(there, tenant, ids)] == ids
            await here.docs.kill(product.id)
        with pytest.raises(NotFoundError):
            await there.price(tenant, product)
    assert here.stats.intent_failures == there.stats.read_failures == 0


async def there_many(process: Process, tenant: str, ids: list[Any]) -> list[ProductRead]:
    with process.ctx.bind_tenant(tenant):
        return await process.query.get_many(ids)


async def test_an_explicit_route_does_not_lead_documents_astray(
    pair: tuple[Process, Process], servers: list[ValkeyServer]
) -> None:
    """P1: a copy on another server than its tenant's would never hear of a write."""
    here, there = pair
    product = await here.create("a")
    with here.client.route("c"), there.client.route("b"):
        assert await here.price("a", product) == await there.price("a", product) == 1
        product = await here.reprice("a", product, 2)
        assert await there.price("a", product) == 2
        with here.ctx.bind_tenant("a"):
            await here.ctx.cache(SPEC.cache).set("k", 1)
    assert [len(pointers(each)) for each in servers] == [1, 0, 0]
    assert ask(servers[2], "EXISTS", "app/cache/kv/a/k") == 1, "direct use goes where it is told"


SEARCHED: DocumentSpec[ProductRead, ProductCreate, ProductUpdate] = DocumentSpec(
    name="products",
    read=ProductRead,
    write={"domain": Product, "create_cmd": ProductCreate, "update_cmd": ProductUpdate},
    snapshot=SearchResultSnapshotSpec(
        name="found", cursor_secret="not a secret, it is in the tests"
    ),
)


@pytest.mark.parametrize("tenant", ["a", None])
async def test_a_shared_search_is_of_the_route_it_is_asked_under(
    dsns: dict[str, str], servers: list[ValkeyServer], tenant: str | None
) -> None:
    """Two routes at once under one tenant, or none: each server has the run its callers read."""
    owned = tenant is not None
    client = RoutedRedisClient()
    found = {"found": {"namespace": "found", "tenant_aware": owned}}
    runtime = ExecutionRuntime(
        deps=DepsPlan.from_modules(
            MemoryDepsModule(documents={"products": {"tenant_aware": owned}}, search_snapshots={}),
            RedisDepsModule(client=client, search_snapshots=found),
        ),
        lifecycle=LifecyclePlan.from_steps(routed_redis_lifecycle_step(dsn_of=dsns)),
    )
    async with runtime.scope() as ctx:
        query, docs = ctx.document.query(SEARCHED), ctx.document.command(SEARCHED)

        async def pages(route: str) -> list[int]:
            with client.route(route):
                page = await query.find_snapshot(sort=["price"], limit=2, share=True)
                rest = await query.find_snapshot(
                    sort=["price"], limit=2, after=page.next_cursor, share=True
                )
                return [each.price for each in (*page.items, *rest.items)]

        with nullcontext() if tenant is None else ctx.bind_tenant(tenant):
            await docs.create_many([ProductCreate(name="x", price=each) for each in range(4)])
            assert await asyncio.gather(*map(pages, "bcbcbc")) == [[0, 1, 2, 3]] * 6
        runs = [len(ask(each, "KEYS", "*")) for each in servers]
        assert runs == [0, 2, 2], "one run on each, and where it is"


async def test_caches_in_direct_use(pair: tuple[Process, Process]) -> None:
    here, there = pair
    mine, theirs = here.ctx.cache(SPEC.cache), there.ctx.cache(SPEC.cache)
    for tenant in "ab":
        with here.ctx.bind_tenant(tenant):
            await mine.set_many({f"k{each}": tenant for each in range(250)})
            assert await mine.set_many_versioned({("v", "1"): "one", ("w", "2"): tenant}) == {
                ("v", "1"): True,
                ("w", "2"): True,
            }
            hits, missing = await theirs.get_many(["k1", "none", "w", "k249"])
            assert (hits, missing) == ({"k1": tenant, "w": tenant, "k249": tenant}, ["none"])
            assert await theirs.exists("v")
            assert not await theirs.set_versioned("w", "1", "older")
            assert await theirs.delete("v")
            assert not await mine.exists("v")
    with here.ctx.bind_tenant("a"):
        await mine.invalidate_many(["k1", "k2"])
    with here.ctx.bind_tenant("b"):
        assert await mine.get("k1") == "b"
        async with here.ctx.transaction("products"):
            await theirs.invalidate("k1")
            assert await mine.get("k1") == "b"
        assert await mine.get("k1") is None


async def test_one_key_for_two_tenants_at_once(
    database: MemoryDepsModule, servers: list[ValkeyServer]
) -> None:
    """P9: under way at the same moment in one process, flights and answers are two."""
    async with RespProxy(servers[0].port) as a, RespProxy(servers[1].port) as b:
        dsns = {"a": a.dsn, "b": b.dsn}
        async with process(database, dsns, config=RedisConfig(cache_timeout=2.0)) as here:
            mine = await here.create("a", price=1)
            await here.price("a", mine)
            with here.ctx.bind_tenant("b"), pytest.raises(NotFoundError):
                await here.query.get(mine.id)
            holds = [each.hold_reply(command("EVALSHA")) for each in (a, b)]
            asking = [asyncio.create_task(here.price(tenant, mine)) for tenant in "ab" * 5]
            await asyncio.gather(*(each.seen() for each in holds))
            for each in holds:
                each.release()
            answers = await asyncio.gather(*asking, return_exceptions=True)
            assert answers[0::2] == [1] * 5
            assert all(isinstance(each, NotFoundError) for each in answers[1::2])


async def test_reads_are_never_stale_while_clients_come_and_go(
    database: MemoryDepsModule, dsns: dict[str, str]
) -> None:
    """P1: evicted, closed for being idle, rotated, all at once and under load."""
    restless: dict[str, Any] = {
        "max_clients": 1,
        "idle_after": timedelta(milliseconds=20),
        "config": RedisConfig(cache_timeout=2.0),  # a busy machine is not what is tried here
    }
    async with (
        process(database, dsns, **restless) as here,
        process(database, dsns, **restless) as there,
    ):
        stop = asyncio.Event()

        async def work(tenant: str) -> int:
            product, writes = await here.create(tenant), 0
            while not stop.is_set():
                writer, reader = (here, there) if writes % 2 else (there, here)
                product = await writer.reprice(tenant, product, product.price + 1)
                prices = await asyncio.gather(
                    *(each.price(tenant, product) for each in (reader, reader, writer, reader))
                )
                assert prices == [product.price] * 4
                writes += 1
            return writes

        async def rotate() -> int:
            rotations = 0
            while not stop.is_set():
                for each in (here, there):
                    await each.client.rotate("abc"[rotations % 3])
                    rotations += 1
                await asyncio.sleep(0.01)
            return rotations

        working = [asyncio.create_task(work(tenant)) for tenant in "abcabc"]
        rotating = asyncio.create_task(rotate())
        await asyncio.sleep(2.5)
        stop.set()
        assert min(await asyncio.gather(*working)) > 20
        assert await rotating > 20
        for each in (here, there):
            assert (each.stats.read_failures, each.stats.journal) == (0, 0)
            assert each.stats.hits > 100
            assert each.stats.intent_failures == 0


# -- outages -------------------------------------------------------------------


async def test_an_outage_of_one_tenants_server_is_that_tenants_alone(
    pair: tuple[Process, Process], servers: list[ValkeyServer]
) -> None:
    """P4: its writes are owed to its server, and told when that answers again."""
    here, there = pair
    of_a, of_b = await here.create("a"), await here.create("b")
    for each in (here, there):
        assert await each.price("a", of_a) == await each.price("b", of_b) == 1
    servers[1].pause()
    of_b = await here.reprice("b", of_b, 2)
    assert here.stats.journal == 1
    assert await here.price("b", of_b) == 2, "what it wrote it reads"
    hits, bypasses = here.stats.hits, here.stats.bypasses
    for price in range(2, 8):
        of_a = await here.reprice("a", of_a, price)
        assert await there.price("a", of_a) == await here.price("a", of_a) == price
    assert here.stats.journal == 1, "nothing of the other tenant's"
    assert here.stats.hits - hits == 6, "its cache is not passed by"
    assert here.stats.bypasses == bypasses
    servers[1].resume()
    await until(lambda: not here.stats.journal)
    assert await there.price("b", of_b) == 2
    hits = here.stats.hits
    await here.price("b", of_b)
    assert here.stats.hits == hits + 1, "cached again"


async def test_a_debt_is_settled_although_nobody_calls(
    database: MemoryDepsModule, dsns: dict[str, str], servers: list[ValkeyServer]
) -> None:
    """P4: the client of a server that is owed something is not closed for being idle."""
    async with (
        process(database, dsns, idle_after=timedelta(seconds=1)) as here,
        process(database, dsns) as there,
    ):
        product = await here.create("a")
        assert await there.price("a", product) == await here.price("a", product) == 1
        servers[0].kill()
        await here.reprice("a", product, 2)
        assert here.stats.journal == 1
        await asyncio.sleep(1.5)
        assert "a" in here.client.clients
        servers[0].start()
        await until(lambda: not here.stats.journal)
        assert await there.price("a", product) == 2
        await until(lambda: not here.client.clients)


async def test_a_rotation_settles_what_the_old_client_could_not(
    database: MemoryDepsModule, dsns: dict[str, str], servers: list[ValkeyServer]
) -> None:
    """P4: a new client in the old one's place is a recovery."""
    async with RespProxy(servers[0].port) as proxy:
        led = dsns | {"a": proxy.dsn}
        async with process(database, led) as here, process(database, dsns) as there:
            product = await here.create("a")
            assert await there.price("a", product) == await here.price("a", product) == 1
            proxy.refuse()
            proxy.cut()
            await here.reprice("a", product, 2)
            assert here.stats.journal == 1
            led["a"] = servers[0].dsn
            await here.client.rotate("a")
            await until(lambda: not here.stats.journal)
            assert await there.price("a", product) == 2


async def test_a_full_journal_is_one_tenants_affair(
    pair: tuple[Process, Process], servers: list[ValkeyServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    """P4: what is dropped as a whole is what was owed to that server."""
    here, there = pair
    of_a = await here.create("a")
    many = [await here.create("b") for _ in range(8)]
    for each in many:
        await there.price("b", each)
    await here.price("a", of_a)
    monkeypatch.setattr(here.query._coordinator._journal, "_capacity", 5)  # type: ignore[union-attr]
    servers[1].kill()
    for each in many[:6]:
        await here.reprice("b", each, 2)
    hits = here.stats.hits
    await here.price("a", of_a)
    assert here.stats.hits == hits + 1
    servers[1].start()
    with here.ctx.bind_tenant("b"):
        await until(lambda: not here.query._coordinator._journal.active)  # type: ignore[union-attr]
    assert await there.price("b", many[0]) == 2
    assert len(pointers(servers[0])) == 1, "the other tenant's entry stands"


async def test_tokens_and_generations_are_each_servers_own(
    pair: tuple[Process, Process], servers: list[ValkeyServer]
) -> None:
    """P2: a restart at one server takes neither leases nor values from another."""
    here, _ = pair
    of_a, of_b = await here.create("a"), await here.create("b")
    await here.price("a", of_a)
    pointers_of = here.query._coordinator._pointers  # type: ignore[union-attr]
    with here.ctx.bind_tenant("b"):
        address = pointers_of.address(str(of_b.id))
        token = pointers_of.token(address)
        await pointers_of.read(address, token)
    client = here.client.clients["a"]
    generation = client.generation
    servers[0].restart()
    await until(lambda: client.generation != generation and client.available())
    assert await pointers_of.fill([Fill(address, token, 1, b"{}", 1000)]) == [True]
    with here.ctx.bind_tenant("a"):
        address = pointers_of.address(str(of_a.id))
        stale = pointers_of.token(address)
        await pointers_of.read(address, stale)
        generation = client.generation
        servers[0].restart()
        await until(lambda: client.generation != generation and client.available())
        assert await pointers_of.fill([Fill(address, stale, 1, b"{}", 1000)]) == [False]


@pytest.mark.parametrize("how", ["crowded out", "rotated"])
async def test_a_client_is_kept_until_its_lease_is_filled(
    database: MemoryDepsModule, dsns: dict[str, str], how: str
) -> None:
    """On another one the lease is worth nothing, and readers would wait until it lapses."""
    async with process(database, dsns, max_clients=1) as here:
        product = await here.create("a")
        pointers_of = here.query._coordinator._pointers  # type: ignore[union-attr]
        with here.ctx.bind_tenant("a"):
            address = pointers_of.address(str(product.id))
            token = pointers_of.token(address)
            assert await pointers_of.read(address, token) is Miss.LEASED
        if how == "rotated":
            await here.client.rotate("a")
        for tenant in "bc":
            with here.client.route(tenant):
                await here.client.call("PING")
        await asyncio.sleep(0.2)
        assert await pointers_of.fill([Fill(address, token, 1, b"{}", 10_000)]) == [True]
        assert await pointers_of.read(address, "another") == b"{}"
        await here.client.rotate("b")
        await until(lambda: list(here.client.clients) == ["b"], seconds=1.0)


# -- entries kept in the process -----------------------------------------------


async def test_entries_in_the_process_live_for_their_ttl(
    database: MemoryDepsModule, dsns: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    """P12: own writes drop them, pushes are said once to be without effect."""
    caches = {"products": {**CACHES["products"], "invalidation_push": True}}
    with caplog.at_level(logging.WARNING, "forze.redis"):
        async with process(database, dsns, spec=KEPT, caches=caches) as here:
            said = [each for each in caplog.messages if "invalidation_push has no effect" in each]
            assert len(said) == 1
            of_a, of_b = await here.create("a"), await here.create("b")
            for _ in range(3):
                assert await here.price("a", of_a) == await here.price("b", of_b) == 1
            stats = here.query.l1_stats()
            assert stats is not None
            assert stats.hits == 4
            of_a = await here.reprice("a", of_a, 2)
            assert await here.price("a", of_a) == 2
            assert await here.price("b", of_b) == 1
            assert here.query.l1_stats().hits == 5  # type: ignore[union-attr]
            with here.ctx.bind_tenant("b"):
                assert (await here.query.get(of_b.id)).name == "of b"
                with pytest.raises(NotFoundError):
                    await here.query.get(of_a.id)
    said = [each for each in caplog.messages if "invalidation_push has no effect" in each]
    assert len(said) == 1


async def test_a_client_that_came_later_drops_entries_too(
    database: MemoryDepsModule, dsns: dict[str, str]
) -> None:
    """P12: an invalidation by hand, over a client opened after the entry was kept."""
    async with process(database, dsns, spec=KEPT, idle_after=timedelta(milliseconds=50)) as here:
        product = await here.create("a")
        assert await here.price("a", product) == await here.price("a", product) == 1
        await until(lambda: not here.client.clients)
        with here.ctx.bind_tenant("a"):
            await here.ctx.cache(KEPT.cache).invalidate(str(product.id))
            misses = here.stats.misses
            await here.query.get(product.id)
            assert here.stats.misses == misses + 1


# -- wiring --------------------------------------------------------------------


@pytest.mark.parametrize("function", [True, False])
async def test_a_tenant_without_a_server(
    database: MemoryDepsModule, dsns: dict[str, str], function: bool
) -> None:
    """P4: its reads go to the source, and its writes are refused by name."""
    endpoints: Any = dsns.get if function else dsns
    async with process(database, endpoints) as here:
        product = await here.create("new")
        assert await here.price("new", product) == 1
        with here.ctx.bind_tenant("new"):
            assert len(await here.query.get_many([product.id])) == 1
            with pytest.raises(ConfigurationError, match="route 'new'"):
                await here.ctx.cache(SPEC.cache).get("k")
        with pytest.raises(ConfigurationError, match="route 'new'"):
            await here.reprice("new", product, 2)
        assert await here.price("new", product) == 1
        dsns["new"] = dsns["a"]
        await here.reprice("new", product, 3)
        assert await here.price("new", product) == await here.price("new", product) == 3
        assert (here.stats.fills, here.stats.hits) == (1, 1)


@pytest.mark.parametrize("store", [True, False])
async def test_documents_of_all_tenants_are_refused(dsns: dict[str, str], store: bool) -> None:
    database = MemoryDepsModule(documents={"products": {"tenant_aware": store}}, caches={})
    with pytest.raises(ConfigurationError, match="tenant_aware=True on their cache"):
        async with process(database, dsns, caches={"products": {"namespace": "app"}}):
            pass


async def test_routed_and_plain_steps_do_not_mix(
    database: MemoryDepsModule, dsns: dict[str, str], servers: list[ValkeyServer]
) -> None:
    for make in (RoutedRedisClient, RedisClient):
        client: Any = make()
        plain = redis_lifecycle_step(dsn=dsns["a"], client=client)
        routed = routed_redis_lifecycle_step(dsn_of=dsns, client=client)
        for steps in ((plain, routed), (routed, plain)):
            runtime = ExecutionRuntime(
                deps=DepsPlan.from_modules(RedisDepsModule(client=client)),
                lifecycle=LifecyclePlan.from_steps(*steps),
            )
            with pytest.raises(ConfigurationError, match="and no other"):
                async with runtime.scope():
                    raise AssertionError
            assert not client.connected
    wrong: Any = RedisClient()
    for client, step in (
        (RoutedRedisClient(), redis_lifecycle_step(dsn=dsns["a"])),
        (wrong, routed_redis_lifecycle_step(dsn_of=dsns)),
    ):
        runtime = ExecutionRuntime(
            deps=DepsPlan.from_modules(RedisDepsModule(client=client)),
            lifecycle=LifecyclePlan.from_steps(step),
        )
        with pytest.raises(ConfigurationError, match="RoutedRedisClient"):
            async with runtime.scope():
                raise AssertionError


async def test_one_routed_client_serves_one_runtime(
    database: MemoryDepsModule, dsns: dict[str, str]
) -> None:
    async with process(database, dsns) as here:
        runtime = ExecutionRuntime(
            deps=DepsPlan.from_modules(RedisDepsModule(client=here.client)),
            lifecycle=LifecyclePlan.from_steps(routed_redis_lifecycle_step(dsn_of=dsns)),
        )
        with pytest.raises(ConfigurationError, match="connected already"):
            async with runtime.scope():
                raise AssertionError
        await here.create("a")


def test_what_a_routed_client_is_made_of() -> None:
    with pytest.raises(ConfigurationError, match="max_clients"):
        RoutedRedisClient(max_clients=0)
    with pytest.raises(ConfigurationError, match="idle_after"):
        RoutedRedisClient(idle_after=timedelta(0))
