"""Between the fields of a model and the columns of a row: both directions, bound once.

A column has its field's name. Structured fields are ``jsonb``, written and read as JSON text
by pydantic, so that the driver needs no codec of its own for them. A row becomes an instance
by the model's own validation.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import datetime
from enum import Enum
from typing import Any, Generic, TypeVar
from uuid import UUID

import asyncpg
import pydantic
from pydantic import BaseModel, SecretBytes, SecretStr
from pydantic_core import PydanticSerializationError

from forze.application.integrations.document.fields import Field, Kind, fields_of
from forze.errors import BackendCorrupt, ConfigurationError, ValidationError
from forze_postgres.errors import BACKEND

M = TypeVar("M", bound=BaseModel)

TYPES: dict[Kind, tuple[str, ...]] = {
    Kind.TEXT: ("text", "varchar", "citext", "enum"),
    Kind.INTEGER: ("int8", "int4", "int2", "numeric"),
    Kind.FLOAT: ("float8", "float4"),
    Kind.DECIMAL: ("numeric",),
    Kind.BOOLEAN: ("bool",),
    Kind.UUID: ("uuid",),
    Kind.DATETIME: ("timestamptz",),
    Kind.LOCAL_DATETIME: ("timestamp",),
    Kind.DATE: ("date",),
    Kind.TIME: ("time", "timetz"),
    Kind.INTERVAL: ("interval",),
    Kind.BYTES: ("bytea",),
    Kind.JSON: ("jsonb",),
}
"""The column types (or domains over them) that hold a kind exactly; the usual one first."""


class Columns(Generic[M]):
    """The columns of one model."""

    def __init__(self, model: type[M]) -> None:
        self.model = model
        self.fields = fields_of(model)
        self.names = tuple(self.fields)
        self._encoders = {name: _encoder(model, field) for name, field in self.fields.items()}
        self._decoders = [
            (name, decoder)
            for name, field in self.fields.items()
            if (decoder := _decoder(field)) is not None
        ]
        self._validate = model.__pydantic_validator__.validate_python

    def encode(self, name: str, value: Any) -> Any:
        """``value`` of field ``name`` as the driver takes it.

        Raises ``ValidationError`` for what would not come back equal.
        """
        return None if value is None else self._encoders[name](value)

    def load(self, row: asyncpg.Record) -> M:
        """The instance a row stands for; raises ``BackendCorrupt`` if the model refuses it."""
        values = dict(row)
        try:
            for name, decode in self._decoders:
                value = values[name]
                if value is not None:
                    values[name] = decode(value)
            result: M = self._validate(values, by_alias=False, by_name=True)
        except pydantic.ValidationError as error:
            first = error.errors(include_url=False, include_context=False)[0]
            field = ".".join(str(part) for part in first["loc"]) or "document"
            raise BackendCorrupt(
                f"the row {row['id']} does not fit {self.model.__name__} ({field}: "
                f"{first['msg']}); change the model, or the row",
                backend=BACKEND,
            ) from error
        return result


def _encoder(model: type[BaseModel], field: Field) -> Callable[[Any], Any]:
    where = f"{model.__name__}.{field.name}"
    match field.kind:
        case Kind.JSON:
            return _json_encoder(where, field)
        case Kind.TEXT:
            return _text_encoder(field)
        case Kind.DATETIME:
            return _datetime_encoder(where)
    return _plain


def _plain(value: Any) -> Any:
    if isinstance(value, Enum):
        return value.value
    return value.get_secret_value() if isinstance(value, SecretStr | SecretBytes) else value


def _text_encoder(field: Field) -> Callable[[Any], Any]:
    def encode(value: Any) -> Any:
        value = _plain(value)
        return value if isinstance(value, str) else field.adapter.dump_python(value, mode="json")

    return encode


def _datetime_encoder(where: str) -> Callable[[Any], Any]:
    def encode(value: Any) -> Any:
        value = _plain(value)
        if isinstance(value, datetime) and value.utcoffset() is None:
            raise ValidationError(
                f"{where}: {value} has no time zone; add one, for example tzinfo=datetime.UTC",
                field=where.rpartition(".")[2],
            )
        return value

    return encode


def _json_encoder(where: str, field: Field) -> Callable[[Any], str]:
    _refuse_secrets(where, field)

    def encode(value: Any) -> str:
        try:
            data = field.adapter.dump_python(
                value, mode="json", by_alias=False, round_trip=True, warnings="error"
            )
            return json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        except (PydanticSerializationError, ValueError, TypeError) as error:
            raise ValidationError(
                f"{where}: the value cannot be stored as JSON: {error}", field=field.name
            ) from error

    return encode


def _refuse_secrets(where: str, field: Field) -> None:
    try:
        schema = field.adapter.json_schema()
    except pydantic.PydanticUserError:
        return
    if '"writeOnly": true' in json.dumps(schema):
        raise ConfigurationError(
            f"{where}: a secret inside a structured value would be stored as asterisks; "
            "give it a field of its own",
            name=field.name,
        )


def _decoder(field: Field) -> Callable[[Any], Any] | None:
    if field.kind is Kind.UUID:
        return _uuid
    if field.kind is Kind.JSON:
        adapter = field.adapter
        return lambda text: adapter.validate_json(text, by_alias=False, by_name=True)
    return None


def _uuid(value: UUID) -> UUID:
    """The driver's subclass as a plain UUID, which pickles and compares by type anywhere."""
    return UUID(int=value.int)
