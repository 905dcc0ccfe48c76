"""Circuits and buckets of this process: the stores without a server, and the fallback of those
with one while it is away."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from datetime import timedelta
from itertools import count
from typing import Final, TypeVar

from forze.application.contracts.resilience import (
    Admission,
    BreakerState,
    BreakerView,
    CircuitBreakerStrategy,
    Forced,
    PolicyKey,
    RateLimitDecision,
    RateLimitStrategy,
)
from forze.application.integrations.resilience.admissions import Admissions
from forze.application.integrations.resilience.breaker import Circuit
from forze.application.integrations.resilience.limiter import MICROSECONDS, Bucket, take
from forze.application.integrations.resilience.transitions import log_transition

Clock = Callable[[], float]
"""Seconds, like ``time.monotonic``."""

V = TypeVar("V")

_KEPT: Final = 1024
"""From so many keys on, those whose state says nothing are forgotten."""

_LOOKS: Final = 2
"""At how many it is looked for each new one: more are forgotten than come, and nobody waits."""


class LocalCircuitBreakerStore:
    """Circuits of this process. ``clock`` answers seconds that never go back."""

    def __init__(self, clock: Clock = time.monotonic) -> None:
        self._clock = clock
        self._circuits: OrderedDict[PolicyKey, Circuit] = OrderedDict()
        self._permits = count(1)
        self._admissions = Admissions()

    async def admit(self, key: PolicyKey, strategy: CircuitBreakerStrategy) -> Admission:
        """Whether a call may be made now."""
        circuit = self._circuit(key, strategy)
        if circuit.state is BreakerState.CLOSED:
            return self._admissions.remember(key, circuit.admitted)
        was = circuit.state
        admission = circuit.admit(self._clock(), f"p{next(self._permits)}")
        self._tell(key, was, circuit)
        return self._admissions.remember(key, admission)

    async def record(
        self,
        key: PolicyKey,
        strategy: CircuitBreakerStrategy,
        ok: bool | None,
        admission: Admission | None = None,
        *,
        slow: bool = False,
    ) -> None:
        """How the call ended that ``admission`` let through."""
        circuit = self._circuit(key, strategy)
        admission = self._admissions.ended(key, admission)
        generation = circuit.generation if admission is None else admission.generation
        permit = None if admission is None else admission.permit
        was = circuit.state
        circuit.record(self._clock(), ok, slow, generation, permit)
        if circuit.state is not was:
            self._tell(key, was, circuit)

    async def force(self, key: PolicyKey, strategy: CircuitBreakerStrategy, state: Forced) -> None:
        """Put the circuit into ``state``."""
        circuit = self._circuit(key, strategy)
        was = circuit.state
        circuit.force(state, self._clock())
        self._tell(key, was, circuit)

    def follow(
        self,
        key: PolicyKey,
        strategy: CircuitBreakerStrategy,
        admission: Admission,
    ) -> None:
        """Go on from what a shared store has said last: its state and generation, and where it
        refused, for how long still."""
        wait = admission.retry_after or timedelta(0)
        now = self._clock()
        circuit = self._circuit(key, strategy)
        circuit.follow(admission.state, admission.generation, now, now + wait.total_seconds())

    def views(self) -> list[BreakerView]:
        """Every circuit this process has met, but those that were closed and idle for long.
        Any thread may ask."""
        now, epoch = self._clock(), time.time()
        return [self._view(key, each, now, epoch) for key, each in tuple(self._circuits.items())]

    def _view(self, key: PolicyKey, circuit: Circuit, now: float, epoch: float) -> BreakerView:
        tally = circuit.tally(now)
        return BreakerView(
            key,
            circuit.state,
            circuit.generation,
            since=epoch - (now - circuit.since),
            calls=tally.calls,
            failures=tally.failures,
            degraded=False,
        )

    def _circuit(self, key: PolicyKey, strategy: CircuitBreakerStrategy) -> Circuit:
        circuit = self._circuits.get(key)
        if circuit is None:
            now = self._clock()
            for idle in _forget_idle(self._circuits, lambda each: each.idle(now)):
                self._admissions.forget(idle)
            circuit = self._circuits[key] = Circuit(strategy, now)
        elif circuit.strategy is not strategy:
            circuit.adopt(strategy)
        return circuit

    def _tell(self, key: PolicyKey, was: BreakerState, circuit: Circuit) -> None:
        if circuit.state is not was:
            log_transition(key, was, circuit.state, circuit.generation)


class LocalRateLimitStore:
    """Token buckets of this process; a bucket that is full is not kept."""

    def __init__(self, clock: Clock = time.monotonic) -> None:
        self._clock = clock
        self._full_at: OrderedDict[PolicyKey, float] = OrderedDict()

    async def try_acquire(
        self, key: PolicyKey, strategy: RateLimitStrategy, cost: int = 1
    ) -> RateLimitDecision:
        """Take ``cost`` permits, or none."""
        now = self._clock() * MICROSECONDS
        before = self._full_at.get(key)
        decision, full_at = take(Bucket.of(strategy), before, now, cost)
        if full_at != before:
            self._keep(key, full_at, now)
        return decision

    def follow(self, key: PolicyKey, strategy: RateLimitStrategy, remaining: int) -> None:
        """Go on from what a shared store has said last: so many permits are left."""
        now = self._clock() * MICROSECONDS
        missing = max(0, strategy.capacity - remaining)
        full_at = now + Bucket.of(strategy).interval * missing
        self._keep(key, full_at if missing else None, now)

    def __len__(self) -> int:
        """How many buckets are kept."""
        return len(self._full_at)

    def _keep(self, key: PolicyKey, full_at: float | None, now: float) -> None:
        if full_at is None:
            self._full_at.pop(key, None)
            return
        if key not in self._full_at:
            _forget_idle(self._full_at, lambda each: each <= now)
        self._full_at[key] = full_at


def _forget_idle(kept: OrderedDict[PolicyKey, V], idle: Callable[[V], bool]) -> list[PolicyKey]:
    """Look at those that were not looked at for longest; the idle among them, which are gone."""
    gone = []
    for _ in range(_LOOKS if len(kept) >= _KEPT else 0):
        key = next(iter(kept))
        if idle(kept[key]):
            del kept[key]
            gone.append(key)
        else:
            kept.move_to_end(key)
    return gone
