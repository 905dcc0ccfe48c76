"""Limits and circuits of a fleet among faults: processes, the network, the server, its clock."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import timedelta
from statistics import median
from typing import Any

import pytest
from tests.architecture.tree import ROOT
from tests.faults.resilience_worker import BREAKER, LIMIT, LIMIT_KEY

from forze.application.contracts.resilience import BreakerState, CircuitBreakerStrategy
from forze.errors import BackendError, ConfigurationError, ValidationError
from forze.testing.clock import ManualClock
from forze.testing.cluster import ValkeyCluster
from forze.testing.proxy import RespProxy, script
from forze.testing.servers import ValkeyServer
from forze_redis import (
    RedisCircuitBreakerStore,
    RedisClient,
    RedisConfig,
    RedisRateLimitStore,
    RoutedRedisClient,
    acl_rules,
    redis_circuit_breaker_store,
    redis_rate_limit_store,
)
from forze_redis.circuit_breaker import CIRCUIT_BREAKER
from forze_redis.rate_limit import RATE_LIMIT

CHANNEL = "forze:breaker/changed"
PATIENTLY = 5.0
BRIEFLY = 0.25
LONG = CircuitBreakerStrategy(
    min_throughput=2, break_duration=3600.0, probe_lease=3600.0, sampling_window=600.0
)
CLOSED, OPEN, HALF_OPEN = BreakerState.CLOSED, BreakerState.OPEN, BreakerState.HALF_OPEN


class Worker:
    """Another process of the fleet."""

    def __init__(self, dsn: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.resilience_worker", dsn],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def tell(self, *command: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(" ".join(command) + "\n")
        self._process.stdin.flush()

    def hear(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()

    def ask(self, *command: str) -> str:
        self.tell(*command)
        return self.hear()

    def signal(self, which: signal.Signals) -> None:
        os.kill(self._process.pid, which)

    def end(self) -> None:
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            assert stream is not None
            stream.close()


@pytest.fixture(scope="module")
def workers(valkey: ValkeyServer) -> Iterator[list[Worker]]:
    """Two processes, which outlast a test."""
    fleet = [Worker(valkey.dsn) for _ in range(2)]
    assert [each.hear() for each in fleet] == ["ready"] * 2
    yield fleet
    for each in fleet:
        each.end()


# -- processes -----------------------------------------------------------------


def test_two_processes_let_ten_through(workers: list[Worker], valkey_dsn: str) -> None:
    for each in workers:
        each.tell("take", "100")
    assert sum(int(each.hear()) for each in workers) == 10


def test_an_open_circuit_is_seen_at_once(workers: list[Worker], valkey: ValkeyServer) -> None:
    """By a message, long before anybody would have looked."""
    one, other = workers
    took = []
    for route in map(str, range(15)):
        other.tell("watch", route)
        _listened_to(valkey)
        failed = float(one.ask("fail", route))
        took.append(float(other.hear()) - failed)
    assert median(took) < 0.05


def _listened_to(server: ValkeyServer) -> None:
    """Return when somebody hears of transitions."""
    until = time.monotonic() + PATIENTLY
    while server.ask("PUBSUB", "SHARDNUMSUB", CHANNEL).endswith(b":0\r\n"):
        assert time.monotonic() < until
        time.sleep(0.002)


async def test_a_transition_is_told(valkey_dsn: str) -> None:
    key, told = ("payments", "told"), asyncio.Queue[bytes | None]()
    async with breaker(valkey_dsn) as store, await RedisClient().connect(valkey_dsn) as client:
        await client.subscribe(CHANNEL, told.put_nowait)
        await store.record(key, BREAKER, False, await store.admit(key, BREAKER))
        async with asyncio.timeout(2):
            name, state, generation, microseconds = (await told.get() or b"").split()
    assert (name, state) == (b"forze:breaker/payments/told", b"open")
    assert int(generation) == (store.views()[0]).generation
    assert int(microseconds) == 100_000


async def test_a_stopped_prober_comes_too_late(workers: list[Worker], valkey_dsn: str) -> None:
    key = ("payments", "stopped")
    worker = workers[0]
    async with breaker(valkey_dsn) as store:
        await store.record(key, BREAKER, False, await store.admit(key, BREAKER))
        assert worker.ask("probe", "stopped") == "probing"
        worker.signal(signal.SIGSTOP)
        try:
            probe = await _let_through(store, key, BREAKER)
            await store.record(key, BREAKER, True, probe)
        finally:
            worker.signal(signal.SIGCONT)
        assert worker.ask("end", "stopped", "failed") == "closed"
        assert (await store.admit(key, BREAKER)).state is CLOSED


async def test_a_killed_prober_does_not_keep_it_open(
    workers: list[Worker], valkey_dsn: str
) -> None:
    key, victim = ("payments", "killed"), workers[1]
    async with breaker(valkey_dsn) as store:
        await store.record(key, BREAKER, False, await store.admit(key, BREAKER))
        assert victim.ask("probe", "killed") == "probing"
        assert not (await store.admit(key, BREAKER)).allowed
        victim.end()  # the last test of the section, that is
        probe = await _let_through(store, key, BREAKER)
        await store.record(key, BREAKER, True, probe)
        assert (await store.admit(key, BREAKER)).state is CLOSED


# -- replies that are lost, or late ----------------------------------------------


async def test_permits_whose_reply_was_lost_are_taken_once(valkey_dsn: str, valkey: Any) -> None:
    async with RespProxy(valkey.port) as proxy, limits(proxy.dsn) as store:
        proxy.drop_reply(script(RATE_LIMIT))
        decision = await store.try_acquire(LIMIT_KEY, LIMIT, 4)
        assert (decision.allowed, decision.remaining, decision.degraded) == (True, 6, False)
        assert (await store.try_acquire(LIMIT_KEY, LIMIT, 0)).remaining == 6


async def test_unknown_is_not_taken_for_no(valkey_dsn: str, valkey: Any) -> None:
    """No answer in time: this process decides, and says so."""
    async with RespProxy(valkey.port) as proxy, limits(proxy.dsn, timeout=0.05) as store:
        hold = proxy.hold_reply(script(RATE_LIMIT))
        decision = await store.try_acquire(LIMIT_KEY, LIMIT)
        assert (decision.allowed, decision.degraded) == (True, True)
        hold.release()


async def test_a_probe_whose_reply_was_lost_is_one_probe(valkey_dsn: str, valkey: Any) -> None:
    key = ("payments", None)
    strategy = replace(LONG, break_duration=0.05, half_open_max_calls=2)
    async with RespProxy(valkey.port) as proxy, breaker(proxy.dsn) as store:
        for _ in range(2):
            await store.record(key, strategy, False, await store.admit(key, strategy))
        await asyncio.sleep(0.06)
        proxy.drop_reply(script(CIRCUIT_BREAKER))
        first = await store.admit(key, strategy)
        second = await store.admit(key, strategy)
        assert (first.state, second.state) == (HALF_OPEN, HALF_OPEN)
        assert first.allowed
        assert second.allowed
        assert not (await store.admit(key, strategy)).allowed


async def test_an_outcome_whose_reply_was_lost_is_not_told_twice(
    valkey_dsn: str, valkey: Any
) -> None:
    key, strategy = ("payments", None), replace(LONG, min_throughput=100)
    async with RespProxy(valkey.port) as proxy, breaker(proxy.dsn) as store:
        await store.admit(key, strategy)
        proxy.drop_reply(script(CIRCUIT_BREAKER))
        await store.record(key, strategy, False)
        assert [view.degraded for view in store.views()] == [True]
        await _back(store, key, strategy)
        assert [(view.calls, view.failures) for view in store.views()] == [(1, 1)]


# -- the server goes, and comes back ----------------------------------------------


async def test_a_limit_goes_on_without_its_server(
    own_valkey: ValkeyServer, caplog: pytest.LogCaptureFixture
) -> None:
    """At its rate, visibly, without asking, and back when the server is; one event each way."""
    caplog.set_level(logging.INFO, "forze.resilience")
    told: list[bool] = []
    async with limits(own_valkey.dsn, timeout=BRIEFLY, on_degraded=told.append) as store:
        for _ in range(4):
            assert not (await store.try_acquire(LIMIT_KEY, LIMIT)).degraded
        own_valkey.kill()
        calls = [store.try_acquire(LIMIT_KEY, LIMIT) for _ in range(200)]
        decisions = await asyncio.gather(*calls)
        assert sum(map(bool, decisions)) == 6, "it goes on from what it knew"
        assert all(each.degraded for each in decisions)
        assert store.degraded
        own_valkey.restart()
        async with asyncio.timeout(PATIENTLY):
            while (await store.try_acquire(LIMIT_KEY, LIMIT, 0)).degraded:
                await asyncio.sleep(0.01)
        assert (await store.try_acquire(LIMIT_KEY, LIMIT)).remaining == 9
    assert told == [True, False]
    said = [each.levelname for each in caplog.records if "rate limits" in each.message]
    assert said == ["WARNING", "INFO"]


async def test_a_server_that_hangs_is_not_asked_by_everybody(valkey_dsn: str, valkey: Any) -> None:
    async with RespProxy(valkey.port) as proxy, limits(proxy.dsn, timeout=0.05) as store:
        await store.try_acquire(LIMIT_KEY, LIMIT)
        asked = script(RATE_LIMIT)
        proxy.black_hole()
        began = time.monotonic()
        for _ in range(300):
            await store.try_acquire(("other", None), LIMIT)
        took = time.monotonic() - began
        await proxy.accept()
        await _undisturbed(store)
        assert not (await store.try_acquire(LIMIT_KEY, LIMIT)).degraded
        assert sum(map(asked, proxy.commands)) < 20
        assert took < 5


async def test_a_limit_may_refuse_without_its_server(own_valkey: ValkeyServer) -> None:
    async with limits(own_valkey.dsn, timeout=BRIEFLY) as store:
        careful = replace(LIMIT, fail="closed")
        assert await store.try_acquire(LIMIT_KEY, careful)
        own_valkey.kill()
        refused = await store.try_acquire(LIMIT_KEY, careful)
        assert (refused.allowed, refused.degraded) == (False, True)
        assert refused.retry_after is not None


async def test_each_of_n_replicas_keeps_its_part(own_valkey: ValkeyServer) -> None:
    async with limits(own_valkey.dsn, timeout=BRIEFLY, replicas_hint=3) as store:
        own_valkey.kill()
        decisions = [await store.try_acquire(("new", None), LIMIT) for _ in range(20)]
        assert sum(map(bool, decisions)) == 3


async def test_a_server_that_refuses_is_gone_without(own_valkey: ValkeyServer) -> None:
    """Out of memory: an error in time is a failure like any other."""
    async with (
        limits(own_valkey.dsn, timeout=BRIEFLY) as store,
        breaker(own_valkey.dsn, timeout=BRIEFLY) as circuits,
    ):
        own_valkey.ask("CONFIG", "SET", "maxmemory", "1")
        decision = await store.try_acquire(LIMIT_KEY, LIMIT)
        assert (decision.allowed, decision.degraded) == (True, True)
        assert (await circuits.admit(("payments", None), LONG)).allowed
        assert circuits.degraded
        own_valkey.ask("CONFIG", "SET", "maxmemory", "0")
        await _undisturbed(store)
        await _undisturbed(circuits)


async def test_a_key_of_another_type_concerns_nobody_else(
    valkey: ValkeyServer, caplog: pytest.LogCaptureFixture
) -> None:
    async with limits(valkey.dsn) as store:
        valkey.ask("SET", "forze:limit/login/user:1", "somebody else's")
        for _ in range(2):
            decision = await store.try_acquire(LIMIT_KEY, LIMIT)
            assert (decision.allowed, decision.degraded) == (True, True)
        assert not (await store.try_acquire(("other", None), LIMIT)).degraded
        assert not store.degraded
    assert [each.levelname for each in caplog.records if "rate limits" in each.message] == [
        "WARNING"
    ]


async def test_a_circuit_goes_on_without_its_server(own_valkey: ValkeyServer) -> None:
    """What was open is; what was closed can open; then the fleet's state holds again."""
    known, fresh = ("payments", "open"), ("payments", "closed")
    brief = replace(LONG, break_duration=0.3)
    told: list[bool] = []
    async with breaker(own_valkey.dsn, timeout=BRIEFLY, on_degraded=told.append) as store:
        for _ in range(2):
            await store.record(known, LONG, False, await store.admit(known, LONG))
        before = await store.admit(fresh, brief)
        own_valkey.kill()
        assert not (await store.admit(known, LONG)).allowed
        for _ in range(2):
            await store.record(fresh, brief, False, before)
        assert (await store.admit(fresh, brief)).state is OPEN
        assert not (await store.admit(known, LONG)).allowed
        assert all(view.degraded for view in store.views())
        own_valkey.restart()
        await _back(store, known, LONG)
        assert (await store.admit(fresh, brief)).state is OPEN, "its own break is finished first"
        async with asyncio.timeout(PATIENTLY):
            while (await store.admit(fresh, brief)).state is not CLOSED:
                await asyncio.sleep(0.01)
        assert not any(view.degraded for view in store.views())
    assert told == [True, False]


