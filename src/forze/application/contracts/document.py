"""Documents: the spec, the ports applications hold, and the store an adapter provides.

Applications see :class:`DocumentQueryPort` and :class:`DocumentCommandPort`. An adapter
implements only :class:`DocumentStore`: plain reads and writes, no cache. The
read-through between the two is shared by all adapters.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Literal, NamedTuple, Protocol, TypeAlias
from uuid import UUID

from pydantic import BaseModel
from typing_extensions import TypeVar

from forze.application.contracts.cache import CacheSpec
from forze.application.contracts.deps import DepKey, Factory
from forze.application.contracts.search import SearchResultSnapshotSpec
from forze.application.contracts.transaction import TransactionManager
from forze.domain.models import BaseDTO, CreateDocumentCmd, Document, ReadDocument
from forze.errors import ConfigurationError

R = TypeVar("R", bound=ReadDocument)
C = TypeVar("C", bound=CreateDocumentCmd, default=Any)
U = TypeVar("U", bound=BaseModel, default=Any)
C_contra = TypeVar("C_contra", bound=CreateDocumentCmd, contravariant=True)
U_contra = TypeVar("U_contra", bound=BaseModel, contravariant=True)

DocumentId: TypeAlias = UUID | str
"""A UUID, or its text."""

Filters: TypeAlias = Mapping[str, Any]
"""Field to value (equality), or field to ``{operator: operand}``; all must hold.

