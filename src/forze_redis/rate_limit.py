"""Rate limits of a fleet: one token bucket per policy and route, on the server's clock.

::

    {namespace}/{policy}[/{route}]      the bucket, a hash; absent while it is full

The bucket is kept as the permits in it and the time at which they were counted. That is equal to
GCRA (ITU-T I.371, annex A), except that a clock that was put back can be told from a debt: then
the permits stay as they are. The script ``rate_limit`` decides; here is what saves asking it:

- Requests for one limit that come while another one is under way go together, in their order.
- A limit that was denied is refused here until there can be enough, for a second at most. Only
  permits that another process gave back meanwhile could make that too strict.

While the server is away each process has a bucket of its own, which goes on from what it heard
last; see ``reach``.
"""

from __future__ import annotations

import asyncio
import os
import secrets
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from functools import lru_cache
from itertools import count
from math import ceil
from time import monotonic
from typing import Final, NamedTuple, TypeAlias

from forze.application.contracts.resilience import (
    Duration,
    PolicyKey,
    RateLimitDecision,
    RateLimitStrategy,
)
from forze.application.execution.background import Background
from forze.application.integrations.resilience import LocalRateLimitStore
from forze.application.integrations.resilience.local import Clock
from forze.errors import ConfigurationError, ValidationError
from forze_redis.client import RedisClient
from forze_redis.config import RedisRateLimitConfig, ResourceConfig
from forze_redis.keys import PolicyKeys
from forze_redis.reach import BUDGET, Reach, Told
from forze_redis.wire.scripts import load_script
from forze_redis.wire.slots import slot_of_key

RATE_LIMIT = load_script("rate_limit")

Limit: TypeAlias = tuple[PolicyKey, RateLimitStrategy]

_MOST_TOGETHER: Final = 256
_MOST_DENIALS: Final = 4096
_DENIED_SECONDS: Final = 1.0
_ASK_AGAIN: Final = timedelta(seconds=1)
_MICROSECOND: Final = timedelta(microseconds=1)
_LOOK: Final = ("", 1, 1, 0)
"""Whatever bucket it is: the answer matters to nobody."""


def redis_rate_limit_store(
    client: RedisClient,
    *,
    namespace: str = "forze:limit",
    timeout: Duration = BUDGET,
    replicas_hint: int = 1,
    on_degraded: Told | None = None,
    clock: Clock = monotonic,
) -> RedisRateLimitStore:
    """A rate-limit store with which ``permits`` per ``per`` are the rate of the whole fleet.

    Everybody who uses the same server and ``namespace`` shares the limits. The server's answer is
    waited for as long as ``timeout``. While it is away a limit is kept in this process, at the
    ``replicas_hint``-th part of its rate, or refuses (``RateLimitStrategy(fail="closed")``); the
    decisions say ``degraded``, and ``on_degraded`` is called with True, and with False when the
    server is back.

    Raises ``ConfigurationError`` for a client that has a server for each tenant.
    """
    return RedisRateLimitStore(
        PolicyKeys(client, RedisRateLimitConfig(namespace=namespace), "rate limits"),
        Reach(client, "rate limits", RATE_LIMIT, timeout, on_degraded),
        replicas_hint,
        clock,
    )


class _Request(NamedTuple):
    """Somebody who waits for permits; is told None where the server could not be asked."""

    cost: int
    decision: asyncio.Future[RateLimitDecision | None]


