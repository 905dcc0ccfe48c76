"""A cluster whose slots move, whose nodes die, hang and come back: what callers see of it.

Two processes share a store that lives in this one, so that all there is to go wrong is between
them and the nodes. A node that hangs or dies is one test's own.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest
from tests.faults.world import ProductCreate, ProductRead, ProductUpdate, product_spec

from forze.application.contracts.cache import CacheSpec, L1Spec, Miss
from forze.application.execution import (
    DepsPlan,
    ExecutionContext,
    ExecutionRuntime,
    LifecyclePlan,
)
from forze.errors import (
    BackendError,
    BackendTimeout,
    BackendUnavailable,
    ConfigurationError,
    ValidationError,
)
from forze.testing.cluster import Cluster, Node, ValkeyCluster
from forze.testing.servers import ValkeyServer
from forze_memory import MemoryDepsModule
from forze_redis import RedisClient, RedisConfig, RedisDepsModule, redis_lifecycle_step
from forze_redis.scan import remove_all
from forze_redis.wire.scripts import Script

KEYS = [f"key-{number}" for number in range(200)]
QUICK = RedisConfig(heartbeat=0.2, socket_timeout=2.0)
GET = Script("get_one", "#!lua flags=no-writes\nreturn redis.call('GET', KEYS[1])")
HOT = product_spec(l1=L1Spec(ttl=timedelta(seconds=60)))
PLAIN = product_spec()


class Nursery:
    """Clusters of one shape, for as many tests: while one is used, the next two are started."""

    def __init__(self, tests: int, **shape: Any) -> None:
        self._left = tests
        self._shape = shape
        self._workers = ThreadPoolExecutor(2)
        self._started: deque[Future[Cluster]] = deque()
        self._start(ahead=1)

    @contextmanager
    def one(self) -> Iterator[Cluster]:
        """A cluster nobody has used."""
        self._start(ahead=3)
        found = self._started.popleft().result()
        try:
            yield found
        finally:
            self._workers.submit(found.__exit__, None, None, None)

    def close(self) -> None:
        """Stop what nobody wanted, and wait for what is being stopped."""
        for each in self._started:
            each.result().__exit__(None, None, None)
        self._workers.shutdown()

    def _start(self, ahead: int) -> None:
        while self._left and len(self._started) < ahead:
            self._left -= 1
            self._started.append(self._workers.submit(ValkeyCluster(**self._shape).__enter__))


def wanting(request: pytest.FixtureRequest, fixture: str) -> int:
    """How many tests of this module are to run with a fixture."""
    here = (item for item in request.session.items if item.path == request.path)
    return sum(fixture in item.fixturenames for item in here)  # type: ignore[attr-defined] # of functions


@pytest.fixture(scope="module", autouse=True)
def clusters(request: pytest.FixtureRequest) -> Iterator[Nursery]:
    wandering = min(1, wanting(request, "wandering"))
    found = Nursery(wandering + wanting(request, "cluster"))
    yield found
    found.close()


@pytest.fixture(scope="module", autouse=True)
def replicated_clusters(request: pytest.FixtureRequest) -> Iterator[Nursery]:
    found = Nursery(wanting(request, "replicated"), replicas=1)
    yield found
    found.close()


@pytest.fixture
def cluster(clusters: Nursery) -> Iterator[Cluster]:
    """Three nodes for one test, to be mistreated."""
    with clusters.one() as own:
        yield own


@pytest.fixture(scope="module")
def wandering(clusters: Nursery) -> Iterator[Cluster]:
    """Three nodes that live, and whose slots are moved."""
    with clusters.one() as shared:
        yield shared


@pytest.fixture
def replicated(replicated_clusters: Nursery) -> Iterator[Cluster]:
    """Three primaries with a replica each, for one test."""
    with replicated_clusters.one() as own:
        yield own


@asynccontextmanager
async def client_of(cluster: Cluster, config: RedisConfig = QUICK) -> AsyncIterator[RedisClient]:
    """A client of the cluster, connected."""
    async with await RedisClient().connect(cluster.dsn, config) as client:
        yield client


@dataclass
class Process:
    """One process's worth of the application."""

    ctx: ExecutionContext
    redis: RedisClient
    spec: Any

    def __post_init__(self) -> None:
        self.query = self.ctx.document.query(self.spec)
        self.docs = self.ctx.document.command(self.spec)

    async def create(self, price: int = 10) -> ProductRead:
        document: ProductRead = await self.docs.create(ProductCreate(name="Widget", price=price))
        return document

    async def reprice(self, product: ProductRead, price: int) -> ProductRead:
        document: ProductRead = await self.docs.update(
            product.id, product.rev, ProductUpdate(price=price)
        )
        return document

    async def price(self, product: ProductRead) -> int:
        document: ProductRead = await self.query.get(product.id)
        return document.price

    @property
    def stats(self) -> Any:
        return self.query.stats()


