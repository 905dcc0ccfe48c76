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
from dataclasses import replace
from typing import Any

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
        if self._sentinels is None:
            return self._endpoint
        told: list[ForzeError] = []
        for sentinel in tuple(self._order):
            try:
                host, port = await self._ask(*sentinel)
            except ForzeError as error:
                told.append(error)
            else:
                self._order.remove(sentinel)
                self._order.insert(0, sentinel)
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
        sentinels = self._sentinels
        assert sentinels is not None
        # A silent one must leave time for the others, and for the primary itself.
        share = seconds(self._config.connect_timeout) / (len(self._order) + 1)
        tls: Any = self._endpoint.tls
        connection = (Connection if tls is None else SSLConnection)(
            host=host,
            port=port,
            username=sentinels.username,
            password=sentinels.password,
            retry=Retry(NoBackoff(), 0),
            **(tls or {}),
        )
        at = f"the sentinel at {address(host, port)}"
        try:
            async with asyncio.timeout(share):
                await connection.connect()  # type: ignore[no-untyped-call]
                command = ("SENTINEL", "GET-MASTER-ADDR-BY-NAME", sentinels.service)
                await connection.send_command(*command)
                named = await connection.read_response()
        except (driver.AuthenticationError, driver.NoPermissionError) as error:
            raise ConfigurationError(
                f"{at} does not let us ask ({error}); correct sentinel_password= (and "
                "sentinel_username=) in the DSN's query",
                name="dsn",
            ) from error
        except (driver.TimeoutError, TimeoutError) as error:
            raise BackendUnavailable(f"{at} did not answer", backend=BACKEND) from error
        except (driver.ConnectionError, OSError, UnicodeError) as error:
            raise BackendUnavailable(
                f"{at} cannot be reached ({error})", backend=BACKEND
            ) from error
        except driver.RedisError as error:
            raise ConfigurationError(f"{at} is none, it said: {error}", name="dsn") from error
        finally:
            await connection.disconnect(nowait=True)
        if not named:
            raise ConfigurationError(
                f"{at} knows no service {sentinels.service!r}; name one of its own in the DSN "
                "(SENTINEL MASTERS lists them)",
                name="dsn",
            )
        return named[0].decode(), int(named[1])
