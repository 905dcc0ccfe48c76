"""The application: documents whose searches are frozen. Run, it writes one large snapshot.

Documents are kept in memory here, to leave only one server to start; on PostgreSQL nothing
of this changes but the module.
"""

from __future__ import annotations

import asyncio
import os
import sys
from datetime import timedelta

from forze.application.contracts.document import DocumentSpec, DocumentWriteTypes
from forze.application.contracts.search import SearchResultSnapshotSpec
from forze.application.execution import DepsPlan, ExecutionRuntime, LifecyclePlan
from forze.domain.models import BaseDTO, CreateDocumentCmd, Document, ReadDocument
from forze_memory import MemoryDepsModule
from forze_redis import (
    RedisClient,
    RedisDepsModule,
    RedisSearchSnapshotConfig,
    redis_lifecycle_step,
)

NAMESPACE = "recipe:snapshots"
FOUND = SearchResultSnapshotSpec(
    name="products",
    ttl=timedelta(seconds=1),  # short, so that the story is; the default is ten minutes
    cursor_secret=os.environ.get("CURSOR_SECRET", "the same for every process"),
)
REPORTS = SearchResultSnapshotSpec(name="reports", max_ids=100_000)


class Product(Document):
    price: int


class ProductCreate(CreateDocumentCmd):
    price: int


class ProductUpdate(BaseDTO):
    price: int | None = None


class ProductRead(ReadDocument):
    price: int


PRODUCTS = DocumentSpec(
    name="products",
    read=ProductRead,
    write=DocumentWriteTypes(domain=Product, create_cmd=ProductCreate, update_cmd=ProductUpdate),
    snapshot=FOUND,
)


def build_runtime(redis_dsn: str) -> ExecutionRuntime:
    """One process's worth of the application."""
    return ExecutionRuntime(
        deps=DepsPlan.from_modules(
            MemoryDepsModule(documents={"products"}, search_snapshots=()),
            RedisDepsModule(
                client=RedisClient(),
                search_snapshots={
                    "products": RedisSearchSnapshotConfig(namespace=f"{NAMESPACE}:products"),
                    "reports": RedisSearchSnapshotConfig(namespace=f"{NAMESPACE}:reports"),
                },
            ),
        ),
        lifecycle=LifecyclePlan.from_steps(redis_lifecycle_step(dsn=redis_dsn)),
        specs=[PRODUCTS, REPORTS],
    )


async def write(redis_dsn: str) -> None:
    """Freeze a hundred thousand ids."""
    async with build_runtime(redis_dsn).scope() as ctx:
        await ctx.search_snapshot(REPORTS).put_run("yearly", "of the worker", range(100_000))


if __name__ == "__main__":
    asyncio.run(write(sys.argv[1]))
