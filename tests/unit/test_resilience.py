"""Calls under policies: the order of the strategies, errors, deadlines, cancellation, counts."""

from __future__ import annotations

import asyncio
import inspect
import logging
import random
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any, get_type_hints

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader, NumberDataPoint

from forze.application.contracts.resilience import (
    Admission,
    BreakerState,
    BulkheadStrategy,
    CircuitBreakerStrategy,
    PolicyKey,
    PolicyStats,
    RateLimitStrategy,
    ResiliencePolicy,
    RetryStrategy,
)
from forze.application.contracts.tenancy import bind_deadline
from forze.application.execution import (
    DepsPlan,
    ExecutionRuntime,
    ResilienceDepsModule,
    TelemetrySpec,
)
from forze.application.integrations.resilience import (
    LocalCircuitBreakerStore,
    LocalRateLimitStore,
    instruments,
    resilient,
)
from forze.application.integrations.resilience.bulkhead import Bulkhead
from forze.application.integrations.resilience.executor import Resilience
from forze.errors import (
    BackendUnavailable,
    BulkheadFull,
    CallTimeout,
    CircuitOpen,
    ConfigurationError,
    NotFoundError,
    Throttled,
    ValidationError,
)
from forze.testing.clock import ManualClock

SECOND = timedelta(seconds=1)
AT_ONCE = RetryStrategy(base_delay=1e-6, max_delay=1e-6)


class World:
    """Policies over stores of this process, on a clock that the test moves."""

    def __init__(self, **policies: ResiliencePolicy) -> None:
        self.clock = ManualClock()
        self.breakers = LocalCircuitBreakerStore(self.clock)
        self.port = Resilience(policies, self.breakers, LocalRateLimitStore(self.clock))
        self.calls = 0

    async def ok(self) -> str:
        self.calls += 1
        return "done"

    async def down(self) -> str:
        self.calls += 1
        raise ConnectionRefusedError("down")

    def failing(self, times: int, error: Exception | None = None) -> Callable[[], Awaitable[str]]:
        async def call() -> str:
            self.calls += 1
            if self.calls <= times:
                raise error or ConnectionRefusedError("down")
            return "done"

        return call

    async def fails(self, name: str, times: int, route: str | None = None) -> None:
        for _ in range(times):
            with suppress(ConnectionRefusedError):
                await self.port.run(name, self.down, route=route)

    def stats(self, name: str) -> dict[str, int]:
        """The counts that are not zero."""
        return {key: count for key, count in self.port.stats()[name]._asdict().items() if count}

    def state(self, name: str, route: str | None = None) -> BreakerState:
        return {view.key: view.state for view in self.port.breakers()}[name, route]


def breaker(**fields: Any) -> ResiliencePolicy:
    strategy = CircuitBreakerStrategy(**{"min_throughput": 4, "break_duration": 5, **fields})
    return ResiliencePolicy(circuit_breaker=strategy)


# -- wiring ------------------------------------------------------------------


async def test_the_context_runs_calls_under_the_policies_of_the_module() -> None:
    module = ResilienceDepsModule(policies={"payments": ResiliencePolicy(retry=AT_ONCE)})
    runtime = ExecutionRuntime(deps=DepsPlan.from_modules(module))
    tries = 0

    async def charge(amount: int, *, currency: str) -> str:
        nonlocal tries
        tries += 1
        if tries == 1:
            raise ConnectionError
        return f"{amount} {currency}"

    async with runtime.scope() as ctx:
        assert await ctx.resilience.run("payments", charge, 7, currency="EUR") == "7 EUR"
        assert ctx.resilience is ctx.resilience
        assert ctx.resilience.stats()["payments"].retries == 1
    async with runtime.scope() as ctx:
        assert ctx.resilience.stats()["payments"].calls == 0  # a runtime's own


async def test_without_the_module_the_error_says_what_to_do() -> None:
    async with ExecutionRuntime(deps=DepsPlan()).scope() as ctx:
        with pytest.raises(ConfigurationError, match=r"ResilienceDepsModule\(policies="):
            _ = ctx.resilience


async def test_an_unknown_policy_is_named_with_the_known() -> None:
    world = World(payments=ResiliencePolicy(), mail=ResiliencePolicy())
    for ask in (
        world.port.run("pay", world.ok),
        world.port.try_acquire("pay"),
        world.port.force_open("pay"),
    ):
        with pytest.raises(ConfigurationError, match="'pay', only: mail, payments") as refusal:
            await ask
        assert refusal.value.known == ("mail", "payments")
    assert world.calls == 0


