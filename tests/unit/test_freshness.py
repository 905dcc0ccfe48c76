"""How long entries live."""

from __future__ import annotations

import math
import random
from datetime import UTC, datetime, timedelta

import pytest

from forze.application.contracts.cache import AgeBasedTtl, CacheSpec
from forze.application.integrations.document.freshness import (
    JITTER,
    lifetime,
    refreshes_early,
    window,
)

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def test_the_ttl_is_shortened_by_the_dice_and_never_prolonged() -> None:
    spec = CacheSpec(name="things", ttl=timedelta(seconds=100))
    assert lifetime(spec, NOW, NOW, 0.0) == timedelta(seconds=100)
    assert lifetime(spec, NOW, NOW, 1.0) == timedelta(seconds=100) * (1 - JITTER)


def test_an_entry_lives_no_longer_than_its_pointer() -> None:
    short, long = timedelta(seconds=5), timedelta(seconds=50)
    for pointer, life in ((short, short), (long, timedelta(seconds=10))):
        spec = CacheSpec(name="things", ttl=timedelta(seconds=10), ttl_pointer=pointer)
        assert lifetime(spec, NOW, NOW, 0.0) == life


@pytest.mark.parametrize(
    ("age", "life"),
    [
        (timedelta(seconds=-5), timedelta(seconds=30)),
        (timedelta(minutes=1), timedelta(seconds=30)),
        (timedelta(minutes=100), timedelta(minutes=10)),
        (timedelta(days=1), timedelta(hours=1)),
    ],
)
def test_age_sets_the_lifetime_within_its_bounds(age: timedelta, life: timedelta) -> None:
    spec = CacheSpec(name="things", age_ttl=AgeBasedTtl())
    assert lifetime(spec, NOW - age, NOW, 0.0) == life


def test_without_a_sliding_ttl_there_is_no_window() -> None:
    assert window(CacheSpec(name="things"), timedelta(seconds=10), 0.0) is None


def test_the_window_is_the_sliding_ttl_within_the_cap() -> None:
    spec = CacheSpec(name="things", sliding_ttl=timedelta(seconds=10))
    cap = timedelta(seconds=300)
    assert window(spec, cap, 0.0) == timedelta(seconds=10)
    assert window(spec, cap, 1.0) == timedelta(seconds=10) * (1 - JITTER)
    assert window(spec, timedelta(seconds=4), 0.0) == timedelta(seconds=4)
    assert window(spec, timedelta(seconds=9.5), 1.0) == timedelta(seconds=9)


def test_age_caps_what_slides_above_ttl_and_below_it() -> None:
    spec = CacheSpec(name="things", sliding_ttl=timedelta(seconds=60), age_ttl=AgeBasedTtl())
    old = lifetime(spec, NOW - timedelta(days=1), NOW, 0.0)
    assert (old, window(spec, old, 0.0)) == (timedelta(hours=1), timedelta(seconds=60))
    assert old > spec.ttl
    young = lifetime(spec, NOW, NOW, 0.0)
    assert (young, window(spec, young, 0.0)) == (timedelta(seconds=30), timedelta(seconds=30))


@pytest.mark.parametrize(
    ("load", "remaining", "beta", "dice", "early"),
    [
        (2.0, 2.0, 1.0, math.exp(-1), True),
        (2.0, 2.001, 1.0, math.exp(-1), False),
        (2.0, 4.0, 2.0, math.exp(-1), True),
        (1.0, 4.0, 2.0, math.exp(-1), False),
        (0.1, 60.0, 1.0, 0.0, True),
        (0.1, 0.001, 1.0, 1.0, False),
        (0.1, 0.0, 1.0, 1.0, True),
        (0.0, 0.001, 1.0, 0.0, False),
    ],
)
def test_a_dear_load_near_the_end_is_refreshed_early(
    load: float, remaining: float, beta: float, dice: float, early: bool
) -> None:
    assert refreshes_early(load, remaining, beta, dice) is early


def test_the_chance_of_an_early_refresh_falls_exponentially() -> None:
    """P(early) = exp(-remaining / (load * beta)), as the paper has it."""
    dice = random.Random(7)
    for remaining in (0.1, 0.5, 2.0):
        early = sum(refreshes_early(0.5, remaining, 1.5, dice.random()) for _ in range(20_000))
        assert early / 20_000 == pytest.approx(math.exp(-remaining / 0.75), abs=0.01)
