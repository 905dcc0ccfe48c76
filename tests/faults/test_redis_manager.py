"""What a call of the manager costs and says while the server is away, and how it comes back."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
from redis import exceptions as driver

from forze.errors import BackendTimeout, BackendUnavailable
from forze.testing.proxy import RespProxy, command
from forze.testing.servers import ValkeyServer
from forze_redis import RedisManager
from forze_redis.driver import patience, watched


class Side:
    """``await side("get", key)`` on one of the twins."""

    def __init__(self, url: str, sync: bool, **settings: Any) -> None:
        self.manager = RedisManager(url=url, **settings)
        self.manager._async.connection_pool.guard._pause = 0.1
        self.sync = sync

    async def __call__(self, name: str, *args: Any) -> Any:
        if not self.sync:
            return await getattr(self.manager, f"{name}_async")(*args)
        return await asyncio.to_thread(getattr(self.manager, f"{name}_sync"), *args)

    async def until_it_answers(self) -> None:
        """Call until a call goes through, without a word to the manager."""
        async with asyncio.timeout(20):
            while True:
                try:
                    await self("set", "k", "again")
                    return
                except BackendUnavailable:
                    await asyncio.sleep(0.02)


@pytest.fixture(params=[False, True], ids=["async", "sync"])
def sync(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


@pytest.fixture
async def proxy(valkey: ValkeyServer, valkey_dsn: str) -> AsyncIterator[RespProxy]:
    async with RespProxy(valkey.port) as made:
        yield made


async def test_a_silent_server_costs_two_calls_their_time_and_then_nothing(
    own_valkey: ValkeyServer, sync: bool
) -> None:
    side = Side(own_valkey.dsn, sync, socket_timeout=0.15)
    await side.until_it_answers()
    own_valkey.pause()
    for _ in range(2):
        with pytest.raises(BackendTimeout, match="REDIS_SOCKET_TIMEOUT") as late:
            await side("get", "k")
        assert late.value.outcome == "unknown"
    asked = time.monotonic()
    for _ in range(100):
        with pytest.raises(BackendUnavailable, match="is away and was not asked"):
            await side("get", "k")
        if time.monotonic() - asked > 0.08:  # a slow machine: the next one is let through to look
            break
    own_valkey.resume()
    await side.until_it_answers()
    await side.manager.close()


async def test_a_server_that_is_gone_is_found_again(own_valkey: ValkeyServer, sync: bool) -> None:
    side = Side(own_valkey.dsn, sync, socket_timeout=5)
    await side("set", "k", "v")
    own_valkey.kill()
    for _ in range(5):
        with pytest.raises(BackendUnavailable):
            await side("get", "k")
    assert side.manager._async.connection_pool.limit.held == 0
    own_valkey.start()
    await side.until_it_answers()
    await side.manager.close()


async def test_the_application_starts_without_it(
    sync: bool, caplog: pytest.LogCaptureFixture
) -> None:
    side = Side("redis://:secret@127.0.0.1:1", sync)
    with caplog.at_level(logging.WARNING, "forze_redis.manager"):
        await side("initialize")
    assert len(caplog.records) == 1
    assert "127.0.0.1:1" in caplog.text
    assert "secret" not in caplog.text
    with pytest.raises(BackendUnavailable):
        await side("get", "k")


async def test_a_cluster_that_is_away_is_said_to_be(sync: bool) -> None:
    manager = RedisManager(url="redis+cluster://:secret@127.0.0.1:1,127.0.0.1:2")
    for why in ("Is the server running", "was not asked", "was not asked"):
        with pytest.raises(BackendUnavailable, match=why) as away:
            await (asyncio.to_thread(manager.get_sync, "k") if sync else manager.get_async("k"))
        assert "secret" not in str(away.value)
    await manager.close()


async def test_a_lost_answer_is_no_no(proxy: RespProxy, valkey: ValkeyServer, sync: bool) -> None:
    side = Side(proxy.dsn, sync, socket_timeout=20)
    await side("get", "k")
    dropped = proxy.drop_reply(command("SET"))
    with pytest.raises(BackendUnavailable) as lost:
        await side("set", "k", "v")
    assert lost.value.outcome == "unknown"
    assert dropped.count == 1  # and was not sent again
    assert valkey.ask("GET", "k") == b"$1\r\nv\r\n"
    assert await side("get", "k") == "v"
    await side.manager.close()


async def test_the_circuit_covers_the_client_and_the_other_side(own_valkey: ValkeyServer) -> None:
    side = Side(own_valkey.dsn, False, socket_timeout=0.15)
    client: Any = await side.manager.get_async_client()
    await side.until_it_answers()
    own_valkey.pause()
    for _ in range(2):
        with pytest.raises(driver.TimeoutError):
            await client.ping()
    blocking: Any = side.manager.get_sync_client()
    with pytest.raises(driver.ConnectionError, match="was not asked"):
        blocking.pipeline().incr("n").execute()
    with pytest.raises(driver.ConnectionError, match="was not asked"):
        await client.pipeline().incr("n").execute()
    with pytest.raises(driver.ConnectionError, match="was not asked"):
        await client.pubsub().subscribe("news")
    own_valkey.resume()
    await side.until_it_answers()
    side.sync = True
    await side.until_it_answers()
    await side.manager.close()


async def test_who_waits_for_a_connection_hears_of_the_outage(own_valkey: ValkeyServer) -> None:
    """Thirty callers over two connections: nobody waits for each of the others to time out."""
    for sync in (False, True):
        side = Side(own_valkey.dsn, sync, socket_timeout=0.15, pool_size=2)
        await side.until_it_answers()
        own_valkey.pause()
        calls = await asyncio.gather(*(side("get", "a") for _ in range(30)), return_exceptions=True)
        own_valkey.resume()
        kinds = {type(each).__name__ for each in calls}
        assert kinds <= {"BackendTimeout", "PoolTimeout", "Refused"}
        assert sum(type(each) is BackendTimeout for each in calls) <= 6
        await side.until_it_answers()
        await side.manager.close()


async def test_callers_who_give_up_say_that_the_server_is_silent(
    own_valkey: ValkeyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watched, "_SILENCE_SECONDS", 0.05)
    side = Side(own_valkey.dsn, False, socket_timeout=3)
    client: Any = await side.manager.get_async_client()
    for _ in range(2):  # who waits on purpose has learned nothing
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.07):
                await client.blpop("nothing", timeout=0)
        async with client.pubsub() as listener:
            await listener.subscribe("news")
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.07):
                    async for _ in listener.listen():
                        pass
    await side("set", "k", "v")
    own_valkey.pause()
    for _ in range(2):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.07):
                await side("get", "k")
    with pytest.raises(BackendUnavailable, match=r"was not asked.*no answer within"):
        await side("get", "k")
    own_valkey.resume()
    await side.until_it_answers()
    await side.manager.close()


async def test_blocking_commands_have_the_time_that_they_ask_for(
    valkey: ValkeyServer, valkey_dsn: str, sync: bool
) -> None:
    side = Side(valkey_dsn, sync, socket_timeout=0.4)
    manager = side.manager
    client: Any = manager.get_sync_client() if sync else await manager.get_async_client()

    async def blpop(seconds: float) -> Any:
        if sync:
            return await asyncio.to_thread(client.blpop, ["list"], timeout=seconds)
        return await client.blpop(["list"], timeout=seconds)

    for_ever, a_moment = asyncio.create_task(blpop(0)), asyncio.create_task(blpop(0.5))
    assert await a_moment is None
    assert not for_ever.done()
    valkey.ask("RPUSH", "list", "x")
    assert await for_ever == ("list", "x")
    await side("set", "k", "v")  # and the next command its own again
    assert not manager._async.connection_pool.guard.open
    await manager.close()


async def test_a_quiet_channel_is_no_outage(valkey_dsn: str, sync: bool) -> None:
    side = Side(valkey_dsn, sync, socket_timeout=0.3)
    manager = side.manager
    client: Any = manager.get_sync_client() if sync else await manager.get_async_client()
    await side.until_it_answers()
    listeners = [client.pubsub() for _ in range(3)]

    def listen(listener: Any) -> None:
        listener.subscribe("news")
        for _ in range(3):
            listener.get_message(timeout=0.03)

    async def listen_async(listener: Any) -> None:
        await listener.subscribe("news")
        await listener.parse_response(block=True)
        with contextlib.suppress(TimeoutError, driver.TimeoutError):  # redis-py's: before 8
            async with asyncio.timeout(0.4):
                await listener.parse_response(block=True)

    if sync:
        await asyncio.gather(*(asyncio.to_thread(listen, each) for each in listeners))
    else:
        await asyncio.gather(*map(listen_async, listeners))
    assert not manager._async.connection_pool.guard.open
    for each in listeners:
        await (asyncio.to_thread(each.close) if sync else each.aclose())
    await manager.close()


async def test_patience_may_be_less_than_the_clients(own_valkey: ValkeyServer, sync: bool) -> None:
    side = Side(own_valkey.dsn, sync, socket_timeout=60)
    await side("set", "k", "v")
    own_valkey.pause()
    async with asyncio.timeout(20):
        with patience(0.1):
            for _ in range(2):
                with pytest.raises(BackendTimeout):
                    await side("get", "k")
            with pytest.raises(BackendUnavailable, match="was not asked"):
                await side("get", "k")
    own_valkey.resume()
    await side.until_it_answers()
    await side.manager.close()


async def test_the_wait_for_a_connection_is_taken_off_the_answer(
    valkey_dsn: str, sync: bool
) -> None:
    manager = RedisManager(url=valkey_dsn, socket_timeout=60, pool_size=1)
    pool = (manager._sync if sync else manager._async).connection_pool
    pool._whole = 30.0

    async def do(call: Any, *args: Any) -> Any:
        return await (asyncio.to_thread(call, *args) if sync else call(*args))

    connection = await do(pool.get_connection)
    assert 20 < connection._answer_seconds() <= 30
    await do(connection.send_command, "BLPOP", "none", 0.01)
    assert 20 < connection._answer_seconds() <= 30.01
    await do(connection.read_response)
    await do(connection.send_command, "PING")
    assert connection._answer_seconds() == 60  # only the first one
    await do(connection.read_response)
    connection.deadline = time.monotonic() - 1
    assert connection._answer_seconds() == 6
    await do(pool.release, connection)
    await manager.close()
