"""Document models: identity, immutability, the fields every document has."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pydantic
import pytest

from forze.domain.models import (
    BaseDTO,
    CreateDocumentCmd,
    Document,
    ReadDocument,
    utcnow,
    uuid7,
)


class Thing(Document):
    name: str


def test_a_new_document_is_the_first_revision_now() -> None:
    before = datetime.now(UTC)
    thing = Thing(name="a")
    assert thing.rev == 1
    assert before <= thing.created_at <= datetime.now(UTC)
    assert thing.created_at.utcoffset() == timedelta(0)
    assert thing.last_update_at.utcoffset() == timedelta(0)


def test_ids_are_uuid7_and_rise_with_time() -> None:
    made = [uuid7() for _ in range(1_000)]
    assert {each.version for each in made} == {7}
    assert len(set(made)) == 1_000
    assert made == sorted(made)
    assert Thing(name="a").id.version == 7


def test_the_id_holds_the_time_it_was_made() -> None:
    stamp = uuid7().int >> 80
    assert abs(stamp / 1000 - utcnow().timestamp()) < 10


def test_a_domain_model_validates_what_is_assigned() -> None:
    thing = Thing(name="a")
    thing.name = "b"
    with pytest.raises(pydantic.ValidationError):
        thing.name = 1  # type: ignore[assignment]
    assert thing.name == "b"


@pytest.mark.parametrize("model", [BaseDTO, CreateDocumentCmd, ReadDocument])
def test_what_travels_cannot_be_changed(model: type[BaseDTO]) -> None:
    assert model.model_config["frozen"] is True
    command = CreateDocumentCmd()
    with pytest.raises(pydantic.ValidationError):
        command.id = uuid7()  # type: ignore[misc]
    assert command.id is None


def test_a_read_model_has_the_four_fields_and_demands_them() -> None:
    assert list(ReadDocument.model_fields) == ["id", "rev", "created_at", "last_update_at"]
    assert all(field.is_required() for field in ReadDocument.model_fields.values())
    read = ReadDocument.model_validate(Thing(name="a").model_dump())
    assert ReadDocument.model_validate_json(read.model_dump_json()) == read
