"""Promises about what a read costs and who gets it, counted by the server itself."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
import redis.asyncio
from tests.architecture.application import ITEMS, ItemCreate, ItemRead, ItemUpdate, replicas

from forze.errors import NotFoundError, TenantRequired


async def scripts_sent(dsn: str) -> int:
    """How many scripts the server was sent: each call of the cache is one."""
    async with redis.asyncio.Redis.from_url(dsn) as client:
        stats = await client.info("commandstats")
    return sum(stats.get(f"cmdstat_{name}", {"calls": 0})["calls"] for name in ("evalsha", "eval"))


async def by_callers(
    callers: int, items: list[ItemRead], work: Callable[[ItemRead], Coroutine[Any, Any, Any]]
) -> None:
    """``work`` on every item, split between ``callers`` tasks."""

    async def caller(mine: list[ItemRead]) -> None:
        for item in mine:
            await work(item)

    async with asyncio.TaskGroup() as group:
        for number in range(callers):
            group.create_task(caller(items[number::callers]))


@pytest.mark.parametrize("callers", [1, 32])
async def test_commands_per_operation(redis_dsn: str, callers: int) -> None:
    """P8: one per hit, two per miss, two per update, none per create; by the server's count."""
    async with replicas(1, redis_dsn) as (ctx,):
        query, docs = ctx.document.query(ITEMS), ctx.document.command(ITEMS)
        warm = await docs.create(ItemCreate(name="loads the scripts"))
        await query.get(warm.id)
        await docs.update(warm.id, warm.rev, ItemUpdate(name="all of them"))

        marks = [await scripts_sent(redis_dsn)]
        items = await docs.create_many([ItemCreate(name="a") for _ in range(64)])
        marks.append(await scripts_sent(redis_dsn))
        for work in (
            lambda item: query.get(item.id),
            lambda item: query.get(item.id),
            lambda item: docs.update(item.id, item.rev, ItemUpdate(name="b")),
        ):
            await by_callers(callers, items, work)
            marks.append(await scripts_sent(redis_dsn))
        created, missed, hit, updated = (
            after - before for before, after in itertools.pairwise(marks)
        )
        assert (created, missed, hit, updated) == (0, 128, 64, 128)


async def test_a_batch_of_hits_is_one_command(redis_dsn: str) -> None:
    """P8: also a hundred at once."""
    async with replicas(1, redis_dsn) as (ctx,):
        query = ctx.document.query(ITEMS)
        items = await ctx.document.command(ITEMS).create_many(
            [ItemCreate(name=str(number)) for number in range(100)]
        )
        ids = [item.id for item in items]
        await query.get_many(ids)
        before = await scripts_sent(redis_dsn)
        found = await query.get_many(ids)
        assert await scripts_sent(redis_dsn) - before == 1
        assert [item.name for item in found] == [str(number) for number in range(100)]


async def test_concurrent_misses_are_one_load(valkey_dsn: str) -> None:
    """P7: 200 callers in each of two replicas, one load."""
    async with replicas(2, valkey_dsn) as contexts:
        item = await contexts[0].document.command(ITEMS).create(ItemCreate(name="hot"))
        queries = [ctx.document.query(ITEMS) for ctx in contexts]
        found = await asyncio.gather(*(query.get(item.id) for query in queries * 200))
        assert {each.name for each in found} == {"hot"}
        stats = [query.stats() for query in queries]
        assert sum(each.source_reads for each in stats if each) == 1
        assert sum(each.fills for each in stats if each) == 1


async def test_tenants_have_entries_of_their_own(valkey_dsn: str) -> None:
    """P9: not even a concurrent read of one id by two tenants is shared."""
    async with replicas(1, valkey_dsn, tenant_aware=True) as (ctx,):
        query = ctx.document.query(ITEMS)

        async def read_as(tenant: str) -> ItemRead:
            with ctx.bind_tenant(tenant):
                return await query.get(item.id)

        with ctx.bind_tenant("a"):
            item = await ctx.document.command(ITEMS).create(ItemCreate(name="of a"))
        for _ in range(2):  # a miss, then a hit
            mine, others = await asyncio.gather(read_as("a"), read_as("b"), return_exceptions=True)
            assert isinstance(mine, ItemRead)
            assert mine.name == "of a"
            assert isinstance(others, NotFoundError)
        with pytest.raises(TenantRequired):
            await query.get(item.id)
