"""One document kind as it stands: what its counters say, and what follows from them. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from math import isinf
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from forze.application.contracts.cache import CacheSpec
from forze.application.integrations.document.l1.store import L1Stats
from forze.application.integrations.document.l1.tier import Tier
from forze.application.integrations.document.stats import CacheStats

if TYPE_CHECKING:
    from forze.application.integrations.document.coordinator import Coordinator

Values: TypeAlias = Mapping[str, float]
"""Numbers by what they are of; ``""`` where there is one."""


class Reading(NamedTuple):
    """One document kind as it stands."""

    stats: CacheStats
    spec: CacheSpec
    tier: Tier[Any] | None
    l1: L1Stats | None

    @classmethod
    def of(cls, spec: CacheSpec, coordinator: Coordinator[Any]) -> Reading:
        """What the counters of a coordinator say now."""
        tier = coordinator.tier
        l1 = None if tier is None else tier.store.stats()
        return cls(coordinator.stats(), spec, tier, l1)


def reads_by_tier(now: Reading) -> Values:
    """How many reads each tier answered."""
    stats = now.stats
    local = {} if now.l1 is None else {"l1": now.l1.hits}
    loaded = stats.misses + stats.bypasses
    return {**local, "cache": stats.hits, "shared": stats.collapsed, "source": loaded}


def hit_ratios(reads: Values) -> Values:
    """Of the reads that came to a tier, the part it answered; nothing where none came."""
    all_reads = sum(reads.values())
    local = reads.get("l1")
    further = all_reads - (local or 0)
    ratios = {}
    if local is not None and all_reads:
        ratios["l1"] = local / all_reads
    if further:
        ratios["cache"] = reads["cache"] / further
    return ratios


def staleness_bound(spec: CacheSpec, tier: Tier[Any], now: float) -> float:
    """Seconds that an entry served by the tier can be older than the newest acknowledged write
    of another process; 0.0 while the tier serves nothing."""
    assert spec.l1 is not None
    if now >= tier.trusted_until:
        return 0.0
    lifetime = spec.l1.ttl.total_seconds()
    return lifetime if isinf(tier.bound_seconds) else min(lifetime, tier.bound_seconds)
