"""Tenants in every port: none bound is refused, and nothing of one is reachable from another."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest
from tests.contracts.conftest import NO_REDIS, running

from forze.application.contracts.cache import CachePort, CacheSpec
from forze.application.contracts.counter import CounterPort, CounterSpec
from forze.application.contracts.dlock import (
    DistributedLockPort,
    DistributedLockSpec,
    LockScope,
    ReadWriteLockPort,
    ReadWriteLockSpec,
    SemaphorePort,
    SemaphoreSpec,
)
from forze.application.contracts.document import (
    DocumentCommandPort,
    DocumentQueryPort,
    DocumentSpec,
    DocumentWriteTypes,
)
from forze.application.contracts.idempotency import (
    IdempotencyPort,
    IdempotencySnapshot,
    IdempotencySpec,
)
from forze.application.contracts.search import (
    SearchResultSnapshotPort,
    SearchResultSnapshotSpec,
)
from forze.application.execution import ExecutionContext
from forze.domain.models import BaseDTO, CreateDocumentCmd, Document, ReadDocument
from forze.errors import IdempotencyMismatch, TenantRequired
from forze.testing.servers import RedisServer, RespServer, ValkeyServer
from forze_memory import MemoryDepsModule
from forze_redis import (
    RedisClient,
    RedisDepsModule,
    RoutedRedisClient,
    redis_lifecycle_step,
    routed_redis_lifecycle_step,
)


class Note(Document):
    text: str


class NoteCreate(CreateDocumentCmd):
    text: str


class NoteUpdate(BaseDTO):
    text: str


class NoteRead(ReadDocument):
    text: str


SNAPSHOTS = SearchResultSnapshotSpec(
    name="own", ttl=timedelta(seconds=60), max_ids=100, cursor_secret="s" * 32
)
NOTES: DocumentSpec[NoteRead, NoteCreate, NoteUpdate] = DocumentSpec(
    name="notes",
    read=NoteRead,
    write=DocumentWriteTypes(domain=Note, create_cmd=NoteCreate, update_cmd=NoteUpdate),
    cache=CacheSpec(name="own"),
    snapshot=SNAPSHOTS,
)
LOCKS = DistributedLockSpec(name="own")
ANSWER = IdempotencySnapshot(status_code=200, content_type="text/plain", body=b"of one")
ONE, OTHER = "one", "other"
LEGS = ["memory", "valkey", "redis7", "dynamic", "routed", "routed, one server"]
_RESOURCES = ("caches", "counters", "idempotency", "search_snapshots", "dlocks")
RESOURCES = (*_RESOURCES, "semaphores", "rwlocks")


def configs(**config: Any) -> dict[str, Any]:
    """One resource of each kind."""
    made: dict[str, Any] = {}
    for kind in RESOURCES:
        own = dict(config)
        if "namespace" in own:
            own["namespace"] = own["namespace"](kind)
        made[kind] = {"own": own}
    return made


@pytest.fixture(params=LEGS)
async def ctx(request: pytest.FixtureRequest) -> AsyncIterator[ExecutionContext]:
    """A process in which every resource keeps tenants apart."""
    leg: str = request.param
    notes = {"notes": {"tenant_aware": True}}
    async with AsyncExitStack() as stack:
        if leg == "memory":
            module = MemoryDepsModule(documents=notes, **configs(tenant_aware=True))
            yield await running(stack, module)
            return
        nothing: dict[str, Any] = {kind: {} for kind in RESOURCES}
        database = MemoryDepsModule(documents=notes, **nothing)
        if leg == "redis7" and RedisServer.executable() is None:
            pytest.skip(NO_REDIS)
        own: Callable[[str], Any] = lambda kind: f"app:{kind}"  # noqa: E731
        settings: dict[str, Any] = {"namespace": own, "tenant_aware": True}
        if leg == "dynamic":
            settings = {"namespace": lambda kind: lambda tenant: f"app:{kind}:{tenant}"}
        if leg.startswith("routed"):
            first = stack.enter_context(ValkeyServer())
            second = first if "one" in leg else stack.enter_context(ValkeyServer())
            routed = RoutedRedisClient()
            step = routed_redis_lifecycle_step(dsn_of={ONE: first.dsn, OTHER: second.dsn})
            module_of = RedisDepsModule(client=routed, **configs(**settings))
            yield await running(stack, database, module_of, steps=(step,))
            return
        server: RespServer = request.getfixturevalue("valkey" if leg == "dynamic" else leg)
        server.ask("FLUSHALL")
        plain = redis_lifecycle_step(dsn=server.dsn)
        module_of = RedisDepsModule(client=RedisClient(), **configs(**settings))
        yield await running(stack, database, module_of, steps=(plain,))


async def _nothing(*_: Any) -> str:
    return "ran"


def entered(manager: Any) -> Callable[[], Awaitable[object]]:
    """Enter a context manager, and leave it."""

    async def enter() -> None:
        async with manager():
            pass

    return enter


def methods(ctx: ExecutionContext) -> dict[tuple[type, str], Callable[[], Awaitable[object]]]:
    """A call of every method that concerns a tenant's data, of every port."""
    cache, counter = ctx.cache(NOTES.cache), ctx.counter(CounterSpec(name="own"))
    lock, locks = ctx.dlock(LOCKS), ctx.dlock_scope(LOCKS)
    semaphore = ctx.semaphore(SemaphoreSpec(name="own", permits=1))
    rwlock = ctx.rwlock(ReadWriteLockSpec(name="own"))
    once, runs = ctx.idempotency(IdempotencySpec(name="own")), ctx.search_snapshot(SNAPSHOTS)
    query, docs, pk = ctx.document.query(NOTES), ctx.document.command(NOTES), uuid4()
    update = NoteUpdate(text="x")
    calls: dict[type, dict[str, Callable[[], Any]]] = {
        CachePort: {
            "get": lambda: cache.get("k"),
            "get_many": lambda: cache.get_many(["k"]),
            "exists": lambda: cache.exists("k"),
            "set": lambda: cache.set("k", 1),
            "set_many": lambda: cache.set_many({"k": 1}),
            "set_versioned": lambda: cache.set_versioned("k", "1", 1),
            "set_many_versioned": lambda: cache.set_many_versioned({("k", "1"): 1}),
            "invalidate": lambda: cache.invalidate("k"),
            "invalidate_many": lambda: cache.invalidate_many(["k"]),
            "delete": lambda: cache.delete("k"),
            "invalidate_tags": lambda: cache.invalidate_tags("t"),
        },
        CounterPort: {
            "incr": counter.incr,
            "decr": counter.decr,
            "incr_batch": lambda: counter.incr_batch(2),
            "allocate": lambda: counter.allocate(2),
            "reset": counter.reset,
            "get": counter.get,
            "allocator": lambda: counter.allocator().next(),
        },
        IdempotencyPort: {
            "begin": lambda: once.begin("op", "k", "h"),
            "commit": lambda: once.commit("op", "k", "h", ANSWER),
            "fail": lambda: once.fail("op", "k", "h"),
            "claim": entered(lambda: once.claim("op", "k", "h")),
            "run": lambda: once.run("op", "k", {}, _nothing),
        },
        SearchResultSnapshotPort: {
            "put_run": lambda: runs.put_run("r", "f", ["1"]),
            "get_id_range": lambda: runs.get_id_range("r", 0, 1),
            "get_meta": lambda: runs.get_meta("r"),
            "delete_run": lambda: runs.delete_run("r"),
            "scope": runs.scope,
        },
        DistributedLockPort: {
            "acquire": lambda: lock.acquire("k", "me"),
            "release": lambda: lock.release("k", "me"),
            "reset": lambda: lock.reset("k", "me"),
            "is_locked": lambda: lock.is_locked("k"),
            "get_owner": lambda: lock.get_owner("k"),
            "get_ttl": lambda: lock.get_ttl("k"),
            "scope": entered(lambda: lock.scope("k")),
        },
        LockScope: {"scope": entered(lambda: locks.scope("k"))},
        SemaphorePort: {
            "scope": entered(lambda: semaphore.scope("k")),
            "permits_held": lambda: semaphore.permits_held("k"),
        },
        ReadWriteLockPort: {
            "reading": entered(lambda: rwlock.reading("k")),
            "writing": entered(lambda: rwlock.writing("k")),
        },
        DocumentQueryPort: {
            "get": lambda: query.get(pk),
            "get_many": lambda: query.get_many([pk]),
            "find_many": query.find_many,
            "find_snapshot": query.find_snapshot,
            "count": query.count,
            "exists": lambda: query.exists(pk),
        },
        DocumentCommandPort: {
            "create": lambda: docs.create(NoteCreate(text="x")),
            "create_many": lambda: docs.create_many([NoteCreate(text="x")]),
            "update": lambda: docs.update(pk, 1, update),
            "update_many": lambda: docs.update_many([(pk, 1, update)]),
            "update_matching": lambda: docs.update_matching({}, update),
            "touch": lambda: docs.touch(pk),
            "kill": lambda: docs.kill(pk),
            "kill_many": lambda: docs.kill_many([pk]),
            "kill_matching": lambda: docs.kill_matching({}),
        },
    }
    return {(port, name): call for port, of in calls.items() for name, call in of.items()}


