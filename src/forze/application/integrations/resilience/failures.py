"""What an exception says: about the dependency, about trying again. Pure."""

from __future__ import annotations

from socket import gaierror
from typing import Final

from forze.application.contracts.resilience import UNKNOWN_OUTCOMES, Failures
from forze.errors import (
    BackendError,
    BulkheadFull,
    CallTimeout,
    CircuitOpen,
    ConfigurationError,
    ConflictError,
    ForzeError,
    IdempotencyMismatch,
    NotFoundError,
    TenantRequired,
    Throttled,
    ValidationError,
)

REFUSALS: Final = (CircuitOpen, BulkheadFull, Throttled)
"""Said before anything was called; as an outcome they say nothing about what would have been."""

_NEVER: Final = (CircuitOpen, BulkheadFull)
"""Trying again is what they are there to prevent."""

_CALLERS_OWN: Final = (
    ConfigurationError,
    ValidationError,
    NotFoundError,
    ConflictError,
    IdempotencyMismatch,
    TenantRequired,
)


def meant(failures: Failures, error: Exception) -> bool:
    """Whether ``error`` is one of ``failures``."""
    if isinstance(failures, tuple | type):
        return isinstance(error, failures)
    return failures(error)


def is_failure(error: Exception) -> bool:
    """Whether a circuit breaker counts it against what was called, unless told otherwise.

    Everything but what is the caller's own doing: wrong arguments or wiring, what does not exist,
    conflicts.
    """
    return not isinstance(error, _CALLERS_OWN)


def outcome_of(error: Exception, failures: Failures | None) -> bool | None:
    """An exception as an outcome: True it works, False it fails, None it says neither."""
    if isinstance(error, CallTimeout) and error.at_deadline:
        return None  # the caller's haste
    if failures is not None and meant(failures, error):
        return False
    if isinstance(error, REFUSALS):
        return None
    return failures is not None or not is_failure(error)


def is_unknown(error: Exception) -> bool:
    """Whether the failure leaves open what became of the call."""
    if isinstance(error, BackendError):
        return error.outcome == "unknown"
    return isinstance(error, UNKNOWN_OUTCOMES)


def may_pass(error: Exception) -> bool:
    """Whether the same call may succeed later, and nothing forbids to make it again, but for
    what :func:`is_unknown` says."""
    if isinstance(error, ForzeError):
        return error.retryable
    return isinstance(error, ConnectionError | TimeoutError | gaierror)


def is_retried(error: Exception, failures: Failures | None, unknown: bool) -> bool:
    """Whether a retry follows this failure; ``unknown`` says that repeating does no harm."""
    if isinstance(error, _NEVER) or (isinstance(error, BackendError) and error.committed):
        return False
    if is_unknown(error) and not unknown:
        return False
    return may_pass(error) if failures is None else meant(failures, error)
