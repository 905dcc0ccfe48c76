"""What every ``PointerCache`` does: the transitions of ``protocol``, seen through the port."""

from __future__ import annotations

import asyncio
from datetime import timedelta

from forze.application.contracts.cache import Aging, Fill, Miss, PointerCache
from forze.application.integrations.document.protocol import INTENT_MS, LEASE_MS
from forze.errors import TenantRequired, ValidationError
from forze.testing.batteries.legs import CACHE, OTHER_CACHE, TENANT_CACHE, CacheLeg, apart
from forze.testing.batteries.refusals import refused

LIFE_MS = 60_000
BODY = b'{"id":"body"}'
MARGIN = timedelta(milliseconds=500)
"""Further from a deadline than a slow machine is late."""

LEASE = timedelta(milliseconds=LEASE_MS)
INTENT = timedelta(milliseconds=INTENT_MS)


def _pointers(leg: CacheLeg, schema: str = "schema01") -> PointerCache:
    return leg.ctx.cache(CACHE).pointers(schema)


def _elsewhere(leg: CacheLeg, schema: str = "schema01") -> PointerCache:
    return leg.other.cache(CACHE).pointers(schema)


async def _leased(pointers: PointerCache, address: str) -> str:
    token = pointers.token()
    assert await pointers.read(address, token) is Miss.LEASED
    return token


async def _filled(pointers: PointerCache, address: str, body: bytes = BODY) -> None:
    token = await _leased(pointers, address)
    assert await pointers.fill([Fill(address, token, 1, body, LIFE_MS)]) == [True]


