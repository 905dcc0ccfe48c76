"""The battery of cached functions, on every cache there is."""

from __future__ import annotations

import pytest

from forze.testing.batteries import CachedBehaviour, CachedFailures

SERVERS = ["valkey", "redis7", "valkey_cluster"]
everywhere = pytest.mark.parametrize("cache_server", ["memory", *SERVERS], indirect=True)


@everywhere
class TestCachedFunctions(CachedBehaviour):
    pass


@everywhere
class TestCachedFunctionFailures(CachedFailures):
    pass
