"""A worker process for the tests: begins to load a cached value, and never ends.

``python cached_worker.py DSN`` prints ``loading`` once its load is under way.
"""

from __future__ import annotations

import asyncio
import sys
from typing import Any

from forze.application.contracts.cache import CacheSpec
from forze.application.execution import DepsPlan, ExecutionRuntime, LifecyclePlan
from forze.application.integrations.cached import cached
from forze_redis import RedisClient, RedisDepsModule, redis_lifecycle_step


async def main(dsn: str) -> None:
    """Load."""
    runtime = ExecutionRuntime(
        deps=DepsPlan.from_modules(
            RedisDepsModule(client=RedisClient(), caches={"prices": {"namespace": "app:prices"}})
        ),
        lifecycle=LifecyclePlan.from_steps(redis_lifecycle_step(dsn=dsn)),
    )

    @cached(60, ctx=runtime.get_context, cache=CacheSpec(name="prices"), tags="all", name="price")
    async def price(product: int, currency: str = "EUR") -> Any:
        print("loading", flush=True)
        await asyncio.Event().wait()
        return 0

    async with runtime.scope():
        await price(1)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
