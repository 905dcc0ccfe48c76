"""Pipelines: one write, replies in order, errors in their places; what no call may do."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from forze.errors import BackendCorrupt, ConfigurationError, ValidationError
from forze.testing.proxy import RespProxy, command
from forze_redis.client import RedisClient
from forze_redis.wire.scripts import Script

ADD = Script("add", "return redis.call('INCRBY', KEYS[1], ARGV[1])")


@pytest.fixture
async def client(redis_dsn: str) -> AsyncIterator[RedisClient]:
    async with await RedisClient().connect(redis_dsn) as client:
        yield client


async def test_replies_come_in_order(client: RedisClient) -> None:
    pipeline = client.pipeline().call("SET", "a", "1").run(ADD, ["a"], [41]).call("GET", "a")
    assert len(pipeline) == 3
    assert await pipeline.execute() == [b"OK", 42, b"42"]
    assert len(pipeline) == 0
    assert await pipeline.execute() == []


async def test_it_is_one_write(client: RedisClient) -> None:
    await client.run(ADD, ["a"], [1])
    connection = client._here().nodes[0].connection
    writes = connection.writes
    pipeline = client.pipeline()
    for number in range(50):
        pipeline.run(ADD, [f"k{number}"], [number])
    assert await pipeline.execute() == list(range(50))
    assert connection.writes == writes + 1


async def test_nothing_is_sent_before_it_is_executed(client: RedisClient) -> None:
    async with client.pipeline() as pipeline:
        pipeline.call("SET", "a", "1")
        await asyncio.sleep(0.01)
        assert await client.call("GET", "a") is None
    assert await pipeline.execute() == []
    assert await client.call("GET", "a") is None


async def test_one_that_fails_stops_no_other(client: RedisClient) -> None:
    pipeline = client.pipeline().call("SET", "a", "text").call("INCR", "a").call("SET", "b", "2")
    with pytest.raises(BackendCorrupt, match="not an integer"):
        await pipeline.execute()
    assert await client.call("GET", "b") == b"2"
    pipeline.call("INCR", "a").call("GET", "b")
    failed, answered = await pipeline.execute(return_exceptions=True)
    assert isinstance(failed, BackendCorrupt)
    assert answered == b"2"


async def test_cancelled_it_disturbs_nobody(valkey_dsn: str) -> None:
    port = int(valkey_dsn.rpartition(":")[2].partition("/")[0])
    async with RespProxy(port) as proxy, await RedisClient().connect(proxy.dsn) as client:
        hold = proxy.hold_reply(command("SET", "a"))
        running = asyncio.create_task(
            client.pipeline().call("SET", "a", "1").call("SET", "b", "2").execute()
        )
        await hold.seen()
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        hold.release()
        assert await client.call("GET", "b") == b"2"


@pytest.mark.parametrize("name", ["MULTI", "blpop", b"SELECT", "Subscribe", "RESET"])
async def test_what_would_disturb_the_others_is_refused(
    client: RedisClient, name: str | bytes
) -> None:
    with pytest.raises(ConfigurationError, match=r"client\.redis"):
        client.call(name, "x")


async def test_what_is_refused_leaves_nothing_half_sent(client: RedisClient) -> None:
    pipeline = client.pipeline().call("SET", "a", "1")
    with pytest.raises(ConfigurationError, match=r"client\.redis"):
        pipeline.call("BLPOP", "a", 1)
    with pytest.raises(ValidationError, match=r"not \[2\]"):
        pipeline.call("SET", "a", [2])  # type: ignore[arg-type] # on purpose
    assert await client.call("EXISTS", "a") == 0
    assert await pipeline.execute() == [b"OK"]
