"""Everything the driver or the socket raises, as one of ours: the only place that knows both.

The server's errors are told apart by SQLSTATE, by the exact code where it matters and by its
class (the first two characters) otherwise. What became of a write is the caller's to say:
only a lost answer leaves that open, and :func:`is_lost` tells which errors are that.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import asyncpg

from forze.errors import (
    BackendCorrupt,
    BackendError,
    BackendTimeout,
    BackendUnavailable,
    ConfigurationError,
    ConflictError,
    ForzeError,
    ValidationError,
)

BACKEND = "PostgreSQL"

DRIVER_ERRORS = (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError)
RAISED = (*DRIVER_ERRORS, OSError, TimeoutError, asyncio.IncompleteReadError)
"""What driver calls raise, apart from cancellation."""

Make = Callable[[str, asyncpg.PostgresError], ForzeError]


def _configuration(text: str, error: asyncpg.PostgresError) -> ForzeError:
    return ConfigurationError(f"{text}; compare the schema, the DSN and the role's rights with it")


def _invalid(text: str, error: asyncpg.PostgresError) -> ForzeError:
    return ValidationError(text, field=getattr(error, "column_name", None))


def _conflict(text: str, error: asyncpg.PostgresError) -> ForzeError:
    return ConflictError(text, resource=getattr(error, "table_name", None))


def _again(text: str, error: asyncpg.PostgresError) -> ForzeError:
    return ConflictError(
        f"{text}; nothing was changed, try again: retry the whole transaction", resource=None
    )


def _unavailable(text: str, error: asyncpg.PostgresError) -> ForzeError:
    return BackendUnavailable(text, backend=BACKEND)


def _corrupt(text: str, error: asyncpg.PostgresError) -> ForzeError:
    return BackendCorrupt(text, backend=BACKEND)


def _timeout(setting: str) -> Make:
    def make(text: str, error: asyncpg.PostgresError) -> ForzeError:
        return BackendTimeout(
            f"{text} (PostgresConfig.{setting}); make it faster or raise the limit",
            backend=BACKEND,
        )

    return make


def _cancelled(text: str, error: asyncpg.PostgresError) -> ForzeError:
    return _timeout("statement_timeout")(text, error)


BY_STATE: dict[str, Make] = {
    "0A000": _configuration,
    "23502": _invalid,
    "23514": _invalid,
    "25006": _unavailable,
    "25P03": _timeout("idle_in_transaction_timeout"),
    "25P04": _timeout("transaction_timeout"),
    "55P03": _again,
    "57014": _cancelled,
    "72000": _again,
    "XX000": _corrupt,
}
"""The codes whose class would mislead."""

BY_CLASS: dict[str, Make] = {
    "01": _corrupt,  # warnings are not errors; one raised cannot be right
    "02": _corrupt,
    "03": _corrupt,
    "08": _unavailable,
    "09": _conflict,
    "0A": _configuration,
    "0B": _conflict,
    "0F": _configuration,
    "0L": _configuration,
    "0P": _configuration,
    "0Z": _corrupt,
    "10": _invalid,
    "20": _configuration,
    "21": _configuration,
    "22": _invalid,
    "23": _conflict,
    "24": _configuration,
    "25": _conflict,
    "26": _configuration,
    "27": _conflict,
    "28": _configuration,
    "2B": _conflict,
    "2D": _conflict,
    "2F": _conflict,
    "34": _configuration,
    "38": _conflict,
    "39": _conflict,
    "3B": _conflict,
    "3D": _configuration,
    "3F": _configuration,
    "40": _again,
    "42": _configuration,
    "44": _invalid,
    "53": _unavailable,
    "54": _invalid,
    "55": _conflict,
    "57": _unavailable,
    "58": _unavailable,
    "72": _again,
    "F0": _configuration,
    "HV": _unavailable,
    "P0": _conflict,
    "XX": _corrupt,
}
"""The classes of SQLSTATE, PostgreSQL's own and the standard's that it uses."""


WHOLE_ROW = frozenset({"23502", "23514"})
"""Their detail quotes the row, secrets included; constraint and column say enough."""


def is_lost(error: BaseException) -> bool:
    """Whether the answer was lost, so that what was sent may have taken effect.

    A shutdown or a crash of the server counts: it can fall between commit and answer.
    """
    if isinstance(error, asyncpg.PostgresError):
        state = error.sqlstate or ""
        return state.startswith("08") or state in ("57P01", "57P02", "57P03", "40003", "XX000")
    if isinstance(error, asyncpg.InterfaceError):
        return False  # refused by the driver before anything was sent
    return isinstance(error, RAISED)


def mapped(error: BaseException, *, doing: str) -> ForzeError:
    """``error`` as one of ours. ``doing`` says what was attempted, as in "updating x.y".

    The outcome of a write is left at ``"none"``.
    """
    if isinstance(error, asyncpg.PostgresError):
        return _server_error(error, doing)
    if isinstance(error, asyncpg.InterfaceError | asyncpg.InternalClientError):
        return _client_error(error, doing)
    if isinstance(error, TimeoutError):
        return BackendTimeout(f"{doing}: PostgreSQL did not answer in time", backend=BACKEND)
    return BackendUnavailable(
        f"{doing}: the connection to PostgreSQL failed ({error}); see that it is running and "
        "can be reached",
        backend=BACKEND,
    )


def _server_error(error: asyncpg.PostgresError, doing: str) -> ForzeError:
    if isinstance(error, asyncpg.InvalidCachedStatementError):
        return ConflictError(f"{doing}: the table was altered meanwhile; try again")
    state = error.sqlstate or ""
    make = BY_STATE.get(state) or BY_CLASS.get(state[:2], _unavailable)
    if isinstance(error, asyncpg.ConnectionDoesNotExistError):
        return _unavailable(f"{doing}: the connection to PostgreSQL was lost", error)
    return make(f"{doing}: {_words(error)}", error)


def _words(error: asyncpg.PostgresError) -> str:
    """The server's message and detail, and the names it gives."""
    parts = [str(getattr(error, "message", None) or error.args[0] if error.args else error)]
    detail = getattr(error, "detail", None)
    if detail and error.sqlstate not in WHOLE_ROW:
        parts.append(f"({detail.rstrip('.')})")
    names = [
        f"{what} {name!r}"
        for what in ("constraint", "column")
        if (name := getattr(error, f"{what}_name", None)) and name not in parts[0]
    ]
    return " ".join(parts + ([f"[{', '.join(names)}]"] if names else []))