NEEDS_NO_TENANT = {
    (CachePort, "pointers"),
    (CachePort, "tags"),
    (IdempotencyPort, "scope"),
    (IdempotencyPort, "stats"),
    (DocumentQueryPort, "stats"),
    (DocumentQueryPort, "l1_stats"),
}


async def test_without_a_tenant_every_method_is_refused(ctx: ExecutionContext) -> None:
    """P9: never another tenant's data, and never silently without one."""
    called = methods(ctx)
    for port in {port for port, _ in called}:
        public = {name for name, each in vars(port).items() if name[0] != "_" and callable(each)}
        unnamed = {(port, name) for name in public} - set(called) - NEEDS_NO_TENANT
        assert unnamed == set(), "add these to the table"
    allowed = []
    for (port, name), call in called.items():
        try:
            await call()
        except TenantRequired:
            continue
        allowed.append(f"{port.__name__}.{name}")
    assert allowed == []


async def test_what_one_tenant_did_the_other_does_not_see(ctx: ExecutionContext) -> None:
    """P9: every port, one key, two tenants one after the other."""
    cache, counter = ctx.cache(NOTES.cache), ctx.counter(CounterSpec(name="own"))
    lock, runs = ctx.dlock(LOCKS), ctx.search_snapshot(SNAPSHOTS)
    once = ctx.idempotency(IdempotencySpec(name="own"))
    with ctx.bind_tenant(ONE):
        await cache.set("k", "of one")
        await counter.incr(by=5)
        await counter.incr("s", by=7, operation_id="o")
        held = await lock.acquire("k", "me")
        assert held is not None
        await runs.put_run("r", "f", ["1", "2"])
        assert await once.begin("op", "k", "h") is None
        await once.commit("op", "k", "h", ANSWER)
        note = await ctx.document.command(NOTES).create(NoteCreate(text="of one"))
        assert (await ctx.document.query(NOTES).get(note.id)).text == "of one"
    with ctx.bind_tenant(OTHER):
        assert await cache.get("k") is None
        assert await cache.get(str(note.id)) is None
        assert (await counter.get(), await counter.get("s")) == (0, 0)
        assert await counter.incr("s", by=9, operation_id="o") == 9, "an operation of its own"
        assert await lock.get_owner("k") is None
        assert not await lock.release("k", "me")
        other = await lock.acquire("k", "me")
        assert other is not None
        assert not await runs.get_meta("r")
        assert not await runs.delete_run("r")
        assert await once.begin("op", "k", "other payload") is None
        await once.fail("op", "k", "other payload")
        assert await ctx.document.query(NOTES).get_many([note.id], missing="skip") == []
    with ctx.bind_tenant(ONE):
        assert await cache.get("k") == "of one"
        assert (await counter.get(), await counter.get("s")) == (5, 7)
        assert await lock.release("k", "me")
        assert await runs.get_id_range("r", 0, 9) == ["1", "2"]
        assert await once.begin("op", "k", "h") == ANSWER
        with pytest.raises(IdempotencyMismatch):
            await once.begin("op", "k", "other payload")


