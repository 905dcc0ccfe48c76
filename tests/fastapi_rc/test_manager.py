"""CacheManager: opening, closing, replacing; loops, forks, pools; what it refuses."""

from __future__ import annotations

import asyncio
import gc
import os
from collections.abc import AsyncIterator
from typing import Any

import pytest
from fakeredis import FakeAsyncRedis, FakeServer
from pydantic import RedisDsn
from redis import Redis as SyncRedis
from redis import exceptions as driver
from redis.asyncio import Redis, RedisCluster

from fastapi_rc import CacheManager, CacheService, CacheUnavailable
from fastapi_rc.budget import budget_of
from forze.errors import ConfigurationError
from forze.testing.cluster import ValkeyCluster
from forze.testing.servers import ValkeyServer


@pytest.fixture
async def manager() -> AsyncIterator[CacheManager]:
    manager = CacheManager()
    yield manager
    await manager.close()


def clients(server: ValkeyServer, name: str) -> int:
    """How many connections of this name the server has, as it sees it."""
    return server.ask("CLIENT", "LIST").count(f"name={name} ".encode())


async def until(condition: Any) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.005)


async def connected(manager: CacheManager) -> None:
    """As soon as the machine has the time to be within the budget."""
    async with asyncio.timeout(20):
        while not await manager.ping():
            await asyncio.sleep(0.01)


async def popped(manager: CacheManager, queue: str, timeout: float) -> Any:
    redis: Any = manager.client
    return await redis.blpop(queue, timeout=timeout)


# -- opening and closing -------------------------------------------------------------


async def test_init_does_not_connect(valkey: ValkeyServer, manager: CacheManager) -> None:
    manager.init(valkey.dsn, client_name="lazy")
    assert manager.is_available
    assert clients(valkey, "lazy") == 0
    assert await manager.ping()
    assert clients(valkey, "lazy") == 1


async def test_close_may_be_repeated_and_init_follow(
    valkey: ValkeyServer, manager: CacheManager
) -> None:
    await manager.close()
    for _ in range(2):
        manager.init(valkey.dsn, client_name="again")
        assert await manager.client.set("k", "v")
        await manager.close()
        await manager.close()
        assert clients(valkey, "again") == 0
        assert not manager.is_available
        assert not await manager.ping()


async def test_an_earlier_pool_does_not_leak(valkey: ValkeyServer, manager: CacheManager) -> None:
    manager.init(valkey.dsn, client_name="first")
    await asyncio.gather(*(manager.client.get("k") for _ in range(5)))
    assert clients(valkey, "first") > 0
    first: Any = manager.client
    manager.init(valkey.dsn, client_name="second")
    assert first.connection_pool.limit.held == 0
    await manager.client.get("k")
    await until(lambda: clients(valkey, "first") == 0)
    assert clients(valkey, "second") == 1


async def test_an_earlier_client_works_on_and_leaves_nothing_open(
    valkey: ValkeyServer, manager: CacheManager
) -> None:
    manager.init(valkey.dsn, client_name="earlier")
    earlier: Any = manager.client
    await earlier.set("k", "v")
    for end in (lambda: manager.init(valkey.dsn), manager.close):
        ended = end()
        if ended is not None:
            await ended
        assert await asyncio.gather(*(earlier.get("k") for _ in range(5))) == ["v"] * 5
        assert await earlier.pipeline().get("k").execute() == ["v"]
        assert earlier.connection_pool.limit.held == 0
    await until(lambda: clients(valkey, "earlier") == 0)


async def test_a_call_under_way_outlives_init(valkey: ValkeyServer, manager: CacheManager) -> None:
    manager.init(valkey.dsn, client_name="under-way")
    popping = asyncio.create_task(popped(manager, "queue:of:init", 20))
    await until(lambda: b"cmd=blpop" in valkey.ask("CLIENT", "LIST"))
    manager.init(valkey.dsn, client_name="after")
    await manager.client.rpush("queue:of:init", "job")
    assert await popping == ("queue:of:init", "job")
    await until(lambda: clients(valkey, "under-way") == 0)


