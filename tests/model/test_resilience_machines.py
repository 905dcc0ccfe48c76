"""Circuit and bucket do what their plain accounts say, whatever happens in whatever order."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from datetime import timedelta
from fractions import Fraction
from typing import ClassVar

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from forze.application.contracts.resilience import (
    Admission,
    BreakerState,
    CircuitBreakerStrategy,
    RateLimitStrategy,
    seconds_of,
)
from forze.application.integrations.resilience.breaker import Circuit
from forze.application.integrations.resilience.limiter import Bucket, take

CLOSED, OPEN, HALF_OPEN = BreakerState.CLOSED, BreakerState.OPEN, BreakerState.HALF_OPEN
NEVER = float("inf")
MICROSECOND = timedelta(microseconds=1)
WINDOW, BREAK, LEASE, BUDGET = 10, 4, 2, 6

SETTINGS = settings(
    max_examples=200, stateful_step_count=50, deadline=None, database=None, derandomize=True
)


@dataclass
class Account:
    """A circuit as one would keep it on paper: every outcome in a list."""

    strategy: CircuitBreakerStrategy
    state: BreakerState = CLOSED
    generation: int = 0
    opened_in_a_row: int = 0
    until: float = 0
    outcomes: list[tuple[int, bool, bool]] = field(default_factory=list)
    probes: dict[str, float] = field(default_factory=dict)
    silent_since: float = NEVER

    def move(self, state: BreakerState) -> None:
        self.state, self.outcomes, self.probes = state, [], {}
        self.generation += 1
        self.silent_since = NEVER

    def open(self, now: float) -> None:
        longest = self.strategy.longest_break_seconds
        self.until = now + min(longest, BREAK * 2**self.opened_in_a_row)
        self.opened_in_a_row += 1
        self.move(OPEN)

    def pass_time(self, now: float) -> None:
        if self.state is HALF_OPEN and now >= self.silent_since + BUDGET:
            self.open(self.silent_since + BUDGET)
        if self.state is OPEN and now >= self.until:
            self.move(HALF_OPEN)

    def admits(self, now: float, permit: str) -> bool:
        self.pass_time(now)
        if self.state is not HALF_OPEN:
            return self.state is CLOSED
        out = sum(end > now for end in self.probes.values())
        if out + len(self.outcomes) >= self.strategy.half_open_max_calls:
            return False
        self.probes[permit] = now + LEASE
        self.silent_since = min(now, self.silent_since)
        return True

    def ends(
        self, now: float, ok: bool | None, slow: bool, generation: int, permit: str | None
    ) -> None:
        self.pass_time(now)
        if generation != self.generation or (self.state is HALF_OPEN and permit not in self.probes):
            return
        if permit is not None:
            del self.probes[permit]
        if ok is not None:
            self.outcomes.append((int(now), ok, slow))
            self.judge(now)
        if not self.probes:
            self.silent_since = NEVER
        elif ok is not None:
            self.silent_since = now

    def judge(self, now: float) -> None:
        probing = self.state is HALF_OPEN
        if not probing:
            self.outcomes = [each for each in self.outcomes if each[0] > int(now) - WINDOW]
        of = self.strategy.half_open_max_calls if probing else len(self.outcomes)
        failed = Fraction(sum(not ok for _, ok, _ in self.outcomes), of)
        slow = Fraction(sum(slow for _, _, slow in self.outcomes), of)
        bad = failed >= self.strategy.failure_ratio or slow >= self.strategy.slow_call_ratio
        if bad and (probing or of >= self.strategy.min_throughput):
            self.open(now)
        elif probing and len(self.outcomes) >= of:
            self.move(CLOSED)
            self.opened_in_a_row = 0


class CircuitMachine(RuleBasedStateMachine):
    """One circuit beside its account; calls begin, end in any order, are cancelled or lost."""

    reached: ClassVar[set[BreakerState]] = set()

    @initialize(
        ratio=st.sampled_from([0.25, 0.5, 1.0]),
        slow=st.sampled_from([0.5, 1.0]),
        least=st.sampled_from([1, 3, 9]),
        probes=st.integers(1, 3),
        longest=st.sampled_from([BREAK, 4 * BREAK]),
    )
    def begin(self, ratio: float, slow: float, least: int, probes: int, longest: int) -> None:
        strategy = CircuitBreakerStrategy(
            failure_ratio=ratio, slow_call_ratio=slow, min_throughput=least, sampling_window=WINDOW,
            break_duration=BREAK, max_break_duration=longest, half_open_max_calls=probes,
            probe_lease=LEASE, half_open_budget=BUDGET,
        )  # fmt: skip
        self.now = 100.0
        self.circuit = Circuit(strategy, self.now)
        self.account = Account(strategy)
        self.under_way: list[Admission] = []
        self.ended: list[Admission] = []
        self.calls = 0
        self.generation = 0

    @rule()
    def call(self) -> None:
        self.calls += 1
        admission = self.circuit.admit(self.now, f"p{self.calls}")
        assert admission.allowed is self.account.admits(self.now, f"p{self.calls}")
        assert admission.generation == self.circuit.generation
        if admission.allowed:
            self.under_way.append(admission)
        else:
            assert admission.retry_after is not None
            assert admission.retry_after.total_seconds() > 0

    @precondition(lambda self: self.under_way)
    @rule(
        which=st.integers(0, 99),
        ok=st.sampled_from([True, True, True, False, None]),
        slow=st.sampled_from([False, False, False, False, True]),
    )
    def end(self, which: int, ok: bool | None, slow: bool) -> None:
        admission = self.under_way.pop(which % len(self.under_way))
        self.ended.append(admission)
        self.record(admission, ok, slow)

    @precondition(lambda self: self.under_way)
    @rule(which=st.integers(0, 99))
    def lose(self, which: int) -> None:
        self.under_way.pop(which % len(self.under_way))

    @precondition(lambda self: any(each.permit for each in self.ended))
    @rule(which=st.integers(0, 99))
    def record_a_probe_twice(self, which: int) -> None:
        probes = [each for each in self.ended if each.permit]
        self.record(probes[which % len(probes)], True, False)

    @rule(seconds=st.sampled_from([0.25, 0.5, 1, 1, 1.75, 2, 10, 40]))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @rule(early=st.sampled_from([0, 0, 0.25]))
    def wait_until_time_decides(self, early: float) -> None:
        account = self.account
        edges = [account.until, account.silent_since + BUDGET, *account.probes.values()]
        ahead = [each for each in edges if self.now < each < NEVER]
        self.now = max(self.now, min(ahead, default=self.now) - early)

    @rule()
    def fail_often(self) -> None:
        for _ in range(9):
            if self.circuit.state is CLOSED:
                self.record(self.circuit.admitted, False, False)

    @invariant()
    def the_account_holds(self) -> None:
        circuit, account = self.circuit, self.account
        self.reached.add(circuit.state)
        assert (circuit.state, circuit.generation) == (account.state, account.generation)
        assert circuit.generation >= self.generation
        self.generation = circuit.generation
        if circuit.state is CLOSED:
            kept = [each for each in account.outcomes if each[0] > int(self.now) - WINDOW]
            tally = circuit.tally(self.now)
            assert (tally.calls, tally.failures, tally.slow) == (
                len(kept), sum(not ok for _, ok, _ in kept), sum(slow for _, _, slow in kept)
            )  # fmt: skip

    def record(self, admission: Admission, ok: bool | None, slow: bool) -> None:
        arguments = self.now, ok, slow, admission.generation, admission.permit
        self.circuit.record(*arguments)
        self.account.ends(*arguments)

    def teardown(self) -> None:
        """Whatever has happened, it is not stuck: some calls later it is closed."""
        for _ in range(40):
            self.calls += 1
            self.now += 1
            admission = self.circuit.admit(self.now, f"p{self.calls}")
            if admission.allowed:
                arguments = self.now, True, False, admission.generation, admission.permit
                self.circuit.record(*arguments)
        assert self.circuit.state is CLOSED


def test_a_circuit_does_what_its_account_says() -> None:
    run_state_machine_as_test(CircuitMachine, settings=SETTINGS)
    assert CircuitMachine.reached == {CLOSED, OPEN, HALF_OPEN}


PERMITS = (1, 3, 10, 0.3, 2.5, 1000 / 7, 1e4)
PERIODS = (1, 0.5, 7, 60, 86_400)


def _some_strategy(dice: random.Random) -> RateLimitStrategy:
    return RateLimitStrategy(
        permits=dice.choice(PERMITS), per=dice.choice(PERIODS), burst=dice.choice([None, 1, 5, 100])
    )


@pytest.mark.parametrize("seed", range(60))
def test_a_bucket_does_what_its_permits_say_as_an_exact_fraction(seed: int) -> None:
    dice = random.Random(seed)
    strategy = _some_strategy(dice)
    bucket, capacity = Bucket.of(strategy), Fraction(strategy.capacity)
    rate = Fraction(strategy.permits) / Fraction(seconds_of(strategy.per)) / 1_000_000  # per µs
    now, kept, permits = dice.uniform(0, 1e12), None, capacity
    for _ in range(60):
        before, last = kept, now
        now += dice.choice([0.0, dice.expovariate(float(rate)), dice.uniform(0, 2 / float(rate))])
        permits = min(capacity, permits + (Fraction(now) - Fraction(last)) * rate)
        cost = dice.choice([1, 1, 1, 2, 0, -1, strategy.capacity, strategy.capacity + 1])
        decision, kept = take(bucket, kept, now, cost)
        # Equal within half a microsecond's worth, which is what the bucket takes for equal.
        assert decision.allowed is (cost <= 0 or cost <= permits + rate / 2)
        if decision.allowed:
            permits = min(capacity, permits - cost)
        else:
            assert kept == before
            _check_wait(decision.retry_after, None if cost > capacity else (cost - permits) / rate)
        assert -1 - rate < decision.remaining - permits <= rate
        assert abs(decision.reset_after / MICROSECOND - (capacity - permits) / rate) <= 2


def _check_wait(wait: timedelta | None, exact: Fraction | None) -> None:
    assert (wait is None) is (exact is None)
    if wait is not None and exact is not None:
        assert abs(wait / MICROSECOND - exact) <= 2
