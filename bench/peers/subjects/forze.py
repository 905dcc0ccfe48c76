"""forze, wired as an application wires it; one document kind for each way to read."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from documents import DocumentReader
from products import ProductRead
from slow_source import VIEW

from forze.application.contracts.cache import CacheSpec, L1Spec
from forze.application.contracts.document import DocumentSpec
from forze.application.execution import DepsPlan, ExecutionRuntime, LifecyclePlan
from forze.application.integrations.document import lru_l1_store, tiny_lfu_l1_store
from forze_postgres import (
    PostgresClient,
    PostgresConfig,
    PostgresDepsModule,
    PostgresReadOnlyDocumentConfig,
    postgres_lifecycle_step,
)
from forze_redis import RedisCacheConfig, RedisClient, RedisDepsModule, redis_lifecycle_step

L1 = timedelta(minutes=10)
CACHES: dict[str, dict[str, Any]] = {
    "redis": {},
    "sliding": {"sliding_ttl": timedelta(minutes=30), "early_refresh_beta": 1.0},
    "lru": {"l1": L1Spec(ttl=L1, store_factory=lru_l1_store)},
    "tinylfu": {"l1": L1Spec(ttl=L1, store_factory=tiny_lfu_l1_store)},
    "cold": {},
}


def spec(name: str) -> DocumentSpec[ProductRead]:
    return DocumentSpec(
        name=name,
        read=ProductRead,
        cache=CacheSpec(name=name, ttl=timedelta(hours=1), **CACHES[name]),
    )


class Subject(DocumentReader):
    async def wire(self) -> None:
        pg, redis = PostgresClient(), RedisClient()
        specs = {name: spec(name) for name in CACHES}
        await self.watch()
        runtime = ExecutionRuntime(
            deps=DepsPlan.from_modules(
                PostgresDepsModule(
                    client=pg,
                    ro_documents={
                        name: PostgresReadOnlyDocumentConfig(
                            read=("public", VIEW if name == "cold" else "products"), ttl_only=True
                        )
                        for name in specs
                    },
                ),
                RedisDepsModule(
                    client=redis,
                    caches={name: RedisCacheConfig(namespace=f"reads:{name}") for name in specs},
                ),
            ),
            lifecycle=LifecyclePlan.from_steps(
                postgres_lifecycle_step(
                    dsn=self.settings["postgres"],
                    config=PostgresConfig(max_size=15, application_name=self.who),
                ),
                redis_lifecycle_step(dsn=self.settings["valkey"]),
            ),
            specs=list(specs.values()),
        )
        ctx = await self.opened.enter_async_context(runtime.scope())
        self.reads = {name: self.through(ctx, each) for name, each in specs.items()}
        self.reads["source"] = self.past(ctx, specs["redis"])
        self.cold["guarded"] = self.reads.pop("cold")
        self._collapsed = lambda what: _collapsed(ctx, specs, what)

    async def do_read(self, what: str, callers: int, seconds: float) -> dict[str, float]:
        """``us`` is per read that went to the server itself; ``collapsed``, the share of those
        that were answered by another caller's flight, are not counted in it."""
        await self.fill(what)
        before = self._collapsed(what)
        found = await super().do_read(what, callers, seconds)
        shared = (self._collapsed(what) - before) / found["asked"]
        return {**found, "us": found["us"] / (1 - shared), "collapsed": shared}


def _collapsed(ctx: Any, specs: dict[str, Any], what: str) -> int:
    stats = ctx.document.query(specs.get(what, specs["redis"])).stats()
    return stats.collapsed
