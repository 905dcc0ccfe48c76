"""What single operations cost: commands sent, misses, batches, updates, ports, entries."""

from __future__ import annotations

import asyncio
import gc
import time
import tracemalloc
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import replace
from datetime import timedelta
from functools import partial
from random import Random
from typing import Any
from uuid import UUID

from bench import updates, wrappers
from bench.info import counted
from bench.peers.products import ProductCreate, ProductUpdate
from bench.plots import Bars, Lines
from bench.policies import lru_store, tiny_lfu_store
from bench.report import Figure
from bench.run import Run
from bench.traces import zipf
from bench.workload import CACHED, wired
from forze.application.contracts.cache import CacheSpec

TEXT = (
    "What a miss, an update, a batch and an entry take. Subjects of a line take turns on one "
    "loop; servers are on the same machine."
)
CALLERS = (1, 32)
SIZES, FULL_SIZES = (1, 10, 100, 1_000), (1, 3, 10, 30, 100, 300, 1_000)
BATCH_SHARE = 0.4  # of a visit's length, since there are so many
ENTRIES, FULL_ENTRIES = (10_000,), (1_000, 5_000, 10_000, 20_000, 50_000)
EVERYTHING = CacheSpec(
    name="products",
    ttl=timedelta(hours=1),
    sliding_ttl=timedelta(minutes=10),
    early_refresh_beta=1.0,
)


def run(run: Run) -> None:
    """Measure each, one after the other."""
    run.report.begin("operations", TEXT)
    asyncio.run(measure_commands(run))
    asyncio.run(_misses(run))
    asyncio.run(_batches(run))
    for loop, factory in updates.LOOPS.items():
        with asyncio.Runner(loop_factory=factory) as runner:
            runner.run(updates.measure(run, loop))
    asyncio.run(wrappers.measure(run))
    asyncio.run(_resolving(run))
    _entries(run)


# -- commands ------------------------------------------------------------------------


async def measure_commands(run: Run) -> None:
    """Commands per operation, at 1 and at 32 callers."""
    print("\n  commands that the server is sent, by its own account (MONITOR)")
    async with wired(run.at) as ctx:
        query, docs = ctx.document.query(CACHED), ctx.document.command(CACHED)
        for callers in CALLERS:
            fresh = await docs.create_many(
                [ProductCreate(name="n", price=1, description="d") for _ in range(320)]
            )

            async def read(each: Any) -> None:
                await query.get(each.id)

            async def update(each: Any) -> None:
                await docs.update(each.id, each.rev, ProductUpdate(price=2))

            for what, operation, most in (
                ("miss", read, 2),
                ("hit", read, 1),
                ("update", update, 2),
            ):
                with counted(run.at.valkey.dsn) as sent:
                    await _each(operation, fresh, callers)
                _told(run, f"commands per {what}, {_callers(callers)}", sent, len(fresh), most)
        await query.get_many(run.ids[:100])
        with counted(run.at.valkey.dsn) as sent:
            await query.get_many(run.ids[:100])
        _told(run, "commands, and so round trips, per get_many(100), hits", sent, 1, 1)
    spec = replace(CACHED, cache=EVERYTHING)
    async with wired(run.at, spec) as ctx:
        query = ctx.document.query(spec)
        await query.get_many(run.ids[:320])
        with counted(run.at.valkey.dsn) as sent:
            await _each(query.get, run.ids[:320], 32)
    _told(run, "commands per hit, sliding and early refresh on", sent, 320, 1)
    run.at.valkey.ask("FLUSHALL")


def _told(run: Run, what: str, sent: Sequence[str], operations: int, most: float) -> None:
    """Commands per operation; of a server that was sent none nothing can be said."""
    found = len(sent) / operations
    run.report.fact(what, found)
    run.report.target(what, found or None, most=most)


def _callers(number: int) -> str:
    return "1 caller" if number == 1 else f"{number} callers"


async def _each(
    operation: Callable[[Any], Awaitable[Any]], values: Iterable[Any], callers: int
) -> None:
    """``callers`` tasks, until each value has had its turn."""
    waiting = iter(values)

    async def caller() -> None:
        for each in waiting:
            await operation(each)

    await asyncio.gather(*(caller() for _ in range(callers)))


# -- misses --------------------------------------------------------------------------


