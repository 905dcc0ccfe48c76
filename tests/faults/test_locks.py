"""Locks among faults of one process, its network and its server, held at the moment it hurts."""

from __future__ import annotations

import asyncio
import statistics
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import timedelta
from typing import Any

import pytest
from tests.faults.world import ask

from forze.application.contracts.dlock import (
    DistributedLockSpec,
    HeldLock,
    ReadWriteLockSpec,
    SemaphoreSpec,
)
from forze.application.execution import (
    DepsPlan,
    ExecutionContext,
    ExecutionRuntime,
    LifecyclePlan,
)
from forze.errors import BackendCorrupt, BackendError, LockLost, LockNotAcquired
from forze.testing.batteries.legs import apart
from forze.testing.batteries.locks import Holder, held_by
from forze.testing.proxy import Match, RespProxy, command, script
from forze.testing.servers import RespServer, ValkeyServer
from forze_redis import (
    RedisClient,
    RedisConfig,
    RedisDepsModule,
    dlock,
    redis_lifecycle_step,
    semaphore,
)

LOCK = DistributedLockSpec(name="jobs")
BRIEF = DistributedLockSpec(name="brief_jobs", ttl=timedelta(milliseconds=400))
SLOTS = SemaphoreSpec(name="slots", permits=1)
PAGES = ReadWriteLockSpec(name="pages")
PATIENCE = timedelta(seconds=10)
HAND_OVER_MS = 8.0
"""Within which the next in line is served, 99 times of 100."""

Process = tuple[ExecutionContext, RespProxy]


@asynccontextmanager
async def process(port: int, **config: Any) -> AsyncIterator[Process]:
    """One process's worth of the application, its connection through a proxy of its own."""
    async with AsyncExitStack() as stack:
        proxy = await stack.enter_async_context(RespProxy(port))
        module = RedisDepsModule(
            client=RedisClient(),
            dlocks={name: {"namespace": f"test:{name}"} for name in ("jobs", "brief_jobs")},
            semaphores={"slots": {"namespace": "test:slots"}},
            rwlocks={"pages": {"namespace": "test:pages"}},
        )
        step = redis_lifecycle_step(dsn=proxy.dsn, config=RedisConfig(**config))
        runtime = ExecutionRuntime(
            deps=DepsPlan.from_modules(module), lifecycle=LifecyclePlan.from_steps(step)
        )
        yield await stack.enter_async_context(runtime.scope()), proxy


@pytest.fixture
async def one(valkey: ValkeyServer, valkey_dsn: str) -> AsyncIterator[Process]:
    """A process over the session's Valkey."""
    async with process(valkey.port) as it:
        yield it


@pytest.fixture
async def other(one: Process, valkey: ValkeyServer) -> AsyncIterator[Process]:
    """Another one."""
    async with process(valkey.port) as it:
        yield it


async def until(condition: Callable[[], Awaitable[bool]] | Callable[[], bool]) -> None:
    """Look until it holds."""
    async with asyncio.timeout(PATIENCE.total_seconds()):
        while True:
            held = condition()
            if held if isinstance(held, bool) else await held:
                return
            await asyncio.sleep(0.002)


def calls(proxy: RespProxy, match: Match) -> int:
    """How many matching commands passed by."""
    return sum(match(each) for each in proxy.commands)


# -- answers that are lost -------------------------------------------------------


async def test_a_grant_whose_answer_was_lost_is_found_again(one: Process) -> None:
    ctx, proxy = one
    lost = proxy.drop_reply(script(dlock.ACQUIRE))
    acquired = await ctx.dlock(LOCK).acquire("k", "one")
    assert lost.count == 1
    assert acquired is not None, "unknown was taken for no"
    assert await ctx.dlock(LOCK).acquire("k", "one") == acquired


async def test_a_scope_finds_its_grant_again(one: Process, valkey: ValkeyServer) -> None:
    ctx, proxy = one
    lost = proxy.drop_reply(script(dlock.ACQUIRE))
    async with ctx.dlock_scope(LOCK).scope("k") as held:
        assert lost.count == 1
        assert ask(valkey, "GET", "test:jobs/k") == f"{held.owner}|{held.token}".encode()
    assert ask(valkey, "EXISTS", "test:jobs/k") == 0


