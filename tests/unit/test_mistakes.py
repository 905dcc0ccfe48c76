"""What a newcomer types by mistake: every one is an error of ours that says what was expected."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

from forze.application.contracts.counter import CounterSpec
from forze.application.contracts.dlock import DistributedLockSpec, SemaphoreSpec
from forze.application.contracts.document import DocumentSpec
from forze.application.contracts.idempotency import IdempotencySpec
from forze.application.execution import DepsPlan, ExecutionContext, ExecutionRuntime
from forze.application.integrations.idempotency import idempotent
from forze.domain.models import ReadDocument
from forze.errors import ConfigurationError, ValidationError
from forze_memory import MemoryDepsModule
from forze_postgres import PostgresClient, fenced_update
from forze_redis import RedisClient, RedisDepsModule, acl_rules
from forze_redis.wire.scripts import pack

LOCKS, IDEMPOTENCY = DistributedLockSpec(name="a"), IdempotencySpec(name="a")
NOTES = DocumentSpec(name="notes", read=ReadDocument)
DEPS = DepsPlan.from_modules(MemoryDepsModule())

WIRING: dict[str, tuple[Callable[[], Any], str]] = {
    "one-spec": (lambda: ExecutionRuntime(deps=DEPS, specs=LOCKS), "a list of specs"),  # type: ignore[arg-type]
    "text-for-configs": (
        lambda: RedisDepsModule(client=RedisClient(), counters="a"),  # type: ignore[arg-type]
        r"counters={.*not 'a'",
    ),
    "address-for-client": (
        lambda: RedisDepsModule(client="redis://localhost"),  # type: ignore[arg-type]
        r"redis_lifecycle_step\(dsn=",
    ),
    "rules-of-a-client": (lambda: acl_rules(RedisClient()), "takes a RedisDepsModule"),  # type: ignore[arg-type]
    "context-for-ctx": (lambda: idempotent(IDEMPOTENCY, ctx=3, key="k"), "runtime.get_context"),  # type: ignore[arg-type]
    "name-for-payload": (
        lambda: idempotent(IDEMPOTENCY, ctx=dict, key="k", payload="amount"),  # type: ignore[arg-type]
        "function of the arguments",
    ),
}

SPECS: dict[str, tuple[Callable[[ExecutionContext], Any], str]] = {
    "name": (lambda ctx: ctx.counter("a"), r"ctx.counter\(\) takes a CounterSpec, not 'a'"),  # type: ignore[arg-type]
    "another-kind": (
        lambda ctx: ctx.dlock(SemaphoreSpec(name="a", permits=1)),  # type: ignore[arg-type]
        "takes a DistributedLockSpec, not SemaphoreSpec",
    ),
    "class": (lambda ctx: ctx.counter(CounterSpec), "takes a CounterSpec, not <class"),  # type: ignore[arg-type]
    "name-to-query": (lambda ctx: ctx.document.query("notes"), "DocumentSpec, not 'notes'"),  # type: ignore[arg-type]
    "name-to-command": (lambda ctx: ctx.document.command("notes"), "DocumentSpec, not 'notes'"),  # type: ignore[arg-type]
}

CALLS: dict[str, tuple[Callable[[ExecutionContext], Any], str]] = {
    "deadline": (lambda ctx: ctx.bind_deadline(5).__enter__(), "a timedelta, not 5"),  # type: ignore[arg-type]
    "heartbeat": (
        lambda ctx: ctx.dlock_scope(LOCKS).scope("k", heartbeat=timedelta(1)),  # type: ignore[arg-type]
        "True or False",
    ),
    "coroutine-to-run": (
        lambda ctx: ctx.idempotency(IDEMPOTENCY).run("o", "k", 1, 3),  # type: ignore[arg-type]
        "takes a function",
    ),
    "filters": (lambda ctx: ctx.document.query(NOTES).find_many(["id"]), "a dict of field names"),  # type: ignore[arg-type]
    "limit": (lambda ctx: ctx.document.query(NOTES).find_many(limit="5"), "not '5'"),  # type: ignore[arg-type]
    "argument": (lambda ctx: pack("SET", "a", None), "SET: an argument is .*, not None"),  # type: ignore[arg-type]
    "listener": (
        lambda ctx: RedisClient().subscribe("c", RedisClient().close),  # type: ignore[arg-type]
        "not awaited",
    ),
    "values": (
        lambda ctx: fenced_update(PostgresClient(), "t", 1, 1, ["a"]),  # type: ignore[arg-type]
        "a dict by column",
    ),
}


@pytest.mark.parametrize(("mistake", "said"), WIRING.values(), ids=WIRING)
def test_in_the_wiring(mistake: Callable[[], Any], said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        mistake()


@pytest.mark.parametrize(("mistake", "said"), SPECS.values(), ids=SPECS)
async def test_in_place_of_a_spec(mistake: Callable[[ExecutionContext], Any], said: str) -> None:
    async with ExecutionRuntime(deps=DEPS).scope() as ctx:
        with pytest.raises(ConfigurationError, match=said):
            mistake(ctx)


@pytest.mark.parametrize(("mistake", "said"), CALLS.values(), ids=CALLS)
async def test_in_a_call(mistake: Callable[[ExecutionContext], Any], said: str) -> None:
    async with ExecutionRuntime(deps=DEPS).scope() as ctx:
        with pytest.raises(ValidationError, match=said):
            await mistake(ctx)
