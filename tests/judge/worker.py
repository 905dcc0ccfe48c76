"""One process of the run: an application of its own under the random workload.

Started by ``run``: says ``ready``, waits for a line, says how far it is, ends by itself.
"""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

from tests.faults.world import NAMESPACE, product_spec
from tests.judge.orders import Orders
from tests.judge.record import log_file
from tests.judge.workload import Workload

from forze.application.contracts.cache import L1Spec
from forze.application.execution import DepsRegistry, ExecutionRuntime, LifecyclePlan
from forze_postgres import (
    PostgresClient,
    PostgresDepsModule,
    PostgresDocumentConfig,
    PostgresLifecycleModule,
)
from forze_redis import (
    RedisCacheConfig,
    RedisClient,
    RedisConfig,
    RedisDepsModule,
    redis_lifecycle_step,
)

L1_TTL = timedelta(seconds=60)
SLIDING_TTL = timedelta(seconds=61)
EAGER = 10_000.0
"""For a load of milliseconds and a lifetime of minutes: some hits in a hundred refresh."""

PROGRESS_SECONDS = 0.1
RELATION = ("public", "products")


def cache_options(orders: Orders) -> dict[str, Any]:
    """What the process asks of its cache: they differ, as they do in the middle of a deploy."""
    refreshing, sliding = divmod(orders.process, 2)
    options: dict[str, Any] = {}
    if orders.capacity:
        options["l1"] = L1Spec(ttl=L1_TTL, capacity=orders.capacity)
    if sliding:
        options["sliding_ttl"] = SLIDING_TTL
    if refreshing:
        options["early_refresh_beta"] = EAGER
        options["early_refresh_background"] = bool(sliding)
    return options


@asynccontextmanager
async def application(orders: Orders) -> AsyncIterator[Workload]:
    """The application of this process, running, and the workload on it."""
    spec = product_spec(**cache_options(orders))
    postgres, redis = PostgresClient(), RedisClient()
    documents = PostgresDocumentConfig(read=RELATION, write=RELATION)
    cache = RedisCacheConfig(
        namespace=NAMESPACE, invalidation_push=bool(orders.push), on_outage="refuse"
    )
    runtime = ExecutionRuntime(
        deps=DepsRegistry.from_modules(
            PostgresDepsModule(
                client=postgres, rw_documents={"products": documents}, tx={"products"}
            ),
            RedisDepsModule(client=redis, caches={"products": cache}),
        ),
        lifecycle=LifecyclePlan.from_modules(
            PostgresLifecycleModule(client=postgres, dsn=orders.postgres)
        ).with_steps(
            redis_lifecycle_step(dsn=orders.redis, config=RedisConfig(heartbeat=orders.heartbeat))
        ),
        specs=[spec],
    )
    with log_file(orders.logs, f"worker-{orders.process}").open("x") as log:
        async with runtime.scope() as ctx:
            yield Workload(orders, ctx, spec, log)


async def work(orders: Orders) -> None:
    """Get ready, wait for the word, work, and say how far it is."""
    logging.getLogger("forze").setLevel(logging.ERROR)  # what it would warn of is done on purpose
    async with application(orders) as workload:
        print("ready", flush=True)
        if not await asyncio.to_thread(sys.stdin.readline):
            return  # nobody is there any more
        progress = asyncio.create_task(_progress(workload))
        try:
            await workload.run()
        finally:
            progress.cancel()


async def _progress(workload: Workload) -> None:
    while True:
        print(workload.done, flush=True)
        await asyncio.sleep(PROGRESS_SECONDS)


if __name__ == "__main__":
    asyncio.run(work(Orders.parse()))
