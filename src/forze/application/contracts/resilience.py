"""Resilience: what to do about calls that fail, hang, or come too often.

A policy has a name and up to five strategies. Around one call they stand in this order, the
outermost first: bulkhead, rate limit, then for each attempt of the retry the circuit breaker and
the timeout. Where their state is kept, in this process or for the whole fleet, is the
stores' affair: a strategy says what is wanted and nothing about where.

Durations are timedeltas; a number is taken as seconds.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from datetime import timedelta
from enum import StrEnum
from inspect import iscoroutinefunction
from math import isfinite
from typing import (
    Any,
    Final,
    Literal,
    NamedTuple,
    ParamSpec,
    Protocol,
    TypeAlias,
    TypeVar,
    get_args,
    runtime_checkable,
)

from forze.application.contracts.deps import DepKey, Resolver
from forze.errors import CallTimeout, ConfigurationError, LockLost

T = TypeVar("T")
P = ParamSpec("P")

Duration: TypeAlias = timedelta | float
"""A timedelta, or seconds."""

PolicyKey: TypeAlias = tuple[str, str | None]
"""Whose state it is: the name of the policy, and the route where there are several (a host, a
tenant, a user); None is a route like any other."""

Failures: TypeAlias = type[Exception] | tuple[type[Exception], ...] | Callable[[Exception], bool]
"""Which exceptions are meant: a class or several, or a function that answers for each."""

UNKNOWN_OUTCOMES: Final = (
    CallTimeout,
    TimeoutError,
    LockLost,
    ConnectionResetError,
    ConnectionAbortedError,
    BrokenPipeError,
)
"""Failures after which the call may have been carried out, wholly or in part."""

OnOutage: TypeAlias = Literal["open", "closed"]
"""What a limit does while its store is away: go on in this process, or refuse."""


def seconds_of(duration: Duration) -> float:
    """A duration in seconds."""
    return duration.total_seconds() if isinstance(duration, timedelta) else float(duration)


def _refuse(owner: object, field: str, problem: str) -> None:
    kind = owner if isinstance(owner, str) else type(owner).__name__
    raise ConfigurationError(f"{kind}: {field} must be {problem}", name=field)


def _check_duration(owner: object, *fields: str) -> None:
    for field in fields:
        value: object = getattr(owner, field)
        if isinstance(value, bool) or not isinstance(value, timedelta | int | float):
            _refuse(owner, field, f"a timedelta or a number of seconds, not {value!r}")
        elif not isfinite(seconds_of(value)) or seconds_of(value) < 1e-6:
            _refuse(owner, field, f"at least a microsecond, and finite, not {value!r}")


def _check_duration_or_none(owner: object, *fields: str) -> None:
    _check_duration(owner, *(each for each in fields if getattr(owner, each) is not None))


def _check_count(owner: object, field: str, least: int) -> None:
    value: object = getattr(owner, field)
    if type(value) is not int or value < least:
        _refuse(owner, field, f"a whole number, at least {least}, not {value!r}")


def _check_number(owner: object, field: str, above: float, most: float | None = None) -> None:
    value: object = getattr(owner, field)
    fits = (
        isinstance(value, int | float)
        and not isinstance(value, bool)
        and isfinite(value)
        and value > above
        and (most is None or value <= most)
    )
    if not fits:
        bound = f"a number above {above:g}" + ("" if most is None else f", at most {most:g}")
        _refuse(owner, field, f"{bound}, not {value!r}")


def _classes(failures: object) -> tuple[Any, ...]:
    if isinstance(failures, tuple):
        return failures
    return (failures,) if isinstance(failures, type) else ()


def _check_failures(owner: object, field: str) -> None:
    value = getattr(owner, field)
    classes = all(isinstance(c, type) and issubclass(c, Exception) for c in _classes(value))
    fits = value is None or isinstance(value, tuple) or callable(value)
    if not (classes and fits) or iscoroutinefunction(value):
        _refuse(owner, field, f"exception classes or a function of one, not {value!r}")


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryStrategy:
    """Try again after failures that may pass, with decorrelated jitter and within a budget.

    ``attempts`` counts the first one too. A pause is drawn between ``base_delay`` and three times
    the last one, at most ``max_delay``. Where the failure says ``retry_after`` it is waited for
    instead (a timedelta, or seconds), and where that is beyond ``max_delay`` or the bound deadline
    the failure is final.

    The budget is shared by all calls of the policy in this process: each call adds ``budget``
    retries to it, up to ``budget_reserve``, with which it begins; each retry takes one. So a
    dependency that is down gets at most ``1 + budget`` times its calls in the long run. None
    switches it off.

    ``retry_on`` None retries what may pass and certainly did nothing: errors of forze that are
    ``retryable``, ``ConnectionError``, a name that could not be resolved. Other libraries' errors
    have to be named (``httpx.ConnectError``); that replaces the default. A failure that leaves
    open what became of the call (``UNKNOWN_OUTCOMES``, ``outcome="unknown"``) is retried only with
    ``retry_unknown=True``: say so for reads, and for what is idempotent. What is known to have
    taken effect, and what a breaker or a bulkhead refused, is never retried.
    """

    attempts: int = 3
    base_delay: Duration = 0.1
    max_delay: Duration = 5.0
    budget: float | None = 0.2
    budget_reserve: int = 10
    retry_on: Failures | None = None
    retry_unknown: bool = False

    def __post_init__(self) -> None:
        _check_count(self, "attempts", 1)
        _check_duration(self, "base_delay", "max_delay")
        if seconds_of(self.base_delay) > seconds_of(self.max_delay):
            _refuse(
                self, "base_delay", f"at most max_delay ({self.max_delay}), not {self.base_delay}"
            )
        if self.budget is not None:
            _check_number(self, "budget", 0.0, 1.0)
        _check_count(self, "budget_reserve", 1)
        _check_failures(self, "retry_on")
        for each in _classes(self.retry_on) if not self.retry_unknown else ():
            if issubclass(each, UNKNOWN_OUTCOMES):
                _refuse(
                    self,
                    "retry_on",
                    f"given with retry_unknown=True to name {each.__name__}: the call may have "
                    "taken effect then, so only what does no harm twice is repeated",
                )


@dataclass(frozen=True, slots=True, kw_only=True)
class CircuitBreakerStrategy:
    """Stop calling what fails, and look now and then whether it is back.

    Closed: of the calls that ended in the last ``sampling_window``, at least ``min_throughput``
    of them, a part of ``failure_ratio`` failed (or took ``slow_call_duration`` or longer, a part
    of ``slow_call_ratio``): it opens. Open: every call is refused for ``break_duration``, which
    doubles with each opening in a row where ``max_break_duration`` is above it. Half open:
    ``half_open_max_calls`` probes at once, and when as many outcomes are in it closes, or it
    opens as soon as the failures decide.

    A probe has a lease of ``probe_lease`` (None: ``break_duration``, or the policy's timeout
    where that is longer); one that was lost makes room for another. Where probes stay without
    any outcome for ``half_open_budget`` (None: four leases) it opens again.

    ``failures`` None counts every exception but those that are the caller's own doing (wrong
    arguments, not found, conflicts: :func:`~forze.application.integrations.resilience.failures.
    is_failure`). A call that was cancelled, or refused by a policy within it, counts as neither.
    """

    failure_ratio: float = 0.5
    sampling_window: Duration = 30.0
    min_throughput: int = 10
    break_duration: Duration = 5.0
    half_open_max_calls: int = 1
    max_break_duration: Duration | None = None
    slow_call_duration: Duration | None = None
    slow_call_ratio: float = 1.0
    probe_lease: Duration | None = None
    half_open_budget: Duration | None = None
    failures: Failures | None = None

    def __post_init__(self) -> None:
        _check_number(self, "failure_ratio", 0.0, 1.0)
        _check_number(self, "slow_call_ratio", 0.0, 1.0)
        _check_duration(self, "sampling_window", "break_duration")
        _check_duration_or_none(
            self, "max_break_duration", "slow_call_duration", "probe_lease", "half_open_budget"
        )
        _check_count(self, "min_throughput", 1)
        _check_count(self, "half_open_max_calls", 1)
        if self.longest_break_seconds < seconds_of(self.break_duration):
            _refuse(self, "max_break_duration", f"at least break_duration ({self.break_duration})")
        if self.half_open_budget_seconds < self.probe_lease_seconds:
            _refuse(self, "half_open_budget", "at least as long as a probe's lease")
        _check_failures(self, "failures")

    @property
    def longest_break_seconds(self) -> float:
        """What a break grows to, in seconds."""
        longest = self.max_break_duration
        return seconds_of(self.break_duration if longest is None else longest)

    @property
    def probe_lease_seconds(self) -> float:
        """How long a probe keeps its place, in seconds."""
        lease = self.probe_lease
        return seconds_of(self.break_duration if lease is None else lease)

    @property
    def half_open_budget_seconds(self) -> float:
        """How long probes may go without an outcome, in seconds."""
        budget = self.half_open_budget
        return 4 * self.probe_lease_seconds if budget is None else seconds_of(budget)


@dataclass(frozen=True, slots=True, kw_only=True)
class RateLimitStrategy:
    """``permits`` per ``per``, ``burst`` of them (None: all) at once.

    A token bucket: it holds ``capacity`` permits, is full at first, and fills continuously, one
    permit each ``interval_seconds``. ``permits`` may be a fraction. ``fail`` says what happens
    while a shared store is away: ``"open"`` limits in this process at the same rate, ``"closed"``
    refuses (logins, payments).
    """

    permits: float
    per: Duration = 1.0
    burst: int | None = None
    fail: OnOutage = "open"

    def __post_init__(self) -> None:
        _check_number(self, "permits", 0.0)
        _check_duration(self, "per")
        if self.burst is not None:
            _check_count(self, "burst", 1)
        if self.fail not in get_args(OnOutage):
            _refuse(self, "fail", f"'open' or 'closed', not {self.fail!r}")

    @property
    def capacity(self) -> int:
        """The most permits that can be had at once."""
        return max(1, int(self.permits)) if self.burst is None else self.burst

    @property
    def interval_seconds(self) -> float:
        """Seconds until one more permit is there."""
        return seconds_of(self.per) / self.permits


@dataclass(frozen=True, slots=True, kw_only=True)
class BulkheadStrategy:
    """``max_concurrent`` calls at once in this process, ``max_queue`` waiting in their order.

    Who has waited for ``max_wait`` (None: as long as the bound deadline allows) is refused, like
    the one who finds the queue full. Counted per policy and route.
    """

    max_concurrent: int
    max_queue: int = 0
    max_wait: Duration | None = None

    def __post_init__(self) -> None:
        _check_count(self, "max_concurrent", 1)
        _check_count(self, "max_queue", 0)
        _check_duration_or_none(self, "max_wait")


@dataclass(frozen=True, slots=True, kw_only=True)
class ResiliencePolicy:
    """The strategies of one policy; each may be left out. ``timeout`` is that of an attempt."""

    retry: RetryStrategy | None = None
    timeout: Duration | None = None
    circuit_breaker: CircuitBreakerStrategy | None = None
    rate_limit: RateLimitStrategy | None = None
    bulkhead: BulkheadStrategy | None = None

    def __post_init__(self) -> None:
        for field, kind in STRATEGIES.items():
            value: object = getattr(self, field)
            if value is not None and not isinstance(value, kind):
                _refuse(self, field, f"a {kind.__name__} or None, not {value!r}")
        _check_duration_or_none(self, "timeout")
        self.settled_breaker()

    def settled_breaker(self) -> CircuitBreakerStrategy | None:
        """The breaker with its probes' lease settled: no probe may outlive its lease."""
        breaker, timeout = self.circuit_breaker, self.timeout
        if breaker is None or breaker.probe_lease is not None or timeout is None:
            return breaker
        lease = max(seconds_of(timeout), breaker.probe_lease_seconds)
        return replace(breaker, probe_lease=lease)


