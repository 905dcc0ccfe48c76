"""What a route asks for: the client of :data:`cachemanager`, or a service on it.

Override :func:`get_redis_client` in ``app.dependency_overrides`` and both follow.
"""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import Depends
from redis.asyncio import Redis

from fastapi_rc.manager import cachemanager
from fastapi_rc.service import CacheService


async def get_redis_client() -> Redis:
    """The client of :data:`cachemanager`; HTTP 503 where that is not initialised."""
    return cachemanager.client


RedisClient = Annotated[Redis, Depends(get_redis_client)]
"""``redis: RedisClient`` in a route's signature is the redis-py client."""


async def get_cache_service(redis: RedisClient) -> CacheService[Any]:
    """A service under the namespace ``default``, made for the request; it costs nothing."""
    return CacheService(redis, namespace="default")


CacheServiceDep = Annotated[CacheService[Any], Depends(get_cache_service)]
"""``cache: CacheServiceDep`` in a route's signature is :func:`get_cache_service`."""
