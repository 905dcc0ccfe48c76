"""Server errors and driver exceptions: every one becomes an error of ours."""

from __future__ import annotations

import inspect
import socket
from pathlib import Path
from typing import Any

import pytest
import redis

from forze.errors import (
    BackendCorrupt,
    BackendError,
    BackendUnavailable,
    ConfigurationError,
    ForzeError,
    ValidationError,
)
from forze.testing.servers import RespServer, ValkeyServer
from forze_redis.client import RedisClient
from forze_redis.wire.pool import error_from_driver
from forze_redis.wire.replies import MAPPED, RECONNECT_ON, error_from_reply

REFUSED = [
    *("OOM", "MISCONF", "READONLY", "LOADING", "BUSY", "NOSCRIPT", "MOVED", "ASK", "TRYAGAIN"),
    *("CLUSTERDOWN", "MASTERDOWN", "NOREPLICAS", "UNKILLABLE"),
]
MISUSED = ["CROSSSLOT"]
FORBIDDEN = ["NOPERM", "NOAUTH", "WRONGPASS"]


@pytest.mark.parametrize("word", [*REFUSED, *FORBIDDEN, *MISUSED, "WRONGTYPE"])
def test_every_prefix_is_mapped_and_says_what_to_do(word: str) -> None:
    said = f"{word} what the server said"
    error = error_from_reply(said, "h:1")
    expected = (
        BackendUnavailable
        if word in REFUSED
        else ConfigurationError
        if word in FORBIDDEN
        else ValidationError
        if word in MISUSED
        else BackendCorrupt
    )
    assert type(error) is expected
    assert word in MAPPED
    assert "h:1" in str(error)
    assert said in str(error)
    assert len(str(error)) > len(said) + 40
    if isinstance(error, BackendError):
        assert error.outcome == "none"
        assert error.backend == "redis"


def test_a_script_broken_off_by_a_moving_slot_may_have_had_an_effect() -> None:
    said = "ERR Script attempted to access a non local key in a cluster node script: f, on @user"
    error = error_from_reply(said, "h:1")
    assert isinstance(error, BackendUnavailable)
    assert error.outcome == "unknown"


def test_an_error_nobody_knows_may_have_had_an_effect() -> None:
    error = error_from_reply("ERR something new", "h:1")
    assert isinstance(error, BackendCorrupt)
    assert error.outcome == "unknown"
    assert not error.retryable
    assert frozenset({"READONLY", "MASTERDOWN"}) == RECONNECT_ON


DRIVER_EXCEPTIONS = [
    each
    for _, each in inspect.getmembers(redis.exceptions, inspect.isclass)
    if issubclass(each, Exception) and each.__module__ == "redis.exceptions"
]


def example(kind: type[Exception]) -> Exception:
    if issubclass(kind, redis.exceptions.AskError):
        return kind("1234 127.0.0.1:7000")
    return kind("something")


@pytest.mark.parametrize("kind", DRIVER_EXCEPTIONS, ids=lambda kind: kind.__name__)
def test_every_exception_of_the_driver_is_mapped(kind: type[Exception]) -> None:
    error = error_from_driver(example(kind), "h:1")
    assert isinstance(error, ForzeError)
    assert "h:1" in str(error) or kind is redis.exceptions.DataError


@pytest.mark.parametrize(
    ("raised", "word"),
    [
        (redis.exceptions.OutOfMemoryError("command not allowed"), "OOM"),
        (redis.exceptions.ReadOnlyError("You can't write"), "READONLY"),
        (redis.exceptions.BusyLoadingError("loading"), "LOADING"),
        (redis.exceptions.MasterDownError("Link with MASTER is down"), "MASTERDOWN"),
        (redis.exceptions.ClusterDownError("down"), "CLUSTERDOWN"),
        (redis.exceptions.NoPermissionError("no"), "NOPERM"),
        (redis.exceptions.ResponseError("MISCONF disk"), "MISCONF"),
        (redis.exceptions.ResponseError("WRONGTYPE Operation"), "WRONGTYPE"),
    ],
)
def test_the_driver_and_the_wire_agree(raised: Exception, word: str) -> None:
    ours, wire = error_from_driver(raised, "h:1"), error_from_reply(f"{word} x", "h:1")
    assert type(ours) is type(wire)
    assert word in str(ours)


def test_lost_answers_of_the_driver_are_unknown() -> None:
    for raised in (redis.exceptions.TimeoutError(), redis.exceptions.ConnectionError(), OSError()):
        error = error_from_driver(raised, "h:1")
        assert isinstance(error, BackendError)
        assert error.outcome == "unknown"


def test_what_was_never_sent_took_no_effect(tmp_path: Path) -> None:
    with socket.socket() as unheard:
        unheard.bind(("127.0.0.1", 0))
        here: dict[str, Any] = {"port": unheard.getsockname()[1]}
        for place in (here, {"unix_socket_path": str(tmp_path / "none")}):
            with pytest.raises(redis.exceptions.ConnectionError) as raised:
                redis.Redis(**place).ping()
            error = error_from_driver(raised.value, "h:1")
            assert isinstance(error, BackendError)
            assert error.outcome == "none"


async def test_real_refusals(own_valkey: ValkeyServer) -> None:
    async with await RedisClient().connect(own_valkey.dsn) as client:
        await client.call("SET", "k", "v")
        with pytest.raises(BackendCorrupt, match="another type") as corrupt:
            await client.call("LPUSH", "k", "x")
        assert "WRONGTYPE" in str(corrupt.value)
        with pytest.raises(BackendCorrupt, match="rejected the command"):
            await client.call("NONSENSE")
        own_valkey.ask("CONFIG", "SET", "maxmemory", "1")
        with pytest.raises(BackendUnavailable, match="maxmemory"):
            await client.call("SET", "k", "v")
        own_valkey.ask("CONFIG", "SET", "maxmemory", "0")
        own_valkey.ask("CONFIG", "SET", "min-replicas-to-write", "1")
        with pytest.raises(BackendUnavailable, match="min-replicas-to-write"):
            await client.call("SET", "k", "v")
        assert await client.call("GET", "k") == b"v"


async def test_each_caller_has_an_error_of_its_own(
    redis_server: RespServer, redis_dsn: str
) -> None:
    async with await RedisClient().connect(redis_dsn) as client:
        first, second = client.call("NONSENSE"), client.call("NONSENSE")
        errors = [await each for each in (caught(first), caught(second))]
        assert errors[0] is not errors[1]


async def caught(call: object) -> BaseException:
    with pytest.raises(ForzeError) as refused:
        await call  # type: ignore[misc] # a future
    return refused.value
