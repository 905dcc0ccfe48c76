"""The machines that decide: window and circuit, bucket, budget, pauses, failures. No clock runs."""

from __future__ import annotations

import random
from dataclasses import replace
from datetime import timedelta
from math import inf, nextafter
from socket import gaierror
from typing import Any

import pytest

from forze.application.contracts.resilience import (
    BreakerState,
    CircuitBreakerStrategy,
    RateLimitStrategy,
    RetryStrategy,
)
from forze.application.integrations.resilience.breaker import BUCKETS, Circuit, Window
from forze.application.integrations.resilience.budget import RetryBudget
from forze.application.integrations.resilience.failures import is_retried, outcome_of
from forze.application.integrations.resilience.limiter import Bucket, take
from forze.application.integrations.resilience.retry import Pauses
from forze.errors import (
    BackendCorrupt,
    BackendTimeout,
    BackendUnavailable,
    BulkheadFull,
    CallTimeout,
    CircuitOpen,
    ConfigurationError,
    ConflictError,
    IdempotencyInProgress,
    LockLost,
    LockNotAcquired,
    NotFoundError,
    Throttled,
    ValidationError,
)

CLOSED, OPEN, HALF_OPEN = BreakerState.CLOSED, BreakerState.OPEN, BreakerState.HALF_OPEN
SECOND = timedelta(seconds=1)


class Story:
    """One circuit and its clock, told in short sentences."""

    def __init__(self, **fields: Any) -> None:
        given = {"sampling_window": 10, "min_throughput": 4, "break_duration": 5, **fields}
        self.now = 1_000.0
        self.circuit = Circuit(CircuitBreakerStrategy(**given), self.now)
        self._permits = 0

    def wait(self, seconds: float) -> Story:
        self.now += seconds
        return self

    def ends(self, outcomes: str, generation: int | None = None) -> BreakerState:
        """Calls of this generation end: ``+`` well, ``-`` badly, ``s`` slowly."""
        of = self.circuit.generation if generation is None else generation
        for each in outcomes:
            self.circuit.record(self.now, each != "-", each == "s", of, None)
        return self.circuit.state

    def probe(self) -> str | None:
        """The permit of a call that is let through."""
        self._permits += 1
        return self.circuit.admit(self.now, f"p{self._permits}").permit

    def probed(self, permit: str | None, ok: bool | None, slow: bool = False) -> BreakerState:
        self.circuit.record(self.now, ok, slow, self.circuit.generation, permit)
        return self.circuit.state

    def opened(self) -> Story:
        assert self.ends("----") is OPEN
        return self

    def half_open(self) -> Story:
        return self.opened().wait(5)


# -- closed ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "outcomes", "state"),
    [
        ({}, "---", CLOSED),  # below the least throughput
        ({}, "----", OPEN),
        ({}, "++--", OPEN),  # exactly the ratio
        ({}, "+++-", CLOSED),
        ({}, "---+", OPEN),  # a success can complete the throughput
        ({"failure_ratio": 0.7, "min_throughput": 10}, "+++-------", OPEN),
        ({"failure_ratio": 0.7, "min_throughput": 10}, "++++------", CLOSED),
        ({"failure_ratio": 0.07, "min_throughput": 100}, "+" * 93 + "-------", OPEN),
        ({"failure_ratio": 1.0}, "---+-------", CLOSED),
        ({"failure_ratio": 0.01, "min_throughput": 200}, "-" + "+" * 199, CLOSED),
        ({"failure_ratio": 0.01, "min_throughput": 200}, "--" + "+" * 198, OPEN),
        ({"slow_call_duration": 1, "slow_call_ratio": 0.5}, "++ss", OPEN),
        ({"slow_call_duration": 1, "slow_call_ratio": 0.75}, "++ss", CLOSED),
        ({"min_throughput": 1}, "-", OPEN),
    ],
)
def test_when_it_opens(fields: dict[str, Any], outcomes: str, state: BreakerState) -> None:
    assert Story(**fields).ends(outcomes) is state


