"""What running parts tell of themselves, to whoever shows it, such as a console.

Nothing is registered for it. The parts of a context are looked through for those that answer to
one of these protocols (``ctx.registered(kind)``, ``ctx.ports()``). Views are what is known in this
process: asking for them sends nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import NamedTuple, Protocol, runtime_checkable


@runtime_checkable
class Pushing(Protocol):
    """A client whose server tells of changes."""

    def push_latency(self) -> timedelta | None:
        """From a change to the arrival of its push, as measured last; None where nobody follows
        pushes, or the last one did not arrive. Being asked, it is measured anew, apart."""
        ...


class LockView(NamedTuple):
    """A lock, permit or read/write lock that this process holds or waits for."""

    resource: str
    key: str
    owner: str
    token: int | None
    """None while it waits."""
    since: float
    """Seconds since the epoch when it was granted, or when it began to wait."""
    left_seconds: float | None
    """How long the lease can be trusted unless it is extended; None while it waits."""
    shared: bool
    tenant: str | None


@runtime_checkable
class HoldsLocks(Protocol):
    """A port that gives locks."""

    def locks(self) -> Sequence[LockView]:
        """What this process holds or waits for, the longest first."""
        ...


class ClaimView(NamedTuple):
    """An operation that runs once per key, under way in this process."""

    resource: str
    operation: str
    key: str
    generation: int
    phase: str
    since: float
    """Seconds since the epoch when it was begun."""
    left_seconds: float | None
    """How long the lease lasts unless it is kept up; None for a run without a claim."""
    takeover: bool
    lost: bool


@runtime_checkable
class HoldsClaims(Protocol):
    """A port that runs operations once."""

    def open_claims(self) -> Sequence[ClaimView]:
        """Those under way, the longest first."""
        ...


@runtime_checkable
class Degrading(Protocol):
    """A store that goes on in this process while its server is away."""

    @property
    def degraded(self) -> bool:
        """Whether it does so now."""
        ...


@runtime_checkable
class KeepsLimits(Protocol):
    """A resilience port that tells how its rate limits are kept."""

    @property
    def limits_degraded(self) -> bool:
        """Whether by this process alone, because their store is away."""
        ...
