"""Redis and Valkey for forze: the client, caches, and their lifecycle."""

try:
    import hiredis as _hiredis  # noqa: F401
    import redis as _redis  # noqa: F401
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f"forze_redis needs {error.name}, of an extra: pip install 'forze[redis]'",
        name=error.name,
    ) from error

from typing import TYPE_CHECKING

from forze_redis.acl import acl_rules
from forze_redis.circuit_breaker import RedisCircuitBreakerStore, redis_circuit_breaker_store
from forze_redis.client import RedisClient, RedisClientDepKey, RedisHealth
from forze_redis.config import (
    RedisCacheConfig,
    RedisCounterConfig,
    RedisDistributedLockConfig,
    RedisIdempotencyConfig,
    RedisSearchSnapshotConfig,
)
from forze_redis.lifecycle import redis_lifecycle_step, routed_redis_lifecycle_step
from forze_redis.module import RedisDepsModule
from forze_redis.rate_limit import RedisRateLimitStore, redis_rate_limit_store
from forze_redis.routed import RoutedRedisClient
from forze_redis.wire.config import RedisConfig
from forze_redis.wire.scripts import Script

if TYPE_CHECKING:
    from forze_redis.manager import RedisManager, RedisManagerSettings

__all__ = [
    "RedisCacheConfig",
    "RedisCircuitBreakerStore",
    "RedisClient",
    "RedisClientDepKey",
    "RedisConfig",
    "RedisCounterConfig",
    "RedisDepsModule",
    "RedisDistributedLockConfig",
    "RedisHealth",
    "RedisIdempotencyConfig",
    "RedisManager",
    "RedisManagerSettings",
    "RedisRateLimitStore",
    "RedisSearchSnapshotConfig",
    "RoutedRedisClient",
    "Script",
    "acl_rules",
    "redis_circuit_breaker_store",
    "redis_lifecycle_step",
    "redis_rate_limit_store",
    "routed_redis_lifecycle_step",
]


def __getattr__(name: str) -> object:
    """The manager and its settings, which load pydantic-settings, when they are asked for."""
    if name in ("RedisManager", "RedisManagerSettings"):
        from forze_redis import manager

        return getattr(manager, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
