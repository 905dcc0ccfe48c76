"""No two names spell one key, and keys stand where the documentation says."""

from __future__ import annotations

import enum
import hashlib
import itertools
import json
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastapi_rc.errors import InvalidName
from fastapi_rc.keys import build_cache_key
from forze.errors import ValidationError

SOME_UUID = UUID("12345678-1234-5678-1234-567812345678")
HEX = "21501dbaf73f"


class Colour(enum.StrEnum):
    RED = "red"


@pytest.mark.parametrize(
    ("arguments", "key"),
    [
        (("users", "123"), "cache:v1:users:123"),
        (("users", "123", {"a": 2, "b": 1}), "cache:v1:users:123:21501dbaf73f"),
        (("users", "123", {"b": 1, "a": 2}), "cache:v1:users:123:21501dbaf73f"),
        (("users", "123", None), "cache:v1:users:123"),
        (("users", "123", {}), "cache:v1:users:123"),
        (("users", "123", None, "myapp", "v2"), "myapp:v2:users:123"),
        (("users", 123), "cache:v1:users:123"),
        (("users", SOME_UUID), "cache:v1:users:12345678-1234-5678-1234-567812345678"),
        (("users", Colour.RED), "cache:v1:users:red"),
        (("users", "a@b.c/ä*?[x]"), "cache:v1:users:a@b.c/ä*?[x]"),
        (("users", "1:posts:2"), "cache:v1:users:1:posts:2"),
        (("users", ""), "cache:v1:users:"),
        (("a:b", "c"), "cache:v1:a%3Ab:c"),
        (("b", "c", None, "p:q", "v:1"), "p%3Aq:v%3A1:b:c"),
        (("50%", "c"), "cache:v1:50%25:c"),
    ],
)
def test_keys_are_spelled_as_documented(arguments: tuple[Any, ...], key: str) -> None:
    assert build_cache_key(*arguments) == key


def test_an_identifier_cannot_spell_the_key_of_params() -> None:
    params = build_cache_key("users", "123", {"a": 2, "b": 1})
    look_alike = build_cache_key("users", f"123:{HEX}")
    assert look_alike != params
    assert look_alike.startswith("cache:v1:users:123:")  # the pattern "123:*" reaches it
    assert build_cache_key("users", f"123:{HEX}%") not in (look_alike, params)


@pytest.mark.parametrize("identifier", [None, True, 1.5, b"1", ("1",), object()])
def test_other_identifiers_are_type_errors(identifier: Any) -> None:
    with pytest.raises(TypeError, match="identifier") as caught:
        build_cache_key("users", identifier)
    assert isinstance(caught.value, ValidationError)
    assert "text, whole numbers or UUIDs (enum members of these)" in str(caught.value)


@pytest.mark.parametrize(
    "params",
    [{"a": {1}}, {"a": SOME_UUID}, {1: "a"}, {"a": {None: 1}}, {"a": [{2: 3}]}, "text", [("a", 1)]],
)
def test_params_that_json_cannot_tell_apart_are_refused(params: Any) -> None:
    with pytest.raises(InvalidName, match="params"):
        build_cache_key("users", "123", params)
    selfish: dict[str, Any] = {}
    selfish["me"] = selfish
    with pytest.raises(InvalidName, match="params"):
        build_cache_key("users", "123", selfish)


@pytest.mark.parametrize(
    "parts",
    [("", "v1", "n"), ("p", "", "n"), ("p", "v1", ""), ("p", "v1", 5), ("\ud800", "v", "n")],
)
def test_parts_that_name_nothing_are_refused(parts: tuple[Any, ...]) -> None:
    prefix, version, namespace = parts
    with pytest.raises(InvalidName):
        build_cache_key(namespace, "1", prefix=prefix, version=version)


def test_half_a_surrogate_pair_is_refused_before_anything_is_sent() -> None:
    with pytest.raises(InvalidName, match="Unicode"):
        build_cache_key("users", "\ud800")


def test_twenty_thousand_names_have_as_many_keys() -> None:
    pieces = ["", ":", "%", "%3A", "%25", "*", "a", f":{HEX}", HEX, "ä"]
    parts = ["a", "a:", ":a", "a%3A", "%", f"a:{HEX}"]
    identifiers = sorted({"".join(each) for each in itertools.product(pieces, repeat=2)})
    params: list[Any] = [None, {"a": 2, "b": 1}, {"a": 1}, {"a": "1"}, {"a": 1.0}, {"a": True}]
    names = [*itertools.product(parts, identifiers, params, parts[:3], parts[2:5])]
    assert len({build_cache_key(*name) for name in names}) == len(names) > 20_000


awkward = st.text(st.sampled_from(":%a0*") | st.characters(codec="utf-8"), max_size=20)
tails = st.builds(lambda tail, more: f":{tail}{more}", st.from_regex(r"[0-9a-f]{12}\Z"), awkward)


@given(st.tuples(awkward, awkward | tails), st.tuples(awkward, awkward | tails))
def test_different_identifiers_are_different_keys(one: Any, other: Any) -> None:
    first, second = "".join(one), "".join(other)
    assert (build_cache_key("n", first) == build_cache_key("n", second)) == (first == second)
    params = {"x": second}
    digest = hashlib.sha256(json.dumps(params, sort_keys=True).encode()).hexdigest()[:12]
    variant = build_cache_key("n", second, params)
    assert variant.endswith(f":{digest}")
    assert build_cache_key("n", first) != variant
    assert build_cache_key("n", f"{second}:{digest}") != variant
