"""What is set is what one gets, of the same types; what cannot be is refused."""

from __future__ import annotations

import dataclasses
import enum
import json
import logging
import math
import sys
from collections import OrderedDict
from collections.abc import AsyncIterator
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from functools import partial
from typing import Annotated, Any, Generic, Literal, NamedTuple, TypeVar
from uuid import UUID

import pytest
from fakeredis import FakeAsyncRedis
from hypothesis import given
from hypothesis import strategies as st
from pydantic import (
    AliasChoices,
    AnyUrl,
    BaseModel,
    ConfigDict,
    Field,
    PrivateAttr,
    RootModel,
    Secret,
    SecretBytes,
    SecretStr,
    computed_field,
    field_serializer,
    field_validator,
)  # fmt: skip
from redis.asyncio import Redis
from typing_extensions import TypedDict

from fastapi_rc.errors import ValueNotCacheable
from fastapi_rc.service import CacheService
from fastapi_rc.values import Unreadable, Values, values_of
from forze.application.integrations.cached.values import same
from forze.errors import ConfigurationError

pytestmark = pytest.mark.usefixtures("patient")

T = TypeVar("T")
NOW = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)


class Colour(enum.Enum):
    RED = "red"


class User(BaseModel):
    id: str
    email: str = "a@b.c"
    name: str = "Ann"


class Admin(User):
    level: int = 1


class Aliased(BaseModel):
    full_name: str = Field(alias="fullName")
    age: int = Field(validation_alias=AliasChoices("age", "years"), serialization_alias="AGE")


class Computed(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)
    width: int

    @computed_field  # type: ignore[prop-decorator]
    @property
    def area(self) -> int:
        return self.width**2


class Loose(BaseModel):
    model_config = ConfigDict(extra="allow")
    id: int


class Cat(BaseModel):
    kind: Literal["cat"] = "cat"
    lives: int = 9


class Dog(BaseModel):
    kind: Literal["dog"] = "dog"
    at: datetime = NOW


class Page(BaseModel, Generic[T]):
    items: list[T]
    total: int


class Fickle(BaseModel):
    name: str

    @field_validator("name")
    @classmethod
    def known(cls, name: str) -> str:
        return {"a": "a"}[name]  # its author did not think of other names


class Unknown:
    pass


@dataclasses.dataclass
class Point:
    x: int
    y: float = 0.5


@dataclasses.dataclass
class Holding:
    what: Unknown


class Rich(BaseModel):
    pet: Annotated[Cat | Dog, Field(discriminator="kind")]
    point: Point
    at: datetime
    day: date
    took: timedelta
    price: Decimal
    key: UUID
    colour: Colour
    tags: frozenset[str]
    pair: tuple[int, str]
    names: dict[int, str]


class Names(RootModel[list[str]]):
    pass


class Row(TypedDict):
    id: int
    at: datetime


class Token(BaseModel):
    value: SecretBytes = Field(alias="tokenValue")


class Secretive(BaseModel):
    password: SecretStr
    pin: Secret[int]
    former: list[SecretStr | None]
    tokens: dict[UUID, Token]
    seen: datetime = NOW
    site: AnyUrl = AnyUrl("https://example.com/")


@dataclasses.dataclass
class Login:
    password: SecretStr


class Private(BaseModel):
    id: int
    _seen: int = PrivateAttr(default=0)


class Excluding(BaseModel):
    id: SecretStr = SecretStr("id")
    hidden: str = Field(default="", exclude=True)


class Lossy(BaseModel):
    name: str

    @field_serializer("name")
    def cut(self, name: str) -> str:
        return name[:2]


class Infinite(BaseModel):
    number: float


class Pair(NamedTuple):
    left: int
    right: int


