"""Connection strings of PostgreSQL: both of libpq's forms, and no password in any message."""

from __future__ import annotations

from typing import Any

import pytest

from forze.errors import ConfigurationError
from forze_postgres.dsn import parse_dsn, shown


@pytest.mark.parametrize(
    ("dsn", "arguments"),
    [
        ("postgresql://", {}),
        ("postgres://u@h/db", {"user": "u", "host": ["h"], "database": "db"}),
        (
            "postgresql://u%40x:p%2F%3A%25@h:5433/my%20db",
            {
                "user": "u@x",
                "password": "p/:%",
                "host": ["h"],
                "port": 5433,
                "database": "my db",
            },
        ),
        ("postgresql://a:1,b:2/db", {"host": ["a", "b"], "port": [1, 2], "database": "db"}),
        ("postgresql://a:1,b/db", {"host": ["a", "b"], "port": [1, 5432], "database": "db"}),
        ("postgresql://[::1]:6/db", {"host": ["::1"], "port": 6, "database": "db"}),
        ("postgresql://u@/db?host=/run/pg", {"user": "u", "host": ["/run/pg"], "database": "db"}),
        ("postgresql://u@%2Frun%2Fpg/db", {"user": "u", "host": ["/run/pg"], "database": "db"}),
        (
            "postgresql:///?host=h&port=7&dbname=d&user=u&password=p%20p",
            {"host": ["h"], "port": 7, "database": "d", "user": "u", "password": "p p"},
        ),
        (
            "host=/tmp dbname=x user='a b'",
            {"host": ["/tmp"], "database": "x", "user": "a b"},
        ),
        (
            r"host = h port=8 password='it\'s \\ = here' user=''",
            {"host": ["h"], "port": 8, "password": "it's \\ = here"},
        ),
        ("host=a,b port=9", {"host": ["a", "b"], "port": 9}),
        ("hostaddr=127.0.0.1 port=1", {"host": ["127.0.0.1"], "port": 1}),
        (
            "host=h sslmode=verify-full sslrootcert=/a/b.crt",
            {"host": ["h"], "dsn": "postgresql://?sslmode=verify-full&sslrootcert=%2Fa%2Fb.crt"},
        ),
    ],
)
def test_every_form(dsn: str, arguments: dict[str, Any]) -> None:
    assert parse_dsn(dsn).arguments == arguments


def test_settings_and_limits() -> None:
    dsn = parse_dsn(
        "postgresql://h/db?application_name=shop&connect_timeout=3&keepalives=1"
        "&options=-c%20search_path%3Da%5C%20b%20--work_mem%3D4MB"
    )
    assert dsn.settings == {
        "application_name": "shop",
        "search_path": "a b",
        "work_mem": "4MB",
    }
    assert dsn.connect_seconds == 3
    assert parse_dsn("host=h connect_timeout=0").connect_seconds is None


@pytest.mark.parametrize(
    ("dsn", "says"),
    [
        ("", "empty"),
        ("   ", "empty"),
        ("mysql://u:hunter2@h/db", "neither"),
        ("postgresql://u:hunter2@h:port/db", "port"),
        ("postgresql://u:hunter2@h:99999/db", "port"),
        ("postgresql://u:hunter2@a:1,b:2,c/db?port=1,2", "ports"),
        ("postgresql://u:hunter2@::1/db", "IPv6"),
        ("postgresql://u:hunter2%@h/db", "%25"),
        ("postgresql://u:hunter2@h/db?nonsense=1", "'nonsense'"),
        ("postgresql://u:hunter2@h/db?sslmode", "key=value"),
        ("postgresql://h,,i/db", "empty"),
        ("host=h password=hunter2 port", "key=value"),
        ("host=h password='hunter2", "key=value"),
        ("password=hunter2 hots=h", "'hots'"),
        ("password=hunter2 connect_timeout=soon", "connect_timeout"),
        ("password=hunter2 client_encoding=LATIN1", "client_encoding"),
        ("password=hunter2 options=nonsense", "options"),
    ],
)
def test_malformed_says_why_and_not_the_password(dsn: str, says: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        parse_dsn(dsn)
    assert says in str(caught.value)
    assert "hunter2" not in str(caught.value)
    assert caught.value.name == "dsn"


@pytest.mark.parametrize(
    "dsn",
    [
        "postgresql://u:hunter2@h/db",
        "postgresql://u:a@hunter2@h/db",
        "postgresql://u:hunter2@h/db?application_name=a@b",
        "postgresql://h/db?password=hunter2&sslpassword=hunter2",
        r"host=h password = 'a\'hunter2'",
        "host=h PASSWORD=hunter2",
    ],
)
def test_shown_has_no_password(dsn: str) -> None:
    assert "hunter2" not in shown(dsn)
    assert "hunter2" not in repr(parse_dsn(dsn)) if "PASS" not in dsn else True


def test_a_message_that_quotes_the_password_is_cleaned() -> None:
    dsn = parse_dsn("postgresql://u:hunter2@h/db")
    assert dsn.without_password("no entry for hunter2") == "no entry for ***"
    assert dsn.servers == "h:5432"
    assert parse_dsn("host=a,b port=1,2").servers == "a:1, b:2"
