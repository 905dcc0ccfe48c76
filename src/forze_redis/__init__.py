"""Redis and Valkey for forze: the client, caches, and their lifecycle."""

from forze_redis.client import RedisClient, RedisClientDepKey, RedisHealth
from forze_redis.config import RedisCacheConfig
from forze_redis.lifecycle import redis_lifecycle_step
from forze_redis.module import RedisDepsModule
from forze_redis.wire.config import RedisConfig

__all__ = [
    "RedisCacheConfig",
    "RedisClient",
    "RedisClientDepKey",
    "RedisConfig",
    "RedisDepsModule",
    "RedisHealth",
    "redis_lifecycle_step",
]
