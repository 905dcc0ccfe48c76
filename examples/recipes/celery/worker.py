"""The worker: Celery tasks, which are synchronous, on ports that are not."""

from __future__ import annotations

import os
import signal
import time

from app import COUNTED, PAYMENTS, REPORTS, price_of, runtime
from celery import Celery

from forze.application.contracts.tenancy import current_tenant
from forze.application.execution import ExecutionContext
from forze.application.integrations.idempotency import idempotent
from forze_celery import attach_portal

worker = Celery("recipe", broker=os.environ["REDIS_DSN"], backend=os.environ["REDIS_DSN"])
worker.conf.update(worker_prefetch_multiplier=1, worker_lost_wait=0.001)
portal = attach_portal(worker, lambda: runtime)


@worker.task
def ask_price(product: str) -> int:
    """A call of an async function."""
    return portal.call(price_of, product)


@worker.task
def make_report(day: str) -> str:
    """A lock in synchronous code; its lease is kept up while this computes."""
    with portal.enter(lambda ctx: ctx.dlock_scope(REPORTS).scope(day)) as lock:
        portal.run(lambda ctx: ctx.counter(COUNTED).incr("reports"))
        while portal.run(lambda ctx: ctx.counter(COUNTED).get("refused")) == 0:
            time.sleep(0.02)  # hard work, until somebody has come in vain
            lock.check()
    return "made by the worker"


@worker.task
def greet() -> str:
    """For whom it was published."""
    return f"for {current_tenant()}"


@worker.task(acks_late=True, reject_on_worker_lost=True)  # delivered again if its process dies
@portal.sync
@idempotent(PAYMENTS, ctx=runtime.get_context, key="order", payload=lambda ctx, order: order)
async def charge(ctx: ExecutionContext, order: str) -> int:
    """Once for an order, however often it is delivered."""
    attempt = await ctx.counter(COUNTED).incr("attempts")
    if attempt == 1:
        os.kill(os.getpid(), signal.SIGKILL)  # in the middle of it
    return await ctx.counter(COUNTED).incr("charges")
