"""The runtime's life within the application's: started before the first request, stopped last.

Several applications of one process may share a runtime (a public and an internal one on two
ports): the first that starts opens its scope, the last that stops closes it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from typing import Any, Final, TypeAlias
from weakref import WeakKeyDictionary

from starlette.applications import Starlette

from forze.application.execution import ExecutionRuntime
from forze.errors import ConfigurationError
from forze_fastapi.isolation import isolate
from forze_fastapi.response_headers import carry_headers

Lifespan: TypeAlias = Callable[
    [Any], AbstractAsyncContextManager[Mapping[str, Any]] | AbstractAsyncContextManager[None]
]
"""What ``FastAPI(lifespan=...)`` takes."""


def runtime_lifespan(
    runtime: ExecutionRuntime, *, then: Lifespan | None = None, name: str = "runtime"
) -> Callable[[Any], AbstractAsyncContextManager[dict[str, Any]]]:
    """For ``FastAPI(lifespan=runtime_lifespan(runtime))``: ``runtime`` runs while the app does.

    ``then`` is a lifespan of your own; it starts after the runtime and stops before it. The
    runtime is ``app.state.runtime`` and ``request.state.runtime`` (or ``name``, for a second
    one). Each request begins with nothing bound that an earlier one on its connection
    had: no tenant, no principal, no deadline, no transaction.

    What keeps the runtime from starting keeps the application from starting; the last line
    that the server prints says what, where and what to do.
    """
    if not isinstance(runtime, ExecutionRuntime):
        raise ConfigurationError(
            f"runtime_lifespan takes the ExecutionRuntime, not {runtime!r}", name="runtime"
        )

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[dict[str, Any]]:
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(_running(runtime))
            setattr(app.state, name, runtime)
            if app.middleware_stack is None:  # nobody served it: the lifespan is run by hand
                app.middleware_stack = app.build_middleware_stack()
            carry_headers(app)
            isolate(app)
            told = None if then is None else await stack.enter_async_context(then(app))
            yield {**(told or {}), name: runtime}

    return lifespan


class _Shared:
    """One runtime, and the applications that use it or wait for it to start."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.turn = asyncio.Lock()
        self.users = 0
        self.is_open = False
        self.scope = AsyncExitStack()


_shared: Final[WeakKeyDictionary[ExecutionRuntime, _Shared]] = WeakKeyDictionary()


@asynccontextmanager
async def _running(runtime: ExecutionRuntime) -> AsyncIterator[None]:
    """Its scope, opened by the first who comes and closed by the last who goes."""
    shared = _shared.get(runtime)
    if shared is None or shared.loop.is_closed():
        shared = _shared[runtime] = _Shared()
    elif shared.loop is not asyncio.get_running_loop():
        raise ConfigurationError(
            "the runtime is open in another event loop; give each loop a runtime of its own"
        )
    shared.users += 1  # before the first await, so that nobody closes what we wait for
    try:
        async with shared.turn:
            if not shared.is_open:
                await shared.scope.enter_async_context(runtime.scope())
                shared.is_open = True
        yield
    finally:
        shared.users -= 1
        if not shared.users:
            await _close(runtime, shared)


async def _close(runtime: ExecutionRuntime, shared: _Shared) -> None:
    """Nobody uses it: the turn is free, or with whoever closes it already."""
    try:
        if shared.is_open:
            shared.is_open = False
            async with shared.turn:  # who comes meanwhile opens it again afterwards
                await shared.scope.aclose()
    finally:
        if not shared.users and not shared.turn.locked():
            _shared.pop(runtime, None)
