"""A hot key: cold, expiring again and again, and written while replicas keep it in process."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import count
from statistics import quantiles
from typing import Any, NamedTuple

import asyncpg

from bench.peers import Worker, WorkerFailed
from bench.plots import Bars, Lines
from bench.report import Figure
from bench.run import Run

PROCESSES, CALLERS = 4, 200
COLD_SOURCE_MS = 50
COLD = {
    "forze": ("forze", "guarded"),
    "forze 0.16.2": ("forze 0.16.2", "guarded"),
    "cashews, lock": ("cashews", "guarded"),
    "aiocache, stampede": ("aiocache", "guarded"),
    "aiocache": ("aiocache", "plain"),
    "fastapi-cache2": ("fastapi-cache2", "plain"),
}
"""Whose, and which of its ways."""

SOURCE_SECONDS = 0.05
TTL_SECONDS = 1.0
STEADY_CALLERS, PAUSE_SECONDS = 25, 0.1
STEADY_VISIT = 7.5
"""How many times as long a visit is as the others': it has to see several lives of the entry."""


class Way(NamedTuple):
    """How one subject keeps the key: whose, its module, what that calls it."""

    peer: str
    subject: str
    how: str
    only_full: bool = False


WAYS = {
    "forze": Way("forze", "hot_key", "background"),
    "ours, early, elected reader waits": Way("forze", "hot_key", "early"),
    "ours, without early refresh": Way("forze", "hot_key", "plain"),
    "forze 0.16.2": Way("forze 0.16.2", "hot_key_forze_0_16_2", "background"),
    "0.16.2, early, elected readers wait": Way(
        "forze 0.16.2", "hot_key_forze_0_16_2", "early", only_full=True
    ),
    "0.16.2, without early refresh": Way(
        "forze 0.16.2", "hot_key_forze_0_16_2", "plain", only_full=True
    ),
    "cashews, early": Way("cashews", "hot_key_cashews", "background"),
    "cashews, lock": Way("cashews", "hot_key_cashews", "plain", only_full=True),
}

REPLICAS = (1, 4, 16)
MOST_PUSH_MS = 50.0

_SOURCE = f"""
    CREATE UNLOGGED TABLE IF NOT EXISTS hot_loads (at double precision NOT NULL);
    CREATE OR REPLACE FUNCTION hot_load() RETURNS void LANGUAGE plpgsql VOLATILE AS $$
    BEGIN
        INSERT INTO hot_loads VALUES (extract(epoch FROM clock_timestamp()));
        PERFORM pg_sleep({SOURCE_SECONDS});
    END $$;
    CREATE OR REPLACE VIEW hot_products AS
    SELECT products.* FROM products
    CROSS JOIN LATERAL (SELECT hot_load() WHERE products.price >= 0) AS slow;
"""


def run(run: Run) -> None:
    """Cold, expiring, pushed."""
    _cold(run)
    _expiring(run)
    _pushed(run)


# -- cold ----------------------------------------------------------------------


def _cold(run: Run) -> None:
    run.report.begin(
        "stampede, cold",
        f"{PROCESSES} processes with {CALLERS} callers each ask at once for a key that nobody has "
        f"yet and whose source takes {COLD_SOURCE_MS} ms: how often it is asked, and when the last "
        "caller has its answer. The source is a PostgreSQL view, to those who cache functions one "
        "that sleeps. Each as it recommends against stampedes; aiocache's usual decorator too. The "
        "first trial opens connections and does not count.",
    )
    numbers = count()
    with ExitStack() as stack:
        fleets = {
            peer: stack.enter_context(_fleet(run, peer))
            for peer in dict.fromkeys(peer for peer, _ in COLD.values())
        }
        trials = {
            name: partial(_trial, fleet, what, numbers)
            for name, (peer, what) in COLD.items()
            if (fleet := fleets[peer])
        }
        ready = run.turns("stampede, first trial", trials, rounds=1)
        found = run.turns("stampede, cold", {name: trials[name] for name in ready})
    loads = {name: Figure.of(float(each.loads) for each in v) for name, v in found.items()}
    times = {name: Figure.of(each.ms for each in v) for name, v in found.items()}
    run.report.compare("cold hot key, loads", "loads per stampede", loads)
    for name, each in loads.items():
        if min(each.values) < max(each.values):
            run.report.fact(f"{name}: fewest loads of a trial", min(each.values))
            run.report.fact(f"{name}: most loads of a trial", max(each.values))
    run.report.compare("cold hot key, time", "ms until everyone is answered", times)
    most = max(loads["forze"].values) if "forze" in loads else None
    run.report.target("loads of a cold hot key, the most of any trial", most, most=1)
    run.report.plot(
        "stampede",
        Bars(
            f"A cold key, {PROCESSES} processes, {CALLERS} callers each",
            "loads, or ms (log)",
            {"loads": loads, "ms until all are answered": times},
            log_y=True,
        ),
    )


