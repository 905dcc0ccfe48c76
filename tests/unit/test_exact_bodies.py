"""Bodies take JSON of the types that their schema names, and no other."""

from __future__ import annotations

from datetime import date, datetime, timedelta
from decimal import Decimal
from typing import Annotated, Any

import pytest
from pydantic import BeforeValidator, Field, ValidationError

from forze.domain.models import BaseDTO, CreateDocumentCmd
from forze_fastapi.documents.bodies import create_body, update_body


class Everything(CreateDocumentCmd):
    on: bool = False
    count: int = 0
    huge: Annotated[int, Field(le=10**30)] = 0
    ratio: float = 0.0
    amount: Decimal = Decimal(0)
    at: datetime | None = None
    day: date | None = None
    span: timedelta | None = None
    words: list[str] = Field(default_factory=list)
    counts: dict[str, int] = Field(default_factory=dict)
    lax: Annotated[int, Field(strict=False)] = 0
    read_by_us: Annotated[int, BeforeValidator(lambda text: int(text.removesuffix(" pcs")))] = 0


BODY = create_body(Everything)
ID = "01890000-0000-7000-8000-000000000000"


@pytest.mark.parametrize(
    ("name", "value", "read"),
    [
        ("on", True, True), ("count", 5, 5), ("count", 5.0, 5), ("count", -(2**63), -(2**63)),
        ("huge", 10**30, 10**30), ("ratio", 1, 1.0), ("amount", "1.50", Decimal("1.50")),
        ("amount", 1, Decimal(1)), ("at", "2026-01-02T03:04:05", datetime(2026, 1, 2, 3, 4, 5)),
        ("at", None, None), ("day", "2026-01-02", date(2026, 1, 2)),
        ("span", "P1DT2S", timedelta(days=1, seconds=2)), ("words", ["0"], ["0"]),
        ("counts", {"a": 1.0}, {"a": 1}), ("lax", "5", 5), ("read_by_us", "7 pcs", 7),
    ],
)  # fmt: skip
def test_what_the_schema_names_is_taken(name: str, value: Any, read: Any) -> None:
    body = BODY.model_validate({name: value, "id": ID})
    assert (getattr(body, name), type(getattr(body, name))) == (read, type(read))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("on", 0), ("on", "true"), ("count", True), ("count", "5"), ("count", 5.5),
        ("count", 2**63), ("count", -(2**63) - 1), ("count", 1e30), ("ratio", "1.5"),
        ("ratio", False), ("amount", True), ("at", 0), ("at", "0"), ("at", "1.5e3"), ("at", 2.5),
        ("day", 86_400), ("span", 5), ("span", "5"), ("words", [1]), ("counts", {"a": "1"}),
    ],
)  # fmt: skip
def test_what_it_does_not_name_is_refused(name: str, value: Any) -> None:
    with pytest.raises(ValidationError) as caught:
        BODY.model_validate({name: value})
    assert [each["loc"][0] for each in caught.value.errors()] == [name]


def test_the_schema_says_what_is_held() -> None:
    told = BODY.model_json_schema()["properties"]
    assert told["count"]["format"] == told["counts"]["additionalProperties"]["format"] == "int64"
    assert told["words"]["items"] == {"type": "string", "pattern": r"^[^\x00]*$"}
    assert "format" not in told["huge"]
    assert told["at"]["anyOf"][0] == {"type": "string", "format": "date-time"}


class Change(BaseDTO):
    count: int = 0


def test_a_change_is_told_to_have_a_revision_and_may_have_another_way() -> None:
    body: Any = update_body(Change)
    schema = body.model_json_schema()
    assert schema["required"] == ["rev"]
    assert schema["properties"]["rev"]["type"] == "integer"
    assert "default" not in schema["properties"]["rev"]
    for given, rev in (({}, None), ({"rev": None}, None), ({"rev": 3}, 3), ({"rev": 3.0}, 3)):
        assert body.model_validate(given).rev == rev
    for nonsense in (0, "3", True, 2**53):
        with pytest.raises(ValidationError):
            body.model_validate({"rev": nonsense})
