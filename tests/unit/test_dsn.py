"""DSNs: every accepted form, and messages that never show a password."""

from __future__ import annotations

from datetime import timedelta

import pytest

from forze.errors import ConfigurationError
from forze_redis.wire.config import RedisConfig, seconds
from forze_redis.wire.dsn import Endpoint, Sentinels, parse_dsn

PLAIN = RedisConfig()
MAIN = Sentinels(service="main", addresses=(("h", 1), ("::1", 2)), password="secret")


@pytest.mark.parametrize(
    ("dsn", "expected"),
    [
        ("redis://localhost", Endpoint()),
        ("redis://", Endpoint()),
        ("redis://h:6380/3", Endpoint(host="h", port=6380, db=3)),
        ("redis://h/?db=4", Endpoint(host="h", db=4)),
        ("valkey://h:1/2", Endpoint(host="h", port=1, db=2)),
        ("redis://:p%40s%2Fs%25@h", Endpoint(host="h", password="p@s/s%")),
        ("redis://u%3A:p@h", Endpoint(host="h", username="u:", password="p")),
        ("redis://[::1]:7000/1", Endpoint(host="::1", port=7000, db=1)),
        ("unix:///run/redis.sock?db=2", Endpoint(path="/run/redis.sock", db=2)),
        ("unix://u:p@/run/r.sock", Endpoint(path="/run/r.sock", username="u", password="p")),
        ("rediss://h", Endpoint(host="h", tls={})),
        ("valkeys://h:5", Endpoint(host="h", port=5, tls={})),
        ("rediss://h?ssl_cert_reqs=none", Endpoint(host="h", tls={"ssl_cert_reqs": "none"})),
        (
            "redis+sentinel://u:p%40%2F@h1,h2:5,[::1]:6/my%20own/3",
            Endpoint(
                host="",
                db=3,
                username="u",
                password="p@/",
                sentinels=Sentinels(
                    service="my own", addresses=(("h1", 26379), ("h2", 5), ("::1", 6))
                ),
            ),
        ),
        (
            "valkey+sentinel://h/main?sentinel_username=s&sentinel_password=a%26b",
            Endpoint(
                host="",
                sentinels=Sentinels(
                    service="main", addresses=(("h", 26379),), username="s", password="a&b"
                ),
            ),
        ),
        (
            "rediss+sentinel://h/main/?ssl_check_hostname=false",
            Endpoint(
                host="",
                tls={"ssl_check_hostname": False},
                sentinels=Sentinels(service="main", addresses=(("h", 26379),)),
            ),
        ),
    ],
)
def test_accepted_forms(dsn: str, expected: Endpoint) -> None:
    assert parse_dsn(dsn, PLAIN) == expected


