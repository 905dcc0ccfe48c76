"""A holder is stopped beyond its lease, another one takes over, and the late write is refused."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import asyncpg

from forze.testing.servers import PostgresServer, ValkeyServer

WORKER = Path(__file__).with_name("worker.py")
TABLE = "CREATE TABLE invoices (id bigint PRIMARY KEY, total bigint NOT NULL, fence bigint)"


async def run(redis_dsn: str, postgres_dsn: str) -> None:
    """The story."""
    row = await asyncpg.connect(postgres_dsn)
    try:
        await row.execute(TABLE)
        await row.execute("INSERT INTO invoices VALUES (42, 0, NULL)")
        async with worker("first", redis_dsn, postgres_dsn, "100", "0.5") as first:
            await first.said("holds")
            first.process.send_signal(signal.SIGSTOP)
            print(f"-- process {first.process.pid} is stopped (SIGSTOP), its lock in hand")
            async with worker("second", redis_dsn, postgres_dsn, "200", "0") as second:
                await second.ended()
            first.process.send_signal(signal.SIGCONT)
            print(f"-- process {first.process.pid} goes on (SIGCONT), as if nothing had happened")
            await first.ended()
        total, fence = await row.fetchrow("SELECT total, fence FROM invoices")
        print(f"-- the row says: total {total}, fence {fence}")
        if total != 200:
            raise SystemExit("the late write got through")
    finally:
        await row.close()


class Worker:
    """A process whose lines are passed on as it says them."""

    def __init__(self, name: str, process: asyncio.subprocess.Process) -> None:
        self._name = name
        self.process = process

    async def said(self, word: str) -> None:
        """Pass on what it says up to a line with ``word``."""
        assert self.process.stdout is not None
        async with asyncio.timeout(20):
            while line := (await self.process.stdout.readline()).decode().strip():
                print(f"{self._name:>8}: {line}", flush=True)
                if word in line:
                    return
        raise SystemExit(f"the {self._name} worker ended before it said {word!r}")

    async def ended(self) -> None:
        """Pass on what it says until it ends."""
        assert self.process.stdout is not None
        async with asyncio.timeout(20):
            async for line in self.process.stdout:
                print(f"{self._name:>8}: {line.decode().strip()}", flush=True)
            await self.process.wait()


@contextlib.asynccontextmanager
async def worker(name: str, *arguments: str) -> AsyncIterator[Worker]:
    """A worker that does not outlive the block."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        str(WORKER),
        *arguments,
        stdout=asyncio.subprocess.PIPE,
        env={**os.environ},
        start_new_session=True,
    )
    try:
        yield Worker(name, process)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


def main() -> None:
    """On servers that exist only for the run."""
    with PostgresServer() as postgres, ValkeyServer() as valkey:
        asyncio.run(run(valkey.dsn, postgres.dsn))
    print("all torn down")


if __name__ == "__main__":
    main()
