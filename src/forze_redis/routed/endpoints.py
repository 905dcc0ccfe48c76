"""Where routes lead: from a route to a DSN, and to a client that is connected there."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Final, TypeAlias
from uuid import UUID

from forze.errors import BackendUnavailable, ConfigurationError, ForzeError
from forze_redis.client import RedisClient
from forze_redis.wire.config import RedisConfig, seconds
from forze_redis.wire.replies import BACKEND

Endpoints: TypeAlias = (
    "Mapping[str, str] | Mapping[UUID, str]"
    " | Callable[[str], str | None] | Callable[[str], Awaitable[str | None]]"
)
"""The DSN of each route: a mapping, or a function that answers one at once or as a coroutine.

It answers None, or raises ``LookupError``, for a route that there is not."""

_PASSWORD: Final = ("password", "WRONGPASS", "NOAUTH")


class Directory:
    """The endpoints of a routed client, which are clusters or are not."""

    def __init__(self, endpoints: Endpoints, config: RedisConfig, *, clustered: bool) -> None:
        self._endpoints = endpoints
        self._config = config
        self._clustered = clustered

    def check(self, route: str) -> None:
        """Raises ``ConfigurationError`` where it is known without asking that there is none."""
        if isinstance(self._endpoints, Mapping) and _entry(self._endpoints, route) is None:
            raise _unknown(route)

    async def connected(self, route: str, *, required: bool) -> RedisClient:
        """A client of the route, connected; or, unless ``required``, trying to."""
        config = replace(self._config, require_at_start=required)
        dsn = await self._dsn(route)
        client = RedisClient()
        try:
            try:
                await client.connect(dsn, config)
            except ConfigurationError as error:
                if not wrong_password(error) or (newer := await self._dsn(route)) == dsn:
                    raise
                await client.connect(newer, config)
        except ConfigurationError as error:
            if error.name == route:
                raise
            raise ConfigurationError(f"route {route!r}: {error}", name=error.name) from error
        if client.clustered != self._clustered:
            await client.close()
            kind = "a cluster" if client.clustered else "no cluster"
            raise ConfigurationError(
                f"route {route!r} leads to {kind}, and keys are spelled otherwise there; give the "
                f"routed client clustered={client.clustered}, and its routes one kind of server",
                name="clustered",
            )
        return client

    async def _dsn(self, route: str) -> str:
        within = seconds(self._config.connect_timeout)
        try:
            async with asyncio.timeout(within):
                found: object = self._ask(route)
                if inspect.isawaitable(found):
                    found = await found
        except LookupError as error:
            raise _unknown(route) from error
        except ForzeError:
            raise
        except TimeoutError as error:
            raise _not_found_out(
                route, f"dsn_of did not answer within {within:g} s; look at what it asks"
            ) from error
        except Exception as error:
            raise _not_found_out(route, f"dsn_of failed ({error!r})") from error
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            raise _not_found_out(route, "what dsn_of waited for was cancelled") from error
        if found is None:
            raise _unknown(route)
        if not isinstance(found, str):
            raise ConfigurationError(
                f"route {route!r}: dsn_of answered a {type(found).__name__}; it must answer a DSN "
                "as text, or None where there is no such route",
                name="dsn_of",
            )
        return found

    def _ask(self, route: str) -> object:
        endpoints = self._endpoints
        return _entry(endpoints, route) if isinstance(endpoints, Mapping) else endpoints(route)


def is_unknown(route: str, error: BaseException) -> bool:
    """Whether the error says that there is no such route."""
    return isinstance(error, ConfigurationError) and error.name == route


def wrong_password(error: object) -> bool:
    """Whether the error says that the server rejects the password."""
    return isinstance(error, ConfigurationError) and error.name in _PASSWORD


def _entry(endpoints: Mapping[str, str] | Mapping[UUID, str], route: str) -> object:
    """What the mapping has for the route, which may be a tenant that is a UUID there."""
    known: Mapping[object, str] = endpoints  # type: ignore[assignment] # a key of another type is none
    if route not in known:
        with suppress(ValueError):
            return known.get(UUID(route))
    return known.get(route)


def _unknown(route: str) -> ConfigurationError:
    return ConfigurationError(
        f"there is no Redis endpoint for route {route!r}; add it to the mapping, or let dsn_of "
        "answer a DSN for it",
        name=route,
    )


def _not_found_out(route: str, why: str) -> BackendUnavailable:
    return BackendUnavailable(
        f"the DSN of route {route!r} could not be found out: {why}", backend=BACKEND
    )
