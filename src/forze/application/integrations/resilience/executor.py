"""Calls under policies by name: the port, over guards."""

from __future__ import annotations

import inspect
import random
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from types import MappingProxyType
from typing import Any, TypeVar

from forze.application.contracts.introspection import Degrading
from forze.application.contracts.resilience import (
    BreakerState,
    BreakerView,
    CircuitBreakerStore,
    Forced,
    ForcibleCircuitBreakerStore,
    PolicyStats,
    RateLimitDecision,
    RateLimitStore,
    ResiliencePolicy,
)
from forze.application.integrations.resilience.guard import Guard, Surroundings
from forze.application.integrations.resilience.local import (
    LocalCircuitBreakerStore,
    LocalRateLimitStore,
)
from forze.application.integrations.resilience.retry import Dice
from forze.errors import ConfigurationError, ValidationError

T = TypeVar("T")


class Resilience:
    """Runs calls under ``policies``; without a store, the state is this process's."""

    def __init__(
        self,
        policies: Mapping[str, ResiliencePolicy],
        breaker_store: CircuitBreakerStore | None = None,
        rate_limit_store: RateLimitStore | None = None,
        uniform: Dice = random.uniform,
    ) -> None:
        self._policies = MappingProxyType(dict(policies))
        self._breakers: CircuitBreakerStore = (
            LocalCircuitBreakerStore() if breaker_store is None else breaker_store
        )
        limits = LocalRateLimitStore() if rate_limit_store is None else rate_limit_store
        self._limits = limits
        around = Surroundings(self._breakers, limits, uniform)
        self._guards = {name: Guard(name, policy, around) for name, policy in policies.items()}

    async def run(
        self,
        name: str,
        function: Callable[..., Awaitable[T]],
        /,
        *args: Any,
        route: str | None = None,
        **kwargs: Any,
    ) -> T:
        """``await function(*args, **kwargs)`` under the policy ``name``."""
        guard = self._guard(name)
        if not callable(function):
            raise _no_function(name, function)
        return await guard.run(route, partial(_awaited, name, function, args, kwargs))

    async def try_acquire(
        self, name: str, *, route: str | None = None, cost: int = 1
    ) -> RateLimitDecision:
        """Take permits of the policy's rate limit without a call."""
        guard = self._guard(name)
        strategy = self._policies[name].rate_limit
        if strategy is None:
            raise _lacking(name, "rate limit", "rate_limit=RateLimitStrategy(...)")
        if type(cost) is not int:
            raise ValidationError(f"cost is a whole number of permits, not {cost!r}", field="cost")
        return await self._limits.try_acquire(guard.key(route), strategy, cost)

    @property
    def policies(self) -> Mapping[str, ResiliencePolicy]:
        """Every policy, by name."""
        return self._policies

    def breakers(self) -> list[BreakerView]:
        """Every circuit this process has met."""
        return self._breakers.views()

    @property
    def limits_degraded(self) -> bool:
        """Whether this process keeps rate limits alone, because their store is away."""
        return isinstance(self._limits, Degrading) and self._limits.degraded

    def stats(self) -> Mapping[str, PolicyStats]:
        """Counts of this process, by the name of the policy."""
        return {name: guard.stats() for name, guard in self._guards.items()}

    async def force_open(self, name: str, *, route: str | None = None) -> None:
        """Refuse every call of the policy until another hand."""
        await self._force(name, route, BreakerState.FORCED_OPEN)

    async def force_close(self, name: str, *, route: str | None = None) -> None:
        """Close the circuit with an empty window; it may open again by itself."""
        await self._force(name, route, BreakerState.CLOSED)

    async def disable(self, name: str, *, route: str | None = None) -> None:
        """Let every call through, whatever becomes of them, until another hand."""
        await self._force(name, route, BreakerState.DISABLED)

    async def _force(self, name: str, route: str | None, state: Forced) -> None:
        guard = self._guard(name)
        if guard.breaker is None:
            raise _lacking(name, "circuit breaker", "circuit_breaker=CircuitBreakerStrategy(...)")
        if not isinstance(self._breakers, ForcibleCircuitBreakerStore):
            raise ConfigurationError(
                f"{type(self._breakers).__name__} has no force(): its circuits cannot be moved "
                "by hand",
                name=name,
            )
        await self._breakers.force(guard.key(route), guard.breaker, state)

    def _guard(self, name: str) -> Guard:
        guard = self._guards.get(name)
        if guard is None:
            raise ConfigurationError(
                f"no policy is called {name!r}, only: {', '.join(sorted(self._guards)) or 'none'}; "
                "give it to ResilienceDepsModule(policies={...})",
                name=name,
                known=self._guards,
            )
        return guard


async def _awaited(
    name: str,
    function: Callable[..., Awaitable[T]],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
) -> T:
    result = function(*args, **kwargs)
    if not inspect.isawaitable(result):
        raise ConfigurationError(
            f"policy {name!r}: {function!r} returned {type(result).__name__}, which cannot be "
            "awaited; give run() an async function, or asyncio.to_thread and the sync one",
            name=name,
        )
    return await result


def _no_function(name: str, given: object) -> ConfigurationError:
    if inspect.iscoroutine(given):
        given.close()
    return ConfigurationError(
        f"policy {name!r}: run() takes an async function and its arguments, such as "
        f"run({name!r}, charge, order), not {given!r}: what was called already cannot be called "
        "again",
        name=name,
    )


def _lacking(name: str, what: str, remedy: str) -> ConfigurationError:
    return ConfigurationError(f"policy {name!r} has no {what}; add {remedy} to it", name=name)
