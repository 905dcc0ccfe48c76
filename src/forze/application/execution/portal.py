"""The portal: synchronous code reaches the ports, which are asynchronous.

One thread with an event loop per process, the runtime's scope open in it, and calls that are
carried over: Celery tasks, threads and scripts share its connections, caches and leases. There
is no synchronous copy of a port that could drift apart from it.

::

    portal = Portal(build_runtime)

    @portal.sync
    async def confirm(ctx: ExecutionContext, order_id: UUID) -> None: ...

    confirm(order_id)                                   # from any thread without an event loop
    portal.run(confirm_many, order_ids, timeout=MINUTE)
    with portal.enter(lambda ctx: ctx.dlock_scope(REPORTS).scope("daily")) as lock: ...
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import functools
import inspect
import os
import threading
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import CancelledError, Future, InvalidStateError
from contextlib import AbstractAsyncContextManager, contextmanager
from datetime import timedelta
from types import TracebackType
from typing import Concatenate, ParamSpec, Self, TypeVar, TypeVarTuple, Unpack
from weakref import WeakSet

from forze.application.execution.context import ExecutionContext
from forze.application.execution.portal_thread import Call, PortalThread
from forze.application.execution.runtime import ExecutionRuntime
from forze.errors import ConfigurationError, ForzeError

P = ParamSpec("P")
T = TypeVar("T")
A = TypeVarTuple("A")

_inherited: list[PortalThread] = []
"""What forked processes have of their parents': kept, for collecting it would close connections."""


