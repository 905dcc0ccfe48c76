"""One run of a piece of work at a time for each key, shared by all who ask for it meanwhile.

The work runs in a task of its own, so that cancelling any of its callers, the first included,
harms nobody else: in none of their contexts but under their tenant, so that no caller's
deadline ends it for all, or in a context that is given.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Hashable
from contextvars import Context
from typing import Any, Generic, TypeVar

from forze.application.contracts.deps import Resolver
from forze.application.contracts.tenancy import bind_again, current_tenant
from forze.errors import ForzeError

T = TypeVar("T")

Work = Callable[[], Coroutine[Any, Any, T]]


class SingleFlight(Generic[T]):
    """The work under way, by key. ``name`` is what its tasks are called."""

    def __init__(self, resolver: Resolver, name: str) -> None:
        self._resolver = resolver
        self._name = name
        self._tasks: dict[Hashable, asyncio.Task[T]] = {}

    def begin(
        self, key: Hashable, work: Work[T], context: Context | None = None
    ) -> asyncio.Task[T]:
        """The task of ``key`` on this event loop; begun if there is none."""
        task = self._tasks.get(key)
        if task is None or task.done() or task.get_loop() is not asyncio.get_running_loop():
            running = work() if context is not None else _under(current_tenant(), work)
            task = self._resolver.spawn(running, name=self._name, context=context)
            self._tasks[key] = task
            task.add_done_callback(lambda done: self._ended(key, done))
        return task

    async def share(self, key: Hashable, work: Work[T], context: Context | None = None) -> T:
        """What the task of ``key`` returns or raises; everyone gets an error of their own."""
        while True:
            task = self.begin(key, work, context)
            await asyncio.wait((task,))
            if task.cancelled():  # by the end of the runtime it was begun in
                continue
            error = task.exception()
            if error is None:
                return task.result()
            raise error.again() if isinstance(error, ForzeError) else error

    def forget(self) -> None:
        """Begin everything anew from here on; nothing that is under way is shared any more."""
        self._tasks = {}

    def _ended(self, key: Hashable, task: asyncio.Task[T]) -> None:
        if self._tasks.get(key) is task:
            del self._tasks[key]


async def _under(tenant: str | None, work: Work[T]) -> T:
    with bind_again(tenant):
        return await work()
