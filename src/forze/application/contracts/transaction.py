"""Transactions: what a database offers, and what may take part in one.

A *manager* (one per database client) begins sessions; the scope in
``forze.application.execution.transaction`` drives them. Participants are told before
the commit, when they may still refuse it, and after it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Literal, Protocol

from forze.application.contracts.deps import DepKey
from forze.errors import BackendError, ConflictError

IsolationLevel = Literal["read committed", "repeatable read", "serializable"]


class Outcome(Enum):
    """How a transaction ended."""

    COMMITTED = "committed"
    ROLLED_BACK = "rolled back"
    UNKNOWN = "unknown"


class TransactionSession(Protocol):
    """One open transaction of a database. Ends with exactly one commit or rollback."""

    async def commit(self) -> None:
        """Commit. A lost answer raises a ``BackendError`` whose outcome is ``"unknown"``."""
        ...

    async def rollback(self) -> None:
        """Roll back; never raises because the connection is gone (the server rolls back then)."""
        ...


class TransactionManager(Protocol):
    """Begins transactions; one per database client, so that routes over one client join."""

    async def begin(
        self, *, isolation: IsolationLevel | None, read_only: bool
    ) -> TransactionSession:
        """Open a transaction. None: the database's default isolation."""
        ...


class TransactionParticipant(Protocol):
    """Something whose effects follow a transaction."""

    async def before_commit(self) -> None:
        """Finish what must be in place before COMMIT; raising rolls the transaction back."""
        ...

    def check_commit(self) -> None:
        """Last word before COMMIT is sent, without awaiting; raising rolls back."""
        ...

    async def after(self, outcome: Outcome, error: BackendError | None) -> None:
        """Told how it ended, before the caller is. ``error`` says why when it is unknown."""
        ...


@dataclass(eq=False, slots=True)
class Transaction:
    """An open transaction, as carried by the task that opened it."""

    route: str
    manager: TransactionManager
    session: TransactionSession
    isolation: IsolationLevel | None
    participants: dict[Any, TransactionParticipant] = field(default_factory=dict)
    doomed: bool = False
    closed: bool = False
    working: int = 0
    """Writes under way that must not outlive it (see :func:`pinned`)."""


OPEN: ContextVar[tuple[Transaction, ...]] = ContextVar("forze_transactions", default=())
"""The transactions a task carries, outermost first; may hold closed ones in tasks it left."""


def open_transactions() -> tuple[Transaction, ...]:
    """The transactions open in this task, outermost first."""
    return tuple(each for each in OPEN.get() if not each.closed)


def in_transaction() -> bool:
    """Whether any transaction is open in this task."""
    return any(not each.closed for each in OPEN.get())


@contextmanager
def carried(transaction: Transaction) -> Iterator[None]:
    """Make ``transaction`` the task's innermost one for the length of a ``with`` block."""
    token = OPEN.set((*OPEN.get(), transaction))
    try:
        yield
    finally:
        transaction.closed = True
        OPEN.reset(token)


_pinned: ContextVar[Transaction | None] = ContextVar("forze_pinned_transaction", default=None)


@contextmanager
def pinned(transaction: Transaction) -> Iterator[None]:
    """For the length of a ``with`` block, work of ``transaction`` that must not outlive it."""
    token = _pinned.set(transaction)
    transaction.working += 1
    try:
        yield
        if transaction.closed:
            raise outlived(transaction)
    finally:
        transaction.working -= 1
        _pinned.reset(token)


def outlived(transaction: Transaction) -> ConflictError:
    """The error for a transaction that ends while a task begun in it still writes."""
    return ConflictError(
        f"transaction {transaction.route!r} ended while a task begun in it was still writing, and "
        "was rolled back; await the task inside the block",
        resource=transaction.route,
    )


def transaction_of(manager: TransactionManager) -> Transaction | None:
    """The transaction open in this task on ``manager``, if any.

    Raises ``ConflictError`` for what was begun in a transaction that has ended meanwhile.
    """
    for transaction in OPEN.get():
        if transaction.manager is manager:
            if not transaction.closed:
                return transaction
            if _pinned.get() is transaction:
                raise outlived(transaction)
    return None


TransactionDepKey: DepKey[TransactionManager] = DepKey("transaction")
