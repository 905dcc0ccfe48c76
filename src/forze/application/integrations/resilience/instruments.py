"""Metrics of policies: what became of calls and where circuits stand, read when somebody collects.

As with the caches' metrics: one set of instruments per meter provider, summed over the open scopes
by policy, and the counts of those that were left stay in the sums.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from threading import Lock
from typing import Final
from weakref import WeakKeyDictionary

from opentelemetry import metrics

from forze.application.contracts.resilience import PolicyStats, ResiliencePort

POLICY: Final = "forze.policy"
Counts = Counter[tuple[str, str]]
"""Numbers by policy and by the value of the metric's attribute."""


def _calls(stats: PolicyStats) -> Mapping[str, int]:
    return {
        "succeeded": stats.succeeded,
        "failed": stats.failed,
        "cancelled": stats.cancelled,
        "bulkhead": stats.refused_by_bulkhead,
        "rate_limit": stats.refused_by_rate_limit,
        "circuit_breaker": stats.refused_by_breaker,
    }


def _retries(stats: PolicyStats) -> Mapping[str, int]:
    return {"made": stats.retries, "over_budget": stats.over_budget}


def _timeouts(stats: PolicyStats) -> Mapping[str, int]:
    return {"": stats.timeouts}


COUNTERS: Final = (
    ("forze.resilience.calls", "{call}", "Calls under a policy, by what became of them", _calls),
    ("forze.resilience.retries", "{retry}", "Retries, made or not allowed any more", _retries),
    ("forze.resilience.timeouts", "{attempt}", "Attempts that were cut off", _timeouts),
)


class CallInstruments:
    """The instruments of one provider, and the ports they read."""

    def __init__(self, meter: metrics.Meter) -> None:
        self._lock = Lock()
        self._open: list[ResiliencePort] = []
        self._left: dict[str, Counts] = {name: Counter() for name, *_ in COUNTERS}
        for name, unit, says, read in COUNTERS:
            meter.create_observable_counter(name, [self._observing(name, read)], unit, says)
        meter.create_observable_up_down_counter(
            "forze.resilience.circuits", [self._observe_circuits], "{circuit}",
            "Circuits that this process has met, by their state",
        )  # fmt: skip

    def open(self, port: ResiliencePort) -> None:
        """Read this port."""
        with self._lock:
            self._open.append(port)

    def close(self, port: ResiliencePort) -> None:
        """Read it no more; its counts stay in the sums."""
        with self._lock:
            self._open.remove(port)
            for name, _, _, read in COUNTERS:
                _add(self._left[name], port, read)

    def _observing(
        self, name: str, read: Callable[[PolicyStats], Mapping[str, int]]
    ) -> Callable[[metrics.CallbackOptions], list[metrics.Observation]]:
        def observe(_: metrics.CallbackOptions) -> list[metrics.Observation]:
            with self._lock:
                total = Counter(self._left[name])
                for port in self._open:
                    _add(total, port, read)
            return _observations(total, "outcome")

        return observe

    def _observe_circuits(self, _: metrics.CallbackOptions) -> list[metrics.Observation]:
        with self._lock:
            ports = list(self._open)
        views = [view for port in ports for view in port.breakers()]
        return _observations(Counter((view.key[0], str(view.state)) for view in views), "state")


def _add(
    total: Counts, port: ResiliencePort, read: Callable[[PolicyStats], Mapping[str, int]]
) -> None:
    for policy, stats in port.stats().items():
        for value, number in read(stats).items():
            total[policy, value] += number


def _observations(total: Counts, attribute: str) -> list[metrics.Observation]:
    return [
        metrics.Observation(number, {POLICY: policy, **({attribute: value} if value else {})})
        for (policy, value), number in total.items()
    ]


_made_lock: Final = Lock()
_made: WeakKeyDictionary[metrics.MeterProvider, CallInstruments] = WeakKeyDictionary()
_made_of_global: list[CallInstruments] = []


def call_instruments_of(provider: metrics.MeterProvider | None) -> CallInstruments:
    """The instruments of a provider, the same every time; None is the process's own."""
    with _made_lock:
        if provider is None or provider is metrics.get_meter_provider():
            if not _made_of_global:
                _made_of_global.append(CallInstruments(metrics.get_meter("forze")))
            return _made_of_global[0]
        made = _made.get(provider)
        if made is None:
            made = _made[provider] = CallInstruments(provider.get_meter("forze"))
        return made