async def test_two_tenants_on_one_key_at_once(ctx: ExecutionContext) -> None:
    """P9: what the process shares among its callers, it does not share among tenants."""
    tenants, ran = (ONE, OTHER), []
    both, inside = asyncio.Barrier(2), asyncio.Barrier(2)
    once = ctx.idempotency(IdempotencySpec(name="own"))
    scopes = (
        lambda: ctx.dlock_scope(LOCKS).scope("k"),
        lambda: ctx.semaphore(SemaphoreSpec(name="own", permits=1)).scope("k"),
        lambda: ctx.rwlock(ReadWriteLockSpec(name="own")).writing("k"),
        lambda: once.claim("op", "k", "h"),
    )

    async def pay(tenant: str) -> str:
        await both.wait()
        ran.append(tenant)
        return tenant

    async def work(tenant: str) -> None:
        with ctx.bind_tenant(tenant):
            for scope in scopes:
                async with scope(), asyncio.timeout(5):
                    await inside.wait()
            assert await once.run("pay", "k", {"by": tenant}, pay, tenant) == tenant
            ids = ctx.counter(CounterSpec(name="own")).allocator(5)
            assert [await ids.next() for _ in range(12)] == list(range(1, 13))

    await asyncio.gather(*map(work, tenants))
    assert sorted(ran) == sorted(tenants)