async def test_what_the_fleet_decided_meanwhile_holds(valkey_dsn: str, valkey: Any) -> None:
    key = ("payments", None)
    async with (
        RespProxy(valkey.port) as proxy,
        breaker(proxy.dsn) as store,
        breaker(valkey.dsn) as elsewhere,
    ):
        admission = await store.admit(key, LONG)
        proxy.refuse()
        proxy.cut()
        for _ in range(2):
            await store.record(key, LONG, False, admission)
        assert (await store.admit(key, LONG)).state is OPEN
        await elsewhere.force(key, LONG, BreakerState.DISABLED)
        await proxy.accept()
        await _back(store, key, LONG)
        assert (await store.admit(key, LONG)).state is BreakerState.DISABLED


async def test_a_flushed_server_forgets(valkey_dsn: str, valkey: ValkeyServer) -> None:
    known, key, strategy = ("refunds", None), ("payments", None), replace(LONG, break_duration=0.05)
    async with limits(valkey_dsn) as store, breaker(valkey_dsn) as circuits:
        assert (await store.try_acquire(LIMIT_KEY, LIMIT, 10)).remaining == 0
        for _ in range(2):
            await circuits.record(key, strategy, False, await circuits.admit(key, strategy))
        await circuits.force(known, LONG, BreakerState.CLOSED)
        before = await circuits.admit(known, LONG)
        valkey.ask("FLUSHALL")
        for _ in range(2):
            await circuits.record(known, LONG, False, before)
        assert (await circuits.admit(known, LONG)).state is OPEN, "no outcome is dropped"
        assert (await circuits.admit(key, strategy)).state is OPEN
        await asyncio.sleep(0.06)
        assert (await circuits.admit(key, strategy)).state is CLOSED
        assert (await store.try_acquire(("other", None), LIMIT)).remaining == 9
        for _ in range(2):
            await circuits.record(key, strategy, False, await circuits.admit(key, strategy))
        assert (await circuits.admit(key, strategy)).state is OPEN


