"""The application: one idempotent operation and its wiring. Run, it is a worker."""

from __future__ import annotations

import asyncio
import logging
import sys
from datetime import timedelta

from forze.application.contracts.idempotency import IdempotencySnapshot, IdempotencySpec
from forze.application.execution import DepsPlan, ExecutionRuntime, LifecyclePlan
from forze_redis import RedisClient, RedisDepsModule, RedisIdempotencyConfig, redis_lifecycle_step

PAYMENTS = IdempotencySpec(
    name="payments",
    lease=timedelta(seconds=1),  # short, so that the story is; the default is 30 seconds
    wait=timedelta(seconds=5),
)


def build_runtime(redis_dsn: str) -> ExecutionRuntime:
    """One process's worth of the application."""
    return ExecutionRuntime(
        deps=DepsPlan.from_modules(
            RedisDepsModule(
                client=RedisClient(),
                idempotency=RedisIdempotencyConfig(namespace="recipe:idempotency"),
            )
        ),
        lifecycle=LifecyclePlan.from_steps(redis_lifecycle_step(dsn=redis_dsn)),
        specs=[PAYMENTS],
    )


async def work(redis_dsn: str, key: str) -> None:
    """Claim the key and say so; when told, finish, and say what became of the answer."""
    async with (
        build_runtime(redis_dsn).scope() as ctx,
        ctx.idempotency(PAYMENTS).claim("charge", key, "h") as claim,
    ):
        print(claim.generation, flush=True)
        await asyncio.to_thread(sys.stdin.readline)
        told = await claim.complete(IdempotencySnapshot(200, None, b"the worker's"))
        print(told.value, flush=True)


if __name__ == "__main__":
    logging.getLogger("forze").setLevel(logging.CRITICAL)  # the story tells it
    asyncio.run(work(*sys.argv[1:]))