async def test_a_grant_that_nobody_hears_of_is_given_back(
    one: Process, valkey: ValkeyServer
) -> None:
    """Every answer is lost: the error says unknown, and the lock does not stay behind."""
    ctx, proxy = one
    lost = proxy.drop_reply(script(dlock.ACQUIRE), times=2)
    with pytest.raises(BackendError) as failure:
        async with ctx.dlock_scope(LOCK).scope("k"):
            raise AssertionError
    assert lost.count == 2
    assert failure.value.outcome == "unknown"
    await until(lambda: ask(valkey, "EXISTS", "test:jobs/k") == 0)


async def test_a_release_whose_answer_was_lost_is_a_release(
    one: Process, valkey: ValkeyServer
) -> None:
    ctx, proxy = one
    await ctx.dlock(LOCK).acquire("k", "one")
    proxy.drop_reply(script(dlock.RELEASE))
    assert await ctx.dlock(LOCK).release("k", "one") is True
    proxy.drop_reply(script(dlock.RELEASE))
    async with ctx.dlock_scope(LOCK).scope("k"):
        pass
    assert ask(valkey, "EXISTS", "test:jobs/k") == 0


async def test_a_release_that_was_not_executed_is_repeated(
    one: Process, valkey: ValkeyServer
) -> None:
    ctx, proxy = one
    hold = proxy.hold_request(script(dlock.RELEASE))

    async def block() -> None:
        async with ctx.dlock_scope(LOCK).scope("k"):
            pass

    task = asyncio.create_task(block())
    await hold.seen()
    proxy.cut()
    await task
    await until(lambda: calls(proxy, script(dlock.RELEASE)) == 2)
    await until(lambda: ask(valkey, "EXISTS", "test:jobs/k") == 0)
    assert await ctx.dlock(LOCK).acquire("k", "next") is not None


# -- what may be believed ----------------------------------------------------------


async def test_validity_counts_from_before_the_request(one: Process) -> None:
    """An answer that took its time leaves that much less to believe in."""
    ctx, proxy = one
    hold = proxy.hold_reply(script(dlock.ACQUIRE))
    sent = time.monotonic()
    holder = Holder(ctx.dlock_scope(BRIEF).scope("k", heartbeat=False))
    await hold.seen()
    await asyncio.sleep(0.15)
    hold.release()
    held = await holder.entered()
    believed_for = time.monotonic() - sent + held.remaining.total_seconds()
    assert believed_for <= BRIEF.ttl.total_seconds() * 0.99
    with pytest.raises(LockLost):
        await holder.task


async def test_a_lease_that_is_half_over_is_extended_before_it_is_used(one: Process) -> None:
    ctx, proxy = one
    hold = proxy.hold_reply(script(dlock.ACQUIRE))
    holder = Holder(ctx.dlock_scope(BRIEF).scope("k", heartbeat=False))
    await hold.seen()
    await asyncio.sleep(0.25)
    hold.release()
    held = await holder.entered()
    assert calls(proxy, script(dlock.ACQUIRE)) == 2
    assert held.remaining > BRIEF.ttl / 2
    await holder.leave()


async def test_a_heartbeat_counts_from_before_its_request(one: Process) -> None:
    ctx, proxy = one
    hold = proxy.hold_reply(script(dlock.EXTEND))
    holder = await held_by(ctx.dlock_scope(BRIEF).scope("k"))
    await hold.seen()
    sent, before = time.monotonic(), holder.lock
    assert before is not None
    ends = sent + before.remaining.total_seconds()
    await asyncio.sleep(0.09)
    hold.release()
    await until(lambda: time.monotonic() + before.remaining.total_seconds() > ends + 0.05)
    assert time.monotonic() + before.remaining.total_seconds() <= sent + 0.4
    await holder.leave()


async def test_a_hung_heartbeat_hides_no_lapse(one: Process) -> None:
    """The block is cancelled when its validity ends, though no answer ever came."""
    ctx, proxy = one
    hold = proxy.hold_request(script(dlock.EXTEND), times=None)
    late = 0.0
    began = time.monotonic()
    with pytest.raises(LockLost):
        async with ctx.dlock_scope(BRIEF).scope("k") as held:
            ends = time.monotonic() + held.remaining.total_seconds()
            try:
                await asyncio.sleep(PATIENCE.total_seconds())
            finally:
                late = time.monotonic() - ends
    hold.release()
    assert hold.count >= 1
    assert -0.001 < late < 0.05
    assert time.monotonic() - began < 1


