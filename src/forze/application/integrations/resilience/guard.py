"""The strategies of one policy, put around calls: what others decide is done here."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import NamedTuple, TypeVar

from forze.application.contracts.resilience import (
    BulkheadStrategy,
    CircuitBreakerStore,
    CircuitBreakerStrategy,
    PolicyKey,
    PolicyStats,
    RateLimitDecision,
    RateLimitStore,
    RateLimitStrategy,
    ResiliencePolicy,
    RetryStrategy,
    seconds_of,
)
from forze.application.contracts.tenancy import current_deadline
from forze.application.integrations.resilience.budget import RetryBudget
from forze.application.integrations.resilience.bulkhead import Bulkhead
from forze.application.integrations.resilience.failures import outcome_of
from forze.application.integrations.resilience.retry import Dice, Pauses
from forze.application.integrations.resilience.transitions import key_text
from forze.errors import BulkheadFull, CallTimeout, CircuitOpen, Throttled

T = TypeVar("T")
Call = Callable[[], Awaitable[T]]


class Surroundings(NamedTuple):
    """What guards share: where state is kept, and the dice."""

    breakers: CircuitBreakerStore
    limits: RateLimitStore
    uniform: Dice


class Guard:
    """Runs the calls of one policy, and counts them."""

    def __init__(self, name: str, policy: ResiliencePolicy, around: Surroundings) -> None:
        self._name = name
        self._plain: PolicyKey = (name, None)
        self._breakers, self._limits, self._uniform = around
        self._timeout = None if policy.timeout is None else seconds_of(policy.timeout)
        self._retry = policy.retry
        self._limit = policy.rate_limit
        self._bulkhead = policy.bulkhead
        self._bulkheads: dict[PolicyKey, Bulkhead] = {}
        self._budget = _budget_of(policy.retry)
        self.breaker = policy.settled_breaker()
        slow = None if self.breaker is None else self.breaker.slow_call_duration
        self._slow = None if slow is None else seconds_of(slow)
        self._calls = self._succeeded = self._failed = self._cancelled = 0
        self._full = self._throttled = self._refused = 0
        self._timeouts = self._retries = self._over_budget = 0

    async def run(self, route: str | None, call: Call[T]) -> T:
        """The call, inside everything."""
        self._calls += 1
        key = self.key(route)
        try:
            if self._bulkhead is None:
                result = await self._permitted(key, call)
            else:
                result = await self._inside(key, call, self._bulkhead)
        except asyncio.CancelledError:
            self._cancelled += 1
            raise
        self._succeeded += 1
        return result

    def key(self, route: str | None) -> PolicyKey:
        """Whose state it is: that of the route's text."""
        return self._plain if route is None else (self._name, str(route))

    def stats(self) -> PolicyStats:
        """What became of the calls."""
        return PolicyStats(
            calls=self._calls,
            succeeded=self._succeeded,
            failed=self._failed,
            cancelled=self._cancelled,
            refused_by_bulkhead=self._full,
            refused_by_rate_limit=self._throttled,
            refused_by_breaker=self._refused,
            timeouts=self._timeouts,
            retries=self._retries,
            over_budget=self._over_budget,
        )

    async def _inside(self, key: PolicyKey, call: Call[T], strategy: BulkheadStrategy) -> T:
        bulkhead = self._bulkheads.get(key)
        if bulkhead is None:
            bulkhead = Bulkhead(strategy.max_concurrent, strategy.max_queue)
            self._bulkheads[key] = bulkhead
        longest = None if strategy.max_wait is None else seconds_of(strategy.max_wait)
        began = time.monotonic()
        if not await bulkhead.enter(_at_most(longest, _time_left())):
            self._full += 1
            waited = timedelta(seconds=time.monotonic() - began)
            raise BulkheadFull(
                policy=self._name,
                route=key[1],
                max_concurrent=strategy.max_concurrent,
                waited=waited,
            )
        try:
            return await self._permitted(key, call)
        finally:
            bulkhead.leave()
            if bulkhead.idle and key is not self._plain:  # a route may never come again
                self._bulkheads.pop(key, None)

    def _permitted(self, key: PolicyKey, call: Call[T]) -> Awaitable[T]:
        limit = self._limit
        return self._tried(key, call) if limit is None else self._limited(key, call, limit)

    async def _limited(self, key: PolicyKey, call: Call[T], strategy: RateLimitStrategy) -> T:
        decision = await self._limits.try_acquire(key, strategy)
        if not decision.allowed:
            self._throttled += 1
            raise _throttled(key, strategy, decision)
        return await self._tried(key, call)

    async def _tried(self, key: PolicyKey, call: Call[T]) -> T:
        try:
            if self._retry is None:
                return await self._attempt(key, call)
            return await self._retried(key, call, self._retry)
        except Exception as error:
            if _is_refusal_of(key, error):
                self._refused += 1
            else:
                self._failed += 1
            raise

    async def _retried(self, key: PolicyKey, call: Call[T], strategy: RetryStrategy) -> T:
        if self._budget is not None:
            self._budget.earn()
        pauses = Pauses(strategy, self._uniform)
        failure: Exception | None = None
        try:
            while True:
                try:
                    return await self._attempt(key, call)
                except CircuitOpen as refusal:
                    if failure is None or not _is_refusal_of(key, refusal):
                        raise
                    break
                except Exception as error:
                    pause = pauses.after(error, _time_left())
                    if pause is None or not self._affordable():
                        raise
                    failure = error
                self._retries += 1
                await asyncio.sleep(pause)
            raise failure  # the call was made: what became of it, and not that it was not made
        finally:
            del failure  # its traceback holds this frame

    def _affordable(self) -> bool:
        if self._budget is None or self._budget.spend():
            return True
        self._over_budget += 1
        return False

    async def _attempt(self, key: PolicyKey, call: Call[T]) -> T:
        if self.breaker is None:
            return await self._made(key, call)
        return await self._judged(key, call, self.breaker)

    async def _judged(self, key: PolicyKey, call: Call[T], breaker: CircuitBreakerStrategy) -> T:
        admission = await self._breakers.admit(key, breaker)
        if not admission.allowed:
            raise CircuitOpen(policy=self._name, route=key[1], retry_after=admission.retry_after)
        began = 0.0 if self._slow is None else time.monotonic()
        ok: bool | None = None  # a cancelled call says nothing
        try:
            result = await self._made(key, call)
            ok = True
        except Exception as error:
            ok = outcome_of(error, breaker.failures)
            raise
        finally:
            if ok is not None or admission.permit is not None:
                slow = self._slow is not None and time.monotonic() - began >= self._slow
                await self._breakers.record(key, breaker, ok, admission, slow=slow)
        return result

    def _made(self, key: PolicyKey, call: Call[T]) -> Awaitable[T]:
        return call() if self._timeout is None else self._timed(key, call, self._timeout)

    async def _timed(self, key: PolicyKey, call: Call[T], timeout: float) -> T:
        left = _time_left()
        at_deadline = left is not None and left < timeout
        limit = left if left is not None and at_deadline else timeout
        try:
            async with asyncio.timeout(limit) as clock:
                if limit <= 0:
                    await asyncio.sleep(0)  # cut off here: no call begins after its deadline
                return await call()
        except TimeoutError as error:
            if not clock.expired():  # the call's own
                raise
            self._timeouts += 1
            raise CallTimeout(
                policy=self._name,
                route=key[1],
                timeout=timedelta(seconds=max(0.0, limit)),
                at_deadline=at_deadline,
            ) from error


