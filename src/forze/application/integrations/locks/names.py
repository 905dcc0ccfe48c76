"""Names of locks, and of those who take them.

A lock's name is encoded so that its key is none of those that another one keeps beside its own.
Who takes one in a scope has a name made for that one acquisition.
"""

from __future__ import annotations

import secrets

from forze.application.integrations.keys import encode_part

BESIDE = frozenset({"fence", "readers", "queue", "waiting", "tokens"})
"""What stands behind ``:`` in the keys beside a lock's own."""

READER = "r"
"""How the owner of a shared lease begins, so that a line can be read from its names."""


def encode_name(key: str) -> str:
    """``key`` as a key part; ``:`` stays, except before a last word that is one of :data:`BESIDE`.

    Raises :class:`~forze.errors.ValidationError` for a key that is empty, or not text.
    """
    part = encode_part(key)
    head, colon, last = part.rpartition(":")
    return f"{head}%3A{last}" if colon and last in BESIDE else part


def process_name() -> str:
    """Eight characters that name a process on the channels of its locks."""
    return secrets.token_hex(4)


def owner_name(process: str, *, shared: bool) -> str:
    """A name for one acquisition: whether it reads, where it is to be called, and which it is."""
    return f"{READER if shared else 'w'}{process}{secrets.token_hex(12)}"
