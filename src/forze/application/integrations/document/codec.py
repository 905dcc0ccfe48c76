"""How a read model becomes a cached body and comes back: bare JSON, fields at the top level.

The first byte of what is stored says what it is, since no JSON text begins with a mark:
``RAW_MARK`` raw bytes stored directly, ``SEAL_MARK`` an envelope (:func:`seal`) that tells
readers who refresh early what the load cost, anything else the JSON itself.

A body is only cached if decoding it gives the very value back, so that a model whose JSON
loses something (a secret, a lossy serializer) is never served from the cache as another
value than the source's.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from functools import cached_property
from types import UnionType
from typing import Any, Generic, Literal, Protocol, TypeVar, Union, get_args, get_origin
from uuid import UUID

import pydantic
from pydantic import BaseModel

from forze.application.contracts.document import R
from forze.application.integrations.document.protocol import SCHEMA_CHARS

_IMMUTABLE = (
    bool, int, float, complex, str, bytes, type(None), UUID, Decimal, Enum,
    date, datetime, time, timedelta,
)  # fmt: skip

RAW_MARK = b"\x00"
"""Begins a body of raw bytes."""

SEAL_MARK = b"\x01"
"""Begins an envelope."""

V = TypeVar("V")

LOAD_DIGITS = 15
"""No load takes a number of milliseconds with more of them."""


def seal(body: bytes, load_ms: int) -> bytes:
    """``body`` in an envelope that tells how many milliseconds its load took."""
    return b"%b%d\n%b" % (SEAL_MARK, load_ms, body)


def unseal(stored: bytes) -> tuple[bytes, int | None]:
    """The body and its load's milliseconds: None where there is no envelope.

    A broken envelope holds an empty body, which decodes to nothing.
    """
    if not stored.startswith(SEAL_MARK):
        return stored, None
    head, found, body = stored.partition(b"\n")
    load = head[len(SEAL_MARK) :]
    if not found or not load.isdigit() or len(load) > LOAD_DIGITS:
        return b"", None
    return body, int(load)


class Codec(Protocol[V]):
    """How values of one kind become bodies and come back, and what is known of their age."""

    @property
    def shareable(self) -> bool:
        """Whether one instance may be handed to several callers."""
        ...

    @property
    def decode(self) -> Callable[[bytes], V]:
        """Makes the value of a body; raises for one that is of another kind."""
        ...

    def encode(self, document: V) -> bytes | None:
        """The body of a value; None if it must not be cached."""
        ...

    def copy(self, document: V) -> V:
        """The value itself if it can be shared, else an equal one of its own."""
        ...

    def version(self, document: V) -> int:
        """What an early refresh never lowers."""
        ...

    def changed_at(self, document: V) -> datetime:
        """Since when the value is as it is."""
        ...


class DocumentCodec(Generic[R]):
    """Encodes and decodes one read model. ``scope`` separates documents that share a model."""

    def __init__(self, model: type[R], scope: str) -> None:
        self.model = model
        self.fingerprint = schema_digest(model, scope)[:SCHEMA_CHARS]
        self.shareable = immutable(model, set())
        """Whether one instance may be handed to several callers."""
        validator = model.__pydantic_validator__
        aliased = any(
            field.alias or field.validation_alias for field in model.model_fields.values()
        )
        self.decode: Callable[[bytes], R] = (
            (lambda body: validator.validate_json(body, by_name=True, by_alias=False))
            if aliased
            else validator.validate_json
        )
        """The document in ``body``; raises :class:`pydantic.ValidationError`."""

    def encode(self, document: R) -> bytes | None:
        """The body of ``document``; None if decoding it would not give the same value back."""
        serializer = self.model.__pydantic_serializer__
        try:
            body = serializer.to_json(document, by_alias=False, round_trip=True)
            return body if self.decode(body) == document else None
        except (pydantic.ValidationError, ValueError, TypeError):
            return None

    def copy(self, document: R) -> R:
        """``document`` itself if it can be shared, else an equal one of its own."""
        return document if self.shareable else document.model_copy(deep=True)

    def version(self, document: R) -> int:
        """The document's revision."""
        return document.rev

    def changed_at(self, document: R) -> datetime:
        """When it was written last."""
        return document.last_update_at


def schema_digest(
    model: type[BaseModel], scope: str, mode: Literal["validation", "serialization"] = "validation"
) -> str:
    """Tells the shapes of models apart, as they are read or as they are written out; equal in
    every process. ``scope`` separates documents that share a model."""
    try:
        schema = schema_text(model.model_json_schema(mode=mode))
    except pydantic.PydanticUserError:
        # A custom type without a JSON schema: its annotation has to speak for it.
        schema = repr_text({name: repr(field) for name, field in model.model_fields.items()})
    return hashlib.sha256(f"{scope}\0{schema}".encode()).hexdigest()


def schema_text(schema: dict[str, Any]) -> str:
    """A JSON schema as a text that is equal in every process.

    Older pydantics list a set that is a default in the order of the process's hashes.
    """
    return _json(_settled(schema, values=False))


def repr_text(value: object) -> str:
    """``repr(value)`` without addresses, which are another one in each process."""
    return _ADDRESS.sub("", repr(value))


_ADDRESS = re.compile(r" at 0x[0-9A-Fa-f]+")

_VALUES = ("default", "examples")
"""Keywords of JSON schema under which there are values, and with them sets."""


def _settled(node: Any, *, values: bool) -> Any:
    if isinstance(node, dict):
        return {key: _settled(each, values=values or key in _VALUES) for key, each in node.items()}
    if isinstance(node, list):
        items = [_settled(each, values=values) for each in node]
        return sorted(items, key=_json) if values else items
    return node


def _json(value: Any) -> str:
    return json.dumps(value, sort_keys=True)


def immutable(annotation: Any, seen: set[Any]) -> bool:
    """Whether no value of this type can be changed in place, nested ones included."""
    if annotation in seen or annotation is Ellipsis:
        return True
    origin = get_origin(annotation)
    if origin is Literal:
        return True
    if origin in (Union, UnionType, tuple, frozenset):
        return all(immutable(each, seen) for each in get_args(annotation))
    if not isinstance(annotation, type):
        return False
    if issubclass(annotation, BaseModel):
        if (
            not annotation.model_config.get("frozen")
            or annotation.model_config.get("extra") == "allow"
        ):
            return False
        if any(
            isinstance(each, cached_property)
            for owner in annotation.__mro__
            for each in vars(owner).values()
        ):
            return False
        seen.add(annotation)
        return not annotation.__private_attributes__ and all(
            immutable(field.annotation, seen) for field in annotation.model_fields.values()
        )
    return issubclass(annotation, _IMMUTABLE)
