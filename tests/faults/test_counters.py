"""Counters and id blocks among faults: what is unknown is said to be, and no id comes twice."""

from __future__ import annotations

import asyncio
import random
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, contextmanager, suppress
from datetime import timedelta
from pathlib import Path

import pytest
from tests.faults.allocating import NAMESPACE, ORDERS, counting

from forze.application.contracts.counter import CounterPort
from forze.application.execution import DepsPlan, ExecutionRuntime, LifecyclePlan
from forze.errors import BackendError, BackendTimeout, BackendUnavailable
from forze.testing.proxy import Match, RespProxy, command, script
from forze.testing.servers import RespServer, ValkeyServer
from forze_redis import RedisClient, RedisDepsModule, redis_lifecycle_step
from forze_redis.counter import COUNT
from forze_redis.routed import RoutedRedisClient

ROOT = Path(__file__).parents[2]
PLAIN, SCRIPTED = command("INCRBY"), script(COUNT)


@pytest.fixture
async def proxy(redis_server: RespServer, redis_dsn: str) -> AsyncIterator[RespProxy]:
    """Between the counter and an empty server."""
    async with RespProxy(redis_server.port) as between:
        yield between


@pytest.fixture
async def counter(proxy: RespProxy) -> AsyncIterator[CounterPort]:
    """The counter behind the proxy."""
    async with counting(proxy.dsn) as ctx:
        yield ctx.counter(ORDERS)


def stored(server: RespServer) -> int:
    """The value on the server itself."""
    return int(server.ask("GET", NAMESPACE).split()[-1])


# -- one increment ---------------------------------------------------------------


async def test_a_lost_reply_is_unknown_and_never_retried(
    proxy: RespProxy, counter: CounterPort, redis_server: RespServer
) -> None:
    for call in (counter.incr, counter.decr, lambda: counter.allocate(1)):
        before = await counter.incr(by=10)
        dropped = proxy.drop_reply(PLAIN)
        with pytest.raises(BackendUnavailable) as caught:
            await call()
        assert caught.value.outcome == "unknown"
        assert dropped.count == 1
        await counter.get()
        assert abs(stored(redis_server) - before) == 1, "once, not again on the new connection"


async def test_a_repeat_under_an_operation_id_finds_the_answer(
    proxy: RespProxy, counter: CounterPort, redis_server: RespServer
) -> None:
    proxy.drop_reply(SCRIPTED)
    with pytest.raises(BackendUnavailable) as caught:
        await counter.allocate(5, operation_id="order 7")
    assert caught.value.outcome == "unknown"
    assert stored(redis_server) == 5
    assert await counter.allocate(5, operation_id="order 7") == range(1, 6)
    assert stored(redis_server) == 5


async def test_a_request_that_was_lost_is_made_good_by_a_repeat(
    proxy: RespProxy, counter: CounterPort, redis_server: RespServer
) -> None:
    held = proxy.hold_request(SCRIPTED)
    first = asyncio.create_task(counter.incr(operation_id="order 7"))
    await held.seen()
    proxy.cut()
    with pytest.raises(BackendUnavailable) as caught:
        await first
    assert caught.value.outcome == "unknown"
    held.release()
    assert await counter.incr(operation_id="order 7") == 1
    assert stored(redis_server) == 1


async def test_a_paused_server_executes_once_when_it_resumes(own_valkey: ValkeyServer) -> None:
    runtime = ExecutionRuntime(
        deps=DepsPlan.from_modules(
            RedisDepsModule(client=RedisClient(), counters={"orders": {"namespace": NAMESPACE}})
        ),
        lifecycle=LifecyclePlan.from_steps(
            redis_lifecycle_step(dsn=own_valkey.dsn, config={"socket_timeout": 0.3})
        ),
    )
    async with runtime.scope() as ctx:
        counter = ctx.counter(ORDERS)
        assert await counter.incr() == 1
        own_valkey.pause()
        try:
            with pytest.raises(BackendTimeout) as caught:
                await counter.incr()
            assert caught.value.outcome == "unknown"
        finally:
            own_valkey.resume()
        async with asyncio.timeout(5):
            while await _value(counter) != 2:
                await asyncio.sleep(0.02)
        await asyncio.sleep(0.3)
        assert await counter.get() == 2


async def _value(counter: CounterPort) -> int | None:
    with suppress(BackendError):
        return await counter.get()
    return None


@pytest.mark.parametrize("held", ["request", "reply"])
@pytest.mark.parametrize("match", [PLAIN, SCRIPTED], ids=["plain", "operation"])
async def test_cancelled_it_happens_once_at_most(
    proxy: RespProxy, counter: CounterPort, redis_server: RespServer, held: str, match: Match
) -> None:
    operation = "order 7" if match is SCRIPTED else None
    hold = getattr(proxy, f"hold_{held}")(match)
    caller = asyncio.create_task(counter.incr(operation_id=operation))
    await hold.seen()
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller
    hold.release()
    assert await counter.get() == 1
    assert await counter.incr(operation_id=operation) == (1 if operation else 2)


