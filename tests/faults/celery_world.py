"""Celery workers as processes of the tests, and somebody who publishes to them."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import redis
from celery import Celery
from tests.architecture.tree import ROOT

from forze.testing.servers import Server, ValkeyServer

SECONDS = 30


class Worker(Server):
    """``celery worker`` on the application of the tests."""

    name: ClassVar[str] = "Worker"

    def __init__(self, redis_dsn: str, postgres_dsn: str, *options: str) -> None:
        super().__init__()
        self._dsns = redis_dsn, postgres_dsn
        self._options = options

    @property
    def dsn(self) -> str:
        """Of its broker."""
        return self._dsns[0]

    def log(self) -> str:
        """What it has said."""
        return (self.directory / "server.log").read_text(errors="replace")

    def _command(self) -> list[str]:
        path = os.pathsep.join([*filter(None, [os.environ.get("PYTHONPATH")]), str(ROOT)])
        return [
            *("env", f"PYTHONPATH={path}", f"TEST_REDIS_DSN={self._dsns[0]}"),
            *(f"TEST_POSTGRES_DSN={self._dsns[1]}", sys.executable, "-m", "celery"),
            *("--app", "tests.faults.celery_app", "worker", "--loglevel", "info"),
            *("--without-gossip", "--without-mingle", "--without-heartbeat", *self._options),
        ]

    def _ready(self) -> bool:
        return " ready." in self.log()


class Publisher:
    """A process that knows the tasks by their names, and where they are held."""

    def __init__(self, server: ValkeyServer) -> None:
        self.app = Celery("publisher", broker=server.dsn, backend=server.dsn, set_as_current=False)
        self.server = redis.Redis.from_url(server.dsn, decode_responses=True, socket_timeout=None)

    def task(self, name: str, *args: Any) -> Any:
        """A signature."""
        return self.app.signature(f"tests.faults.celery_app.{name}", args=args)

    def send(self, name: str, *args: Any, **options: Any) -> Any:
        """Publish; what will be its result."""
        return self.task(name, *args).apply_async(**options)

    def ask(self, name: str, *args: Any, **options: Any) -> Any:
        """Publish, and wait for what it returns."""
        return self.send(name, *args, **options).get(timeout=SECONDS)

    async def answer(self, result: Any) -> Any:
        """What a task has returned, for code with an event loop."""
        return await asyncio.to_thread(result.get, timeout=SECONDS)

    def told(self, place: str) -> str:
        """The next word that a task says at ``place``."""
        found: Any = self.server.blpop([place], timeout=SECONDS)
        assert found is not None, f"nobody came to {place}"
        return str(found[1])

    def seen(self, place: str) -> int:
        """The process that is held at ``place``."""
        return int(self.told(f"{place}:seen"))

    def release(self, place: str) -> None:
        """Let it go on."""
        self.server.rpush(f"{place}:go", "go")

    def ports(self, name: str) -> set[str]:
        """From where clients of this name are connected."""
        clients: Any = self.server.client_list()
        return {each["addr"].rpartition(":")[2] for each in clients if each["name"] == name}

    @contextmanager
    def waiting(self, name: str) -> Iterator[Callable[[], None]]:
        """What returns when a client of this name waits for what somebody else loads: it has
        looked into the cache in the block, and has come to look again."""
        monitored: Any = self.server
        with monitored.monitor() as monitor:

            def looked_twice() -> None:
                looks, until = 0, time.monotonic() + SECONDS
                while looks < 2:
                    seen = monitor.next_command()
                    if seen["command"].startswith("EVALSHA"):
                        looks += seen["client_port"] in self.ports(name)
                    assert time.monotonic() < until, f"{name} does not wait for anybody"

            yield looked_twice


@contextmanager
def publisher(server: ValkeyServer) -> Iterator[Publisher]:
    """Somebody who publishes; its connections are gone afterwards."""
    one = Publisher(server)
    try:
        yield one
    finally:
        one.app.backend.result_consumer.stop()
        one.app.backend.client.close()
        one.app.pool.force_close_all()
        one.app.close()
        one.server.close()
