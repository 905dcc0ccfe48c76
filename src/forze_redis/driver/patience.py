"""How long an answer is waited for: what a command asks the server to wait, what a caller has.

A blocking command (``BLPOP key 30``) is answered late on purpose: it has the time that it asks
for on top. A caller may have less patience than its client: within :func:`patience` a server
that is silent for so long counts as away.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from math import inf
from typing import Any

from forze.errors import ConfigurationError

allowed_seconds: ContextVar[float] = ContextVar("forze_redis_patience", default=inf)
turn_deadline: ContextVar[float] = ContextVar("forze_redis_turn_deadline", default=inf)
"""Of a call to a cluster in its turn, which may ask several nodes one after the other."""


@contextlib.contextmanager
def patience(seconds: float) -> Iterator[None]:
    """Within the block a call waits so long for connecting and for each answer, if not less.

    Unlike a timeout around the call this does not count the wait for a free connection, and the
    client's guard hears of the silence.
    """
    if not 0 < seconds < inf:
        raise ConfigurationError(
            f"patience: seconds must be more than 0 and finite, not {seconds!r}", name="seconds"
        )
    token = allowed_seconds.set(min(seconds, allowed_seconds.get()))
    try:
        yield
    finally:
        allowed_seconds.reset(token)


def asked_seconds(args: Sequence[Any]) -> float:
    """How long a command asks the server to wait: 0 for most, ``inf`` for ever. Pure."""
    waits = _WAITS.get(_word(args[0])) if args else None
    if waits is None:
        return 0.0
    try:
        asked = waits(args)
    except (ValueError, TypeError, IndexError):  # the server will say what is wrong with it
        return 0.0
    if asked is None or asked != asked:
        return 0.0
    return asked if asked > 0 else inf


def _word(word: Any) -> str:
    return (word.decode("ascii", "replace") if isinstance(word, bytes) else str(word)).upper()


def _last(args: Sequence[Any]) -> float:
    return float(args[-1])


def _first(args: Sequence[Any]) -> float:
    return float(args[1])


def _last_in_ms(args: Sequence[Any]) -> float:
    return float(args[-1]) / 1000


def _block_in_ms(args: Sequence[Any]) -> float | None:
    words = [_word(each) for each in args]
    options = words[: words.index("STREAMS")]
    return float(args[options.index("BLOCK") + 1]) / 1000 if "BLOCK" in options else None


_WAITS: dict[str, Callable[[Sequence[Any]], float | None]] = {
    **dict.fromkeys(("BLPOP", "BRPOP", "BLMOVE", "BRPOPLPUSH", "BZPOPMIN", "BZPOPMAX"), _last),
    **dict.fromkeys(("BLMPOP", "BZMPOP"), _first),
    **dict.fromkeys(("WAIT", "WAITAOF"), _last_in_ms),
    **dict.fromkeys(("XREAD", "XREADGROUP"), _block_in_ms),
}
