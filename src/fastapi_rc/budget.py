"""A redis-py client whose calls end in time: every command and pipeline has a budget.

:func:`with_budget` gives a client one. The time counts from the call to its result: waiting
for a connection, connecting, asking sentinels or a cluster for the way, and the reply are all
in it. Blocking commands have the time they ask for on top. A pipeline gets a little more for
each of its commands, which Python needs to pack and to read them. Who listens (``pubsub``,
``monitor``) may do so for as long as he likes.

Errors of the network leave as :class:`~fastapi_rc.errors.CacheUnavailable`; what the server
says no to (``WRONGTYPE``, ``NOAUTH``) leaves as redis-py raises it.
"""

from __future__ import annotations

import asyncio
import inspect
import math
from collections.abc import Awaitable
from functools import cache
from typing import Any, TypeVar

from redis import exceptions as driver

from fastapi_rc.circuit import Circuit
from fastapi_rc.errors import CacheUnavailable
from forze.errors import WriteOutcome
from forze_redis.driver import asked_seconds

T = TypeVar("T")
C = TypeVar("C")

BUDGET_SECONDS = 1.0
"""What a call may take because of Redis, unless the manager says otherwise."""

_PER_PIPELINED_COMMAND_SECONDS = 50e-6
_SHARE = 0.95
"""What the client takes of the budget: it knows first that it is over, and tells the circuit."""
_REFUSALS = (driver.AuthenticationError, driver.AuthorizationError)


def budget_of(client: Any) -> float:
    """The seconds that a call through ``client`` may take because of Redis."""
    return client.budget_seconds / _SHARE if isinstance(client, _Budgeted) else BUDGET_SECONDS


def has_budget(client: Any) -> bool:
    """Whether ``client`` itself ends its calls in time."""
    return isinstance(client, _Budgeted)


def with_budget(client: C, seconds: float, circuit: Circuit) -> C:
    """The same ``client``, each of its calls within ``seconds``, late ones told ``circuit``."""
    if not isinstance(client, _Budgeted):
        _put_over(client, _Budgeted)
    client.budget_seconds = seconds * _SHARE  # type: ignore[attr-defined]
    client.circuit = circuit  # type: ignore[attr-defined]
    return client


class _Budgeted:
    """Over ``redis.asyncio.Redis`` and ``RedisCluster``."""

    budget_seconds: float
    circuit: Circuit

    async def execute_command(self, *args: Any, **options: Any) -> Any:
        call = super().execute_command(*args, **options)  # type: ignore[misc]
        return await self._within(allowance(args, self.budget_seconds), call)

    async def _send_command_parse_response(
        self, connection: Any, command_name: Any, *args: Any, **options: Any
    ) -> Any:
        exchange = super()._send_command_parse_response  # type: ignore[misc]
        timeout = connection.socket_timeout
        if timeout < self.budget_seconds and not asked_seconds(args):
            return await exchange(connection, command_name, *args, **options)
        # Ours comes first. Theirs would cost a task, as much as all that we add.
        connection.socket_timeout, connection.deadline = None, math.inf
        try:
            return await exchange(connection, command_name, *args, **options)
        finally:
            connection.socket_timeout = timeout

    def pipeline(self, *args: Any, **options: Any) -> Any:
        pipeline = super().pipeline(*args, **options)  # type: ignore[misc]
        execute, stage = pipeline.execute, pipeline.execute_command

        async def execute_in_time(*args: Any, **options: Any) -> list[Any]:
            more = len(pipeline) * _PER_PIPELINED_COMMAND_SECONDS
            return await self._within(self.budget_seconds + more, execute(*args, **options))

        def stage_or_send(*args: Any, **options: Any) -> Any:
            staged = stage(*args, **options)
            if inspect.iscoroutine(staged):  # WATCH, and what is read after it
                return self._within(self.budget_seconds, staged)
            return staged

        pipeline.execute, pipeline.execute_command = execute_in_time, stage_or_send
        return pipeline

    def pubsub(self, *args: Any, **options: Any) -> Any:
        """One that begins in time, and whose errors are ours."""
        pubsub = _put_over(super().pubsub(*args, **options), _Listening)  # type: ignore[misc]
        pubsub.of = self
        return pubsub

    def monitor(self) -> Any:
        """One that begins in time, and whose errors are ours."""
        monitor = _put_over(super().monitor(), _Monitoring)  # type: ignore[misc]
        monitor.of = self
        return monitor

    def client(self) -> Any:
        """Of one connection, with the same budget."""
        client = super().client()  # type: ignore[misc]
        return with_budget(client, budget_of(self), self.circuit)

    async def _within(self, seconds: float | None, call: Awaitable[T]) -> T:
        limit = asyncio.timeout(seconds)
        try:
            async with limit:
                return await call
        except (CacheUnavailable, *_REFUSALS):
            raise
        except (driver.ConnectionError, driver.TimeoutError, OSError) as error:
            reason: Exception = error
            if limit.expired():
                reason = TimeoutError(f"no answer within {seconds:g} s")
                self.circuit.failed(reason)
            outcome: WriteOutcome = getattr(error, "outcome", "unknown")
            raise self.circuit.unavailable(reason, outcome=outcome) from error


class _Listening:
    """Over redis-py's ``PubSub``."""

    of: _Budgeted

    async def execute_command(self, *args: Any) -> Any:
        call = super().execute_command(*args)  # type: ignore[misc]
        return await self.of._within(self.of.budget_seconds, call)

    async def parse_response(self, *args: Any, **options: Any) -> Any:
        return await self.of._within(None, super().parse_response(*args, **options))  # type: ignore[misc]


class _Monitoring:
    """Over redis-py's ``Monitor``."""

    of: _Budgeted

    async def __aenter__(self) -> Any:
        return await self.of._within(self.of.budget_seconds, super().__aenter__())  # type: ignore[misc]

    async def next_command(self) -> Any:
        return await self.of._within(None, super().next_command())  # type: ignore[misc]


def _put_over(made: Any, mixin: type) -> Any:
    """The same object of redis-py, its class now with ``mixin`` over it."""
    kind: Any = type(made)
    made.__class__ = _class_with(mixin, kind)
    return made


@cache
def _class_with(mixin: type, kind: type) -> type:
    return type(kind.__name__, (mixin, kind), {"__doc__": kind.__doc__})


def allowance(args: tuple[Any, ...], budget: float) -> float | None:
    """The seconds that a command may take; None where it asks to wait for ever. Pure."""
    asked = asked_seconds(args)
    if asked == 0:
        return budget
    slack = max(budget, BUDGET_SECONDS)  # the server looks only now and then who waited enough
    return None if asked == math.inf else asked + slack
