"""A process of ours under a mixed load, and what it holds meanwhile.

Reads drift over more documents than the L1 holds, most keys are new and never come back, and some
callers give up half way: whatever is kept for one of them too long adds up.
"""

from __future__ import annotations

import asyncio
import gc
import os
import random
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta
from itertools import accumulate, count
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

sys.path.insert(0, str(Path(__file__).parents[3]))  # `bench` is there

from bench.workload import CACHED as CACHED_DOCUMENTS
from bench.workload import ProductUpdate
from work import SEED, ZIPF_EXPONENT

from forze.application.contracts.cache import CacheSpec, L1Spec
from forze.application.contracts.counter import CounterSpec
from forze.application.contracts.dlock import DistributedLockSpec, SemaphoreSpec
from forze.application.contracts.idempotency import IdempotencySpec
from forze.application.execution import (
    DepsPlan,
    ExecutionContext,
    ExecutionRuntime,
    LifecyclePlan,
)
from forze.application.integrations.cached import cached
from forze.errors import IdempotencyInProgress, NotFoundError, RevisionMismatch
from forze_postgres import (
    PostgresClient,
    PostgresConfig,
    PostgresDepsModule,
    PostgresDocumentConfig,
    postgres_lifecycle_step,
)
from forze_redis import RedisCacheConfig, RedisClient, RedisDepsModule, redis_lifecycle_step

CALLERS = 16
DRIFT_PER_SECOND = 20  # documents by which popularity moves on
GROUPS = 50  # of calls that are invalidated together
LOCKS, COUNTERS = 2_000, 500  # these names remain in the server, so there are so many of them
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")

LIFE = timedelta(seconds=5)
DOCUMENTS = replace(
    CACHED_DOCUMENTS,
    cache=CacheSpec(
        name="products",
        ttl=LIFE,
        early_refresh_beta=1.0,
        early_refresh_background=True,
        l1=L1Spec(ttl=timedelta(seconds=2), capacity=256),
    ),
)
CACHED = CacheSpec(name="cached", ttl=LIFE, l1=L1Spec(ttl=timedelta(seconds=2), capacity=256))
COUNTER = CounterSpec(name="soak")
LOCK = DistributedLockSpec(name="soak")
SEMAPHORE = SemaphoreSpec(name="soak", permits=4)
ONCE = IdempotencySpec(name="soak", ttl=LIFE, wait=LIFE)

Operation = Callable[[], Awaitable[object]]


