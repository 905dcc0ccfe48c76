"""Error replies of the server as errors of ours: the one table, by the reply's first word.

A reply means that the connection works and the command was answered. Every refusal in the
table happens before execution, so its outcome is ``"none"``; what is not in the table may
have failed halfway through a script, so its outcome is ``"unknown"``.
"""

from __future__ import annotations

from forze.errors import (
    BackendCorrupt,
    BackendUnavailable,
    ConfigurationError,
    ForzeError,
    ValidationError,
)

BACKEND = "redis"

_REFUSED = {
    "OOM": "it is out of memory; raise maxmemory, or choose an eviction policy (maxmemory-policy)",
    "MISCONF": "it cannot save its data and refuses writes; look at its disk and its log",
    "READONLY": "it is a replica; point the DSN at the primary, or wait for the failover to end",
    "LOADING": "it is loading its data; try again shortly",
    "BUSY": "a script has been running for too long; wait for it, or end it with SCRIPT KILL",
    "UNKILLABLE": "a script that has written cannot be ended; wait for it, or SHUTDOWN NOSAVE",
    "NOREPLICAS": "fewer replicas are in step than min-replicas-to-write asks for; bring them back",
    "MASTERDOWN": "it is a replica that lost its primary; point the DSN at the primary",
    "CLUSTERDOWN": "its cluster is not serving all slots; look at CLUSTER INFO",
    "TRYAGAIN": "keys are moving between the nodes of its cluster; try again shortly",
    "MOVED": "it is a node of a cluster and the key lives on another; this DSN is for one server",
    "ASK": "it is a node of a cluster and the key is moving to another; this DSN is for one server",
    "NOSCRIPT": "it lost a script it was sent a moment ago; try again",
}
_FORBIDDEN = {
    "NOPERM": "grant this user the command and the keys (ACL SETUSER)",
    "NOAUTH": "put a password (and user) into the DSN, or into RedisConfig",
    "WRONGPASS": "correct user and password in the DSN or in RedisConfig",
}
_MISUSED = {
    "CROSSSLOT": "its keys live on different nodes of a cluster; give the keys of one call a "
    "common hash tag ({...}), or make one call for each",
}
_CORRUPT = {
    "WRONGTYPE": "a key holds another type of value; somebody else writes under this namespace, "
    "give it another one or remove the key",
}

REDIRECTS = frozenset({"MOVED", "ASK", "TRYAGAIN", "CLUSTERDOWN"})
"""With these a node of a cluster says that it is not the one to ask, or not now."""

RECONNECT_ON = frozenset({"READONLY", "MASTERDOWN"})
"""After these the server is not the one we want: look again at who answers at the address."""

_ELSEWHERE_IN_SCRIPT = "Script attempted to access a non local key in a cluster node"
"""What a script is told of a key that it derived from its own, while their slot moves."""

_IN_SCRIPT = ("ACL failure in script", "user executing the script can't")
"""How Valkey and Redis word NOPERM for a command that a script runs."""

MAPPED = frozenset({*_REFUSED, *_FORBIDDEN, *_CORRUPT, *_MISUSED})
"""Every first word the table knows."""


def error_from_reply(text: str, where: str) -> ForzeError:
    """The error for the reply ``text`` of the server at ``where``."""
    word = text.partition(" ")[0]
    if word in _REFUSED:
        return BackendUnavailable(
            f"Redis at {where} refused the command: {_REFUSED[word]} (it said: {text})",
            backend=BACKEND,
        )
    if any(each in text for each in _IN_SCRIPT):
        word = "NOPERM"
    if word in _FORBIDDEN:
        return ConfigurationError(
            f"Redis at {where} does not permit the command: {_FORBIDDEN[word]} (it said: {text})",
            name=word,
        )
    if word in _MISUSED:
        return ValidationError(
            f"Redis at {where} refused the command: {_MISUSED[word]} (it said: {text})"
        )
    if _ELSEWHERE_IN_SCRIPT in text:
        return BackendUnavailable(
            f"Redis at {where} broke a script off, because keys of its slot are moving to another "
            f"node; try again shortly (it said: {text})",
            backend=BACKEND,
            outcome="unknown",
        )
    if word in _CORRUPT:
        return BackendCorrupt(
            f"Redis at {where}: {_CORRUPT[word]} (it said: {text})", backend=BACKEND
        )
    return BackendCorrupt(
        f"Redis at {where} rejected the command: {text}; if it is out of the application's own "
        "hands, report the command and this text",
        backend=BACKEND,
        outcome="unknown",
    )
