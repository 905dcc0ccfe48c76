"""What a PostgreSQL client is told: pool size, time limits, names."""

from __future__ import annotations

from dataclasses import dataclass, fields
from datetime import timedelta
from typing import TypeAlias

from forze.application.integrations.document.protocol import COMMIT_MARGIN_MS
from forze.errors import ConfigurationError

Duration: TypeAlias = timedelta | float
"""A timedelta, or seconds."""

STATEMENT_TIMEOUT_LIMIT = timedelta(milliseconds=COMMIT_MARGIN_MS)
"""A write is sent while the cache's announcement has this much left, and must end within it."""


def seconds(value: Duration) -> float:
    """``value`` in seconds."""
    return value.total_seconds() if isinstance(value, timedelta) else float(value)


@dataclass(frozen=True, slots=True, kw_only=True)
class PostgresConfig:
    """Pool and limits of one client; durations are timedeltas or seconds.

    A full pool makes callers wait up to ``acquire_timeout``. ``statement_timeout`` bounds each
    statement on the server and is 5 s at most, because a cached write must end before its
    announcement in the cache lapses. ``idle_in_transaction_timeout`` and
    ``transaction_timeout`` (PostgreSQL 17 or later) bound transactions.
    ``statement_cache_size=0`` is for poolers that cannot keep prepared statements.
    """

    min_size: int = 2
    max_size: int = 15
    connect_timeout: Duration = timedelta(seconds=5)
    acquire_timeout: Duration = timedelta(seconds=10)
    statement_timeout: Duration = timedelta(seconds=4)
    idle_in_transaction_timeout: Duration = timedelta(seconds=5)
    transaction_timeout: Duration = timedelta(seconds=60)
    application_name: str = "forze"
    statement_cache_size: int = 100

    def __post_init__(self) -> None:
        for field in fields(self):
            if field.name.endswith("_timeout"):
                self._check_duration(field.name, getattr(self, field.name))
        if seconds(self.statement_timeout) > STATEMENT_TIMEOUT_LIMIT.total_seconds():
            raise ConfigurationError(
                f"PostgresConfig: statement_timeout {self.statement_timeout} must be at most "
                f"{STATEMENT_TIMEOUT_LIMIT.total_seconds():g} s: a cached write must end before "
                "its announcement in the cache lapses",
                name="statement_timeout",
            )
        for name, least in (("min_size", 0), ("max_size", 1), ("statement_cache_size", 0)):
            value: object = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise ConfigurationError(
                    f"PostgresConfig: {name} must be a whole number of at least {least}, "
                    f"not {value!r}",
                    name=name,
                )
        if self.min_size > self.max_size:
            raise ConfigurationError(
                f"PostgresConfig: min_size {self.min_size} is above max_size {self.max_size}",
                name="min_size",
            )
        if "\0" in self.application_name:
            raise ConfigurationError(
                "PostgresConfig: application_name holds a NUL", name="application_name"
            )

    def _check_duration(self, name: str, value: object) -> None:
        fits = isinstance(value, timedelta | int | float) and not isinstance(value, bool)
        if not fits or not 0.001 <= seconds(value) <= 86_400:  # type: ignore[arg-type]
            raise ConfigurationError(
                f"PostgresConfig: {name} must be a timedelta or seconds, from a millisecond to "
                f"a day, not {value!r}",
                name=name,
            )

    def milliseconds(self, name: str) -> str:
        """The duration ``name`` as the server's settings take it."""
        return str(max(1, round(seconds(getattr(self, name)) * 1000)))
