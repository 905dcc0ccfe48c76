"""Where everything is kept: the one place that knows PostgreSQL and Valkey.

The replicas and the worker are wired alike, so that a write of one tells the caches of all.
"""

from __future__ import annotations

from app.settings import settings
from app.specs import POLICIES, SPECS
from forze.application.execution import (
    DepsRegistry,
    ExecutionRuntime,
    LifecyclePlan,
    ResilienceDepsModule,
)
from forze_postgres import (
    PostgresClient,
    PostgresDepsModule,
    PostgresDocumentConfig,
    PostgresReadOnlyDocumentConfig,
    postgres_lifecycle_step,
)
from forze_redis import (
    RedisCacheConfig,
    RedisClient,
    RedisConfig,
    RedisCounterConfig,
    RedisDepsModule,
    RedisDistributedLockConfig,
    RedisIdempotencyConfig,
    RedisSearchSnapshotConfig,
    redis_circuit_breaker_store,
    redis_lifecycle_step,
    redis_rate_limit_store,
)

PRODUCTS_TABLE = ("public", "products")
ORDERS_TABLE = ("public", "orders")


def build_runtime() -> ExecutionRuntime:
    """One process's worth of the shop, on clients of its own."""
    postgres, redis = PostgresClient(), RedisClient()
    deps = DepsRegistry.from_modules(
        PostgresDepsModule(
            client=postgres,
            rw_documents={
                "products": PostgresDocumentConfig(read=PRODUCTS_TABLE, write=PRODUCTS_TABLE),
                "orders": PostgresDocumentConfig(read=ORDERS_TABLE, write=ORDERS_TABLE),
            },
            ro_documents={"offers": PostgresReadOnlyDocumentConfig(read=PRODUCTS_TABLE)},
            tx={"shop"},
        ),
        RedisDepsModule(
            client=redis,
            caches={
                "products": RedisCacheConfig(namespace="shop:products", invalidation_push=True),
                # While Valkey is away, whoever would make an offer stale is refused.
                "offers": RedisCacheConfig(namespace="shop:offers", on_outage="refuse"),
                "cached": RedisCacheConfig(namespace="shop:responses"),
            },
            counters={"order_numbers": RedisCounterConfig(namespace="shop:numbers")},
            dlocks={"rounds": RedisDistributedLockConfig(namespace="shop:locks")},
            idempotency=RedisIdempotencyConfig(namespace="shop:idempotency"),
            search_snapshots={"products": RedisSearchSnapshotConfig(namespace="shop:found")},
        ),
        ResilienceDepsModule(
            policies=POLICIES,
            breaker_store=redis_circuit_breaker_store(redis),
            rate_limit_store=redis_rate_limit_store(redis),
        ),
    )
    lifecycle = LifecyclePlan.from_steps(
        postgres_lifecycle_step(dsn=settings.postgres_dsn),
        redis_lifecycle_step(
            dsn=settings.redis_dsn,
            # Without Valkey the shop opens all the same; an order waits a second, then it is 503.
            config=RedisConfig(require_at_start=False, socket_timeout=1.0),
        ),
    )
    return ExecutionRuntime(deps=deps, lifecycle=lifecycle, specs=SPECS)
