"""The batteries of the cache over a routed client, whose one route leads to one server.

What is several about it (tenants, servers) is in ``tests/faults/test_routed_documents.py``; here
it has to be as good as a cache over a plain client.
"""

from __future__ import annotations

from contextlib import AsyncExitStack
from datetime import timedelta
from typing import Any

import pytest
from tests.contracts.conftest import (
    CACHES,
    MAX_VALUE_BYTES,
    MEMORY_DOCUMENTS,
    ages,
    running,
)

from forze.application.contracts.cache import CacheDepKey, CachePort, CacheSpec
from forze.application.contracts.deps import Resolver
from forze.application.execution import Deps
from forze.testing.batteries import (
    CacheBehaviour,
    CacheFailures,
    CacheLeg,
    CacheOutage,
    InspectionBehaviour,
    PointerBehaviour,
    PointerFailures,
    RefreshBehaviour,
    SlidingBehaviour,
)
from forze.testing.cluster import Cluster
from forze.testing.servers import RespServer
from forze_memory import MemoryDepsModule
from forze_redis import (
    RedisCacheConfig,
    RedisClientDepKey,
    RoutedRedisClient,
    routed_redis_lifecycle_step,
)
from forze_redis.routed.cache import RoutedCache
from forze_redis.routed.pointers import RoutedPointers

pytestmark = pytest.mark.parametrize(
    "cache_server", ["valkey", "redis7", "valkey_cluster"], indirect=True
)


class Everyones(RoutedCache):
    """For the batteries, whose pointers have no tenant: there is one route for all."""

    def pointers(self, fingerprint: str) -> RoutedPointers:
        return RoutedPointers(self._client, self._keys, self._config, self._spec, fingerprint)


def module(client: RoutedRedisClient) -> Any:
    """The caches of the batteries, over a routed client."""

    def cache(ctx: Resolver, spec: CacheSpec) -> CachePort:
        return Everyones(client, spec, RedisCacheConfig(**CACHES[spec.name]), ctx)

    return lambda: Deps(plain={RedisClientDepKey: client, CacheDepKey: cache})


@pytest.fixture
async def cache_leg(stack: AsyncExitStack, cache_server: RespServer | Cluster) -> CacheLeg:
    """Two processes over one cache."""
    contexts = []
    for _ in range(2):
        client = RoutedRedisClient(
            route=lambda _: "one", clustered=isinstance(cache_server, Cluster)
        )
        step = routed_redis_lifecycle_step(dsn_of={"one": cache_server.dsn})
        database = MemoryDepsModule(documents=MEMORY_DOCUMENTS, caches={})
        contexts.append(await running(stack, database, module(client), steps=(step,)))
        async with client.hold():  # opening it has longer than a cached read has
            pass

    async def pass_time(by: timedelta) -> None:
        ages(cache_server, by)

    return CacheLeg(
        ctx=contexts[0], other=contexts[1], max_value_bytes=MAX_VALUE_BYTES, pass_time=pass_time
    )


class TestCache(CacheBehaviour):
    pass


class TestCacheFailures(CacheFailures):
    pass


class TestCacheOutage(CacheOutage):
    pass


class TestPointers(PointerBehaviour):
    pass


class TestInspection(InspectionBehaviour):
    pass


class TestPointerFailures(PointerFailures):
    pass


class TestRefresh(RefreshBehaviour):
    pass


class TestSliding(SlidingBehaviour):
    pass
