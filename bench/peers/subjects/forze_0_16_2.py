"""forze 0.16.2, wired as its own documentation does; runs where we are not installed, since it has
our import names. Its pool is as large as the callers, and it decodes with orjson.
"""

from __future__ import annotations

from datetime import timedelta

from documents import DocumentReader
from products import ProductRead
from reading import MOST_CALLERS
from slow_source import VIEW

from forze.application.contracts.cache import CacheSpec, L1Spec
from forze.application.contracts.document import DocumentSpec
from forze.application.execution import DepsRegistry, ExecutionRuntime, LifecyclePlan
from forze_postgres import (
    PostgresClient,
    PostgresConfig,
    PostgresDepsModule,
    PostgresLifecycleModule,
    PostgresReadOnlyDocumentConfig,
)
from forze_redis import (
    RedisCacheConfig,
    RedisClient,
    RedisConfig,
    RedisDepsModule,
    redis_lifecycle_step,
)

CACHES = {
    "redis": {},
    "process": {"l1": L1Spec(ttl=timedelta(minutes=10), capacity=1024)},
    "cold": {},
}


def spec(name: str) -> DocumentSpec:
    ttl = timedelta(hours=1)
    cache = CacheSpec(name=name, ttl=ttl, ttl_pointer=ttl, **CACHES[name])
    return DocumentSpec(name=name, read=ProductRead, cache=cache)


class Subject(DocumentReader):
    async def wire(self) -> None:
        pg, client = PostgresClient(), RedisClient()
        specs = {name: spec(name) for name in CACHES}
        await self.watch()
        runtime = ExecutionRuntime(
            deps=DepsRegistry.from_modules(
                PostgresDepsModule(
                    client=pg,
                    ro_documents={
                        name: PostgresReadOnlyDocumentConfig(
                            read=("public", VIEW if name == "cold" else "products")
                        )
                        for name in specs
                    },
                ),
                RedisDepsModule(
                    client=client,
                    caches={name: RedisCacheConfig(namespace=f"peer:{name}") for name in specs},
                ),
            ).freeze(),
            lifecycle=LifecyclePlan.from_modules(
                PostgresLifecycleModule(
                    client=pg,
                    dsn=self.settings["postgres"],
                    config=PostgresConfig(application_name=self.who),
                )
            )
            .with_steps(
                redis_lifecycle_step(
                    dsn=self.settings["valkey"], config=RedisConfig(max_size=MOST_CALLERS)
                )
            )
            .freeze(),
        )
        await self.opened.enter_async_context(runtime.scope())
        ctx = runtime.get_context()
        self.reads = {name: self.through(ctx, each) for name, each in specs.items()}
        self.reads["source"] = self.past(ctx, specs["redis"])
        self.cold["guarded"] = self.reads.pop("cold")
