"""The keys of counters and snapshots: no two things spell one, and one call's stand in one slot."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forze.application.contracts.tenancy import bind_tenant
from forze.application.integrations.keys import encode_part
from forze_memory.addresses import ResourceAddresses
from forze_memory.config import MemoryResourceConfig
from forze_redis import RedisClient, RedisCounterConfig
from forze_redis.keys import ResourceKeys

names = st.one_of(
    st.text(min_size=1, max_size=8),
    st.text("ab:!/%{}.~é", min_size=1, max_size=8),
    st.sampled_from(["writers", "!writers", "r!writers", "r!0123456789abcdef", "a!b"]),
)
things = st.tuples(names, st.none() | names)
"""A suffix or run, and a part of it that only we name: an operation, writers, a token."""


class Clustered(RedisClient):
    """A client of a cluster, as far as keys go."""

    def __init__(self) -> None:
        super().__init__()
        self.clustered = True


def key_of(keys: ResourceKeys | ResourceAddresses, name: str, part: str | None) -> str:
    address = keys.of(encode_part(name))
    return address if part is None else f"{address}!{encode_part(part)}"


def slot_tag(key: str) -> str:
    """What a cluster hashes."""
    start = key.find("{")
    end = key.find("}", start + 1)
    return key[start + 1 : end] if start >= 0 and end > start + 1 else key


CONFIG = RedisCounterConfig(namespace="app:seq", tenant_aware=True)
MAKERS: dict[str, Callable[[], ResourceKeys | ResourceAddresses]] = {
    "one server": lambda: ResourceKeys(RedisClient(), CONFIG, "counter"),
    "a cluster": lambda: ResourceKeys(Clustered(), CONFIG, "counter"),
    "memory": lambda: ResourceAddresses(MemoryResourceConfig(tenant_aware=True), "app", "counter"),
}


@pytest.mark.parametrize("where", MAKERS)
@given(one=st.tuples(names, things), other=st.tuples(names, things))
@settings(max_examples=2_000, deadline=None)
def test_no_two_things_share_a_key(
    where: str, one: tuple[str, tuple[str, str | None]], other: tuple[str, tuple[str, str | None]]
) -> None:
    keys = MAKERS[where]()
    spelled = []
    for tenant, thing in (one, other):
        with bind_tenant(tenant):
            spelled.append(key_of(keys, *thing))
    assert (spelled[0] == spelled[1]) is (one == other)


@given(tenant=names, name=names, part=names)
@settings(max_examples=500, deadline=None)
def test_the_parts_of_a_thing_stand_in_its_slot(tenant: str, name: str, part: str) -> None:
    keys = MAKERS["a cluster"]()
    with bind_tenant(tenant):
        assert (
            slot_tag(key_of(keys, name, part))
            == slot_tag(key_of(keys, name, None))
            == (encode_part(name))
        )
        alone = keys.of()
        assert slot_tag(f"{alone}!{encode_part(part)}") == slot_tag(alone) == encode_part(tenant)
