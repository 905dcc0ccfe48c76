"""Locks, counters, limits and the like, each beside what one would use without us.

Peers: redis-py's ``Lock``, ``limits`` (its async storage on redis-py), and a few commands written
by hand. None of those does what stands beside it: a ``Lock`` has no fencing token, no queue and no
heartbeat, ``limits`` counts and never hands back, ``SET NX`` frees nothing when its owner dies.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import timedelta
from itertools import count
from statistics import median, quantiles
from typing import NamedTuple
from uuid import UUID, uuid4

import redis.asyncio
from limits import RateLimitItemPerSecond
from limits.aio.storage import RedisStorage
from limits.aio.strategies import FixedWindowRateLimiter, MovingWindowRateLimiter

from bench.peers.work import work
from bench.plots import Bars
from bench.report import Figure
from bench.run import Run
from forze.application.contracts.counter import CounterSpec
from forze.application.contracts.dlock import (
    DistributedLockSpec,
    ReadWriteLockSpec,
    SemaphoreSpec,
)
from forze.application.contracts.idempotency import IdempotencySnapshot, IdempotencySpec
from forze.application.contracts.resilience import CircuitBreakerStrategy, RateLimitStrategy
from forze.application.contracts.search import SearchResultSnapshotSpec
from forze.application.execution import (
    DepsPlan,
    ExecutionContext,
    ExecutionRuntime,
    LifecyclePlan,
)
from forze.testing.servers import ValkeyServer
from forze_redis import (
    RedisClient,
    RedisDepsModule,
    redis_circuit_breaker_store,
    redis_lifecycle_step,
    redis_rate_limit_store,
)

TEXT = (
    "Operations per second through one process, each beside the nearest thing that one would use "
    "without forze; redis-py has a connection for each caller."
)
CALLERS = (1, 32)
SHARE = 0.4  # of a visit's length, since there are so many
WAITERS = 100
IDS = 1_000
PAGE = 50

COUNTER = CounterSpec(name="bench")
LOCK = DistributedLockSpec(name="bench")
SEMAPHORE = SemaphoreSpec(name="bench", permits=1_000)
RWLOCK = ReadWriteLockSpec(name="bench")
IDEMPOTENCY = IdempotencySpec(name="bench")
SNAPSHOT = SearchResultSnapshotSpec(name="bench", ttl=timedelta(minutes=5), max_ids=IDS)
PER_SECOND = 1_000_000
ROOMY = RateLimitStrategy(permits=PER_SECOND)
SPENT = RateLimitStrategy(permits=1, per=timedelta(hours=1))
CIRCUIT = CircuitBreakerStrategy(min_throughput=1_000)

Operation = Callable[[], Awaitable[object]]


class Line(NamedTuple):
    """One line of the table: ours, and the nearest thing that exists (None: nothing)."""

    name: str
    ours: Operation
    peer: str = ""
    theirs: Operation | None = None


def run(run: Run) -> None:
    """Measure every primitive, then the hand-off of a lock."""
    run.report.begin("coordination", TEXT)
    asyncio.run(_measure(run))


async def _measure(run: Run) -> None:
    server, groups = run.at.valkey, {}
    for callers in CALLERS:
        async with (
            _wired(server) as ctx,
            _redis_py(server, callers) as client,
            await RedisClient().connect(server.dsn) as own,
        ):
            lines = [*await _lines(server, ctx, client), *_resilience(server, own)]
            rows = {line.name: await _compare(run, line, callers) for line in lines}
        several = "s" if callers > 1 else ""
        title = f"coordination, {callers} caller{several}"
        run.report.pairs(title, "operations per second", rows, more_is_better=True)
        groups[callers] = rows
    _plot(run, groups[CALLERS[-1]])
    print(f"\n  hand-off of a lock, {WAITERS} waiting: from a block's end to the next one's begin")
    for runtimes in (1, 10):
        gaps = [gap for _ in range(run.rounds) for gap in await _hand_offs(server, runtimes)]
        where = "in one client" if runtimes == 1 else f"over {runtimes} clients"
        run.report.fact(f"hand-off {where}, median", median(gaps), "ms")
        run.report.fact(f"hand-off {where}, 99 % within", quantiles(gaps, n=100)[98], "ms")


async def _compare(run: Run, line: Line, callers: int) -> tuple[Figure, str, Figure | None]:
    subjects = {"ours": _visits(run, line.ours, callers)}
    if line.theirs is not None:
        subjects["theirs"] = _visits(run, line.theirs, callers)
    found = await run.async_turns(line.name, subjects)
    theirs = found.get("theirs")
    return Figure.of(found["ours"]), line.peer, None if theirs is None else Figure.of(theirs)


def _visits(run: Run, operation: Operation, callers: int) -> Callable[[], Awaitable[float]]:
    seconds = run.seconds * SHARE

    async def visit() -> float:
        done = await work(lambda _: operation(), (None,), callers, seconds)
        return 1e6 / done["us"]

    return visit


def _plot(run: Run, rows: dict[str, tuple[Figure, str, Figure | None]]) -> None:
    groups = {
        name: {"forze": ours, "peer": theirs}
        for name, (ours, _, theirs) in rows.items()
        if theirs is not None
    }
    title = f"Operations per second, {CALLERS[-1]} callers, beside the nearest without forze"
    run.report.plot("coordination", Bars(title, "operations per second", groups, log_y=True))


async def _lines(
    server: ValkeyServer, ctx: ExecutionContext, client: redis.asyncio.Redis
) -> list[Line]:
    numbers = count()
    counter, locks, idempotency = (
        ctx.counter(COUNTER),
        ctx.dlock(LOCK),
        ctx.idempotency(IDEMPOTENCY),
    )
    snapshots, allocator = ctx.search_snapshot(SNAPSHOT), counter.allocator()
    limiter = FixedWindowRateLimiter(RedisStorage(f"async+{server.dsn}", implementation="redispy"))
    limit = RateLimitItemPerSecond(1_000_000_000)
    ids = [uuid4() for _ in range(IDS)]
    await snapshots.put_run(run_id="r", fingerprint="f", ordered_ids=ids)
    await client.rpush("bench:list", *map(str, ids))
    done = IdempotencySnapshot(status_code=200, content_type="application/json", body=b"{}" * 100)
    await client.set("bench:done", done.body)
    if await idempotency.begin("op", "replayed", "hash") is None:
        await idempotency.commit("op", "replayed", "hash", done)
    assert await idempotency.begin("op", "replayed", "hash") == done

    async def lock() -> None:
        key = f"k{next(numbers)}"
        await locks.acquire(key, "owner")
        await locks.release(key, "owner")

    async def their_lock() -> None:
        async with client.lock(f"bench:lock:{next(numbers)}", timeout=30):
            pass

    async def lock_scope() -> None:
        async with ctx.dlock_scope(LOCK).scope(f"k{next(numbers)}"):
            pass

    async def semaphore() -> None:
        async with ctx.semaphore(SEMAPHORE).scope("k"):
            pass

    async def reading() -> None:
        async with ctx.rwlock(RWLOCK).reading("k"):
            pass

    async def once() -> None:
        key = f"k{next(numbers)}"
        await idempotency.begin("op", key, "hash")
        await idempotency.commit("op", key, "hash", done)

    async def their_once() -> None:
        key = f"bench:once:{next(numbers)}"
        await client.set(key, "pending", nx=True, ex=30)
        await client.set(key, done.body, ex=86_400)

    async def page() -> None:
        found = await snapshots.get_id_range("r", 500, PAGE)
        assert found is not None

    async def their_page() -> None:
        texts = await client.lrange("bench:list", 500, 500 + PAGE - 1)
        assert [UUID(str(text, "ascii")) for text in texts if isinstance(text, bytes)]

    return [
        Line("counter: incr", counter.incr, "INCR", lambda: client.incr("bench:incr")),
        Line("counter: id of a block", allocator.next, "INCR", lambda: client.incr("bench:incr")),
        Line("lock: acquire, release", lock, "redis-py Lock", their_lock),
        Line("lock: scope, heartbeat", lock_scope, "redis-py Lock", their_lock),
        Line("semaphore: scope", semaphore, "limits", lambda: limiter.hit(limit, "bench")),
        Line("read/write lock: reading", reading, "redis-py Lock", their_lock),
        Line("idempotency: begin, commit", once, "SET NX, SET", their_once),
        Line(
            "idempotency: replay",
            lambda: idempotency.begin("op", "replayed", "hash"),
            "GET",
            lambda: client.get("bench:done"),
        ),
        Line(f"snapshot: {PAGE} of {IDS} ids", page, "LRANGE", their_page),
    ]


def _resilience(server: ValkeyServer, client: RedisClient) -> list[Line]:
    limits, circuits = redis_rate_limit_store(client), redis_circuit_breaker_store(client)
    storage = RedisStorage(f"async+{server.dsn}", implementation="redispy")
    item = RateLimitItemPerSecond(PER_SECOND)
    moving, fixed = MovingWindowRateLimiter(storage), FixedWindowRateLimiter(storage)
    key, spent, calls = ("bench", None), ("bench", "spent"), count()

    async def call() -> None:
        admission = await circuits.admit(key, CIRCUIT)
        await circuits.record(key, CIRCUIT, True, admission)

    async def failing() -> None:
        admission = await circuits.admit(key, CIRCUIT)
        await circuits.record(key, CIRCUIT, next(calls) % 10 > 0, admission)

    hit = Line("rate limit: hit", lambda: limits.try_acquire(key, ROOMY))
    return [
        hit._replace(peer="limits, moving", theirs=lambda: moving.hit(item, "bench")),
        hit._replace(
            name="rate limit: hit again", peer="limits, fixed", theirs=lambda: fixed.hit(item, "f")
        ),
        Line("rate limit: denied", lambda: limits.try_acquire(spent, SPENT)),
        Line("circuit: closed call", call),
        Line("circuit: one in ten fails", failing),
    ]


async def _hand_offs(server: ValkeyServer, runtimes: int) -> list[float]:
    """Milliseconds from the end of one holder's block to the beginning of the next one's."""
    async with AsyncExitStack() as stack:
        contexts = [await stack.enter_async_context(_wired(server)) for _ in range(runtimes)]
        key, ends, begins = str(uuid4()), [], []

        async def hold(ctx: ExecutionContext) -> None:
            async with ctx.dlock_scope(LOCK).scope(key, wait=timedelta(seconds=60)):
                begins.append(time.perf_counter())
                await asyncio.sleep(0.002)
                ends.append(time.perf_counter())

        async with asyncio.TaskGroup() as waiters, contexts[0].dlock_scope(LOCK).scope(key):
            for number in range(WAITERS):
                waiters.create_task(hold(contexts[number % runtimes]))
            await asyncio.sleep(0.5)  # everyone stands in line
        return [(begin - end) * 1e3 for end, begin in zip(ends, begins[1:], strict=False)]


@asynccontextmanager
async def _wired(server: ValkeyServer) -> AsyncIterator[ExecutionContext]:
    module = RedisDepsModule(
        client=RedisClient(),
        counters={"bench": {"namespace": "bench:count"}},
        dlocks={"bench": {"namespace": "bench:locks"}},
        semaphores={"bench": {"namespace": "bench:semaphores"}},
        rwlocks={"bench": {"namespace": "bench:rwlocks"}},
        idempotency={"bench": {"namespace": "bench:once"}},
        search_snapshots={"bench": {"namespace": "bench:snapshots"}},
    )
    runtime = ExecutionRuntime(
        deps=DepsPlan.from_modules(module),
        lifecycle=LifecyclePlan.from_steps(redis_lifecycle_step(dsn=server.dsn)),
    )
    async with runtime.scope() as ctx:
        yield ctx


@asynccontextmanager
async def _redis_py(server: ValkeyServer, connections: int) -> AsyncIterator[redis.asyncio.Redis]:
    pool = redis.asyncio.BlockingConnectionPool.from_url(
        server.dsn, max_connections=connections, timeout=10
    )
    async with redis.asyncio.Redis.from_pool(pool) as client:
        yield client