class Trial(NamedTuple):
    """One stampede: loads of all processes, milliseconds of the slowest."""

    loads: int
    ms: float


def _trial(fleet: list[Worker], what: str, numbers: Iterator[int]) -> Trial:
    """Everyone asks, as good as at the same moment."""
    key = next(numbers)
    for worker in fleet:
        worker.tell("cold", key=key, callers=CALLERS, source_ms=COLD_SOURCE_MS, what=what)
    answers = _answers(fleet)
    loads, ms = sum(each["loads"] for each in answers), max(each["ms"] for each in answers)
    if not loads or ms < COLD_SOURCE_MS:
        raise WorkerFailed(f"{loads} loads in {ms:.0f} ms: the key was not cold")
    return Trial(loads, ms)


def _answers(fleet: list[Worker]) -> list[Any]:
    """Every worker's, before the first failure is raised: whoever asks next gets its own."""
    answers, failures = [], []
    for worker in fleet:
        try:
            answers.append(worker.answer())
        except WorkerFailed as error:
            failures.append(error)
    if failures:
        raise failures[0]
    return answers


@contextmanager
def _fleet(
    run: Run, name: str, subject: str = "", **settings: Any
) -> Iterator[list[Worker] | None]:
    """Processes of one subject; None, and a line in the report, where it cannot be had."""
    with ExitStack() as stack:
        workers: list[Worker] = []
        for _ in range(PROCESSES):
            process = run.peers.worker(name, subject=subject, loop="uvloop", **settings)
            if (worker := stack.enter_context(process)) is None:
                break
            workers.append(worker)
        yield workers if len(workers) == PROCESSES else None


# -- expiring ------------------------------------------------------------------


