"""Writes under a token, in a real PostgreSQL: a later holder's stand, an earlier one's do not."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any
from uuid import uuid4

import pytest

from forze.application.contracts.dlock import AcquiredLock
from forze.application.execution import DepsPlan, ExecutionContext, ExecutionRuntime, LifecyclePlan
from forze.errors import ConfigurationError, FencedOut, NotFoundError, ValidationError
from forze_postgres import (
    PostgresClient,
    PostgresDepsModule,
    check_fence,
    fenced_update,
    postgres_lifecycle_step,
)

ID = uuid4()


@pytest.fixture
async def client() -> PostgresClient:
    """The client, connected by the runtime of ``ctx``."""
    return PostgresClient()


@pytest.fixture
async def ctx(client: PostgresClient, postgres_dsn: str) -> AsyncIterator[ExecutionContext]:
    """A runtime over a table with one row."""
    runtime = ExecutionRuntime(
        deps=DepsPlan.from_modules(PostgresDepsModule(client=client, tx={"invoices"})),
        lifecycle=LifecyclePlan.from_steps(postgres_lifecycle_step(dsn=postgres_dsn)),
    )
    async with runtime.scope() as context:
        await client.rows(
            "CREATE TABLE invoices (id uuid PRIMARY KEY, total bigint, note text, fence bigint)",
            doing="make the table",
            write=True,
        )
        await client.rows("INSERT INTO invoices (id) VALUES ($1)", ID, doing="fill", write=True)
        yield context


async def row(client: PostgresClient) -> tuple[Any, ...]:
    (found,) = await client.rows("SELECT total, note, fence FROM invoices", doing="look")
    return tuple(found)


@pytest.mark.usefixtures("ctx")
async def test_a_later_token_stands_and_an_earlier_one_does_not(client: PostgresClient) -> None:
    await fenced_update(client, "invoices", ID, 7, {"total": 1, "note": "first"})
    await fenced_update(client, ("public", "invoices"), str(ID), 9, {"total": 2})
    with pytest.raises(FencedOut) as refusal:
        await fenced_update(client, "invoices", ID, 8, {"total": 3})
    assert (refusal.value.token, refusal.value.id) == (8, str(ID))
    assert await row(client) == (2, "first", 9)


@pytest.mark.usefixtures("ctx")
async def test_a_holders_second_write_stands(client: PostgresClient) -> None:
    """With `fence < token` in its place, the second would be refused."""
    lock = AcquiredLock("invoice", "one", 1_795_259_183_752_151)
    for total in (1, 2, 3):
        await fenced_update(client, "invoices", ID, lock, {"total": total})
    assert await row(client) == (3, None, lock.token)


@pytest.mark.usefixtures("ctx")
async def test_what_cannot_be_written(client: PostgresClient) -> None:
    with pytest.raises(NotFoundError):
        await fenced_update(client, "invoices", uuid4(), 7)
    with pytest.raises(ValidationError, match="fence"):
        await fenced_update(client, "invoices", ID, 7, {"fence": 8})
    for token in ("7", None, True, 7.0):
        with pytest.raises(ValidationError, match="token"):
            await fenced_update(client, "invoices", ID, token)  # type: ignore[arg-type]
    assert await row(client) == (None, None, None)


async def test_a_checked_transaction_holds_off_the_next_holder(
    ctx: ExecutionContext, client: PostgresClient
) -> None:
    """Between check and commit nobody else writes: the later holder's write comes after."""
    checked, go = asyncio.Event(), asyncio.Event()

    async def earlier() -> None:
        async with ctx.transaction("invoices"):
            await check_fence(client, "invoices", ID, 7)
            checked.set()
            await go.wait()
            await client.rows("UPDATE invoices SET total = 1", doing="write", write=True)

    async def later() -> None:
        await checked.wait()
        await fenced_update(client, "invoices", ID, 9, {"total": 2})

    tasks = [asyncio.create_task(earlier()), asyncio.create_task(later())]
    await checked.wait()
    done, _ = await asyncio.wait(tasks, timeout=0.05)
    assert not done
    go.set()
    await asyncio.gather(*tasks)
    assert await row(client) == (2, None, 9)
    with pytest.raises(FencedOut):
        async with ctx.transaction("invoices"):
            await client.rows("UPDATE invoices SET total = 3", doing="write", write=True)
            await check_fence(client, "invoices", ID, 8)
    assert await row(client) == (2, None, 9), "what came before it in the transaction goes with it"


@pytest.mark.usefixtures("ctx")
async def test_a_check_outside_a_transaction_is_refused(client: PostgresClient) -> None:
    with pytest.raises(ConfigurationError, match="transaction"):
        await check_fence(client, "invoices", ID, 7)
    assert await row(client) == (None, None, None)
