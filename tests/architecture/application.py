"""A small application over Valkey: documents in process, cached over the wire."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

from forze.application.contracts.cache import CacheSpec
from forze.application.contracts.document import DocumentSpec, DocumentWriteTypes
from forze.application.execution import (
    DepsPlan,
    ExecutionContext,
    ExecutionRuntime,
    LifecyclePlan,
)
from forze.domain.models import BaseDTO, CreateDocumentCmd, Document, ReadDocument
from forze_memory import MemoryDepsModule
from forze_redis import RedisClient, RedisDepsModule, redis_lifecycle_step


class Item(Document):
    name: str


class ItemCreate(CreateDocumentCmd):
    name: str


class ItemUpdate(BaseDTO):
    name: str | None = None


class ItemRead(ReadDocument):
    name: str


ITEMS = DocumentSpec(
    name="items",
    read=ItemRead,
    write=DocumentWriteTypes(domain=Item, create_cmd=ItemCreate, update_cmd=ItemUpdate),
    cache=CacheSpec(name="items"),
)


@asynccontextmanager
async def replicas(
    count: int, dsn: str, *, tenant_aware: bool = False
) -> AsyncIterator[list[ExecutionContext]]:
    """Replicas of one application: documents they share, one cache server, a client each."""
    memory = MemoryDepsModule(documents={"items": {"tenant_aware": tenant_aware}}, caches=())
    async with AsyncExitStack() as stack:
        contexts = []
        for _ in range(count):
            cache = {"namespace": "app:items", "tenant_aware": tenant_aware}
            runtime = ExecutionRuntime(
                deps=DepsPlan.from_modules(
                    memory, RedisDepsModule(client=RedisClient(), caches={"items": cache})
                ),
                lifecycle=LifecyclePlan.from_steps(redis_lifecycle_step(dsn=dsn)),
                specs=[ITEMS],
            )
            contexts.append(await stack.enter_async_context(runtime.scope()))
        yield contexts
