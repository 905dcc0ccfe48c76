"""One making of a value at a time for each key, shared by all who ask for it meanwhile.

Flights belong to a client and an event loop: services made for one request each, as FastAPI
makes them, share them. Whoever comes first looks into the cache; those who come meanwhile
wait for what it finds. Where it finds nothing, a task makes the value, in the context of the
first, and everyone waits for the task: cancelling one of them harms no other, cancelling the
last cancels the task.

A write of the key grounds its flight: nobody boards it any more, and what it makes is given
to those aboard, who asked before the write was done, and is not stored.

A flight knows which flights its factory waits for, so that a circle is refused, not slept in.
"""

from __future__ import annotations

import asyncio
import copy
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

from fastapi_rc.errors import FactoryCycle
from forze.errors import ForzeError

E = TypeVar("E", bound=BaseException)


@dataclass(slots=True, kw_only=True)
class Landing:
    """What a flight came to: a body (None for what cannot be stored), or an error.

    ``value`` is for whoever it took off for; everyone else makes their own of the body.
    """

    body: str | bytes | None = None
    value: Any = None
    error: BaseException | None = None


class Flight:
    """One look into the cache for a key, and the making of its value where that was vain."""

    __slots__ = ("_awaited", "_came_to", "aboard", "grounded", "storing", "task", "under_way",
                 "waits_for")  # fmt: skip

    def __init__(self) -> None:
        self._awaited: asyncio.Future[None] | None = None
        self._came_to: Landing | None = None
        self.under_way = True
        """Whether it has not landed."""
        self.aboard = 0
        self.grounded = False
        """Whether a write came: what is made must not be stored."""
        self.storing = False
        """Whether what was made is on its way to the server."""
        self.task: asyncio.Task[None] | None = None
        self.waits_for: list[Flight] = []

    def land(self, landing: Landing | None) -> None:
        """Hand everyone aboard what it came to; None: they have to begin again."""
        self._came_to, self.under_way = landing, False
        if self._awaited is not None and not self._awaited.done():
            self._awaited.set_result(None)

    async def landed(self) -> Landing | None:
        """What it comes to. Cancelling this call touches nobody else."""
        if self.under_way:
            if self._awaited is None:  # a hit that nobody else waits for needs none
                self._awaited = asyncio.get_running_loop().create_future()
            await asyncio.shield(self._awaited)
        return self._came_to

    def waits_on(self, other: Flight) -> bool:
        """Whether it cannot land before ``other`` does."""
        return self is other or any(each.waits_on(other) for each in self.waits_for)


Table = dict[str, Flight]

_inside: ContextVar[Flight | None] = ContextVar("forze_rc_flight", default=None)


class Flights:
    """The flights of one client, on every event loop."""

    def __init__(self) -> None:
        self._tables: WeakKeyDictionary[asyncio.AbstractEventLoop, Table] = WeakKeyDictionary()
        self._opening = threading.Lock()

    async def share(
        self,
        key: str,
        look: Callable[[], Awaitable[Landing | None]],
        make: Callable[[Flight], Awaitable[Landing]],
    ) -> tuple[Landing, bool]:
        """What the flight of ``key`` comes to, and whether it took off for this caller.

        ``look`` asks the cache: a landing, or None where there is nothing. ``make`` makes the
        value. Raises ``FactoryCycle`` where this would wait for itself, and ``CancelledError``
        where the making for this very caller ended with one.
        """
        table = self._here()
        while True:
            flight = table.get(key)
            leads = flight is None
            if flight is None:
                flight = table[key] = Flight()
                landing = await _look(table, key, flight, look)
                if landing is not None:
                    return landing, True
                if flight.grounded:
                    flight.land(None)
                    continue
                flight.task = asyncio.create_task(_make(table, key, flight, make), name=key)
            landing = await _board(table, key, flight)
            if landing is not None:
                return landing, leads
            if leads:
                raise asyncio.CancelledError

    @asynccontextmanager
    async def written(self, which: Callable[[str], bool] | str) -> AsyncIterator[None]:
        """A write of a key, or of each key that a function says, is made within the block.

        At its beginning nothing made of what was there before is on its way to the server (as
        far as this event loop goes) or will be; at its end nobody will be given such a thing.
        """
        await self._ground(which)
        try:
            yield
        finally:
            await self._ground(which)

    async def _ground(self, which: Callable[[str], bool] | str) -> None:
        storing = []
        with self._opening:
            tables = [*self._tables.values()]
        here = self._here()
        for table in tables:
            keys = [which] if isinstance(which, str) else [*filter(which, [*table])]
            for key in keys:
                flight = table.pop(key, None)
                if flight is not None:
                    flight.grounded = True
                    if flight.storing and table is here:
                        storing.append(flight)
        for flight in storing:
            await flight.landed()

    def _here(self) -> Table:
        loop = asyncio.get_running_loop()
        table = self._tables.get(loop)
        if table is None:
            with self._opening:
                table = self._tables.setdefault(loop, {})
        return table


async def _look(
    table: Table, key: str, flight: Flight, look: Callable[[], Awaitable[Landing | None]]
) -> Landing | None:
    found = None
    ended = False
    try:
        found = await look()
        ended = True
    finally:
        if found is not None or not ended:
            _leave(table, key, flight)
            flight.land(found)
    return found


async def _make(
    table: Table, key: str, flight: Flight, make: Callable[[Flight], Awaitable[Landing]]
) -> None:
    _inside.set(flight)
    landing = None
    try:
        landing = await make(flight)
    except asyncio.CancelledError:
        raise
    except BaseException as error:
        landing = Landing(error=error)
        if not isinstance(error, Exception):
            raise
    finally:
        _leave(table, key, flight)
        flight.land(landing)


async def _board(table: Table, key: str, flight: Flight) -> Landing | None:
    inside = _inside.get()
    waits = inside is not None and inside.under_way
    if inside is not None and waits:
        if flight.waits_on(inside):
            raise FactoryCycle(
                f"the factory of {key!r} asks, itself or through others, for the value that it "
                "is to make; let it get the value from where it comes from"
            )
        inside.waits_for.append(flight)
    flight.aboard += 1
    try:
        return await flight.landed()
    except asyncio.CancelledError:
        if flight.aboard == 1:
            await _abandon(table, key, flight)
        raise
    finally:
        flight.aboard -= 1
        if inside is not None and waits:
            inside.waits_for.remove(flight)


async def _abandon(table: Table, key: str, flight: Flight) -> None:
    """End the task that nobody waits for any more; a store on its way is let through."""
    task = flight.task
    if task is None or task.done():
        return
    if not flight.storing:
        _leave(table, key, flight)
        flight.grounded = True
        task.cancel()
    await asyncio.wait((task,))


def _leave(table: Table, key: str, flight: Flight) -> None:
    if table.get(key) is flight:
        del table[key]


def twin(error: E) -> E:
    """An equal error with a traceback of its own that goes on where the error's ends."""
    if isinstance(error, ForzeError):
        return error.again().with_traceback(error.__traceback__)
    other = _copied(error)
    other.__cause__, other.__context__ = error.__cause__, error.__context__
    other.__suppress_context__ = error.__suppress_context__
    return other.with_traceback(error.__traceback__)


def _copied(error: E) -> E:
    try:
        other = copy.copy(error)
        if type(other) is type(error) and other.args == error.args:
            return other
    except Exception:  # its class takes other arguments than it has as args
        pass
    other = type(error).__new__(type(error), *error.args)
    other.args = error.args
    other.__dict__.update(error.__dict__)
    return other