@asynccontextmanager
async def processes(
    cluster: Cluster, spec: Any = PLAIN, *, config: RedisConfig = QUICK, **cache: Any
) -> AsyncIterator[tuple[Process, Process]]:
    """Two of them over one store."""
    store = MemoryDepsModule(documents={"products": {}}, caches={})
    async with AsyncExitStack() as stack:
        found = []
        for _ in range(2):
            client = RedisClient()
            caches = {"products": {"namespace": "app:products", **cache}}
            runtime = ExecutionRuntime(
                deps=DepsPlan.from_modules(store, RedisDepsModule(client=client, caches=caches)),
                lifecycle=LifecyclePlan.from_steps(
                    redis_lifecycle_step(dsn=cluster.dsn, config=config)
                ),
            )
            ctx = await stack.enter_async_context(runtime.scope())
            found.append(Process(ctx, client, spec))
        yield found[0], found[1]


def ports(client: RedisClient) -> set[int]:
    """Of the nodes that a client is connected to, or tries to be."""
    return {node.endpoint.port for node in client._here().nodes}


def direct_of(process: Process) -> Any:
    """The cache of its documents, for direct use."""
    return process.ctx.cache(PLAIN.cache)


def on(cluster: Cluster, node: Node, keys: list[str] = KEYS) -> list[str]:
    """Those of ``keys`` that ``node`` serves."""
    return [key for key in keys if cluster.owner(key) is node]


def pointer(pk: UUID) -> str:
    return f"app:products/cache/pointer/{{{pk}}}"


async def products_on(cluster: Cluster, process: Process, node: Node, count: int) -> list[Any]:
    """New products whose entries ``node`` serves."""
    found: list[Any] = []
    while len(found) < count:
        product = await process.create()
        if cluster.owner(pointer(product.id)) is node:
            found.append(product)
    return found


async def eventually(met: Callable[[], bool], seconds: float = 5.0) -> float:
    """Wait until ``met``; how long it took."""
    began = time.monotonic()
    async with asyncio.timeout(seconds):
        while not met():
            await asyncio.sleep(0.005)
    return time.monotonic() - began


async def until_answered(ask: Callable[[], Awaitable[Any]], seconds: float = 5.0) -> Any:
    """Ask until there is no error; the answer."""
    async with asyncio.timeout(seconds):
        while True:
            try:
                return await ask()
            except BackendError:
                await asyncio.sleep(0.02)


# -- calls ---------------------------------------------------------------------


async def test_calls_go_to_the_node_of_their_first_key(valkey_cluster: Cluster) -> None:
    async with client_of(valkey_cluster) as client:
        assert client.clustered
        await asyncio.gather(*(client.call("SET", key, key) for key in KEYS))
        for key in KEYS[:20]:
            assert valkey_cluster.owner(key).ask("GET", key).endswith(key.encode() + b"\r\n")
        assert await asyncio.gather(*(client.run(GET, [key]) for key in KEYS)) == [
            key.encode() for key in KEYS
        ]
        pipeline = client.pipeline()
        for key in KEYS:
            pipeline.call("GET", key)
        assert await pipeline.execute() == [key.encode() for key in KEYS]
        assert await client.call_large("GET", KEYS[0]) == KEYS[0].encode()
        assert await client.call("XADD", "stream", "*", "a", "1")
        assert await client.call("XREAD", "COUNT", 1, "STREAMS", "stream", "0")
        big = b"x" * 300_000
        assert await client.call("SET", KEYS[1], big) == b"OK"
        assert await client.call_large("GET", KEYS[1]) == big
        assert await client.redis.get(KEYS[2]) == KEYS[2].encode()
        assert await client.call("PING") == b"PONG"


async def test_keys_of_different_slots_in_one_call_are_refused_by_name(
    valkey_cluster: Cluster,
) -> None:
    async with client_of(valkey_cluster) as client:
        with pytest.raises(ValidationError, match="hash tag"):
            await client.call("MGET", "one", "two")
        assert await client.call("MGET", "{same}one", "{same}two") == [None, None]


async def test_a_command_for_one_servers_keys_is_refused(valkey_cluster: Cluster) -> None:
    async with client_of(valkey_cluster) as client:
        for command in ("scan", "FLUSHALL"):
            with pytest.raises(ConfigurationError, match="primaries"):
                await client.call(command, 0)
        await asyncio.gather(*(client.call("SET", key, 1) for key in KEYS))
        sizes = [await each.call("DBSIZE") for each in client.primaries()]
        assert len(sizes) == 3
        assert sum(sizes) >= len(KEYS)


