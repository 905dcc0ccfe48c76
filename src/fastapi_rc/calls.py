"""Calls through one client that end in time, and never by raising what an outage raises.

A server that refuses scripts is one without leases (``lease.py``): that, too, is known here.

A call has the seconds it is given, with waiting for a connection in them: a full pool is
waited for, not taken for an outage. After three failures of the network in a row the next
second's calls are not made. (A client of the manager knows better: it keeps the time itself,
and has a circuit that asks the server.)
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any, Final
from weakref import WeakKeyDictionary

from redis import Redis, RedisCluster
from redis import exceptions as driver

from fastapi_rc.budget import has_budget
from fastapi_rc.circuit import Circuit
from fastapi_rc.errors import CacheUnavailable, InvalidWiring
from fastapi_rc.flights import Flights
from forze.errors import BackendError, CircuitOpen

FAILED: Final = object()
"""The reply of a call that had none."""

_FAILURES_IN_A_ROW: Final = 3
_PAUSE_SECONDS: Final = 0.005
_SAID_SECONDS: Final = 1.0
_NETWORK: Final = (driver.ConnectionError, driver.TimeoutError, OSError, TimeoutError)
_CAUGHT: Final = (*_NETWORK, driver.RedisError, BackendError, CircuitOpen, UnicodeDecodeError,
                  RuntimeError)  # fmt: skip
"""RuntimeError: a client that is used on another event loop than it was made for."""

_logger = logging.getLogger("fastapi_rc")


class Allowance:
    """The seconds that one service call may still take because of Redis."""

    __slots__ = ("left", "whole")

    def __init__(self, seconds: float) -> None:
        self.left = self.whole = seconds


class Calls:
    """What all services on one client share: whether it answers, and the flights."""

    runs_scripts = True
    """Whether no script has been refused yet."""

    def __init__(self, client: Any) -> None:
        self.flights = Flights()
        self._bounded = has_budget(client)
        self.circuit = Circuit(where="the service's client")
        self._failures = 0
        self._said_at = -_SAID_SECONDS

    async def ask(
        self, allowance: Allowance, send: Callable[..., Awaitable[Any]], *args: Any, **named: Any
    ) -> Any:
        """The reply of ``send(*args, **named)``, or :data:`FAILED`; takes from ``allowance``."""
        if allowance.left <= 0 or not self.circuit.closed:
            return FAILED
        loop = asyncio.get_running_loop()
        began, had = loop.time(), allowance.left
        try:
            if self._bounded and had == allowance.whole:
                reply = await send(*args, **named)
            else:
                async with asyncio.timeout(had):
                    reply = await _admitted(send, args, named)
        except _CAUGHT as error:
            self._failed(error, in_full=had >= allowance.whole)
            return FAILED
        finally:
            allowance.left = had - (loop.time() - began)
        if self._failures:
            self._failures = 0
            self.circuit.succeeded()
        return reply

    async def run(self, client: Any, script: str, *args: Any) -> Any:
        """The reply of ``client`` to a script of one key, or :data:`FAILED` where it runs none."""
        try:
            return await client.eval(script, 1, *args)
        except driver.ResponseError as error:
            if not _is_refusal_of_scripts(error):
                raise
            if self.runs_scripts:
                self.runs_scripts = False
                _logger.warning(
                    "Redis refuses the scripts that leases need (%s): the cache goes on without "
                    "leases, so each process makes values for itself (said once)", error,
                )  # fmt: skip
            return FAILED

    def _failed(self, error: Exception, *, in_full: bool) -> None:
        """Note a failure; that of a call which had little time left tells nothing of a server."""
        if isinstance(error, CacheUnavailable):
            _logger.debug("the cache is away: %s", error)
        elif not isinstance(error, _NETWORK):
            self._say("Redis refused a call of the cache, which counts as a miss: %s", error)
        else:
            self._failures += in_full
            if self._failures >= _FAILURES_IN_A_ROW:
                self.circuit.failed(error)
            else:
                what = str(error) or type(error).__name__
                self._say("Redis did not answer the cache, which counts as a miss: %s", what)

    def _say(self, text: str, what: object) -> None:
        """A warning, and for a second then only for those who look."""
        now = time.monotonic()
        level = logging.DEBUG if now - self._said_at < _SAID_SECONDS else logging.WARNING
        _logger.log(level, text, what)
        if level == logging.WARNING:
            self._said_at = now


async def _admitted(
    send: Callable[..., Awaitable[Any]], args: tuple[Any, ...], named: dict[str, Any]
) -> Any:
    while True:
        try:
            return await send(*args, **named)
        except driver.MaxConnectionsError:
            await asyncio.sleep(_PAUSE_SECONDS)


def _is_refusal_of_scripts(error: driver.ResponseError) -> bool:
    """Whether it will be so with the next one, too: no such command, no right, no engine."""
    text = str(error).lower()
    return isinstance(error, driver.NoPermissionError) or any(
        each in text
        for each in ("unknown command", "acl failure", "scripting engine", "compiling script")
    )


_calls: WeakKeyDictionary[Any, Calls] = WeakKeyDictionary()


def calls_of(client: Any) -> Calls:
    """The calls through a client; what is known of them ends with it.

    Raises :class:`InvalidWiring` for what is no asyncio client.
    """
    try:
        calls = _calls.get(client)
    except TypeError:  # nothing can refer to it weakly, as to None
        calls = None
    if calls is not None:
        return calls
    _require_client(client)
    return _calls.setdefault(client, Calls(client))


def _require_client(client: Any) -> None:
    if inspect.iscoroutine(client) or inspect.isasyncgen(client):
        if inspect.iscoroutine(client):
            client.close()
        raise InvalidWiring(
            f"the Redis client is {_kind(client)}: await it; if it comes from an async fixture, "
            "with pytest-asyncio set asyncio_mode=auto, or use pytest_asyncio.fixture"
        )
    commands = (getattr(client, name, None) for name in ("get", "set", "delete"))
    if isinstance(client, type | dict | Redis | RedisCluster) or not all(map(callable, commands)):
        raise InvalidWiring(
            "the Redis client must be an asyncio client of redis-py, such as "
            f"redis.asyncio.Redis.from_url(...) or FakeAsyncRedis(), not {_kind(client)}"
        )


def _kind(client: Any) -> str:
    if client is None or isinstance(client, type):
        return repr(client)
    kind = type(client)
    name = f"{kind.__module__}.{kind.__qualname__}".removeprefix("builtins.")
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"
