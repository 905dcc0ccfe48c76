"""The proxy itself: frames, what it holds, what it cuts."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forze.errors import BackendUnavailable
from forze.testing.proxy import RespProxy, command, frame_end, script
from forze.testing.servers import ValkeyServer
from forze_redis.client import RedisClient
from forze_redis.wire.scripts import Script, pack

FRAMES = [
    b"+OK\r\n",
    b"-ERR no\r\n",
    b":1\r\n",
    b"_\r\n",
    b"#t\r\n",
    b",1.5\r\n",
    b"(12345678901234567890\r\n",
    b"$-1\r\n",
    b"*-1\r\n",
    b"$0\r\n\r\n",
    b"$4\r\n\r\n\r\n\r\n",
    b"=7\r\ntxt:a\r\n\r\n",
    b"*0\r\n",
    b"*2\r\n*1\r\n:1\r\n$1\r\na\r\n",
    b"%1\r\n+a\r\n%1\r\n+b\r\n~1\r\n:1\r\n",
    b">2\r\n+x\r\n$1\r\ny\r\n",
    b"|1\r\n+ttl\r\n:3\r\n*1\r\n:9\r\n",
]


@given(frames=st.lists(st.sampled_from(FRAMES), min_size=1, max_size=6))
def test_a_frame_ends_where_it_ends(frames: list[bytes]) -> None:
    stream, start = b"".join(frames), 0
    for frame in frames:
        for cut in range(start, start + len(frame)):
            assert frame_end(stream[:cut], start) is None
        start += len(frame)
        assert frame_end(stream, start - len(frame)) == start


def test_matches() -> None:
    one = Script("proxy-test", "return 1")
    assert command("get", b"K")([b"GET", b"k", b"more"])
    assert not command("get", "k")([b"GET"])
    assert script(one)([b"EVALSHA", one.sha1.encode(), b"0"])
    assert script(one)([b"EVAL", b"return 1", b"0"])
    assert not script(one)([b"EVAL", b"return 2", b"0"])


@pytest.fixture
async def proxy(valkey: ValkeyServer) -> AsyncIterator[RespProxy]:
    valkey.ask("FLUSHALL")
    async with RespProxy(valkey.port) as running:
        yield running


@pytest.fixture
async def client(proxy: RespProxy) -> AsyncIterator[RedisClient]:
    async with await RedisClient().connect(proxy.dsn) as connected:
        yield connected


async def test_a_held_request_has_not_reached_the_server(
    valkey: ValkeyServer, proxy: RespProxy, client: RedisClient
) -> None:
    held = proxy.hold_request(command("SET", "k"))
    call = client.call("SET", "k", "v")
    await held.seen()
    assert valkey.ask("EXISTS", "k") == b":0\r\n"
    held.release()
    assert await call == b"OK"
    assert await client.call("SET", "k", "w") == b"OK"


async def test_a_held_reply_was_executed(
    valkey: ValkeyServer, proxy: RespProxy, client: RedisClient
) -> None:
    held = proxy.hold_reply(command("SET", "k"))
    call = client.call("SET", "k", "v")
    await held.seen()
    assert valkey.ask("EXISTS", "k") == b":1\r\n"
    assert not call.done()
    held.release()
    assert await call == b"OK"


async def test_a_dropped_reply_was_executed(
    valkey: ValkeyServer, proxy: RespProxy, client: RedisClient
) -> None:
    dropped = proxy.drop_reply(command("SET", "k"))
    with pytest.raises(BackendUnavailable):
        await client.call("SET", "k", "v")
    await dropped.seen()
    assert valkey.ask("EXISTS", "k") == b":1\r\n"


async def test_pushes_do_not_count_as_replies(proxy: RespProxy, client: RedisClient) -> None:
    await client.call("CLIENT", "TRACKING", "ON", "BCAST")
    held = proxy.hold_reply(command("SET"), times=None)
    call = client.call("SET", "k", "v")
    await held.seen()
    held.release()
    assert await call == b"OK"
    assert await client.call("GET", "k") == b"v"


async def test_times_delays_and_the_record(proxy: RespProxy, client: RedisClient) -> None:
    loop = asyncio.get_running_loop()
    slow = proxy.delay(0.05, command("ECHO"))
    started = loop.time()
    assert await client.call("ECHO", "a") == b"a"
    assert loop.time() - started >= 0.05
    slow.release()
    assert slow.count == 1
    assert await client.send(pack("ECHO", "b")) == b"b"
    assert [args for args in proxy.commands if args[0] == b"ECHO"] == [
        [b"ECHO", b"a"],
        [b"ECHO", b"b"],
    ]
