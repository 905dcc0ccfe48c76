"""How to talk to the server: everything beside its address. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import timedelta

from forze.application.contracts.configs import configured
from forze.errors import ConfigurationError


def seconds(duration: float | timedelta) -> float:
    """A duration in seconds, whichever way it was given."""
    return duration.total_seconds() if isinstance(duration, timedelta) else float(duration)


@dataclass(frozen=True, slots=True, kw_only=True)
class RedisConfig:
    """Settings of a :class:`~forze_redis.RedisClient`. Durations: seconds, or a timedelta.

    ``max_size`` bounds all its connections, the shared one included. ``socket_timeout`` is
    the deadline of a call, ``cache_timeout`` that of a call on the cache path. ``username``
    and ``password`` go before those of the DSN. At most ``max_in_flight`` calls are under
    way at once; more wait, within their deadlines. An idle connection is asked for a sign
    of life every ``heartbeat``. With ``require_at_start=False`` a server that is down at
    start is waited for in the background. The ``tls_*`` paths are PEM files.
    """

    max_size: int = 10
    socket_timeout: float | timedelta = 5.0
    connect_timeout: float | timedelta = 5.0
    cache_timeout: float | timedelta = 0.25
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    client_name: str = "forze"
    keepalive: bool = True
    max_in_flight: int = 4096
    heartbeat: float | timedelta = 5.0
    require_at_start: bool = True
    tls_ca: str | None = None
    tls_cert: str | None = None
    tls_key: str | None = None
    tls_verify: bool = True

    def __post_init__(self) -> None:
        if self.max_size < 2:
            _refuse(
                "max_size", f"at least 2 (one shared, one for large values), not {self.max_size}"
            )
        if self.max_in_flight < 1:
            _refuse("max_in_flight", f"at least 1, not {self.max_in_flight}")
        for name in ("socket_timeout", "connect_timeout", "cache_timeout", "heartbeat"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float, timedelta)):
                _refuse(name, f"seconds or a timedelta, not {value!r}")
            if not 0 < seconds(value) < float("inf"):
                _refuse(name, f"longer than zero and finite, not {value!r}")
        if not self.client_name.isascii() or not all("!" <= c <= "~" for c in self.client_name):
            _refuse("client_name", f"printable ASCII without spaces, not {self.client_name!r}")
        if (self.tls_cert is None) != (self.tls_key is None):
            _refuse("tls_cert", "given together with tls_key")

    @classmethod
    def of(cls, given: RedisConfig | dict[str, object] | None) -> RedisConfig:
        """A config from one, from a dict with the same keys, or the defaults."""
        return configured(cls, {} if given is None else given, "RedisConfig")


def _refuse(name: str, must_be: str) -> None:
    raise ConfigurationError(f"RedisConfig: {name} must be {must_be}", name=name)
