"""Runs the recipe and prints what happened: which read came from where, and what it cost.

Brings up its own PostgreSQL and Valkey unless ``POSTGRES_DSN`` and ``REDIS_DSN`` name
others, and leaves nothing behind, also on Ctrl-C, on SIGTERM and on failure.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Awaitable, Callable
from typing import Any

import early_refresh
import hot_documents
import lifetimes
import older_spelling
import push
import scan
from app import PRODUCT_SPEC, ProductCreate, ProductUpdate, cache_scenario
from servers import Servers
from stage import commands_sent, perform, replica

from forze.application.execution import ExecutionContext
from forze_postgres import PostgresClient
from forze_redis import RedisClient

WHERE = {
    "hits": "the cache",
    "source_reads": "PostgreSQL",
    "collapsed": "another caller's load",
    "bypasses": "PostgreSQL, past the cache",
}


class Narrator:
    """Runs steps one by one, and prints for each its source, its commands and its time."""

    def __init__(self, ctx: ExecutionContext, redis: RedisClient) -> None:
        self._query = ctx.document.query(PRODUCT_SPEC)
        self._redis = redis
        print(f"{'step':<18} {'outcome':<31} {'answered by':<13} {'commands':>8} {'time':>9}")

    async def step(
        self, name: str, outcome: str, call: Callable[..., Awaitable[Any]], *args: Any
    ) -> Any:
        """``await call(*args)``; ``outcome`` may use what it returns, as ``it``."""
        before, sent = self._query.stats(), await commands_sent(self._redis)
        began = time.perf_counter()
        result = await call(*args)
        took_ms = (time.perf_counter() - began) * 1000
        after = self._query.stats()
        sent = await commands_sent(self._redis) - sent
        where = next(
            (text for name, text in WHERE.items() if getattr(after, name) > getattr(before, name)),
            "PostgreSQL" if name.startswith(("create", "update")) else "the cache",
        )
        text = outcome.format(it=result)
        print(f"{name:<18} {text:<31} {where:<13} {sent:>8} {took_ms:>6.2f} ms", flush=True)
        return result


async def story(ctx: ExecutionContext, redis: RedisClient) -> None:
    """Create, read, read again, update, read: as in ``cache_scenario``, step by step."""
    docs = ctx.document.command(PRODUCT_SPEC)
    query = ctx.document.query(PRODUCT_SPEC)
    cache = ctx.cache(PRODUCT_SPEC.cache)
    tell = Narrator(ctx, redis).step

    made = ProductCreate(name="Widget", price=10)
    product = await tell("create", "{it.name}, price {it.price}", docs.create, made)
    await tell("get", "price {it.price}: a miss, fills", query.get, product.id)
    await tell("get again", "price {it.price}: a hit", query.get, product.id)
    await tell("cache.get", "price {it[price]}: the same entry", cache.get, str(product.id))
    change = product.id, product.rev, ProductUpdate(price=12)
    await tell("update", "price {it.price}: invalidates", docs.update, *change)
    assert await cache.get(str(product.id)) is None
    fresh = await tell("get", "price {it.price}: a miss, fills", query.get, product.id)
    assert fresh.price == 12
    await tell("get again", "price {it.price}: a hit", query.get, product.id)
    await docs.kill(product.id)


async def run(at: Servers) -> None:
    """The story, both scenarios as they stand in the recipe's files, then each further step."""
    print(f"PostgreSQL: {'our own, for this run' if at.pg_is_ours else 'yours, POSTGRES_DSN'}")
    print(
        f"Redis:      {'our own Valkey, for this run' if at.redis_is_ours else 'yours, REDIS_DSN'}"
    )
    print(flush=True)
    async with replica(at) as here:
        await story(here.ctx, here.redis)
        fresh = await cache_scenario(here.ctx)
        await here.ctx.document.command(PRODUCT_SPEC).kill(fresh.id)
        print(f"\ncache_scenario: price {fresh.price}, never stale", flush=True)
    older = older_spelling.build_runtime(
        PostgresClient(), RedisClient(), pg_dsn=at.pg_dsn, redis_dsn=at.redis_dsn
    )
    async with older.scope() as ctx:
        fresh = await older_spelling.cache_scenario(ctx)
        await ctx.doc_command(older_spelling.PRODUCT_SPEC).kill(fresh.id)
        print(f"older spelling: price {fresh.price}, the same implementation", flush=True)
    for step in (hot_documents, push, scan, early_refresh, lifetimes):
        await step.run(at)


if __name__ == "__main__":
    sys.exit(perform(run))
