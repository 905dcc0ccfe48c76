"""Idempotent functions: how payloads are compared, how results are kept, and the decorator."""

from __future__ import annotations

import functools
import inspect
import json
from collections.abc import Awaitable, Callable, Mapping
from hashlib import sha256
from typing import Any, Generic, ParamSpec, Protocol, TypeVar, get_type_hints
from uuid import UUID

import pydantic
from pydantic import TypeAdapter
from pydantic_core import PydanticSerializationError, to_jsonable_python

from forze.application.contracts.idempotency import (
    IdempotencyPort,
    IdempotencySnapshot,
    IdempotencySpec,
)
from forze.errors import BackendCorrupt, ConfigurationError, ValidationError

P = ParamSpec("P")
T = TypeVar("T")

_JSON = "application/json"
_OK = 200


def payload_hash_of(payload: object) -> str:
    """The SHA-256, in hex, by which two payloads are told to be the same.

    Of ``bytes`` as they are; of anything else (JSON values, pydantic models, dataclasses) as
    JSON with sorted keys and no spaces. Raises ``ValidationError`` for what JSON cannot hold.
    """
    if isinstance(payload, bytes | bytearray | memoryview):
        return sha256(payload).hexdigest()
    try:
        plain = to_jsonable_python(payload, inf_nan_mode="constants")
        text = json.dumps(plain, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    except (PydanticSerializationError, TypeError, ValueError) as error:
        raise ValidationError(
            f"the payload cannot be compared, because it is not JSON: {error}", field="payload"
        ) from error
    return sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


class Result(Generic[T]):
    """The type of a result, kept as JSON."""

    def __init__(self, kind: Any, where: str) -> None:
        self._where = where
        try:
            self._adapter: TypeAdapter[T] = TypeAdapter(kind)
        except pydantic.PydanticUserError as error:
            raise ConfigurationError(
                f"{where}: its result ({kind!r}) cannot be kept as JSON: {error.message}; give "
                "result=, or return what pydantic knows",
                name=where,
            ) from error

    def dump(self, value: T) -> IdempotencySnapshot:
        """What is stored of a result."""
        try:
            body = self._adapter.dump_json(value, by_alias=False, round_trip=True, warnings="error")
        except (PydanticSerializationError, ValueError) as error:
            raise ValidationError(
                f"{self._where}: the result cannot be kept as JSON: {error}", field="result"
            ) from error
        return IdempotencySnapshot(_OK, _JSON, body)

    def load(self, snapshot: IdempotencySnapshot) -> T:
        """The result that was stored."""
        try:
            return self._adapter.validate_json(snapshot.body, by_alias=False, by_name=True)
        except pydantic.ValidationError as error:
            raise BackendCorrupt(
                f"{self._where}: the stored result is not of its type "
                f"({error.errors(include_url=False)[0]['msg']}); it was stored by another version "
                "of the code, or another operation has this name",
                backend="idempotency",
            ) from error


def result_of(function: Callable[..., Awaitable[T]], kind: Any = None) -> Result[T]:
    """How results of ``function`` are kept: as ``kind``, or by its return annotation.

    Without either they are kept as plain JSON.
    """
    if isinstance(kind, Result):
        return kind
    plain: Any = function
    while isinstance(plain, functools.partial):
        plain = plain.func
    plain = inspect.unwrap(getattr(plain, "__func__", plain))
    where = getattr(plain, "__qualname__", type(plain).__qualname__)
    if kind is None:
        kind = _returned_by(plain)
    try:
        return _result(kind, where)
    except TypeError:  # a type that cannot be remembered, such as one annotated with a list
        return Result(kind, where)


@functools.lru_cache(maxsize=1024)
def _result(kind: Any, where: str) -> Result[Any]:
    return Result(kind, where)


def _returned_by(function: Any) -> Any:
    target = function if inspect.isroutine(function) else type(function).__call__
    try:
        return get_type_hints(target).get("return", Any)
    except (NameError, TypeError):
        return Any


class _Context(Protocol):
    def idempotency(self, spec: IdempotencySpec) -> IdempotencyPort: ...


def idempotent(
    spec: IdempotencySpec,
    *,
    ctx: Callable[[], _Context],
    key: str | Callable[..., str],
    payload: Callable[..., object] | None = None,
    operation: str | None = None,
    result: Any = None,
) -> Callable[[Callable[P, Awaitable[T]]], Callable[P, Awaitable[T]]]:
    """Run the decorated coroutine function once per key; a duplicate gets its result again.

    ``ctx`` gives the execution context when the function is called (``runtime.get_context``).
    ``key`` is the name of the argument that holds the key, or a function of the arguments.
    ``payload`` is a function of the arguments for what must be the same in a duplicate;
    without one it is every argument, by name. ``operation`` defaults to the function's full
    name, ``result`` to its return annotation. Raises as ``IdempotencyPort.run`` does.
    """

    if not callable(ctx):
        raise ConfigurationError(
            "idempotent: ctx is a function that gives the context, such as runtime.get_context, "
            f"not {ctx!r}",
            name="ctx",
        )
    if payload is not None and not callable(payload):
        raise ConfigurationError(
            "idempotent: payload is a function of the arguments, such as "
            f"lambda order_id, **rest: rest, not {payload!r}",
            name="payload",
        )

    def decorate(function: Callable[P, Awaitable[T]]) -> Callable[P, Awaitable[T]]:
        signature = inspect.signature(function)
        if isinstance(key, str) and key not in signature.parameters:
            raise ConfigurationError(
                f"idempotent: {function.__qualname__} has no argument {key!r}; key= names one "
                "of its arguments, or is a function of them",
                name=key,
                known=signature.parameters,
            )
        name = operation or f"{function.__module__}.{function.__qualname__}"
        kept = result_of(function, result)

        @functools.wraps(function)
        async def once(*args: P.args, **kwargs: P.kwargs) -> T:
            bound = signature.bind(*args, **kwargs)
            bound.apply_defaults()
            arguments: Mapping[str, object] = bound.arguments
            return (
                await ctx()
                .idempotency(spec)
                .run(
                    name,
                    _key_text(arguments[key]) if isinstance(key, str) else key(*args, **kwargs),
                    dict(arguments) if payload is None else payload(*args, **kwargs),
                    functools.partial(function, *args, **kwargs),
                    result=kept,
                )
            )

        return once

    return decorate


def _key_text(value: object) -> str:
    """A key given as text, or as a number or an id that stands for itself."""
    return str(value) if isinstance(value, int | UUID) else value  # type: ignore[return-value] # refused later
