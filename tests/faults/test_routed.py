"""One client for many servers: made once, never closed in use, rotated, and apart in trouble."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from time import monotonic
from typing import Any
from uuid import uuid4

import pytest
from tests.faults.world import ask

from forze.application.contracts.tenancy import bind_tenant
from forze.errors import (
    BackendError,
    BackendTimeout,
    BackendUnavailable,
    ConfigurationError,
    TenantRequired,
)
from forze.testing.cluster import ValkeyCluster
from forze.testing.proxy import RespProxy, command
from forze.testing.servers import RedisServer, RespServer, ValkeyServer
from forze_redis import RedisClient, RedisConfig, RoutedRedisClient
from forze_redis.routed import Endpoints
from forze_redis.routed.seats import Seat

BUDGET_SECONDS = 0.5
"""Of the cache path: what a dead server costs is long beside what a busy machine costs."""

TURNS = 5
"""Of the event loop: a call that has failed after so few of them has waited for nothing."""


@asynccontextmanager
async def routed(
    dsn_of: Endpoints, config: RedisConfig | None = None, **settings: Any
) -> AsyncIterator[RoutedRedisClient]:
    """A routed client over these endpoints."""
    client = RoutedRedisClient(**settings)
    await client.connect(dsn_of, config)
    try:
        yield client
    finally:
        await client.close()


def connections(server: RespServer) -> int:
    """How many clients beside the one that asks are connected to a server."""
    listed: bytes = ask(server, "CLIENT", "LIST")
    return listed.count(b"lib-name=forze")


async def until(condition: Any, seconds: float = 5.0) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.01)


# -- which one -----------------------------------------------------------------


async def test_the_tenant_or_the_route_selects_the_server(dsns: dict[str, str]) -> None:
    async with routed(dsns) as client:
        for route in "abc":
            with bind_tenant(route):
                await client.call("SET", "k", f"of {route}")
        for route in "abc":
            with bind_tenant("c"), client.route(route):
                assert await client.call("GET", "k") == f"of {route}".encode()
                async with client.hold() as here:
                    assert type(here) is RedisClient
                    with client.route("c"):
                        assert await here.call("GET", "k") == f"of {route}".encode()
                        assert await here.redis.get("k") == f"of {route}".encode()
                replies = await client.pipeline().call("GET", "k").call("PING").execute()
                assert replies == [f"of {route}".encode(), b"PONG"]


async def test_each_task_has_its_own_route(dsns: dict[str, str]) -> None:
    async with routed(dsns) as client:

        async def work(tenant: str) -> int:
            with bind_tenant(tenant):
                for _ in range(50):
                    await client.call("INCR", tenant)
                    await asyncio.sleep(0)
                return len(await client.call("KEYS", "*"))

        assert await asyncio.gather(*map(work, "abcabc")) == [1] * 6


async def test_several_tenants_may_share_a_route(dsns: dict[str, str]) -> None:
    async with routed(dsns, route=lambda tenant: "a" if tenant == "x" else "b") as client:
        with bind_tenant("x"):
            await client.call("SET", "k", "1")
        with bind_tenant("y"):
            assert await client.call("GET", "k") is None
        assert sorted(client.clients) == ["a", "b"]


async def test_no_tenant_and_no_such_route_are_refused(dsns: dict[str, str]) -> None:
    async with routed(dsns) as client:
        for attempt in (
            lambda: client.call("PING"),
            lambda: client.send_cached(b""),
            lambda: client.call_large("PING"),
            client.hold,
            lambda: client.redis,
            lambda: client.post(b""),
        ):
            with pytest.raises(TenantRequired):
                attempt()
        with client.route("nowhere"), pytest.raises(ConfigurationError, match="'nowhere'"):
            await client.call("PING")
        with pytest.raises(ConfigurationError, match="route"), client.route(""):
            pass
    with client.route("a"):
        for call in (lambda: client.call("PING"), client.rotate, client.layout):
            with pytest.raises(ConfigurationError, match="not connected"):
                await call()


@pytest.mark.parametrize("how", ["none", "lookup"])
async def test_a_function_says_that_there_is_no_such_route(dsns: dict[str, str], how: str) -> None:
    asked: list[str] = []

    def dsn_of(route: str) -> str | None:
        asked.append(route)
        return dsns.get(route) if how == "none" else dsns[route]

    async with routed(dsn_of) as client, asyncio.timeout(1):
        with client.route("new"):
            for _ in range(2):
                with pytest.raises(ConfigurationError, match="'new'"):
                    await client.call("PING")
            dsns["new"] = dsns["a"]
            assert await client.call("PING") == b"PONG"
    assert asked == ["new", "new", "new"], "an unknown route is not remembered as such"


async def test_a_mapping_may_know_tenants_by_their_uuids(dsns: dict[str, str]) -> None:
    tenant = uuid4()
    async with routed({tenant: dsns["a"]}) as client:
        with bind_tenant(tenant):
            assert await client.call("PING") == b"PONG"
        with bind_tenant(uuid4()), pytest.raises(ConfigurationError, match="no Redis endpoint"):
            await client.call("PING")


async def test_health_with_a_route_and_without(dsns: dict[str, str]) -> None:
    async with routed(dsns) as client:
        assert (await client.health()).ok
        with client.route("a"):
            health = await client.health()
            assert (health.ok, health.server) == (True, "valkey")
        with client.route("nowhere"):
            health = await client.health()
            assert not health.ok
            assert "'nowhere'" in (health.error or "")


# -- made once -----------------------------------------------------------------


async def test_a_hundred_callers_make_one_client(
    servers: list[ValkeyServer], dsns: dict[str, str]
) -> None:
    asked: list[str] = []

    async def dsn_of(route: str) -> str:
        asked.append(route)
        await asyncio.sleep(0.02)
        return dsns[route]

    async with routed(dsn_of) as client:

        async def work(route: str) -> int:
            with bind_tenant(route):
                counted: int = await client.call("INCR", "n")
                return counted

        counts = await asyncio.gather(*(work(route) for route in "ab" * 100))
        assert sorted(counts) == sorted(2 * list(range(1, 101)))
        assert sorted(asked) == ["a", "b"]
        assert [connections(each) for each in servers] == [1, 1, 0]


async def test_the_first_callers_may_give_up(dsns: dict[str, str]) -> None:
    """Who asks first is cancelled; the others do not notice."""
    gate = asyncio.Event()

    async def dsn_of(route: str) -> str:
        await gate.wait()
        return dsns[route]

    async with routed(dsn_of) as client:
        with bind_tenant("a"):
            first = client.call("PING")
            second = asyncio.create_task(_pinged(client))
            await asyncio.sleep(0)
            first.cancel()
            gate.set()
            assert await second == b"PONG"
            assert first.cancelled()


async def _pinged(client: RedisClient) -> bytes:
    answer: bytes = await client.call("PING")
    return answer


async def test_closing_while_routes_are_being_opened() -> None:
    gate = asyncio.Event()

    async def dsn_of(route: str) -> str:
        await gate.wait()
        raise AssertionError

    async with routed(dsn_of) as client:
        with bind_tenant("a"):
            waiting = client.call("PING")
            await asyncio.sleep(0)
    with pytest.raises(BackendUnavailable, match="closed") as caught:
        await waiting
    assert caught.value.outcome == "none"


async def test_a_resolver_that_fails_is_not_asked_by_everyone() -> None:
    asked = 0

    async def dsn_of(route: str) -> str:
        nonlocal asked
        asked += 1
        raise OSError("the vault is sealed")

    async with routed(dsn_of) as client:
        with bind_tenant("a"):
            for _ in range(10):
                with pytest.raises(BackendUnavailable, match="the vault is sealed"):
                    await client.call("PING")
    assert asked == 1


@pytest.mark.parametrize("answer", [5, b"redis://:secret@x/0", ["redis://:secret@x/0"], False])
async def test_what_is_no_dsn_is_refused_and_not_shown(answer: Any) -> None:
    async with routed(lambda _: answer) as client:
        with client.route("r"), pytest.raises(ConfigurationError, match="route 'r'") as caught:
            await client.call("PING")
        assert "secret" not in str(caught.value)
        assert type(answer).__name__ in str(caught.value)


async def test_a_dsn_that_cannot_be_used_names_the_route() -> None:
    async with routed({"r": "http://:secret@x/0"}) as client:
        with client.route("r"), pytest.raises(ConfigurationError, match="route 'r': ") as caught:
            await client.call("PING")
        assert "secret" not in str(caught.value)


async def test_a_resolver_whose_own_work_was_cancelled_is_asked_again(
    dsns: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A lookup that requests share and one of them cancelled, say: not the end of the route."""
    monkeypatch.setattr("forze_redis.routed.seats.RETRY_SECONDS", 0.02)
    lookups: list[asyncio.Future[str]] = []

    async def dsn_of(route: str) -> str:
        lookups.append(asyncio.get_running_loop().create_future())
        if len(lookups) == 1:
            lookups[0].cancel()
        else:
            lookups[-1].set_result(dsns[route])
        return await lookups[-1]

    async with routed(dsn_of) as client:
        with client.route("a"):
            with pytest.raises(BackendUnavailable, match="was cancelled") as caught:
                await client.call("PING")
            assert caught.value.outcome == "none"
            await asyncio.sleep(0.05)
            assert await client.call("PING") == b"PONG"


