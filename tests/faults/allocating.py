"""A process that takes ids of a counter and prints each, until it is killed.

::

    python -m tests.faults.allocating DSN BLOCK
    python -m tests.faults.allocating DSN BLOCK fork

With ``fork`` it takes a few, forks with most of a block in hand, and both print on: the
parent ``parent ID``, the child ``child ID``, a hundred each.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from forze.application.contracts.counter import CounterSpec, IdAllocator
from forze.application.execution import (
    DepsPlan,
    ExecutionContext,
    ExecutionRuntime,
    LifecyclePlan,
)
from forze_redis import RedisClient, RedisDepsModule, redis_lifecycle_step

ORDERS = CounterSpec(name="orders")
NAMESPACE = "app:seq:orders"


@asynccontextmanager
async def counting(dsn: str) -> AsyncIterator[ExecutionContext]:
    """A context that answers ``ORDERS``."""
    runtime = ExecutionRuntime(
        deps=DepsPlan.from_modules(
            RedisDepsModule(client=RedisClient(), counters={"orders": {"namespace": NAMESPACE}})
        ),
        lifecycle=LifecyclePlan.from_steps(redis_lifecycle_step(dsn=dsn)),
    )
    async with runtime.scope() as ctx:
        yield ctx


async def allocate(dsn: str, block: int) -> None:
    """Print ids for ever, a few tasks at once."""
    async with counting(dsn) as ctx:
        ids = ctx.counter(ORDERS).allocator(block)

        async def take() -> None:
            while True:
                print(await ids.next(), flush=True)
                await asyncio.sleep(0)

        await asyncio.gather(*(take() for _ in range(3)))


async def allocate_and_fork(dsn: str, block: int) -> None:
    """Fork with a block in hand."""
    async with counting(dsn) as ctx:
        ids = ctx.counter(ORDERS).allocator(block)
        for _ in range(3):
            print("parent", await ids.next(), flush=True)
        child = os.fork()
        if child == 0:
            apart = asyncio.new_event_loop  # the parent's loop is of no use here
            asyncio._set_running_loop(None)
            try:
                apart().run_until_complete(_hundred("child", ids))
            finally:
                os._exit(0)
        await _hundred("parent", ids)
        await asyncio.to_thread(os.waitpid, child, 0)


async def _hundred(who: str, ids: IdAllocator) -> None:
    for _ in range(100):
        print(who, await ids.next(), flush=True)


if __name__ == "__main__":
    forking = len(sys.argv) > 3
    asyncio.run((allocate_and_fork if forking else allocate)(sys.argv[1], int(sys.argv[2])))
