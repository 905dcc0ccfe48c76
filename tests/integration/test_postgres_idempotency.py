"""The idempotency table: checked at start, and its statements beside the transitions."""

from __future__ import annotations

import random
from datetime import timedelta

import asyncpg
import pytest

from forze.application.contracts.idempotency import IdempotencySnapshot, IdempotencySpec
from forze.application.execution import DepsPlan, ExecutionContext, ExecutionRuntime, LifecyclePlan
from forze.application.integrations.idempotency import record as transitions
from forze.application.integrations.idempotency.record import (
    Busy,
    Completed,
    Granted,
    Mismatched,
    Record,
)
from forze.errors import ConfigurationError
from forze_postgres import (
    PostgresClient,
    PostgresDepsModule,
    idempotency_table_sql,
    postgres_lifecycle_step,
)
from forze_postgres.idempotency import PostgresIdempotencyConfig, PostgresIdempotencyStore

TABLE = ("public", "idempotency")
SPEC = IdempotencySpec(name="requests")
LEASE, TTL = timedelta(seconds=60), timedelta(seconds=600)


def runtime(dsn: str, client: PostgresClient) -> ExecutionRuntime:
    """A process whose one spec is checked at start."""
    return ExecutionRuntime(
        deps=DepsPlan.from_modules(PostgresDepsModule(client=client, idempotency={"table": TABLE})),
        lifecycle=LifecyclePlan.from_steps(postgres_lifecycle_step(dsn=dsn)),
        specs=[SPEC],
    )


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("DROP TABLE idempotency", "public.idempotency does not exist"),
        ("ALTER TABLE idempotency DROP COLUMN body", "body is missing; expected bytea"),
        ("ALTER TABLE idempotency ALTER generation TYPE integer", "generation is integer"),
        ("ALTER TABLE idempotency DROP CONSTRAINT idempotency_pkey", "record is not unique"),
        ("ALTER TABLE idempotency ADD extra text NOT NULL", "extra is NOT NULL"),
    ],
)
async def test_a_table_that_does_not_fit_is_told_at_start(
    postgres_dsn: str, change: str, words: str
) -> None:
    connection = await asyncpg.connect(postgres_dsn)
    await connection.execute(idempotency_table_sql(TABLE))
    async with runtime(postgres_dsn, PostgresClient()).scope():
        pass
    await connection.execute(change)
    await connection.close()
    with pytest.raises(ConfigurationError, match=words) as refusal:
        async with runtime(postgres_dsn, PostgresClient()).scope():
            pass
    assert "idempotency_table_sql" in str(refusal.value)


async def test_statements_carry_out_the_transitions(postgres_dsn: str) -> None:
    """Any order of calls, with time in between: what the pure functions say."""
    beside = await asyncpg.connect(postgres_dsn)
    await beside.execute(idempotency_table_sql(TABLE))
    client = PostgresClient()
    async with runtime(postgres_dsn, client).scope() as ctx:
        store = PostgresIdempotencyStore(client, SPEC, PostgresIdempotencyConfig(table=TABLE), ctx)
        seen: set[type] = set()
        for seed in range(6):
            await beside.execute("DELETE FROM idempotency")
            seen |= await _walk(store, beside, random.Random(seed))
    await beside.close()
    assert seen == {Granted, Busy, Mismatched, Completed}, "the walks came by every kind of answer"


async def _walk(
    store: PostgresIdempotencyStore, beside: asyncpg.Connection[asyncpg.Record], dice: random.Random
) -> set[type]:
    record: Record | None = None
    seen: set[type] = set()
    now, lease_ms = 0, LEASE // timedelta(milliseconds=1)
    for _ in range(60):
        owner, generation = dice.choice("ab"), dice.randint(0, 3)
        if record is not None and dice.random() < 0.3:
            owner, generation = record.owner or owner, record.generation
        match dice.choice(["claim", "claim", "beat", "complete", "release", "time"]):
            case "claim":
                payload = dice.choice(["h1", "h1", "h2"])
                record, expected = transitions.claim(record, owner, payload, lease_ms, now)
                answer = await store.claim("r", owner, payload, LEASE, TTL)
                assert type(answer) is type(expected)
                seen.add(type(answer))
                if isinstance(expected, Granted):
                    assert answer == expected
                elif isinstance(expected, Busy):
                    assert isinstance(answer, Busy)
                    assert 0 <= expected.lease_left_ms - answer.lease_left_ms < 5_000
            case "beat":
                record, held = transitions.beat(record, owner, generation, lease_ms, now)
                assert await store.beat("r", owner, generation, LEASE, TTL) is held
            case "complete":
                snapshot = IdempotencySnapshot(200, None, dice.randbytes(3))
                record, stored = transitions.complete(record, owner, generation, snapshot)
                assert await store.complete("r", owner, generation, snapshot, TTL) is stored
            case "release":
                record, freed = transitions.release(record, owner, generation)
                assert await store.release("r", owner, generation, TTL) is freed
            case "time":
                now += 35_000
                await beside.execute(
                    "UPDATE idempotency SET lease_until = lease_until - interval '35 s'"
                )
    return seen


async def test_a_context_is_what_it_takes(postgres_dsn: str) -> None:
    connection = await asyncpg.connect(postgres_dsn)
    await connection.execute(idempotency_table_sql(("public", 'odd "name"')))
    await connection.close()
    client = PostgresClient()
    module = PostgresDepsModule(client=client, idempotency={"table": ("public", 'odd "name"')})
    step = postgres_lifecycle_step(dsn=postgres_dsn)
    async with ExecutionRuntime(
        deps=DepsPlan.from_modules(module), lifecycle=LifecyclePlan.from_steps(step), specs=[SPEC]
    ).scope() as ctx:
        assert isinstance(ctx, ExecutionContext)
        assert await ctx.idempotency(SPEC).begin("op", "k", "h") is None
