"""Document models: pydantic, nothing of storage.

A *domain* model (:class:`Document`) holds the invariants and is what is stored; a *read*
model (:class:`ReadDocument`) is what queries return; commands and updates are DTOs.
"""

from __future__ import annotations

from datetime import UTC, datetime
from uuid import UUID

import uuid_utils.compat
from pydantic import BaseModel, ConfigDict, Field


def utcnow() -> datetime:
    """The current time, aware, in UTC."""
    return datetime.now(UTC)


def uuid7() -> UUID:
    """A new time-ordered UUID (RFC 9562, version 7)."""
    return uuid_utils.compat.uuid7()


class BaseDTO(BaseModel):
    """Data that travels: immutable once made."""

    model_config = ConfigDict(frozen=True)


class CreateDocumentCmd(BaseDTO):
    """What it takes to create a document; subclasses add the fields.

    ``id`` may be given by the caller; left out, the document gets a new UUIDv7.
    """

    id: UUID | None = None


class Document(BaseModel):
    """A stored document: identity, revision, times, and the fields of the subclass.

    ``rev`` starts at 1 and rises with every update that changes something.
    """

    model_config = ConfigDict(validate_assignment=True)

    id: UUID = Field(default_factory=uuid7)
    rev: int = 1
    created_at: datetime = Field(default_factory=utcnow)
    last_update_at: datetime = Field(default_factory=utcnow)


class ReadDocument(BaseDTO):
    """What a query returns; subclasses add the fields. Immutable, so that it can be shared."""

    id: UUID
    rev: int
    created_at: datetime
    last_update_at: datetime
