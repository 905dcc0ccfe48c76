"""How the value of a cached function becomes a body and comes back: JSON by its annotation.

A value is only cached if decoding its body gives the very value back, types included: what a
function returns is the same whether it ran or not. ``bytes`` are kept as they are.
"""

from __future__ import annotations

import copy
import hashlib
import logging
from collections.abc import Callable
from dataclasses import is_dataclass
from datetime import datetime
from typing import Any, Final, Generic, TypeVar

import pydantic
from pydantic import BaseModel, ConfigDict, TypeAdapter
from pydantic_core import PydanticSerializationError

from forze.application.integrations.cached.canonical import held
from forze.application.integrations.document.codec import (
    RAW_MARK,
    immutable,
    repr_text,
    schema_text,
)
from forze.domain.models import utcnow
from forze.errors import ConfigurationError

T = TypeVar("T")

_log = logging.getLogger("forze")

_BYTES_AS_TEXT: Final = ConfigDict(
    ser_json_bytes="base64", val_json_bytes="base64", ser_json_inf_nan="constants"
)

VERSION: Final = 1
"""Values have no revisions: whoever holds the lease (or the right to refresh) loaded the last."""


class Answer(Generic[T]):
    """What a function returned; in a box, since None is an answer like any other."""

    __slots__ = ("value",)

    def __init__(self, value: T) -> None:
        self.value = value


class Unshared(Exception):
    """What a call came to is for ``owner``, the caller it was made for, and nobody else."""

    def __init__(self, owner: object = None) -> None:
        super().__init__("an answer for one caller alone")
        self.owner = owner


class ValueCodec(Generic[T]):
    """Encodes and decodes the values of one annotation. A ``Codec`` of :class:`Answer`.

    Raises ``ConfigurationError`` for an annotation that JSON cannot stand for. ``where`` names
    the function in it. ``condition`` says of a value whether it may be cached.
    """

    def __init__(
        self, annotation: Any, where: str, *, condition: Callable[[T], bool] | None = None
    ) -> None:
        self._where = where
        self._condition = condition
        self._raw = annotation is bytes
        self._said = False
        self._adapter = _adapter(annotation, where)
        self.shareable = immutable(annotation, set())
        """Whether one value may be handed to several callers."""
        self.schema = _schema(self._adapter, annotation)
        """Tells two annotations apart that read one body as different values."""
        validate = self._adapter.validator.validate_json
        self.decode: Callable[[bytes], Answer[T]] = (
            _unraw
            if self._raw
            else lambda body: Answer(validate(body, by_name=True, by_alias=False))
        )
        """The value of a body; raises ``pydantic.ValidationError``."""

    def encode(self, document: Answer[T]) -> bytes | None:
        """The body of a value; None if it must not be cached, or would come back as another."""
        value = document.value
        if self._condition is not None and not self._condition(value):
            return None
        if self._raw and isinstance(value, bytes):
            return RAW_MARK + value
        problem: object = "it would come back as another value"
        try:
            body = self._adapter.dump_json(value, by_alias=False, round_trip=True, warnings="error")
            if same(self.decode(body).value, value):
                return body
        except (pydantic.ValidationError, PydanticSerializationError, ValueError, TypeError) as error:  # noqa: E501  # fmt: skip
            problem = str(error).partition("\n")[0]
        except RecursionError:
            problem = "it contains itself"
        self._say(value, problem)
        return None

    def copy(self, document: Answer[T]) -> Answer[T]:
        """The answer itself if it can be shared, else an equal one of its own.

        Raises :class:`Unshared` where none can be made.
        """
        if self.shareable:
            return document
        try:
            return Answer(copy.deepcopy(document.value))
        except Exception as error:  # whatever the value's own copying raises
            raise Unshared from error

    def version(self, document: Answer[T]) -> int:
        """See :data:`VERSION`."""
        return VERSION

    def changed_at(self, document: Answer[T]) -> datetime:
        """A value is as old as its load."""
        return utcnow()

    def _say(self, value: object, problem: object) -> None:
        if not self._said:
            self._said = True
            _log.warning(
                "%s returned a %s that is not cached: %s. Annotate the return type, or return "
                "what JSON holds (said once)",
                self._where,
                type(value).__name__,
                problem,
            )


def same(one: object, other: object) -> bool:
    """Whether two values are equal and of the same types, inside containers as well."""
    if type(one) is not type(other):
        return False
    if isinstance(one, BaseModel) or is_dataclass(one):
        one, other = held(one), held(other)
    if isinstance(one, dict) and isinstance(other, dict):
        return len(one) == len(other) and all(
            same(a, b) and same(x, y)
            for (a, x), (b, y) in zip(one.items(), other.items(), strict=True)
        )
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, set | frozenset) and isinstance(other, set | frozenset):
        return one == other and sorted(map(_kind, one)) == sorted(map(_kind, other))
    if isinstance(one, float) and one == other == 0:
        return repr(one) == repr(other)
    return one == other


def _kind(value: object) -> str:
    return type(value).__qualname__


def _unraw(body: bytes) -> Answer[Any]:
    if not body.startswith(RAW_MARK):
        raise ValueError("not the bytes of a cached function")
    return Answer(body[len(RAW_MARK) :])


def _adapter(annotation: Any, where: str) -> TypeAdapter[Any]:
    try:
        try:
            return TypeAdapter(annotation, config=_BYTES_AS_TEXT)
        except pydantic.PydanticUserError as error:
            if error.code != "type-adapter-config-unused":
                raise
            return TypeAdapter(annotation)  # a model has a config of its own
    except (pydantic.PydanticUserError, pydantic.errors.PydanticUndefinedAnnotation) as error:
        raise ConfigurationError(
            f"{where}: what it returns ({annotation!r}) cannot be kept as JSON: {error.message}; "
            "annotate what pydantic knows (JSON values, models, dataclasses, lists and unions of "
            "them), or leave the annotation out for plain JSON values",
            name=where,
        ) from error


def _schema(adapter: TypeAdapter[Any], annotation: Any) -> str:
    try:
        text = schema_text(adapter.json_schema(mode="validation"))
    except pydantic.PydanticUserError:
        text = repr_text(annotation)  # a custom type without a JSON schema speaks for itself
    return hashlib.sha256(text.encode()).hexdigest()