async def test_what_a_policy_lacks_is_said() -> None:
    world = World(plain=ResiliencePolicy())
    with pytest.raises(ConfigurationError, match="'plain' has no rate limit"):
        await world.port.try_acquire("plain")
    with pytest.raises(ConfigurationError, match="'plain' has no circuit breaker"):
        await world.port.force_open("plain")
    assert await world.port.run("plain", world.ok) == "done"
    with pytest.raises(ConnectionRefusedError):
        await world.port.run("plain", world.down)
    assert world.stats("plain") == {"calls": 2, "succeeded": 1, "failed": 1}


async def test_what_is_called_gets_its_arguments_whatever_their_names() -> None:
    world = World(a=ResiliencePolicy())

    async def told(**arguments: object) -> dict[str, object]:
        return arguments

    given: dict[str, Any] = {"name": "x", "function": 1, "self": 2, "key": 3}
    assert await world.port.run("a", told, **given) == given


async def test_what_cannot_be_awaited_is_refused_and_says_so() -> None:
    world = World(a=breaker(min_throughput=1), b=ResiliencePolicy(timeout=30))

    def sync() -> int:
        return 1

    async def generator() -> AsyncIterator[int]:
        yield 1

    odd: list[tuple[Any, str]] = [
        (sync, "sync.* returned int, .*to_thread"),
        (generator, "returned async_generator"),
        (world.ok(), "takes an async function and its arguments"),  # called too early
        (None, "not None"),
    ]
    for given, problem in odd:
        for name in "ab":
            with pytest.raises(ConfigurationError, match=problem):
                await world.port.run(name, given)
    assert world.state("a") is BreakerState.CLOSED
    assert await world.port.run("a", asyncio.to_thread, sync) == 1
    assert await world.port.run("a", lambda: asyncio.ensure_future(world.ok())) == "done"


# -- circuit breaker ---------------------------------------------------------


async def test_an_open_circuit_spares_what_fails_and_closes_when_it_is_back() -> None:
    world = World(a=breaker())
    await world.fails("a", 4)
    assert world.state("a") is BreakerState.OPEN
    world.clock.advance(3 * SECOND)
    with pytest.raises(CircuitOpen) as refusal:
        await world.port.run("a", world.ok)
    assert world.calls == 4
    assert (refusal.value.policy, refusal.value.route) == ("a", None)
    assert refusal.value.retry_after is not None
    assert timedelta(seconds=2) <= refusal.value.retry_after < timedelta(seconds=2.001)
    world.clock.advance(2 * SECOND)
    assert await world.port.run("a", world.ok) == "done"
    assert world.state("a") is BreakerState.CLOSED
    assert world.stats("a") == {
        "calls": 6, "succeeded": 1, "failed": 4, "refused_by_breaker": 1
    }  # fmt: skip


async def test_routes_have_circuits_of_their_own() -> None:
    world = World(a=breaker())
    await world.fails("a", 4, route="eu")
    with pytest.raises(CircuitOpen) as refusal:
        await world.port.run("a", world.ok, route="eu")
    assert refusal.value.route == "eu"
    assert await world.port.run("a", world.ok, route="us") == "done"
    assert await world.port.run("a", world.ok) == "done"


async def test_a_route_is_known_by_its_text() -> None:
    world = World(a=breaker())
    await world.fails("a", 4, route=7)  # type: ignore[arg-type]
    with pytest.raises(CircuitOpen):
        await world.port.run("a", world.ok, route="7")


async def test_what_is_the_callers_own_doing_opens_nothing() -> None:
    world = World(a=breaker())

    async def absent() -> None:
        raise NotFoundError("items: no document 1", resource="items")

    for _ in range(20):
        with pytest.raises(NotFoundError):
            await world.port.run("a", absent)
    assert world.state("a") is BreakerState.CLOSED


async def test_slow_calls_open_it() -> None:
    world = World(a=breaker(slow_call_duration=0.001, slow_call_ratio=0.5))

    async def slow() -> None:
        await asyncio.sleep(0.002)

    for _ in range(4):
        await world.port.run("a", slow)
    assert world.state("a") is BreakerState.OPEN


async def test_a_cancelled_probe_makes_room_for_the_next() -> None:
    world = World(a=breaker())
    await world.fails("a", 4)
    world.clock.advance(5 * SECOND)
    probe = asyncio.ensure_future(world.port.run("a", asyncio.Event().wait))
    await asyncio.sleep(0)
    with pytest.raises(CircuitOpen):
        await world.port.run("a", world.ok)
    probe.cancel()
    with pytest.raises(asyncio.CancelledError):
        await probe
    assert world.stats("a")["cancelled"] == 1
    assert await world.port.run("a", world.ok) == "done"
    assert world.state("a") is BreakerState.CLOSED


