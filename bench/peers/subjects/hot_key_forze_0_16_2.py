"""forze 0.16.2's document that expires again and again while it is read; see ``hot_key.py``."""

from __future__ import annotations

from datetime import timedelta
from typing import Any
from uuid import UUID

from products import ProductRead
from steady import steady

from forze.application.contracts.cache import CacheSpec
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

CONNECTIONS = 64
EARLY = {
    "plain": {},
    "early": {"early_refresh_beta": 1.0},
    "background": {"early_refresh_beta": 1.0, "early_refresh_background": True},
}


class Subject:
    """Three kinds of one document, named by ``how`` they are refreshed."""

    def __init__(self, scope: Any, ctx: Any, specs: dict[str, Any]) -> None:
        self._scope = scope
        self._ctx = ctx
        self._specs = specs

    @classmethod
    async def open(cls, settings: dict[str, Any]) -> Subject:
        """``ttl_seconds`` is how long an entry lives."""
        ttl = timedelta(seconds=settings["ttl_seconds"])
        specs = {
            name: DocumentSpec(
                name=name,
                read=ProductRead,
                cache=CacheSpec(name=name, ttl=ttl, ttl_pointer=ttl, **options),
            )
            for name, options in EARLY.items()
        }
        pg, client = PostgresClient(), RedisClient()
        view = PostgresReadOnlyDocumentConfig(read=("public", "hot_products"))
        runtime = ExecutionRuntime(
            deps=DepsRegistry.from_modules(
                PostgresDepsModule(client=pg, ro_documents=dict.fromkeys(specs, view)),
                RedisDepsModule(
                    client=client,
                    caches={name: RedisCacheConfig(namespace=f"hot:0.16:{name}") for name in specs},
                ),
            ).freeze(),
            lifecycle=LifecyclePlan.from_modules(
                PostgresLifecycleModule(
                    client=pg, dsn=settings["postgres"], config=PostgresConfig()
                )
            )
            .with_steps(
                redis_lifecycle_step(
                    dsn=settings["valkey"], config=RedisConfig(max_size=CONNECTIONS)
                )
            )
            .freeze(),
        )
        scope = runtime.scope()
        await scope.__aenter__()
        return cls(scope, runtime.get_context(), specs)

    async def close(self) -> None:
        """Disconnect."""
        await self._scope.__aexit__(None, None, None)

    async def do_read(self, how: str, key: str) -> None:
        """Read once."""
        await self._ctx.document.query(self._specs[how]).get(UUID(key))

    async def do_steady(self, how: str, key: str, **load: Any) -> dict[str, int]:
        """Read as ``steady.steady`` does."""
        query, pk = self._ctx.document.query(self._specs[how]), UUID(key)
        return await steady(lambda: query.get(pk), **load)
