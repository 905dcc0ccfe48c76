"""Filters and sorts, validated against the read model: what is asked, before how it is run.

Every store takes the result of these functions, so that all of them accept and refuse the
same, with the same words. Meaning, equal in every store:

- ``{"field": value}`` is ``{"field": {"eq": value}}``; a mapping is always operators, so a
  structured value is spelled ``{"field": {"eq": {...}}}``.
- ``eq: None`` and ``ne: None`` ask whether the value is missing, as ``is_null`` does.
- ``ne`` and ``not_in`` match documents without a value; ``lt lte gt gte in contains
  starts_with`` never do. An empty ``in`` matches nothing, an empty ``not_in`` everything.
- Missing values sort last, ascending and descending.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple

import pydantic
from pydantic import BaseModel

from forze.application.contracts.document import OPERATORS, Filters, Sort
from forze.application.integrations.document.fields import Field, Kind, fields_of
from forze.errors import ValidationError

_ORDERING = frozenset({"lt", "lte", "gt", "gte"})
_TEXTUAL = frozenset({"contains", "starts_with"})


class Condition(NamedTuple):
    """One test of one field; ``value`` in the field's Python form (a list for ``in``)."""

    field: str
    operator: str
    value: Any


class SortKey(NamedTuple):
    """One field to sort by."""

    field: str
    descending: bool


def parse_filters(model: type[BaseModel], filters: Filters) -> list[Condition]:
    """The conditions of ``filters``, all of which must hold, values as ``model`` types them.

    ``eq`` and ``ne`` of None come out as ``is_null``. Raises :class:`ValidationError` naming
    the field or operator that is unknown and those that exist, or the value that does not fit.
    """
    conditions: list[Condition] = []
    for name, wanted in filters.items():
        field = _known(model, name)
        tests = wanted if isinstance(wanted, Mapping) else {"eq": wanted}
        conditions.extend(_condition(model, field, operator, tests[operator]) for operator in tests)
    return conditions


def parse_sort(model: type[BaseModel], sort: Sort) -> list[SortKey]:
    """The keys of ``sort``, ending in ``id``; keys after ``id`` cannot matter and are dropped.

    Raises :class:`ValidationError` for an unknown, repeated or structured field.
    """
    if isinstance(sort, str):
        raise ValidationError(f"sort takes a list of field names; write [{sort!r}]", field="sort")
    keys: list[SortKey] = []
    for each in (*sort, "id"):
        field = _known(model, each.removeprefix("-"))
        if field.kind is Kind.JSON:
            raise ValidationError(
                f"{model.__name__}.{field.name} is structured and cannot be sorted by",
                field=field.name,
            )
        if any(key.field == field.name for key in keys):
            raise ValidationError(f"sort names {field.name!r} twice", field=field.name)
        keys.append(SortKey(field.name, each.startswith("-")))
        if field.name == "id":
            break
    return keys


def parse_after(model: type[BaseModel], keys: Sequence[SortKey], after: Sequence[Any]) -> list[Any]:
    """The sort values of the last row, one for each key, as ``model`` types them."""
    if len(after) != len(keys):
        raise ValidationError(
            f"after holds {len(after)} values for {len(keys)} sort keys; "
            "pass the cursor of the page before, with the same sort",
            field="after",
        )
    fields = fields_of(model)
    return [
        None if value is None else _coerced(model, fields[key.field], value)
        for key, value in zip(keys, after, strict=True)
    ]


def _known(model: type[BaseModel], name: str) -> Field:
    fields = fields_of(model)
    if name not in fields:
        raise ValidationError(
            f"{model.__name__} has no field {name!r}; it has {', '.join(fields)}", field=name
        )
    return fields[name]


def _condition(model: type[BaseModel], field: Field, operator: str, value: Any) -> Condition:
    where = f"{model.__name__}.{field.name}"
    if operator not in OPERATORS:
        raise ValidationError(
            f"{where}: no operator {operator!r}; there are {', '.join(sorted(OPERATORS))}"
            + (' (a structured value is spelled {"eq": {...}})' if field.kind is Kind.JSON else ""),
            field=field.name,
        )
    if operator == "is_null":
        if not isinstance(value, bool):
            raise ValidationError(f"{where}: is_null takes True or False", field=field.name)
        return Condition(field.name, "is_null", value)
    if value is None:
        if operator not in ("eq", "ne"):
            raise ValidationError(
                f"{where}: {operator} cannot compare with None; use is_null", field=field.name
            )
        return Condition(field.name, "is_null", operator == "eq")
    if operator in ("in", "not_in"):
        return Condition(field.name, operator, _members(model, field, operator, value))
    if operator in _ORDERING and field.kind is Kind.JSON:
        raise ValidationError(f"{where} is structured and has no order", field=field.name)
    if operator in _TEXTUAL:
        if field.kind is not Kind.TEXT or not isinstance(value, str):
            raise ValidationError(
                f"{where}: {operator} is for text and takes text", field=field.name
            )
        return Condition(field.name, operator, value)
    return Condition(field.name, operator, _coerced(model, field, value))


def _members(model: type[BaseModel], field: Field, operator: str, value: Any) -> list[Any]:
    if isinstance(value, str | bytes | Mapping) or not hasattr(value, "__iter__"):
        raise ValidationError(
            f"{model.__name__}.{field.name}: {operator} takes a list of values, not "
            f"{type(value).__name__}",
            field=field.name,
        )
    members = list(value)
    if any(each is None for each in members):
        raise ValidationError(
            f"{model.__name__}.{field.name}: {operator} cannot hold None; use is_null",
            field=field.name,
        )
    return [_coerced(model, field, each) for each in members]


def _coerced(model: type[BaseModel], field: Field, value: Any) -> Any:
    try:
        result = field.adapter.validate_python(value)
    except pydantic.ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        raise ValidationError(
            f"{model.__name__}.{field.name} cannot be compared with {value!r}: {first['msg']}",
            field=field.name,
        ) from error
    if field.kind is Kind.DATETIME and isinstance(result, datetime) and result.utcoffset() is None:
        raise ValidationError(
            f"{model.__name__}.{field.name}: {value!r} has no time zone; "
            "add one, for example tzinfo=datetime.UTC",
            field=field.name,
        )
    return result
