"""What a cached function returns is the same whether it ran or not; what cannot be is not kept."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from enum import Enum, StrEnum
from typing import Any, Literal, NamedTuple
from uuid import UUID

import pytest
from pydantic import BaseModel, ConfigDict, Field, SecretStr, computed_field
from typing_extensions import TypedDict

from forze.application.contracts.cache import CACHED, AgeBasedTtl, CacheSpec, L1Spec
from forze.application.contracts.tenancy import current_principal, current_tenant
from forze.application.execution import DepsPlan, ExecutionContext, ExecutionRuntime
from forze.application.integrations.cached import cached
from forze.errors import BackendUnavailable, ConfigurationError, NotFoundError
from forze_memory import MemoryDepsModule

MINUTE = timedelta(seconds=60)


class Color(Enum):
    RED = "red"


class Kind(StrEnum):
    BOOK = "book"


class Anything(BaseModel):
    held: Any


class Money(BaseModel):
    model_config = ConfigDict(frozen=True)
    amount: Decimal
    currency: Literal["EUR", "USD"] = "EUR"


class Aliased(BaseModel):
    name: str = Field(alias="Name", serialization_alias="NAME")
    prices: list[Money] = []

    @computed_field  # type: ignore[prop-decorator] # as pydantic has it
    @property
    def shout(self) -> str:
        return self.name.upper()


@dataclass
class Place:
    x: int
    inside: list[Place]


class Row(TypedDict):
    id: UUID
    at: datetime


class Pair(NamedTuple):
    left: int
    right: str


class Account(BaseModel):
    password: SecretStr


NOON = datetime(2024, 1, 1, 12, tzinfo=UTC)
ROUND_TRIPS: list[tuple[Any, Any]] = [
    (Any, None), (Any, True), (Any, 1), (Any, 1.5), (Any, "é"), (Any, [1, [None, {"a": 2}]]),
    (Any, {"a": [1.0, "x", False]}), (Any, 2**70), (Any, ""), (None, None), (int, 0),
    (int | str, "1"), (int | str, 1), (float, 0.1), (float, -0.0), (float, float("inf")),
    (str | None, None), (bytes, b"\x00\xff\xfe"), (bytes, b""), (bytes | None, b"\xff"),
    (list[bytes], [b"\xff", b"a"]), (UUID, UUID(int=7)), (Decimal, Decimal("1.10")),
    (datetime, NOON), (date, NOON.date()), (timedelta, timedelta(days=1, microseconds=3)),
    (Color, Color.RED), (dict[UUID, list[Color]], {UUID(int=1): [Color.RED]}),
    (tuple[int, str], (1, "a")), (set[int], {1, 2}), (frozenset[str], frozenset("ab")),
    (Money, Money(amount=Decimal("9.90"))), (Aliased, Aliased(Name="a")),
    (list[Money | Aliased], [Money(amount=Decimal(1)), Aliased(Name="b")]),
    (Money | None, None), (dict[str, Money], {"a": Money(amount=Decimal(2), currency="USD")}),
    (Place, Place(1, [Place(2, [])])), (list[Place], [Place(1, [])]),
    (Anything, Anything(held={"a": [1, None]})), (Kind, Kind.BOOK),
    (Row, {"id": UUID(int=3), "at": NOON}), (Pair, Pair(1, "a")), (list[Pair], [Pair(1, "b")]),
]  # fmt: skip
LOST: list[tuple[Any, Any]] = [
    (Any, Money(amount=Decimal(1))), (Any, (1, 2)), (Any, {1: "a"}), (Any, UUID(int=1)),
    (float, float("nan")), (int, True), (list[int], [True]), (int, "1"), (bytes, "text"),
    (Account, Account(password=SecretStr("hidden"))), (Any, object()),
    (Anything, Anything(held=Kind.BOOK)), (Place, Place(True, [])), (str, Kind.BOOK),
    (list[Anything], [Anything(held=[Kind.BOOK])]), (Place, Place(1, [Place(True, [])])),
]  # fmt: skip


@pytest.fixture
async def ctx() -> AsyncIterator[ExecutionContext]:
    runtime = ExecutionRuntime(deps=DepsPlan.from_modules(MemoryDepsModule()))
    async with runtime.scope() as context:
        yield context


def giving(ctx: ExecutionContext, kind: Any, value: Any, **options: Any) -> Any:
    async def give(n: int = 0) -> Any:
        return value

    give.__annotations__["return"] = kind
    return cached(MINUTE, ctx=lambda: ctx, name="give", **options)(give)


@pytest.mark.parametrize(("kind", "value"), ROUND_TRIPS)
@pytest.mark.parametrize("cache", ["remote", "in process"])
async def test_it_comes_back_as_it_was(
    ctx: ExecutionContext, kind: Any, value: Any, cache: str
) -> None:
    l1 = None if cache == "remote" else L1Spec(ttl=timedelta(seconds=30))
    give = giving(ctx, kind, value, cache=CacheSpec(name=cache, l1=l1))
    for _ in range(4):
        found = await give()
        assert found == value
        assert type(found) is type(value)
        if not isinstance(value, set | frozenset | datetime | dict):  # orders, names of zones
            assert repr(found) == repr(value)
    assert give.stats().fills == 1
    assert give.stats().source_reads == 1


@pytest.mark.parametrize(("kind", "value"), LOST)
async def test_what_would_come_back_as_another_is_not_kept(
    ctx: ExecutionContext, kind: Any, value: Any, caplog: pytest.LogCaptureFixture
) -> None:
    give = giving(ctx, kind, value)
    with caplog.at_level(logging.WARNING, "forze"):
        for _ in range(3):
            assert repr(await give()) == repr(value)
    assert give.stats().uncacheable == 3
    assert [each for each in caplog.messages if "give" in each] == caplog.messages
    assert len(caplog.messages) == 1


async def test_what_can_be_neither_kept_nor_copied_is_made_for_each(
    ctx: ExecutionContext,
) -> None:
    made: list[Any] = []
    go = asyncio.Event()

    async def connect() -> Any:
        made.append(threading.Lock())
        await go.wait()
        return made[-1]

    connected: Any = cached(60, ctx=lambda: ctx)(connect)
    calls = [asyncio.create_task(connected()) for _ in range(3)]
    await asyncio.sleep(0.02)
    assert len(made) == 1
    go.set()
    assert {id(each) for each in await asyncio.gather(*calls)} == {id(each) for each in made}
    assert len(made) == 3


async def test_a_condition(ctx: ExecutionContext) -> None:
    runs = 0

    async def find(n: int) -> int | None:
        nonlocal runs
        runs += 1
        return n or None

    found: Any = cached(60, ctx=lambda: ctx, condition=lambda value: value is not None)(find)
    assert [await found(0), await found(0), await found(1), await found(1)] == [None, None, 1, 1]
    assert runs == 3


async def test_nobody_changes_what_another_was_given(ctx: ExecutionContext) -> None:
    give = giving(ctx, list[int], [1], cache=CacheSpec(name="x", l1=L1Spec(ttl=MINUTE / 2)))
    for each in await asyncio.gather(*(give() for _ in range(3))):
        assert each == [1]
        each.append(2)
    for _ in range(4):
        (found := await give()).append(3)
        assert found == [1, 3]


async def test_another_annotation_or_version_reads_nothing_of_before(
    ctx: ExecutionContext,
) -> None:
    keys = set()
    for kind, version in ((int, 1), (float, 1), (int, 2)):
        ctx.functions._bound.clear()  # as if deployed anew
        keys.add(giving(ctx, kind, 1, version=version).key())
    assert len(keys) == 3


async def test_it_sees_nobody_who_is_not_in_its_key(ctx: ExecutionContext) -> None:
    async def whose() -> list[str | None]:
        return [current_tenant(), current_principal()]

    def on(name: str, **options: Any) -> Any:
        return cached(60, ctx=lambda: ctx, name=name, **options)(whose)

    shared, tenant, principal = (
        on("a"), on("b", per="tenant"), on("c", per="principal")
    )  # fmt: skip
    for who in ("x", "y", "x"):
        with ctx.bind_tenant(f"t-{who}"), ctx.bind_principal(who):
            assert await shared() == [None, None]
            assert await tenant() == [f"t-{who}", None]
            assert await principal() == [f"t-{who}", who]
    assert [each.stats().source_reads for each in (shared, tenant, principal)] == [1, 2, 2]
    with ctx.bind_tenant("t-x"), ctx.bind_principal("y"):
        assert await principal() == ["t-x", "y"]


async def test_a_not_found_of_the_source_is_everybodys(ctx: ExecutionContext) -> None:
    async def find() -> int:
        raise NotFoundError("nothing", resource="x")

    found: Any = cached(60, ctx=lambda: ctx)(find)
    for _ in range(2):
        failures = await asyncio.gather(*(found() for _ in range(3)), return_exceptions=True)
        assert {type(each) for each in failures} == {NotFoundError}
    assert found.stats().source_reads == 2


async def test_a_method(ctx: ExecutionContext) -> None:
    class Catalog:
        def __init__(self, factor: int) -> None:
            self.factor = factor

        async def plain(self, n: int) -> int:
            return n * self.factor

        price: Any = cached(60, ctx=lambda: ctx, key=lambda self, n: (self.factor, n))(plain)

    two, three = Catalog(2), Catalog(3)
    method: Any = Catalog.price
    assert [await two.price(5), await three.price(5), await two.price(5)] == [10, 15, 10]
    assert method.stats().hits == 1
    await method.invalidate(two, 5)
    assert await Catalog(2).price(5) == 10
    assert method.stats().source_reads == 3


class Unknown:
    """Nothing that JSON could stand for."""


async def odd() -> Unknown:
    return Unknown()


def test_mistakes(ctx: ExecutionContext) -> None:
    async def fine(n: int) -> int:
        return n

    def sync(n: int) -> int:
        return n

    async def stream(n: int) -> AsyncIterator[int]:
        yield n

    def of(function: Any = fine, ttl: Any = 60, **options: Any) -> Any:
        return cached(ttl, **{"ctx": lambda: ctx, **options})(function)

    mistakes: list[tuple[dict[str, Any], str]] = [
        ({"function": sync}, "async def"), ({"function": stream}, "async def"),
        ({"function": odd}, "Unknown"), ({"ttl": 0}, "ttl"), ({"ttl": True}, "ttl"),
        ({"ttl": "60"}, "ttl"), ({"ttl": timedelta(0)}, "ttl"), ({"ctx": None}, "get_context"),
        ({"per": "user"}, "per"), ({"name": "~x"}, "~"), ({"ignore": "m"}, "'m'"),
        ({"key": "{m}"}, "'m'"), ({"tags": "{m}"}, "'m'"), ({"key": 5}, "key"),
        ({"cache": CacheSpec(name="x", age_ttl=AgeBasedTtl())}, "age_ttl"),
        ({"cache": CacheSpec(name="x", l1=L1Spec(ttl=MINUTE * 2))}, "L1"),
    ]  # fmt: skip
    for options, said in mistakes:
        with pytest.raises(ConfigurationError, match=said):
            of(**options)
    assert of()


async def test_two_functions_of_one_name(ctx: ExecutionContext) -> None:
    one, other = giving(ctx, int, 1), giving(ctx, int, 2)
    assert await one() == 1
    with pytest.raises(ConfigurationError, match="'give'"):
        await other()


async def test_what_is_owed_is_gone_past_until_it_is_told(ctx: ExecutionContext) -> None:
    price = 10

    async def find() -> int:
        return price

    found: Any = cached(60, ctx=lambda: ctx, tags="prices")(find)
    assert await found() == 10
    pointers: Any = ctx.cache(CACHED).tags().pointers
    tells = pointers.done

    async def refuses(*_: object) -> None:
        raise BackendUnavailable("away", backend="cache")

    pointers.done = refuses
    try:
        price = 11
        await ctx.invalidate_tags("prices")
        assert [await found(), await found()] == [11, 11]
        assert found.stats().fills == 1
    finally:
        pointers.done = tells
    async with asyncio.timeout(5):
        while found.stats().fills == 1:
            assert await found() == 11
            await asyncio.sleep(0.02)
