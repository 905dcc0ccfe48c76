"""How values become bodies and come back as the same values, or are refused.

A body is UTF-8 text. Its first character says what it is, since no JSON begins with a mark:

=========  =====================================================================
otherwise  JSON: of the service's model where it has one, else of the value itself
``=``      the JSON of a plain value that is not of the service's model (None, say)
``@``      JSON in which ``{"@": [type, JSON]}`` stands for a model (or a date, ...),
           and ``{"@": [value]}`` for a dict whose only name is ``@``
``'``      bytes that are UTF-8 text
``~``      other bytes, in base64
``!``      no value: the lease of whoever is making one (see ``lease.py``)
=========  =====================================================================

Writing and reading run the models' own validators and serializers, so that anything may be
raised there; what comes out is one of the two errors here.
A model is read back before it is stored. One that does not give the very value again, of the
same types, private attributes included, is refused with :class:`ValueNotCacheable`: one with a
field that is excluded, say. So is what JSON would make something else of: tuples, sets, NaN,
names that are not text. Models are written by their fields' names, without computed fields,
their secrets (``SecretStr``) as what they hold.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from functools import lru_cache, partial
from math import isfinite
from typing import Any, Final, ForwardRef

import pydantic
from pydantic import Secret, SecretBytes, SecretStr, TypeAdapter
from pydantic_core import to_json

from fastapi_rc.errors import InvalidWiring, ValueNotCacheable
from fastapi_rc.typenames import adapter_of, is_data, name_of, type_of
from forze.application.integrations.cached.values import same

_ATOMS: Final = frozenset((str, int, bool, type(None)))


class Unreadable(Exception):
    """A body is of no value that this service knows: written by others, or by an older model."""


class Values:
    """The values of one service: of ``model`` where there is one, and plain ones.

    Raises :class:`InvalidWiring` for a model that pydantic does not know.
    """

    __slots__ = ("_adapter", "_exact", "_model", "_read")

    def __init__(self, model: Any = None) -> None:
        self._model = model
        self._adapter = None if model is None else _checked_adapter(model)
        self._exact = isinstance(model, type) and is_data(model)
        self._read = json.loads if self._adapter is None else _reader(self._adapter)

    def encode(self, value: Any) -> tuple[bytes, Any]:
        """The body of a value, and what it will come back as.

        That is the value itself; only where plain data validates as the model, it is the
        model. Raises :class:`ValueNotCacheable`.
        """
        try:
            if type(value) is bytes:
                return _bytes_body(value), value
            made = None if self._adapter is None else self._as_model(self._adapter, value)
            return made or (self._as_plain(value), value)
        except ValueNotCacheable:
            raise
        except Exception as error:
            raise _refusal(value, error) from error

    def decode(self, stored: str | bytes) -> Any:
        """The value of a body; raises :class:`Unreadable`."""
        try:
            marked = _MARKED.get(stored[:1])
            if marked is None:
                return self._read(stored)
            rest = stored[1:]
            return marked(rest.decode() if isinstance(rest, bytes) else rest)
        except Exception as error:
            raise Unreadable(str(error).partition("\n")[0]) from error

    def _as_model(self, adapter: TypeAdapter[Any], value: Any) -> tuple[bytes, Any] | None:
        """What there is of a value as the model; None where it is none."""
        if self._exact and type(value) is self._model:
            return _written(adapter, self._read, value), value
        try:
            if _is_json(value):
                if value is None and self._exact:
                    return None
                data = json.dumps(value)
                value = adapter.validator.validate_json(data, by_alias=True, by_name=True)
            elif self._exact:
                return None
            return _written(adapter, self._read, value), value
        except Exception:
            return None

    def _as_plain(self, value: Any) -> bytes:
        if _is_json(value):
            return _json(value) if self._adapter is None else b"=" + _json(value)
        return b"@" + _json(_planted(value))


def values_of(model: Any) -> Values:
    """The values of a model, made once for each."""
    try:
        return _values_of(model)
    except InvalidWiring:
        raise
    except TypeError:  # an annotation that cannot be hashed
        return Values(model)


_values_of = lru_cache(maxsize=1024)(Values)


def is_lease(stored: str | bytes) -> bool:
    """Whether what is stored is no value, but the lease of whoever is making one."""
    return stored[:1] in ("!", b"!")


def _checked_adapter(model: Any) -> TypeAdapter[Any]:
    if isinstance(model, str | ForwardRef):
        raise InvalidWiring(
            f"the model is {model!r}, a name: give the model itself, such as model=User",
            name="model",
        )
    try:
        return adapter_of(model)
    except (pydantic.PydanticUserError, pydantic.errors.PydanticUndefinedAnnotation) as error:
        raise InvalidWiring(
            f"the model {model!r} is none that pydantic knows ({error}); give a model, a "
            "dataclass, or an annotation made of them",
            name="model",
        ) from error


def _reader(adapter: TypeAdapter[Any]) -> Callable[[str | bytes], Any]:
    return partial(adapter.validator.validate_json, by_name=True, by_alias=False)


def _written(adapter: TypeAdapter[Any], read: Callable[[bytes], Any], value: Any) -> bytes:
    """The JSON of a value that is the same when it is read; else :class:`ValueNotCacheable`."""
    body = adapter.dump_json(value, by_alias=False, round_trip=True, warnings="error")
    if _is_read_back(read, body, value):
        return body
    tree = adapter.dump_python(value, by_alias=False, round_trip=True, warnings="error")
    body = to_json(_revealed(tree), inf_nan_mode="null", fallback=str)
    if _is_read_back(read, body, value):
        return body
    raise _refusal(value, "what is read back is not equal to it")


def _is_read_back(read: Callable[[bytes], Any], body: bytes, value: Any) -> bool:
    try:
        return same(read(body), value)
    except pydantic.ValidationError:
        return False


def _revealed(tree: Any) -> Any:
    """What its secrets hold in their place: JSON by their own serializers is asterisks."""
    if isinstance(tree, Secret | SecretStr | SecretBytes):
        return tree.get_secret_value()
    if isinstance(tree, dict):
        return {name: _revealed(each) for name, each in tree.items()}
    if isinstance(tree, list | tuple | set | frozenset):
        return [*map(_revealed, tree)]
    return tree


def _is_json(value: Any) -> bool:
    """Whether JSON gives exactly this value back."""
    kind = type(value)
    if kind in _ATOMS:
        return True
    if kind is float:
        return isfinite(value)
    if kind is list:
        return all(map(_is_json, value))
    if kind is dict:
        return all(type(name) is str for name in value) and all(map(_is_json, value.values()))
    return False


def _json(value: Any) -> bytes:
    try:
        return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
    except UnicodeEncodeError:  # half a surrogate pair, which only an escape can stand for
        return json.dumps(value, separators=(",", ":")).encode()


def _planted(value: Any) -> Any:
    """The tree of a value: JSON, in which models stand under their types' names."""
    kind = type(value)
    if kind is list:
        return [_planted(each) for each in value]
    if kind is dict:
        if odd := [name for name in value if type(name) is not str]:
            raise TypeError(f"the name {odd[0]!r} in it is no text")
        grown = {name: _planted(each) for name, each in value.items()}
        return {"@": [grown["@"]]} if grown.keys() == {"@"} else grown
    if _is_json(value):
        return value
    if not is_data(kind):
        raise TypeError(f"JSON has nothing that a {kind.__name__} in it would come back from")
    adapter = adapter_of(kind)
    return {"@": [name_of(kind), _written(adapter, _reader(adapter), value).decode()]}


