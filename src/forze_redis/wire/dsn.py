"""Where the server is: a DSN taken apart. Pure; no message here shows a password."""

from __future__ import annotations

import re
import ssl
from dataclasses import dataclass, field
from typing import Any, NoReturn
from urllib.parse import parse_qsl, unquote, urlencode, urlsplit

from redis.asyncio.connection import parse_url

from forze.errors import ConfigurationError
from forze_redis.wire.config import RedisConfig

_SCHEMES = {
    "redis": "redis",
    "rediss": "rediss",
    "unix": "unix",
    "valkey": "redis",
    "valkeys": "rediss",
}
_SENTINEL = re.compile(
    r"(?P<scheme>rediss?|valkeys?)\+sentinel://(?:(?P<user>[^/?#]*)@)?(?P<hosts>[^/?#@]+)"
    r"/(?P<service>[^/?#]+)(?:/(?P<db>\d*))?(?:\?(?P<query>[^#]*))?"
)
_CLUSTER = re.compile(
    r"(?P<scheme>rediss?|valkeys?)\+cluster://(?:(?P<user>[^/?#]*)@)?(?P<hosts>[^/?#@]+)"
    r"(?:/(?P<db>\d*))?(?:\?(?P<query>[^#]*))?"
)
_KNOWN = (
    *_SCHEMES,
    *(f"{each}+{many}" for many in ("sentinel", "cluster") for each in _SCHEMES if each != "unix"),
)
_SENTINEL_PORT = 26379
_PORT = 6379
_FORMS = (
    "redis://[user:password@]host[:port][/db], rediss:// (TLS), unix:///path[?db=0], "
    "redis+sentinel://host,host/service[/db], redis+cluster://host,host; "
    "special characters in user and password are percent-encoded"
)
_PARTS = {"connection_class", "host", "port", "path", "db", "username", "password"}
_TLS = {"ssl_cert_reqs", "ssl_ca_certs", "ssl_certfile", "ssl_keyfile", "ssl_check_hostname"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Sentinels:
    """Who to ask for the primary of ``service``, and who we are to them."""

    service: str
    addresses: tuple[tuple[str, int], ...]
    username: str | None = None
    password: str | None = field(default=None, repr=False)

    @property
    def where(self) -> str:
        """``host:port`` of each."""
        return ", ".join(address(*each) for each in self.addresses)


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """One server, and who we are to it. ``where`` names it in messages.

    With ``sentinels``, host and port are those of the primary they named, and empty before.
    With ``seeds`` it is a cluster, and they are some of its nodes.
    """

    host: str = "localhost"
    port: int = 6379
    path: str | None = None
    db: int = 0
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    tls: dict[str, Any] | None = None
    sentinels: Sentinels | None = None
    seeds: tuple[tuple[str, int], ...] = ()

    @property
    def where(self) -> str:
        """``host:port``, or the socket's path, or who knows."""
        if self.seeds:
            return f"the cluster of {', '.join(address(*each) for each in self.seeds)}"
        if self.path is not None:
            return self.path
        here = address(self.host, self.port)
        if self.sentinels is None:
            return here
        service = repr(self.sentinels.service)
        if self.host:
            return f"{here} (the primary of {service})"
        return f"{service} of the sentinels {self.sentinels.where}"

    def ssl_context(self) -> ssl.SSLContext | None:
        """What asyncio needs for TLS, None without; raises ``ConfigurationError``."""
        if self.tls is None:
            return None
        try:
            context = ssl.create_default_context(cafile=self.tls.get("ssl_ca_certs"))
            if "ssl_certfile" in self.tls:
                context.load_cert_chain(self.tls["ssl_certfile"], self.tls.get("ssl_keyfile"))
        except (OSError, ssl.SSLError) as error:
            raise ConfigurationError(
                f"TLS for Redis at {self.where}: the certificate files cannot be read ({error}); "
                "look at tls_ca, tls_cert and tls_key of RedisConfig",
                name="tls",
            ) from error
        verify = str(self.tls.get("ssl_cert_reqs", "required"))
        context.check_hostname = verify == "required" and self.tls.get("ssl_check_hostname", True)
        context.verify_mode = ssl.VerifyMode[f"CERT_{verify.upper()}"]
        return context


def parse_dsn(dsn: str, config: RedisConfig, *, instead: str = "RedisConfig") -> Endpoint:
    """The endpoint of ``dsn``, with the credentials and TLS files of ``config``.

    ``instead`` is what its parameters that are none should be given to.
    """
    plain, sentinels, seeds = _apart(str(dsn))
    try:
        url = urlsplit(plain)
        url.port  # noqa: B018 - raises for a port that is none
    except (ValueError, AttributeError, TypeError):
        _malformed(dsn, "it cannot be taken apart")
    scheme = _SCHEMES.get(url.scheme)
    if scheme is None or not plain.startswith(f"{url.scheme}://"):
        _malformed(
            dsn,
            f"the schemes are {', '.join(_SCHEMES)}, and all but unix with +sentinel or +cluster",
        )
    if url.fragment:
        _malformed(dsn, "it holds a '#'")
    if scheme == "unix" and (url.hostname or len(url.path) < 2):
        _malformed(dsn, "a Unix socket needs an absolute path (three slashes)")
    if scheme != "unix" and (url.port == 0 or not re.fullmatch(r"/?\d*", url.path)):
        _malformed(dsn, "what follows the host must be a port from 1 to 65535, then /db")
    try:
        parts: dict[str, Any] = {**parse_url(f"{scheme}{plain[len(url.scheme) :]}")}
    except ValueError:
        _malformed(dsn, "a parameter after '?' has no valid value")
    unknown = sorted(parts.keys() - _PARTS - (_TLS if scheme == "rediss" else set()))
    if unknown:
        _malformed(dsn, f"it has unknown parameters ({', '.join(unknown)}); use {instead}")
    if parts.get("db", 0) < 0:
        _malformed(dsn, "db is below zero")
    if seeds and parts.get("db", 0) > 0:
        _malformed(dsn, f"a cluster has no database {parts['db']}, only 0")
    tls = {name: value for name, value in parts.items() if name in _TLS}
    return Endpoint(
        host=parts.get("host", "localhost") if sentinels is None and not seeds else "",
        port=parts.get("port", 6379),
        path=parts.get("path"),
        db=parts.get("db", 0),
        username=config.username or parts.get("username"),
        password=config.password or parts.get("password"),
        tls=_tls(dsn, tls, config) if scheme == "rediss" else None,
        sentinels=sentinels,
        seeds=seeds,
    )


def _apart(dsn: str) -> tuple[str, Sentinels | None, tuple[tuple[str, int], ...]]:
    """The DSN of one server in ``dsn``, and the sentinels or the seeds in it."""
    if re.match(r"\w+\+cluster:", dsn):
        return _apart_cluster(dsn)
    if not re.match(r"\w+\+sentinel:", dsn):
        return dsn, None, ()
    found = _SENTINEL.fullmatch(dsn)
    if found is None:
        _malformed(dsn, "it does not name sentinels, then /service, then perhaps /db")
    query = dict(parse_qsl(found["query"] or "", keep_blank_values=True))
    try:
        addresses = tuple(
            _host_and_port(each, _SENTINEL_PORT) for each in found["hosts"].split(",")
        )
    except ValueError:
        _malformed(dsn, "a sentinel is host or host:port, with a port from 1 to 65535")
    sentinels = Sentinels(
        service=unquote(found["service"]),
        addresses=addresses,
        username=query.pop("sentinel_username", None) or None,
        password=query.pop("sentinel_password", None) or None,
    )
    if query.keys() & {"host", "port", "path"}:
        _malformed(dsn, "sentinels say where the server is, not host=, port= or path=")
    if sentinels.username and not sentinels.password:
        _malformed(dsn, "sentinel_username comes with sentinel_password")
    user = f"{found['user']}@" if found["user"] else ""
    rest = f"?{urlencode(query)}" if query else ""
    return f"{found['scheme']}://{user}/{found['db'] or 0}{rest}", sentinels, ()


def _apart_cluster(dsn: str) -> tuple[str, None, tuple[tuple[str, int], ...]]:
    found = _CLUSTER.fullmatch(dsn)
    if found is None:
        _malformed(dsn, "it does not name nodes of a cluster")
    try:
        seeds = tuple(_host_and_port(each, _PORT) for each in found["hosts"].split(","))
    except ValueError:
        _malformed(dsn, "a node is host or host:port, with a port from 1 to 65535")
    if dict(parse_qsl(found["query"] or "", keep_blank_values=True)).keys() & {"host", "port"}:
        _malformed(dsn, "the nodes stand before '?', not in host= or port=")
    user = f"{found['user']}@" if found["user"] else ""
    rest = f"?{found['query']}" if found["query"] else ""
    return f"{found['scheme']}://{user}/{found['db'] or 0}{rest}", None, seeds


def _host_and_port(text: str, port: int) -> tuple[str, int]:
    url = urlsplit(f"//{text}")
    if not url.hostname or url.port == 0 or not re.fullmatch(r"[^/?#@]+", text):
        raise ValueError(text)
    return url.hostname, url.port or port


def address(host: str, port: int) -> str:
    """``host:port``, with brackets where the host needs them."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _tls(dsn: str, given: dict[str, Any], config: RedisConfig) -> dict[str, Any]:
    files = {"ssl_ca_certs": config.tls_ca, "ssl_certfile": config.tls_cert}
    files["ssl_keyfile"] = config.tls_key
    tls = given | {name: value for name, value in files.items() if value is not None}
    if not config.tls_verify:
        tls |= {"ssl_cert_reqs": "none", "ssl_check_hostname": False}
    if tls.get("ssl_cert_reqs", "required") not in ("none", "optional", "required"):
        _malformed(dsn, "ssl_cert_reqs is none, optional or required")
    return tls


def redacted(dsn: str) -> str:
    """``dsn`` without anything that may be a password."""
    scheme, found, rest = str(dsn).rpartition("://") if "@" not in str(dsn) else _cut(str(dsn))
    rest = re.sub(r"(password=)[^&]*", r"\1***", rest)
    if "@" not in rest:
        rest = re.sub(r"(?<!:):(?!\d+(?:[/?]|$))[^/?\]\[:]+", ":***", rest)
    return f"{scheme}{found}{rest}"


def _cut(dsn: str) -> tuple[str, str, str]:
    scheme, found, rest = dsn.partition("://")
    if not found:
        scheme, rest = "", dsn
    return scheme, found, f"***@{rest.rpartition('@')[2]}"


def _malformed(dsn: object, why: str) -> NoReturn:
    raise ConfigurationError(
        f"the Redis DSN {redacted(str(dsn))!r} cannot be used: {why}. The forms: {_FORMS}",
        name="dsn",
        known=_KNOWN,
    ) from None
