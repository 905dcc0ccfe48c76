"""A scan: a batch job reads thousands of documents once, past a hot set that is read all day.

Under LRU each document of the scan pushes a hot one out of the L1. W-TinyLFU asks first whether
the newcomer has been wanted more often than the one that would leave for it.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any

from app import PRODUCT_SPEC, ProductCreate
from servers import Servers
from stage import perform, replica, say, title

from forze.application.contracts.cache import CacheSpec, L1Spec
from forze.application.integrations.document import L1Stats, lru_l1_store, tiny_lfu_l1_store

HOT, SCANNED, CAPACITY = 80, 2_000, 100
SCANNED_PER_HOT_READ = 2


async def run(at: Servers) -> None:
    title(f"A scan of {SCANNED:,} documents past {HOT} hot ones, in an L1 of {CAPACITY}")
    ratios = [await _scanned(at, store) for store in (lru_l1_store, tiny_lfu_l1_store)]
    say(f"W-TinyLFU keeps {100 * (ratios[1] - ratios[0]):.0f} points more of them than LRU")


async def _scanned(at: Servers, store: Callable[[L1Spec], Any]) -> float:
    """The share of hot reads that an L1 with this ``store`` answered during the scan."""
    l1 = L1Spec(ttl=timedelta(seconds=60), capacity=CAPACITY, store_factory=store)
    spec = replace(PRODUCT_SPEC, cache=CacheSpec(name="products", l1=l1))
    async with replica(at) as here:
        docs, query = here.ctx.document.command(spec), here.ctx.document.query(spec)

        def l1_stats() -> L1Stats:
            return here.ctx.l1_stats()[spec.name]

        made = [ProductCreate(name=f"Product {n}", price=n) for n in range(HOT + SCANNED)]
        ids = [each.id for each in await docs.create_many(made)]
        hot, scanned = ids[:HOT], ids[HOT:]
        dice, hits, asked = random.Random(1), 0, 0
        for _ in range(10):  # an ordinary morning
            await query.get_many(hot)
        for at_once in range(0, SCANNED, SCANNED_PER_HOT_READ):
            for each in scanned[at_once : at_once + SCANNED_PER_HOT_READ]:
                await query.get(each)
            before = l1_stats().hits
            await query.get(dice.choice(hot))
            hits += l1_stats().hits - before
            asked += 1
        say(f"{store.__name__:<18} hot reads in process: {hits / asked:>4.0%}  {l1_stats()}")
        await docs.kill_many(ids)
        return hits / asked


if __name__ == "__main__":
    sys.exit(perform(run))
