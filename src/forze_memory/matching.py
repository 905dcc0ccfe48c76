"""Filters, sort and keyset on stored columns; what they mean is said in ``filters``."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from functools import cmp_to_key
from typing import Any

from forze.application.integrations.document.filters import Condition, SortKey
from forze_memory.columns import stored

Columns = Mapping[str, Any]

_COMPARISONS: dict[str, Callable[[Any, Any], bool]] = {
    "eq": operator.eq,
    "ne": operator.ne,
    "lt": operator.lt,
    "lte": operator.le,
    "gt": operator.gt,
    "gte": operator.ge,
    "in": lambda value, operand: value in operand,
    "not_in": lambda value, operand: value not in operand,
    "contains": lambda value, operand: operand in value,
    "starts_with": lambda value, operand: value.startswith(operand),
}


def matcher(conditions: Sequence[Condition]) -> Callable[[Columns], bool]:
    """Whether a row meets every condition."""
    wanted = [(each.field, each.operator, stored(each.value)) for each in conditions]
    return lambda columns: all(
        _holds(columns.get(field), operation, operand) for field, operation, operand in wanted
    )


def _holds(value: Any, operation: str, operand: Any) -> bool:
    if operation == "is_null":
        return (value is None) is operand
    if value is None:
        return operation in ("ne", "not_in")
    return _COMPARISONS[operation](value, operand)


def order(keys: Sequence[SortKey]) -> Callable[[Columns], Any]:
    """A key for :func:`sorted`."""
    return cmp_to_key(
        lambda one, other: compare(
            [one.get(key.field) for key in keys], [other.get(key.field) for key in keys], keys
        )
    )


def compare(one: Sequence[Any], other: Sequence[Any], keys: Sequence[SortKey]) -> int:
    """Which of two rows' sort values comes first: below zero for ``one``."""
    for left, right, key in zip(one, other, keys, strict=True):
        if left == right:
            continue
        if left is None or right is None:
            return 1 if left is None else -1
        return -1 if (left < right) is not key.descending else 1
    return 0
