"""A primary, its replica, and sentinels that watch over them: failovers on demand.

Real servers, as in :mod:`forze.testing.servers`. Everything that blocks is bounded by
twenty seconds and raises ``BackendUnavailable`` beyond them.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Self

from forze.errors import BackendUnavailable, ConfigurationError
from forze.testing.servers import RedisServer, RespServer, ValkeyServer

_WAIT_SECONDS = 20.0
_ASK_AGAIN_SECONDS = 4.0
_PROMPT = ("--repl-diskless-sync-delay", "0")
_EAGER = ("INFO-PERIOD", "100", "PUBLISH-PERIOD", "100")


class Sentinel(RespServer):
    """One sentinel for the primary at ``watched``; a single one may decide on a failover.

    It takes half a second of silence for a failure. ``kind`` tells whose binary runs.
    """

    name = "Sentinel"

    def __init__(
        self,
        service: str,
        watched: RespServer,
        *,
        kind: type[RespServer] = ValkeyServer,
        quorum: int = 1,
        password: str | None = None,
        watched_password: str | None = None,
    ) -> None:
        super().__init__(password=password)
        self._kind = kind
        self._settings = [
            f"sentinel monitor {service} 127.0.0.1 {watched.port} {quorum}",
            f"sentinel down-after-milliseconds {service} 500",
            f"sentinel failover-timeout {service} 1000",
        ]
        if password is not None:
            self._settings.append(f"requirepass {password}")
            self._settings.append(f"sentinel sentinel-pass {password}")
        if watched_password is not None:
            self._settings.append(f"sentinel auth-pass {service} {watched_password}")

    @staticmethod
    def executable() -> str | None:
        """A binary that can be a sentinel."""
        return ValkeyServer.executable() or RedisServer.executable()

    def named(self, service: str) -> int | None:
        """The port of the primary it names at present, None where it knows no such service."""
        words = self.ask("SENTINEL", "GET-MASTER-ADDR-BY-NAME", service).split(b"\r\n")
        return int(words[4]) if len(words) > 4 else None

    def start(self) -> Self:
        """Start, and look at the servers every 100 ms instead of every ten seconds."""
        super().start()
        self.ask("SENTINEL", "DEBUG", *_EAGER)
        return self

    def _command(self) -> list[str]:
        binary = self._kind.executable()
        if binary is None:
            raise ConfigurationError(f"{self._kind.name} is not installed; no sentinel can run")
        return [binary, str(self._written()), "--sentinel"]

    def _written(self) -> Path:
        """Its configuration, in which it keeps its memory over restarts."""
        place = self.directory / "sentinel.conf"
        if not place.exists() or f"port {self._port}\n" not in place.read_text():
            lines = ["bind 127.0.0.1", f"port {self._port}", f"dir {self.directory}"]
            place.write_text("\n".join([*lines, *self._settings, ""]))
        return place


class Replicated:
    """Two servers and ``sentinels`` sentinels; a context manager that runs them all.

    Entered, the replica is in step and every sentinel knows it. The roles move with each
    failover: ask :attr:`primary` and :attr:`replica` again afterwards.
    """

    def __init__(
        self,
        kind: type[RespServer] = ValkeyServer,
        *,
        sentinels: int = 1,
        service: str = "main",
        password: str | None = None,
        sentinel_password: str | None = None,
    ) -> None:
        self.service = service
        self.nodes: tuple[RespServer, RespServer]
        self.sentinels: list[Sentinel] = []
        self._kind = kind
        self._count = sentinels
        self._password = password
        self._sentinel_password = sentinel_password
        self._running = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as starting:
            secret = ("--masterauth", self._password) if self._password is not None else ()
            first, second = (
                starting.enter_context(self._kind(*_PROMPT, *secret, password=self._password))
                for _ in range(2)
            )
            self.nodes = (first, second)
            self.follow(second, first)
            for _ in range(self._count):
                sentinel = Sentinel(
                    self.service,
                    first,
                    kind=self._kind,
                    quorum=self._count // 2 + 1,
                    password=self._sentinel_password,
                    watched_password=self._password,
                )
                self.sentinels.append(starting.enter_context(sentinel))
            self.wait_for_replica()
            self._running = starting.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._running.close()

    @property
    def dsn(self) -> str:
        """Where clients connect: every sentinel, the service, database 0."""
        hosts = ",".join(f"127.0.0.1:{sentinel.port}" for sentinel in self.sentinels)
        user = f":{self._password}@" if self._password is not None else ""
        secret = self._sentinel_password
        query = f"?sentinel_password={secret}" if secret is not None else ""
        return f"redis+sentinel://{user}{hosts}/{self.service}/0{query}"

    @property
    def primary(self) -> RespServer:
        """The server that a running sentinel names as the primary."""
        first, second = self.nodes
        return second if self._asked().named(self.service) == second.port else first

    @property
    def replica(self) -> RespServer:
        """The other one."""
        first, second = self.nodes
        return first if self.primary is second else second

    def follow(self, node: RespServer, primary: RespServer) -> None:
        """Make ``node`` a replica of ``primary``, and return when it is in step."""
        node.ask("REPLICAOF", "127.0.0.1", str(primary.port))
        self._until(lambda: b"master_link_status:up" in _replication(node), "be in step")

    def rejoin(self) -> None:
        """Start the server that was killed as a replica; return when the sentinels know it."""
        node, primary = self.replica, self.primary
        node.start()
        self.follow(node, primary)
        self.wait_for_replica()

    def wait_for_replica(self) -> None:
        """Return when every sentinel that runs knows a replica it could promote."""
        self._until(
            lambda: all(self._knows_replica(each) for each in self.sentinels if each.running),
            "be known to the sentinels",
        )

    def failover(self) -> RespServer:
        """Promote the replica while the primary lives; the new primary, once it is one.

        The old one goes on as a primary until a sentinel demotes it, a moment later.
        """
        promoted = self.replica
        running, asked = self._asked(), float("-inf")

        def under_way() -> bool:
            nonlocal asked
            if running.named(self.service) == promoted.port:
                return True
            if time.monotonic() - asked > _ASK_AGAIN_SECONDS:  # a sentinel may give up on one
                asked = time.monotonic()
                running.ask("SENTINEL", "FAILOVER", self.service)
            return False

        self._until(under_way, "be promoted")
        return self.wait_for_primary(promoted)

    def wait_for_primary(self, node: RespServer) -> RespServer:
        """Return ``node`` when it is a primary, and every sentinel that runs says so."""
        self._until(
            lambda: (
                all(
                    each.named(self.service) == node.port for each in self.sentinels if each.running
                )
                and b"role:master" in _replication(node)
            ),
            "be the primary",
        )
        return node

    def wait_for_demotion(self, node: RespServer) -> None:
        """Return when ``node`` is a replica in step again."""
        self._until(lambda: b"master_link_status:up" in _replication(node), "be demoted")

    def _asked(self) -> Sentinel:
        for sentinel in self.sentinels:
            if sentinel.running:
                return sentinel
        raise ConfigurationError("no sentinel is running; start() one of .sentinels")

    def _knows_replica(self, sentinel: Sentinel) -> bool:
        told = sentinel.ask("SENTINEL", "REPLICAS", self.service)
        up = told.count(b"\r\nmaster-link-status\r\n$2\r\nok\r\n")
        return up > 0 and b"s_down" not in told and b"disconnected" not in told

    def _until(self, met: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + _WAIT_SECONDS
        while not met():
            if time.monotonic() > deadline:
                raise BackendUnavailable(
                    f"a server of {self.service!r} came not to {what} within {_WAIT_SECONDS:g} s",
                    backend=self._kind.name,
                )
            time.sleep(0.02)


def _replication(node: RespServer) -> bytes:
    return node.ask("INFO", "replication") if node.running else b""
