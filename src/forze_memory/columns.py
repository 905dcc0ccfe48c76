"""Field values as a table keeps them: plain copies, so that no caller can change the store."""

from __future__ import annotations

from copy import deepcopy
from enum import Enum
from typing import Any

from pydantic import BaseModel, SecretBytes, SecretStr, TypeAdapter

_any: TypeAdapter[Any] = TypeAdapter(Any)


def columns_of(model: BaseModel) -> dict[str, Any]:
    """Every field of ``model`` as it is stored."""
    return {name: stored(getattr(model, name)) for name in type(model).model_fields}


def stored(value: Any) -> Any:
    """``value`` as it is stored: models as dicts, enums and secrets as their values, copied."""
    return _plain(_any.dump_python(value, round_trip=True, by_alias=False))


def _plain(value: Any) -> Any:
    match value:
        case Enum():
            return value.value
        case SecretStr() | SecretBytes():
            return value.get_secret_value()
        case dict():
            return {_plain(key): _plain(each) for key, each in value.items()}
        case list():
            return [_plain(each) for each in value]
        case tuple():
            return tuple(_plain(each) for each in value)
        case set() | frozenset():
            return {_plain(each) for each in value}
    return deepcopy(value)
