"""Searches frozen as snapshots: the query runs once, its pages are read from the frozen ids.

A run holds ids only; documents are fetched for each page, through the cache, so a page shows
them as they are now: what was removed since is skipped and reported, what was changed is
shown changed, and the order stays the one of the search.
"""

from __future__ import annotations

import asyncio
import hmac
import json
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextvars import copy_context
from datetime import timedelta
from enum import Enum
from typing import Any, Generic, Literal, NamedTuple
from uuid import UUID, uuid4

from pydantic import SecretBytes, SecretStr, TypeAdapter

from forze.application.contracts.deps import Resolver
from forze.application.contracts.document import (
    DocumentSpec,
    DocumentStore,
    Filters,
    R,
    SnapshotPage,
    Sort,
)
from forze.application.contracts.search import (
    ResultId,
    SearchResultSnapshotPort,
    SearchResultSnapshotSpec,
)
from forze.application.contracts.transaction import in_transaction
from forze.application.integrations.document.codec import DocumentCodec
from forze.application.integrations.document.filters import (
    Condition,
    parse_filters,
    parse_sort,
)
from forze.application.integrations.single_flight import SingleFlight
from forze.application.integrations.snapshot_cursor import (
    SnapshotCursor,
    read_cursor,
    write_cursor,
)
from forze.errors import SnapshotGone, ValidationError

_any: TypeAdapter[Any] = TypeAdapter(Any)


class _Search(NamedTuple):
    """What is asked, and its fingerprint."""

    filters: Filters
    sort: Sort
    fingerprint: str


class _Found(NamedTuple):
    """Ids of a run from ``offset`` on; ``total`` are in the run."""

    run_id: str
    offset: int
    ids: Sequence[ResultId]
    total: int
    truncated: bool

    def page(self, offset: int, limit: int) -> _Found:
        start = max(offset - self.offset, 0)
        return self._replace(offset=offset, ids=self.ids[start : start + limit])


