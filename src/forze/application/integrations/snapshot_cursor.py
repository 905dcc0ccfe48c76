"""Signed cursors: a place in a run of search results, good for who was given it and nobody else.

The text is base64url of a signature (HMAC-SHA-256, 128 bits of it) and of run, fingerprint
and offset as JSON. Tenant and principal are signed and not written: a cursor is read by the
same ones that it was made for. Every process with the secret of the spec reads it.
"""

from __future__ import annotations

import base64
import hmac
import json
from typing import Any, NamedTuple, NoReturn

from forze.application.contracts.search import SearchResultSnapshotSpec
from forze.application.contracts.tenancy import current_principal, current_tenant
from forze.errors import ValidationError

SIGNATURE_BYTES = 16


class SnapshotCursor(NamedTuple):
    """Where to go on reading."""

    run_id: str
    fingerprint: str
    offset: int


def write_cursor(spec: SearchResultSnapshotSpec, cursor: SnapshotCursor) -> str:
    """The cursor as text for the bound tenant and principal.

    Raises ``ConfigurationError`` where the spec has no ``cursor_secret``.
    """
    return _text(_signature(spec, cursor) + _dumped(cursor))


def read_cursor(
    spec: SearchResultSnapshotSpec, text: str, *, field: str = "cursor"
) -> SnapshotCursor:
    """The cursor that was written as ``text``.

    Raises ``ValidationError`` (naming ``field``) for text that is cut, was changed, or was
    made for another tenant, principal or spec; ``ConfigurationError`` without a secret.
    """
    if spec.secret and not isinstance(text, str):
        _refuse(text, field)
    try:
        raw = base64.urlsafe_b64decode(text.encode() + b"=" * (-len(text) % 4))
        cursor = _loaded(raw[SIGNATURE_BYTES:])
        # The decoder skips what it does not know: only the one spelling is ours.
        genuine = _text(_signature(spec, cursor) + _dumped(cursor))
    except (ValueError, TypeError, RecursionError):
        _refuse(text, field)
    if not hmac.compare_digest(genuine.encode(), text.encode()):
        _refuse(text, field)
    return cursor


def _signature(spec: SearchResultSnapshotSpec, cursor: SnapshotCursor) -> bytes:
    signed = ["forze cursor 1", spec.name, current_tenant(), current_principal(), *cursor]
    digest = hmac.digest(spec.secret, json.dumps(signed).encode(), "sha256")
    return digest[:SIGNATURE_BYTES]


def _dumped(cursor: SnapshotCursor) -> bytes:
    return json.dumps(cursor, separators=(",", ":")).encode()


def _loaded(dumped: bytes) -> SnapshotCursor:
    run_id, fingerprint, offset = json.loads(dumped)
    values: tuple[Any, ...] = (run_id, fingerprint, offset)
    if tuple(map(type, values)) != (str, str, int):
        raise ValueError("not a cursor")
    return SnapshotCursor(*values)


def _text(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def _refuse(text: object, field: str) -> NoReturn:
    raise ValidationError(
        f"{text!r:.80} is not a cursor of yours: it is cut, was changed, or was made for another "
        "tenant, user or kind of search; pass on next_cursor as it is, or begin without one",
        field=field,
    )
