"""Resource configurations: frozen classes, or dicts with the same keys."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, fields
from typing import Any, TypeVar

from forze.errors import ConfigurationError

K = TypeVar("K")


def configured(cls: type[K], value: K | Mapping[str, Any], where: str) -> K:
    """``value`` as a ``cls``; a dict with an unknown or missing key is refused by name.

    ``where`` says what is being configured, in the error.
    """
    if isinstance(value, cls):
        return value
    if not isinstance(value, Mapping):
        raise ConfigurationError(
            f"{where}: expected {cls.__name__} or a dict, not {type(value).__name__}", name=where
        )
    known = {each.name: each for each in fields(cls)}  # type: ignore[arg-type]
    unknown = sorted(str(each) for each in value.keys() - known.keys())
    missing = [
        name
        for name, each in known.items()
        if each.default is MISSING and each.default_factory is MISSING and name not in value
    ]
    if unknown or missing:
        problem = f"unknown key {unknown[0]!r}" if unknown else f"missing key {missing[0]!r}"
        raise ConfigurationError(
            f"{where}: {problem}; {cls.__name__} takes {', '.join(known)}",
            name=(unknown or missing)[0],
            known=known,
        )
    return cls(**value)
