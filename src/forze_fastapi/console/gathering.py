"""What this process knows of itself, put together for one answer of the console.

Nothing is sent for it but a sign of life to each server, and a push to be timed where pushes are
followed. No server is waited for longer than :data:`PATIENCE_SECONDS`: its answer is shown the next
time.
"""

from __future__ import annotations

import asyncio
import os
import socket
from dataclasses import fields, is_dataclass
from datetime import datetime, timedelta
from math import ceil
from time import monotonic, time
from typing import Any, Final
from weakref import WeakKeyDictionary

from forze.application.contracts.health import HealthCheck
from forze.application.contracts.idempotency import IdempotencySpec
from forze.application.contracts.introspection import (
    ClaimView,
    HoldsClaims,
    HoldsLocks,
    KeepsLimits,
    LockView,
    Pushing,
)
from forze.application.contracts.resilience import BreakerState, BreakerView, ResilienceDepKey
from forze.application.execution import ExecutionContext
from forze.application.integrations.document.reading import (
    Reading,
    Values,
    hit_ratios,
    reads_by_tier,
    staleness_bound,
)
from forze.errors import ForzeError
from forze_fastapi.console.history import Cached, History, cached_in, history_of
from forze_fastapi.console.shapes import (
    CachedStatus,
    CacheSettings,
    CircuitStatus,
    ClaimStatus,
    HitRatios,
    IdempotencyStatus,
    Loads,
    LockStatus,
    Overview,
    PolicyStatus,
    Process,
    PushStatus,
    Reads,
    ServerStatus,
    Totals,
    Traffic,
)

PATIENCE_SECONDS: Final = 0.25
SILENT_SECONDS: Final = 1.0
"""A server that says nothing for so long is shown as away."""

MOST_ROWS: Final = 200
"""Locks, claims and circuits shown at most; of the first two the longest held."""

KEY_CHARS: Final = 8
"""An idempotency key is shown up to here, and never more than half of it: who knows one could ask
for its answer."""

_ERROR_CHARS: Final = 400


async def overview(ctx: ExecutionContext) -> Overview:
    """Everything the console shows at once."""
    history = history_of(ctx)
    servers = await _servers(ctx)
    ports, cached = ctx.ports(), cached_in(ctx)
    circuits, locks, claims = _circuits(ctx), _locks(ports), _claims(ports)
    return Overview(
        at=time(),
        process=Process(pid=os.getpid(), host=socket.gethostname(), since=history.began),
        documents=[_cached(each, history) for each in cached if each.name[0] == "document"],
        functions=[_cached(each, history) for each in cached if each.name[0] == "function"],
        servers=servers,
        pushes=_pushes(ctx),
        totals=Totals(circuits=len(circuits), locks=len(locks), claims=len(claims)),
        circuits=[
            CircuitStatus(
                policy=each.key[0],
                route=each.key[1],
                state=each.state.value,
                since=each.since,
                calls=each.calls,
                failures=each.failures,
                degraded=each.degraded,
            )
            for each in circuits[:MOST_ROWS]
        ],
        policies=_policies(ctx),
        limits_degraded=_limits_degraded(ctx),
        locks=[LockStatus(**each._asdict()) for each in locks[:MOST_ROWS]],
        claims=[
            ClaimStatus(**each._replace(key=_shortened(each.key))._asdict())
            for each in claims[:MOST_ROWS]
        ],
        idempotency=[
            IdempotencyStatus(name=spec.name, counts=port.stats())
            for spec, port in ports
            if isinstance(spec, IdempotencySpec)
        ],
    )


# -- caches --------------------------------------------------------------------


def _cached(cached: Cached, history: History) -> CachedStatus:
    spec, reading = cached.spec, cached.reading()
    reads, tier = reads_by_tier(reading), reading.tier
    seconds, lately = history.minute(cached.name, reads)
    return CachedStatus(
        name=cached.name[1],
        tenant_aware=cached.tenant_aware,
        settings=CacheSettings(
            cache=spec.name,
            ttl_seconds=spec.ttl.total_seconds(),
            sliding_seconds=None if spec.sliding_ttl is None else spec.sliding_ttl.total_seconds(),
            l1_ttl_seconds=None if spec.l1 is None else spec.l1.ttl.total_seconds(),
            early_refresh=spec.early_refresh_beta is not None,
            age_based=spec.age_ttl is not None,
        ),
        since_start=_traffic(None, reads),
        minute=_traffic(round(seconds, 1), lately),
        series=history.series(cached.name),
        loads=_loads(list(cached.coordinator.filler.loads), reading),
        counts=reading.stats,
        l1=reading.l1,
        staleness_bound_seconds=None if tier is None else staleness_bound(spec, tier, monotonic()),
    )


def _traffic(seconds: float | None, reads: Values) -> Traffic:
    ratios, every = hit_ratios(reads), sum(reads.values())
    return Traffic(
        seconds=seconds,
        reads=Reads.model_validate(reads),
        hit_ratios=HitRatios(
            l1=ratios.get("l1"),
            cache=ratios.get("cache"),
            all=1 - reads["source"] / every if every else None,
        ),
    )


