"""The thread behind a portal: an event loop, the open scope in it, and the calls under way.

Whoever waits is always answered: a call either becomes a task, whose end settles it, or is
refused; and what the loop left behind when it ended is refused then.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import Future, wait
from contextlib import contextmanager
from contextvars import Context, copy_context
from datetime import timedelta
from typing import Any, TypeVar

from forze.application.contracts.tenancy import TRAVELLING
from forze.application.execution.context import ExecutionContext
from forze.application.execution.runtime import ExecutionRuntime
from forze.errors import CallTimeout, ConfigurationError

T = TypeVar("T")

_ENDING_SECONDS = 5.0
"""How long a cancelled call is waited for; what refuses to end is left to itself."""


class Call(Future[T]):
    """One call under way: a future for the thread that waits for it, a task in the loop."""

    def __init__(self, work: Callable[[], Awaitable[T]]) -> None:
        super().__init__()
        self.task: asyncio.Task[None] | None = None
        self._work = work
        self._context = _travelling()

    def begin(self) -> asyncio.Task[None]:
        """Start it, in the loop."""
        self.task = asyncio.get_running_loop().create_task(self._run(), context=self._context)
        return self.task

    def refuse(self, error: Exception | None = None) -> None:
        """It ends without an outcome of its own, unless it has one."""
        if self.done():
            return
        if error is not None:
            self.set_exception(error)
        elif self.cancel():
            self.set_running_or_notify_cancel()

    async def _run(self) -> None:
        try:
            self.set_result(await self._work())
        except asyncio.CancelledError:
            raise
        except BaseException as error:  # SystemExit, too: it is the caller's, not the thread's
            self.set_exception(error)
            del self  # the exception holds this frame: a cycle for the collector otherwise


class PortalThread:
    """One opening of a portal; what it raised at its end is raised by :meth:`close`."""

    context: ExecutionContext

    def __init__(self, runtime: ExecutionRuntime, name: str) -> None:
        self._runtime = runtime
        self.name = name
        self._loop = asyncio.new_event_loop()
        self._scope_task: asyncio.Task[Any] | None = None
        self._drain: asyncio.Future[timedelta] = self._loop.create_future()
        self._opened: Future[None] = Future()
        self._ended: Future[None] = Future()
        self._lock = threading.RLock()
        self._calls: set[Call[Any]] = set()
        # A daemon, for the interpreter waits for other threads before it calls atexit's functions.
        self._thread = threading.Thread(target=self._serve, name=name, daemon=True)
        self._thread.start()

    @property
    def ended(self) -> bool:
        """Whether it takes no more calls."""
        return self._ended.done()

    @property
    def is_current(self) -> bool:
        """Whether this code runs in it."""
        return threading.current_thread() is self._thread

    def wait_until_open(self) -> None:
        """Return when the scope is open; raises what entering it raised."""
        self._opened.result()

    def perform(self, work: Callable[[], Awaitable[T]], timeout: timedelta | None = None) -> T:
        """What ``work`` returns, done in the loop. Whatever interrupts waiting ends it first."""
        seconds = None if timeout is None else timeout.total_seconds()
        call = Call(work)
        try:  # in this very frame: Ctrl-C between the frames of a context manager would miss it
            self._submit(call)
            in_time = bool(wait([call], seconds).done)
        finally:
            self._end(call)
        if timeout is not None and not in_time and (call.cancelled() or not call.done()):
            raise CallTimeout(policy=self.name, timeout=timeout)
        try:
            return call.result()
        finally:
            del call  # as in Call._run

    @contextmanager
    def begun(self, work: Callable[[], Awaitable[T]]) -> Iterator[Call[T]]:
        """``work`` under way in the loop; with the block it ends, or is cancelled."""
        call = Call(work)
        try:
            self._submit(call)
            yield call
        finally:
            self._end(call)

    def close(self, drain: timedelta) -> None:
        """Let calls end within ``drain``, cancel the rest, leave the scope, end the thread.

        A start under way is given as much. Waits for the end, also if another thread closes it.
        """
        with contextlib.suppress(RuntimeError):  # it has ended
            self._loop.call_soon_threadsafe(self._leave, drain)
        self._ended.result()

    def _submit(self, call: Call[Any]) -> None:
        with self._lock:
            if self.ended:
                call.refuse()
                raise self._closed()
            self._calls.add(call)
        with contextlib.suppress(RuntimeError):  # ended this moment: refused with what is left
            self._loop.call_soon_threadsafe(self._begin, call)

    def _end(self, call: Call[Any]) -> None:
        if not call.done():
            with contextlib.suppress(RuntimeError):  # the loop has ended, and the call with it
                self._loop.call_soon_threadsafe(self._cancel, call)
            wait([call], _ENDING_SECONDS)

    # -- in the thread -------------------------------------------------------

    def _serve(self) -> None:
        failure: BaseException | None = None
        try:
            with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
                runner.run(self._scope())
        except asyncio.CancelledError:  # while it started
            failure = self._closed()
        except BaseException as error:
            failure = error
        with self._lock:
            if failure is None or not self._opened.done():
                self._ended.set_result(None)
            else:
                self._ended.set_exception(failure)
            left = tuple(self._calls)
        if not self._opened.done():
            self._opened.set_exception(failure or self._closed())
        for call in left:
            call.refuse(self._closed())

    async def _scope(self) -> None:
        self._scope_task = asyncio.current_task()
        async with self._runtime.scope() as self.context:
            self._opened.set_result(None)
            drain = await self._drain
            tasks = [call.task for call in tuple(self._calls) if call.task is not None]
            if tasks:
                await asyncio.wait(tasks, timeout=drain.total_seconds())
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def _leave(self, drain: timedelta) -> None:
        if not self._drain.done():
            self._drain.set_result(drain)
            self._loop.call_later(drain.total_seconds(), self._give_up_starting)

    def _give_up_starting(self) -> None:
        if self._scope_task is not None and not self._opened.done():
            self._scope_task.cancel()

    def _begin(self, call: Call[Any]) -> None:
        if self._drain.done():
            self._answer(call, self._closed())
        else:
            call.begin().add_done_callback(lambda _: self._answer(call))

    def _cancel(self, call: Call[Any]) -> None:
        if call.task is None:  # given up before it was handed over
            self._answer(call)
        else:
            call.task.cancel()

    def _answer(self, call: Call[Any], error: Exception | None = None) -> None:
        call.refuse(error)
        self._calls.discard(call)

    def _closed(self) -> ConfigurationError:
        return ConfigurationError(f"portal {self.name!r} is closed; make another one")


def _travelling() -> Context:
    """The caller's context without what belongs to a loop: transactions, claims, routes."""
    context = Context()
    for variable, value in copy_context().items():
        if variable in TRAVELLING or not variable.name.startswith("forze_"):
            context.run(variable.set, value)
    return context
