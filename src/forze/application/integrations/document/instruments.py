"""Metrics: one set of instruments for each meter provider, read when somebody collects.

Counts and sizes are taken from the counters the cache keeps anyway, at collection, in the
collector's thread: between two collections nothing is paid for them. Only the two durations
are recorded as they happen, once per query sent to the source and once per probe of the pushes.

An instrument can be registered once with a provider, and never be taken back. So one set
serves every scope of the process: it sums over the open ones by document name, and keeps the
counts of those that were left, because a sum that only grows must not shrink.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from threading import Lock
from time import monotonic
from typing import TYPE_CHECKING, Final, Literal, NamedTuple
from weakref import WeakKeyDictionary, WeakSet

from opentelemetry import metrics

from forze.application.integrations.document.reading import (
    Reading,
    Values,
    hit_ratios,
    reads_by_tier,
    staleness_bound,
)

if TYPE_CHECKING:
    from forze.application.integrations.document.telemetry import Telemetry

DOCUMENT: Final = "forze.document"
READS: Final = "forze.cache.reads"
HIT_RATIO: Final = "forze.cache.hit_ratio"
STALENESS: Final = "forze.cache.staleness.bound"
LOAD: Final = "forze.cache.load.duration"
PUSH: Final = "forze.cache.push.latency"
_SECONDS: Final = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25,
                   0.5, 1.0, 2.5, 5.0)  # fmt: skip


class Metric(NamedTuple):
    """A number that is read when it is asked for. A count only grows, a size can shrink."""

    kind: Literal["count", "size"]
    name: str
    unit: str
    attribute: str
    says: str
    read: Callable[[Reading], Values]


def _fills(now: Reading) -> Values:
    stats = now.stats
    return {
        "stored": stats.fills,
        "refused": stats.rejected_fills,
        "failed": stats.fill_failures,
        "uncacheable": stats.uncacheable,
    }


def _refreshes(now: Reading) -> Values:
    return {"done": now.stats.refreshes, "failed": now.stats.refresh_failures}


def _invalidations(now: Reading) -> Values:
    stats = now.stats
    everywhere = {"write": stats.intents, "undecodable": stats.undecodable}
    return everywhere if now.l1 is None else {
        **everywhere, "push": stats.pushes, "flush": stats.flushes
    }  # fmt: skip


def _failures(now: Reading) -> Values:
    stats = now.stats
    return {
        "read": stats.read_failures,
        "intend": stats.intent_failures,
        "renew": stats.lapsed_intents,
    }


METRICS: Final = (
    Metric("count", READS, "{read}", "tier", "Reads, by what answered them", reads_by_tier),
    Metric("count", "forze.cache.fills", "{fill}", "outcome",
           "Loaded documents, by whether the cache stored them", _fills),
    Metric("count", "forze.cache.refreshes", "{refresh}", "outcome",
           "Early refreshes of entries", _refreshes),
    Metric("count", "forze.cache.invalidations", "{invalidation}", "cause",
           "Entries that had to go, by why", _invalidations),
    Metric("count", "forze.cache.failures", "{call}", "operation",
           "Calls that the cache did not answer in time", _failures),
    Metric("count", "forze.cache.l1.evictions", "{entry}", "",
           "Entries of the in-process tier that went for room",
           lambda now: {} if now.l1 is None else {"": now.l1.evictions}),
    Metric("size", "forze.cache.l1.size", "{entry}", "",
           "Entries in the in-process tier",
           lambda now: {} if now.l1 is None else {"": now.l1.size}),
    Metric("size", "forze.cache.l1.capacity", "{entry}", "",
           "Room for entries in the in-process tier",
           lambda now: {} if now.l1 is None else {"": now.l1.capacity}),
    Metric("size", "forze.cache.journal.size", "{key}", "",
           "Keys whose invalidation the cache has not been told of yet",
           lambda now: {"": now.stats.journal}),
)  # fmt: skip


class Instruments:
    """The instruments of one provider, and the scopes they read."""

    def __init__(self, meter: metrics.Meter) -> None:
        self._lock = Lock()
        self._open: WeakSet[Telemetry] = WeakSet()
        self._left: dict[str, Counter[tuple[str, str]]] = {each.name: Counter() for each in METRICS}
        for metric in METRICS:
            count = metric.kind == "count"
            make = meter.create_observable_counter if count else (
                meter.create_observable_up_down_counter
            )  # fmt: skip
            make(metric.name, [self._observing(metric)], metric.unit, metric.says)
        meter.create_observable_gauge(
            HIT_RATIO, [self._observe_ratios], "1", "Part of the reads a tier answered"
        )
        meter.create_observable_gauge(
            STALENESS, [self._observe_bounds], "s", "Bound of staleness in force in-process"
        )
        self._loads = meter.create_histogram(
            LOAD, "s", "Queries sent to the source",
            explicit_bucket_boundaries_advisory=_SECONDS,
        )  # fmt: skip
        self._pushes = meter.create_histogram(
            PUSH, "s", "From a change to the arrival of its push",
            explicit_bucket_boundaries_advisory=_SECONDS,
        )  # fmt: skip

    def open(self, telemetry: Telemetry) -> None:
        """Read this scope, for as long as it is there."""
        with self._lock:
            self._open.add(telemetry)

    def close(self, telemetry: Telemetry) -> None:
        """Read it no more; its counts stay in the sums."""
        with self._lock:
            if telemetry in self._open:
                self._open.discard(telemetry)
                for metric in METRICS:
                    if metric.kind == "count":
                        _add(self._left[metric.name], metric, telemetry)

    def loads_of(self, name: str) -> Callable[[float], None]:
        """Where the seconds of each query for documents of this name go."""
        record, attributes = self._loads.record, {DOCUMENT: name}
        return lambda seconds: record(seconds, attributes)

    def pushed_within(self, seconds: float) -> None:
        """A push took this long."""
        self._pushes.record(seconds)

    def _observing(
        self, metric: Metric
    ) -> Callable[[metrics.CallbackOptions], Iterable[metrics.Observation]]:
        def observe(_: metrics.CallbackOptions) -> list[metrics.Observation]:
            return [
                metrics.Observation(number, _attributes(name, metric.attribute, value))
                for (name, value), number in self._sum(metric).items()
            ]

        return observe

    def _observe_ratios(self, _: metrics.CallbackOptions) -> list[metrics.Observation]:
        """Comes once with each collection, so those who wait for one hear of it here."""
        with self._lock:
            scopes = list(self._open)
        for each in scopes:
            each.collected()
        reads: dict[str, dict[str, float]] = {}
        for (name, value), number in self._sum(METRICS[0]).items():
            reads.setdefault(name, {})[value] = number
        return [
            metrics.Observation(ratio, _attributes(name, "tier", value))
            for name, values in reads.items()
            for value, ratio in hit_ratios(values).items()
        ]

    def _observe_bounds(self, _: metrics.CallbackOptions) -> list[metrics.Observation]:
        """The longest, where several scopes have a tier for one document name."""
        with self._lock:
            watched = [each for scope in self._open for each in tuple(scope.watched)]
        bounds: dict[str, float] = {}
        for name, spec, coordinator in watched:
            if coordinator.tier is not None:
                bound = staleness_bound(spec, coordinator.tier, monotonic())
                bounds[name] = max(bound, bounds.get(name, 0.0))
        return [metrics.Observation(bound, {DOCUMENT: name}) for name, bound in bounds.items()]

    def _sum(self, metric: Metric) -> Counter[tuple[str, str]]:
        with self._lock:
            total = Counter(self._left[metric.name])
            for telemetry in self._open:
                _add(total, metric, telemetry)
            return total


def _add(total: Counter[tuple[str, str]], metric: Metric, telemetry: Telemetry) -> None:
    for name, spec, coordinator in tuple(telemetry.watched):
        for value, number in metric.read(Reading.of(spec, coordinator)).items():
            total[name, value] += number  # type: ignore[assignment]


def _attributes(name: str, attribute: str, value: str) -> dict[str, str]:
    return {DOCUMENT: name, attribute: value} if attribute else {DOCUMENT: name}


_made_lock: Final = Lock()
_made: WeakKeyDictionary[metrics.MeterProvider, Instruments] = WeakKeyDictionary()
_made_of_global: list[Instruments] = []


def instruments_of(provider: metrics.MeterProvider | None) -> Instruments:
    """The instruments of a provider, the same every time; None is the process's own, now or
    once it is set."""
    with _made_lock:
        if provider is None or provider is metrics.get_meter_provider():
            if not _made_of_global:
                _made_of_global.append(Instruments(metrics.get_meter("forze")))
            return _made_of_global[0]
        made = _made.get(provider)
        if made is None:
            made = _made[provider] = Instruments(provider.get_meter("forze"))
        return made
