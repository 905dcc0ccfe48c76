"""What cached functions do on any cache: one run per key and miss, and nothing old after an
invalidation, by whatever it came."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any

from forze.application.contracts.cache import CacheSpec, L1Spec
from forze.application.execution import ExecutionContext
from forze.application.integrations.cached import CachedFunction, cached
from forze.errors import ConfigurationError, ForzeError, TenantRequired
from forze.testing.batteries.legs import (
    CACHE,
    PATIENCE,
    TENANT_CACHE,
    CacheLeg,
    apart,
    cancelled,
    waits,
)
from forze.testing.batteries.refusals import refused

TTL = timedelta(seconds=60)
EAGER = CacheSpec(name="eager_things", early_refresh_beta=1e9)
KEPT = CacheSpec(name="others", l1=L1Spec(ttl=timedelta(seconds=30)))
LARGE = "x" * 400_000


@dataclass
class Shop:
    """A source of prices, whose reads can be held once they have read."""

    prices: dict[int, Any] = field(default_factory=lambda: {1: 10, 2: 20})
    runs: int = 0
    fails: bool = False
    read: asyncio.Event = field(default_factory=asyncio.Event)
    go: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self.go.set()

    def hold(self) -> None:
        """Let the next reads wait with what they have read."""
        self.read.clear()
        self.go.clear()

    async def price(self, product: int) -> Any:
        """What a read finds."""
        self.runs += 1
        found = self.prices.get(product)
        self.read.set()
        await self.go.wait()
        if self.fails:
            raise ForzeError("the shop is closed")
        return found

    def cached(
        self,
        ctx: ExecutionContext,
        *,
        cache: CacheSpec = CACHE,
        tags: Sequence[Any] = ("prices", "price:{product}"),
        name: str = "price",
        **options: Any,
    ) -> CachedFunction[[int], Any]:
        """A process's cached price."""

        async def price(product: int, currency: str = "EUR") -> Any:
            return await self.price(product)

        decorate = cached(TTL, ctx=lambda: ctx, cache=cache, tags=tags, name=name, **options)
        return decorate(price)


