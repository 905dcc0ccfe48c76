"""What is raised: one error for Redis being away, the others for what cannot be accepted.

The latter say that nothing was stored or sent. Each is a ``forze.errors.ValidationError`` (or
``ConfigurationError``) and the built-in error that Python has for it.
"""

from __future__ import annotations

from typing import ClassVar

from fastapi import HTTPException
from redis import exceptions as driver

from forze.errors import BackendUnavailable, ConfigurationError, ValidationError, WriteOutcome


class CacheUnavailable(BackendUnavailable, driver.ConnectionError, HTTPException):
    """Redis cannot be used: not initialised, not reachable, not answering, or known to be away.

    It is a ``BackendUnavailable`` for code that knows forze, a ``redis.ConnectionError`` for
    code that knows redis-py, and an ``HTTPException`` for FastAPI, which answers 503 with a
    ``Retry-After`` and without the message. ``outcome`` is ``"unknown"`` where a write may
    have been made.
    """

    status_code: ClassVar[int] = 503  # type: ignore[misc, assignment]
    detail: ClassVar[str] = "The cache is not available."  # type: ignore[misc]
    headers: ClassVar[dict[str, str]] = {"Retry-After": "1"}  # type: ignore[misc]

    def __init__(self, message: str, *, outcome: WriteOutcome = "none") -> None:
        # One by one: each parent takes the arguments of the next for its own.
        Exception.__init__(self, message)
        self.message = message
        self.backend = "Redis"
        self.outcome = outcome
        self.still_running = None

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.message!r})"


class InvalidWiring(ConfigurationError, TypeError):
    """What a service or a manager is made with is of a wrong type: the client, the model."""


class InvalidName(ValidationError, TypeError, ValueError):
    """An identifier, params, a pattern or a part of the key cannot be made a key of."""


class InvalidTtl(ValidationError, TypeError, ValueError):
    """A time to live is not one: not above zero, or not a number."""


class ValueNotCacheable(ValidationError, TypeError, ValueError):
    """A value would not come back from the cache as it is; ``kind`` is its type."""

    def __init__(self, message: str, *, kind: type) -> None:
        super().__init__(message, field="value")
        self.kind = kind


class FactoryCycle(ValidationError, RuntimeError):
    """A factory asked, directly or through others, for the key that it is to make."""