def test_an_outcome_counts_for_nine_tenths_of_the_window_and_not_beyond_it() -> None:
    inside = Story()
    inside.ends("---")
    assert inside.wait(9).ends("-") is OPEN
    outside = Story()
    outside.ends("---")
    assert outside.wait(10).ends("---") is CLOSED
    assert outside.circuit.tally(outside.now).calls == 3
    assert outside.ends("-") is OPEN


def test_the_window_rolls_bucket_by_bucket() -> None:
    story = Story(min_throughput=100)
    for _ in range(25):
        story.ends("+-")
        story.wait(1)
        assert story.circuit.tally(story.now).calls <= 20
    tally = story.circuit.tally(story.now)
    assert (tally.calls, tally.failures) == (18, 9)
    assert story.wait(100).circuit.tally(story.now).calls == 0


def test_a_clock_that_steps_back_counts_into_the_newest_bucket() -> None:
    story = Story()
    story.ends("--")
    assert story.wait(-3_600).ends("--") is OPEN
    assert not story.circuit.admit(story.now, "p").allowed


@pytest.mark.parametrize("seconds", [*range(10, 32), 3_600])
def test_after_a_silence_nothing_is_left_in_the_window(seconds: int) -> None:
    story = Story()
    story.ends("---")
    assert story.wait(seconds).ends("---") is CLOSED
    assert story.circuit.window.total.calls == 3


@pytest.mark.parametrize("seconds", [0.1, 0.7, 1, 7, 1e-3])
def test_the_sum_is_that_of_the_buckets_on_every_edge(seconds: float) -> None:
    window = Window(seconds)
    for bucket in range(200):
        edge = bucket * (seconds / BUCKETS)
        for at in (nextafter(edge, -inf), edge, edge, nextafter(edge, inf)):
            window.add(True, False, at)
        assert window.total.calls <= 4 * BUCKETS
    assert window.total == window.at(199 * (seconds / BUCKETS))


def test_a_cancelled_call_counts_as_neither() -> None:
    story = Story()
    story.ends("---")
    story.circuit.record(story.now, None, False, 0, None)
    assert story.circuit.tally(story.now).calls == 3


# -- open --------------------------------------------------------------------


def test_open_refuses_for_the_break_and_says_until_when() -> None:
    story = Story().opened().wait(2)
    refused = story.circuit.admit(story.now, "p")
    assert (refused.allowed, refused.state, refused.generation) == (False, OPEN, 1)
    assert refused.retry_after is not None
    assert timedelta(seconds=3) <= refused.retry_after <= timedelta(seconds=3, milliseconds=1)
    story.wait(refused.retry_after.total_seconds())
    admitted = story.circuit.admit(story.now, "p")
    assert (admitted.allowed, admitted.state, admitted.generation) == (True, HALF_OPEN, 2)
    assert admitted.permit == "p"


def test_outcomes_of_an_older_generation_are_dropped() -> None:
    story = Story().half_open()
    assert story.probed(story.probe(), True) is CLOSED
    assert story.circuit.generation == 3
    assert story.ends("--------", generation=0) is CLOSED
    assert story.circuit.tally(story.now).calls == 0
    assert story.ends("----", generation=3) is OPEN


def test_a_call_from_before_the_opening_is_no_probe() -> None:
    story = Story().half_open()
    probe = story.probe()
    story.circuit.record(story.now, True, False, 0, None)
    story.circuit.record(story.now, True, False, 2, None)
    assert story.circuit.state is HALF_OPEN
    assert story.probed(probe, True) is CLOSED


def test_breaks_double_while_it_opens_in_a_row_up_to_the_longest() -> None:
    story = Story(max_break_duration=15).opened()
    for longest in (5, 10, 15, 15):
        assert story.probe() is None
        assert story.wait(longest - 0.001).probe() is None
        probe = story.wait(0.001).probe()
        assert probe is not None
        assert story.probed(probe, False) is OPEN
    assert story.probed(story.wait(15).probe(), True) is CLOSED
    assert story.opened().wait(5).probe() is not None  # begins anew


def test_breaks_stay_as_they_are_without_a_longest() -> None:
    story = Story().opened()
    for _ in range(40):
        assert story.probed(story.wait(5).probe(), False) is OPEN


# -- half open ---------------------------------------------------------------


