"""Channels on the shared connection: confirmation, sharing, loss of the connection, refusal."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from forze.errors import BackendTimeout, BackendUnavailable, ConfigurationError
from forze.testing.proxy import RespProxy, command
from forze.testing.servers import RespServer, ValkeyServer
from forze_redis.client import RedisClient
from forze_redis.wire.config import RedisConfig

QUICK = RedisConfig(cache_timeout=0.2, socket_timeout=0.3, connect_timeout=1.0)


class Ear:
    """What a listener heard."""

    def __init__(self) -> None:
        self.heard: asyncio.Queue[bytes | None] = asyncio.Queue()

    def __call__(self, message: bytes | None) -> None:
        self.heard.put_nowait(message)

    async def next(self) -> bytes | None:
        async with asyncio.timeout(5):
            return await self.heard.get()


@pytest.fixture
async def client(redis_dsn: str) -> AsyncIterator[RedisClient]:
    async with await RedisClient().connect(redis_dsn) as client:
        yield client


async def channels(client: RedisClient) -> list[bytes]:
    found: list[bytes] = await client.call("PUBSUB", "SHARDCHANNELS")
    return found


async def test_what_is_published_after_it_returned_is_heard(client: RedisClient) -> None:
    ear, other = Ear(), Ear()
    await client.subscribe("news", ear)
    await client.subscribe("weather", other)
    assert await client.call("SPUBLISH", "news", "a") == 1
    assert await ear.next() == b"a"
    assert other.heard.empty()


async def test_calls_keep_their_own_replies(client: RedisClient) -> None:
    async def coming_and_going(number: int) -> None:
        subscription = await client.subscribe(f"channel {number % 3}", Ear())
        assert await client.call("ECHO", str(number)) == str(number).encode()
        subscription.close()
        assert await client.call("ECHO", f"{number} again") == f"{number} again".encode()

    await asyncio.gather(*(coming_and_going(number) for number in range(100)))
    assert await channels(client) == []


async def test_listeners_share_a_subscription_and_the_last_one_ends_it(client: RedisClient) -> None:
    first, second = Ear(), Ear()
    one = await client.subscribe("news", first)
    two = await client.subscribe("news", second)
    assert await client.call("SPUBLISH", "news", "both") == 1
    assert (await first.next(), await second.next()) == (b"both", b"both")
    one.close()
    one.close()
    assert await client.call("SPUBLISH", "news", "second") == 1
    assert await second.next() == b"second"
    assert first.heard.empty()
    two.close()
    assert await channels(client) == []


async def test_left_and_entered_in_one_turn_it_is_heard(client: RedisClient) -> None:
    (await client.subscribe("news", Ear())).close()
    ear = Ear()
    await client.subscribe("news", ear)
    assert await client.call("SPUBLISH", "news", "still") == 1
    assert await ear.next() == b"still"


async def test_a_listener_that_raises_hurts_nobody(
    client: RedisClient, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(message: bytes | None) -> None:
        raise ZeroDivisionError

    ear = Ear()
    await client.subscribe("news", broken)
    await client.subscribe("news", ear)
    await client.call("SPUBLISH", "news", "a")
    assert await ear.next() == b"a"
    assert "a listener of channel b'news' failed" in caplog.text


async def test_over_a_lost_connection_it_is_told_and_heard_anew(valkey_dsn: str) -> None:
    port = int(valkey_dsn.rpartition(":")[2].partition("/")[0])
    async with RespProxy(port) as proxy, await RedisClient().connect(proxy.dsn, QUICK) as client:
        ear = Ear()
        await client.subscribe("news", ear)
        proxy.cut()
        assert await ear.next() is None
        assert await client.call("SPUBLISH", "news", "again") == 1
        assert await ear.next() == b"again"


async def test_asked_for_while_the_server_is_away_it_comes_with_it(
    own_valkey: ValkeyServer,
) -> None:
    config = RedisConfig(socket_timeout=10.0, connect_timeout=1.0)
    async with await RedisClient().connect(own_valkey.dsn, config) as client:
        own_valkey.kill()
        ear = Ear()
        while client.available():
            await asyncio.sleep(0.01)
        asked = asyncio.create_task(client.subscribe("news", ear))
        await asyncio.sleep(0.05)
        assert not asked.done()
        own_valkey.start()
        await asked
        await client.call("SPUBLISH", "news", "a")
        while (message := await ear.next()) is None:
            pass
        assert message == b"a"


async def test_a_server_that_stays_away_is_an_error_and_leaves_no_listener(
    own_valkey: ValkeyServer,
) -> None:
    async with await RedisClient().connect(own_valkey.dsn, QUICK) as client:
        own_valkey.pause()
        with pytest.raises(BackendTimeout):
            await client.subscribe("news", Ear())
        own_valkey.resume()
        assert await client.call("PING") == b"PONG"
        assert await channels(client) == []


async def test_cancelled_while_it_is_asked_for_it_leaves_nothing(valkey_dsn: str) -> None:
    port = int(valkey_dsn.rpartition(":")[2].partition("/")[0])
    async with RespProxy(port) as proxy, await RedisClient().connect(proxy.dsn) as client:
        hold = proxy.hold_reply(command("SSUBSCRIBE"))
        asked = asyncio.create_task(client.subscribe("news", Ear()))
        await hold.seen()
        asked.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asked
        hold.release()
        assert await client.call("PING") == b"PONG"
        assert await channels(client) == []


async def test_a_user_who_may_not_listen_is_told(
    client: RedisClient, redis_server: RespServer
) -> None:
    await client.call(
        "ACL", "SETUSER", "deaf", "on", ">secret", "~*", "+@all", "resetchannels", "&allowed"
    )
    dsn = redis_server.dsn.replace("redis://", "redis://deaf:secret@")
    async with await RedisClient().connect(dsn) as deaf:
        with pytest.raises(ConfigurationError, match="channel"):
            await deaf.subscribe("forbidden", Ear())
        ear = Ear()
        await deaf.subscribe("allowed", ear)
        await client.call("SPUBLISH", "allowed", "a")
        assert await ear.next() == b"a"


async def test_a_closed_client_hears_nothing_more(redis_dsn: str) -> None:
    client = await RedisClient().connect(redis_dsn)
    ear = Ear()
    await client.subscribe("news", ear)
    await client.close()
    async with await client.connect(redis_dsn):
        assert await client.call("SPUBLISH", "news", "a") == 0
        assert ear.heard.empty()


async def test_closed_while_asked_it_is_an_error(redis_dsn: str) -> None:
    client = await RedisClient().connect(redis_dsn)
    asked = asyncio.create_task(client.subscribe("news", Ear()))
    await asyncio.sleep(0)
    await client.close()
    with pytest.raises((BackendUnavailable, ConfigurationError)):
        await asked
