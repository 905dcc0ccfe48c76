"""Document specs: both spellings of ``write``, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import BaseModel

from forze.application.contracts.cache import CacheSpec
from forze.application.contracts.document import DocumentSpec, DocumentWriteTypes
from forze.domain.models import BaseDTO, CreateDocumentCmd, Document, ReadDocument
from forze.errors import ConfigurationError


class Thing(Document):
    name: str


class ThingCreate(CreateDocumentCmd):
    name: str


class ThingUpdate(BaseDTO):
    name: str | None = None


Spec = DocumentSpec[Any, Any, Any]


def test_a_dict_and_the_class_are_one_spec() -> None:
    types = DocumentWriteTypes(domain=Thing, create_cmd=ThingCreate, update_cmd=ThingUpdate)
    spelled = {"domain": Thing, "create_cmd": ThingCreate, "update_cmd": ThingUpdate}
    by_class: Spec = DocumentSpec(name="a", read=ReadDocument, write=types)
    by_dict: Spec = DocumentSpec(name="a", read=ReadDocument, write=spelled)
    assert by_class == by_dict
    assert by_dict.write == by_dict.write_types == types


def test_what_can_be_left_out() -> None:
    read_only: Spec = DocumentSpec(name="a", read=ReadDocument)
    assert read_only.write_types is None
    assert read_only.cache is None
    no_update: Spec = DocumentSpec(
        name="a", read=ReadDocument, write={"domain": Thing, "create_cmd": ThingCreate}
    )
    assert no_update.write_types is not None
    assert no_update.write_types.update_cmd is None


def test_specs_are_values() -> None:
    cache = CacheSpec(name="a")
    assert DocumentSpec(name="a", read=ReadDocument, cache=cache) == DocumentSpec(
        name="a", read=ReadDocument, cache=CacheSpec(name="a")
    )
    assert DocumentSpec(name="a", read=ReadDocument) != DocumentSpec(
        name="a", read=ReadDocument, cache=cache
    )


def test_a_spec_needs_a_name() -> None:
    with pytest.raises(ConfigurationError, match="name is empty") as info:
        DocumentSpec(name="", read=ReadDocument)
    assert info.value.name == "name"


@pytest.mark.parametrize("read", [BaseModel, Document, dict, None, "ReadDocument"])
def test_read_must_be_a_read_model(read: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"'a'.* subclass of ReadDocument") as info:
        DocumentSpec(name="a", read=read)
    assert info.value.name == "read"


@pytest.mark.parametrize(
    ("write", "words"),
    [
        ({}, ["missing ['create_cmd', 'domain']"]),
        ({"domain": Thing}, ["missing ['create_cmd']"]),
        (
            {"domain": Thing, "create_cmd": ThingCreate, "update": ThingUpdate},
            ["unknown ['update']", "update_cmd"],
        ),
    ],
)
def test_a_dict_with_wrong_keys_is_refused_by_name(write: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(ConfigurationError, match="'a'") as info:
        DocumentSpec(name="a", read=ReadDocument, write=write)
    for word in words:
        assert word in str(info.value)
    assert info.value.known == ("create_cmd", "domain", "update_cmd")
