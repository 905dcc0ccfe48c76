"""Entries that are refreshed early and entries that slide, seen through every ``PointerCache``."""

from __future__ import annotations

import asyncio
from datetime import timedelta

from forze.application.contracts.cache import Aging, Fill, Miss, PointerCache
from forze.application.integrations.document.codec import seal
from forze.application.integrations.document.protocol import LEASE_MS
from forze.testing.batteries.legs import CACHE, EAGER_CACHE, SLIDING_CACHE, CacheLeg

LIFE = timedelta(seconds=60)
LIFE_MS = 60_000
MARGIN = timedelta(milliseconds=500)
"""Further from a deadline than a slow machine is late."""

LEASE = timedelta(milliseconds=LEASE_MS)
PLAIN = b'{"name":"plain"}'
BODY = seal(PLAIN, 30)
NEW = seal(b'{"name":"new"}', 30)

assert SLIDING_CACHE.sliding_ttl is not None
WINDOW = SLIDING_CACHE.sliding_ttl
WINDOW_MS = WINDOW // timedelta(milliseconds=1)


def _eager(leg: CacheLeg, schema: str = "schema01") -> PointerCache:
    return leg.ctx.cache(EAGER_CACHE).pointers(schema)


def _elsewhere(leg: CacheLeg, schema: str = "schema01") -> PointerCache:
    return leg.other.cache(EAGER_CACHE).pointers(schema)


def _sliding(leg: CacheLeg) -> PointerCache:
    return leg.ctx.cache(SLIDING_CACHE).pointers("schema01")


async def _filled(
    pointers: PointerCache, key: str = "k", body: bytes | None = None, *, window_ms: int = 0
) -> str:
    """The address of an entry stored as version 5; what slides is in no envelope."""
    body = body or (PLAIN if window_ms else BODY)
    address, token = pointers.address(key), pointers.token()
    assert await pointers.read(address, token) is Miss.LEASED
    fill = Fill(address, token, 5, body, LIFE_MS, window_ms)
    assert await pointers.fill([fill]) == [True]
    return address


async def _elected(pointers: PointerCache, address: str) -> str:
    token = pointers.token()
    assert await pointers.elect(address, token)
    return token


async def _found(pointers: PointerCache, address: str) -> bytes | Aging | Miss:
    return await pointers.read(address, pointers.token())


