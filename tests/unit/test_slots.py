"""Slots: the server's own arithmetic, and the first key wherever a command has it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from redis.crc import key_slot

from forze_redis.keys import CacheKeys, plain_of
from forze_redis.wire.scripts import pack
from forze_redis.wire.slots import epoch_of, own_row, ranges_of, slot_of, slot_of_key

SHA = "a" * 40
FOO = 12182
"""The slot of ``foo``, by the specification's own table."""


@given(st.binary(max_size=12) | st.text("ab{}", max_size=12).map(str.encode))
def test_a_slot_is_what_the_driver_says(key: bytes) -> None:
    assert slot_of_key(key) == key_slot(key)


def test_the_example_of_the_specification() -> None:
    assert slot_of_key(b"123456789") == 0x31C3
    assert slot_of_key(b"foo") == FOO


@pytest.mark.parametrize(
    "command",
    [
        ("GET", "foo"),
        ("get", "foo"),
        ("SPUBLISH", "foo", "message"),
        ("SSUBSCRIBE", "foo"),
        ("MGET", "foo", "{foo}2"),
        ("EVALSHA", SHA, 1, "foo", "x"),
        ("EVALSHA", SHA, 12, "foo", "x"),
        ("EVAL", "return 1", 1, "foo"),
        ("EVAL", "x" * 10_000, 1, "foo"),
        ("FCALL", "name", 1, "foo"),
        ("ZUNION", 2, "foo", "{foo}2"),
        ("OBJECT", "ENCODING", "foo"),
        ("MEMORY", "USAGE", "foo"),
        ("BITOP", "AND", "foo", "{foo}2"),
        ("XREAD", "COUNT", 2, "streams", "foo", "0"),
        ("XREADGROUP", "GROUP", "g", "c", "STREAMS", "foo", ">"),
        ("SET", "foo", b"\r\n$3\r\nbar\r\n" * 100),
    ],
)
def test_the_first_key_decides(command: tuple[str | int | bytes, ...]) -> None:
    assert slot_of(pack(*command)) == FOO


@pytest.mark.parametrize(
    "command",
    [
        ("PING",),
        ("ping",),
        ("INFO", "replication"),
        ("EVALSHA", SHA, 0),
        ("EVALSHA", SHA, 0, "no key"),
        ("EVAL", "return 1", 0, "no key"),
        ("EVAL", "return 1"),
        ("SCRIPT", "LOAD", "return 1"),
        ("XREAD", "COUNT", 1),
        ("MEMORY", "DOCTOR"),
        ("PUBLISH", "foo", "message"),
    ],
)
def test_without_a_key_any_node_will_do(command: tuple[str | int, ...]) -> None:
    assert slot_of(pack(*command)) is None


class Clustered:
    """Of a client, what makes keys."""

    clustered = True


@given(st.text(min_size=1, max_size=20).filter(lambda text: text.isprintable()))
def test_everything_of_one_key_is_in_one_slot(key: str) -> None:
    """The pointer, the body that scripts derive from it, and the plain value beside it."""
    keys = CacheKeys(Clustered(), "app:{odd}", tenant_aware=False, resource="cache")  # type: ignore[arg-type]
    pointer = keys.pointer(key)
    slash = pointer.index("/")
    body = f"{pointer[: slash + 1]}cache/body/{pointer[slash + 15 :]}/17"
    assert pointer.startswith("app:%7Bodd%7D/cache/pointer/{")
    assert len({slot_of_key(each.encode()) for each in (pointer, body, plain_of(pointer))}) == 1


def test_keys_stand_in_many_slots() -> None:
    keys = CacheKeys(Clustered(), "app", tenant_aware=False, resource="cache")  # type: ignore[arg-type]
    assert len({slot_of_key(keys.pointer(str(n)).encode()) for n in range(1000)}) > 900


def test_a_node_that_does_not_know_its_name_is_where_it_was_asked() -> None:
    told = [
        [0, 99, [b"10.0.0.1", 7000, b"id", []], [b"10.0.0.2", 7001, b"id", []]],
        [100, 199, [None, 7001, b"id"]],
        [200, 16383, [b"", 7002, b"id"]],
    ]
    assert ranges_of(told, "asked") == (
        (0, 99, "10.0.0.1", 7000),
        (100, 199, "asked", 7001),
        (200, 16383, "asked", 7002),
    )
    with pytest.raises(ValueError, match="CLUSTER SLOTS"):
        ranges_of([b"OK"], "asked")


def test_a_views_epoch_and_a_nodes_own_row() -> None:
    assert epoch_of(b"cluster_state:ok\r\ncluster_current_epoch:17\r\n") == 17
    assert epoch_of(None) == -1
    table = (
        b"aa 10.0.0.1:1@2 master - 0 0 3 connected 0-99\n"
        b"bb 10.0.0.2:1@2 myself,master - 0 0 4 connected 100-199 [150->-aa]\n"
    )
    assert own_row(table) == "bb 4 100-199 [150->-aa]"
