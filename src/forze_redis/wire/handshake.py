"""What is asked of a server before a connection is used: one round trip, pipelined.

``HELLO 3`` with credentials and name, ``CLIENT SETINFO``, ``SELECT``, ``INFO replication``
for the generation, and ``SCRIPT LOAD`` of every known script.

The *generation* is a short form of the server's replication id. It changes when another
server takes over, or one restarts, and so tells data that may have gone back in time.
"""

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version

from forze.errors import BackendCorrupt, BackendError, ConfigurationError
from forze_redis.wire.connection import Connection, Reply
from forze_redis.wire.dsn import Endpoint
from forze_redis.wire.replies import BACKEND
from forze_redis.wire.scripts import known_scripts, pack

UNKNOWN_GENERATION = "00000000"
INFO_REPLICATION = pack("INFO", "replication")
_NEEDED = {"redis": (7, 0), "valkey": (7, 2)}
_NEEDS = "Redis 7.0 or Valkey 7.2 or later is needed"

try:
    _LIBRARY_VERSION = version("forze")
except PackageNotFoundError:
    _LIBRARY_VERSION = "0"


@dataclass(frozen=True, slots=True, kw_only=True)
class Greeting:
    """What the server said it is."""

    server: str
    version: str
    generation: str
    generation_known: bool
    info: Reply = field(default=None, repr=False)


async def shake_hands(
    connection: Connection, endpoint: Endpoint, client_name: str, timeout: float
) -> Greeting:
    """Make a new connection ready for commands, in one round trip.

    Raises ``ConfigurationError`` for what a later attempt would not change (credentials,
    database, version), ``BackendError`` for the rest.
    """
    hello: list[str] = ["HELLO", "3"]
    if endpoint.password is not None:
        hello += ["AUTH", endpoint.username or "default", endpoint.password]
    hello += ["SETNAME", client_name]
    commands = [
        pack(*hello),
        pack("SELECT", endpoint.db),
        INFO_REPLICATION,
        pack("CLIENT", "SETINFO", "LIB-NAME", "forze"),
        pack("CLIENT", "SETINFO", "LIB-VER", _LIBRARY_VERSION),
        *(pack("SCRIPT", "LOAD", script.source) for script in known_scripts()),
    ]
    greeting, selected, info, *rest = await asyncio.gather(
        *(connection.ask(command, timeout) for command in commands), return_exceptions=True
    )
    if isinstance(greeting, BaseException):
        raise await _no_greeting(connection, endpoint, greeting, timeout)
    server, number = _identity(greeting)
    if _too_old(server, number):
        raise _wrong_version(endpoint, f"{server} {number}")
    if endpoint.db and isinstance(selected, BaseException):
        raise _no_database(endpoint, selected)
    for answer in (
        selected,
        info,
        *rest,
    ):  # a refusal of one of these is survived, a lost link is not
        if isinstance(answer, BackendError) and not isinstance(answer, BackendCorrupt):
            raise answer
    generation = None if isinstance(info, BaseException) else generation_of(info)
    return Greeting(
        server=server,
        version=number,
        generation=generation or UNKNOWN_GENERATION,
        generation_known=generation is not None,
        info=info,
    )


def generation_of(info: Reply) -> str | None:
    """The generation in an INFO reply, None if it does not tell."""
    text = info.decode(errors="replace") if isinstance(info, bytes) else str(info)
    found = re.search(r"^master_replid:([0-9a-f]{8})", text, re.MULTILINE)
    return found[1] if found else None


def _identity(greeting: Reply) -> tuple[str, str]:
    known = greeting if isinstance(greeting, dict) else {}
    server, number = (known.get(name, b"?") for name in (b"server", b"version"))
    return (each.decode(errors="replace") for each in (server, number))  # type: ignore[return-value]


def _too_old(server: str, number: str) -> bool:
    found = re.match(r"(\d+)\.(\d+)", number)
    needed = _NEEDED.get(server, _NEEDED["redis"])
    return found is None or (int(found[1]), int(found[2])) < needed


async def _no_greeting(
    connection: Connection, endpoint: Endpoint, error: BaseException, timeout: float
) -> BaseException:
    """What a refused HELLO means."""
    said = str(error.__cause__ or "")
    user = endpoint.username or "default"
    if said.startswith("WRONGPASS"):
        return ConfigurationError(
            f"Redis at {endpoint.where} rejected the password of user {user!r}; correct it in "
            "the DSN (percent-encoded) or in RedisConfig(username=, password=)",
            name="password",
        )
    if said.startswith("NOAUTH") or "HELLO must be called" in said:
        return ConfigurationError(
            f"Redis at {endpoint.where} asks for a password and none is configured; put it into "
            "the DSN (redis://user:password@host) or into RedisConfig(password=)",
            name="password",
        )
    if isinstance(error, BackendCorrupt):
        info = (
            await asyncio.gather(connection.ask(pack("INFO"), timeout), return_exceptions=True)
        )[0]
        text = info.decode(errors="replace") if isinstance(info, bytes) else ""
        found = re.search(r"^(?:redis|valkey)_version:(\S+)", text, re.MULTILINE)
        return _wrong_version(endpoint, f"version {found[1]}" if found else f"no RESP3 ({said})")
    return error


def _wrong_version(endpoint: Endpoint, reported: str) -> ConfigurationError:
    return ConfigurationError(
        f"the server at {endpoint.where} reports {reported}; {_NEEDS}", name="version"
    )


def _no_database(endpoint: Endpoint, error: BaseException) -> BaseException:
    if not isinstance(error, BackendCorrupt):
        return error
    return ConfigurationError(
        f"{BACKEND} at {endpoint.where} has no database {endpoint.db} ({error.__cause__}); "
        "name one that exists in the DSN, 0 always does (`CONFIG GET databases` tells how many)",
        name="db",
    )
