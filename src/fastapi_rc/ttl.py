"""How long entries live: seconds in, whole milliseconds out.

A time to live is a number of seconds (fractions count) or a timedelta, above zero.
:data:`NO_EXPIRY` is the one that never ends. Jitter spreads what was stored at once, so that
it does not expire at once; it is for defaults: a TTL that a caller names is kept as it is.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from datetime import timedelta
from typing import Final, TypeAlias, TypeVar

from fastapi_rc.errors import InvalidTtl

Ttl: TypeAlias = int | float | timedelta
"""Seconds, or a timedelta."""

N = TypeVar("N", int, float)

NO_EXPIRY: Final = math.inf
"""The TTL of an entry that stays until it is deleted (or evicted)."""

JITTER: Final = 0.1
LONGEST_SECONDS: Final = 10**10
"""What the server can count together with today's time; about three centuries."""


def get_ttl_with_jitter(
    base_ttl: N, jitter_percent: float = JITTER, *, dice: Callable[[], float] = random.random
) -> N:
    """A TTL drawn evenly from ``base_ttl`` +- ``jitter_percent`` of it, always above zero.

    ``jitter_percent`` is a share: 0.1 is ten percent. An ``int`` gives an ``int``. ``dice``
    gives numbers from [0, 1). Raises :class:`InvalidTtl` for a TTL that is not above zero,
    and a share that is not from [0, 1).
    """
    in_seconds(base_ttl)
    share: object = jitter_percent
    number = isinstance(share, int | float) and not isinstance(share, bool)
    if not number or not 0 <= jitter_percent < 1:
        raise InvalidTtl(
            f"jitter_percent is {jitter_percent!r}; it is a share of the TTL, from 0 to below 1 "
            "(0.1 is ten percent)",
            field="jitter_percent",
        )
    if isinstance(base_ttl, int):
        span = int(base_ttl * jitter_percent)
        return base_ttl - span + int(dice() * (2 * span + 1))
    if base_ttl == NO_EXPIRY:
        return base_ttl
    return base_ttl * (1 + jitter_percent * (2 * dice() - 1))


def in_seconds(ttl: Ttl, name: str = "ttl") -> float:
    """``ttl`` in seconds; raises :class:`InvalidTtl` for what is none."""
    seconds: object = ttl.total_seconds() if isinstance(ttl, timedelta) else ttl
    if isinstance(seconds, bool) or not isinstance(seconds, int | float):
        raise InvalidTtl(f"{name} is {ttl!r}; give seconds, a timedelta, or NO_EXPIRY", field=name)
    if not seconds > 0:
        raise InvalidTtl(
            f"{name} is {ttl!r}; give more than zero, or NO_EXPIRY to keep it until it is deleted",
            field=name,
        )
    if LONGEST_SECONDS < seconds < NO_EXPIRY:
        raise InvalidTtl(
            f"{name} is {ttl!r} seconds, more than the server can count; give NO_EXPIRY",
            field=name,
        )
    return seconds


def milliseconds(ttl: Ttl, name: str = "ttl") -> int | None:
    """``ttl`` as the server counts it, one at least; None for :data:`NO_EXPIRY`."""
    seconds = in_seconds(ttl, name)
    return None if seconds == NO_EXPIRY else max(1, round(seconds * 1000))