def test_so_many_probes_and_no_more() -> None:
    story = Story(half_open_max_calls=2).half_open()
    first, second = story.probe(), story.probe()
    assert None not in (first, second)
    assert first != second
    refused = story.circuit.admit(story.now, "third")
    assert (refused.allowed, refused.state) == (False, HALF_OPEN)
    assert refused.retry_after is not None
    assert refused.retry_after >= timedelta(seconds=5)
    again = story.circuit.admit(story.now, str(second))
    assert again.permit == second  # a lost reply is no second probe


def test_it_closes_only_when_all_outcomes_are_in() -> None:
    story = Story(half_open_max_calls=3).half_open()
    probes = [story.probe() for _ in range(3)]
    assert story.probed(probes[0], True) is HALF_OPEN
    assert story.probed(probes[0], True) is HALF_OPEN  # the same one twice
    assert story.probed(probes[1], True) is HALF_OPEN
    assert story.probe() is None
    assert story.probed(probes[2], True) is CLOSED


def test_it_opens_as_soon_as_the_failures_decide() -> None:
    story = Story(half_open_max_calls=3, failure_ratio=0.5).half_open()
    probes = [story.probe() for _ in range(3)]
    assert story.probed(probes[0], False) is HALF_OPEN
    assert story.probed(probes[1], False) is OPEN
    slow = Story(half_open_max_calls=1, slow_call_duration=1).half_open()
    assert slow.probed(slow.probe(), True, slow=True) is OPEN


def test_a_cancelled_probe_gives_its_place_back() -> None:
    story = Story().half_open()
    assert story.probed(story.probe(), None) is HALF_OPEN
    assert story.wait(600).probed(story.probe(), True) is CLOSED
    assert story.circuit.generation == 3  # nobody was silent, so it did not open meanwhile


def test_a_lost_probe_makes_room_when_its_lease_has_lapsed() -> None:
    story = Story(probe_lease=2, half_open_budget=60).half_open()
    lost = story.probe()
    assert story.wait(1.9).probe() is None
    found = story.wait(0.1).probe()
    assert None not in (lost, found)
    assert story.probe() is None
    assert story.probed(found, True) is CLOSED


def test_an_outcome_after_the_lease_still_counts_once() -> None:
    story = Story(half_open_max_calls=2, probe_lease=2, half_open_budget=60).half_open()
    late, lost = story.probe(), story.probe()
    replaced = story.wait(3).probe()
    assert replaced
    assert story.probed(late, True) is HALF_OPEN
    assert story.probed(late, True) is HALF_OPEN
    assert story.probed(replaced, True) is CLOSED
    assert story.probed(lost, False) is CLOSED  # of an older generation, without its knowing


def test_where_every_probe_is_lost_it_opens_again_and_never_sticks() -> None:
    story = Story(probe_lease=2, half_open_budget=8, max_break_duration=20).half_open()
    assert story.probe()
    for _ in range(3):
        assert story.wait(2).probe()
    assert story.wait(1.9).circuit.state is HALF_OPEN
    assert story.probe() is None
    assert story.wait(0.1).probe() is None
    assert story.circuit.state is OPEN
    assert story.wait(9.9).probe() is None
    assert story.probed(story.wait(0.1).probe(), True) is CLOSED


def test_time_in_which_nobody_called_is_time_served() -> None:
    story = Story().half_open()
    assert story.probe()
    probe = story.wait(3_600).probe()
    assert probe is not None
    assert story.circuit.generation == 4  # it opened and half-opened meanwhile
    assert story.probed(probe, True) is CLOSED


def test_a_strategy_that_asks_for_fewer_probes_now_does_not_leave_it_half_open() -> None:
    story = Story(half_open_max_calls=3).half_open()
    for _ in range(2):
        story.probed(story.probe(), True)
    story.circuit.adopt(replace(story.circuit.strategy, half_open_max_calls=2))
    assert story.probed(story.probe(), True) is CLOSED


def test_rare_calls_close_it_too() -> None:
    story = Story(half_open_max_calls=3).half_open()
    for _ in range(3):
        assert story.circuit.state is not CLOSED
        story.probed(story.probe(), True)
        story.wait(600)
    assert story.circuit.state is CLOSED


