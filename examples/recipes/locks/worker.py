"""A process that settles the invoice: takes the lock, computes in a thread, writes under its token.

``python worker.py REDIS_DSN POSTGRES_DSN TOTAL SECONDS``: it computes for so long. It prints a
line for each thing it does.
"""

from __future__ import annotations

import asyncio
import sys
import time
from datetime import timedelta

from forze.application.contracts.dlock import DistributedLockSpec
from forze.application.execution import DepsPlan, ExecutionRuntime, LifecyclePlan
from forze.errors import FencedOut, LockLost
from forze_postgres import PostgresClient, PostgresConfig, fenced_update
from forze_redis import (
    RedisClient,
    RedisDepsModule,
    RedisDistributedLockConfig,
    redis_lifecycle_step,
)

INVOICES = DistributedLockSpec(name="invoices", ttl=timedelta(seconds=1))
KEY = "invoice:42"


async def settle(redis_dsn: str, postgres_dsn: str, total: int, seconds: float) -> None:
    """Set the total of invoice 42, if nobody came later."""
    locks = RedisDistributedLockConfig(namespace="recipe:invoice-locks")
    runtime = ExecutionRuntime(
        deps=DepsPlan.from_modules(
            RedisDepsModule(client=RedisClient(), dlocks={"invoices": locks})
        ),
        lifecycle=LifecyclePlan.from_steps(redis_lifecycle_step(dsn=redis_dsn)),
    )
    async with runtime.scope() as ctx:
        try:
            async with ctx.dlock_scope(INVOICES).scope(KEY, wait=timedelta(seconds=10)) as lock:
                say(f"holds {KEY} under token {lock.token}")
                await asyncio.to_thread(work, postgres_dsn, total, seconds, lock.token)
        except LockLost as loss:
            say(f"LockLost: {loss}")


def work(postgres_dsn: str, total: int, seconds: float, token: int) -> None:
    """Compute, and write. Nobody can cancel a thread, and this one is careless: it does not ask
    ``lock.check()`` before it writes. The row does."""
    time.sleep(seconds)
    asyncio.run(write(postgres_dsn, total, token))


async def write(postgres_dsn: str, total: int, token: int) -> None:
    """The write under the token, from the thread."""
    postgres = PostgresClient()
    await postgres.connect(postgres_dsn, PostgresConfig(min_size=1, max_size=1))
    try:
        await fenced_update(postgres, "invoices", 42, token, {"total": total})
        say(f"wrote total {total}")
    except FencedOut as refusal:
        say(f"FencedOut: {refusal}")
    finally:
        await postgres.close()


def say(text: str) -> None:
    """One line, at once."""
    print(text, flush=True)


if __name__ == "__main__":
    asyncio.run(settle(sys.argv[1], sys.argv[2], int(sys.argv[3]), float(sys.argv[4])))
