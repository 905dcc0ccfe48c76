"""The query of a list: filters, sort, page, from the parameters of the URL to the port's terms.

Whatever is not known is refused, as is a value given twice where one is meant: a filter that is
misspelled and ignored answers another question than the one asked.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Annotated, Any, Final, NamedTuple

from annotated_types import Ge, Le
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, create_model
from starlette.datastructures import QueryParams

from forze.domain.models import ReadDocument
from forze.errors import ConfigurationError, ValidationError
from forze_fastapi.documents.filters import (
    LISTS,
    Filterable,
    Test,
    public_name,
    sortable_fields,
    tests_of,
)

PAGING: Final = ("limit", "cursor", "sort")
_CURSOR: Final = "^[A-Za-z0-9_-]{40,}={0,2}$"


class Asked(NamedTuple):
    """What a list was asked for, in the names of the read model."""

    filters: dict[str, dict[str, Any]]
    sort: list[str]
    limit: int
    cursor: str | None


class Listing:
    """The query parameters of one read model's list; ``model`` describes and validates them."""

    def __init__(
        self,
        read: type[ReadDocument],
        *,
        filterable: Filterable | None,
        sortable: Collection[str] | None,
        page_size: int,
        max_page_size: int,
    ) -> None:
        # Attributes have names of their own: what the parameters are called need be no identifier.
        self._tests = {f"test_{i}": test for i, test in enumerate(tests_of(read, filterable))}
        self._sortable = {public_name(read, name): name for name in sortable_fields(read, sortable)}
        self._repeatable = {t.parameter for t in self._tests.values() if t.operator in LISTS}
        _refuse_clashes(read, list(self._tests.values()))
        fields: dict[str, Any] = {
            attribute: (test.annotation, _field(test.parameter, test.about))
            for attribute, test in self._tests.items()
        }
        self.model: type[BaseModel] = create_model(
            f"{read.__name__}Query",
            __config__=ConfigDict(extra="forbid"),
            **fields,
            **_paging(tuple(self._sortable), page_size, max_page_size),
        )

    def asked(self, given: Any, sent: QueryParams) -> Asked:
        """What the validated parameters mean; ``sent`` is them as they came."""
        self._refuse_repeated(sent)
        filters: dict[str, dict[str, Any]] = {}
        for attribute, test in self._tests.items():
            value = getattr(given, attribute)
            if value is not None:
                filters.setdefault(test.field, {})[test.operator] = value
        return Asked(filters, self._keys(getattr(given, "sort", None)), given.limit, given.cursor)

    def _refuse_repeated(self, sent: QueryParams) -> None:
        for name in sent.keys() - self._repeatable:
            if len(sent.getlist(name)) > 1:
                several = f"{name}__in"
                hint = f"; {several} takes several" if several in self._repeatable else ""
                raise ValidationError(f"{name} takes one value, not several{hint}", field=name)

    def _keys(self, sort: str | None) -> list[str]:
        """The keys of a sort; a field that is named again cannot matter any more."""
        keys: dict[str, str] = {}
        for each in sort.split(",") if sort else ():
            name = self._sortable[each.removeprefix("-")]
            keys.setdefault(name, f"-{name}" if each.startswith("-") else name)
        return list(keys.values())


def _paging(sortable: tuple[str, ...], page_size: int, max_page_size: int) -> dict[str, Any]:
    limit = Annotated[int, Ge(1), Le(max_page_size)]
    paging: dict[str, Any] = {
        "limit": (limit, Field(page_size, description="The most documents on the page.")),
        "cursor": (
            Annotated[str, StringConstraints(pattern=_CURSOR)],
            _field("cursor", "`next_cursor` of the page before; the rest as it was there."),
        ),
    }
    if sortable:
        key = f"-?({'|'.join(re.escape(each) for each in sortable)})"
        paging["sort"] = (
            Annotated[str, StringConstraints(pattern=f"^{key}(,{key})*$")],
            _field(
                "sort",
                "Fields to sort by, with commas between; `-` in front of one for descending. "
                "Missing values come last, and `id` breaks ties.",
            ),
        )
    return paging


def _field(parameter: str, about: str) -> Any:
    return Field(default=None, alias=parameter, description=about)


def _refuse_clashes(read: type[ReadDocument], tests: list[Test]) -> None:
    taken: dict[str, str] = dict.fromkeys(PAGING, "the page")
    for test in tests:
        if test.parameter in taken:
            raise ConfigurationError(
                f"{read.__name__}.{test.field}: to filter by it the query parameter would be "
                f"{test.parameter!r}, which is {taken[test.parameter]}'s; name the fields to "
                "filter by in filterable=, and leave this one out",
                name="filterable",
            )
        taken[test.parameter] = test.field