class RefreshBehaviour:
    """One reader at a time refreshes; nobody is kept from the value meanwhile."""

    async def test_a_hit_tells_how_long_it_will_live(self, cache_leg: CacheLeg) -> None:
        eager = _eager(cache_leg)
        address = await _filled(eager)
        await cache_leg.pass_time(LIFE / 2)
        found = await _found(eager, address)
        assert isinstance(found, Aging)
        assert found.body == BODY
        assert LIFE_MS / 2 - 500 < found.remaining_ms <= LIFE_MS / 2

    async def test_what_has_no_envelope_is_just_a_body(self, cache_leg: CacheLeg) -> None:
        eager = _eager(cache_leg)
        assert await _found(eager, await _filled(eager, body=PLAIN)) == PLAIN

    async def test_a_reader_who_does_not_refresh_gets_what_is_stored(
        self, cache_leg: CacheLeg
    ) -> None:
        plain, eager = cache_leg.ctx.cache(CACHE).pointers("schema01"), _eager(cache_leg)
        address = await _filled(eager)
        assert plain.address("k") == address
        assert await _found(plain, address) == BODY
        assert await plain.read_many([address], plain.token()) == [BODY]
        assert isinstance(await _found(eager, await _filled(plain, "other")), Aging)

    async def test_a_direct_reader_gets_the_value(self, cache_leg: CacheLeg) -> None:
        eager, caches = _eager(cache_leg), (EAGER_CACHE, CACHE)
        address = await _filled(eager)
        for spec in caches:
            cache = cache_leg.other.cache(spec)
            assert await cache.get("k") == {"name": "plain"}
            assert await cache.get_many(["k"]) == ({"k": {"name": "plain"}}, [])
        await _elected(eager, address)
        assert await cache_leg.ctx.cache(EAGER_CACHE).get("k") == {"name": "plain"}

    async def test_many_are_answered_each_by_its_own(self, cache_leg: CacheLeg) -> None:
        eager = _eager(cache_leg)
        old, bare = await _filled(eager, "old"), await _filled(eager, "bare", PLAIN)
        taken = await _filled(eager, "taken")
        await _elected(eager, taken)
        asked = [old, bare, taken, eager.address("none")]
        first, *rest = await eager.read_many(asked, eager.token())
        assert isinstance(first, Aging)
        assert first.body == BODY
        assert rest == [PLAIN, BODY, Miss.LEASED]

    async def test_one_is_elected_and_everyone_hits(self, cache_leg: CacheLeg) -> None:
        both = (_eager(cache_leg), _elsewhere(cache_leg))
        address = await _filled(both[0])
        won = await asyncio.gather(
            *(each.elect(address, each.token()) for _ in range(20) for each in both)
        )
        assert won.count(True) == 1
        for each in both:
            assert await _found(each, address) == BODY, "and is not asked to refresh it"
            assert await each.read_large(address) == BODY

    async def test_a_refresh_replaces_the_value(self, cache_leg: CacheLeg) -> None:
        eager, elsewhere = _eager(cache_leg), _elsewhere(cache_leg)
        address = await _filled(eager)
        token = await _elected(eager, address)
        late = elsewhere.token()
        assert await elsewhere.fill([Fill(address, late, 6, NEW, LIFE_MS)]) == [False]
        await cache_leg.pass_time(LEASE / 2)
        assert await eager.fill([Fill(address, token, 6, NEW, 2 * LIFE_MS)]) == [True]
        assert await eager.fill([Fill(address, token, 7, BODY, LIFE_MS)]) == [False], "once"
        found = await _found(elsewhere, address)
        assert isinstance(found, Aging)
        assert found.body == NEW
        assert found.remaining_ms > LIFE_MS, "it has a life of its own"

    async def test_a_refresh_may_find_the_same_version(self, cache_leg: CacheLeg) -> None:
        eager = _eager(cache_leg)
        address = await _filled(eager)
        await cache_leg.pass_time(LIFE - LEASE / 2)
        token = await _elected(eager, address)
        assert await eager.fill([Fill(address, token, 5, NEW, LIFE_MS)]) == [True]
        await cache_leg.pass_time(LEASE)
        found = await _found(eager, address)
        assert isinstance(found, Aging)
        assert found.body == NEW

    async def test_a_refresh_never_lowers_the_version(self, cache_leg: CacheLeg) -> None:
        eager = _eager(cache_leg)
        address = await _filled(eager)
        token = await _elected(eager, address)
        assert await eager.fill([Fill(address, token, 4, NEW, LIFE_MS)]) == [False]
        assert await eager.fill([Fill(address, token, 10, NEW, LIFE_MS)]) == [True]

    async def test_a_refresh_of_any_size(self, cache_leg: CacheLeg) -> None:
        eager, elsewhere = _eager(cache_leg), _elsewhere(cache_leg)
        address, large = await _filled(eager), seal(b"x" * 500_000, 30)
        token, late = await _elected(eager, address), elsewhere.token()
        assert await elsewhere.fill([Fill(address, late, 6, large, LIFE_MS)]) == [False]
        older = Fill(address, token, 4, large, LIFE_MS)
        assert await eager.fill([older]) == [False]
        assert await eager.fill([older._replace(version=6)]) == [True]
        assert await eager.read_large(address) == large
        token = await _elected(eager, address)
        assert await eager.fill([Fill(address, token, 7, NEW, LIFE_MS)]) == [True]
        assert await eager.read_large(address) == NEW

    async def test_only_a_current_value_can_be_refreshed(self, cache_leg: CacheLeg) -> None:
        eager, new = _eager(cache_leg), _elsewhere(cache_leg, "schema02")
        address, other = eager.address("other"), await _filled(eager)
        assert not await eager.elect(address, eager.token())
        assert await _found(eager, address) is Miss.LEASED
        assert not await eager.elect(address, eager.token())
        await eager.intend([address], "w1")
        assert not await eager.elect(address, eager.token())
        assert await _found(eager, address) is Miss.INTENT
        assert not await new.elect(other, new.token())

    async def test_a_write_destroys_the_refresh(self, cache_leg: CacheLeg) -> None:
        eager, elsewhere = _eager(cache_leg), _elsewhere(cache_leg)
        for write in (elsewhere.intend, elsewhere.done):
            address = await _filled(eager)
            token = await _elected(eager, address)
            fill = Fill(address, token, 6, NEW, LIFE_MS)
            await write([address], "w1")
            assert await eager.fill([fill]) == [False]
            await elsewhere.done([address], "w1")
            eager.renew([address], token)
            assert await eager.fill([fill]) == [False]

    async def test_direct_changes_destroy_the_refresh(self, cache_leg: CacheLeg) -> None:
        eager, cache = _eager(cache_leg), cache_leg.other.cache(EAGER_CACHE)
        address = eager.address("k")
        for change in (
            lambda: cache.set("k", "direct"),
            lambda: cache.set_versioned("k", "9", "direct"),
            lambda: cache.invalidate("k"),
            lambda: cache.delete("k", hard=False),
        ):
            await cache.invalidate("k")
            token = await _elected(eager, await _filled(eager))
            await change()
            assert await eager.fill([Fill(address, token, 10, NEW, LIFE_MS)]) == [False]
            assert await cache.get("k") in ("direct", None)
        token = await _elected(eager, await _filled(eager))
        assert not await cache.set_versioned("k", "4", "lower")
        assert await eager.fill([Fill(address, token, 6, NEW, LIFE_MS)]) == [True]

    async def test_an_abandoned_refresh_lapses(self, cache_leg: CacheLeg) -> None:
        eager, elsewhere = _eager(cache_leg), _elsewhere(cache_leg)
        address = await _filled(eager)
        token = await _elected(eager, address)
        await cache_leg.pass_time(LEASE - MARGIN)
        assert not await elsewhere.elect(address, elsewhere.token())
        await cache_leg.pass_time(2 * MARGIN)
        assert isinstance(await _found(elsewhere, address), Aging)
        assert await eager.fill([Fill(address, token, 6, NEW, LIFE_MS)]) == [False]
        assert await elsewhere.elect(address, elsewhere.token())

    async def test_a_renewed_refresh_lives_on(self, cache_leg: CacheLeg) -> None:
        eager, elsewhere = _eager(cache_leg), _elsewhere(cache_leg)
        address = await _filled(eager)
        token = await _elected(eager, address)
        await cache_leg.pass_time(LEASE - MARGIN)
        eager.renew([address], token)
        elsewhere.renew([address], elsewhere.token())
        assert await _found(eager, address) == BODY
        await cache_leg.pass_time(LEASE - MARGIN)
        assert await _found(elsewhere, address) == BODY
        assert await eager.fill([Fill(address, token, 6, NEW, LIFE_MS)]) == [True]

    async def test_a_refresh_given_back_leaves_the_value(self, cache_leg: CacheLeg) -> None:
        eager = _eager(cache_leg)
        address = await _filled(eager)
        token = await _elected(eager, address)
        await cache_leg.pass_time(LEASE / 2)
        eager.give_back([address], eager.token())
        assert await _found(eager, address) == BODY, "not the elected's"
        eager.give_back([address], token)
        found = await _found(eager, address)
        assert isinstance(found, Aging)
        assert found.remaining_ms <= LIFE_MS - LEASE_MS / 2, "it won no time"
        assert await eager.fill([Fill(address, token, 6, NEW, LIFE_MS)]) == [False]

    async def test_a_value_ends_in_its_time_refreshing_or_not(self, cache_leg: CacheLeg) -> None:
        eager = _eager(cache_leg)
        address = await _filled(eager)
        await cache_leg.pass_time(LIFE - LEASE / 2)
        token = await _elected(eager, address)
        await cache_leg.pass_time(LEASE / 2 + MARGIN)
        assert await _found(eager, address) is Miss.LEASED
        assert await eager.fill([Fill(address, token, 6, NEW, LIFE_MS)]) == [False]


