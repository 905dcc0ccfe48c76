"""Cost per hit as one thing grows and everything else stands: it should not grow along."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import asyncpg

from bench.info import Meter, Spent
from bench.peers import Worker, WorkerFailed
from bench.plots import Lines
from bench.report import Figure
from bench.run import Run
from forze.testing.servers import ValkeyServer

AT_ONCE = 32
"""Callers, wherever it is not they who grow."""

TRIES = 5
"""Visits in which the busy machine's server did not answer in time are made again."""

ROWS_AT_ONCE = 10_000
_FILL = """
    INSERT INTO {table} (id, rev, created_at, last_update_at, name, price, description{column})
    SELECT gen_random_uuid(), 1, now(), now(), 'Product ' || n, n, repeat('x', 280){value}
    FROM generate_series($1::int, $2::int) AS n
"""
_TENANTS = {"column": ", tenant_id", "value": ", md5((n % $3::int)::text)::uuid"}


@dataclass(frozen=True)
class Cost:
    """What one visit cost, per operation: microseconds, and commands by the server's count."""

    wall: float
    client: float
    server: float
    commands: float
    kept: float
    per_second: float


def run(run: Run) -> None:
    """Every dimension in turn."""
    run.report.begin(
        "scale",
        "All reads are hits, every document equally likely; one thing grows, the rest stands: "
        f"10,000 documents (1,000 where namespaces, callers or processes grow), {AT_ONCE} callers, "
        "one client process. CPU is processor time: the client's own, and the server's by INFO.",
    )
    commands = [
        *_documents(run, (1_000, 10_000, 100_000) if run.full else (1_000, 20_000)),
        *_callers(run, (1, 4, 16, 64, 256, 1_024) if run.full else (1, 32, 1_024)),
        *_processes(run, (1, 2, 4, 8) if run.full else (1, 4)),
        *_tenants(run, (1, 10, 100, 1_000, 10_000) if run.full else (1, 10_000)),
        *_namespaces(run, (1, 10, 100, 1_000) if run.full else (1, 300)),
    ]
    run.report.target("commands per hit through Redis, at every size", max(commands), most=1.005)


# -- what grows ----------------------------------------------------------------