async def test_a_lost_script_is_sent_in_full(valkey_cluster: Cluster) -> None:
    async with client_of(valkey_cluster) as client:
        await asyncio.gather(*(client.call("SET", key, key) for key in KEYS))
        valkey_cluster.ask("SCRIPT", "FLUSH")
        replies = await asyncio.gather(*(client.run(GET, [key]) for key in KEYS))
        assert replies == [key.encode() for key in KEYS]


async def test_what_is_no_cluster_is_named(own_valkey: ValkeyServer) -> None:
    with pytest.raises(ConfigurationError, match="no node of a cluster"):
        await RedisClient().connect(f"redis+cluster://127.0.0.1:{own_valkey.port}")


async def test_a_password_goes_to_every_node() -> None:
    with ValkeyCluster(password="hush") as locked:
        async with client_of(locked) as client:
            await asyncio.gather(*(client.call("SET", key, 1) for key in KEYS))
            assert await client.redis.get(KEYS[0]) == b"1"
        with pytest.raises(ConfigurationError, match="user and password"):
            await RedisClient().connect(locked.dsn.replace("hush", "wrong"), QUICK)


async def test_one_seed_is_enough_and_a_dead_one_no_hindrance(cluster: Cluster) -> None:
    first = cluster.nodes[0]
    with ValkeyServer() as gone:
        dead = gone.port
    dsn = f"redis+cluster://127.0.0.1:{dead},127.0.0.1:{first.port}"
    async with await RedisClient().connect(dsn, QUICK) as client:
        await asyncio.gather(*(client.call("SET", key, 1) for key in KEYS))
    with pytest.raises(BackendUnavailable, match="no node of the cluster answers"):
        await RedisClient().connect(f"redis+cluster://127.0.0.1:{dead}", QUICK)


async def test_a_cluster_that_is_down_at_start_is_waited_for(cluster: Cluster) -> None:
    cluster.kill()
    patient = RedisConfig(require_at_start=False, heartbeat=0.2)
    async with await RedisClient().connect(cluster.dsn, patient) as client:
        with pytest.raises(BackendUnavailable) as refused:
            await client.call("GET", "key")
        assert refused.value.outcome == "none"
        assert not (await client.health()).ok
        await asyncio.to_thread(cluster.start)
        assert await until_answered(lambda: client.call("SET", "key", 1)) == b"OK"


# -- slots that move -----------------------------------------------------------


async def test_nothing_fails_while_a_slot_moves_under_load(wandering: Cluster) -> None:
    """MOVED and ASK: every increment is executed once, by whoever has the key."""
    key = "{moving}counter"
    slot = wandering.slot(key)
    async with client_of(wandering) as client:
        stop, counts = asyncio.Event(), [0] * 8
        await client.call("SET", key, 0)

        async def load(number: int) -> None:
            while not stop.is_set():
                await client.call("INCR", key)
                await client.run(GET, [f"{{moving}}absent-{number}-{counts[number]}"])
                counts[number] += 1

        tasks = [asyncio.create_task(load(number)) for number in range(8)]
        for _ in range(5):
            source = wandering.owner(slot)
            target = wandering.other(source)
            for step in (wandering.begin_move, wandering.move_keys, wandering.end_move):
                await asyncio.to_thread(step, slot, target)
                await asyncio.sleep(0.03)
        stop.set()
        await asyncio.gather(*tasks)
        assert int(await client.call("GET", key)) == sum(counts) > 100
        await asyncio.sleep(0.2)
        before = wandering.owner(slot).ask("INFO", "commandstats").count(b"cmdstat_asking")
        assert int(await client.call("INCR", key)) == sum(counts) + 1
        assert wandering.owner(slot).ask("INFO", "commandstats").count(b"cmdstat_asking") == before


async def test_a_key_that_is_ahead_of_its_slot_is_asked_for(wandering: Cluster) -> None:
    """ASK, for as long as the slot stays open; what is not there yet is made at the target."""
    key, other = "{ahead}key", "{ahead}other"
    slot = wandering.slot(key)
    target = wandering.other(wandering.owner(slot))
    async with client_of(wandering) as client:
        await client.call("SET", key, 1)
        wandering.begin_move(slot, target)
        wandering.move_keys(slot, target)
        assert await client.call("GET", key) == b"1"
        assert await client.call("INCR", key) == 2
        assert await client.run(GET, [key]) == b"2"
        assert await client.call("SET", other, 3) == b"OK"
        wandering.end_move(slot, target)
        assert await client.call("MGET", key, other) == [b"2", b"3"]


