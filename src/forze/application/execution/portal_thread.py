"""The thread behind a portal: an event loop, the open scope in it, and the calls under way.

Whoever waits is always answered: a call either becomes a task, whose end settles it, or is
refused; and what the loop left behind when it ended is refused then.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import Future, wait
from contextvars import Context, copy_context
from datetime import timedelta
from typing import Any, Generic, TypeVar

from forze.application.contracts.tenancy import TRAVELLING
from forze.application.execution.context import ExecutionContext
from forze.application.execution.runtime import ExecutionRuntime
from forze.errors import CallTimeout, ConfigurationError

T = TypeVar("T")

_ENDING_SECONDS = 5.0
"""How long a cancelled call is waited for; what refuses to end is left to itself."""


class Call(Generic[T]):
    """One call under way, as the thread that waits for it sees it."""

    def __init__(self, thread: PortalThread, work: Callable[[], Awaitable[T]]) -> None:
        self._thread = thread
        self._work = work
        self._outcome: Future[T] = Future()
        self._task: asyncio.Task[None] | None = None
        self.context = _travelling()

    @property
    def answered(self) -> bool:
        """Whether it has ended by itself, with a result or an exception."""
        return self._outcome.done() and not self._outcome.cancelled()

    def ended_within(self, timeout: timedelta | None) -> bool:
        """Wait for its end; whether it came in time."""
        seconds = None if timeout is None else timeout.total_seconds()
        return bool(wait([self._outcome], seconds).done)

    def result(self) -> T:
        """Wait for it: its result, or what it raised."""
        return self._outcome.result()

    def end(self) -> None:
        """Cancel it, unless it has ended, and wait until it has."""
        if self._outcome.done():
            return
        with contextlib.suppress(RuntimeError):  # the loop has ended, and the call with it
            self._thread.loop.call_soon_threadsafe(self._cancel)
        wait([self._outcome], _ENDING_SECONDS)

    def on_end(self, told: Callable[[], object]) -> None:
        """Call ``told`` when it has ended, or now."""
        self._outcome.add_done_callback(lambda _: told())

    # -- in the loop ---------------------------------------------------------

    def begin(self) -> asyncio.Task[None]:
        """Start it."""
        self._task = asyncio.get_running_loop().create_task(self._run(), context=self.context)
        self._task.add_done_callback(lambda _: self.refuse())
        return self._task

    def refuse(self, error: Exception | None = None) -> None:
        """It ends without an outcome of its own, unless it has one."""
        if self._outcome.done():
            return
        if error is not None:
            self._outcome.set_exception(error)
        elif self._outcome.cancel():
            self._outcome.set_running_or_notify_cancel()

    async def _run(self) -> None:
        try:
            self._outcome.set_result(await self._work())
        except asyncio.CancelledError:
            raise
        except BaseException as error:  # SystemExit, too: it is the caller's, not the thread's
            self._outcome.set_exception(error)

    def _cancel(self) -> None:
        if self._task is None:  # given up before it was handed over
            self.refuse()
        else:
            self._task.cancel()


class PortalThread:
    """One opening of a portal; what it raised at its end is raised by :meth:`close`."""

    loop: asyncio.AbstractEventLoop
    context: ExecutionContext

    def __init__(self, runtime: ExecutionRuntime, name: str) -> None:
        self._runtime = runtime
        self.name = name
        self._opened: Future[None] = Future()
        self._ended: Future[None] = Future()
        self._lock = threading.Lock()
        self._calls: set[Call[Any]] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._drain: asyncio.Future[timedelta] | None = None
        # A daemon, for the interpreter waits for other threads before it calls atexit's functions.
        threading.Thread(target=self._serve, name=name, daemon=True).start()

    def wait_until_open(self) -> None:
        """Return when the scope is open; raises what entering it raised."""
        self._opened.result()

    def perform(self, work: Callable[[], Awaitable[T]], timeout: timedelta | None = None) -> T:
        """What ``work`` returns, done in the loop. Whatever interrupts waiting ends it first."""
        call = Call(self, work)
        try:
            self.submit(call)
            in_time = call.ended_within(timeout)
        finally:
            call.end()
        if timeout is not None and not (in_time or call.answered):
            raise CallTimeout(policy=self.name, timeout=timeout)
        return call.result()

    def submit(self, call: Call[Any]) -> None:
        """Have ``call`` done in the loop."""
        with self._lock:
            if self._ended.done():
                call.refuse()
                raise self._closed()
            self._calls.add(call)
        call.on_end(lambda: self._calls.discard(call))
        with contextlib.suppress(RuntimeError):  # ended this moment: refused with what is left
            self.loop.call_soon_threadsafe(self._begin, call)

    def close(self, drain: timedelta) -> None:
        """Let calls end within ``drain``, cancel the rest, leave the scope, end the thread."""

        def leave() -> None:
            assert self._drain is not None
            if not self._drain.done():
                self._drain.set_result(drain)

        with contextlib.suppress(Exception):
            self._opened.result()
        with contextlib.suppress(RuntimeError, AttributeError):
            self.loop.call_soon_threadsafe(leave)
        self._ended.result()

    # -- in the thread -------------------------------------------------------

    def _serve(self) -> None:
        failure: BaseException | None = None
        try:
            with asyncio.Runner() as runner:
                runner.run(self._scope())
        except BaseException as error:
            failure = error
        with self._lock:
            if not self._opened.done():
                self._opened.set_exception(failure or self._closed())
                failure = None
            if failure is None:
                self._ended.set_result(None)
            else:
                self._ended.set_exception(failure)
            left = tuple(self._calls)
        for call in left:
            call.refuse(self._closed())

    async def _scope(self) -> None:
        self.loop = asyncio.get_running_loop()
        self._drain = self.loop.create_future()
        async with self._runtime.scope() as self.context:
            self._opened.set_result(None)
            drain = await self._drain
            if self._tasks:
                await asyncio.wait(self._tasks, timeout=drain.total_seconds())
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    def _begin(self, call: Call[Any]) -> None:
        assert self._drain is not None
        if self._drain.done():
            call.refuse(self._closed())
            return
        task = call.begin()
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _closed(self) -> ConfigurationError:
        return ConfigurationError(f"portal {self.name!r} is closed; make another one")


def _travelling() -> Context:
    """The caller's context without what belongs to a loop: transactions, claims, routes."""
    context = Context()
    for variable, value in copy_context().items():
        if variable in TRAVELLING or not variable.name.startswith("forze_"):
            context.run(variable.set, value)
    return context
