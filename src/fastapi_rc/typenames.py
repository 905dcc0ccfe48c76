"""Types by their names: how a body says of which model a part of it is.

A name is resolved among the types that this process has met in values, then among the modules
it has loaded. Nothing is ever imported because a body names it, and only types that are data
(models, dataclasses, enums, and the built-in ones below) are given.
"""

from __future__ import annotations

import sys
from dataclasses import is_dataclass
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from functools import lru_cache
from typing import Any, Final
from uuid import UUID
from weakref import WeakValueDictionary

import pydantic
from pydantic import BaseModel, ConfigDict, TypeAdapter

SCALARS: Final = (bytes, datetime, date, time, timedelta, Decimal, UUID)

_met: WeakValueDictionary[str, type] = WeakValueDictionary()


def is_data(kind: type) -> bool:
    """Whether values of exactly this type may be named in a body."""
    return kind in SCALARS or issubclass(kind, BaseModel | Enum) or is_dataclass(kind)


def name_of(kind: type) -> str:
    """The name of a type, by which :func:`type_of` finds it from here on."""
    name = _named(kind)
    if _met.get(name) is not kind:
        _met[name] = kind
    return name


def type_of(name: str) -> type | None:
    """The type of a name; None where this process knows none."""
    found: Any = _met.get(name)
    if found is not None:
        return found  # type: ignore[no-any-return]
    module, _, path = name.partition("/")
    found = sys.modules.get(module)
    for each in path.split("."):
        found = getattr(found, each, None)
    return found if isinstance(found, type) and is_data(found) and _named(found) == name else None


def adapter_of(annotation: Any) -> TypeAdapter[Any]:
    """What validates and writes values of ``annotation``, made once; raises as pydantic does."""
    try:
        return _adapter_of(annotation)
    except TypeError:  # one that cannot be hashed
        return _adapter_of.__wrapped__(annotation)


@lru_cache(maxsize=1024)
def _adapter_of(annotation: Any) -> TypeAdapter[Any]:
    try:
        return TypeAdapter(annotation, config=_BYTES_AS_TEXT)
    except pydantic.PydanticUserError as error:
        if error.code != "type-adapter-config-unused":
            raise
        return TypeAdapter(annotation)  # a model has a config of its own


_BYTES_AS_TEXT: Final = ConfigDict(ser_json_bytes="base64", val_json_bytes="base64")


@lru_cache(maxsize=1024)
def _named(kind: type) -> str:
    generic = getattr(kind, "__pydantic_generic_metadata__", None) or {}
    origin, args = generic.get("origin"), generic.get("args")
    if not origin or not args:
        return f"{kind.__module__}/{kind.__qualname__}"
    listed = ",".join(_named(each) if isinstance(each, type) else repr(each) for each in args)
    return f"{_named(origin)}[{listed}]"