class SlidingBehaviour:
    """Every read prolongs an entry by its window, up to its cap."""

    async def test_reads_keep_an_entry_alive(self, cache_leg: CacheLeg) -> None:
        sliding = _sliding(cache_leg)
        address = await _filled(sliding, window_ms=WINDOW_MS)
        for _ in range(3):
            await cache_leg.pass_time(WINDOW - MARGIN)
            assert await _found(sliding, address) == PLAIN
        await cache_leg.pass_time(WINDOW + MARGIN)
        assert await _found(sliding, address) is Miss.LEASED

    async def test_an_entry_ends_a_window_after_its_fill(self, cache_leg: CacheLeg) -> None:
        sliding = _sliding(cache_leg)
        address = await _filled(sliding, window_ms=WINDOW_MS)
        await cache_leg.pass_time(WINDOW + MARGIN)
        assert await sliding.read_large(address) is None
        assert not await sliding.elect(address, sliding.token())
        assert await _found(sliding, address) is Miss.LEASED

    async def test_reads_of_many_prolong_each(self, cache_leg: CacheLeg) -> None:
        sliding = _sliding(cache_leg)
        read = await _filled(sliding, "read", window_ms=WINDOW_MS)
        left = await _filled(sliding, "left", window_ms=WINDOW_MS)
        await cache_leg.pass_time(WINDOW / 2)
        assert await sliding.read_many([read], sliding.token()) == [PLAIN]
        await cache_leg.pass_time(WINDOW - MARGIN)
        found = await sliding.read_many([read, left], sliding.token())
        assert found == [PLAIN, Miss.LEASED]

    async def test_the_cap_holds(self, cache_leg: CacheLeg) -> None:
        sliding = _sliding(cache_leg)
        address = await _filled(sliding, window_ms=WINDOW_MS)
        step, passed = WINDOW / 2, timedelta()
        while passed + step < LIFE:
            await cache_leg.pass_time(step)
            passed += step
            assert await _found(sliding, address) == PLAIN
        await cache_leg.pass_time(LIFE - passed + MARGIN)
        assert await _found(sliding, address) is Miss.LEASED

    async def test_a_window_above_the_life_is_the_life(self, cache_leg: CacheLeg) -> None:
        sliding = _sliding(cache_leg)
        address = await _filled(sliding, window_ms=2 * LIFE_MS)
        await cache_leg.pass_time(LIFE - MARGIN)
        assert await _found(sliding, address) == PLAIN
        await cache_leg.pass_time(2 * MARGIN)
        assert await _found(sliding, address) is Miss.LEASED

    async def test_readers_who_do_not_slide_prolong_nothing(self, cache_leg: CacheLeg) -> None:
        plain = cache_leg.ctx.cache(CACHE).pointers("schema01")
        address = await _filled(plain, window_ms=WINDOW_MS)
        await cache_leg.pass_time(WINDOW - MARGIN)
        assert await _found(plain, address) == PLAIN
        await cache_leg.pass_time(2 * MARGIN)
        assert await _found(plain, address) is Miss.LEASED

    async def test_a_large_body_slides(self, cache_leg: CacheLeg) -> None:
        sliding, body = _sliding(cache_leg), b"x" * 500_000
        address = await _filled(sliding, body=body, window_ms=WINDOW_MS)
        await cache_leg.pass_time(WINDOW - MARGIN)
        assert await _found(sliding, address) in (body, Miss.LARGE)
        await cache_leg.pass_time(WINDOW - MARGIN)
        assert await sliding.read_large(address) == body
        await cache_leg.pass_time(2 * MARGIN)
        assert await sliding.read_large(address) is None

    async def test_a_direct_get_looks_and_prolongs_nothing(self, cache_leg: CacheLeg) -> None:
        sliding, cache = _sliding(cache_leg), cache_leg.other.cache(SLIDING_CACHE)
        await _filled(sliding, window_ms=WINDOW_MS)
        await cache_leg.pass_time(WINDOW - MARGIN)
        assert await cache.get("k") == {"name": "plain"}
        await cache_leg.pass_time(2 * MARGIN)
        assert await cache.get("k") is None
        assert not await cache.exists("k")
        assert not await cache.delete("k")

    async def test_an_entry_that_ended_forbids_no_direct_value(self, cache_leg: CacheLeg) -> None:
        sliding, cache = _sliding(cache_leg), cache_leg.other.cache(SLIDING_CACHE)
        await _filled(sliding, window_ms=WINDOW_MS)
        assert not await cache.set_versioned("k", "4", "lower")
        await cache_leg.pass_time(WINDOW + MARGIN)
        assert await cache.set_versioned("k", "4", "lower")
        assert await cache.get("k") == "lower"

    async def test_direct_values_keep_their_lives(self, cache_leg: CacheLeg) -> None:
        cache = cache_leg.ctx.cache(SLIDING_CACHE)
        await cache.set("plain", 1, ttl=LIFE)
        await cache.set_versioned("versioned", "1", 1, ttl=LIFE)
        await cache_leg.pass_time(LIFE - MARGIN)
        assert await cache.get_many(["plain", "versioned"]) == ({"plain": 1, "versioned": 1}, [])
        await cache_leg.pass_time(2 * MARGIN)
        assert await cache.get_many(["plain", "versioned"]) == ({}, ["plain", "versioned"])

    async def test_sliding_and_early_refresh_compose(self, cache_leg: CacheLeg) -> None:
        sliding = _sliding(cache_leg)
        address = await _filled(sliding, body=BODY, window_ms=WINDOW_MS)
        await cache_leg.pass_time(WINDOW - MARGIN)
        found = await _found(sliding, address)
        assert isinstance(found, Aging)
        assert found.remaining_ms > WINDOW_MS, "what is read ends at its cap, not at its window"
        token = await _elected(sliding, address)
        await cache_leg.pass_time(LEASE - MARGIN)
        assert await _found(sliding, address) == BODY
        fill = Fill(address, token, 6, NEW, LIFE_MS, WINDOW_MS)
        assert await sliding.fill([fill]) == [True]
        await cache_leg.pass_time(WINDOW - MARGIN)
        assert isinstance(await _found(sliding, address), Aging)
        await cache_leg.pass_time(WINDOW + MARGIN)
        assert await _found(sliding, address) is Miss.LEASED
