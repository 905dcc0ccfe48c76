"""Search-result snapshots: an ordered list of ids, frozen once and read page by page.

A run is all or nothing: readers see the whole list or none of it, it expires as a whole, and
a page costs one round trip and carries that page only.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from dataclasses import dataclass, field
from datetime import timedelta
from enum import StrEnum
from typing import NoReturn, Protocol, TypeAlias
from uuid import UUID

from forze.application.contracts.deps import DepKey, Factory
from forze.errors import ConfigurationError

ResultId: TypeAlias = UUID | str | int
"""What a search finds; comes back as the type that went in."""

MAX_IDS = 10_000_000
SECRET_BYTES = 16

_MILLISECOND = timedelta(milliseconds=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchResultSnapshotSpec:
    """A set of snapshots. ``ttl`` is the life of a run, ``max_ids`` the most it keeps.

    ``cursor_secret`` (text or bytes, at least 16 bytes) signs cursors. Every process that
    may be handed one needs the same, so it comes from the application's configuration;
    without it runs are read by offset, and whatever needs a cursor refuses to begin.
    """

    name: str
    ttl: timedelta = timedelta(minutes=10)
    max_ids: int = 50_000
    cursor_secret: str | bytes | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        name: object = self.name
        if not isinstance(name, str) or not name:
            self._refuse("name", f"must be text that is not empty, not {name!r}")
        ttl: object = self.ttl
        if not isinstance(ttl, timedelta) or ttl < _MILLISECOND:
            self._refuse("ttl", f"must be a timedelta of at least a millisecond, not {ttl!r}")
        most: object = self.max_ids
        if type(most) is not int or not 1 <= most <= MAX_IDS:
            self._refuse("max_ids", f"must be an integer of 1 to {MAX_IDS}, not {most!r}")
        secret: object = self.cursor_secret
        if secret is not None and (
            not isinstance(secret, str | bytes) or len(self.secret) < SECRET_BYTES
        ):
            self._refuse(
                "cursor_secret",
                f"must be text or bytes, {SECRET_BYTES} bytes or more; make one with "
                "secrets.token_hex(32) and give it to every process",
            )

    @property
    def secret(self) -> bytes:
        """``cursor_secret`` as bytes; raises ``ConfigurationError`` where there is none."""
        secret = self.cursor_secret
        if secret is None:
            self._refuse(
                "cursor_secret",
                "is needed to sign cursors; make one with secrets.token_hex(32), keep it with "
                "the application's other secrets, and give it to every process",
            )
        return secret.encode() if isinstance(secret, str) else secret

    def _refuse(self, which: str, why: str) -> NoReturn:
        raise ConfigurationError(
            f"SearchResultSnapshotSpec {self.name!r}: {which} {why}", name=which
        )


class SnapshotState(StrEnum):
    """What became of a run."""

    COMPLETE = "complete"
    INCOMPLETE = "incomplete"
    """It is being written, or its writer ended halfway; nothing of it is visible."""
    MISSING = "missing"
    """It was never written, has expired, was deleted or evicted."""
    MISMATCH = "mismatch"
    """It is complete, under another fingerprint than the one expected."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotMeta:
    """What is known of a run; true exactly when it is complete (and as expected).

    ``total`` is how many ids it keeps, ``truncated`` whether there were more. ``expires_in``
    is what is left of its life, by the server's clock.
    """

    run_id: str
    state: SnapshotState
    fingerprint: str | None = None
    total: int = 0
    truncated: bool = False
    expires_in: timedelta | None = None

    def __bool__(self) -> bool:
        return self.state is SnapshotState.COMPLETE

    @property
    def complete(self) -> bool:
        """Whether pages of it can be read."""
        return self.state is SnapshotState.COMPLETE


class SearchResultSnapshotPort(Protocol):
    """Snapshots of one :class:`SearchResultSnapshotSpec`.

    ``run_id`` and ``fingerprint`` are text that is not empty: the name of a run, and of the
    search that it answers.
    """

    @property
    def tenant_aware(self) -> bool:
        """Whether each tenant has runs of its own."""
        ...

    def scope(self) -> Hashable:
        """Which runs a call made now would reach: those of this tenant, on this server."""
        ...

    async def put_run(
        self,
        run_id: str,
        fingerprint: str,
        ordered_ids: Iterable[ResultId],
        ttl: timedelta | None = None,
    ) -> SnapshotMeta:
        """Freeze ``ordered_ids`` (duplicates kept) as ``run_id``, in the place of what it was.

        Readers see the run as it was before until they see all of this one, also when the
        caller is cancelled or ends halfway. Of more than ``max_ids`` the first are kept. Two
        that write one run at once: the later to finish stands. One round trip, one more per
        128 KiB beyond the first. Raises ``ValidationError`` for an id that is no UUID, text
        or integer, ``ConflictError`` where the run is deleted meanwhile.
        """
        ...

    async def get_id_range(
        self, run_id: str, offset: int, limit: int, expected_fingerprint: str | None = None
    ) -> list[ResultId] | None:
        """The ids at ``offset`` up to ``offset + limit``, fewer at the end, ``[]`` beyond it.

        None where the run is missing, incomplete, or has another fingerprint than expected;
        :meth:`get_meta` tells which. One round trip, which carries those ids only.
        """
        ...

    async def get_meta(self, run_id: str, expected_fingerprint: str | None = None) -> SnapshotMeta:
        """What is known of the run; one round trip."""
        ...

    async def delete_run(self, run_id: str) -> bool:
        """Remove the run and all that was being written of it; whether there was one."""
        ...


SearchResultSnapshotFactory: TypeAlias = Factory[SearchResultSnapshotSpec, SearchResultSnapshotPort]
SearchResultSnapshotDepKey: DepKey[SearchResultSnapshotFactory] = DepKey("search_snapshot")

__all__ = [
    "ResultId",
    "SearchResultSnapshotDepKey",
    "SearchResultSnapshotFactory",
    "SearchResultSnapshotPort",
    "SearchResultSnapshotSpec",
    "SnapshotMeta",
    "SnapshotState",
]
