"""The batteries of counters, on every backend there is."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AsyncExitStack
from datetime import timedelta
from typing import Any

import pytest
from tests.contracts.resources import pass_time_on, resources, trips_of

from forze.testing.batteries import (
    AllocatorBehaviour,
    AllocatorFailures,
    CounterBehaviour,
    CounterFailures,
    CounterLeg,
    CounterOutage,
)
from forze.testing.clock import ManualClock
from forze.testing.cluster import Cluster
from forze.testing.servers import RespServer

COUNTERS: dict[str, Mapping[str, Any]] = {
    "orders": {"namespace": "test:seq:orders"},
    "invoices": {"namespace": "test:seq:invoices"},
    "stock": {"namespace": "test:seq:stock"},
    "wide_stock": {"namespace": "test:seq:stock"},
    "owned_orders": {"namespace": "test:seq:owned", "tenant_aware": True},
}

SERVERS = ["valkey", "redis7", "valkey_cluster"]
everywhere = pytest.mark.parametrize("cache_server", ["memory", *SERVERS], indirect=True)
servers = pytest.mark.parametrize("cache_server", SERVERS, indirect=True)


@pytest.fixture
async def counter_leg(
    request: pytest.FixtureRequest,
    stack: AsyncExitStack,
    cache_server: RespServer | Cluster | None,
) -> CounterLeg:
    """Two processes over one server; they give up early where it will be taken away."""
    clock = ManualClock()
    own = request.cls.__name__.endswith("Outage")
    ctx, other = await resources(
        stack, cache_server, clock, timeout=0.5 if own else None, counters=COUNTERS
    )

    async def pass_time(by: timedelta) -> None:
        clock.advance(by)
        pass_time_on(cache_server, by)

    return CounterLeg(ctx=ctx, other=other, pass_time=pass_time, trips=trips_of(ctx))


@everywhere
class TestCounters(CounterBehaviour):
    pass


@everywhere
class TestCounterFailures(CounterFailures):
    pass


@everywhere
class TestAllocators(AllocatorBehaviour):
    pass


@everywhere
class TestAllocatorFailures(AllocatorFailures):
    pass


@servers
class TestCounterOutage(CounterOutage):
    pass