STRATEGIES: Mapping[str, type] = {
    "retry": RetryStrategy,
    "circuit_breaker": CircuitBreakerStrategy,
    "rate_limit": RateLimitStrategy,
    "bulkhead": BulkheadStrategy,
}
"""The strategies that are classes, by their field in a policy."""


class BreakerState(StrEnum):
    """Where a circuit stands."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"
    FORCED_OPEN = "forced_open"
    DISABLED = "disabled"


Forced: TypeAlias = Literal[BreakerState.FORCED_OPEN, BreakerState.DISABLED, BreakerState.CLOSED]
"""What a circuit can be put into by hand: refuse everything, let everything through, or begin
anew, closed."""


class Admission(NamedTuple):
    """Whether a call may be made, and what its outcome is recorded under."""

    allowed: bool
    state: BreakerState
    generation: int
    """Rises with each transition; outcomes of an older one are dropped."""
    retry_after: timedelta | None = None
    """When refused: how long at least it will be; None where only a hand can end it."""
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
    """Outcomes in the window; while half open, those of the probes."""
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
    """Keeps the state of circuits. What is not half open is answered without a round trip."""

    async def admit(self, key: PolicyKey, strategy: CircuitBreakerStrategy) -> Admission:
        """Whether a call may be made now. Never raises for a store that is away."""
        ...

    async def record(
        self,
        key: PolicyKey,
        strategy: CircuitBreakerStrategy,
        ok: bool | None,
        admission: Admission | None = None,
        *,
        slow: bool = False,
    ) -> None:
        """How the call ended that ``admission`` let through; None is the one this task got last
        for the key. ``ok`` None says neither (it was cancelled) and only gives a probe back.
        ``slow``: it took ``slow_call_duration`` or longer. Never raises for a store that is
        away, and does not wait for it longer than a cancellation may take."""
        ...

    def views(self) -> list[BreakerView]:
        """Every circuit this process has met."""
        ...


@runtime_checkable
class ForcibleCircuitBreakerStore(CircuitBreakerStore, Protocol):
    """A breaker store whose circuits can be moved by hand."""

    async def force(self, key: PolicyKey, strategy: CircuitBreakerStrategy, state: Forced) -> None:
        """Put the circuit into ``state``, for everybody who shares the store. Raises
        ``BackendError`` where that cannot be done."""
        ...


class RateLimitStore(Protocol):
    """Keeps token buckets."""

    async def try_acquire(
        self, key: PolicyKey, strategy: RateLimitStrategy, cost: int = 1
    ) -> RateLimitDecision:
        """Take ``cost`` permits, or none. 0 only looks, and a negative cost gives back. Never
        raises for a store that is away."""
        ...


class PolicyStats(NamedTuple):
    """What became of the calls under one policy in this process, since the start."""

    calls: int
    succeeded: int
    failed: int
    """Left by an exception of the function's own, or by a timeout."""
    cancelled: int
    refused_by_bulkhead: int
    refused_by_rate_limit: int
    refused_by_breaker: int
    timeouts: int
    """Attempts that were cut off."""
    retries: int
    over_budget: int
    """Retries that the budget did not allow."""


class ResiliencePort(Protocol):
    """Runs calls under policies. An unknown name is a ``ConfigurationError`` naming the known."""

    async def run(
        self,
        name: str,
        function: Callable[..., Awaitable[T]],
        /,
        *args: Any,
        route: str | None = None,
        **kwargs: Any,
    ) -> T:
        """``await function(*args, **kwargs)`` under the policy ``name``.

        ``route`` says whose state it is, by its text. Raises what the function raises, or
        ``BulkheadFull``, ``Throttled``, ``CircuitOpen``, ``CallTimeout``.
        """
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

    def stats(self) -> Mapping[str, PolicyStats]:
        """Counts of this process, by the name of the policy."""
        ...

    async def force_open(self, name: str, *, route: str | None = None) -> None:
        """Refuse every call of the policy until another hand; of the fleet, with a store."""
        ...

    async def force_close(self, name: str, *, route: str | None = None) -> None:
        """Close the circuit with an empty window; it may open again by itself."""
        ...

    async def disable(self, name: str, *, route: str | None = None) -> None:
        """Let every call through, whatever becomes of them, until another hand."""
        ...


ResilienceDepKey: DepKey[Callable[[Resolver], ResiliencePort]] = DepKey("resilience")
"""What makes the runtime's resilience port."""