# -- by hand -----------------------------------------------------------------


def test_what_a_hand_has_done_only_a_hand_undoes() -> None:
    story = Story()
    story.circuit.force(BreakerState.FORCED_OPEN, story.now)
    refused = story.wait(1e6).circuit.admit(story.now, "p")
    assert (refused.allowed, refused.state) == (False, BreakerState.FORCED_OPEN)
    assert refused.retry_after is None
    story.circuit.force(BreakerState.DISABLED, story.now)
    assert story.ends("-" * 50) is BreakerState.DISABLED
    assert story.circuit.admit(story.now, "p").allowed
    story.circuit.force(BreakerState.CLOSED, story.now)
    assert story.ends("---") is CLOSED
    assert story.ends("-") is OPEN
    assert story.circuit.generation == 4


def test_it_goes_on_from_what_another_judge_decided() -> None:
    story = Story()
    story.circuit.follow(OPEN, 7, story.now, story.now + 3)
    assert story.probe() is None
    assert story.circuit.generation == 7
    assert story.wait(3).probe()
    assert story.circuit.generation == 8
    story.circuit.follow(CLOSED, 12, story.now, story.now)
    assert story.circuit.admit(story.now, "p").generation == 12
    assert story.ends("----") is OPEN


def test_another_window_begins_anew_and_another_ratio_does_not() -> None:
    story = Story()
    story.ends("--")
    story.circuit.adopt(CircuitBreakerStrategy(sampling_window=10, min_throughput=3))
    assert story.ends("-") is OPEN
    other = Story()
    other.ends("---")
    other.circuit.adopt(CircuitBreakerStrategy(sampling_window=20, min_throughput=4))
    assert other.ends("-") is CLOSED


# -- the bucket --------------------------------------------------------------

ONE_A_SECOND = RateLimitStrategy(permits=1, burst=5)

# At which second, for how many; granted, left, seconds to wait, seconds until full.
TABLE: list[tuple[float, int, bool, int, float | None, float]] = [
    (0, 6, False, 5, None, 0),
    (0, 0, True, 5, None, 0),
    (0, 1, True, 4, None, 1),
    (0, 1, True, 3, None, 2),
    (0, 1, True, 2, None, 3),
    (0, 1, True, 1, None, 4),
    (0, 1, True, 0, None, 5),
    (0, 1, False, 0, 1, 5),
    (0, 3, False, 0, 3, 5),
    (0.5, 1, False, 0, 0.5, 4.5),
    (1, 1, True, 0, None, 5),
    (1, 0, True, 0, None, 5),
    (3, 1, True, 1, None, 4),
    (3.1, 1, True, 0, None, 4.9),
    (3.1, 1, False, 0, 0.9, 4.9),
    (8, 1, True, 4, None, 1),
    (8, 6, False, 4, None, 1),
    (8, 2, True, 2, None, 3),
    (8, -1, True, 3, None, 2),
    (8, -9, True, 5, None, 0),
    (9, 5, True, 0, None, 5),
    (13.999, 5, False, 4, 0.001, 0.001),
    (14, 5, True, 0, None, 5),
]


def test_the_bucket_row_by_row() -> None:
    bucket, kept = Bucket.of(ONE_A_SECOND), None
    for at, cost, granted, left, wait, full in TABLE:
        before = kept
        decision, kept = take(bucket, kept, at * 1e6, cost)
        row = (at, cost, decision)
        assert decision.allowed is granted is bool(decision), row
        assert decision.remaining == left, row
        assert decision.retry_after == (None if wait is None else wait * SECOND), row
        assert decision.reset_after == full * SECOND, row
        assert granted or kept == before, row  # a refusal writes nothing


@pytest.mark.parametrize(
    ("permits", "per", "seconds"),
    [(10, 1, 100), (3, 1, 100), (0.3, 1, 1_000), (2.5, 1, 400), (7, 60, 3_600), (10_000, 1, 0.1)],
)
def test_the_rate_is_kept_exactly_over_a_long_time(
    permits: float, per: float, seconds: float
) -> None:
    strategy = RateLimitStrategy(permits=permits, per=per)
    bucket, kept, granted = Bucket.of(strategy), None, 0
    now, end = 0.0, seconds * 1e6
    while now <= end:
        decision, kept = take(bucket, kept, now)
        granted += decision.allowed
        now += max((decision.retry_after or timedelta(0)) / timedelta(microseconds=1), 0.0)
    allowed = strategy.capacity + permits / per * seconds
    assert allowed - permits / per * (granted * 1e-6) - 1 <= granted <= allowed + 1


