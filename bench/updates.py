"""A cached update beside an uncached one, the floor between them, and the disk's own time.

A cached update is announced to the cache before it and settled after it: two round trips. So the
least it can cost is the uncached update and two bare round trips on the same kind of connection:
once with scripts that do nothing, once with the very scripts that our cache runs. What lies above
the second is Python of ours.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable
from itertools import count
from statistics import median
from typing import Any, NamedTuple

import uvloop

from bench.peers.products import ProductRead, ProductUpdate
from bench.peers.work import work
from bench.report import Figure
from bench.run import Run
from bench.workload import CACHED, UNCACHED, wired
from forze.application.execution import ExecutionContext
from forze.testing.servers import PostgresServer
from forze_redis import RedisClient
from forze_redis.cache import DONE, INTEND
from forze_redis.wire.scripts import Script, pack

LOOPS: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {
    "uvloop": uvloop.new_event_loop,
    "asyncio": asyncio.new_event_loop,
}
TARGET_LOOP = "uvloop"  # as of all targets: a turn of the standard loop costs both sides too much
CALLERS = 32
PER_ROUND = 60  # updates of each subject
FULL_PER_ROUND = 300
SPARE = 10  # updates of each before the first that counts
AGAIN = {"autocommit": 1.6, "explicit transaction": 1.25}
_EMPTY = Script("empty", "#!lua\nreturn 1")
_LAPSES_MS = 10_000
_KEYS = ("bench/cache/pointer/floor",)

Send = Callable[[], Awaitable[object]]


class Subject(NamedTuple):
    """What is updated, and what is sent to Valkey by hand around it."""

    spec: Any
    before: Send | None = None
    after: Send | None = None


async def measure(run: Run, loop: str) -> None:
    """One caller in autocommit and in an explicit transaction, then 32 callers, on ``loop``."""
    client = await RedisClient().connect(run.at.valkey.dsn)
    async with client, wired(run.at) as ctx:
        subjects = _subjects(client)
        for kind, most in AGAIN.items():
            await _one_caller(run, ctx, subjects, f"{kind}, {loop}", most)
        await _many_callers(run, ctx, loop)


def _subjects(client: RedisClient) -> dict[str, Subject]:
    empty = pack("EVALSHA", _EMPTY.sha1, 1, *_KEYS)
    intend = pack("EVALSHA", INTEND.sha1, 1, *_KEYS, "0123456789abcdef", _LAPSES_MS)
    done = pack("EVALSHA", DONE.sha1, 1, *_KEYS, "0123456789abcdef")

    def sending(packed: bytes) -> Send:
        return lambda: client.send(packed)

    return {
        "cached": Subject(CACHED),
        "uncached": Subject(UNCACHED),
        "floor: and two empty scripts": Subject(UNCACHED, sending(empty), sending(empty)),
        "floor: and our two scripts": Subject(UNCACHED, sending(intend), sending(done)),
    }


async def _one_caller(
    run: Run, ctx: ExecutionContext, subjects: dict[str, Subject], kind: str, most: float
) -> None:
    """In turns update by update, the disk too; a reading is the median of a round's."""
    clock: dict[str, list[list[float]]] = {name: [] for name in subjects}
    processor: dict[str, list[list[float]]] = {name: [] for name in subjects}
    disk: list[list[float]] = []
    documents = {
        name: await _document(ctx, each.spec, at)
        for at, (name, each) in enumerate(subjects.items())
    }
    numbers, update = count(1_000_000), _explicit if kind.startswith("explicit") else _autocommit
    order = list(subjects)
    for turn in range(run.rounds + 1):
        for each in (*clock.values(), *processor.values()):
            each.append([])
        disk.append([])
        for _ in range((FULL_PER_ROUND if run.full else PER_ROUND) if turn else SPARE):
            number = next(numbers)
            for name in order[number % len(order) :] + order[: number % len(order)]:
                subject = subjects[name]
                await ctx.document.query(subject.spec).get(documents[name].id)  # to be dropped
                began, spent = time.perf_counter(), time.process_time()
                documents[name] = await update(ctx, subject, documents[name], number)
                processor[name][-1].append((time.process_time() - spent) * 1e6)
                clock[name][-1].append((time.perf_counter() - began) * 1e6)
            disk[-1].append(disk_commit_us(run.at.postgres))
    title = f"update in {kind}, 1 caller"
    figures = _medians({**clock, "fdatasync of the disk": disk})
    run.report.compare(title, "us on the clock", figures, ours="")
    run.report.compare(f"{title}: processor", "us of the process", _medians(processor), ours="")
    plain = figures["uncached"]
    again = {name: figures[name].over(plain) for name in subjects if name != "uncached"}
    run.report.compare(f"{title}: over an uncached one", "times on the clock", again, ours="")
    if kind.endswith(TARGET_LOOP):
        run.report.target(f"cached update over uncached, {kind}", again["cached"].median, most=most)