class RedisRateLimitStore:
    """Token buckets on a server. Implements ``RateLimitStore``."""

    def __init__(
        self, keys: PolicyKeys, reach: Reach, replicas_hint: int = 1, clock: Clock = monotonic
    ) -> None:
        if type(replicas_hint) is not int or replicas_hint < 1:
            raise ConfigurationError(
                f"redis_rate_limit_store: replicas_hint must be a whole number, at least 1, not "
                f"{replicas_hint!r}",
                name="replicas_hint",
            )
        self._keys = keys
        self._reach = reach
        self._replicas = replicas_hint
        self._clock = clock
        self._local = LocalRateLimitStore(clock)
        self._denials = Denials()
        self._background = Background()
        self._lines: dict[Limit, list[_Request]] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._name = secrets.token_hex(6)
        self._numbers = count()

    @property
    def config(self) -> ResourceConfig:
        """What keys it uses, for ``acl_rules``."""
        return self._keys.config

    @property
    def degraded(self) -> bool:
        """Whether the server is away, and limits are kept in this process."""
        return self._reach.degraded

    async def try_acquire(
        self, key: PolicyKey, strategy: RateLimitStrategy, cost: int = 1
    ) -> RateLimitDecision:
        """Take ``cost`` permits, or none; one round trip at most.

        0 only looks, and a negative cost gives permits back. Never raises for a server that is
        away.
        """
        name, limit = self._named(key, cost), (key, strategy)
        refused = self._denials.refusal(limit, cost, self._clock())
        if refused is not None:
            return refused
        decision = None
        if not self._reach.lost(name, lambda: ((name,), _LOOK)):
            decision = await self._in_line(name, limit, cost)
        return await self._alone(limit, cost) if decision is None else decision

    async def try_acquire_all(
        self, *limits: tuple[PolicyKey, RateLimitStrategy, int]
    ) -> Sequence[RateLimitDecision]:
        """Take permits of several limits, ``(key, strategy, cost)`` each, or of none of them.

        One round trip. Where one decision says no, nothing was taken from any; the others say
        whether they would have allowed it. On a cluster all must be of one route.
        """
        names = [self._named(key, cost) for key, _, cost in limits]
        if len(set(names)) < len(names) or not names:
            raise ValidationError("try_acquire_all takes limits that differ", field="limits")
        if self._keys.clustered and len({slot_of_key(name.encode()) for name in names}) > 1:
            raise ValidationError(
                "limits that are taken together on a cluster must have the same route, so that "
                f"one node has them; not {', '.join(names)}",
                field="limits",
            )
        together = [(key, strategy) for key, strategy, _ in limits]
        costs = [cost for _, _, cost in limits]
        decisions = await self._ask(names, together, [costs])
        if decisions is None:
            return await self._all_alone(together, costs)
        return decisions[0]

    # -- asking the server -----------------------------------------------------

    async def _in_line(self, name: str, limit: Limit, cost: int) -> RateLimitDecision | None:
        """Ask for one limit; whoever comes meanwhile stands in line, and is served together."""
        loop = asyncio.get_running_loop()
        if loop is not self._loop:
            self._loop, self._lines = loop, {}
        lines, line = self._lines, self._lines.get(limit)
        if line is not None:
            request = _Request(cost, loop.create_future())
            line.append(request)
            return await request.decision
        lines[limit] = line = []
        try:
            decided = await self._ask([name], [limit], [[cost]])
        finally:
            if all(each.decision.done() for each in line):
                del lines[limit]
            else:
                serving = self._serve(name, limit, line, lines)
                self._background.spawn(serving, name="forze-rate-limit", wait=False)
        return None if decided is None else decided[0][0]

    async def _serve(
        self, name: str, limit: Limit, line: list[_Request], lines: dict[Limit, list[_Request]]
    ) -> None:
        """Ask for those in line, as many at once as are there, until there is nobody."""
        together: list[_Request] = []
        try:
            while line:
                together = [each for each in line[:_MOST_TOGETHER] if not each.decision.done()]
                del line[:_MOST_TOGETHER]
                if not together:
                    continue
                asked = await self._ask([name], [limit], [[each.cost] for each in together])
                if asked is None:
                    return
                for request, decisions in zip(together, asked, strict=True):
                    if not request.decision.done():
                        request.decision.set_result(decisions[0])
        finally:
            del lines[limit]
            for request in (*together, *line):
                if not request.decision.done():
                    request.decision.set_result(None)

    async def _ask(
        self, names: Sequence[str], limits: Sequence[Limit], requests: Sequence[Sequence[int]]
    ) -> list[list[RateLimitDecision]] | None:
        """The decisions of each request, by limit; None where the server could not be asked."""
        args: list[str | int | float] = [f"{self._name}{os.getpid():x}.{next(self._numbers):x}"]
        for _, strategy in limits:
            args += (strategy.capacity, strategy.interval_seconds * 1_000_000)
        for costs in requests:
            args += costs
        sent = self._clock()
        reply = await self._reach.ask((names, args), lambda: ((names[0],), _LOOK))
        if reply is None:
            return None
        decided = _decided(reply, len(limits))
        for costs, decisions in zip(requests, decided, strict=True):
            for limit, cost, decision in zip(limits, costs, decisions, strict=True):
                self._heard(limit, cost, decision, sent)
        return decided

    def _heard(self, limit: Limit, cost: int, decision: RateLimitDecision, sent: float) -> None:
        key, strategy = limit
        if not decision:
            self._denials.note(limit, cost, decision, sent, self._clock())
        elif cost < 0:
            self._denials.forget(limit)
        share = _share(strategy, self._replicas)
        self._local.follow(key, share, decision.remaining // self._replicas)

    # -- without the server ----------------------------------------------------

    async def _alone(self, limit: Limit, cost: int) -> RateLimitDecision:
        """The decision of this process."""
        key, strategy = limit
        if strategy.fail == "closed":
            return RateLimitDecision(False, 0, _ASK_AGAIN, degraded=True)
        decision = await self._local.try_acquire(key, _share(strategy, self._replicas), cost)
        return decision._replace(degraded=True)

    async def _all_alone(
        self, limits: Sequence[Limit], costs: Sequence[int]
    ) -> list[RateLimitDecision]:
        """The decisions of this process, for all limits or for none."""
        decisions = [
            await self._alone(limit, cost) for limit, cost in zip(limits, costs, strict=True)
        ]
        if not all(decisions):
            for limit, cost, decision in zip(limits, costs, decisions, strict=True):
                if decision:
                    await self._alone(limit, -cost)
        return decisions

    def _named(self, key: PolicyKey, cost: object) -> str:
        if type(cost) is not int:
            raise ValidationError(f"cost must be a whole number, not {cost!r}", field="cost")
        return self._keys.of(key)


class _Denial(NamedTuple):
    cost: int
    decision: RateLimitDecision
    heard: float
    until: float


class Denials:
    """What was denied lately, to be refused again without asking. Pure; the clock is an argument.

    Permits only become fewer while nobody gives any back, so what could not be had cannot be had
    before its time, nor can more of it.
    """

    def __init__(self) -> None:
        self._denials: dict[Limit, _Denial] = {}

    def note(
        self, limit: Limit, cost: int, decision: RateLimitDecision, sent: float, heard: float
    ) -> None:
        """``cost`` was denied in answer to a request sent at ``sent``."""
        if decision.retry_after is None:
            return
        until = sent + min(decision.retry_after.total_seconds(), _DENIED_SECONDS)
        self._denials.pop(limit, None)
        if len(self._denials) >= _MOST_DENIALS:
            del self._denials[next(iter(self._denials))]
        self._denials[limit] = _Denial(cost, decision, heard, until)

    def forget(self, limit: Limit) -> None:
        """Permits were given back."""
        self._denials.pop(limit, None)

    def refusal(self, limit: Limit, cost: int, now: float) -> RateLimitDecision | None:
        """The decision, if it is known to be a refusal."""
        denial = self._denials.get(limit)
        if denial is None or cost < denial.cost:
            return None
        if now >= denial.until:
            del self._denials[limit]
            return None
        _, strategy = limit
        decision = denial.decision
        wait = None
        if cost <= strategy.capacity and decision.retry_after is not None:
            more = (cost - denial.cost) * strategy.interval_seconds
            wait = _later(decision.retry_after, denial.heard + more, now)
        reset_after = _later(decision.reset_after, denial.heard, now)
        return decision._replace(retry_after=wait, reset_after=reset_after)

    def __len__(self) -> int:
        return len(self._denials)


def _later(wait: timedelta, heard: float, now: float) -> timedelta:
    """What is left ``now`` of a wait that was told at ``heard``, rounded up."""
    return wait + timedelta(microseconds=ceil((heard - now) * 1_000_000))


@lru_cache(maxsize=1024)
def _share(strategy: RateLimitStrategy, replicas: int) -> RateLimitStrategy:
    """The part of a limit that one of so many processes keeps."""
    if replicas == 1:
        return strategy
    burst = max(1, strategy.capacity // replicas)
    return replace(strategy, permits=strategy.permits / replicas, burst=burst)


def _decided(reply: Sequence[int], limits: int) -> list[list[RateLimitDecision]]:
    """The decisions of each request in a reply, by limit."""
    width = 1 + 3 * limits
    return [
        [
            _decision(bool(reply[at]), *reply[first : first + 3])
            for first in range(at + 1, at + width, 3)
        ]
        for at in range(0, len(reply), width)
    ]


def _decision(granted: bool, remaining: int, wait: int, full: int) -> RateLimitDecision:
    retry_after = wait * _MICROSECOND if wait > 0 else None
    return RateLimitDecision(granted or wait == 0, remaining, retry_after, full * _MICROSECOND)
