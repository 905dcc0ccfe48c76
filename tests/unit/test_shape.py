"""Shapes are the same texts in every process, and others where models differ."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, Field, TypeAdapter
from pydantic_core import CoreSchema, core_schema

from forze.application.integrations.document.codec import repr_text, schema_digest, schema_text


class Odd:
    """What has no JSON schema."""

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: Any) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(lambda value: value)


def trimmed(value: Any) -> Any:
    return value


class Defaults(BaseModel):
    colors: set[str] = {"red", "green", "blue", "white"}
    sizes: frozenset[str] = Field(frozenset({"s", "m", "l"}), examples=[{"s", "xl", "xxl"}])


class Opaque(BaseModel):
    odd: Annotated[Odd, BeforeValidator(trimmed)]


def shapes() -> list[str]:
    """Of what sets and addresses are in."""
    return [
        schema_digest(Defaults, ""),
        schema_digest(Opaque, ""),
        repr_text(Annotated[Odd, BeforeValidator(trimmed)]),
        schema_text(TypeAdapter(Defaults).json_schema(mode="serialization")),
    ]


def test_two_processes_make_the_same() -> None:
    code = "from tests.unit.test_shape import shapes; print(shapes())"
    texts = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(sys.path)},
            capture_output=True,
            check=True,
            text=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(texts) == 1


def test_a_set_as_a_default_has_no_order() -> None:
    one, other = ({"default": given, "type": "array"} for given in (["b", "a"], ["a", "b"]))
    assert schema_text(one) == schema_text(other)


def test_other_lists_keep_theirs() -> None:
    one, other = ({"anyOf": given} for given in ([{"type": "null"}, {}], [{}, {"type": "null"}]))
    assert schema_text(one) != schema_text(other)


def test_no_address_is_in_a_text() -> None:
    assert repr_text(trimmed) == "<function trimmed>"