def _documents(run: Run, sizes: Sequence[int]) -> list[float]:
    """On a server, and in a table, of each size; the in-process tiers hold all of them."""
    tables = {size: f"scale_documents_{size}" for size in sizes}
    for size, table in tables.items():
        asyncio.run(make(run, table, size))
    with ExitStack() as stack:
        visits: dict[str, Callable[[], Cost]] = {}
        for size, table in tables.items():
            place = Place(stack, run, tables=[table])
            l1 = {"capacity": size + size // 10}
            visits[f"through Redis {size}"] = place.reading()
            visits[f"GET {size}"] = place.getting()
            visits[f"async dict {size}"] = place.looking_up()
            visits[f"LRU {size}"] = place.reading(callers=1, l1=l1)
            visits[f"W-TinyLFU {size}"] = place.reading(callers=1, l1={**l1, "store": "tiny_lfu"})
        found = run.turns("documents", visits)
    return _shown(run, "documents", found, ("LRU", "W-TinyLFU"))


def _callers(run: Run, sizes: Sequence[int]) -> list[float]:
    with ExitStack() as stack:
        place = Place(stack, run)
        worker = [place.worker()]
        visits = {
            f"through Redis {size}": partial(place.visit, worker, "read", size) for size in sizes
        }
        found = run.turns("callers", visits)
    return _shown(run, "callers in one process", found)


def _processes(run: Run, sizes: Sequence[int]) -> list[float]:
    with ExitStack() as stack:
        place = Place(stack, run)
        workers = [place.worker() for _ in range(max(sizes))]
        visits = {
            f"through Redis {size}": partial(place.visit, workers[:size], "read", AT_ONCE)
            for size in sizes
        }
        found = run.turns("processes", visits)
    return _shown(run, "client processes", found)


def _tenants(run: Run, sizes: Sequence[int]) -> list[float]:
    """The same number of documents, of more and more tenants; each read binds its tenant."""
    tables = {size: f"scale_tenants_{size}" for size in sizes}
    for size, table in tables.items():
        asyncio.run(make(run, table, 10_000, tenants=size))
    with ExitStack() as stack:
        visits: dict[str, Callable[[], Cost]] = {}
        writes: dict[str, Callable[[], Cost]] = {}
        for size, table in tables.items():
            place = Place(stack, run, tables=[table], tenants=True)
            visits[f"through Redis {size}"] = place.reading()
            l1 = {"capacity": 11_000, "push": True}
            visits[f"LRU {size}"] = place.reading(callers=1, l1=l1)
            writes[f"announced {size}"] = place.announcing()
        found = run.turns("tenants", visits) | run.turns("tenants, writing", writes)
    return _shown(run, "tenants of one cache", found, ("LRU",))


def _namespaces(run: Run, sizes: Sequence[int]) -> list[float]:
    """The same number of documents, in more and more caches (and tables) of one runtime; pushes
    are followed by a second process, and on a server of its own by nobody."""
    with ExitStack() as stack:
        visits: dict[str, Callable[[], Cost]] = {}
        writes: dict[str, Callable[[], Cost]] = {}
        for size in sizes:
            tables = [f"scale_caches_{size}_{number}" for number in range(size)]
            asyncio.run(_make_many(run, tables, 1_000 // size))
            place = Place(stack, run, tables=tables)
            visits[f"through Redis {size}"] = place.reading()
            visits[f"without push {size}"] = Place(stack, run, tables=tables).reading()
            l1 = {"capacity": 1_100, "push": True}
            visits[f"LRU {size}"] = place.reading(callers=1, l1=l1)
            writes[f"announced {size}"] = place.announcing()
            writes[f"idle {size}"] = place.idling()
        found = run.turns("caches", visits) | run.turns("caches, writing", writes)
    return _shown(run, "caches in one runtime, with pushes", found, ("LRU",))


# -- measuring -----------------------------------------------------------------


class Place:
    """A server of its own, and the workers at it; all end with ``stack``."""

    def __init__(self, stack: ExitStack, run: Run, **settings: Any) -> None:
        self.server = stack.enter_context(ValkeyServer())
        self.meter = Meter(self.server.dsn)
        stack.callback(self.meter.close)
        self._stack, self._run, self._settings = stack, run, settings
        self._filled: list[Worker] = []

    def worker(self, **settings: Any) -> Worker:
        """One more client process, with every document cached."""
        given = {"valkey": self.server.dsn, "ids": [], **self._settings, **settings}
        started = self._run.peers.worker("forze", subject="load", loop="uvloop", **given)
        worker = self._stack.enter_context(started)
        assert worker is not None  # our own environment is there
        worker.ask("fill")
        self._filled.append(worker)
        return worker

    def reading(self, callers: int = AT_ONCE, **settings: Any) -> Callable[[], Cost]:
        """A visit of a worker of its own that reads."""
        return partial(self.visit, [self.worker(**settings)], "read", callers)

    def announcing(self) -> Callable[[], Cost]:
        """A visit of the worker last made that announces writes; what it reads is gone then."""
        return partial(self.visit, self._filled[-1:], "announce", AT_ONCE)

    def idling(self) -> Callable[[], Cost]:
        """A visit of the worker last made that does nothing."""
        worker, seconds = self._filled[-1], self._run.seconds

        def idle() -> Cost:
            return Cost(0, worker.ask("idle", seconds=seconds), 0, 0, 0, 0)

        return idle

    def looking_up(self) -> Callable[[], Cost]:
        """A visit of the worker last made that looks the keys up in a dict."""
        return partial(self.visit, self._filled[-1:], "dict", 1)

    def getting(self) -> Callable[[], Cost]:
        """A visit of the worker last made that sends bare GETs of the same bodies."""
        worker = self._filled[-1]
        worker.ask("record", what="get")
        return partial(self.measured, [worker], "replay", depth=AT_ONCE)

    def visit(self, workers: Sequence[Worker], what: str, callers: int) -> Cost:
        """All of them at work at once, for the time of a visit."""
        return self.measured(workers, "work", what=what, callers=callers)

    def measured(self, workers: Sequence[Worker], do: str, **arguments: Any) -> Cost:
        """What all of them do at once, for the time of a visit."""
        seconds = self._run.seconds
        for worker in workers:  # what a pause let fall asleep is awake again
            worker.ask(do, seconds=seconds / 10, **arguments)
        for _ in range(TRIES):
            before = self.meter.look()
            for worker in workers:
                worker.tell(do, seconds=seconds, **arguments)
            found = [worker.answer() for worker in workers]
            spent = self.meter.look() - before
            if not any(each.get("astray") for each in found):
                return costs(found, spent)
        raise WorkerFailed(f"the server does not answer in time ({do}, {arguments})")


def costs(found: Sequence[Mapping[str, float]], spent: Spent) -> Cost:
    """Of workers that worked at the same time, and the server behind them."""
    done = sum(each["reads"] for each in found)
    per_second = sum(1e6 / each["us"] for each in found)
    return Cost(
        wall=1e6 / per_second,
        client=sum(each["cpu"] * each["reads"] for each in found) / done,
        server=spent.cpu / done,
        commands=spent.scripts / done,
        kept=sum(each.get("kept", 0) * each["reads"] for each in found) / done,
        per_second=per_second,
    )


# -- showing -------------------------------------------------------------------


def _shown(
    run: Run, name: str, found: Mapping[str, Sequence[Cost]], tiers: Iterable[str] = ()
) -> list[float]:
    """Print and draw; the commands per hit of every size."""
    series = {
        what: figures(found, subject, field)
        for what, subject, field in (
            ("client CPU", "through Redis", "client"),
            ("forze: server CPU", "through Redis", "server"),
            ("time", "through Redis", "wall"),
            ("GET: server CPU", "GET", "server"),
            ("without push: client CPU", "without push", "client"),
            ("without push: server CPU", "without push", "server"),
            *((f"{tier} hit: CPU", tier, "client") for tier in tiers),
            ("async dict: CPU", "async dict", "client"),
        )
    }
    series = {what: points for what, points in series.items() if points}
    run.report.growth(f"{name}, per hit", "us", series)
    for tier in tiers:
        for size, share in figures(found, tier, "kept"):
            if share.median < 0.999:
                run.report.fact(f"{name}: answered in process ({tier}, {size:,.0f})", share.median)
    if announced := figures(found, "announced", "server"):
        updates = {"client CPU": figures(found, "announced", "client"), "server CPU": announced}
        run.report.growth(f"{name}, per write announced", "us", updates)
    if idle := figures(found, "idle", "client"):
        run.report.growth(f"{name}, idle", "us of CPU per second", {"client CPU": idle})
    title = f"Cost per hit by number of {name}"
    file = f"scale-{name.partition(' ')[0]}"
    run.report.plot(file, Lines(title, name, "us per hit", series, log_y=True))
    return [each.median for _, each in figures(found, "through Redis", "commands")]


def figures(
    found: Mapping[str, Sequence[Cost]], subject: str, field: str
) -> list[tuple[float, Figure]]:
    """The subject's points, where the names of visits are subject and size."""
    return [
        (float(size), Figure.of(getattr(each, field) for each in visits))
        for name, visits in found.items()
        for whose, _, size in [name.rpartition(" ")]
        if whose == subject
    ]


# -- tables --------------------------------------------------------------------


@asynccontextmanager
async def _connected(run: Run) -> AsyncIterator[asyncpg.Connection]:
    connection = await asyncpg.connect(run.at.postgres.dsn)
    try:
        yield connection
    finally:
        await connection.close()


async def make(run: Run, table: str, documents: int, *, tenants: int = 0) -> None:
    """A table of that many documents, shared out among the tenants."""
    async with _connected(run) as connection:
        await connection.execute(f"CREATE TABLE {table} (LIKE products INCLUDING ALL)")
        if tenants:
            await connection.execute(f"ALTER TABLE {table} ADD tenant_id uuid NOT NULL")
        fill = _FILL.format(table=table, **(_TENANTS if tenants else {"column": "", "value": ""}))
        for first in range(0, documents, ROWS_AT_ONCE):
            last = min(first + ROWS_AT_ONCE, documents)
            await connection.execute(fill, first + 1, last, *([tenants] if tenants else []))
        await connection.execute(f"ANALYZE {table}")


async def _make_many(run: Run, tables: Sequence[str], documents: int) -> None:
    """Tables of so many documents each; a hundred per commit, within the server's locks."""
    async with _connected(run) as connection:
        for first in range(0, len(tables), 100):
            async with connection.transaction():
                for table in tables[first : first + 100]:
                    await connection.execute(f"CREATE TABLE {table} (LIKE products INCLUDING ALL)")
                    fill = _FILL.format(table=table, column="", value="")
                    await connection.execute(fill, 1, max(1, documents))
