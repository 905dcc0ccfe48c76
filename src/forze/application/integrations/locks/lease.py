"""Believing in a lease for exactly as long as it may be believed.

A grant is valid from before its request was sent, on a clock that also counts while the
machine sleeps, for the lease less two percent: whatever the network and two clocks do, the
server gives the lock to nobody else before that. A timer that does no I/O cancels the
block at the end of it. The heartbeat only ever moves the end, from its own sending; that it
hangs changes nothing.

C. Gray, D. Cheriton, "Leases: an efficient fault-tolerant mechanism for distributed file
cache consistency", SOSP 1989.
"""

from __future__ import annotations

import asyncio
import contextvars
import threading
from datetime import timedelta
from math import inf

from forze.application.contracts.dlock import AcquiredLock, HeldLock
from forze.application.integrations.locks.store import StoredLock
from forze.errors import ForzeError, LockLost

DRIFT = 0.02
"""What two clocks may differ by over a lease, as a share of it."""

BEATS = 3
"""Heartbeats per lease; one that failed is repeated four times as fast."""


def valid_until(sent: float, ttl_seconds: float) -> float:
    """Until when a lease that was asked for at ``sent`` may be believed in."""
    return sent + ttl_seconds * (1.0 - DRIFT)


def believed_long(sent: float, now: float, ttl_seconds: float) -> bool:
    """Whether more than half of a lease asked for at ``sent`` is left: enough to begin with."""
    return valid_until(sent, ttl_seconds) - now > ttl_seconds / 2


class Lease:
    """A grant, from its request on until it is given back or lost."""

    _lost: threading.Event | None = None

    def __init__(
        self,
        stored: StoredLock,
        acquired: AcquiredLock,
        *,
        resource: str,
        sent: float,
        ttl_seconds: float,
    ) -> None:
        self.stored = stored
        self.acquired = acquired
        self._resource = resource
        self._ttl_seconds = ttl_seconds
        self._until = valid_until(sent, ttl_seconds)
        self._why: str | None = None
        self._cancelled = False
        self._timer: asyncio.Handle | None = None
        self._beating: asyncio.Task[None] | None = None

    @property
    def remaining(self) -> float:
        """Seconds for which it can be believed in; not above zero: it cannot."""
        return 0.0 if self._why is not None else self._until - self.stored.clock()

    @property
    def lost(self) -> threading.Event:
        """Set when it cannot be believed in any more. Safe in any thread.

        Made when it is asked for: it takes longer than all else that is made for a lease. Whoever
        comes second gets the first one's; under a lock, garbage that is collected meanwhile (the
        block of another lease) would wait for this very thread.
        """
        lost: threading.Event = self._lost or vars(self).setdefault("_lost", threading.Event())
        if self._why is not None:
            lost.set()
        return lost

    def check(self) -> None:
        """Raise ``LockLost`` where it cannot be believed in. Safe in any thread."""
        if self.remaining <= 0:
            raise self.error()

    def begin(self, *, heartbeat: bool) -> None:
        """The block of the current task runs under it from here on."""
        task = asyncio.current_task()
        assert task is not None
        self._task, self._cancelling = task, task.cancelling()
        self._loop = task.get_loop()
        self._beat_at = self.stored.clock() + self._ttl_seconds / BEATS if heartbeat else inf
        # Not at once: what cancels its own task cannot take that back on every Python.
        self._watch_again(self.remaining)

    def end(self) -> bool:
        """The block is over; whether the lease held until here."""
        if self._why is None and self.remaining <= 0:
            self._why = self._lapsed()
        held = self._why is None
        self._over(self._why or "it was given back at the end of its block")
        return held

    def verdict(self, error: BaseException | None) -> LockLost | None:
        """What to raise in the place of ``error``, which left the block of a lease that was lost.

        None: ``error`` itself. That is what the block raised of its own, and a cancellation
        that somebody else asked for, even if this lease asked for one as well.
        """
        by_others = self._cancelled and self._task.uncancel() > self._cancelling
        ours = self._cancelled and not by_others and isinstance(error, asyncio.CancelledError)
        if error is None or ours:
            return self.error()
        if not isinstance(error, LockLost | asyncio.CancelledError):
            error.add_note(str(self.error()))
        return None

    def lose(self, why: str) -> None:
        """It cannot be believed in any more: the block is cancelled."""
        if self._why is None:
            self._over(why)
            self._cancelled = True
            self._task.cancel()

    def error(self, why: str | None = None) -> LockLost:
        """Why it cannot be believed in."""
        key = self.acquired.key
        return LockLost(
            f"{self._resource} {key!r} (token {self.acquired.token}) is no longer held: "
            f"{why or self._why or self._lapsed()}. What was done under it is done; another holder "
            "may have it by now, so check the token where the effects are, and start over",
            resource=self._resource,
            key=key,
        )

    def _lapsed(self) -> str:
        return f"its lease of {self._ttl_seconds:g} s ended without having been extended in time"

    def _watch(self) -> None:
        """Cancel the block at the end, and begin the heartbeat when it is due: most blocks are
        over before."""
        left = self.remaining
        if left <= 0:
            self.lose(self._lapsed())
            return
        if self.stored.clock() >= self._beat_at:
            self._beat_at = inf
            self._beating = self._loop.create_task(
                self._beat(), name="forze-lock-heartbeat", context=contextvars.Context()
            )
        self._watch_again(left)

    def _watch_again(self, left: float) -> None:
        """At the end, or earlier: the lease's clock may run ahead of the event loop's, which stands
        still while the machine sleeps."""
        pause = min(left, self.stored.look_seconds, self._beat_at - self.stored.clock())
        self._timer = self._loop.call_later(pause, self._watch, context=contextvars.Context())

    async def _beat(self) -> None:
        pause, every = 0.0, self._ttl_seconds / BEATS
        while True:
            await asyncio.sleep(pause)
            sent = self.stored.clock()
            try:
                async with asyncio.timeout(every):
                    lives = await self.stored.extend(self.acquired.owner, self.acquired.token)
            except (ForzeError, TimeoutError):
                pause = every / 4  # whatever it was, the timer decides what it means
                continue
            if self.remaining <= 0:
                return  # an answer that came too late repairs nothing
            if not lives:
                self.lose("the server has no such lease; it was removed there, or lost its data")
                return
            self._until = max(self._until, valid_until(sent, self._ttl_seconds))
            pause = max(0.0, sent + every - self.stored.clock())

    def _over(self, why: str) -> None:
        self._why = why  # first: an event that is made from here on is set by whoever asks
        if self._lost is not None:
            self._lost.set()
        if self._timer is not None:
            self._timer.cancel()
        if self._beating is not None:
            self._beating.cancel()
        self._timer = self._beating = None


class Held(HeldLock):
    """The lock as its block sees it."""

    __slots__ = ("_lease",)

    _lease: Lease

    def __init__(self, lease: Lease) -> None:
        each = lease.acquired
        super().__init__(each.key, each.owner, each.token)
        object.__setattr__(self, "_lease", lease)

    @property
    def lost(self) -> threading.Event:
        return self._lease.lost

    @property
    def remaining(self) -> timedelta:
        return timedelta(seconds=max(0.0, self._lease.remaining))

    def check(self) -> None:
        self._lease.check()