async def test_a_refusal_from_within_gives_the_probe_back_and_is_no_outcome() -> None:
    world = World(outer=breaker(), inner=breaker())
    await world.fails("outer", 4)
    await world.fails("inner", 4)
    world.clock.advance(5 * SECOND)
    await world.port.force_open("inner")

    async def nested() -> str:
        return await world.port.run("inner", world.ok)

    with pytest.raises(CircuitOpen) as refusal:
        await world.port.run("outer", nested)
    assert refusal.value.policy == "inner"
    assert world.state("outer") is BreakerState.HALF_OPEN
    assert world.stats("outer")["failed"] == 5
    assert await world.port.run("outer", world.ok) == "done"


async def test_a_probe_whose_outcome_cannot_be_judged_is_given_back() -> None:
    broken = False

    def judge(error: Exception) -> bool:
        if broken:
            raise RuntimeError("the predicate is broken")
        return True

    world = World(a=breaker(failures=judge))
    await world.fails("a", 4)
    world.clock.advance(5 * SECOND)
    broken = True
    with pytest.raises(RuntimeError):
        await world.port.run("a", world.down)
    assert world.state("a") is BreakerState.HALF_OPEN
    assert await world.port.run("a", world.ok) == "done"


async def test_by_hand() -> None:
    world = World(a=breaker())
    await world.port.force_open("a", route="eu")
    world.clock.advance(timedelta(days=1))
    with pytest.raises(CircuitOpen, match="by hand") as refusal:
        await world.port.run("a", world.ok, route="eu")
    assert refusal.value.retry_after is None
    assert await world.port.run("a", world.ok) == "done"
    await world.port.disable("a")
    await world.fails("a", 50)
    assert await world.port.run("a", world.ok) == "done"
    await world.port.force_close("a")
    await world.fails("a", 4)
    assert world.state("a") is BreakerState.OPEN


async def test_each_transition_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    world = World(a=breaker())
    with caplog.at_level(logging.DEBUG, logger="forze.resilience"):
        await world.fails("a", 4, route="eu")
        for _ in range(5):
            with pytest.raises(CircuitOpen):
                await world.port.run("a", world.ok, route="eu")
        world.clock.advance(5 * SECOND)
        for _ in range(5):
            await world.port.run("a", world.ok, route="eu")
    assert [(each.levelname, each.getMessage()) for each in caplog.records] == [
        ("WARNING", "the circuit of a (eu) is open (was closed), generation 1"),
        ("INFO", "the circuit of a (eu) is half open (was open), generation 2"),
        ("INFO", "the circuit of a (eu) is closed (was half open), generation 3"),
    ]


# -- the store, used by itself -----------------------------------------------


KEY: PolicyKey = ("a", None)
STRATEGY = CircuitBreakerStrategy(min_throughput=4, break_duration=5)


async def test_an_outcome_without_admission_is_of_the_last_one_of_the_task() -> None:
    clock = ManualClock()
    store = LocalCircuitBreakerStore(clock)
    first, then = asyncio.Event(), asyncio.Event()

    async def late() -> None:
        await store.admit(KEY, STRATEGY)
        first.set()
        await then.wait()
        for _ in range(20):
            await store.record(KEY, STRATEGY, False)  # admitted before it opened

    task = asyncio.ensure_future(late())
    await first.wait()
    for _ in range(4):
        assert (await store.admit(KEY, STRATEGY))[0]
        await store.record(KEY, STRATEGY, False)
    assert not (await store.admit(KEY, STRATEGY))[0]
    clock.advance(5 * SECOND)
    assert (await store.admit(KEY, STRATEGY)).permit
    await store.record(KEY, STRATEGY, True)
    then.set()
    await task
    [view] = store.views()
    assert (view.state, view.generation, view.calls) == (BreakerState.CLOSED, 3, 0)


async def test_an_admission_that_was_had_in_a_child_task_will_do() -> None:
    clock = ManualClock()
    store = LocalCircuitBreakerStore(clock)
    for _ in range(4):
        await store.record(KEY, STRATEGY, False)
    clock.advance(5 * SECOND)
    assert (await asyncio.wait_for(store.admit(KEY, STRATEGY), 5)).permit
    await store.record(KEY, STRATEGY, True)
    assert store.views()[0].state is BreakerState.CLOSED


