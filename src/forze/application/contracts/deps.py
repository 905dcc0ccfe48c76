"""How parts find each other: typed keys, and what a factory may ask of its surroundings."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from contextvars import Context
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeAlias, TypeVar, runtime_checkable

T = TypeVar("T")
S = TypeVar("S")
P = TypeVar("P")


@dataclass(frozen=True, slots=True)
class DepKey(Generic[T]):
    """Names one dependency; the type parameter is what is registered under it."""

    name: str


class Resolver(Protocol):
    """What a factory is handed: the rest of the wiring, and a home for background work."""

    def provide(self, key: DepKey[T], route: str | None = None) -> T:
        """What is registered; raises ``ConfigurationError`` with the names that are."""
        ...

    def spawn(
        self,
        work: Coroutine[Any, Any, T],
        *,
        name: str,
        context: Context | None = None,
        wait: bool = True,
    ) -> asyncio.Task[T]:
        """Run ``work`` apart from its caller: it goes on when the caller is cancelled, and is
        waited for at shutdown (cancelled there, without ``wait``). ``context`` None: none of
        the caller's context variables."""
        ...


async def sheltered(
    resolver: Resolver,
    work: Coroutine[Any, Any, T],
    *,
    name: str,
    context: Context | None = None,
) -> T:
    """What ``work`` returns or raises; it finishes whatever happens to the caller.

    As ``asyncio.shield`` around a task, a turn of the event loop sooner: the last step of the
    work wakes the caller itself. ``name`` and ``context`` are those of ``Resolver.spawn``.
    """
    ended: asyncio.Future[T] = asyncio.get_running_loop().create_future()
    resolver.spawn(_ending(work, ended), name=name, context=context)
    try:
        return await ended
    finally:
        del ended  # an error it holds leads here by its traceback: no cycle for the collector


async def _ending(work: Coroutine[Any, Any, T], ended: asyncio.Future[T]) -> None:
    try:
        result = await work
    except asyncio.CancelledError:
        ended.cancel()
        raise
    except BaseException as error:
        if not ended.done():
            ended.set_exception(error)
        raise
    else:
        if not ended.done():
            ended.set_result(result)
    finally:
        del ended


Factory: TypeAlias = Callable[[Resolver, S], P]
"""Makes the port of a spec; what is registered under the name of the spec."""


class Named(Protocol):
    """A spec: what is wanted, under the name it is registered by."""

    @property
    def name(self) -> str:
        """The name of the resource."""
        ...


@runtime_checkable
class Verified(Protocol):
    """A port that needs something of its server, such as a table, and can look for it."""

    async def verify(self) -> None:
        """Look once; raises ``ConfigurationError`` saying what is not as it has to be."""
        ...
