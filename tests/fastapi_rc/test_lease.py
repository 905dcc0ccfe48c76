"""One factory at a time over processes; here each client stands for a process."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from fakeredis import FakeAsyncRedis
from redis.asyncio import Redis

from fastapi_rc.calls import calls_of
from fastapi_rc.errors import InvalidTtl
from fastapi_rc.service import CacheService
from fastapi_rc.ttl import NO_EXPIRY
from forze.testing.servers import ValkeyServer

pytestmark = pytest.mark.usefixtures("patient")

KEY = "cache:v1:users:1"


@pytest.fixture
async def processes(valkey_dsn: str) -> AsyncIterator[list[CacheService[Any]]]:
    """Services that share a server and nothing else."""
    clients = [Redis.from_url(valkey_dsn, decode_responses=number % 2 == 0) for number in range(5)]
    yield [CacheService[Any](each, "users", lease=30) for each in clients]
    for each in clients:
        await each.aclose()


class Held:
    """A factory that runs until it is told to end."""

    def __init__(self) -> None:
        self.runs = 0
        self.begun = asyncio.Event()
        self.ends: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

    async def __call__(self) -> Any:
        self.runs += 1
        self.begun.set()
        return await asyncio.shield(self.ends)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.001)


async def test_one_run_over_processes(redis: Redis, processes: list[CacheService[Any]]) -> None:
    held = Held()
    callers = [
        asyncio.create_task(each.get_or_set("1", held)) for each in processes for _ in range(4)
    ]
    await held.begun.wait()
    watcher = processes[0]
    assert await watcher.get("1") is None
    assert await watcher.exists("1") is False
    assert await watcher.get_ttl("1") == -2
    assert str(await redis.get(KEY)).startswith("!")
    held.ends.set_result({"id": 1})
    async with asyncio.timeout(20):
        assert await asyncio.gather(*callers) == [{"id": 1}] * 20
    assert held.runs == 1
    assert await redis.get(KEY) == '{"id":1}'
    assert 270 <= await watcher.get_ttl("1") <= 330


async def test_a_holder_that_crashed_holds_up_for_the_rest_of_its_lease(
    redis: Redis, processes: list[CacheService[Any]]
) -> None:
    loop = asyncio.get_running_loop()
    began = loop.time()
    await redis.set(KEY, "!somebody who is gone", px=60)
    assert await processes[0].get_or_set("1", lambda: "made") == "made"
    assert loop.time() - began > 0.05
    assert await redis.get(KEY) == '"made"'


@pytest.mark.parametrize("how", ["delete", "set", "invalidate", "client"])
async def test_a_write_of_another_process_wins(
    redis: Redis, processes: list[CacheService[Any]], how: str
) -> None:
    held = Held()
    maker, writer = processes[:2]
    caller = asyncio.create_task(maker.get_or_set("1", held))
    await held.begun.wait()
    if how == "delete":
        await writer.delete("1")
    elif how == "set":
        await writer.set("1", "written")
    elif how == "invalidate":
        await writer.invalidate_pattern()
    else:
        await redis.delete(KEY)
    held.ends.set_result("stale")
    assert await caller == "stale"
    assert await writer.get("1") == ("written" if how == "set" else None)


async def test_a_lapsed_holder_does_not_overwrite_or_release_its_successor(
    redis: Redis, processes: list[CacheService[Any]]
) -> None:
    for failing in (False, True):
        held = Held()
        caller = asyncio.create_task(processes[0].get_or_set("1", held))
        await held.begun.wait()
        await redis.set(KEY, "!successor", px=30_000)
        if failing:
            held.ends.set_exception(LookupError("gone"))
        else:
            held.ends.set_result("late")
        await asyncio.wait((caller,))
        assert failing == isinstance(caller.exception(), LookupError)
        assert await redis.get(KEY) == "!successor"
        await redis.delete(KEY)


async def test_failure_and_cancellation_give_the_lease_back(
    redis: Redis, processes: list[CacheService[Any]]
) -> None:
    held = Held()
    caller = asyncio.create_task(processes[0].get_or_set("1", held))
    await held.begun.wait()
    held.ends.set_exception(LookupError("no such user"))
    with pytest.raises(LookupError):
        await caller
    assert await redis.keys() == []
    held = Held()
    caller = asyncio.create_task(processes[0].get_or_set("1", held))
    await held.begun.wait()
    caller.cancel()
    await asyncio.wait((caller,))
    assert caller.cancelled()
    assert await redis.keys() == []


async def test_a_slow_holder_keeps_its_lease(redis: Redis) -> None:
    cache = CacheService[Any](redis, "users", lease=0.3)
    held = Held()
    caller = asyncio.create_task(cache.get_or_set("1", held))
    await held.begun.wait()
    stands = await redis.get(KEY)
    async with asyncio.timeout(20):
        for _ in range(2):
            before = await redis.pexpiretime(KEY)
            while await redis.pexpiretime(KEY) == before:
                await asyncio.sleep(0.01)
            assert await redis.get(KEY) == stands
    held.ends.set_result("made")
    assert await caller == "made"
    assert await redis.get(KEY) == '"made"'


async def test_what_stands_there_unreadable_is_replaced(redis: Redis) -> None:
    await redis.set(KEY, "{ no JSON")
    cache = CacheService[Any](redis, "users", lease=30)
    assert await cache.get_or_set("1", lambda: "made") == "made"
    assert await cache.get("1") == "made"


async def test_a_service_without_a_lease_does_not_wait(redis: Redis) -> None:
    await redis.set(KEY, "!somebody", px=30_000)
    assert await CacheService[Any](redis, "users").get_or_set("1", lambda: "made") == "made"
    assert await redis.get(KEY) == '"made"'


async def test_without_an_answer_the_factory_runs_here(
    redis: Redis, caplog: pytest.LogCaptureFixture
) -> None:
    cache = CacheService[Any](redis, "users", lease=30)
    await redis.rpush(KEY, "a list")
    with caplog.at_level(logging.WARNING, "fastapi_rc"):
        assert await cache.get_or_set("1", lambda: "made") == "made"
    assert "WRONGTYPE" in caplog.text


@pytest.mark.parametrize("lease", [0, -1, True, "5"])
def test_a_lease_is_a_time(redis: Redis, lease: Any) -> None:
    with pytest.raises(InvalidTtl, match="lease"):
        CacheService(redis, "users", lease=lease)


# -- a server that refuses scripts ---------------------------------------------------


@pytest.fixture(params=["NOPERM", "fakeredis"])
async def scriptless(
    request: pytest.FixtureRequest, valkey: ValkeyServer, valkey_dsn: str
) -> AsyncIterator[Redis]:
    """A client whose server runs no scripts, and says so in its way."""
    if request.param == "fakeredis":
        async with FakeAsyncRedis() as fake:
            yield fake
        return
    valkey.ask("ACL", "SETUSER", "scriptless", "on", "nopass", "~*", "&*", "+@all", "-@scripting")
    async with Redis.from_url(valkey_dsn, username="scriptless", password="") as client:
        yield client
    valkey.ask("ACL", "DELUSER", "scriptless")


async def test_where_scripts_are_refused_values_are_stored_without_leases(
    scriptless: Redis, caplog: pytest.LogCaptureFixture
) -> None:
    cache = CacheService[Any](scriptless, "users", lease=600)
    other = CacheService[Any](scriptless, "orders", lease=600)
    async with asyncio.timeout(20):
        with caplog.at_level(logging.WARNING, "fastapi_rc"):
            assert await cache.get_or_set("1", lambda: "made", ttl=60) == "made"
            assert await scriptless.get(KEY) == b'"made"'
            assert 0 < await scriptless.ttl(KEY) <= 60
            await scriptless.set("cache:v1:orders:1", "!somebody", px=600_000)
            assert await other.get_or_set("1", lambda: "made") == "made"
            assert await other.get_or_set("1", lambda: "again") == "made"
            stands = await other.get_or_set("2", lambda: scriptless.exists("cache:v1:orders:2"))
            assert stands == 0, "a lease was written"
    assert len(caplog.records) == 1
    assert "without leases" in caplog.text


async def test_where_scripts_are_refused_no_lease_is_left(scriptless: Redis) -> None:
    cache = CacheService[Any](scriptless, "users", lease=600)
    with pytest.raises(ZeroDivisionError):
        await cache.get_or_set("1", lambda: 1 // 0)
    assert await scriptless.keys() == []


async def test_a_refusal_ends_the_leases_under_way(scriptless: Redis) -> None:
    waiter = CacheService[Any](scriptless, "users", lease=600)
    held = {number: Held() for number in ("1", "2", "3")}
    makers = {
        number: asyncio.create_task(waiter.get_or_set(number, each, ttl=NO_EXPIRY))
        for number, each in held.items()
    }
    for each in held.values():
        await each.begun.wait()
    await scriptless.set("cache:v1:users:4", "!somebody", px=600_000)
    waiting = asyncio.create_task(waiter.get_or_set("4", lambda: "mine"))
    await scriptless.set("cache:v1:users:3", "written")
    async with asyncio.timeout(20):
        for number, each in held.items():
            each.ends.set_result(f"made {number}")
            assert await makers[number] == f"made {number}"
        assert await waiting == "mine"
    assert await scriptless.get("cache:v1:users:2") == b'"made 2"'
    assert await scriptless.get("cache:v1:users:3") == b"written"
    assert await scriptless.get("cache:v1:users:4") == b'"mine"'


async def test_a_refused_extension_frees_the_key_while_the_factory_runs(scriptless: Redis) -> None:
    cache = CacheService[Any](scriptless, "users", lease=1.5)
    held = Held()
    caller = asyncio.create_task(cache.get_or_set("1", held))
    await held.begun.wait()
    assert await scriptless.exists(KEY)
    lasts = asyncio.get_running_loop().time() + 20
    left = 1500
    while await scriptless.exists(KEY) and asyncio.get_running_loop().time() < lasts:
        left = await scriptless.pttl(KEY)
        await asyncio.sleep(0.01)
    assert left > 300, "it lapsed"
    held.ends.set_result("made")
    assert await caller == "made"
    assert await cache.get("1") == "made"


async def test_what_a_script_is_refused_for_once_is_no_refusal_of_scripts(redis: Redis) -> None:
    cache = CacheService[Any](redis, "users", lease=600)
    held = Held()
    caller = asyncio.create_task(cache.get_or_set("1", held))
    await held.begun.wait()
    await redis.delete(KEY)
    await redis.rpush(KEY, "a list")
    held.ends.set_result("made")
    assert await caller == "made"
    assert calls_of(redis).runs_scripts