async def test_keys_that_are_apart_for_a_moment_are_asked_for_again(wandering: Cluster) -> None:
    """TRYAGAIN: until they are together, or the call's time is up."""
    first, second = "{apart}1", "{apart}2"
    slot = wandering.slot(first)
    source = wandering.owner(slot)
    target = wandering.other(source)
    async with client_of(wandering) as client:
        await client.call("MSET", first, 1, second, 2)
        wandering.begin_move(slot, target)
        wandering.move_keys(slot, target, second)
        with pytest.raises(BackendError) as late:
            await client.call("MGET", first, second, timeout=0.1)
        assert late.value.outcome == "none"
        waiting = asyncio.ensure_future(client.call("MGET", first, second))
        await asyncio.sleep(0.05)
        assert not waiting.done()
        wandering.move_keys(slot, target)
        wandering.end_move(slot, target)
        assert await waiting == [b"1", b"2"]


async def test_large_values_follow_their_slot(wandering: Cluster) -> None:
    key, body = "{large}value", b"x" * 300_000
    slot = wandering.slot(key)
    target = wandering.other(wandering.owner(slot))
    async with client_of(wandering) as client:
        assert await client.call("SET", key, body) == b"OK"
        wandering.begin_move(slot, target)
        wandering.move_keys(slot, target)
        assert await client.call_large("GET", key) == body
        wandering.end_move(slot, target)
        assert await client.call_large("GET", key) == body


async def test_a_channel_moves_with_its_slot(wandering: Cluster) -> None:
    """What may have been missed meanwhile is told as None."""
    heard: list[bytes | None] = []
    async with client_of(wandering) as client:
        subscription = await client.subscribe("news", heard.append)
        await client.call("SPUBLISH", "news", "one")
        await eventually(lambda: heard == [b"one"])
        slot = wandering.slot("news")
        wandering.move(slot, wandering.other(wandering.owner(slot)))
        await eventually(lambda: heard == [b"one", None])
        await client.call("SPUBLISH", "news", "two")
        await eventually(lambda: len(heard) == 3)
        subscription.close()
        assert await client.call("SPUBLISH", "news", "three") == 0
        assert heard == [b"one", None, b"two"]


async def test_no_reply_is_anothers_when_a_channel_is_left_while_its_slot_moves(
    wandering: Cluster,
) -> None:
    """The node says by itself that the channel is gone, and refuses what asks it to."""
    slot = wandering.slot("going")
    source = wandering.owner(slot)
    keys = on(wandering, source)[:20]
    async with client_of(wandering, RedisConfig(heartbeat=60.0)) as client:
        await asyncio.gather(*(client.call("SET", key, key) for key in keys))
        subscription = await client.subscribe("going", lambda _: None)
        transport = client._here().home(b"going").connection._transport
        assert transport is not None
        transport.pause_reading()
        await asyncio.to_thread(wandering.move, slot, wandering.other(source))
        subscription.close()
        calls = [client.call("GET", key) for key in keys]
        await asyncio.sleep(0.05)
        transport.resume_reading()
        assert await asyncio.gather(*calls) == [key.encode() for key in keys]


async def test_many_channels_are_heard_anew_though_one_node_hangs(replicated: Cluster) -> None:
    names = [f"channel-{number}" for number in range(60)]
    heard: list[str] = []
    async with client_of(replicated) as client:
        for name in names:
            await client.subscribe(name, lambda _, name=name: heard.append(name))  # type: ignore[misc]
        moving, hanging, _ = replicated.primaries
        moved = on(replicated, moving, names)
        hanging.pause()
        try:
            await asyncio.to_thread(replicated.failover, moving)
            assert await eventually(lambda: set(heard) >= set(moved), 4.0) < 4.0
            assert not set(heard) & set(on(replicated, hanging, names)), "that one still hangs"
        finally:
            hanging.resume()


async def test_an_entry_whose_keys_are_apart_is_invalidated_all_the_same(
    wandering: Cluster,
) -> None:
    """The pointer is still here and its body is not: reads go to the source, and no write fails."""
    async with processes(wandering) as (a, b):
        product = await a.create(price=1)
        assert [await b.price(product) for _ in range(2)] == [1, 1]
        key = pointer(product.id)
        slot = wandering.slot(key)
        source = wandering.owner(slot)
        target = wandering.other(source)
        (body,) = (
            name.decode()
            for name in source.ask("KEYS", f"*body*{product.id}*").split(b"\r\n")
            if b"body" in name
        )
        wandering.begin_move(slot, target)
        wandering.move_keys(slot, target, body)
        assert await b.price(product) == 1
        product = await a.reprice(product, 2)
        assert await b.price(product) == 2
        assert (a.stats.journal, a.stats.intent_failures) == (0, 0)
        wandering.move_keys(slot, target)
        wandering.end_move(slot, target)
        assert [await b.price(product) for _ in range(3)] == [2, 2, 2]


