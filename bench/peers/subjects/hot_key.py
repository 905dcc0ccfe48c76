"""forze's document that expires again and again while it is read: with early refresh and without.

The source is the view ``hot_products``, which takes its time and keeps a record of every load.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any
from uuid import UUID

from products import ProductRead
from steady import steady

from forze.application.contracts.cache import CacheSpec
from forze.application.contracts.document import DocumentSpec
from forze.application.execution import (
    DepsPlan,
    ExecutionContext,
    ExecutionRuntime,
    LifecyclePlan,
)
from forze_postgres import (
    PostgresClient,
    PostgresDepsModule,
    PostgresReadOnlyDocumentConfig,
    postgres_lifecycle_step,
)
from forze_redis import RedisCacheConfig, RedisClient, RedisDepsModule, redis_lifecycle_step


def _specs(ttl: timedelta) -> dict[str, DocumentSpec[ProductRead, Any, Any]]:
    plain = CacheSpec(name="plain", ttl=ttl)
    caches = {
        "plain": plain,
        "early": replace(plain, name="early", early_refresh_beta=1.0),
        "background": replace(
            plain, name="background", early_refresh_beta=1.0, early_refresh_background=True
        ),
    }
    return {
        name: DocumentSpec(name=name, read=ProductRead, cache=cache)
        for name, cache in caches.items()
    }


class Subject:
    """Three kinds of one document, named by ``how`` they are refreshed."""

    def __init__(self, scope: Any, ctx: ExecutionContext, specs: dict[str, Any]) -> None:
        self._scope = scope
        self._ctx = ctx
        self._specs = specs

    @classmethod
    async def open(cls, settings: dict[str, Any]) -> Subject:
        """``ttl_seconds`` is how long an entry lives."""
        specs = _specs(timedelta(seconds=settings["ttl_seconds"]))
        pg, redis = PostgresClient(), RedisClient()
        view = PostgresReadOnlyDocumentConfig(
            read=("public", "hot_products"), invalidated_by=(("public", "products"),)
        )
        runtime = ExecutionRuntime(
            deps=DepsPlan.from_modules(
                PostgresDepsModule(client=pg, ro_documents=dict.fromkeys(specs, view)),
                RedisDepsModule(
                    client=redis,
                    caches={name: RedisCacheConfig(namespace=f"hot:{name}") for name in specs},
                ),
            ),
            lifecycle=LifecyclePlan.from_steps(
                postgres_lifecycle_step(dsn=settings["postgres"]),
                redis_lifecycle_step(dsn=settings["valkey"]),
            ),
            specs=list(specs.values()),
        )
        scope = runtime.scope()
        return cls(scope, await scope.__aenter__(), specs)

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
