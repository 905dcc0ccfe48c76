"""``RedisManager``: one object for the async code of an application and the blocking code of its
workers.

::

    redis_manager = RedisManager()  # reads REDIS_CONNECTION_URL and the others

    await redis_manager.set_async("user:1", json.dumps(user), ex=300)   # in a route
    redis_manager.get_sync("user:1")                                    # in a Celery task

Both sides share one bound on connections (``REDIS_POOL_SIZE``) and one circuit. It may be used
from any thread and any event loop, and in a forked worker; it connects when it is first used,
and again after it was closed. What the twins have in common (values, lifetimes, how a pattern
is removed) stands once, in functions without I/O.

Every method raises ``TypeError`` or ``ValueError`` for an argument that cannot be, and of
:mod:`forze.errors` only: ``BackendUnavailable`` where the server cannot be reached,
``BackendTimeout`` where it does not answer, or no connection comes free, within
``REDIS_SOCKET_TIMEOUT``, ``ConfigurationError`` where it refuses the credentials. After two
outages in a row calls fail at once, with ``BackendUnavailable``; one a second is let through to
look, and all are as soon as the server answers.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeAlias, cast

from pydantic import Field, field_validator
from pydantic import ValidationError as InvalidSettings
from pydantic_settings import BaseSettings, SettingsConfigDict
from redis import Redis
from redis.asyncio import Redis as AsyncRedis
from redis.exceptions import RedisClusterException, RedisError

from forze.errors import BackendCorrupt, BackendError, ConfigurationError
from forze_redis.driver import (
    Circuit,
    ConnectionLimit,
    DriverOptions,
    async_client,
    leave,
    sync_client,
)
from forze_redis.driver.parting import Parting, together
from forze_redis.driver.patterns import batches, remove_matching_async, remove_matching_sync
from forze_redis.wire.config import RedisConfig
from forze_redis.wire.dsn import parse_dsn
from forze_redis.wire.pool import error_from_driver
from forze_redis.wire.replies import BACKEND

Key: TypeAlias = str | bytes
Value: TypeAlias = str | bytes | int | float
Lifetime: TypeAlias = int | float | timedelta | None

_PREFIX = "REDIS_"
_URL = "redis://localhost:6379"
_CONNECT_SECONDS = 5.0
_LONGEST = timedelta(days=36_500)
_logger = logging.getLogger("forze_redis.manager")


class RedisManagerSettings(BaseSettings):
    """What a :class:`RedisManager` is told: by argument, else the environment, else ``.env``.

    ``REDIS_CONNECTION_URL`` (in any form of ``RedisClient.connect``), ``REDIS_POOL_SIZE``
    (connections of both sides together), ``REDIS_SOCKET_TIMEOUT`` and ``REDIS_DEFAULT_TTL``
    (seconds). A value that cannot be is a ``ConfigurationError`` that names its variable.
    """

    model_config = SettingsConfigDict(
        env_prefix=_PREFIX, env_file=".env", env_file_encoding="utf-8", extra="ignore", frozen=True
    )

    connection_url: str = Field(default=_URL, repr=False)
    pool_size: int = Field(default=5, ge=1)
    socket_timeout: float = Field(default=10.0, gt=0, allow_inf_nan=False)
    default_ttl: int = Field(default=3600, ge=1, le=int(_LONGEST.total_seconds()))

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except InvalidSettings as error:
            wrong = "; ".join(_rule(each["loc"], each["msg"]) for each in error.errors())
            first = _variable(error.errors()[0]["loc"])
            raise ConfigurationError(f"the settings of Redis: {wrong}", name=first) from None

    @field_validator("connection_url")
    @classmethod
    def _known(cls, url: str) -> str:
        try:
            parse_dsn(url, RedisConfig()).ssl_context()
        except ConfigurationError as error:
            raise ValueError(str(error)) from None
        return url


def _variable(location: tuple[int | str, ...]) -> str:
    name = str(location[0]) if location else ""
    return name.upper() if name.upper().startswith(_PREFIX) else f"{_PREFIX}{name.upper()}"


def _rule(location: tuple[int | str, ...], rule: str) -> str:
    return f"{_variable(location)}: {rule.removeprefix('Value error, ')}"


class RedisManager:
    """Redis or Valkey for async code and blocking code, over at most ``pool_size`` connections.

    Made without arguments it takes :class:`RedisManagerSettings` from the environment; each
    argument goes before it (``socket_timeout`` and ``default_ttl`` in seconds). Nothing is
    connected. Methods end in ``_async`` or ``_sync``; a pair does the same.
    """

    def __init__(
        self,
        settings: RedisManagerSettings | None = None,
        *,
        url: str | None = None,
        pool_size: int | None = None,
        socket_timeout: float | None = None,
        default_ttl: int | None = None,
    ) -> None:
        given = {
            "connection_url": url,
            "pool_size": pool_size,
            "socket_timeout": socket_timeout,
            "default_ttl": default_ttl,
        }
        given = {name: value for name, value in given.items() if value is not None}
        base = settings.model_dump() if settings is not None else {}
        self.settings = RedisManagerSettings(**base | given)
        self._where = parse_dsn(self.settings.connection_url, RedisConfig()).where
        self._default_ttl = timedelta(seconds=self.settings.default_ttl)
        circuit = Circuit(self._where)
        limit = ConnectionLimit(self.settings.pool_size)
        timeout = self.settings.socket_timeout
        options = DriverOptions(
            max_connections=self.settings.pool_size,
            socket_timeout=timeout,
            connect_timeout=min(timeout, _CONNECT_SECONDS),
            pool_timeout=timeout,
        )
        url = self.settings.connection_url
        self._async: Any = async_client(url, options, guard=circuit, limit=limit)
        self._sync: Any = sync_client(url, options, guard=circuit, limit=limit)

    def __repr__(self) -> str:
        return f"RedisManager({self._where!r})"

    # -- async ---------------------------------------------------------------------

    async def initialize_async(self) -> None:
        """Connect. A server that cannot be reached is a warning in the log: calls fail until it
        answers, then they do not. Raises ``ConfigurationError`` where trying again is no use."""
        try:
            await self.async_test_connection()
        except BackendError as error:
            _warn(error)

    async def get_async(self, key: Key) -> str | None:
        """The value of ``key``, None where there is none; one round trip."""
        key = checked_key(key)
        with self._translated():
            return cast("str | None", await self._async.get(key))

    async def set_async(self, key: Key, value: Value, ex: Lifetime = None) -> None:
        """``key`` has ``value`` for ``ex`` (seconds or a timedelta; None: the default lifetime).

        Raises ``TypeError`` for a value that is no str, bytes, int or float, and ``ValueError``
        for an ``ex`` that is not above zero. One round trip.
        """
        key, stored, px = checked_key(key), checked_value(value), self._milliseconds(ex)
        with self._translated():
            await self._async.set(key, stored, px=px)

    async def delete_async(self, *keys: Key) -> int:
        """``keys`` are gone; how many there were. A round trip for a thousand of them."""
        removed = 0
        for batch in batches(checked_keys(keys)):
            with self._translated():
                removed += await self._async.unlink(*batch)
        return removed

    async def delete_pattern_async(self, pattern: Key) -> int:
        """What matches the glob ``pattern``, and was there before, is gone; how many keys.

        SCAN, and UNLINK of what it finds, a thousand at a time: neither the server nor the
        event loop is held up. Two round trips for each thousand keys of the server,
        whether they match or not; of a cluster every primary.
        """
        pattern = checked_key(pattern, "a pattern")
        with self._translated():
            return await remove_matching_async(self._async, pattern)

    async def async_test_connection(self) -> bool:
        """True; raises where the server does not answer. One round trip."""
        with self._translated():
            await self._async.ping()
        return True

    async def get_async_client(self) -> AsyncRedis:
        """The redis-py client behind the async methods, for everything else.

        Answers are text (``decode_responses``), errors those of redis-py. On a cluster it is a
        ``redis.asyncio.RedisCluster``.
        """
        return cast(AsyncRedis, self._async)

    async def close(self) -> None:
        """No connection of either side is left, but for those of calls under way, which go with
        them. From any thread and event loop; used again, it connects again."""
        await self._leave().gone()

    # -- blocking ------------------------------------------------------------------

    def initialize_sync(self) -> None:
        """The twin of :meth:`initialize_async`."""
        try:
            self.sync_test_connection()
        except BackendError as error:
            _warn(error)

    def get_sync(self, key: Key) -> str | None:
        """The twin of :meth:`get_async`."""
        key = checked_key(key)
        with self._translated():
            return cast("str | None", self._sync.get(key))

    def set_sync(self, key: Key, value: Value, ex: Lifetime = None) -> None:
        """The twin of :meth:`set_async`."""
        key, stored, px = checked_key(key), checked_value(value), self._milliseconds(ex)
        with self._translated():
            self._sync.set(key, stored, px=px)

    def delete_sync(self, *keys: Key) -> int:
        """The twin of :meth:`delete_async`."""
        removed = 0
        for batch in batches(checked_keys(keys)):
            with self._translated():
                removed += self._sync.unlink(*batch)
        return removed

    def delete_pattern_sync(self, pattern: Key) -> int:
        """The twin of :meth:`delete_pattern_async`."""
        pattern = checked_key(pattern, "a pattern")
        with self._translated():
            return remove_matching_sync(self._sync, pattern)

    def sync_test_connection(self) -> bool:
        """The twin of :meth:`async_test_connection`."""
        with self._translated():
            self._sync.ping()
        return True

    def get_sync_client(self) -> Redis:
        """The twin of :meth:`get_async_client`."""
        return cast(Redis, self._sync)

    def close_sync(self) -> None:
        """The twin of :meth:`close`: it closes both sides as well."""
        self._leave().wait()

    # -- both ----------------------------------------------------------------------

    def _milliseconds(self, ex: Lifetime) -> int:
        return milliseconds(self._default_ttl if ex is None else ex)

    def _leave(self) -> Parting:
        return together(leave(client) for client in (self._async, self._sync))

    @contextmanager
    def _translated(self) -> Iterator[None]:
        """Whatever redis-py raises within is an error of ours outside."""
        try:
            yield
        except UnicodeDecodeError as error:
            raise BackendCorrupt(
                f"Redis at {self._where} has a value there that is no text ({error.reason}); read "
                "what somebody else stores as bytes with a client of decode_responses=False",
                backend=BACKEND,
            ) from error
        except (RedisError, RedisClusterException, OSError) as error:
            raise error_from_driver(error, self._where, "REDIS_SOCKET_TIMEOUT") from error


def checked_key(key: Key, what: str = "a key") -> Key:
    """``key``; a ``TypeError`` where it is none."""
    if not isinstance(key, (str, bytes)):
        raise TypeError(f"{what} is a str or bytes, not {type(key).__name__} ({key!r:.60})")
    return key


def checked_keys(keys: tuple[Key, ...]) -> tuple[Key, ...]:
    """``keys``; a ``TypeError`` where one is none."""
    return tuple(checked_key(key) for key in keys)


def checked_value(value: Value) -> str | bytes:
    """What is stored for ``value``: its text, or the bytes of one.

    Raises ``TypeError`` for what has none that everybody would expect, bool among it, and
    ``ValueError`` for bytes that could not be read back as text.
    """
    if isinstance(value, bool) or not isinstance(value, (str, bytes, int, float)):
        raise TypeError(
            f"a value is a str, bytes, int or float, not {type(value).__name__}; store "
            "json.dumps(value), and json.loads() what is read"
        )
    if isinstance(value, bytes):
        try:
            value.decode()
        except UnicodeDecodeError:
            raise ValueError(
                "reads return str, and these bytes are not UTF-8; store their base64 text, or use "
                "a redis-py client of your own with decode_responses=False"
            ) from None
        return value
    if isinstance(value, str):
        return str.__str__(value)
    return int.__repr__(value) if isinstance(value, int) else float.__repr__(value)


def milliseconds(ex: int | float | timedelta) -> int:
    """A lifetime as the server takes it; raises ``TypeError`` and ``ValueError``."""
    if isinstance(ex, bool) or not isinstance(ex, (int, float, timedelta)):
        raise TypeError(f"ex is seconds or a timedelta, not {type(ex).__name__}")
    seconds = ex.total_seconds() if isinstance(ex, timedelta) else ex
    if not 0.001 <= seconds <= _LONGEST.total_seconds():
        raise ValueError(
            f"ex must be from 0.001 s to {_LONGEST.days} days, not {ex!r}; None is the default "
            "lifetime (REDIS_DEFAULT_TTL), and delete removes a key"
        )
    return int(seconds * 1000)


def _warn(error: BackendError) -> None:
    _logger.warning("%s The application starts without it; calls go through when it is back", error)
