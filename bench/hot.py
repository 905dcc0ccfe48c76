"""Hot documents: a hit in the process itself, beside forze 0.16.2, and how soon a push arrives."""

from __future__ import annotations

import asyncio
import contextlib
import os
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

from bench.workload import ProductUpdate, Servers, hot_spec, wired, zipf
from forze.application.contracts.cache import L1Spec
from forze.application.execution import ExecutionContext
from forze.application.integrations.document import lru_l1_store, tiny_lfu_l1_store

PEER = "FORZE_PEER_PYTHON"
"""Names a Python whose environment has forze 0.16.2, which cannot be installed beside us."""

STORES = {"LRU": lru_l1_store, "W-TinyLFU": tiny_lfu_l1_store}


def measure(at: Servers, ids: list[UUID], *, rounds: int, seconds: float) -> dict[str, float]:
    """Median microseconds per read of each subject, in turns."""
    keys = zipf(ids, 2_000)
    with _peer(at, keys[:200]) as peer:
        visits = asyncio.run(_visits(at, keys, peer, rounds, seconds))
    return {name: statistics.median(each) for name, each in visits.items()}


async def _visits(
    at: Servers, keys: list[UUID], peer: Callable[[str], float] | None, rounds: int, seconds: float
) -> dict[str, list[float]]:
    visits: dict[str, list[float]] = {}
    async with AsyncExitStack() as stack:
        subjects: dict[str, Callable[[UUID], Awaitable[Any]]] = {"async dict": _lookup(keys)}
        for name, factory in STORES.items():
            spec = hot_spec(L1Spec(ttl=timedelta(minutes=10), store_factory=factory))
            ctx = await stack.enter_async_context(wired(at, spec))
            subjects[name] = _through(ctx, spec)
        for _ in range(rounds):
            for name, read in subjects.items():
                visits.setdefault(name, []).append(await _work(read, keys, seconds))
            for what in ("l1", "redis") if peer is not None else ():
                figure = await asyncio.to_thread(peer, f"{what} {seconds} 1")
                visits.setdefault(f"forze 0.16.2 {what}", []).append(figure)
    return visits


def _through(ctx: ExecutionContext, spec: Any) -> Callable[[UUID], Awaitable[Any]]:
    return lambda key: ctx.document.query(spec).get(key)


def _lookup(keys: list[UUID]) -> Callable[[UUID], Awaitable[Any]]:
    kept = dict.fromkeys(keys, object())

    async def get(key: UUID) -> object:
        return kept[key]

    return get


async def _work(read: Callable[[UUID], Awaitable[Any]], keys: list[UUID], seconds: float) -> float:
    for key in dict.fromkeys(keys):
        await read(key)
        await read(key)
    done, began = 0, time.perf_counter()
    until = began + seconds
    while time.perf_counter() < until:
        for key in keys[:200]:
            await read(key)
        done += 200
    return (time.perf_counter() - began) / done * 1e6


async def push_latency(at: Servers, ids: list[UUID], updates: int) -> tuple[float, float]:
    """Milliseconds from an update's acknowledgement until another replica reads it: the median
    and the 99th percentile. The entries would live for a minute."""
    spec = hot_spec(L1Spec(ttl=timedelta(minutes=1)))
    late: list[float] = []
    async with _pushed(at, spec) as writer, _pushed(at, spec) as reader:
        docs, query = writer.document.command(spec), reader.document.query(spec)
        for number in range(updates):
            pk = ids[number % len(ids)]
            document = await writer.document.query(spec).get(pk, skip_cache=True)
            await query.get(pk)
            await query.get(pk)
            updated = await docs.update(pk, document.rev, ProductUpdate(price=number))
            acknowledged = time.perf_counter()
            while (await query.get(pk)).rev < updated.rev:  # noqa: ASYNC110 - a read is asked
                await asyncio.sleep(0)
            late.append((time.perf_counter() - acknowledged) * 1e3)
    late.sort()
    return statistics.median(late), late[int(0.99 * len(late))]


@asynccontextmanager
async def _pushed(at: Servers, spec: Any) -> AsyncIterator[ExecutionContext]:
    async with wired(at, spec, invalidation_push=True) as ctx:
        yield ctx


@contextmanager
def _peer(at: Servers, keys: list[UUID]) -> Iterator[Callable[[str], float] | None]:
    """Ask forze 0.16.2, where there is an environment that has it."""
    python = os.environ.get(PEER)
    if not python:
        print(f"  forze 0.16.2 is not measured: set {PEER} to a Python 3.13 that has it")
        yield None
        return
    script = Path(__file__).with_name("peer_forze.py")
    dsns = (at.postgres.dsn, at.valkey.dsn)
    process = subprocess.Popen(
        [python, script, *dsns, ",".join(map(str, keys))],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(sys.executable).parent,  # not here: our packages have the same names
    )
    assert process.stdin is not None
    assert process.stdout is not None

    def ask(question: str) -> float:
        process.stdin.write(question + "\n")  # type: ignore[union-attr]
        process.stdin.flush()  # type: ignore[union-attr]
        return float(_line(process))

    try:
        _line(process)
        yield ask
    finally:
        with contextlib.suppress(OSError):
            process.stdin.close()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()


def _line(process: subprocess.Popen[str]) -> str:
    """The next answer; the peer prints blank lines of its own."""
    assert process.stdout is not None
    for line in process.stdout:
        if line.strip():
            return line
    raise RuntimeError(f"the peer ended with status {process.wait(10)}; see its output above")