def _grown(found: dict[str, Any]) -> Any:
    """What an object of a tree stands for."""
    if found.keys() != {"@"}:
        return found
    if len(found["@"]) == 1:
        return {"@": found["@"][0]}
    name, body = found["@"]
    kind = type_of(name)
    if kind is None:
        raise ValueError(f"this process knows no type {name!r}")
    return _reader(adapter_of(kind))(body)


def _bytes_body(value: bytes) -> bytes:
    try:
        value.decode()
    except UnicodeDecodeError:
        return b"~" + base64.b64encode(value)
    return b"'" + value


def _leased(rest: str) -> Any:
    raise ValueError("its value is being made")


_BY_MARK: dict[str, Callable[[str], Any]] = {
    "=": json.loads,
    "@": partial(json.loads, object_hook=_grown),
    "'": str.encode,
    "~": partial(base64.b64decode, validate=True),
    "!": _leased,
}
_MARKED: dict[str | bytes, Callable[[str], Any]] = {
    spelled: read for mark, read in _BY_MARK.items() for spelled in (mark, mark.encode())
}


def _refusal(value: Any, why: object) -> ValueNotCacheable:
    problem = str(why).partition("\n")[0] or type(why).__name__
    return ValueNotCacheable(
        f"a value of type {type(value).__name__} cannot be cached: {problem}. Store "
        "what JSON holds, bytes, or models, dataclasses, lists and dicts of them that come back "
        "from JSON as they are",
        kind=type(value),
    )
