"""Bodies come back as the value they were made of, or are not cached at all."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, Literal

import pydantic
import pytest
from pydantic import ConfigDict, Field, SecretStr, computed_field

from forze.application.integrations.direct_cache import decode_value, encode_value
from forze.application.integrations.document.codec import (
    RAW_MARK,
    SEAL_MARK,
    DocumentCodec,
    seal,
    unseal,
)
from forze.domain.models import BaseDTO, ReadDocument, uuid7
from forze.errors import BackendCorrupt

NOW = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)


class Size(BaseDTO):
    width: int
    unit: Literal["cm", "in"] = "cm"


class Plain(ReadDocument):
    name: str
    price: Decimal | None = None
    size: Size | None = None
    tags: tuple[str, ...] = ()


class Listed(ReadDocument):
    tags: list[str]


class Thawed(ReadDocument):
    model_config = ConfigDict(frozen=False)
    name: str


class Aliased(ReadDocument):
    full_name: str = Field(alias="fullName")


class Computed(ReadDocument):
    model_config = ConfigDict(extra="forbid")
    price: int

    @computed_field  # type: ignore[prop-decorator]
    @property
    def double(self) -> int:
        return 2 * self.price


class Secret(ReadDocument):
    token: SecretStr


def made(model: type[Any], **values: Any) -> Any:
    return model(id=uuid7(), rev=3, created_at=NOW, last_update_at=NOW, **values)


@pytest.mark.parametrize(
    "document",
    [
        made(Plain, name="Ünïcode \x00 / {}", price=Decimal("1.10"), size=Size(width=3)),
        made(Listed, tags=["a", "b"]),
        made(Aliased, fullName="x"),
        made(Computed, price=4),
    ],
    ids=lambda each: type(each).__name__,
)
def test_the_same_value_comes_back(document: Any) -> None:
    codec = DocumentCodec(type(document), "things")
    body = codec.encode(document)
    assert body is not None
    assert codec.decode(body) == document
    assert json.loads(body)["rev"] == 3, "fields stand at the top level"


def test_what_json_loses_is_not_cached() -> None:
    codec = DocumentCodec(Secret, "things")
    assert codec.encode(made(Secret, token="hidden")) is None


def test_a_body_of_another_shape_does_not_decode() -> None:
    codec = DocumentCodec(Plain, "things")
    with pytest.raises(pydantic.ValidationError):
        codec.decode(b'{"name": 1}')


@pytest.mark.parametrize(
    ("model", "shareable"),
    [(Plain, True), (Listed, False), (Thawed, False), (Size, True), (Aliased, True)],
)
def test_only_what_nobody_can_change_is_shared(model: Any, shareable: bool) -> None:
    assert DocumentCodec(model, "things").shareable is shareable


def test_a_copy_of_a_changeable_document_is_its_own() -> None:
    document = made(Listed, tags=["a"])
    twin = DocumentCodec(Listed, "things").copy(document)
    twin.tags.append("b")
    assert document.tags == ["a"]


def test_the_fingerprint_tells_schemas_and_documents_apart() -> None:
    prints = [
        DocumentCodec(model, scope).fingerprint
        for model in (Plain, Listed, Secret)
        for scope in ("things", "others")
    ]
    assert len(set(prints)) == 6
    assert {len(each) for each in prints} == {8}
    assert prints[0] == DocumentCodec(Plain, "things").fingerprint


@pytest.mark.parametrize("body", [b"{}", b'{"name":"a\\nb"}', b"a\nb\x01\n", b""])
@pytest.mark.parametrize("load_ms", [0, 7, 86_400_000])
def test_an_envelope_holds_the_body_and_what_its_load_took(body: bytes, load_ms: int) -> None:
    assert unseal(seal(body, load_ms)) == (body, load_ms)


@pytest.mark.parametrize("body", [b"{}", b"", b"1\n{}", RAW_MARK + b"{}"])
def test_what_is_in_no_envelope_comes_out_as_it_is(body: bytes) -> None:
    assert unseal(body) == (body, None)


@pytest.mark.parametrize(
    "broken", [b"", b"\n{}", b"5{}", b"x\n{}", b"-5\n{}", b"5.0\n{}", b"9" * 5000 + b"\n{}"]
)
def test_a_broken_envelope_decodes_to_nothing(broken: bytes) -> None:
    body, load_ms = unseal(SEAL_MARK + broken)
    assert load_ms is None
    with pytest.raises(pydantic.ValidationError):
        DocumentCodec(Plain, "things").decode(body)
    with pytest.raises(BackendCorrupt, match="'k'"):
        decode_value("k", SEAL_MARK + broken)


def test_no_stored_value_is_taken_for_an_envelope() -> None:
    for value in (SEAL_MARK + b"5\n{}", b"\x01", "\x01", {"\x01": 1}, 1, None):
        assert decode_value("k", encode_value("k", value, 1000)) == value
    assert decode_value("k", seal(b'{"a": 1}', 5)) == {"a": 1}