def _medians(times: dict[str, list[list[float]]]) -> dict[str, Figure]:
    """Of each round but the first, which is for warming up."""
    return {name: Figure.of(map(median, each[1:])) for name, each in times.items()}


async def _document(ctx: ExecutionContext, spec: Any, at: int) -> ProductRead:
    page = await ctx.document.query(spec).find_many(limit=at + 1)
    return page.items[at]  # type: ignore[no-any-return]


async def _autocommit(
    ctx: ExecutionContext, subject: Subject, document: ProductRead, price: int
) -> ProductRead:
    """Announced, written, settled: one after the other."""
    if subject.before is not None:
        await subject.before()
    document = await _update(ctx, subject.spec, document, price)
    if subject.after is not None:
        await subject.after()
    return document


async def _explicit(
    ctx: ExecutionContext, subject: Subject, document: ProductRead, price: int
) -> ProductRead:
    """The announcement travels while the statement runs; only the COMMIT waits for it."""
    async with ctx.transaction(subject.spec.name):
        announced = subject.before() if subject.before is not None else None
        document = await _update(ctx, subject.spec, document, price)
        if announced is not None:
            await announced
    if subject.after is not None:
        await subject.after()
    return document


async def _update(
    ctx: ExecutionContext, spec: Any, document: ProductRead, price: int
) -> ProductRead:
    command = ctx.document.command(spec)
    return await command.update(document.id, document.rev, ProductUpdate(price=price))  # type: ignore[no-any-return]


async def _many_callers(run: Run, ctx: ExecutionContext, loop: str) -> None:
    """Each caller has a document of its own."""
    numbers = count(2_000_000)

    async def updating(spec: Any) -> Callable[[], Awaitable[dict[str, float]]]:
        page = await ctx.document.query(spec).find_many(limit=CALLERS)
        free: list[ProductRead] = list(page.items)

        async def one(_: object) -> None:
            free.append(await _update(ctx, spec, free.pop(), next(numbers)))

        async def visit() -> dict[str, float]:
            return await work(one, (None,), CALLERS, run.seconds)

        return visit

    subjects = {"cached": await updating(CACHED), "uncached": await updating(UNCACHED)}
    found = await run.async_turns("updates", subjects)
    title = f"update in autocommit, {loop}, {CALLERS} callers"
    ratios = {}
    for unit, says in (("us", "on the clock"), ("cpu", "of the processor")):
        figures = {name: Figure.of(visit[unit] for visit in each) for name, each in found.items()}
        run.report.compare(f"{title}: {says}", "us", figures, ours="")
        ratios[says] = figures["cached"].over(figures["uncached"])
    run.report.compare(f"{title}: cached over uncached", "times", ratios, ours="")


def disk_commit_us(postgres: PostgresServer) -> float:
    """Microseconds the disk takes to make 8 KiB durable, in PostgreSQL's directory."""
    descriptor = os.open(postgres.directory / "fdatasync", os.O_CREAT | os.O_WRONLY, 0o600)
    try:
        began = time.perf_counter()
        os.pwrite(descriptor, b"x" * 8192, 0)  # in place, as a log that is written again
        os.fdatasync(descriptor)
        return (time.perf_counter() - began) * 1e6
    finally:
        os.close(descriptor)
