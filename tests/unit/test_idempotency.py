"""Idempotency without a server: specs, snapshots, payloads, configs, and how it is wired."""

from __future__ import annotations

import asyncio
import gc
from asyncio import CancelledError
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from types import NoneType
from typing import Any
from uuid import UUID

import pytest
from pydantic import BaseModel

from forze.application.contracts.idempotency import (
    IdempotencyDepKey,
    IdempotencySnapshot,
    IdempotencySpec,
)
from forze.application.execution import DepsPlan, ExecutionRuntime
from forze.application.integrations.idempotency import idempotent, payload_hash
from forze.application.integrations.idempotency.claims import Claim
from forze.errors import (
    BackendCorrupt,
    BackendTimeout,
    BackendUnavailable,
    ConfigurationError,
    IdempotencyInProgress,
    ValidationError,
)
from forze_memory import MemoryDepsModule
from forze_postgres import PostgresClient, PostgresDepsModule, PostgresIdempotencyConfig
from forze_redis import RedisClient, RedisDepsModule, RedisIdempotencyConfig

SPEC = IdempotencySpec(name="default")


def test_a_spec_has_defaults() -> None:
    assert SPEC.ttl == timedelta(hours=24)
    assert SPEC.lease == timedelta(seconds=30)
    assert SPEC.wait is None
    assert SPEC.fail == "closed"
    assert IdempotencySpec(name="default", store=[], headers=SPEC.headers) == SPEC
    assert hash(SPEC) == hash(IdempotencySpec(name="default"))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("name", ""),
        ("name", None),
        ("ttl", timedelta(0)),
        ("ttl", 60),
        ("lease", timedelta(milliseconds=1)),
        ("max_hold", timedelta(0)),
        ("retry_hint", None),
        ("wait", timedelta(seconds=-1)),
        ("wait", 5),
        ("fail", "maybe"),
        ("store", 404),
        ("store", ["404"]),
        ("store", [42]),
        ("headers", "etag"),
        ("headers", ["Set-Cookie"]),
        ("headers", ["AUTHORIZATION"]),
    ],
)
def test_a_spec_refuses_nonsense(field: str, value: Any) -> None:
    with pytest.raises(ConfigurationError) as refusal:
        IdempotencySpec(**{"name": "default", field: value})
    assert refusal.value.name == field


def test_what_is_stored_is_told_by_status() -> None:
    spec = IdempotencySpec(name="default", store={404, 410})
    stored = [code for code in range(100, 600) if spec.stores(code)]
    assert stored == [*range(200, 400), 404, 410]


def test_a_snapshot_refuses_nonsense() -> None:
    wrong: tuple[tuple[Any, ...], ...] = (
        (99, None, b""),
        ("200", None, b""),
        (200, 1, b""),
        (200, None, "text"),
        (200, None, b"", 7),
        (200, None, b"", [("a",)]),
        (200, None, b"", {"a": 1}),
    )
    for args in wrong:
        with pytest.raises(ValidationError):
            IdempotencySnapshot(*args)
    snapshot = IdempotencySnapshot(200, None, bytearray(b"x"), [["a", "b"]])  # type: ignore[arg-type] # anything alike
    assert snapshot == IdempotencySnapshot(200, None, b"x", (("a", "b"),))


class Payment(BaseModel):
    id: UUID
    amount: int = 1


@dataclass
class Order:
    id: int


