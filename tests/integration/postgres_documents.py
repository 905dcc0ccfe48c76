"""The document kind of the PostgreSQL tests: every family of field, and its table."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum, StrEnum
from typing import Any
from uuid import UUID, uuid4

import asyncpg
from pydantic import BaseModel, SecretStr

from forze.application.contracts.document import DocumentSpec, DocumentWriteTypes
from forze.application.execution import DepsPlan, ExecutionContext, ExecutionRuntime, LifecyclePlan
from forze.domain.models import BaseDTO, CreateDocumentCmd, Document, ReadDocument
from forze_postgres import (
    PostgresClient,
    PostgresConfig,
    PostgresDepsModule,
    PostgresDocumentConfig,
    PostgresDocumentStore,
    postgres_lifecycle_step,
)

OWN = """
    id uuid PRIMARY KEY, rev bigint NOT NULL, created_at timestamptz NOT NULL,
    last_update_at timestamptz NOT NULL
"""
TABLE = f"""
    CREATE TABLE thing ({OWN}, name text NOT NULL, price bigint NOT NULL DEFAULT 0,
        amount numeric, ratio double precision, colour text, size int, day date, at time,
        lasts interval, raw bytea, seen timestamptz, other uuid, parts jsonb, extra jsonb,
        ready boolean, secret text, note text DEFAULT 'unknown to the models',
        CONSTRAINT price_not_negative CHECK (price >= 0))
"""


ENDLESS = "SELECT pg_sleep('infinity')"
"""A statement that only ends by being cancelled, which is what tests use it for."""


class Colour(StrEnum):
    RED = "red"
    BLUE = "blue"


class Size(Enum):
    SMALL = 1
    LARGE = 2


class Part(BaseModel):
    code: UUID
    weight: Decimal
    made: date


class Fields(BaseModel):
    name: str
    price: int = 0
    amount: Decimal | None = None
    ratio: float | None = None
    colour: Colour | None = None
    size: Size | None = None
    day: date | None = None
    at: time | None = None
    lasts: timedelta | None = None
    raw: bytes | None = None
    seen: datetime | None = None
    other: UUID | None = None
    parts: list[Part] | None = None
    extra: dict[str, Any] | None = None
    ready: bool | None = None
    secret: SecretStr | None = None


class Thing(Fields, Document):
    pass


class ThingRead(Fields, ReadDocument):
    pass


class ThingCreate(Fields, CreateDocumentCmd):
    pass


class ThingUpdate(BaseDTO):
    name: str | None = None
    price: int | None = None


THING = DocumentSpec(
    name="things",
    read=ThingRead,
    write=DocumentWriteTypes(domain=Thing, create_cmd=ThingCreate, update_cmd=ThingUpdate),
)
THING_PG = PostgresDocumentConfig(read=("public", "thing"), write=("public", "thing"))


def full(name: str = "all") -> Thing:
    """A thing with every field filled."""
    return Thing(
        name=name,
        price=2**53 + 1,
        amount=Decimal("12345678901234567890.123456789"),
        ratio=0.1 + 0.2,
        colour=Colour.BLUE,
        size=Size.LARGE,
        day=date(2024, 2, 29),
        at=time(23, 59, 59, 999999),
        lasts=timedelta(days=3, seconds=5, microseconds=7),
        raw=bytes(range(256)),
        seen=datetime(2024, 1, 2, 3, 4, 5, 678901, tzinfo=UTC),
        other=uuid4(),
        parts=[Part(code=uuid4(), weight=Decimal("1.50"), made=date(2020, 1, 1))],
        extra={"a b": [1, 2.5, None, {"ü": "'\"; DROP TABLE thing; --"}]},
        ready=True,
        secret=SecretStr("s3cret"),
    )


async def admin(dsn: str, *statements: str) -> None:
    """Run statements on a connection of their own."""
    connection = await asyncpg.connect(dsn)
    try:
        for each in statements:
            await connection.execute(each)
    finally:
        await connection.close()


@asynccontextmanager
async def connected(dsn: str, **limits: Any) -> AsyncIterator[PostgresClient]:
    """A client with a pool of two unless told otherwise."""
    client = PostgresClient()
    await client.connect(dsn, PostgresConfig(**{"min_size": 0, "max_size": 2, **limits}))
    try:
        yield client
    finally:
        await client.close()


def store(
    client: PostgresClient, spec: Any = THING, config: Any = THING_PG
) -> PostgresDocumentStore[Any]:
    """A store of ``spec``."""
    return PostgresDocumentStore(client, spec, config)


@asynccontextmanager
async def running(dsn: str, **limits: Any) -> AsyncIterator[ExecutionContext]:
    """A runtime with things and the transaction route "things"."""
    client = PostgresClient()
    runtime = ExecutionRuntime(
        deps=DepsPlan.from_modules(
            PostgresDepsModule(client=client, rw_documents={"things": THING_PG}, tx={"things"})
        ),
        lifecycle=LifecyclePlan.from_steps(
            postgres_lifecycle_step(dsn=dsn, config=PostgresConfig(**{"max_size": 4, **limits}))
        ),
        specs=[THING],
    )
    async with runtime.scope() as ctx:
        yield ctx
