"""Lifetimes: documents that rest are cached for longer, and entries that are read stay.

``age_ttl`` gives each entry a tenth of its document's age, within bounds. ``sliding_ttl`` keeps
an entry as long as it is read, up to ``ttl``.
"""

from __future__ import annotations

import asyncio
import sys
import time
from dataclasses import replace
from datetime import timedelta

from app import PRODUCT_SPEC, SCHEMA, ProductCreate, ProductRead
from servers import Servers
from stage import Replica, perform, replica, say, title

from forze.application.contracts.cache import AgeBasedTtl, CacheSpec

BY_AGE = AgeBasedTtl(alpha=0.1, min_ttl=timedelta(seconds=30), max_ttl=timedelta(hours=1))
CAP, WINDOW = timedelta(seconds=1.5), timedelta(seconds=0.5)

AGING = replace(PRODUCT_SPEC, cache=CacheSpec(name="products", age_ttl=BY_AGE))
SLIDING = replace(PRODUCT_SPEC, cache=CacheSpec(name="products", ttl=CAP, sliding_ttl=WINDOW))


async def run(at: Servers) -> None:
    title("Lifetimes: by age, and sliding")
    async with replica(at) as here:
        await aging(here)
    async with replica(at) as here:
        await sliding(here)


async def aging(here: Replica) -> None:
    """Three documents of different age, and what their entries were given."""
    docs, query = here.ctx.document.command(AGING), here.ctx.document.query(AGING)
    for age in (timedelta(minutes=1), timedelta(hours=1), timedelta(days=1)):
        product = await docs.create(ProductCreate(name="Widget", price=10))
        await here.postgres.rows(
            f"UPDATE {SCHEMA}.products SET last_update_at = now() - $1::interval WHERE id = $2",
            age,
            product.id,
            doing="let a product grow old",
            write=True,
        )
        await query.get(product.id)
        pointer, _ = await left(here, product)
        say(f"last updated {age!s:>14} ago: cached for {pointer:6.0f} s")
        await docs.kill(product.id)


async def sliding(here: Replica) -> None:
    """One entry, read for longer than it may live, then left alone."""
    docs, query = here.ctx.document.command(SLIDING), here.ctx.document.query(SLIDING)
    product = await docs.create(ProductCreate(name="Widget", price=10))
    say(f"sliding {WINDOW.total_seconds()} s within ttl {CAP.total_seconds()} s, read every 0.2 s:")
    began = time.monotonic()
    await query.get(product.id)
    while _loads(here) == 1:
        pointer, body = await left(here, product)
        say(f"  {time.monotonic() - began:4.1f} s: body {body:.2f} s, at most {pointer:.2f} s")
        await asyncio.sleep(0.2)
        await query.get(product.id)
    say(f"  {time.monotonic() - began:4.1f} s: loaded anew, because of the cap")
    await asyncio.sleep(WINDOW.total_seconds() + 0.1)
    await query.get(product.id)
    say(f"  unread for a window: {'gone, loaded again' if _loads(here) == 3 else 'still there'}")
    await docs.kill(product.id)


async def left(here: Replica, product: ProductRead) -> tuple[float, float]:
    """Seconds that the entry's pointer and body have left."""
    pointer = f"app:products/cache/pointer/{product.id}"
    body = f"app:products/cache/body/{product.id}/{product.rev}"
    ms = [await here.redis.call("PTTL", key) for key in (pointer, body)]
    return ms[0] / 1000, ms[1] / 1000


def _loads(here: Replica) -> int:
    stats = here.ctx.document.query(SLIDING).stats()
    return 0 if stats is None else stats.source_reads


if __name__ == "__main__":
    sys.exit(perform(run))
