"""Work that belongs to no request: kept referenced, waited for at shutdown."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from contextvars import Context
from datetime import timedelta
from typing import Any, TypeVar
from weakref import WeakSet

T = TypeVar("T")

_log = logging.getLogger("forze")


class Background:
    """The tasks of one execution context that run apart from its callers."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()
        self._expendable: WeakSet[asyncio.Task[Any]] = WeakSet()

    def spawn(
        self,
        work: Coroutine[Any, Any, T],
        *,
        name: str,
        context: Context | None = None,
        wait: bool = True,
    ) -> asyncio.Task[T]:
        """Start ``work``; without ``context`` in an empty one, so it holds on to no request.

        Without ``wait`` shutdown cancels it at once.
        """
        task = asyncio.get_running_loop().create_task(
            work, name=name, context=Context() if context is None else context
        )
        self._tasks.add(task)
        if not wait:
            self._expendable.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.debug("%s ended with %r", task.get_name(), error)

    async def drain(self, within: timedelta) -> None:
        """Wait for what runs and what it starts; cancel what is left after ``within``."""
        loop = asyncio.get_running_loop()
        until = loop.time() + within.total_seconds()
        while self._tasks and (left := until - loop.time()) > 0:
            for task in tuple(self._expendable):
                task.cancel()
            await asyncio.wait(set(self._tasks), timeout=left)
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
