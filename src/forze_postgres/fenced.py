"""Writes that carry a fencing token: the check that makes a lock more than best effort.

A holder that was paused beyond its lease writes after the next one. Where each row keeps the
highest token it has seen, the late write carries a lower one and is refused. The condition
is ``fence <= token``: with ``<`` a holder's own second write under one token would be
refused, too.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from forze.application.contracts.dlock import AcquiredLock
from forze.application.contracts.transaction import transaction_of
from forze.errors import ConfigurationError, FencedOut, NotFoundError, ValidationError
from forze_postgres.client import PostgresClient
from forze_postgres.sql import quoted


async def fenced_update(
    client: PostgresClient,
    relation: str | tuple[str, str],
    id: Any,
    token: int | AcquiredLock,
    values: Mapping[str, Any] | None = None,
    *,
    id_column: str = "id",
    fence_column: str = "fence",
) -> None:
    """Row ``id`` has these ``values``, and no holder with a lower token can write it any more.

    ``relation`` is a table or ``(schema, table)``; ``fence_column`` a bigint in it, NULL where
    nobody has written under a lock yet; ``token`` the lock's, or the lock itself; ``values`` by
    column, as the driver takes them (``jsonb`` is JSON text). One statement, one round trip, in the
    transaction that is open in this task if there is one.

    Raises ``FencedOut`` where a later holder has written, ``NotFoundError`` where there is no such
    row; then nothing was changed, and one more round trip was made to tell which.
    """
    number = _number(token)
    given: object = values or {}
    if not isinstance(given, Mapping):
        raise ValidationError(f"values are a dict by column, not {given!r}", field="values")
    values = dict(given)
    if fence_column in values:
        raise ValidationError(
            f"{fence_column!r} is set to the token; leave it out of the values", field=fence_column
        )
    table = quoted(relation) if isinstance(relation, str) else quoted(*relation)
    fence, key = quoted(fence_column), quoted(id_column)
    assigned = "".join(f", {quoted(name)} = ${place}" for place, name in enumerate(values, 3))
    where = f"{key} = $1 AND ({fence} IS NULL OR {fence} <= $2)"
    written = await client.rows(
        f"UPDATE {table} SET {fence} = $2{assigned} WHERE {where} RETURNING 1",
        id,
        number,
        *values.values(),
        doing=f"fenced update of {table}",
        write=True,
    )
    if written:
        return
    there = await client.rows(
        f"SELECT 1 FROM {table} WHERE {key} = $1", id, doing=f"fenced update of {table}"
    )
    if there:
        raise FencedOut(resource=table, id=id, token=number)
    raise NotFoundError(
        f"{table} has no row {id!r}; nothing was changed", resource=table, ids=(id,)
    )


async def check_fence(
    client: PostgresClient,
    relation: str | tuple[str, str],
    id: Any,
    token: int | AcquiredLock,
    *,
    id_column: str = "id",
    fence_column: str = "fence",
) -> None:
    """Until the open transaction ends, nobody with a lower token writes row ``id``, nor later.

    First in a transaction, it fences whatever follows there: updates of documents, other
    tables. Arguments, errors and cost are those of :func:`fenced_update`; outside a
    transaction, where it would protect nothing, it is a ``ConfigurationError``.
    """
    if transaction_of(client.manager) is None:
        raise ConfigurationError(
            "check_fence protects what follows in its transaction, and none is open on this "
            "client; wrap both in `async with ctx.transaction(...)`, or use fenced_update"
        )
    await fenced_update(client, relation, id, token, id_column=id_column, fence_column=fence_column)


def _number(token: int | AcquiredLock) -> int:
    number: object = token.token if isinstance(token, AcquiredLock) else token
    if type(number) is not int:
        raise ValidationError(
            f"a fencing token is a whole number (AcquiredLock.token), not {number!r}", field="token"
        )
    return number
