"""fastapi_rc in outages: what one call costs, what the next cost, and how it ends.

The original's calls took 15 to 300 s in each of these. Budgets here are short, and the bounds
are generous: they tell a bounded call from one that waits for a socket or retries.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from fastapi_rc import CacheManager, CacheService, CacheUnavailable, RedisClient, cachemanager
from forze.testing.proxy import RespProxy
from forze.testing.servers import ValkeyServer

BUDGET = 0.3
SLOW = 0.2
BOUND = 3.0
"""Far more than a budget, far less than the original."""


@pytest.fixture(scope="module")
def one_server() -> Iterator[ValkeyServer]:
    with ValkeyServer() as server:
        yield server


@pytest.fixture
def server(one_server: ValkeyServer) -> Iterator[ValkeyServer]:
    """It runs, and will be made to again, whatever the test does to it."""
    yield one_server
    one_server.resume()
    one_server.start()


@pytest.fixture
async def manager() -> AsyncIterator[CacheManager]:
    manager = CacheManager()
    yield manager
    await manager.close()


async def seconds(call: Awaitable[Any]) -> float:
    """How long it took, whatever became of it."""
    began = time.monotonic()
    with contextlib.suppress(CacheUnavailable):
        await call
    return time.monotonic() - began


async def eventually(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.01)


async def connected(manager: CacheManager) -> None:
    """As soon as the machine has the time to be within the budget."""
    async with asyncio.timeout(20):
        while not await manager.ping():
            await asyncio.sleep(0.01)


def blind() -> None:
    raise ConnectionError


def stopped(server: ValkeyServer) -> None:
    server.pause()


def killed(server: ValkeyServer) -> None:
    server.kill()


async def watch(redis: Any) -> None:
    async with redis.pipeline() as pipe:
        await pipe.watch("k")


WAYS: dict[str, Callable[[Any], Awaitable[Any]]] = {
    "command": lambda redis: redis.get("k"),
    "pipeline": lambda redis: redis.pipeline().get("k").get("k").execute(),
    "scan_iter": lambda redis: anext(redis.scan_iter("k*")),
    "watch": watch,
    "service get": lambda redis: CacheService(redis, "ns").get("k"),
    "service get_or_set": lambda redis: CacheService(redis, "ns").get_or_set("k", lambda: 7),
    "service set": lambda redis: CacheService(redis, "ns").set("k", 7),
    "service invalidate": lambda redis: CacheService(redis, "ns").invalidate_pattern("*"),
}


@pytest.mark.parametrize("outage", [stopped, killed])
async def test_an_outage_costs_one_call_its_budget_and_the_next_nothing(
    server: ValkeyServer, outage: Callable[[ValkeyServer], None]
) -> None:
    """Each way through a manager of its own, all at the same time."""
    managers = {way: CacheManager() for way in WAYS}
    for manager in managers.values():
        manager.init(server.dsn, budget=BUDGET, socket_timeout=4.0)
        await connected(manager)
    outage(server)

    async def twelve(way: str) -> list[float]:
        return [await seconds(WAYS[way](managers[way].client)) for _ in range(12)]

    for way, times in zip(WAYS, await asyncio.gather(*map(twelve, WAYS)), strict=True):
        assert max(times) < BOUND, way
        assert sum(each > SLOW for each in times) <= 2, (way, times)
        assert not managers[way].is_available, way
    server.resume()
    server.start()
    for manager in managers.values():
        await eventually(lambda manager=manager: manager.is_available)  # type: ignore[misc]
        await connected(manager)
        await manager.close()


async def listen(redis: Any) -> None:
    async with redis.pubsub() as listening:
        await listening.subscribe("news")
        await listening.get_message(timeout=5)


async def monitor(redis: Any) -> None:
    async with redis.monitor() as monitoring:
        await monitoring.next_command()


@pytest.mark.parametrize("call", [listen, monitor])
@pytest.mark.parametrize("outage", [stopped, killed])
async def test_who_listens_begins_in_time_and_gets_our_error(
    server: ValkeyServer,
    manager: CacheManager,
    call: Callable[[Any], Awaitable[None]],
    outage: Callable[[ValkeyServer], None],
) -> None:
    manager.init(server.dsn, budget=BUDGET, socket_timeout=30.0)
    outage(server)
    for _ in range(2):
        with pytest.raises(CacheUnavailable):
            async with asyncio.timeout(BOUND):
                await call(manager.client)


async def test_a_listener_that_loses_its_server_gets_our_error(
    server: ValkeyServer, manager: CacheManager
) -> None:
    manager.init(server.dsn)
    async with manager.client.pubsub() as listening:
        await listening.subscribe("news")
        assert (await listening.get_message(timeout=5))["type"] == "subscribe"
        server.kill()
        with pytest.raises(CacheUnavailable):
            await listening.get_message(timeout=5)


async def test_many_at_once_share_the_cost(server: ValkeyServer, manager: CacheManager) -> None:
    manager.init(server.dsn, budget=BUDGET, max_connections=5)
    await connected(manager)
    server.pause()
    cache: CacheService[int] = CacheService(manager.client, "ns")
    began = time.monotonic()
    made = await asyncio.gather(*(cache.get_or_set(n, lambda: 7) for n in range(200)))
    assert made == [7] * 200
    assert time.monotonic() - began < BOUND


async def test_a_refused_port(manager: CacheManager) -> None:
    manager.init("redis://127.0.0.1:1/0", budget=BUDGET)
    times = [await seconds(manager.client.get("k")) for _ in range(20)]
    assert max(times) < BOUND
    assert not manager.is_available
    assert not await manager.ping()


async def test_a_server_that_accepts_and_never_speaks(manager: CacheManager) -> None:
    async with RespProxy(1) as proxy:
        proxy.black_hole()
        manager.init(proxy.dsn, budget=BUDGET)
        times = [await seconds(manager.client.get("k")) for _ in range(12)]
        assert max(times) < BOUND
        assert sum(each > SLOW for each in times) <= 2, times
        await manager.close()


async def test_a_connect_into_nowhere(manager: CacheManager) -> None:
    """To an address that answers no packet, or has no route: either way within the budget."""
    manager.init("redis://192.0.2.1:6379/0", budget=BUDGET)
    times = [await seconds(manager.client.get("k")) for _ in range(5)]
    assert max(times) < BOUND
    assert not manager.is_available


async def test_ping_is_bounded_and_asks_although_the_circuit_is_open(
    server: ValkeyServer, manager: CacheManager
) -> None:
    manager.init(server.dsn, budget=BUDGET)
    await connected(manager)
    server.pause()
    assert manager._current is not None
    manager._current.circuit._probe = blind  # so that nobody but ping finds the server again
    assert await seconds(manager.ping()) < BOUND
    assert not manager.is_available
    server.resume()
    answers = [await manager.ping() for _ in range(20)]  # some may be too late for the budget
    assert any(answers)
    assert manager.is_available


async def test_a_server_that_comes_back_is_found_without_a_call(
    server: ValkeyServer, manager: CacheManager
) -> None:
    """A health route that looks at ``is_available`` first never asks the server itself."""
    manager.init(server.dsn, budget=BUDGET)
    server.kill()
    assert not await manager.ping()
    assert not manager.is_available
    server.start()
    await eventually(lambda: manager.is_available)
    await connected(manager)


async def test_a_connection_closed_while_idle_is_replaced_unseen(
    server: ValkeyServer, manager: CacheManager
) -> None:
    manager.init(server.dsn)
    await manager.client.set("k", "v")
    server.ask("CLIENT", "KILL", "TYPE", "normal")
    await asyncio.sleep(0.05)
    assert await manager.client.get("k") == "v"
    assert manager.is_available


async def test_over_http_the_routes_answer(server: ValkeyServer) -> None:
    app = FastAPI()

    @app.get("/cached")
    async def cached(redis: RedisClient) -> Any:
        return await CacheService[list[int]](redis, "ns").get_or_set("k", lambda: [1])

    @app.get("/direct")
    async def direct(redis: RedisClient) -> Any:
        return await redis.get("k")

    cachemanager.init(server.dsn, budget=BUDGET)
    transport = httpx.ASGITransport(app=app)
    server.pause()
    try:
        async with httpx.AsyncClient(transport=transport, base_url="http://app") as client:
            times = []
            for _ in range(10):
                began = time.monotonic()
                assert (await client.get("/cached")).json() == [1]
                answer = await client.get("/direct")
                assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
                times.append(time.monotonic() - began)
        assert max(times) < BOUND
        assert sum(each > SLOW for each in times) <= 2, times
    finally:
        server.resume()
        await cachemanager.close()


async def test_a_cancelled_call_is_cancelled_and_leaves_no_trace(
    server: ValkeyServer, manager: CacheManager
) -> None:
    manager.init(server.dsn, budget=20.0)
    await manager.client.set("k", "v")
    server.pause()
    redis: Any = manager.client
    task = asyncio.create_task(redis.get("k"))
    await asyncio.sleep(0.05)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert manager.is_available
    server.resume()
    assert await manager.client.get("k") == "v"