def test_equal_payloads_have_one_hash_and_others_another() -> None:
    assert payload_hash({"a": 1, "b": [1, {"d": 1, "c": 2}]}) == payload_hash(
        {"b": [1, {"c": 2, "d": 1}], "a": 1}
    )
    payment = Payment(id=UUID(int=1))
    assert payload_hash(payment) == payload_hash({"amount": 1, "id": str(UUID(int=1))})
    assert payload_hash(b"abc") == (
        "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    )
    different: list[object] = [
        None, True, 1, 1.5, "1", "", [], {}, [1, 2], [2, 1], {"a": None}, b"", float("nan"),
        payment, Order(1), "é", "\ud800", "NaN",
    ]  # fmt: skip
    assert len({payload_hash(each) for each in different}) == len(different)
    with pytest.raises(ValidationError):
        payload_hash(object())


@pytest.mark.parametrize(
    "given",
    [
        RedisIdempotencyConfig(namespace="app:idempotency"),
        {"namespace": "app:idempotency"},
        {"namespace": "app:idempotency", "tenant_aware": True},
        {"namespace": lambda tenant: tenant},
    ],
)
def test_one_redis_config_answers_every_name(given: Any) -> None:
    deps = RedisDepsModule(client=RedisClient(), idempotency=given)()
    assert deps.exists(IdempotencyDepKey, "any")


def test_configs_by_name_answer_theirs() -> None:
    one, other = {"namespace": "a"}, RedisIdempotencyConfig(namespace="b")
    deps = RedisDepsModule(client=RedisClient(), idempotency={"default": one, "namespace": other})()
    assert deps.exists(IdempotencyDepKey, "default")
    assert deps.exists(IdempotencyDepKey, "namespace")
    with pytest.raises(ConfigurationError, match=r"'any'.*default, namespace"):
        deps.provide(IdempotencyDepKey, "any")
    assert not RedisDepsModule(client=RedisClient())().exists(IdempotencyDepKey, "any")
    table = ("public", "idempotency")
    for given in (PostgresIdempotencyConfig(table=table), {"table": table}, {"table": list(table)}):
        module = PostgresDepsModule(client=PostgresClient(), idempotency=given)
        assert module().exists(IdempotencyDepKey, "any")
    module = PostgresDepsModule(
        client=PostgresClient(), idempotency={"default": {"table": table}}, name="second"
    )
    assert module().exists(IdempotencyDepKey, "default")
    assert not module().exists(IdempotencyDepKey, "any")


@pytest.mark.parametrize(
    "given", [{"namespace": ""}, {"default": {"namspace": "a"}}, {"namespace": "a", "x": 1}, "a"]
)
def test_wrong_redis_configs_are_refused(given: Any) -> None:
    with pytest.raises(ConfigurationError):
        RedisDepsModule(client=RedisClient(), idempotency=given)


@pytest.mark.parametrize("given", [{"table": "idempotency"}, {"default": {"table": ("a",)}}])
def test_wrong_postgres_configs_are_refused(given: Any) -> None:
    with pytest.raises(ConfigurationError):
        PostgresDepsModule(client=PostgresClient(), idempotency=given)


async def test_it_is_reached_by_its_spec() -> None:
    runtime = ExecutionRuntime(deps=DepsPlan.from_modules(MemoryDepsModule()), specs=[SPEC])
    async with runtime.scope() as ctx:
        assert ctx.idempotency(SPEC) is ctx.idempotency(IdempotencySpec(name="default"))
        with pytest.raises(ConfigurationError, match="two different"):
            ctx.idempotency(IdempotencySpec(name="default", fail="open"))


async def test_a_stored_result_of_another_type_is_told() -> None:
    runtime = ExecutionRuntime(deps=DepsPlan.from_modules(MemoryDepsModule()))

    async def text() -> str:
        return "text"

    async def number() -> int:
        return 1

    async with runtime.scope() as ctx:
        port = ctx.idempotency(SPEC)
        assert await port.run("op", "k", {}, text) == "text"
        with pytest.raises(BackendCorrupt, match="number"):
            await port.run("op", "k", {}, number)


class Hung:
    """A store whose server hung: it has executed the release when it comes to the claim."""

    def __init__(self, store: Any) -> None:
        self._store = store
        self._late: tuple[Any, ...] = ()
        self.executed = asyncio.Event()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    @asynccontextmanager
    async def hold(self) -> AsyncIterator[Hung]:
        yield self

    async def claim(self, *question: Any) -> None:
        self._late = question
        raise BackendTimeout("no answer", backend="hung", outcome="unknown")

    async def release(self, *claimed: Any) -> bool:
        freed: bool = await self._store.release(*claimed)
        if self._late:
            await self._store.claim(*self._late)
            self._late = ()
            self.executed.set()
        return freed


async def test_what_is_claimed_after_its_release_is_freed_all_the_same() -> None:
    runtime = ExecutionRuntime(deps=DepsPlan.from_modules(MemoryDepsModule()))
    async with runtime.scope() as ctx:
        port: Any = ctx.idempotency(SPEC)
        store, hung = port._store, Hung(port._store)
        port._store = hung
        with pytest.raises(BackendUnavailable, match="not run"):
            await port.begin("op", "k", "h")
        port._store = store
        await hung.executed.wait()
        with pytest.raises(IdempotencyInProgress):
            await port.begin("op", "k", "h")
        async with asyncio.timeout(20):
            while True:
                with suppress(IdempotencyInProgress):
                    assert await port.begin("op", "k", "h") is None
                    break
                await asyncio.sleep(0.01)


async def test_nothing_of_what_ended_stays_in_memory() -> None:
    """Answered, failed, refused, replayed, cancelled, or left by a task that crashed."""
    spec = IdempotencySpec(name="default", lease=timedelta(milliseconds=200))
    runtime = ExecutionRuntime(deps=DepsPlan.from_modules(MemoryDepsModule()))
    answer = IdempotencySnapshot(200, None, b"")
    async with runtime.scope() as ctx:
        port = ctx.idempotency(spec)

        async def request(number: int) -> None:
            key = f"k{number}"
            assert await port.begin("ends", key, "h") is None
            with suppress(IdempotencyInProgress):
                await port.begin("ends", key, "h")
            match number % 4:
                case 0:
                    await port.commit("ends", key, "h", answer)
                    assert await port.begin("ends", key, "h") == answer
                case 1:
                    await port.fail("ends", key, "h")
                case 2:
                    raise KeyError(key)
                case _:
                    await asyncio.Event().wait()

        tasks = [asyncio.create_task(request(number)) for number in range(2000)]
        while sum(not each.done() for each in tasks) > 500:
            await asyncio.sleep(0)
        for each in tasks:
            each.cancel()
        ended = await asyncio.gather(*tasks, return_exceptions=True)
        assert Counter(map(type, ended)) == {NoneType: 1000, KeyError: 500, CancelledError: 500}
        del tasks, each, ended
        async with asyncio.timeout(5):
            while any(
                isinstance(each, Claim) and each.operation == "ends" for each in gc.get_objects()
            ):
                await asyncio.sleep(0.05)


async def test_a_key_argument_that_is_none_is_refused() -> None:
    runtime = ExecutionRuntime(deps=DepsPlan.from_modules(MemoryDepsModule()))

    @idempotent(SPEC, ctx=runtime.get_context, key="key")
    async def twice(key: int | UUID | None, result: int = 1) -> int:
        return 2 * result

    async with runtime.scope():
        assert await twice(7, result=4) == await twice(key=7, result=4) == 8
        assert await twice(UUID(int=7), 2) == 4
        with pytest.raises(ValidationError, match="idempotency key"):
            await twice(None)