# -- blocks ----------------------------------------------------------------------


async def test_a_block_whose_reply_was_lost_is_a_gap(
    proxy: RespProxy, counter: CounterPort
) -> None:
    ids = counter.allocator(10)
    proxy.drop_reply(PLAIN)
    answers = await asyncio.gather(*(ids.next() for _ in range(4)), return_exceptions=True)
    assert [getattr(each, "outcome", each) for each in answers] == ["unknown"] * 4
    assert [await ids.next() for _ in range(3)] == [11, 12, 13]


@pytest.mark.parametrize("held", ["request", "reply"])
async def test_cancelled_while_a_block_is_fetched(
    proxy: RespProxy, counter: CounterPort, held: str
) -> None:
    ids = counter.allocator(4)
    hold = getattr(proxy, f"hold_{held}")(PLAIN)
    callers = [asyncio.create_task(ids.next()) for _ in range(3)]
    await hold.seen()
    callers[0].cancel()
    with pytest.raises(asyncio.CancelledError):
        await callers[0]
    assert ids.take_nowait() is None
    hold.release()
    assert [await each for each in callers[1:]] == [1, 2]
    assert await counter.get() == 4, "one flight"
    assert [await ids.next() for _ in range(4)] == [3, 4, 5, 6]


async def test_everyone_cancelled_the_block_is_there_for_the_next(
    proxy: RespProxy, counter: CounterPort
) -> None:
    ids = counter.allocator(4)
    hold = proxy.hold_reply(PLAIN)
    caller = asyncio.create_task(ids.next())
    await hold.seen()
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller
    hold.release()
    assert await ids.next() == 1
    assert await counter.get() == 4


@contextmanager
def allocating(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    """A process of ``tests.faults.allocating``; killed at the end."""
    process = subprocess.Popen(
        [sys.executable, "-W", "error", "-m", "tests.faults.allocating", *arguments],
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def test_processes_killed_at_any_moment_leave_gaps_and_no_duplicates(
    valkey: ValkeyServer, valkey_dsn: str
) -> None:
    """Workers run side by side, are killed in the middle of whatever they do, and replaced."""
    seen: list[int] = []
    dice = random.Random(7)
    for _ in range(3):
        with (
            allocating(valkey_dsn, "7") as one,
            allocating(valkey_dsn, "50") as two,
            allocating(valkey_dsn, "1") as three,
        ):
            for process in (one, two, three):
                assert process.stdout is not None
                lines = (process.stdout.readline() for _ in range(dice.randint(200, 600)))
                seen.extend(map(int, lines))
                process.kill()
                seen += [int(line) for line in process.stdout if line.endswith("\n")]
    assert len(seen) > 1_500
    assert len(set(seen)) == len(seen)
    assert max(seen) <= stored(valkey)


def test_a_forked_child_takes_blocks_of_its_own(valkey: ValkeyServer, valkey_dsn: str) -> None:
    with allocating(valkey_dsn, "1000", "fork") as process:
        output, _ = process.communicate(timeout=30)
    lines = [line.split() for line in output.splitlines()]
    taken = {who: [int(each) for name, each in lines if name == who] for who in ("parent", "child")}
    assert (len(taken["parent"]), len(taken["child"])) == (103, 100)
    assert not set(taken["parent"]) & set(taken["child"])
    assert taken["parent"] == list(range(1, 104))
    assert stored(valkey) == 2000


async def test_a_route_has_blocks_of_its_own(valkey_dsn: str, own_valkey: ValkeyServer) -> None:
    """One key on two servers is two counters: what was taken on one is not for the other."""
    client = RoutedRedisClient(max_clients=10, idle_after=timedelta(minutes=1))
    async with AsyncExitStack() as stack:
        await client.connect({"a": valkey_dsn, "b": own_valkey.dsn})
        stack.push_async_callback(client.close)
        module = RedisDepsModule(client=client, counters={"orders": {"namespace": NAMESPACE}})
        runtime = ExecutionRuntime(deps=DepsPlan.from_modules(module))
        ctx = await stack.enter_async_context(runtime.scope())
        ids = ctx.counter(ORDERS).allocator(5)
        with client.route("a"):
            assert [await ids.next() for _ in range(3)] == [1, 2, 3]
        with client.route("b"):
            assert [await ids.next() for _ in range(7)] == [1, 2, 3, 4, 5, 6, 7]
        with client.route("a"):
            assert [await ids.next() for _ in range(7)] == [4, 5, 6, 7, 8, 9, 10]
        with ctx.bind_tenant("b"):
            assert await ids.next() == 8
