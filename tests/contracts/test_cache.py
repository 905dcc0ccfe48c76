"""The batteries of the cache, on every cache there is."""

from __future__ import annotations

import pytest

from forze.testing.batteries import (
    CacheBehaviour,
    CacheFailures,
    CacheOutage,
    InspectionBehaviour,
    PointerBehaviour,
    PointerFailures,
    RefreshBehaviour,
    SlidingBehaviour,
)

SERVERS = ["valkey", "redis7", "valkey_cluster"]
everywhere = pytest.mark.parametrize("cache_server", ["memory", *SERVERS], indirect=True)
servers = pytest.mark.parametrize("cache_server", SERVERS, indirect=True)


@everywhere
class TestCache(CacheBehaviour):
    pass


@everywhere
class TestCacheFailures(CacheFailures):
    pass


@servers
class TestCacheOutage(CacheOutage):
    pass


@everywhere
class TestPointers(PointerBehaviour):
    pass


@everywhere
class TestPointerFailures(PointerFailures):
    pass


@everywhere
class TestInspection(InspectionBehaviour):
    pass


@everywhere
class TestRefresh(RefreshBehaviour):
    pass


@everywhere
class TestSliding(SlidingBehaviour):
    pass
