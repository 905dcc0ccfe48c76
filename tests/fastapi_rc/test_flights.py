"""One factory for all who ask meanwhile: failures, cancellations, writes, and circles."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import traceback
import weakref
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from fakeredis import FakeAsyncRedis
from fastapi import HTTPException
from redis.asyncio import Redis

from fastapi_rc.calls import calls_of
from fastapi_rc.errors import FactoryCycle
from fastapi_rc.flights import twin
from fastapi_rc.service import CacheService
from forze.errors import NotFoundError
from forze.testing.proxy import RespProxy, command
from forze.testing.servers import ValkeyServer

pytestmark = pytest.mark.usefixtures("patient")

KEY = "cache:v1:users:1"


class Held:
    """A factory that runs until it is told to end, and counts its runs."""

    def __init__(self) -> None:
        self.runs = 0
        self.cancelled = 0
        self.begun = asyncio.Event()
        self.ends: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

    async def __call__(self) -> Any:
        self.runs += 1
        self.begun.set()
        try:
            return await asyncio.shield(self.ends)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise


@pytest.fixture
async def held() -> AsyncIterator[Held]:
    factory = Held()
    yield factory
    if not factory.ends.done():
        factory.ends.cancel()


@pytest.fixture
async def proxy(valkey: ValkeyServer, valkey_dsn: str) -> AsyncIterator[RespProxy]:
    async with RespProxy(valkey.port) as between:
        yield between


@pytest.fixture
async def slow(proxy: RespProxy) -> AsyncIterator[Redis]:
    """A client whose commands and replies can be held."""
    async with Redis.from_url(proxy.dsn, decode_responses=True) as client:
        yield client


def asking(redis: Any, factory: Callable[[], Any], number: int = 1) -> list[asyncio.Task[Any]]:
    """Callers, each with a service of its own, as a route has it."""
    return [
        asyncio.create_task(CacheService[Any](redis, "users").get_or_set("1", factory))
        for _ in range(number)
    ]


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.001)


def all_aboard(redis: Any, number: int) -> Callable[[], bool]:
    table = calls_of(redis).flights._here()
    return lambda: KEY in table and table[KEY].aboard == number


async def test_thirty_concurrent_misses_run_the_factory_once(redis: Redis, held: Held) -> None:
    callers = asking(redis, held, 30)
    await held.begun.wait()
    await until(all_aboard(redis, 30))
    held.ends.set_result({"id": 1, "tags": []})
    values = await asyncio.gather(*callers)
    assert values == [{"id": 1, "tags": []}] * 30
    assert len({id(each) for each in values}) == 30, "a caller may change what it got"
    assert held.runs == 1
    assert await redis.get(KEY) == '{"id":1,"tags":[]}'


@pytest.mark.parametrize(
    "factory",
    [lambda: 5, lambda: asyncio.sleep(0, 5), lambda: asyncio.ensure_future(asyncio.sleep(0, 5))],
    ids=["sync", "lambda of a coroutine", "future"],
)
async def test_factories_of_every_kind(redis: Redis, factory: Callable[[], Any]) -> None:
    assert await CacheService[Any](redis, "users").get_or_set("1", factory) == 5
    assert await redis.get(KEY) == "5"


async def test_what_is_no_function_is_a_type_error(redis: Redis) -> None:
    for factory in (asyncio.sleep(0), 5, None):
        with pytest.raises(TypeError, match="function"):
            await CacheService[Any](redis, "users").get_or_set("1", factory)  # type: ignore[call-overload]


async def test_what_cannot_be_stored_is_shared_as_copies(redis: Redis, held: Held) -> None:
    callers = asking(redis, held, 2)
    await until(all_aboard(redis, 2))
    value = {"a": {1}}
    held.ends.set_result(value)
    values = await asyncio.gather(*callers)
    assert values[0] is value
    assert values[1] == value
    assert values[1] is not value


async def test_a_failure_is_shared_each_has_its_own(redis: Redis, held: Held) -> None:
    callers = asking(redis, held, 5)
    await until(all_aboard(redis, 5))
    error = LookupError("no such user")
    held.ends.set_exception(error)
    failures: list[Any] = await asyncio.gather(*callers, return_exceptions=True)
    assert [str(each) for each in failures] == ["no such user"] * 5
    assert len({id(each) for each in failures}) == 5
    assert failures[0] is error
    for each in failures[1:]:
        frames = [frame.name for frame in traceback.extract_tb(each.__traceback__)]
        assert "__call__" in frames, "it says where the factory failed"
        assert frames.count("get_or_set") == 1
    assert held.runs == 1
    assert await redis.keys() == []
    assert await CacheService[Any](redis, "users").get_or_set("1", lambda: "next") == "next"


async def test_cancelling_one_harms_no_other_cancelling_all_ends_it(
    redis: Redis, held: Held
) -> None:
    callers = asking(redis, held, 4)
    await until(all_aboard(redis, 4))
    callers[0].cancel()  # the one it runs for
    callers[2].cancel()
    await until(all_aboard(redis, 2))
    assert held.cancelled == 0
    for each in (callers[1], callers[3]):
        each.cancel()
    ended = await asyncio.gather(*callers, return_exceptions=True)
    assert all(isinstance(each, asyncio.CancelledError) for each in ended)
    assert held.cancelled == 1, "nobody waits for it, and it has ended before the last caller"
    assert calls_of(redis).flights._here() == {}

    callers = asking(redis, held, 3)
    await until(all_aboard(redis, 3))
    callers[0].cancel()
    held.ends.set_result("made")
    assert await asyncio.gather(*callers[1:]) == ["made", "made"]
    assert held.runs == 2


async def test_cancelled_while_it_looks_another_takes_over(
    slow: Redis, proxy: RespProxy, held: Held
) -> None:
    look = proxy.hold_reply(command("GET"))
    first, second = asking(slow, held, 2)
    await look.seen()
    first.cancel()
    held.ends.set_result("made")
    assert await second == "made"
    await asyncio.wait((first,))
    assert first.cancelled()
    look.release()
    assert held.runs == 1


async def test_a_factory_that_cancels_itself_cancels_its_caller_alone(redis: Redis) -> None:
    runs = []
    begun = asyncio.Event()

    async def factory() -> str:
        runs.append(1)
        if len(runs) == 1:
            await begun.wait()
            raise asyncio.CancelledError
        return "made"

    callers = asking(redis, factory, 3)
    await until(all_aboard(redis, 3))
    begun.set()
    ended: list[Any] = await asyncio.gather(*callers, return_exceptions=True)
    assert isinstance(ended[0], asyncio.CancelledError)
    assert ended[1:] == ["made", "made"]


async def test_the_factory_runs_in_the_context_of_the_first(redis: Redis) -> None:
    who: contextvars.ContextVar[str] = contextvars.ContextVar("who")
    release = asyncio.Event()

    async def factory() -> str:
        name = who.get()
        await release.wait()
        return name

    async def ask(name: str) -> Any:
        who.set(name)
        return await CacheService[Any](redis, "users").get_or_set("1", factory)

    callers = [asyncio.create_task(ask(name)) for name in ("first", "second")]
    await until(all_aboard(redis, 2))
    release.set()
    assert await asyncio.gather(*callers) == ["first", "first"]


# -- writes --------------------------------------------------------------------


async def write_by(redis: Any, how: str) -> None:
    cache = CacheService[Any](redis, "users")
    if how == "delete":
        await cache.delete("1")
    elif how == "set":
        await cache.set("1", "written")
    else:
        await cache.invalidate_pattern("1*")


@pytest.mark.parametrize("how", ["delete", "set", "invalidate"])
async def test_a_write_during_the_factory_wins(redis: Redis, held: Held, how: str) -> None:
    callers = asking(redis, held, 2)
    await until(all_aboard(redis, 2))
    await write_by(redis, how)
    fresh = Held()
    later = asking(redis, fresh, 1)
    if how != "set":
        await fresh.begun.wait()
        fresh.ends.set_result("fresh")
    held.ends.set_result("stale")
    expected = "written" if how == "set" else "fresh"
    assert await asyncio.gather(*callers) == ["stale", "stale"]  # they asked before the write
    assert await asyncio.gather(*later) == [expected]
    assert await CacheService[Any](redis, "users").get("1") == expected


@pytest.mark.parametrize("how", ["delete", "set", "invalidate"])
async def test_a_write_waits_for_a_store_on_its_way(
    slow: Redis, proxy: RespProxy, redis: Redis, how: str
) -> None:
    await asyncio.gather(*(slow.ping() for _ in range(4)))  # nothing below has to connect
    store = proxy.hold_request(command("SET", KEY))
    (caller,) = asking(slow, lambda: "stale")
    await store.seen()
    proxy.commands.clear()
    writer = asyncio.create_task(write_by(slow, how))
    for _ in range(3):  # what the writer sends is there before the last of these
        await slow.ping()
    assert {each[0] for each in proxy.commands} == {b"PING"}
    assert not writer.done()
    store.release()
    await writer
    assert await caller == "stale"
    assert await redis.get(KEY) == ('"written"' if how == "set" else None)


@pytest.mark.parametrize("begun", ["before", "during"])
@pytest.mark.parametrize("how", ["delete", "set", "invalidate"])
async def test_who_asks_after_a_write_gets_no_look_from_before(
    slow: Redis, proxy: RespProxy, held: Held, how: str, begun: str
) -> None:
    await CacheService[Any](slow, "users").set("1", "stale")
    look = proxy.hold_reply(command("GET"))
    write = proxy.hold_request(command({"delete": "DEL", "set": "SET"}.get(how, "UNLINK")))
    held.ends.set_result("fresh")
    if begun == "before":
        (early,) = asking(slow, held)
        await look.seen()
    writer = asyncio.create_task(write_by(slow, how))
    await write.seen()
    if begun == "during":
        (early,) = asking(slow, held)
        await look.seen()
    write.release()
    await writer
    (late,) = asking(slow, held)
    await asyncio.sleep(0)
    look.release()
    assert await late == ("written" if how == "set" else "fresh")
    assert await early == "stale"  # it asked before the write was done


async def test_a_write_of_another_key_grounds_nothing(redis: Redis, held: Held) -> None:
    (caller,) = asking(redis, held)
    await held.begun.wait()
    await CacheService[Any](redis, "users").delete("2")
    await CacheService[Any](redis, "user").invalidate_pattern()
    held.ends.set_result("made")
    assert await caller == "made"
    assert await redis.get(KEY) == '"made"'


# -- circles -------------------------------------------------------------------


async def test_a_factory_that_asks_for_its_own_key_is_told_so(redis: Redis) -> None:
    cache = CacheService[Any](redis, "users")

    async def other() -> Any:
        return await cache.get_or_set("1", through)

    async def through() -> Any:
        return await cache.get_or_set("2", other)

    async def itself() -> Any:
        return await asyncio.gather(cache.get_or_set("3", itself))

    async with asyncio.timeout(20):
        with pytest.raises(FactoryCycle, match="cache:v1:users:1"):
            await cache.get_or_set("1", through)
        with pytest.raises(RuntimeError, match="cache:v1:users:3"):
            await cache.get_or_set("3", itself)


async def test_two_factories_that_wait_for_each_other_are_told_so(redis: Redis) -> None:
    cache = CacheService[Any](redis, "users")
    both = asyncio.Barrier(2)

    async def left() -> Any:
        await both.wait()
        return await cache.get_or_set("right", lambda: "right alone")

    async def right() -> Any:
        await both.wait()
        return await cache.get_or_set("left", lambda: "left alone")

    async with asyncio.timeout(20):
        ended: Any = await asyncio.gather(
            cache.get_or_set("left", left), cache.get_or_set("right", right),
            return_exceptions=True,
        )  # fmt: skip
    assert [type(each) for each in ended] == [FactoryCycle, FactoryCycle]


async def test_factories_may_ask_for_other_keys(redis: Redis) -> None:
    cache = CacheService[Any](redis, "users")

    async def page() -> Any:
        return await asyncio.gather(*(cache.get_or_set("1", lambda: "ann") for _ in range(3)))

    assert await cache.get_or_set("page", page) == ["ann"] * 3


# -- loops, clients, errors ----------------------------------------------------


def test_a_fake_client_works_on_one_loop_after_another() -> None:
    fake = FakeAsyncRedis()
    runs: list[int] = []

    def factory() -> str:
        runs.append(1)
        return "made"

    async def ask() -> Any:
        cache = CacheService[Any](fake, "users")
        return await asyncio.gather(*(cache.get_or_set("1", factory) for _ in range(3)))

    for _ in range(3):
        assert asyncio.run(ask()) == ["made"] * 3
    assert runs == [1]


async def test_nothing_is_kept_of_a_client_that_is_gone(held: Held) -> None:
    fake = FakeAsyncRedis()
    held.ends.set_result(1)
    await asking(fake, held)[0]
    calls = weakref.ref(calls_of(fake))
    await fake.aclose()
    del fake
    gc.collect()
    assert calls() is None


class Awkward(Exception):
    """It cannot be made from its args."""

    def __init__(self, what: str, *, where: str) -> None:
        super().__init__(f"{what} {where}")


def test_a_twin_is_equal_and_its_own() -> None:
    errors: list[Exception] = [
        ValueError("x", 2),
        OSError(2, "gone", "file"),
        KeyError("k"),
        UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad"),
        NotFoundError("n", resource="r"),
        ExceptionGroup("g", [ValueError("x")]),
        Awkward("a", where="b"),
        HTTPException(status_code=404, detail="no such user", headers={"X-A": "b"}),
    ]
    for error in errors:
        error.add_note("noted")
        other = twin(error)
        assert other is not error
        assert type(other) is type(error)
        assert (str(other), repr(other), other.args) == (str(error), repr(error), error.args)
        assert other.__dict__ == error.__dict__
