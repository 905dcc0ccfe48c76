"""Failovers under real sentinels: where the client goes, and what it may still believe."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from datetime import timedelta
from functools import partial
from typing import Any

import asyncpg
import pytest
from redis.exceptions import ConnectionError as DriverConnectionError
from tests.faults.test_wire_servers import ended
from tests.faults.world import (
    NAMESPACE,
    SPEC,
    ProductCreate,
    ProductRead,
    ProductUpdate,
    product_spec,
    state,
)

from forze.application.contracts.cache import L1Spec
from forze.application.contracts.document import DocumentSpec
from forze.application.execution import (
    DepsRegistry,
    ExecutionContext,
    ExecutionRuntime,
    LifecyclePlan,
)
from forze.errors import BackendError, BackendTimeout, BackendUnavailable, ConfigurationError
from forze.testing.sentinel import Replicated
from forze.testing.servers import RedisServer, RespServer, ValkeyServer
from forze_postgres import (
    PostgresClient,
    PostgresDepsModule,
    PostgresDocumentConfig,
    PostgresLifecycleModule,
)
from forze_redis import (
    RedisCacheConfig,
    RedisClient,
    RedisConfig,
    RedisDepsModule,
    redis_lifecycle_step,
)

PROMPT = RedisConfig(heartbeat=0.3, socket_timeout=2.0, connect_timeout=1.0)
LARGE = b"x" * 300_000


@pytest.fixture(params=[ValkeyServer, RedisServer])
def servers(request: pytest.FixtureRequest) -> Iterator[Replicated]:
    """A primary, a replica, a sentinel: of Valkey, then of Redis."""
    if request.param.executable() is None:
        pytest.skip("no redis-server on the PATH: nothing was tested against Redis 7")
    with Replicated(request.param) as running:
        yield running


@pytest.fixture
def valkeys() -> Iterator[Replicated]:
    """The same of Valkey alone."""
    with Replicated() as running:
        yield running


async def eventually(met: Callable[[], bool], seconds: float = 10.0) -> None:
    async with asyncio.timeout(seconds):
        while not met():
            await asyncio.sleep(0.02)


async def primary_dies(servers: Replicated) -> None:
    """SIGKILL; return when the replica is the primary."""
    heir = servers.replica
    servers.primary.kill()
    await asyncio.to_thread(servers.wait_for_primary, heir)


def at(client: RedisClient) -> int:
    """The port the client is connected to."""
    return client._here().nodes[0].endpoint.port


async def lands_on(client: RedisClient, port: int) -> None:
    await eventually(lambda: at(client) == port and client.available())


def test_nothing_is_left_behind(servers: Replicated) -> None:
    everything = (*servers.nodes, *servers.sentinels)
    pids, places = [each.pid for each in everything], [each.directory for each in everything]
    servers.nodes[0].pause()
    servers.__exit__()
    assert all(map(ended, pids))
    assert not any(place.exists() for place in places)


async def test_there_and_back_again(servers: Replicated) -> None:
    """P3: three primaries, two of them the same server: three generations."""
    first, second = servers.primary, servers.replica
    async with await RedisClient().connect(servers.dsn, PROMPT) as client:
        changes: list[tuple[str, str]] = []
        client.on_reconnect(lambda old, new: changes.append((old, new)))
        assert at(client) == first.port
        await client.call("SET", "who", "a")
        generations = [client.generation]
        for heir in (second, first):
            await primary_dies(servers)
            await lands_on(client, heir.port)
            assert await client.call("SET", "who", heir.port)
            assert await client.call("GET", "who") == str(heir.port).encode()
            assert heir.ask("GET", "who").endswith(f"{heir.port}\r\n".encode())
            generations.append(client.generation)
            assert changes[-1] == tuple(generations[-2:])
            await asyncio.to_thread(servers.rejoin)
        assert len(set(generations)) == 3
        assert "00000000" not in generations


async def test_a_call_under_way_is_unknown_and_one_that_waits_is_served(
    valkeys: Replicated,
) -> None:
    async with await RedisClient().connect(valkeys.dsn, PROMPT) as client:
        heir = valkeys.replica
        valkeys.primary.pause()
        under_way = client.call("SET", "k", "u", timeout=10)
        await asyncio.sleep(0.05)
        valkeys.primary.kill()
        with pytest.raises(BackendUnavailable) as lost:
            await under_way
        assert lost.value.outcome == "unknown"
        assert await client.call("SET", "k", "v", timeout=15) == b"OK"
        assert heir.ask("GET", "k") == b"$1\r\nv\r\n"


async def test_a_primary_that_hangs_is_left_and_not_returned_to(valkeys: Replicated) -> None:
    """P3: what hung comes back as a primary, for a moment; nobody goes there."""
    hung, heir = valkeys.nodes
    async with await RedisClient().connect(valkeys.dsn, PROMPT) as client:
        hung.pause()
        unanswered = client.call("SET", "k", "hung")
        await asyncio.to_thread(valkeys.wait_for_primary, heir)
        await lands_on(client, heir.port)
        with pytest.raises(BackendError) as lost:
            await unanswered
        assert isinstance(lost.value, BackendTimeout | BackendUnavailable)
        assert lost.value.outcome == "unknown"
        assert await client.call("SET", "k", "heir") == b"OK"
        hung.resume()
        await asyncio.to_thread(valkeys.wait_for_demotion, hung)
        assert at(client) == heir.port
        assert await client.call("GET", "k") == b"heir"


async def test_a_primary_that_lives_on_is_left_at_once(servers: Replicated) -> None:
    """P3: nothing is read from a server that sentinels have replaced, demoted or not."""
    async with await RedisClient().connect(servers.dsn, PROMPT) as client:
        old, generation = servers.primary, client.generation
        await client.redis.set("large", LARGE)
        pool = client.redis
        new = await asyncio.to_thread(servers.failover)
        await lands_on(client, new.port)
        assert client.generation != generation
        await client.call("SET", "k", "new")
        await asyncio.to_thread(servers.wait_for_demotion, old)
        assert at(client) == new.port
        assert client.redis is pool
        await pool.set("small", "on the new one")
        assert await client.call("GET", "small") == b"on the new one"
        assert await client.call("SET", "large", LARGE) == b"OK"
        assert await client.redis.get("large") == LARGE


async def test_a_primary_that_nobody_demotes_is_left_with_all_connections(
    valkeys: Replicated,
) -> None:
    """P3: cut off from the sentinels, the old primary serves on; the client asks them and goes."""
    old, new = valkeys.nodes
    (sentinel,) = valkeys.sentinels
    async with await RedisClient().connect(valkeys.dsn, PROMPT) as client:
        pool, generation = client.redis, client.generation
        assert await pool.set("who", "old")
        waiting = asyncio.ensure_future(pool.blpop(["queue"], timeout=30))
        sentinel.ask("SENTINEL", "REMOVE", "main")
        new.ask("REPLICAOF", "NO", "ONE")
        sentinel.ask("SENTINEL", "MONITOR", "main", "127.0.0.1", str(new.port), "1")
        await lands_on(client, new.port)
        with pytest.raises(DriverConnectionError):
            await waiting
        assert client.generation != generation
        assert await pool.set("who", "new")
        assert old.ask("GET", "who") == b"$3\r\nold\r\n"
        assert new.ask("GET", "who") == b"$3\r\nnew\r\n"


async def test_a_demoted_primary_is_left_even_if_nobody_else_is_known(
    valkeys: Replicated,
) -> None:
    """P3: the heartbeat sees the role itself; sentinels need not be there to tell."""
    async with await RedisClient().connect(valkeys.dsn, PROMPT) as client:
        first, second = valkeys.nodes
        (sentinel,) = valkeys.sentinels
        sentinel.kill()
        second.ask("REPLICAOF", "NO", "ONE")
        first.ask("REPLICAOF", "127.0.0.1", str(second.port))
        await eventually(lambda: not client.available())
        with pytest.raises(BackendError, match="no sentinel names a primary"):
            await client.call("GET", "k", timeout=0.5)


async def test_a_replica_is_no_primary_whatever_a_sentinel_says(valkeys: Replicated) -> None:
    """P3: the sentinel asked first was cut off from the others and names a server of the past."""
    old, new = valkeys.primary, valkeys.replica
    with Replicated() as others:
        stale = others.sentinels[0]  # of the same service name, and of other servers
        others.primary.ask("REPLICAOF", "127.0.0.1", str(others.replica.port))
        others.replica.kill()
        dsn = valkeys.dsn.replace("//", f"//127.0.0.1:{stale.port},")
        async with await RedisClient().connect(
            dsn, RedisConfig(require_at_start=False, heartbeat=0.3)
        ) as client:
            assert await client.call("SET", "k", "v", timeout=10) == b"OK"
            assert at(client) == old.port
            await asyncio.to_thread(valkeys.failover)
            await lands_on(client, new.port)


async def test_the_pool_follows_after_a_crash(valkeys: Replicated) -> None:
    async with await RedisClient().connect(valkeys.dsn, PROMPT) as client:
        await client.redis.set("k", 1)
        heir = valkeys.replica
        await primary_dies(valkeys)
        await lands_on(client, heir.port)
        assert await client.redis.set("k", 2)
        assert heir.ask("GET", "k") == b"$1\r\n2\r\n"
        assert await client.call("SET", "large", LARGE) == b"OK"
        reply = await client.call_large("GET", "large")
        assert reply == LARGE


async def test_a_pool_whose_server_was_demoted_says_so(valkeys: Replicated) -> None:
    config = RedisConfig(heartbeat=60.0)  # the shared connection notices nothing
    async with await RedisClient().connect(valkeys.dsn, config) as client:
        await client.call("SET", "large", LARGE)
        valkeys.primary.ask("REPLICAOF", "127.0.0.1", str(valkeys.replica.port))
        with pytest.raises(BackendUnavailable, match="it is a replica") as refused:
            await client.call("SET", "large", LARGE)
        assert refused.value.outcome == "none"


async def test_sentinels_that_are_away_are_passed_over() -> None:
    """The dead first, one that hangs second; the third answers, and is asked first from then on."""
    with Replicated(sentinels=3, password="s3cret", sentinel_password="word") as servers:
        dead, hangs, answers = servers.sentinels
        dead.kill()
        hangs.pause()
        async with await RedisClient().connect(servers.dsn, PROMPT) as client:
            assert at(client) == servers.nodes[0].port
            assert await client.call("SET", "large", LARGE) == b"OK"
            topology = client._here().nodes[0]._topology
            assert topology._order[0] == ("127.0.0.1", answers.port)
            hangs.resume()
            heir = servers.nodes[1]
            servers.nodes[0].kill()
            await asyncio.to_thread(servers.wait_for_primary, heir)
            await lands_on(client, heir.port)
            assert await client.call("SET", "large", LARGE) == b"OK"


async def test_what_cannot_work_is_said_at_start(valkeys: Replicated) -> None:
    (sentinel,), node = valkeys.sentinels, valkeys.primary
    address = f"127.0.0.1:{sentinel.port}"
    wrong = {
        f"redis+sentinel://{address}/other": "knows no service 'other'",
        f"redis+sentinel://127.0.0.1:{node.port}/main": "is none, it said: unknown command",
        f"redis+sentinel://{address}/main/99": "has no database 99",
        f"redis+cluster://{address}": "is no node of a cluster",
    }
    for dsn, why in wrong.items():
        with pytest.raises(ConfigurationError, match=why):
            await RedisClient().connect(dsn, PROMPT)


async def test_passwords_of_servers_and_of_sentinels() -> None:
    with Replicated(password="s3cret", sentinel_password="word") as servers:
        async with await RedisClient().connect(servers.dsn, PROMPT) as client:
            assert await client.redis.ping()
        wrong = {
            servers.dsn.partition("?")[0]: "does not let us ask.* sentinel_password=",
            servers.dsn.replace("=word", "=wr0ng"): "does not let us ask.* sentinel_password=",
            servers.dsn.replace("s3cret", "wr0ng"): "rejected the password of user 'default'",
            servers.dsn.replace(":s3cret@", ""): "asks for a password and none is configured",
        }
        for dsn, why in wrong.items():
            with pytest.raises(ConfigurationError, match=why) as refused:
                await RedisClient().connect(dsn, PROMPT)
            assert "wr0ng" not in str(refused.value)


async def test_all_sentinels_down_at_start(valkeys: Replicated) -> None:
    (sentinel,) = valkeys.sentinels
    sentinel.kill()
    with pytest.raises(BackendUnavailable, match=f"127.0.0.1:{sentinel.port} cannot be reached"):
        await RedisClient().connect(valkeys.dsn, PROMPT)
    patient = RedisConfig(require_at_start=False, connect_timeout=1.0)
    async with await RedisClient().connect(valkeys.dsn, patient) as client:
        assert not client.available()
        with pytest.raises(DriverConnectionError, match="no sentinel names"):
            await client.redis.get("k")
        with pytest.raises(BackendUnavailable, match="no sentinel names") as refused:
            await client.call("SET", "large", LARGE)
        assert refused.value.outcome == "none"
        waits = client.call("SET", "k", "v", timeout=10)
        sentinel.start()
        assert await waits == b"OK"
        await eventually(client.available)


class App:
    """One replica of the application, as near to its users as a test can be."""

    def __init__(
        self,
        ctx: ExecutionContext,
        redis: RedisClient,
        spec: DocumentSpec[ProductRead, ProductCreate, ProductUpdate],
    ) -> None:
        self.redis = redis
        self.query = ctx.document.query(spec)
        self.docs = ctx.document.command(spec)

    async def create(self, price: int) -> ProductRead:
        return await self.docs.create(ProductCreate(name="Widget", price=price))

    async def reprice(self, product: ProductRead, price: int) -> ProductRead:
        return await self.docs.update(product.id, product.rev, ProductUpdate(price=price))

    @property
    def hits(self) -> int:
        stats = self.query.stats()
        assert stats is not None
        return stats.hits


@asynccontextmanager
async def application(
    postgres_dsn: str,
    redis_dsn: str,
    spec: DocumentSpec[ProductRead, ProductCreate, ProductUpdate] = SPEC,
) -> AsyncIterator[App]:
    """The application over sentinels, writes refused while the cache cannot be told."""
    pg, redis = PostgresClient(), RedisClient()
    products = PostgresDocumentConfig(read=("public", "products"), write=("public", "products"))
    cache = RedisCacheConfig(namespace=NAMESPACE, on_outage="refuse", invalidation_push=True)
    runtime = ExecutionRuntime(
        deps=DepsRegistry.from_modules(
            PostgresDepsModule(client=pg, rw_documents={"products": products}, tx={"products"}),
            RedisDepsModule(client=redis, caches={"products": cache}),
        ),
        lifecycle=LifecyclePlan.from_modules(
            PostgresLifecycleModule(client=pg, dsn=postgres_dsn)
        ).with_steps(redis_lifecycle_step(dsn=redis_dsn, config=PROMPT)),
        specs=[spec],
    )
    async with runtime.scope():
        yield App(runtime.get_context(), redis, spec)


async def test_an_heir_that_had_missed_the_last_write_is_cold(
    database: asyncpg.Connection[Any], postgres_dsn: str, servers: Replicated
) -> None:
    """P3: the promoted replica still holds the value from before an acknowledged write."""
    async with application(postgres_dsn, servers.dsn) as app:
        product = await app.create(1)
        for heir in (servers.replica, servers.primary):
            node, price = servers.primary, product.price
            assert (await app.query.get(product.id)).price == price
            await eventually(partial(same, node, heir, product))
            heir.pause()
            node.ask("CLIENT", "KILL", "TYPE", "replica")
            product = await app.reprice(product, price + 1)
            node.kill()
            heir.resume()
            await asyncio.to_thread(servers.wait_for_primary, heir)
            assert state(heir, product) is not None, "nothing was there to be believed"
            await lands_on(app.redis, heir.port)
            hits = app.hits
            assert (await app.query.get(product.id)).price == price + 1
            assert app.hits == hits
            assert (await app.query.get(product.id)).price == price + 1
            assert app.hits == hits + 1
            await asyncio.to_thread(servers.rejoin)


def same(node: RespServer, heir: RespServer, product: ProductRead) -> bool:
    """Whether both hold the product's pointer."""
    return state(node, product) == state(heir, product) is not None