RICH = Rich(
    pet=Dog(), point=Point(1), at=NOW, day=NOW.date(), took=timedelta(days=1, microseconds=1),
    price=Decimal("1.10"), key=UUID(int=5), colour=Colour.RED, tags=frozenset("ab"),
    pair=(1, "x"), names={1: "one"},
)  # fmt: skip
USER = User(id="1")
ALIASED = Aliased.model_validate({"fullName": "Ann", "years": 3})
SECRETIVE = Secretive(
    password=SecretStr("ä"), pin=Secret(7), former=[SecretStr("**********"), None],
    tokens={UUID(int=1): Token(tokenValue=SecretBytes(b"t"))},
)  # fmt: skip
PRIVATE = Private(id=1)
INVALID = User.model_construct(id=5)  # type: ignore[arg-type]
PRIVATE._seen = 3

PLAIN: list[Any] = [
    None, True, False, 0, -1, 1, 2**53 + 1, -(2**70), 0.1, -0.0, 1e300, 5e-324, "", "text", "null",
    "ä€𝄞", "\ud800", "\x00", "=", "@x", "~", [], {}, [[]], [None, {}], {"": None}, {"@": 1},
    {"@": ["a", "b"]}, [1, "1", 1.0, True], {"a": {"b": [{"c": None}]}},
    b"", b"text", b"\xff\xfe\x00", "ä".encode(), bytes(range(256)),
]  # fmt: skip
MODELS = [
    USER, Admin(id="2", level=5), ALIASED, Computed(width=3), RICH, Cat(), Names(["a"]),
    Loose.model_validate({"id": 1, "more": [1, {"x": None}]}), Page[User](items=[USER], total=1),
    Page[Page[Cat]](items=[Page[Cat](items=[Cat()], total=1)], total=1), Point(1, 2.0),
    SECRETIVE, Login(SecretStr("x")),
]  # fmt: skip
MIXED: list[Any] = [
    MODELS, {"a": USER, "b": [Admin(id="1"), None]}, {"@": USER}, [{"@": {"@": [USER, {"@": 1}]}}],
    {"id": UUID(int=1), "at": NOW, "price": Decimal("1.10"), "raw": b"\xff", "on": Colour.RED},
]  # fmt: skip


@pytest.fixture(params=["decoding", "bytes", "fake decoding", "fake bytes"])
async def client(request: pytest.FixtureRequest) -> AsyncIterator[Any]:
    """Every kind of client: of a server and fake, decoding and not."""
    decoding = "decoding" in request.param
    if request.param.startswith("fake"):
        async with FakeAsyncRedis(decode_responses=decoding) as fake:
            yield fake
    else:
        dsn = request.getfixturevalue("valkey_dsn")
        async with Redis.from_url(dsn, decode_responses=decoding) as real:
            yield real


@pytest.mark.parametrize("model", [None, User], ids=["no model", "model=User"])
async def test_set_then_get_is_the_identity(client: Any, model: Any) -> None:
    cache = CacheService[Any](client, "values", model=model)
    made: list[int] = []

    def never() -> None:
        made.append(1)

    for number, value in enumerate([*PLAIN, *MODELS, *MIXED]):
        assert await cache.set(number, value, ttl=100)
        found = await cache.get(number)
        assert same(found, value), (found, value)
        assert await cache.exists(number)
        assert same(await cache.get_or_set(number, never), value)
    assert made == []


@pytest.mark.parametrize("value", MODELS, ids=lambda value: type(value).__name__)
async def test_each_model_as_the_model_of_its_service(redis: Redis, value: Any) -> None:
    kinds: list[tuple[Any, Any]] = [
        (type(value), value),
        (list[type(value)], [value, value]),  # type: ignore[misc]
    ]
    for model, stored in kinds:
        cache = CacheService[Any](redis, "models", model=model)
        await cache.set("1", stored)
        assert same(await cache.get("1"), stored)
        body = await redis.get("cache:v1:models:1")
        assert json.loads(str(body))  # bare JSON, for whoever reads it without us


