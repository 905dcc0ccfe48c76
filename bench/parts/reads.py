"""Cached reads, all hits: through Redis by number of callers, and in the process itself."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any, NamedTuple, TypeAlias

from bench.info import counted
from bench.peers import Worker, WorkerFailed
from bench.plots import Bars, Lines
from bench.report import Figure
from bench.run import Run


class Row(NamedTuple):
    """One line of a table: whose process, and which of its tiers."""

    peer: str
    what: str


THROUGH_REDIS = {
    "forze": Row("forze", "redis"),
    "redis-py": Row("redis-py", "redis"),
    "valkey-glide": Row("valkey-glide", "redis"),
    "coredis": Row("coredis", "redis"),
    "forze 0.16.2": Row("forze 0.16.2", "redis"),
    "cashews": Row("cashews", "redis"),
    "aiocache": Row("aiocache", "redis"),
    "fastapi-cache2": Row("fastapi-cache2", "redis"),
    "PostgreSQL": Row("forze", "source"),
}
ON_ASYNCIO = ("forze", "redis-py", "forze 0.16.2")
"""In the standard run; the full one has everybody on both loops."""

IN_PROCESS = {
    "forze LRU": Row("forze", "lru"),
    "forze W-TinyLFU": Row("forze", "tinylfu"),
    "forze 0.16.2": Row("forze 0.16.2", "process"),
    "aiocache": Row("aiocache", "process"),
    "cashews": Row("cashews", "process"),
    "cashews client-side": Row("cashews", "client-side"),
    "theine": Row("theine", "process"),
    "cachebox": Row("cachebox", "process"),
    "async dict": Row("async dict", "process"),
}
CALLERS, ALL_CALLERS = (1, 32, 256), (1, 4, 16, 32, 64, 128, 256)
CALLERS_ON_ASYNCIO = (1, 32)
COUNTED_CALLERS, COUNTED_SECONDS = 32, 0.05
MOST_ASKED = 0.001
"""Commands per hit of who answers in process; one that sends more does not."""

Workers: TypeAlias = Mapping[str, Worker]
Figures: TypeAlias = dict[str, Figure]


def run(run: Run) -> None:
    """Both tiers; the targets compare what ran on uvloop."""
    peers = dict.fromkeys(row.peer for row in (*THROUGH_REDIS.values(), *IN_PROCESS.values()))
    with ExitStack() as stack:
        workers = _workers(run, stack, peers, "uvloop")
        through = _through_redis(run, workers, "uvloop", list(THROUGH_REDIS))
        _commands(run, workers)
        inside = _in_process(run, workers)
    names = list(THROUGH_REDIS) if run.full else ON_ASYNCIO
    with ExitStack() as stack:
        workers = _workers(run, stack, {THROUGH_REDIS[name].peer for name in names}, "asyncio")
        _through_redis(run, workers, "asyncio", names)
    for what, ours, name, figures, least in (
        ("cached read, 32 callers", "forze", "forze 0.16.2", through[32], 10),
        ("cached read, 32 callers", "forze", "redis-py", through[32], 2.5),
        ("cached read, one caller", "forze", "forze 0.16.2", through[1], 4),
        ("L1 hit", "forze LRU", "forze 0.16.2", inside, 4),
    ):
        title = f"{what}, both on uvloop: times {name}" + (" GET" if name == "redis-py" else "")
        both = ours in figures and name in figures
        times = figures[name].over(figures[ours]).median if both else None
        run.report.target(title, times, least=least)


def _workers(run: Run, stack: ExitStack, peers: Iterable[str], loop: str) -> dict[str, Worker]:
    """A process of each peer that can be had."""
    found = {}
    for peer in peers:
        worker = stack.enter_context(run.peers.worker(peer, loop=loop))
        if worker is not None:
            found[peer] = worker
    return found


def _through_redis(
    run: Run, workers: Workers, loop: str, names: Sequence[str]
) -> dict[int, Figures]:
    run.report.begin(
        f"reads through Redis, {loop}",
        "1,000 documents, Zipf keys, all hits, a process each. redis-py, valkey-glide and coredis: "
        "a GET and the decode that our cache does; cashews, aiocache and fastapi-cache2: their "
        "decorators, models pickled; pools as large as the callers. None of them invalidates "
        "when a row changes, nor promises what a read returns after a write. A read of ours that "
        "another caller's flight answered is not counted. PostgreSQL: forze past its cache.",
    )
    found: dict[int, Figures] = {}
    short = CALLERS if loop == "uvloop" else CALLERS_ON_ASYNCIO
    for callers in ALL_CALLERS if run.full else short:
        title = f"{loop}, {callers} caller{'s' * (callers > 1)}"
        rows = {name: THROUGH_REDIS[name] for name in names}
        found[callers], spent = _visits(run, title, workers, rows, callers)
        run.report.compare(title, "us per read", found[callers])
        run.report.compare(f"{title}: processor", "us of the process per read", spent)
    lines = {
        name: points
        for name in names
        if (points := [(at, figures[name]) for at, figures in found.items() if name in figures])
    }
    title = f"A cached read through Redis ({loop})"
    run.report.plot(
        f"reads-{loop}", Lines(title, "callers", "us per read (log)", lines, log_y=True)
    )
    return found


def _in_process(run: Run, workers: Workers) -> Figures:
    run.report.begin(
        "reads in process",
        "The same keys, one caller, every hit in the process's own memory, on uvloop. forze: "
        "through the context, with that store. cashews client-side hears of changes from the "
        "server, as forze can; the others keep an entry until its end, whatever is written. "
        "async dict: the least that an awaited lookup can cost.",
    )
    rows = {
        name: row
        for name, row in IN_PROCESS.items()
        if row.peer in workers and _asks_nobody(run, name, workers[row.peer], row.what)
    }
    figures, _ = _visits(run, "in process", workers, rows, 1)
    run.report.compare("a hit in process", "us per read", figures, ours="forze LRU")
    if "forze LRU" in figures and "async dict" in figures:
        times = figures["forze LRU"].over(figures["async dict"]).median
        run.report.fact("forze LRU, over async dict", times, "times")
    run.report.plot(
        "reads-in-process",
        Bars("A hit in the process", "us per read (log)", {"": figures}, log_y=True),
    )
    return figures


def _asks_nobody(run: Run, name: str, worker: Worker, what: str) -> bool:
    """Whether hits are answered without the server; if not, that is reported."""
    try:
        sent, _ = _sent_per_read(run, worker, what, callers=1)
        if sent > MOST_ASKED:
            raise WorkerFailed(f"it sends {sent:.2g} commands per read")
    except WorkerFailed as error:
        run.report.missing(f"{name}, in process", str(error))
        return False
    return True


def _visits(
    run: Run, title: str, workers: Workers, rows: Mapping[str, Row], callers: int
) -> tuple[Figures, Figures]:
    """Everybody who is there, in turns: the clock, and the processor time of its process."""

    def reading(row: Row) -> Callable[[], Any]:
        visit = {"what": row.what, "callers": callers, "seconds": run.seconds}
        return lambda: workers[row.peer].ask("read", **visit)

    subjects = {name: reading(row) for name, row in rows.items() if row.peer in workers}
    found = run.turns(title, subjects).items()
    clock, spent = (
        {name: Figure.of(visit[what] for visit in visits) for name, visits in found}
        for what in ("us", "cpu")
    )
    return clock, spent


def _commands(run: Run, workers: Workers) -> None:
    run.report.begin(
        "commands per read",
        f"What the server received, by MONITOR, {COUNTED_CALLERS} callers; what a script runs "
        "inside the server is not sent. Below one: callers who ask for the same key at the same "
        "moment share an answer.",
    )
    for name, row in THROUGH_REDIS.items():
        if row.peer in workers and row.what == "redis":
            try:
                sent, shared = _sent_per_read(run, workers[row.peer], row.what, COUNTED_CALLERS)
            except WorkerFailed as error:
                run.report.missing(f"{name}, commands per read", str(error))
            else:
                run.report.fact(name, sent, "commands per read")
                if shared is not None:
                    run.report.fact(f"{name}: on another's flight", shared, "of the reads")


def _sent_per_read(run: Run, worker: Worker, what: str, callers: int) -> tuple[float, float | None]:
    """Commands per read, and the share of reads that another one answered, where it is known."""
    visit = {"what": what, "callers": callers, "seconds": COUNTED_SECONDS}
    worker.ask("read", **visit)  # so that everything is connected
    with counted(run.at.valkey.dsn) as sent:
        found = worker.ask("read", **visit)
    return len(sent) / found["asked"], found.get("collapsed")
