"""What a backend offers: locks by key, each with its state, its line and its clock.

Owners here are texts made for one acquisition each (``names.owner_name``), except where an
application names its own, which never waits.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Hashable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import NamedTuple, Protocol, TypeAlias, TypeVar


class Granted(NamedTuple):
    """The lock is the owner's, from some moment between question and answer."""

    token: int


class Refused(NamedTuple):
    """It is not. ``free_in``: seconds until the lease in the way ends, 0 where only others
    are first."""

    free_in: float


class Look(NamedTuple):
    """What a look at a line saw: ``free_in`` as in :class:`Refused`, and whose turn it is."""

    free_in: float
    called: tuple[str, ...]


Heard: TypeAlias = Callable[[Sequence[str] | None], None]
"""Takes the owners whose turn it is; None when calls may have been missed."""


class Subscription(Protocol):
    """Somebody who hears who is called."""

    def close(self) -> None:
        """Hear no more; not an error if that was done before."""


class StoredLock(Protocol):
    """One lock on one server, for the tenant that was bound when it was opened."""

    @property
    def address(self) -> Hashable:
        """Equal for the same lock only."""
        ...

    @property
    def clock(self) -> Callable[[], float]:
        """Seconds that pass while the holder sleeps, too; leases are counted on it."""
        ...

    @property
    def look_seconds(self) -> float:
        """How often to look at the line, and at the clock, at least."""
        ...

    def attempt(self, owner: str, *, waits: bool) -> Awaitable[Granted | Refused]:
        """Have it for a lease; refused, ``waits`` puts the owner in line (once)."""
        ...

    def extend(self, owner: str, token: int | None) -> Awaitable[bool]:
        """Let the owner's lease end a ``ttl`` from now; False where it has none."""
        ...

    def release(self, owner: str, token: int | None) -> Awaitable[bool]:
        """Give the lease back and leave the line; whether there was a lease."""
        ...

    def look(self, owners: Sequence[str]) -> Awaitable[Look]:
        """Say that these wait still, and see whose turn it is."""
        ...

    def subscribe(self, process: str, heard: Heard) -> Awaitable[Subscription]:
        """Hear who of this process is called, from when this returns."""
        ...


class InspectedLock(StoredLock, Protocol):
    """A lock that tells who has it."""

    def holder(self) -> Awaitable[str | None]:
        """Its owner."""
        ...

    def remaining_seconds(self) -> Awaitable[float | None]:
        """What is left of the lease, None where nobody has one."""
        ...


class CountedPermits(StoredLock, Protocol):
    """A semaphore that tells how many have it."""

    def held(self) -> Awaitable[int]:
        """How many leases live."""
        ...


Stored_co = TypeVar("Stored_co", bound=StoredLock, covariant=True)


class LockStore(Protocol[Stored_co]):
    """The locks of one resource."""

    def open(self, key: str, *, shared: bool = False) -> AbstractAsyncContextManager[Stored_co]:
        """The lock of ``key``, to be used within the block whatever tenant is bound by then."""
        ...
