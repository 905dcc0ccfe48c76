"""Blocks that run while a lock is held: have it, believe in it, give it back.

Whatever happens on the way, a request that may have been granted is followed by one that
gives back what it may have got: nothing outlives its lease, and whoever is next is called.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Hashable, Iterator
from contextlib import AsyncExitStack
from datetime import timedelta
from itertools import count
from time import monotonic
from types import TracebackType
from weakref import WeakKeyDictionary

from forze.application.contracts.deps import Resolver
from forze.application.contracts.dlock import AcquiredLock, HeldLock
from forze.application.contracts.tenancy import current_deadline
from forze.application.integrations.locks.lease import Held, Lease, believed_long
from forze.application.integrations.locks.line import Line, Lines
from forze.application.integrations.locks.store import (
    Granted,
    LockStore,
    Refused,
    StoredLock,
    owner_name,
)
from forze.errors import BackendError, BackendTimeout, LockNotAcquired, ValidationError

_log = logging.getLogger("forze.locks")

_AGAIN_SECONDS = (0.02, 0.5)
_GIVING_BACK_SECONDS = 1.0
_ASKED_AT_MOST = 3


class Scopes:
    """What the scopes of one resource share in a process: who waits, and who holds."""

    def __init__(
        self,
        store: LockStore,
        resolver: Resolver,
        *,
        resource: str,
        ttl: timedelta,
        holdings: int = 1,
    ) -> None:
        self.store = store
        self.resolver = resolver
        self.resource = resource
        self.ttl_seconds = ttl.total_seconds()
        self.lines = Lines()
        self._holdings = holdings
        self._held: WeakKeyDictionary[asyncio.Task[object], list[Hashable]] = WeakKeyDictionary()

    def scope(
        self, key: str, *, wait: timedelta | None, heartbeat: bool, shared: bool = False
    ) -> Scope:
        """A block to be entered once."""
        return Scope(self, key, wait_seconds(wait), heartbeat=heartbeat, shared=shared)

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
                        stored, opened.pop_all(), acquired, self.ttl_seconds, error
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

    async def __aenter__(self) -> HeldLock:
        scopes = self._scopes
        async with AsyncExitStack() as opened:
            stored = await opened.enter_async_context(
                scopes.store.open(self._key, shared=self._shared)
            )
            self._holds = scopes.enter(self._key, stored.address)
            quest = Quest(scopes, stored, self._key, shared=self._shared)
            try:
                self._lease = await quest.lease(self._wait)
            except BaseException:
                self._holds.remove(stored.address)
                if quest.open:
                    maybe = AcquiredLock(self._key, quest.owner, 0)
                    scopes.give_back(stored, opened.pop_all(), maybe)
                raise
            self._opened = opened.pop_all()
        self._lease.begin(heartbeat=self._heartbeat)
        return Held(self._lease)

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
        back = self._scopes.give_back(lease.stored, self._opened, lease.acquired)
        if not held:
            lost = lease.verdict(error)
            if lost is not None:
                raise lost from error
            return
        done, _ = await asyncio.wait({back}, timeout=min(left, _GIVING_BACK_SECONDS))
        if error is None and done and back.result() is False:
            raise lease.error("the server had no such lease any more when it was given back")


class Quest:
    """One owner's way to a lease: asking, standing in line, asking again."""

    def __init__(self, scopes: Scopes, stored: StoredLock, key: str, *, shared: bool) -> None:
        self._scopes = scopes
        self._stored = stored
        self._key = key
        self._failure: BackendError | None = None
        self._free_in: float | None = None
        self.open = False
        """Whether it may have the lock, or stand in line for it."""
        self.owner = owner_name(scopes.lines.process, shared=shared)

    async def lease(self, wait: float | None) -> Lease:
        """Within ``wait`` seconds, or at the first attempt; raises ``LockNotAcquired`` else."""
        seconds = _within(wait)
        if seconds is not None and seconds <= 0:
            raise self._not_acquired("the deadline of this task (bind_deadline) has passed")
        timeout = asyncio.timeout(seconds)
        try:
            async with timeout:
                if wait is not None:
                    return await self._in_line()
                lease = await self._ask(waits=False, patient=False)
        except TimeoutError:
            if not timeout.expired():
                raise
            raise self._too_late() from self._failure
        if lease is None:
            raise self._not_acquired()
        return lease

    async def _in_line(self) -> Lease:
        lines = self._scopes.lines
        line, turn = lines.join(self._stored, self.owner)
        try:
            while True:
                turn.clear()
                lease = await self._ask(waits=True, patient=True)
                if lease is not None:
                    return lease
                line.look_in(self._free_in or 0.0)
                await self._listen(line)
                await turn.wait()
        finally:
            lines.leave(self._stored, line, self.owner)

    async def _listen(self, line: Line) -> None:
        pauses = _pauses()
        while True:
            try:
                return await line.listen()
            except BackendError as error:
                self._note(error)
            await asyncio.sleep(next(pauses))

    async def _ask(self, *, waits: bool, patient: bool) -> Lease | None:
        """Ask until there is an answer: an unknown one is asked for again, in the same name.

        Not ``patient``, a call that surely was not executed raises at once, and one that may have
        been is repeated once.
        """
        stored, ttl, pauses = self._stored, self._scopes.ttl_seconds, _pauses()
        for _ in range(_ASKED_AT_MOST):
            answer, sent = await self._answer(waits, patient, pauses)
            if isinstance(answer, Refused):
                self._free_in = answer.free_in
                self.open = waits
                return None
            if believed_long(sent, stored.clock(), ttl):
                return self._granted(answer, sent)
        raise self._not_acquired(
            f"its lease of {ttl:g} s is half over before the answer of the server is here; "
            "give the spec a longer ttl"
        )

    async def _answer(
        self, waits: bool, patient: bool, pauses: Iterator[float]
    ) -> tuple[Granted | Refused, float]:
        """The answer, and when it was asked for."""
        while True:
            sent, before, self.open = self._stored.clock(), self.open, True
            try:
                return await self._stored.attempt(self.owner, waits=waits), sent
            except BackendError as error:
                unknown = error.outcome == "unknown"
                self.open = before or unknown
                again = patient or (unknown and self._failure is None)
                self._note(error)
                if not again:
                    if self.open:
                        error.outcome = "unknown"
                    raise
            await asyncio.sleep(next(pauses))

    def _granted(self, answer: Granted, sent: float) -> Lease:
        return Lease(
            self._stored,
            AcquiredLock(self._key, self.owner, answer.token),
            resource=self._scopes.resource,
            sent=sent,
            ttl_seconds=self._scopes.ttl_seconds,
        )

    def _note(self, error: BackendError) -> None:
        """Remember what went wrong; raise what asking again cannot mend."""
        self._failure = error
        if not error.retryable:
            raise error

    def _too_late(self) -> LockNotAcquired | BackendError:
        """The error of a wait that is over: unless somebody said no, nothing is known."""
        if self._free_in is not None:
            return self._not_acquired()
        if self._failure is not None:
            return self._failure.again()
        return BackendTimeout(
            f"{self._scopes.resource} {self._key!r}: no answer within the time allowed; what it "
            "may have granted is given back",
            backend="locks",
            outcome="unknown",
        )

    def _not_acquired(self, why: str | None = None) -> LockNotAcquired:
        free_in = self._free_in
        if why is None:
            rest = f", for {free_in:.1f} s unless it extends its lease" if free_in else ""
            why = f"another one holds it, or is next{rest}; try again later, or give scope() a wait"
        return LockNotAcquired(
            f"{self._scopes.resource} {self._key!r} was not acquired: {why}",
            resource=self._scopes.resource,
            key=self._key,
            retry_after=timedelta(seconds=free_in) if free_in else None,
        )


async def _give_back_again(
    stored: StoredLock,
    opened: AsyncExitStack,
    acquired: AcquiredLock,
    ttl_seconds: float,
    error: BackendError,
) -> None:
    until = monotonic() + ttl_seconds
    async with opened:
        for pause in _pauses():
            if monotonic() + pause > until or not error.retryable:
                break
            await asyncio.sleep(pause)
            try:
                await stored.release(acquired.owner, acquired.token or None)
                return
            except BackendError as another:
                error = another
    _log.warning("%r was not given back; its lease ends by itself: %s", acquired, error)


def _pauses() -> Iterator[float]:
    """Seconds between attempts: doubling, jittered."""
    shortest, longest = _AGAIN_SECONDS
    for doublings in count():
        yield min(longest, shortest * 2.0 ** min(doublings, 10)) * random.uniform(0.5, 1.0)


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


def _within(wait: float | None) -> float | None:
    """``wait``, or less where the task has a deadline."""
    deadline = current_deadline()
    if deadline is None:
        return wait
    left = deadline - monotonic()
    return left if wait is None else min(wait, left)