async def test_reads_and_writes_go_on_while_slots_move(wandering: Cluster) -> None:
    async with processes(wandering) as (a, b):
        products = [await a.create(price=0) for _ in range(30)]
        stop = asyncio.Event()

        async def move() -> None:
            slots = [wandering.slot(pointer(each.id)) for each in products]
            for slot in slots:
                target = wandering.other(wandering.owner(slot))
                for step in (wandering.begin_move, wandering.move_keys, wandering.end_move):
                    await asyncio.to_thread(step, slot, target)
            stop.set()

        moving = asyncio.create_task(move())
        price = 0
        while not stop.is_set():
            price += 1
            at = price % len(products)
            products[at] = await a.reprice(products[at], price)
            assert await b.price(products[at]) == price
            found = await b.query.get_many([each.id for each in products])
            assert [each.price for each in found] == [each.price for each in products]
        await moving
        assert price > 10


async def test_a_namespace_is_cleared_on_every_node_and_not_while_slots_move(
    wandering: Cluster,
) -> None:
    async with processes(wandering) as (a, _):
        wandering.ask("FLUSHALL")
        products = [await a.create() for _ in range(50)]
        await a.query.get_many([each.id for each in products])
        pointers = a.ctx.cache(CacheSpec(name="products")).pointers("0" * 8)
        slot = wandering.slot(pointer(products[0].id))
        target = wandering.other(wandering.owner(slot))
        wandering.begin_move(slot, target)
        with pytest.raises(BackendUnavailable, match="on the move"):
            await pointers.clear("app:products")
        wandering.move_keys(slot, target)
        wandering.end_move(slot, target)
        await a.query.get_many([each.id for each in products])
        # Not until every node has heard who has the slot now.
        assert await until_answered(lambda: pointers.clear("app:products"), 60) == 50
        for node in wandering.nodes:
            assert node.ask("KEYS", "*pointer*") == b"*0\r\n"


async def test_a_namespace_is_not_cleared_where_a_server_is_not_known_yet(
    replicated: Cluster,
) -> None:
    """What it has would be left; so the client asks who serves, and then it is."""
    async with client_of(replicated, RedisConfig(heartbeat=60.0)) as client:
        await asyncio.gather(*(client.call("SET", f"app:{key}", 1) for key in KEYS))
        promoted = await asyncio.to_thread(replicated.failover, replicated.owner("app:key-1"))
        assert promoted.port not in ports(client)
        with pytest.raises(BackendUnavailable, match="not every key"):
            await remove_all(client, "app:*")
        await eventually(lambda: promoted.port in ports(client))
        await until_answered(lambda: remove_all(client, "app:*"))
        for node in replicated.primaries:
            assert node.ask("KEYS", "app:*") == b"*0\r\n"


# -- nodes that go -------------------------------------------------------------


async def test_a_paused_node_slows_no_call_to_the_others(cluster: Cluster) -> None:
    async with client_of(cluster, RedisConfig(heartbeat=0.2, socket_timeout=0.5)) as client:
        await asyncio.gather(*(client.call("SET", key, 1) for key in KEYS))
        sick = cluster.owner(KEYS[0])
        theirs = on(cluster, sick)
        others = [key for key in KEYS if key not in theirs]
        sick.pause()
        try:
            hanging = [asyncio.ensure_future(client.call("GET", key)) for key in theirs]
            slowest = 0.0
            for key in others:
                began = time.monotonic()
                assert await client.run_cached(GET, [key]) == b"1"
                slowest = max(slowest, time.monotonic() - began)
            assert slowest < 0.1
            answers = await asyncio.gather(*hanging, return_exceptions=True)
            assert all(isinstance(each, BackendTimeout) for each in answers)
            assert not client.available(theirs[0])
            assert client.available(others[0])
            assert client.available()
            began = time.monotonic()
            with pytest.raises(BackendUnavailable, match="not attempted"):
                await client.run_cached(GET, [theirs[0]])
            assert time.monotonic() - began < 0.05
            health = await client.health()
            assert not health.ok
            assert health.breaker == "open"
            assert "1 of 3 primaries" in str(health.error)
        finally:
            sick.resume()
        await eventually(lambda: client.available(theirs[0]))
        assert await client.run_cached(GET, [theirs[0]]) == b"1"
        assert (await client.health()).ok


