"""A Celery application for the tests: tasks on every port, and places where they can be held.

``python -m celery --app tests.faults.celery_app worker``, with ``TEST_REDIS_DSN`` and
``TEST_POSTGRES_DSN`` in the environment. A task that was asked to hold says so in a list of the
server, and goes on when it finds a word in another.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import timedelta
from typing import Any
from uuid import UUID

import redis
import redis.asyncio
from celery import Celery, signals
from celery.exceptions import SoftTimeLimitExceeded
from pydantic import BaseModel
from tests.faults.world import SPEC

from forze.application.contracts.cache import CacheSpec
from forze.application.contracts.counter import CounterSpec
from forze.application.contracts.dlock import DistributedLockSpec
from forze.application.contracts.idempotency import IdempotencySpec
from forze.application.contracts.tenancy import (
    bind_tenant,
    current_principal,
    current_tenant,
)
from forze.application.execution import (
    DepsRegistry,
    ExecutionContext,
    ExecutionRuntime,
    LifecyclePlan,
    LifecycleStep,
)
from forze.application.integrations.cached import CachedFunction, cached
from forze.application.integrations.idempotency import idempotent
from forze.errors import ConflictError, LockNotAcquired
from forze_celery import attach_portal
from forze_postgres import (
    PostgresClient,
    PostgresDepsModule,
    PostgresDocumentConfig,
    postgres_lifecycle_step,
)
from forze_redis import RedisClient, RedisConfig, RedisDepsModule, redis_lifecycle_step

REDIS_DSN = os.environ.get("TEST_REDIS_DSN", "")
CLIENT = "celery-portal"
HELD_SECONDS = 30

NOTES = CacheSpec(name="notes")
VISITS = CounterSpec(name="visits")
JOBS = DistributedLockSpec(name="jobs", ttl=timedelta(seconds=2))
PAYMENTS = IdempotencySpec(
    name="payments", lease=timedelta(seconds=1), wait=timedelta(seconds=HELD_SECONDS)
)


def runtime_on(redis_dsn: str, postgres_dsn: str, name: str) -> ExecutionRuntime:
    """One process's worth of the application, whose connections have this name. Which process
    closes it, it tells the server."""
    postgres, client = PostgresClient(), RedisClient()

    async def closed(ctx: ExecutionContext) -> None:
        async with redis.asyncio.Redis.from_url(redis_dsn) as server:
            await server.rpush("closed", os.getpid())

    table = PostgresDocumentConfig(read=("public", "products"), write=("public", "products"))
    return ExecutionRuntime(
        deps=DepsRegistry.from_modules(
            PostgresDepsModule(client=postgres, rw_documents={"products": table}),
            RedisDepsModule(
                client=client,
                caches={
                    "products": {"namespace": "app:products"},
                    "notes": {"namespace": "app:notes", "tenant_aware": True},
                    "cached": {"namespace": "app:cached"},
                },
                counters={"visits": {"namespace": "app:visits"}},
                dlocks={"jobs": {"namespace": "app:jobs"}},
                idempotency={"namespace": "app:payments"},
            ),
        ),
        lifecycle=LifecyclePlan.from_steps(
            postgres_lifecycle_step(dsn=postgres_dsn),
            redis_lifecycle_step(dsn=redis_dsn, config=RedisConfig(client_name=name)),
            LifecycleStep(id="closed", shutdown=closed),
        ),
        specs=[SPEC, NOTES, VISITS, JOBS, PAYMENTS],
    )


def build_runtime() -> ExecutionRuntime:
    """That of this process."""
    made.append(runtime_on(REDIS_DSN, os.environ.get("TEST_POSTGRES_DSN", ""), CLIENT))
    return made[-1]


def context() -> ExecutionContext:
    """What the portal of this process has open."""
    return made[-1].get_context()


made: list[ExecutionRuntime] = []
"""The last is this process's, those before it its parents'."""
app = Celery("tests", broker=REDIS_DSN, backend=REDIS_DSN)
app.conf.update(
    broker_connection_retry_on_startup=True,
    worker_prefetch_multiplier=1,
    worker_lost_wait=0.001,  # otherwise Celery's next look is up to five seconds away
    worker_hijack_root_logger=False,
)
portal = attach_portal(app, build_runtime, drain=timedelta(seconds=1))


@signals.worker_init.connect
def use_the_portal(**_: Any) -> None:
    """All processes of the pool are forked from one whose portal is open."""
    portal.open()


async def held(place: str, redis_dsn: str = REDIS_DSN) -> None:
    """Say that somebody is here, and wait until told to go on."""
    async with redis.asyncio.Redis.from_url(redis_dsn, socket_timeout=None) as server:
        await server.rpush(f"{place}:seen", os.getpid())
        assert await server.blpop([f"{place}:go"], timeout=HELD_SECONDS) is not None


def held_here(place: str) -> None:
    """The same, for code that is not asynchronous: the whole thread stands still."""
    with redis.Redis.from_url(REDIS_DSN, socket_timeout=None) as server:
        server.rpush(f"{place}:seen", os.getpid())
        assert server.blpop([f"{place}:go"], timeout=HELD_SECONDS) is not None


def who() -> list[str | None]:
    """Who is bound here."""
    return [current_tenant(), current_principal()]


# -- ports -------------------------------------------------------------------


@app.task
def visit(page: str) -> int:
    return portal.run(lambda ctx: ctx.counter(VISITS).incr(page))


@app.task
def remember(key: str, value: str) -> Any:
    portal.run(lambda ctx: ctx.cache(NOTES).set(key, value))
    return portal.run(lambda ctx: ctx.cache(NOTES).get(key))


@app.task
@portal.sync
async def price_of(ctx: ExecutionContext, product: str) -> int:
    return (await ctx.document.query(SPEC).get(UUID(product))).price


def quoting(
    ctx: Callable[[], ExecutionContext], redis_dsn: str = REDIS_DSN
) -> CachedFunction[[str], str]:
    """A cached function whose runs can be held."""

    @cached(60, ctx=ctx, name="quote")
    async def quote(product: str) -> str:
        await held(product, redis_dsn)
        return f"{product}, by {os.getpid()}"

    return quote


quote = quoting(context)


@app.task
def quoted(product: str) -> str:
    return portal.call(quote, product)


@app.task
def compute(job: str) -> str:
    """Takes a lock for longer than its lease, and computes without an event loop meanwhile."""
    try:
        with portal.enter(lambda ctx: ctx.dlock_scope(JOBS).scope(job)) as lock:
            held_here(job)
            lock.check()
            return "done"
    except LockNotAcquired:
        return "refused"


@app.task(acks_late=True, reject_on_worker_lost=True)
@portal.sync
@idempotent(PAYMENTS, ctx=context, key="order", payload=lambda ctx, order: 0)
async def charge(ctx: ExecutionContext, order: str) -> str:
    await held(order)
    await ctx.counter(VISITS).incr(order)  # the effect
    return str(os.getpid())


@app.task(acks_late=True, reject_on_worker_lost=True)
def charge_and_linger(order: str) -> str:
    """Has charged, and has not said so to Celery yet."""
    charged: str = charge(order)
    held_here(f"{order}:charged")
    return charged


# -- what Celery offers ------------------------------------------------------


@app.task
@portal.sync
async def identity(ctx: ExecutionContext, *_: Any) -> list[str | None]:
    return who()


@app.task
def outside(*_: Any) -> list[str | None]:
    """Without the portal."""
    return who()


@app.task(bind=True, max_retries=1)
@portal.sync
async def retried(ctx: ExecutionContext, self: Any, note: str) -> list[Any]:
    """Tries again by itself, in the name of somebody else."""
    if self.request.retries == 0:
        with bind_tenant("somebody else"):
            raise self.retry(countdown=0)
    return [self.request.retries, note, *who()]


@app.task(autoretry_for=(ConflictError,), retry_backoff=False, default_retry_delay=0)
@portal.sync
async def stubborn(ctx: ExecutionContext, note: str) -> list[Any]:
    attempt = await ctx.counter(VISITS).incr(note)
    if attempt == 1:
        raise ConflictError("once more", resource="notes")
    return [attempt, *who()]


@app.task
def gather(found: list[Any]) -> list[Any]:
    """What the tasks of a chord have found, and what this one finds."""
    return [*found, who()]


@app.task
def publish(place: str) -> None:
    """Publishes a task of its own, which tells the server who it runs for."""
    tell.delay(place)


@app.task
def fail() -> None:
    """Fails."""
    raise ConflictError("it failed", resource="notes")


@app.task
def linger(place: str) -> int:
    """Is held with the portal open; the process."""
    portal.open()
    held_here(place)
    return os.getpid()


@app.task
@portal.sync
async def tell(ctx: ExecutionContext, place: str) -> None:
    async with redis.asyncio.Redis.from_url(REDIS_DSN) as server:
        await server.rpush(place, *(each or "-" for each in who()))


class Parcel(BaseModel):
    weight: int


@app.task(pydantic=True)
@portal.sync
async def weigh(ctx: ExecutionContext, parcel: Parcel) -> Parcel:
    return Parcel(weight=parcel.weight + await ctx.counter(VISITS).get("none"))


@app.task
def overdue(place: str) -> str:
    """Is held until its soft time limit, and says in the end that it was."""

    async def work(ctx: ExecutionContext) -> None:
        try:
            await held(place)
        finally:
            await ctx.counter(VISITS).incr(place)

    try:
        portal.run(work)
    except SoftTimeLimitExceeded:
        return "given up"
    return "went on"
