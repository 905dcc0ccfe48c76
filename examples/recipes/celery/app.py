"""What the web process and the worker share: the runtime, and what is done with it."""

from __future__ import annotations

import asyncio
import os
from datetime import timedelta

from forze.application.contracts.counter import CounterSpec
from forze.application.contracts.dlock import DistributedLockSpec
from forze.application.contracts.idempotency import IdempotencySpec
from forze.application.execution import DepsPlan, ExecutionRuntime, LifecyclePlan
from forze.application.integrations.cached import cached
from forze_redis import RedisClient, RedisDepsModule, redis_lifecycle_step

SLOW_SECONDS = 0.3

COUNTED = CounterSpec(name="counted")
REPORTS = DistributedLockSpec(name="reports", ttl=timedelta(seconds=5))
# Whoever died with a claim in hand holds up its repetition for as long as the lease.
PAYMENTS = IdempotencySpec(name="payments", lease=timedelta(seconds=1), wait=timedelta(seconds=10))


def build_runtime() -> ExecutionRuntime:
    """One process's worth of the application."""
    return ExecutionRuntime(
        deps=DepsPlan.from_modules(
            RedisDepsModule(
                client=RedisClient(),
                caches={"cached": {"namespace": "recipe:cached"}},
                counters={"counted": {"namespace": "recipe:counted"}},
                dlocks={"reports": {"namespace": "recipe:locks"}},
                idempotency={"namespace": "recipe:payments"},
            )
        ),
        lifecycle=LifecyclePlan.from_steps(redis_lifecycle_step(dsn=os.environ["REDIS_DSN"])),
        specs=[COUNTED, REPORTS, PAYMENTS],
    )


runtime = build_runtime()  # opened by the web process's lifespan, or by a worker process's portal


@cached(60, ctx=runtime.get_context)
async def price_of(product: str) -> int:
    """What takes long to find out."""
    await runtime.get_context().counter(COUNTED).incr("prices")
    await asyncio.sleep(SLOW_SECONDS)
    return len(product) * 10
