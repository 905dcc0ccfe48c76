"""One circuit: a rolling window, three states, probes on leases. Pure; the clock is an argument.

The window is ten buckets: an outcome counts for at least nine tenths of ``sampling_window`` and
never for longer than it. Each transition raises the generation, and outcomes of an older one are
dropped: what a call did before the circuit opened says nothing about the time after.

Half open, ``half_open_max_calls`` probes hold a place, each until its outcome is in or its lease
has lapsed; then the place is free, but an outcome that comes after all still counts. The circuit
closes when all outcomes are in, and opens as soon as the bad ones decide. Where probes stay
without any outcome for ``half_open_budget`` it opens again, as of the moment that was over: time
in which nobody called is time served.

M. Nygard, "Release It!", 2007, chapter 5 (the pattern); the scripts of a shared store are the same
machine on the server's clock.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from math import inf
from typing import Final

from forze.application.contracts.resilience import (
    Admission,
    BreakerState,
    CircuitBreakerStrategy,
    Forced,
    seconds_of,
)

BUCKETS: Final = 10
_LONGEST_RUN: Final = 32
"""Openings in a row beyond which a break grows no further, so that the power stays small."""

CLOSED, OPEN, HALF_OPEN = BreakerState.CLOSED, BreakerState.OPEN, BreakerState.HALF_OPEN


@dataclass(slots=True)
class Tally:
    """Outcomes counted together."""

    calls: int = 0
    failures: int = 0
    slow: int = 0

    def add(self, ok: bool, slow: bool) -> None:
        """One more outcome."""
        self.calls += 1
        self.failures += not ok
        self.slow += slow

    def include(self, other: Tally) -> None:
        """Count what ``other`` has counted too."""
        self.calls += other.calls
        self.failures += other.failures
        self.slow += other.slow

    def drop(self, other: Tally) -> None:
        """Take back what ``other`` has counted."""
        self.calls -= other.calls
        self.failures -= other.failures
        self.slow -= other.slow


class Window:
    """The outcomes of the last ten buckets. A clock that steps back counts into the newest."""

    __slots__ = ("_buckets", "_current", "_ends", "_width", "total")

    def __init__(self, seconds: float) -> None:
        self._width = seconds / BUCKETS
        self._buckets: dict[int, Tally] = {}
        """By number, the oldest first; a bucket without outcomes is not kept."""
        self._current = Tally()
        self.total = Tally()
        self._ends = -inf

    def add(self, ok: bool, slow: bool, now: float) -> None:
        """Count an outcome that came at ``now``."""
        if now >= self._ends:
            self._begin(int(now // self._width))
        self.total.add(ok, slow)
        self._current.add(ok, slow)

    def at(self, now: float) -> Tally:
        """What counts at ``now``; changes nothing, so any thread may ask."""
        tally = Tally()
        gone = int(now // self._width) - BUCKETS
        for bucket, each in tuple(self._buckets.items()):
            if bucket > gone:
                tally.include(each)
        return tally

    def _begin(self, bucket: int) -> None:
        """Count into this bucket from now on; drop what is too old beside it."""
        for old in [each for each in self._buckets if each <= bucket - BUCKETS]:
            self.total.drop(self._buckets.pop(old))
        self._current = self._buckets.setdefault(bucket, Tally())
        self._ends = (bucket + 1) * self._width


class Circuit:
    """The state of one circuit. Times are seconds on one clock, whichever it is."""

    __slots__ = (
        "_probes", "_trips", "_unanswered_since", "_until", "admitted", "generation", "outcomes",
        "since", "state", "strategy", "window",
    )  # fmt: skip

    def __init__(self, strategy: CircuitBreakerStrategy, now: float, generation: int = 0) -> None:
        self.strategy = strategy
        self.window = Window(seconds_of(strategy.sampling_window))
        self.outcomes = Tally()
        """Of the probes of this half-open phase."""
        self._trips = 0
        self._until = 0.0
        self._unanswered_since = inf
        self._probes: dict[str, float] = {}
        self.state: BreakerState = CLOSED
        self.generation = generation
        self.since = now
        self.admitted = Admission(True, CLOSED, generation)

    def adopt(self, strategy: CircuitBreakerStrategy) -> None:
        """Judge by another strategy from now on; a window of another length begins anew."""
        if strategy.sampling_window != self.strategy.sampling_window:
            self.window = Window(seconds_of(strategy.sampling_window))
        self.strategy = strategy

    def admit(self, now: float, permit: str) -> Admission:
        """Whether a call may be made; ``permit`` is what a probe would be known by. The same
        permit again gets the same answer."""
        if self.state is CLOSED:
            return self.admitted
        self.pass_time(now)
        if self.state is HALF_OPEN:
            return self._probe(now, permit)
        if self.state is OPEN:
            return self._refused(self._until - now)
        return self.admitted

    def record(
        self, now: float, ok: bool | None, slow: bool, generation: int, permit: str | None
    ) -> None:
        """How a call ended. ``ok`` None: neither, the probe's place is free again."""
        if self.state is not CLOSED:
            self.pass_time(now)
        if generation != self.generation:
            return
        if self.state is CLOSED and ok is not None:
            self.window.add(ok, slow, now)
            total = self.window.total
            if total.calls >= self.strategy.min_throughput and self._bad(total, total.calls):
                self._open(now)
        elif self.state is HALF_OPEN and permit is not None:
            if self._probes.pop(permit, None) is not None and ok is not None:
                self._weigh(now, ok, slow)
            if not self._probes:
                self._unanswered_since = inf

    def force(self, state: Forced, now: float) -> None:
        """Put it there by hand; the window begins anew."""
        self._trips = 0
        self._move(state, now)

    def follow(self, state: BreakerState, generation: int, now: float, until: float) -> None:
        """Take over what another judge has decided: open ends at ``until``."""
        self._move(state, now)
        self._trips = int(state is OPEN)
        self._until = until
        self.generation = generation
        self.admitted = self.admitted._replace(generation=generation)

    def pass_time(self, now: float) -> None:
        """The transitions that time alone brings."""
        while True:
            if self.state is OPEN and now >= self._until:
                self._move(HALF_OPEN, now)
            overdue = self._unanswered_since + self.strategy.half_open_budget_seconds
            if self.state is not HALF_OPEN or now < overdue:
                return
            self._open(overdue)

    def tally(self, now: float) -> Tally:
        """The outcomes that count at ``now``: those in the window, or of the probes."""
        return self.outcomes if self.state is HALF_OPEN else self.window.at(now)

    def idle(self, now: float) -> bool:
        """Whether forgetting it would change nothing that is decided later."""
        return self.state is CLOSED and not self.tally(now).calls

    def _probe(self, now: float, permit: str) -> Admission:
        if permit not in self._probes:
            ends = [end for end in self._probes.values() if end > now]
            # One at least: a strategy that now asks for fewer is not to leave it half open.
            if len(ends) >= max(1, self.strategy.half_open_max_calls - self.outcomes.calls):
                return self._refused(min(ends) - now)
            self._probes[permit] = now + self.strategy.probe_lease_seconds
            self._unanswered_since = min(self._unanswered_since, now)
        return self.admitted._replace(permit=permit)

    def _refused(self, seconds: float) -> Admission:
        # Rounded up to the microsecond: who comes back after that must not be early.
        wait = timedelta(seconds=seconds) + timedelta.resolution
        return Admission(False, self.state, self.generation, wait)

    def _weigh(self, now: float, ok: bool, slow: bool) -> None:
        """One more outcome of a probe is in."""
        self._unanswered_since = now
        self.outcomes.add(ok, slow)
        if self._bad(self.outcomes, self.strategy.half_open_max_calls):
            self._open(now)
        elif self.outcomes.calls >= self.strategy.half_open_max_calls:
            self._trips = 0
            self._move(CLOSED, now)

    def _bad(self, tally: Tally, of: int) -> bool:
        # Divided, not multiplied: 7 of 100 is 0.07, and 0.07 times 100 is more than 7.
        return (
            tally.failures / of >= self.strategy.failure_ratio
            or tally.slow / of >= self.strategy.slow_call_ratio
        )

    def _open(self, now: float) -> None:
        strategy = self.strategy
        grown = seconds_of(strategy.break_duration) * 2 ** min(self._trips, _LONGEST_RUN)
        self._trips += 1
        self._until = now + min(grown, strategy.longest_break_seconds)
        self._move(OPEN, now)

    def _move(self, state: BreakerState, now: float) -> None:
        self.state = state
        self.generation += 1
        self.since = now
        self.outcomes = Tally()
        self.window = Window(seconds_of(self.strategy.sampling_window))
        self._probes.clear()
        self._unanswered_since = inf
        self.admitted = Admission(state is not BreakerState.FORCED_OPEN, state, self.generation)