async def test_each_task_records_its_own_probe() -> None:
    clock = ManualClock()
    store = LocalCircuitBreakerStore(clock)
    strategy = CircuitBreakerStrategy(min_throughput=4, break_duration=5, half_open_max_calls=2)
    for _ in range(4):
        await store.record(KEY, strategy, False)
    clock.advance(5 * SECOND)
    admitted: list[Admission] = []

    async def probe(ok: bool | None) -> None:
        admitted.append(await store.admit(KEY, strategy))
        await asyncio.sleep(0)
        await store.record(KEY, strategy, ok)

    await store.admit(("other", None), strategy)  # this task's own, copied into its children
    await asyncio.gather(probe(None), probe(True))
    assert len({each.permit for each in admitted}) == 2
    [view] = [each for each in store.views() if each.key == KEY]
    assert (view.state, view.calls, view.failures) == (BreakerState.HALF_OPEN, 1, 0)


async def test_circuits_and_buckets_that_say_nothing_are_forgotten() -> None:
    clock = ManualClock()
    breakers, limits = LocalCircuitBreakerStore(clock), LocalRateLimitStore(clock)
    limit = RateLimitStrategy(permits=1)
    for route in range(3_000):
        await breakers.record(("a", str(route)), STRATEGY, False)
        await limits.try_acquire(("a", str(route)), limit)
    for _ in range(4):
        await breakers.record(("a", "down"), STRATEGY, False)
    assert len(breakers.views()) == 3_001
    assert len(limits) == 3_000
    await limits.try_acquire(("a", "0"), limit, cost=0)
    clock.advance(timedelta(minutes=1))
    await limits.try_acquire(("a", "new"), limit)
    assert len(limits) == 3_000 - 1  # a few for each that comes: nobody waits for all of them
    for route in range(3_000, 8_000):
        await breakers.admit(("a", str(route)), STRATEGY)
        await limits.try_acquire(("a", str(route)), limit)
        clock.advance(SECOND)
    assert len(breakers.views()) < 2_100
    assert len(limits) < 2_100
    assert ("a", "down") in {each.key for each in breakers.views()}  # it is open


async def test_a_local_store_goes_on_from_what_a_shared_one_said() -> None:
    clock = ManualClock()
    breakers, limits = LocalCircuitBreakerStore(clock), LocalRateLimitStore(clock)
    said = Admission(False, BreakerState.OPEN, 12, retry_after=3 * SECOND)
    breakers.follow(KEY, STRATEGY, said)
    refused = await breakers.admit(KEY, STRATEGY)
    assert (refused.allowed, refused.generation) == (False, 12)
    clock.advance(3 * SECOND)
    assert (await breakers.admit(KEY, STRATEGY)).permit
    limit = RateLimitStrategy(permits=10)
    limits.follow(KEY, limit, 2)
    assert [(await limits.try_acquire(KEY, limit)).allowed for _ in range(3)] == [True, True, False]
    limits.follow(KEY, limit, 10)
    assert len(limits) == 0


# -- rate limit --------------------------------------------------------------


async def test_a_limit_lets_its_permits_through_and_says_when_to_come_back() -> None:
    world = World(a=ResiliencePolicy(rate_limit=RateLimitStrategy(permits=10, per=60)))

    async def one() -> str:
        return await world.port.run("a", world.ok)

    results = await asyncio.gather(*(one() for _ in range(200)), return_exceptions=True)
    refusals = [each for each in results if isinstance(each, Throttled)]
    assert (world.calls, len(refusals)) == (10, 190)
    assert refusals[0].retry_after == 6 * SECOND
    assert "10 per 60 s" in str(refusals[0])
    assert world.stats("a") == {"calls": 200, "succeeded": 10, "refused_by_rate_limit": 190}
    world.clock.advance(6 * SECOND)
    assert await one() == "done"


async def test_permits_can_be_had_without_a_call() -> None:
    world = World(a=ResiliencePolicy(rate_limit=RateLimitStrategy(permits=10, per=60)))
    assert (await world.port.try_acquire("a", route="u1", cost=7)).remaining == 3
    refused = await world.port.try_acquire("a", route="u1", cost=4)
    assert not refused
    assert refused.retry_after == 6 * SECOND
    assert (await world.port.try_acquire("a", route="u1", cost=-7)).remaining == 10
    assert (await world.port.try_acquire("a", route="u2", cost=10)).allowed
    assert (await world.port.try_acquire("a", route="u2", cost=11)).retry_after is None
    for odd in (1.0, True, "1"):
        with pytest.raises(ValidationError, match="cost"):
            await world.port.try_acquire("a", cost=odd)  # type: ignore[arg-type]


# -- retry, timeout, deadline ------------------------------------------------


