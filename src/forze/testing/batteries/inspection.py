"""What every ``PointerCache`` shows to those who look without touching: ``inspect``."""

from __future__ import annotations

from datetime import timedelta

from forze.application.contracts.cache import Entry, Fill, Miss, PointerCache
from forze.application.integrations.document.codec import seal
from forze.application.integrations.document.protocol import INTENT_MS, LEASE_MS
from forze.testing.batteries.legs import CACHE, EAGER_CACHE, SLIDING_CACHE, CacheLeg

LIFE_MS = 60_000
BODY = b'{"id":"body"}'


async def _filled(pointers: PointerCache, address: str, body: bytes, window_ms: int = 0) -> None:
    token = pointers.token()
    assert await pointers.read(address, token) is Miss.LEASED
    fill = Fill(address, token, 7, body, LIFE_MS, window_ms)
    assert await pointers.fill([fill]) == [True]


class InspectionBehaviour:
    """Every state of a pointer, looked at."""

    async def test_nothing_is_absent_and_a_look_takes_no_lease(self, cache_leg: CacheLeg) -> None:
        pointers = cache_leg.ctx.cache(CACHE).pointers("schema01")
        address = pointers.address("k")
        assert await pointers.inspect(address) == Entry("absent")
        assert await pointers.inspect(address) == Entry("absent")
        assert await pointers.read(address, pointers.token()) is Miss.LEASED

    async def test_a_lease_and_how_long_it_lasts(self, cache_leg: CacheLeg) -> None:
        pointers = cache_leg.ctx.cache(CACHE).pointers("schema01")
        elsewhere = cache_leg.other.cache(CACHE).pointers("schema02")
        address = pointers.address("k")
        token = pointers.token()
        assert await pointers.read(address, token) is Miss.LEASED
        found = await pointers.inspect(address)
        assert found.state == "lease"
        assert 0 < found.left_ms <= LEASE_MS
        assert found.same_schema
        assert not (await elsewhere.inspect(address)).same_schema
        assert await pointers.fill([Fill(address, token, 1, BODY, LIFE_MS)]) == [True]

    async def test_a_value_its_version_and_its_size(self, cache_leg: CacheLeg) -> None:
        pointers = cache_leg.ctx.cache(CACHE).pointers("schema01")
        elsewhere = cache_leg.other.cache(CACHE).pointers("schema02")
        address = pointers.address("k")
        await _filled(pointers, address, BODY)
        found = await pointers.inspect(address)
        assert (found.state, found.version, found.size_bytes) == ("value", "7", len(BODY))
        assert LIFE_MS / 2 < found.left_ms <= LIFE_MS
        assert LIFE_MS / 2 < found.body_left_ms <= LIFE_MS
        assert found.readable
        assert not found.refreshing
        other = await elsewhere.inspect(address)
        assert (other.same_generation, other.same_schema, other.readable) == (True, False, False)
        assert await pointers.read(address, pointers.token()) == BODY

    async def test_writes_in_flight_are_counted(self, cache_leg: CacheLeg) -> None:
        pointers = cache_leg.ctx.cache(CACHE).pointers("schema01")
        address = pointers.address("k")
        await pointers.intend([address], "w1")
        await pointers.intend([address], "w2")
        found = await pointers.inspect(address)
        assert (found.state, found.writers) == ("intent", 2)
        assert 0 < found.left_ms <= INTENT_MS
        await pointers.done([address], "w1")
        assert (await pointers.inspect(address)).writers == 1
        await pointers.done([address], "w2")
        assert (await pointers.inspect(address)).state == "absent"

    async def test_a_look_does_not_prolong_what_slides(self, cache_leg: CacheLeg) -> None:
        pointers = cache_leg.ctx.cache(SLIDING_CACHE).pointers("schema01")
        address = pointers.address("k")
        await _filled(pointers, address, BODY, window_ms=10_000)
        await cache_leg.pass_time(timedelta(seconds=6))
        found = await pointers.inspect(address)
        assert found.body_left_ms <= 4_000 < found.left_ms
        await cache_leg.pass_time(timedelta(seconds=5))
        gone = await pointers.inspect(address)
        assert not gone.readable
        assert gone.size_bytes is None

    async def test_an_early_refresh_shows(self, cache_leg: CacheLeg) -> None:
        pointers = cache_leg.ctx.cache(EAGER_CACHE).pointers("schema01")
        address, token = pointers.address("k"), pointers.token()
        await _filled(pointers, address, seal(BODY, 5))
        assert await pointers.elect(address, token)
        found = await pointers.inspect(address)
        assert (found.state, found.version, found.refreshing) == ("value", "7", True)
        assert found.readable
        pointers.give_back([address], token)
        assert not (await pointers.inspect(address)).refreshing