def _client_error(error: Exception, doing: str) -> ForzeError:
    text = f"{doing}: {error}"
    match error:
        case asyncpg.ClientConfigurationError() | asyncpg.UnsupportedClientFeatureError():
            return ConfigurationError(text)
        case asyncpg.UnsupportedServerFeatureError():
            return ConfigurationError(text)
        case asyncpg.DataError():
            return ValidationError(text)
        case asyncpg.InterfaceError():
            return BackendUnavailable(text, backend=BACKEND)
        case asyncpg.TargetServerAttributeNotMatched():
            return BackendUnavailable(
                f"{text}; no server of the DSN has what target_session_attrs asks for",
                backend=BACKEND,
            )
        case asyncpg.OutdatedSchemaCacheError():
            return ConflictError(f"{doing}: a type was altered meanwhile; try again")
    return BackendCorrupt(text, backend=BACKEND)


def with_outcome_unknown(error: BaseException, *, doing: str) -> BackendError:
    """The error of a write whose answer was lost: it may or may not have taken effect."""
    kind = BackendTimeout if isinstance(error, TimeoutError) else BackendUnavailable
    return kind(
        f"{doing}: the answer of PostgreSQL was lost ({type(error).__name__}); the write may or "
        "may not have taken effect, read before repeating it",
        backend=BACKEND,
        outcome="unknown",
    )