def _expiring(run: Run) -> None:
    seconds = STEADY_VISIT * run.seconds
    rate = PROCESSES * STEADY_CALLERS / PAUSE_SECONDS
    run.report.begin(
        "stampede, expiring",
        f"One key that lives for {TTL_SECONDS:.0f} s, read {rate:,.0f} times a second by "
        f"{PROCESSES} processes; its source, a PostgreSQL view, takes {SOURCE_SECONDS * 1e3:.0f} "
        "ms. A caller waited if its read took longer than half of that. forze and forze 0.16.2: "
        "beta 1, in the background unless it says otherwise. cashews: at 70 % of the life, as in "
        "its documentation; it hears of no write.",
    )
    asyncio.run(_execute(run, _SOURCE))
    key = str(run.ids[0])
    with ExitStack() as stack:
        wanted = {name: way for name, way in WAYS.items() if run.full or not way.only_full}
        fleets = {
            subject: stack.enter_context(_fleet(run, peer, subject, ttl_seconds=TTL_SECONDS))
            for subject, peer in {way.subject: way.peer for way in wanted.values()}.items()
        }
        subjects = {
            name: partial(_visit, run, fleet, way.how, key, seconds)
            for name, way in wanted.items()
            if (fleet := fleets[way.subject])
        }
        found = run.turns("stampede, expiring", subjects, rounds=max(2, run.rounds // 2))
    for name, visits in tuple(found.items()):
        if not all(each.ends for each in visits):
            run.report.missing(f"{name}, expiring", "a visit saw no end of the entry's life")
            del found[name]
    waited = {n: Figure.of(each.late / each.ends for each in v) for n, v in found.items()}
    loads = {n: Figure.of(each.loads / each.ends for each in v) for n, v in found.items()}
    run.report.compare("waiting at an expiry", "callers per expiry", waited)
    run.report.compare("loads at an expiry", "loads per expiry", loads)
    ours = waited["forze"].median if "forze" in waited else None
    run.report.target("callers that wait at an expiry, early refresh", ours, most=1)
    run.report.plot(
        "expiry",
        Bars(
            "A hot key expires under steady load",
            "callers, loads (per expiry)",
            {"callers that wait": waited, "loads": loads},
        ),
    )


class Expiries(NamedTuple):
    """What one visit saw: ends of the entry's life, callers that waited, loads."""

    ends: int
    late: int
    loads: int


def _visit(run: Run, fleet: list[Worker], how: str, key: str, seconds: float) -> Expiries:
    for worker in fleet:
        worker.ask("read", how=how, key=key)
    time.sleep(2 * SOURCE_SECONDS)  # whoever was loading it too has done so
    asyncio.run(_execute(run, "TRUNCATE hot_loads"))
    load = {
        "callers": STEADY_CALLERS,
        "pause": PAUSE_SECONDS,
        "seconds": seconds,
        "late": SOURCE_SECONDS / 2,
    }
    for worker in fleet:
        worker.tell("steady", how=how, key=key, **load)
    late = sum(each["late"] for each in _answers(fleet))
    at = [row["at"] for row in asyncio.run(_execute(run, "SELECT at FROM hot_loads ORDER BY at"))]
    return Expiries(_ends(at), late, len(at))


def _ends(loads: list[float]) -> int:
    """How many lives ended: loads within a third of a life of the first are for the same end."""
    ends, first = 0, float("-inf")
    for at in loads:
        if at - first > TTL_SECONDS / 3:
            ends, first = ends + 1, at
    return ends


async def _execute(run: Run, statement: str) -> list[Any]:
    connection = await asyncpg.connect(run.at.postgres.dsn)
    try:
        if statement.startswith("SELECT"):
            return list(await connection.fetch(statement))
        await connection.execute(statement)
        return []
    finally:
        await connection.close()


# -- pushed --------------------------------------------------------------------


def _pushed(run: Run) -> None:
    updates = 1_000 if run.full else 150
    run.report.begin(
        "stampede, push",
        f"{updates} updates of documents that other replicas keep in process, for a minute if "
        "nobody told them: milliseconds from the acknowledgement until each of them reads the new "
        "value. The replicas are runtimes of their own, with a connection each, in one process.",
    )
    series: dict[str, list[tuple[float, Figure]]] = {}
    for loop in ("asyncio", "uvloop"):
        with run.peers.worker("forze", subject="push", loop=loop) as worker:
            if worker is None:
                continue
            for replicas in REPLICAS if run.full else REPLICAS[:1]:
                found = worker.ask("push", replicas=replicas, updates=updates)
                late = found["ms"]
                figure, last = Figure.of(late), quantiles(late, n=100)[98]
                what = f"{loop}, {replicas} listening"
                run.report.fact(f"push, {what}: median", figure.median, "ms")
                run.report.fact(f"push, {what}: 99 % within", last, "ms")
                old = found["old"] / len(late) * 100
                run.report.fact(f"push, {what}: first read old", old, "% of replicas")
                if replicas == 1:
                    run.report.target(
                        f"ms until a push is seen, 99 %, {what}", last, most=MOST_PUSH_MS
                    )
                series.setdefault(loop, []).append((replicas, figure))
    if run.full:
        run.report.plot(
            "push", Lines("From a write until other replicas show it", "replicas", "ms", series)
        )