async def test_retries_until_it_works_or_the_attempts_are_over() -> None:
    world = World(a=ResiliencePolicy(retry=AT_ONCE))
    assert await world.port.run("a", world.failing(2)) == "done"
    assert world.calls == 3
    world.calls = 0
    with pytest.raises(ConnectionRefusedError):
        await world.port.run("a", world.failing(9))
    assert world.calls == 3
    assert world.stats("a") == {"calls": 2, "succeeded": 1, "failed": 1, "retries": 4}


async def test_an_unknown_outcome_is_retried_only_on_demand() -> None:
    lost = BackendUnavailable("lost", backend="redis", outcome="unknown")
    world = World(
        write=ResiliencePolicy(retry=AT_ONCE),
        read=ResiliencePolicy(
            retry=RetryStrategy(base_delay=1e-6, max_delay=1e-6, retry_unknown=True)
        ),
    )
    with pytest.raises(BackendUnavailable):
        await world.port.run("write", world.failing(1, lost))
    assert world.calls == 1
    world.calls = 0
    assert await world.port.run("read", world.failing(1, lost)) == "done"


async def test_what_is_down_is_not_multiplied() -> None:
    retry = RetryStrategy(base_delay=1e-6, max_delay=1e-6, budget=0.1, budget_reserve=5)
    world = World(a=ResiliencePolicy(retry=retry))
    for _ in range(100):
        with pytest.raises(ConnectionRefusedError):
            await world.port.run("a", world.down)
    assert 100 + 10 <= world.calls <= 100 + 15
    stats = world.port.stats()["a"]
    assert stats.retries == world.calls - 100
    assert stats.over_budget >= 80


async def test_each_attempt_meets_the_breaker_and_an_open_one_ends_the_retries() -> None:
    strategy = CircuitBreakerStrategy(min_throughput=2, break_duration=5)
    many = RetryStrategy(attempts=9, base_delay=1e-6, max_delay=1e-3)
    world = World(a=ResiliencePolicy(retry=many, circuit_breaker=strategy))
    with pytest.raises(ConnectionRefusedError):  # it was called, so it is no CircuitOpen
        await world.port.run("a", world.down)
    assert world.calls == 2
    assert world.stats("a") == {"calls": 1, "failed": 1, "retries": 2}
    with pytest.raises(CircuitOpen):
        await world.port.run("a", world.down)
    assert world.stats("a") == {"calls": 2, "failed": 1, "retries": 2, "refused_by_breaker": 1}


async def test_no_pause_goes_beyond_the_deadline() -> None:
    patient = RetryStrategy(base_delay=30, max_delay=30)
    world = World(a=ResiliencePolicy(retry=patient))
    async with asyncio.timeout(10):
        with bind_deadline(timedelta(seconds=20)), pytest.raises(ConnectionRefusedError):
            await world.port.run("a", world.down)
    assert world.calls == 1


async def test_a_call_that_takes_too_long_is_cancelled() -> None:
    cancelled = False

    async def hangs() -> None:
        nonlocal cancelled
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled = True
            raise

    world = World(a=ResiliencePolicy(timeout=0.001))
    with pytest.raises(CallTimeout) as late:
        await world.port.run("a", hangs)
    assert cancelled
    assert (late.value.policy, late.value.at_deadline) == ("a", False)
    assert late.value.timeout == timedelta(milliseconds=1)
    assert world.stats("a") == {"calls": 1, "failed": 1, "timeouts": 1}
    task = asyncio.current_task()
    assert task is not None
    assert not task.cancelling()


async def test_the_functions_own_timeout_stays_its_own() -> None:
    own = TimeoutError("mine")

    async def impatient() -> None:
        raise own

    world = World(a=ResiliencePolicy(timeout=30))
    with pytest.raises(TimeoutError) as raised:
        await world.port.run("a", impatient)
    assert raised.value is own
    assert world.stats("a") == {"calls": 1, "failed": 1}


async def test_each_attempt_has_the_timeout_and_a_timeout_is_a_failure() -> None:
    again = RetryStrategy(base_delay=1e-6, max_delay=1e-6, retry_unknown=True)
    strategy = CircuitBreakerStrategy(min_throughput=3)
    policy = ResiliencePolicy(retry=again, timeout=0.001, circuit_breaker=strategy)
    world = World(a=policy)
    with pytest.raises(CallTimeout):
        await world.port.run("a", asyncio.Event().wait)
    assert world.stats("a") == {"calls": 1, "failed": 1, "timeouts": 3, "retries": 2}
    assert world.state("a") is BreakerState.OPEN


async def test_a_deadline_cuts_the_timeout_short_and_that_is_nobodys_failure() -> None:
    strategy = CircuitBreakerStrategy(min_throughput=1)
    world = World(a=ResiliencePolicy(timeout=30, circuit_breaker=strategy))
    with bind_deadline(timedelta(milliseconds=1)), pytest.raises(CallTimeout) as late:
        await world.port.run("a", asyncio.Event().wait)
    assert late.value.at_deadline
    assert late.value.timeout < SECOND
    assert world.state("a") is BreakerState.CLOSED


