"""The pointer's states and transitions: the whole protocol, pure.

One pointer per document carries its state. It is absent (None), or one of

==========  ==================================================  ===============================
state       meaning                                             a reader
==========  ==================================================  ===============================
``Value``   the body of ``version`` is current                  returns the body
  refresh   ... and one reader was elected to refresh it early  returns the body
``Lease``   one reader is loading                               waits, or reads without filling
``Intent``  writes are in flight                                reads the source, fills nothing
==========  ==================================================  ===============================

A writer announces itself (:func:`intend`), is answered, commits, and ends (:func:`done`);
only then is the write acknowledged. A reader that finds nothing leaves a lease
(:func:`read`), loads, and fills (:func:`fill`) only if that very lease still stands; a
writer in between has destroyed it. So no value read before a write can be cached after it.

Every function takes the pointer and the time, and returns the pointer as it is afterwards.
The memory cache runs these functions as they are, the scripts of the Redis cache are held
to them by a conformance test, and the model checker explores every interleaving of them.

Losing a pointer (eviction, expiry, flush) leaves *absent*, which is safe: a fill without
its lease is refused, and a write whose intent was lost invalidates when it is done.

Sources: Nishtala et al., Scaling Memcache at Facebook (NSDI 2013); Gray and Cheriton,
Leases (SOSP 1989).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum
from typing import TypeAlias

LEASE_MS = 3_000
"""How long a reader's lease, or its right to refresh, lives without being renewed."""

RENEW_MS = 1_000
"""How often a load in progress renews its lease."""

INTENT_MS = 10_000
"""How long an intent lives without being renewed; renewed at every third of it."""

COMMIT_MARGIN_MS = 5_000
"""COMMIT is sent only while the intent has this much left, by the writer's own clock."""


GENERATION_CHARS = 8
"""A tag begins with this many characters of the server's generation."""

SCHEMA_CHARS = 8
"""A tag ends with this many characters of the read model's schema fingerprint."""


@dataclass(frozen=True, slots=True)
class Refresh:
    """One reader's right to replace a value early."""

    token: str
    until: int


@dataclass(frozen=True, slots=True)
class Value:
    """The body of ``version`` is current, for readers with the same ``tag``.

    The tag holds the server's generation (so that nothing survives a failover) and the
    schema of the read model (so that nothing survives a deploy that changed it).
    """

    tag: str
    version: str
    refresh: Refresh | None = None


@dataclass(frozen=True, slots=True)
class Lease:
    """The reader with ``token`` is loading, until it fills, gives back, or ``until``."""

    tag: str
    token: str
    until: int


@dataclass(frozen=True, slots=True)
class Intent:
    """Writes in flight: each id with its own deadline. Honoured under every tag."""

    ids: tuple[tuple[str, int], ...]


Pointer: TypeAlias = Value | Lease | Intent | None


class Read(Enum):
    """What a read found."""

    HIT = "hit"
    LEASED = "leased"
    HELD = "held"
    INTENT = "intent"
    ABSENT = "absent"  # nothing, and no token was offered to lease it with


def prune(pointer: Pointer, now: int) -> Pointer:
    """The pointer without what has lapsed by ``now`` (milliseconds, the server's clock)."""
    match pointer:
        case Intent(ids):
            live = tuple(each for each in ids if each[1] > now)
            return Intent(live) if live else None
        case Lease(until=until) if until <= now:
            return None
        case Value(refresh=Refresh(until=until)) if until <= now:
            return replace(pointer, refresh=None)
    return pointer


def read(
    pointer: Pointer, tag: str, token: str | None, until: int, now: int
) -> tuple[Pointer, Read]:
    """Look; where nothing is there for ``tag``, leave a lease under ``token``."""
    pointer = prune(pointer, now)
    match pointer:
        case Intent():
            return pointer, Read.INTENT
        case Value() if pointer.tag == tag:
            return pointer, Read.HIT
        case Lease() if pointer.tag == tag:
            return pointer, Read.HELD
    if token is None:
        return pointer, Read.ABSENT
    return Lease(tag, token, until), Read.LEASED


