"""Resilience: what to do about calls that fail, hang, or come too often.

A policy has a name and up to five strategies. Around one call they stand in this order, the
outermost first: bulkhead, rate limit, then for each attempt of the retry the circuit breaker and
the timeout. Where their state is kept, in this process or for the whole fleet, is the
stores' affair: a strategy says what is wanted and nothing about where.

Durations are timedeltas; a number is taken as seconds.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from typing import Any, NamedTuple, ParamSpec, Protocol, TypeAlias, TypeVar

from forze.application.contracts.deps import DepKey, Resolver

T = TypeVar("T")
P = ParamSpec("P")

Duration: TypeAlias = timedelta | float
"""A timedelta, or seconds."""

PolicyKey: TypeAlias = tuple[str, str | None]
"""Whose state it is: the name of the policy, and the route where there are several (a host, a
tenant, a user); None is a route like any other."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryStrategy:
    """Try again after failures that may pass."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CircuitBreakerStrategy:
    """Stop calling what fails, and look now and then whether it is back."""

    failure_ratio: float = 0.5
    sampling_window: Duration = 30.0
    min_throughput: int = 10
    break_duration: Duration = 5.0
    half_open_max_calls: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class RateLimitStrategy:
    """``permits`` per ``per``, ``burst`` of them (None: all) at once."""

    permits: float
    per: Duration = 1.0
    burst: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class BulkheadStrategy:
    """So many calls at once in this process, so many waiting."""

    max_concurrent: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ResiliencePolicy:
    """The strategies of one policy; each may be left out."""

    retry: RetryStrategy | None = None
    timeout: Duration | None = None
    circuit_breaker: CircuitBreakerStrategy | None = None
    rate_limit: RateLimitStrategy | None = None
    bulkhead: BulkheadStrategy | None = None


class BreakerState(StrEnum):
    """Where a circuit stands."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"
    FORCED_OPEN = "forced_open"
    DISABLED = "disabled"


class Admission(NamedTuple):
    """Whether a call may be made, and what its outcome is recorded under."""

    allowed: bool
    state: BreakerState
    generation: int
    """Rises with each transition; outcomes of an older one are dropped."""
    retry_after: timedelta | None = None
    """When refused: how long at least it will be."""
    permit: str | None = None
    """The probe's, while half open."""


class BreakerView(NamedTuple):
    """One circuit as this process sees it."""

    key: PolicyKey
    state: BreakerState
    generation: int
    since: float
    """Seconds since the epoch when this process first saw it in this state."""
    calls: int
    failures: int
    degraded: bool
    """Whether the store is away, and this is the process's own judgement."""


class RateLimitDecision(NamedTuple):
    """What became of one request for permits; true exactly when allowed."""

    allowed: bool
    remaining: int
    """Permits that could be had at once after this."""
    retry_after: timedelta | None
    """When refused: after that it is allowed if nobody else comes; None if never (the cost is
    above the burst)."""
    reset_after: timedelta = timedelta(0)
    """Until the bucket is full again."""
    degraded: bool = False
    """Whether the store is away, and this is the process's own bucket."""

    def __bool__(self) -> bool:
        return self.allowed


class CircuitBreakerStore(Protocol):
    """Keeps the state of circuits."""

    async def admit(self, key: PolicyKey, strategy: CircuitBreakerStrategy) -> Admission:
        """Whether a call may be made now. Never raises for a store that is away."""
        ...

    async def record(
        self,
        key: PolicyKey,
        strategy: CircuitBreakerStrategy,
        ok: bool,
        admission: Admission | None = None,
    ) -> None:
        """How the call ended that ``admission`` let through; None is the one this task got last
        for the key."""
        ...


class RateLimitStore(Protocol):
    """Keeps token buckets."""

    async def try_acquire(
        self, key: PolicyKey, strategy: RateLimitStrategy, cost: int = 1
    ) -> RateLimitDecision:
        """Take ``cost`` permits, or none. Never raises for a store that is away."""
        ...


class ResiliencePort(Protocol):
    """Runs calls under policies."""

    async def run(
        self,
        name: str,
        function: Callable[..., Awaitable[T]],
        *args: Any,
        route: str | None = None,
        **kwargs: Any,
    ) -> T:
        """``await function(*args, **kwargs)`` under the policy ``name``."""
        ...

    async def try_acquire(
        self, name: str, *, route: str | None = None, cost: int = 1
    ) -> RateLimitDecision:
        """Take permits of the policy's rate limit without a call; never raises for a refusal."""
        ...

    @property
    def policies(self) -> Mapping[str, ResiliencePolicy]:
        """Every policy, by name."""
        ...

    def breakers(self) -> list[BreakerView]:
        """Every circuit this process has met."""
        ...


ResilienceDepKey: DepKey[Callable[[Resolver], ResiliencePort]] = DepKey("resilience")
"""What makes the runtime's resilience port."""
