"""The command port: writes, each acknowledged only after the caches know of it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Generic, Literal, TypeVar
from uuid import UUID

import pydantic
from pydantic import BaseModel

from forze.application.contracts.deps import Resolver
from forze.application.contracts.document import (
    C,
    DocumentId,
    DocumentSpec,
    DocumentStore,
    DocumentUpdate,
    Filters,
    R,
    U,
)
from forze.application.contracts.transaction import Transaction, pinned, transaction_of
from forze.application.integrations.document.filling import not_found
from forze.application.integrations.document.query import document_id
from forze.application.integrations.document.writes import (
    Invalidation,
    Outlet,
    write_through,
)
from forze.domain.models import CreateDocumentCmd, Document
from forze.errors import ConfigurationError, ConflictError, RevisionMismatch, ValidationError

T = TypeVar("T")

OWN_FIELDS = frozenset({"id", "rev", "created_at", "last_update_at"})
"""Fields that only the library writes."""

Invalidate = Literal["each", "namespace"]
Targets = Callable[[], Sequence[Outlet]]


class DocumentCommand(Generic[R, C, U]):
    """Writes of one document kind. Implements ``DocumentCommandPort``.

    ``outlets`` gives every cache that holds something of the relations written to; they
    are told inside the transaction that ``transact`` opens, or around a single statement.
    """

    def __init__(
        self,
        spec: DocumentSpec[R, C, U],
        store: DocumentStore[R],
        resolver: Resolver,
        outlets: Targets,
        transact: Callable[[], Any],
    ) -> None:
        types = spec.write_types
        if types is None:
            raise ConfigurationError(
                f"document {spec.name!r} is read-only: its DocumentSpec has no write=",
                name=spec.name,
            )
        self._name = spec.name
        self._types = types
        self._domain: type[Document] = types.domain
        self._store = store
        self._resolver = resolver
        self._outlets = outlets
        self._transact = transact
        self._blank = types.domain.model_construct()
        self._whole = bool(types.domain.__pydantic_decorators__.model_validators)

    # -- create --------------------------------------------------------------

    async def create(self, cmd: C) -> R:
        """Store a new document; no round trip to the cache unless the id is given."""
        return (await self.create_many((cmd,)))[0]

    async def create_many(self, cmds: Sequence[C]) -> list[R]:
        """Store all or none, in one statement."""
        if not cmds:
            return []
        documents = [self._new(cmd) for cmd in cmds]
        given = [new.id for new, cmd in zip(documents, cmds, strict=True) if cmd.id is not None]
        return await self._write(given, lambda: self._store.insert(documents))

    def _new(self, cmd: C) -> Document:
        given: object = cmd
        if not isinstance(given, CreateDocumentCmd):
            raise ValidationError(
                f"{self._name}: a document is made of a {self._types.create_cmd.__name__}, "
                f"not of {type(given).__name__}",
                field="cmd",
            )
        values = {name: getattr(cmd, name) for name in type(cmd).model_fields}
        if cmd.id is None:
            del values["id"]
        with _domain_errors(self._name):
            return self._domain.model_validate(values, by_name=True)

    # -- update --------------------------------------------------------------

    async def update(self, id: DocumentId, rev: int, dto: U) -> R:
        """Write the fields set on ``dto`` on top of ``rev``."""
        pk, values = document_id(id), self._set_fields(dto)
        if not self._whole:
            values = self._checked(values)
            return await self._write((pk,), lambda: self._store.update(pk, rev, values))
        async with self._transact() as transaction:
            return await self._update_whole(transaction, pk, rev, values)

    async def update_many(
        self, updates: Sequence[DocumentUpdate[Any] | tuple[DocumentId, int, Any]]
    ) -> list[R]:
        """Update all or none; rows are locked in the order of their ids."""
        wanted = [(document_id(pk), rev, self._set_fields(dto)) for pk, rev, dto in updates]
        if len({pk for pk, _, _ in wanted}) < len(wanted):
            raise ValidationError("update_many: the same id twice; merge the updates", field="id")
        written: dict[UUID, R] = {}
        async with self._transact() as transaction:
            self._announce(transaction, [pk for pk, _, _ in wanted])
            for pk, rev, values in sorted(wanted, key=lambda each: each[0]):
                if self._whole:
                    written[pk] = await self._update_whole(transaction, pk, rev, values)
                else:
                    written[pk] = await self._store.update(pk, rev, self._checked(values))
        return [written[pk] for pk, _, _ in wanted]

    async def update_matching(
        self,
        filters: Filters,
        dto: U,
        *,
        max_intents: int = 10_000,
        invalidate: Invalidate = "each",
    ) -> int:
        """Write the set fields on every match; how many changed."""
        if self._whole:
            raise ConfigurationError(
                f"{self._name}: {self._domain.__name__} validates the document as a whole, which "
                "one statement over many rows cannot; update them one by one",
                name=self._name,
            )
        values = self._checked(self._set_fields(dto))
        return await self._matching(
            lambda: self._store.update_matching(filters, values), max_intents, invalidate
        )

    async def touch(self, id: DocumentId) -> R:
        """Raise ``rev`` and ``last_update_at``."""
        pk = document_id(id)
        return await self._write((pk,), lambda: self._store.touch(pk))

    async def _update_whole(
        self, transaction: Transaction, pk: UUID, rev: int, values: Mapping[str, Any]
    ) -> R:
        """Read, validate the whole document as it will be, write; inside a transaction."""
        current = await self._store.domain(pk)
        if current is None:
            raise not_found(self._name, (pk,))
        if current.rev != rev:
            raise RevisionMismatch(resource=self._name, id=pk, expected=rev, current=current.rev)
        before = {name: getattr(current, name) for name in type(current).model_fields}
        with _domain_errors(self._name):
            after = self._domain.model_validate({**before, **values}, by_name=True)
        changed = {
            name: getattr(after, name)
            for name in before
            if name not in OWN_FIELDS and (name in values or getattr(after, name) != before[name])
        }
        self._announce(transaction, (pk,))
        return await self._store.update(pk, rev, changed)

    def _set_fields(self, dto: U) -> dict[str, Any]:
        if self._types.update_cmd is None:
            raise ConfigurationError(
                f"{self._name}: its DocumentWriteTypes has no update_cmd, so it is never updated; "
                "give it one",
                name=self._name,
            )
        given: object = dto
        if not isinstance(given, BaseModel):
            raise ValidationError(
                f"{self._name}: an update is a {self._types.update_cmd.__name__}, "
                f"not {type(given).__name__}",
                field="dto",
            )
        values = {name: getattr(dto, name) for name in dto.model_fields_set}
        fixed = values.keys() & OWN_FIELDS
        unknown = values.keys() - self._domain.model_fields.keys()
        if fixed or unknown:
            raise ValidationError(
                f"{self._name}: an update cannot set {', '.join(sorted(fixed | unknown))}; "
                f"it can set {', '.join(sorted(self._domain.model_fields.keys() - OWN_FIELDS))}",
                field=min(fixed | unknown),
            )
        return values

    def _checked(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """The values as the domain's fields accept them."""
        blank = self._blank.model_copy()
        with _domain_errors(self._name):
            for name, value in values.items():
                self._domain.__pydantic_validator__.validate_assignment(blank, name, value)
        return {name: getattr(blank, name) for name in values}

    # -- kill ----------------------------------------------------------------

    async def kill(self, id: DocumentId) -> None:
        """Remove the document for good."""
        pk = document_id(id)
        if not await self._write((pk,), lambda: self._store.delete((pk,))):
            raise not_found(self._name, (pk,))

    async def kill_many(self, ids: Sequence[DocumentId]) -> int:
        """Remove those that exist; how many did."""
        pks = list(dict.fromkeys(document_id(each) for each in ids))
        return len(await self._write(pks, lambda: self._store.delete(pks))) if pks else 0

    async def kill_matching(
        self, filters: Filters, *, max_intents: int = 10_000, invalidate: Invalidate = "each"
    ) -> int:
        """Remove every match; how many."""
        return await self._matching(
            lambda: self._store.delete_matching(filters), max_intents, invalidate
        )

    # -- telling the caches --------------------------------------------------

    async def _write(self, pks: Sequence[UUID], statement: Callable[[], Awaitable[T]]) -> T:
        transaction = transaction_of(self._store.manager)
        if transaction is None:
            return await write_through(self._resolver, self._outlets, pks, statement)
        self._announce(transaction, pks)
        with pinned(transaction):
            return await statement()

    def _announce(self, transaction: Transaction, pks: Sequence[UUID]) -> None:
        if pks:
            Invalidation.of(transaction, self._resolver).write(self._outlets, pks)

    async def _matching(
        self,
        statement: Callable[[], Awaitable[list[UUID]]],
        max_intents: int,
        invalidate: Invalidate,
    ) -> int:
        async with self._transact() as transaction:
            pks = await statement()
            if invalidate == "namespace":
                write = Invalidation.of(transaction, self._resolver)
                for outlet in self._outlets():
                    write.clear_after(outlet)
            elif len(pks) > max_intents and self._outlets():
                raise ConflictError(
                    f"{self._name}: {len(pks)} documents match, more than max_intents="
                    f"{max_intents}; nothing was changed. Narrow the filter, raise max_intents, "
                    'or pass invalidate="namespace" (cached copies may then live to their TTL)',
                    resource=self._name,
                )
            else:
                self._announce(transaction, pks)
        return len(pks)


class _domain_errors:
    """Turns what the domain model refuses into a :class:`ValidationError`."""

    __slots__ = ("_name",)

    def __init__(self, name: str) -> None:
        self._name = name

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, pydantic.ValidationError):
            first = error.errors(include_url=False, include_context=False)[0]
            field = ".".join(str(part) for part in first["loc"]) or None
            raise ValidationError(
                f"{self._name}: {field or 'document'}: {first['msg']}"
                + (f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""),
                field=field,
            ) from error
