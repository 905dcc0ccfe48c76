"""Health checks: how to ask a resource for a sign of life, and whether one can do without it.

Modules register one for each server they talk to; those of your own are registered alike, or
given to whoever asks. Who asks sets the time limit and decides what to tell whom.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Protocol

from forze.application.contracts.deps import DepKey
from forze.errors import ConfigurationError


class Health(Protocol):
    """What a resource said of itself.

    A dataclass, as the clients give it, may say more; like ``error`` that is for operators, not
    for callers: it may name hosts.
    """

    @property
    def ok(self) -> bool:
        """Whether it can be used."""
        ...

    @property
    def error(self) -> str | None:
        """What is wrong, in a sentence without secrets."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class HealthCheck:
    """How to ask the resource ``name``.

    ``ask`` answers with something whose ``ok`` and ``error`` say how it is, or with None where it
    is well; raising says that it is not. It may be cancelled at any await. Not ``required``:
    while it is away everything is served nevertheless, if slower. Several checks of one name are
    one resource, required if any of them is.
    """

    name: str
    ask: Callable[[], Awaitable[Health | None]]
    required: bool = True

    def __post_init__(self) -> None:
        name: Any = self.name
        if not isinstance(name, str) or not name or not name.isprintable() or "/" in name:
            raise ConfigurationError(
                f"HealthCheck: a name is text without slashes, not {name!r}", name="name"
            )
        if not callable(self.ask):
            raise ConfigurationError(
                f"HealthCheck {name!r}: ask is an async function, not {self.ask!r}", name="ask"
            )


HealthDepKey: DepKey[HealthCheck] = DepKey("health")
"""Routed. The routes only have to differ: what a check is called it says itself."""
