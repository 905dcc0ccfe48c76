"""Lua scripts: sent by digest, loaded at connect, sent in full where a server lost them.

Every :class:`Script` is known to the process from when it is made, so that connections can
load it beforehand, and can turn an EVALSHA that was answered NOSCRIPT into its EVAL.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from hashlib import sha1
from importlib.resources import files

import hiredis

from forze.errors import ValidationError

_known: dict[bytes, Script] = {}

_EVALSHA = b"\r\n$7\r\nEVALSHA\r\n$40\r\n"


@dataclass(frozen=True, slots=True)
class Script:
    """A Lua script; ``sha1`` is its digest as text, ``head`` starts a packed EVALSHA of it."""

    name: str
    source: str
    sha1: str = field(init=False, repr=False)

    def __post_init__(self) -> None:
        digest = sha1(self.source.encode(), usedforsecurity=False).hexdigest()
        object.__setattr__(self, "sha1", digest)
        _known[digest.encode()] = self

    def head(self, keys: int, args: int) -> str:
        """The packed command up to the first key, for ``keys`` keys and ``args`` arguments.

        What follows is each key and argument as ``${length in bytes}\\r\\n{value}\\r\\n``.
        Made once, it leaves only the varying parts to be joined for each call.
        """
        count = str(keys)
        return (
            f"*{3 + keys + args}\r\n$7\r\nEVALSHA\r\n$40\r\n{self.sha1}\r\n"
            f"${len(count)}\r\n{count}\r\n"
        )


@cache
def load_script(name: str) -> Script:
    """The script shipped as ``forze_redis/lua/{name}.lua``; read once per process."""
    return Script(name, (files("forze_redis") / "lua" / f"{name}.lua").read_text("utf-8"))


def known_scripts() -> tuple[Script, ...]:
    """Every script made so far in this process."""
    return tuple(_known.values())


def in_full(packed: bytes) -> bytes | None:
    """The EVAL of a packed EVALSHA, None if it is none or its script is not ours."""
    count, found, rest = packed.partition(_EVALSHA)
    script = _known.get(rest[:40]) if found and len(count) < 12 else None
    if script is None:
        return None
    source = script.source.encode()
    return b"%b\r\n$4\r\nEVAL\r\n$%d\r\n%b%b" % (count, len(source), source, rest[40:])


def pack(*args: str | bytes | int | float) -> bytes:
    """A command as the server reads it; a ``ValidationError`` for what cannot be an argument."""
    try:
        packed: bytes = hiredis.pack_command(args)  # type: ignore[arg-type] # typed as a 1-tuple
    except TypeError as error:
        given: tuple[object, ...] = args
        wrong = [each for each in given if not isinstance(each, str | bytes | int | float)]
        raise ValidationError(
            f"{args[0]!s}: an argument is text, bytes or a number, not {(wrong or args)[0]!r}",
            field="args",
        ) from error
    return packed


def unpack(packed: bytes) -> list[bytes]:
    """The arguments of a packed command."""
    reader = hiredis.Reader()
    reader.feed(packed)
    args: list[bytes] = reader.gets()
    return args
