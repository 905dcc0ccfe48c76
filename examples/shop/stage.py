"""The shop's processes, as servers: they never outlive the launcher, however it ends.

PostgreSQL and Valkey come from ``forze.testing.servers``; the shop's own programs are more of that
kind. Each has a directory of its own, with its log in it.
"""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from secrets import token_urlsafe

import asyncpg

from forze.errors import ForzeError
from forze.testing.servers import PostgresServer, Server, ValkeyServer

HERE = Path(__file__).parent


class Program(Server):
    """A Python program of the shop's, which says in its log that it is up, and where."""

    up: re.Pattern[str]
    arguments: tuple[str, ...]

    @property
    def dsn(self) -> str:
        """What it says of where it is; empty as long as it is not up."""
        found = self.up.search(self.log())
        return found[1] if found else ""

    def _command(self) -> list[str]:
        # Its own temporary files go with its directory, too.
        return ["env", f"TMPDIR={self.directory}", sys.executable, "-m", *self.arguments]

    def _ready(self) -> bool:
        return bool(self.dsn)

    def log(self) -> str:
        """What it has said."""
        return (self.directory / "server.log").read_text()


class Replica(Program):
    """One uvicorn, on a port that the system chooses."""

    name = "Replica"
    up = re.compile(r"running on (\S+)")
    arguments = (
        *("uvicorn", "app.main:app", "--port", "0"),
        *("--no-access-log", "--timeout-graceful-shutdown", "5"),
    )


class Worker(Program):
    """Celery, with two processes."""

    name = "Worker"
    up = re.compile(r"(\S+) ready\.")
    arguments = (
        *("celery", "--app", "app.tasks", "worker", "--concurrency", "2", "--loglevel", "info"),
        *("--without-gossip", "--without-mingle", "--without-heartbeat"),
    )


class Clock(Program):
    """Celery's clock, which sends the worker on its rounds."""

    name = "Clock"
    up = re.compile(r"(beat): Starting")
    arguments = ("celery", "--app", "app.tasks", "beat", "--pidfile", "", "--loglevel", "info")


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """Everything that runs."""

    postgres: PostgresServer
    valkey: ValkeyServer
    replicas: tuple[Replica, ...]
    worker: Worker
    clock: Clock
    console_token: str

    @property
    def addresses(self) -> list[str]:
        """Of the replicas."""
        return [each.dsn for each in self.replicas]

    async def set_payments(self, *, up: bool) -> None:
        """Whether the payment provider answers."""
        await _execute(self.postgres.dsn, f"UPDATE provider SET up = {up}")

    def tell_logs(self) -> None:
        """Print how the log of each program ends; they go with their directories."""
        for each in (*self.replicas, self.worker, self.clock):
            print(f"-- {each.name}, its last words:\n{each.log()[-3000:]}")


@contextmanager
def stage(replicas: int = 2) -> Iterator[Stage]:
    """Start everything, and stop it again, side by side where one need not wait for another."""
    # What the queue and the locks hold has to survive a restart; a cache alone would not mind.
    postgres, valkey = PostgresServer(), ValkeyServer("--appendonly", "yes")
    fleet, worker, clock = tuple(Replica() for _ in range(replicas)), Worker(), Clock()
    token = token_urlsafe(8)
    try:
        _together(Server.start, postgres, valkey)
        asyncio.run(_execute(postgres.dsn, (HERE / "schema.sql").read_text()))
        os.environ.update(
            SHOP_POSTGRES_DSN=postgres.dsn,
            SHOP_REDIS_DSN=valkey.dsn,
            SHOP_CURSOR_SECRET=token_urlsafe(32),
            SHOP_CONSOLE_TOKEN=token,
            PYTHONPATH=os.pathsep.join(filter(None, (str(HERE), os.environ.get("PYTHONPATH")))),
        )
        _together(Server.start, *fleet, worker, clock)
        yield Stage(
            postgres=postgres,
            valkey=valkey,
            replicas=fleet,
            worker=worker,
            clock=clock,
            console_token=token,
        )
    finally:
        _together(Server.stop, *fleet, worker, clock)
        _together(Server.stop, postgres, valkey)


def _together(act: Callable[[Server], object], *servers: Server) -> None:
    """``act`` on each, side by side; none is under way any more when this ends, however it ends."""
    with ThreadPoolExecutor() as threads:
        try:
            list(threads.map(act, servers))
        except KeyboardInterrupt:  # nobody waits for what is starting, or slow to stop
            for each in servers:
                with suppress(ForzeError, ProcessLookupError):
                    os.killpg(each.pid, signal.SIGKILL)  # each leads a group of its own
            raise


async def _execute(dsn: str, sql: str) -> None:
    connection = await asyncpg.connect(dsn)
    try:
        await connection.execute(sql)
    finally:
        await connection.close()
