"""The batteries of rate limits and circuit breakers, in one process and on every server."""

from __future__ import annotations

from contextlib import AsyncExitStack
from datetime import timedelta
from typing import Any

import pytest
import redis

from forze.application.integrations.resilience import (
    LocalCircuitBreakerStore,
    LocalRateLimitStore,
)
from forze.testing.batteries import (
    BreakerBehaviour,
    BreakerFailures,
    RateLimitBehaviour,
    RateLimitFailures,
    ResilienceLeg,
)
from forze.testing.clock import ManualClock
from forze.testing.cluster import Cluster
from forze.testing.servers import RespServer
from forze_redis import RedisClient, redis_circuit_breaker_store, redis_rate_limit_store

everywhere = pytest.mark.parametrize(
    "cache_server", ["memory", "valkey", "redis7", "valkey_cluster"], indirect=True
)
PATIENTLY = timedelta(seconds=5)


@pytest.fixture
async def resilience_leg(
    stack: AsyncExitStack, cache_server: RespServer | Cluster | None
) -> ResilienceLeg:
    """Two processes over one server."""
    clock = ManualClock()
    if cache_server is None:
        limits, breakers = LocalRateLimitStore(clock), LocalCircuitBreakerStore(clock)

        async def advance(by: timedelta) -> None:
            clock.advance(by)

        return ResilienceLeg(
            limits=limits,
            other_limits=limits,
            breakers=breakers,
            other_breakers=breakers,
            pass_time=advance,
        )
    server = cache_server
    clients = [RedisClient(), RedisClient()]
    for client in clients:
        await client.connect(server.dsn)
        stack.push_async_callback(client.close)

    async def pass_time(by: timedelta) -> None:
        clock.advance(by)
        for node in server.primaries if isinstance(server, Cluster) else (server,):
            shift(node, by)

    one, other = clients
    return ResilienceLeg(
        limits=redis_rate_limit_store(one, timeout=PATIENTLY, clock=clock),
        other_limits=redis_rate_limit_store(other, timeout=PATIENTLY, clock=clock),
        breakers=redis_circuit_breaker_store(one, timeout=PATIENTLY, clock=clock),
        other_breakers=redis_circuit_breaker_store(other, timeout=PATIENTLY, clock=clock),
        pass_time=pass_time,
    )


def shift(server: RespServer, by: timedelta, width: timedelta = timedelta(seconds=1)) -> None:
    """Make buckets and circuits on a server older; ``width`` is that of a window's bucket."""
    microseconds, passed = by // timedelta(microseconds=1), by // width
    with redis.Redis.from_url(server.dsn, decode_responses=True) as client:
        for key in client.scan_iter():
            left = client.pttl(key)
            if 0 <= left <= microseconds // 1000:
                client.delete(key)
                continue
            if left > 0:
                client.pexpire(key, left - microseconds // 1000)
            fields: dict[Any, Any] = client.hgetall(key)
            older: dict[Any, Any] = {}
            for field, value in fields.items():
                if field in ("at", "until") and value:
                    older[field] = str(int(value) - microseconds)
                elif field == "probes":
                    leases = (each.split("=") for each in value.split())
                    older[field] = " ".join(f"{p}={int(e) - microseconds}" for p, e in leases)
                elif field.isdigit():
                    bucket, _, counts = value.partition(" ")
                    older[str((int(bucket) - passed) % 10)] = f"{int(bucket) - passed} {counts}"
            if older:
                client.hset(key, mapping=older)
            if gone := [each for each in fields if each.isdigit() and each not in older]:
                client.hdel(key, *gone)


@everywhere
class TestRateLimits(RateLimitBehaviour):
    pass


@everywhere
class TestRateLimitFailures(RateLimitFailures):
    pass


@everywhere
class TestBreakers(BreakerBehaviour):
    pass


@everywhere
class TestBreakerFailures(BreakerFailures):
    pass
