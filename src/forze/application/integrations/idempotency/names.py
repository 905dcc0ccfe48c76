"""Names of records: encoded parts, so that no two requests share one by their spelling.

::

    [{principal}/]{operation}/{key}

A part holds no ``/``, so the number of parts tells a principal's record from nobody's. A key
over 128 bytes is its SHA-256 in hex; so is a key that looks like one, so that no key can be
spelled to meet another's hash.
"""

from __future__ import annotations

import re
from hashlib import sha256

from forze.application.contracts.tenancy import current_principal
from forze.application.integrations.keys import encode_part
from forze.errors import ValidationError

LONGEST_BYTES = 255
_HASHED_ABOVE_BYTES = 128
_like_a_hash = re.compile(r"[0-9a-f]{64}").fullmatch


def record_parts(operation: str, key: str) -> tuple[str, ...]:
    """The encoded parts of a record's name under the bound principal."""
    refuse_unfit(operation, "operation")
    refuse_unfit(key, "idempotency key")
    principal = current_principal()
    owner = () if principal is None else (encode_part(principal, "principal"),)
    return (*owner, encode_part(operation, "operation"), _key_part(key))


def refuse_unfit(text: str, what: str) -> None:
    """Raises ``ValidationError`` for what is not text of 1 to 255 bytes."""
    given: object = text
    if not isinstance(given, str) or not given:
        raise ValidationError(
            f"the {what} must be text that is not empty, not {given!r}", field=what
        )
    size = len(given.encode("utf-8", "surrogatepass"))
    if size > LONGEST_BYTES:
        raise ValidationError(
            f"the {what} has {size} bytes; at most {LONGEST_BYTES} are accepted", field=what
        )


def _key_part(key: str) -> str:
    raw = key.encode("utf-8", "surrogatepass")
    if len(raw) > _HASHED_ABOVE_BYTES or _like_a_hash(key):
        return sha256(raw).hexdigest()
    return encode_part(key, "idempotency key")
