"""Policies and their strategies: what is accepted, what is refused, and by which name."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

import pytest

from forze.application.contracts.resilience import (
    BulkheadStrategy,
    CircuitBreakerStrategy,
    RateLimitStrategy,
    ResiliencePolicy,
    RetryStrategy,
)
from forze.application.execution import DepsPlan, ExecutionRuntime, ResilienceDepsModule
from forze.application.integrations.resilience import (
    LocalCircuitBreakerStore,
    LocalRateLimitStore,
)
from forze.errors import CallTimeout, ConfigurationError

NAN = float("nan")

NONSENSE: list[tuple[type, str, dict[str, Any]]] = [
    (RetryStrategy, "attempts", {"attempts": 0}),
    (RetryStrategy, "attempts", {"attempts": True}),
    (RetryStrategy, "base_delay", {"base_delay": 0}),
    (RetryStrategy, "base_delay", {"base_delay": "1"}),
    (RetryStrategy, "base_delay", {"base_delay": 2, "max_delay": timedelta(seconds=1)}),
    (RetryStrategy, "max_delay", {"max_delay": float("inf")}),
    (RetryStrategy, "budget", {"budget": 0}),
    (RetryStrategy, "budget", {"budget": 1.5}),
    (RetryStrategy, "budget_reserve", {"budget_reserve": 0}),
    (RetryStrategy, "retry_on", {"retry_on": (ValueError(),)}),
    (RetryStrategy, "retry_on", {"retry_on": (KeyboardInterrupt,)}),
    (RetryStrategy, "retry_on", {"retry_on": [ValueError]}),
    (RetryStrategy, "retry_on", {"retry_on": int}),
    (RetryStrategy, "retry_on", {"retry_on": asyncio.sleep}),
    (RetryStrategy, "retry_on", {"retry_on": (ValueError, TimeoutError)}),
    (RetryStrategy, "retry_on", {"retry_on": CallTimeout}),
    (CircuitBreakerStrategy, "failure_ratio", {"failure_ratio": 0}),
    (CircuitBreakerStrategy, "failure_ratio", {"failure_ratio": 50}),
    (CircuitBreakerStrategy, "failure_ratio", {"failure_ratio": NAN}),
    (CircuitBreakerStrategy, "slow_call_ratio", {"slow_call_ratio": -1}),
    (CircuitBreakerStrategy, "sampling_window", {"sampling_window": timedelta(0)}),
    (CircuitBreakerStrategy, "sampling_window", {"sampling_window": True}),
    (CircuitBreakerStrategy, "break_duration", {"break_duration": NAN}),
    (CircuitBreakerStrategy, "min_throughput", {"min_throughput": 0}),
    (CircuitBreakerStrategy, "half_open_max_calls", {"half_open_max_calls": 1.0}),
    (CircuitBreakerStrategy, "max_break_duration", {"max_break_duration": 4.9}),
    (CircuitBreakerStrategy, "slow_call_duration", {"slow_call_duration": -1}),
    (CircuitBreakerStrategy, "half_open_budget", {"probe_lease": 2, "half_open_budget": 1}),
    (CircuitBreakerStrategy, "failures", {"failures": ValueError()}),
    (RateLimitStrategy, "permits", {"permits": 0}),
    (RateLimitStrategy, "permits", {"permits": NAN}),
    (RateLimitStrategy, "permits", {"permits": "10"}),
    (RateLimitStrategy, "per", {"permits": 1, "per": 0}),
    (RateLimitStrategy, "burst", {"permits": 1, "burst": 0}),
    (RateLimitStrategy, "burst", {"permits": 1, "burst": 1.5}),
    (RateLimitStrategy, "fail", {"permits": 1, "fail": "shut"}),
    (BulkheadStrategy, "max_concurrent", {"max_concurrent": 0}),
    (BulkheadStrategy, "max_queue", {"max_concurrent": 1, "max_queue": -1}),
    (BulkheadStrategy, "max_wait", {"max_concurrent": 1, "max_wait": -1}),
    (ResiliencePolicy, "timeout", {"timeout": 0}),
    (ResiliencePolicy, "retry", {"retry": 3}),
    (ResiliencePolicy, "bulkhead", {"bulkhead": RetryStrategy()}),
    (
        ResiliencePolicy,
        "half_open_budget",
        {"timeout": 9, "circuit_breaker": CircuitBreakerStrategy(half_open_budget=8)},
    ),
]


@pytest.mark.parametrize(("kind", "field", "given"), NONSENSE)
def test_nonsense_is_refused_by_name(kind: type, field: str, given: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError) as refusal:
        kind(**given)
    assert refusal.value.name == field
    assert field in str(refusal.value)


def test_what_may_have_taken_effect_is_named_together_with_leave_to_repeat_it() -> None:
    with pytest.raises(ConfigurationError, match=r"retry_unknown=True to name ReadTimedOut"):
        RetryStrategy(retry_on=(ValueError, ReadTimedOut))
    assert RetryStrategy(retry_on=ReadTimedOut, retry_unknown=True).retry_on is ReadTimedOut


class ReadTimedOut(TimeoutError):
    """As a client library may have it."""


def test_a_bucket_holds_the_whole_permits_of_its_period_unless_told_otherwise() -> None:
    assert RateLimitStrategy(permits=10).capacity == 10
    assert RateLimitStrategy(permits=2.5).capacity == 2
    assert RateLimitStrategy(permits=0.1).capacity == 1
    assert RateLimitStrategy(permits=10, burst=3).capacity == 3
    assert RateLimitStrategy(permits=4, per=timedelta(minutes=1)).interval_seconds == 15
    assert RateLimitStrategy(permits=0.5).interval_seconds == 2


def test_a_probe_does_not_outlive_its_lease() -> None:
    quick = CircuitBreakerStrategy(break_duration=timedelta(seconds=2))
    assert quick.probe_lease_seconds == 2
    assert quick.half_open_budget_seconds == 8
    assert quick.longest_break_seconds == 2

    def settled(timeout: float, breaker: CircuitBreakerStrategy) -> CircuitBreakerStrategy:
        found = ResiliencePolicy(timeout=timeout, circuit_breaker=breaker).settled_breaker()
        assert found is not None
        return found

    assert settled(30, quick).probe_lease_seconds == 30
    assert settled(1, quick).probe_lease_seconds == 2
    told = CircuitBreakerStrategy(probe_lease=3)
    assert settled(30, told) is told
    assert ResiliencePolicy(circuit_breaker=quick).settled_breaker() is quick
    assert ResiliencePolicy(timeout=3).settled_breaker() is None


async def test_a_dict_will_do_wherever_a_class_does() -> None:
    module = ResilienceDepsModule(
        policies={
            "payments": {
                "retry": {"attempts": 5},
                "timeout": 2,
                "circuit_breaker": CircuitBreakerStrategy(min_throughput=3),
                "rate_limit": {"permits": 10, "per": timedelta(minutes=1)},
                "bulkhead": {"max_concurrent": 4},
            }
        }
    )
    runtime = ExecutionRuntime(deps=DepsPlan.from_modules(module))
    async with runtime.scope() as ctx:
        assert ctx.resilience.policies == {
            "payments": ResiliencePolicy(
                retry=RetryStrategy(attempts=5),
                timeout=2,
                circuit_breaker=CircuitBreakerStrategy(min_throughput=3),
                rate_limit=RateLimitStrategy(permits=10, per=timedelta(minutes=1)),
                bulkhead=BulkheadStrategy(max_concurrent=4),
            )
        }


@pytest.mark.parametrize(
    ("policies", "word"),
    [
        ({"a": {"retries": {}}}, "retries"),
        ({"a": {"retry": {"tries": 1}}}, "tries"),
        ({"a": {"rate_limit": {}}}, "permits"),
        ({"a": {"retry": {"attempts": 0}}}, "attempts"),
        ({"a": 3}, "'a'"),
        ({"": {}}, "''"),
        ({1: {}}, "1"),
        ([], "policies"),
    ],
)
def test_wrong_policies_are_refused_when_the_module_is_made(policies: Any, word: str) -> None:
    with pytest.raises(ConfigurationError) as refusal:
        ResilienceDepsModule(policies=policies)
    assert word in str(refusal.value)


@pytest.mark.parametrize("field", ["breaker_store", "rate_limit_store"])
@pytest.mark.parametrize("given", [object(), LocalCircuitBreakerStore, LocalRateLimitStore])
def test_what_is_no_store_is_refused_when_the_module_is_made(field: str, given: Any) -> None:
    with pytest.raises(ConfigurationError, match=f"{field}= takes a store"):
        ResilienceDepsModule(**{field: given})
    stores = LocalCircuitBreakerStore(), LocalRateLimitStore()
    with pytest.raises(ConfigurationError, match="takes a store"):
        ResilienceDepsModule({}, breaker_store=stores[1], rate_limit_store=stores[0])  # type: ignore[arg-type]