def fill(pointer: Pointer, tag: str, token: str, version: str, now: int) -> tuple[Pointer, bool]:
    """Store ``version`` if ``token`` still holds the pointer; whether it was stored.

    ``tag`` is that of the server the fill is sent to. An accepted fill proves the value
    fresh for whoever was waiting when it was sent, and for nobody who came later.
    """
    pointer = prune(pointer, now)
    match pointer:
        case Lease() if (pointer.tag, pointer.token) == (tag, token):
            return Value(tag, version), True
        case Value(refresh=Refresh(token=holder)) if (pointer.tag, holder) == (tag, token):
            if not lower(version, pointer.version):
                return Value(tag, version), True
    return pointer, False


def renew(pointer: Pointer, tag: str, token: str, until: int, now: int) -> Pointer:
    """Prolong the lease or the refresh held under ``token``; anything else stays as it is."""
    pointer = prune(pointer, now)
    match pointer:
        case Lease() if (pointer.tag, pointer.token) == (tag, token):
            return replace(pointer, until=until)
        case Value(refresh=Refresh(token=holder)) if (pointer.tag, holder) == (tag, token):
            return replace(pointer, refresh=Refresh(token, until))
    return pointer


def give_back(pointer: Pointer, tag: str, token: str, now: int) -> Pointer:
    """Drop the lease or the refresh held under ``token``; anything else stays."""
    pointer = prune(pointer, now)
    match pointer:
        case Lease() if (pointer.tag, pointer.token) == (tag, token):
            return None
        case Value(refresh=Refresh(token=holder)) if (pointer.tag, holder) == (tag, token):
            return replace(pointer, refresh=None)
    return pointer


def elect(pointer: Pointer, tag: str, token: str, until: int, now: int) -> tuple[Pointer, bool]:
    """Give ``token`` the right to refresh a value nobody is refreshing; whether it got it."""
    pointer = prune(pointer, now)
    match pointer:
        case Value(refresh=None) if pointer.tag == tag:
            return replace(pointer, refresh=Refresh(token, until)), True
    return pointer, False


def intend(pointer: Pointer, write_id: str, deadline: int, now: int) -> Pointer:
    """Announce or renew a write; what was cached, and every lease, is destroyed."""
    pointer = prune(pointer, now)
    others = () if not isinstance(pointer, Intent) else pointer.ids
    return Intent((*(each for each in others if each[0] != write_id), (write_id, deadline)))


def done(pointer: Pointer, write_id: str, now: int) -> Pointer:
    """End a write. If its id is gone already, invalidate; other writers' ids stay.

    Called with an id that never was there, it is a plain invalidation.
    """
    pointer = prune(pointer, now)
    if not isinstance(pointer, Intent):
        return None
    others = tuple(each for each in pointer.ids if each[0] != write_id)
    return Intent(others) if others else None


def put(pointer: Pointer, tag: str, version: str, now: int) -> tuple[Pointer, bool]:
    """Store directly: never over an intent, never over a higher numeric version."""
    pointer = prune(pointer, now)
    match pointer:
        case Intent():
            return pointer, False
        case Value() if pointer.tag[:GENERATION_CHARS] == tag[:GENERATION_CHARS]:
            if lower(version, pointer.version):
                return pointer, False
    return Value(tag, version), True


def lower(version: str, other: str) -> bool:
    """Whether both are numbers (ASCII digits) and ``version`` is the lower one."""
    if not (_number(version) and _number(other)):
        return False
    version, other = version.lstrip("0"), other.lstrip("0")
    return (len(version), version) < (len(other), other)


def _number(version: str) -> bool:
    return version.isascii() and version.isdigit()


def may_commit(intended_at: float, now: float) -> bool:
    """Whether COMMIT may still be sent, by the writer's monotonic clock in seconds.

    ``intended_at`` is when the last *answered* intent or renewal was *sent*: the server
    counts its deadline from later than that. COMMIT then has ``COMMIT_MARGIN_MS`` to take
    effect, so the database has to be told to give up after that.
    """
    return now - intended_at < (INTENT_MS - COMMIT_MARGIN_MS) / 1000
