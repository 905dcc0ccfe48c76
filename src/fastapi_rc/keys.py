"""How names become keys, so that no two spell one, and globs that match such keys.

::

    {prefix}:{version}:{namespace}:{identifier}
    {prefix}:{version}:{namespace}:{identifier}:{12 hex digits of the params}

In the first three parts ``:`` and ``%`` are percent-encoded, so that the parts can be told
apart again. An identifier stands as it is, ``:`` included, so that the pattern
``f"{identifier}:*"`` reaches its variants. Only one that ends as a digest of params does gets
a ``%`` behind it (and so does one that ends in such a ``%``).
"""

from __future__ import annotations

import hashlib
import json
import re
from functools import lru_cache
from typing import Any, Final, TypeAlias
from uuid import UUID

from fastapi_rc.errors import InvalidName

Identifier: TypeAlias = str | int | UUID
Params: TypeAlias = dict[str, Any]

PREFIX: Final = "cache"
VERSION: Final = "v1"
DIGEST_CHARS: Final = 12

_glob_characters = re.compile(r"[*?\[\]\\]")
_as_params = re.compile(rf":[0-9a-f]{{{DIGEST_CHARS}}}%*\Z").search


def build_cache_key(
    namespace: str,
    identifier: Identifier,
    params: Params | None = None,
    prefix: str = PREFIX,
    version: str = VERSION,
) -> str:
    """The key of ``identifier`` in a namespace; with ``params``, of that variant of it.

    An identifier is text, a whole number or a UUID: equal texts are one key. ``params`` are a dict
    that JSON can hold, in any order; empty ones are none. Raises :class:`InvalidName`.
    """
    return key_of(key_head(namespace, prefix, version), identifier, params)


def invalidate_pattern(
    namespace: str, pattern: str = "*", prefix: str = PREFIX, version: str = VERSION
) -> str:
    """The glob of the keys of a namespace whose identifiers match ``pattern``.

    The namespace is taken literally, whatever characters it has; the pattern is the server's
    glob: ``*``, ``?``, ``[ab]``, and ``\\`` before one of these that is meant itself. It deletes
    nothing: it is for SCAN. Raises :class:`InvalidName` for a pattern that is not text.
    """
    if not isinstance(pattern, str):
        raise InvalidName(f"a pattern must be text, not {type(pattern).__name__}", field="pattern")
    _require_utf8(pattern, "pattern")
    return _glob_characters.sub(r"\\\g<0>", key_head(namespace, prefix, version)) + pattern


@lru_cache(maxsize=1024)
def key_head(namespace: str, prefix: str = PREFIX, version: str = VERSION) -> str:
    """What every key of a namespace begins with; raises :class:`InvalidName`."""
    parts = {"prefix": prefix, "version": version, "namespace": namespace}
    return "".join(f"{_part(part, what)}:" for what, part in parts.items())


def key_of(head: str, identifier: Identifier, params: Params | None = None) -> str:
    """The key of ``identifier`` behind ``head``; raises :class:`InvalidName`."""
    text = identifier if identifier.__class__ is str else _text(identifier)
    if not text.isascii():
        _require_utf8(text, "identifier")
    if ":" in text and _as_params(text):
        text += "%"
    if not params:
        if params is not None and not isinstance(params, dict):
            raise _not_params(params)
        return head + text
    return f"{head}{text}:{digest(params)}"


def digest(params: Params) -> str:
    """The hex digits that tell ``params`` from others."""
    if not isinstance(params, dict):
        raise _not_params(params)
    try:
        _require_text_names(params)
        written = json.dumps(params, sort_keys=True)
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidName(
            f"params {sorted(map(str, params))} cannot be written as JSON ({error}); give text, "
            "numbers, bools, None, and lists and dicts of them: str(value) for a UUID or a date",
            field="params",
        ) from error
    return hashlib.sha256(written.encode()).hexdigest()[:DIGEST_CHARS]


def _text(identifier: object) -> str:
    if isinstance(identifier, str):
        return str.__str__(identifier)  # of an enum: its value
    if isinstance(identifier, int) and not isinstance(identifier, bool):
        return int.__repr__(identifier)
    if isinstance(identifier, UUID):
        return str(identifier)
    raise InvalidName(
        "identifiers are text, whole numbers or UUIDs (enum members of these), "
        f"not {type(identifier).__name__}",
        field="identifier",
    )


def _part(part: object, what: str) -> str:
    if not isinstance(part, str) or not part:
        raise InvalidName(f"the {what} must be text that is not empty, not {part!r}", field=what)
    _require_utf8(part, what)
    return part.replace("%", "%25").replace(":", "%3A")


def _require_utf8(text: str, what: str) -> None:
    """Raise :class:`InvalidName` for text that no server can be sent (lone surrogates)."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InvalidName(f"the {what} {text!r} is no Unicode text: {error}", field=what) from error


def _require_text_names(value: object) -> None:
    """JSON would write the names ``1`` and ``"1"`` as one."""
    if isinstance(value, dict):
        for name, each in value.items():
            if not isinstance(name, str):
                raise TypeError(f"the name {name!r} is no text")
            _require_text_names(each)
    elif isinstance(value, list | tuple):
        for each in value:
            _require_text_names(each)


def _not_params(params: object) -> InvalidName:
    return InvalidName(f"params must be a dict, not {type(params).__name__}", field="params")
