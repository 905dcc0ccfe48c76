"""The document the batteries work on, in the shapes they need it.

An adapter's leg registers stores for these specs: ``items`` and ``summaries`` over one
relation, ``owned_items`` tenant-aware over another, all with the columns of :class:`Item`;
caches under the same names (``owned_items`` tenant-aware), and the transaction route
``items``.
"""

from __future__ import annotations

from datetime import datetime

from pydantic import Field

from forze.application.contracts.cache import CacheSpec
from forze.application.contracts.document import DocumentSpec, DocumentWriteTypes
from forze.domain.models import BaseDTO, CreateDocumentCmd, Document, ReadDocument


class Details(BaseDTO):
    """A nested model: one JSON column."""

    colour: str
    sizes: list[int] = Field(default_factory=list)


class Item(Document):
    """A document with a field of every kind that stores treat differently."""

    name: str
    price: int
    note: str | None = None
    tags: list[str] = Field(default_factory=list)
    details: Details | None = None
    released_at: datetime | None = None


class ItemCreate(CreateDocumentCmd):
    """Creates an :class:`Item`."""

    name: str
    price: int
    note: str | None = None
    tags: list[str] = Field(default_factory=list)
    details: Details | None = None
    released_at: datetime | None = None


class ItemUpdate(BaseDTO):
    """Changes an :class:`Item`; None is a value where the field allows it."""

    name: str | None = None
    price: int | None = None
    note: str | None = None
    tags: list[str] | None = None
    details: Details | None = None
    released_at: datetime | None = None


class ItemRead(ReadDocument):
    """The whole item."""

    name: str
    price: int
    note: str | None
    tags: list[str]
    details: Details | None
    released_at: datetime | None


class ItemSummary(ReadDocument):
    """Less of it: another read model over the same relation."""

    name: str


_WRITE = DocumentWriteTypes(domain=Item, create_cmd=ItemCreate, update_cmd=ItemUpdate)

ITEMS: DocumentSpec[ItemRead, ItemCreate, ItemUpdate] = DocumentSpec(
    name="items", read=ItemRead, write=_WRITE, cache=CacheSpec(name="items")
)
SUMMARIES: DocumentSpec[ItemSummary, ItemCreate, ItemUpdate] = DocumentSpec(
    name="summaries", read=ItemSummary, cache=CacheSpec(name="summaries")
)
OWNED_ITEMS: DocumentSpec[ItemRead, ItemCreate, ItemUpdate] = DocumentSpec(
    name="owned_items", read=ItemRead, write=_WRITE, cache=CacheSpec(name="owned_items")
)
