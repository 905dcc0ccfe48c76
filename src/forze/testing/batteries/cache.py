"""What every ``CachePort`` does."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

from forze.application.contracts.cache import CachePort, Fill, Miss
from forze.errors import BackendError, TenantRequired, ValidationError
from forze.testing.batteries.legs import (
    CACHE,
    OTHER_CACHE,
    PATIENCE,
    TENANT_CACHE,
    CacheLeg,
    Outage,
    apart,
    cancelled,
)
from forze.testing.batteries.refusals import refused

SHORT = timedelta(milliseconds=40)
LONGER = timedelta(milliseconds=60)
LONG = timedelta(hours=1)

VALUES: tuple[Any, ...] = (
    True,
    False,
    0,
    -1,
    2**63,
    1.5,
    "",
    "text",
    "Grüße, 世界 \U0001f600",
    "line\nbreak\0nul",
    [],
    [1, [2, [3]]],
    {},
    {"a": {"b": [None, True, 1.25, "x"]}, "": 0, "ключ": "значение"},
    b"",
    b"\x00",
    b"\x00\xff\r\n",
    b'{"json": "but bytes"}',
    b"V:1",
)

KEYS = (
    "a",
    "A",
    "a/b",
    "a%2Fb",
    "a%b",
    "{a}",
    "{}",
    "a b",
    " ",
    "a:b",
    "a*",
    "a?[b]",
    "é",
    "ключ/世界",
    "line\nbreak",
    "..",
    "/",
    "//",
    "%",
    "k" * 600,
)


def _cache(leg: CacheLeg) -> CachePort:
    return leg.ctx.cache(CACHE)


class CacheBehaviour:
    """What the port promises where nothing goes wrong."""

    async def test_nothing_is_a_miss(self, cache_leg: CacheLeg) -> None:
        cache = _cache(cache_leg)
        assert await cache.get("k") is None
        assert await cache.exists("k") is False
        assert await cache.get_many(["k", "l"]) == ({}, ["k", "l"])
        assert await cache.get_many([]) == ({}, [])

    async def test_set_then_get_is_the_identity(self, cache_leg: CacheLeg) -> None:
        cache = _cache(cache_leg)
        for value in VALUES:
            await cache.set("k", value)
            found = await cache.get("k")
            assert found == value
            assert type(found) is type(value)
            assert await cache.set_versioned("v", "1", value) is True
            found = await cache.get("v")
            assert found == value
            assert type(found) is type(value)

    async def test_none_is_stored_and_exists(self, cache_leg: CacheLeg) -> None:
        cache = _cache(cache_leg)
        await cache.set("k", None)
        assert await cache.get("k") is None
        assert await cache.exists("k") is True
        assert await cache.get_many(["k"]) == ({"k": None}, [])

    async def test_another_process_sees_it(self, cache_leg: CacheLeg) -> None:
        await _cache(cache_leg).set("k", [1])
        assert await cache_leg.other.cache(CACHE).get("k") == [1]

    async def test_what_is_stored_is_a_copy(self, cache_leg: CacheLeg) -> None:
        cache = _cache(cache_leg)
        value = {"list": [1]}
        await cache.set("k", value)
        value["list"].append(2)
        found = await cache.get("k")
        assert found == {"list": [1]}
        assert isinstance(found, dict)
        found["list"].append(3)
        assert await cache.get("k") == {"list": [1]}

    async def test_every_key_is_its_own(self, cache_leg: CacheLeg) -> None:
        cache = _cache(cache_leg)
        for position, key in enumerate(KEYS):
            await cache.set(key, position)
            await cache.set_versioned(f"versioned {key}", "1", position)
        for position, key in enumerate(KEYS):
            assert await cache.get(key) == position, key
            assert await cache.get(f"versioned {key}") == position, key
            await cache.delete(key)
            assert await cache.get(key) is None, key
        assert await cache.get(f"versioned {KEYS[0]}") == 0

    async def test_every_version_text_is_accepted(self, cache_leg: CacheLeg) -> None:
        cache = _cache(cache_leg)
        for version in KEYS:
            assert await cache.set_versioned("k", version, version) is True
            assert await cache.get("k") == version

    async def test_namespaces_are_apart(self, cache_leg: CacheLeg) -> None:
        cache, other = _cache(cache_leg), cache_leg.ctx.cache(OTHER_CACHE)
        await cache.set("k", 1)
        await cache.set_versioned("v", "1", 1)
        assert await other.get_many(["k", "v"]) == ({}, ["k", "v"])
        await other.invalidate_many(["k", "v"])
        assert await cache.get_many(["k", "v"]) == ({"k": 1, "v": 1}, [])

    async def test_many_keys_in_the_order_asked(self, cache_leg: CacheLeg) -> None:
        cache = _cache(cache_leg)
        await cache.set_many({f"k{number}": number for number in range(0, 250, 2)})
        await cache.set_many({})
        asked = [f"k{number}" for number in range(249, -1, -1)]
        hits, missing = await cache.get_many(asked)
        assert list(hits.items()) == [(f"k{number}", number) for number in range(248, -1, -2)]
        assert missing == [f"k{number}" for number in range(249, 0, -2)]

    async def test_duplicate_keys_are_answered_once(self, cache_leg: CacheLeg) -> None:
        cache = _cache(cache_leg)
        await cache.set("a", 1)
        assert await cache.get_many(["b", "a", "b", "a"]) == ({"a": 1}, ["b"])

    async def test_a_plain_value_expires(self, cache_leg: CacheLeg) -> None:
        cache = _cache(cache_leg)
        await cache.set("short", 1, ttl=SHORT)
        await cache.set_many({"shorter": 1}, ttl=SHORT)
        await cache.set("long", 1)
        await cache_leg.pass_time(LONGER)
        assert await cache.get_many(["short", "shorter", "long"]) == (
            {"long": 1},
            ["short", "shorter"],
        )
        assert await cache.exists("short") is False

    async def test_a_versioned_value_expires(self, cache_leg: CacheLeg) -> None:
        cache = _cache(cache_leg)
        await cache.set_versioned("short", "1", 1, ttl=SHORT)
        await cache.set_versioned("long", "1", 1)
        await cache_leg.pass_time(LONGER)
        assert await cache.get_many(["short", "long"]) == ({"long": 1}, ["short"])

    async def test_the_default_lifetime_is_the_specs(self, cache_leg: CacheLeg) -> None:
        cache = _cache(cache_leg)
        await cache.set("k", 1)
        await cache.set_versioned("v", "1", 1)
        await cache_leg.pass_time(CACHE.ttl - timedelta(seconds=5))
        assert await cache.get_many(["k", "v"]) == ({"k": 1, "v": 1}, [])
        await cache_leg.pass_time(timedelta(seconds=6))
        assert await cache.get_many(["k", "v"]) == ({}, ["k", "v"])

    async def test_setting_again_starts_a_new_life(self, cache_leg: CacheLeg) -> None:
        cache = _cache(cache_leg)
        await cache.set("k", 1, ttl=SHORT)
        await cache.set("k", 2, ttl=LONG)
        await cache.set("l", 1, ttl=LONG)
        await cache.set("l", 2, ttl=SHORT)
        await cache_leg.pass_time(LONGER)
        assert await cache.get_many(["k", "l"]) == ({"k": 2}, ["l"])

    async def test_a_lower_version_is_refused(self, cache_leg: CacheLeg) -> None:
        cache = _cache(cache_leg)
        assert await cache.set_versioned("k", "9", "nine") is True
        assert await cache.set_versioned("k", "10", "ten") is True
        assert await cache.set_versioned("k", "9", "nine") is False
        assert await cache.get("k") == "ten"
        assert await cache.set_versioned("k", "10", "ten again") is True
        assert await cache.get("k") == "ten again"
        assert await cache.set_versioned("k", "0011", "eleven") is True
        assert await cache.set_versioned("k", "99999999999999999999", "huge") is True
        assert await cache.set_versioned("k", "99999999999999999998", "lower") is False
        assert await cache.get("k") == "huge"

    async def test_versions_that_are_no_numbers_replace_each_other(
        self, cache_leg: CacheLeg
    ) -> None:
        cache = _cache(cache_leg)
        for version in ("b", "a", "2", "1a", "1"):
            assert await cache.set_versioned("k", version, version) is True
            assert await cache.get("k") == version

    async def test_many_versioned_values_tell_which_were_stored(self, cache_leg: CacheLeg) -> None:
        cache = _cache(cache_leg)
        await cache.set_versioned("k7", "5", "newer")
        values = {(f"k{number}", "4"): number for number in range(150)}
        stored = await cache.set_many_versioned(values)
        assert list(stored) == list(values)
        assert [key for key, ok in stored.items() if not ok] == [("k7", "4")]
        assert await cache.get_many(["k7", "k149"]) == ({"k7": "newer", "k149": 149}, [])
        assert await cache.set_many_versioned({}) == {}

    async def test_a_versioned_value_comes_before_a_plain_one(self, cache_leg: CacheLeg) -> None:
        cache = _cache(cache_leg)
        await cache.set("k", "plain")
        await cache.set_versioned("k", "1", "versioned")
        assert await cache.get("k") == "versioned"

    async def test_a_plain_value_invalidates_a_versioned_one(self, cache_leg: CacheLeg) -> None:
        cache = _cache(cache_leg)
        await cache.set_versioned("k", "7", "versioned")
        await cache.set("k", "plain")
        assert await cache.get("k") == "plain"
        assert await cache.set_versioned("k", "6", "older, but nothing is there") is True

    async def test_invalidate_removes_both(self, cache_leg: CacheLeg) -> None:
        cache = _cache(cache_leg)
        await cache.set("k", "plain")
        await cache.set_versioned("k", "1", "versioned")
        await cache.set("stays", 1)
        await cache.invalidate("k")
        await cache.invalidate("never there")
        assert await cache.get_many(["k", "stays"]) == ({"stays": 1}, ["k"])

    async def test_invalidate_many(self, cache_leg: CacheLeg) -> None:
        cache = _cache(cache_leg)
        keys = [f"k{number}" for number in range(150)]
        await cache.set_many(dict.fromkeys(keys, 1))
        await cache.set_many_versioned({(key, "1"): 2 for key in keys[:120]})
        await cache.invalidate_many(key for key in keys[:-1])
        assert await cache.get_many(keys) == ({keys[-1]: 1}, keys[:-1])

    async def test_delete_tells_whether_there_was_one(self, cache_leg: CacheLeg) -> None:
        cache = _cache(cache_leg)
        for hard in (True, False):
            await cache.set("k", 1)
            assert await cache.delete("k", hard=hard) is True
            assert await cache.delete("k", hard=hard) is False
            await cache.set_versioned("k", "1", 1)
            assert await cache.delete("k", hard=hard) is True
            assert await cache.exists("k") is False
            assert await cache.delete("k", hard=hard) is False

    async def test_get_sees_what_a_document_reader_stored(self, cache_leg: CacheLeg) -> None:
        cache = _cache(cache_leg)
        pointers = cache.pointers("schema01")
        address, token = pointers.address("k"), pointers.token()
        assert await pointers.read(address, token) is Miss.LEASED
        assert await cache.get("k") is None
        body = b'{"id":1}'
        assert await pointers.fill([Fill(address, token, 3, body, 60_000)]) == [True]
        assert await cache.get("k") == {"id": 1}
        assert await cache.exists("k") is True
        assert await cache.set_versioned("k", "2", "older") is False
        assert await cache.set_versioned("k", "4", "newer") is True
        assert await pointers.read(address, pointers.token()) is Miss.LEASED, "not its schema"

    async def test_every_write_destroys_a_readers_lease(self, cache_leg: CacheLeg) -> None:
        cache = _cache(cache_leg)
        pointers = cache.pointers("schema01")
        address = pointers.address("k")
        writes = (
            lambda: cache.set("k", 1),
            lambda: cache.set_versioned("k", "1", 1),
            lambda: cache.invalidate("k"),
            lambda: cache.delete("k"),
        )
        for write in writes:
            await cache.delete("k")
            token = pointers.token()
            assert await pointers.read(address, token) is Miss.LEASED
            await write()
            assert await pointers.fill([Fill(address, token, 1, b"{}", 60_000)]) == [False]

    async def test_no_direct_write_hides_a_write_in_flight(self, cache_leg: CacheLeg) -> None:
        cache = _cache(cache_leg)
        pointers = cache.pointers("schema01")
        address = pointers.address("k")
        await cache.set_versioned("k", "1", 1)
        await pointers.intend([address], "writer")
        assert await cache.get("k") is None
        assert await cache.set_versioned("k", "99", 99) is False
        assert (await cache.set_many_versioned({("k", "99"): 99}))[("k", "99")] is False
        await cache.set("k", "plain")
        assert await cache.get("k") == "plain"
        assert await cache.delete("k") is True
        await cache.invalidate("k")
        assert await pointers.read(address, pointers.token()) is Miss.INTENT
        await pointers.done([address], "writer")
        assert await cache.set_versioned("k", "1", 1) is True

    async def test_tenants_are_apart(self, cache_leg: CacheLeg) -> None:
        cache = cache_leg.ctx.cache(TENANT_CACHE)
        tenants = ("a", "b", "a/k", "é", "00000000-0000-0000-0000-000000000001")
        for tenant in tenants:
            with cache_leg.ctx.bind_tenant(tenant):
                await cache.set("k", tenant)
                await cache.set_versioned("v", "1", tenant)
        for tenant in tenants:
            with cache_leg.ctx.bind_tenant(tenant):
                assert await cache.get_many(["k", "v"]) == ({"k": tenant, "v": tenant}, [])
        with cache_leg.ctx.bind_tenant("a"):
            await cache.invalidate_many(["k", "v"])
        with cache_leg.ctx.bind_tenant("b"):
            assert await cache.get("k") == "b"
            assert await cache.get("v") == "b"

    async def test_invalidation_in_a_transaction_follows_its_commit(
        self, cache_leg: CacheLeg
    ) -> None:
        cache, elsewhere = _cache(cache_leg), cache_leg.other.cache(CACHE)
        await cache.set_many({"k": "plain", "d": "deleted"})
        await cache.set_versioned("v", "1", "versioned")
        async with cache_leg.ctx.transaction("items"):
            await cache.invalidate_many(["k", "v"])
            assert await cache.delete("d") is True
            assert await cache.delete("never there") is False
            assert await apart(elsewhere.get("k")) == "plain"
            assert await apart(elsewhere.get("d")) == "deleted"
        assert await cache.get_many(["k", "v", "d"]) == ({}, ["k", "v", "d"])
        assert await cache.set_versioned("v", "1", "again") is True, "its intent is gone"

    async def test_invalidation_in_a_transaction_follows_its_rollback(
        self, cache_leg: CacheLeg
    ) -> None:
        cache = _cache(cache_leg)
        await cache.set("k", "plain")
        with refused(KeyError):
            async with cache_leg.ctx.transaction("items"):
                await cache.invalidate_many(["k", "v"])
                await cache.delete("k")
                raise KeyError
        assert await cache.get("k") == "plain"
        assert await cache.set_versioned("v", "1", 1) is True, "its intent is gone"


class CacheFailures:
    """What the port refuses, and what a refusal leaves as it was."""

    async def test_a_key_must_name_something(self, cache_leg: CacheLeg) -> None:
        cache = _cache(cache_leg)
        for key in ("", 1, None, b"k"):
            bad: Any = key
            for call in (
                lambda bad=bad: cache.get(bad),
                lambda bad=bad: cache.get_many(["ok", bad]),
                lambda bad=bad: cache.exists(bad),
                lambda bad=bad: cache.set(bad, 1),
                lambda bad=bad: cache.set_many({"ok": 1, bad: 1}),
                lambda bad=bad: cache.set_versioned(bad, "1", 1),
                lambda bad=bad: cache.invalidate(bad),
                lambda bad=bad: cache.invalidate_many(["ok", bad]),
                lambda bad=bad: cache.delete(bad),
            ):
                with refused(ValidationError, "key"):
                    await call()
        assert await cache.get("ok") is None

    async def test_a_version_must_name_something(self, cache_leg: CacheLeg) -> None:
        cache = _cache(cache_leg)
        for version in ("", 1, None):
            bad: Any = version
            with refused(ValidationError, "version"):
                await cache.set_versioned("k", bad, 1)
        assert await cache.get("k") is None

    async def test_a_value_that_would_not_come_back_is_refused(self, cache_leg: CacheLeg) -> None:
        cache = _cache(cache_leg)
        await cache.set("k", "before")
        bad: dict[str, Any] = {
            "datetime": datetime.now(UTC),
            "Decimal": Decimal("1.5"),
            "set": {1},
            "object": object(),
            "nested datetime": {"at": [datetime.now(UTC)]},
            "tuple": (1, 2),
            "nested tuple": {"a": (1,)},
            "int keys": {1: "a"},
            "nan": float("nan"),
            "infinity": float("inf"),
            "bytearray": bytearray(b"x"),
            "nested bytes": [b"x"],
        }
        for name, value in bad.items():
            with refused(ValidationError, "k"):
                await cache.set("k", value)
            with refused(ValidationError, "k"):
                await cache.set_versioned("k", "1", value)
            with refused(ValidationError, "l"):
                await cache.set_many({"ok": 1, "l": value})
            assert await cache.get_many(["k", "ok", "l"]) == ({"k": "before"}, ["ok", "l"]), name

    async def test_the_refusal_names_the_type_and_the_way_out(self, cache_leg: CacheLeg) -> None:
        with refused(ValidationError, "datetime", "model_dump") as caught:
            await _cache(cache_leg).set("k", datetime.now(UTC))
        assert caught.error.field == "value"

    async def test_the_size_limit(self, cache_leg: CacheLeg) -> None:
        cache, limit = _cache(cache_leg), cache_leg.max_value_bytes
        await cache.set("k", "x" * (limit - 2))
        assert await cache.get("k") == "x" * (limit - 2)
        for call in (
            lambda: cache.set("k", "x" * (limit - 1)),
            lambda: cache.set_versioned("k", "1", "x" * (limit - 1)),
            lambda: cache.set("k", b"x" * (limit + 1)),
        ):
            with refused(ValidationError, str(limit), "max_value_bytes"):
                await call()
        assert await cache.get("k") == "x" * (limit - 2)

    async def test_a_lifetime_must_be_one(self, cache_leg: CacheLeg) -> None:
        cache = _cache(cache_leg)
        for ttl in (timedelta(0), timedelta(seconds=-1), timedelta(microseconds=999)):
            for call in (
                lambda ttl=ttl: cache.set("k", 1, ttl=ttl),
                lambda ttl=ttl: cache.set_many({"k": 1}, ttl=ttl),
                lambda ttl=ttl: cache.set_versioned("k", "1", 1, ttl=ttl),
            ):
                with refused(ValidationError, "ttl", "things"):
                    await call()
        assert await cache.get("k") is None

    async def test_no_tenant_is_an_error_and_never_another_ones_data(
        self, cache_leg: CacheLeg
    ) -> None:
        cache = cache_leg.ctx.cache(TENANT_CACHE)
        with cache_leg.ctx.bind_tenant("a"):
            await cache.set("k", 1)
        for call in (
            lambda: cache.get("k"),
            lambda: cache.set("k", 2),
            lambda: cache.set_versioned("k", "1", 2),
            lambda: cache.invalidate("k"),
            lambda: cache.delete("k"),
        ):
            with refused(TenantRequired, "owned_things", "bind_tenant"):
                await call()
        with cache_leg.ctx.bind_tenant("a"):
            assert await cache.get("k") == 1

    async def test_a_cancelled_caller_harms_nobody(self, cache_leg: CacheLeg) -> None:
        cache = _cache(cache_leg)
        await cache.set("k", 1)
        calls = [apart(cache.get("k")) for _ in range(20)]
        await asyncio.sleep(0)
        for call in calls[::2]:
            await cancelled(call)
        assert await asyncio.gather(*calls[1::2]) == [1] * 10
        assert await cache.get("k") == 1


class CacheOutage:
    """What the port does while its server is away. For backends that have one."""

    async def test_calls_fail_as_backend_errors_and_soon(
        self, cache_leg: CacheLeg, outage: Outage
    ) -> None:
        cache = _cache(cache_leg)
        await cache.set("k", 1)
        await outage.break_backend()
        for call in (
            lambda: cache.get("k"),
            lambda: cache.get_many(["k", "l"]),
            lambda: cache.set("k", 2),
            lambda: cache.set_versioned("k", "1", 2),
            lambda: cache.invalidate("k"),
            lambda: cache.delete("k"),
        ):
            with refused(BackendError):
                async with asyncio.timeout(2):
                    await call()

    async def test_it_is_back_when_the_server_is(self, cache_leg: CacheLeg, outage: Outage) -> None:
        cache = _cache(cache_leg)
        await outage.break_backend()
        with refused(BackendError):
            await cache.get("k")
        await outage.restore()
        async with asyncio.timeout(PATIENCE.total_seconds()):
            await until_answered(cache)
        await cache.set("k", 1)
        assert await cache.get("k") == 1


async def until_answered(cache: CachePort) -> None:
    """Ask until the server answers again."""
    while True:
        try:
            await cache.get("is anybody there")
        except BackendError:
            await asyncio.sleep(0.02)
        else:
            return
