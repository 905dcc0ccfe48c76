"""How long an entry may live, and when it is refreshed before its end.

Pure functions of the entry, the spec, the time and the dice: no clock, no chance of their own.

Early refresh is XFetch (Vattani, Chierichetti and Lowenstein, Optimal Probabilistic Cache
Stampede Prevention, VLDB 2015): each reader on its own refreshes an entry a little before
its end, the earlier the dearer the load, so that rarely two of them do and nobody waits.
"""

from __future__ import annotations

import math
import sys
from datetime import datetime, timedelta

from forze.application.contracts.cache import CacheSpec

JITTER = 0.1
"""Lifetimes are shortened by up to this share, so that what was cached together dies apart."""


def lifetime(spec: CacheSpec, last_update_at: datetime, now: datetime, dice: float) -> timedelta:
    """How long an entry lives from now; ``dice`` is uniform in [0, 1).

    Without ``age_ttl`` it is ``ttl`` (or ``ttl_pointer``, if shorter); with it, ``alpha`` times
    the document's age within its bounds (the heuristic freshness of RFC 9111, section 4.2.2).
    """
    life = spec.ttl if spec.ttl_pointer is None else min(spec.ttl, spec.ttl_pointer)
    if spec.age_ttl is not None:
        rule = spec.age_ttl
        age = (now - last_update_at).total_seconds() * rule.alpha
        life = rule.max_ttl if age > rule.max_ttl.total_seconds() else timedelta(seconds=age)
        life = max(life, rule.min_ttl)
    return life * (1 - JITTER * dice)


def window(spec: CacheSpec, life: timedelta, dice: float) -> timedelta | None:
    """How long an entry lives without being read; None where it does not slide.

    Never longer than ``life``, which :func:`lifetime` gave: reads prolong it up to there.
    """
    if spec.sliding_ttl is None:
        return None
    return min(spec.sliding_ttl * (1 - JITTER * dice), life)


def refreshes_early(
    load_seconds: float, remaining_seconds: float, beta: float, dice: float
) -> bool:
    """Whether a reader should load anew what would live ``remaining_seconds`` longer.

    ``load_seconds`` is what the last load took, ``dice`` uniform in (0, 1]; ``beta`` above 1
    refreshes earlier, below 1 later.
    """
    return -load_seconds * beta * math.log(max(dice, sys.float_info.min)) >= remaining_seconds
