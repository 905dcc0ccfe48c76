"""Every exception of the driver is one of ours, and only lost answers leave a write open."""

from __future__ import annotations

import inspect
import ssl
from typing import Any

import asyncpg
import asyncpg.exceptions
import pytest

from forze.errors import (
    BackendCorrupt,
    BackendTimeout,
    BackendUnavailable,
    ConfigurationError,
    ConflictError,
    ForzeError,
    ValidationError,
)
from forze_postgres.errors import (
    BY_CLASS,
    BY_STATE,
    RAISED,
    is_lost,
    mapped,
    with_outcome_unknown,
)

CLASSES = sorted(
    (
        each
        for _, each in inspect.getmembers(asyncpg.exceptions, inspect.isclass)
        if issubclass(each, Exception) and not issubclass(each, Warning)
    ),
    key=lambda each: each.__name__,
)


def raised(cls: Any, message: str = "server says so", **fields: str) -> Any:
    """An instance as the driver makes it."""
    error = cls(message)
    for name, value in fields.items():
        setattr(error, name, value)
    return error


@pytest.mark.parametrize("cls", CLASSES, ids=lambda each: each.__name__)
def test_every_driver_exception_is_mapped(cls: Any) -> None:
    assert issubclass(cls, RAISED)
    state = getattr(cls, "sqlstate", None)
    if state is not None and len(state) == 5:
        assert state in BY_STATE or state[:2] in BY_CLASS, f"{cls.__name__} {state}"
    error = mapped(raised(cls), doing="testing")
    assert isinstance(error, ForzeError)
    assert str(error).startswith("testing: ")


@pytest.mark.parametrize(
    ("error", "kind", "says"),
    [
        (asyncpg.UniqueViolationError, ConflictError, "server says so"),
        (asyncpg.ForeignKeyViolationError, ConflictError, "server says so"),
        (asyncpg.NotNullViolationError, ValidationError, "server says so"),
        (asyncpg.CheckViolationError, ValidationError, "server says so"),
        (asyncpg.SerializationError, ConflictError, "try again"),
        (asyncpg.DeadlockDetectedError, ConflictError, "try again"),
        (asyncpg.QueryCanceledError, BackendTimeout, "statement_timeout"),
        (asyncpg.IdleInTransactionSessionTimeoutError, BackendTimeout, "idle_in_transaction"),
        (asyncpg.UndefinedTableError, ConfigurationError, "schema"),
        (asyncpg.UndefinedColumnError, ConfigurationError, "schema"),
        (asyncpg.InsufficientPrivilegeError, ConfigurationError, "rights"),
        (asyncpg.TooManyConnectionsError, BackendUnavailable, "server says so"),
        (asyncpg.CannotConnectNowError, BackendUnavailable, "server says so"),
        (asyncpg.ConnectionDoesNotExistError, BackendUnavailable, "lost"),
        (asyncpg.InvalidCachedStatementError, ConflictError, "try again"),
        (asyncpg.NumericValueOutOfRangeError, ValidationError, "server says so"),
        (asyncpg.DataError, ValidationError, "server says so"),
        (asyncpg.DataCorruptedError, BackendCorrupt, "server says so"),
        (asyncpg.RaiseError, ConflictError, "server says so"),
    ],
)
def test_the_kind_says_what_to_do(error: Any, kind: type[ForzeError], says: str) -> None:
    ours = mapped(raised(error), doing="testing")
    assert type(ours) is kind
    assert says in str(ours)


def test_constraint_and_column_are_named() -> None:
    error = raised(
        asyncpg.UniqueViolationError,
        constraint_name="thing_pkey",
        detail="Key (id)=(1) already exists.",
        table_name="thing",
    )
    ours = mapped(error, doing="creating things")
    assert isinstance(ours, ConflictError)
    assert "thing_pkey" in str(ours)
    assert "(id)=(1)" in str(ours)
    null = mapped(raised(asyncpg.NotNullViolationError, column_name="name"), doing="x")
    assert isinstance(null, ValidationError)
    assert null.field == "name"


@pytest.mark.parametrize("error", [ConnectionResetError(), ssl.SSLError("x"), OSError(9, "bad")])
def test_the_socket_s_errors_are_unavailable(error: Exception) -> None:
    assert type(mapped(error, doing="x")) is BackendUnavailable


def test_what_leaves_a_write_open() -> None:
    lost = [
        ConnectionResetError(),
        TimeoutError(),
        raised(asyncpg.ConnectionDoesNotExistError),
        raised(asyncpg.AdminShutdownError),
        raised(asyncpg.CrashShutdownError),
        asyncpg.InternalClientError("x"),
    ]
    told = [
        raised(asyncpg.UniqueViolationError),
        raised(asyncpg.QueryCanceledError),
        raised(asyncpg.SerializationError),
        asyncpg.DataError("x"),
        asyncpg.InterfaceError("connection is closed"),
    ]
    assert [is_lost(each) for each in lost] == [True] * len(lost)
    assert [is_lost(each) for each in told] == [False] * len(told)
    for each in lost:
        assert with_outcome_unknown(each, doing="x").outcome == "unknown"
