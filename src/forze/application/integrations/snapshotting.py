"""What every snapshot adapter shares: arguments checked, ids taken in order up to the most kept."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Hashable, Iterable, Sequence
from datetime import timedelta
from itertools import islice
from typing import NamedTuple
from uuid import UUID

from forze.application.contracts.search import (
    MAX_IDS,
    ResultId,
    SearchResultSnapshotSpec,
    SnapshotMeta,
    SnapshotState,
)
from forze.application.integrations.keys import encode_part
from forze.errors import ValidationError

FINGERPRINT_BYTES = 4096

_MILLISECOND = timedelta(milliseconds=1)


class Run(NamedTuple):
    """A run as it is kept."""

    fingerprint: str
    ids: Sequence[ResultId]
    truncated: bool


class Snapshotting(ABC):
    """Implements ``SearchResultSnapshotPort`` on four primitives of an adapter."""

    def __init__(self, spec: SearchResultSnapshotSpec) -> None:
        self._spec = spec

    @property
    @abstractmethod
    def tenant_aware(self) -> bool:
        """Whether each tenant has runs of its own."""

    def scope(self) -> Hashable:
        """Which runs a call made now would reach."""
        return self._address("")

    async def put_run(
        self,
        run_id: str,
        fingerprint: str,
        ordered_ids: Iterable[ResultId],
        ttl: timedelta | None = None,
    ) -> SnapshotMeta:
        """Freeze ``ordered_ids`` as ``run_id``."""
        address = self._address(self._encoded(run_id))
        self._check_fingerprint(fingerprint)
        life = self._spec.ttl if ttl is None else self._life(ttl)
        ids, truncated = self._taken(ordered_ids)
        await self._put(address, Run(fingerprint, ids, truncated), life // _MILLISECOND)
        return SnapshotMeta(
            run_id=run_id,
            state=SnapshotState.COMPLETE,
            fingerprint=fingerprint,
            total=len(ids),
            truncated=truncated,
            expires_in=life,
        )

    async def get_id_range(
        self, run_id: str, offset: int, limit: int, expected_fingerprint: str | None = None
    ) -> list[ResultId] | None:
        """The ids from ``offset`` on, at most ``limit``; None where there is no such run."""
        address = self._address(self._encoded(run_id))
        first = self._number("offset", offset, 0)
        count = self._number("limit", limit, 0)
        if expected_fingerprint is not None:
            self._check_fingerprint(expected_fingerprint)
        return await self._page(address, first, count, expected_fingerprint)

    async def get_meta(self, run_id: str, expected_fingerprint: str | None = None) -> SnapshotMeta:
        """What is known of the run."""
        address = self._address(self._encoded(run_id))
        if expected_fingerprint is not None:
            self._check_fingerprint(expected_fingerprint)
        return await self._meta(address, run_id, expected_fingerprint)

    async def delete_run(self, run_id: str) -> bool:
        """Remove the run; whether there was one."""
        return await self._delete(self._address(self._encoded(run_id)))

    # -- the adapter's ---------------------------------------------------------

    @abstractmethod
    def _address(self, run: str) -> str:
        """Where the run (encoded) is kept, under the bound tenant."""

    @abstractmethod
    async def _put(self, address: str, run: Run, life_ms: int) -> None: ...

    @abstractmethod
    async def _page(
        self, address: str, offset: int, limit: int, expected: str | None
    ) -> list[ResultId] | None: ...

    @abstractmethod
    async def _meta(self, address: str, run_id: str, expected: str | None) -> SnapshotMeta: ...

    @abstractmethod
    async def _delete(self, address: str) -> bool: ...

    # -- arguments -------------------------------------------------------------

    def _encoded(self, run_id: str) -> str:
        return encode_part(run_id, "run_id")

    def _check_fingerprint(self, fingerprint: object) -> None:
        if (
            not isinstance(fingerprint, str)
            or not 0 < len(fingerprint.encode(errors="surrogatepass")) <= FINGERPRINT_BYTES
        ):
            raise self._wrong(
                "fingerprint", f"must be text of 1 to {FINGERPRINT_BYTES} bytes", fingerprint
            )

    def _life(self, ttl: object) -> timedelta:
        if not isinstance(ttl, timedelta) or ttl < _MILLISECOND:
            raise self._wrong("ttl", "must be a timedelta of at least a millisecond", ttl)
        return ttl

    def _number(self, field: str, value: object, least: int) -> int:
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise self._wrong(field, f"must be an integer of at least {least}", value)
        return min(int(value), MAX_IDS)

    def _taken(self, ordered_ids: Iterable[ResultId]) -> tuple[list[ResultId], bool]:
        """The first ``max_ids`` as plain values of their types, and whether there were more."""
        if isinstance(ordered_ids, str | bytes) or not isinstance(ordered_ids, Iterable):
            raise self._wrong("ordered_ids", "must be a list of ids", ordered_ids)
        rest = iter(ordered_ids)
        ids = [self._plain(each) for each in islice(rest, self._spec.max_ids)]
        return ids, next(rest, None) is not None

    def _plain(self, id: object) -> ResultId:
        if type(id) is UUID or type(id) is str or type(id) is int:
            return id
        if isinstance(id, UUID):
            return UUID(int=id.int)
        if isinstance(id, str):
            return str.__str__(id)
        if isinstance(id, int) and not isinstance(id, bool):
            return int(id)
        raise self._wrong("ordered_ids", "must be UUIDs, texts or integers", id)

    def _wrong(self, field: str, must: str, value: object) -> ValidationError:
        return ValidationError(
            f"search snapshot {self._spec.name!r}: {field} {must}, not {value!r:.80}", field=field
        )
