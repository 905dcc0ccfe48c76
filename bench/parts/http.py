"""FastAPI under uvicorn, end to end: what is left of a cache's speed behind a web framework.

Every subject is a server process of its own: one worker, httptools, uvloop, no access log, one
route. Load comes from another process over real sockets.
"""

from __future__ import annotations

import resource
import tempfile
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple

from bench.http.load import Load, Served, send_ours
from bench.http.server import Server, server
from bench.peers import WorkerFailed
from bench.plots import Bars
from bench.report import Figure
from bench.run import Run

CONNECTIONS = (1, 32, 256)
OURS = "forze, endpoints"
CEILING = "FastAPI, a constant"
MANY = 1_000
_FILES = 4_096  # a process that holds a thousand connections needs more than the usual 1,024


class Subject(NamedTuple):
    """A server: the peer whose environment it runs in, its application, which of its routes."""

    peer: str
    app: str
    variant: str = ""
    revalidate: bool = False


SUBJECTS = {
    OURS: Subject("forze", "forze", "endpoints"),
    "forze, endpoints, 304": Subject("forze", "forze", "endpoints", revalidate=True),
    "forze, endpoints, L1": Subject("forze", "forze", "l1"),
    "forze, own route": Subject("forze", "forze", "route"),
    "forze, @cached_response": Subject("forze", "forze", "cached_response"),
    "fastapi-cache2": Subject("fastapi-cache2", "fastapi_cache2"),
    "forze 0.16.2, own route": Subject("forze 0.16.2", "forze_0_16_2"),
    "asyncpg, uncached": Subject("forze", "plain", "asyncpg"),
    CEILING: Subject("forze", "plain", "constant"),
}

PLOTTED = (OURS, "fastapi-cache2", "forze 0.16.2, own route", "asyncpg, uncached", CEILING)


class Reading(NamedTuple):
    """One visit: what was served, and the server's processor time, in microseconds a request."""

    served: Served
    cpu: float


class Target(NamedTuple):
    """A server that serves, and the file of requests for it."""

    server: Server
    requests: Path


def run(run: Run) -> None:
    """Requests per second, latency and the server's time; then a thousand connections at once."""
    with tempfile.TemporaryDirectory() as folder, _many_files():
        load = Load(Path(folder))
        run.report.begin(
            "http",
            "GET of one of 1,000 documents at random, cached in Redis (L1: in the process). A "
            "server process each: uvicorn, one worker, httptools, uvloop, no access log. Load: "
            f"{load.tool}. fastapi-cache2 keeps what the route returned until it expires: it "
            "announces no write to anybody. 304: every request names the tag it has.",
        )
        with _targets(run, Path(folder)) as targets:
            readings = {each: _visits(run, load, targets, each) for each in CONNECTIONS}
        _tables(run, readings)
        _many(run, Path(folder))


