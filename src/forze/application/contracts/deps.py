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