async def test_no_call_begins_after_its_deadline() -> None:
    world = World(a=ResiliencePolicy(timeout=30))
    with bind_deadline(timedelta(0)), pytest.raises(CallTimeout) as late:
        await world.port.run("a", world.ok)
    assert late.value.at_deadline
    assert world.calls == 0


# -- bulkhead ----------------------------------------------------------------


async def test_a_bulkhead_lets_in_so_many_and_queues_so_many_in_their_order() -> None:
    world = World(a=ResiliencePolicy(bulkhead=BulkheadStrategy(max_concurrent=2, max_queue=2)))
    gates = [asyncio.Event() for _ in range(4)]
    inside: list[int] = []

    async def work(number: int) -> None:
        inside.append(number)
        await gates[number].wait()

    tasks = [asyncio.ensure_future(world.port.run("a", work, each)) for each in range(4)]
    await asyncio.sleep(0)
    assert inside == [0, 1]
    with pytest.raises(BulkheadFull) as refusal:
        await world.port.run("a", world.ok)
    assert (refusal.value.policy, refusal.value.max_concurrent) == ("a", 2)
    assert await world.port.run("a", world.ok, route="other") == "done"
    gates[1].set()
    await tasks[1]
    await asyncio.sleep(0)
    assert inside == [0, 1, 2]
    for gate in gates:
        gate.set()
    await asyncio.gather(*tasks)
    assert inside == [0, 1, 2, 3]
    assert world.stats("a") == {"calls": 6, "succeeded": 5, "refused_by_bulkhead": 1}


async def test_waiting_for_a_place_has_an_end() -> None:
    strategy = BulkheadStrategy(max_concurrent=1, max_queue=5, max_wait=0.001)
    patient = BulkheadStrategy(max_concurrent=1, max_queue=5)
    world = World(a=ResiliencePolicy(bulkhead=strategy), b=ResiliencePolicy(bulkhead=patient))
    gate = asyncio.Event()
    held = [asyncio.ensure_future(world.port.run(name, gate.wait)) for name in "ab"]
    await asyncio.sleep(0)
    with pytest.raises(BulkheadFull) as refusal:
        await world.port.run("a", world.ok)
    assert refusal.value.waited >= timedelta(milliseconds=1)
    with bind_deadline(timedelta(milliseconds=1)), pytest.raises(BulkheadFull):
        await world.port.run("b", world.ok)
    gate.set()
    await asyncio.gather(*held)
    assert [await world.port.run(name, world.ok) for name in "ab"] == ["done", "done"]


async def test_a_place_that_was_given_to_somebody_cancelled_goes_to_the_next() -> None:
    bulkhead = Bulkhead(1, 5)
    assert await bulkhead.enter(None)
    given, last = (asyncio.ensure_future(bulkhead.enter(None)) for _ in range(2))
    await asyncio.sleep(0)
    bulkhead.leave()
    given.cancel()  # before it could take what it was given
    await _turns()
    assert last.done()
    assert last.result()
    assert given.cancelled()
    assert not await bulkhead.enter(0)
    bulkhead.leave()
    assert bulkhead.idle


async def test_nobody_who_was_cancelled_in_the_line_is_given_a_place() -> None:
    bulkhead = Bulkhead(1, 5)
    assert await bulkhead.enter(None)
    gone, last = (asyncio.ensure_future(bulkhead.enter(None)) for _ in range(2))
    await asyncio.sleep(0)
    gone.cancel()
    bulkhead.leave()  # before it could leave the line
    await _turns()
    assert last.done()
    assert last.result()
    assert gone.cancelled()
    assert bulkhead.waiting == 0
    bulkhead.leave()
    assert bulkhead.idle


async def test_no_place_is_lost_whoever_is_cancelled_when() -> None:
    dice = random.Random(5)
    for _ in range(150):
        await _check_a_rush(dice, Bulkhead(dice.randint(1, 3), dice.randint(0, 5)))