async def test_a_resolver_that_hangs_holds_up_nobody(dsns: dict[str, str]) -> None:
    async def dsn_of(route: str) -> str:
        if route == "a":
            await asyncio.Event().wait()
        return dsns[route]

    async with routed(dsn_of) as client:
        with bind_tenant("a"):
            began = monotonic()
            with pytest.raises(BackendTimeout) as caught:
                await client.call("PING", timeout=0.1)
            assert caught.value.outcome == "none"
            assert monotonic() - began < 0.5
        with bind_tenant("b"):
            assert await client.call("PING", timeout=1.0) == b"PONG"


# -- never closed in use -------------------------------------------------------


async def test_idle_clients_are_closed(servers: list[ValkeyServer], dsns: dict[str, str]) -> None:
    async with routed(dsns, idle_after=timedelta(milliseconds=100)) as client:
        for route in "abc":
            with client.route(route):
                await client.call("PING")
        with client.route("b"):
            async with client.hold():
                await until(lambda: sorted(client.clients) == ["b"])
                await until(lambda: [connections(each) for each in servers] == [0, 1, 0])
                await asyncio.sleep(0.3)
                assert sorted(client.clients) == ["b"], "it is held"
        with client.route("c"):
            subscription = await client.subscribe("news", lambda _: None)
        await until(lambda: sorted(client.clients) == ["c"])
        await asyncio.sleep(0.3)
        assert sorted(client.clients) == ["c"], "somebody listens"
        subscription.close()
        await until(lambda: not client.clients)
        with client.route("a"):
            assert await client.call("PING") == b"PONG"


