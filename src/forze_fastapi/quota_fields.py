"""``RateLimit-Policy`` and ``RateLimit`` as structured fields: pure.

draft-ietf-httpapi-ratelimit-headers-11: ``"api";q=10;w=60`` says what a policy allows, 10 in
60 seconds, and ``"api";r=3;t=12`` where this caller stands: 3 are left, and in 12 seconds all
are back (or, where the request was refused, what it asked for).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction
from math import ceil, lcm
from typing import Any, Final, NamedTuple

import http_sf

from forze.application.contracts.resilience import (
    RateLimitDecision,
    RateLimitStrategy,
    seconds_of,
)

POLICY: Final = "RateLimit-Policy"
STATE: Final = "RateLimit"
RETRY_AFTER: Final = "Retry-After"

_LARGEST: Final = 999_999_999_999_999
_FINEST: Final = 1_000_000


class Quota(NamedTuple):
    """A limit that a request met, and what was decided."""

    name: str
    strategy: RateLimitStrategy
    decision: RateLimitDecision


def fields_of(quotas: Sequence[Quota], *, legacy: bool = False) -> dict[str, str]:
    """The header fields of an answer to a request that met ``quotas``, the refusal last.

    ``legacy`` adds ``X-RateLimit-Limit``, ``-Remaining`` and ``-Reset`` (in seconds from now) of
    the limit that is closest.
    """
    policies = [(each.name, _policy(each.strategy)) for each in quotas]
    states = [
        (each.name, {"r": max(0, each.decision.remaining), "t": _reset(each.decision)})
        for each in quotas
    ]
    fields = {POLICY: _serialised(policies), STATE: _serialised(states)}
    if legacy:
        at = min(range(len(quotas)), key=lambda i: (quotas[i].decision.allowed, states[i][1]["r"]))
        fields["X-RateLimit-Limit"] = str(policies[at][1]["q"])
        fields["X-RateLimit-Remaining"] = str(states[at][1]["r"])
        fields["X-RateLimit-Reset"] = str(states[at][1]["t"])
    last = quotas[-1].decision
    if not last.allowed and last.retry_after is not None:
        fields[RETRY_AFTER] = str(max(1, ceil(last.retry_after.total_seconds())))
    return fields


def quota_of(strategy: RateLimitStrategy) -> tuple[int, int]:
    """How many in how many seconds, as the whole numbers that say the same rate."""
    permits, window = _simple(strategy.permits), _simple(seconds_of(strategy.per))
    times = lcm(permits.denominator, window.denominator)
    return min(int(permits * times), _LARGEST), max(1, min(int(window * times), _LARGEST))


def _simple(number: float) -> Fraction:
    """``number`` as the fraction that was meant, however small it is."""
    if number < 1:
        return 1 / _simple(1 / number)
    return Fraction(number).limit_denominator(_FINEST)


def _policy(strategy: RateLimitStrategy) -> dict[str, int]:
    quota, window = quota_of(strategy)
    return {"q": quota, "w": window}


def _reset(decision: RateLimitDecision) -> int:
    refused = decision.retry_after if not decision.allowed else None
    wait = decision.reset_after if refused is None else refused
    return min(max(0, ceil(wait.total_seconds())), _LARGEST)


def _serialised(items: Sequence[tuple[str, Mapping[str, int]]]) -> str:
    structure: list[Any] = [(name, dict(parameters)) for name, parameters in items]
    return http_sf.ser(structure)