class Portal:
    """Runs a runtime in a thread of its own, for code that has no event loop.

    ``runtime`` is what makes the runtime, or the runtime itself where no process is forked while
    it is open. Nothing is started before the first call; a start that fails is raised by the calls
    that waited for it, and the next one tries anew. A process forked later starts its own.

    Calls may come from any thread without a running event loop, also from several at once. The
    tenant, the principal and the deadline bound there, and the application's own context
    variables, are bound in the call; an open transaction is not. What a call raises is raised
    here, with its traceback. An exception that interrupts the waiting thread (Ctrl-C, a task's
    time limit) cancels the call, and goes on when that has ended.

    ``drain`` is what calls under way, or a start, are given when the portal is closed. It is closed
    with the interpreter at the latest; where a process ends without ``atexit``, as Celery's workers
    do, call :meth:`close`.
    """

    def __init__(
        self,
        runtime: ExecutionRuntime | Callable[[], ExecutionRuntime],
        *,
        name: str = "forze-portal",
        drain: timedelta = timedelta(seconds=10),
    ) -> None:
        self._runtime = runtime
        self._name = name
        self._drain = drain
        self._lock = threading.RLock()
        self._thread: PortalThread | None = None
        self._closed = self._spent = False
        _portals.add(self)

    def run(
        self,
        function: Callable[[ExecutionContext, Unpack[A]], Awaitable[T]],
        *args: *A,
        timeout: timedelta | None = None,
    ) -> T:
        """``await function(ctx, *args)`` in the portal; what it returns.

        After ``timeout`` it is cancelled, which raises ``CallTimeout`` when that has ended; the
        start that a first call waits for is not counted.
        Raises ``ConfigurationError`` in a thread with a running event loop, and after
        :meth:`close`; ``concurrent.futures.CancelledError`` where the call was cancelled.
        """
        thread = self._opened()
        return thread.perform(functools.partial(function, thread.context, *args), timeout)

    def call(
        self,
        function: Callable[[Unpack[A]], Awaitable[T]],
        *args: *A,
        timeout: timedelta | None = None,
    ) -> T:
        """``await function(*args)`` in the portal; as :meth:`run`, without the context."""
        return self._opened().perform(functools.partial(function, *args), timeout)

    def sync(
        self, function: Callable[Concatenate[ExecutionContext, P], Awaitable[T]]
    ) -> Callable[P, T]:
        """A decorator: the function without its first argument, the context, for sync callers."""

        @functools.wraps(function)
        def called(*args: P.args, **kwargs: P.kwargs) -> T:
            thread = self._opened()
            return thread.perform(functools.partial(function, thread.context, *args, **kwargs))

        first, *others = inspect.signature(function).parameters.values()
        called.__signature__ = inspect.signature(function).replace(  # type: ignore[attr-defined]
            parameters=others
        )
        called.__annotations__ = {
            name: kind
            for name, kind in getattr(function, "__annotations__", {}).items()
            if name != first.name
        }
        return called

    @contextmanager
    def enter(
        self,
        function: Callable[[ExecutionContext, Unpack[A]], AbstractAsyncContextManager[T]],
        *args: *A,
    ) -> Iterator[T]:
        """``async with function(ctx, *args)`` as a ``with`` block: a lock, a semaphore, a claim.

        What ends the block early (a lock that was lost) is raised at its end: a thread cannot be
        cancelled, so ask ``lock.check()`` before each effect. Transactions belong to the tasks
        that open them: use :meth:`run` with a function that holds the whole of one.
        """
        thread = self._opened()
        entered: Future[T] = Future()
        left: Future[BaseException | None] = Future()

        async def hold() -> None:
            async with function(thread.context, *args) as value:
                entered.set_result(value)
                if (failure := await asyncio.wrap_future(left)) is not None:
                    raise failure

        failure = None
        with thread.begun(hold) as call:
            value = _entered(entered, call)
            try:
                yield value
            except BaseException as error:
                failure = error
            told = _told(left, failure)
            call.result()
        if failure is not None and not told:
            raise failure

    # -- open and closed -----------------------------------------------------

    def open(self) -> None:
        """Start now instead of at the first call; raises what entering the scope raises."""
        self._opened()

    def close(self) -> None:
        """Refuse further calls, let those under way end, or cancel them, and leave the scope.

        Raises what leaving the scope raises, and ``ConfigurationError`` in a call of the portal
        itself. Closed once, the portal stays closed.
        """
        with self._lock:
            thread = self._thread
            if thread is not None and thread.is_current:
                raise ConfigurationError(
                    f"portal {self._name!r} was closed by a call that runs in it, which would wait "
                    "for its own end; close it in another thread"
                )
            self._closed = True
        if thread is not None:
            thread.close(self._drain)
        atexit.unregister(self._at_exit)

    def __enter__(self) -> Self:
        self.open()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _opened(self) -> PortalThread:
        _refuse_in_an_event_loop()
        with self._lock:
            if self._closed:
                raise ConfigurationError(f"portal {self._name!r} is closed; make another one")
            if self._thread is None:
                self._thread = PortalThread(self._made(), self._name)
                atexit.register(self._at_exit)
            thread = self._thread
        try:
            thread.wait_until_open()
        except BaseException as error:
            with self._lock:
                if self._thread is thread and thread.ended:  # not where only waiting was broken off
                    self._thread = None
            if isinstance(error, ForzeError):  # the threads that waited share it
                raise error.again() from error
            raise
        return thread

    def _made(self) -> ExecutionRuntime:
        if not isinstance(self._runtime, ExecutionRuntime):
            return self._runtime()
        if self._spent:
            raise ConfigurationError(
                f"portal {self._name!r} was open when this process was forked, and its runtime "
                "cannot be opened twice; give the portal the function that makes the runtime"
            )
        return self._runtime

    def _at_exit(self) -> None:
        with contextlib.suppress(Exception):  # nobody is left to be told
            self.close()

    def _forked(self) -> None:
        """In the child: neither the lock nor the thread came along."""
        self._lock = threading.RLock()
        if self._thread is not None:
            _inherited.append(self._thread)
            self._thread, self._spent = None, True


_portals: WeakSet[Portal] = WeakSet()


def _all_forked() -> None:
    for portal in tuple(_portals):
        portal._forked()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_all_forked)


def _entered(entered: Future[T], call: Call[None]) -> T:
    """What the block was entered with; raises what prevented it."""
    call.add_done_callback(lambda _: entered.cancel())
    try:
        return entered.result()
    except CancelledError:
        call.result()
        raise


def _told(left: Future[BaseException | None], failure: BaseException | None) -> bool:
    """Whether the block hears how it was left; one that ended early hears nothing."""
    try:
        left.set_result(failure)
    except InvalidStateError:
        return False
    return True


def _refuse_in_an_event_loop() -> None:
    with contextlib.suppress(RuntimeError):
        asyncio.get_running_loop()
        raise ConfigurationError(
            "a portal was called in a thread that runs an event loop, which would stand still "
            "until the answer is there, or for ever in the portal's own; await the port itself "
            "there, or call the sync code by asyncio.to_thread"
        )
