"""The portal: threads, forks, exceptions, cancellation, and how it opens and closes."""

from __future__ import annotations

import asyncio
import gc
import inspect
import itertools
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor, wait
from contextlib import asynccontextmanager, suppress
from contextvars import ContextVar
from datetime import timedelta
from types import FrameType
from typing import Any

import pytest

from forze.application.contracts.counter import CounterSpec
from forze.application.contracts.dlock import DistributedLockSpec
from forze.application.contracts.tenancy import (
    bind_deadline,
    bind_principal,
    bind_tenant,
    current_deadline,
    current_principal,
    current_tenant,
)
from forze.application.contracts.transaction import in_transaction
from forze.application.execution import (
    DepsPlan,
    ExecutionContext,
    ExecutionRuntime,
    LifecyclePlan,
    LifecycleStep,
    Portal,
)
from forze.application.execution.portal_thread import PortalThread
from forze.errors import (
    BackendUnavailable,
    CallTimeout,
    ConfigurationError,
    ForzeError,
    LockNotAcquired,
    NotFoundError,
)
from forze_memory import MemoryDepsModule

HITS = CounterSpec(name="hits")
JOBS = DistributedLockSpec(name="jobs")
WAIT = 20.0

Make = Callable[..., Portal]


def build_runtime(*steps: LifecycleStep) -> ExecutionRuntime:
    return ExecutionRuntime(
        deps=DepsPlan.from_modules(MemoryDepsModule()),
        lifecycle=LifecyclePlan.from_steps(*steps),
        specs=[HITS, JOBS],
    )


@pytest.fixture
def portal() -> Iterator[Portal]:
    with Portal(build_runtime, drain=timedelta(seconds=1)) as portal:
        yield portal


async def hit(ctx: ExecutionContext, by: int = 1) -> int:
    return await ctx.counter(HITS).incr(by=by)


async def add(first: int, second: int) -> int:
    return first + second


async def running_loop() -> asyncio.AbstractEventLoop:
    return asyncio.get_running_loop()


# -- calls ---------------------------------------------------------------------------


def test_sync_code_calls_ports(portal: Portal) -> None:
    assert portal.run(hit) == 1
    assert portal.run(hit, 5) == 6
    assert portal.call(add, 1, 2) == 3


def test_a_decorated_function_loses_its_context_argument(portal: Portal) -> None:
    @portal.sync
    async def hits(ctx: ExecutionContext, by: int, *, twice: bool = False) -> int:
        """Counts."""
        return await hit(ctx, by * 2 if twice else by)

    assert hits(2) == 2
    assert hits(2, twice=True) == 6
    assert (hits.__name__, hits.__doc__) == ("hits", "Counts.")
    assert list(inspect.signature(hits).parameters) == ["by", "twice"]
    assert "ctx" not in hits.__annotations__


def test_every_thread_uses_one_loop_and_one_context(portal: Portal) -> None:
    async def where(ctx: ExecutionContext) -> tuple[int, str, int]:
        await hit(ctx)
        return id(await running_loop()), threading.current_thread().name, id(ctx)

    with ThreadPoolExecutor(16) as threads:
        found = set(threads.map(lambda _: portal.run(where), range(200)))
    assert len(found) == 1
    assert found.pop()[1] == "forze-portal"
    assert portal.run(hit) == 201


def test_threads_that_come_first_start_it_once() -> None:
    started: list[ExecutionContext] = []
    gate = threading.Barrier(8)

    async def note(ctx: ExecutionContext) -> None:
        started.append(ctx)

    portal = Portal(lambda: build_runtime(LifecycleStep(id="note", startup=note)))

    def first() -> int:
        gate.wait(WAIT)
        return portal.run(hit)

    assert started == [], "nothing is started before it is needed"
    with ThreadPoolExecutor(8) as threads:
        counted = [each.result(WAIT) for each in [threads.submit(first) for _ in range(8)]]
    portal.close()
    assert sorted(counted) == list(range(1, 9))
    assert len(started) == 1


OURS: ContextVar[str] = ContextVar("ours", default="unset")