async def test_what_a_rotation_opened_is_closed_too(dsns: dict[str, str]) -> None:
    """Also where nobody else is there, and where there are too many."""
    async with routed(dsns, idle_after=timedelta(milliseconds=60)) as client:
        await client.rotate("a")
        assert list(client.clients) == ["a"]
        await until(lambda: not client.clients)
    async with routed(dsns, max_clients=1) as client:
        await client.rotate("a")
        await client.rotate("b")
        assert list(client.clients) == ["b"]


async def test_the_longest_unused_goes_first(dsns: dict[str, str]) -> None:
    async with routed(dsns, max_clients=2) as client:
        for route in "abac":
            with client.route(route):
                await client.call("PING")
        assert sorted(client.clients) == ["a", "c"]


async def test_a_client_with_a_call_under_way_is_not_closed(
    servers: list[ValkeyServer], dsns: dict[str, str]
) -> None:
    async with RespProxy(servers[0].port) as proxy:
        held = proxy.hold_reply(command("GET", "slow"))
        async with routed(dsns | {"a": proxy.dsn}, max_clients=1) as client:
            with client.route("a"):
                slow = client.call("GET", "slow")
            await held.seen()
            for route in "bcbc":
                with client.route(route):
                    await client.call("PING")
            assert sorted(client.clients) == ["a", "c"]
            held.release()
            assert await slow is None
            with client.route("b"):
                await client.call("PING")
            assert sorted(client.clients) == ["b"]


