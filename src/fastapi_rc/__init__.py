"""Redis caching for FastAPI: a manager, a cache service, dependencies, and the keys behind them.

::

    manager.py       CacheManager and cachemanager: opening, closing, substituting the client
    dependencies.py  what a route asks for
    service.py       CacheService: cache-aside by namespace
    keys.py          names as keys, and the globs that match them
    values.py        values as bodies; typenames.py: how a body says of which type it is
    ttl.py           lifetimes and their jitter
    flights.py       one factory for all who ask; lease.py: over processes
    calls.py         the service's calls, which end in time and never raise
    budget.py        the manager's client, whose commands end in time
    circuit.py       whether Redis is believed to be there
    errors.py        what is raised
"""

try:
    import fastapi as _fastapi  # noqa: F401
    import hiredis as _hiredis  # noqa: F401
    import redis as _redis  # noqa: F401
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f"fastapi_rc needs {error.name}, of an extra: pip install 'forze[redis,fastapi]'",
        name=error.name,
    ) from error

from fastapi_rc.dependencies import (
    CacheServiceDep,
    RedisClient,
    get_cache_service,
    get_redis_client,
)
from fastapi_rc.errors import (
    CacheUnavailable,
    FactoryCycle,
    InvalidName,
    InvalidTtl,
    ValueNotCacheable,
)
from fastapi_rc.keys import build_cache_key, invalidate_pattern
from fastapi_rc.manager import CacheManager, cachemanager
from fastapi_rc.service import CacheService
from fastapi_rc.ttl import NO_EXPIRY, get_ttl_with_jitter

__all__ = [
    "NO_EXPIRY",
    "CacheManager",
    "CacheService",
    "CacheServiceDep",
    "CacheUnavailable",
    "FactoryCycle",
    "InvalidName",
    "InvalidTtl",
    "RedisClient",
    "ValueNotCacheable",
    "build_cache_key",
    "cachemanager",
    "get_cache_service",
    "get_redis_client",
    "get_ttl_with_jitter",
    "invalidate_pattern",
]