async def test_cached_reads_over_two_failovers(
    database: asyncpg.Connection[Any], postgres_dsn: str, servers: Replicated
) -> None:
    """P3: from A to B and back to A, no read is older than what was acknowledged before it."""
    async with AsyncExitStack() as stack:
        writer = await stack.enter_async_context(application(postgres_dsn, servers.dsn))
        reader = await stack.enter_async_context(application(postgres_dsn, servers.dsn))
        product = await writer.create(0)
        acknowledged, over, reads = 0, asyncio.Event(), 0

        async def write() -> None:
            nonlocal acknowledged, product
            price = 0
            while not over.is_set():
                price += 1
                try:
                    product = await writer.reprice(product, price)
                    acknowledged = price
                except BackendError:  # refused, or its end is unknown: it promises nothing
                    with suppress(BackendError):
                        product = await writer.query.get(product.id, skip_cache=True)
                    price = max(price, product.price)
                await asyncio.sleep(0.01)

        async def read(app: App) -> None:
            nonlocal reads
            while not over.is_set():
                known = acknowledged
                assert (await app.query.get(product.id)).price >= known
                reads += 1
                await asyncio.sleep(0.001)

        def busy(writes: int, hits: int) -> bool:
            return acknowledged > writes and reader.hits > hits

        async with asyncio.TaskGroup() as tasks:
            for work in (write(), read(writer), read(reader), read(reader)):
                tasks.create_task(work)
            for heir in (servers.replica, servers.primary):
                await primary_dies(servers)
                for app in (writer, reader):
                    await lands_on(app.redis, heir.port)
                writes, hits = acknowledged + 5, reader.hits + 50
                # An intent that the crash left behind keeps readers at the source until it lapses.
                await eventually(partial(busy, writes, hits), seconds=25.0)
                await asyncio.to_thread(servers.rejoin)
            over.set()
        assert reads > 100
        assert (await reader.query.get(product.id)).price >= acknowledged