async def test_a_heartbeat_that_answers_late_repairs_nothing(one: Process) -> None:
    ctx, proxy = one
    hold = proxy.hold_reply(script(dlock.EXTEND), times=None)
    with pytest.raises(LockLost):
        async with ctx.dlock_scope(BRIEF).scope("k") as held:
            await hold.seen()
            time.sleep(BRIEF.ttl.total_seconds())  # noqa: ASYNC251 - the loop stands still
            hold.release()
            with pytest.raises(LockLost):
                held.check()
            await asyncio.sleep(PATIENCE.total_seconds())


async def test_a_block_that_stops_the_event_loop_is_told(one: Process) -> None:
    ctx, _ = one
    with pytest.raises(LockLost, match="ended without"):
        async with ctx.dlock_scope(BRIEF).scope("k") as held:
            time.sleep(BRIEF.ttl.total_seconds() * 1.1)  # noqa: ASYNC251 - as a long pause would
            with pytest.raises(LockLost):
                held.check()
    with pytest.raises(LockLost):
        async with ctx.dlock_scope(BRIEF).scope("k", wait=PATIENCE):
            time.sleep(BRIEF.ttl.total_seconds() * 1.1)  # noqa: ASYNC251
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0


async def test_a_thread_sees_the_end(one: Process) -> None:
    ctx, proxy = one
    hold = proxy.hold_request(script(dlock.EXTEND), times=None)
    seen: list[str] = []

    def work(held: HeldLock) -> None:
        held.check()
        seen.append("began")
        assert held.lost.wait(5)
        try:
            held.check()
        except LockLost:
            seen.append("lost")

    with pytest.raises(LockLost):
        async with ctx.dlock_scope(BRIEF).scope("k") as held:
            thread = threading.Thread(target=work, args=(held,))
            thread.start()
            await asyncio.sleep(PATIENCE.total_seconds())
    hold.release()
    await asyncio.to_thread(thread.join, 5)
    assert seen == ["began", "lost"]


async def test_heartbeats_survive_a_connection_that_is_replaced(one: Process) -> None:
    ctx, proxy = one
    async with ctx.dlock_scope(BRIEF).scope("k") as held:
        for _ in range(3):
            await asyncio.sleep(0.2)
            proxy.cut()
        await asyncio.sleep(0.4)
        held.check()


# -- losses on the server ----------------------------------------------------------


@pytest.mark.parametrize("how", ["FLUSHALL", "DEL"])
async def test_removed_on_the_server(one: Process, valkey: ValkeyServer, how: str) -> None:
    """The next heartbeat finds out, the block is cancelled, and the next token is higher."""
    ctx, _ = one
    began = time.monotonic()
    with pytest.raises(LockLost, match="no such lease"):
        async with ctx.dlock_scope(BRIEF).scope("k") as held:
            ask(valkey, how, *(["test:brief_jobs/k"] if how == "DEL" else []))
            await asyncio.sleep(PATIENCE.total_seconds())
    assert time.monotonic() - began < BRIEF.ttl.total_seconds()
    async with ctx.dlock_scope(BRIEF).scope("k") as again:
        assert again.token > held.token


async def test_tokens_rise_through_a_failover_that_lost_the_last_grants() -> None:
    """A replica that lags takes over: it has neither the lock nor the tokens given last."""
    primary = ValkeyServer("--repl-diskless-sync-delay", "0")
    with primary, ValkeyServer() as replica:
        async with process(primary.port) as (ctx, _):
            ask(replica, "REPLICAOF", "127.0.0.1", primary.port)
            async with ctx.dlock_scope(LOCK).scope("k"):
                pass
            await until(lambda: ask(replica, "KEYS", "*") == [b"test:jobs/k:fence"])
            ask(replica, "REPLICAOF", "NO", "ONE")
            tokens = []
            for _ in range(5):
                async with ctx.dlock_scope(LOCK).scope("k") as held:
                    tokens.append(held.token)
            async with (
                process(replica.port) as (after, _),
                after.dlock_scope(LOCK).scope("k") as held,
            ):
                assert held.token > max(tokens)


async def test_a_lock_under_a_key_of_another_kind(one: Process, valkey: ValkeyServer) -> None:
    """Two resources in one namespace: an error that says so, and no lock."""
    ctx, _ = one
    ask(valkey, "RPUSH", "test:jobs/k", "a list")
    with pytest.raises(BackendCorrupt, match="namespace"):
        async with ctx.dlock_scope(LOCK).scope("k", wait=PATIENCE):
            raise AssertionError
    assert ask(valkey, "LLEN", "test:jobs/k") == 1