async def test_a_dead_node_is_missed_by_its_own_keys_only(cluster: Cluster) -> None:
    async with client_of(cluster) as client:
        await asyncio.gather(*(client.call("SET", key, 1) for key in KEYS))
        dead = cluster.owner(KEYS[0])
        theirs = on(cluster, dead)
        others = [key for key in KEYS if key not in theirs]
        dead.kill()
        await eventually(lambda: not client.available(theirs[0]))
        for key in theirs[:5]:
            with pytest.raises(BackendUnavailable):
                await client.run_cached(GET, [key])
        assert set(await asyncio.gather(*(client.call("GET", key) for key in others))) == {b"1"}
        await asyncio.to_thread(dead.start)
        assert await until_answered(lambda: client.call("SET", theirs[0], 2)) == b"OK"


async def test_a_failover_is_followed(replicated: Cluster) -> None:
    """What waited for the dead primary is answered by the one that took its slots."""
    async with client_of(replicated) as client:
        told: list[tuple[str, str]] = []
        client.on_reconnect(lambda old, new: told.append((old, new)))
        await asyncio.gather(*(client.call("SET", key, 1) for key in KEYS))
        dead = replicated.owner(KEYS[0])
        before, incarnation = client.generation, client.incarnation(KEYS[0])
        dead.ask("WAIT", "1", "1000")
        dead.kill()
        await eventually(lambda: not client.available(KEYS[0]))
        waiting = asyncio.ensure_future(client.call("GET", KEYS[0]))
        await asyncio.to_thread(replicated.failover, dead)
        await asyncio.wait([waiting], timeout=5)
        assert waiting.done()
        assert waiting.result() == b"1"
        assert set(await asyncio.gather(*(client.call("GET", key) for key in KEYS))) == {b"1"}
        assert client.generation != before
        assert client.incarnation(KEYS[0]) is not incarnation
        assert told


async def test_a_failover_while_the_primary_lives_is_followed(replicated: Cluster) -> None:
    async with client_of(replicated) as client:
        await asyncio.gather(*(client.call("SET", key, 1) for key in KEYS))
        old = replicated.owner(KEYS[0])
        old.ask("WAIT", "1", "1000")
        await asyncio.to_thread(replicated.failover, old)
        assert set(await asyncio.gather(*(client.call("GET", key) for key in KEYS))) == {b"1"}
        new = replicated.owner(KEYS[0])
        await eventually(lambda: new.port in ports(client))
        await eventually(lambda: old.port not in ports(client))


@pytest.mark.parametrize("primary_lives", [False, True])
async def test_what_a_lost_primary_kept_is_not_served_by_its_successor(
    replicated: Cluster, primary_lives: bool
) -> None:
    """The replica did not get the invalidation: its entries are those of another generation."""
    async with processes(replicated, config=RedisConfig(heartbeat=5.0)) as (a, b):
        product = await a.create(price=1)
        (other,) = await products_on(replicated, a, replicated.owner(pointer(product.id)), 1)
        direct = direct_of(b)
        assert [await b.price(product) for _ in range(2)] == [1, 1]
        assert [await b.price(other) for _ in range(2)] == [10, 10]
        assert (await direct.get(str(other.id)))["price"] == 10
        key = pointer(product.id)
        primary, server = replicated.owner(key), b.redis.incarnation(key)
        assert server is not None
        primary.ask("WAIT", "1", "1000")
        replica = replicated.replica_of(primary)
        replica.pause()
        primary.ask("CLIENT", "KILL", "TYPE", "replica")  # it hears of nothing from now on
        product = await a.reprice(product, 2)
        await direct_of(a).invalidate(str(other.id))
        if not primary_lives:
            primary.kill()
        takeover = asyncio.to_thread(replica.ask, "CLUSTER", "FAILOVER", "TAKEOVER")
        promoting = asyncio.create_task(takeover)
        await asyncio.sleep(0.05)  # it lies in the socket, ahead of any word from the primary
        replica.resume()
        assert await promoting == b"+OK\r\n"
        assert f"V{server.generation}".encode() in replica.ask("GET", key)
        if not primary_lives:
            await until_answered(lambda: b.redis.call("EXISTS", key))
        assert tuple(await asyncio.gather(direct.get(str(other.id)), b.price(product))) == (None, 2)
        assert await direct.get(str(other.id)) is None
        assert [await b.price(product) for _ in range(3)] == [2, 2, 2]
        assert [await a.price(product) for _ in range(3)] == [2, 2, 2]