def test_what_is_bound_travels_along_and_nothing_comes_back(portal: Portal) -> None:
    async def bound() -> tuple[Any, ...]:
        found = current_tenant(), current_principal(), current_deadline(), OURS.get()
        OURS.set("changed in the call")
        return found

    OURS.set("mine")
    with bind_tenant("acme"), bind_principal("ann"), bind_deadline(timedelta(seconds=9)):
        assert portal.call(bound) == ("acme", "ann", current_deadline(), "mine")
    assert portal.call(bound) == (None, None, None, "mine")
    assert OURS.get() == "mine"


async def test_a_transaction_of_another_loop_stays_behind(portal: Portal) -> None:
    async def inside() -> bool:
        return in_transaction()

    async with build_runtime().scope() as ctx, ctx.transaction("orders"):
        assert in_transaction()
        assert await asyncio.to_thread(portal.call, inside) is False


async def test_a_thread_with_an_event_loop_is_refused(portal: Portal) -> None:
    with pytest.raises(ConfigurationError, match="await the port itself"):
        portal.run(hit)
    assert await asyncio.to_thread(lambda: portal.run(hit)) == 1

    async def from_within() -> int:
        return portal.run(hit)

    with pytest.raises(ConfigurationError, match="for ever in the portal's own"):
        await asyncio.to_thread(portal.call, from_within)


# -- exceptions ----------------------------------------------------------------------


async def fails(ctx: ExecutionContext) -> None:
    raise NotFoundError("no such order", resource="orders", ids=["7"])


def test_an_exception_arrives_with_its_traceback(portal: Portal) -> None:
    with pytest.raises(NotFoundError) as caught:
        portal.run(fails)
    assert caught.value.ids == ("7",)
    names = [frame.name for frame in traceback.extract_tb(caught.value.__traceback__)]
    assert names[-1] == "fails"
    assert "test_an_exception_arrives_with_its_traceback" in names


@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt, TimeoutError, CancelledError])
def test_no_exception_ends_the_thread(portal: Portal, kind: type[BaseException]) -> None:
    async def leave() -> None:
        raise kind("from the call")

    raised: BaseException | None = None
    try:
        portal.call(leave, timeout=timedelta(seconds=WAIT))
    except BaseException as error:
        raised = error
    assert type(raised) is kind
    assert portal.run(hit) == 1


def test_a_call_that_cancels_itself_is_answered(portal: Portal) -> None:
    async def given_up() -> None:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        await asyncio.sleep(WAIT)

    with pytest.raises(CancelledError):
        portal.call(given_up)


async def ends(ctx: ExecutionContext) -> None:
    return None


@pytest.mark.parametrize("work", [ends, fails])
def test_calls_leave_nothing_for_the_collector(
    portal: Portal, work: Callable[[ExecutionContext], Awaitable[None]]
) -> None:
    def many() -> None:
        for _ in range(20):
            with suppress(NotFoundError):
                portal.run(work)
        portal.run(ends)  # the loop has put the last one away

    many()
    gc.collect()
    gc.disable()
    try:
        many()
        assert gc.collect() < 100
    finally:
        gc.enable()


# -- cancellation --------------------------------------------------------------------


class Work:
    """A call that runs until it is cancelled, and says how far it came."""

    def __init__(self) -> None:
        self.began, self.cancelled = threading.Event(), threading.Event()

    async def __call__(self) -> None:
        self.began.set()
        try:
            await asyncio.sleep(WAIT * 10)
        finally:
            await asyncio.sleep(0)
            self.cancelled.set()


def test_a_timeout_cancels_and_waits_for_the_end(portal: Portal) -> None:
    work = Work()
    with pytest.raises(CallTimeout, match="forze-portal") as caught:
        portal.call(work, timeout=timedelta(milliseconds=30))
    assert work.cancelled.is_set(), "nothing runs on behind the caller's back"
    assert caught.value.timeout == timedelta(milliseconds=30)


def test_a_call_without_any_time_is_over_at_once(portal: Portal) -> None:
    with pytest.raises(CallTimeout):
        portal.call(asyncio.sleep, WAIT, timeout=timedelta(0))


def test_a_call_that_ends_as_it_is_cancelled_has_its_result(portal: Portal) -> None:
    async def stubborn() -> str:
        try:
            await asyncio.sleep(WAIT)
            return "never"
        except asyncio.CancelledError:
            return "committed"

    assert portal.call(stubborn, timeout=timedelta(milliseconds=30)) == "committed"


