"""One process's in-process tier, as part of a state, and what of the server concerns it.

The tier in a state is what the shipped :class:`Tier` holds of the one key. Whatever happens
to it is done by that class: each function below builds a tier from the state, calls
one operation, and reads it back. No rule of it is said a second time here.

The server's side is a turn of its loop. It executes the commands that have arrived, notes
for each key who changed it last, and then sends the replies and, on a link that is tracked,
a push: with NOLOOP none where the last change is the process's own. (Servers of today push
what a script changed to its own caller all the same. A push only drops, so the silent server
is the harder one, and the one explored unless a setting says ``echo``.)
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import timedelta
from enum import Enum
from functools import cache
from math import inf
from types import SimpleNamespace
from typing import Any, TypeAlias, cast
from uuid import UUID

from forze.application.integrations.document.l1.store import L1Stats
from forze.application.integrations.document.l1.tier import Tier

ADDRESS = str(UUID(int=1))
KEY = UUID(int=1).bytes
MOST_PUSHES = 2
"""Pushes in flight are counted up to here; more of them make no difference."""


@dataclass(frozen=True, slots=True)
class Shipped:
    """The tier that the model executes; a mutation replaces it by a wrong one."""

    tier: type[Tier[Any]] = Tier


class Link(Enum):
    """Where the connection stands that pushes arrive on."""

    NONE = "no pushes are asked for"
    UP = "tracked"
    BROKEN = "nothing arrives, and the process does not know"
    DOWN = "the process knows"
    RETURNING = "tracked again, and the process does not know"


Asked: TypeAlias = tuple[str, str]
"""A mark's name in a state: the token of the reader that asks, and what it asks for."""


@dataclass(frozen=True, slots=True)
class Kept:
    """What a tier holds of the key."""

    entry: int | None = None
    mark: Asked | None = None
    trusted: bool = True


@dataclass(frozen=True, slots=True)
class Local:
    """The process that all readers live in, and what is under way to it."""

    kept: Kept = field(default_factory=Kept)
    link: Link = Link.UP
    turn: bool | None = None  # in an open turn: whether the last change is its own
    pushes: int = 0
    acked: int = 0  # the newest version acknowledged by a writer of this process

    def changed(self, *, own: bool) -> Local:
        """The pointer was changed at the server."""
        if self.link not in (Link.UP, Link.RETURNING):
            return self
        return replace(self, turn=own)

    def turn_ends(self, *, echo: bool) -> Local:
        """The server's turn is over; what it noted is pushed, or is the process's own."""
        pushed = echo or not self.turn
        return replace(self, turn=None, pushes=min(self.pushes + pushed, MOST_PUSHES))

    def broken(self) -> Local:
        """The connection is gone, and pushes under way with it."""
        hearing = self.link in (Link.UP, Link.RETURNING)
        link = Link.BROKEN if hearing else self.link
        return replace(self, link=link, turn=None, pushes=0)


class Slots:
    """A store without bounds. Implements ``L1Store``."""

    def __init__(self) -> None:
        self.entries: dict[object, object] = {}

    def get(self, key: object) -> object | None:
        return self.entries.get(key)

    def set(self, key: object, value: object) -> None:
        self.entries[key] = value

    def invalidate(self, key: object) -> None:
        self.entries.pop(key, None)

    def clear(self) -> None:
        self.entries.clear()

    def stats(self) -> L1Stats:
        return L1Stats(size=len(self.entries), capacity=1, hits=0, misses=0, evictions=0)


_CODEC: Any = SimpleNamespace(shareable=True, decode=None)


class Mark(float):
    """The mark of one read. Time does not pass in the model: no answer is late."""

    name: Asked


@cache
def _mark(name: Asked) -> Mark:
    """The mark that stands for ``name`` in every tier."""
    mark = Mark(inf)
    mark.name = name
    return mark


def _build(shipped: Shipped, kept: Kept) -> Tier[Any]:
    tier = shipped.tier(Slots(), _CODEC, ttl=timedelta(hours=1), tenant_aware=False)
    tier.trust(inf if kept.trusted else -inf, 0.0)
    if kept.entry is not None:
        tier.store.set(KEY, kept.entry)
    if kept.mark is not None:
        tier._marks[KEY] = _mark(kept.mark)
    return tier


def _read_back(tier: Tier[Any], reserved: Asked | None) -> Kept:
    standing = cast(Any, tier._marks.get(KEY))
    name = None if standing is None else getattr(standing, "name", reserved)
    entry = cast("int | None", tier.store.get(KEY))
    return Kept(entry, name, tier.trusted_until > 0)


@cache
def served(shipped: Shipped, kept: Kept) -> int | None:
    """The version that the tier answers a read with, None where the cache has to be asked."""
    return cast("int | None", _build(shipped, kept).get(KEY))


@cache
def reserve(shipped: Shipped, kept: Kept, name: Asked) -> Kept:
    """The tier once a mark has been placed for ``name``."""
    tier = _build(shipped, kept)
    tier.reserve(KEY)
    return _read_back(tier, name)


@cache
def take(shipped: Shipped, kept: Kept, name: Asked, version: int) -> tuple[Kept, bool]:
    """The tier once ``version`` came in for the mark of ``name``; whether it says it was kept."""
    tier = _build(shipped, kept)
    taken = tier.take(KEY, _mark(name), version, b"")
    return _read_back(tier, None), taken


@cache
def withdraw(shipped: Shipped, kept: Kept, name: Asked) -> Kept:
    """The tier once the mark of ``name`` is withdrawn."""
    tier = _build(shipped, kept)
    tier.withdraw(KEY, _mark(name))
    return _read_back(tier, None)


@cache
def forget(shipped: Shipped, kept: Kept) -> Kept:
    """The tier once the reader's own command is known to have changed the pointer."""
    tier = _build(shipped, kept)
    tier.forget(KEY)
    return _read_back(tier, None)


@cache
def drop(shipped: Shipped, kept: Kept, *, pushed: bool) -> Kept:
    """The tier once it was told of a change, by a write of this process or by a push."""
    tier = _build(shipped, kept)
    tier.drop((ADDRESS,), pushed=pushed)
    return _read_back(tier, None)


@cache
def flush(shipped: Shipped, kept: Kept, *, trusted: bool) -> Kept:
    """The tier once it is flushed, and trusted from then on or not."""
    tier = _build(shipped, kept)
    tier.flush()
    tier.trust(inf if trusted else -inf, 0.0)
    return _read_back(tier, None)


@cache
def trust(shipped: Shipped, kept: Kept) -> Kept:
    """The tier once it is trusted, and nothing else."""
    tier = _build(shipped, kept)
    tier.trust(inf, 0.0)
    return _read_back(tier, None)


def again(shipped: Shipped, kept: Kept) -> Kept:
    """A tier built from ``kept``, read back untouched."""
    return _read_back(_build(shipped, kept), None)
