"""The pointer's transitions, one by one, and what holds after any sequence of them."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forze.application.integrations.document import protocol
from forze.application.integrations.document.protocol import (
    COMMIT_MARGIN_MS,
    GENERATION_CHARS,
    INTENT_MS,
    LEASE_MS,
    RENEW_MS,
    SCHEMA_CHARS,
    Intent,
    Lease,
    Pointer,
    Read,
    Refresh,
    Value,
    lower,
    may_commit,
)

TAG = "generatnschema01"
OTHER_SCHEMA = "generatnschema02"
OTHER_GENERATION = "failoverschema01"
NOW = 1_000
LATER = 2_000

VALUE = Value(TAG, "7")
LEASE = Lease(TAG, "mine", LATER)
INTENT = Intent((("w1", LATER), ("w2", LATER + 1)))
REFRESHED = Value(TAG, "7", Refresh("mine", LATER))


def test_the_times_fit_each_other() -> None:
    assert RENEW_MS < LEASE_MS
    assert 0 < COMMIT_MARGIN_MS < INTENT_MS
    assert len(TAG) == GENERATION_CHARS + SCHEMA_CHARS


def test_prune_removes_what_has_lapsed_and_nothing_else() -> None:
    assert protocol.prune(None, NOW) is None
    assert protocol.prune(LEASE, LATER - 1) == LEASE
    assert protocol.prune(LEASE, LATER) is None
    assert protocol.prune(INTENT, LATER) == Intent((("w2", LATER + 1),))
    assert protocol.prune(INTENT, LATER + 1) is None
    assert protocol.prune(VALUE, 10**12) == VALUE
    assert protocol.prune(REFRESHED, LATER) == VALUE


@pytest.mark.parametrize(
    ("pointer", "tag", "after", "found"),
    [
        (None, TAG, Lease(TAG, "t", LATER), Read.LEASED),
        (VALUE, TAG, VALUE, Read.HIT),
        (REFRESHED, TAG, REFRESHED, Read.HIT),
        (LEASE, TAG, LEASE, Read.HELD),
        (INTENT, TAG, INTENT, Read.INTENT),
        (INTENT, OTHER_GENERATION, INTENT, Read.INTENT),
        (VALUE, OTHER_SCHEMA, Lease(OTHER_SCHEMA, "t", LATER), Read.LEASED),
        (VALUE, OTHER_GENERATION, Lease(OTHER_GENERATION, "t", LATER), Read.LEASED),
        (LEASE, OTHER_SCHEMA, Lease(OTHER_SCHEMA, "t", LATER), Read.LEASED),
        (Lease(TAG, "dead", NOW), TAG, Lease(TAG, "t", LATER), Read.LEASED),
        (Intent((("dead", NOW),)), TAG, Lease(TAG, "t", LATER), Read.LEASED),
    ],
)
def test_read(pointer: Pointer, tag: str, after: Pointer, found: Read) -> None:
    assert protocol.read(pointer, tag, "t", LATER, NOW) == (after, found)


@pytest.mark.parametrize("pointer", [None, VALUE, LEASE, INTENT, REFRESHED])
def test_a_read_without_a_token_changes_nothing(pointer: Pointer) -> None:
    for tag in (TAG, OTHER_SCHEMA):
        assert protocol.read(pointer, tag, None, LATER, NOW)[0] == pointer
    assert protocol.read(None, TAG, None, LATER, NOW)[1] is Read.ABSENT
    assert protocol.read(VALUE, OTHER_SCHEMA, None, LATER, NOW)[1] is Read.ABSENT


def test_fill_is_for_the_holder_alone() -> None:
    assert protocol.fill(LEASE, TAG, "mine", "8", NOW) == (Value(TAG, "8"), True)
    for pointer, tag, token, now in (
        (LEASE, TAG, "other", NOW),
        (LEASE, OTHER_SCHEMA, "mine", NOW),
        (LEASE, OTHER_GENERATION, "mine", NOW),
        (VALUE, TAG, "mine", NOW),
        (INTENT, TAG, "mine", NOW),
        (REFRESHED, TAG, "other", NOW),
        (None, TAG, "mine", NOW),
    ):
        assert protocol.fill(pointer, tag, token, "8", now) == (pointer, False)
    assert protocol.fill(LEASE, TAG, "mine", "8", LATER) == (None, False)


def test_a_refresh_never_lowers_the_version() -> None:
    assert protocol.fill(REFRESHED, TAG, "mine", "8", NOW) == (Value(TAG, "8"), True)
    assert protocol.fill(REFRESHED, TAG, "mine", "7", NOW) == (VALUE, True)
    assert protocol.fill(REFRESHED, TAG, "mine", "6", NOW) == (REFRESHED, False)
    assert protocol.fill(REFRESHED, TAG, "mine", "8", LATER) == (VALUE, False)


def test_one_reader_is_elected_and_hides_nothing() -> None:
    elected, ok = protocol.elect(VALUE, TAG, "mine", LATER, NOW)
    assert (elected, ok) == (REFRESHED, True)
    assert protocol.elect(elected, TAG, "other", LATER, NOW) == (elected, False)
    assert protocol.read(elected, TAG, "other", LATER, NOW) == (elected, Read.HIT)
    assert protocol.elect(elected, TAG, "other", LATER + 9, LATER)[1] is True
    for pointer in (None, LEASE, INTENT):
        assert protocol.elect(pointer, TAG, "mine", LATER, NOW) == (pointer, False)
    assert protocol.elect(VALUE, OTHER_SCHEMA, "mine", LATER, NOW) == (VALUE, False)


def test_renew_prolongs_the_holders_lease_alone() -> None:
    assert protocol.renew(LEASE, TAG, "mine", LATER + 9, NOW) == Lease(TAG, "mine", LATER + 9)
    for pointer, tag, token in (
        (LEASE, TAG, "other"),
        (LEASE, OTHER_SCHEMA, "mine"),
        (VALUE, TAG, "mine"),
        (INTENT, TAG, "mine"),
        (None, TAG, "mine"),
    ):
        assert protocol.renew(pointer, tag, token, LATER + 9, NOW) == pointer
    assert protocol.renew(LEASE, TAG, "mine", LATER + 9, LATER) is None, "lapsed is lapsed"


def test_renew_prolongs_the_electeds_refresh_alone() -> None:
    longer = Value(TAG, "7", Refresh("mine", LATER + 9))
    assert protocol.renew(REFRESHED, TAG, "mine", LATER + 9, NOW) == longer
    assert protocol.renew(REFRESHED, TAG, "other", LATER + 9, NOW) == REFRESHED
    assert protocol.renew(REFRESHED, OTHER_SCHEMA, "mine", LATER + 9, NOW) == REFRESHED
    assert protocol.renew(REFRESHED, TAG, "mine", LATER + 9, LATER) == VALUE, "lapsed is lapsed"


def test_give_back_drops_the_holders_own_alone() -> None:
    assert protocol.give_back(LEASE, TAG, "mine", NOW) is None
    assert protocol.give_back(REFRESHED, TAG, "mine", NOW) == VALUE
    for pointer, tag, token in (
        (LEASE, TAG, "other"),
        (LEASE, OTHER_SCHEMA, "mine"),
        (REFRESHED, TAG, "other"),
        (VALUE, TAG, "mine"),
        (INTENT, TAG, "mine"),
        (None, TAG, "mine"),
    ):
        assert protocol.give_back(pointer, tag, token, NOW) == pointer


@pytest.mark.parametrize("pointer", [None, VALUE, LEASE, REFRESHED])
def test_an_intent_destroys_what_was_there(pointer: Pointer) -> None:
    assert protocol.intend(pointer, "w", LATER, NOW) == Intent((("w", LATER),))


def test_an_intent_stands_beside_others_and_renews_itself() -> None:
    assert protocol.intend(INTENT, "w3", LATER, NOW) == Intent((*INTENT.ids, ("w3", LATER)))
    renewed = protocol.intend(INTENT, "w1", LATER + 9, NOW)
    assert renewed == Intent((("w2", LATER + 1), ("w1", LATER + 9)))
    assert protocol.intend(INTENT, "w3", LATER + 9, LATER + 1) == Intent((("w3", LATER + 9),))


def test_done_removes_its_own_id() -> None:
    one = protocol.done(INTENT, "w1", NOW)
    assert one == Intent((("w2", LATER + 1),))
    assert protocol.done(one, "w2", NOW) is None


@pytest.mark.parametrize("pointer", [None, VALUE, LEASE, REFRESHED])
def test_done_with_a_lost_id_invalidates(pointer: Pointer) -> None:
    assert protocol.done(pointer, "w", NOW) is None


def test_done_with_a_lost_id_leaves_other_writers() -> None:
    assert protocol.done(INTENT, "lost", NOW) == INTENT


def test_put_never_hides_a_write_in_flight() -> None:
    assert protocol.put(INTENT, TAG, "99", NOW) == (INTENT, False)
    assert protocol.put(INTENT, TAG, "99", LATER + 1) == (Value(TAG, "99"), True)


def test_put_never_lowers_a_number_of_its_generation() -> None:
    assert protocol.put(VALUE, TAG, "6", NOW) == (VALUE, False)
    assert protocol.put(VALUE, OTHER_SCHEMA, "6", NOW) == (VALUE, False)
    assert protocol.put(VALUE, OTHER_GENERATION, "6", NOW) == (Value(OTHER_GENERATION, "6"), True)
    for version in ("7", "8", "10", "a"):
        assert protocol.put(VALUE, TAG, version, NOW) == (Value(TAG, version), True)
    assert protocol.put(LEASE, TAG, "1", NOW) == (Value(TAG, "1"), True)
    assert protocol.put(None, TAG, "1", NOW) == (Value(TAG, "1"), True)


@given(st.integers(0, 10**30), st.integers(0, 10**30), st.integers(0, 3), st.integers(0, 3))
def test_versions_are_compared_as_numbers(one: int, other: int, pad: int, fill: int) -> None:
    assert lower("0" * pad + str(one), "0" * fill + str(other)) is (one < other)


@pytest.mark.parametrize(
    ("version", "other"), [("a", "b"), ("1", "b"), ("a", "1"), ("-1", "1"), ("٣", "9"), ("²", "9")]
)
def test_what_is_no_number_is_never_lower(version: str, other: str) -> None:
    assert lower(version, other) is False


def test_a_commit_is_sent_while_the_deadline_is_far() -> None:
    last = (INTENT_MS - COMMIT_MARGIN_MS) / 1000
    assert may_commit(100.0, 100.0)
    assert may_commit(100.0, 100.0 + last - 0.001)
    assert not may_commit(100.0, 100.0 + last)
    assert not may_commit(100.0, 1_000.0)


tags = st.sampled_from([TAG, OTHER_SCHEMA, OTHER_GENERATION])
tokens = st.sampled_from(["t1", "t2"])
writes = st.sampled_from(["w1", "w2"])
versions = st.sampled_from(["1", "2", "10", "v"])
times = st.integers(1, 6)

pointers: st.SearchStrategy[Pointer] = st.one_of(
    st.none(),
    st.builds(Value, tags, versions, st.one_of(st.none(), st.builds(Refresh, tokens, times))),
    st.builds(Lease, tags, tokens, times),
    st.lists(st.tuples(writes, times), min_size=1, unique_by=lambda each: each[0]).map(
        lambda ids: Intent(tuple(ids))
    ),
)

steps = st.one_of(
    st.tuples(st.just("read"), tags, tokens, times),
    st.tuples(st.just("fill"), tags, tokens, versions),
    st.tuples(st.just("renew"), tags, tokens, times),
    st.tuples(st.just("give_back"), tags, tokens),
    st.tuples(st.just("elect"), tags, tokens, times),
    st.tuples(st.just("intend"), writes, times),
    st.tuples(st.just("done"), writes),
    st.tuples(st.just("put"), tags, versions),
)


def live(pointer: Pointer, now: int) -> dict[str, int]:
    """The writes in flight."""
    pruned = protocol.prune(pointer, now)
    return dict(pruned.ids) if isinstance(pruned, Intent) else {}


def step_on(pointer: Pointer, step: tuple[Any, ...], now: int) -> tuple[Pointer, Any]:
    result = getattr(protocol, step[0])(pointer, *step[1:], now)
    return result if isinstance(result, tuple) else (result, None)


@given(pointers, steps, st.integers(0, 6))
def test_what_holds_after_every_step(pointer: Pointer, step: tuple[Any, ...], now: int) -> None:
    name, *args = step
    before, writers = protocol.prune(pointer, now), live(pointer, now)
    after, answer = step_on(pointer, step, now)

    # Only its own writer ends a write, and nothing but a write begins one.
    mine = args[0] if name in ("intend", "done") else None
    assert {w: d for w, d in live(after, now).items() if w != mine} == {
        w: d for w, d in writers.items() if w != mine
    }
    if writers.keys() - {mine} or (writers and name not in ("intend", "done")):
        assert isinstance(after, Intent)

    # A value comes only from the holder's fill, or from a direct put; nothing else makes one.
    if isinstance(after, Value) and (
        not isinstance(before, Value) or (before.tag, before.version) != (after.tag, after.version)
    ):
        assert (name == "fill" and answer is True) or (name == "put" and answer is True)
    if name == "fill" and answer:
        holds = (
            before == Lease(args[0], args[1], before.until)
            if isinstance(before, Lease)
            else isinstance(before, Value)
            and before.tag == args[0]
            and before.refresh is not None
            and before.refresh.token == args[1]
        )
        assert holds

    # A read of its own tag is never kept from a value, and leaves it as it is.
    if name == "read" and isinstance(before, Value) and before.tag == args[0]:
        assert (after, answer) == (before, Read.HIT)
    if name == "read" and answer is Read.HIT:
        assert isinstance(before, Value)

    # After an intent or a done, no lease and no value is left.
    if name in ("intend", "done"):
        assert after is None or isinstance(after, Intent)

    # A refusal changes nothing but prunes.
    if answer is False:
        assert after == before


@given(pointers, st.lists(st.tuples(steps, st.integers(0, 1)), max_size=8), tags, tokens)
def test_no_fill_of_a_lease_from_before_a_write(
    pointer: Pointer, interleaved: list[tuple[tuple[Any, ...], int]], tag: str, token: str
) -> None:
    """Whatever happens between: a lease taken before an intent stores nothing after it."""
    mine = f"{token} of the slow reader"
    leased, found = protocol.read(pointer, tag, mine, 100, 0)
    if found is not Read.LEASED:
        return
    current: Pointer = protocol.intend(leased, "the write", 100, 0)
    now = 0
    for step, passed in interleaved:
        now += passed
        current, _ = step_on(current, step, now)
    current = protocol.done(current, "the write", now)
    for step, passed in interleaved:
        now += passed
        current, _ = step_on(current, step, now)
    assert protocol.fill(current, tag, mine, "1", now)[1] is False


@given(pointers, steps, st.integers(0, 6))
def test_repeating_a_step_whose_answer_was_lost_changes_nothing(
    pointer: Pointer, step: tuple[Any, ...], now: int
) -> None:
    once, _ = step_on(pointer, step, now)
    twice, _ = step_on(once, step, now)
    assert protocol.prune(twice, now) == protocol.prune(once, now)
