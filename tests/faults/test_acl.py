"""Users with the rights that ``acl_rules`` prints: enough for everything, and for nothing else."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from tests.faults.world import Product, ProductCreate, ProductRead, ProductUpdate, ask

import forze_redis
from forze.application.contracts.cache import CacheSpec, Fill
from forze.application.contracts.counter import CounterSpec
from forze.application.contracts.dlock import (
    DistributedLockSpec,
    ReadWriteLockSpec,
    SemaphoreSpec,
)
from forze.application.contracts.document import DocumentSpec
from forze.application.contracts.idempotency import IdempotencySnapshot, IdempotencySpec
from forze.application.contracts.search import SearchResultSnapshotSpec
from forze.application.execution import (
    DepsPlan,
    ExecutionContext,
    ExecutionRuntime,
    LifecyclePlan,
)
from forze.application.integrations.keys import encode_part
from forze.errors import ConfigurationError
from forze.testing.cluster import ValkeyCluster
from forze.testing.proxy import RespProxy
from forze.testing.servers import RespServer
from forze_memory import MemoryDepsModule
from forze_redis import (
    RedisCacheConfig,
    RedisClient,
    RedisConfig,
    RedisCounterConfig,
    RedisDepsModule,
    RedisDistributedLockConfig,
    acl_rules,
    redis_lifecycle_step,
)
from forze_redis.wire.scripts import known_scripts

LUA = Path(forze_redis.__file__).parent / "lua"
FLEETS = {"rate_limit", "circuit_breaker"}
"""Scripts of no tenant; they are run under their user in ``test_resilience``."""
SPEC: DocumentSpec[ProductRead, ProductCreate, ProductUpdate] = DocumentSpec(
    name="products",
    read=ProductRead,
    write={"domain": Product, "create_cmd": ProductCreate, "update_cmd": ProductUpdate},
    cache=CacheSpec(
        name="products",
        early_refresh_beta=1.0,
        ttl=timedelta(seconds=60),
        sliding_ttl=timedelta(seconds=30),
    ),
)
TENANT = "acme:eu [1]*?"
OTHER = "acme:eu [1]*?x"


def module(client: RedisClient, **config: Any) -> RedisDepsModule:
    """Every resource there is, each tenant's apart."""

    def each(name: str) -> dict[str, dict[str, Any]]:
        return {"own": {"namespace": f"app:{name}", "tenant_aware": True, **config}}

    return RedisDepsModule(
        client=client,
        caches={"products": {"namespace": "app:products", "tenant_aware": True, **config}},
        counters=each("counters"),
        idempotency=each("idempotency") | {"short": each("idempotency")["own"]},
        search_snapshots=each("snapshots"),
        dlocks=each("locks"),
        semaphores=each("semaphores"),
        rwlocks=each("rwlocks"),
    )


def user(server: RespServer, *rules: str) -> RedisConfig:
    """A user of these rights on the server; the others get none."""
    answer = ask(server, "ACL", "SETUSER", "app", "on", ">secret", *rules)
    assert answer == b"OK", answer
    return RedisConfig(username="app", password="secret")


@asynccontextmanager
async def running(
    server: RespServer | RespProxy | ValkeyCluster, config: RedisConfig
) -> AsyncIterator[ExecutionContext]:
    """Everything over the server, as that user."""
    client = RedisClient()
    runtime = ExecutionRuntime(
        deps=DepsPlan.from_modules(
            MemoryDepsModule(documents={"products": {"tenant_aware": True}}, caches={}),
            module(client),
        ),
        lifecycle=LifecyclePlan.from_steps(redis_lifecycle_step(dsn=server.dsn, config=config)),
        specs=[SPEC],
    )
    async with runtime.scope() as ctx:
        yield ctx


async def use_everything(ctx: ExecutionContext) -> None:
    """Every port's operations, so that every script runs."""
    query, docs = ctx.document.query(SPEC), ctx.document.command(SPEC)
    product = await docs.create(ProductCreate(name="Widget", price=1))
    for _ in range(2):
        assert (await query.get(product.id)).price == 1
        assert len(await query.get_many([product.id])) == 1
    product = await docs.update(product.id, 1, ProductUpdate(price=2))
    assert (await query.get(product.id)).price == 2
    stats = query.stats()
    assert stats is not None
    assert (stats.read_failures, stats.fill_failures, stats.journal) == (0, 0, 0)
    await use_the_cache(ctx)
    counter = ctx.counter(CounterSpec(name="own"))
    assert await counter.incr() == 1
    assert await counter.incr("x", by=2) == 2
    await counter.allocate(5, "x")
    await counter.incr("x", operation_id="once")
    await counter.reset("x", 3)
    assert await counter.get("x") == 3
    await use_the_rest(ctx)


