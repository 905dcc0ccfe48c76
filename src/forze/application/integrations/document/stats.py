"""What one document's cache did, counted."""

from __future__ import annotations

from dataclasses import dataclass, fields


@dataclass(slots=True)
class CacheCounters:
    """Running counts; read them through :meth:`snapshot`."""

    hits: int = 0
    misses: int = 0
    fills: int = 0
    rejected_fills: int = 0
    fill_failures: int = 0
    uncacheable: int = 0
    undecodable: int = 0
    collapsed: int = 0
    bypasses: int = 0
    source_reads: int = 0
    read_failures: int = 0
    intents: int = 0
    intent_failures: int = 0
    lapsed_intents: int = 0
    refreshes: int = 0
    refresh_failures: int = 0
    load_seconds: float = 0.0

    def snapshot(self, *, journal: int, available: bool, pushes: int, flushes: int) -> CacheStats:
        """The counts as they stand."""
        counts = {field.name: getattr(self, field.name) for field in fields(self)}
        return CacheStats(
            **counts, journal=journal, available=available, pushes=pushes, flushes=flushes
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheStats:
    """A snapshot of what one document's cache did in this process since it was bound."""

    hits: int
    """Reads answered by the cache."""
    misses: int
    """Reads that found nothing and loaded."""
    fills: int
    """Loaded documents that were stored."""
    rejected_fills: int
    """Loaded documents that were not stored, because a write came between."""
    fill_failures: int
    """Loaded documents whose storing the cache did not answer."""
    uncacheable: int
    """Loaded documents that were not stored: too large, or their JSON loses something."""
    undecodable: int
    """Bodies that did not fit the model, invalidated and loaded again."""
    collapsed: int
    """Reads answered by another caller's flight."""
    bypasses: int
    """Reads that went past the cache: writes in flight, cache away, or key in the journal."""
    source_reads: int
    """Queries sent to the source."""
    read_failures: int
    """Cache reads that failed or timed out."""
    intents: int
    """Keys announced as being written."""
    intent_failures: int
    """Announcements the cache did not answer."""
    lapsed_intents: int
    """Announcements that could not be renewed in time."""
    refreshes: int
    """Entries refreshed before their end."""
    refresh_failures: int
    """Early refreshes that failed; the entry stayed."""
    load_seconds: float
    """Seconds spent in queries sent to the source."""
    pushes: int
    """Changes of entries that the server pushed to this process."""
    flushes: int
    """How often the in-process tier was emptied because changes may have gone unheard."""
    journal: int
    """Keys whose invalidation the cache has not been told of yet."""
    available: bool
    """Whether the cache answers."""
