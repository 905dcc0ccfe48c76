"""The portal of tasks, which may be handed to their coroutines (``bind=True``).

What a task's ``request`` is depends on the thread that asks, and a coroutine runs in another one
than the worker: it would see an empty request there, and ``self.retry()`` would say that it tries
again without having published anything.
"""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable
from typing import Any, Concatenate, ParamSpec, TypeVar

from celery import Task

from forze.application.execution import ExecutionContext, Portal

P = ParamSpec("P")
T = TypeVar("T")


class TaskPortal(Portal):
    """A portal whose coroutines may be given their task."""

    def sync(
        self, function: Callable[Concatenate[ExecutionContext, P], Awaitable[T]]
    ) -> Callable[P, T]:
        """As ``Portal.sync``; of a bound task, ``function`` takes ``ctx, self, ...``.

        ``self.request`` and ``self.retry()`` are those of the run, although that is in another
        thread.
        """
        called = super().sync(function)

        @functools.wraps(called)
        def run(*args: P.args, **kwargs: P.kwargs) -> T:
            carried: Any = map(_with_its_request, args)
            return called(*carried, **kwargs)

        return run


class _OneRequest:
    """A stack of requests as seen by every thread."""

    def __init__(self, request: Any) -> None:
        self.top = request


def _with_its_request(task: Any) -> Any:
    """The task as this thread sees it, for any other: with the request that runs here."""
    if not isinstance(task, Task) or task.request_stack.top is None:
        return task
    same = object.__new__(type(task))
    same.__dict__.update(task.__dict__, request_stack=_OneRequest(task.request_stack.top))
    return same