async def test_a_message_that_was_missed_is_made_up_for(valkey_dsn: str, valkey: Any) -> None:
    """The connection broke while the circuit was opened elsewhere; the time to poll never comes."""
    key = ("payments", None)
    async with (
        RespProxy(valkey.port) as proxy,
        breaker(proxy.dsn, clock=ManualClock()) as store,
        breaker(valkey.dsn) as elsewhere,
    ):
        await store.admit(key, LONG)
        await asyncio.to_thread(_listened_to, valkey)
        proxy.refuse()
        proxy.cut()
        for _ in range(2):
            await elsewhere.record(key, LONG, False, await elsewhere.admit(key, LONG))
        await proxy.accept()
        async with asyncio.timeout(PATIENTLY):
            while (await store.admit(key, LONG)).state is not OPEN:
                await asyncio.sleep(0.01)
        assert not store.degraded


async def test_one_node_of_a_cluster_is_away(valkey_cluster: ValkeyCluster) -> None:
    """What stands on the others is the fleet's still."""
    keys = [("login", str(number)) for number in range(30)]
    async with limits(valkey_cluster.dsn, timeout=BRIEFLY) as store:
        assert all([await store.try_acquire(key, LIMIT) for key in keys])
        paused = valkey_cluster.primaries[0]
        paused.pause()
        try:
            away = [(await store.try_acquire(key, LIMIT)).degraded for key in keys]
            again = [(await store.try_acquire(key, LIMIT)).degraded for key in keys]
        finally:
            paused.resume()
        assert away == again
        assert 0 < sum(away) < 30


