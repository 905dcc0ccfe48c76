"""How long entries live."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from forze.application.contracts.cache import AgeBasedTtl, CacheSpec
from forze.application.integrations.document.freshness import JITTER, lifetime

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