def test_init_needs_no_event_loop(valkey: ValkeyServer) -> None:
    manager = CacheManager()
    manager.init(valkey.dsn, client_name="sync")

    async def use() -> bool:
        return await manager.ping()

    assert asyncio.run(use())
    manager.init(valkey.dsn, client_name="sync")
    assert asyncio.run(use())
    asyncio.run(manager.close())
    assert clients(valkey, "sync") == 0


async def test_pipelines(valkey_dsn: str, manager: CacheManager) -> None:
    manager.init(valkey_dsn)
    async with manager.pipeline() as pipe:
        pipe.set("a", 1)
        pipe.get("a")
        assert await pipe.execute() == [True, "1"]
    async with manager.pipeline(transaction=False) as pipe:
        for number in range(1000):
            pipe.set(f"n:{number}", number)
        assert await pipe.execute() == [True] * 1000
    async with manager.pipeline() as pipe:
        await pipe.watch("a")
        seen = await pipe.get("a")
        await manager.client.set("a", 5)
        pipe.multi()
        pipe.set("a", int(seen) + 1)
        with pytest.raises(driver.WatchError):
            await pipe.execute()
    assert await manager.client.get("a") == "5"


async def test_everything_redis_py_has(valkey_dsn: str, manager: CacheManager) -> None:
    manager.init(valkey_dsn)
    redis = manager.client
    assert isinstance(redis, Redis)
    await redis.mset({f"u:{number}": number for number in range(50)})
    assert len([key async for key in redis.scan_iter("u:*", count=10)]) == 50
    double = redis.register_script("return tonumber(redis.call('GET', KEYS[1])) * 2")
    assert await double(keys=["u:21"]) == 42
    async with redis.lock("lock", timeout=5):
        assert await redis.exists("lock")
    async with redis.pubsub() as listening:
        await listening.subscribe("news")
        await redis.publish("news", "hello")
        async with asyncio.timeout(20):
            async for message in listening.listen():
                if message["type"] == "message":
                    break
    assert message["data"] == "hello"
    async with redis.client() as alone:
        assert await alone.get("u:1") == "1"
        assert budget_of(alone) == budget_of(redis) == 1.0
    with pytest.raises(driver.ResponseError, match="WRONGTYPE"):
        await redis.lpush("u:1", "x")


async def test_decode_responses(valkey_dsn: str, manager: CacheManager) -> None:
    manager.init(valkey_dsn, decode_responses=False)
    await manager.client.set("k", "v")
    assert await manager.client.get("k") == b"v"


# -- before init ------------------------------------------------------------------------


async def test_uninitialised() -> None:
    manager = CacheManager()
    assert not manager.is_available
    assert await manager.ping() is False
    with pytest.raises(CacheUnavailable, match=r"call init\(redis_url"):
        manager.client  # noqa: B018
    with pytest.raises(CacheUnavailable):
        async with manager.pipeline():
            pass


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"redis_url": "http://localhost"}, "the schemes are"),
        ({"redis_url": "localhost:6379"}, "the schemes are"),
        ({"redis_url": None}, "redis_url"),
        ({"redis_url": ""}, "redis_url"),
        ({"redis_url": b"redis://localhost"}, "redis_url"),
        ({"redis_url": "redis://localhost:70000"}, "cannot be taken apart"),
        ({"max_connections": 0}, "max_connections"),
        ({"max_connections": 5.0}, "max_connections"),
        ({"max_connections": True}, "max_connections"),
        ({"socket_timeout": 0}, "socket_timeout"),
        ({"socket_timeout": None}, "socket_timeout"),
        ({"socket_connect_timeout": -1}, "socket_connect_timeout"),
        ({"budget": float("inf")}, "budget"),
        ({"budget": float("nan")}, "budget"),
        ({"health_check_interval": -1}, "health_check_interval"),
        ({"health_check_interval": "30"}, "health_check_interval"),
    ],
)
def test_what_init_refuses(arguments: dict[str, Any], named: str) -> None:
    manager = CacheManager()
    with pytest.raises(ConfigurationError, match=named):
        manager.init(**{"redis_url": "redis://localhost", **arguments})
    assert not manager.is_available


def test_options_of_redis_py_in_the_url_are_named_and_where_they_go() -> None:
    where = r"unknown parameters \(max_connections\); use the arguments of CacheManager.init"
    with pytest.raises(ConfigurationError, match=where):
        CacheManager().init("redis://localhost?max_connections=3")


async def _fixture() -> Any: ...


