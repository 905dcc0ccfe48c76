"""``RedisManager`` against a server: both sides, one bound, every loop, thread and child."""

from __future__ import annotations

import asyncio
import gc
import inspect
import os
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import pytest

from forze.errors import BackendCorrupt, ConfigurationError
from forze.testing.proxy import RespProxy
from forze.testing.servers import ValkeyServer
from forze_redis import RedisManager
from forze_redis.driver.limit import Turn

PAIRS = [
    ("initialize_async", "initialize_sync"),
    ("get_async", "get_sync"),
    ("set_async", "set_sync"),
    ("delete_async", "delete_sync"),
    ("delete_pattern_async", "delete_pattern_sync"),
    ("async_test_connection", "sync_test_connection"),
    ("get_async_client", "get_sync_client"),
    ("close", "close_sync"),
]

FILL = "for i = 1, ARGV[1] do redis.call('SET', ARGV[2] .. i, '1') end"


class Side:
    """One of the twins: ``await side("get", key)``."""

    def __init__(self, manager: RedisManager, at: int) -> None:
        self.manager = manager
        self._at = at

    async def __call__(self, name: str, *args: Any, **kwargs: Any) -> Any:
        pair = next(each for each in PAIRS if each[0].startswith(name) or name in each)
        method = getattr(self.manager, pair[self._at])
        if self._at == 0:
            return await method(*args, **kwargs)
        return await asyncio.to_thread(method, *args, **kwargs)


@pytest.fixture
def manager(valkey_dsn: str) -> Iterator[RedisManager]:
    made = RedisManager(url=valkey_dsn, socket_timeout=20)
    yield made
    made.close_sync()


@pytest.fixture(params=[0, 1], ids=["async", "sync"])
def side(request: pytest.FixtureRequest, manager: RedisManager) -> Side:
    return Side(manager, request.param)


def connections(server: ValkeyServer) -> int:
    """Those of others than the one that asks, and those that asked before."""
    listed = server.ask("CLIENT", "LIST").splitlines()
    return sum(b" laddr=" in each and b" cmd=client|list" not in each for each in listed)


def test_the_twins_have_the_same_parameters() -> None:
    public = {name for name in vars(RedisManager) if not name.startswith("_")}
    assert public == {name for pair in PAIRS for name in pair}
    for one, other in PAIRS:
        a, b = getattr(RedisManager, one), getattr(RedisManager, other)
        assert inspect.signature(a).parameters == inspect.signature(b).parameters
        assert inspect.iscoroutinefunction(a)
        assert not inspect.iscoroutinefunction(b)


async def test_values_come_back_as_text(side: Side) -> None:
    assert await side("get", "k") is None
    for value, text in (("ä", "ä"), (b"b", "b"), (7, "7"), (1.5, "1.5"), ("", "")):
        await side("set", "k", value)
        assert await side("get", "k") == text
        assert await side("get", b"k") == text


async def test_lifetimes_and_the_default(side: Side, valkey: ValkeyServer) -> None:
    for ex, seconds in ((None, 3600), (300, 300), (timedelta(minutes=2), 120), (59.9, 60)):
        await side("set", "k", "v", ex=ex)
        assert seconds - 10 < int(valkey.ask("TTL", "k")[1:]) <= seconds


async def test_no_lifetime_of_zero_means_an_hour(side: Side, valkey: ValkeyServer) -> None:
    for ex in (0, -1, timedelta(0)):
        with pytest.raises(ValueError, match="ex must be"):
            await side("set", "k", "v", ex=ex)
    assert valkey.ask("EXISTS", "k") == b":0\r\n"


async def test_what_has_no_text_is_not_stored(side: Side, valkey: ValkeyServer) -> None:
    for value in ({"a": 1}, [1], None, True):
        with pytest.raises(TypeError, match=r"json\.dumps"):
            await side("set", "k", value)
    with pytest.raises(TypeError, match="a key is"):
        await side("set", 1, "v")
    assert valkey.ask("DBSIZE") == b":0\r\n"


async def test_deleting_counts_and_nothing_is_nothing(side: Side) -> None:
    assert await side("delete_async") == 0
    for key in ("a", "b"):
        await side("set", key, 1)
    assert await side("delete_async", "a", "b", "c") == 2
    with pytest.raises(TypeError, match="a key is"):
        await side("delete_async", ["a", "b"])


