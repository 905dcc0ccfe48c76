"""The multiplexed connection: order, batching, deadlines, bounds, scripts, large values."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator

import pytest

from forze.errors import BackendTimeout, ForzeError
from forze.testing.proxy import RespProxy, command, script
from forze.testing.servers import RespServer, ValkeyServer
from forze_redis.client import RedisClient
from forze_redis.wire.config import RedisConfig
from forze_redis.wire.connection import Connection
from forze_redis.wire.scripts import Script, in_full, known_scripts, load_script, pack, unpack

ECHO = Script("test-echo", "#!lua flags=no-writes\nreturn {KEYS[1], ARGV[1]}")


@pytest.fixture
async def client(redis_dsn: str) -> AsyncIterator[RedisClient]:
    async with await RedisClient().connect(redis_dsn) as connected:
        yield connected


@pytest.fixture
async def proxy(valkey: ValkeyServer) -> AsyncIterator[RespProxy]:
    async with RespProxy(valkey.port) as running:
        yield running


def connection_of(client: RedisClient) -> Connection:
    return client._here().nodes[0].connection


async def test_replies_are_matched_in_order_under_load(client: RedisClient) -> None:
    async def caller(number: int) -> None:
        for turn in range(20):
            value = f"{number}-{turn}".encode()
            assert await client.call("ECHO", value) == value

    await asyncio.gather(*(caller(number) for number in range(500)))
    assert connection_of(client).in_flight == 0


async def test_calls_of_one_turn_are_one_write(client: RedisClient) -> None:
    writes = connection_of(client).writes
    replies = await asyncio.gather(*(client.call("ECHO", str(each)) for each in range(100)))
    assert replies == [str(each).encode() for each in range(100)]
    assert connection_of(client).writes == writes + 1


async def test_a_cached_call_without_company_is_written_at_once(client: RedisClient) -> None:
    connection, ping = connection_of(client), pack("PING")
    await client.send_cached(ping)
    for _ in range(3):
        writes = connection.writes
        alone = client.send_cached(ping)
        assert connection.writes == writes + 1
        await alone


async def test_cached_calls_in_company_are_one_write(client: RedisClient) -> None:
    connection = connection_of(client)

    async def together() -> int:
        """How many writes a hundred calls of one turn took."""
        writes = connection.writes
        calls = [client.send_cached(pack("ECHO", str(each))) for each in range(100)]
        assert await asyncio.gather(*calls) == [str(each).encode() for each in range(100)]
        return connection.writes - writes

    await client.send_cached(pack("PING"))
    assert await together() == 2  # the first of them had been alone before
    assert await together() == 1
    await client.send_cached(pack("PING"))
    writes = connection.writes
    await asyncio.gather(client.send(pack("PING")), client.send_cached(pack("PING")))
    assert connection.writes == writes + 1


async def test_replies_as_resp3_has_them(client: RedisClient) -> None:
    await client.call("HSET", "h", "field", "1")
    assert await client.call("HGETALL", "h") == {b"field": b"1"}
    assert await client.call("GET", "absent") is None
    assert await client.call("INCR", "n") == 1
    assert await client.call("ZADD", "z", 1.5, "m") == 1
    assert await client.call("ZSCORE", "z", "m") == 1.5
    assert await client.call("EVAL", "redis.setresp(3) return {map={a=true}}", 0) == {b"a": True}


async def test_a_script_runs_by_digest_and_survives_a_flush(
    redis_server: RespServer, client: RedisClient
) -> None:
    assert await client.run(ECHO, ["k"], ["a"]) == [b"k", b"a"]
    redis_server.ask("SCRIPT", "FLUSH")
    first, second = client.run(ECHO, ["k"], ["b"]), client.run(ECHO, ["k"], ["c"])
    assert await first == [b"k", b"b"]
    assert await second == [b"k", b"c"]
    packed = ECHO.head(1, 1) + "$1\r\nk\r\n$1\r\nd\r\n"
    redis_server.ask("SCRIPT", "FLUSH")
    assert await client.send_cached(packed.encode()) == [b"k", b"d"]
    assert await client.run_cached(ECHO, ["k"], ["e"]) == [b"k", b"e"]


async def test_known_scripts_are_loaded_at_connect(own_valkey: ValkeyServer) -> None:
    shipped = load_script("read")
    async with RespProxy(own_valkey.port) as proxy:
        async with await RedisClient().connect(proxy.dsn) as client:
            await client.run(ECHO, ["k"], ["a"])
            digests = [each.sha1 for each in known_scripts()]
            assert await client.call("SCRIPT", "EXISTS", *digests) == [1] * len(digests)
        assert shipped is load_script("read")
        assert shipped.sha1 in digests
        assert not [args for args in proxy.commands if args[0] == b"EVAL"]


def test_a_packed_call_becomes_its_eval() -> None:
    packed = pack("EVALSHA", ECHO.sha1, 1, "k", b"\xff\r\n$7")
    full = in_full(packed)
    assert full is not None
    assert unpack(full) == [b"EVAL", ECHO.source.encode(), b"1", b"k", b"\xff\r\n$7"]
    assert in_full(pack("EVALSHA", "0" * 40, 0)) is None
    assert in_full(pack("SET", "k", packed)) is None
    assert ECHO.head(1, 1).encode() == packed[: len(ECHO.head(1, 1))]


async def test_an_unknown_digest_is_an_error(client: RedisClient) -> None:
    with pytest.raises(ForzeError, match="NOSCRIPT"):
        await client.call("EVALSHA", "0" * 40, 0)


async def test_a_late_reply_is_dropped_and_the_next_ones_fit(
    proxy: RespProxy, valkey_dsn: str
) -> None:
    async with await RedisClient().connect(proxy.dsn) as client:
        held = proxy.hold_reply(command("ECHO", "late"))
        late = client.call("ECHO", "late", timeout=0.05)
        others = [client.call("ECHO", str(each)) for each in range(5)]
        with pytest.raises(BackendTimeout) as timed_out:
            await late
        assert timed_out.value.outcome == "unknown"
        assert "socket_timeout" in str(timed_out.value)
        held.release()
        assert await asyncio.gather(*others) == [b"0", b"1", b"2", b"3", b"4"]


async def test_a_cancelled_call_keeps_its_place(proxy: RespProxy, valkey_dsn: str) -> None:
    async with await RedisClient().connect(proxy.dsn) as client:
        held = proxy.hold_request(command("ECHO", "gone"))

        async def caller() -> None:
            await client.call("ECHO", "gone")

        task = asyncio.create_task(caller())
        await held.seen()
        other = client.call("ECHO", "stays")
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        held.release()
        assert await other == b"stays"


async def test_a_full_queue_waits_and_lets_in_by_turn(proxy: RespProxy, valkey_dsn: str) -> None:
    config = RedisConfig(max_in_flight=4)
    async with await RedisClient().connect(proxy.dsn, config) as client:
        held = proxy.hold_request(command("ECHO", "0"))
        calls = [client.call("ECHO", str(each)) for each in range(50)]
        impatient = client.call("ECHO", "x", timeout=0.05)
        await held.seen()
        assert connection_of(client).in_flight == 4
        with pytest.raises(BackendTimeout) as timed_out:
            await impatient
        assert timed_out.value.outcome == "none"
        assert [args[1] for args in proxy.commands if args[0] == b"ECHO"] == [b"0"]
        client.call("ECHO", "y").cancel()
        held.release()
        assert await asyncio.gather(*calls) == [str(each).encode() for each in range(50)]
        sent = [args[1] for args in proxy.commands if args[0] == b"ECHO"]
        assert sent == [str(each).encode() for each in range(50)]


async def test_500_callers_and_a_small_queue(redis_dsn: str) -> None:
    async with await RedisClient().connect(
        redis_dsn, {"max_in_flight": 3, "max_size": 2}
    ) as client:
        replies = await asyncio.gather(*(client.call("INCR", "n") for _ in range(500)))
        assert replies == list(range(1, 501))


async def test_large_values_take_another_connection(proxy: RespProxy, valkey_dsn: str) -> None:
    large = b"v" * (256 * 1024)
    async with await RedisClient().connect(proxy.dsn) as client:
        held = proxy.hold_request(command("SET", "large"))
        store = client.call("SET", "large", large)
        await held.seen()
        assert await client.call("ECHO", "passes") == b"passes"
        assert proxy.connections == 2
        held.release()
        assert await store == b"OK"
        assert await client.call_large("GET", "large") == large
        assert await client.run(ECHO, ["k"], [large]) == [b"k", large]
        proxy.hold_reply(command("SET", "large"))
        with pytest.raises(BackendTimeout) as timed_out:
            await client.call("SET", "large", large, timeout=0.05)
        assert timed_out.value.outcome == "unknown"
        assert await client.call("ECHO", "passes") == b"passes"


async def test_large_scripts_survive_a_flush(valkey: ValkeyServer, valkey_dsn: str) -> None:
    large = b"v" * (300 * 1024)
    async with await RedisClient().connect(valkey_dsn) as client:
        valkey.ask("SCRIPT", "FLUSH")
        assert await client.run_cached(ECHO, ["k"], [large]) == [b"k", large]


async def test_connections_stay_within_max_size(valkey: ValkeyServer, valkey_dsn: str) -> None:
    config = RedisConfig(max_size=3, client_name="bounded")
    async with await RedisClient().connect(valkey_dsn, config) as client:
        large = b"v" * (300 * 1024)
        await asyncio.gather(*(client.call("SET", f"k{each}", large) for each in range(20)))
        assert valkey.ask("CLIENT", "LIST").count(b"name=bounded") == 3


async def test_a_posted_command_is_sent_and_its_reply_dropped(client: RedisClient) -> None:
    client.post(pack("INCR", "n"))
    client.post(pack("EVALSHA", ECHO.sha1, 0))
    client.post(pack("NONSENSE"))
    assert await client.call("GET", "n") == b"1"


async def test_pushes_reach_listeners_and_count_as_no_reply(
    client: RedisClient, caplog: pytest.LogCaptureFixture
) -> None:
    pushes: list[list[object]] = []

    def broken(_: list[object]) -> None:
        raise LookupError

    client.on_push(broken)
    client.on_push(pushes.append)
    with caplog.at_level(logging.CRITICAL, "forze.redis"):
        await client.call("CLIENT", "TRACKING", "ON", "BCAST")
        assert await client.call("SET", "k", "v") == b"OK"
        assert await client.call("ECHO", "after") == b"after"
    assert pushes == [[b"invalidate", [b"k"]]]


async def test_a_held_connection_does_not_hold_others(proxy: RespProxy, valkey_dsn: str) -> None:
    first = await RedisClient().connect(proxy.dsn)
    second = await RedisClient().connect(proxy.dsn)
    async with first, second:
        held = proxy.hold_request(script(ECHO))
        waits = first.run(ECHO, ["k"], ["a"])
        behind = first.call("PING")
        await held.seen()
        assert await second.run(ECHO, ["k"], ["b"]) == [b"k", b"b"]
        assert not behind.done()
        held.release()
        assert await waits == [b"k", b"a"]
        assert await behind == b"PONG"
