"""Where one document is, and what its next read would do: looked at from outside the read-through.

Nothing here changes what it looks at, except :func:`invalidate`, which is a write's end without
the write. All of it is for the bound tenant.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from secrets import token_hex
from time import monotonic
from typing import Any, Final, Literal, NamedTuple, TypeAlias
from uuid import UUID

from forze.application.contracts.cache import CacheSpec, Entry
from forze.application.contracts.document import DocumentStore
from forze.application.integrations.document.coordinator import Coordinator
from forze.application.integrations.document.l1.store import PeekableL1Store
from forze.application.integrations.document.watching import (
    AnsweredBy,
    Reason,
    WatchedRead,
    why_absent,
)
from forze.errors import BackendError, ForzeError

SAYS: Final = {
    Reason.L1: "kept in this process",
    Reason.HIT: "in the cache",
    Reason.ABSENT: "nothing cached: never read, changed or invalidated since, or evicted",
    Reason.EXPIRED: "its life in the cache was over",
    Reason.BODY_GONE: "its body is gone: evicted, or not read for its sliding window",
    Reason.OTHER_GENERATION: "cached before the server restarted or failed over",
    Reason.OTHER_SCHEMA: "cached by readers of another version of the model",
    Reason.LEASE_HELD: "another reader holds the lease and is loading it",
    Reason.INTENT: "a write is in flight: until it ends nothing is served from the cache",
    Reason.LARGE: "in the cache, too large for the shared connection",
    Reason.AWAY: "the cache does not answer",
    Reason.JOURNAL: "written here while the cache was away, which has yet to be told of it",
    Reason.TRANSACTION: "read inside a transaction",
    Reason.JOINED: "another caller in this process is at it already",
    Reason.REFRESHED: "in the cache and near its end: this read loaded it anew, for everyone",
    Reason.CUT_SHORT: "cut short while the cache was asked",
}
"""Each reason in words."""

InTier: TypeAlias = Literal["none", "absent", "kept", "distrusted", "hidden"]
"""``none``: the kind has no tier; ``distrusted``: there, not served while pushes may be lost;
``hidden``: its store (one of the application's own) cannot be looked into."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """One document, everywhere it can be."""

    address: str
    l1: InTier
    l1_rev: int | None
    l1_left_seconds: float | None
    entry: Entry | None
    """What the cache has; None while it does not answer."""
    journal: bool
    """Whether this process owes the cache its invalidation."""
    loading: bool
    """Whether this process is reading it from beyond the cache right now."""
    stored_seconds: float | None
    """How long ago it was stored, at most; None where its life does not tell."""
    next_read: AnsweredBy
    next_reason: Reason
    reads: tuple[WatchedRead, ...] | None
    """The last reads, the newest first; None where nobody watches."""


class SourceRow(NamedTuple):
    """What the source has."""

    rev: int
    last_update_at: datetime


async def explain(spec: CacheSpec, coordinator: Coordinator[Any], pk: UUID) -> Explanation:
    """One round trip to the cache, none while it is away.

    Raises ``TenantRequired``, and ``ConfigurationError`` where the cache cannot be asked at all.
    """
    address = coordinator.address(pk)
    pointers, watch = coordinator.outlet.pointers, coordinator.watch
    try:
        entry = await pointers.inspect(address)
    except BackendError:
        entry = None
    if watch is not None and entry is not None:
        watch.looked(address, entry)
    l1, rev, left = _in_tier(coordinator, pk, address)
    journal = coordinator.outlet.journal.active and coordinator.outlet.journal.bypasses(address)
    loading = coordinator.loading(address)
    by, reason = _next(l1, entry, journal=journal, loading=loading)
    return Explanation(
        address=address,
        l1=l1,
        l1_rev=rev,
        l1_left_seconds=left,
        entry=entry,
        journal=journal,
        loading=loading,
        stored_seconds=_stored(spec, entry),
        next_read=by,
        next_reason=reason,
        reads=None if watch is None else watch.reads(address),
    )


async def source_row(store: DocumentStore[Any], pk: UUID) -> SourceRow | None:
    """The document's row, None where there is none; one query, counted nowhere."""
    found = (await store.fetch((pk,))).get(pk)
    return None if found is None else SourceRow(found.rev, found.last_update_at)


async def invalidate(coordinator: Coordinator[Any], pk: UUID) -> bool:
    """Drop what is cached of a document, for every process, as a write does when it ends.

    False: the cache does not answer; it is told as soon as it does, and until then this process
    goes past it.
    """
    address, write_id = coordinator.address(pk), token_hex(8)
    try:
        await coordinator.outlet.pointers.done([address], write_id)
    except ForzeError:
        coordinator.outlet.journal.owe([address], write_id)
        return False
    return True


def _in_tier(
    coordinator: Coordinator[Any], pk: UUID, address: str
) -> tuple[InTier, int | None, float | None]:
    tier = coordinator.tier
    if tier is None:
        return "none", None, None
    if not isinstance(tier.store, PeekableL1Store):
        return "hidden", None, None
    kept = tier.peek(tier.key(pk, address))
    if kept is None:
        return "absent", None, None
    document, left = kept
    trusted = monotonic() < tier.trusted_until
    return ("kept" if trusted else "distrusted"), document.rev, left


def _next(
    l1: InTier, entry: Entry | None, *, journal: bool, loading: bool
) -> tuple[AnsweredBy, Reason]:
    """Who would answer a read that came now, and why."""
    if l1 == "kept":
        return "l1", Reason.L1
    if journal:
        return "source", Reason.JOURNAL
    if loading:
        return "shared", Reason.JOINED
    if entry is None:
        return "source", Reason.AWAY
    if entry.readable:
        return "cache", Reason.HIT
    reason = why_absent(entry, outlived=False)
    return ("cache" if reason is Reason.LEASE_HELD else "source"), reason


def _stored(spec: CacheSpec, entry: Entry | None) -> float | None:
    """Lives are shortened a little when they begin, so this is the longest it can be."""
    if entry is None or entry.state != "value" or spec.age_ttl is not None:
        return None
    life = spec.ttl if spec.ttl_pointer is None else min(spec.ttl, spec.ttl_pointer)
    return max(0.0, life.total_seconds() - entry.left_ms / 1000)