async def _check_a_rush(dice: random.Random, bulkhead: Bulkhead) -> None:
    """Callers come, stay for a few turns, run out of patience or are cancelled, at random."""
    places = bulkhead._places
    inside = 0
    served: list[int] = []

    async def call(number: int, within: float | None, turns: int) -> None:
        nonlocal inside
        waits = bulkhead.taken == places
        if not await bulkhead.enter(within):
            return
        inside += 1
        assert inside <= bulkhead.taken <= places
        if waits:
            served.append(number)
        try:
            for _ in range(turns):
                await asyncio.sleep(0)
        finally:
            inside -= 1
            bulkhead.leave()

    tasks: list[asyncio.Future[None]] = []
    for number in range(40):
        within = dice.choice([None, None, 0.0, 1e-9, 1e-4])
        tasks.append(asyncio.ensure_future(call(number, within, dice.randint(0, 4))))
        if dice.random() < 0.3:
            dice.choice(tasks).cancel()
        for _ in range(dice.randint(0, 2)):
            await asyncio.sleep(0)
    ended = await asyncio.gather(*tasks, return_exceptions=True)
    assert {type(each) for each in ended} <= {type(None), asyncio.CancelledError}
    assert (bulkhead.taken, bulkhead.waiting, inside) == (0, 0, 0)
    assert served == sorted(served)


async def _turns() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


# -- all of them -------------------------------------------------------------


class Spied(LocalCircuitBreakerStore):
    """Suspends where a store with a server would."""

    async def admit(self, key: PolicyKey, strategy: CircuitBreakerStrategy) -> Admission:
        await asyncio.sleep(0)
        return await super().admit(key, strategy)

    async def record(
        self,
        key: PolicyKey,
        strategy: CircuitBreakerStrategy,
        ok: bool | None,
        admission: Admission | None = None,
        *,
        slow: bool = False,
    ) -> None:
        await super().record(key, strategy, ok, admission, slow=slow)
        await asyncio.sleep(0)


async def test_cancelled_at_any_await_everything_is_given_back() -> None:
    clock = ManualClock()
    policy = ResiliencePolicy(
        retry=RetryStrategy(base_delay=1e-6, max_delay=1e-6),
        timeout=30,
        circuit_breaker=CircuitBreakerStrategy(min_throughput=1),
        bulkhead=BulkheadStrategy(max_concurrent=1),
    )
    finished = False
    steps = 0
    while not finished:
        port = Resilience({"a": policy}, Spied(clock))
        tries = 0

        async def flaky() -> str:
            nonlocal tries
            tries += 1
            await asyncio.sleep(0)
            return "done"

        await port.force_close("a")
        with pytest.raises(ValueError, match="once"):
            await port.run("a", _raising)
        clock.advance(5 * SECOND)
        task = asyncio.ensure_future(port.run("a", flaky))
        for _ in range(steps):
            await asyncio.sleep(0)
        task.cancel()
        [result] = await asyncio.gather(task, return_exceptions=True)
        finished = result == "done"
        assert finished or isinstance(result, asyncio.CancelledError)
        assert await port.run("a", flaky) == "done"  # the place and the probe are free
        assert port.breakers()[0].state is BreakerState.CLOSED
        steps += 1
    assert steps > 3


async def _raising() -> None:
    raise ValueError("once")


async def test_the_order_is_bulkhead_limit_breaker() -> None:
    policy = ResiliencePolicy(
        circuit_breaker=CircuitBreakerStrategy(min_throughput=1),
        rate_limit=RateLimitStrategy(permits=3, per=3_600),
        bulkhead=BulkheadStrategy(max_concurrent=1),
    )
    world = World(a=policy)
    gate = asyncio.Event()
    first = asyncio.ensure_future(world.port.run("a", gate.wait))
    await asyncio.sleep(0)
    with pytest.raises(BulkheadFull):
        await world.port.run("a", world.ok)
    gate.set()
    await first
    assert (await world.port.try_acquire("a", cost=0)).remaining == 2  # none for the refused
    await world.port.force_open("a")
    for _ in range(2):
        with pytest.raises(CircuitOpen):
            await world.port.run("a", world.ok)
    with pytest.raises(Throttled):
        await world.port.run("a", world.ok)
    assert world.port.stats()["a"] == PolicyStats(
        calls=5, succeeded=1, failed=0, cancelled=0, refused_by_bulkhead=1,
        refused_by_rate_limit=1, refused_by_breaker=2, timeouts=0, retries=0, over_budget=0,
    )  # fmt: skip


# -- metrics -----------------------------------------------------------------


def _exported(reader: InMemoryMetricReader) -> dict[str, dict[tuple[str, ...], int]]:
    """Numbers that are not zero, by metric and by the values of its attributes."""
    data = reader.get_metrics_data()
    assert data is not None
    return {
        metric.name: {
            tuple(str(value) for value in (point.attributes or {}).values()): int(point.value)
            for point in metric.data.data_points
            if isinstance(point, NumberDataPoint) and point.value
        }
        for metric in data.resource_metrics[0].scope_metrics[0].metrics
        if metric.name.startswith("forze.resilience.")
    }


