"""The application: two counters and their wiring. Run, it prints ids until it is killed."""

from __future__ import annotations

import asyncio
import sys
from datetime import timedelta

from forze.application.contracts.counter import CounterSpec
from forze.application.execution import DepsPlan, ExecutionRuntime, LifecyclePlan
from forze_redis import RedisClient, RedisCounterConfig, RedisDepsModule, redis_lifecycle_step

NAMESPACE = "recipe:counters"
ORDERS = CounterSpec(name="orders", operation_ttl=timedelta(minutes=1))
STOCK = CounterSpec(name="stock", minimum=0)


def build_runtime(redis_dsn: str) -> ExecutionRuntime:
    """One process's worth of the application."""
    return ExecutionRuntime(
        deps=DepsPlan.from_modules(
            RedisDepsModule(
                client=RedisClient(),
                counters={
                    "orders": RedisCounterConfig(namespace=f"{NAMESPACE}:orders"),
                    "stock": RedisCounterConfig(namespace=f"{NAMESPACE}:stock"),
                },
            )
        ),
        lifecycle=LifecyclePlan.from_steps(redis_lifecycle_step(dsn=redis_dsn)),
        specs=[ORDERS, STOCK],
    )


async def work(redis_dsn: str) -> None:
    """Print ids, one after the other."""
    async with build_runtime(redis_dsn).scope() as ctx:
        ids = ctx.counter(ORDERS).allocator(block=100, suffix="ids")
        while True:
            print(await ids.next(), flush=True)


if __name__ == "__main__":
    asyncio.run(work(sys.argv[1]))