# -- event loops, forks, other clients ---------------------------------------------


def test_one_store_in_two_event_loops(valkey_dsn: str) -> None:
    client = RedisClient()
    store, circuits = redis_rate_limit_store(client), redis_circuit_breaker_store(client)
    key = ("payments", None)

    async def first() -> None:
        await client.connect(valkey_dsn)
        assert await store.try_acquire(LIMIT_KEY, LIMIT)
        await circuits.record(key, LONG, True, await circuits.admit(key, LONG))
        for _ in range(2):
            await circuits.record(key, LONG, False, await circuits.admit(key, LONG))

    async def second() -> None:
        assert (await store.try_acquire(LIMIT_KEY, LIMIT)).remaining == 8
        assert (await circuits.admit(key, LONG)).state is OPEN
        await client.close()

    asyncio.run(first())
    asyncio.run(second())


async def test_several_limits_are_taken_together(valkey_dsn: str, own_valkey: ValkeyServer) -> None:
    hourly, daily = (("hourly", "u"), LIMIT, 1), (("daily", "u"), replace(LIMIT, permits=5), 1)
    for dsn, falls in ((valkey_dsn, False), (own_valkey.dsn, True)):
        async with limits(dsn, timeout=BRIEFLY if falls else PATIENTLY) as store:
            if falls:
                own_valkey.kill()
            for _ in range(5):
                assert all(await store.try_acquire_all(hourly, daily))
            refused = await store.try_acquire_all(hourly, daily)
            assert [each.allowed for each in refused] == [True, False]
            assert (await store.try_acquire(*hourly[:2], 0)).remaining == 5, "taken from neither"
            with pytest.raises(ValidationError, match="differ"):
                await store.try_acquire_all(hourly, hourly)