async def test_a_pattern_goes_in_batches_and_nothing_else_with_it(
    valkey: ValkeyServer, valkey_dsn: str
) -> None:
    async with RespProxy(valkey.port) as proxy:
        manager = RedisManager(url=proxy.dsn, socket_timeout=20)
        for side in (Side(manager, 0), Side(manager, 1)):
            valkey.ask("EVAL", FILL, "0", "2200", "user:1:")
            valkey.ask("SET", "user:10", "kept")
            valkey.ask("EVAL", r"redis.call('SET', 'user:1:\255', 'no text')", "0")
            proxy.commands.clear()
            assert await side("delete_pattern_async", "user:1:*") == 2201
            sent = [each[0].upper() for each in proxy.commands]
            assert not {b"KEYS", b"DEL", b"FLUSHDB"} & set(sent)
            assert max(len(each) for each in proxy.commands) <= 1001
            assert sent.count(b"SCAN") >= 3
            assert valkey.ask("DBSIZE") == b":1\r\n"
            assert await side("delete_pattern_async", "nothing*") == 0
        await manager.close()


async def test_two_hundred_thousand_keys_do_not_hold_up_the_loop(
    manager: RedisManager, valkey: ValkeyServer
) -> None:
    valkey.ask("EVAL", FILL, "0", "200000", "many:")
    longest, done = 0.0, False

    async def watch() -> None:
        nonlocal longest
        while not done:
            before = time.thread_time()  # of this thread alone: others may have the machine
            await asyncio.sleep(0.001)
            longest = max(longest, time.thread_time() - before)

    watching = asyncio.create_task(watch())
    assert await manager.delete_pattern_async("many:*") == 200_000
    done = True
    await watching
    assert longest < 0.01
    assert valkey.ask("DBSIZE") == b":0\r\n"


async def test_thirty_threads_and_thirty_tasks_over_five_connections(
    manager: RedisManager, valkey: ValkeyServer
) -> None:
    most, done = 0, threading.Event()

    def count() -> None:
        nonlocal most
        while not done.is_set():
            most = max(most, connections(valkey))

    def work(name: int) -> None:
        for number in range(10):
            manager.set_sync(f"{name}", number)
            assert manager.get_sync(f"{name}") == str(number)

    async def job(name: int) -> None:
        for number in range(10):
            await manager.set_async(f"task {name}", number)
            assert await manager.get_async(f"task {name}") == str(number)

    with ThreadPoolExecutor(31) as threads:
        loop = asyncio.get_running_loop()
        counting = loop.run_in_executor(threads, count)
        working = [loop.run_in_executor(threads, work, name) for name in range(30)]
        try:
            await asyncio.gather(*(job(name) for name in range(30)), *working)
        finally:
            done.set()
        await counting
    assert 1 <= most <= 5
    assert valkey.ask("DBSIZE") == b":60\r\n"


async def test_health(side: Side, valkey: ValkeyServer) -> None:
    assert await side("async_test_connection") is True
    assert await side("initialize_async") is None
    assert connections(valkey) == 1


async def test_the_clients_themselves(manager: RedisManager) -> None:
    client = await manager.get_async_client()
    await client.hset("user:1", mapping={"name": "John", "email": "john@example.com"})
    assert await client.hgetall("user:1") == {"name": "John", "email": "john@example.com"}
    pipe = client.pipeline()
    pipe.incr("n")
    pipe.expire("n", 60)
    assert await pipe.execute() == [1, True]
    assert [key async for key in client.scan_iter("user:*")] == ["user:1"]
    async with client.pubsub() as listener:
        await listener.subscribe("news")
        await client.publish("news", "hello")
        async for message in listener.listen():
            if message["type"] == "message":
                assert message["data"] == "hello"
                break
    blocking: Any = manager.get_sync_client()
    assert blocking.hgetall("user:1") == {"name": "John", "email": "john@example.com"}
    assert blocking.pipeline().incr("n").ttl("n").execute()[0] == 2


async def test_closing_closes_both_sides_and_it_opens_again(
    manager: RedisManager, valkey: ValkeyServer
) -> None:
    for close in (manager.close, lambda: asyncio.to_thread(manager.close_sync)):
        await manager.set_async("k", "v")
        assert await asyncio.to_thread(manager.get_sync, "k") == "v"
        assert connections(valkey) == 2
        await close()
        assert connections(valkey) == 0
    await manager.close()
    assert await manager.get_async("k") == "v"


async def test_a_call_under_way_outlives_closing(
    manager: RedisManager, valkey: ValkeyServer
) -> None:
    client: Any = await manager.get_async_client()
    waiting = asyncio.create_task(client.blpop(["list"], timeout=0))
    while b"cmd=blpop" not in valkey.ask("CLIENT", "LIST"):
        await asyncio.sleep(0.005)
    await manager.close()
    valkey.ask("RPUSH", "list", "x")
    assert await waiting == ("list", "x")
    assert connections(valkey) == 0


def test_one_manager_for_one_event_loop_after_the_other(
    manager: RedisManager, valkey: ValkeyServer
) -> None:
    async def use() -> None:
        await asyncio.gather(*(manager.set_async("k", n) for n in range(20)))
        assert await manager.get_async("k") is not None

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(3):
            asyncio.run(use())
            assert connections(valkey) == 0
        loop = asyncio.new_event_loop()
        loop.run_until_complete(use())
        loop.close()  # and nothing else: its connections are left where they are
        asyncio.run(use())
        gc.collect()
    assert connections(valkey) == 0


