"""Connects the Redis client before the first request and closes it after the last."""

from __future__ import annotations

from forze.application.execution.context import ExecutionContext
from forze.application.execution.lifecycle import LifecycleStep
from forze.errors import ConfigurationError
from forze_redis.client import RedisClient, RedisClientDepKey
from forze_redis.wire.config import RedisConfig


def redis_lifecycle_step(
    *,
    dsn: str,
    config: RedisConfig | dict[str, object] | None = None,
    client: RedisClient | None = None,
    id: str = "redis",
) -> LifecycleStep:
    """A step that connects ``client`` (default: the registered one) to ``dsn``.

    Raises what :meth:`RedisClient.connect` raises, when the runtime's scope is entered.
    """

    def chosen(ctx: ExecutionContext) -> RedisClient:
        return client if client is not None else ctx.provide(RedisClientDepKey)

    async def startup(ctx: ExecutionContext) -> None:
        mine = chosen(ctx)
        if mine.connected:
            raise ConfigurationError(
                "the Redis client is connected already, by another runtime perhaps; give each "
                "runtime a RedisClient of its own"
            )
        await mine.connect(dsn, config)

    async def shutdown(ctx: ExecutionContext) -> None:
        await chosen(ctx).close()

    return LifecycleStep(id=id, startup=startup, shutdown=shutdown)
