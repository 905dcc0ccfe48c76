"""Locks, semaphores and read/write locks: leases with an owner, an end and a fencing token.

A lock is best-effort exclusion: a holder that is paused beyond its lease can wake up while
another one runs. The token closes that gap where the protected resource checks it: tokens
of one key only ever rise, so a write that carries a lower one than the resource has seen
is refused there (``forze_postgres.fenced_update``).

M. Burrows, "The Chubby lock service for loosely-coupled distributed systems", OSDI 2006 (leases,
sequencers).
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from datetime import timedelta
from typing import Protocol

from forze.application.contracts.deps import DepKey, Factory
from forze.errors import ConfigurationError

_SHORTEST_TTL = timedelta(milliseconds=10)


def _check(spec: object, name: object, ttl: object) -> None:
    kind = type(spec).__name__
    if not isinstance(name, str) or not name:
        raise ConfigurationError(f"{kind}: name must be text that is not empty", name="name")
    if not isinstance(ttl, timedelta):
        raise ConfigurationError(
            f"{kind} {name!r}: ttl must be a timedelta, not {ttl!r}; "
            "write ttl=timedelta(seconds=...)",
            name="ttl",
        )
    if ttl < _SHORTEST_TTL:
        raise ConfigurationError(
            f"{kind} {name!r}: ttl must be at least 10 ms, not {ttl}: a lease has to outlast "
            "the round trips that extend it",
            name="ttl",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class DistributedLockSpec:
    """Locks of one kind, one per key. ``ttl`` is how long a holder that fell silent keeps one."""

    name: str
    ttl: timedelta = timedelta(seconds=30)

    def __post_init__(self) -> None:
        _check(self, self.name, self.ttl)


@dataclass(frozen=True, slots=True, kw_only=True)
class SemaphoreSpec:
    """Semaphores of one kind: at most ``permits`` holders of a key, each for a lease of ``ttl``."""

    name: str
    permits: int
    ttl: timedelta = timedelta(seconds=30)

    def __post_init__(self) -> None:
        _check(self, self.name, self.ttl)
        if type(self.permits) is not int or self.permits < 1:
            raise ConfigurationError(
                f"SemaphoreSpec {self.name!r}: permits must be a whole number, at least 1, "
                f"not {self.permits!r}",
                name="permits",
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadWriteLockSpec:
    """Read/write locks of one kind: many readers of a key, or one writer."""

    name: str
    ttl: timedelta = timedelta(seconds=30)

    def __post_init__(self) -> None:
        _check(self, self.name, self.ttl)


@dataclass(frozen=True, slots=True)
class AcquiredLock:
    """What an acquisition gave: ``token`` is higher than every token of ``key`` before it.

    The same owner acquiring again, while the lease lives, has the same token.
    """

    key: str
    owner: str
    token: int


class HeldLock(AcquiredLock, ABC):
    """A lock inside its scope. What is here can be asked from any thread, and sends nothing.

    ``lost`` is set when the lease can no longer be trusted; code that runs in a thread, which
    nobody can cancel, looks at it or calls :meth:`check` before each effect.
    """

    __slots__ = ()

    @property
    @abstractmethod
    def lost(self) -> threading.Event:
        """Set when the lease was found lost; a scope that ended sets it too."""

    @property
    @abstractmethod
    def remaining(self) -> timedelta:
        """How long the lease can be trusted if it is never extended again; zero at least."""

    @abstractmethod
    def check(self) -> None:
        """Raise ``LockLost`` where the lease can no longer be trusted."""


class DistributedLockPort(Protocol):
    """Locks by key, each held by one owner at a time, for ``DistributedLockSpec.ttl``.

    ``owner`` is any text that names the holder. Keys are text. Where a call may have been
    executed and its answer was lost, it is asked again; what stays open is a
    ``BackendError`` with outcome ``"unknown"``, never a no.
    """

    async def acquire(self, key: str, owner: str) -> AcquiredLock | None:
        """``owner`` holds the lock for a ``ttl`` from now; None: another one holds it, or is next.

        One round trip. The same owner again has its lease extended and the same token. A
        refusal changes nothing.
        """
        ...

    async def release(
        self, key: str | AcquiredLock, owner: str | AcquiredLock | None = None
    ) -> bool:
        """``owner`` holds it no longer; whether it did until now. One round trip.

        Given the :class:`AcquiredLock` itself, it has to be that very acquisition.
        """
        ...

    async def reset(self, key: str | AcquiredLock, owner: str | AcquiredLock | None = None) -> bool:
        """The lease that ``owner`` has ends a ``ttl`` from now, under the same token.

        False: it has none (any more), and nothing was changed. Arguments as for
        :meth:`release`; one round trip.
        """
        ...

    async def is_locked(self, key: str | AcquiredLock) -> bool:
        """Whether somebody holds it; one round trip."""
        ...

    async def get_owner(self, key: str | AcquiredLock) -> str | None:
        """Who holds it; one round trip."""
        ...

    async def get_ttl(self, key: str | AcquiredLock) -> timedelta | None:
        """What is left of the lease unless it is extended, None where nobody has one; one
        round trip."""
        ...

    def scope(
        self, key: str, *, wait: timedelta | None = None, heartbeat: bool = True
    ) -> AbstractAsyncContextManager[HeldLock]:
        """A block that runs while the lock is held.

        The lease is extended every third of its ``ttl`` (unless ``heartbeat=False``) and given
        back at the end. ``wait`` is how long to stand in line for it, in the order of arrival
        over all processes; None: one attempt. ``ctx.bind_deadline`` bounds it too.

        Raises ``LockNotAcquired`` where it is not had, and in a task that holds it already.
        When the lease can no longer be trusted the block is cancelled and ``LockLost`` raised,
        unless the block raises something itself. One round trip to have it, one to give it
        back; to wait, two more and about two per second and process.
        """
        ...


class LockScope(Protocol):
    """What ``ctx.dlock_scope(spec)`` gives: locks as blocks."""

    def scope(
        self, key: str, *, wait: timedelta | None = None, heartbeat: bool = True
    ) -> AbstractAsyncContextManager[HeldLock]:
        """See :meth:`DistributedLockPort.scope`."""
        ...


class SemaphorePort(Protocol):
    """Semaphores by key: at most ``SemaphoreSpec.permits`` holders at a time."""

    def scope(
        self, key: str, *, wait: timedelta | None = None, heartbeat: bool = True
    ) -> AbstractAsyncContextManager[HeldLock]:
        """A block that runs while a permit is held; else as :meth:`DistributedLockPort.scope`.

        A task may hold several permits of a key, at most all of them.
        """
        ...

    async def permits_held(self, key: str) -> int:
        """How many permits are taken; one round trip."""
        ...


class ReadWriteLockPort(Protocol):
    """Read/write locks by key: many readers or one writer, in the order of arrival.

    A writer that waits keeps new readers out. ``token`` of a reader is that of the last writer
    before it.
    """

    def reading(
        self, key: str, *, wait: timedelta | None = None, heartbeat: bool = True
    ) -> AbstractAsyncContextManager[HeldLock]:
        """A block that runs while no writer does; else as :meth:`DistributedLockPort.scope`."""
        ...

    def writing(
        self, key: str, *, wait: timedelta | None = None, heartbeat: bool = True
    ) -> AbstractAsyncContextManager[HeldLock]:
        """A block that runs alone; else as :meth:`DistributedLockPort.scope`."""
        ...


DistributedLockDepKey: DepKey[Factory[DistributedLockSpec, DistributedLockPort]] = DepKey("dlock")
SemaphoreDepKey: DepKey[Factory[SemaphoreSpec, SemaphorePort]] = DepKey("semaphore")
ReadWriteLockDepKey: DepKey[Factory[ReadWriteLockSpec, ReadWriteLockPort]] = DepKey("rwlock")

__all__ = [
    "AcquiredLock",
    "DistributedLockDepKey",
    "DistributedLockPort",
    "DistributedLockSpec",
    "HeldLock",
    "LockScope",
    "ReadWriteLockDepKey",
    "ReadWriteLockPort",
    "ReadWriteLockSpec",
    "SemaphoreDepKey",
    "SemaphorePort",
    "SemaphoreSpec",
]
