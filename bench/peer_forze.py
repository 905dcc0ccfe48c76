"""forze 0.16.2 as a peer: run by an environment of its own, since it has our import names.

Started by :mod:`bench.hot` with both DSNs and the ids of documents as arguments, it wires the
documents as its own documentation does, and answers one line per question on its standard
input: ``l1 SECONDS`` or ``redis SECONDS CALLERS`` gives microseconds per read.
"""

from __future__ import annotations

import asyncio
import sys
import time
from datetime import timedelta
from uuid import UUID

from forze.application.contracts.cache import CacheSpec, L1Spec
from forze.application.contracts.document import DocumentSpec, DocumentWriteTypes
from forze.application.execution import DepsRegistry, ExecutionRuntime, LifecyclePlan
from forze.domain.models import BaseDTO, CreateDocumentCmd, Document, ReadDocument
from forze_postgres import (
    PostgresClient,
    PostgresConfig,
    PostgresDepsModule,
    PostgresDocumentConfig,
    PostgresLifecycleModule,
)
from forze_redis import RedisCacheConfig, RedisClient, RedisDepsModule, redis_lifecycle_step


class Product(Document):
    name: str
    price: int
    description: str


class ProductCreate(CreateDocumentCmd):
    name: str
    price: int
    description: str


class ProductUpdate(BaseDTO):
    price: int | None = None


class ProductRead(ReadDocument):
    name: str
    price: int
    description: str


def spec(name, **cache):
    return DocumentSpec(
        name=name,
        read=ProductRead,
        write=DocumentWriteTypes(
            domain=Product, create_cmd=ProductCreate, update_cmd=ProductUpdate
        ),
        cache=CacheSpec(name=name, ttl=timedelta(hours=1), **cache),
    )


SPECS = {
    "l1": spec("hot", l1=L1Spec(ttl=timedelta(minutes=10), capacity=1024)),
    "redis": spec("products"),
}


async def main(postgres: str, redis: str, ids: list[UUID]) -> None:
    pg, client = PostgresClient(), RedisClient()
    table = PostgresDocumentConfig(
        read=("public", "products"),
        write=("public", "products"),
        bookkeeping_strategy="application",
    )
    runtime = ExecutionRuntime(
        deps=DepsRegistry.from_modules(
            PostgresDepsModule(client=pg, rw_documents={"hot": table, "products": table}),
            RedisDepsModule(
                client=client,
                caches={
                    name: RedisCacheConfig(namespace=f"peer:{name}") for name in ("hot", "products")
                },
            ),
        ).freeze(),
        lifecycle=LifecyclePlan.from_modules(
            PostgresLifecycleModule(client=pg, dsn=postgres, config=PostgresConfig())
        )
        .with_steps(redis_lifecycle_step(dsn=redis))
        .freeze(),
    )
    async with runtime.scope():
        ctx = runtime.get_context()
        loop = asyncio.get_running_loop()
        print("ready", flush=True)
        while line := (await loop.run_in_executor(None, sys.stdin.readline)).split():
            what, seconds, callers = line[0], float(line[1]), int(line[2])
            reads = await work(ctx, SPECS[what], ids, seconds, callers)
            print(reads, flush=True)


async def work(ctx, wanted, ids, seconds, callers) -> float:
    query = ctx.document.query(wanted)
    for each in dict.fromkeys(ids):
        await query.get(each)
    until = time.perf_counter() + seconds

    async def caller(start: int) -> int:
        done, at = 0, start
        while time.perf_counter() < until:
            await ctx.document.query(wanted).get(ids[at % len(ids)])
            done, at = done + 1, at + 1
        return done

    began = time.perf_counter()
    done = sum(await asyncio.gather(*(caller(97 * n) for n in range(callers))))
    return (time.perf_counter() - began) / done * 1e6


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], [UUID(each) for each in sys.argv[3].split(",")]))