def test_ctrl_c_cancels_the_call(portal: Portal) -> None:
    work = Work()

    def interrupt() -> None:
        work.began.wait(WAIT)
        main = threading.main_thread().ident
        assert main is not None
        signal.pthread_kill(main, signal.SIGINT)

    threading.Thread(target=interrupt).start()
    with pytest.raises(KeyboardInterrupt):
        portal.call(work)
    assert work.cancelled.is_set()
    assert portal.run(hit) == 1


@pytest.mark.parametrize("steps", range(8))
def test_ctrl_c_between_handing_over_and_waiting(portal: Portal, steps: int) -> None:
    work, taken = Work(), itertools.count()

    def at_each_line(frame: FrameType, event: str, _: object) -> Any:
        if frame.f_code is PortalThread._submit.__code__ and event == "return":
            work.began.wait(WAIT)
        elif (work.began.is_set() and next(taken) == steps) or frame.f_code is wait.__code__:
            sys.settrace(None)
            raise KeyboardInterrupt
        return at_each_line

    before = sys.gettrace()
    try:
        with pytest.raises(KeyboardInterrupt):
            sys.settrace(at_each_line)
            portal.call(work)
    finally:
        sys.settrace(before)
    assert work.cancelled.is_set()


# -- blocks --------------------------------------------------------------------------


def test_a_lock_is_held_for_a_block(portal: Portal) -> None:
    with portal.enter(lambda ctx: ctx.dlock_scope(JOBS).scope("daily")) as lock:
        assert portal.run(lambda ctx: ctx.dlock(JOBS).is_locked("daily"))
        lock.check()
        with (
            pytest.raises(LockNotAcquired),
            portal.enter(lambda ctx: ctx.dlock_scope(JOBS).scope("daily")),
        ):
            raise AssertionError("two holders")
    assert not portal.run(lambda ctx: ctx.dlock(JOBS).is_locked("daily"))


def test_a_block_is_left_by_its_exception(portal: Portal) -> None:
    seen: list[BaseException | None] = []

    @asynccontextmanager
    async def block(ctx: ExecutionContext, swallow: bool) -> AsyncIterator[str]:
        try:
            yield "entered"
        except ZeroDivisionError as error:
            seen.append(error)
            if not swallow:
                raise

    with pytest.raises(ZeroDivisionError) as caught, portal.enter(block, False) as value:
        assert value == "entered"
        raise ZeroDivisionError("mine")
    assert seen == [caught.value]
    with portal.enter(block, True):
        divide(1, by=0)
    assert len(seen) == 2


def divide(number: int, *, by: int) -> float:
    return number / by


def test_what_ends_a_block_early_is_raised_at_its_end(portal: Portal) -> None:
    lost = threading.Event()

    @asynccontextmanager
    async def block(ctx: ExecutionContext) -> AsyncIterator[None]:
        task = asyncio.current_task()
        assert task is not None
        asyncio.get_running_loop().call_soon(task.cancel)
        try:
            yield
        except asyncio.CancelledError:
            lost.set()
            raise NotFoundError("lost meanwhile", resource="lock") from None

    with pytest.raises(NotFoundError, match="lost meanwhile"), portal.enter(block):
        assert lost.wait(WAIT)


# -- open and closed -----------------------------------------------------------------


def _refusal(portal: Portal) -> ConfigurationError | None:
    try:
        portal.call(running_loop)
    except ConfigurationError as error:
        return error
    return None


def test_calls_under_way_end_before_it_closes() -> None:
    portal = Portal(build_runtime)
    began, go = threading.Event(), asyncio.Event()

    async def slow(ctx: ExecutionContext) -> int:
        began.set()
        await go.wait()
        return await hit(ctx)

    with ThreadPoolExecutor(2) as threads:
        under_way = threads.submit(portal.run, slow)
        began.wait(WAIT)
        loop = portal.call(running_loop)
        closing = threads.submit(portal.close)
        while (refusal := _refusal(portal)) is None:
            assert not under_way.done()
        assert "is closed" in str(refusal)
        assert not closing.done()
        loop.call_soon_threadsafe(go.set)
        assert under_way.result(WAIT) == 1
        closing.result(WAIT)
    portal.close()  # once more does nothing