@pytest.mark.parametrize(
    "dsn",
    [
        "",
        "localhost:6379",
        "http://u:secret@h",
        "redis:/u:secret@h",
        "redis://:secret@h:port",
        "redis://:secret@h:0",
        "redis://:secret@h:70000",
        "redis://:secret@h/abc",
        "redis://:secret@h/1/2",
        "redis://:secret@h/-1",
        "redis://:secret@h?db=-1",
        "redis://:secret@h?db=x",
        "redis://:secret@h?socket_timeout=2",
        "redis://:secret@h?ssl_cert_reqs=none",
        "redis://h?password=secret&nonsense=1",
        "redis://:sec#secret@h",
        "redis://:a/secret@h",
        "redis://:secret",
        "redis://u:secret@[::1",
        "u:secret@h",
        "unix://relative/secret.sock@",
        "unix://:secret@",
        "rediss://:secret@h?ssl_cert_reqs=maybe",
        "redis+sentinel://:secret@h1,h2",
        "redis+sentinel://:secret@h1,h2/",
        "redis+sentinel://:secret@h1,,h2/service",
        "redis+sentinel://:secret@h1:0/service",
        "redis+sentinel://:secret@h1:port/service",
        "redis+sentinel://:secret@/service",
        "redis+sentinel://:secret@h1/service/x",
        "redis+sentinel://:secret@h1/service/1/2",
        "redis+sentinel://:a/secret@h1/service",
        "redis+sentinel:/h1/service",
        "redis+sentinel://h1/service?sentinel_username=u&password=secret&nonsense=1",
        "redis+sentinel://h1/service?sentinel_password=secret&nonsense=1",
        "redis+sentinel://h1/service?sentinel_username=u",
        "redis+sentinel://h1/service?ssl_cert_reqs=none",
        "redis+sentinel://h1/service?db=-1",
        "redis+sentinel://h1/service?path=/elsewhere",
        "unix+sentinel:///secret.sock@/service",
        "redis+cluster://:secret@h1,h2/3",
        "redis+cluster://:secret@h1,,h2",
        "redis+cluster://:secret@",
        "redis+cluster://:secret@h1:0",
        "redis+cluster://:secret@h1/x",
        "redis+cluster://:a/secret@h1",
        "redis+cluster:/h1,h2",
        "redis+cluster://h1?db=2",
        "redis+cluster://h1?host=elsewhere",
        "redis+cluster://h1?password=secret&nonsense=1",
        "unix+cluster:///secret.sock@h1",
    ],
)
def test_malformed_is_refused_with_the_accepted_forms_and_without_the_password(dsn: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        parse_dsn(dsn, PLAIN)
    message = str(refused.value)
    assert "redis://[user:password@]host[:port][/db]" in message
    assert len(message) < 400 + len(dsn)
    assert "secret" not in message
    assert "secret" not in repr(refused.value.__cause__)
    assert refused.value.name == "dsn"
    assert {"valkeys", "redis+sentinel", "rediss+cluster"} <= set(refused.value.known)


@pytest.mark.parametrize("scheme", ["redis", "rediss", "valkey", "valkeys"])
def test_a_cluster_is_known_by_some_of_its_nodes(scheme: str) -> None:
    endpoint = parse_dsn(f"{scheme}+cluster://me:p%40ss@h1,h2:7000,[::1]:7001/0", PLAIN)
    assert endpoint.seeds == (("h1", 6379), ("h2", 7000), ("::1", 7001))
    assert (endpoint.username, endpoint.password, endpoint.host) == ("me", "p@ss", "")
    assert (endpoint.tls is not None) == (scheme in ("rediss", "valkeys"))
    assert endpoint.where == "the cluster of h1:6379, h2:7000, [::1]:7001"


def test_a_cluster_has_one_database() -> None:
    with pytest.raises(ConfigurationError, match="no database 3, only 0"):
        parse_dsn("redis+cluster://h1,h2/3", PLAIN)


def test_config_goes_before_the_dsn() -> None:
    config = RedisConfig(username="a", password="b", tls_ca="/ca", tls_verify=False)
    endpoint = parse_dsn("rediss://x:y@h", config)
    assert (endpoint.username, endpoint.password) == ("a", "b")
    assert endpoint.tls == {
        "ssl_ca_certs": "/ca",
        "ssl_cert_reqs": "none",
        "ssl_check_hostname": False,
    }
    assert "'b'" not in repr(endpoint)


def test_unreadable_certificates_are_a_configuration_error() -> None:
    endpoint = parse_dsn("rediss://h", RedisConfig(tls_ca="/nowhere/ca.pem"))
    with pytest.raises(ConfigurationError, match="tls_ca"):
        endpoint.ssl_context()


def test_a_context_that_verifies_by_default() -> None:
    context = parse_dsn("rediss://h", PLAIN).ssl_context()
    assert context is not None
    assert context.check_hostname
    loose = parse_dsn("rediss://h?ssl_cert_reqs=none", PLAIN).ssl_context()
    assert loose is not None
    assert not loose.check_hostname


@pytest.mark.parametrize(
    ("endpoint", "where"),
    [
        (Endpoint(host="h", port=1), "h:1"),
        (Endpoint(host="::1", port=1), "[::1]:1"),
        (Endpoint(path="/s"), "/s"),
        (Endpoint(host="", sentinels=MAIN), "'main' of the sentinels h:1, [::1]:2"),
        (Endpoint(host="b", port=3, sentinels=MAIN), "b:3 (the primary of 'main')"),
    ],
)
def test_where_names_the_server(endpoint: Endpoint, where: str) -> None:
    assert endpoint.where == where


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("max_size", 1),
        ("max_in_flight", 0),
        ("socket_timeout", 0),
        ("socket_timeout", "2"),
        ("connect_timeout", -1.0),
        ("cache_timeout", timedelta(0)),
        ("heartbeat", float("inf")),
        ("heartbeat", float("nan")),
        ("client_name", "two words"),
        ("tls_cert", "/cert.pem"),
        ("max_sise", 3),
    ],
)
def test_config_refuses_nonsense_and_names_the_field(field: str, value: object) -> None:
    with pytest.raises(ConfigurationError) as refused:
        RedisConfig.of({field: value})
    assert refused.value.name == field
    assert field in str(refused.value)


def test_durations_are_seconds_or_timedeltas() -> None:
    config = RedisConfig.of({"socket_timeout": timedelta(milliseconds=1500), "connect_timeout": 2})
    assert seconds(config.socket_timeout) == 1.5
    assert seconds(config.connect_timeout) == 2.0
    assert RedisConfig.of(None) == RedisConfig()
