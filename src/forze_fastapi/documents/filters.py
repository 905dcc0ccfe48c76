"""Which query parameters filter a list: each field of the read model with each of its operators.

``?color=red&price__gte=10&id__in=a&id__in=b``: a field's name asks for equality,
``field__operator`` for the other operators, a list is a parameter given several times. Each one
is typed and stands in the OpenAPI document.

Brackets (``price[gte]``) were the alternative: they have to be percent-encoded, mean something
to shells and to curl, and leave generated clients without a name for the argument.
"""

from __future__ import annotations

import types
from collections.abc import Collection, Iterator, Mapping
from decimal import Decimal
from enum import Enum
from typing import Annotated, Any, Final, Literal, NamedTuple, Union, get_args, get_origin
from uuid import UUID

from annotated_types import MaxLen
from pydantic import BaseModel, Field, SecretBytes, SecretStr, WithJsonSchema

from forze.application.integrations.document.fields import Kind, fields_of
from forze.errors import ConfigurationError
from forze_fastapi.documents.exact import (
    Day,
    Flag,
    Instant,
    Integer,
    Interval,
    LocalInstant,
    Text,
    TimeOfDay,
)

EQUALITY: Final = ("eq", "ne", "in", "not_in")
ORDER: Final = ("lt", "lte", "gt", "gte")
TEXTUAL: Final = ("contains", "starts_with")
LISTS: Final = frozenset({"in", "not_in"})

MOST_MEMBERS: Final = 100
"""The most values of one list."""

_DIGITS: Final = 1_000  # a number such as 1e999999999 takes an instant to write and ages to compare

_TYPES: Final[Mapping[Kind, Any]] = {
    Kind.TEXT: Text,
    Kind.INTEGER: Integer,
    Kind.FLOAT: Annotated[float, Field(allow_inf_nan=False)],
    Kind.DECIMAL: Annotated[Decimal, Field(max_digits=_DIGITS), WithJsonSchema({"type": "number"})],
    Kind.BOOLEAN: Flag,
    Kind.UUID: UUID,
    Kind.DATETIME: Instant,
    Kind.LOCAL_DATETIME: LocalInstant,
    Kind.DATE: Day,
    Kind.TIME: TimeOfDay,
    Kind.INTERVAL: Interval,
}

_PHRASES: Final = {
    "eq": "is this",
    "ne": "is not this, or missing",
    "in": "is one of these; given once for each of them",
    "not_in": "is none of these, or missing; given once for each of them",
    "lt": "is less than this",
    "lte": "is at most this",
    "gt": "is greater than this",
    "gte": "is at least this",
    "contains": "contains this text, case-sensitive",
    "starts_with": "begins with this text, case-sensitive",
    "is_null": "is missing (true) or not (false)",
}

Filterable = Collection[str] | Mapping[str, Collection[str]]
"""Fields to filter by: by every operator of their type, or by those named for each."""


class Test(NamedTuple):
    """One query parameter that filters."""

    parameter: str
    field: str
    operator: str
    annotation: Any
    about: str


def tests_of(read: type[BaseModel], filterable: Filterable | None) -> Iterator[Test]:
    """The parameters for the fields in ``filterable``; None is all that can be filtered by.

    Raises ``ConfigurationError`` for a field or an operator that does not exist.
    """
    for name, operators in _chosen(read, filterable).items():
        shown = public_name(read, name)
        for operator in operators:
            parameter = shown if operator == "eq" else f"{shown}__{operator}"
            about = f"`{shown}` {_PHRASES[operator]}."
            yield Test(parameter, name, operator, _annotation(read, name, operator), about)


def public_name(read: type[BaseModel], name: str) -> str:
    """What a field is called in JSON."""
    field = read.model_fields[name]
    return field.serialization_alias or field.alias or name


def sortable_fields(read: type[BaseModel], wanted: Collection[str] | None) -> list[str]:
    """The fields to sort by; None is all that are shown and have an order."""
    possible = [
        name
        for name, field in fields_of(read).items()
        if field.kind is not Kind.JSON and _shown(read, name)
    ]
    _refuse_strangers(read, "sortable", wanted or (), possible)
    return possible if wanted is None else list(wanted)


def _chosen(read: type[BaseModel], wanted: Filterable | None) -> Mapping[str, Collection[str]]:
    possible = {name: _operators(read, name) for name in read.model_fields}
    if wanted is None:
        return possible
    _refuse_strangers(read, "filterable", wanted, [name for name in possible if possible[name]])
    if not isinstance(wanted, Mapping):
        return {name: possible[name] for name in wanted}
    for name, operators in wanted.items():
        _refuse_strangers(read, f"filterable[{name!r}]", operators, possible[name])
    return wanted


def _refuse_strangers(
    read: type[BaseModel], what: str, given: Collection[str], known: Collection[str]
) -> None:
    strangers = [given] if isinstance(given, str) else [each for each in given if each not in known]
    if strangers:
        raise ConfigurationError(
            f"{read.__name__}: {what}= has {strangers[0]!r}; it takes a collection of "
            f"{', '.join(sorted(known))}",
            name=what,
            known=known,
        )


def _operators(read: type[BaseModel], name: str) -> tuple[str, ...]:
    """The operators a query parameter can ask for; none where the value is not shown, or
    cannot be written as one."""
    field = fields_of(read)[name]
    if field.kind not in _TYPES or not _shown(read, name):
        return ()
    null = ("is_null",) if field.nullable else ()
    if field.kind is Kind.BOOLEAN:
        return ("eq", "ne", *null)
    if field.kind is Kind.UUID or _enumeration(read, name) is not None:
        return (*EQUALITY, *null)
    return (*EQUALITY, *ORDER, *(TEXTUAL if field.kind is Kind.TEXT else ()), *null)


def _annotation(read: type[BaseModel], name: str, operator: str) -> Any:
    if operator == "is_null":
        return Flag
    if operator in TEXTUAL:
        return Text
    each = _enumeration(read, name) or _TYPES[fields_of(read)[name].kind]
    return Annotated[list[each], MaxLen(MOST_MEMBERS)] if operator in LISTS else each  # type: ignore[valid-type]


def _shown(read: type[BaseModel], name: str) -> bool:
    """Whether an answer shows the field: what it hides must not be found out by asking."""
    bare = _bare(read.model_fields[name].annotation)
    secret = isinstance(bare, type) and issubclass(bare, SecretStr | SecretBytes)
    return not read.model_fields[name].exclude and not secret


def _enumeration(read: type[BaseModel], name: str) -> Any:
    """The type of a field whose values are so many words, None for any other."""
    bare = _bare(read.model_fields[name].annotation)
    listed = get_origin(bare) is Literal or (isinstance(bare, type) and issubclass(bare, Enum))
    return bare if listed and fields_of(read)[name].kind is Kind.TEXT else None


def _bare(annotation: Any) -> Any:
    """The type without what annotates it, and without None."""
    while True:
        parts = [each for each in get_args(annotation) if each is not type(None)]
        origin = get_origin(annotation)
        if origin is Annotated or (origin in (Union, types.UnionType) and len(parts) == 1):
            annotation = parts[0]
        else:
            return annotation
