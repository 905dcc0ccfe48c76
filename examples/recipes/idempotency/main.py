"""Tells the story: duplicates, a crash, a late owner, and a transaction."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from worker import PAYMENTS, build_runtime

from forze.application.contracts.idempotency import Commit, IdempotencySnapshot
from forze.application.execution import (
    DepsPlan,
    ExecutionContext,
    ExecutionRuntime,
    LifecyclePlan,
)
from forze.application.integrations.idempotency import payload_hash
from forze.errors import IdempotencyMismatch
from forze.testing.servers import PostgresServer, ValkeyServer
from forze_postgres import (
    PostgresClient,
    PostgresDepsModule,
    PostgresIdempotencyConfig,
    idempotency_table_sql,
    postgres_lifecycle_step,
)

SCHEMA = "forze_idempotency"
TABLE = (SCHEMA, "idempotency")
WORKER = Path(__file__).with_name("worker.py")


def say(text: str) -> None:
    """A line of the story."""
    print(text, flush=True)


async def duplicates(one: ExecutionContext, other: ExecutionContext) -> None:
    """Ten requests at once, on two processes' worth of clients."""
    charged: list[int] = []

    async def charge(amount: int) -> dict[str, int]:
        charged.append(amount)
        await asyncio.sleep(0.1)
        return {"receipt": 4711, "amount": amount}

    key = f"order-{time.time_ns()}"
    answers = await asyncio.gather(
        *(
            ctx.idempotency(PAYMENTS).run("charge", key, {"amount": 10}, charge, 10)
            for ctx in (one, other) * 5
        )
    )
    assert len(charged) == 1
    assert answers == answers[:1] * 10
    say(f"10 requests with one key: charged {len(charged)} time, 10 answers: {answers[0]}")
    try:
        await one.idempotency(PAYMENTS).run("charge", key, {"amount": 11}, charge, 11)
    except IdempotencyMismatch as error:
        say(f"the same key for another amount: {error}")


@asynccontextmanager
async def worker(redis_dsn: str, key: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """A worker process that has claimed ``key``; gone afterwards."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, str(WORKER), redis_dsn, key,
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    try:
        assert await process.stdout.readline() == b"1\n"
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def crash(redis_dsn: str, ctx: ExecutionContext) -> None:
    """A worker is killed at its work."""
    key = f"crash-{time.time_ns()}"
    async with worker(redis_dsn, key) as process:
        process.kill()
    began = time.monotonic()
    async with ctx.idempotency(PAYMENTS).claim("charge", key, "h") as claim:
        waited = time.monotonic() - began
        say(
            f"a worker killed at its work (lease {PAYMENTS.lease.total_seconds():g} s): taken over "
            f"after {waited:.1f} s, generation {claim.generation}, takeover={claim.takeover}"
        )
        await claim.complete(IdempotencySnapshot(200, None, b"the heir's"))


async def late_owner(redis_dsn: str, ctx: ExecutionContext) -> None:
    """A worker stands still for longer than its lease, then goes on."""
    key = f"late-{time.time_ns()}"
    async with worker(redis_dsn, key) as process:
        process.send_signal(signal.SIGSTOP)
        async with ctx.idempotency(PAYMENTS).claim("charge", key, "h") as heir:
            await heir.complete(IdempotencySnapshot(200, None, b"the heir's"))
        process.send_signal(signal.SIGCONT)
        said, _ = await process.communicate(b"\n")
    assert said.decode().strip() == Commit.FENCED_OUT.value
    say(
        f"a worker that stood still: {said.decode().strip()}; its generation 1 is below "
        f"{heir.generation}, so its effect can be refused too"
    )


async def transaction(pg_dsn: str) -> None:
    """Effect and answer in one database."""
    client = PostgresClient()
    runtime = ExecutionRuntime(
        deps=DepsPlan.from_modules(
            PostgresDepsModule(
                client=client, idempotency=PostgresIdempotencyConfig(table=TABLE), tx={"orders"}
            )
        ),
        lifecycle=LifecyclePlan.from_steps(postgres_lifecycle_step(dsn=pg_dsn)),
    )
    order, key = {"item": "tea"}, f"order-{time.time_ns()}"
    async with runtime.scope() as ctx:
        port = ctx.idempotency(PAYMENTS)
        for attempt in ("first", "second", "third"):
            try:
                async with port.claim("order", key, payload_hash(order)) as claim:
                    if claim.replay is not None:
                        say(f"  {attempt} attempt: answered {claim.replay.body.decode()!r} again")
                        continue
                    async with ctx.transaction("orders"):
                        await client.rows(
                            f"INSERT INTO {SCHEMA}.orders VALUES ($1)",
                            order["item"],
                            doing="ordering",
                            write=True,
                        )
                        await claim.complete(IdempotencySnapshot(201, "text/plain", b"ordered"))
                        if attempt == "first":
                            raise ConnectionError("something fails before the commit")
                say(f"  {attempt} attempt: ordered")
            except ConnectionError as error:
                say(f"  {attempt} attempt: {error}")
        rows = await client.rows(f"SELECT count(*) FROM {SCHEMA}.orders", doing="counting")
        assert rows[0][0] == 1
        say(f"  orders in the database: {rows[0][0]}")


@asynccontextmanager
async def tables(dsn: str) -> AsyncIterator[None]:
    """The recipe's schema, which goes again."""
    client = PostgresClient()
    await client.connect(dsn)
    statements = [
        f"CREATE SCHEMA {SCHEMA}",
        f"CREATE TABLE {SCHEMA}.orders (item text)",
        *idempotency_table_sql(TABLE).split(";\n")[:2],
    ]
    try:
        for each in statements:
            await client.rows(each, doing="making the tables", write=True)
        yield
    finally:
        await client.rows(f"DROP SCHEMA IF EXISTS {SCHEMA} CASCADE", doing="cleaning", write=True)
        await client.close()


async def main() -> None:
    """Every step, on servers that are gone afterwards."""
    async with AsyncExitStack() as stack:
        redis_dsn = os.environ.get("REDIS_DSN") or stack.enter_context(ValkeyServer()).dsn
        pg_dsn = os.environ.get("POSTGRES_DSN") or stack.enter_context(PostgresServer()).dsn
        await stack.enter_async_context(tables(pg_dsn))
        one = await stack.enter_async_context(build_runtime(redis_dsn).scope())
        other = await stack.enter_async_context(build_runtime(redis_dsn).scope())
        await duplicates(one, other)
        await crash(redis_dsn, one)
        await late_owner(redis_dsn, one)
        say("effect and answer in one transaction:")
        await transaction(pg_dsn)


if __name__ == "__main__":
    asyncio.run(main())