async def test_a_client_of_many_servers_is_refused() -> None:
    for make in (redis_rate_limit_store, redis_circuit_breaker_store):
        with pytest.raises(ConfigurationError, match="one server"):
            make(RoutedRedisClient())


async def test_a_user_needs_no_more_rights_than_these(own_valkey: ValkeyServer) -> None:
    key = ("payments", "a")
    async with limits(own_valkey.dsn) as store, breaker(own_valkey.dsn) as circuits:
        rules = acl_rules(store, circuits)
    own_valkey.ask("ACL", "SETUSER", "app", "on", ">secret", *rules)
    config = RedisConfig(username="app", password="secret")
    async with await RedisClient().connect(own_valkey.dsn, config) as client:
        store, circuits = redis_rate_limit_store(client), redis_circuit_breaker_store(client)
        assert not (await store.try_acquire(LIMIT_KEY, LIMIT)).degraded
        assert not (await store.try_acquire(LIMIT_KEY, LIMIT, -1)).degraded
        for _ in range(2):
            await circuits.record(key, LONG, False, await circuits.admit(key, LONG))
        assert (await circuits.admit(key, LONG)).state is OPEN
        await asyncio.to_thread(_listened_to, own_valkey)
        assert not circuits.degraded
        elsewhere = redis_rate_limit_store(client, namespace="other")
        assert (await elsewhere.try_acquire(LIMIT_KEY, LIMIT)).degraded


