"""The ``Idempotency-Key`` field, read: pure.

A structured field of type String (RFC 9651, draft-ietf-httpapi-idempotency-key-header-06), or
the same key bare, as most clients send it: the characters of a token, in any order.
``"8e03978e"`` and ``8e03978e`` are one key.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

import http_sf

NAME = "Idempotency-Key"
REPLAYED = "Idempotency-Replayed"

LONGEST_BYTES = 255

_BARE = r"[!#$%&'*+\-.^_`|~0-9A-Za-z:/]+"
_bare = re.compile(_BARE).fullmatch

DESCRIBED: Final = {
    "pattern": rf'^({_BARE}|"[ !#-\[\]-~]+")$',
    "minLength": 1,
    "maxLength": LONGEST_BYTES,
}
"""What a key looks like, in JSON schema."""


class Malformed(ValueError):
    """The field holds no key; the text says why, for the client."""


def key_of(fields: Sequence[str]) -> str:
    """The key in the request's ``Idempotency-Key`` fields.

    Raises :class:`Malformed` for no field and for more than one, for what is neither a String nor
    a bare key, and for a key that is empty or longer than 255 bytes.
    """
    if not fields:
        raise Malformed(f"{NAME} is missing; send one that is new for each new request")
    if len(fields) > 1:
        raise Malformed(f"{NAME} was sent {len(fields)} times; send it once")
    key = _key(fields[0].strip(" \t"))
    if not key:
        raise Malformed(f"{NAME} is empty; leave it out, or send a key")
    if len(key) > LONGEST_BYTES:
        raise Malformed(f"{NAME} has {len(key)} bytes; at most {LONGEST_BYTES} are accepted")
    return key


def _key(field: str) -> str:
    if not field or _bare(field):
        return field
    try:
        item = http_sf.parse(field.encode("latin-1"), tltype="item")
    except (http_sf.StructuredFieldError, UnicodeEncodeError):
        item = None
    key = item[0] if isinstance(item, tuple) else None
    if type(key) is not str:
        raise Malformed(
            f'{NAME} holds no key; send one in double quotes, as in {NAME}: "8e03978e-40d5", or '
            "bare, made of letters, digits and -._:/ and the like"
        )
    return key
