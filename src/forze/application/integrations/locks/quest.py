"""The way to a lease: asking, standing in line, asking again.

A request whose answer was lost is asked again in the same name, so that unknown is never taken
for no; a lease of which half is gone when the answer is here is asked for once more, so that
nothing begins that could not go on.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator
from datetime import timedelta
from itertools import count
from time import monotonic

from forze.application.contracts.dlock import AcquiredLock
from forze.application.contracts.tenancy import current_deadline
from forze.application.integrations.locks.lease import Lease, believed_long
from forze.application.integrations.locks.line import Line, Lines
from forze.application.integrations.locks.names import owner_name
from forze.application.integrations.locks.store import Granted, Refused, StoredLock
from forze.errors import BackendError, BackendTimeout, LockNotAcquired

_AGAIN_SECONDS = (0.02, 0.5)
_ASKED_AT_MOST = 3


class Quest:
    """One owner's way to a lease: asking, standing in line, asking again."""

    def __init__(
        self,
        lines: Lines,
        stored: StoredLock,
        key: str,
        *,
        resource: str,
        ttl_seconds: float,
        shared: bool,
    ) -> None:
        self._lines = lines
        self._stored = stored
        self._key = key
        self._resource = resource
        self._ttl_seconds = ttl_seconds
        self._failure: BackendError | None = None
        self._free_in: float | None = None
        self.open = False
        """Whether it may have the lock, or stand in line for it."""
        self.owner = owner_name(lines.process, shared=shared)

    async def lease(self, wait: float | None) -> Lease:
        """Within ``wait`` seconds, or at the first attempt; raises ``LockNotAcquired`` else."""
        seconds = _within(wait)
        if seconds is not None and seconds <= 0:
            raise self._not_acquired("the deadline of this task (bind_deadline) has passed")
        if seconds is None:
            return await self._once()
        timeout = asyncio.timeout(seconds)
        try:
            async with timeout:
                return await (self._once() if wait is None else self._in_line())
        except TimeoutError:
            if not timeout.expired():
                raise
            raise self._too_late() from self._failure

    async def _once(self) -> Lease:
        lease = await self._ask(waits=False, patient=False)
        if lease is None:
            raise self._not_acquired()
        return lease

    async def _in_line(self) -> Lease:
        line, turn = self._lines.join(self._stored, self.owner)
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
            self._lines.leave(self._stored, line, self.owner)

    async def _listen(self, line: Line) -> None:
        pauses = backoff()
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
        stored, ttl, pauses = self._stored, self._ttl_seconds, backoff()
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
            resource=self._resource,
            sent=sent,
            ttl_seconds=self._ttl_seconds,
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
            f"{self._resource} {self._key!r}: no answer within the time allowed; what it "
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
            f"{self._resource} {self._key!r} was not acquired: {why}",
            resource=self._resource,
            key=self._key,
            retry_after=timedelta(seconds=free_in) if free_in else None,
        )


def backoff() -> Iterator[float]:
    """Seconds between attempts: doubling, jittered."""
    shortest, longest = _AGAIN_SECONDS
    for doublings in count():
        yield min(longest, shortest * 2.0 ** min(doublings, 10)) * random.uniform(0.5, 1.0)


def _within(wait: float | None) -> float | None:
    """``wait``, or less where the task has a deadline."""
    deadline = current_deadline()
    if deadline is None:
        return wait
    left = deadline - monotonic()
    return left if wait is None else min(wait, left)