class PointerBehaviour:
    """Every transition, two processes at a time."""

    async def test_a_miss_leases_a_fill_stores_a_read_hits(self, cache_leg: CacheLeg) -> None:
        pointers, elsewhere = _pointers(cache_leg), _elsewhere(cache_leg)
        address = pointers.address("k")
        assert elsewhere.address("k") == address
        await _filled(pointers, address)
        assert await pointers.read(address, pointers.token()) == BODY
        assert await elsewhere.read(address, elsewhere.token()) == BODY
        assert await elsewhere.read_large(address) == BODY

    async def test_one_reader_holds_the_lease(self, cache_leg: CacheLeg) -> None:
        pointers, elsewhere = _pointers(cache_leg), _elsewhere(cache_leg)
        address = pointers.address("k")
        token = await _leased(pointers, address)
        late = elsewhere.token()
        assert await elsewhere.read(address, late) is Miss.HELD
        assert await elsewhere.fill([Fill(address, late, 1, b"late", LIFE_MS)]) == [False]
        assert await pointers.fill([Fill(address, token, 1, BODY, LIFE_MS)]) == [True]
        assert await elsewhere.read(address, elsewhere.token()) == BODY

    async def test_tokens_are_never_the_same(self, cache_leg: CacheLeg) -> None:
        made = [
            each.token()
            for each in (
                _pointers(cache_leg),
                _pointers(cache_leg),
                _pointers(cache_leg, "schema02"),
                _elsewhere(cache_leg),
            )
            for _ in range(100)
        ]
        assert len(set(made)) == len(made)

    async def test_a_fill_counts_once(self, cache_leg: CacheLeg) -> None:
        pointers = _pointers(cache_leg)
        address = pointers.address("k")
        token = await _leased(pointers, address)
        fill = Fill(address, token, 1, BODY, LIFE_MS)
        assert await pointers.fill([fill]) == [True]
        assert await pointers.fill([fill._replace(body=b"again")]) == [False]
        assert await pointers.read(address, pointers.token()) == BODY

    async def test_a_fill_without_a_lease_is_refused(self, cache_leg: CacheLeg) -> None:
        pointers = _pointers(cache_leg)
        address = pointers.address("k")
        fill = Fill(address, pointers.token(), 1, BODY, LIFE_MS)
        assert await pointers.fill([fill]) == [False]
        assert await pointers.read_large(address) is None
        assert await pointers.fill([]) == []

    async def test_a_filled_body_lives_as_long_as_told(self, cache_leg: CacheLeg) -> None:
        pointers = _pointers(cache_leg)
        address = pointers.address("k")
        token = await _leased(pointers, address)
        assert await pointers.fill([Fill(address, token, 1, BODY, LIFE_MS)]) == [True]
        await cache_leg.pass_time(timedelta(milliseconds=LIFE_MS) - MARGIN)
        assert await pointers.read(address, pointers.token()) == BODY
        await cache_leg.pass_time(2 * MARGIN)
        assert await pointers.read(address, pointers.token()) is Miss.LEASED

    async def test_an_intent_hides_the_value_and_refuses_fills(self, cache_leg: CacheLeg) -> None:
        pointers, elsewhere = _pointers(cache_leg), _elsewhere(cache_leg)
        address = pointers.address("k")
        await _filled(pointers, address)
        await elsewhere.intend([address], "w1")
        token = pointers.token()
        assert await pointers.read(address, token) is Miss.INTENT
        assert await pointers.read_large(address) is None
        assert await pointers.fill([Fill(address, token, 2, BODY, LIFE_MS)]) == [False]
        await elsewhere.done([address], "w1")
        assert await pointers.read(address, pointers.token()) is Miss.LEASED

    async def test_an_intent_destroys_the_lease(self, cache_leg: CacheLeg) -> None:
        pointers, elsewhere = _pointers(cache_leg), _elsewhere(cache_leg)
        address = pointers.address("k")
        token = await _leased(pointers, address)
        fill = Fill(address, token, 1, b"old", LIFE_MS)
        await elsewhere.intend([address], "w1")
        assert await pointers.fill([fill]) == [False]
        await elsewhere.done([address], "w1")
        assert await pointers.fill([fill]) == [False]
        pointers.renew([address], token)
        assert await pointers.read(address, pointers.token()) is Miss.LEASED

    async def test_the_last_writer_out_frees_the_pointer(self, cache_leg: CacheLeg) -> None:
        pointers, elsewhere = _pointers(cache_leg), _elsewhere(cache_leg)
        address = pointers.address("k")
        await pointers.intend([address], "w1")
        await elsewhere.intend([address], "w2")
        await pointers.intend([address], "w1")
        await pointers.done([address], "w1")
        assert await pointers.read(address, pointers.token()) is Miss.INTENT
        await pointers.done([address], "w1")
        assert await pointers.read(address, pointers.token()) is Miss.INTENT
        await elsewhere.done([address], "w2")
        assert await pointers.read(address, pointers.token()) is Miss.LEASED

    async def test_done_with_a_lost_id_invalidates(self, cache_leg: CacheLeg) -> None:
        pointers, elsewhere = _pointers(cache_leg), _elsewhere(cache_leg)
        address = pointers.address("k")
        await elsewhere.intend([address], "w1")
        await pointers.clear(pointers.namespace())
        await _filled(pointers, address)
        await elsewhere.done([address], "w1")
        token = await _leased(pointers, address)
        await elsewhere.done([address], "w1")
        assert await pointers.fill([Fill(address, token, 1, BODY, LIFE_MS)]) == [False]

    async def test_a_lease_lapses(self, cache_leg: CacheLeg) -> None:
        pointers, elsewhere = _pointers(cache_leg), _elsewhere(cache_leg)
        address = pointers.address("k")
        token = await _leased(pointers, address)
        await cache_leg.pass_time(LEASE - MARGIN)
        assert await elsewhere.read(address, elsewhere.token()) is Miss.HELD
        await cache_leg.pass_time(2 * MARGIN)
        assert await elsewhere.read(address, elsewhere.token()) is Miss.LEASED
        assert await pointers.fill([Fill(address, token, 1, BODY, LIFE_MS)]) == [False]

    async def test_a_renewed_lease_lives_on(self, cache_leg: CacheLeg) -> None:
        pointers, elsewhere = _pointers(cache_leg), _elsewhere(cache_leg)
        address = pointers.address("k")
        token = await _leased(pointers, address)
        await cache_leg.pass_time(LEASE - MARGIN)
        pointers.renew([address], token)
        elsewhere.renew([address], elsewhere.token())
        assert await pointers.read(address, pointers.token()) is Miss.HELD
        await cache_leg.pass_time(LEASE - MARGIN)
        assert await elsewhere.read(address, elsewhere.token()) is Miss.HELD
        assert await pointers.fill([Fill(address, token, 1, BODY, LIFE_MS)]) == [True]

    async def test_a_lease_given_back_is_free(self, cache_leg: CacheLeg) -> None:
        pointers, elsewhere = _pointers(cache_leg), _elsewhere(cache_leg)
        address = pointers.address("k")
        token = await _leased(pointers, address)
        pointers.give_back([address], pointers.token())
        assert await pointers.read(address, pointers.token()) is Miss.HELD, "not its holder"
        pointers.give_back([address], token)
        mine = pointers.token()
        assert await pointers.read(address, mine) is Miss.LEASED
        assert await elsewhere.read(address, elsewhere.token()) is Miss.HELD
        assert await pointers.fill([Fill(address, token, 1, BODY, LIFE_MS)]) == [False]
        assert await pointers.fill([Fill(address, mine, 1, BODY, LIFE_MS)]) == [True]
        pointers.give_back([address], mine)
        assert await pointers.read(address, pointers.token()) == BODY

    async def test_renewing_and_giving_back_touch_no_intent(self, cache_leg: CacheLeg) -> None:
        pointers = _pointers(cache_leg)
        address = pointers.address("k")
        token = await _leased(pointers, address)
        await pointers.intend([address], "w1")
        pointers.renew([address], token)
        pointers.give_back([address], token)
        assert await pointers.read(address, pointers.token()) is Miss.INTENT

    async def test_an_intent_lapses_by_its_own_deadline(self, cache_leg: CacheLeg) -> None:
        pointers = _pointers(cache_leg)
        address = pointers.address("k")
        await pointers.intend([address], "w1")
        await cache_leg.pass_time(INTENT - MARGIN)
        await pointers.intend([address], "w2")
        await cache_leg.pass_time(2 * MARGIN)
        assert await pointers.read(address, pointers.token()) is Miss.INTENT
        await pointers.done([address], "w2")
        assert await pointers.read(address, pointers.token()) is Miss.LEASED, "w1 has lapsed"

    async def test_a_renewed_intent_lives_on(self, cache_leg: CacheLeg) -> None:
        pointers = _pointers(cache_leg)
        address = pointers.address("k")
        await pointers.intend([address], "w1")
        await cache_leg.pass_time(INTENT - MARGIN)
        await pointers.intend([address], "w1")
        await cache_leg.pass_time(INTENT - MARGIN)
        assert await pointers.read(address, pointers.token()) is Miss.INTENT
        await cache_leg.pass_time(2 * MARGIN)
        assert await pointers.read(address, pointers.token()) is Miss.LEASED

    async def test_another_schema_reads_as_absent(self, cache_leg: CacheLeg) -> None:
        old, new = _pointers(cache_leg), _elsewhere(cache_leg, "schema02")
        address = old.address("k")
        await _filled(old, address)
        assert await new.read_large(address) is None
        await _filled(new, address, b"new shape")
        assert await old.read_large(address) is None
        assert await new.read(address, new.token()) == b"new shape"

    async def test_another_schemas_lease_is_taken_over(self, cache_leg: CacheLeg) -> None:
        old, new = _pointers(cache_leg), _elsewhere(cache_leg, "schema02")
        address = old.address("k")
        token = await _leased(old, address)
        mine = await _leased(new, address)
        assert await old.fill([Fill(address, token, 1, b"old", LIFE_MS)]) == [False]
        assert await old.fill([Fill(address, mine, 1, b"old", LIFE_MS)]) == [False]
        assert await new.fill([Fill(address, mine, 1, b"new", LIFE_MS)]) == [True]

    async def test_an_intent_counts_for_every_schema(self, cache_leg: CacheLeg) -> None:
        old, new = _pointers(cache_leg), _elsewhere(cache_leg, "schema02")
        address = old.address("k")
        await old.intend([address], "w1")
        assert await new.read(address, new.token()) is Miss.INTENT
        await new.done([address], "w1")
        assert await old.read(address, old.token()) is Miss.LEASED

    async def test_many_are_answered_in_the_order_asked(self, cache_leg: CacheLeg) -> None:
        pointers, elsewhere = _pointers(cache_leg), _elsewhere(cache_leg)
        addresses = [pointers.address(f"k{number}") for number in range(250)]
        other = elsewhere.token()
        assert await elsewhere.read_many(addresses[:200], other) == [Miss.LEASED] * 200
        fills = [
            Fill(address, other, 1, b"body %d" % number, LIFE_MS)
            for number, address in enumerate(addresses[:150])
        ]
        assert await elsewhere.fill(fills) == [True] * 150
        await elsewhere.intend(addresses[210:], "w1")
        expected = [
            *(b"body %d" % number for number in range(150)),
            *[Miss.HELD] * 50,
            *[Miss.LEASED] * 10,
            *[Miss.INTENT] * 40,
        ]
        found = await pointers.read_many(addresses[::-1], pointers.token())
        assert found == expected[::-1]
        await elsewhere.done(addresses, "w1")
        assert await pointers.read_many(addresses, pointers.token()) == [Miss.LEASED] * 250
        assert await pointers.read_many([], pointers.token()) == []

    async def test_an_address_asked_twice(self, cache_leg: CacheLeg) -> None:
        pointers = _pointers(cache_leg)
        address, other = pointers.address("k"), pointers.address("l")
        await _filled(pointers, other)
        found = await pointers.read_many([address, other, address, other], pointers.token())
        assert found == [Miss.LEASED, BODY, Miss.HELD, BODY]

    async def test_fills_are_judged_one_by_one(self, cache_leg: CacheLeg) -> None:
        pointers = _pointers(cache_leg)
        addresses = [pointers.address(f"k{number}") for number in range(130)]
        token = pointers.token()
        await pointers.read_many(addresses, token)
        await pointers.intend(addresses[3:5], "w1")
        fills = [Fill(address, token, 1, BODY, LIFE_MS) for address in addresses]
        stored = await pointers.fill(fills)
        assert [at for at, ok in enumerate(stored) if not ok] == [3, 4]

    async def test_renew_and_give_back_of_many(self, cache_leg: CacheLeg) -> None:
        pointers = _pointers(cache_leg)
        addresses = [pointers.address(f"k{number}") for number in range(130)]
        token = pointers.token()
        await pointers.read_many(addresses, token)
        await cache_leg.pass_time(LEASE - MARGIN)
        pointers.renew(addresses, token)
        await pointers.read_large(addresses[0])
        await cache_leg.pass_time(2 * MARGIN)
        assert await pointers.read_many(addresses, pointers.token()) == [Miss.HELD] * 130
        pointers.give_back(addresses, token)
        assert await pointers.read_many(addresses, pointers.token()) == [Miss.LEASED] * 130

    async def test_a_body_of_any_size(self, cache_leg: CacheLeg) -> None:
        pointers = _pointers(cache_leg)
        small, large = pointers.address("small"), pointers.address("large")
        body = bytes(range(256)) * 4095
        assert len(body) <= pointers.max_value_bytes
        token = pointers.token()
        await pointers.read_many([small, large], token)
        fills = [Fill(small, token, 1, b"s", LIFE_MS), Fill(large, token, 1, body, LIFE_MS)]
        assert await pointers.fill(fills) == [True, True]
        assert await pointers.read_large(large) == body
        found = await pointers.read(large, pointers.token())
        assert found in (body, Miss.LARGE)
        assert (await pointers.read_many([large, small], pointers.token()))[1] == b"s"
        assert await pointers.read_large(pointers.address("nothing")) is None
        assert await pointers.read(pointers.address("nothing"), pointers.token()) is Miss.LEASED

    async def test_many_large_bodies_in_one_fill(self, cache_leg: CacheLeg) -> None:
        pointers = _pointers(cache_leg)
        addresses = [pointers.address(f"k{number}") for number in range(6)]
        token, body = pointers.token(), b"x" * 100_000
        await pointers.read_many(addresses, token)
        fills = [Fill(each, token, 1, body, LIFE_MS) for each in addresses]
        assert await pointers.fill(fills) == [True] * 6
        for each in addresses:
            assert await pointers.read(each, pointers.token()) == body

    async def test_clear_empties_the_namespace_and_no_other(self, cache_leg: CacheLeg) -> None:
        pointers = _pointers(cache_leg)
        other = cache_leg.ctx.cache(OTHER_CACHE).pointers("schema01")
        for number in range(3):
            await _filled(pointers, pointers.address(f"k{number}"))
        await _filled(other, other.address("k"))
        token = await _leased(pointers, pointers.address("leased"))
        assert await pointers.clear(pointers.namespace()) == 4
        assert await pointers.read(pointers.address("k1"), pointers.token()) is Miss.LEASED
        fill = Fill(pointers.address("leased"), token, 1, BODY, LIFE_MS)
        assert await pointers.fill([fill]) == [False]
        assert await other.read(other.address("k"), other.token()) == BODY

    async def test_tenants_are_apart_and_cleared_together(self, cache_leg: CacheLeg) -> None:
        pointers = cache_leg.ctx.cache(TENANT_CACHE).pointers("schema01")
        assert pointers.tenant_aware
        assert not _pointers(cache_leg).tenant_aware
        addresses = []
        for tenant in ("a", "b", "a/b", "a%2Fb"):
            with cache_leg.ctx.bind_tenant(tenant):
                addresses.append(pointers.address("k"))
                addresses.append(pointers.address("b/k"))
        assert len(set(addresses)) == len(addresses)
        await _filled(pointers, addresses[0], b"of a")
        assert await pointers.read(addresses[2], pointers.token()) is Miss.LEASED
        assert await pointers.clear(pointers.namespace()) == 2
        assert await pointers.read_large(addresses[0]) is None

    async def test_no_two_names_share_an_address(self, cache_leg: CacheLeg) -> None:
        pointers = _pointers(cache_leg)
        other = cache_leg.ctx.cache(OTHER_CACHE).pointers("schema01")
        keys = ("k", "K", "k/", "k%2F", "k%", "{k}", "k k", "k:k", "é", "e\u0301", "%C3%A9")
        addresses = [each.address(key) for each in (pointers, other) for key in keys]
        assert len(set(addresses)) == len(addresses)
        for number, address in enumerate(addresses):
            await _filled(pointers, address, b"%d" % number)
        for number, address in enumerate(addresses):
            assert await pointers.read(address, pointers.token()) == b"%d" % number

    async def test_what_it_says_of_itself(self, cache_leg: CacheLeg) -> None:
        pointers = _pointers(cache_leg)
        assert pointers.max_value_bytes == cache_leg.max_value_bytes
        assert pointers.on_outage in ("proceed", "refuse")
        assert pointers.available()