Operators: ``eq ne lt lte gt gte in not_in is_null contains starts_with``. ``contains`` and
``starts_with`` are on text, case-sensitive and literal (no wildcards).
"""

OPERATORS = frozenset(
    {"eq", "ne", "lt", "lte", "gt", "gte", "in", "not_in", "is_null", "contains", "starts_with"}
)

Sort: TypeAlias = Sequence[str]
"""Field names, ``-`` in front for descending; ``id`` is always the last tie-breaker."""


@dataclass(frozen=True, kw_only=True)  # no slots: they break Generic[...] calls on 3.11
class DocumentWriteTypes(Generic[C, U]):
    """The models a writable document is made of."""

    domain: type[Document]
    create_cmd: type[C]
    update_cmd: type[U] | None = None


@dataclass(frozen=True, kw_only=True)
class DocumentSpec(Generic[R, C, U]):
    """A document kind. ``name`` selects the registered store; ``cache`` opts reads into caching,
    ``snapshot`` (with a ``cursor_secret``) searches into ``find_snapshot``.

    ``write`` takes :class:`DocumentWriteTypes` or a dict with the same keys; left out, the
    document is read-only.
    """

    name: str
    read: type[R]
    write: DocumentWriteTypes[C, U] | Mapping[str, Any] | None = None
    cache: CacheSpec | None = None
    snapshot: SearchResultSnapshotSpec | None = None

    def __post_init__(self) -> None:
        if not self.name:
            raise ConfigurationError("DocumentSpec: name is empty", name="name")
        read: object = self.read
        if not (isinstance(read, type) and issubclass(read, ReadDocument)):
            raise ConfigurationError(
                f"DocumentSpec {self.name!r}: read must be a subclass of ReadDocument, "
                f"not {read!r}",
                name="read",
            )
        if isinstance(self.write, Mapping):
            unknown = set(self.write) - {"domain", "create_cmd", "update_cmd"}
            missing = {"domain", "create_cmd"} - set(self.write)
            if unknown or missing:
                raise ConfigurationError(
                    f"DocumentSpec {self.name!r}: write takes domain, create_cmd, update_cmd; "
                    f"unknown {sorted(unknown)}, missing {sorted(missing)}",
                    name="write",
                    known=("domain", "create_cmd", "update_cmd"),
                )
            object.__setattr__(self, "write", DocumentWriteTypes(**self.write))
        if self.snapshot is not None and self.snapshot.cursor_secret is None:
            raise ConfigurationError(
                f"DocumentSpec {self.name!r}: its snapshot has no cursor_secret, and pages are "
                "asked for by signed cursors; make one with secrets.token_hex(32), keep it with "
                "the application's other secrets, and give it to every process",
                name="cursor_secret",
            )

    @property
    def write_types(self) -> DocumentWriteTypes[C, U] | None:
        """``write``, whichever way it was spelled."""
        return self.write if isinstance(self.write, DocumentWriteTypes) else None


class Page(NamedTuple, Generic[R]):
    """A page of documents; ``next_cursor`` leads to the one after it, None at the end."""

    items: list[R]
    next_cursor: str | None


class SnapshotPage(NamedTuple, Generic[R]):
    """A page of a frozen search; ``next_cursor`` leads to the one after it, None at the end.

    ``total`` ids are in the snapshot, ``truncated`` says that the search found more.
    ``missing`` are ids of this page whose documents exist no longer; ``items`` has the others,
    in order. ``rebuilt``: the snapshot was gone and the search was run again, so this page and
    those before it may overlap or miss something.
    """

    items: list[R]
    next_cursor: str | None
    total: int
    truncated: bool
    missing: list[UUID]
    rebuilt: bool


class DocumentUpdate(NamedTuple, Generic[U]):
    """One update of a batch: which document, on top of which revision, what."""

    id: DocumentId
    rev: int
    dto: U


class DocumentQueryPort(Protocol[R]):
    """Reads. Never stale: a read that starts after a write's acknowledgement sees it.

    Inside a transaction reads run on its connection and see its writes; they neither use
    nor fill the cache.
    """

    async def get(
        self,
        id: DocumentId,
        *,
        for_update: bool = False,
        skip_cache: bool = False,
    ) -> R:
        """The document. Raises ``NotFoundError``. A hit costs one round trip to the cache,
        a miss two and one query. ``for_update`` locks the row until the transaction ends."""
        ...

    async def get_many(
        self,
        ids: Sequence[DocumentId],
        *,
        missing: Literal["raise", "skip"] = "raise",
        skip_cache: bool = False,
    ) -> list[R]:
        """The documents in the order asked, duplicates kept; one round trip per hundred, and
        one query for what the cache does not have."""
        ...

    async def find_many(
        self,
        filters: Filters | None = None,
        *,
        sort: Sort = (),
        limit: int = 50,
        after: str | None = None,
    ) -> Page[R]:
        """A page by filters and sort, ``limit`` 1 to 1000, ``after`` a cursor of the page
        before. Not cached; keyset, so no page costs more than the first."""
        ...

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
        """A page of a search whose result is frozen: the first call runs the query and keeps the
        ids in order (the spec's ``max_ids`` at most, for its ``ttl``), the calls with ``after``
        (the cursor of the page before, the same filters and sort) read on in them.

        With ``share`` equal searches, of one tenant and anywhere, use one snapshot, up to half
        its life old. Documents come through the cache, as they are now. The first page costs
        one query and one round trip, the others one round trip, each with ``get_many`` on top.

        Raises ``ConfigurationError`` where the spec has no ``snapshot``, ``ValidationError`` for
        a cursor that was changed or is another's, and ``SnapshotGone`` where the snapshot has
        expired; with ``gone="rebuild"`` the search is run again instead."""
        ...

    async def count(self, filters: Filters | None = None) -> int:
        """How many documents match. Not cached."""
        ...

    async def exists(self, id: DocumentId) -> bool:
        """Whether the document exists now. Not cached."""
        ...


class DocumentCommandPort(Protocol[R, C_contra, U_contra]):
    """Writes. Each is acknowledged only after every cached copy of the old value is gone.

    Cost beyond the SQL: one round trip to the cache before the commit (overlapped with the
    SQL in an explicit transaction) and one after it. ``create`` costs none unless the id is
    given.
    """

    async def create(self, cmd: C_contra) -> R:
        """Store a new document. A duplicate id is a ``ConflictError``."""
        ...

    async def create_many(self, cmds: Sequence[C_contra]) -> list[R]:
        """Store all or none, in one statement."""
        ...

    async def update(self, id: DocumentId, rev: int, dto: U_contra) -> R:
        """Write the fields that were set on ``dto``. Raises ``NotFoundError``, or
        ``RevisionMismatch`` with the current revision. No change leaves ``rev`` as it is."""
        ...

    async def update_many(
        self, updates: Sequence[DocumentUpdate[Any] | tuple[DocumentId, int, Any]]
    ) -> list[R]:
        """:meth:`update` for each, all or none."""
        ...

    async def update_matching(
        self,
        filters: Filters,
        dto: U_contra,
        *,
        max_intents: int = 10_000,
        invalidate: Literal["each", "namespace"] = "each",
    ) -> int:
        """Write the set fields on every match; how many changed. More matches than
        ``max_intents`` are refused before the commit unless ``invalidate="namespace"``."""
        ...

    async def touch(self, id: DocumentId) -> R:
        """Raise ``rev`` and ``last_update_at`` without another change."""
        ...

    async def kill(self, id: DocumentId) -> None:
        """Remove the document for good. Raises ``NotFoundError``."""
        ...

    async def kill_many(self, ids: Sequence[DocumentId]) -> int:
        """Remove those that exist; how many did."""
        ...

    async def kill_matching(
        self,
        filters: Filters,
        *,
        max_intents: int = 10_000,
        invalidate: Literal["each", "namespace"] = "each",
    ) -> int:
        """Remove every match; how many. Limits as for :meth:`update_matching`."""
        ...


class Relations(NamedTuple):
    """The relations a store reads and writes, as ``schema.relation`` within one database.

    ``joined``: relations that a view shows under other ids than their own; a write to one
    drops everything cached. ``ttl_only``: writes to them do not invalidate, entries live out
    their TTL.
    ``tenant_aware``: rows belong to tenants, and so must cache entries.
    """

    reads: frozenset[str]
    writes: frozenset[str]
    joined: frozenset[str] = frozenset()
    ttl_only: bool = False
    tenant_aware: bool = False


class StoredPage(NamedTuple, Generic[R]):
    """A page as a store returns it: documents, and whether more follow."""

    items: list[R]
    more: bool


class DocumentStore(Protocol[R]):
    """What a database adapter implements: reads and writes without any cache.

    Inside a transaction opened on :attr:`manager` every call runs on it; outside, each call
    commits by itself (writes under a statement timeout below the intent deadline). Ids are
    UUIDs. ``values`` are validated field values in Python form.
    """

    @property
    def manager(self) -> TransactionManager: ...

    @property
    def relations(self) -> Relations: ...

    async def check(self) -> None:
        """Compare the relations with the models; raises ``ConfigurationError`` naming what differs.

        Called at start-up for the specs the runtime was told, and before the first use."""
        ...

    async def fetch(self, ids: Sequence[UUID], *, for_update: bool = False) -> dict[UUID, R]:
        """Those documents that exist, in one query."""
        ...

    async def find(
        self,
        filters: Filters,
        sort: Sort,
        limit: int,
        after: Sequence[Any] | None,
    ) -> StoredPage[R]:
        """A page; ``sort`` is complete (ends in id); ``after`` holds the last row's sort values."""
        ...

    async def find_ids(self, filters: Filters, sort: Sort, limit: int) -> list[UUID]:
        """The ids of what matches, in the order of a complete ``sort``, ``limit`` at most."""
        ...

    async def count(self, filters: Filters) -> int: ...

    async def insert(self, documents: Sequence[Document]) -> list[R]:
        """All or none; a duplicate id is a ``ConflictError`` naming it."""
        ...

    async def update(self, id: UUID, rev: int, values: Mapping[str, Any]) -> R:
        """Write ``values`` in one statement if ``rev`` is current; raise ``rev`` if any differs.

        Raises ``NotFoundError`` or ``RevisionMismatch``."""
        ...

    async def update_matching(self, filters: Filters, values: Mapping[str, Any]) -> list[UUID]:
        """Write ``values`` where they differ; the ids changed."""
        ...

    async def touch(self, id: UUID) -> R: ...

    async def domain(self, id: UUID) -> Document | None:
        """The stored document as its domain model, its row locked; needs a transaction."""
        ...

    async def delete(self, ids: Sequence[UUID]) -> list[UUID]:
        """Remove; the ids that existed."""
        ...

    async def delete_matching(self, filters: Filters) -> list[UUID]: ...


DocumentStoreFactory: TypeAlias = Factory[DocumentSpec[Any, Any, Any], DocumentStore[Any]]
DocumentStoreDepKey: DepKey[DocumentStoreFactory] = DepKey("document_store")

__all__ = [
    "OPERATORS",
    "BaseDTO",
    "DocumentCommandPort",
    "DocumentId",
    "DocumentQueryPort",
    "DocumentSpec",
    "DocumentStore",
    "DocumentStoreDepKey",
    "DocumentStoreFactory",
    "DocumentUpdate",
    "DocumentWriteTypes",
    "Filters",
    "Page",
    "Relations",
    "SnapshotPage",
    "Sort",
    "StoredPage",
]