class Subject:
    """The process: it works between ``begin`` and ``close``, and is looked at meanwhile."""

    def __init__(self, scope: Any, ctx: ExecutionContext, ids: list[UUID]) -> None:
        self._scope, self._ctx, self._ids = scope, ctx, ids
        self._began = time.monotonic()
        self._dice = random.Random(SEED)
        self._ranks = list(accumulate(n**-ZIPF_EXPONENT for n in range(1, len(ids) + 1)))
        self._numbers = count()
        self._callers: list[asyncio.Task[None]] = []
        self._done = 0
        self._types: Counter[str] = Counter()

        @cached(ttl=LIFE, ctx=lambda: ctx, cache=CACHED, tags=["group:{group}"])
        async def priced(number: int, group: int) -> dict[str, int]:
            await asyncio.sleep(0)
            return {"number": number, "group": group}

        self._priced = priced
        self._mix = self._operations()

    @classmethod
    async def open(cls, settings: dict[str, Any]) -> Subject:
        """Connected; nothing works yet."""
        scope = _runtime(settings).scope()
        return cls(scope, await scope.__aenter__(), [UUID(each) for each in settings["ids"]])

    async def close(self) -> None:
        """Stop working, and disconnect."""
        for each in self._callers:
            each.cancel()
        await asyncio.gather(*self._callers, return_exceptions=True)
        await self._scope.__aexit__(None, None, None)

    async def do_begin(self) -> None:
        """Work from now on."""
        self._callers = [asyncio.create_task(self._caller()) for _ in range(CALLERS)]

    async def do_look(self) -> dict[str, float]:
        """What the process holds now, after a collection; raises what a caller raised."""
        for each in self._callers:
            if each.done():
                each.result()
        gc.collect()
        query = self._ctx.document.query(DOCUMENTS)
        stats, tier = query.stats(), query.l1_stats()
        assert stats is not None
        assert tier is not None
        return {
            "rss": _resident_bytes(),
            "objects": len(gc.get_objects()),
            "tasks": len(asyncio.all_tasks()),
            "journal": stats.journal,
            "l1": tier.size,
            "l1 of cached": sum(each.size for each in self._ctx.l1_stats().values()) - tier.size,
            "operations": self._done,
        }

    async def do_grown(self, most: int = 12) -> list[tuple[str, int]]:
        """The types of which there are more objects than at the call before, most first."""
        gc.collect()
        now = Counter(
            f"{type(each).__module__}.{type(each).__qualname__}" for each in gc.get_objects()
        )
        before, self._types = self._types, now
        return (now - before).most_common(most)

    # -- the load --------------------------------------------------------------

    async def _caller(self) -> None:
        operations, weights = list(self._mix), list(accumulate(self._mix.values()))
        while True:
            for operation in self._dice.choices(operations, cum_weights=weights, k=16):
                with suppress(NotFoundError, RevisionMismatch, IdempotencyInProgress):
                    await operation()
                self._done += 1

    def _operations(self) -> dict[Operation, int]:
        """What is done, and how often in a hundred."""
        ctx = self._ctx
        query, docs = ctx.document.query(DOCUMENTS), ctx.document.command(DOCUMENTS)
        counter, locks, permits = ctx.counter(COUNTER), ctx.dlock(LOCK), ctx.semaphore(SEMAPHORE)
        idempotency, priced, dice = ctx.idempotency(ONCE), self._priced, self._dice

        async def update() -> None:
            pk = self._pk()
            rev = (await query.get(pk, skip_cache=True)).rev
            await docs.update(pk, rev, ProductUpdate(price=next(self._numbers)))

        async def several() -> None:
            await query.get_many([self._pk() for _ in range(20)])

        async def given_up() -> None:
            reading = asyncio.create_task(query.get(self._pk(), skip_cache=dice.random() < 0.5))
            await asyncio.sleep(0)
            reading.cancel()
            with suppress(asyncio.CancelledError):
                await reading

        async def lock() -> None:
            async with locks.scope(f"{dice.randrange(LOCKS)}", wait=LIFE):
                pass

        async def permit() -> None:
            async with permits.scope(f"{dice.randrange(LOCKS)}", wait=LIFE):
                pass

        async def answer(number: int) -> int:
            return number

        async def once() -> None:
            number = next(self._numbers)
            for _ in range(2):
                await idempotency.run("soak", f"{number}", number, answer, number)

        async def call() -> None:
            number = int(time.monotonic() * 100) + dice.randrange(1_000)
            await priced(number, number % GROUPS)

        return {
            lambda: query.get(self._pk()): 60,
            lambda: query.get(uuid4()): 5,
            update: 5,
            several: 2,
            given_up: 3,
            lambda: counter.incr(f"{dice.randrange(COUNTERS)}"): 4,
            lock: 4,
            permit: 3,
            once: 4,
            call: 9,
            lambda: ctx.invalidate_tags(f"group:{dice.randrange(GROUPS)}", cache=CACHED): 1,
        }

    def _pk(self) -> UUID:
        """A document: popular ones more often, and others are popular every second."""
        (rank,) = self._dice.choices(range(len(self._ids)), cum_weights=self._ranks)
        drift = int((time.monotonic() - self._began) * DRIFT_PER_SECOND)
        return self._ids[(rank + drift) % len(self._ids)]


def _resident_bytes() -> int:
    """Of this process. Linux says; elsewhere this raises."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE_BYTES


def _runtime(settings: dict[str, Any]) -> ExecutionRuntime:
    pg, redis = PostgresClient(), RedisClient()
    table = PostgresDocumentConfig(read=("public", "products"), write=("public", "products"))
    return ExecutionRuntime(
        deps=DepsPlan.from_modules(
            PostgresDepsModule(client=pg, rw_documents={"products": table}),
            RedisDepsModule(
                client=redis,
                caches={
                    "products": RedisCacheConfig(namespace="soak:docs", invalidation_push=True),
                    "cached": RedisCacheConfig(namespace="soak:cached", invalidation_push=True),
                },
                counters={"soak": {"namespace": "soak:counters"}},
                dlocks={"soak": {"namespace": "soak:locks"}},
                semaphores={"soak": {"namespace": "soak:permits"}},
                idempotency={"soak": {"namespace": "soak:once"}},
            ),
        ),
        lifecycle=LifecyclePlan.from_steps(
            postgres_lifecycle_step(dsn=settings["postgres"], config=PostgresConfig(max_size=8)),
            redis_lifecycle_step(dsn=settings["valkey"]),
        ),
        specs=[DOCUMENTS],
    )