async def use_the_cache(ctx: ExecutionContext) -> None:
    cache = ctx.cache(SPEC.cache)
    await cache.set("k", "v")
    await cache.set_versioned("w", "1", "v")
    assert await cache.get_many(["k", "w"]) == ({"k": "v", "w": "v"}, [])
    large = b"x" * 300_000
    await cache.set("large", large)
    assert await cache.get("large") == large
    await cache.invalidate("k")
    await cache.delete("w")
    pointers: Any = cache.pointers("f" * 8)
    for body in (b"small", large):
        address, token = pointers.address(f"p{len(body)}"), pointers.token()
        await pointers.read(address, token)
        pointers.renew([address], token)
        assert await pointers.fill([Fill(address, token, 1, body, 10_000)]) == [True]
        assert await pointers.read_large(address) == body
        assert (await pointers.inspect(address)).size_bytes == len(body)
        assert await pointers.elect(address, pointers.token())
    other = pointers.address("other")
    token = pointers.token()
    await pointers.read(other, token)
    pointers.give_back([other], token)
    await pointers.intend([other], "w1")
    await pointers.done([other], "w1")


async def use_the_rest(ctx: ExecutionContext) -> None:
    idempotency = ctx.idempotency(IdempotencySpec(name="own"))
    assert await idempotency.begin("pay", "k", "h") is None
    answer = IdempotencySnapshot(status_code=200, content_type="text/plain", body=b"ok")
    await idempotency.commit("pay", "k", "h", answer)
    assert await idempotency.begin("pay", "k", "h") == answer
    assert await idempotency.begin("pay", "l", "h") is None
    await idempotency.fail("pay", "l", "h")
    short = IdempotencySpec(name="short", lease=timedelta(milliseconds=300))
    async with ctx.idempotency(short).claim("pay", "m", "h"):
        waiting = asyncio.create_task(_claimed(ctx, short))
        await asyncio.sleep(0.3)
        waiting.cancel()
    snapshots = ctx.search_snapshot(
        SearchResultSnapshotSpec(name="own", ttl=timedelta(seconds=60), max_ids=100_000)
    )
    for run, many in (("small", 3), ("large", 30_000)):
        await snapshots.put_run(
            run_id=run, fingerprint="f", ordered_ids=[f"id-{each}" for each in range(many)]
        )
        assert await snapshots.get_id_range(run, 0, 2) == ["id-0", "id-1"]
        assert (await snapshots.get_meta(run)).total == many
        await snapshots.delete_run(run)
    lock = ctx.dlock(DistributedLockSpec(name="own", ttl=timedelta(milliseconds=200)))
    held = await lock.acquire("k", "me")
    assert held is not None
    assert await lock.is_locked("k")
    assert await lock.get_owner("k") == "me"
    assert await lock.get_ttl("k") is not None
    assert await lock.release("k", "me")
    await use_the_locks(ctx)


async def _claimed(ctx: ExecutionContext, spec: IdempotencySpec) -> None:
    async with ctx.idempotency(spec).claim("pay", "m", "h"):
        pass


async def use_the_locks(ctx: ExecutionContext) -> None:
    """Each kind held past a heartbeat, with somebody waiting behind."""
    ttl, wait = timedelta(milliseconds=200), timedelta(seconds=2)
    ctx_locks = (
        ctx.dlock_scope(DistributedLockSpec(name="own", ttl=ttl)).scope,
        ctx.semaphore(SemaphoreSpec(name="own", permits=1, ttl=ttl)).scope,
        ctx.rwlock(ReadWriteLockSpec(name="own", ttl=ttl)).writing,
    )

    async def hold(scope: Any) -> None:
        async with scope("contended", wait=wait):
            await asyncio.sleep(0.25)

    await asyncio.gather(*(hold(scope) for scope in ctx_locks for _ in range(2)))
    async with ctx.rwlock(ReadWriteLockSpec(name="own", ttl=ttl)).reading("k", wait=wait):
        assert (
            await ctx.semaphore(SemaphoreSpec(name="own", permits=1, ttl=ttl)).permits_held("k")
            == 0
        )


async def test_a_fleet_user_may_do_everything(own_redis_server: RespServer) -> None:
    rules = acl_rules(module(RedisClient()))
    async with running(own_redis_server, user(own_redis_server, *rules)) as ctx:
        for tenant in (TENANT, OTHER):
            with ctx.bind_tenant(tenant):
                await use_everything(ctx)
        pointers: Any = ctx.cache(SPEC.cache).pointers("f" * 8)
        assert await pointers.clear(pointers.namespace()) > 0


async def test_a_tenants_user_may_do_everything_for_that_tenant(
    own_redis_server: RespServer,
) -> None:
    rules = acl_rules(module(RedisClient()), tenant=TENANT)
    async with running(own_redis_server, user(own_redis_server, *rules)) as ctx:
        with ctx.bind_tenant(TENANT):
            await use_everything(ctx)
    kept = [key.decode().split("/") for key in ask(own_redis_server, "KEYS", "*")]
    assert len(kept) > 8
    assert all(any(part.startswith(encode_part(TENANT)) for part in key) for key in kept)


