"""Cache specs: the defaults, and the combinations that cannot work."""

from __future__ import annotations

from dataclasses import FrozenInstanceError
from datetime import timedelta
from typing import Any

import pytest

from forze.application.contracts.cache import AgeBasedTtl, CacheSpec, L1Spec
from forze.errors import ConfigurationError

SECOND = timedelta(seconds=1)
BRISK = AgeBasedTtl(min_ttl=SECOND, max_ttl=2 * SECOND)


def test_the_defaults() -> None:
    spec = CacheSpec(name="a")
    assert spec.ttl == timedelta(minutes=5)
    assert spec.ttl_pointer is None
    assert (spec.early_refresh_beta, spec.early_refresh_background) == (None, False)
    assert (spec.l1, spec.sliding_ttl, spec.age_ttl) == (None, None, None)
    assert L1Spec(ttl=SECOND).capacity == 1024
    rule = AgeBasedTtl()
    assert (rule.alpha, rule.min_ttl, rule.max_ttl) == (0.1, 30 * SECOND, timedelta(hours=1))


def test_a_spec_is_a_value() -> None:
    spec = CacheSpec(name="a", l1=L1Spec(ttl=SECOND), age_ttl=AgeBasedTtl())
    assert spec == CacheSpec(name="a", l1=L1Spec(ttl=SECOND), age_ttl=AgeBasedTtl())
    assert hash(spec) == hash(CacheSpec(name="a", l1=L1Spec(ttl=SECOND), age_ttl=AgeBasedTtl()))
    assert not hasattr(spec, "__dict__")
    with pytest.raises(FrozenInstanceError):
        spec.ttl = SECOND  # type: ignore[misc]
    positional: Any = CacheSpec
    with pytest.raises(TypeError):
        positional("a")


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({"name": ""}, "name"),
        ({"ttl": timedelta(0)}, "ttl"),
        ({"ttl": None}, "ttl"),
        ({"ttl": 300}, "ttl"),
        ({"early_refresh_beta": "1"}, "early_refresh_beta"),
        ({"early_refresh_beta": True}, "early_refresh_beta"),
        ({"early_refresh_beta": float("nan")}, "early_refresh_beta"),
        ({"l1": 2}, "l1"),
        ({"l1": {"ttl": SECOND}}, "l1"),
        ({"age_ttl": 0.1}, "age_ttl"),
        (
            {"early_refresh_beta": 1.0, "early_refresh_background": "yes"},
            "early_refresh_background",
        ),
        ({"ttl_pointer": 30 * SECOND, "l1": L1Spec(ttl=30 * SECOND)}, "l1"),
        ({"ttl_pointer": 30 * SECOND, "sliding_ttl": 30 * SECOND}, "sliding_ttl"),
        ({"age_ttl": BRISK, "sliding_ttl": 2 * SECOND}, "sliding_ttl"),
        ({"age_ttl": BRISK, "l1": L1Spec(ttl=2 * SECOND)}, "l1"),
        ({"ttl": -SECOND}, "ttl"),
        ({"ttl_pointer": timedelta(0)}, "ttl_pointer"),
        ({"sliding_ttl": timedelta(0)}, "sliding_ttl"),
        ({"early_refresh_beta": 0.0}, "early_refresh_beta"),
        ({"early_refresh_beta": -1.0}, "early_refresh_beta"),
        ({"early_refresh_background": True}, "early_refresh_background"),
        ({"ttl": 60 * SECOND, "sliding_ttl": 60 * SECOND}, "sliding_ttl"),
        ({"ttl": 60 * SECOND, "sliding_ttl": 61 * SECOND}, "sliding_ttl"),
        ({"ttl": 60 * SECOND, "l1": L1Spec(ttl=60 * SECOND)}, "l1"),
        ({"sliding_ttl": 10 * SECOND, "l1": L1Spec(ttl=10 * SECOND)}, "l1"),
    ],
)
def test_what_cannot_work_is_refused(fields: dict[str, Any], name: str) -> None:
    with pytest.raises(ConfigurationError) as info:
        CacheSpec(**{"name": "things", **fields})
    assert info.value.name == name
    assert name.replace("l1", "L1") in str(info.value)
    assert "things" in str(info.value) or name == "name"


@pytest.mark.parametrize(
    "fields",
    [
        {"ttl": 60 * SECOND, "sliding_ttl": 59 * SECOND},
        {"ttl": 60 * SECOND, "l1": L1Spec(ttl=59 * SECOND)},
        {"sliding_ttl": 10 * SECOND, "l1": L1Spec(ttl=9 * SECOND)},
        {"early_refresh_beta": 1.0, "early_refresh_background": True},
        {"age_ttl": AgeBasedTtl(max_ttl=timedelta(days=1)), "sliding_ttl": 10 * SECOND},
        {"age_ttl": AgeBasedTtl(max_ttl=timedelta(days=1)), "sliding_ttl": 600 * SECOND},
        {"age_ttl": AgeBasedTtl(), "l1": L1Spec(ttl=60 * SECOND)},
    ],
)
def test_what_just_works_is_accepted(fields: dict[str, Any]) -> None:
    assert CacheSpec(name="things", **fields).name == "things"


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({"ttl": timedelta(0)}, "ttl"),
        ({"ttl": None}, "ttl"),
        ({"ttl": SECOND, "capacity": 0}, "capacity"),
        ({"ttl": SECOND, "capacity": 1.5}, "capacity"),
        ({"ttl": SECOND, "capacity": True}, "capacity"),
        ({"ttl": SECOND, "capacity": "10"}, "capacity"),
        ({"ttl": SECOND, "store_factory": "lru"}, "store_factory"),
    ],
)
def test_an_l1_that_cannot_work_is_refused(fields: dict[str, Any], name: str) -> None:
    with pytest.raises(ConfigurationError, match=f"L1Spec: {name}") as info:
        L1Spec(**fields)
    assert info.value.name == name


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({"alpha": 0.0}, "alpha"),
        ({"alpha": "x"}, "alpha"),
        ({"alpha": float("inf")}, "alpha"),
        ({"max_ttl": 3600}, "max_ttl"),
        ({"min_ttl": timedelta(0)}, "min_ttl"),
        ({"min_ttl": 2 * SECOND, "max_ttl": SECOND}, "max_ttl"),
    ],
)
def test_an_age_rule_that_cannot_work_is_refused(fields: dict[str, Any], name: str) -> None:
    with pytest.raises(ConfigurationError, match=f"AgeBasedTtl: {name}") as info:
        AgeBasedTtl(**fields)
    assert info.value.name == name
