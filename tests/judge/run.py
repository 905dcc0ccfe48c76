"""Four processes, real servers, faults; then the checker on their logs.

::

    python -m tests.judge.run                     # 100,000 operations, some minutes
    python -m tests.judge.run --no-push           # must find violations, and exits with 1
    python -m tests.judge.run --seed 7 --logs DIR
    python -m tests.judge.run --faults jolts --bound 0.15

Exits as the checker does: 0 nothing older than its bound, 1 violations, 2 does not count.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import subprocess
import sys
import tempfile
import time
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import asyncpg
from tests.faults.world import TABLE
from tests.judge.faults import Faults, Kind, Replica
from tests.judge.orders import Orders
from tests.judge.record import Write, log_file, now, write_line
from tests.judge.workload import document_id

from forze.testing.proxy import RespProxy
from forze.testing.servers import PostgresServer, RedisServer, RespServer, ValkeyServer

ROOT = Path(__file__).resolve().parents[2]
READY_SECONDS = 30.0
SHOWN_EVERY_SECONDS = 0.5
OPERATIONS_PER_SECOND_AT_LEAST = 100


class WorkerFailed(Exception):
    """The run is worth nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What to run. ``bound`` has to leave room for three heartbeats and the way of a push."""

    seed: int
    operations: int = 100_000
    workers: int = 4
    documents: int = 400
    capacity: int = 90
    pause: float = 0.02
    heartbeat: float = 0.1
    bound: float = 0.5
    push: bool = True
    faults: Kind = "all"


async def run(plan: Plan, server: RespServer, postgres: str, logs: Path) -> Faults:
    """Let the workers work among faults; their logs are in ``logs`` afterwards."""
    await _documents(plan, postgres, logs)
    async with AsyncExitStack() as stack:
        proxies = [
            await stack.enter_async_context(RespProxy(server.port)) for _ in range(plan.workers)
        ]
        workers = [
            await stack.enter_async_context(_worker(_orders(plan, each, proxy, postgres, logs)))
            for each, proxy in enumerate(proxies)
        ]
        async with asyncio.timeout(READY_SECONDS):
            await asyncio.gather(*(_said_ready(each) for each in workers))
        done = dict.fromkeys(range(plan.workers), 0)
        replicas = [Replica(each, worker) for each, worker in zip(proxies, workers, strict=True)]
        faults = Faults(
            server, replicas, lambda: sum(done.values()) / plan.operations, plan.seed, plan.faults
        )
        beside = [
            asyncio.create_task(_show(done, plan.operations)),
            asyncio.create_task(faults.run()),
        ]
        try:
            async with asyncio.timeout(30 + plan.operations / OPERATIONS_PER_SECOND_AT_LEAST):
                await asyncio.gather(*(_follow(w, n, done) for n, w in enumerate(workers)))
        finally:
            for task in beside:
                task.cancel()
            ended = await asyncio.gather(*beside, return_exceptions=True)
        for error in ended:
            if isinstance(error, Exception):
                raise error
    return faults


async def _documents(plan: Plan, postgres: str, logs: Path) -> None:
    """The table, the documents, and their first revisions in the log."""
    connection = await asyncpg.connect(postgres)
    start = now()
    try:
        await connection.execute(TABLE)
        await connection.executemany(
            "INSERT INTO products VALUES ($1, 1, now(), now(), 'Widget', 0)",
            [(document_id(each),) for each in range(plan.documents)],
        )
    finally:
        await connection.close()
    end = now()
    with log_file(logs, "setup").open("x") as log:
        for each in range(plan.documents):
            first = Write(
                process=-1,
                operation=0,
                document=each,
                start=start,
                end=end,
                outcome="ok",
                rev=1,
                value=0,
            )
            write_line(log, first)


def _orders(plan: Plan, process: int, proxy: RespProxy, postgres: str, logs: Path) -> Orders:
    return Orders(
        process=process,
        seed=plan.seed,
        operations=-(-plan.operations // plan.workers),
        documents=plan.documents,
        pause=plan.pause,
        redis=proxy.dsn,
        postgres=postgres,
        heartbeat=plan.heartbeat,
        capacity=plan.capacity,
        push=int(plan.push),
        logs=logs,
    )


@asynccontextmanager
async def _worker(orders: Orders) -> AsyncIterator[Process]:
    command = (sys.executable, "-m", "tests.judge.worker", *orders.arguments())
    process = await asyncio.create_subprocess_exec(*command, stdin=PIPE, stdout=PIPE, cwd=ROOT)
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def _said_ready(worker: Process) -> None:
    assert worker.stdout is not None
    if await worker.stdout.readline() != b"ready\n":
        raise WorkerFailed("a worker did not start; its traceback is above")


async def _follow(worker: Process, number: int, done: dict[int, int]) -> None:
    """Send it off, and note its progress until it ends well."""
    assert worker.stdin is not None
    assert worker.stdout is not None
    worker.stdin.write(b"go\n")
    async for line in worker.stdout:
        done[number] = int(line)
    if await worker.wait():
        raise WorkerFailed(f"worker {number} ended with {worker.returncode}; see above")


async def _show(done: dict[int, int], operations: int) -> None:
    began = time.monotonic()
    while sys.stderr.isatty():
        so_far, seconds = sum(done.values()), time.monotonic() - began
        print(f"\r{so_far} of {operations} operations, {seconds:.0f} s ", end="", file=sys.stderr)
        await asyncio.sleep(SHOWN_EVERY_SECONDS)


def checked(logs: Path, plan: Plan) -> tuple[int, str]:
    """The checker's exit code and what it says, from a process of its own."""
    command = [sys.executable, "-m", "tests.judge.checker", str(logs)]
    command += [f"--bound={plan.bound}", f"--operations={plan.operations}"]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False)
    return done.returncode, done.stdout


def main() -> int:
    """Run, judge, say."""
    usual = Plan(seed=0)
    parser = argparse.ArgumentParser(prog="python -m tests.judge.run")
    parser.add_argument("--operations", type=int, default=usual.operations)
    parser.add_argument("--seed", type=int, help="of operations and faults (default: any)")
    parser.add_argument("--bound", type=float, default=usual.bound, help="seconds")
    parser.add_argument("--capacity", type=int, default=usual.capacity, help="of each L1; 0: none")
    parser.add_argument("--no-push", dest="push", action="store_false")
    parser.add_argument("--faults", choices=get_args(Kind), default=usual.faults)
    parser.add_argument("--redis", action="store_true", help="Redis instead of Valkey")
    parser.add_argument("--logs", type=Path, help="keep the logs in this new directory")
    options = vars(parser.parse_args())
    server: RespServer = RedisServer() if options.pop("redis") else ValkeyServer()
    kept: Path | None = options.pop("logs")
    if options["seed"] is None:
        options["seed"] = random.randrange(10**6)
    plan = Plan(**options)
    print(plan, flush=True)
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as temporary:
        logs = kept or Path(temporary)
        logs.mkdir(exist_ok=True)
        with server, PostgresServer(max_connections=100) as postgres:
            faults = asyncio.run(run(plan, server, postgres.dsn, logs))
        code, verdict = checked(logs, plan)
        if kept is not None:
            text = "".join(f"{each}\n" for each in faults.done)
            (kept / "faults.txt").write_text(text)
    print(f"\r{time.monotonic() - began:.0f} s, faults {faults.counts()}\n{verdict}", end="")
    return code


if __name__ == "__main__":
    sys.exit(main())