class CachedBehaviour:
    """What cached functions do."""

    async def test_it_runs_once_for_a_key_in_every_process(self, cache_leg: CacheLeg) -> None:
        for name, tags in (("plain", ()), ("tagged", ("prices",))):
            shop = Shop()
            here, there = (
                shop.cached(each, tags=tags, name=name) for each in (cache_leg.ctx, cache_leg.other)
            )
            assert [await here(1), await here(1), await here(2)] == [10, 10, 20]
            assert [await there(1), await there(2)] == [10, 20]
            assert shop.runs == 2
            assert (there.stats().hits, there.stats().misses) == (2, 0)

    async def test_a_default_spelled_out_is_the_same_call(self, cache_leg: CacheLeg) -> None:
        price: Any = Shop().cached(cache_leg.ctx)
        keys = {price.key(1), price.key(1, "EUR"), price.key(product=1), price.key(1, currency="EUR")}  # noqa: E501  # fmt: skip
        assert len(keys) == 1
        assert len({price.key(1), price.key(True), price.key("1"), price.key(1.0)}) == 4

    async def test_none_is_a_value(self, cache_leg: CacheLeg) -> None:
        shop = Shop()
        price = shop.cached(cache_leg.ctx)
        assert [await price(9), await price(9)] == [None, None]
        assert shop.runs == 1

    async def test_a_tag_invalidates_what_carries_it_everywhere(self, cache_leg: CacheLeg) -> None:
        shop = Shop()
        here, there = shop.cached(cache_leg.ctx), shop.cached(cache_leg.other)
        assert [await here(1), await here(2)] == [10, 20]
        shop.prices = {1: 11, 2: 21}
        await cache_leg.other.invalidate_tags("price:1", cache=CACHE)
        assert [await here(1), await there(1), await there(2), await here(2)] == [11, 11, 20, 20]
        assert shop.runs == 3
        await cache_leg.ctx.cache(CACHE).invalidate_tags("prices", "nothing")
        assert [await there(1), await here(1), await here(2)] == [11, 11, 21]
        assert shop.runs == 5

    async def test_arguments_invalidate_one_value(self, cache_leg: CacheLeg) -> None:
        shop = Shop()
        here, there = shop.cached(cache_leg.ctx), shop.cached(cache_leg.other)
        assert [await here(1), await there(2)] == [10, 20]
        shop.prices = {1: 11, 2: 21}
        await there.invalidate(1)
        assert [await here(1), await here(2)] == [11, 20]
        assert await here.refresh(2) == 21
        assert await there(2) == 21
        assert shop.runs == 4

    async def test_a_value_dies(self, cache_leg: CacheLeg) -> None:
        shop = Shop()
        price = shop.cached(cache_leg.ctx)
        await price(1)
        await cache_leg.pass_time(TTL)
        await price(1)
        assert shop.runs == 2
        assert price.stats().fills == 2

    async def test_a_large_value_with_tags(self, cache_leg: CacheLeg) -> None:
        shop = Shop(prices={1: LARGE})
        here, there = shop.cached(cache_leg.ctx), shop.cached(cache_leg.other)
        assert [await here(1), await there(1)] == [LARGE, LARGE]
        assert shop.runs == 1
        shop.prices[1] = LARGE + "y"
        await cache_leg.other.invalidate_tags("prices", cache=CACHE)
        assert [await here(1), await there(1)] == [LARGE + "y"] * 2
        assert shop.runs == 2

    async def test_tenants_have_values_and_tags_of_their_own(self, cache_leg: CacheLeg) -> None:
        shop, ctx = Shop(), cache_leg.ctx
        price = shop.cached(ctx, cache=TENANT_CACHE)
        with refused(TenantRequired):
            await price(1)
        for tenant, expected in (("a", 10), ("b", 11), ("a", 10)):
            with ctx.bind_tenant(tenant):
                assert await price(1) == expected
            shop.prices[1] = 11
        with ctx.bind_tenant("a"):
            await ctx.invalidate_tags("prices", cache=TENANT_CACHE)
            assert await price(1) == 11
        runs = shop.runs
        with ctx.bind_tenant("b"):
            await price(1)
        assert shop.runs == runs

    async def test_an_entry_in_process_goes_with_its_tag(self, cache_leg: CacheLeg) -> None:
        shop = Shop()
        price = shop.cached(cache_leg.ctx, cache=KEPT)
        for _ in range(4):
            assert [await price(1), await price(2)] == [10, 20]
        l1 = price.l1_stats()
        assert l1 is not None
        assert l1.hits >= 4
        assert cache_leg.ctx.l1_stats()["price"] == l1
        shop.prices = {1: 11, 2: 21}
        await cache_leg.ctx.invalidate_tags("price:1", cache=KEPT)
        assert [await price(1), await price(2)] == [11, 20]
        assert shop.runs == 3

    async def test_an_early_refresh_of_what_has_tags(self, cache_leg: CacheLeg) -> None:
        shop = Shop()
        here, there = (shop.cached(each, cache=EAGER) for each in (cache_leg.ctx, cache_leg.other))
        await here(1)
        shop.prices[1] = 11
        assert await here(1) == 11, "near its end, as far as the dice are concerned"
        assert here.stats().refreshes == 1
        shop.prices[1] = 12
        await cache_leg.other.invalidate_tags("prices", cache=EAGER)
        assert await there(1) == 12


