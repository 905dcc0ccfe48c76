"""Registers the policies: what ``ctx.resilience`` is made of."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from forze.application.contracts.configs import configured
from forze.application.contracts.deps import Resolver
from forze.application.contracts.resilience import (
    STRATEGIES,
    CircuitBreakerStore,
    RateLimitStore,
    ResilienceDepKey,
    ResiliencePolicy,
    ResiliencePort,
)
from forze.application.execution.deps import Deps
from forze.application.integrations.document.telemetry import telemetry_of
from forze.application.integrations.resilience.executor import Resilience
from forze.errors import ConfigurationError


class ResilienceDepsModule:
    """Policies by name; a dict with the same keys is accepted wherever a class is.

    Without stores the state of circuits and buckets is this process's; with those of
    ``forze_redis`` it is the fleet's. Errors in the policies are raised here.
    """

    def __init__(
        self,
        policies: Mapping[str, ResiliencePolicy | Mapping[str, Any]] | None = None,
        *,
        breaker_store: CircuitBreakerStore | None = None,
        rate_limit_store: RateLimitStore | None = None,
    ) -> None:
        if not isinstance(policies, Mapping | None):
            raise ConfigurationError(
                f"policies= takes policies by name, not {policies!r}", name="policies"
            )
        _check_store("breaker_store", breaker_store, "admit")
        _check_store("rate_limit_store", rate_limit_store, "try_acquire")
        self._policies = {name: _policy(name, each) for name, each in (policies or {}).items()}
        self._stores = breaker_store, rate_limit_store

    def __call__(self) -> Deps:
        """The registration of one runtime."""
        return Deps.plain({ResilienceDepKey: self._open})

    def _open(self, resolver: Resolver) -> ResiliencePort:
        port = Resilience(self._policies, *self._stores)
        telemetry = telemetry_of(resolver)
        if telemetry is not None:
            from forze.application.integrations.resilience.instruments import call_instruments_of

            instruments = call_instruments_of(telemetry.meter_provider)
            instruments.open(port)
            telemetry.on_close(lambda: instruments.close(port))
        return port


def _check_store(field: str, store: object, verb: str) -> None:
    if store is not None and (isinstance(store, type) or not hasattr(store, verb)):
        raise ConfigurationError(f"{field}= takes a store with {verb}(), not {store!r}", name=field)


def _policy(name: object, value: ResiliencePolicy | Mapping[str, Any]) -> ResiliencePolicy:
    if not isinstance(name, str) or not name:
        raise ConfigurationError(
            f"policies= takes policies by name; {name!r} is no name", name="policies"
        )
    if isinstance(value, Mapping):
        value = {
            field: configured(STRATEGIES[field], each, f"policy {name!r}, {field}")
            if field in STRATEGIES and isinstance(each, Mapping)
            else each
            for field, each in value.items()
        }
    return configured(ResiliencePolicy, value, f"policy {name!r}")