def test_who_comes_back_after_the_wait_is_let_in() -> None:
    for permits in (0.7, 3, 11, 1000 / 7):
        bucket, kept = Bucket.of(RateLimitStrategy(permits=permits, burst=3)), None
        now = 123_456_789.25
        for _ in range(200):
            decision, kept = take(bucket, kept, now, 2)
            if not decision.allowed:
                assert decision.retry_after is not None
                wait = decision.retry_after / timedelta(microseconds=1)
                assert not take(bucket, kept, now + wait - 2, 2)[0].allowed
                now += wait
                assert take(bucket, kept, now, 2)[0].allowed


def test_a_clock_that_steps_back_freezes_a_bucket_for_one_filling_at_most() -> None:
    bucket, kept, now = Bucket.of(ONE_A_SECOND), None, 10_000e6
    for _ in range(5):
        _, kept = take(bucket, kept, now)
    now -= 3_600e6
    refused, kept = take(bucket, kept, now)
    assert refused.retry_after == SECOND
    assert refused.reset_after == 5 * SECOND
    assert take(bucket, kept, now + 1e6)[0].allowed
    assert kept == now + 5e6  # written down, or it were frozen for the hour


def test_a_clock_that_steps_forward_fills_a_bucket_and_no_more() -> None:
    bucket, kept, now = Bucket.of(ONE_A_SECOND), None, 0.0
    for _ in range(5):
        _, kept = take(bucket, kept, now)
    full, kept = take(bucket, kept, now + 3_600e6, 5)
    assert full.allowed
    assert not take(bucket, kept, now + 3_600e6)[0].allowed


# -- retries -----------------------------------------------------------------


def test_a_budget_bounds_the_retries_of_all_calls_together() -> None:
    budget = RetryBudget(0.2, 10)
    retries = 0
    for _ in range(1_000):
        budget.earn()
        while budget.spend():
            retries += 1
    assert retries == 10 + 1_000 // 5 - 1  # what is earned while it is full is lost


def test_a_budget_never_holds_more_than_its_reserve() -> None:
    budget = RetryBudget(1.0, 2)
    for _ in range(100):
        budget.earn()
    assert [budget.spend() for _ in range(3)] == [True, True, False]


def test_pauses_are_decorrelated_and_bounded() -> None:
    strategy = RetryStrategy(attempts=1_000, base_delay=0.1, max_delay=2)
    drawn: list[tuple[float, float]] = []
    dice = random.Random(7)

    def uniform(low: float, high: float) -> float:
        drawn.append((low, high))
        return dice.uniform(low, high)

    pauses = Pauses(strategy, uniform)
    paused = [pauses.after(ConnectionError(), None) for _ in range(999)]
    assert pauses.after(ConnectionError(), None) is None
    assert drawn[0][1] == pytest.approx(0.3)
    for last, (low, high) in zip(paused, drawn[1:], strict=False):
        assert last is not None
        assert 0.1 <= last <= 2
        assert (low, high) == (0.1, last * 3)
    assert len({round(each or 0, 6) for each in paused}) > 500


def _first_pause(error: Exception, left: float | None = None, **fields: Any) -> float | None:
    return Pauses(RetryStrategy(**fields), lambda low, high: low).after(error, left)


def test_a_pause_ends_before_the_deadline_or_is_not_begun() -> None:
    assert _first_pause(ConnectionError(), left=0.11) == 0.1
    assert _first_pause(ConnectionError(), left=0.1) is None
    assert _first_pause(ConnectionError(), left=-1.0) is None


