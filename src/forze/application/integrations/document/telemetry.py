"""Telemetry of cached documents: who is watched, and for how long.

OpenTelemetry is told what each document's cache does, where ``opentelemetry-api`` is installed
and nobody switched it off. What is told is in ``instruments`` (metrics) and ``spans``; only
these two import OpenTelemetry, and they are imported only when a scope that uses it is entered.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Final

from forze.application.contracts.deps import DepKey, Resolver
from forze.errors import ConfigurationError

if TYPE_CHECKING:
    from forze.application.contracts.cache import CacheSpec
    from forze.application.integrations.document.coordinator import Coordinator
    from forze.application.integrations.document.instruments import Instruments
    from forze.application.integrations.document.spans import Tracing

SWITCH: Final = "FORZE_TELEMETRY"
_OFF: Final = frozenset({"off", "0", "false", "no"})


@dataclass(frozen=True, slots=True, kw_only=True)
class TelemetrySpec:
    """OpenTelemetry is wanted, from these providers; None is the one set for the process.

    A runtime given one raises ``ConfigurationError`` where ``opentelemetry-api`` is missing.
    """

    meter_provider: Any = None
    tracer_provider: Any = None


class Telemetry:
    """What one scope tells OpenTelemetry. Instruments hold it weakly."""

    def __init__(
        self, instruments: Instruments, tracing: Tracing, meter_provider: Any = None
    ) -> None:
        self._instruments = instruments
        self._tracing = tracing
        self.meter_provider = meter_provider
        """None is the one set for the process."""
        self._listeners: list[Callable[[], None]] = []
        self._closing: list[Callable[[], None]] = []
        self.watched: list[tuple[str, CacheSpec, Coordinator[Any, Any]]] = []
        """Each document kind: its name, what is wanted of its cache, and who reads through it."""
        instruments.open(self)

    def watch(self, name: str, spec: CacheSpec, coordinator: Coordinator[Any, Any]) -> None:
        """Tell of this document kind from now on."""
        self.watched.append((name, spec, coordinator))
        coordinator.filler.on_load = self._instruments.loads_of(name)
        coordinator.trace(self._tracing.of(name))

    def on_collection(self, listener: Callable[[], None]) -> None:
        """Call back whenever metrics are collected, in whichever thread does it."""
        self._listeners.append(listener)

    def collected(self) -> None:
        """Metrics are being collected."""
        for listener in tuple(self._listeners):
            listener()

    def on_close(self, listener: Callable[[], None]) -> None:
        """Call back when the scope was left."""
        self._closing.append(listener)

    def pushed_within(self, seconds: float) -> None:
        """A push took this long from the change that caused it."""
        self._instruments.pushed_within(seconds)

    def close(self) -> None:
        """The scope was left: its counts stay in the sums, everything else goes."""
        self._listeners.clear()
        self._instruments.close(self)
        while self._closing:
            self._closing.pop()()


TelemetryDepKey: DepKey[Telemetry] = DepKey("telemetry")


def telemetry_of(resolver: Resolver) -> Telemetry | None:
    """The scope's telemetry, None where there is none."""
    try:
        return resolver.provide(TelemetryDepKey)
    except ConfigurationError:
        return None


def open_telemetry(wanted: TelemetrySpec | bool) -> Telemetry | None:
    """Telemetry for a scope; None where it is switched off, or ``opentelemetry-api`` missing."""
    if wanted is False or os.environ.get(SWITCH, "").strip().lower() in _OFF:
        return None
    if not _installed():
        if wanted is True:
            return None
        raise ConfigurationError(
            "telemetry=TelemetrySpec(...) needs opentelemetry-api; install forze[otel], or leave "
            "telemetry= out to have it only where that is installed",
            name="telemetry",
        )
    from forze.application.integrations.document.instruments import instruments_of
    from forze.application.integrations.document.spans import Tracing

    spec = TelemetrySpec() if wanted is True else wanted
    provider = spec.meter_provider
    return Telemetry(instruments_of(provider), Tracing(spec.tracer_provider), provider)


def _installed() -> bool:
    try:
        return find_spec("opentelemetry.metrics") is not None
    except ModuleNotFoundError:
        return False