@contextmanager
def _many_files() -> Iterator[None]:
    """Let the processes that are started hold many files; they inherit the limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = _FILES if hard == resource.RLIM_INFINITY else min(_FILES, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, most), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@contextmanager
def _targets(run: Run, folder: Path) -> Iterator[dict[str, Target]]:
    """Every subject that can be had, serving and warm."""
    with ExitStack() as stack:
        targets = {}
        for number, (name, subject) in enumerate(SUBJECTS.items()):
            try:
                served = stack.enter_context(_server(run, name, subject))
                path = folder / f"requests-{number}"
                _write(path, run, served, subject)
                targets[name] = Target(served, path)
            except WorkerFailed as error:
                run.report.missing(f"http: {name}", str(error))
        yield targets


@contextmanager
def _server(run: Run, name: str, subject: Subject) -> Iterator[Server]:
    python = run.peers.python(subject.peer)
    if python is None:
        raise WorkerFailed(f"there is no {subject.peer}")
    settings = {
        "valkey": run.at.valkey.dsn,
        "postgres": run.at.postgres.dsn,
        "variant": subject.variant,
    }
    with server(name, python, subject.app, settings) as served:
        yield served


def _write(path: Path, run: Run, served: Server, subject: Subject) -> None:
    """The requests for a server, a line each, after every document has been asked for twice:
    once for the cache, once for the process that keeps what it found there."""
    served.tags(run.ids)
    tags = served.tags(run.ids)
    if subject.revalidate:
        served.revalidates(run.ids[0], tags[0])
    named = tags if subject.revalidate else [""] * len(tags)
    lines = [f"/products/{which} {tag}\n" for which, tag in zip(run.ids, named, strict=True)]
    path.write_text("".join(lines))


def _visits(
    run: Run, load: Load, targets: Mapping[str, Target], connections: int
) -> dict[str, list[Reading]]:
    rounds = run.rounds if run.full else max(2, run.rounds // 2)

    def visit(target: Target) -> Reading:
        before = target.server.processor_seconds()
        served = load.send(target.server.port, target.requests, connections, run.seconds)
        spent = target.server.processor_seconds() - before
        if served.errors or not served.requests:
            raise WorkerFailed(f"{served.errors} requests failed, {served.requests} did not")
        return Reading(served, spent / served.requests * 1e6)

    return run.turns(
        f"http, {connections} connections",
        {name: partial(visit, target) for name, target in targets.items()},
        rounds=rounds,
    )


def _tables(run: Run, readings: Mapping[int, Mapping[str, list[Reading]]]) -> None:
    report, rates = run.report, {}
    for connections, found in readings.items():
        where = f"http, {connections} connection{'s' if connections > 1 else ''}"
        rate = {n: Figure.of(each.served.rate for each in got) for n, got in found.items()}
        report.compare(where, "requests per second", rate, ours=OURS, more_is_better=True)
        for what in ("p50", "p99"):
            waits = {
                name: Figure.of(getattr(each.served, what) for each in got)
                for name, got in found.items()
            }
            report.compare(f"{where}, {what}", "us", waits, ours=OURS)
        rates[where.removeprefix("http, ")] = {name: rate[name] for name in PLOTTED if name in rate}
    middle = readings[32]
    spent = {name: Figure.of(each.cpu for each in got) for name, got in middle.items()}
    report.compare("http, processor time of the server", "us per request", spent, ours=OURS)
    if OURS in spent and CEILING in spent:
        beyond = {
            name: Figure.of(a - b for a, b in zip(each.values, spent[CEILING].values, strict=True))
            for name, each in spent.items()
            if name != CEILING
        }
        report.compare(
            "http, beyond a route that returns a constant", "us per request", beyond, ours=OURS
        )
    report.plot("http", Bars("GET of a document under uvicorn", "requests per second", rates))


def _many(run: Run, folder: Path) -> None:
    """A thousand connections at once, on a server that has served one at a time before."""
    seconds = 10.0 if run.full else 3.0
    path, where = folder / "requests-many", f"{MANY:,} connections at once"
    target = f"{where}: failed or never served"
    allowed, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if allowed <= MANY:
        run.report.missing(where, f"no more than {allowed} open files are allowed here")
        run.report.target(target, None, most=0)
        return
    with _server(run, OURS, SUBJECTS[OURS]) as served:
        _write(path, run, served, SUBJECTS[OURS])
        before, held = served.resident_bytes(), []
        with ThreadPoolExecutor(1) as pool:
            sending = pool.submit(send_ours, served.port, path, MANY, seconds)
            while not sending.done():
                held.append(served.resident_bytes())
                time.sleep(0.02)
            found = sending.result()
    run.report.fact(f"{where}: requests per second", found.rate)
    run.report.fact(f"{where}: requests that failed", found.errors)
    run.report.fact(f"{where}: never served", found.unserved)
    run.report.fact(f"{where}: p50", found.p50 / 1e3, "ms")
    run.report.fact(f"{where}: p99", found.p99 / 1e3, "ms")
    run.report.fact(f"{where}: server memory each", (max(held) - before) / MANY / 1024, "KiB")
    failed = found.errors + found.unserved
    run.report.target(target, failed if found.requests else None, most=0)
