"""How large, how long, how named: what a client is told beside its URL. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from forze.errors import ConfigurationError


@dataclass(frozen=True, slots=True, kw_only=True)
class DriverOptions:
    """Bounds of a client; durations in seconds.

    At most ``max_connections`` are open at once; a call waits up to ``pool_timeout`` for one that
    is free, ``connect_timeout`` for a new one, and ``socket_timeout`` for each answer. What it
    waited before is taken off its first answer, down to a tenth. A connection that was idle for
    ``health_check_interval`` is asked for a sign of life before it is used (0: never; one that the
    server closed is replaced in any case).
    """

    max_connections: int
    socket_timeout: float
    connect_timeout: float
    pool_timeout: float
    health_check_interval: float = 0
    decode_responses: bool = True
    client_name: str | None = None

    def __post_init__(self) -> None:
        if self.max_connections < 1:
            _refuse("max_connections", f"at least 1, not {self.max_connections!r}")
        for name in ("socket_timeout", "connect_timeout", "pool_timeout"):
            if not 0 < getattr(self, name) < float("inf"):
                _refuse(name, f"more than 0 s and finite, not {getattr(self, name)!r}")
        if not 0 <= self.health_check_interval < float("inf"):
            _refuse("health_check_interval", f"0 or more, not {self.health_check_interval!r}")

    @property
    def whole_timeout(self) -> float:
        """For a connection and the first answer together."""
        return max(self.pool_timeout, self.socket_timeout)


def settings(options: DriverOptions) -> dict[str, Any]:
    """The arguments of a connection that are no address."""
    return {
        "socket_timeout": options.socket_timeout,
        "socket_connect_timeout": options.connect_timeout,
        "health_check_interval": options.health_check_interval,
        "decode_responses": options.decode_responses,
        "client_name": options.client_name,
        "protocol": 2,  # with 3, redis-py hands out connections on which something is unread
    }


def _refuse(name: str, must_be: str) -> None:
    raise ConfigurationError(f"DriverOptions: {name} must be {must_be}", name=name)
