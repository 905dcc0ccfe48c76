"""No two names spell one Redis key: not across tenants, not a key and what is kept beside another.

Every key of every resource is made by the code that makes it in earnest, over a client that
only says whether it talks to a cluster.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple, cast

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from forze.application.contracts.tenancy import bind_principal, bind_tenant
from forze.application.integrations.idempotency.names import record_parts
from forze.application.integrations.keys import encode_part
from forze.application.integrations.locks.names import BESIDE, encode_name
from forze_redis import (
    RedisCounterConfig,
    RedisDistributedLockConfig,
    RedisIdempotencyConfig,
    RedisSearchSnapshotConfig,
)
from forze_redis.client import RedisClient
from forze_redis.config import ResourceConfig
from forze_redis.keys import BODY, POINTER, CacheKeys, ResourceKeys, plain_of
from forze_redis.routed.pointers import at, parts

LONGEST = 200
TOKENS = (
    *("a", "b", "A", "0", ":", "/", "%", "!", "{", "}", " ", ".", "~", "-", "_", "*", "[", "\\"),
    *("%2F", "%3A", "%25", "2F", "fence", ":fence", ":queue", ":readers", ":turns", "tokens"),
    *("cache/pointer/", "writers", "!writers", "changed", "\0", "\n", "é", "é", "\U0001f600"),
    *("\ud83d", "\ude00", "f" * 64, "x" * 130, "default", "none"),
)


class Names(NamedTuple):
    """What a caller may choose."""

    tenant: str
    principal: str | None
    operation: str
    key: str
    other: str


@dataclass
class OnlyShape:
    """As much of a client as keys need."""

    clustered: bool


Spelling = Callable[[RedisClient, str, Names], Iterator[tuple[object, str]]]
"""Each key that these names lead to, with what it stands for."""


def caches(client: RedisClient, namespace: str, names: Names) -> Iterator[tuple[object, str]]:
    keys = CacheKeys(client, namespace, tenant_aware=True, resource="cache")
    pointer, what = keys.pointer(names.key), (names.tenant, names.key)
    yield ("pointer", what), pointer
    yield ("plain", what), plain_of(pointer)
    version = encode_part(names.other, "version")
    yield ("body", what, names.other), f"{pointer.replace(POINTER, BODY, 1)}/{version}"


def counters(client: RedisClient, namespace: str, names: Names) -> Iterator[tuple[object, str]]:
    keys = _of(client, RedisCounterConfig(namespace=namespace, tenant_aware=True))
    yield ("counter", names.tenant), keys.of()
    yield ("counter", names.tenant, names.key), keys.of(encode_part(names.key, "suffix"))
    record = f"!{encode_part(names.other, 'operation_id')}"
    yield ("operation", names.tenant, names.other), keys.of() + record
    one = keys.of(encode_part(names.key, "suffix"))
    yield ("operation", names.tenant, names.key, names.other), one + record


def records(client: RedisClient, namespace: str, names: Names) -> Iterator[tuple[object, str]]:
    keys = _of(client, RedisIdempotencyConfig(namespace=namespace, tenant_aware=True))
    with ExitStack() as bound:
        if names.principal is not None:
            bound.enter_context(bind_principal(names.principal))
        made = keys.of(*record_parts(names.operation, names.key))
    yield ("record", *names[:4]), made


def runs(client: RedisClient, namespace: str, names: Names) -> Iterator[tuple[object, str]]:
    keys = _of(client, RedisSearchSnapshotConfig(namespace=namespace, tenant_aware=True))
    what, run = (names.tenant, names.key), keys.of(encode_part(names.key, "run_id"))
    yield ("run", what), run
    yield ("writers", what), f"{run}!writers"
    yield ("part", what), f"{run}!{'0' * 16}"


def locks(client: RedisClient, namespace: str, names: Names) -> Iterator[tuple[object, str]]:
    keys = _of(client, RedisDistributedLockConfig(namespace=namespace, tenant_aware=True))
    what, lock = (names.tenant, names.key), keys.of(encode_name(names.key))
    yield ("lock", what), lock
    for beside in BESIDE:
        yield (beside, what), f"{lock}:{beside}"


def _of(client: RedisClient, config: ResourceConfig) -> ResourceKeys:
    return ResourceKeys(client, config, "resource")


EVERY: tuple[Spelling, ...] = (caches, counters, records, runs, locks)


def spelled(
    spelling: Spelling, clustered: bool, namespace: str, names: Names
) -> list[tuple[object, str]]:
    client = cast(RedisClient, OnlyShape(clustered))
    with bind_tenant(names.tenant):
        return [((namespace, what), key) for what, key in spelling(client, namespace, names)]


@pytest.mark.parametrize(("clustered", "many"), [(False, 100_000), (True, 20_000)])
@pytest.mark.parametrize("spelling", EVERY)
def test_a_hundred_thousand_names(spelling: Spelling, clustered: bool, many: int) -> None:
    """P9: names made of what could be mistaken for something else; every key is theirs alone."""
    stands_for: dict[str, object] = {}
    for namespace, names in chosen(100_000)[:many]:
        for what, key in spelled(spelling, clustered, namespace, names):
            assert stands_for.setdefault(key, what) == what
    assert len(stands_for) > 0.99 * many


@cache
def chosen(many: int) -> list[tuple[str, Names]]:
    """Namespaces and names, the same for every resource."""
    dice = random.Random(20_260)

    def text() -> str:
        return "".join(dice.choices(TOKENS, k=dice.randint(1, 3)))[:LONGEST]

    return [
        (
            dice.choice(("app", "app:x", "a/b")),
            Names(text(), dice.choice((None, text())), text(), text(), text()),
        )
        for _ in range(many)
    ]


text = st.text(min_size=1, max_size=12) | st.lists(
    st.sampled_from(TOKENS), min_size=1, max_size=3
).map(lambda tokens: "".join(tokens)[:LONGEST])
any_names = st.builds(Names, text, st.none() | text, text, text, text)


@pytest.mark.parametrize("spelling", EVERY)
@given(
    one=any_names, other=any_names, same=st.sets(st.sampled_from(range(5))), cluster=st.booleans()
)
@settings(max_examples=150, deadline=None)
def test_two_names_share_no_key(
    spelling: Spelling, one: Names, other: Names, same: set[int], cluster: bool
) -> None:
    """P9: names that differ in any part."""
    pairs = enumerate(zip(one, other, strict=True))
    mixed: Any = (a if place in same else b for place, (a, b) in pairs)
    other = Names(*mixed)
    assume(one != other)
    first = {key: what for what, key in spelled(spelling, cluster, "app", one)}
    for what, key in spelled(spelling, cluster, "app", other):
        assert first.get(key, what) == what


@pytest.mark.parametrize("spelling", EVERY)
def test_what_belongs_together_shares_a_slot(spelling: Spelling) -> None:
    """On a cluster: the one hash tag of a key and of what is kept beside it."""
    names = Names("t{1}", "p", "op", "k:fence}", "o")
    tags = {
        key[key.index("{") + 1 : key.index("}")]
        for what, key in spelled(spelling, True, "app", names)
        if names.key in repr(what)
    }
    assert len(tags) == 1


@given(route=text, key=text)
def test_an_address_leads_back_to_its_route(route: str, key: str) -> None:
    """P9: whatever a route is called."""
    assert parts(at(route, encode_part(key))) == (route, encode_part(key))


def test_a_namespace_is_not_another_ones_beginning() -> None:
    """P9: one resource under ``app``, another under ``app/x`` or ``app:x``."""
    stands_for: dict[str, Any] = {}
    names = Names("x", "x", "x", "x", "x")
    for namespace in ("app", "app/x", "app:x", "app%2Fx", "app/x/x", "x", "app!x"):
        for what, key in spelled(counters, False, namespace, names):
            assert stands_for.setdefault(key, what) == what