class PointerFailures:
    """Bad input, crowds, callers that go away."""

    async def test_an_address_needs_a_key(self, cache_leg: CacheLeg) -> None:
        with refused(ValidationError, "key"):
            _pointers(cache_leg).address("")

    async def test_an_address_needs_its_tenant(self, cache_leg: CacheLeg) -> None:
        pointers = cache_leg.ctx.cache(TENANT_CACHE).pointers("schema01")
        with refused(TenantRequired, "owned_things"):
            pointers.address("k")

    async def test_of_many_readers_one_is_leased(self, cache_leg: CacheLeg) -> None:
        both = (_pointers(cache_leg), _elsewhere(cache_leg))
        address = both[0].address("k")
        found = await asyncio.gather(
            *(each.read(address, each.token()) for _ in range(50) for each in both)
        )
        assert found.count(Miss.LEASED) == 1
        assert found.count(Miss.HELD) == 99

    async def test_writers_in_a_crowd_all_count(self, cache_leg: CacheLeg) -> None:
        both = (_pointers(cache_leg), _elsewhere(cache_leg))
        address = both[0].address("k")
        writers = [(each, f"w{number}") for number in range(20) for each in both[number % 2 :][:1]]
        await asyncio.gather(*(each.intend([address], name) for each, name in writers))
        await asyncio.gather(*(each.done([address], name) for each, name in writers[1:]))
        assert await both[0].read(address, both[0].token()) is Miss.INTENT
        await writers[0][0].done([address], writers[0][1])
        assert await both[0].read(address, both[0].token()) is Miss.LEASED

    async def test_repeating_a_call_changes_nothing(self, cache_leg: CacheLeg) -> None:
        pointers = _pointers(cache_leg)
        address = pointers.address("k")
        for _ in range(3):
            await pointers.intend([address], "w1")
        for _ in range(3):
            await pointers.done([address], "w1")
        token = await _leased(pointers, address)
        for _ in range(3):
            pointers.give_back([address], token)
        assert await pointers.read(address, pointers.token()) is Miss.LEASED

    async def test_a_cancelled_reader_leaves_at_most_a_lease(self, cache_leg: CacheLeg) -> None:
        pointers = _pointers(cache_leg)
        address, token = pointers.address("k"), pointers.token()
        reading = apart(_read(pointers, address, token))
        await asyncio.sleep(0)
        reading.cancel()
        await asyncio.wait({reading})
        pointers.give_back([address], token)
        assert await pointers.read(address, pointers.token()) is Miss.LEASED


async def _read(pointers: PointerCache, address: str, token: str) -> bytes | Aging | Miss:
    return await pointers.read(address, token)
