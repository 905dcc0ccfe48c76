"""SQL text: identifiers quoted, values bound, nothing else from outside in between."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from forze.application.integrations.document.fields import Field
from forze.application.integrations.document.filters import Condition, SortKey

Encode = Callable[[str, Any], Any]


def quoted(*names: str) -> str:
    """An identifier, or a qualified one."""
    return ".".join('"' + name.replace('"', '""') + '"' for name in names)


def listed(names: Sequence[str]) -> str:
    """Identifiers with commas between."""
    return ", ".join(quoted(name) for name in names)


class Arguments:
    """The values of one statement, in the order of their placeholders."""

    def __init__(self, *values: Any) -> None:
        self.values: list[Any] = list(values)

    def bind(self, value: Any) -> str:
        """Add a value; its placeholder."""
        self.values.append(value)
        return f"${len(self.values)}"


_COMPARISONS = {"eq": "=", "lt": "<", "lte": "<=", "gt": ">", "gte": ">="}


def condition_sql(condition: Condition, encode: Encode, arguments: Arguments) -> str:
    """One condition; missing values behave as ``filters`` documents it."""
    name, operator, value = condition
    column = quoted(name)
    if operator == "is_null":
        return f"{column} IS {'' if value else 'NOT '}NULL"
    if operator in ("contains", "starts_with"):
        pattern = _escaped(value) + "%"
        if operator == "contains":
            pattern = "%" + pattern
        return rf"CAST({column} AS text) LIKE {arguments.bind(pattern)} ESCAPE '\'"
    if operator in ("in", "not_in"):
        return _membership(column, operator, [encode(name, each) for each in value], arguments)
    bound = arguments.bind(encode(name, value))
    if operator == "ne":
        return f"{column} IS DISTINCT FROM {bound}"
    return f"{column} {_COMPARISONS[operator]} {bound}"


def _membership(column: str, operator: str, values: list[Any], arguments: Arguments) -> str:
    if not values:
        return "FALSE" if operator == "in" else "TRUE"
    bound = arguments.bind(values)
    if operator == "in":
        return f"{column} = ANY({bound})"
    return f"({column} IS NULL OR {column} <> ALL({bound}))"


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")


def order_sql(keys: Sequence[SortKey], fields: dict[str, Field]) -> str:
    """The order of ``keys``, missing values last."""
    return ", ".join(
        quoted(key.field)
        + (" DESC" if key.descending else "")
        + (" NULLS LAST" if key.descending and fields[key.field].nullable else "")
        for key in keys
    )


def after_sql(
    keys: Sequence[SortKey],
    values: Sequence[Any],
    fields: dict[str, Field],
    encode: Encode,
    arguments: Arguments,
) -> str:
    """True of the rows behind the one with ``values``, in the order of ``keys``.

    Keys of one direction that cannot be missing compare as one row, which an index can serve;
    otherwise a row is behind if it is at the first key that differs.
    """
    bound = [
        None if value is None else arguments.bind(encode(key.field, value))
        for key, value in zip(keys, values, strict=True)
    ]
    directions = {key.descending for key in keys}
    if (
        len(directions) == 1
        and None not in bound
        and not any(fields[key.field].nullable for key in keys)
    ):
        sign = "<" if keys[0].descending else ">"
        return f"({listed([key.field for key in keys])}) {sign} ({', '.join(map(str, bound))})"
    ties: list[str] = []
    alternatives: list[str] = []
    for key, place in zip(keys, bound, strict=True):
        column = quoted(key.field)
        if place is not None:
            beyond = f"{column} {'<' if key.descending else '>'} {place}"
            if fields[key.field].nullable:
                beyond = f"({beyond} OR {column} IS NULL)"
            alternatives.append(" AND ".join([*ties, beyond]))
        ties.append(f"{column} IS NULL" if place is None else f"{column} = {place}")
    return "(" + " OR ".join(f"({each})" for each in alternatives) + ")"


def uuid_list(placeholder: str) -> str:
    """Ids bound as text: the driver knows that array type without asking the server."""
    return f"ANY(CAST({placeholder}::text[] AS uuid[]))"