def test_what_does_not_end_is_cancelled_at_its_close() -> None:
    portal = Portal(build_runtime, drain=timedelta(milliseconds=20))
    work = Work()
    with ThreadPoolExecutor(1) as threads:
        under_way = threads.submit(portal.call, work)
        work.began.wait(WAIT)
        portal.close()
        assert work.cancelled.is_set()
        with pytest.raises(CancelledError):
            under_way.result(WAIT)


def test_a_closed_portal_stays_closed_and_has_stopped_everything() -> None:
    stopped: list[str] = []

    async def stop(ctx: ExecutionContext) -> None:
        stopped.append(threading.current_thread().name)

    portal = Portal(lambda: build_runtime(LifecycleStep(id="stop", shutdown=stop)), name="mine")
    portal.run(hit)
    portal.close()
    assert stopped == ["mine"]
    assert "mine" not in {each.name for each in threading.enumerate()}
    with pytest.raises(ConfigurationError, match="'mine' is closed"):
        portal.run(hit)


def test_a_start_that_fails_is_told_to_everyone_and_tried_anew() -> None:
    attempts: list[int] = []
    arrived, go = threading.Event(), threading.Event()

    async def start(ctx: ExecutionContext) -> None:
        attempts.append(1)
        if len(attempts) == 1:
            arrived.set()
            await asyncio.to_thread(go.wait, WAIT)
            raise BackendUnavailable("the database is starting", backend="PostgreSQL")

    portal = Portal(lambda: build_runtime(LifecycleStep(id="start", startup=start)))
    with ThreadPoolExecutor(2) as threads:
        calls: list[Future[int]] = [threads.submit(lambda: portal.run(hit))]
        arrived.wait(WAIT)
        calls.append(threads.submit(lambda: portal.run(hit)))
        go.set()
        raised = [call.exception(WAIT) for call in calls]
    assert isinstance(raised[0], BackendUnavailable)
    assert isinstance(raised[1], BackendUnavailable | type(None)), "it came along, or after"
    assert raised[0] is not raised[1]
    assert portal.run(hit) in (1, 2)
    assert len(attempts) == 2
    portal.close()


def test_what_fails_while_stopping_is_raised_by_close() -> None:
    async def stop(ctx: ExecutionContext) -> None:
        raise ZeroDivisionError("while stopping")

    portal = Portal(lambda: build_runtime(LifecycleStep(id="stop", shutdown=stop)))
    portal.run(hit)
    with pytest.raises(BaseExceptionGroup, match="stopping the runtime failed"):
        portal.close()


def test_a_start_that_leaves_by_an_exit_is_tried_anew() -> None:
    attempts: list[int] = []

    async def start(ctx: ExecutionContext) -> None:
        attempts.append(1)
        if len(attempts) == 1:
            raise SystemExit("no licence")

    portal = Portal(lambda: build_runtime(LifecycleStep(id="start", startup=start)))
    with pytest.raises(SystemExit, match="no licence"):
        portal.run(hit)
    assert portal.run(hit) == 1
    portal.close()


def test_a_start_that_hangs_is_given_up_when_it_closes() -> None:
    starting, undone = threading.Event(), threading.Event()

    async def start(ctx: ExecutionContext) -> None:
        starting.set()
        try:
            await asyncio.sleep(WAIT * 10)
        finally:
            undone.set()

    step = LifecycleStep(id="start", startup=start)
    portal = Portal(lambda: build_runtime(step), drain=timedelta(milliseconds=20))
    with ThreadPoolExecutor(2) as threads:
        first = threads.submit(lambda: portal.run(hit))
        starting.wait(WAIT)
        threads.submit(portal.close).result(WAIT)
        with pytest.raises(ConfigurationError, match="is closed"):
            first.result(WAIT)
    assert undone.is_set()


def test_a_call_that_closes_its_own_portal_is_refused(portal: Portal) -> None:
    async def leave() -> None:
        portal.close()

    with pytest.raises(ConfigurationError, match="its own end"):
        portal.call(leave)
    assert portal.run(hit) == 1, "a refusal changes nothing"


def test_who_closes_it_second_waits_for_the_end_too() -> None:
    stopping, go = threading.Event(), threading.Event()

    async def stop(ctx: ExecutionContext) -> None:
        stopping.set()
        await asyncio.to_thread(go.wait, WAIT)

    portal = Portal(lambda: build_runtime(LifecycleStep(id="stop", shutdown=stop)))
    portal.run(hit)
    with ThreadPoolExecutor(2) as threads:
        first = threads.submit(portal.close)
        stopping.wait(WAIT)
        second = threads.submit(portal.close)
        early = wait([first, second], timeout=0.05).done
        go.set()
        assert not early
        assert (first.result(WAIT), second.result(WAIT)) == (None, None)


