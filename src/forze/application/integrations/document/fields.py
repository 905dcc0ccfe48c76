"""What kind of value a model field holds: text, a number, a time, or structured (JSON).

The kind decides how a field may be filtered and sorted and what column it lives in. It is
a function of the annotation alone; optional fields have the kind of what they hold.
"""

from __future__ import annotations

import types
from collections.abc import Iterable
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from functools import lru_cache
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin
from uuid import UUID

from annotated_types import BaseMetadata, GroupedMetadata
from pydantic import BaseModel, ConfigDict, SecretBytes, SecretStr, TypeAdapter
from pydantic.errors import PydanticUserError
from pydantic.fields import FieldInfo

from forze.errors import ConfigurationError


class Kind(Enum):
    """The family of a field's values."""

    TEXT = "text"
    INTEGER = "integer"
    FLOAT = "float"
    DECIMAL = "decimal"
    BOOLEAN = "boolean"
    UUID = "uuid"
    DATETIME = "datetime"
    LOCAL_DATETIME = "datetime without time zone"
    DATE = "date"
    TIME = "time"
    INTERVAL = "interval"
    BYTES = "bytes"
    JSON = "json"


class Field(NamedTuple):
    """One field of a model, as filters and columns see it."""

    name: str
    kind: Kind
    nullable: bool
    adapter: TypeAdapter[Any]
    """Validates one value of the field; bounds such as ``ge=0`` left out."""


_SCALARS: tuple[tuple[type, Kind], ...] = (  # the narrower class first: bool is an int
    (bool, Kind.BOOLEAN),
    (int, Kind.INTEGER),
    (float, Kind.FLOAT),
    (Decimal, Kind.DECIMAL),
    (str, Kind.TEXT),
    (SecretStr, Kind.TEXT),
    (bytes, Kind.BYTES),
    (SecretBytes, Kind.BYTES),
    (UUID, Kind.UUID),
    (datetime, Kind.DATETIME),
    (date, Kind.DATE),
    (time, Kind.TIME),
    (timedelta, Kind.INTERVAL),
)


@lru_cache(maxsize=1024)
def fields_of(model: type[BaseModel]) -> dict[str, Field]:
    """The fields of ``model`` by name; raises ``ConfigurationError`` for one that cannot be
    validated on its own."""
    return {name: _field(model, name) for name in model.model_fields}


def _field(model: type[BaseModel], name: str) -> Field:
    info = model.model_fields[name]
    annotation = _unbounded(Annotated[info.annotation, *info.metadata, None])
    nullable, kind = classify(info.annotation)
    enums = model.model_config.get("use_enum_values", False)
    config = ConfigDict(
        use_enum_values=enums,
        ser_json_inf_nan="constants",  # left as they are, for the store to refuse, not nulled
        arbitrary_types_allowed=model.model_config.get("arbitrary_types_allowed", False),
    )
    try:
        try:
            adapter: TypeAdapter[Any] = TypeAdapter(annotation, config=config)
        except PydanticUserError:  # models bring their own config and refuse another
            adapter = TypeAdapter(annotation)
        if kind is None:
            kind = _by_schema(adapter)
    except (PydanticUserError, TypeError) as error:
        raise ConfigurationError(
            f"{model.__name__}.{name}: {error}; give the field a type pydantic can validate",
            name=name,
        ) from error
    return Field(name, kind, nullable, adapter)


def _unbounded(annotation: Any) -> Any:
    """The type without its bounds: what is compared with need not be a legal value."""
    origin = get_origin(annotation)
    if origin is Annotated:
        inner, *metadata = get_args(annotation)
        result = _unbounded(inner)
        for each in metadata:
            if not isinstance(each, BaseMetadata | GroupedMetadata | FieldInfo | None):
                result = Annotated[result, each]
        return result
    if origin in (Union, types.UnionType):
        return Union[tuple(_unbounded(part) for part in get_args(annotation))]  # noqa: UP007
    return annotation


def classify(annotation: Any) -> tuple[bool, Kind | None]:
    """``(nullable, kind)`` of a type; the kind is None when only its schema can tell."""
    while True:
        if get_origin(annotation) is Annotated:
            if any(type(each).__name__ == "NaiveDatetime" for each in annotation.__metadata__):
                return False, Kind.LOCAL_DATETIME
            annotation = get_args(annotation)[0]
        elif hasattr(annotation, "__supertype__"):
            annotation = annotation.__supertype__
        elif type(annotation).__name__ == "TypeAliasType":
            annotation = annotation.__value__
        else:
            break
    origin = get_origin(annotation)
    if origin in (Union, types.UnionType):
        parts = get_args(annotation)
        inner = [classify(part) for part in parts if part is not type(None)]
        kinds = {kind for _, kind in inner}
        nullable = len(inner) < len(parts) or any(optional for optional, _ in inner)
        return nullable, kinds.pop() if len(kinds) == 1 else Kind.JSON
    if origin is Literal:
        values = [each.value if isinstance(each, Enum) else each for each in get_args(annotation)]
        return None in values, _of_values(value for value in values if value is not None)
    if annotation is None or annotation is type(None) or annotation is Any:
        return True, Kind.JSON
    if origin is not None or not isinstance(annotation, type):
        return False, Kind.JSON
    return False, _of_class(annotation)


def _of_class(cls: type) -> Kind | None:
    if issubclass(cls, Enum):
        return _of_values(member.value for member in cls)
    if cls.__name__ == "NaiveDatetime":
        return Kind.LOCAL_DATETIME
    if cls.__module__ == "pydantic.types" and cls.__name__ in ("AwareDatetime", "PastDatetime"):
        return Kind.DATETIME
    for scalar, kind in _SCALARS:
        if issubclass(cls, scalar):
            return kind
    if issubclass(cls, BaseModel | list | dict | tuple | set | frozenset):
        return Kind.JSON
    return None


def _of_values(values: Iterable[Any]) -> Kind:
    kinds = {_of_class(type(value)) for value in values}
    return (kinds.pop() or Kind.JSON) if len(kinds) == 1 else Kind.JSON


_FORMATS = {"date-time": Kind.DATETIME, "date": Kind.DATE, "time": Kind.TIME, "uuid": Kind.UUID}


def _by_schema(adapter: TypeAdapter[Any]) -> Kind:
    """Of a class this module does not know (addresses, paths): text, if it is written as text."""
    try:
        schema = adapter.json_schema(mode="serialization")
    except PydanticUserError:
        return Kind.JSON
    options = [each for each in schema.get("anyOf", [schema]) if each.get("type") != "null"]
    if options and all(each.get("type") == "string" for each in options):
        return _FORMATS.get(options[0].get("format", ""), Kind.TEXT)
    return Kind.JSON
