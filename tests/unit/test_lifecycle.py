"""Steps: started in order, stopped in reverse, each exactly once, every failure told."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from forze.application.execution import (
    DepsPlan,
    ExecutionContext,
    ExecutionRuntime,
    LifecyclePlan,
    LifecycleStep,
)
from forze.errors import ConfigurationError

Side = Callable[[ExecutionContext], Awaitable[None]]


class Log:
    """Steps that note what happens to them."""

    def __init__(self) -> None:
        self.events: list[str] = []

    def step(
        self, name: str, *, start: BaseException | None = None, stop: BaseException | None = None
    ) -> LifecycleStep:
        return LifecycleStep(
            id=name, startup=self._side(f"+{name}", start), shutdown=self._side(f"-{name}", stop)
        )

    def _side(self, event: str, error: BaseException | None) -> Side:
        async def side(ctx: ExecutionContext) -> None:
            assert isinstance(ctx, ExecutionContext)
            await asyncio.sleep(0)
            self.events.append(event)
            if error is not None:
                raise error

        return side


def runtime(*steps: LifecycleStep) -> ExecutionRuntime:
    return ExecutionRuntime(deps=DepsPlan(), lifecycle=LifecyclePlan.from_steps(*steps))


async def test_start_in_order_stop_in_reverse() -> None:
    log = Log()
    async with runtime(log.step("a"), log.step("b"), log.step("c")).scope():
        assert log.events == ["+a", "+b", "+c"]
    assert log.events == ["+a", "+b", "+c", "-c", "-b", "-a"]


async def test_steps_and_modules_in_the_order_given() -> None:
    log = Log()
    plan = (
        LifecyclePlan.from_modules(lambda: (log.step("a"), log.step("b")))
        .with_steps(log.step("c"))
        .with_modules(lambda: [log.step("d")])
    )
    assert [step.id for step in plan.freeze().steps()] == ["a", "b", "c", "d"]
    assert [step.id for step in LifecyclePlan().steps()] == []


def test_a_plan_does_not_change() -> None:
    log = Log()
    plan = LifecyclePlan.from_steps(log.step("a"))
    plan.with_steps(log.step("b"))
    assert [step.id for step in plan.steps()] == ["a"]


def test_two_steps_with_one_id_are_refused() -> None:
    log = Log()
    plan = LifecyclePlan.from_steps(log.step("a")).with_modules(lambda: [log.step("a")])
    with pytest.raises(ConfigurationError, match="two lifecycle steps have the id 'a'") as info:
        plan.freeze()
    assert info.value.name == "a"
    with pytest.raises(ConfigurationError, match="'a'"):
        ExecutionRuntime(deps=DepsPlan(), lifecycle=plan)


async def test_a_step_may_have_one_side_only() -> None:
    log = Log()
    full = log.step("x")
    async with runtime(
        LifecycleStep(id="a", startup=full.startup), LifecycleStep(id="b", shutdown=full.shutdown)
    ).scope():
        assert log.events == ["+x"]
    assert log.events == ["+x", "-x"]


async def test_a_failed_start_stops_what_stands() -> None:
    log = Log()
    steps = (log.step("a"), log.step("b"), log.step("c", start=OSError("no")), log.step("d"))
    with pytest.raises(OSError, match="no"):
        async with runtime(*steps).scope():
            raise AssertionError("entered")
    assert log.events == ["+a", "+b", "+c", "-b", "-a"]


async def test_a_failed_stop_stops_the_rest_all_the_same() -> None:
    log = Log()
    steps = (log.step("a", stop=OSError("a")), log.step("b"), log.step("c", stop=KeyError("c")))
    with pytest.raises(ExceptionGroup, match="stopping the runtime failed") as info:
        async with runtime(*steps).scope():
            pass
    assert log.events == ["+a", "+b", "+c", "-c", "-b", "-a"]
    assert [type(each) for each in info.value.exceptions] == [KeyError, OSError]
    assert [each.__notes__ for each in info.value.exceptions] == [
        ["while stopping lifecycle step 'c'"],
        ["while stopping lifecycle step 'a'"],
    ]


async def test_a_step_cancelled_inside_stops_no_other() -> None:
    log = Log()
    with pytest.raises(BaseExceptionGroup) as info:
        async with runtime(log.step("a"), log.step("b", stop=asyncio.CancelledError())).scope():
            pass
    assert log.events == ["+a", "+b", "-b", "-a"]
    assert [type(each) for each in info.value.exceptions] == [asyncio.CancelledError]


async def test_the_bodys_failure_comes_first_among_all() -> None:
    log = Log()
    with pytest.raises(ExceptionGroup, match="the scope failed") as info:
        async with runtime(log.step("a", stop=OSError("a"))).scope():
            raise ValueError("body")
    assert [str(each) for each in info.value.exceptions] == ["body", "a"]


async def test_the_bodys_failure_alone_is_itself() -> None:
    log = Log()
    with pytest.raises(ValueError, match="body"):
        async with runtime(log.step("a")).scope():
            raise ValueError("body")
    assert log.events == ["+a", "-a"]


async def test_a_cancelled_body_is_stopped_and_stays_cancelled() -> None:
    log, entered = Log(), asyncio.Event()

    async def serve() -> None:
        async with runtime(log.step("a", stop=OSError("a")), log.step("b")).scope():
            entered.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(serve())
    await entered.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError) as info:
        await task
    assert task.cancelled()
    assert log.events == ["+a", "+b", "-b", "-a"]
    assert isinstance(info.value.__cause__, ExceptionGroup)
    assert [str(each) for each in info.value.__cause__.exceptions] == ["a"]


async def test_a_cancellation_while_stopping_waits_for_the_stop() -> None:
    log, stopping, go_on = Log(), asyncio.Event(), asyncio.Event()

    async def slow(ctx: ExecutionContext) -> None:
        stopping.set()
        await go_on.wait()
        log.events.append("-slow")

    async def serve() -> None:
        async with runtime(
            log.step("a", stop=OSError("a")), LifecycleStep(id="slow", shutdown=slow)
        ).scope():
            pass

    task = asyncio.create_task(serve())
    await stopping.wait()
    for _ in range(3):
        task.cancel()
        await asyncio.sleep(0)
    assert not task.done()
    go_on.set()
    with pytest.raises(asyncio.CancelledError) as info:
        await task
    assert log.events == ["+a", "-slow", "-a"]
    assert isinstance(info.value.__cause__, ExceptionGroup), "its failure is told all the same"


async def test_a_cancelled_start_stops_what_stands() -> None:
    log, starting = Log(), asyncio.Event()

    async def hangs(ctx: ExecutionContext) -> None:
        starting.set()
        await asyncio.Event().wait()

    async def serve() -> None:
        async with runtime(log.step("a"), LifecycleStep(id="b", startup=hangs)).scope():
            raise AssertionError("entered")

    task = asyncio.create_task(serve())
    await starting.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert log.events == ["+a", "-a"]
