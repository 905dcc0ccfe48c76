"""What can be chosen about the routes of a document kind."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, NoReturn, TypeAlias, get_args

from fastapi.params import Depends

from forze.application.contracts.document import DocumentSpec
from forze.application.integrations.document.query import MAX_PAGE
from forze.errors import ConfigurationError
from forze_fastapi.documents.filters import Filterable

Operation: TypeAlias = Literal["get", "list", "create", "update", "delete"]
"""One route; in this order they are looked at for each request."""

Pages: TypeAlias = Literal["keyset", "snapshot"]
"""Pages of what is there now, or of a search that stands still (``DocumentSpec.snapshot``)."""

OPERATIONS: Final[tuple[Operation, ...]] = get_args(Operation)
REPEATABLE: Final = frozenset({"create", "update", "delete"})


@dataclass(frozen=True, slots=True, kw_only=True)
class EndpointOptions:
    """The options of :func:`~forze_fastapi.attach_document_endpoints`, checked."""

    document: DocumentSpec[Any, Any, Any]
    include: Collection[Operation] | None
    exclude: Collection[Operation]
    idempotent: Collection[Operation]
    prefix: str | None
    name: str | None
    tags: Sequence[str] | None
    dependencies: Sequence[Depends] | Mapping[Operation, Sequence[Depends]]
    filterable: Filterable | None
    sortable: Collection[str] | None
    page_size: int
    max_page_size: int
    pages: Pages
    share_snapshots: bool
    etag: bool | None
    cache_control: str | None
    vary: Sequence[str]
    max_body_bytes: int

    def __post_init__(self) -> None:
        spec: object = self.document
        if not isinstance(spec, DocumentSpec):
            self._refuse("document", f"is a DocumentSpec, not {spec!r}")
        self._check_operations("include", self.include or (), self.possible)
        self._check_operations("exclude", self.exclude, OPERATIONS)
        self._check_operations("idempotent", self.idempotent, REPEATABLE)
        if isinstance(self.dependencies, Mapping):
            self._check_operations("dependencies", self.dependencies, OPERATIONS)
        if self.pages not in get_args(Pages):
            self._refuse("pages", f'is "keyset" or "snapshot", not {self.pages!r}')
        if self.pages == "snapshot" and self.document.snapshot is None:
            self._refuse("pages", 'is "snapshot", and the DocumentSpec has no snapshot=')
        if not 1 <= self.max_page_size <= MAX_PAGE:
            self._refuse("max_page_size", f"is 1 to {MAX_PAGE}, not {self.max_page_size!r}")
        if not 1 <= self.page_size <= self.max_page_size:
            self._refuse("page_size", f"is 1 to max_page_size, not {self.page_size!r}")
        for option in ("vary", "tags"):
            if isinstance(getattr(self, option), str):
                self._refuse(option, f"is several names; write ({getattr(self, option)!r},)")
        if self.prefix and not self.prefix.startswith("/"):
            self._refuse("prefix", f"begins with a slash, or is empty, not {self.prefix!r}")
        if self.max_body_bytes < 1:
            self._refuse("max_body_bytes", f"is at least 1, not {self.max_body_bytes!r}")
        if not re.fullmatch(r"\w+", self.slug, re.ASCII):
            self._refuse("name", f"is made of letters, digits and _, not {self.name!r}")

    @property
    def slug(self) -> str:
        """What the names of the operations begin with."""
        return self.name or re.sub(r"\W+", "_", self.document.name, flags=re.ASCII)

    @property
    def possible(self) -> tuple[Operation, ...]:
        """What the spec allows."""
        types = self.document.write_types
        if types is None:
            return ("get", "list")
        if types.update_cmd is None:
            return ("get", "list", "create", "delete")
        return OPERATIONS

    @property
    def operations(self) -> list[Operation]:
        """What there will be routes for."""
        wanted = self.possible if self.include is None else self.include
        return [each for each in self.possible if each in wanted and each not in self.exclude]

    def dependencies_of(self, operation: Operation) -> list[Depends]:
        """What a route depends on beyond its own."""
        given = self.dependencies
        return list(given.get(operation, ()) if isinstance(given, Mapping) else given)

    def _check_operations(
        self, option: str, given: Collection[str], known: Collection[str]
    ) -> None:
        strangers = [given] if isinstance(given, str) else sorted(set(given) - set(known))
        if strangers:
            hint = ""
            if strangers[0] in OPERATIONS and option == "include":
                hint = " (its DocumentSpec has no write types for more)"
            self._refuse(
                option, f"has {strangers[0]!r}; there are {', '.join(sorted(known))}{hint}"
            )

    def _refuse(self, option: str, why: str) -> NoReturn:
        name = getattr(self.document, "name", "?")
        raise ConfigurationError(
            f"attach_document_endpoints, document {name!r}: {option} {why}", name=option
        )
