"""Connects the Redis client before the first request and closes it after the last.

A client of one server and one of many have a step each, and one client has one step.
"""

from __future__ import annotations

from forze.application.execution.context import ExecutionContext
from forze.application.execution.lifecycle import LifecycleStep
from forze.errors import ConfigurationError
from forze_redis.client import RedisClient, RedisClientDepKey
from forze_redis.routed import Endpoints, RoutedRedisClient
from forze_redis.wire.config import RedisConfig


def redis_lifecycle_step(
    *,
    dsn: str,
    config: RedisConfig | dict[str, object] | None = None,
    client: RedisClient | None = None,
    id: str = "redis",
) -> LifecycleStep:
    """A step that connects ``client`` (default: the registered one) to ``dsn``.

    Raises what :meth:`RedisClient.connect` raises, when the runtime's scope is entered; a
    ``ConfigurationError`` for a ``RoutedRedisClient``.
    """

    def chosen(ctx: ExecutionContext) -> RedisClient:
        return client if client is not None else ctx.provide(RedisClientDepKey)

    async def startup(ctx: ExecutionContext) -> None:
        mine = chosen(ctx)
        if isinstance(mine, RoutedRedisClient):
            raise ConfigurationError(
                f"lifecycle step {id!r} connects a client to one server, and this client is a "
                "RoutedRedisClient; give it routed_redis_lifecycle_step(dsn_of=...) and no other",
                name=id,
            )
        _refuse_connected(mine)
        await mine.connect(dsn, config)

    async def shutdown(ctx: ExecutionContext) -> None:
        await chosen(ctx).close()

    return LifecycleStep(id=id, startup=startup, shutdown=shutdown)


def routed_redis_lifecycle_step(
    *,
    dsn_of: Endpoints,
    config: RedisConfig | dict[str, object] | None = None,
    client: RoutedRedisClient | None = None,
    id: str = "routed_redis",
) -> LifecycleStep:
    """A step that gives ``client`` (default: the registered one) the DSN of each route.

    ``dsn_of`` is a mapping, or a function of the route, async or not. Nothing is connected at
    start. A ``ConfigurationError`` for a client that is no ``RoutedRedisClient``.
    """

    def chosen(ctx: ExecutionContext) -> RedisClient:
        return client if client is not None else ctx.provide(RedisClientDepKey)

    async def startup(ctx: ExecutionContext) -> None:
        mine = chosen(ctx)
        if not isinstance(mine, RoutedRedisClient):
            raise ConfigurationError(
                f"lifecycle step {id!r} is for a RoutedRedisClient, and this is a RedisClient; "
                "give it redis_lifecycle_step(dsn=...) and no other, or register a "
                "RoutedRedisClient",
                name=id,
            )
        _refuse_connected(mine)
        await mine.connect(dsn_of, config)

    async def shutdown(ctx: ExecutionContext) -> None:
        await chosen(ctx).close()

    return LifecycleStep(id=id, startup=startup, shutdown=shutdown)


def _refuse_connected(client: RedisClient) -> None:
    if client.connected:
        raise ConfigurationError(
            "the Redis client is connected already, by another runtime perhaps; give each "
            "runtime a client of its own"
        )