async def _generating_fixture() -> AsyncIterator[None]:
    yield


@pytest.mark.parametrize(
    ("client", "says"),
    [
        (_fixture, "is a coroutine: await it; .* set asyncio_mode=auto"),
        (_generating_fixture, "is an async_generator: await it; .* set asyncio_mode=auto"),
        (lambda: 5, "not an int"),
        (dict, "not a dict"),
        (lambda: FakeAsyncRedis, "not <class .*FakeRedis"),
        (SyncRedis, "not a redis.client.Redis"),
    ],
)
async def test_what_cannot_stand_in_for_the_client(client: Any, says: str) -> None:
    manager = CacheManager()
    with pytest.raises(TypeError, match=says) as refused:
        manager._client = client()
    assert isinstance(refused.value, ConfigurationError)
    assert manager._client is None


async def test_a_refused_init_leaves_the_client_that_was(
    valkey: ValkeyServer, manager: CacheManager
) -> None:
    manager.init(valkey.dsn)
    with pytest.raises(ConfigurationError):
        manager.init(valkey.dsn, max_connections=0)
    assert await manager.ping()


def test_a_password_is_in_no_message() -> None:
    manager = CacheManager()
    with pytest.raises(ConfigurationError) as refused:
        manager.init("redis://user:geheim@host:99999/0")
    assert "geheim" not in str(refused.value)
    manager.init("redis://user:geheim@127.0.0.1:1/0")
    with pytest.raises(CacheUnavailable) as away:
        asyncio.run(_get(manager))
    assert "127.0.0.1:1" in str(away.value)
    assert "geheim" not in str(away.value)
    asyncio.run(manager.close())


async def _get(manager: CacheManager) -> Any:
    return await manager.client.get("k")


# -- where it can be -----------------------------------------------------------------------


async def test_urls(valkey: ValkeyServer, manager: CacheManager) -> None:
    for url in (valkey.dsn, valkey.unix_dsn, valkey.dsn.replace("redis://", "valkey://")):
        manager.init(url)
        assert await manager.ping(), url
    manager.init(RedisDsn(valkey.dsn))  # type: ignore[arg-type] # as settings classes hold it
    assert await manager.ping()


async def test_a_cluster(valkey_cluster: ValkeyCluster, manager: CacheManager) -> None:
    manager.init(valkey_cluster.dsn)
    redis: Any = manager.client
    assert isinstance(redis, RedisCluster)
    assert await manager.ping()
    for number in range(20):
        await redis.set(f"n:{number}", number)
    async with manager.pipeline(transaction=False) as pipe:
        for number in range(20):
            pipe.get(f"n:{number}")
        assert await pipe.execute() == [str(number) for number in range(20)]
    found = [key async for key in redis.scan_iter("n:*")]
    assert len(found) == 20
    assert budget_of(redis) == 1.0


async def test_several_managers(valkey: ValkeyServer, manager: CacheManager) -> None:
    other = CacheManager()
    manager.init(valkey.dsn, client_name="one")
    other.init(valkey.dsn.removesuffix("/0") + "/1", client_name="other")
    await manager.client.set("k", "of one")
    assert await other.client.get("k") is None
    await other.close()
    assert await manager.client.get("k") == "of one"


# -- loops, forks, pools ---------------------------------------------------------------------


def test_one_manager_over_many_event_loops(valkey: ValkeyServer) -> None:
    """As a synchronous ``TestClient`` has it: a loop for each request."""
    manager = CacheManager()
    manager.init(valkey.dsn, client_name="loops")

    async def several() -> list[Any]:
        return await asyncio.gather(*(manager.client.get("k") for _ in range(10)))

    for _ in range(3):
        assert len(asyncio.run(several())) == 10
    asyncio.run(manager.close())
    gc.collect()
    assert clients(valkey, "loops") == 0


def test_a_forked_child_has_connections_of_its_own(valkey: ValkeyServer) -> None:
    manager = CacheManager()
    manager.init(valkey.dsn, client_name="forked")

    async def parent() -> None:
        await manager.client.set("of:fork", "parent")
        child = os.fork()
        if child == 0:
            os._exit(0 if _in_child(manager) == "parent" else 1)
        _, status = await asyncio.to_thread(os.waitpid, child, 0)
        assert os.waitstatus_to_exitcode(status) == 0
        assert await manager.client.get("of:fork") == "child"

    asyncio.run(parent())
    asyncio.run(manager.close())


