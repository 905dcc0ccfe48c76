"""A Celery worker as a real process: every port from a task, beside an async process, and faults.

One worker for all, whose first process has its portal open before it forks the others.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Iterator
from datetime import timedelta

import asyncpg
import pytest
from celery import chain, chord, group
from celery.exceptions import TaskRevokedError, WorkerLostError
from tests.faults.celery_app import CLIENT, JOBS, NOTES, VISITS, quoting, runtime_on
from tests.faults.celery_world import Publisher, Worker, publisher
from tests.faults.world import SPEC, TABLE, ProductCreate

from forze.application.contracts.tenancy import bind_principal, bind_tenant
from forze.application.execution import ExecutionContext, ExecutionRuntime
from forze.errors import LockNotAcquired, ValidationError
from forze.testing.servers import PostgresServer, ValkeyServer
from forze_celery import attach_portal

SECONDS = 30
QUIET = timedelta(seconds=20)
WEB = "web"


@pytest.fixture(scope="module")
def server() -> Iterator[ValkeyServer]:
    """The broker, the results, the caches, the locks."""
    with ValkeyServer() as server:
        yield server


@pytest.fixture(scope="module")
def database(postgres_server: PostgresServer) -> Iterator[str]:
    """A database with the products table."""

    async def made(sql: str, dsn: str) -> None:
        connection = await asyncpg.connect(dsn)
        try:
            await connection.execute(sql)
        finally:
            await connection.close()

    asyncio.run(made("CREATE DATABASE celery TEMPLATE template0", postgres_server.dsn))
    dsn = postgres_server.database_dsn("celery")
    asyncio.run(made(TABLE, dsn))
    yield dsn
    asyncio.run(made("DROP DATABASE celery WITH (FORCE)", postgres_server.dsn))


@pytest.fixture(scope="module")
def worker(server: ValkeyServer, database: str) -> Iterator[Worker]:
    """A worker with a pool of five processes."""
    worker = Worker(server.dsn, database, "--concurrency", "5")
    try:
        yield worker.start()
    finally:
        worker.kill()
        worker.stop()


@pytest.fixture(scope="module")
def sender(server: ValkeyServer, worker: Worker) -> Iterator[Publisher]:
    """A process that publishes, and runs no task."""

    def never() -> ExecutionRuntime:
        raise AssertionError("a process that only publishes needs no runtime")

    with publisher(server) as publishes:
        attach_portal(publishes.app, never)
        yield publishes


@pytest.fixture
async def ctx(
    server: ValkeyServer, database: str, sender: Publisher
) -> AsyncIterator[ExecutionContext]:
    """The asynchronous process beside the worker."""
    async with runtime_on(server.dsn, database, WEB).scope() as ctx:
        yield ctx


# -- ports ---------------------------------------------------------------------------


async def test_tasks_and_async_code_use_the_same_keys(
    sender: Publisher, ctx: ExecutionContext
) -> None:
    with bind_tenant("acme"):
        assert await sender.answer(sender.send("visit", "home")) == 1
        assert await sender.answer(sender.send("remember", "k", "v")) == "v"
        keys = sorted(sender.server.scan_iter("app:*"))
        assert keys
        assert await ctx.counter(VISITS).incr("home") == 2
        assert await ctx.cache(NOTES).get("k") == "v"
        await ctx.cache(NOTES).set("k", "w")
    assert sorted(sender.server.scan_iter("app:*")) == keys


async def test_a_miss_of_a_document_is_one_load_for_both_processes(
    sender: Publisher, ctx: ExecutionContext, database: str
) -> None:
    product = await ctx.document.command(SPEC).create(ProductCreate(name="Lamp", price=40))
    stats = ctx.document.query(SPEC).stats
    holder = await asyncpg.connect(database)
    try:
        async with holder.transaction():
            await holder.execute("LOCK TABLE products IN ACCESS EXCLUSIVE MODE")
            in_task = sender.send("price_of", str(product.id))
            loading = (
                "SELECT count(*) FROM pg_locks WHERE NOT granted AND database = ("
                "SELECT oid FROM pg_database WHERE datname = current_database())"
            )
            while await holder.fetchval(loading) == 0:
                await asyncio.sleep(0.01)
            with sender.waiting(WEB) as waits:
                here = asyncio.create_task(ctx.document.query(SPEC).get(product.id))
                await asyncio.to_thread(waits)
            assert await holder.fetchval(loading) == 1, "one of both loads"
    finally:
        await holder.close()
    assert (await here).price == await sender.answer(in_task) == 40
    found = stats()
    assert found is not None
    assert found.source_reads == 0


@pytest.mark.parametrize("first", ["task", "web"])
async def test_a_miss_of_a_cached_function_is_one_run_for_both_processes(
    sender: Publisher, ctx: ExecutionContext, server: ValkeyServer, first: str
) -> None:
    product = f"lamp of the {first}"
    quote = quoting(lambda: ctx, server.dsn)

    async def in_task() -> str:
        return str(await sender.answer(sender.send("quoted", product)))

    async def in_web() -> str:
        return await quote(product)

    begin, join, joining = (in_task, in_web, WEB) if first == "task" else (in_web, in_task, CLIENT)
    begun = asyncio.create_task(begin())
    runs = await asyncio.to_thread(sender.seen, product)
    with sender.waiting(joining) as waits:
        joined = asyncio.create_task(join())
        await asyncio.to_thread(waits)
    sender.release(product)
    assert {await begun, await joined} == {f"{product}, by {runs}"}
    assert (runs == os.getpid()) is (first == "web")
    assert sender.server.llen(f"{product}:seen") == 0, "nobody ran it a second time"


async def test_a_lock_of_the_web_process_is_seen_by_a_task(
    sender: Publisher, ctx: ExecutionContext
) -> None:
    async with ctx.dlock_scope(JOBS).scope("books"):
        assert await sender.answer(sender.send("compute", "books")) == "refused"


# -- what travels --------------------------------------------------------------------

ANN = ["acme", "ann"]
NOBODY = [None, None]


def test_a_task_runs_for_whoever_published_it(sender: Publisher) -> None:
    with bind_tenant("acme"), bind_principal("ann"):
        named = [sender.send(each) for each in ("identity", "outside") * 4]
    nobodys = [sender.send(each) for each in ("identity", "outside") * 4]
    assert [each.get(timeout=SECONDS) for each in named] == [ANN] * 8
    assert [each.get(timeout=SECONDS) for each in nobodys] == [NOBODY] * 8


def test_it_survives_retries(sender: Publisher) -> None:
    with bind_tenant("acme"), bind_principal("ann"):
        again, stubborn = sender.send("retried", "note"), sender.send("stubborn", "note")
    assert again.get(timeout=SECONDS) == [1, "note", *ANN]
    assert stubborn.get(timeout=SECONDS) == [2, *ANN]
    assert sender.ask("retried", "note") == [1, "note", *NOBODY]


def test_it_survives_chains_groups_chords_and_callbacks(sender: Publisher) -> None:
    identity, outside = sender.task("identity"), sender.task("outside")
    with bind_tenant("acme"), bind_principal("ann"):
        last = chain(identity, outside, identity).apply_async()
        both = group(identity, outside).apply_async()
        all_three = chord([identity, outside], sender.task("gather")).apply_async()
        sender.ask("publish", "told")
        sender.send("fail", link_error=sender.task("tell", "blamed").set(immutable=True))
    assert last.get(timeout=SECONDS) == ANN
    assert both.get(timeout=SECONDS) == [ANN, ANN]
    assert all_three.get(timeout=SECONDS) == [ANN, ANN, ANN]
    for place in ("told", "blamed"):
        assert [sender.told(place) for _ in ANN] == ANN


def test_a_malformed_header_fails_the_task_and_nothing_else(sender: Publisher) -> None:
    for header in ("acme", {"tenant": ["acme"]}):
        with pytest.raises(ValidationError, match="is malformed"):
            sender.ask("visit", "forged", headers={"forze": header})
    assert sender.ask("visit", "forged") == 1


# -- what Celery offers --------------------------------------------------------------


def test_a_soft_time_limit_ends_the_call_in_the_portal(sender: Publisher) -> None:
    overdue = sender.send("overdue", "ended")
    os.kill(sender.seen("ended"), signal.SIGUSR1)  # what Celery sends when the time is over
    assert overdue.get(timeout=SECONDS) == "given up"
    assert sender.ask("visit", "ended") == 2, "the call had run to its end before"


def test_arguments_are_validated_by_celery(sender: Publisher) -> None:
    assert sender.ask("weigh", {"weight": 3}) == {"weight": 3}


# -- processes that die --------------------------------------------------------------


async def is_free(ctx: ExecutionContext, lock: str, wait: timedelta | None = None) -> bool:
    """Whether ``lock`` can be had, within ``wait``."""
    try:
        async with ctx.dlock_scope(JOBS).scope(lock, wait=wait):
            return True
    except LockNotAcquired:
        return False


async def test_locks_of_dead_processes_are_freed_and_their_payments_made_once(
    sender: Publisher, ctx: ExecutionContext
) -> None:
    """Four processes die at once, their leases end side by side; a fifth lives on meanwhile, under
    a lock, computing without an event loop."""

    async def held(place: str) -> int:
        return await asyncio.to_thread(sender.seen, place)

    computing, killed, revoked = (
        sender.send("compute", each) for each in ("computing", "killed", "revoked")
    )
    before, after = sender.send("charge", "before"), sender.send("charge_and_linger", "after")
    for place in ("computing", "revoked"):
        await held(place)
    doomed = [await held(each) for each in ("killed", "before", "after")]
    sender.release("after")
    assert await held("after:charged") == doomed[2]
    assert not await is_free(ctx, "killed")
    assert not await is_free(ctx, "revoked")
    for each in doomed:
        os.kill(each, signal.SIGKILL)
    revoked.revoke(terminate=True)
    with pytest.raises(WorkerLostError):
        await sender.answer(killed)
    with pytest.raises(TaskRevokedError):
        await sender.answer(revoked)

    # A payment that was not made is made by whoever gets its message next ...
    second = await held("before")
    sender.release("before")
    assert await sender.answer(before) == str(second)
    # ... and of one that was made, the next gets the answer that was stored.
    assert await held("after:charged") != doomed[2]
    sender.release("after:charged")
    assert await sender.answer(after) == str(doomed[2])
    assert [await ctx.counter(VISITS).get(each) for each in ("before", "after")] == [1, 1]

    freed = await asyncio.gather(*(is_free(ctx, each, QUIET) for each in ("killed", "revoked")))
    assert freed == [True, True]
    assert not await is_free(ctx, "computing"), "its lease has ended, too, and was kept up"
    sender.release("computing")
    assert await sender.answer(computing) == "done"
    assert await is_free(ctx, "computing")


# -- the end -------------------------------------------------------------------------


def test_a_worker_closes_its_portals_when_its_tasks_have_ended(
    sender: Publisher, worker: Worker
) -> None:
    sender.server.delete("closed")
    tasks = [sender.send("linger", each) for each in "ab"]
    processes = {sender.seen(each) for each in "ab"}
    said = len(worker.log())
    os.kill(worker.pid, signal.SIGTERM)
    for each in "ab":
        sender.release(each)
    assert {each.get(timeout=SECONDS) for each in tasks} == processes
    until = time.monotonic() + SECONDS
    while (worker.running or sender.ports(CLIENT)) and time.monotonic() < until:
        time.sleep(0.02)
    assert {int(each) for each in sender.server.lrange("closed", 0, -1)} >= {*processes, worker.pid}
    assert sender.ports(CLIENT) == set()
    assert "rror" not in worker.log()[said:]