def test_a_function_that_needs_the_portal_it_makes_a_runtime_for_is_told() -> None:
    circular: Portal = Portal(lambda: build_runtime(LifecycleStep(id=str(circular.run(hit)))))
    with pytest.raises(RecursionError):
        circular.run(hit)
    circular.close()


def test_a_function_that_makes_no_runtime_is_told() -> None:
    def unfinished() -> ExecutionRuntime:
        raise ConfigurationError("no settings")

    portal = Portal(unfinished)
    with pytest.raises(ForzeError, match="no settings"):
        portal.run(hit)
    portal.close()


# -- processes -----------------------------------------------------------------------

PROGRAM = """
import os, sys, warnings
warnings.filterwarnings("ignore", "This process", DeprecationWarning)
from forze.application.contracts.counter import CounterSpec
from forze.application.execution import DepsPlan, ExecutionRuntime, LifecyclePlan, Portal
from forze_redis import RedisClient, RedisDepsModule, redis_lifecycle_step

HITS = CounterSpec(name="hits")

def build_runtime():
    module = RedisDepsModule(client=RedisClient(), counters={"hits": {"namespace": "portal:hits"}})
    step = redis_lifecycle_step(dsn=sys.argv[1])
    return ExecutionRuntime(
        deps=DepsPlan.from_modules(module), lifecycle=LifecyclePlan.from_steps(step)
    )

async def hit(ctx):
    return await ctx.counter(HITS).incr()

def in_child(work):
    child = os.fork()
    if child == 0:
        try:
            work()
        finally:
            sys.stdout.flush()
            os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
"""


def _ran(program: str, *arguments: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", PROGRAM + program, *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.split()


def test_a_forked_process_has_its_own_and_leaves_the_parents_alone(valkey_dsn: str) -> None:
    assert _ran(
        """
portal = Portal(build_runtime)
print(portal.run(hit), flush=True)
def child():
    print(portal.run(hit), portal.run(hit))
    in_child(lambda: print(portal.run(hit)))
    portal.close()
in_child(child)
print(portal.run(hit))
""",
        valkey_dsn,
    ) == ["1", "2", "3", "4", "5"]


def test_a_fork_while_another_thread_starts_it_locks_nobody_out(valkey_dsn: str) -> None:
    assert _ran(
        """
import threading
arrived, go = threading.Event(), threading.Event()
def slowly():
    if not go.is_set():
        arrived.set()
        go.wait(20)
    return build_runtime()
portal = Portal(slowly)
thread = threading.Thread(target=lambda: portal.run(hit))
thread.start()
arrived.wait(20)
def child():
    go.set()
    print(portal.run(hit))
in_child(child)
go.set()
thread.join()
print(portal.run(hit))
""",
        valkey_dsn,
    ) == ["1", "3"]


def test_a_runtime_that_was_open_at_the_fork_is_refused(valkey_dsn: str) -> None:
    assert _ran(
        """
from forze.errors import ConfigurationError
portal = Portal(build_runtime())
print(portal.run(hit), flush=True)
def child():
    try:
        portal.run(hit)
    except ConfigurationError as error:
        print("give the portal the function" in str(error))
in_child(child)
""",
        valkey_dsn,
    ) == ["1", "True"]


def test_the_interpreter_ends_with_it_open_and_closes_it(valkey_dsn: str) -> None:
    assert _ran(
        """
from forze.application.execution import LifecycleStep
async def stop(ctx):
    print("stopped")
def watched():
    step = redis_lifecycle_step(dsn=sys.argv[1])
    module = RedisDepsModule(client=RedisClient(), counters={"hits": {"namespace": "portal:hits"}})
    plan = LifecyclePlan.from_steps(step, LifecycleStep(id="stop", shutdown=stop))
    return ExecutionRuntime(deps=DepsPlan.from_modules(module), lifecycle=plan)
print(Portal(watched).run(hit))
""",
        valkey_dsn,
    ) == ["1", "stopped"]
