"""When to try again: the pause before the next attempt. Pure; clock and dice are arguments.

M. Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015 (the decorrelated form).
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta

from forze.application.contracts.resilience import RetryStrategy, seconds_of
from forze.application.integrations.resilience.failures import is_retried

Dice = Callable[[float, float], float]
"""Draws a number between two, such as ``random.uniform``."""


class Pauses:
    """The pauses between the attempts of one call, in seconds."""

    __slots__ = ("_attempts", "_base", "_last", "_most", "_strategy", "_uniform")

    def __init__(self, strategy: RetryStrategy, uniform: Dice) -> None:
        self._strategy = strategy
        self._uniform = uniform
        self._base = seconds_of(strategy.base_delay)
        self._most = seconds_of(strategy.max_delay)
        self._last = self._base
        self._attempts = 1

    def after(self, error: Exception, left: float | None) -> float | None:
        """How long to wait after this failure, or None where it is final. ``left`` is the time
        until the deadline, None without one: an attempt after it would be in vain."""
        strategy = self._strategy
        if self._attempts >= strategy.attempts:
            return None
        if not is_retried(error, strategy.retry_on, strategy.retry_unknown):
            return None
        pause = self._pause(getattr(error, "retry_after", None))
        if pause > self._most or (left is not None and pause >= left):
            return None
        self._attempts += 1
        return pause

    def _pause(self, told: object) -> float:
        drawn = min(self._most, self._uniform(self._base, self._last * 3))
        self._last = drawn
        return max(drawn, seconds_of(told)) if isinstance(told, timedelta | int | float) else drawn
