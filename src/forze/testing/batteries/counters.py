"""What every ``CounterPort`` does."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import timedelta
from enum import IntEnum
from typing import Any

from forze.application.contracts.counter import (
    INT64_MAX,
    INT64_MIN,
    CounterPort,
    CounterSpec,
)
from forze.application.execution import ExecutionContext
from forze.errors import BackendError, ConfigurationError, TenantRequired, ValidationError
from forze.testing.batteries.legs import PATIENCE, Outage
from forze.testing.batteries.refusals import refused

REMEMBERED = timedelta(minutes=10)

COUNTER = CounterSpec(name="orders", operation_ttl=REMEMBERED)
OTHER_COUNTER = CounterSpec(name="invoices")
BOUNDED_COUNTER = CounterSpec(
    name="stock", minimum=0, maximum=10, operation_ttl=timedelta(minutes=10)
)
WIDE_COUNTER = CounterSpec(name="wide_stock")
TENANT_COUNTER = CounterSpec(name="owned_orders")

NO_INTEGERS: tuple[Any, ...] = (True, False, 1.0, 0.5, "1", None, 2**63, -(2**63) - 1, 2**200)
SUFFIXES = (
    "a", "A", "a:b", "a/b", "a%2Fb", "a%b", "{a}", "{}", "}{", "a b", " ", "*", "?", "[a]", "é",
    "ключ/世界", "line\nbreak", "nul\0", "..", "/", "%", "!", "a!", "a!b", "!a", "a:op", "k" * 600,
)  # fmt: skip


class Level(IntEnum):
    """An integer by another name."""

    THREE = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class CounterLeg:
    """A counter backend: two processes over one server.

    Both contexts answer ``COUNTER``, ``OTHER_COUNTER``, ``BOUNDED_COUNTER`` and ``WIDE_COUNTER``
    (over one namespace), and ``TENANT_COUNTER`` (tenant-aware). ``pass_time`` makes the server's
    entries older by that much; ``trips`` counts the round trips of ``ctx`` so far (None: there
    are none).
    """

    ctx: ExecutionContext
    other: ExecutionContext
    pass_time: Callable[[timedelta], Awaitable[None]]
    trips: Callable[[], int] | None = None


def counter_of(leg: CounterLeg) -> CounterPort:
    """Of the first process."""
    return leg.ctx.counter(COUNTER)


class CounterBehaviour:
    """What the port promises where nothing goes wrong."""

    async def test_it_begins_at_zero(self, counter_leg: CounterLeg) -> None:
        counter = counter_of(counter_leg)
        assert await counter.get() == 0
        assert await counter.get("a") == 0
        assert await counter.incr() == 1

    async def test_every_method_answers_as_documented(self, counter_leg: CounterLeg) -> None:
        counter = counter_of(counter_leg)
        assert await counter.incr() == 1
        assert await counter.incr(by=4) == 5
        assert await counter.incr(None, -2) == 3
        assert await counter.incr(by=0) == 3
        assert await counter.decr() == 2
        assert await counter.decr(by=5) == -3
        assert await counter.decr(by=-1) == -2
        assert await counter.incr_batch(10) == 8
        assert await counter.allocate(3) == range(9, 12)
        assert list(await counter.allocate(1)) == [12]
        assert await counter.reset() is None  # type: ignore[func-returns-value]
        assert await counter.get() == 0
        assert await counter.reset(value=7) is None  # type: ignore[func-returns-value]
        assert await counter.get() == 7
        answers = [await counter.incr(), await counter.get(), await counter.incr_batch(1)]
        assert [type(each) for each in answers] == [int, int, int]

    async def test_another_process_goes_on_from_there(self, counter_leg: CounterLeg) -> None:
        assert await counter_of(counter_leg).incr(by=5) == 5
        assert await counter_leg.other.counter(COUNTER).incr() == 6
        assert await counter_of(counter_leg).get() == 6

    async def test_every_suffix_is_its_own(self, counter_leg: CounterLeg) -> None:
        counter = counter_of(counter_leg)
        for place, suffix in enumerate(SUFFIXES, 1):
            assert await counter.incr(suffix, place) == place, suffix
        assert await counter.get() == 0
        assert await counter.incr(by=1_000) == 1_000
        for place, suffix in enumerate(SUFFIXES, 1):
            assert await counter.get(suffix) == place, suffix
        assert await counter_leg.ctx.counter(OTHER_COUNTER).get(SUFFIXES[0]) == 0

    async def test_no_increment_is_lost_or_shared(self, counter_leg: CounterLeg) -> None:
        ports = [counter_of(counter_leg), counter_leg.other.counter(COUNTER)]
        singles = await asyncio.gather(*(ports[n % 2].incr() for n in range(200)))
        blocks = await asyncio.gather(*(ports[n % 2].allocate(1 + n % 5) for n in range(200)))
        seen = [*singles, *(each for block in blocks for each in block)]
        assert sorted(seen) == list(range(1, len(seen) + 1))
        assert await ports[0].get() == len(seen)

    async def test_both_ends_are_reached_exactly(self, counter_leg: CounterLeg) -> None:
        counter = counter_of(counter_leg)
        for near in (2**53, 2**62, INT64_MAX - 3):
            await counter.reset(value=near)
            assert await counter.get() == near
            assert await counter.incr() == near + 1
            assert await counter.incr(by=2, operation_id=f"up {near}") == near + 3
            assert await counter.get() == near + 3
        assert await counter.get() == INT64_MAX
        assert await counter.decr(by=INT64_MAX) == 0
        assert await counter.decr(by=2**63) == INT64_MIN
        assert await counter.get() == INT64_MIN
        await counter.reset(value=INT64_MIN + 1)
        assert await counter.decr(operation_id="down") == INT64_MIN
        await counter.reset(value=INT64_MAX - 2)
        assert await counter.allocate(2) == range(INT64_MAX - 1, INT64_MAX + 1)
        await counter.reset(value=-1)
        assert await counter.incr(by=INT64_MAX) == INT64_MAX - 1
        await counter.reset(value=INT64_MIN)
        assert await counter.incr(by=INT64_MAX) == -1

    async def test_an_integer_by_another_name(self, counter_leg: CounterLeg) -> None:
        counter = counter_of(counter_leg)
        assert await counter.incr(by=Level.THREE) == 3
        assert await counter.allocate(Level.THREE) == range(4, 7)
        await counter.reset(value=Level.THREE)
        assert await counter.get() == 3

    async def test_bounds(self, counter_leg: CounterLeg) -> None:
        stock = counter_leg.ctx.counter(BOUNDED_COUNTER)
        await stock.reset(value=10)
        assert await stock.decr(by=10) == 0
        assert await stock.incr(by=10) == 10
        assert await stock.decr(by=7, operation_id="a") == 3
        assert await stock.incr(by=0) == 3

    async def test_beyond_a_bound_it_may_come_back(self, counter_leg: CounterLeg) -> None:
        stock, wide = (counter_leg.ctx.counter(each) for each in (BOUNDED_COUNTER, WIDE_COUNTER))
        await wide.reset(value=25)
        with refused(ValidationError, "'stock'", "beyond 10", "25"):
            await stock.incr()
        assert await stock.decr(by=5) == 20
        await wide.reset(value=-25)
        assert await stock.incr(by=5) == -20
        with refused(ValidationError, "beyond 0"):
            await stock.decr()
        assert await stock.get() == -20

    async def test_a_repeated_operation_happens_once(self, counter_leg: CounterLeg) -> None:
        counter, other = counter_of(counter_leg), counter_leg.other.counter(COUNTER)
        assert await counter.incr(by=5, operation_id="a") == 5
        assert await counter.incr(by=100) == 105
        assert await other.incr(by=5, operation_id="a") == 5
        assert await counter.get() == 105
        assert await counter.decr(by=5, operation_id="b") == 100
        assert await counter.decr(by=5, operation_id="b") == 100
        assert await counter.incr_batch(10, operation_id="c") == 110
        assert await counter.incr_batch(10, operation_id="c") == 110
        assert await counter.allocate(10, operation_id="d") == range(111, 121)
        assert await other.allocate(10, operation_id="d") == range(111, 121)
        assert await counter.get() == 120
        await counter.reset()
        assert await counter.incr(by=5, operation_id="a") == 5, "its answer outlives a reset"
        assert await counter.get() == 0

    async def test_repeats_at_once_happen_once(self, counter_leg: CounterLeg) -> None:
        ports = [counter_of(counter_leg), counter_leg.other.counter(COUNTER)]
        answers = await asyncio.gather(
            *(ports[n % 2].allocate(3, operation_id=f"op {n % 10}") for n in range(100))
        )
        assert len({(each.start, each.stop) for each in answers}) == 10
        assert await ports[0].get() == 30

    async def test_an_operation_is_of_itscounter_of(self, counter_leg: CounterLeg) -> None:
        counter = counter_of(counter_leg)
        assert await counter.incr("a", operation_id="k") == 1
        assert await counter.incr("b", by=2, operation_id="k") == 2
        assert await counter.incr(by=3, operation_id="k") == 3
        assert await counter_leg.ctx.counter(OTHER_COUNTER).incr(by=4, operation_id="k") == 4
        assert await counter.incr("a", operation_id="k") == 1

    async def test_no_suffix_spells_an_operation(self, counter_leg: CounterLeg) -> None:
        counter = counter_of(counter_leg)
        for name in ("k", "a!k", "!", "!k", "a:k", "a/k"):
            assert await counter.incr("a", operation_id=name) >= 1
            assert await counter.incr(operation_id=name) >= 1
        for suffix in ("a!k", "!k", "a!a!k", "k", "!", "a:k", "a%21k", "a/k"):
            assert await counter.get(suffix) == 0, suffix

    async def test_an_operation_is_forgotten_in_time(self, counter_leg: CounterLeg) -> None:
        counter = counter_of(counter_leg)
        assert await counter.incr(operation_id="a") == 1
        await counter_leg.pass_time(REMEMBERED - timedelta(seconds=5))
        assert await counter.incr(operation_id="a") == 1
        await counter_leg.pass_time(timedelta(seconds=6))
        assert await counter.incr(operation_id="a") == 2, "a repeat prolongs nothing"

    async def test_a_value_never_expires(self, counter_leg: CounterLeg) -> None:
        counter = counter_of(counter_leg)
        await counter.incr(operation_id="a")
        await counter.incr("s")
        await counter_leg.pass_time(timedelta(days=400))
        assert (await counter.get(), await counter.get("s")) == (1, 1)

    async def test_each_call_is_one_trip(self, counter_leg: CounterLeg) -> None:
        if counter_leg.trips is None:
            return
        counter, stock = counter_of(counter_leg), counter_leg.ctx.counter(BOUNDED_COUNTER)
        before = counter_leg.trips()
        await counter.incr()
        await counter.decr("a")
        await counter.incr_batch(5)
        await counter.allocate(5, operation_id="a")
        await counter.reset(value=3)
        await counter.get()
        await stock.incr()
        assert counter_leg.trips() - before == 7

    async def test_tenants_count_apart(self, counter_leg: CounterLeg) -> None:
        ctx, counter = counter_leg.ctx, counter_leg.ctx.counter(TENANT_COUNTER)
        with ctx.bind_tenant("a"):
            assert await counter.incr(by=5, operation_id="k") == 5
            assert await counter.incr("s") == 1
        with ctx.bind_tenant("b"):
            assert await counter.get() == 0
            assert await counter.incr(operation_id="k") == 1
            assert await counter.get("s") == 0
        for tenant in SUFFIXES:
            with ctx.bind_tenant(tenant):
                assert await counter.incr("x") == 1
        with refused(TenantRequired, "owned_orders", "bind_tenant"):
            await counter.incr()
        with refused(TenantRequired):
            await counter.get("s")


class CounterFailures:
    """What the port promises where something goes wrong."""

    async def test_no_float_no_bool_no_text(self, counter_leg: CounterLeg) -> None:
        counter = counter_of(counter_leg)
        await counter.reset(value=5)
        for wrong in NO_INTEGERS:
            for call in (counter.incr, counter.decr):
                if wrong == 2**63 and call == counter.decr:
                    continue  # -2**63 fits
                with refused(ValidationError, "'orders'", "by", str(wrong)) as caught:
                    await call(by=wrong)
                assert caught.error.field == "by"
            with refused(ValidationError, "'orders'", "count"):
                await counter.incr_batch(wrong)
            with refused(ValidationError, "'orders'", "count"):
                await counter.allocate(wrong)
            with refused(ValidationError, "'orders'", "value"):
                await counter.reset(value=wrong)
            with refused(ValidationError, "'orders'", "block"):
                counter.allocator(wrong)
        assert await counter.get() == 5

    async def test_a_block_has_at_least_one(self, counter_leg: CounterLeg) -> None:
        counter = counter_of(counter_leg)
        for count in (0, -1, INT64_MIN):
            with refused(ValidationError, "count", "at least 1"):
                await counter.incr_batch(count)
            with refused(ValidationError, "count", "at least 1"):
                await counter.allocate(count)
            with refused(ValidationError, "block", "at least 1"):
                counter.allocator(count)
        assert await counter.get() == 0

    async def test_overflow_leaves_the_value(self, counter_leg: CounterLeg) -> None:
        counter = counter_of(counter_leg)
        for end, by, change in (
            (INT64_MAX, 1, counter.incr),
            (INT64_MAX, INT64_MAX, counter.incr),
            (INT64_MAX - 5, 6, counter.incr),
            (INT64_MIN, 1, counter.decr),
            (INT64_MIN, INT64_MAX, counter.decr),
            (INT64_MIN + 5, 6, counter.decr),
            (INT64_MIN + 5, 2**63, counter.decr),
        ):
            await counter.reset("a:1", end)
            for operation in (None, "op"):
                with refused(ValidationError, "'orders'", "'a:1'", "beyond", "left as"):
                    await change("a:1", by, operation_id=operation)
            assert await counter.get("a:1") == end
        await counter.reset(value=INT64_MAX - 5)
        with refused(ValidationError, "beyond"):
            await counter.incr_batch(6)
        with refused(ValidationError, "beyond"):
            await counter.allocate(6, operation_id="op")
        assert await counter.get() == INT64_MAX - 5

    async def test_bounds_are_kept(self, counter_leg: CounterLeg) -> None:
        stock = counter_leg.ctx.counter(BOUNDED_COUNTER)
        for value, call in (
            (10, stock.incr),
            (4, lambda: stock.incr(by=7)),
            (4, lambda: stock.incr(by=INT64_MAX)),
            (0, stock.decr),
            (4, lambda: stock.decr(by=5, operation_id="a")),
            (4, lambda: stock.decr(by=2**63)),
            (4, lambda: stock.allocate(7)),
            (4, lambda: stock.incr_batch(7, operation_id="b")),
        ):
            await stock.reset(value=value)
            with refused(ValidationError, "'stock'", "beyond", f"at {value}"):
                await call()
            assert await stock.get() == value
        for value in (-1, 11):
            with refused(ValidationError, "'stock'", str(value), "bounds"):
                await stock.reset(value=value)
        assert await stock.get() == 4

    async def test_many_at_a_bound_never_step_over_it(self, counter_leg: CounterLeg) -> None:
        ports = [ctx.counter(BOUNDED_COUNTER) for ctx in (counter_leg.ctx, counter_leg.other)]
        answers = await asyncio.gather(
            *(ports[n % 2].incr(by=3) for n in range(20)), return_exceptions=True
        )
        assert sorted(each for each in answers if isinstance(each, int)) == [3, 6, 9]
        assert sum(isinstance(each, ValidationError) for each in answers) == 17
        assert await ports[0].get() == 9

    async def test_a_refused_operation_is_not_remembered(self, counter_leg: CounterLeg) -> None:
        stock = counter_leg.ctx.counter(BOUNDED_COUNTER)
        await stock.reset(value=10)
        with refused(ValidationError, "beyond"):
            await stock.incr(operation_id="a")
        await stock.reset(value=5)
        assert await stock.incr(operation_id="a") == 6
        await stock.reset(value=10)
        assert await stock.incr(operation_id="a") == 6, "what was done is answered, bound or not"

    async def test_an_id_is_for_one_operation(self, counter_leg: CounterLeg) -> None:
        counter = counter_of(counter_leg)
        assert await counter.incr(by=5, operation_id="a") == 5
        for call in (
            lambda: counter.incr(by=6, operation_id="a"),
            lambda: counter.incr(by=-5, operation_id="a"),
            lambda: counter.decr(by=5, operation_id="a"),
            lambda: counter.decr(by=-5, operation_id="a"),
            lambda: counter.incr_batch(5, operation_id="a"),
            lambda: counter.allocate(5, operation_id="a"),
        ):
            with refused(ValidationError, "'orders'", "'a'", "incr 5", "new id") as caught:
                await call()
            assert caught.error.field == "operation_id"
        assert await counter.get() == 5
        not_ids: tuple[Any, ...] = ("", "x" * 256, 5, b"a", 1.0)
        for wrong in not_ids:
            with refused(ValidationError, "operation_id", "1 to 255"):
                await counter.incr(operation_id=wrong)
        assert await counter.incr(operation_id="é" * 255) == 6

    async def test_a_suffix_is_text_with_something_in_it(self, counter_leg: CounterLeg) -> None:
        counter = counter_of(counter_leg)
        not_suffixes: tuple[Any, ...] = ("", 5, b"a")
        for wrong in not_suffixes:
            for call in (
                lambda wrong=wrong: counter.incr(wrong),
                lambda wrong=wrong: counter.get(wrong),
                lambda wrong=wrong: counter.reset(wrong),
                lambda wrong=wrong: counter.allocator(10, wrong).next(),
            ):
                with refused(ValidationError, "suffix"):
                    await call()

    async def test_a_spec_refuses_nonsense(self, counter_leg: CounterLeg) -> None:
        nonsense: tuple[dict[str, Any], ...] = (
            {"name": ""},
            {"name": None},
            {"name": "a", "minimum": 1.0},
            {"name": "a", "maximum": True},
            {"name": "a", "maximum": 2**63},
            {"name": "a", "minimum": 2, "maximum": 1},
            {"name": "a", "operation_ttl": timedelta(0)},
            {"name": "a", "operation_ttl": 5},
        )
        for wrong in nonsense:
            with refused(ConfigurationError, "CounterSpec", list(wrong)[-1]):
                CounterSpec(**wrong)

    async def test_one_name_is_one_spec(self, counter_leg: CounterLeg) -> None:
        assert counter_leg.ctx.counter(COUNTER) is counter_leg.ctx.counter(COUNTER)
        with refused(ConfigurationError, "'orders'"):
            counter_leg.ctx.counter(CounterSpec(name="orders", maximum=5))


class CounterOutage:
    """What the port promises while its server is away."""

    async def test_it_says_so_and_counts_again_after(
        self, counter_leg: CounterLeg, outage: Outage
    ) -> None:
        counter = counter_of(counter_leg)
        await counter.incr()
        await outage.break_backend()
        for call in (
            counter.incr,
            counter.get,
            counter.reset,
            lambda: counter.allocate(5, operation_id="a"),
            counter.allocator(5).next,
        ):
            with refused(BackendError, "127.0.0.1"):
                async with asyncio.timeout(PATIENCE.total_seconds()):
                    await call()
        await outage.restore()
        assert await _again(counter.incr) >= 1

    async def test_a_block_in_hand_goes_on(self, counter_leg: CounterLeg, outage: Outage) -> None:
        ids = counter_of(counter_leg).allocator(100)
        assert await ids.next() == 1
        await outage.break_backend()
        assert [await ids.next() for _ in range(99)] == list(range(2, 101))
        with refused(BackendError):
            await ids.next()
        await outage.restore()
        assert await _again(ids.next) >= 1


async def _again(call: Callable[[], Awaitable[int]]) -> int:
    """What ``call`` returns once the server is back."""
    async with asyncio.timeout(PATIENCE.total_seconds()):
        while True:
            with contextlib.suppress(BackendError):
                return await call()
            await asyncio.sleep(0.02)
