"""The arguments of a call: which of them make its key, and what the key and the tags are.

However a call is written (by position, by name, a default left out or spelled out), equal
arguments are one key. Which arguments count is decided when the function is decorated, and an
argument whose annotation says that it cannot count is refused there.
"""

from __future__ import annotations

import inspect
import string
import types
from base64 import urlsafe_b64encode
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import is_dataclass
from enum import Enum
from hashlib import sha256
from typing import (
    Annotated,
    Any,
    Final,
    Literal,
    TypeAlias,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)
from uuid import UUID

from pydantic import BaseModel

from forze.application.integrations.cached.canonical import ENCODE, TEXTUAL, Unkeyable, canonical
from forze.application.integrations.cached.tags import check_tag
from forze.errors import ConfigurationError, ValidationError

Ignore: TypeAlias = Collection[str | type]
Tag: TypeAlias = "str | Callable[..., str | Iterable[str]]"
Selected: TypeAlias = Callable[[Mapping[str, Any]], Any]

_VARIADIC: Final = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


class Arguments:
    """The parameters of one function, and what of them counts.

    ``ignore`` names parameters, or types of parameters, that do not. Raises
    ``ConfigurationError`` for a name that is no parameter, and for a parameter that cannot count.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        where: str,
        *,
        hints: Mapping[str, Any],
        ignore: Ignore = (),
        key: str | Callable[..., Any] | None = None,
        tags: Sequence[Tag] = (),
    ) -> None:
        self._where = where
        self._signature = inspect.signature(function)
        parameters = self._signature.parameters
        self._contexts = {
            name
            for name in parameters
            if isinstance(hint := bare(hints.get(name)), type) and _is_context(hint)
        }
        self.ignored = _ignored(parameters, hints, ignore, where)
        """Parameters that are no part of the key."""
        self._key = None if key is None else _selecting(key, parameters, where, "key")
        self._counting = [name for name in parameters if name not in self.ignored]
        if self._key is None:
            for name in self._counting:
                _check(name, hints.get(name, Any), where)
        self._tags = [_selecting(each, parameters, where, "tags") for each in tags]
        self._plain = not any(each.kind in _VARIADIC for each in parameters.values())
        self._order = tuple(
            name for name, each in parameters.items() if each.kind is not each.KEYWORD_ONLY
        )
        self._positional = {
            name for name, each in parameters.items() if each.kind is each.POSITIONAL_ONLY
        }
        self._defaults = {
            name: each.default
            for name, each in parameters.items()
            if each.default is not inspect.Parameter.empty
        }

    def lends(self, *, apart: Collection[str] = ()) -> bool:
        """Whether a call is made with something that may be gone when its caller is: ignored
        arguments, ``apart`` from these and the execution context."""
        return not self.ignored <= self._contexts | set(apart)

    def bind(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Mapping[str, Any]:
        """The value of each parameter; raises ``TypeError`` as the call itself would."""
        if self._plain and not self._positional and len(args) <= len(self._order):
            bound = dict(zip(self._order, args, strict=False))
            if not kwargs or not (bound.keys() & kwargs.keys()):
                bound.update(kwargs)
                if len(bound) < len(self._signature.parameters):
                    bound = {**self._defaults, **bound}
                if bound.keys() == self._signature.parameters.keys():
                    return bound
        complete = self._signature.bind(*args, **kwargs)
        complete.apply_defaults()
        return complete.arguments

    def digest(self, bound: Mapping[str, Any], beside: bytes) -> str:
        """Of what counts, and of ``beside`` (``canonical``): 43 characters, 256 bits.

        Raises ``ValidationError`` naming an argument that cannot count.
        """
        parts = [beside]
        if self._key is None:
            parts += [self._encoded(name, bound[name]) for name in self._counting]
        else:
            parts.append(self._encoded("key", self._key(bound)))
        return urlsafe_b64encode(sha256(b"".join(parts)).digest())[:43].decode()

    def tags(self, bound: Mapping[str, Any]) -> tuple[str, ...]:
        """The tags of the call, each once."""
        if not self._tags:
            return ()
        found: dict[str, None] = {}
        for each in self._tags:
            given = each(bound)
            several = isinstance(given, Iterable) and not isinstance(given, str | bytes)
            for tag in given if several else (given,):
                found[check_tag(tag, self._where)] = None
        return tuple(sorted(found))

    def _encoded(self, name: str, value: object) -> bytes:
        try:
            return canonical(name) + canonical(value)
        except Unkeyable as error:
            raise ValidationError(
                f"{self._where}: argument {name!r} cannot be part of a cache key: it is (or "
                f"holds) a {error.kind.__module__}.{error.kind.__qualname__}. If the value does "
                f"not depend on it, pass ignore=({name!r},); else give key=",
                field=name,
            ) from error


def _ignored(
    parameters: Mapping[str, inspect.Parameter],
    hints: Mapping[str, Any],
    ignore: Ignore,
    where: str,
) -> frozenset[str]:
    if isinstance(ignore, str | type):
        ignore = (ignore,)
    names = {each for each in ignore if isinstance(each, str)}
    kinds = tuple(each for each in ignore if isinstance(each, type))
    if unknown := sorted(names - parameters.keys()):
        raise ConfigurationError(
            f"{where} has no argument {unknown[0]!r}; ignore= names arguments (or their types)",
            name=unknown[0],
            known=parameters,
        )
    typed = {
        name
        for name in parameters
        if isinstance(hint := bare(hints.get(name)), type)
        and (issubclass(hint, kinds) or _is_context(hint))
    }
    return frozenset(names | typed)


def _is_context(kind: type) -> bool:
    """Whether this is an execution context: it is of the process, and never of a value."""
    return kind.__module__.startswith("forze.") and hasattr(kind, "spawn")


def hints_of(
    function: Callable[..., Any], local: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """The annotations, but for those that name something which is not (yet) there."""
    target = inspect.unwrap(function)
    known = {**getattr(target, "__globals__", {}), **(local or {})}
    hints: dict[str, Any] = {}
    for name, annotation in getattr(target, "__annotations__", {}).items():
        one = types.SimpleNamespace(__annotations__={name: annotation})
        with suppress(NameError):
            hints |= get_type_hints(one, known, include_extras=True)
    return hints


def bare(hint: Any) -> Any:
    """An annotation without what is annotated to it."""
    return get_args(hint)[0] if get_origin(hint) is Annotated else hint


def _check(name: str, hint: Any, where: str) -> None:
    """Refuse a parameter that no argument could make part of a key."""
    if name in ("self", "cls") and hint is Any:
        raise ConfigurationError(
            f"{where} is a method: say with ignore=({name!r},) that its value does not depend on "
            f"the instance, or name with key= what of it counts, such as "
            f"key=lambda {name}, ...: ({name}.id, ...)",
            name=name,
        )
    if (wrong := _unkeyable(hint)) is not None:
        raise ConfigurationError(
            f"{where}: argument {name!r} cannot be part of a cache key: it is a "
            f"{wrong.__module__}.{wrong.__qualname__}. If the value does not depend on it, pass "
            f"ignore=({name!r},); else name with key= what of it counts",
            name=name,
        )


def _unkeyable(hint: Any) -> type | None:
    """The type inside an annotation that :func:`canonical` would not take, if one is sure."""
    origin = get_origin(hint)
    if origin is Annotated:
        return _unkeyable(get_args(hint)[0])
    if origin is Literal:
        return None
    if origin in (Union, types.UnionType):
        found = [_unkeyable(each) for each in get_args(hint)]
        return next((each for each in found if each is not None), None)
    if origin is not None:
        found = [_unkeyable(each) for each in get_args(hint) if each is not Ellipsis]
        return next((each for each in (_unkeyable(origin), *found) if each is not None), None)
    if hint in (Any, object) or not isinstance(hint, type) or inspect.isabstract(hint):
        return None
    known = (*ENCODE, *TEXTUAL, UUID, Enum, BaseModel, type)
    if issubclass(hint, known) or is_dataclass(hint) or getattr(hint, "_is_protocol", False):
        return None
    return hint


def _selecting(
    given: str | Callable[..., Any],
    parameters: Mapping[str, inspect.Parameter],
    where: str,
    option: str,
) -> Selected:
    """A template, or a function of some of the arguments, as a function of all of them."""
    if isinstance(given, str):
        return _template(given, parameters, where, option)
    if not callable(given):
        raise ConfigurationError(
            f"{where}: {option} is text with {{argument}} in it, or a function of some of the "
            f"arguments, not {given!r}",
            name=option,
        )
    wanted = inspect.signature(given).parameters
    if any(each.kind is each.VAR_KEYWORD for each in wanted.values()):
        return lambda bound: given(**bound)
    _known(list(wanted), parameters, where, option)
    names = tuple(wanted)
    return lambda bound: given(*[bound[name] for name in names])


def _template(
    text: str, parameters: Mapping[str, inspect.Parameter], where: str, option: str
) -> Selected:
    fields = [field for _, field, _, _ in string.Formatter().parse(text) if field is not None]
    _known([field.split(".")[0].split("[")[0] for field in fields], parameters, where, option)
    if option == "tags":
        return lambda bound: text.format(**bound) if fields else text
    find = string.Formatter().get_field
    # Not as text: `{a}:{b}` of ("1:2", "3") and ("1", "2:3") would be one key.
    return lambda bound: (text, *[find(field, (), bound)[0] for field in fields])


def _known(
    names: Sequence[str], parameters: Mapping[str, inspect.Parameter], where: str, option: str
) -> None:
    for name in names:
        if name not in parameters:
            raise ConfigurationError(
                f"{where} has no argument {name!r}, which {option}= asks for",
                name=name,
                known=parameters,
            )