async def test_a_tenants_user_reaches_no_other(own_redis_server: RespServer) -> None:
    """P9: neither by our ports nor by hand."""
    server = own_redis_server
    async with running(server, RedisConfig()) as ctx:
        with ctx.bind_tenant(OTHER):
            await use_everything(ctx)
            await ctx.cache(SPEC.cache).set("k", "v")
            await ctx.counter(CounterSpec(name="own")).incr()
    theirs = [key.decode() for key in ask(server, "KEYS", "*")]
    assert len(theirs) > 8
    rules = acl_rules(module(RedisClient()), tenant=TENANT)
    client = RedisClient()
    async with await client.connect(server.dsn, user(server, *rules)):
        for key in theirs:
            for name, *rest in (("GET", key), ("SET", key, "x"), ("UNLINK", key)):
                with pytest.raises(ConfigurationError, match="ACL SETUSER"):
                    await client.call(name, *rest)
        for name, *rest in (("SCAN", "0"), ("KEYS", "*"), ("FLUSHALL",), ("SPUBLISH", "x", "y")):
            with pytest.raises(ConfigurationError, match="ACL SETUSER"):
                await client.call(name, *rest)
        with pytest.raises(ConfigurationError):
            await client.subscribe("app:locks/acme%3Aother/k:turns", lambda _: None)
    async with running(server, user(server, *rules)) as ctx:
        with ctx.bind_tenant(OTHER):
            with pytest.raises(ConfigurationError, match="ACL SETUSER"):
                await ctx.cache(SPEC.cache).get("k")
            with pytest.raises(ConfigurationError, match="ACL SETUSER"):
                await ctx.counter(CounterSpec(name="own")).incr()
            with pytest.raises(ConfigurationError, match="ACL SETUSER"):
                await ctx.dlock(DistributedLockSpec(name="own")).acquire("k", "me")


async def test_every_script_is_run_under_that_user(own_redis_server: RespServer) -> None:
    """What the tests above use is all there is: none is left out."""
    rules = acl_rules(module(RedisClient()), tenant=TENANT)
    config = user(own_redis_server, *rules)
    async with RespProxy(own_redis_server.port) as proxy, running(proxy, config) as ctx:
        with ctx.bind_tenant(TENANT):
            await use_everything(ctx)
        sent = {each for command in proxy.commands for each in command}
    names = {each.stem for each in LUA.glob("*.lua")} - FLEETS
    known = {each.name: each.sha1.encode() for each in known_scripts() if each.name in names}
    assert set(known) == names
    assert {name for name, digest in known.items() if digest not in sent} == set()
    log: Any = ask(own_redis_server, "ACL", "LOG")
    objects = {dict(zip(each[::2], each[1::2], strict=True))[b"object"] for each in log}
    assert objects <= {b"client|setinfo"}, "nothing else was refused"


@pytest.mark.parametrize("tenant", [None, TENANT], ids=["fleet", "tenant"])
async def test_the_rules_are_enough_on_a_cluster(
    valkey_cluster: ValkeyCluster, tenant: str | None
) -> None:
    rules = acl_rules(module(RedisClient()), tenant=tenant, clustered=True)
    for node in valkey_cluster.nodes:
        node.ask("FLUSHALL")
        config = user(node, *rules)
    try:
        async with running(valkey_cluster, config) as ctx:
            with ctx.bind_tenant(TENANT):
                await use_everything(ctx)
                if tenant is None:
                    pointers: Any = ctx.cache(SPEC.cache).pointers("f" * 8)
                    assert await pointers.clear(pointers.namespace()) > 0
    finally:
        for node in valkey_cluster.nodes:
            log: Any = ask(node, "ACL", "LOG")
            objects = {dict(zip(each[::2], each[1::2], strict=True))[b"object"] for each in log}
            ask(node, "ACL", "DELUSER", "app")
            ask(node, "ACL", "LOG", "RESET")
            assert objects <= {b"client|setinfo"}, "nothing else was refused"


async def test_pushes_and_clearing_need_a_fleet_user(own_redis_server: RespServer) -> None:
    config = RedisCacheConfig(namespace="app", tenant_aware=True, invalidation_push=True)
    fleet = acl_rules(config)
    assert {"+client|tracking", "+scan", "~app/push-latency/*"} <= set(fleet)
    own = acl_rules(config, tenant="t")
    assert not {"+client|tracking", "+scan"} & set(own)
    assert [each for each in own if each[0] == "~"] == [
        "~app/cache/pointer/t/*",
        "~app/cache/body/t/*",
        "~app/cache/kv/t/*",
    ]


def test_what_cannot_be_written_as_rules() -> None:
    dynamic = RedisCounterConfig(namespace=lambda tenant: f"app:{tenant}")
    with pytest.raises(ConfigurationError, match="made from the tenant"):
        acl_rules(dynamic)
    assert "~app:t/*" in acl_rules(dynamic, tenant="t")
    shared = RedisDistributedLockConfig(namespace="app")
    with pytest.raises(ConfigurationError, match="nothing to grant"):
        acl_rules(shared, tenant="t")
    assert {"~app/*", "&app/*"} <= set(acl_rules(shared))
    with pytest.raises(ConfigurationError, match="nothing to grant"):
        acl_rules(RedisDepsModule(client=RedisClient()))