def _in_child(manager: CacheManager) -> Any:
    async def child() -> Any:
        found = await manager.client.get("of:fork")
        await manager.client.set("of:fork", "child")
        return found

    asyncio._set_running_loop(None)  # the parent's, which the child does not run
    try:
        return asyncio.run(child())
    except BaseException as error:
        return error


async def test_a_full_pool_waits(valkey: ValkeyServer, manager: CacheManager) -> None:
    manager.init(valkey.dsn, max_connections=3, client_name="full")
    await manager.client.set("k", "v")
    assert await asyncio.gather(*(manager.client.get("k") for _ in range(300))) == ["v"] * 300
    assert 1 <= clients(valkey, "full") <= 3


async def test_a_pool_that_stays_full_is_no_outage(
    valkey: ValkeyServer, manager: CacheManager
) -> None:
    manager.init(valkey.dsn, max_connections=1, budget=0.1)
    await connected(manager)
    popping = asyncio.create_task(popped(manager, "queue:full", 20))
    await until(lambda: b"cmd=blpop" in valkey.ask("CLIENT", "LIST"))
    with pytest.raises(CacheUnavailable, match="in use") as refused:
        await manager.client.get("k")
    assert refused.value.outcome == "none"
    assert manager.is_available
    valkey.ask("RPUSH", "queue:full", "job")
    assert await popping == ("queue:full", "job")


async def test_a_blocking_command_keeps_its_own_time(
    valkey: ValkeyServer, manager: CacheManager
) -> None:
    manager.init(valkey.dsn, budget=0.05, socket_timeout=0.05)
    await connected(manager)
    assert await popped(manager, "queue:empty", 0.2) is None
    popping = asyncio.create_task(popped(manager, "queue:ever", 0))
    await until(lambda: b"cmd=blpop" in valkey.ask("CLIENT", "LIST"))
    await asyncio.wait([popping], timeout=0.15)
    valkey.ask("RPUSH", "queue:ever", "job")
    assert await popping == ("queue:ever", "job")
    assert manager.is_available


# -- what stands in for it -------------------------------------------------------------------


@pytest.mark.parametrize("decode", [True, False])
def test_a_fake_over_event_loops(decode: bool) -> None:
    manager = CacheManager()
    manager._client = FakeAsyncRedis(decode_responses=decode)

    async def several() -> list[Any]:
        await manager.client.set("k", "v")
        return await asyncio.gather(*(manager.client.get("k") for _ in range(10)))

    for _ in range(3):
        assert asyncio.run(several()) == ["v" if decode else b"v"] * 10
        assert asyncio.run(manager.ping())
        assert manager.is_available
    manager._client = None
    assert not manager.is_available
    with pytest.raises(CacheUnavailable):
        manager.client  # noqa: B018


async def test_a_fake_outlives_the_init_of_a_lifespan(manager: CacheManager) -> None:
    fake = FakeAsyncRedis()
    manager._client = fake
    manager.init("redis://127.0.0.1:1/0")
    assert manager.client is fake
    assert await manager.ping()
    manager._client = None
    assert manager._client is None
    assert not manager.is_available


async def test_none_closes_what_init_made(valkey: ValkeyServer, manager: CacheManager) -> None:
    manager.init(valkey.dsn, client_name="dropped")
    await manager.ping()
    manager._client = None
    assert not manager.is_available
    await until(lambda: clients(valkey, "dropped") == 0)


async def test_a_fake_that_is_away_is_not_available_for_a_while(manager: CacheManager) -> None:
    server = FakeServer()
    manager._client = FakeAsyncRedis(server=server)
    assert await manager.ping()
    server.connected = False
    assert not await manager.ping()
    assert not manager.is_available
    server.connected = True
    assert await manager.ping()
    assert manager.is_available


async def test_what_a_service_knows_of_a_fake_the_manager_knows(manager: CacheManager) -> None:
    server = FakeServer()
    server.connected = False
    manager._client = FakeAsyncRedis(server=server)
    assert manager.is_available
    for _ in range(3):
        assert await CacheService[Any](manager.client, "users").get("1") is None
    assert manager.is_available is False
