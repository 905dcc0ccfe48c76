"""Hot documents: an in-process L1 answers repeat reads, decoded, without a command to anyone.

The price is in the ttl: another replica may serve its own entry that long after a write. The
replica that wrote never does.
"""

from __future__ import annotations

import sys
import time
from dataclasses import replace
from datetime import timedelta

from app import PRODUCT_SPEC, ProductCreate, ProductUpdate
from servers import Servers
from stage import commands_sent, perform, replica, say, title, until

from forze.application.contracts.cache import CacheSpec, L1Spec

READS = 10_000
BUDGET = timedelta(seconds=1)

HOT = replace(
    PRODUCT_SPEC,
    cache=CacheSpec(name="products", l1=L1Spec(ttl=BUDGET, capacity=1024)),  # the whole opt-in
)


async def run(at: Servers) -> None:
    title(f"Hot documents: an L1 of {BUDGET.total_seconds():g} s in each process")
    async with replica(at) as here, replica(at) as there:
        docs, query = here.ctx.document.command(HOT), here.ctx.document.query(HOT)
        elsewhere = there.ctx.document.query(HOT)
        product = await docs.create(ProductCreate(name="Widget", price=10))
        await query.get(product.id)  # fills the cache and this process's L1

        sent, began = await commands_sent(here.redis), time.perf_counter()
        for _ in range(READS):
            await query.get(product.id)
        took_us = (time.perf_counter() - began) / READS * 1e6
        sent = await commands_sent(here.redis) - sent
        say(f"{READS:,} more reads: {sent} commands to the cache, {took_us:.1f} us each")

        assert (await elsewhere.get(product.id)).price == 10  # now in the other's L1 as well
        await docs.update(product.id, product.rev, ProductUpdate(price=12))
        written = time.monotonic()
        say(f"price 12 written; the writer reads {(await query.get(product.id)).price}")
        say(f"another replica still reads {(await elsewhere.get(product.id)).price}")

        async def reads_it() -> bool:
            return (await elsewhere.get(product.id)).price == 12

        seen = await until(reads_it)
        say(f"{seen - written:.2f} s after the write it reads 12: its entry's ttl is over")

        say(f"query.l1_stats(): {query.l1_stats()}")
        ratios = {name: f"{each.hit_ratio:.2%}" for name, each in here.ctx.l1_stats().items()}
        say(f"ctx.l1_stats(), hit ratios: {ratios}")
        await docs.kill(product.id)


if __name__ == "__main__":
    sys.exit(perform(run))
