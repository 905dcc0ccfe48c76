"""Names of locks: encoded so that no lock's key is what another one keeps beside its own."""

from __future__ import annotations

from forze.application.integrations.keys import encode_part

BESIDE = frozenset({"fence", "readers", "queue", "waiting", "tokens"})
"""What stands behind ``:`` in the keys beside a lock's own."""


def encode_name(key: str) -> str:
    """``key`` as a key part; ``:`` stays, except before a last word that is one of :data:`BESIDE`.

    Raises :class:`~forze.errors.ValidationError` for a key that is empty, or not text.
    """
    part = encode_part(key)
    head, colon, last = part.rpartition(":")
    return f"{head}%3A{last}" if colon and last in BESIDE else part
