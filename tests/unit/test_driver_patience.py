"""What a command asks the server to wait, and what a caller allows."""

from __future__ import annotations

from math import inf

import pytest

from forze.errors import ConfigurationError
from forze_redis.driver import asked_seconds, patience
from forze_redis.driver.patience import allowed_seconds


@pytest.mark.parametrize(
    ("command", "seconds"),
    [
        ("GET k", 0),
        ("BLPOP a b 30", 30),
        ("brpop a 0.5", 0.5),
        ("BLMOVE a b LEFT LEFT 0", inf),
        ("BRPOPLPUSH a b 2", 2),
        ("BZPOPMIN a 7", 7),
        ("BLMPOP 3 2 a b LEFT", 3),
        ("BZMPOP 0 1 a MIN", inf),
        ("WAIT 1 1500", 1.5),
        ("WAITAOF 1 1 0", inf),
        ("XREAD BLOCK 500 STREAMS s $", 0.5),
        ("XREADGROUP GROUP g c COUNT 1 BLOCK 0 STREAMS s >", inf),
        ("XREAD COUNT 1 STREAMS block 0", 0),
        ("BLPOP a soon", 0),
        ("BLPOP", 0),
        ("BLPOP a nan", 0),
        ("XREAD BLOCK", 0),
    ],
)
def test_what_a_command_asks_for(command: str, seconds: float) -> None:
    assert asked_seconds(command.split()) == seconds
    assert asked_seconds(command.encode().split()) == seconds


def test_the_least_patience_counts_and_only_within() -> None:
    with patience(2), patience(5):
        assert allowed_seconds.get() == 2
    assert allowed_seconds.get() == inf
    for wrong in (0, -1, inf, float("nan")):
        with pytest.raises(ConfigurationError, match="patience"), patience(wrong):
            raise AssertionError