async def test_many_documents_come_though_a_node_is_away(cluster: Cluster) -> None:
    """Those of the dead node from the source, the others from the cache."""
    async with processes(cluster) as (a, _):
        products = [await a.create() for _ in range(60)]
        ids = [each.id for each in products]
        await a.query.get_many(ids)
        dead = cluster.owner(pointer(ids[0]))
        lost = [each for each in ids if cluster.owner(pointer(each)) is dead]
        dead.kill()
        hits, bypasses = a.stats.hits, a.stats.bypasses
        assert [each.id for each in await a.query.get_many(ids)] == ids
        assert a.stats.hits - hits == len(ids) - len(lost)
        assert a.stats.bypasses - bypasses == len(lost)


async def test_one_nodes_reads_may_be_away(cluster: Cluster) -> None:
    async with processes(cluster) as (a, _):
        products = [await a.create() for _ in range(20)]
        await a.query.get_many([each.id for each in products])
        pointers = a.ctx.cache(CacheSpec(name="products")).pointers("0" * 8)
        addresses = [pointer(each.id) for each in products]
        dead = cluster.owner(addresses[0])
        away = [cluster.owner(each) is dead for each in addresses]
        dead.kill()
        await eventually(lambda: not pointers.available(addresses[0]))
        found = await pointers.read_many(addresses, pointers.token())
        assert [each is Miss.AWAY for each in found] == away
        cluster.kill()
        await eventually(lambda: not pointers.available())
        with pytest.raises(BackendUnavailable):
            await pointers.read_many(addresses, pointers.token())


async def test_what_a_hanging_node_was_not_told_is_told_when_it_answers(
    cluster: Cluster,
) -> None:
    """The journal: owed to one node only, and settled as soon as that one is back."""
    async with processes(cluster) as (a, b):
        sick = cluster.nodes[0]
        (product,) = await products_on(cluster, a, sick, 1)
        healthy = (await products_on(cluster, a, cluster.nodes[1], 1))[0]
        for process in (a, b):
            assert await process.price(product) == await process.price(healthy) == 10
        sick.pause()
        try:
            product = await a.reprice(product, 11)
            assert await a.price(product) == 11
            assert a.stats.journal == 1
            healthy = await a.reprice(healthy, 12)
            assert a.stats.journal == 1
            assert await b.price(healthy) == 12
            await eventually(lambda: not a.redis.available(pointer(product.id)))
        finally:
            sick.resume()
        await eventually(lambda: a.stats.journal == 0)
        assert [await b.price(product) for _ in range(2)] == [11, 11]


async def test_what_one_node_is_owed_does_not_wait_for_another(cluster: Cluster) -> None:
    async with processes(cluster) as (a, b):
        first, second = cluster.nodes[:2]
        (one,) = await products_on(cluster, a, first, 1)
        (two,) = await products_on(cluster, a, second, 1)
        for process in (a, b):
            assert await process.price(one) == await process.price(two) == 10
        first.pause()
        second.pause()
        try:
            one, two = await asyncio.gather(a.reprice(one, 11), a.reprice(two, 12))
            assert a.stats.journal == 2
            await eventually(lambda: not a.redis.available(pointer(one.id)))
            await eventually(lambda: not a.redis.available(pointer(two.id)))
            second.resume()
            await eventually(lambda: a.stats.journal == 1)
            assert [await b.price(two) for _ in range(2)] == [12, 12]
        finally:
            first.resume()
            second.resume()
        await eventually(lambda: a.stats.journal == 0)
        assert [await b.price(one) for _ in range(2)] == [11, 11]


async def test_what_a_dead_primary_was_not_told_is_told_to_its_successor(
    replicated: Cluster,
) -> None:
    async with processes(replicated) as (a, b):
        dead = replicated.owner(pointer((await a.create()).id))
        (product,) = await products_on(replicated, a, dead, 1)
        assert await b.price(product) == 10
        dead.ask("WAIT", "1", "1000")
        dead.kill()
        product = await a.reprice(product, 11)
        assert a.stats.journal == 1
        await asyncio.to_thread(replicated.failover, dead)
        await eventually(lambda: a.stats.journal == 0)
        assert [await b.price(product) for _ in range(2)] == [11, 11]


async def test_a_node_that_lost_its_data_serves_nothing_old(cluster: Cluster) -> None:
    async with processes(cluster) as (a, b):
        product = (await products_on(cluster, a, cluster.nodes[0], 1))[0]
        assert [await b.price(product) for _ in range(2)] == [10, 10]
        await asyncio.to_thread(cluster.nodes[0].restart)
        await asyncio.to_thread(cluster.wait_until_ok)
        product = await a.reprice(product, 11)
        assert [await b.price(product) for _ in range(3)] == [11, 11, 11]
        hits = b.stats.hits
        await eventually(b.redis.available)
        assert await b.price(product) == 11
        assert b.stats.hits > hits