async def test_pushed_entries_over_two_failovers(
    database: asyncpg.Connection[Any], postgres_dsn: str, servers: Replicated
) -> None:
    """P11: what was kept under one primary is not served under the next, from A to B to A."""
    hot = product_spec(l1=L1Spec(ttl=timedelta(seconds=60)))
    async with (
        application(postgres_dsn, servers.dsn, hot) as writer,
        application(postgres_dsn, servers.dsn, hot) as reader,
    ):
        product = await writer.create(1)

        def entries() -> int:
            stats = reader.query.l1_stats()
            assert stats is not None
            return stats.size

        async def keep(price: int) -> None:
            async with asyncio.timeout(25):  # an intent the crash left keeps readers at the source
                while not entries():
                    assert (await reader.query.get(product.id)).price == price
                    await asyncio.sleep(0.01)

        for heir in (servers.replica, servers.primary):
            await keep(product.price)
            await primary_dies(servers)
            await eventually(lambda: entries() == 0)
            for app in (writer, reader):
                await lands_on(app.redis, heir.port)
            product = await writer.reprice(product, product.price + 1)
            assert (await reader.query.get(product.id)).price == product.price
            await keep(product.price)
            product = await writer.reprice(product, product.price + 1)
            await eventually(lambda: entries() == 0, seconds=0.5)
            assert (await reader.query.get(product.id)).price == product.price
            await asyncio.to_thread(servers.rejoin)
