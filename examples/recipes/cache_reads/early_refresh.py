"""Early refresh: a hot entry is loaded anew shortly before its end, by one reader in the fleet.

Without it, everyone who reads a hot document at its expiry waits for the load. With it nobody
does but the elected reader, and with ``early_refresh_background`` not even that one. The source
is a view that takes 30 ms, the ttl short, so that there is something to see; run as a script,
this draws the time of every read before and after.
"""

from __future__ import annotations

import asyncio
import statistics
import sys
import time
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from uuid import UUID

from app import PRODUCT_SPEC, SCHEMA, ProductCreate
from plot import timelines
from servers import Servers
from stage import perform, replica, say, title

from forze.application.contracts.cache import CacheSpec
from forze_postgres import PostgresDocumentConfig

READERS, PAUSE_S = 20, 0.004
SECONDS = 3.0
TTL, LOAD = timedelta(seconds=0.6), timedelta(seconds=0.03)

PLAIN = CacheSpec(name="products", ttl=TTL)
RUNS = {
    "off": PLAIN,
    "early_refresh_beta=1.0": replace(PLAIN, early_refresh_beta=1.0),
    "the same, in the background": replace(
        PLAIN, early_refresh_beta=1.0, early_refresh_background=True
    ),
}

SLOW_VIEW = f"""
CREATE VIEW {SCHEMA}.slow_products AS
SELECT products.* FROM {SCHEMA}.products
CROSS JOIN LATERAL (SELECT pg_sleep({LOAD.total_seconds()}) WHERE products.price >= 0) AS slow
"""
SLOW = PostgresDocumentConfig(read=(SCHEMA, "slow_products"), write=(SCHEMA, "products"))


@dataclass(frozen=True)
class Run:
    """One run: every read as ``(when_s, took_ms)``, loads, and how many reads waited for one."""

    reads: list[tuple[float, float]]
    loads: int
    waited: int


async def run(at: Servers) -> dict[str, Run]:
    """Three runs of the same load, by name, and their figures."""
    load_ms = LOAD.total_seconds() * 1000
    title(
        f"Early refresh: {READERS} readers of one product, ttl {TTL.total_seconds()} s, loads "
        f"of {load_ms:.0f} ms"
    )
    async with replica(at) as here:
        await here.postgres.rows(SLOW_VIEW, doing="make the slow view", write=True)
    runs = {}
    say(f"{'':<28} {'reads':>7} {'loads':>6} {'waited for one':>15} {'median':>9} {'slowest':>9}")
    for name, cache in RUNS.items():
        done = runs[name] = await _loaded(at, cache)
        times = [ms for _, ms in done.reads]
        say(
            f"{name:<28} {len(times):>7,} {done.loads:>6} {done.waited:>15} "
            f"{statistics.median(times):>6.2f} ms {max(times):>6.1f} ms"
        )
    return runs


async def _loaded(at: Servers, cache: CacheSpec) -> Run:
    """``READERS`` read one product for ``SECONDS``, beginning with a warm cache."""
    spec = replace(PRODUCT_SPEC, cache=cache)
    async with replica(at, table=SLOW) as here:
        docs, query = here.ctx.document.command(spec), here.ctx.document.query(spec)
        product = await docs.create(ProductCreate(name="Widget", price=10))
        await query.get(product.id)
        reads: list[tuple[float, float]] = []
        began = time.perf_counter()

        async def reader(id: UUID) -> None:
            while (asked := time.perf_counter()) - began < SECONDS:
                await query.get(id)
                reads.append((asked - began, (time.perf_counter() - asked) * 1000))
                await asyncio.sleep(PAUSE_S)

        await asyncio.gather(*(reader(product.id) for _ in range(READERS)))
        stats = query.stats()
        assert stats is not None
        await docs.kill(product.id)
        elected = 0 if cache.early_refresh_background else stats.refreshes
        # All but the load that warmed the cache.
        return Run(reads, stats.source_reads - 1, stats.misses - 1 + stats.collapsed + elected)


def draw(runs: dict[str, Run], where: Path) -> None:
    """Write the runs' timelines."""
    load_ms = LOAD.total_seconds() * 1000
    heading = f"The slowest of {READERS} readers' reads, every 10 ms; a load takes {load_ms:.0f} ms"
    rows = {f"{name}: {each.waited} reads waited": each.reads for name, each in runs.items()}
    where.write_text(timelines(heading, rows, SECONDS))
    say(f"drawn: {where}")


async def _run_and_draw(at: Servers) -> None:
    where = sys.argv[1] if len(sys.argv) > 1 else Path(__file__).with_suffix(".svg")
    draw(await run(at), Path(where))


if __name__ == "__main__":
    sys.exit(perform(_run_and_draw))