# -- pushes --------------------------------------------------------------------


def hits(process: Process) -> int:
    stats = process.query.l1_stats()
    assert stats is not None
    return stats.hits


async def kept(process: Process, product: Any) -> int:
    """Read until the in-process tier serves it; the price it serves."""
    async with asyncio.timeout(5):
        while True:
            before = hits(process)
            price = await process.price(product)
            if hits(process) > before:
                return price
            await asyncio.sleep(0.01)


async def test_every_primary_pushes(valkey_cluster: Cluster) -> None:
    async with processes(valkey_cluster, HOT, invalidation_push=True) as (a, b):
        products = [await b.create(price=1) for _ in range(30)]
        assert len({valkey_cluster.owner(pointer(each.id)).port for each in products}) == 3
        for each in products:
            assert await kept(a, each) == 1
        assert a.redis.tracking.state == "on"
        for at, each in enumerate(products):
            products[at] = await b.reprice(each, 2)
        await asyncio.sleep(0.05)
        assert [await a.price(each) for each in products] == [2] * len(products)
        assert a.stats.pushes >= len(products)


async def test_nothing_is_kept_while_one_stream_is_down(cluster: Cluster) -> None:
    async with processes(cluster, HOT, invalidation_push=True) as (a, b):
        here, there = cluster.nodes[0], cluster.nodes[1]
        product = (await products_on(cluster, b, there, 1))[0]
        assert await kept(a, product) == 10
        here.kill()
        await eventually(lambda: a.redis.tracking.state == "down")
        before = hits(a)
        assert await a.price(product) == 10
        assert hits(a) == before
        await asyncio.to_thread(here.start)
        await eventually(lambda: a.redis.tracking.state == "on")
        assert await kept(a, product) == 10


async def test_entries_whose_slot_moved_are_pushed_by_the_new_owner(wandering: Cluster) -> None:
    async with processes(wandering, HOT, invalidation_push=True) as (a, b):
        product = await b.create(price=1)
        assert await kept(a, product) == 1
        slot = wandering.slot(pointer(product.id))
        wandering.move(slot, wandering.other(wandering.owner(slot)))
        assert await kept(a, product) == 1
        product = await b.reprice(product, 2)
        await asyncio.sleep(0.05)
        assert await a.price(product) == 2
        assert await kept(a, product) == 2


async def test_after_a_failover_the_successor_pushes(replicated: Cluster) -> None:
    async with processes(replicated, HOT, invalidation_push=True) as (a, b):
        product = await b.create(price=1)
        assert await kept(a, product) == 1
        primary = replicated.owner(pointer(product.id))
        primary.ask("WAIT", "1", "1000")
        await asyncio.to_thread(replicated.failover, primary)
        product = await b.reprice(product, 2)
        await asyncio.sleep(0.5)
        assert await a.price(product) == 2
        await eventually(lambda: a.redis.tracking.state == "on")
        assert await kept(a, product) == 2
        product = await b.reprice(product, 3)
        await asyncio.sleep(0.05)
        assert await a.price(product) == 3


# -- loops ---------------------------------------------------------------------


async def test_a_cluster_that_one_loop_never_reached_is_reached_from_another(
    cluster: Cluster,
) -> None:
    client = RedisClient()
    patient = RedisConfig(require_at_start=False, heartbeat=0.2, connect_timeout=0.1)
    cluster.pause()
    await asyncio.to_thread(lambda: asyncio.run(client.connect(cluster.dsn, patient)))
    cluster.resume()
    assert await until_answered(lambda: client.call("SET", "key", 1)) == b"OK"
    await client.close()


async def test_closed_while_it_connects_nobody_waits_for_it(cluster: Cluster) -> None:
    cluster.pause()
    client = RedisClient()
    connecting = asyncio.create_task(client.connect(cluster.dsn, QUICK))
    await asyncio.sleep(0.05)
    await client.close()
    with pytest.raises(BackendUnavailable, match="was closed"):
        async with asyncio.timeout(1):
            await connecting


async def test_another_event_loop_connects_anew(valkey_cluster: Cluster) -> None:
    async with client_of(valkey_cluster) as client:
        await client.call("SET", "loop", 1)

        def elsewhere() -> bytes:
            async def ask() -> bytes:
                reply: bytes = await client.call("GET", "loop")
                await client.close()
                return reply

            return asyncio.run(ask())

        assert await asyncio.to_thread(elsewhere) == b"1"