async def _misses(run: Run) -> None:
    """A miss is a read of the cache, of PostgreSQL, and a fill, in that order."""
    groups: dict[str, dict[str, Figure]] = {}
    async with wired(run.at) as ctx:
        query = ctx.document.query(CACHED)
        straight = partial(query.get, skip_cache=True)

        async def visit(
            read: Callable[[UUID], Awaitable[Any]], callers: int
        ) -> tuple[float, float]:
            run.at.valkey.ask("FLUSHALL")
            began, spent = time.perf_counter(), time.process_time()
            await _each(read, run.ids, callers)
            each = 1e6 / len(run.ids)
            return (time.perf_counter() - began) * each, (time.process_time() - spent) * each

        for callers in CALLERS:
            await visit(straight, callers)  # whose connections are there then
            found = await run.async_turns(
                "misses",
                {
                    "miss": partial(visit, query.get, callers),
                    "PostgreSQL": partial(visit, straight, callers),
                },
            )
            (miss, miss_cpu), (plain, plain_cpu) = (
                map(Figure.of, zip(*each, strict=True)) for each in found.values()
            )
            title = f"a miss beside reading PostgreSQL, {_callers(callers)}"
            figures = {
                "miss": miss,
                "straight from PostgreSQL": plain,
                "on top": Figure.of(a - b for a, b in zip(miss.values, plain.values, strict=True)),
                "miss, processor": miss_cpu,
                "straight, processor": plain_cpu,
            }
            run.report.compare(title, "us per read", figures, ours="")
            ratios = {
                "on the clock": miss.over(plain),
                "of the processor": miss_cpu.over(plain_cpu),
            }
            run.report.compare(f"{title}: a miss over a plain read", "times", ratios, ours="")
            groups[_callers(callers)] = {"forze, a miss": miss, "PostgreSQL": plain}
    run.report.plot("miss", Bars("A cold miss beside reading PostgreSQL", "us per read", groups))


# -- batches -------------------------------------------------------------------------


async def _batches(run: Run) -> None:
    """``get_many`` of hits against as many ``get``, one caller."""
    seconds = run.seconds * BATCH_SHARE
    points: dict[str, list[tuple[float, Figure]]] = {"forze get_many": [], "get, one by one": []}
    rows = {}
    async with wired(run.at) as ctx:
        query = ctx.document.query(CACHED)
        await query.get_many(run.ids)

        async def singly(ids: list[UUID]) -> None:
            for each in ids:
                await query.get(each)

        async def visit(read: Callable[[list[UUID]], Awaitable[Any]], size: int) -> float:
            calls, began = 0, time.perf_counter()
            while not calls or time.perf_counter() < began + seconds:
                await read(run.ids[:size])
                calls += 1
            return (time.perf_counter() - began) / calls / size * 1e6

        for size in FULL_SIZES if run.full else SIZES:
            found = await run.async_turns(
                "batches",
                {
                    "together": partial(visit, query.get_many, size),
                    "singly": partial(visit, singly, size),
                },
            )
            together, apart = (Figure.of(each) for each in found.values())
            rows[f"get_many({size:,})"] = (together, f"{size:,} get", apart)
            points["forze get_many"].append((size, together))
            points["get, one by one"].append((size, apart))
            if size == 100:
                run.report.target(
                    "get_many(100) over 100 gets", apart.over(together).median, least=5
                )
    run.report.pairs("get_many of hits, 1 caller", "us per document", rows)
    plot = Lines("Hits read together, 1 caller", "documents", "us per document", points)
    run.report.plot("get-many", plot)


# -- ports and entries ---------------------------------------------------------------


async def _resolving(run: Run) -> None:
    """Microseconds to resolve a port again."""
    times = []
    async with wired(run.at) as ctx:
        resolve, spec = ctx.document.query, CACHED
        for _ in range(run.rounds * 4):
            began = time.perf_counter()
            for _ in range(10_000):
                resolve(spec)
            times.append((time.perf_counter() - began) / 10_000 * 1e6)
    figure = Figure.of(times)
    run.report.compare(
        "resolving a port again", "us", {"ctx.document.query(spec)": figure}, ours=""
    )
    run.report.target("resolving a port again, us", figure.median, most=0.5)


def _entries(run: Run) -> None:
    """What an entry of an in-process store takes beyond its document and key."""
    rows: dict[str, dict[str, float]] = {}
    for size in FULL_ENTRIES if run.full else ENTRIES:
        rows[f"{size:,} entries"] = {
            "LRU": entry_bytes(lru_store, size),
            "W-TinyLFU": entry_bytes(tiny_lfu_store, size),
        }
    run.report.table("memory per entry in process, beyond document and key", "bytes", rows)
    for store, most in (("LRU", 200), ("W-TinyLFU", 300)):
        found = rows["10,000 entries"][store]
        run.report.target(f"bytes per entry of {store} beyond document and key", found, most=most)


def entry_bytes(make: Callable[[int], Any], capacity: int) -> float:
    """Bytes per entry beyond key and value, in a full store that has seen evictions."""
    keys = [b"%016d" % key for key in range(4 * capacity)]
    order = [keys[key] for key in zipf(Random(3), len(keys), 0.9, 20 * capacity)]
    value = object()
    gc.collect()
    tracemalloc.start()
    try:
        store = make(capacity)
        for key in order:
            if store.get(key) is None:
                store.set(key, value)
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    return held / float(store.stats().size)
