"""The connections to Redis: async for requests, sync for everything else, one limit over both.

Settings come from the environment or .env: REDIS_CONNECTION_URL, REDIS_POOL_SIZE,
REDIS_SOCKET_TIMEOUT, and REDIS_DEFAULT_TTL for values that are stored without `ex`.
"""

from forze_redis.manager import RedisManager

redis_manager = RedisManager()