def _budget_of(strategy: RetryStrategy | None) -> RetryBudget | None:
    if strategy is None or strategy.budget is None:
        return None
    return RetryBudget(strategy.budget, strategy.budget_reserve)


def _time_left() -> float | None:
    """Seconds until the bound deadline."""
    deadline = current_deadline()
    return None if deadline is None else deadline - time.monotonic()


def _at_most(first: float | None, second: float | None) -> float | None:
    if first is None or second is None:
        return second if first is None else first
    return min(first, second)


def _is_refusal_of(key: PolicyKey, error: Exception) -> bool:
    return isinstance(error, CircuitOpen) and (error.policy, error.route) == key


def _throttled(
    key: PolicyKey, strategy: RateLimitStrategy, decision: RateLimitDecision
) -> Throttled:
    wait = decision.retry_after or timedelta(seconds=strategy.interval_seconds)
    why = "its store is away, and it is closed then" if _closed(strategy, decision) else (
        f"{strategy.permits:g} per {seconds_of(strategy.per):g} s are used up"
    )  # fmt: skip
    return Throttled(
        f"the rate limit of {key_text(key)}: {why}; try again in {wait.total_seconds():.3g} s",
        retry_after=wait,
    )


def _closed(strategy: RateLimitStrategy, decision: RateLimitDecision) -> bool:
    return decision.degraded and strategy.fail == "closed"
