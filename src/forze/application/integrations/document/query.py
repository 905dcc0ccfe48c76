"""The query port: reads, through the cache where the spec has one."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from time import monotonic
from typing import TYPE_CHECKING, Any, Generic, Literal
from uuid import UUID

from pydantic import TypeAdapter

from forze.application.contracts.document import (
    DocumentId,
    DocumentSpec,
    DocumentStore,
    Filters,
    Page,
    R,
    Relations,
    SnapshotPage,
    Sort,
)
from forze.application.contracts.tenancy import TENANT
from forze.application.contracts.transaction import OPEN, in_transaction
from forze.application.integrations.document.coordinator import Coordinator
from forze.application.integrations.document.filling import not_found
from forze.application.integrations.document.filters import SortKey, parse_sort
from forze.application.integrations.document.l1.store import L1Stats
from forze.application.integrations.document.stats import CacheStats
from forze.errors import ConfigurationError, ValidationError

if TYPE_CHECKING:
    from forze.application.integrations.document.snapshots import SnapshotSearch

MAX_PAGE = 1_000


def document_id(value: DocumentId) -> UUID:
    """``value`` as a UUID; raises :class:`ValidationError` for text that is none."""
    if isinstance(value, UUID):
        return value
    try:
        return UUID(value)
    except (ValueError, AttributeError, TypeError):
        raise ValidationError(
            f"{value!r} is not a document id; give a UUID or its text", field="id"
        ) from None


class DocumentQuery(Generic[R]):
    """Reads of one document kind. Implements ``DocumentQueryPort``."""

    def __init__(
        self,
        spec: DocumentSpec[R, Any, Any],
        store: DocumentStore[R],
        coordinator: Coordinator[R] | None,
        snapshots: SnapshotSearch[R] | None = None,
    ) -> None:
        self._spec = spec
        self._store = store
        self._snapshots = snapshots
        self._coordinator = coordinator
        self._tier = None if coordinator is None else coordinator.tier

    async def get(
        self,
        id: DocumentId,
        *,
        for_update: bool = False,
        skip_cache: bool = False,
    ) -> R:
        """The document; raises ``NotFoundError``. A hit is one round trip to the cache, or none
        where the process keeps the document itself."""
        pk: UUID = id if id.__class__ is UUID else document_id(id)
        tier = self._tier
        if tier is not None and not (for_update or skip_cache or (OPEN.get() and in_transaction())):
            # The hottest lines there are: `Tier.key` and `Tier.get`, without the calls.
            number = pk.int.to_bytes(16, "big")
            prefixes = tier.prefixes
            key = number if prefixes is None else (prefixes.get(TENANT.get(), ""), number)
            if monotonic() < tier.trusted_until and (kept := tier.find(key)) is not None:
                return kept if tier.shared else tier.decode(kept)  # type: ignore[return-value,arg-type]
        coordinator = self._coordinator
        if coordinator is not None and not for_update and not skip_cache:
            return await coordinator.get(pk)
        found = await self._store.fetch((pk,), for_update=for_update)
        if pk not in found:
            raise not_found(self._spec.name, (pk,))
        return found[pk]

    async def get_many(
        self,
        ids: Sequence[DocumentId],
        *,
        missing: Literal["raise", "skip"] = "raise",
        skip_cache: bool = False,
    ) -> list[R]:
        """The documents in the order asked, duplicates kept."""
        pks = [document_id(each) for each in ids]
        distinct = list(dict.fromkeys(pks))
        if not distinct:
            return []
        if self._coordinator is None or skip_cache:
            found = await self._store.fetch(distinct)
        else:
            found = await self._coordinator.get_many(distinct)
        absent = [each for each in distinct if each not in found]
        if absent and missing == "raise":
            raise not_found(self._spec.name, absent)
        return [found[each] for each in pks if each in found]

    async def find_many(
        self,
        filters: Filters | None = None,
        *,
        sort: Sort = (),
        limit: int = 50,
        after: str | None = None,
    ) -> Page[R]:
        """A page of what matches, from the source."""
        _check_limit(limit)
        keys = parse_sort(self._spec.read, sort)
        position = None if after is None else self._position(keys, after)
        complete = [f"-{key.field}" if key.descending else key.field for key in keys]
        page = await self._store.find(_mapping(filters), complete, limit, position)
        cursor = self._cursor(keys, page.items[-1]) if page.more else None
        return Page(page.items, cursor)

    async def find_snapshot(
        self,
        filters: Filters | None = None,
        *,
        sort: Sort = (),
        limit: int = 50,
        after: str | None = None,
        share: bool = False,
        gone: Literal["raise", "rebuild"] = "raise",
    ) -> SnapshotPage[R]:
        """A page of a search whose result is frozen by its first call."""
        if self._snapshots is None:
            raise ConfigurationError(
                f"document {self._spec.name!r}: find_snapshot needs a place to freeze results; "
                "add snapshot=SearchResultSnapshotSpec(name=..., cursor_secret=...) to its "
                "DocumentSpec",
                name="snapshot",
            )
        _check_limit(limit)
        return await self._snapshots.page(
            _mapping(filters),
            sort,
            limit=limit,
            after=after,
            share=share,
            gone=gone,
            hydrate=lambda ids: self.get_many(ids, missing="skip"),
        )

    async def count(self, filters: Filters | None = None) -> int:
        """How many documents match, from the source."""
        return await self._store.count(_mapping(filters))

    async def exists(self, id: DocumentId) -> bool:
        """Whether the document exists, from the source."""
        return await self._store.count({"id": document_id(id)}) > 0

    @property
    def relations(self) -> Relations:
        """What is read and written behind this port."""
        return self._store.relations

    def stats(self) -> CacheStats | None:
        """What the cache did for this document kind so far; None without a cache."""
        return None if self._coordinator is None else self._coordinator.stats()

    def l1_stats(self) -> L1Stats | None:
        """Counts of the entries kept in this process; None without an L1."""
        return None if self._tier is None else self._tier.store.stats()

    def _cursor(self, keys: Sequence[SortKey], last: R) -> str:
        values = last.model_dump(mode="json", include={key.field for key in keys})
        order = [[key.field, key.descending, values[key.field]] for key in keys]
        return base64.urlsafe_b64encode(json.dumps(order, separators=(",", ":")).encode()).decode()

    def _position(self, keys: Sequence[SortKey], cursor: str) -> list[Any]:
        """The sort values a cursor stands for; it must come from the same sort."""
        try:
            order = json.loads(base64.urlsafe_b64decode(cursor.encode()))
            if [(name, descending) for name, descending, _ in order] != [
                (key.field, key.descending) for key in keys
            ]:
                raise ValueError("made for another sort")
            fields = self._spec.read.model_fields
            return [
                None
                if value is None
                else _adapter(fields[key.field].annotation).validate_json(json.dumps(value))
                for key, (_, _, value) in zip(keys, order, strict=True)
            ]
        except (ValueError, TypeError, RecursionError) as error:
            raise ValidationError(
                f"{cursor!r} is not a cursor of this query ({error}); pass next_cursor of the "
                "page before, with the same sort, or leave after= out",
                field="after",
            ) from error


def _mapping(filters: Filters | None) -> Filters:
    given: object = filters or {}
    if not isinstance(given, Mapping):
        raise ValidationError(
            f"filters are a dict of field names, such as {{'color': 'red'}}, not {given!r}",
            field="filters",
        )
    return given


def _check_limit(given: object) -> None:
    if not isinstance(given, int) or not 1 <= given <= MAX_PAGE:
        raise ValidationError(f"limit must be 1 to {MAX_PAGE}, not {given!r}", field="limit")


def _adapter(annotation: Any) -> TypeAdapter[Any]:
    return TypeAdapter(annotation)