def test_what_a_refusal_asks_for_is_waited_for() -> None:
    busy = Throttled("busy", retry_after=timedelta(seconds=2))
    assert _first_pause(busy) == 2
    assert _first_pause(busy, max_delay=1.9) is None  # coming earlier would be in vain
    assert _first_pause(busy, left=1.9) is None
    soon = Throttled("busy", retry_after=timedelta(milliseconds=1))
    assert _first_pause(soon) == 0.1
    told = ConnectionError()
    for seconds in (2, 2.0, timedelta(seconds=2)):
        told.retry_after = seconds  # type: ignore[attr-defined]
        assert _first_pause(told) == 2  # other libraries say it in seconds
    running = IdempotencyInProgress(operation="pay", key="k", retry_after=SECOND)
    assert _first_pause(running) == 1


REFUSED = BackendUnavailable("down", backend="redis")
UNKNOWN = BackendTimeout("lost", backend="redis", outcome="unknown")
STANDS = BackendUnavailable("late", backend="redis", committed=True)
LATE = CallTimeout(policy="a", timeout=SECOND)
CUT = CallTimeout(policy="a", timeout=SECOND, at_deadline=True)
SHUT = CircuitOpen(policy="a", retry_after=SECOND)
FULL = BulkheadFull(policy="a", max_concurrent=1)


@pytest.mark.parametrize(
    ("error", "plain", "unknown"),
    [
        (REFUSED, True, True),
        (UNKNOWN, False, True),
        (STANDS, False, False),
        (BackendCorrupt("odd", backend="redis"), False, False),
        (ConnectionError(), True, True),
        (ConnectionRefusedError(), True, True),
        (gaierror("no such host"), True, True),
        (ConnectionResetError(), False, True),
        (BrokenPipeError(), False, True),
        (TimeoutError(), False, True),
        (LATE, False, True),
        (LockLost("lapsed", resource="r", key="k"), False, True),
        (LockNotAcquired("held", resource="r", key="k"), True, True),
        (Throttled("busy", retry_after=SECOND), True, True),
        (SHUT, False, False),
        (FULL, False, False),
        (ValueError(), False, False),
        (NotFoundError("none", resource="r"), False, False),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_is_retried(error: Exception, plain: bool, unknown: bool) -> None:
    assert is_retried(error, None, False) is plain
    assert is_retried(error, None, True) is unknown


def test_which_failures_are_retried_can_be_told() -> None:
    assert is_retried(ValueError(), (ValueError,), False)
    assert not is_retried(ConnectionError(), (ValueError,), False)
    assert is_retried(KeyError(), LookupError, False)
    assert not is_retried(ValueError(), LookupError, False)
    assert is_retried(KeyError("a"), lambda error: "a" in str(error), False)
    for never in (SHUT, FULL, STANDS):
        assert not is_retried(never, (Exception,), True)
    assert not is_retried(UNKNOWN, (Exception,), False)


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (ValueError(), False),
        (TimeoutError(), False),
        (REFUSED, False),
        (UNKNOWN, False),
        (LATE, False),
        (CUT, None),  # the caller had less time than the call is allowed
        (NotFoundError("none", resource="r"), True),
        (ValidationError("bad"), True),
        (ConflictError("taken"), True),
        (ConfigurationError("wrong"), True),
        (SHUT, None),
        (FULL, None),
        (Throttled("busy", retry_after=SECOND), None),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_an_exception_says_of_what_was_called(error: Exception, outcome: bool | None) -> None:
    assert outcome_of(error, None) is outcome


def test_what_counts_as_a_failure_can_be_told() -> None:
    assert outcome_of(ValueError(), (ValueError,)) is False
    assert outcome_of(KeyError(), (ValueError,)) is True
    assert outcome_of(SHUT, (ValueError,)) is None  # refused by a policy within
    assert outcome_of(Throttled("busy", retry_after=SECOND), (Throttled,)) is False
    assert outcome_of(NotFoundError("n", resource="r"), lambda error: True) is False
    assert outcome_of(CUT, (Exception,)) is None


def test_a_sum_of_large_numbers_adds_no_microsecond() -> None:
    """That clock and 20 minutes, less that clock, are a hair more than 20 minutes as floats."""
    now = 68444218515.25048
    bucket = Bucket.of(RateLimitStrategy(permits=3, per=timedelta(hours=1)))
    decision, _ = take(bucket, None, now)
    assert decision.reset_after == timedelta(minutes=20)
