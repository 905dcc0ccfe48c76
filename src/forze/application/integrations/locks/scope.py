"""Blocks that run while a lock is held: have it, believe in it, give it back.

Whatever happens on the way, a request that may have been granted is followed by one that
gives back what it may have got: nothing outlives its lease, and whoever is next is called.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Hashable
from contextlib import AsyncExitStack
from datetime import timedelta
from time import monotonic
from types import TracebackType
from weakref import WeakKeyDictionary

from forze.application.contracts.deps import Resolver
from forze.application.contracts.dlock import AcquiredLock, HeldLock
from forze.application.integrations.locks.lease import Held
from forze.application.integrations.locks.ledger import Ledger
from forze.application.integrations.locks.line import Lines
from forze.application.integrations.locks.quest import Quest, backoff
from forze.application.integrations.locks.store import LockStore, StoredLock
from forze.errors import BackendError, ConfigurationError, LockNotAcquired, ValidationError

_log = logging.getLogger("forze.locks")

_GIVING_BACK_SECONDS = 1.0


class Scopes:
    """What the scopes of one resource share in a process: who waits, and who holds."""

    def __init__(
        self,
        store: LockStore[StoredLock],
        resolver: Resolver,
        *,
        resource: str,
        ttl: timedelta,
        holdings: int = 1,
    ) -> None:
        self.store = store
        self.resolver = resolver
        self.resource = resource
        self._ttl_seconds = ttl.total_seconds()
        self.ledger = Ledger(resource, self._ttl_seconds)
        """Who holds, and who waits, for those who want to see it."""
        self._lines = Lines()
        self._holdings = holdings
        self._held: WeakKeyDictionary[asyncio.Task[object], list[Hashable]] = WeakKeyDictionary()

    def scope(
        self, key: str, *, wait: timedelta | None, heartbeat: bool, shared: bool = False
    ) -> Scope:
        """A block to be entered once."""
        if not isinstance(heartbeat, bool):
            raise ValidationError(
                f"heartbeat is True or False, not {heartbeat!r}: its pace follows from the ttl",
                field="heartbeat",
            )
        return Scope(self, key, wait_seconds(wait), heartbeat=heartbeat, shared=shared)

    def quest(self, stored: StoredLock, key: str, *, shared: bool) -> Quest:
        """The way of a new owner to a lock."""
        return Quest(
            self._lines,
            stored,
            key,
            resource=self.resource,
            ttl_seconds=self._ttl_seconds,
            shared=shared,
        )

    def enter(self, key: str, address: Hashable) -> list[Hashable]:
        """What this task holds, ``address`` included now; refuses to wait for this very task."""
        task = asyncio.current_task()
        assert task is not None
        held = self._held.setdefault(task, [])
        if held.count(address) >= self._holdings:
            raise LockNotAcquired(
                f"{self.resource} {key!r} is held by this very task, which would wait for itself; "
                "pass the lock on to what needs it instead of taking it again",
                resource=self.resource,
                key=key,
            )
        held.append(address)
        return held

    def give_back(
        self, stored: StoredLock, opened: AsyncExitStack, acquired: AcquiredLock
    ) -> asyncio.Task[bool | None]:
        """Give back, apart from the caller, what ``acquired`` is, or (token 0) may be.

        False: there was no such lease. None: there is no answer; it is tried again for as long as
        the lease can last, unless the application ends.
        """
        name = f"forze-release {self.resource}"

        async def returned() -> bool | None:
            async with opened:
                try:
                    return await stored.release(acquired.owner, acquired.token or None)
                except BackendError as error:
                    if not error.retryable:
                        raise
                    again = _give_back_again(
                        stored, opened.pop_all(), acquired, self._ttl_seconds, error
                    )
                    self.resolver.spawn(again, name=name, wait=False)
                    return None

        return self.resolver.spawn(returned(), name=name)


class Scope:
    """An async context manager. Entered, the lock is held; left, it is given back."""

    def __init__(
        self, scopes: Scopes, key: str, wait: float | None, *, heartbeat: bool, shared: bool
    ) -> None:
        self._scopes = scopes
        self._key = key
        self._wait = wait
        self._heartbeat = heartbeat
        self._shared = shared
        self._entered = False

    async def __aenter__(self) -> HeldLock:
        scopes = self._scopes
        if self._entered:
            raise ConfigurationError(
                f"{scopes.resource} {self._key!r}: a scope is entered once; "
                "call scope() for each block",
                name="scope",
            )
        self._entered = True
        async with AsyncExitStack() as opened:
            stored = await opened.enter_async_context(
                scopes.store.open(self._key, shared=self._shared)
            )
            self._holds = scopes.enter(self._key, stored.address)
            quest = scopes.quest(stored, self._key, shared=self._shared)
            self._noted = scopes.ledger.enter(self._key, quest.owner, shared=self._shared)
            try:
                self._lease = await quest.lease(self._wait)
            except BaseException:
                self._holds.remove(stored.address)
                scopes.ledger.leave(self._noted)
                if quest.open:
                    maybe = AcquiredLock(self._key, quest.owner, 0)
                    scopes.give_back(stored, opened.pop_all(), maybe)
                raise
            self._opened = opened.pop_all()
        lease = self._lease
        self._noted.holds(lease.acquired, lambda: lease.remaining)
        lease.begin(heartbeat=self._heartbeat)
        return Held(lease)

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        lease = self._lease
        left = lease.remaining
        held = lease.end()
        self._holds.remove(lease.stored.address)
        self._scopes.ledger.leave(self._noted)
        back = self._scopes.give_back(lease.stored, self._opened, lease.acquired)
        if not held:
            lost = lease.verdict(error)
            if lost is not None:
                raise lost from error
            return
        done, _ = await asyncio.wait({back}, timeout=min(left, _GIVING_BACK_SECONDS))
        if error is None and done and back.result() is False:
            raise lease.error("the server had no such lease any more when it was given back")


async def _give_back_again(
    stored: StoredLock,
    opened: AsyncExitStack,
    acquired: AcquiredLock,
    ttl_seconds: float,
    error: BackendError,
) -> None:
    until = monotonic() + ttl_seconds
    async with opened:
        for pause in backoff():
            if monotonic() + pause > until or not error.retryable:
                break
            await asyncio.sleep(pause)
            try:
                await stored.release(acquired.owner, acquired.token or None)
                return
            except BackendError as another:
                error = another
    _log.warning("%r was not given back; its lease ends by itself: %s", acquired, error)


def wait_seconds(wait: timedelta | None) -> float | None:
    """How long to stand in line; no time at all is one attempt."""
    if wait is None:
        return None
    given: object = wait
    if not isinstance(given, timedelta) or given < timedelta(0):
        raise ValidationError(
            f"wait is a timedelta of zero or more, or None for one attempt, not {wait!r}",
            field="wait",
        )
    return given.total_seconds() or None