class CachedFailures:
    """What cached functions do when things go wrong, or come between."""

    async def test_a_load_that_began_before_an_invalidation_is_not_kept(
        self, cache_leg: CacheLeg
    ) -> None:
        for by in ("tag", "arguments"):
            await self._overtaken(cache_leg, by)

    async def _overtaken(self, cache_leg: CacheLeg, by: str) -> None:
        shop = Shop()
        both = (cache_leg.ctx, cache_leg.other)
        here, there = (shop.cached(each, name=by) for each in both)
        shop.hold()
        slow = asyncio.create_task(here(1))
        await shop.read.wait()
        shop.prices[1] = 11
        if by == "tag":
            await cache_leg.other.invalidate_tags("price:1", cache=CACHE)
        else:
            await there.invalidate(1)
        shop.go.set()
        late = asyncio.create_task(there(1))
        assert await late == 11
        await slow
        assert [await here(1), await there(1)] == [11, 11]

    async def test_who_comes_after_an_invalidation_takes_nothing_from_a_load_before_it(
        self, cache_leg: CacheLeg
    ) -> None:
        shop = Shop()
        price = shop.cached(cache_leg.ctx)
        shop.hold()
        slow = asyncio.create_task(price(1))
        await shop.read.wait()
        shop.prices[1] = 11
        await cache_leg.ctx.invalidate_tags("price:1", cache=CACHE)
        late = asyncio.create_task(price(1))
        assert await waits(late)
        shop.go.set()
        assert await late == 11
        assert await slow in (10, 11)

    async def test_outdated_by_a_tag_it_is_loaded_once_in_the_fleet(
        self, cache_leg: CacheLeg
    ) -> None:
        shop = Shop()
        both = [shop.cached(cache_leg.ctx), shop.cached(cache_leg.other)]
        await both[0](1)
        shop.prices[1] = 11
        await cache_leg.ctx.invalidate_tags("prices", cache=CACHE)
        shop.hold()
        calls = [asyncio.create_task(each(1)) for each in both for _ in range(20)]
        await shop.read.wait()
        await asyncio.sleep(0.05)
        shop.go.set()
        assert await asyncio.gather(*calls) == [11] * 40
        assert shop.runs == 2

    async def test_an_invalidation_in_a_transaction_takes_effect_at_its_commit(
        self, cache_leg: CacheLeg
    ) -> None:
        shop, ctx = Shop(), cache_leg.ctx
        price = shop.cached(cache_leg.other)
        await price(1)
        async with ctx.transaction("items"):
            await ctx.invalidate_tags("price:1", cache=CACHE)
            assert await apart(price(1)) == 10, "nobody has committed anything"
            shop.prices[1] = 11
        assert await price(1) == 11
        before = price.stats().fills
        await price(1)
        assert price.stats().fills == before

    async def test_nothing_is_kept_beside_an_open_transaction(self, cache_leg: CacheLeg) -> None:
        shop, ctx = Shop(), cache_leg.ctx
        here, there = shop.cached(ctx), shop.cached(cache_leg.other)
        await there(1)
        async with ctx.transaction("items"):
            await ctx.invalidate_tags("price:1", cache=CACHE)
            await here.invalidate(2)
            async with asyncio.timeout(PATIENCE.total_seconds()):
                while there.stats().bypasses < 2:  # the announcements are on their way
                    await apart(there(1))
                    await apart(there(2))
            fills = there.stats().fills
            await apart(there(1))
            await apart(there(2))
            assert there.stats().fills == fills
            shop.prices = {1: 11, 2: 21}
        assert [await there(1), await there(2)] == [11, 21]

    async def test_in_a_transaction_it_runs_past_the_cache(self, cache_leg: CacheLeg) -> None:
        shop, ctx = Shop(), cache_leg.ctx
        price = shop.cached(ctx)
        await price(1)
        async with ctx.transaction("items"):
            shop.prices[1] = 11
            assert await price(1) == 11
        assert await price(1) == 10
        assert price.stats().fills == 1

    async def test_a_rollback_invalidates_nothing_for_good(self, cache_leg: CacheLeg) -> None:
        shop, ctx = Shop(), cache_leg.ctx
        price = shop.cached(ctx)
        await price(1)
        with refused(RuntimeError):
            async with ctx.transaction("items"):
                await ctx.invalidate_tags("price:1", cache=CACHE)
                raise RuntimeError
        assert [await price(1), await price(1)] == [10, 10]
        assert shop.runs == 2

    async def test_a_failure_is_shared_and_not_kept(self, cache_leg: CacheLeg) -> None:
        shop = Shop(fails=True)
        price = shop.cached(cache_leg.ctx)
        shop.hold()
        calls = [asyncio.create_task(price(1)) for _ in range(5)]
        await shop.read.wait()
        shop.go.set()
        failures = await asyncio.gather(*calls, return_exceptions=True)
        assert [type(each) for each in failures] == [ForzeError] * 5
        assert shop.runs == 1
        shop.fails = False
        assert await price(1) == 10

    async def test_cancelling_one_caller_harms_no_other(self, cache_leg: CacheLeg) -> None:
        shop = Shop()
        price = shop.cached(cache_leg.ctx)
        shop.hold()
        first = asyncio.create_task(price(1))
        await shop.read.wait()
        others = [asyncio.create_task(price(1)) for _ in range(5)]
        assert await waits(others[-1])
        assert await cancelled(first)
        shop.go.set()
        assert await asyncio.gather(*others) == [10] * 5
        assert shop.runs == 1

    async def test_what_was_lent_by_a_caller_is_not_used_after_it(
        self, cache_leg: CacheLeg
    ) -> None:
        shop = Shop()
        used: list[str] = []

        async def price(product: int, session: str) -> Any:
            try:
                return await shop.price(product)
            finally:
                used.append(session)

        ctx = cache_leg.ctx
        lent: Any = cached(TTL, ctx=lambda: ctx, cache=CACHE, ignore=("session",))(price)
        shop.hold()
        first = asyncio.create_task(lent(1, "one"))
        await shop.read.wait()
        others = [asyncio.create_task(lent(1, "two")) for _ in range(3)]
        assert await waits(others[-1])
        shop.read.clear()
        assert await cancelled(first)
        begun, _ = await asyncio.wait({asyncio.create_task(shop.read.wait())}, timeout=3)
        shop.go.set()
        assert begun, "nobody begins anew with what is its own"
        assert used[:1] == ["one"]
        assert await asyncio.gather(*others) == [10] * 3
        assert used == ["one", "two"]

    async def test_what_was_lent_by_a_caller_who_left_before_the_run_is_not_used(
        self, cache_leg: CacheLeg
    ) -> None:
        shop = Shop()
        used: list[str] = []

        def lent(ctx: ExecutionContext) -> Any:
            async def price(product: int, session: str) -> Any:
                used.append(session)
                return await shop.price(product)

            return cached(TTL, ctx=lambda: ctx, cache=CACHE, name="lent", ignore="session")(price)

        here, there = lent(cache_leg.ctx), lent(cache_leg.other)
        shop.hold()
        shop.fails = True
        elsewhere = asyncio.create_task(there(1, "elsewhere"))
        await shop.read.wait()
        first = asyncio.create_task(here(1, "one"))
        assert await waits(first)
        second = asyncio.create_task(here(1, "two"))
        assert await waits(second)
        assert await cancelled(first)
        shop.go.set()
        with refused(ForzeError):
            await elsewhere
        with refused(ForzeError):
            await second
        assert used == ["elsewhere", "two"]

    async def test_what_is_lent_is_refreshed_with_before_its_caller_goes_on(
        self, cache_leg: CacheLeg
    ) -> None:
        shop, ctx = Shop(), cache_leg.ctx
        open_sessions = {"one"}

        async def price(product: int, session: str) -> Any:
            found = await shop.price(product)
            assert session in open_sessions
            return found

        eager = replace(EAGER, early_refresh_background=True)
        lent: Any = cached(TTL, ctx=lambda: ctx, cache=eager, ignore="session")(price)
        assert await lent(1, "one") == 10
        shop.prices[1] = 11
        assert await lent(1, "one") == 11
        open_sessions.clear()
        assert lent.stats().refreshes == 1
        assert lent.stats().refresh_failures == 0

    async def test_a_call_within_itself_fails(self, cache_leg: CacheLeg) -> None:
        ctx, calls = cache_leg.ctx, 0

        async def down(n: int) -> int:
            nonlocal calls
            calls += 1
            return n if n < 2 else await shorter(n - 1) + await shorter(n - 2)

        async def round_about(n: int) -> int:
            return await (back(n) if n else shorter(0))

        async def return_trip(n: int) -> int:
            return await around(n)

        decorate = cached(TTL, ctx=lambda: ctx, cache=CACHE)
        shorter, around, back = map(decorate, (down, round_about, return_trip))
        assert await shorter(20) == 6765
        assert calls == 21
        assert await around(0) == 0
        async with asyncio.timeout(PATIENCE.total_seconds()):
            with refused(ConfigurationError):
                await around(1)

    async def test_a_large_value_outdated_by_a_tag_is_loaded_once_in_the_fleet(
        self, cache_leg: CacheLeg
    ) -> None:
        shop = Shop(prices={1: LARGE})
        both = [shop.cached(cache_leg.ctx), shop.cached(cache_leg.other)]
        for each in both:
            await each(1)
        shop.prices[1] = LARGE + "y"
        await cache_leg.ctx.invalidate_tags("prices", cache=CACHE)
        shop.hold()
        calls = [asyncio.create_task(each(1)) for each in both]
        await shop.read.wait()
        await asyncio.sleep(0.1)
        shop.go.set()
        assert await asyncio.gather(*calls) == [LARGE + "y"] * 2
        assert [await each(1) for each in both] == [LARGE + "y"] * 2
        assert shop.runs == 2
