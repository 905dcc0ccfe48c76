"""Filters and sorts: what is accepted, how it is typed, what the refusals say."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal
from enum import Enum
from typing import Annotated, Any, Literal
from uuid import UUID, uuid4

import pytest
from pydantic import BaseModel, Field, NaiveDatetime, PositiveInt, StringConstraints

from forze.application.integrations.document.fields import Kind, fields_of
from forze.application.integrations.document.filters import (
    Condition,
    SortKey,
    parse_after,
    parse_filters,
    parse_sort,
)
from forze.domain.models import ReadDocument
from forze.errors import ValidationError


class Size(Enum):
    SMALL = 1
    LARGE = 2


class Part(BaseModel):
    weight: int


class Book(ReadDocument):
    title: str
    price: int = Field(default=0, ge=5)
    cost: Decimal | None = None
    size: Size | None = None
    pages: PositiveInt | None = None
    code: Annotated[str, StringConstraints(min_length=3)] = "abc"
    genre: Literal["a", "b"] = "a"
    parts: list[Part] = Field(default_factory=list)
    printed: NaiveDatetime | None = None
    either: int | str = 1


def test_values_take_the_type_of_their_field() -> None:
    pk = uuid4()
    assert parse_filters(Book, {"id": str(pk), "price": {"gte": "3", "lt": 10}}) == [
        Condition("id", "eq", pk),
        Condition("price", "gte", 3),
        Condition("price", "lt", 10),
    ]
    assert parse_filters(Book, {"cost": {"in": ["1.50", 2]}, "size": 2}) == [
        Condition("cost", "in", [Decimal("1.50"), Decimal(2)]),
        Condition("size", "eq", Size.LARGE),
    ]
    seen = parse_filters(Book, {"created_at": {"gt": "2024-01-02T03:04:05Z"}})[0].value
    assert seen == datetime(2024, 1, 2, 3, 4, 5, tzinfo=UTC)


def test_what_is_compared_with_need_not_be_a_legal_value() -> None:
    wanted = {"price": {"gt": 0}, "pages": {"gt": -1}, "code": "x"}
    assert [each.value for each in parse_filters(Book, wanted)] == [0, -1, "x"]


def test_none_asks_for_missing() -> None:
    assert parse_filters(
        Book, {"cost": None, "size": {"ne": None}, "pages": {"is_null": True}}
    ) == [
        Condition("cost", "is_null", True),
        Condition("size", "is_null", False),
        Condition("pages", "is_null", True),
    ]


def test_a_structured_value_is_compared_whole() -> None:
    assert parse_filters(Book, {"parts": {"eq": [{"weight": "1"}]}}) == [
        Condition("parts", "eq", [Part(weight=1)])
    ]


@pytest.mark.parametrize(
    ("filters", "says"),
    [
        ({"titel": "x"}, ("'titel'", "title, price")),
        ({"price": {"like": 1}}, ("'like'", "starts_with")),
        ({"parts": {"weight": 1}}, ("'weight'", '{"eq"')),
        ({"price": "many"}, ("price", "'many'")),
        ({"price": {"lt": None}}, ("price", "is_null")),
        ({"price": {"is_null": 1}}, ("True or False",)),
        ({"price": {"in": 3}}, ("list",)),
        ({"title": {"in": "abc"}}, ("list",)),
        ({"cost": {"in": [None]}}, ("is_null",)),
        ({"price": {"contains": "1"}}, ("text",)),
        ({"title": {"contains": 1}}, ("text",)),
        ({"parts": {"gt": []}}, ("no order",)),
        ({"created_at": {"gt": "2024-01-01T00:00:00"}}, ("time zone",)),
        ({"id": "1"}, ("Book.id",)),
    ],
)
def test_refusals_name_what_is_wrong(filters: Any, says: tuple[str, ...]) -> None:
    with pytest.raises(ValidationError) as caught:
        parse_filters(Book, filters)
    assert all(word in str(caught.value) for word in says), str(caught.value)
    assert caught.value.field == next(iter(filters))


def test_a_sort_ends_in_id() -> None:
    assert parse_sort(Book, []) == [SortKey("id", False)]
    assert parse_sort(Book, ["-price", "title"]) == [
        SortKey("price", True),
        SortKey("title", False),
        SortKey("id", False),
    ]
    assert parse_sort(Book, ["-id", "title"]) == [SortKey("id", True)]


@pytest.mark.parametrize("sort", [["prize"], ["price", "-price"], ["parts"], "price", ["--price"]])
def test_sorts_that_cannot_be(sort: Any) -> None:
    with pytest.raises(ValidationError):
        parse_sort(Book, sort)


def test_the_last_row_is_typed_like_the_model() -> None:
    keys, pk = parse_sort(Book, ["cost"]), uuid4()
    assert parse_after(Book, keys, ["1.5", str(pk)]) == [Decimal("1.5"), pk]
    assert parse_after(Book, keys, [None, pk]) == [None, pk]
    with pytest.raises(ValidationError):
        parse_after(Book, keys, [pk])


def test_kinds() -> None:
    kinds = {name: (field.kind, field.nullable) for name, field in fields_of(Book).items()}
    assert kinds == {
        "id": (Kind.UUID, False),
        "rev": (Kind.INTEGER, False),
        "created_at": (Kind.DATETIME, False),
        "last_update_at": (Kind.DATETIME, False),
        "title": (Kind.TEXT, False),
        "price": (Kind.INTEGER, False),
        "cost": (Kind.DECIMAL, True),
        "size": (Kind.INTEGER, True),
        "pages": (Kind.INTEGER, True),
        "code": (Kind.TEXT, False),
        "genre": (Kind.TEXT, False),
        "parts": (Kind.JSON, False),
        "printed": (Kind.LOCAL_DATETIME, True),
        "either": (Kind.JSON, False),
    }
    assert isinstance(fields_of(Book)["id"].adapter.validate_python(str(uuid4())), UUID)
