"""Keys of cached calls: no two values share one, and every way to write a call is one key."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from enum import Enum, IntEnum
from pathlib import PurePosixPath
from types import SimpleNamespace
from typing import Any, Literal, NamedTuple
from uuid import UUID
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, PrivateAttr, SecretStr, TypeAdapter

from forze.application.execution import ExecutionContext
from forze.application.integrations.cached.arguments import Arguments
from forze.application.integrations.cached.canonical import Unkeyable, canonical
from forze.errors import ConfigurationError, ValidationError


class Color(Enum):
    RED = 1
    BLUE = 2


class Level(IntEnum):
    LOW = 1


class Point(NamedTuple):
    x: int
    y: int


@dataclass
class Place:
    x: int
    y: int


class Item(BaseModel):
    x: int
    y: int = 2
    _note: str = PrivateAttr("")


class Other(BaseModel):
    x: int
    y: int = 2


class Named(Place):
    """No dataclass itself: what it adds is no field."""

    def __init__(self, name: str) -> None:
        super().__init__(1, 2)
        self.name = name


class Name(str):
    __slots__ = ()


class Owned(float):
    __slots__ = ("owner",)


class Whose(float):
    def __init__(self, _: float) -> None:
        self.owner = "mine"


def noted(note: str) -> Item:
    item = Item(x=1)
    item._note = note
    return item


NOON = datetime(2024, 1, 1, 12)
ZONE = timezone(timedelta(hours=1))
DISTINCT: list[Any] = [
    None, True, False, 0, 1, -1, 1.0, 0.0, -0.0, 1j, "1", "", "n", "None", "True", b"1", b"",
    bytearray(b"1"), (1,), [1], {1}, frozenset({1}), {1: 1}, {"1": 1}, {1: "1"}, (), [], {}, set(),
    frozenset(), ("a", "b"), ("ab",), ("a", ("b",)), [["a"], "b"], [["a", "b"]], "a:b",
    UUID(int=1), str(UUID(int=1)), Decimal("1"), Decimal("1.0"), NOON, NOON.replace(tzinfo=UTC),
    NOON.replace(tzinfo=ZONE), NOON.replace(tzinfo=ZoneInfo("Europe/Berlin")), NOON.replace(fold=1),
    NOON.date(), date(2024, 1, 2), NOON.time(), time(12, tzinfo=UTC), timedelta(1),
    timedelta(seconds=1), Color.RED, Color.BLUE, Level.LOW, Point(1, 2), (1, 2), Place(1, 2),
    Item(x=1), Item(x=2), Item(x=1, y=3), Other(x=1), noted("mine"), noted("yours"), Name("1"),
    SecretStr("1"), SecretStr("2"), PurePosixPath("1"), int, range(3), range(0, 3, 2),
    {"a": 1, "b": 2}, {"a": 2, "b": 1}, {"a": {"b": 1}}, float("inf"), float("nan"),
    Named("mine"), Named("yours"), 10**5000, -(10**5000),
]  # fmt: skip


def test_no_two_of_these_share_a_key() -> None:
    encoded = [canonical(each) for each in DISTINCT]
    assert len(set(encoded)) == len(DISTINCT)


scalars = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text(), st.binary(),
    st.uuids(), st.decimals(allow_nan=False), st.datetimes(), st.timedeltas(),
)  # fmt: skip
keyed = st.recursive(
    scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.lists(inner, max_size=4).map(tuple),
        st.dictionaries(st.text(max_size=3), inner, max_size=4),
        st.frozensets(scalars, max_size=4),
    ),
    max_leaves=12,
)


def plainly(value: object) -> object:
    """A value with its types beside it: equal exactly when the key has to be."""
    if isinstance(value, dict):
        return dict, frozenset((key, plainly(each)) for key, each in value.items())
    if isinstance(value, list | tuple):
        return type(value), tuple(map(plainly, value))
    if isinstance(value, frozenset):
        return frozenset, frozenset(map(plainly, value))
    if isinstance(value, float | Decimal | datetime):
        return type(value), repr(value)
    return type(value), value


@given(keyed, keyed)
def test_keys_are_equal_exactly_where_values_are(one: object, other: object) -> None:
    assert (canonical(one) == canonical(other)) == (plainly(one) == plainly(other))


@given(st.lists(keyed, max_size=5), st.lists(keyed, max_size=5))
def test_what_follows_is_never_taken_for_a_part(one: list[object], other: list[object]) -> None:
    together = [b"".join(map(canonical, each)) for each in (one, other)]
    same = [plainly(each) for each in one] == [plainly(each) for each in other]
    assert (together[0] == together[1]) == same


def test_order_of_a_dictionary_and_a_set_is_none() -> None:
    assert canonical({"a": 1, "b": 2}) == canonical({"b": 2, "a": 1})
    assert canonical({"x", "y", "z"}) == canonical({"z", "y", "x"})


def test_a_moment_is_the_same_however_its_offset_came() -> None:
    for text, zone in (("2024-01-01T12:00:00Z", UTC), ("2024-01-01T12:00:00+01:00", ZONE)):
        read = TypeAdapter(datetime).validate_python(text)
        assert canonical(read) == canonical(NOON.replace(tzinfo=zone))
        assert canonical(read.timetz()) == canonical(NOON.replace(tzinfo=zone).timetz())


def test_another_process_makes_the_same_keys() -> None:
    value = "{'a', 'b', 'c', None}"
    code = (
        "from forze.application.integrations.cached.canonical import canonical;"
        f"print(canonical({value}).hex())"
    )
    there = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONHASHSEED": "1", "PYTHONPATH": ":".join(sys.path)},
        capture_output=True,
        check=True,
        text=True,
    )
    assert there.stdout.strip() == canonical({"a", "b", "c", None}).hex()


def test_a_value_that_contains_itself_has_no_key() -> None:
    loop: list[object] = []
    loop.append(loop)
    with pytest.raises(Unkeyable):
        canonical(loop)


@pytest.mark.parametrize("value", [Owned(1), Whose(1)])
def test_what_has_more_than_its_built_in_type_holds_has_no_key(value: object) -> None:
    with pytest.raises(Unkeyable):
        canonical(value)


class Session:
    pass


def of(function: Any, hints: Mapping[str, Any] | None = None, **options: Any) -> Arguments:
    hints = function.__annotations__ if hints is None else hints
    return Arguments(function, "price", hints=hints, **options)


def digest(arguments: Arguments, *args: Any, **kwargs: Any) -> str:
    return arguments.digest(arguments.bind(args, kwargs), b"")


def price(product, currency="EUR", *, vat=True):  # type: ignore[no-untyped-def]
    """A function of three arguments."""


def test_however_a_call_is_written_it_is_one_key() -> None:
    arguments = of(price)
    assert len({
        digest(arguments, 1), digest(arguments, product=1), digest(arguments, 1, "EUR"),
        digest(arguments, currency="EUR", product=1), digest(arguments, 1, vat=True),
        digest(arguments, 1, "EUR", vat=True),
    }) == 1  # fmt: skip
    others = (digest(arguments, 2), digest(arguments, 1, "USD"), digest(arguments, 1, vat=False))
    assert len({digest(arguments, 1), *others}) == 4


def test_a_wrong_call_fails_as_the_call_would() -> None:
    arguments = of(price)
    for args, kwargs in (((), {}), ((1, "EUR", 3), {}), ((1,), {"product": 2}), ((1,), {"x": 2})):
        with pytest.raises(TypeError):
            arguments.bind(args, kwargs)


def test_any_number_of_arguments() -> None:
    def many(first: int, /, *rest: int, **more: int) -> None: ...

    arguments = of(many, {})
    keys = {
        digest(arguments, 1), digest(arguments, 1, 2), digest(arguments, 1, a=2),
        digest(arguments, 1, b=2), digest(arguments, 1, 2, a=2),
    }  # fmt: skip
    assert len(keys) == 5
    assert digest(arguments, 1, a=1, b=2) == digest(arguments, 1, b=2, a=1)


def test_what_cannot_count_is_refused_by_name() -> None:
    def load(product: int, session: Session) -> None: ...

    def method(self, product: int) -> None: ...  # type: ignore[no-untyped-def]

    def nested(sessions: dict[str, list[Session]] | None) -> None: ...

    for function, name in ((load, "session"), (method, "self"), (nested, "sessions")):
        hints = {
            "product": int,
            "session": Session,
            "sessions": dict[str, list[Session]] | None,
        }
        with pytest.raises(ConfigurationError, match=name):
            of(function, hints)
    with pytest.raises(ConfigurationError, match="sesion"):
        of(load, {}, ignore=("sesion",))
    with pytest.raises(ValidationError, match=r"'session'.*Session") as caught:
        digest(of(load, {}), 1, Session())
    assert caught.value.field == "session"


def test_what_is_ignored_does_not_count() -> None:
    def load(product: int, session: Session, ctx: ExecutionContext) -> None: ...

    hints = {"product": int, "session": Session, "ctx": ExecutionContext}
    for ignore in (("session",), (Session,), "session"):
        arguments = of(load, hints, ignore=ignore)
        assert arguments.ignored == {"session", "ctx"}
        assert digest(arguments, 1, Session(), object()) == digest(arguments, 1, None, None)
        assert arguments.lends()
    assert not of(load, {"ctx": ExecutionContext}).lends()


def test_a_key_of_ones_own() -> None:
    def load(product: Item, session: Session) -> None: ...

    hints = {"product": Item, "session": Session}
    for key in ("{product.x}", lambda product: product.x, lambda **given: given["product"].x):
        arguments = of(load, hints, key=key)
        first = digest(arguments, Item(x=1), Session())
        assert first == digest(arguments, Item(x=1, y=9), Session())
        assert first != digest(arguments, Item(x=2), Session())
    for wrong in ("{produkt}", lambda produkt: produkt):
        with pytest.raises(ConfigurationError, match="produkt"):
            of(load, hints, key=wrong)


def test_a_template_glues_nothing_together() -> None:
    def load(a: str, b: str) -> None: ...

    arguments = of(load, key="{a}:{b}")
    assert digest(arguments, "1:2", "3") != digest(arguments, "1", "2:3")


def test_tags() -> None:
    def load(product: Item, kind: Literal["a", "b"] = "a") -> None: ...

    tags = ["all", "kind:{kind}", lambda product: f"x:{product.x}", lambda kind: [kind, "all"]]
    arguments = of(load, {}, tags=tags)
    assert arguments.tags(arguments.bind((Item(x=1),), {})) == ("a", "all", "kind:a", "x:1")
    for wrong in ("{produkt}", lambda produkt: "x", 5):
        with pytest.raises(ConfigurationError):
            of(load, {}, tags=[wrong])
    bad = of(load, {}, tags=[lambda product: product.x])
    for made in ("", 5, [5], ["fine", ""]):
        with pytest.raises(ValidationError, match="tag"):
            bad.tags({"product": SimpleNamespace(x=made), "kind": "a"})
