"""Whom to believe of the nodes of a cluster: the highest epoch among those that answer."""

from __future__ import annotations

import asyncio
import time

import pytest

from forze.errors import BackendUnavailable, ConfigurationError, ForzeError
from forze_redis.wire.config import RedisConfig
from forze_redis.wire.dsn import parse_dsn
from forze_redis.wire.views import View, newest, seeds_of

OLD = View(3, ((0, 16383, "old", 1),))
NEW = View(4, ((0, 16383, "new", 1),))


async def says(view: View, seconds: float = 0.0) -> View:
    await asyncio.sleep(seconds)
    return view


async def fails(error: ForzeError) -> View:
    raise error


async def test_the_highest_epoch_is_believed_whoever_answers_first() -> None:
    assert await newest([says(OLD), says(NEW, 0.01)]) is NEW
    assert await newest([says(NEW), says(OLD, 0.01)]) is NEW


async def test_who_is_late_is_not_waited_for() -> None:
    began = time.monotonic()
    assert await newest([says(OLD), says(NEW, 30)]) is OLD
    assert time.monotonic() - began < 5


async def test_who_fails_is_outvoted() -> None:
    assert await newest([fails(BackendUnavailable("gone", backend="redis")), says(OLD)]) is OLD


async def test_where_nobody_answers_the_gravest_error_counts_only_if_all_say_so() -> None:
    gone = BackendUnavailable("gone", backend="redis")
    wrong = ConfigurationError("no cluster", name="dsn")
    with pytest.raises(ConfigurationError, match="no cluster"):
        await newest([fails(wrong), fails(wrong.again())])
    with pytest.raises(BackendUnavailable, match="gone"):
        await newest([fails(wrong), fails(gone)])
    with pytest.raises(BackendUnavailable, match="nobody to ask"):
        await newest([])


def test_those_known_last_are_asked_before_those_of_the_dsn() -> None:
    endpoint = parse_dsn("redis+cluster://:word@h1,h2:7000", RedisConfig())
    asked = seeds_of(endpoint, [("h3", 1), ("h1", 6379)])
    assert [(each.host, each.port) for each in asked] == [("h3", 1), ("h1", 6379), ("h2", 7000)]
    assert all(each.password == "word" and not each.seeds for each in asked)