async def test_a_closed_client_is_a_server_that_is_away(
    valkey_dsn: str, caplog: pytest.LogCaptureFixture
) -> None:
    """What ends after the client was closed is not failed by it; then it finds another server."""
    client = await RedisClient().connect(valkey_dsn)
    store, circuits = redis_rate_limit_store(client), redis_circuit_breaker_store(client)
    admission = await circuits.admit(("payments", None), LONG)
    await circuits.record(("payments", None), LONG, True, admission)
    await client.close()
    await asyncio.sleep(0.06)
    assert not caplog.records, "an outcome that waits to be told is no reason to complain"
    assert (await store.try_acquire(LIMIT_KEY, LIMIT)).degraded
    await circuits.record(("payments", None), LONG, False, admission)
    with pytest.raises((BackendError, ConfigurationError)):
        await circuits.force(("payments", None), LONG, BreakerState.DISABLED)
    assert store.degraded
    await client.connect(valkey_dsn)
    await _undisturbed(store)
    await client.close()


async def test_many_routes_are_one_subscription_and_are_forgotten(
    valkey: ValkeyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("forze_redis.circuit_breaker._SWEEP", 32)
    clock, brief = ManualClock(), replace(LONG, min_throughput=1, break_duration=1.0)
    async with breaker(valkey.dsn, clock=clock) as store:
        routes = [("payments", str(number)) for number in range(32)]
        await asyncio.gather(*(store.admit(route, brief) for route in routes))
        await store.record(routes[0], brief, False)
        assert [view.state for view in store.views()].count(OPEN) == 1
        await asyncio.to_thread(_listened_to, valkey)
        assert valkey.ask("PUBSUB", "SHARDCHANNELS").startswith(b"*1\r\n")
        clock.advance(timedelta(minutes=11))
        assert (await store.admit(("payments", "new"), brief)).allowed
        assert [view.key for view in store.views()] == [("payments", "new")]


# -- staging -----------------------------------------------------------------------


@asynccontextmanager
async def limits(dsn: str, **options: Any) -> AsyncIterator[RedisRateLimitStore]:
    """The limits of one more process."""
    async with await RedisClient().connect(dsn) as client:
        yield redis_rate_limit_store(client, **{"timeout": PATIENTLY, **options})


@asynccontextmanager
async def breaker(dsn: str, **options: Any) -> AsyncIterator[RedisCircuitBreakerStore]:
    """The circuits of one more process."""
    async with await RedisClient().connect(dsn) as client:
        yield redis_circuit_breaker_store(client, **{"timeout": PATIENTLY, **options})


async def _undisturbed(store: RedisRateLimitStore | RedisCircuitBreakerStore) -> None:
    """Return when the server is back, though nobody calls."""
    async with asyncio.timeout(PATIENTLY):
        while store.degraded:
            await asyncio.sleep(0.01)


async def _let_through(
    store: RedisCircuitBreakerStore, key: tuple[str, str | None], strategy: CircuitBreakerStrategy
) -> Any:
    async with asyncio.timeout(PATIENTLY):
        while not (admission := await store.admit(key, strategy)).allowed:
            await asyncio.sleep(0.01)
    assert admission.state is HALF_OPEN
    return admission


async def _back(
    store: RedisCircuitBreakerStore, key: tuple[str, str | None], strategy: CircuitBreakerStrategy
) -> None:
    """Return when the server is asked again."""
    async with asyncio.timeout(PATIENTLY):
        while store.degraded:
            await asyncio.sleep(0.01)
            await store.admit(key, strategy)
