"""Who in this process holds or waits for a lock: kept for whoever wants to see it.

Nothing is decided by it. A lock that was acquired by name, outside any block, stands here until it
is released or its lease has ended.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from time import time

from forze.application.contracts.dlock import AcquiredLock
from forze.application.contracts.introspection import LockView
from forze.application.contracts.tenancy import current_tenant
from forze.application.integrations.locks.lease import valid_until
from forze.application.integrations.locks.store import StoredLock

SWEPT_AT = 1000
"""Locks acquired by name above which those that lapsed are looked for; and again at twice what was
left, so that a lock costs the same however many there are."""


@dataclass(slots=True, eq=False)
class Entry:
    """One that holds or waits. ``remaining`` None: it waits."""

    key: str
    owner: str
    shared: bool
    tenant: str | None
    since: float
    token: int | None = None
    remaining: Callable[[], float] | None = None

    def holds(self, acquired: AcquiredLock, remaining: Callable[[], float]) -> None:
        """It waits no longer."""
        self.token, self.since, self.remaining = acquired.token, time(), remaining


class Ledger:
    """The locks of one resource that this process holds or waits for."""

    def __init__(self, resource: str, ttl_seconds: float) -> None:
        self._resource = resource
        self._ttl_seconds = ttl_seconds
        self._scopes: dict[Entry, None] = {}
        self._named: dict[Hashable, Entry] = {}
        self._full = SWEPT_AT

    def enter(self, key: str, owner: str, *, shared: bool) -> Entry:
        """A block waits for a lock."""
        entry = Entry(key, owner, shared, current_tenant(), time())
        self._scopes[entry] = None
        return entry

    def leave(self, entry: Entry) -> None:
        """The block is over."""
        self._scopes.pop(entry, None)

    def granted(self, stored: StoredLock, acquired: AcquiredLock, sent: float) -> None:
        """Acquired by name: asked for, or extended, at ``sent`` on the lock's clock."""
        until, clock = valid_until(sent, self._ttl_seconds), stored.clock
        known = self._named.get(stored.address)
        entry = Entry(acquired.key, acquired.owner, False, current_tenant(), time())
        entry.holds(acquired, lambda: until - clock())
        if known is not None and known.token == acquired.token:
            entry.since = known.since
        self._named[stored.address] = entry
        if len(self._named) > self._full:
            self._sweep()
            self._full = max(SWEPT_AT, 2 * len(self._named))

    def extended(self, stored: StoredLock, owner: str, sent: float) -> None:
        """What ``owner`` acquired by name is held for longer."""
        known = self._named.get(stored.address)
        if known is not None and known.owner == owner and known.token is not None:
            self.granted(stored, AcquiredLock(known.key, known.owner, known.token), sent)

    def released(self, stored: StoredLock, owner: str) -> None:
        """What ``owner`` acquired by name was given back."""
        known = self._named.get(stored.address)
        if known is not None and known.owner == owner:
            del self._named[stored.address]

    def views(self) -> list[LockView]:
        """Those that hold or wait now, the longest first."""
        self._sweep()
        entries = sorted((*self._scopes, *self._named.values()), key=lambda each: each.since)
        return [
            LockView(
                self._resource,
                each.key,
                each.owner,
                each.token,
                each.since,
                None if each.remaining is None else max(0.0, each.remaining()),
                each.shared,
                each.tenant,
            )
            for each in entries
        ]

    def _sweep(self) -> None:
        lapsed = [
            address
            for address, each in self._named.items()
            if each.remaining is not None and each.remaining() <= 0
        ]
        for address in lapsed:
            del self._named[address]
