"""Calls under policies: the machines that decide (pure), the stores of one process, the executor.

``breaker``, ``limiter``, ``budget``, ``retry`` and ``failures`` decide and know neither clock nor
task; ``bulkhead`` lets in; ``local`` keeps circuits and buckets in this process; ``executor`` puts
the strategies of a policy around a call, and ``function`` around a function.
"""

from forze.application.integrations.resilience.function import resilient
from forze.application.integrations.resilience.local import (
    LocalCircuitBreakerStore,
    LocalRateLimitStore,
)

__all__ = ["LocalCircuitBreakerStore", "LocalRateLimitStore", "resilient"]