async def test_the_model_in_brackets_is_the_model(redis: Redis) -> None:
    class UserCache(CacheService[User]):
        """A service of users."""

    await redis.set("cache:v1:users:1", '{"id": "1", "email": "x", "name": "y"}')
    expected = User(id="1", email="x", name="y")
    for cache in (CacheService[User](redis, "users"), UserCache(redis, "users")):
        assert cache.model is User
        assert same(await cache.get("1"), expected)
    assert same(await CacheService(redis, "users", model=User).get("1"), expected)
    assert same(await CacheService[User](redis=redis, namespace="users").get("1"), expected)
    assert await CacheService[Any](redis, "users").get("1") == expected.model_dump()
    unbound: Any = CacheService[T]  # type: ignore[valid-type]
    assert unbound(redis, "users").model is None


async def test_plain_data_that_validates_as_the_model_is_the_model(redis: Redis) -> None:
    cache = CacheService[Any](redis, "users", model=Aliased)
    for number, data in enumerate(
        [{"fullName": "Ann", "age": 3}, {"full_name": "Ann", "years": 3}]
    ):
        made = await cache.get_or_set(number, partial(dict, data))
        assert same(made, ALIASED)
        assert same(await cache.get(number), ALIASED)
    other = {"fullName": "Ann"}
    assert await cache.get_or_set("no", lambda: other) == other
    assert await cache.get("no") == other
    rows = CacheService[list[Row]](redis, "rows")
    await rows.set("1", [{"id": 1, "at": NOW}])
    assert await rows.get("1") == [{"id": 1, "at": NOW}]


@pytest.mark.parametrize(
    "value",
    [
        math.nan, math.inf, [-math.inf], (1, 2), {1, 2}, frozenset(), {1: "a"}, {None: 1}, object(),
        {"deep": [{"er": (1,)}]}, OrderedDict(a=1), Pair(1, 2), bytearray(b"x"), User, len, 1j,
        10**5000, PRIVATE, Excluding(hidden="x"),
        Lossy(name="long"), Infinite(number=math.inf), Loose.model_validate({"id": 1, "at": NOW}),
        INVALID, [USER, (USER,)], {2: USER},
        Fickle.model_construct(name="b"), [Holding(Unknown())],
    ],
    ids=lambda value: type(value).__name__,
)  # fmt: skip
@pytest.mark.parametrize("with_model", [False, True])
async def test_what_would_come_back_as_another_is_refused(
    redis: Redis, value: Any, with_model: bool, caplog: pytest.LogCaptureFixture
) -> None:
    model = type(value) if with_model and isinstance(value, BaseModel) else None
    cache = CacheService[Any](redis, f"refused {type(value)} {model}", model=model)
    with pytest.raises(ValueNotCacheable, match=type(value).__name__) as caught:
        await cache.set("1", value)
    assert isinstance(caught.value, TypeError | ValueError)
    with caplog.at_level(logging.WARNING, "fastapi_rc"):
        assert await cache.get_or_set("1", lambda: value) is value
    assert "never cached" in caplog.text or "cannot be cached" in str(caught.value)
    assert await redis.keys() == []


def test_what_contains_itself_is_refused() -> None:
    selfish: list[Any] = []
    selfish.append(selfish)
    deep: Any = 1
    for _ in range(20_000):
        deep = [deep]
    for value in (selfish, deep):
        with pytest.raises(ValueNotCacheable):
            Values().encode(value)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=[])),
    lambda inner: st.lists(inner, max_size=4)
    | st.dictionaries(st.text(max_size=3), inner, max_size=4),
    max_leaves=20,
)  # fmt: skip
plain, of_users = Values(), values_of(User)


def as_stored(body: bytes, decoding: bool) -> str | bytes:
    return body.decode() if decoding else body


