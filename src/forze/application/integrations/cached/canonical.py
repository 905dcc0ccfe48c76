"""Values as bytes that tell every two of them apart: what the key of a cached call is made of.

Each value begins with a letter for its type, and says its length or number of items before
them, so that what follows can never be taken for a part of it. So ``1``, ``"1"``, ``1.0`` and
``True`` differ, as do ``("a", "b")`` and ``("ab",)``, and two models with the same fields.
Dictionaries and sets are in the order of their encoded items: equal ones are one key, in
whatever order, and in every process (nothing here depends on ``hash``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import fields, is_dataclass
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from enum import Enum
from fractions import Fraction
from ipaddress import (
    IPv4Address,
    IPv4Interface,
    IPv4Network,
    IPv6Address,
    IPv6Interface,
    IPv6Network,
)
from pathlib import PurePath
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

from pydantic import BaseModel, SecretBytes, SecretStr
from pydantic_core import TzInfo


class Unkeyable(Exception):
    """A value (or one inside it) has no encoding; ``kind`` is its type."""

    def __init__(self, kind: type) -> None:
        super().__init__(kind)
        self.kind = kind


def canonical(value: object) -> bytes:
    """``value`` as bytes no other value has; raises :class:`Unkeyable`."""
    try:
        return _encoded(value)
    except RecursionError:
        raise Unkeyable(type(value)) from None  # it contains itself


def _encoded(value: Any) -> bytes:
    encode = ENCODE.get(value.__class__)
    return _by_kind(value) if encode is None else encode(value)


def _sized(letter: bytes, data: bytes) -> bytes:
    return b"%b%d:%b" % (letter, len(data), data)


def _text(value: str) -> bytes:
    data = value.encode("utf-8", "surrogatepass")
    return b"s%d:%b" % (len(data), data)


def _items(letter: bytes, items: Iterable[bytes]) -> bytes:
    listed = list(items)
    return b"%b%d:%b" % (letter, len(listed), b"".join(listed))


def _pairs(letter: bytes, pairs: Iterable[tuple[Any, Any]]) -> bytes:
    return _items(letter, sorted(_encoded(key) + _encoded(value) for key, value in pairs))


_OFFSETS = (timezone, TzInfo)
"""Zones that are an offset; the latter is what pydantic reads."""


def _moment(value: datetime) -> bytes:
    zone = value.tzinfo
    if zone is None:
        where = b"n"
    elif isinstance(zone, ZoneInfo) and zone.key is not None:
        where = _text(zone.key)
    elif isinstance(zone, _OFFSETS):
        where = b"z"  # the text has it
    else:
        raise Unkeyable(type(zone))
    return _sized(b"T", value.isoformat().encode()) + where + (b"1" if value.fold else b"0")


def _time(value: time) -> bytes:
    if value.tzinfo is not None and not isinstance(value.tzinfo, _OFFSETS):
        raise Unkeyable(type(value.tzinfo))
    return _sized(b"C", value.isoformat().encode()) + (b"1" if value.fold else b"0")


def _duration(value: timedelta) -> bytes:
    return b"P%d:%d:%d;" % (value.days, value.seconds, value.microseconds)


def _name(kind: type) -> bytes:
    return _text(f"{kind.__module__}.{kind.__qualname__}")


ENCODE: dict[type, Callable[[Any], bytes]] = {
    type(None): lambda _: b"n",
    bool: lambda value: b"t" if value else b"f",
    int: lambda value: b"i%x;" % value,  # any number of digits
    float: lambda value: b"d%b;" % repr(value).encode(),
    complex: lambda value: b"c%b;" % repr(value).encode(),
    str: _text,
    bytes: lambda value: _sized(b"b", value),
    bytearray: lambda value: _sized(b"B", bytes(value)),
    UUID: lambda value: b"u" + value.bytes,
    Decimal: lambda value: _sized(b"D", str(value).encode()),
    Fraction: lambda value: b"q%x/%x;" % (value.numerator, value.denominator),
    datetime: _moment,
    date: lambda value: _sized(b"Y", value.isoformat().encode()),
    time: _time,
    timedelta: _duration,
    tuple: lambda value: _items(b"(", map(_encoded, value)),
    list: lambda value: _items(b"[", map(_encoded, value)),
    set: lambda value: _items(b"{", sorted(map(_encoded, value))),
    frozenset: lambda value: _items(b"<", sorted(map(_encoded, value))),
    dict: lambda value: _pairs(b"m", value.items()),
    range: lambda value: b"r%d:%d:%d;" % (value.start, value.stop, value.step),
    SecretStr: lambda value: b"#" + _text(value.get_secret_value()),
    SecretBytes: lambda value: b"#" + _sized(b"b", value.get_secret_value()),
}
"""How values of exactly these types are encoded."""

TEXTUAL = (
    PurePath, IPv4Address, IPv6Address, IPv4Interface, IPv6Interface, IPv4Network, IPv6Network,
)  # fmt: skip
"""Types whose text says all of them."""

_BUILT_IN = (str, bytes, int, float, complex, tuple, list, set, frozenset, dict, Decimal, UUID)


def _by_kind(value: Any) -> bytes:
    """What is no plain built-in: by what it is an instance of, under the name of its class."""
    kind = type(value)
    if isinstance(value, Enum):
        return b"E" + _name(kind) + _text(value.name or repr(value.value))
    if isinstance(value, BaseModel):
        return b"M" + _name(kind) + _pairs(b"m", held(value).items())
    if isinstance(value, type):
        return b"K" + _name(value)
    if is_dataclass(value):
        besides = getattr(value, "__dict__", {})  # what a subclass has that is none itself
        return b"A" + _name(kind) + _pairs(b"m", (besides | held(value)).items())
    if isinstance(value, TEXTUAL):
        return b"X" + _name(kind) + _text(str(value))
    for plain in _BUILT_IN:
        if isinstance(value, plain) and not _has_more(value, plain):
            return b"x" + _name(kind) + ENCODE[plain](value)
    raise Unkeyable(kind)


def _has_more(value: object, plain: type) -> bool:
    """Whether a value has attributes beside what its built-in type holds."""
    kinds = type(value).__mro__
    slots = any(vars(each).get("__slots__") for each in kinds[: kinds.index(plain)])
    return slots or bool(getattr(value, "__dict__", None))


def held(value: Any) -> dict[Any, Any]:
    """What is in a model, private attributes as well, or in the fields of a dataclass."""
    if not isinstance(value, BaseModel):
        return {each.name: getattr(value, each.name) for each in fields(value)}
    named = {name: getattr(value, name) for name in type(value).model_fields}
    private = (value.__pydantic_private__ or {}).items()
    return named | (value.model_extra or {}) | {("private", name): each for name, each in private}
