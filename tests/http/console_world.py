"""Applications with a console to look at: documents in memory, cached on a Valkey, two replicas."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from secrets import compare_digest
from typing import Annotated, Any
from uuid import UUID

from fastapi import Depends, FastAPI, HTTPException
from fastapi.security import HTTPBasic, HTTPBasicCredentials

from forze.application.contracts.cache import CacheSpec, L1Spec
from forze.application.contracts.dlock import DistributedLockSpec
from forze.application.contracts.document import DocumentSpec, DocumentWriteTypes
from forze.application.contracts.idempotency import IdempotencySpec
from forze.application.contracts.resilience import CircuitBreakerStrategy, ResiliencePolicy
from forze.application.execution import (
    DepsPlan,
    ExecutionContext,
    ExecutionRuntime,
    LifecyclePlan,
    ResilienceDepsModule,
)
from forze.domain.models import BaseDTO, CreateDocumentCmd, Document, ReadDocument
from forze.errors import CircuitOpen
from forze.testing.serving import serving
from forze_fastapi import console, register_exception_handlers, runtime_lifespan
from forze_memory import MemoryDepsModule
from forze_redis import RedisClient, RedisConfig, RedisDepsModule, redis_lifecycle_step

USER, PASSWORD = "admin", "correct horse"


class Product(Document):
    name: str
    price: int = 0


class ProductCreate(CreateDocumentCmd):
    name: str
    price: int = 0


class ProductUpdate(BaseDTO):
    price: int


class ProductRead(ReadDocument):
    name: str
    price: int


def _spec(name: str, cache: CacheSpec) -> DocumentSpec[ProductRead, ProductCreate, ProductUpdate]:
    write = DocumentWriteTypes(domain=Product, create_cmd=ProductCreate, update_cmd=ProductUpdate)
    return DocumentSpec(name=name, read=ProductRead, write=write, cache=cache)


PRODUCTS = _spec(
    "products", CacheSpec(name="products", l1=L1Spec(ttl=timedelta(seconds=30), capacity=512))
)
ORDERS = _spec("orders", CacheSpec(name="orders", ttl=timedelta(minutes=20)))
OWNED = _spec("invoices", CacheSpec(name="invoices"))
SPECS = (PRODUCTS, ORDERS, OWNED)

JOBS = DistributedLockSpec(name="jobs")
PAYMENTS = IdempotencySpec(name="payments")
_NAMESPACES: dict[str, dict[str, Any]] = {
    "products": {"namespace": "shop:products", "invalidation_push": True},
    "orders": {"namespace": "shop:orders"},
    "invoices": {"namespace": "shop:invoices", "tenant_aware": True},
}
_POLICY = ResiliencePolicy(
    circuit_breaker=CircuitBreakerStrategy(
        failure_ratio=0.5, min_throughput=3, break_duration=timedelta(minutes=5)
    )
)


class Away(Exception):
    """What a dependency under a policy fails with."""


def admin(given: Annotated[HTTPBasicCredentials, Depends(HTTPBasic())]) -> None:
    """Lets in who knows the password."""
    if not (given.username == USER and compare_digest(given.password, PASSWORD)):
        raise HTTPException(401, "not you", headers={"WWW-Authenticate": "Basic"})


@dataclass(frozen=True, slots=True)
class Replica:
    """One process of the application, as far as it matters here: a runtime, and where it is."""

    ctx: ExecutionContext
    address: str
    database: MemoryDepsModule

    async def product(self, name: str = "tea") -> UUID:
        """A new product."""
        return (await self.ctx.document.command(PRODUCTS).create(ProductCreate(name=name))).id

    async def fail(self, policy: str, times: int = 3) -> None:
        """Calls under a policy that go wrong."""

        async def failing() -> None:
            raise Away

        for _ in range(times):
            try:
                await self.ctx.resilience.run(policy, failing)
            except (Away, CircuitOpen):
                continue


def database() -> MemoryDepsModule:
    """What the replicas share beside their cache."""
    return MemoryDepsModule(
        caches=(), dlocks=(), idempotency=(), documents={"products": {}, "orders": {},
        "invoices": {"tenant_aware": True}},
    )  # fmt: skip


def runtime_of(dsn: str, shared: MemoryDepsModule) -> ExecutionRuntime:
    """A runtime over the cache at ``dsn``."""
    redis = RedisDepsModule(
        client=RedisClient(),
        caches=_NAMESPACES,
        dlocks={"jobs": {"namespace": "shop:locks"}},
        idempotency={"namespace": "shop:payments"},
    )
    policies = ResilienceDepsModule(policies={"bank": _POLICY, "mail": _POLICY})
    return ExecutionRuntime(
        deps=DepsPlan.from_modules(shared, redis, policies),
        lifecycle=LifecyclePlan.from_steps(redis_lifecycle_step(dsn=dsn, config=RedisConfig())),
        specs=[*SPECS, JOBS, PAYMENTS],
    )


@asynccontextmanager
async def replica(dsn: str, shared: MemoryDepsModule) -> AsyncIterator[Replica]:
    """An application with a console, served."""
    runtime = runtime_of(dsn, shared)
    app = FastAPI(lifespan=runtime_lifespan(runtime))
    register_exception_handlers(app)
    app.include_router(console(runtime, dependencies=[Depends(admin)]), prefix="/console")
    async with serving(app) as address:
        yield Replica(runtime.get_context(), address, shared)
