"""What the console's API answers. Durations are in seconds, moments in seconds since the epoch."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field

from forze.application.contracts.idempotency import IdempotencyStats
from forze.application.integrations.document.l1.store import L1Stats
from forze.application.integrations.document.stats import CacheStats


class Shape(BaseModel):
    """One of the console's answers, or a part of one."""

    model_config = ConfigDict(frozen=True)


class Reads(Shape):
    """Reads by what answered them. ``l1`` is None for a kind without one."""

    l1: int | None = None
    cache: int
    shared: int = Field(description="By another caller's flight.")
    source: int


class HitRatios(Shape):
    """Of the reads that came to a tier the part it answered; None where none came."""

    l1: float | None
    cache: float | None
    all: float | None = Field(description="The part that did not reach the source.")


class Traffic(Shape):
    """The reads of the last ``seconds``, or (None) of all the time."""

    seconds: float | None
    reads: Reads
    hit_ratios: HitRatios


class Series(Shape):
    """Reads per second, second by second, the newest last."""

    l1: tuple[float, ...]
    cache: tuple[float, ...] = Field(description="Those of another caller's flight included.")
    source: tuple[float, ...]


class Loads(Shape):
    """What queries sent to the source took; the percentiles are those of the last ``of``."""

    of: int
    mean_seconds: float | None
    p50_seconds: float | None
    p99_seconds: float | None


class CacheSettings(Shape):
    """What is wanted of a kind's cache."""

    cache: str
    ttl_seconds: float
    sliding_seconds: float | None
    l1_ttl_seconds: float | None
    early_refresh: bool
    age_based: bool


class CachedStatus(Shape):
    """One document kind, or one function, that is read through a cache."""

    name: str
    tenant_aware: bool = Field(description="Whether one of its documents takes a tenant to find.")
    settings: CacheSettings
    since_start: Traffic
    minute: Traffic
    series: Series
    loads: Loads
    counts: CacheStats
    l1: L1Stats | None
    staleness_bound_seconds: float | None = Field(
        description="How much older than another process's newest acknowledged write the L1 may "
        "serve; None without one."
    )


class ServerStatus(Shape):
    """A server that this process talks to. ``facts`` is what its client says of it."""

    name: str
    ok: bool | None = Field(description="None: it was asked, and has not answered yet.")
    required: bool
    error: str | None
    facts: dict[str, Any]


class PushStatus(Shape):
    """How long the pushes of one client's server take."""

    name: str
    seconds: float | None


class CircuitStatus(Shape):
    """One circuit breaker as this process sees it."""

    policy: str
    route: str | None
    state: Literal["closed", "open", "half_open", "forced_open", "disabled"]
    since: float
    calls: int
    failures: int
    degraded: bool = Field(description="Whether the store is away: this process judges alone.")


class PolicyStatus(Shape):
    """One policy, and what became of the calls under it."""

    name: str
    strategies: list[str]
    counts: dict[str, int]


class LockStatus(Shape):
    """A lock that this process holds, or (without a token) waits for."""

    resource: str
    key: str
    owner: str
    token: int | None
    since: float
    left_seconds: float | None
    shared: bool
    tenant: str | None


class ClaimStatus(Shape):
    """An idempotent operation under way in this process. Of its key the beginning."""

    resource: str
    operation: str
    key: str
    generation: int
    phase: str
    since: float
    left_seconds: float | None
    takeover: bool
    lost: bool


class IdempotencyStatus(Shape):
    """One resource of idempotency records, and what this process did with them."""

    name: str
    counts: IdempotencyStats


class Totals(Shape):
    """How many there are; the lists are cut."""

    circuits: int
    locks: int
    claims: int


class Process(Shape):
    """Who answers."""

    pid: int
    host: str
    since: float = Field(description="When the runtime was entered, or first looked at.")


class Overview(Shape):
    """All that this process shows of itself."""

    at: float
    process: Process
    documents: list[CachedStatus]
    functions: list[CachedStatus] = Field(description="Cached functions and responses.")
    servers: list[ServerStatus]
    pushes: list[PushStatus]
    totals: Totals
    circuits: list[CircuitStatus]
    policies: list[PolicyStatus]
    limits_degraded: bool = Field(
        description="Whether this process keeps rate limits alone: their store is away."
    )
    locks: list[LockStatus]
    claims: list[ClaimStatus]
    idempotency: list[IdempotencyStatus]


class DocumentKey(Shape):
    """One document: of which kind, which, and whose."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    document: str = Field(max_length=200)
    id: UUID
    tenant: str | None = Field(default=None, min_length=1, max_length=255)


class InProcess(Shape):
    """What the process itself keeps of a document.

    ``none``: the kind has no L1; ``distrusted``: kept, and not served while pushes may be lost;
    ``hidden``: its store cannot be looked into.
    """

    state: Literal["none", "absent", "kept", "distrusted", "hidden"]
    rev: int | None
    left_seconds: float | None


class InCache(Shape):
    """What the cache has of a document; see ``forze.application.contracts.cache.Entry``."""

    state: Literal["value", "lease", "intent", "absent"]
    left_ms: int
    version: str | None
    size_bytes: int | None
    body_left_ms: int
    refreshing: bool
    writers: int
    same_generation: bool
    same_schema: bool


class SourceRow(Shape):
    """What the source has of a document."""

    rev: int
    last_update_at: datetime


class Verdict(Shape):
    """Where a read goes, and why."""

    answered_by: Literal["l1", "cache", "shared", "source", "nobody"]
    reason: str
    says: str


class SeenRead(Verdict):
    """Reads of a watched document that went the same way one after the other."""

    since: float
    at: float = Field(description="When the last of them ended.")
    times: int
    seconds: float = Field(description="What the last one took.")
    outcome: str | None = Field(
        description="What became of what it loaded (filled, refused, bypassed, hit), or its error."
    )


class Explanation(Shape):
    """One document, everywhere it can be."""

    key: DocumentKey
    address: str
    next: Verdict
    l1: InProcess
    entry: InCache | None = Field(description="What the cache has; None while it does not answer.")
    stored_seconds: float | None = Field(description="How long ago it was stored, at most.")
    journal: bool = Field(description="Whether this process owes the cache its invalidation.")
    loading: bool = Field(description="Whether this process is reading it beyond the cache.")
    compared: bool = Field(description="Whether the source was asked.")
    source: SourceRow | None = Field(description="What it has, where it was asked.")
    reads: list[SeenRead] | None = Field(description="The newest first; None where unwatched.")


class Invalidated(Shape):
    """What became of an invalidation."""

    told: bool = Field(
        description="False: the cache is away. It is told when it is back; until then this "
        "process goes past it, and others may serve what they have."
    )
