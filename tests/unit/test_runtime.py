"""The runtime: its scope, its specs, background work, two of them side by side."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

import pytest

from forze.application.contracts.cache import CacheDepKey, CacheSpec
from forze.application.contracts.document import DocumentSpec
from forze.application.execution import (
    DepKey,
    Deps,
    DepsPlan,
    DepsRegistry,
    ExecutionContext,
    ExecutionRuntime,
    LifecyclePlan,
    LifecycleStep,
)
from forze.domain.models import CreateDocumentCmd, Document, ReadDocument
from forze.errors import ConfigurationError
from forze_memory import MemoryDepsModule

THINGS = CacheSpec(name="things")


class Thing(Document):
    name: str


class ThingRead(ReadDocument):
    name: str


class WiderRead(ReadDocument):
    name: str
    size: int


class ThingCreate(CreateDocumentCmd):
    name: str


def things(read: type[ReadDocument] = ThingRead, **fields: Any) -> DocumentSpec[Any, Any, Any]:
    return DocumentSpec(
        name="things", read=read, write={"domain": Thing, "create_cmd": ThingCreate}, **fields
    )


def memory(**fields: Any) -> ExecutionRuntime:
    return ExecutionRuntime(deps=DepsPlan.from_modules(MemoryDepsModule()), **fields)


async def test_the_context_is_there_while_the_scope_is_open() -> None:
    runtime = memory()
    with pytest.raises(ConfigurationError, match=r"not running; enter .*scope"):
        runtime.get_context()
    async with runtime.scope() as ctx:
        assert runtime.get_context() is ctx
    with pytest.raises(ConfigurationError, match="not running"):
        runtime.get_context()


async def test_a_scope_can_be_entered_again() -> None:
    starts = []

    async def start(ctx: ExecutionContext) -> None:
        starts.append(ctx)

    runtime = memory(lifecycle=LifecyclePlan.from_steps(LifecycleStep(id="a", startup=start)))
    for _ in range(2):
        async with runtime.scope() as ctx:
            await ctx.cache(THINGS).set("k", 1)
    assert len(starts) == 2
    assert starts[0] is not starts[1]
    with pytest.raises(KeyError):
        async with runtime.scope():
            raise KeyError
    async with runtime.scope() as ctx:
        assert await ctx.cache(THINGS).get("k") == 1


async def test_a_scope_cannot_be_entered_twice_at_once() -> None:
    runtime = memory()
    async with runtime.scope() as ctx:
        with pytest.raises(ConfigurationError, match="open already"):
            async with runtime.scope():
                raise AssertionError("entered")
        assert runtime.get_context() is ctx


async def test_a_scope_that_failed_to_start_can_be_tried_again() -> None:
    fails = [True]

    async def start(ctx: ExecutionContext) -> None:
        if fails.pop():
            fails.append(False)
            raise OSError("not yet")
        fails.append(False)

    runtime = memory(lifecycle=LifecyclePlan.from_steps(LifecycleStep(id="a", startup=start)))
    with pytest.raises(OSError, match="not yet"):
        async with runtime.scope():
            raise AssertionError("entered")
    async with runtime.scope() as ctx:
        assert runtime.get_context() is ctx


async def test_two_runtimes_side_by_side_in_one_task() -> None:
    one, two = memory(), memory()
    async with one.scope() as first, two.scope() as second:
        await first.cache(THINGS).set("k", 1)
        assert await second.cache(THINGS).get("k") is None
        assert first.document.query(things()) is not second.document.query(things())
        async with first.transaction("a") as outer, second.transaction("a") as other:
            assert outer is not other
            created = await first.document.command(things()).create(ThingCreate(name="a"))
            assert await second.document.query(things()).exists(created.id) is False
        assert await first.document.query(things()).exists(created.id) is True
    with pytest.raises(ConfigurationError):
        one.get_context()


async def test_two_runtimes_over_one_module_share_its_data() -> None:
    module = MemoryDepsModule()
    one, two = (ExecutionRuntime(deps=DepsPlan.from_modules(module)) for _ in range(2))
    async with one.scope() as first, two.scope() as second:
        await first.cache(THINGS).set("k", 1)
        assert await second.cache(THINGS).get("k") == 1
        created = await first.document.command(things()).create(ThingCreate(name="a"))
        assert await second.document.query(things()).get(created.id) == created


async def test_open_plans_are_frozen_on_the_way_in() -> None:
    registry = DepsRegistry.from_modules(MemoryDepsModule())
    runtime = ExecutionRuntime(deps=registry)
    registry.with_modules(MemoryDepsModule())
    async with runtime.scope() as ctx:
        assert ctx.exists(CacheDepKey, "things")


async def test_unknown_names_fail_at_start_with_the_list_of_those_that_exist() -> None:
    started = []

    async def start(ctx: ExecutionContext) -> None:
        started.append(1)

    module = MemoryDepsModule(documents=["orders", "items"], caches=["items"])
    for spec, missing, known in (
        (things(), "things", ("items", "orders")),
        (THINGS, "things", ("items",)),
        (DocumentSpec(name="items", read=ThingRead, cache=THINGS), "things", ("items",)),
    ):
        runtime = ExecutionRuntime(
            deps=DepsPlan.from_modules(module),
            lifecycle=LifecyclePlan.from_steps(LifecycleStep(id="a", startup=start)),
            specs=[spec],
        )
        with pytest.raises(ConfigurationError, match=", ".join(known)) as info:
            async with runtime.scope():
                raise AssertionError("entered")
        assert (info.value.name, info.value.known) == (missing, known)
    assert started == []


async def test_models_that_do_not_fit_fail_at_start() -> None:
    with pytest.raises(ConfigurationError, match="'size'"):
        async with memory(specs=[things(WiderRead)]).scope():
            raise AssertionError("entered")


async def test_only_specs_are_specs() -> None:
    with pytest.raises(ConfigurationError, match="specs= takes specs, not 'things'"):
        async with memory(specs=["things"]).scope():
            raise AssertionError("entered")


async def test_conflicting_modules_fail_at_start() -> None:
    key: DepKey[int] = DepKey("number")
    plan = DepsPlan.from_modules(lambda: Deps.plain({key: 1}), lambda: Deps.plain({key: 2}))
    with pytest.raises(ConfigurationError, match="registered twice: number"):
        async with ExecutionRuntime(deps=plan).scope():
            raise AssertionError("entered")


async def test_background_work_ends_before_steps_are_stopped() -> None:
    events: list[str] = []

    async def stop(ctx: ExecutionContext) -> None:
        events.append("stopped")

    async def work() -> None:
        await asyncio.sleep(0.01)
        events.append("worked")

    runtime = memory(lifecycle=LifecyclePlan.from_steps(LifecycleStep(id="a", shutdown=stop)))
    async with runtime.scope() as ctx:

        async def starts_more() -> None:
            ctx.spawn(work(), name="second")

        ctx.spawn(starts_more(), name="first")
    assert events == ["worked", "stopped"]


async def test_background_work_that_does_not_end_is_cancelled() -> None:
    async with memory(drain=timedelta(milliseconds=20)).scope() as ctx:
        task = ctx.spawn(asyncio.Event().wait(), name="forever")
    assert task.cancelled()


async def test_failed_background_work_harms_nobody() -> None:
    async def fails() -> None:
        raise OSError

    async with memory().scope() as ctx:
        task = ctx.spawn(fails(), name="fails")
    assert isinstance(task.exception(), OSError)
