"""Values that are exactly what the OpenAPI document says of them, in URLs and in bodies.

Pydantic is lenient with what it parses: ``true`` is a price, ``0`` a time, ``off`` a flag. Its own
strictness is for Python's types; of JSON that was parsed it would refuse every time and UUID, and
``5.0`` for an integer (which JSON Schema has for one). So each type is made exact where the two
differ. And what no column holds (NUL in a text, an integer of more than 64 bits) is in the schema
as it is in the answers, so that whoever keeps to the one is not refused by the other.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from datetime import date, time, timedelta
from typing import Annotated, Any, Final

from annotated_types import Ge, Le
from pydantic import (
    AwareDatetime,
    BaseModel,
    BeforeValidator,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    NaiveDatetime,
    StringConstraints,
)
from pydantic_core import CoreSchema
from pydantic_core.core_schema import no_info_before_validator_function

_WITHOUT_NUL: Final = r"^[^\x00]*$"
_NUMBER: Final = re.compile(r"\s*[-+]?[0-9_.]+(?:[eE][-+]?[0-9]+)?\s*")


def _digits(value: object) -> object:
    if isinstance(value, str) and not re.fullmatch("-?[0-9]+", value):
        raise ValueError("write an integer in digits")
    return value


def _word(value: object) -> object:
    if isinstance(value, str) and value.lower() not in ("true", "false"):
        raise ValueError("write true or false")
    return value


def _spelled(value: object) -> object:
    if isinstance(value, int | float) or (isinstance(value, str) and _NUMBER.fullmatch(value)):
        raise ValueError("write it as text, as in ISO 8601")
    return value


def _whole(value: object) -> object:
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _of_64_bits(value: object) -> object:
    value = _whole(value)
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise ValueError("write an integer of 64 bits at most")
    return value


def _no_flag(value: object) -> object:
    if isinstance(value, bool):
        raise ValueError("write a number")
    return value


# -- in URLs ----------------------------------------------------------------------

Integer = Annotated[int, Ge(-(2**63)), Le(2**63 - 1), BeforeValidator(_digits)]
"""An integer as far as databases have them; ``+1.0`` is none."""

Revision = Annotated[int, Ge(1), Le(2**53 - 1), BeforeValidator(_digits)]
"""``rev`` of a document, as far as every JSON parser has it exactly."""

Text = Annotated[str, StringConstraints(pattern=_WITHOUT_NUL)]
Flag = Annotated[bool, BeforeValidator(_word)]
Instant = Annotated[AwareDatetime, BeforeValidator(_spelled)]
LocalInstant = Annotated[NaiveDatetime, BeforeValidator(_spelled)]
Day = Annotated[date, BeforeValidator(_spelled)]
TimeOfDay = Annotated[time, BeforeValidator(_spelled)]
Interval = Annotated[timedelta, BeforeValidator(_spelled)]


# -- in bodies --------------------------------------------------------------------

_BEFORE: Final[Mapping[str, Callable[[object], object]]] = {
    "int": _whole,
    "decimal": _no_flag,
    **dict.fromkeys(("datetime", "date", "time", "timedelta"), _spelled),
}
_NO_SCHEMA: Final = frozenset({"default", "serialization", "metadata", "config"})
_TOLD: Final = frozenset({"pattern", "format", "enum", "const", "maximum", "exclusiveMaximum"})


def _exact(node: Any) -> Any:
    """A core schema that takes JSON of the types its JSON schema names, and no other."""
    if isinstance(node, list):
        return [_exact(each) for each in node]
    if not isinstance(node, dict):
        return node
    node = {name: each if name in _NO_SCHEMA else _exact(each) for name, each in node.items()}
    kind = node.get("type")
    if kind in ("bool", "int", "float"):
        node.setdefault("strict", True)
    before = _BEFORE.get(kind) if isinstance(kind, str) else None
    if kind == "int" and not node.keys() & {"le", "lt"}:
        before = _of_64_bits
    return node if before is None else no_info_before_validator_function(before, node)


def _bound(node: Any) -> None:
    """Say of each text and integer below ``node`` what is held of it, where nothing is said."""
    if isinstance(node, list):
        for each in node:
            _bound(each)
    elif isinstance(node, dict):
        if node.get("type") == "string" and not node.keys() & _TOLD:
            node["pattern"] = _WITHOUT_NUL
        elif node.get("type") == "integer" and not node.keys() & _TOLD:
            node["format"] = "int64"
        for name, each in node.items():
            if name not in ("default", "example", "examples"):
                _bound(each)


class Exact(BaseModel):
    """A base of models whose fields are exact; models below theirs are as they are."""

    @classmethod
    def __get_pydantic_core_schema__(
        cls, source: type[BaseModel], handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        exact: CoreSchema = _exact(handler(source))
        return exact

    @classmethod
    def __get_pydantic_json_schema__(
        cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        schema = handler(core_schema)
        _bound(handler.resolve_ref_schema(schema).get("properties", {}))
        return schema
