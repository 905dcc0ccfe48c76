"""Direct cache values as stored bytes: JSON text, or marked raw bytes. Shared by all caches."""

from __future__ import annotations

import json
from typing import Any

from forze.errors import BackendCorrupt, ValidationError

RAW_MARK = b"\x00"
"""Begins a body of raw bytes; no JSON text begins with it."""


def encode_value(key: str, value: Any, max_bytes: int) -> bytes:
    """``value`` as stored; raises :class:`ValidationError` for what would not come back equal."""
    if isinstance(value, bytes):
        body = RAW_MARK + value
    else:
        try:
            text = json.dumps(value, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
            body = text.encode()
            same = json.loads(text) == value
        except (TypeError, ValueError, RecursionError) as error:
            raise ValidationError(
                f"cache key {key!r}: {type(value).__name__} is not JSON ({error}); store "
                'None, bool, int, float, str, list, dict with text keys (model_dump(mode="json") '
                "of a model), or bytes",
                field="value",
            ) from error
        if not same:
            raise ValidationError(
                f"cache key {key!r}: the value would come back as another one (tuples, keys "
                "that are not text); store lists and dicts with text keys",
                field="value",
            )
    if len(body) > max_bytes:
        raise ValidationError(
            f"cache key {key!r}: the value has {len(body)} bytes, above max_value_bytes="
            f"{max_bytes}; store less, or raise the limit in the cache's config",
            field="value",
        )
    return body


def decode_value(key: str, body: bytes) -> Any:
    """The value stored as ``body``."""
    if body.startswith(RAW_MARK):
        return body[len(RAW_MARK) :]
    try:
        return json.loads(body)
    except ValueError as error:
        raise BackendCorrupt(
            f"cache key {key!r} holds {len(body)} bytes that are not JSON; something else "
            "writes to this namespace",
            backend="cache",
        ) from error