async def test_eviction_under_load_fails_no_call(
    servers: list[ValkeyServer], dsns: dict[str, str]
) -> None:
    """Two hundred routes, room for five clients, fifty callers at once."""
    every = list(dsns.values())
    async with routed(
        lambda route: every[int(route) % 3], max_clients=5, idle_after=timedelta(milliseconds=20)
    ) as client:
        done = 0

        async def caller(seed: int) -> None:
            nonlocal done
            for step in range(40):
                with client.route(str((seed * 7 + step * 13) % 200)):
                    if step % 10 == 0:
                        async with client.hold() as here:
                            await here.call("INCR", "n")
                            await asyncio.sleep(0)
                            await here.call("INCR", "n")
                            done += 2
                    elif step % 10 == 5:
                        await client.call_large("INCR", "n")
                        done += 1
                    else:
                        await client.call("INCR", "n")
                        done += 1

        await asyncio.gather(*map(caller, range(50)))
        assert sum(int(ask(each, "GET", "n")) for each in servers) == done == 50 * 44
        await until(lambda: not client.clients)
        await until(lambda: sum(map(connections, servers)) == 0)


# -- trouble at one server -----------------------------------------------------


async def _answered_for(client: RoutedRedisClient, route: str, seconds: float) -> float:
    """The slowest of as many calls as fit into ``seconds``; each has to succeed."""
    slowest, began = 0.0, monotonic()
    with client.route(route):
        while monotonic() - began < seconds:
            asked = monotonic()
            await client.call("PING")
            slowest = max(slowest, monotonic() - asked)
            await asyncio.sleep(0)
    return slowest


@pytest.mark.parametrize("trouble", ["paused", "killed", "paused from the start", "nobody there"])
async def test_one_dead_server_does_not_slow_the_others(
    servers: list[ValkeyServer], dsns: dict[str, str], trouble: str
) -> None:
    config = RedisConfig(
        socket_timeout=2 * BUDGET_SECONDS,
        connect_timeout=2 * BUDGET_SECONDS,
        cache_timeout=BUDGET_SECONDS,
    )
    async with routed(dsns, config) as client:
        if "from the start" not in trouble and trouble != "nobody there":
            with client.route("a"):
                await client.call("PING")
        servers[0].pause() if trouble.startswith("paused") else servers[0].kill()

        at_once = []

        async def unlucky() -> list[float]:
            took = []
            with client.route("a"):
                for _ in range(8):
                    asked = monotonic()
                    call = client.send_cached(b"*1\r\n$4\r\nPING\r\n")
                    for _ in range(TURNS):
                        await asyncio.sleep(0)
                    at_once.append(call.done())
                    with pytest.raises(BackendError):
                        await call
                    took.append(monotonic() - asked)
                    await asyncio.sleep(0.05)
                asked = monotonic()
                with pytest.raises(BackendError):
                    await client.call("PING")
                assert monotonic() - asked < 3 * BUDGET_SECONDS
            return took

        *slowest, took = await asyncio.gather(
            _answered_for(client, "b", 3.0), _answered_for(client, "c", 3.0), unlucky()
        )
        assert max(slowest) < 0.8 * BUDGET_SECONDS
        assert max(took) < 2.4 * BUDGET_SECONDS, "the budget of the cache path"
        assert all(at_once[4:]), "without a wait, when it is known to be away"
        if trouble.startswith("paused"):
            servers[0].resume()
        else:
            servers[0].start()
        with client.route("a"):
            async with asyncio.timeout(10):
                while True:
                    try:
                        assert await client.call("PING") == b"PONG"
                    except BackendError:
                        await asyncio.sleep(0.05)
                    else:
                        break


