"""``python -m bench coordination``: each primitive beside what one would use without us.

Rounds are interleaved and each visit works for a fixed time, as in ``bench.reads``; what is
compared is the median of operations per second. Peers: redis-py's ``Lock``, ``limits`` (its
async storage on redis-py), and a few commands written by hand.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import timedelta
from itertools import count
from pathlib import Path
from statistics import median, quantiles
from typing import Any, NamedTuple
from uuid import UUID, uuid4

import redis.asyncio
from limits import RateLimitItemPerSecond
from limits.aio.storage import RedisStorage
from limits.aio.strategies import FixedWindowRateLimiter, MovingWindowRateLimiter

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

OUT = Path(__file__).parent / "out"
CALLERS = (1, 32)
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
    peer: str | None = None
    theirs: Operation | None = None


def main(arguments: list[str]) -> None:
    """Measure, print, write ``bench/out/coordination.json``."""
    parser = argparse.ArgumentParser(prog="python -m bench coordination", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="interleaved rounds (default 5)")
    parser.add_argument("--seconds", type=float, default=0.4, help="per visit (default 0.4)")
    options = parser.parse_args(arguments)
    with ValkeyServer() as server:
        report = asyncio.run(_measure(server, options.rounds, options.seconds))
    OUT.mkdir(exist_ok=True)
    (OUT / "coordination.json").write_text(json.dumps(report, indent=2) + "\n")
    print("\nfigures in bench/out/coordination.json")


async def _measure(server: ValkeyServer, rounds: int, seconds: float) -> dict[str, Any]:
    report: dict[str, Any] = {}
    print("Operations per second, medians of interleaved rounds\n")
    for callers in CALLERS:
        print(f"{callers} caller{'s' if callers > 1 else ''}")
        async with (
            _wired(server) as ctx,
            _redis_py(server, callers) as client,
            await RedisClient().connect(server.dsn) as own,
        ):
            for line in [*await _lines(server, ctx, client), *_resilience(server, own)]:
                report[f"{line.name}, {callers}"] = await _compare(line, callers, rounds, seconds)
    print(f"\nHand-off of one lock to the next of {WAITERS} waiters, ms")
    for runtimes in (1, 10):
        gaps = [gap for _ in range(rounds) for gap in await _hand_offs(server, runtimes)]
        middle, late = median(gaps), quantiles(gaps, n=100)[98]
        report[f"hand-off, {runtimes} clients, ms"] = {"median": middle, "p99": late}
        where = "in one client" if runtimes == 1 else f"over {runtimes} clients"
        print(f"  {where:<22} median {middle:.2f}, 99 % within {late:.2f}")
    return report


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
    if await idempotency.begin("op", "replayed", "hash") is None:
        await idempotency.commit("op", "replayed", "hash", done)

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
            lambda: client.get("bench:incr"),
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


async def _compare(line: Line, callers: int, rounds: int, seconds: float) -> dict[str, Any]:
    ours, theirs = [], []
    for _ in range(rounds):
        ours.append(await _per_second(line.ours, callers, seconds))
        if line.theirs is not None:
            theirs.append(await _per_second(line.theirs, callers, seconds))
    result: dict[str, Any] = {"per second": median(ours)}
    text = f"  {line.name:<28}{median(ours):>9,.0f}"
    if theirs:
        ratio = median(ours) / median(theirs)
        result |= {"peer": line.peer, "peer per second": median(theirs), "ratio": ratio}
        text += f"   {line.peer:<14}{median(theirs):>9,.0f}{ratio:>8.2f}x"
    print(text)
    return result


async def _per_second(operation: Operation, callers: int, seconds: float) -> float:
    clock = time.perf_counter
    until = clock() + seconds

    async def caller() -> int:
        done = 0
        while clock() < until:
            await operation()
            done += 1
        return done

    began = clock()
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(caller()) for _ in range(callers)]
    return sum(task.result() for task in tasks) / (clock() - began)


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

        async with contexts[0].dlock_scope(LOCK).scope(key):
            waiters = [
                asyncio.create_task(hold(contexts[number % runtimes])) for number in range(WAITERS)
            ]
            await asyncio.sleep(0.5)  # everyone stands in line
        await asyncio.gather(*waiters)
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