class SnapshotSearch(Generic[R]):
    """Searches of one document kind, frozen under its snapshot spec."""

    def __init__(
        self,
        spec: DocumentSpec[R, Any, Any],
        snapshot: SearchResultSnapshotSpec,
        store: DocumentStore[R],
        port: SearchResultSnapshotPort,
        resolver: Resolver,
    ) -> None:
        self._spec = spec
        self._snapshot = snapshot
        self._store = store
        self._port = port
        self._schema = DocumentCodec(spec.read, spec.name).fingerprint
        self._flights: SingleFlight[_Found] = SingleFlight(resolver, "forze-snapshot")

    async def page(
        self,
        filters: Filters,
        sort: Sort,
        *,
        limit: int,
        after: str | None,
        share: bool,
        gone: Literal["raise", "rebuild"],
        hydrate: Callable[[Sequence[UUID]], Awaitable[list[R]]],
    ) -> SnapshotPage[R]:
        """A page of the frozen search; see ``DocumentQueryPort.find_snapshot``."""
        if gone not in ("raise", "rebuild"):
            raise ValidationError(f'gone is "raise" or "rebuild", not {gone!r}', field="gone")
        search = self._search(filters, sort)
        rebuilt = False
        if after is None:
            found = await self._first(search, limit, share=share)
        else:
            cursor = self._cursor(search, after)
            read = await self._read(cursor, limit)
            rebuilt = read is None
            if read is None and gone == "raise":
                raise SnapshotGone(resource=self._spec.name, run_id=cursor.run_id)
            found = read or (await self._freeze(search)).page(cursor.offset, limit)
        ids = [each for each in found.ids if isinstance(each, UUID)]
        items = await hydrate(ids)
        there = {each.id for each in items}
        end = found.offset + len(ids)
        following = SnapshotCursor(found.run_id, search.fingerprint, end)
        return SnapshotPage(
            items,
            write_cursor(self._snapshot, following) if end < found.total else None,
            total=found.total,
            truncated=found.truncated,
            missing=[each for each in ids if each not in there],
            rebuilt=rebuilt,
        )

    # -- runs ------------------------------------------------------------------

    async def _first(self, search: _Search, limit: int, *, share: bool) -> _Found:
        if not share or in_transaction():  # what a transaction sees is not for others
            return (await self._freeze(search)).page(0, limit)
        key = (self._port.scope(), search.fingerprint)
        found = await self._flights.share(key, lambda: self._shared(search), copy_context())
        if found.ids or not found.total:
            return found.page(0, limit)
        start = SnapshotCursor(found.run_id, search.fingerprint, 0)
        return await self._read(start, limit) or (await self._freeze(search)).page(0, limit)

    async def _shared(self, search: _Search) -> _Found:
        """The run of an equal search (without its ids), or one that is frozen now.

        Where it is is kept as a run of one id, for half the life of the run: who comes to
        share it has the other half to read it.
        """
        name = f"shared:{search.fingerprint}"
        known = await self._port.get_id_range(name, 0, 1, search.fingerprint)
        if known:
            run_id = str(known[0])
            meta = await self._port.get_meta(run_id, search.fingerprint)
            if meta.complete:
                return _Found(run_id, 0, (), meta.total, meta.truncated)
        found = await self._freeze(search)
        half = max(self._snapshot.ttl / 2, timedelta(milliseconds=1))
        await self._port.put_run(name, search.fingerprint, [found.run_id], half)
        return found

    async def _freeze(self, search: _Search) -> _Found:
        """Run the query, and freeze what it finds under a name nobody has."""
        ids = await self._store.find_ids(search.filters, search.sort, self._snapshot.max_ids + 1)
        run_id = uuid4().hex
        meta = await self._port.put_run(run_id, search.fingerprint, ids)
        return _Found(run_id, 0, ids[: meta.total], meta.total, meta.truncated)

    async def _read(self, cursor: SnapshotCursor, limit: int) -> _Found | None:
        """The page at ``cursor``, None where the run is gone; both questions travel together."""
        run_id, fingerprint, offset = cursor
        meta, ids = await asyncio.gather(
            self._port.get_meta(run_id, fingerprint),
            self._port.get_id_range(run_id, offset, limit, fingerprint),
        )
        if ids is None or not meta.complete:
            return None
        return _Found(run_id, offset, ids, meta.total, meta.truncated)

    # -- names -----------------------------------------------------------------

    def _cursor(self, search: _Search, after: str) -> SnapshotCursor:
        cursor = read_cursor(self._snapshot, after, field="after")
        if cursor.fingerprint != search.fingerprint:
            raise ValidationError(
                f"{self._spec.name}: the cursor belongs to another search; pass it with the "
                "filters and the sort that it was made for",
                field="after",
            )
        return cursor

    def _search(self, filters: Filters, sort: Sort) -> _Search:
        """Equal searches have one fingerprint, in every process that has the secret; without
        the secret it tells nothing of what was searched for."""
        model, filters = self._spec.read, _lasting(filters)
        conditions = sorted(map(_asked, parse_filters(model, filters)))
        keys = parse_sort(model, sort)
        asked = json.dumps([self._spec.name, self._schema, conditions, keys])
        digest = hmac.digest(self._snapshot.secret, asked.encode(), "sha256")
        complete = [f"-{key.field}" if key.descending else key.field for key in keys]
        return _Search(filters, complete, digest.hex()[:32])


def _lasting(filters: Filters) -> Filters:
    """The filters, to be read more than once: an iterator would be empty the second time."""
    return {
        name: {
            operator: list(value) if isinstance(value, Iterator) else value
            for operator, value in wanted.items()
        }
        if isinstance(wanted, Mapping)
        else wanted
        for name, wanted in filters.items()
    }


def _asked(condition: Condition) -> str:
    """A condition as text; the order of a list of choices (a set has a new one in every
    process) and what it has twice mean nothing."""
    field, operator, value = condition
    told = _told(_any.dump_python(value))
    if operator in ("in", "not_in"):
        told = sorted(set(map(json.dumps, told)))
    return json.dumps([field, operator, told])


def _told(value: Any) -> Any:
    """``value`` as JSON that equal values share and different ones do not."""
    match value:
        case None | bool() | int() | str():
            return value
        case Enum():
            return _told(value.value)
        case SecretStr() | SecretBytes():
            return _told(value.get_secret_value())
        case bytes():
            return {"bytes": value.hex()}
        case dict():
            return {"dict": sorted(json.dumps([_told(k), _told(v)]) for k, v in value.items())}
        case list() | tuple():
            return [_told(each) for each in value]
        case set() | frozenset():
            return {"set": sorted(json.dumps(_told(each)) for each in value)}
    return {type(value).__name__: str(value)}