async def test_a_dead_server_is_tried_at_a_bounded_rate() -> None:
    attempts = 0

    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal attempts
        attempts += 1
        writer.close()

    listener = await asyncio.start_server(refuse, "127.0.0.1", 0)
    port = listener.sockets[0].getsockname()[1]
    async with routed({"a": f"redis://127.0.0.1:{port}/0"}) as client:
        with client.route("a"):
            until_then = monotonic() + 1.0
            while monotonic() < until_then:
                await asyncio.gather(
                    *(client.send_cached(b"*1\r\n$4\r\nPING\r\n") for _ in range(20)),
                    return_exceptions=True,
                )
                await asyncio.sleep(0.01)
    listener.close()
    assert 2 <= attempts <= 8, "backing off, however many ask"


# -- rotation ------------------------------------------------------------------


async def _load(client: RoutedRedisClient, route: str, stop: asyncio.Event) -> int:
    done = 0
    with client.route(route):
        while not stop.is_set():
            await client.call("INCR", "n")
            await client.call_large("INCR", "n")
            done += 2
    return done


async def test_rotation_under_load_fails_no_call(
    servers: list[ValkeyServer], dsns: dict[str, str]
) -> None:
    server = servers[0]
    password = "first"

    def rotate_on_server(word: str) -> None:
        ask(server, "ACL", "SETUSER", "app", "reset", "on", f">{word}", "~*", "&*", "+@all")

    rotate_on_server(password)
    async with routed(lambda _: f"redis://app:{password}@127.0.0.1:{server.port}/0") as client:
        stop = asyncio.Event()
        load = [asyncio.create_task(_load(client, "a", stop)) for _ in range(20)]
        clients = set()
        for number in range(8):
            await asyncio.sleep(0.05)
            clients.add(client.clients["a"])
            password = f"word{number}"
            rotate_on_server(password)
            await client.rotate("a")
        stop.set()
        done = sum(await asyncio.gather(*load))
        assert int(ask(server, "GET", "n")) == done > 0
        assert len({*clients, client.clients["a"]}) == 9
        await until(lambda: not any(each.connected for each in clients))
        assert connections(server) <= 1 + 9, "of the newest client only"