@pytest.fixture
def one_server() -> Iterator[ValkeyServer]:
    with ValkeyServer() as server:
        yield server


async def test_a_server_alone_can_keep_tenants_apart(one_server: ValkeyServer) -> None:
    """P9: resources without ``tenant_aware``, on a server per tenant; one process, one key."""
    async with AsyncExitStack() as stack:
        other = stack.enter_context(ValkeyServer())
        module = RedisDepsModule(
            client=RoutedRedisClient(), **configs(namespace=lambda kind: f"app:{kind}")
        )
        step = routed_redis_lifecycle_step(dsn_of={ONE: one_server.dsn, OTHER: other.dsn})
        ctx = await running(stack, module, steps=(step,))
        once = ctx.idempotency(IdempotencySpec(name="own"))
        both, inside = asyncio.Barrier(2), asyncio.Barrier(2)

        async def pay(tenant: str) -> str:
            await both.wait()
            return tenant

        async def work(tenant: str) -> None:
            with ctx.bind_tenant(tenant):
                for scope in (
                    ctx.dlock_scope(LOCKS).scope,
                    ctx.semaphore(SemaphoreSpec(name="own", permits=1)).scope,
                    ctx.rwlock(ReadWriteLockSpec(name="own")).writing,
                ):
                    async with scope("k"), asyncio.timeout(5):
                        await inside.wait()
                async with once.claim("op", "k", "h"), asyncio.timeout(5):
                    await inside.wait()
                assert await once.run("pay", "k", {"by": tenant}, pay, tenant) == tenant
                assert await once.begin("two", "k", tenant) is None
                await inside.wait()
                await once.fail("two", "k", tenant)
                ids = ctx.counter(CounterSpec(name="own")).allocator(5)
                assert [await ids.next() for _ in range(12)] == list(range(1, 13))
                await ctx.cache(NOTES.cache).set("k", tenant)
                await inside.wait()
                assert await ctx.cache(NOTES.cache).get("k") == tenant

        await asyncio.gather(work(ONE), work(OTHER))
