"""The worker: Celery on the same Valkey, and the shop's own code through the portal.

Tasks are synchronous and ports are not; the portal runs the shop's runtime in each process of the
worker, with the caches, leases and pushes that the replicas have.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any
from uuid import UUID

from celery import Celery
from celery.signals import worker_init

from app import orders
from app.settings import settings
from app.wiring import build_runtime
from forze.application.execution import ExecutionContext
from forze.errors import LockNotAcquired
from forze_celery import attach_portal

worker = Celery("shop", broker=settings.redis_dsn)
worker.conf.update(
    task_ignore_result=True,
    task_publish_retry=False,
    worker_prefetch_multiplier=1,
    broker_connection_retry_on_startup=True,
    broker_transport_options={  # of who publishes: two seconds at most, in a thread of its own
        "max_retries": 1,
        "interval_start": 0,
        "socket_timeout": 1.0,
        "socket_connect_timeout": 1.0,
    },
    beat_schedule={"rounds": {"task": "app.tasks.rounds", "schedule": 1.0}},
)
portal = attach_portal(worker, build_runtime)


@worker_init.connect
def be_patient(**_: Any) -> None:
    """A replica gives up on a broker that is away, for the rounds make up for it; a worker must
    not, or it would end."""
    worker.conf.broker_transport_options = {}


@worker.task
@portal.sync
async def confirm(ctx: ExecutionContext, order_id: str) -> None:
    """Charge for the order and confirm it."""
    await orders.try_to_confirm(ctx, UUID(order_id))


@worker.task(expires=5)
@portal.sync
async def rounds(ctx: ExecutionContext) -> None:
    """Once a second: what was forgotten, and the books."""
    with suppress(LockNotAcquired):  # another process is making them
        await orders.make_rounds(ctx)
