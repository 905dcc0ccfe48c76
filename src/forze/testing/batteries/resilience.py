"""What every store of rate limits and of circuit breakers does."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import timedelta

from forze.application.contracts.resilience import (
    Admission,
    BreakerState,
    CircuitBreakerStrategy,
    ForcibleCircuitBreakerStore,
    PolicyKey,
    RateLimitDecision,
    RateLimitStore,
    RateLimitStrategy,
)
from forze.testing.batteries.legs import PATIENCE, apart, cancelled

LIMIT = RateLimitStrategy(permits=10, per=timedelta(minutes=1))
KEY: PolicyKey = ("login", "user:1")
KEYS: tuple[PolicyKey, ...] = (
    ("login", None), ("login", ""), ("login", "="), ("login", "a"), ("login", "a/b"),
    ("login/a", "b"), ("login/a/b", None), ("login", "None"), ("login:a", None), ("login", "{a}"),
    ("login", "a:changed"), ("{login}", "a"), ("log", "in/a"), ("login", "%61"), ("login", "é"),
)  # fmt: skip

BREAKER = CircuitBreakerStrategy(
    failure_ratio=0.5,
    sampling_window=10.0,
    min_throughput=4,
    break_duration=5.0,
    half_open_max_calls=2,
    probe_lease=2.0,
    half_open_budget=8.0,
)
CLOSED, OPEN, HALF_OPEN = BreakerState.CLOSED, BreakerState.OPEN, BreakerState.HALF_OPEN
SECOND = timedelta(seconds=1)
BREAK = 5 * SECOND
LEASE = 2 * SECOND


@dataclass(frozen=True, slots=True, kw_only=True)
class ResilienceLeg:
    """Stores of two processes over one server. ``pass_time`` lets that much pass for all."""

    limits: RateLimitStore
    other_limits: RateLimitStore
    breakers: ForcibleCircuitBreakerStore
    other_breakers: ForcibleCircuitBreakerStore
    pass_time: Callable[[timedelta], Awaitable[None]]


class RateLimitBehaviour:
    """The token bucket, shared."""

    async def test_a_burst_then_the_rate(self, resilience_leg: ResilienceLeg) -> None:
        limits, other = resilience_leg.limits, resilience_leg.other_limits
        for left in range(9, -1, -1):
            decision = await (limits if left % 2 else other).try_acquire(KEY, LIMIT)
            assert decision
            assert decision.allowed
            assert decision.remaining == left
            assert decision.retry_after is None
        refused = await limits.try_acquire(KEY, LIMIT)
        assert not refused
        assert refused.remaining == 0
        assert refused.retry_after is not None
        assert 5 * SECOND < refused.retry_after <= 6 * SECOND
        assert 59 * SECOND < refused.reset_after <= 60 * SECOND
        assert not refused.degraded

    async def test_two_hundred_at_once_are_ten(self, resilience_leg: ResilienceLeg) -> None:
        stores = (resilience_leg.limits, resilience_leg.other_limits)
        decisions = await asyncio.gather(
            *(stores[each % 2].try_acquire(KEY, LIMIT) for each in range(200))
        )
        assert sum(map(bool, decisions)) == 10

    async def test_retry_after_is_exact(self, resilience_leg: ResilienceLeg) -> None:
        limits = resilience_leg.limits
        for strategy in (
            RateLimitStrategy(permits=0.5, per=10.0),
            RateLimitStrategy(permits=1, per=timedelta(hours=3)),
            RateLimitStrategy(permits=3, per=100.0, burst=1),
        ):
            key = ("slow", str(strategy.interval_seconds))
            assert await limits.try_acquire(key, strategy)
            refused = await limits.try_acquire(key, strategy)
            wait, interval = refused.retry_after, timedelta(seconds=strategy.interval_seconds)
            assert wait is not None
            assert interval - 5 * SECOND < wait <= interval + timedelta.resolution
            await resilience_leg.pass_time(wait - 5 * SECOND)
            assert not await limits.try_acquire(key, strategy)
            await resilience_leg.pass_time(5 * SECOND)
            assert await limits.try_acquire(key, strategy)

    async def test_no_window_has_an_edge(self, resilience_leg: ResilienceLeg) -> None:
        limits = resilience_leg.limits
        assert await _granted(limits, 10) == 10
        await resilience_leg.pass_time(timedelta(seconds=57))
        assert await _granted(limits, 20) == 9
        await resilience_leg.pass_time(timedelta(seconds=6))
        assert await _granted(limits, 20) == 1

    async def test_a_cost_is_taken_whole(self, resilience_leg: ResilienceLeg) -> None:
        limits = resilience_leg.limits
        assert (await limits.try_acquire(KEY, LIMIT, 7)).remaining == 3
        refused = await limits.try_acquire(KEY, LIMIT, 4)
        assert (refused.allowed, refused.remaining) == (False, 3)
        assert refused.retry_after is not None
        assert 5 * SECOND < refused.retry_after <= 6 * SECOND
        assert await limits.try_acquire(KEY, LIMIT, 3), "less may be had"

    async def test_more_than_the_burst_is_never_had(self, resilience_leg: ResilienceLeg) -> None:
        limits = resilience_leg.limits
        refused = await limits.try_acquire(KEY, LIMIT, 11)
        assert (refused.allowed, refused.retry_after) == (False, None)
        assert (await limits.try_acquire(KEY, LIMIT, 10)).remaining == 0
        assert (await limits.try_acquire(KEY, LIMIT, 11)).retry_after is None

    async def test_a_look_takes_nothing(self, resilience_leg: ResilienceLeg) -> None:
        limits = resilience_leg.limits
        for _ in range(3):
            assert (await limits.try_acquire(KEY, LIMIT, 0)).remaining == 10
        await limits.try_acquire(KEY, LIMIT, 4)
        assert (await resilience_leg.other_limits.try_acquire(KEY, LIMIT, 0)).remaining == 6

    async def test_permits_are_given_back(self, resilience_leg: ResilienceLeg) -> None:
        limits = resilience_leg.limits
        assert await _granted(limits, 20) == 10
        assert (await limits.try_acquire(KEY, LIMIT, -3)).remaining == 3
        assert await _granted(limits, 20) == 3
        assert (await limits.try_acquire(KEY, LIMIT, -50)).remaining == 10, "no more than it holds"

    async def test_a_refusal_changes_nothing(self, resilience_leg: ResilienceLeg) -> None:
        limits, other = resilience_leg.limits, resilience_leg.other_limits
        assert await _granted(limits, 10) == 10
        for _ in range(5):
            await resilience_leg.pass_time(SECOND)
            for store in (limits, other):
                assert not await store.try_acquire(KEY, LIMIT)
        await resilience_leg.pass_time(SECOND)
        assert await limits.try_acquire(KEY, LIMIT)

    async def test_a_bucket_holds_its_burst(self, resilience_leg: ResilienceLeg) -> None:
        strategy = RateLimitStrategy(permits=60, per=timedelta(minutes=1), burst=3)
        for _ in range(2):
            decisions = [await resilience_leg.limits.try_acquire(KEY, strategy) for _ in range(4)]
            assert [each.allowed for each in decisions] == [True, True, True, False]
            await resilience_leg.pass_time(timedelta(hours=1))

    async def test_policies_and_routes_are_apart(self, resilience_leg: ResilienceLeg) -> None:
        strategy = RateLimitStrategy(permits=1, per=timedelta(hours=1))
        for key in KEYS:
            assert await resilience_leg.limits.try_acquire(key, strategy), key
        for key in KEYS:
            assert not await resilience_leg.other_limits.try_acquire(key, strategy), key


class RateLimitFailures:
    """Callers that are cancelled."""

    async def test_cancelled_at_every_await(self, resilience_leg: ResilienceLeg) -> None:
        limits = resilience_leg.limits
        roomy = RateLimitStrategy(permits=1000, per=timedelta(hours=1))
        for turns in range(8):
            calls = [apart(limits.try_acquire(KEY, roomy)) for _ in range(4)]
            await _turns(turns)
            first, *others = calls
            assert await cancelled(first) or first.done()
            for other in others:
                async with asyncio.timeout(PATIENCE.total_seconds()):
                    assert await other
        left = (await resilience_leg.other_limits.try_acquire(KEY, roomy, 0)).remaining
        assert 1000 - 32 <= left <= 1000 - 24


class BreakerBehaviour:
    """The circuit, shared."""

    async def test_it_opens_for_all(self, resilience_leg: ResilienceLeg) -> None:
        one, other = resilience_leg.breakers, resilience_leg.other_breakers
        await other.admit(KEY, BREAKER)
        await _record(one, "++-")
        assert (await one.admit(KEY, BREAKER)).state is CLOSED, "too few calls"
        await _record(one, "-")
        for store in (one, other):
            refused = await _in_state(store, OPEN)
            assert not refused.allowed
            assert refused.retry_after is not None
            assert 4 * SECOND < refused.retry_after <= BREAK + timedelta.resolution
            assert refused.permit is None

    async def test_outcomes_of_all_count(self, resilience_leg: ResilienceLeg) -> None:
        one, other = resilience_leg.breakers, resilience_leg.other_breakers
        await _record(one, "--")
        await _record(other, "--")
        await _in_state(one, OPEN)
        await _in_state(other, OPEN)

    async def test_below_the_ratio_it_stays_closed(self, resilience_leg: ResilienceLeg) -> None:
        one = resilience_leg.breakers
        await _record(one, "+++-" * 10)
        admission = await one.admit(KEY, BREAKER)
        assert (admission.allowed, admission.state) == (True, CLOSED)

    async def test_the_window_forgets(self, resilience_leg: ResilienceLeg) -> None:
        one = resilience_leg.breakers
        await _record(one, "---")
        await resilience_leg.pass_time(timedelta(seconds=11))
        await _record(one, "---")
        assert (await one.admit(KEY, BREAKER)).state is CLOSED
        await resilience_leg.pass_time(timedelta(seconds=8))
        await _record(one, "-")
        assert (await one.admit(KEY, BREAKER)).state is OPEN

    async def test_probes_are_counted_over_the_fleet(self, resilience_leg: ResilienceLeg) -> None:
        one, other = resilience_leg.breakers, resilience_leg.other_breakers
        await _opened(resilience_leg)
        await resilience_leg.pass_time(BREAK)
        probes = [await one.admit(KEY, BREAKER), await other.admit(KEY, BREAKER)]
        assert [each.state for each in probes] == [HALF_OPEN, HALF_OPEN]
        assert len({each.permit for each in probes}) == 2
        for store in (one, other):
            refused = await store.admit(KEY, BREAKER)
            assert (refused.allowed, refused.state) == (False, HALF_OPEN)
            assert refused.retry_after is not None

    async def test_it_closes_when_all_outcomes_are_in(self, resilience_leg: ResilienceLeg) -> None:
        one, other = resilience_leg.breakers, resilience_leg.other_breakers
        first, second = await _half_open(resilience_leg)
        await one.record(KEY, BREAKER, True, first)
        assert not (await one.admit(KEY, BREAKER)).allowed, "one of two is in, the other is out"
        await other.record(KEY, BREAKER, True, second)
        assert (await _in_state(other, CLOSED)).allowed
        assert (await _in_state(one, CLOSED)).generation > first.generation

    async def test_it_opens_when_failures_decide(self, resilience_leg: ResilienceLeg) -> None:
        one, other = resilience_leg.breakers, resilience_leg.other_breakers
        first, _ = await _half_open(resilience_leg)
        await one.record(KEY, BREAKER, False, first)
        for store in (one, other):
            assert (await _in_state(store, OPEN)).generation > first.generation

    async def test_a_lost_probe_makes_room(self, resilience_leg: ResilienceLeg) -> None:
        one, other = resilience_leg.breakers, resilience_leg.other_breakers
        await _half_open(resilience_leg)
        await resilience_leg.pass_time(LEASE / 2)
        assert not (await other.admit(KEY, BREAKER)).allowed
        await resilience_leg.pass_time(LEASE / 2)
        probes = [await other.admit(KEY, BREAKER), await other.admit(KEY, BREAKER)]
        assert all(each.allowed for each in probes)
        for probe in probes:
            await other.record(KEY, BREAKER, True, probe)
        assert (await _in_state(one, CLOSED)).allowed

    async def test_it_never_sticks(self, resilience_leg: ResilienceLeg) -> None:
        """Whatever probes are lost, somebody is let through again, and it can close."""
        await _half_open(resilience_leg)
        for _ in range(10):
            await resilience_leg.pass_time(LEASE)
            await resilience_leg.breakers.admit(KEY, BREAKER)
        await resilience_leg.pass_time(timedelta(seconds=60))
        for _ in range(2):
            probe = await resilience_leg.breakers.admit(KEY, BREAKER)
            assert probe.allowed
            await resilience_leg.breakers.record(KEY, BREAKER, True, probe)
        assert (await resilience_leg.breakers.admit(KEY, BREAKER)).state is CLOSED

    async def test_probes_without_outcome_open_it(self, resilience_leg: ResilienceLeg) -> None:
        one = resilience_leg.breakers
        first, _ = await _half_open(resilience_leg)
        await resilience_leg.pass_time(timedelta(seconds=9))
        refused = await one.admit(KEY, BREAKER)
        assert (refused.allowed, refused.state) == (False, OPEN)
        assert refused.generation > first.generation

    async def test_breaks_grow_up_to_a_bound(self, resilience_leg: ResilienceLeg) -> None:
        one = resilience_leg.breakers
        strategy = CircuitBreakerStrategy(
            min_throughput=1, sampling_window=10.0, break_duration=10.0, max_break_duration=40.0
        )
        await one.admit(KEY, strategy)
        await one.record(KEY, strategy, False)
        for seconds in (10, 20, 40, 40):
            refused = await one.admit(KEY, strategy)
            assert refused.retry_after is not None
            assert seconds - 5 < refused.retry_after.total_seconds() < seconds + 0.1
            await resilience_leg.pass_time(timedelta(seconds=seconds))
            probe = await one.admit(KEY, strategy)
            assert probe.allowed
            await one.record(KEY, strategy, False, probe)

    async def test_an_older_generation_says_nothing(self, resilience_leg: ResilienceLeg) -> None:
        one = resilience_leg.breakers
        before = await one.admit(KEY, BREAKER)
        first, second = await _half_open(resilience_leg)
        await one.record(KEY, BREAKER, True, first)
        await one.record(KEY, BREAKER, True, second)
        await _in_state(one, CLOSED)
        for admission in (before, first):
            for _ in range(8):
                await one.record(KEY, BREAKER, False, admission)
        assert (await one.admit(KEY, BREAKER)).state is CLOSED

    async def test_without_an_admission_the_tasks_last_is_meant(
        self, resilience_leg: ResilienceLeg
    ) -> None:
        one = resilience_leg.breakers
        await _opened(resilience_leg)
        await resilience_leg.pass_time(BREAK)

        async def probe() -> None:
            assert (await one.admit(KEY, BREAKER)).allowed
            await one.record(KEY, BREAKER, True)

        await apart(probe())
        await apart(probe())
        assert (await one.admit(KEY, BREAKER)).state is CLOSED

    async def test_outcomes_without_admissions_are_of_one_probe_each(
        self, resilience_leg: ResilienceLeg
    ) -> None:
        one = resilience_leg.breakers
        for apart_from_the_admissions in (False, True):
            await _opened(resilience_leg)
            await resilience_leg.pass_time(BREAK)
            if apart_from_the_admissions:
                await apart(_admitted(one, 2))
            else:
                await _admitted(one, 2)
            for _ in range(2):
                await one.record(KEY, BREAKER, True)
            assert (await one.admit(KEY, BREAKER)).state is CLOSED

    async def test_slow_calls_open_it(self, resilience_leg: ResilienceLeg) -> None:
        one = resilience_leg.breakers
        strategy = CircuitBreakerStrategy(
            min_throughput=4, sampling_window=10.0, slow_call_duration=1.0, slow_call_ratio=0.75
        )
        for slow in (True, False, True, True):
            admission = await one.admit(KEY, strategy)
            assert admission.allowed
            await one.record(KEY, strategy, True, admission, slow=slow)
        assert (await one.admit(KEY, strategy)).state is OPEN

    async def test_by_hand(self, resilience_leg: ResilienceLeg) -> None:
        one, other = resilience_leg.breakers, resilience_leg.other_breakers
        await one.admit(KEY, BREAKER)
        await other.admit(KEY, BREAKER)
        await one.force(KEY, BREAKER, BreakerState.FORCED_OPEN)
        await resilience_leg.pass_time(timedelta(days=1))
        refused = await _in_state(other, BreakerState.FORCED_OPEN)
        assert (refused.allowed, refused.retry_after) == (False, None)
        await other.force(KEY, BREAKER, BreakerState.DISABLED)
        await _in_state(one, BreakerState.DISABLED)
        await _record(one, "-" * 8)
        assert (await one.admit(KEY, BREAKER)).allowed
        await one.force(KEY, BREAKER, BreakerState.CLOSED)
        await _in_state(other, CLOSED)
        await _record(other, "-" * 4)
        await _in_state(one, OPEN)

    async def test_policies_and_routes_are_apart(self, resilience_leg: ResilienceLeg) -> None:
        one, other = resilience_leg.breakers, resilience_leg.other_breakers
        for key in KEYS[::2]:
            await _record(one, "----", key)
        for key in KEYS:
            state = (await other.admit(key, BREAKER)).state
            assert state is (OPEN if key in KEYS[::2] else CLOSED), key
        seen = {view.key: view.state for view in other.views()}
        assert seen[KEYS[0]] is OPEN
        assert seen[KEYS[1]] is CLOSED


class BreakerFailures:
    """Calls that end as neither, and callers that are cancelled."""

    async def test_cancelled_is_neither(self, resilience_leg: ResilienceLeg) -> None:
        one = resilience_leg.breakers
        for _ in range(8):
            await one.record(KEY, BREAKER, None, await one.admit(KEY, BREAKER))
        await _record(one, "+++-")
        assert (await one.admit(KEY, BREAKER)).state is CLOSED

    async def test_a_cancelled_probe_makes_room(self, resilience_leg: ResilienceLeg) -> None:
        one, other = resilience_leg.breakers, resilience_leg.other_breakers
        first, second = await _half_open(resilience_leg)
        await one.record(KEY, BREAKER, None, first)
        third = await one.admit(KEY, BREAKER)
        assert third.allowed, "the place is free"
        await other.record(KEY, BREAKER, True, second)
        await one.record(KEY, BREAKER, True, third)
        assert (await one.admit(KEY, BREAKER)).state is CLOSED

    async def test_cancelled_at_every_await(self, resilience_leg: ResilienceLeg) -> None:
        """A caller that went away while it asked for a probe has none."""
        one = resilience_leg.breakers
        strategy = CircuitBreakerStrategy(min_throughput=1, sampling_window=10.0)
        await one.admit(KEY, strategy)
        await one.record(KEY, strategy, False)
        await resilience_leg.pass_time(BREAK)
        for turns in range(8):
            asking = apart(one.admit(KEY, strategy))
            await _turns(turns)
            if not await cancelled(asking):
                await one.record(KEY, strategy, None, asking.result())
            probe = await one.admit(KEY, strategy)
            assert probe.allowed, turns
            await one.record(KEY, strategy, None, probe)


# -- staging -------------------------------------------------------------------


async def _granted(limits: RateLimitStore, requests: int) -> int:
    decisions: list[RateLimitDecision] = [
        await limits.try_acquire(KEY, LIMIT) for _ in range(requests)
    ]
    return sum(map(bool, decisions))


async def _turns(turns: int) -> None:
    """Let the event loop turn so often; now and then it has to wait for a server."""
    for turn in range(turns):
        await asyncio.sleep(0.001 if turn % 2 else 0)


async def _record(store: ForcibleCircuitBreakerStore, outcomes: str, key: PolicyKey = KEY) -> None:
    """Calls that end well (+) or badly (-)."""
    for outcome in outcomes:
        admission = await store.admit(key, BREAKER)
        await store.record(key, BREAKER, outcome == "+", admission)


async def _admitted(store: ForcibleCircuitBreakerStore, calls: int) -> None:
    for _ in range(calls):
        assert (await store.admit(KEY, BREAKER)).allowed


async def _in_state(store: ForcibleCircuitBreakerStore, state: BreakerState) -> Admission:
    """An admission in this state, which may take a message to be known."""
    async with asyncio.timeout(PATIENCE.total_seconds()):
        while (admission := await store.admit(KEY, BREAKER)).state is not state:  # noqa: ASYNC110
            await asyncio.sleep(0.002)
    return admission


async def _opened(leg: ResilienceLeg) -> None:
    """Open, as both processes know."""
    await leg.other_breakers.admit(KEY, BREAKER)
    await _record(leg.breakers, "----")
    await _in_state(leg.breakers, OPEN)
    await _in_state(leg.other_breakers, OPEN)


async def _half_open(leg: ResilienceLeg) -> tuple[Admission, Admission]:
    """The probes of both processes, out."""
    await _opened(leg)
    await leg.pass_time(BREAK)
    probes = await leg.breakers.admit(KEY, BREAKER), await leg.other_breakers.admit(KEY, BREAKER)
    assert all(each.allowed for each in probes)
    return probes