async def test_a_lock_that_somebody_set_by_hand(one: Process, valkey: ValkeyServer) -> None:
    """Without a lease it is held all the same, and whoever asks is told by whom."""
    ctx, _ = one
    ask(valkey, "SET", "test:jobs/k", "somebody|7")
    lock = ctx.dlock(LOCK)
    assert await lock.acquire("k", "one") is None
    assert await lock.is_locked("k")
    assert await lock.get_owner("k") == "somebody"
    assert await lock.get_ttl("k") is None
    assert await lock.release("k", "somebody")


# -- waiting -----------------------------------------------------------------------


async def test_a_release_before_anybody_listens_is_seen(one: Process, other: Process) -> None:
    """Between the first attempt and the subscription nobody is heard: it looks once more."""
    (ctx, _), (there, proxy) = one, other
    holder = await held_by(ctx.dlock_scope(LOCK).scope("k"))
    hold = proxy.hold_request(command("SSUBSCRIBE"))
    waiter = Holder(there.dlock_scope(LOCK).scope("k", wait=PATIENCE))
    await hold.seen()
    await holder.leave()
    hold.release()
    async with asyncio.timeout(0.2):
        lock = await waiter.entered()
    assert holder.lock is not None
    assert lock.token > holder.lock.token
    await waiter.leave()


