"""Drives a transaction: nesting, participants, commit and rollback under cancellation."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any

from forze.application.contracts.deps import Resolver, sheltered
from forze.application.contracts.transaction import (
    IsolationLevel,
    Outcome,
    Transaction,
    TransactionManager,
    carried,
    outlived,
    pinned,
    transaction_of,
)
from forze.errors import BackendError, ConflictError, TransactionDoomed


@asynccontextmanager
async def transaction_scope(
    resolver: Resolver,
    route: str,
    manager: TransactionManager,
    *,
    isolation: IsolationLevel | None = None,
    read_only: bool = False,
) -> AsyncIterator[Transaction]:
    """A block that commits when it ends and rolls back when it is left by an exception.

    Nested on one manager it joins the outer block; a nested block left by an exception
    dooms the outer one. Once begun, commit and rollback finish even if the caller is
    cancelled meanwhile.
    """
    outer = transaction_of(manager)
    if outer is not None:
        if isolation not in (None, outer.isolation):
            raise ConflictError(
                f"transaction {route!r} asks for {isolation} inside {outer.route!r}, which runs "
                f"at {outer.isolation or 'the default isolation'}; ask for it on the outer block",
                resource=route,
            )
        try:
            with pinned(outer):
                yield outer
        except BaseException:
            outer.doomed = True
            raise
        return
    session = await manager.begin(isolation=isolation, read_only=read_only)
    transaction = Transaction(route, manager, session, isolation)
    try:
        with carried(transaction):
            yield transaction
            if transaction.working:
                raise outlived(transaction)
            if transaction.doomed:
                raise TransactionDoomed(route)
            for participant in tuple(transaction.participants.values()):
                await participant.before_commit()
    except BaseException:
        await _apart(resolver, _roll_back(transaction))
        raise
    await _apart(resolver, _commit(transaction))


async def _apart(resolver: Resolver, work: Coroutine[Any, Any, None]) -> None:
    """Let ``work`` finish whatever happens to the caller."""
    await sheltered(resolver, work, name="forze-transaction-end")


async def _commit(transaction: Transaction) -> None:
    participants = tuple(transaction.participants.values())
    try:
        for participant in participants:
            participant.check_commit()
    except BaseException:
        await _roll_back(transaction)
        raise
    try:
        await transaction.session.commit()
    except BackendError as error:
        unknown = error.outcome == "unknown"
        await _tell(transaction, Outcome.UNKNOWN if unknown else Outcome.ROLLED_BACK, error)
        raise
    except asyncio.CancelledError:
        # Cut off at shutdown with COMMIT under way: nobody knows how it ended.
        await _tell(transaction, Outcome.UNKNOWN, None)
        raise
    except BaseException:
        await _tell(transaction, Outcome.ROLLED_BACK, None)
        raise
    await _tell(transaction, Outcome.COMMITTED, None)


async def _roll_back(transaction: Transaction) -> None:
    try:
        await transaction.session.rollback()
    finally:
        await _tell(transaction, Outcome.ROLLED_BACK, None)


async def _tell(transaction: Transaction, outcome: Outcome, error: BackendError | None) -> None:
    """Tell every participant; the first one's failure is raised after all were told."""
    failure: Exception | None = None
    for participant in tuple(transaction.participants.values()):
        try:
            await participant.after(outcome, error)
        except Exception as raised:
            failure = failure or raised
    if failure is not None:
        raise failure
