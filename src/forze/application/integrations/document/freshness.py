"""How long an entry may live: pure functions of the document, the spec, the time and the dice."""

from __future__ import annotations

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
        life = min(max((now - last_update_at) * rule.alpha, rule.min_ttl), rule.max_ttl)
    return life * (1 - JITTER * dice)