def test_a_loop_that_ends_takes_along_what_another_is_about_to_close(
    manager: RedisManager, valkey: ValkeyServer
) -> None:
    """Another thread has chosen its idle connection to make room, and gets no further."""
    pool = manager._async.connection_pool

    async def use() -> Turn:
        await asyncio.gather(*(manager.set_async("k", n) for n in range(20)))
        return await asyncio.to_thread(asyncio.run, elsewhere())

    async def elsewhere() -> Turn:
        turn: Turn = await pool._here().turn(pool.guard, 1)
        assert turn.parted is not None
        return turn

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        turn = asyncio.run(use())
        assert connections(valkey) == 0
        turn.make_room().wait()
        del turn
        gc.collect()


async def test_event_loops_side_by_side(manager: RedisManager, valkey: ValkeyServer) -> None:
    async def use(name: int) -> None:
        for number in range(10):
            await manager.set_async(f"{name}", number)
            assert await manager.get_async(f"{name}") == str(number)

    threads = [asyncio.to_thread(asyncio.run, use(name)) for name in range(8)]
    await asyncio.gather(use(9), *threads)
    assert valkey.ask("DBSIZE") == b":9\r\n"


def test_a_forked_worker_connects_anew(manager: RedisManager, valkey: ValkeyServer) -> None:
    async def parent() -> None:
        await manager.set_async("k", "v")
        assert await asyncio.to_thread(manager.get_sync, "k") == "v"
        ids = {await manager._async.client_id(), manager._sync.client_id()}
        child = os.fork()
        if child == 0:  # pragma: no cover - the child reports by its exit status
            code = 1
            try:
                work: Callable[[], bool] = lambda: asyncio.run(in_child(ids))  # noqa: E731
                with ThreadPoolExecutor(1) as thread:
                    code = 0 if thread.submit(work).result(10) else 2
            finally:
                os._exit(code)
        _, status = await asyncio.to_thread(os.waitpid, child, 0)
        assert os.waitstatus_to_exitcode(status) == 0
        assert {await manager._async.client_id(), manager._sync.client_id()} == ids
        await manager.close()

    async def in_child(ids: set[int]) -> bool:
        ours = {await manager._async.client_id(), manager._sync.client_id()}
        manager.set_sync("from the child", 1)
        return not ours & ids and await manager.get_async("from the child") == "1"

    asyncio.run(parent())


async def test_a_cancelled_call_leaves_nothing_behind(manager: RedisManager) -> None:
    """At every await of a call, on a fresh connection and on a used one."""
    await manager.set_async("k", "right")
    for opens in (True, False):
        for steps in range(40):
            if opens:
                await manager.close()
            call = asyncio.create_task(manager.set_async("other", "x"))
            for _ in range(steps):
                await asyncio.sleep(0)
            call.cancel()
            await asyncio.wait([call])
            assert await manager.get_async("k") == "right"
    limit = manager._async.connection_pool.limit
    assert limit.held <= 5
    await manager.close()
    assert limit.held == 0


async def test_what_was_granted_to_a_cancelled_waiter_goes_to_the_next(valkey_dsn: str) -> None:
    manager = RedisManager(url=valkey_dsn, pool_size=1, socket_timeout=20)
    pool = manager._async.connection_pool
    held = await pool.get_connection()
    cancelled = asyncio.create_task(manager.get_async("k"))
    waiting = asyncio.create_task(manager.get_async("k"))
    while len(pool.limit._line) < 2:
        await asyncio.sleep(0)
    await pool.release(held)  # grants the first its turn
    cancelled.cancel()
    done, _ = await asyncio.wait([waiting], timeout=3)
    assert done
    assert cancelled.cancelled()
    assert await waiting is None
    await manager.close()


async def test_other_types_and_bytes_of_others_are_errors_of_ours(
    side: Side, valkey: ValkeyServer, valkey_dsn: str
) -> None:
    valkey.ask("LPUSH", "list", "x")
    with pytest.raises(BackendCorrupt, match="WRONGTYPE"):
        await side("get", "list")
    valkey.ask("EVAL", r"redis.call('SET', 'bytes', '\255')", "0")
    with pytest.raises(BackendCorrupt, match="no text"):
        await side("get", "bytes")
    assert await side("get", "none") is None


async def test_wrong_credentials_are_a_mistake_of_the_program(valkey_dsn: str) -> None:
    manager = RedisManager(url=valkey_dsn.replace("redis://", "redis://nobody:secret@"))
    for side in (Side(manager, 0), Side(manager, 1)):
        for name in ("initialize_async", "async_test_connection"):
            with pytest.raises(ConfigurationError) as refused:
                await side(name)
            assert "secret" not in str(refused.value)
    await manager.close()
