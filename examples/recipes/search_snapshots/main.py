"""Tells the story: pages that stand still, cursors, shared searches, a killed writer."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

from app import NAMESPACE, PRODUCTS, REPORTS, ProductCreate, ProductUpdate, build_runtime

from forze.application.execution import ExecutionContext
from forze.errors import SnapshotGone, ValidationError
from forze.testing.proxy import RespProxy, script
from forze.testing.servers import ValkeyServer
from forze_redis import RedisClient
from forze_redis.search_snapshot import PUBLISH

APP = Path(__file__).with_name("app.py")
SEARCH: dict[str, Any] = {"filters": {"price": {"gte": 10}}, "sort": ["price"], "limit": 3}


def say(text: str) -> None:
    """A line of the story."""
    print(text, flush=True)


async def standing_still(ctx: ExecutionContext) -> None:
    """The data changes between the pages, the pages do not."""
    command, query = ctx.document.command(PRODUCTS), ctx.document.query(PRODUCTS)
    products = await command.create_many([ProductCreate(price=10 * each) for each in range(1, 8)])
    page = await query.find_snapshot(**SEARCH)
    say(f"page 1 of {page.total} products: prices {[each.price for each in page.items]}")
    await command.create(ProductCreate(price=15))
    await command.kill(products[3].id)
    await command.update(products[4].id, products[4].rev, ProductUpdate(price=5))
    say("meanwhile: one for 15 is added, the one for 40 removed, the one for 50 is 5 now")
    number = 1
    while page.next_cursor is not None:
        page, number = await query.find_snapshot(**SEARCH, after=page.next_cursor), number + 1
        prices = [each.price for each in page.items]
        say(f"page {number}: prices {prices}, {len(page.missing)} removed since")


async def cursors(ctx: ExecutionContext) -> None:
    """A cursor is good for who was given it, and for as long as the snapshot lives."""
    query = ctx.document.query(PRODUCTS)
    with ctx.bind_principal("ann"):
        cursor = (await query.find_snapshot(**SEARCH)).next_cursor or ""
    for who, text in (("bob", cursor), ("ann", cursor[:-2] + "AA")):
        with ctx.bind_principal(who):
            try:
                await query.find_snapshot(**SEARCH, after=text)
            except ValidationError:
                same = "ann's cursor" if text == cursor else "a cursor that was changed"
                say(f"{who} with {same}: refused")
    await asyncio.sleep(1.1)
    with ctx.bind_principal("ann"):
        try:
            await query.find_snapshot(**SEARCH, after=cursor)
        except SnapshotGone as error:
            say(f"a second later: {error}")
        page = await query.find_snapshot(**SEARCH, after=cursor, gone="rebuild")
        say(f"rebuilt: prices {[each.price for each in page.items]}, rebuilt={page.rebuilt}")


async def shared(ctx: ExecutionContext) -> None:
    """Equal searches at once run the query once."""
    query = ctx.document.query(PRODUCTS)
    pages = await asyncio.gather(*(query.find_snapshot(**SEARCH, share=True) for _ in range(50)))
    runs = len({each.next_cursor for each in pages})
    say(f"50 equal searches at once: {runs} snapshot")
    assert runs == 1


async def large(ctx: ExecutionContext) -> None:
    """A hundred thousand ids of somebody else's search."""
    reports = ctx.search_snapshot(REPORTS)
    ids = [uuid4() for _ in range(100_001)]
    began = time.perf_counter()
    meta = await reports.put_run("yearly", "of the story", ids)
    wrote_ms = (time.perf_counter() - began) * 1e3
    began = time.perf_counter()
    for number in range(1_000):
        page = await reports.get_id_range("yearly", 97 * number, 50, "of the story")
        assert page == ids[97 * number : 97 * number + 50]
    page_us = (time.perf_counter() - began) * 1e3
    say(
        f"{meta.total:,} of {len(ids):,} ids frozen in {wrote_ms:.0f} ms "
        f"(truncated={meta.truncated}); a page of 50 anywhere in it: {page_us:.0f} us"
    )


async def killed(redis_dsn: str, ctx: ExecutionContext) -> None:
    """Another process writes the same run, and is killed before its last part."""
    reports, place = ctx.search_snapshot(REPORTS), urlsplit(redis_dsn)
    async with RespProxy(place.port or 6379, place.hostname or "127.0.0.1") as proxy:
        last = proxy.hold_request(script(PUBLISH))
        process = await asyncio.create_subprocess_exec(
            sys.executable, str(APP), f"redis://127.0.0.1:{proxy.port}{place.path}"
        )
        try:
            await last.seen()
        finally:
            process.kill()
            await process.wait()
        meta = await reports.get_meta("yearly")
        say(f"a writer killed before its last part: the run is {meta.state}, {meta.fingerprint}")
        assert meta.fingerprint == "of the story"
    await reports.delete_run("yearly")
    say(f"deleted, with what was left of the writer: {(await reports.get_meta('yearly')).state}")


@asynccontextmanager
async def swept(dsn: str) -> AsyncIterator[None]:
    """The recipe's keys, which go again."""
    async with await RedisClient().connect(dsn) as client:
        try:
            yield
        finally:
            keys = [key async for key in client.redis.scan_iter(f"{NAMESPACE}:*", count=1_000)]
            if keys:
                await client.call("UNLINK", *keys)


async def main() -> None:
    """Every step, on a server that is gone afterwards."""
    async with AsyncExitStack() as stack:
        dsn = os.environ.get("REDIS_DSN") or stack.enter_context(ValkeyServer()).dsn
        await stack.enter_async_context(swept(dsn))
        ctx = await stack.enter_async_context(build_runtime(dsn).scope())
        await standing_still(ctx)
        await cursors(ctx)
        await shared(ctx)
        await large(ctx)
        await killed(dsn, ctx)


if __name__ == "__main__":
    asyncio.run(main())
