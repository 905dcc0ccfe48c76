"""One token bucket, as the generic cell rate algorithm. Pure; the clock is an argument.

Kept is one number: the time at which the bucket would be full again (the cell's theoretical
arrival time). A bucket whose time has come is full, and need not be kept at all. Times are
microseconds on one clock, as in the script of a shared store, and equal within half of one.

ITU-T I.371, 2004, annex A (GCRA, equal to a continuous leaky bucket).
"""

from __future__ import annotations

from datetime import timedelta
from math import ceil
from typing import Final, NamedTuple

from forze.application.contracts.resilience import RateLimitDecision, RateLimitStrategy

MICROSECONDS: Final = 1_000_000
_HALF: Final = 0.5
_STEP: Final = 1.0 * MICROSECONDS
"""How far beyond one full burst a bucket may owe before that is taken for a step of the clock."""


class Bucket(NamedTuple):
    """What a strategy means, in microseconds."""

    interval: float
    """Until one more permit is there."""
    depth: float
    """From empty to full."""

    @classmethod
    def of(cls, strategy: RateLimitStrategy) -> Bucket:
        """The bucket of a strategy."""
        interval = strategy.interval_seconds * MICROSECONDS
        return cls(interval, interval * strategy.capacity)


def take(
    bucket: Bucket, full_at: float | None, now: float, cost: int = 1
) -> tuple[RateLimitDecision, float | None]:
    """The decision, and what is to be kept now; None where the bucket is full.

    A refusal gives back what was kept. 0 only looks, a negative ``cost`` gives permits back. A
    clock that stepped back makes nobody wait for longer than an empty bucket takes to fill.
    """
    interval, depth = bucket
    owed = max(now, now if full_at is None else full_at)
    if owed > now + depth:
        stepped = owed > now + depth + _STEP
        owed = now + depth
        full_at = owed if stepped else full_at
    after = max(now, owed + interval * cost)
    late = after - depth - now
    if cost > 0 and late > _HALF:
        never = interval * cost > depth + _HALF
        wait = None if never else _rounded_up(late)
        return _decision(False, bucket, owed, now, wait), full_at
    kept = after if cost else full_at
    return _decision(True, bucket, after, now, None), kept if after > now else None


def _decision(
    allowed: bool, bucket: Bucket, full_at: float, now: float, wait: timedelta | None
) -> RateLimitDecision:
    left = int((now + bucket.depth - full_at + _HALF) / bucket.interval)
    return RateLimitDecision(allowed, left, wait, _rounded_up(full_at - now))


def _rounded_up(microseconds: float) -> timedelta:
    """To the whole one, but not for what the sum of two large floats is off by."""
    return timedelta(microseconds=ceil(round(microseconds, 3)))