async def test_a_call_outlives_a_password_replaced_again_while_it_is_renewed(
    servers: list[ValkeyServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    server, words = servers[0], iter(["second", "third"])
    password = "first"

    def replace() -> None:
        nonlocal password
        password = next(words)
        ask(server, "ACL", "SETUSER", "app", "reset", "on", f">{password}", "~*", "&*", "+@all")

    ask(server, "ACL", "SETUSER", "app", "reset", "on", f">{password}", "~*", "&*", "+@all")
    async with routed(lambda _: f"redis://app:{password}@127.0.0.1:{server.port}/0") as client:
        with client.route("a"):
            assert await client.call("PING") == b"PONG"
            renew = client.routes.rotations.renew
            replaced = 0

            async def renewed_too_late(seat: Seat) -> None:
                nonlocal replaced
                await renew(seat)
                replaced += 1
                if replaced == 1:
                    replace()

            monkeypatch.setattr(client.routes.rotations, "renew", renewed_too_late)
            replace()
            assert await client.call_large("PING") == b"PONG"
            assert replaced == 2


async def test_a_hold_outlives_a_rotation(
    servers: list[ValkeyServer], dsns: dict[str, str]
) -> None:
    async with routed(dsns) as client:
        with client.route("a"):
            async with client.hold() as here:
                await client.rotate()
                assert client.clients["a"] is not here
                await asyncio.sleep(0.2)
                assert await here.call("PING") == b"PONG"
                assert connections(servers[0]) == 2
            await until(lambda: connections(servers[0]) == 1)
            assert await client.call("PING") == b"PONG"


async def test_a_rotation_that_fails_changes_nothing(
    servers: list[ValkeyServer], dsns: dict[str, str]
) -> None:
    working = dict(dsns)
    async with routed(lambda route: dsns[route]) as client:
        with client.route("a"):
            await client.call("PING")
            before = client.clients["a"]
            for broken in ("redis://127.0.0.1:1/0", f"redis://x:y@127.0.0.1:{servers[0].port}/0"):
                dsns["a"] = broken
                with pytest.raises((BackendUnavailable, ConfigurationError)):
                    await client.rotate()
            del dsns["a"]
            with pytest.raises(ConfigurationError, match="'a'"):
                await client.rotate()
            assert client.clients["a"] is before
            assert await client.call("PING") == b"PONG"
            dsns["a"] = working["b"]
            await asyncio.gather(*(client.rotate() for _ in range(20)))
            await client.call("SET", "moved", "1")
            assert ask(servers[1], "GET", "moved") == b"1"


async def test_who_rotates_together_shares_one_rotation(dsns: dict[str, str]) -> None:
    asked = 0

    async def dsn_of(route: str) -> str:
        nonlocal asked
        asked += 1
        await asyncio.sleep(0.01)
        return dsns[route]

    async with routed(dsn_of) as client:
        await asyncio.gather(*(client.rotate("a") for _ in range(20)))
        assert asked <= 2


@pytest.mark.parametrize("kind", ["plain", "cached", "large"])
async def test_a_rejected_password_is_asked_for_again(
    servers: list[ValkeyServer], kind: str
) -> None:
    """The server drops everyone and takes a new password; callers need not know."""
    server, password, asked = servers[0], "first", 0

    def change(word: str) -> None:
        ask(server, "ACL", "SETUSER", "app", "reset", "on", f">{word}", "~*", "&*", "+@all")

    async def dsn_of(_: str) -> str:
        nonlocal asked
        asked += 1
        return f"redis://app:{password}@127.0.0.1:{server.port}/0"

    change(password)
    async with routed(dsn_of) as client:
        with client.route("a"):
            assert await client.call("PING") == b"PONG"
            password = "second"
            change(password)
            if kind != "large":
                ask(server, "CLIENT", "KILL", "USER", "app")
                await until(lambda: not client.clients["a"].available())
            if kind == "large":  # the shared connection stands; a new one of the pool is rejected
                answers = await asyncio.gather(*(client.call_large("PING") for _ in range(20)))
                assert answers == [b"PONG"] * 20
            elif kind == "plain":
                answers = await asyncio.gather(*(client.call("PING") for _ in range(20)))
                assert answers == [b"PONG"] * 20
            else:
                async with asyncio.timeout(2):
                    while True:
                        try:
                            await client.send_cached(b"*1\r\n$4\r\nPING\r\n")
                        except BackendError:  # while it is away, at once
                            await asyncio.sleep(0.01)
                        else:
                            break
            assert asked == 2


async def test_a_password_that_stays_wrong_is_not_asked_for_by_everyone(
    servers: list[ValkeyServer],
) -> None:
    server, asked = servers[0], 0

    async def dsn_of(_: str) -> str:
        nonlocal asked
        asked += 1
        return f"redis://app:wrong@127.0.0.1:{server.port}/0"

    async with routed(dsn_of) as client:
        with client.route("a"):
            for _ in range(20):
                with pytest.raises(ConfigurationError, match="rejected the password"):
                    await client.call("PING")
    assert asked == 2, "once more, because it may just have been changed"


# -- loops and processes -------------------------------------------------------


def test_event_loops_one_after_the_other(dsns: dict[str, str]) -> None:
    client = RoutedRedisClient()

    async def first() -> None:
        await client.connect(dsns)
        with client.route("a"):
            await client.call("SET", "k", "v")

    async def second() -> None:
        with client.route("a"):
            assert await client.call("GET", "k") == b"v"
        with client.route("b"):
            assert await client.call("GET", "k") is None
        await client.close()

    asyncio.run(first())
    asyncio.run(second())


def test_an_opening_left_behind_by_its_loop(dsns: dict[str, str]) -> None:
    client = RoutedRedisClient()

    async def dsn_of(route: str) -> str:
        if asyncio.get_running_loop() is left[0]:
            await asyncio.Event().wait()
        return dsns[route]

    left: list[asyncio.AbstractEventLoop] = []

    async def first() -> None:
        left.append(asyncio.get_running_loop())
        await client.connect(dsn_of)
        with client.route("a"), pytest.raises(BackendTimeout):
            await client.call("PING", timeout=0.05)

    async def second() -> None:
        with client.route("a"):
            assert await client.call("PING") == b"PONG"
        await client.close()

    asyncio.run(first())
    asyncio.run(second())


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
async def test_a_forked_child_connects_anew(
    servers: list[ValkeyServer], dsns: dict[str, str]
) -> None:
    async with routed(dsns) as client:
        with client.route("a"):
            await client.call("SET", "k", "v")
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                asyncio.set_event_loop(None)
                asyncio.events._set_running_loop(None)
                code = asyncio.run(_in_child(client))
            finally:
                os._exit(code)
        status = 0
        async with asyncio.timeout(5):
            while (ended := os.waitpid(pid, os.WNOHANG))[0] == 0:  # noqa: ASYNC222
                await asyncio.sleep(0.01)
            status = os.waitstatus_to_exitcode(ended[1])
        assert status == 0
        with client.route("a"):
            assert await client.call("GET", "from child") == b"1"
            assert await client.call("GET", "k") == b"v"


async def _in_child(client: RoutedRedisClient) -> int:
    for route in "ab":
        with client.route(route):
            await client.call("SET", "from child", "1")
    with client.route("a"):
        return 0 if await client.call("GET", "k") == b"v" else 2


@pytest.mark.skipif(RedisServer.executable() is None, reason="no redis-server on the PATH")
async def test_routes_may_lead_to_different_kinds_of_servers(dsns: dict[str, str]) -> None:
    with RedisServer() as redis7:
        async with routed(dsns | {"r": redis7.dsn}) as client:
            kinds = set()
            for route in "ar":
                with client.route(route):
                    kinds.add((await client.health()).server)
            assert kinds == {"valkey", "redis"}


async def test_routes_may_lead_to_clusters(
    valkey_cluster: ValkeyCluster, dsns: dict[str, str]
) -> None:
    """All of them or none, because keys are spelled otherwise there."""
    routes = {"cluster": valkey_cluster.dsn, **dsns}
    async with routed(routes, clustered=True) as client:
        with client.route("cluster"):
            assert client.clustered
            await asyncio.gather(*(client.call("SET", f"k{each}", each) for each in range(50)))
            assert await client.call("GET", "k7") == b"7"
            assert len((await client.health()).nodes) == 3
        with client.route("a"), pytest.raises(ConfigurationError, match="clustered=False"):
            await client.call("PING")
    async with routed(routes) as client:
        with client.route("cluster"), pytest.raises(ConfigurationError, match="clustered=True"):
            await client.call("PING")
        with client.route("a"):
            assert await client.call("PING") == b"PONG"
