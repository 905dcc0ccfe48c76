"""The shop's processes, as servers: they never outlive the launcher, however it ends.

PostgreSQL and Valkey come from ``forze.testing.servers``; the replicas and the worker are two more
of that kind. Each has a directory of its own, with its log in it.
"""

from __future__ import annotations

import asyncio
import os
import re
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from secrets import token_urlsafe

import asyncpg

from forze.testing.servers import PostgresServer, Server, ValkeyServer

HERE = Path(__file__).parent


class Replica(Server):
    """One uvicorn, on a port that the system chose."""

    name = "Replica"

    @property
    def dsn(self) -> str:
        """``http://127.0.0.1:port``."""
        running = re.search(r"running on (\S+)", self.log())
        return running[1] if running else ""

    def _command(self) -> list[str]:
        command = [sys.executable, "-m", "uvicorn", "app.main:app", "--app-dir", str(HERE)]
        return [*command, "--port", "0", "--no-access-log", "--timeout-graceful-shutdown", "5"]

    def _ready(self) -> bool:
        return bool(self.dsn)

    def log(self) -> str:
        """What it has said."""
        return (self.directory / "server.log").read_text()


class Worker(Replica):
    """Celery: two processes, and the clock that sends them on their rounds."""

    name = "Worker"

    @property
    def dsn(self) -> str:
        """Its broker."""
        return os.environ["SHOP_REDIS_DSN"]

    def _command(self) -> list[str]:
        command = ["env", f"TMPDIR={self.directory}"]  # so that its own files go with it, too
        command += [sys.executable, "-m", "celery", "--app", "app.tasks", "--workdir", str(HERE)]
        command += ["worker", "--concurrency", "2", "--beat", "--loglevel", "info"]
        command += ["--schedule", str(self.directory / "beat"), "--pidfile", ""]
        return [*command, "--without-gossip", "--without-mingle", "--without-heartbeat"]

    def _ready(self) -> bool:
        return " ready." in self.log()


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """Everything that runs."""

    postgres: PostgresServer
    valkey: ValkeyServer
    replicas: tuple[Replica, ...]
    worker: Worker
    console_token: str

    @property
    def addresses(self) -> list[str]:
        """Of the replicas."""
        return [each.dsn for each in self.replicas]

    def tell_logs(self) -> None:
        """Print how the log of each process ends; they go with their directories."""
        for each in (*self.replicas, self.worker):
            print(f"-- {each.name}, its last words:\n{each.log()[-3000:]}")


@contextmanager
def stage(replicas: int = 2) -> Iterator[Stage]:
    """Start everything, and stop it again, side by side where one need not wait for another."""
    # What the queue and the locks hold has to survive a restart; a cache alone would not mind.
    postgres, valkey = PostgresServer(), ValkeyServer("--appendonly", "yes")
    fleet, worker = tuple(Replica() for _ in range(replicas)), Worker()
    token = token_urlsafe(8)
    try:
        _together(Server.start, postgres, valkey)
        os.environ.update(
            SHOP_POSTGRES_DSN=postgres.dsn,
            SHOP_REDIS_DSN=valkey.dsn,
            SHOP_CURSOR_SECRET=token_urlsafe(32),
            SHOP_CONSOLE_TOKEN=token,
            PYTHONPATH=os.pathsep.join(filter(None, (str(HERE), os.environ.get("PYTHONPATH")))),
        )
        asyncio.run(_make_tables(postgres.dsn))
        _together(Server.start, *fleet, worker)
        yield Stage(
            postgres=postgres, valkey=valkey, replicas=fleet, worker=worker, console_token=token
        )
    finally:
        _together(Server.stop, *fleet, worker)
        _together(Server.stop, postgres, valkey)


def _together(act: Callable[[Server], object], *servers: Server) -> None:
    """``act`` on each, side by side; none is under way any more when this ends, however it ends."""
    with ThreadPoolExecutor() as threads:
        list(threads.map(act, servers))


async def _make_tables(dsn: str) -> None:
    connection = await asyncpg.connect(dsn)
    try:
        await connection.execute((HERE / "schema.sql").read_text())
    finally:
        await connection.close()