def _loads(last: list[float], reading: Reading) -> Loads:
    last.sort()
    stats = reading.stats
    return Loads(
        of=len(last),
        mean_seconds=stats.load_seconds / stats.source_reads if stats.source_reads else None,
        p50_seconds=_percentile(last, 0.5),
        p99_seconds=_percentile(last, 0.99),
    )


def _percentile(ascending: list[float], share: float) -> float | None:
    """The nearest rank."""
    return ascending[max(0, ceil(share * len(ascending)) - 1)] if ascending else None


# -- servers -------------------------------------------------------------------


class _Asked:
    """One server that was asked for a sign of life, and what it said last."""

    def __init__(self, check: HealthCheck) -> None:
        self._check = check
        self.task: asyncio.Task[ServerStatus] | None = None
        self.asked_at = 0.0
        self.last = ServerStatus(
            name=check.name, ok=None, required=check.required, error=None, facts={}
        )

    def ask(self, ctx: ExecutionContext) -> asyncio.Task[ServerStatus]:
        """Ask, unless the last question is still open."""
        if self.task is None:
            self.asked_at = monotonic()
            name = f"forze-console-health {self._check.name}"
            self.task = ctx.spawn(_sign_of_life(self._check), name=name, wait=False)
        return self.task

    def status(self) -> ServerStatus:
        """What it said, or that it has said nothing for a while."""
        waited = monotonic() - self.asked_at
        if self.task is not None and self.task.done():
            self.last, self.task = self.task.result(), None
        elif waited > SILENT_SECONDS:
            return self.last.model_copy(
                update={"ok": False, "error": f"no answer for {waited:.0f} s"}
            )
        return self.last


_asked: WeakKeyDictionary[ExecutionContext, dict[int, _Asked]] = WeakKeyDictionary()


async def _sign_of_life(check: HealthCheck) -> ServerStatus:
    ok, error, facts = False, None, {}
    try:
        health = await check.ask()
        ok = health is None or health.ok
        error = None if health is None else health.error
        facts = _facts(health)
    except ForzeError as failure:
        error = str(failure)
    except Exception as failure:  # a check of the application's own may raise anything
        error = type(failure).__name__
    return ServerStatus(
        name=check.name,
        ok=ok,
        required=check.required,
        error=None if error is None else error[:_ERROR_CHARS],
        facts=facts,
    )


def _facts(health: object) -> dict[str, str | float | bool]:
    """What more a client says than that it is well: durations in seconds, moments since the
    epoch; nodes of a cluster are left out."""
    if not is_dataclass(health):
        return {}
    found = {each.name: getattr(health, each.name) for each in fields(health)}
    return {
        name: told
        for name, value in found.items()
        if name not in ("ok", "error") and (told := _told(value)) is not None
    }


def _told(value: object) -> str | float | bool | None:
    match value:
        case timedelta():
            return value.total_seconds()
        case datetime():
            return value.timestamp()
        case str() | float() | int():
            return value
    return None


async def _servers(ctx: ExecutionContext) -> list[ServerStatus]:
    known = _asked.setdefault(ctx, {})
    asked = [known.setdefault(id(check), _Asked(check)) for _, check in ctx.registered(HealthCheck)]
    if asked:
        await asyncio.wait({each.ask(ctx) for each in asked}, timeout=PATIENCE_SECONDS)
    return [each.status() for each in asked]


def _pushes(ctx: ExecutionContext) -> list[PushStatus]:
    found = []
    for name, client in ctx.registered(Pushing):  # type: ignore[type-abstract] # looked for by what it can do
        took = client.push_latency()
        if took is not None:
            found.append(PushStatus(name=name, seconds=took.total_seconds()))
    return found


# -- resilience ----------------------------------------------------------------


def _circuits(ctx: ExecutionContext) -> list[BreakerView]:
    """Those that let not everything through first."""
    if not ctx.exists(ResilienceDepKey):
        return []
    return sorted(ctx.resilience.breakers(), key=lambda each: each.state is BreakerState.CLOSED)


def _policies(ctx: ExecutionContext) -> list[PolicyStatus]:
    if not ctx.exists(ResilienceDepKey):
        return []
    stats = ctx.resilience.stats()
    return [
        PolicyStatus(
            name=name,
            strategies=[
                each
                for each in ("bulkhead", "rate_limit", "retry", "circuit_breaker", "timeout")
                if getattr(policy, each) is not None
            ],
            counts=stats[name]._asdict() if name in stats else {},
        )
        for name, policy in ctx.resilience.policies.items()
    ]


def _limits_degraded(ctx: ExecutionContext) -> bool:
    if not ctx.exists(ResilienceDepKey):
        return False
    port = ctx.resilience
    return isinstance(port, KeepsLimits) and port.limits_degraded


# -- locks and claims ----------------------------------------------------------


def _locks(ports: list[tuple[Any, Any]]) -> list[LockView]:
    found = [each for _, port in ports if isinstance(port, HoldsLocks) for each in port.locks()]
    return sorted(found, key=lambda each: each.since)


def _claims(ports: list[tuple[Any, Any]]) -> list[ClaimView]:
    found = [
        each for _, port in ports if isinstance(port, HoldsClaims) for each in port.open_claims()
    ]
    return sorted(found, key=lambda each: each.since)


def _shortened(key: str) -> str:
    return f"{key[: min(KEY_CHARS, len(key) // 2)]}…"
