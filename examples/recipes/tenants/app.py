"""The wiring: every resource keeps tenants apart, and each tenant has a server of its own."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import timedelta

from forze.application.contracts.cache import CacheSpec
from forze.application.contracts.counter import CounterSpec
from forze.application.contracts.dlock import DistributedLockSpec
from forze.application.contracts.document import DocumentSpec, DocumentWriteTypes
from forze.application.execution import DepsPlan, ExecutionRuntime, LifecyclePlan
from forze.domain.models import BaseDTO, CreateDocumentCmd, Document, ReadDocument
from forze_memory import MemoryDepsModule
from forze_redis import RedisDepsModule, RoutedRedisClient, routed_redis_lifecycle_step


class Invoice(Document):
    total: int


class InvoiceCreate(CreateDocumentCmd):
    total: int


class InvoiceUpdate(BaseDTO):
    total: int


class InvoiceRead(ReadDocument):
    total: int


INVOICES: DocumentSpec[InvoiceRead, InvoiceCreate, InvoiceUpdate] = DocumentSpec(
    name="invoices",
    read=InvoiceRead,
    write=DocumentWriteTypes(domain=Invoice, create_cmd=InvoiceCreate, update_cmd=InvoiceUpdate),
    cache=CacheSpec(name="invoices", ttl=timedelta(minutes=5)),
)
NUMBERS = CounterSpec(name="invoice_numbers")
CLOSING = DistributedLockSpec(name="closing", ttl=timedelta(seconds=10))


def redis_module(client: RoutedRedisClient) -> RedisDepsModule:
    """The resources on the tenants' servers."""
    return RedisDepsModule(
        client=client,
        caches={"invoices": {"namespace": "app:invoices", "tenant_aware": True}},
        counters={"invoice_numbers": {"namespace": "app:numbers", "tenant_aware": True}},
        dlocks={"closing": {"namespace": "app:closing", "tenant_aware": True}},
    )


def runtime(
    client: RoutedRedisClient, dsn_of: Callable[[str], Awaitable[str | None]]
) -> ExecutionRuntime:
    """The application; its database is in memory, to be about tenants only."""
    database = MemoryDepsModule(
        documents={"invoices": {"tenant_aware": True}}, caches={}, counters={}, dlocks={}
    )
    return ExecutionRuntime(
        deps=DepsPlan.from_modules(database, redis_module(client)),
        lifecycle=LifecyclePlan.from_steps(routed_redis_lifecycle_step(dsn_of=dsn_of)),
        specs=[INVOICES, NUMBERS, CLOSING],
    )
