"""The wire when the server, or the way to it, fails. Bounded in time."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from time import monotonic

import pytest

from forze.errors import BackendError, BackendTimeout, BackendUnavailable, ConfigurationError
from forze.testing.proxy import RespProxy, command
from forze.testing.servers import RespServer, ValkeyServer
from forze_redis.client import RedisClient
from forze_redis.wire.config import RedisConfig
from forze_redis.wire.link import backoff
from forze_redis.wire.scripts import pack

PING = pack("PING")


@pytest.fixture
async def proxy(own_valkey: ValkeyServer) -> AsyncIterator[RespProxy]:
    async with RespProxy(own_valkey.port) as running:
        yield running


async def eventually(met: Callable[[], bool], seconds: float = 5.0) -> None:
    async with asyncio.timeout(seconds):
        while not met():
            await asyncio.sleep(0.02)


async def until_available(client: RedisClient) -> None:
    await eventually(client.available)


async def until_away(client: RedisClient) -> None:
    """Return when the breaker has opened, also if it has closed again since."""
    await eventually(lambda: client._availability.opened_count > 0)


async def test_cut_in_flight_is_unknown_and_the_client_comes_back(proxy: RespProxy) -> None:
    async with await RedisClient().connect(proxy.dsn) as client:
        reconnects: list[tuple[str, str]] = []
        recovered = asyncio.Event()
        client.on_reconnect(lambda old, new: reconnects.append((old, new)))
        client.on_recovery(recovered.set)
        held = proxy.hold_reply(command("INCR", "n"))
        calls = [client.call("INCR", "n"), client.call("PING")]
        await held.seen()
        proxy.cut()
        for call in calls:
            with pytest.raises(BackendUnavailable) as lost:
                await call
            assert lost.value.outcome == "unknown"
        waits = client.call("GET", "n")  # not sent before there is a connection again
        assert await waits == b"1"
        await recovered.wait()
        assert reconnects == [(client.generation, client.generation)]
        assert proxy.connections == 2
        assert client.available()


async def test_a_lost_reply_is_unknown(proxy: RespProxy) -> None:
    async with await RedisClient().connect(proxy.dsn) as client:
        dropped = proxy.drop_reply(command("INCR"))
        with pytest.raises(BackendUnavailable) as lost:
            await client.call("INCR", "n")
        await dropped.seen()
        assert lost.value.outcome == "unknown"
        assert await client.call("GET", "n") == b"1"


async def test_what_was_not_written_has_outcome_none(proxy: RespProxy) -> None:
    async with await RedisClient().connect(proxy.dsn) as client:
        call = client.call("INCR", "n")
        client._here().nodes[0].connection.lose()
        with pytest.raises(BackendUnavailable) as lost:
            await call
        assert lost.value.outcome == "none"
        assert await client.call("GET", "n") is None


async def test_without_a_connection_calls_wait_until_their_deadline(
    own_valkey: ValkeyServer,
) -> None:
    async with await RedisClient().connect(own_valkey.dsn) as client:
        own_valkey.kill()
        started = monotonic()
        with pytest.raises(BackendUnavailable) as failed:
            await client.call("PING", timeout=0.2)
        assert failed.value.outcome in ("none", "unknown")
        with pytest.raises(BackendUnavailable) as failed:
            await client.call("PING", timeout=0.2)
        assert failed.value.outcome == "none"
        assert monotonic() - started < 1.0
        waits = client.call("PING", timeout=5.0)
        own_valkey.start()
        assert await waits == b"PONG"


async def test_a_stopped_server_opens_the_breaker_and_comes_back(
    own_redis_server: RespServer,
) -> None:
    async with await RedisClient().connect(own_redis_server.dsn) as client:
        recovered = asyncio.Event()
        client.on_recovery(recovered.set)
        own_redis_server.pause()
        started = monotonic()
        while client.available():
            with pytest.raises(BackendTimeout) as late:
                await client.send_cached(PING)
            assert late.value.outcome == "unknown"
        assert monotonic() - started < 1.5
        assert client._availability.opened_count == 1

        started = monotonic()
        for _ in range(100):
            with pytest.raises(BackendUnavailable) as refused:
                await client.send_cached(PING)
            assert refused.value.outcome == "none"
        assert monotonic() - started < 0.25

        own_redis_server.resume()
        async with asyncio.timeout(2):
            await recovered.wait()
        assert client.available()
        assert await client.send_cached(PING) == b"PONG"


async def test_one_slow_call_does_not_open_the_breaker(proxy: RespProxy) -> None:
    config = RedisConfig(cache_timeout=0.05)
    async with await RedisClient().connect(proxy.dsn, config) as client:
        for _ in range(3):
            held = proxy.hold_reply(command("ECHO"))
            with pytest.raises(BackendTimeout):
                await client.send_cached(pack("ECHO", "slow"))
            held.release()
            assert await client.call("PING") == b"PONG"
            await asyncio.sleep(0.05)
        assert client.available()


async def test_a_black_hole_is_left_for_a_new_connection(proxy: RespProxy) -> None:
    config = RedisConfig(socket_timeout=0.2, connect_timeout=0.2, cache_timeout=0.05)
    async with await RedisClient().connect(proxy.dsn, config) as client:
        proxy.black_hole()
        with pytest.raises(BackendError):
            await client.call("PING")

        await eventually(lambda: proxy.connections > 1)
        assert not client.available()
        await proxy.accept()
        await until_available(client)
        assert await client.call("PING") == b"PONG"


async def test_an_idle_connection_that_died_silently_is_noticed(proxy: RespProxy) -> None:
    config = RedisConfig(heartbeat=0.1, socket_timeout=0.1, connect_timeout=0.5)
    async with await RedisClient().connect(proxy.dsn, config) as client:
        proxy.black_hole()

        await until_away(client)
        await proxy.accept()
        await until_available(client)
        assert await client.call("PING") == b"PONG"


async def test_refused_connections_are_retried_ever_slower(proxy: RespProxy) -> None:
    async with await RedisClient().connect(proxy.dsn) as client:
        proxy.refuse()
        proxy.cut()
        await until_away(client)
        with pytest.raises(BackendUnavailable) as failed:
            await client.call("PING", timeout=0.3)
        assert "cannot be reached" in str(failed.value)
        assert not client.available()
        await proxy.accept()
        assert await client.call("PING") == b"PONG"
        assert client.available()


def test_the_back_off_doubles_with_jitter_up_to_two_seconds() -> None:
    assert [backoff(attempts, 1.0) for attempts in range(8)] == [
        0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 2.0, 2.0,
    ]  # fmt: skip
    assert backoff(0, 0.0) == 0.025
    assert backoff(10_000, 0.0) == 1.0


async def test_a_restart_changes_the_generation(own_redis_server: RespServer) -> None:
    async with await RedisClient().connect(own_redis_server.dsn) as client:
        seen: list[tuple[str, str]] = []
        client.on_reconnect(lambda old, new: seen.append((old, new)))
        before = client.generation
        own_redis_server.restart(keep_data=True)
        await until_away(client)
        assert await client.call("PING") == b"PONG"
        assert client.generation != before
        assert seen == [(before, client.generation)]


async def test_the_heartbeat_sees_a_new_generation(own_valkey: ValkeyServer) -> None:
    config = RedisConfig(heartbeat=0.05)
    async with await RedisClient().connect(own_valkey.dsn, config) as client:
        seen: list[tuple[str, str]] = []
        client.on_reconnect(lambda old, new: seen.append((old, new)))
        before = client.generation
        own_valkey.ask("REPLICAOF", "127.0.0.1", "1")
        own_valkey.ask("REPLICAOF", "NO", "ONE")

        await eventually(lambda: client.generation != before)
        assert seen == [(before, client.generation)]


async def test_read_only_reconnects_and_finds_the_primary_again(
    own_valkey: ValkeyServer,
) -> None:
    async with await RedisClient().connect(own_valkey.dsn) as client:
        first_id = await client.call("CLIENT", "ID")
        own_valkey.ask("REPLICAOF", "127.0.0.1", "1")
        with pytest.raises(BackendUnavailable, match="replica") as refused:
            await client.call("SET", "k", "v")
        assert refused.value.outcome == "none"
        own_valkey.ask("REPLICAOF", "NO", "ONE")
        assert await client.call("SET", "k", "v") == b"OK"
        assert await client.call("CLIENT", "ID") != first_id


async def test_killed_by_the_server(own_valkey: ValkeyServer) -> None:
    async with await RedisClient().connect(own_valkey.dsn) as client:
        own_valkey.ask("CLIENT", "KILL", "TYPE", "normal")
        await until_away(client)
        assert await client.call("PING") == b"PONG"


async def test_started_without_a_server_it_connects_when_there_is_one(
    own_valkey: ValkeyServer,
) -> None:
    own_valkey.kill()
    config = RedisConfig(require_at_start=False)
    client = await RedisClient().connect(own_valkey.dsn, config)
    async with client:
        assert not client.available()
        assert not (await client.health()).ok
        with pytest.raises(BackendUnavailable, match="cannot be reached"):
            await client.send_cached(PING)
        recovered = asyncio.Event()
        client.on_recovery(recovered.set)
        own_valkey.start()
        assert await client.call("PING") == b"PONG"
        assert recovered.is_set()
        assert client.generation_known


async def test_a_recovery_callback_is_sent_before_those_who_wait(proxy: RespProxy) -> None:
    async with await RedisClient().connect(proxy.dsn) as client:
        client.on_recovery(lambda: client.post(pack("ECHO", "first")))
        proxy.refuse()
        proxy.cut()

        await until_away(client)
        waits = client.call("ECHO", "second")
        await proxy.accept()
        assert await waits == b"second"
        echoes = [args[1] for args in proxy.commands if args[0] == b"ECHO"]
        assert echoes == [b"first", b"second"]


async def test_a_password_changed_meanwhile_fails_calls_with_the_reason(
    own_valkey: ValkeyServer,
) -> None:
    async with await RedisClient().connect(own_valkey.dsn) as client:
        own_valkey.ask("CONFIG", "SET", "requirepass", "new")
        await client.call("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "no")
        await until_away(client)
        for _ in range(2):
            with pytest.raises(ConfigurationError, match="asks for a password"):
                await client.call("PING", timeout=2.0)
        assert not client.available()


async def test_cancelled_while_it_connects_nothing_is_left(own_valkey: ValkeyServer) -> None:
    async with RespProxy(own_valkey.port) as proxy:
        proxy.black_hole()
        client = RedisClient()
        connecting = asyncio.create_task(client.connect(proxy.dsn))

        await eventually(lambda: proxy.connections == 1)
        connecting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await connecting
        assert not [task for task in asyncio.all_tasks() if "forze-redis" in task.get_name()]


async def test_large_values_fail_as_errors_of_ours(own_valkey: ValkeyServer) -> None:
    large = b"v" * (300 * 1024)
    async with await RedisClient().connect(own_valkey.dsn) as client:
        await client.call("LPUSH", "l", "x")
        with pytest.raises(BackendError, match="WRONGTYPE"):
            await client.call("APPEND", "l", large)
        own_valkey.ask("CONFIG", "SET", "maxmemory", "1")
        with pytest.raises(BackendUnavailable, match="maxmemory") as refused:
            await client.call("SET", "k", large)
        assert refused.value.outcome == "none"
        own_valkey.kill()
        with pytest.raises(BackendUnavailable) as failed:
            await client.call("SET", "k", large)
        assert failed.value.outcome == "unknown"


async def test_outcomes_tell_the_truth_while_connections_break(proxy: RespProxy) -> None:
    done, maybe = 0, 0
    config = RedisConfig(max_in_flight=16)
    async with await RedisClient().connect(proxy.dsn, config) as client:
        ends = monotonic() + 1.0

        async def caller() -> None:
            nonlocal done, maybe
            while monotonic() < ends:
                try:
                    await client.call("INCR", "n", timeout=0.3)
                    done += 1
                except BackendError as error:
                    maybe += error.outcome == "unknown"

        async def breaker() -> None:
            while monotonic() < ends:
                await asyncio.sleep(0.03)
                proxy.cut()
                dropped = proxy.drop_reply(command("INCR"))
                await asyncio.sleep(0.03)
                dropped.release()

        await asyncio.gather(breaker(), *(caller() for _ in range(40)))
        executed = int(await client.call("GET", "n"))
    assert done > 0
    assert maybe > 0
    assert done <= executed <= done + maybe


async def test_backpressure_holds_back_and_goes_on(own_valkey: ValkeyServer) -> None:
    config = RedisConfig(socket_timeout=20.0)
    async with await RedisClient().connect(own_valkey.dsn, config) as client:
        own_valkey.pause()
        value = b"v" * (200 * 1024)
        calls = []
        for each in range(100):
            calls.append(client.call("SET", f"k{each}", value))
            await asyncio.sleep(0)
        transport = client._here().nodes[0].connection._transport
        assert transport is not None
        assert transport.get_write_buffer_size() < 4 * len(value)
        late = client.call("SET", "late", "1", timeout=0.05)
        with pytest.raises(BackendTimeout) as timed_out:
            await late
        assert timed_out.value.outcome == "unknown"  # it is still to be sent
        own_valkey.resume()
        assert set(await asyncio.gather(*calls)) == {b"OK"}
        assert await client.call("GET", "late") == b"1"


async def test_the_log_says_when_the_server_went_and_came_back(
    own_redis_server: RespServer, caplog: pytest.LogCaptureFixture
) -> None:
    """Once each, however long it is away and however many calls fail meanwhile."""
    with caplog.at_level(logging.INFO, logger="forze.redis"):
        async with await RedisClient().connect(own_redis_server.dsn) as client:
            own_redis_server.kill()
            async with asyncio.timeout(5):
                while client.available():
                    await asyncio.sleep(0.01)
                for _ in range(5):
                    with pytest.raises(BackendError):
                        await client.send_cached(pack("PING"))
            own_redis_server.start()
            async with asyncio.timeout(5):
                while not client.available():
                    await asyncio.sleep(0.01)
    said = [(each.levelname, each.getMessage()) for each in caplog.records]
    assert [level for level, _ in said] == ["WARNING", "INFO"], said
    assert "is away" in said[0][1]
    assert "answers again" in said[1][1]
