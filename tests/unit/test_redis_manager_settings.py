"""What the manager is told, by whom, and how it refuses."""

from __future__ import annotations

import subprocess
import sys
from datetime import timedelta
from enum import IntEnum
from pathlib import Path
from typing import Any

import pytest

from forze.errors import ConfigurationError
from forze_redis import RedisManager, RedisManagerSettings
from forze_redis.manager import checked_value, milliseconds


@pytest.fixture(autouse=True)
def _bare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("CONNECTION_URL", "POOL_SIZE", "SOCKET_TIMEOUT", "DEFAULT_TTL"):
        monkeypatch.delenv(f"REDIS_{name}", raising=False)
    monkeypatch.chdir(tmp_path)


def test_the_defaults_of_the_document() -> None:
    settings = RedisManager().settings
    assert settings.connection_url == "redis://localhost:6379"
    assert (settings.pool_size, settings.socket_timeout, settings.default_ttl) == (5, 10, 3600)


def test_the_environment_is_read_when_the_manager_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REDIS_CONNECTION_URL", "redis://redis:6379/2")
    monkeypatch.setenv("REDIS_POOL_SIZE", "7")
    manager = RedisManager()
    monkeypatch.setenv("REDIS_POOL_SIZE", "9")
    assert (manager.settings.connection_url, manager.settings.pool_size) == (
        "redis://redis:6379/2",
        7,
    )


def test_the_environment_beats_the_file_and_an_argument_beats_both(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    lines = "REDIS_POOL_SIZE=3\nREDIS_DEFAULT_TTL=60\nREDIS_SOCKET_TIMEOUT=2.5\nOTHER=1\n"
    (tmp_path / ".env").write_text(lines)
    monkeypatch.setenv("REDIS_DEFAULT_TTL", "90")
    monkeypatch.setenv("REDIS_SOCKET_TIMEOUT", "nonsense")
    settings = RedisManager(socket_timeout=4).settings
    assert (settings.pool_size, settings.default_ttl, settings.socket_timeout) == (3, 90, 4)
    assert RedisManager(settings, pool_size=8).settings.pool_size == 8


@pytest.mark.parametrize(
    ("name", "value", "rule"),
    [
        ("REDIS_POOL_SIZE", "0", "greater than or equal to 1"),
        ("REDIS_POOL_SIZE", "many", "valid integer"),
        ("REDIS_SOCKET_TIMEOUT", "0", "greater than 0"),
        ("REDIS_SOCKET_TIMEOUT", "inf", "finite"),
        ("REDIS_DEFAULT_TTL", "-1", "greater than or equal to 1"),
        ("REDIS_DEFAULT_TTL", "1.5", "valid integer"),
        ("REDIS_CONNECTION_URL", "http://:secret@h", "schemes are"),
        ("REDIS_CONNECTION_URL", "", "schemes are"),
        ("REDIS_CONNECTION_URL", "redis://:secret@h:port", "cannot be taken apart"),
    ],
)
def test_a_bad_value_names_its_variable_and_the_rule(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, rule: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigurationError) as refused:
        RedisManager()
    assert refused.value.name == name
    assert name in str(refused.value)
    assert rule in str(refused.value)
    assert "secret" not in str(refused.value)
    assert refused.value.__cause__ is None
    assert refused.value.__suppress_context__


def test_no_password_shows() -> None:
    manager = RedisManager(url="redis://user:secret@h:1/0")
    assert "secret" not in f"{manager!r} {manager.settings!r} {manager.settings}"
    assert "h:1" in repr(manager)


def test_a_setting_that_is_unknown_is_refused_as_python_does() -> None:
    given: dict[str, Any] = {"max_connections": 3}
    with pytest.raises(TypeError):
        RedisManager(**given)


def test_importing_the_package_loads_no_settings() -> None:
    code = "import sys, forze_redis; print('pydantic_settings' in sys.modules)"
    code += "; from forze_redis import RedisManager; print('pydantic_settings' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "True"]
    assert RedisManagerSettings is not None


class Colour(IntEnum):
    RED = 1


@pytest.mark.parametrize(
    ("value", "stored"),
    [
        ("a", "a"),
        (b"\xc3\xa4", b"\xc3\xa4"),
        (7, "7"),
        (-1.5, "-1.5"),
        (Colour.RED, "1"),
        (1e300, "1e+300"),
    ],
)
def test_what_is_stored(value: Any, stored: object) -> None:
    assert checked_value(value) == stored


@pytest.mark.parametrize("value", [True, None, {"a": 1}, [1], object(), bytearray(b"x"), (1,)])
def test_a_value_without_a_text_is_refused_and_told_of_json(value: Any) -> None:
    with pytest.raises(TypeError, match=r"json\.dumps"):
        checked_value(value)


def test_bytes_that_could_not_be_read_are_not_stored() -> None:
    with pytest.raises(ValueError, match="base64"):
        checked_value(b"\xff\x00")


@pytest.mark.parametrize(
    "ex", [0, -1, 0.0, -0.5, 0.0001, float("nan"), float("inf"), timedelta(0), 10**12]
)
def test_a_lifetime_that_cannot_be(ex: float | timedelta) -> None:
    with pytest.raises(ValueError, match="ex must be"):
        milliseconds(ex)


def test_lifetimes() -> None:
    assert [milliseconds(each) for each in (300, 1.5, timedelta(minutes=1))] == [
        300_000,
        1500,
        60_000,
    ]
    wrong: list[Any] = [True, "60", b"1"]
    for each in wrong:
        with pytest.raises(TypeError, match="seconds or a timedelta"):
            milliseconds(each)