async def test_a_call_that_was_lost_with_its_connection(
    one: Process, other: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Connected again, it looks at once, not only when it would have looked anyway."""
    monkeypatch.setattr(dlock.RedisStored, "look_seconds", 60.0)
    (ctx, _), (there, proxy) = one, other
    holder = await held_by(ctx.dlock_scope(LOCK).scope("k"))
    waiter = Holder(there.dlock_scope(LOCK).scope("k", wait=PATIENCE))
    await until(lambda: calls(proxy, script(dlock.WAIT)) == 1)
    proxy.refuse()
    proxy.cut()
    await holder.leave()
    await proxy.accept()
    lock = await waiter.entered()
    assert holder.lock is not None
    assert lock.token > holder.lock.token
    await waiter.leave()


async def test_a_release_wakes_one(one: Process, other: Process, valkey: ValkeyServer) -> None:
    """Twenty wait in two processes; one asks again, and nineteen wait on."""
    holder = await held_by(one[0].dlock_scope(LOCK).scope("k"))
    waiting = []
    for number in range(20):
        ctx = (one, other)[number % 2][0]
        waiting.append(Holder(ctx.dlock_scope(LOCK).scope("k", wait=PATIENCE)))
        await asyncio.sleep(0.004)

    def asked() -> int:
        return sum(calls(each[1], script(dlock.ACQUIRE)) for each in (one, other))

    await until(lambda: ask(valkey, "ZCARD", "test:jobs/k:queue") == 20)
    await asyncio.sleep(0.02)
    before = asked()
    await holder.leave()
    for served, waiter in enumerate(waiting, 1):
        await waiter.entered()
        assert asked() == before + served
        await waiter.leave()
    assert before == 1 + len(waiting)


async def test_nobody_passes_one_who_was_called(one: Process, other: Process) -> None:
    """Free, and the head of the line on its way to it: whoever comes by does not get it."""
    (ctx, _), (there, proxy) = one, other
    holder = await held_by(ctx.dlock_scope(LOCK).scope("k"))
    waiter = Holder(there.dlock_scope(LOCK).scope("k", wait=PATIENCE))
    await until(lambda: calls(proxy, script(dlock.WAIT)) == 1)
    hold = proxy.hold_request(script(dlock.ACQUIRE))
    await holder.leave()
    await hold.seen()
    assert await ctx.dlock(LOCK).acquire("k", "in a hurry") is None
    hold.release()
    await waiter.entered()
    await waiter.leave()


async def test_who_died_in_line_is_skipped(valkey: ValkeyServer, valkey_dsn: str) -> None:
    """The head of the line does not answer its call; the next is served when its place lapses."""
    async with process(valkey.port) as one, process(valkey.port) as dead:
        holder = await held_by(one[0].dlock_scope(LOCK).scope("k"))
        head = Holder(dead[0].dlock_scope(LOCK).scope("k", wait=PATIENCE))
        await until(lambda: calls(dead[1], script(dlock.WAIT)) == 1)
        dead[1].black_hole()
        waiter = Holder(one[0].dlock_scope(LOCK).scope("k", wait=PATIENCE))
        await until(lambda: ask(valkey, "ZCARD", "test:jobs/k:queue") == 2)
        await holder.leave()
        began = time.monotonic()
        await waiter.entered()
        assert time.monotonic() - began < 2.5
        await waiter.leave()
        await dead[1].accept()
        head.task.cancel()
        await asyncio.wait({head.task})


async def test_nothing_of_a_line_stays_behind(one: Process, valkey: ValkeyServer) -> None:
    ctx, _ = one
    for scope in (
        ctx.dlock_scope(LOCK).scope,
        ctx.semaphore(SLOTS).scope,
        ctx.rwlock(PAGES).writing,
    ):
        holder = await held_by(scope("k"))
        for wait in (timedelta(milliseconds=20), PATIENCE):
            waiter = Holder(scope("k", wait=wait))
            await asyncio.sleep(0.03)
            waiter.task.cancel()
            with pytest.raises((asyncio.CancelledError, LockNotAcquired)):
                await waiter.task
        await holder.leave()
    await until(
        lambda: (
            sorted(ask(valkey, "KEYS", "*"))
            == [b"test:jobs/k:fence", b"test:pages/k:fence", b"test:slots/k:fence"]
        )
    )


# -- cancelled at every await ----------------------------------------------------------

ASKING: dict[str, Match] = {
    "acquire": script(dlock.ACQUIRE),
    "subscribe": command("SSUBSCRIBE"),
    "look": script(dlock.WAIT),
}


@pytest.mark.parametrize("held", ["request", "reply"])
@pytest.mark.parametrize("where", ASKING)
async def test_cancelled_while_waiting(
    one: Process, other: Process, valkey: ValkeyServer, where: str, held: str
) -> None:
    """Cancelled in line: nothing is left in it, and the one behind is called."""
    (ctx, _), (there, proxy) = one, other
    holder = await held_by(ctx.dlock_scope(LOCK).scope("k"))
    hold = getattr(proxy, f"hold_{held}")(ASKING[where])
    first = Holder(there.dlock_scope(LOCK).scope("k", wait=PATIENCE))
    await hold.seen()
    behind = Holder(ctx.dlock_scope(LOCK).scope("k", wait=PATIENCE))
    await asyncio.sleep(0.02)
    first.task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first.task
    hold.release()
    await until(lambda: ask(valkey, "ZCARD", "test:jobs/k:queue") == 1)
    await holder.leave()
    async with asyncio.timeout(0.3):
        await behind.entered()
    await behind.leave()


@pytest.mark.parametrize("held", ["request", "reply"])
@pytest.mark.parametrize("wait", [None, PATIENCE], ids=["once", "waiting"])
async def test_cancelled_while_it_is_granted(
    one: Process, other: Process, valkey: ValkeyServer, wait: timedelta | None, held: str
) -> None:
    """The grant that nobody took is given back, and whoever waits for it is called."""
    (ctx, proxy), (there, _) = one, other
    hold = getattr(proxy, f"hold_{held}")(script(dlock.ACQUIRE))
    first = Holder(ctx.dlock_scope(LOCK).scope("k", wait=wait))
    await hold.seen()
    behind = Holder(there.dlock_scope(LOCK).scope("k", wait=PATIENCE))
    await asyncio.sleep(0.02)
    first.task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first.task
    hold.release()
    async with asyncio.timeout(0.3):
        await behind.entered()
    await behind.leave()
    await until(lambda: ask(valkey, "EXISTS", "test:jobs/k") == 0)


@pytest.mark.parametrize("held", ["request", "reply"])
async def test_cancelled_while_it_is_given_back(
    one: Process, valkey: ValkeyServer, held: str
) -> None:
    ctx, proxy = one
    hold = getattr(proxy, f"hold_{held}")(script(dlock.RELEASE))
    holder = await held_by(ctx.dlock_scope(LOCK).scope("k"))
    leaving = asyncio.create_task(holder.leave())
    await hold.seen()
    holder.task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await holder.task
    hold.release()
    await asyncio.wait({leaving})
    await until(lambda: ask(valkey, "EXISTS", "test:jobs/k") == 0)


@pytest.mark.parametrize("held", ["request", "reply"])
async def test_cancelled_while_the_heartbeat_is_under_way(
    one: Process, valkey: ValkeyServer, held: str
) -> None:
    ctx, proxy = one
    hold = getattr(proxy, f"hold_{held}")(script(dlock.EXTEND))
    holder = await held_by(ctx.dlock_scope(BRIEF).scope("k"))
    await hold.seen()
    holder.task.cancel()
    hold.release()
    with pytest.raises(asyncio.CancelledError):
        await holder.task
    await until(lambda: ask(valkey, "EXISTS", "test:brief_jobs/k") == 0)


async def test_cancelled_at_every_turn_of_the_event_loop(
    one: Process, other: Process, valkey: ValkeyServer
) -> None:
    """Wherever it is cut off: nothing stays, nobody is forgotten, and cancelled means cancelled."""
    (ctx, _), (there, _) = one, other
    for turns in range(0, 60, 3):
        holder = await held_by(ctx.dlock_scope(LOCK).scope("k"))
        first = Holder(there.dlock_scope(LOCK).scope("k", wait=PATIENCE))
        behind = Holder(ctx.dlock_scope(LOCK).scope("k", wait=PATIENCE))
        for _ in range(turns):
            await asyncio.sleep(0)
        leaving = apart(holder.leave())
        for _ in range(turns % 7):
            await asyncio.sleep(0)
        first.task.cancel()
        await asyncio.wait({first.task})
        assert first.task.cancelled()
        await leaving
        async with asyncio.timeout(0.4):
            await behind.entered()
        await behind.leave()
    await until(lambda: ask(valkey, "KEYS", "*") == [b"test:jobs/k:fence"])


# -- semaphores and readers on the same rules --------------------------------------------


async def test_permits_and_readers_whose_answers_were_lost(
    one: Process, valkey: ValkeyServer
) -> None:
    ctx, proxy = one
    lost = [proxy.drop_reply(script(each)) for each in (semaphore.ACQUIRE, semaphore.RELEASE)]
    async with ctx.semaphore(SLOTS).scope("k"):
        assert await ctx.semaphore(SLOTS).permits_held("k") == 1
    await until(lambda: ask(valkey, "EXISTS", "test:slots/k") == 0)
    lost += [proxy.drop_reply(script(each)) for each in (dlock.ACQUIRE, dlock.RELEASE)]
    async with ctx.rwlock(PAGES).reading("k"):
        assert ask(valkey, "ZCARD", "test:pages/k:readers") == 1
    await until(lambda: ask(valkey, "EXISTS", "test:pages/k:readers") == 0)
    assert [each.count for each in lost] == [1, 1, 1, 1]


# -- how soon ----------------------------------------------------------------------------


@pytest.mark.parametrize("processes", [1, 4])
async def test_a_hundred_waiters_are_served_within_milliseconds(
    own_redis_server: RespServer, processes: int
) -> None:
    """From the release of one to the entry of the next."""
    async with AsyncExitStack() as stack:
        contexts = []
        for _ in range(processes):
            runtime = ExecutionRuntime(
                deps=DepsPlan.from_modules(
                    RedisDepsModule(
                        client=RedisClient(), dlocks={"jobs": {"namespace": "test:jobs"}}
                    )
                ),
                lifecycle=LifecyclePlan.from_steps(redis_lifecycle_step(dsn=own_redis_server.dsn)),
            )
            contexts.append(await stack.enter_async_context(runtime.scope()))
        rounds = [sorted(await handed_over(contexts))]
        while rounds[-1][98] >= HAND_OVER_MS and len(rounds) < 3:  # others use this machine, too
            rounds.append(sorted(await handed_over(contexts)))
    took_ms = min(rounds, key=lambda each: each[98])
    print(
        f"{processes} clients: median {statistics.median(took_ms):.2f} ms, p99 {took_ms[98]:.2f} ms"
    )
    assert took_ms[98] < HAND_OVER_MS


async def handed_over(contexts: list[ExecutionContext]) -> list[float]:
    """A hundred wait in turn in these processes: milliseconds from each release to the next entry,
    in the order in which they came."""
    took_ms: list[float] = []
    order: list[int] = []
    left = 0.0

    async def wait(number: int) -> None:
        nonlocal left
        async with contexts[number % len(contexts)].dlock_scope(LOCK).scope("k", wait=PATIENCE):
            took_ms.append((time.perf_counter() - left) * 1000)
            order.append(number)
            left = time.perf_counter()

    holder = await held_by(contexts[0].dlock_scope(LOCK).scope("k"))
    waiting = []
    for number in range(100):
        waiting.append(apart(wait(number)))
        await asyncio.sleep(0.002)
    left = time.perf_counter()
    await holder.leave()
    await asyncio.gather(*waiting)
    assert order == list(range(100))
    return took_ms