async def test_open_telemetry_hears_of_calls_and_circuits() -> None:
    reader = InMemoryMetricReader()
    runtime = ExecutionRuntime(
        deps=DepsPlan.from_modules(
            ResilienceDepsModule(policies={"a": breaker(min_throughput=2), "b": {"retry": {}}})
        ),
        telemetry=TelemetrySpec(meter_provider=MeterProvider([reader])),
    )
    world = World()
    for calls in (3, 6):
        async with runtime.scope() as ctx:
            for _ in range(2):
                with suppress(ConnectionRefusedError):
                    await ctx.resilience.run("a", world.down, route="eu")
            with pytest.raises(CircuitOpen):
                await ctx.resilience.run("a", world.ok, route="eu")
            for _ in range(3):
                await ctx.resilience.run("a", world.ok)
            found = _exported(reader)
            assert found["forze.resilience.circuits"] == {("a", "open"): 1, ("a", "closed"): 1}
        found = _exported(reader)
        assert found.pop("forze.resilience.circuits", {}) == {}
        assert found == {
            "forze.resilience.calls": {
                ("a", "succeeded"): calls,
                ("a", "failed"): calls * 2 // 3,
                ("a", "circuit_breaker"): calls // 3,
            },
            "forze.resilience.retries": {},
            "forze.resilience.timeouts": {},
        }


def test_the_documentation_names_every_metric() -> None:
    page = (Path(__file__).parents[2] / "docs" / "observability.md").read_text()
    assert set(re.findall(r"^\| `(forze\.resilience\.\w+)` ", page, re.MULTILINE)) == {
        "forze.resilience.circuits", *(name for name, *_ in instruments.COUNTERS)
    }  # fmt: skip


# -- the decorator -----------------------------------------------------------


async def test_a_function_can_be_put_under_a_policy_where_it_is_defined() -> None:
    module = ResilienceDepsModule(policies={"mail": breaker(min_throughput=1)})
    runtime = ExecutionRuntime(deps=DepsPlan.from_modules(module))

    @resilient("mail", ctx=runtime.get_context, route="host")
    async def send(text: str, host: str = "here") -> str:
        """Send it."""
        if text == "bad":
            raise ConnectionError
        return f"{text} by {host}"

    @resilient("mail", ctx=runtime.get_context, route=lambda number: f"n{number % 2}")
    async def count(number: int) -> int:
        return number

    assert send.__name__ == "send"
    assert send.__doc__ == "Send it."
    assert list(inspect.signature(send).parameters) == ["text", "host"]
    assert get_type_hints(send)["return"] is str
    async with runtime.scope() as ctx:
        with pytest.raises(ConnectionError):
            await send("bad", "eu")
        with pytest.raises(CircuitOpen):
            await send("good", host="eu")
        assert await send("good") == "good by here"
        assert await count(3) == 3
        assert {view.key for view in ctx.resilience.breakers()} == {
            ("mail", "eu"), ("mail", "here"), ("mail", "n1")
        }  # fmt: skip
    with pytest.raises(ConfigurationError, match="not running"):
        await send("good")


def test_a_wrong_decoration_is_refused_at_once() -> None:
    async def send(text: str) -> None: ...

    with pytest.raises(ConfigurationError, match="no argument 'host'"):
        resilient("mail", ctx=lambda: None, route="host")(send)  # type: ignore[arg-type, return-value]
    with pytest.raises(ConfigurationError, match="get_context"):
        resilient("mail", ctx=None)  # type: ignore[arg-type]

    async def generator() -> AsyncIterator[int]:
        yield 1

    bound: Any = classmethod(send)  # type: ignore[arg-type]
    for given in (generator, bound):
        with pytest.raises(ConfigurationError, match="is no async function"):
            resilient("mail", ctx=lambda: None)(given)  # type: ignore[arg-type, return-value]


async def test_methods_can_be_put_under_a_policy_with_a_route_of_their_object() -> None:
    world = World(mail=breaker())

    class Context:
        resilience = world.port

    class Host:
        def __init__(self, name: str) -> None:
            self.name = name

        @resilient("mail", ctx=Context, route=lambda self, *_, **__: self.name)
        async def send(self, text: str, *, route: str = "air") -> str:
            return f"{text} to {self.name} by {route}"

        @classmethod
        @resilient("mail", ctx=Context)
        async def ping(cls) -> str:
            return cls.__name__

    assert await Host("eu").send("hello", route="sea") == "hello to eu by sea"
    assert await Host.ping() == "Host"
    assert {view.key for view in world.breakers.views()} == {("mail", "eu"), ("mail", None)}
