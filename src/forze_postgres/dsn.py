"""Connection strings in both of libpq's forms, as arguments of the driver.

``postgresql://user:password@host:port,host2/dbname?key=value`` and ``key=value key='value'``
are read into the same keywords (PostgreSQL documentation, 34.1.1 and 34.1.2). No message from
here shows a password.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote, urlencode

from forze.errors import ConfigurationError

_DRIVER_KEYWORDS = frozenset(
    {
        "passfile",
        "sslmode",
        "sslcert",
        "sslkey",
        "sslrootcert",
        "sslnegotiation",
        "sslcrl",
        "sslpassword",
        "ssl_min_protocol_version",
        "ssl_max_protocol_version",
        "target_session_attrs",
        "krbsrvname",
        "gsslib",
        "service",
    }
)
_OWN_KEYWORDS = frozenset(
    {
        "host",
        "hostaddr",
        "port",
        "dbname",
        "user",
        "password",
        "connect_timeout",
        "application_name",
        "fallback_application_name",
        "options",
        "client_encoding",
    }
)
_WITHOUT_EFFECT = frozenset(
    {
        "keepalives",
        "keepalives_idle",
        "keepalives_interval",
        "keepalives_count",
        "tcp_user_timeout",
        "sslcompression",
        "sslsni",
        "gssencmode",
        "load_balance_hosts",
    }
)
_ALIASES = {"database": "dbname", "ssl": "sslmode"}
KEYWORDS = _DRIVER_KEYWORDS | _OWN_KEYWORDS | _WITHOUT_EFFECT

_PAIR = re.compile(
    r"\s*(?P<key>[A-Za-z_]+)\s*=\s*(?:'(?P<quoted>(?:[^'\\]|\\.)*)'|(?P<plain>(?:[^\s'\\]|\\.)*))"
    r"(?=\s|$)",
    re.DOTALL,
)
_SETTING = re.compile(r"\s*(?:-c\s*|--)(?P<name>[\w.-]+)=(?P<value>(?:[^\s\\]|\\.)*)(?=\s|$)")


@dataclass(frozen=True, slots=True)
class Dsn:
    """A parsed connection string. Its ``repr`` does not show the password."""

    arguments: Mapping[str, Any] = field(repr=False)
    settings: Mapping[str, str]
    connect_seconds: float | None
    shown: str
    """The string without its password."""

    @property
    def servers(self) -> str:
        """Where it leads, for messages."""
        hosts = self.arguments.get("host") or ["the default socket"]
        ports = self.arguments.get("port", 5432)
        each = ports if isinstance(ports, list) else [ports] * len(hosts)
        return ", ".join(f"{host}:{port}" for host, port in zip(hosts, each, strict=True))

    @property
    def several(self) -> bool:
        """Whether it names more than one server."""
        return len(self.arguments.get("host", ())) > 1

    def without_password(self, text: str) -> str:
        """``text`` with the password replaced, should a message ever quote it."""
        password = self.arguments.get("password")
        return text.replace(password, "***") if password and len(password) > 2 else text


def parse_dsn(dsn: str) -> Dsn:
    """Read ``dsn``; raises ``ConfigurationError`` saying what is wrong with it."""
    given: object = dsn
    if not isinstance(given, str) or not given.strip():
        raise ConfigurationError(
            "the PostgreSQL DSN is missing or empty; give one like postgresql://user:password@host:5432/name",
            name="dsn",
        )
    uri = re.match(r"postgres(?:ql)?://", dsn)
    pairs = _from_uri(dsn, dsn[uri.end() :]) if uri else _from_keywords(dsn)
    keywords: dict[str, str] = {}
    for name, value in pairs:
        name = _ALIASES.get(name, name)
        if name == "sslmode" and value == "true":
            value = "require"
        if name not in KEYWORDS:
            # What is behind an unknown keyword may be a password: only the names are shown.
            raise ConfigurationError(
                f"the PostgreSQL DSN has the unknown keyword {name!r} beside "
                f"{', '.join(sorted({each for each, _ in pairs} & KEYWORDS)) or 'no other'}; "
                "see libpq's connection parameters",
                name="dsn",
                known=KEYWORDS,
            )
        keywords[name] = value
    return _dsn(dsn, keywords)


def shown(dsn: str) -> str:
    """``dsn`` with every password replaced, however malformed it is."""
    text = re.sub(r"(password\s*=\s*)('(?:[^'\\]|\\.)*'?|[^\s&]*)", r"\1***", dsn, flags=re.I)
    text = re.sub(r"(sslpassword\s*=\s*)('(?:[^'\\]|\\.)*'?|[^\s&]*)", r"\1***", text, flags=re.I)
    if "://" in text:
        scheme, _, rest = text.partition("://")
        if "@" in rest:
            login, _, place = rest.rpartition("@")
            user, colon, _ = login.partition(":")
            text = f"{scheme}://{user}{':***' if colon else ''}@{place}"
    return text


def _malformed(dsn: str, why: str, known: frozenset[str] = frozenset()) -> ConfigurationError:
    return ConfigurationError(
        f"the PostgreSQL DSN {shown(dsn)!r} cannot be used: {why}", name="dsn", known=known
    )


def _from_uri(dsn: str, rest: str) -> list[tuple[str, str]]:
    main, _, query = rest.partition("?")
    authority, slash, path = main.partition("/")
    login, at, places = authority.rpartition("@")
    pairs: list[tuple[str, str]] = []
    if at:
        user, colon, password = login.partition(":")
        pairs += [("user", _decoded(dsn, user))] if user else []
        pairs += [("password", _decoded(dsn, password))] if colon else []
    if places:
        hosts, ports = zip(*(_place(dsn, each) for each in places.split(",")), strict=True)
        pairs.append(("host", ",".join(hosts)))
        if any(ports):
            pairs.append(("port", ",".join(ports)))
    if slash and path:
        pairs.append(("dbname", _decoded(dsn, path)))
    for part in query.split("&") if query else ():
        name, equals, value = part.partition("=")
        if not equals or not name:
            raise _malformed(dsn, f"{name!r} after the ? is not of the form key=value")
        pairs.append((_decoded(dsn, name), _decoded(dsn, value)))
    return pairs


def _place(dsn: str, text: str) -> tuple[str, str]:
    bracketed = re.fullmatch(r"\[([^\]]*)\](?::(\d*))?", text)
    if bracketed:
        return bracketed[1], bracketed[2] or ""
    host, _, port = text.partition(":")
    if ":" in port or "[" in host or "]" in host:
        raise _malformed(dsn, f"{text!r} is not host or host:port (IPv6 goes in brackets)")
    return _decoded(dsn, host), port


def _decoded(dsn: str, text: str) -> str:
    if re.search(r"%(?![0-9A-Fa-f]{2})", text) or "%00" in text:
        raise _malformed(dsn, "it has a % that begins no encoded character; write it as %25")
    return unquote(text, errors="replace")


def _from_keywords(dsn: str) -> list[tuple[str, str]]:
    pairs: list[tuple[str, str]] = []
    at = 0
    while dsn[at:].strip():
        found = _PAIR.match(dsn, at)
        if found is None:
            raise _malformed(
                dsn,
                "it is neither postgresql://user:password@host:port/name nor key=value pairs "
                "(a value with spaces goes in single quotes)",
            )
        value = found["quoted"] if found["quoted"] is not None else found["plain"]
        pairs.append((found["key"], re.sub(r"\\(.)", r"\1", value, flags=re.DOTALL)))
        at = found.end()
    return pairs


def _dsn(dsn: str, keywords: dict[str, str]) -> Dsn:
    arguments: dict[str, Any] = {}
    hosts = keywords.get("host") or keywords.get("hostaddr")
    if hosts:
        arguments["host"] = hosts.split(",")
        if not all(arguments["host"]):
            raise _malformed(dsn, f"one of the hosts in {hosts!r} is empty")
    if keywords.get("port"):
        arguments["port"] = _ports(dsn, keywords["port"], len(arguments.get("host", [])))
    for name, ours in (("user", "user"), ("password", "password"), ("dbname", "database")):
        if keywords.get(name):
            arguments[ours] = keywords[name]
    driver = {name: value for name, value in keywords.items() if name in _DRIVER_KEYWORDS}
    if driver:
        arguments["dsn"] = "postgresql://?" + urlencode(driver)
    settings: dict[str, str] = {}
    shown_as = keywords.get("application_name") or keywords.get("fallback_application_name")
    if shown_as:
        settings["application_name"] = shown_as
    settings |= _options(dsn, keywords.get("options", ""))
    encoding = keywords.get("client_encoding", "utf8").lower().replace("-", "")
    if encoding not in ("utf8", "auto"):
        raise _malformed(dsn, "client_encoding can only be UTF8")
    try:
        connect = float(keywords.get("connect_timeout") or 0)
    except ValueError:
        raise _malformed(dsn, "connect_timeout is not a number of seconds") from None
    return Dsn(arguments, settings, connect if connect > 0 else None, shown(dsn))


def _ports(dsn: str, text: str, hosts: int) -> list[int] | int:
    parts = [part.strip() or "5432" for part in text.split(",")]
    if not all(part.isdecimal() and 0 < int(part) < 65_536 for part in parts):
        raise _malformed(dsn, f"port {text!r} is not a number from 1 to 65535")
    if len(parts) not in (1, max(hosts, 1)):
        raise _malformed(dsn, f"it has {len(parts)} ports for {hosts} hosts")
    return int(parts[0]) if len(parts) == 1 else [int(part) for part in parts]


def _options(dsn: str, options: str) -> dict[str, str]:
    settings: dict[str, str] = {}
    at = 0
    while options[at:].strip():
        found = _SETTING.match(options, at)
        if found is None:
            raise _malformed(dsn, f"options {options!r} are not of the form -c name=value")
        value = re.sub(r"\\(.)", r"\1", found["value"])
        settings[found["name"].replace("-", "_")] = value
        at = found.end()
    return settings