@given(json_values, st.booleans())
def test_every_json_value_comes_back(value: Any, decoding: bool) -> None:
    for planted in (value, [USER, value], {"@": value, "user": USER}):
        body, comes_back = plain.encode(planted)
        assert comes_back is planted
        assert same(plain.decode(as_stored(body, decoding)), planted)
    body, _ = of_users.encode([value])
    assert same(of_users.decode(as_stored(body, decoding)), [value])


@given(st.binary(), st.booleans())
def test_all_bytes_come_back(value: bytes, decoding: bool) -> None:
    body, _ = plain.encode(value)
    assert plain.decode(as_stored(body, decoding)) == value
    assert of_users.decode(as_stored(body, decoding)) == value


@given(st.binary() | json_values.map(lambda value: plain.encode(value)[0]))
def test_whatever_is_stored_is_a_value_or_unreadable(body: bytes) -> None:
    for values in (plain, of_users):
        for stored in (body, body.decode("utf-8", "replace"), b"@" + body, b"~" + body):
            try:
                values.decode(stored)
            except Unreadable:
                continue
            assert stored, "nothing was read as a value"


async def test_a_value_of_an_older_model_is_a_miss(
    redis: Redis, caplog: pytest.LogCaptureFixture
) -> None:
    class Old(BaseModel):
        id: int

    class New(BaseModel):
        id: int
        email: str

    await CacheService[Old](redis, "users").set("1", Old(id=1))
    cache = CacheService[New](redis, "users")
    with caplog.at_level(logging.DEBUG, "fastapi_rc"):
        assert await cache.get("1") is None
    assert [each.levelname for each in caplog.records] == ["DEBUG"]
    fresh = New(id=1, email="x")
    assert await cache.get_or_set("1", lambda: fresh) == fresh
    assert same(await cache.get("1"), fresh)


async def test_whatever_a_validator_raises_is_a_miss(redis: Redis) -> None:
    cache = CacheService[Fickle](redis, "users")
    await redis.set("cache:v1:users:1", '{"name": "b"}')
    assert await cache.get("1") is None
    made = Fickle(name="a")
    assert await cache.get_or_set("1", lambda: made) is made
    assert await cache.get("1") == made


@pytest.mark.parametrize("body", ["", "{", "\x00", "@[", '@{"@":["no.such/Type","1"]}', "~~", "!x"])
async def test_what_others_wrote_is_a_miss(redis: Redis, body: str) -> None:
    cache = CacheService[Any](redis, "users")
    await redis.set("cache:v1:users:1", body)
    assert await cache.get("1") is None
    assert await cache.get_or_set("1", lambda: "made") == "made"
    assert await cache.get("1") == "made"


def test_a_body_names_data_alone_and_imports_nothing() -> None:
    before = set(sys.modules)
    for name in ("os/system", "builtins/object", "subprocess/Popen", "wave/Wave_read", "this/d"):
        body = json.dumps({"@": [name, '"x"']})
        with pytest.raises(Unreadable, match="knows no type"):
            plain.decode("@" + body)
    assert set(sys.modules) - before == set()
    this = json.dumps({"@": [f"{__name__}/Point", '{"x": 1, "y": 2.0}']})
    assert plain.decode("@" + this) == Point(1, 2.0)


def test_a_model_that_pydantic_does_not_know_is_refused_at_once(redis: Redis) -> None:
    class Strange:
        pass

    with pytest.raises(ConfigurationError, match="Strange"):
        CacheService(redis, "users", model=Strange)


def test_generic_models_of_the_same_spelling_are_told_apart() -> None:
    def make(kind: type) -> type[BaseModel]:
        return type(
            "User", (BaseModel,), {"__annotations__": {"id": kind}, "__module__": kind.__name__}
        )

    one, other = make(int), make(str)
    bodies = [plain.encode(Page[each](items=[each(id=kind(1))], total=1))[0]  # type: ignore[valid-type]
              for each, kind in ((one, int), (other, str))]  # fmt: skip
    assert type(plain.decode(bodies[0]).items[0]) is one
    assert type(plain.decode(bodies[1]).items[0]) is other
