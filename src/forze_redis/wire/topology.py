"""Where is the primary now?

For a plain DSN the answer never changes. With sentinels, each attempt to connect asks them
in turn, and so does each heartbeat: the first that knows is believed, and asked first the
next time. Believed, not trusted: who connects looks whether the server says so itself
(:meth:`Topology.check`), and where that went wrong the sentinel that named it is asked
last the next time, because one that was cut off from the others names a primary of the past.

Redis documentation, Sentinel clients guide: ask in turn, then verify the role.
"""

from __future__ import annotations

import asyncio
from collections.abc import Generator
from dataclasses import replace
from typing import Any, cast

from redis import exceptions as driver
from redis.asyncio.connection import Connection, SSLConnection
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import MasterNotFoundError
from redis.backoff import NoBackoff

from forze.errors import BackendUnavailable, ConfigurationError, ForzeError
from forze_redis.wire.config import RedisConfig, seconds
from forze_redis.wire.dsn import Endpoint, address
from forze_redis.wire.replies import BACKEND


class Topology:
    """What ``endpoint`` of a DSN stands for; ``follows`` tells whether that can change."""

    def __init__(self, endpoint: Endpoint, config: RedisConfig) -> None:
        self._endpoint = endpoint
        self._config = config
        self._sentinels = endpoint.sentinels
        self._order = list(endpoint.sentinels.addresses) if endpoint.sentinels else []

    @property
    def follows(self) -> bool:
        """Whether sentinels say where the primary is."""
        return self._sentinels is not None

    async def primary(self) -> Endpoint:
        """The endpoint of the primary; asks sentinels in turn, within ``connect_timeout``.

        Raises ``BackendUnavailable`` where none of them knows at present, and
        ``ConfigurationError`` where each one answered that it never will.
        """
        search = self.search()
        answer: tuple[str, int] | ForzeError | None = None
        while True:
            try:
                sentinel = search.send(answer)
            except StopIteration as found:
                return cast(Endpoint, found.value)
            try:
                answer = await self._ask(*sentinel)
            except ForzeError as error:
                answer = error

    def search(self) -> Generator[tuple[str, int], tuple[str, int] | ForzeError | None, Endpoint]:
        """:meth:`primary` without the asking: yields each sentinel, is sent what it answered."""
        if self._sentinels is None:
            return self._endpoint
        told: list[ForzeError] = []
        for sentinel in tuple(self._order):
            answer = yield sentinel
            if isinstance(answer, ForzeError):
                told.append(answer)
            elif answer is not None:
                self._order = [sentinel, *(each for each in self._order if each != sentinel)]
                host, port = answer
                return replace(self._endpoint, host=host, port=port)
        why = "; ".join(map(str, told))
        if all(isinstance(each, ConfigurationError) for each in told):
            raise ConfigurationError(f"no sentinel can help: {why}", name="dsn")
        raise BackendUnavailable(
            f"no sentinel names a primary of {self._sentinels.service!r}: {why}. Are the "
            "sentinels running, and is the DSN right?",
            backend=BACKEND,
        )

    async def moved_from(self, current: Endpoint) -> bool:
        """Whether the sentinels name another primary by now; no when none of them answers."""
        if not self.follows:
            return False
        try:
            return await self.primary() != current
        except ForzeError:
            return False

    def refuses(self, info: object) -> bool:
        """Whether INFO says that the server is a replica, where it must not be one."""
        return self.follows and isinstance(info, bytes) and b"\r\nrole:slave\r\n" in info

    def check(self, info: object, where: str) -> None:
        """Raise ``BackendUnavailable`` where :meth:`refuses` says so."""
        if self.refuses(info):
            raise BackendUnavailable(
                f"Redis at {where} says that it is a replica: a failover is under way, or a "
                "sentinel has missed one (compare SENTINEL GET-MASTER-ADDR-BY-NAME on each)",
                backend=BACKEND,
            )

    def doubt(self) -> None:
        """What was named last was no primary: ask somebody else first."""
        self._order = [*self._order[1:], *self._order[:1]]

    async def discover_master(self, service: str) -> tuple[str, int]:
        """:meth:`primary` as redis-py's pools ask for it, with their error."""
        try:
            endpoint = await self.primary()
        except ForzeError as error:
            raise MasterNotFoundError(str(error)) from error
        return endpoint.host, endpoint.port

    async def _ask(self, host: str, port: int) -> tuple[str, int]:
        tls = self._endpoint.tls is not None
        connection = (SSLConnection if tls else Connection)(
            host=host, port=port, retry=Retry(NoBackoff(), 0), **self.credentials()
        )
        try:
            async with asyncio.timeout(self.share()):
                await connection.connect()  # type: ignore[no-untyped-call]
                await connection.send_command(*self.question())
                named = await connection.read_response()
        except Exception as error:
            raise self.trouble(error, host, port) from error
        finally:
            await connection.disconnect(nowait=True)
        return self.named(named, host, port)

    def share(self) -> float:
        """Seconds for one sentinel: a silent one must leave time for the others, and for the
        primary itself."""
        return seconds(self._config.connect_timeout) / (len(self._order) + 1)

    def credentials(self) -> dict[str, Any]:
        """Who we are to the sentinels, and their TLS."""
        assert self._sentinels is not None
        who = {"username": self._sentinels.username, "password": self._sentinels.password}
        return {**who, **(self._endpoint.tls or {})}

    def question(self) -> tuple[str, str, str]:
        """What a sentinel is asked."""
        assert self._sentinels is not None
        return "SENTINEL", "GET-MASTER-ADDR-BY-NAME", self._sentinels.service

    def named(self, reply: Any, host: str, port: int) -> tuple[str, int]:
        """Its answer."""
        if not reply:
            raise ConfigurationError(
                f"the sentinel at {address(host, port)} knows no service {self.question()[2]!r}; "
                "name one of its own in the DSN (SENTINEL MASTERS lists them)",
                name="dsn",
            )
        return reply[0].decode(), int(reply[1])

    def trouble(self, error: Exception, host: str, port: int) -> Exception:
        """What ``error`` while asking it means."""
        at = f"the sentinel at {address(host, port)}"
        if isinstance(error, (driver.AuthenticationError, driver.NoPermissionError)):
            return ConfigurationError(
                f"{at} does not let us ask ({error}); correct sentinel_password= (and "
                "sentinel_username=) in the DSN's query",
                name="dsn",
            )
        if isinstance(error, (driver.TimeoutError, TimeoutError)):
            return BackendUnavailable(f"{at} did not answer", backend=BACKEND)
        if isinstance(error, (driver.ConnectionError, OSError, UnicodeError)):
            return BackendUnavailable(f"{at} cannot be reached ({error})", backend=BACKEND)
        if isinstance(error, driver.RedisError):
            return ConfigurationError(f"{at} is none, it said: {error}", name="dsn")
        return error
